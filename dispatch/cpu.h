// What this CPU and its OS run, as Highway's target bits and one of fovea's own.
#ifndef FOVEA_DISPATCH_CPU_H_
#define FOVEA_DISPATCH_CPU_H_

#include <stdint.h>

namespace fovea {

// The target AVX3_BF16 or NEON_BFDOT: a bit that is none of x86's or Arm's in any Highway (theirs end at 14 and 29).
constexpr int64_t kBf16Target = int64_t{1} << 32;

// Asked of the CPU on the first call, then remembered. Not hwy::SupportedTargets(), which sets Highway's process-wide chosen target as it answers:
// another library in the process may have restricted that.
int64_t SupportedTargets();

// Whether the target with a dot product of bf16 is the best one.
// x86: where vdpbf16ps is issued as often as an FMA, so that it does twice the work: AMD since Zen 4, and Intel's Cooper Lake. Sapphire Rapids and
// later Intels have half of it, and AMX beside it. By vendor and model: a virtual machine may hide AMX.
// Arm: where no vectors are longer than NEON's.
bool HasFastBf16Dot();

}  // namespace fovea

#endif  // FOVEA_DISPATCH_CPU_H_
