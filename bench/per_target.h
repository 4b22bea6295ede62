// Per-target functions of a bench program, by the target's name. Highway's process-wide choice is left alone: table
// entries are looked up.
#ifndef FOVEA_BENCH_PER_TARGET_H_
#define FOVEA_BENCH_PER_TARGET_H_

#include <cstddef>
#include <stdexcept>
#include <string>

#include "hwy/highway.h"
#include "hwy/targets.h"

namespace fovea_bench {

// The index of a target in the HWY_DISPATCH_TABLEs of the including file; throws where that was not compiled for it. AVX3_BF16 and NEON_BFDOT
// are fovea's own: AVX3 and NEON in all but their bf16 products.
static inline size_t TargetIndex(const std::string& target) {
  const std::string name = target == "AVX3_BF16" ? "AVX3" : target == "NEON_BFDOT" ? "NEON" : target;
  for (int64_t t = HWY_TARGETS; t != 0; t &= t - 1) {
    if (name != hwy::TargetName(t & -t)) continue;
    if constexpr ((HWY_TARGETS & (HWY_TARGETS - 1)) == 0) return 0;  // a table of one entry
    hwy::ChosenTarget chosen;
    chosen.Update(t & -t);
    return chosen.GetIndex();
  }
  throw std::runtime_error(target + ": this program was not compiled for it");
}

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_PER_TARGET_H_
