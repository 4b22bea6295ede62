// What this CPU and its OS run, as Highway's target bits.
#ifndef FOVEA_DISPATCH_CPU_H_
#define FOVEA_DISPATCH_CPU_H_

#include <stdint.h>

namespace fovea {

// Asked of the CPU on the first call, then remembered. Not hwy::SupportedTargets(), which sets Highway's process-wide chosen target as it answers:
// another library in the process may have restricted that.
int64_t SupportedTargets();

}  // namespace fovea

#endif  // FOVEA_DISPATCH_CPU_H_
