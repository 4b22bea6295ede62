// The loops of roofline.cc for one target. No std types: it is compiled for every target.
#ifndef FOVEA_BENCH_LIMIT_KERNELS_H_
#define FOVEA_BENCH_LIMIT_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

namespace fovea_bench {

constexpr size_t kExpFloats = 1024;

struct LimitKernels {
  int lanes;
  double (*fma_chains)(int64_t turns, const float* start, float* sink);  // FLOP done
  double (*fma_chain)(int64_t turns, const float* start, float* sink);   // FMAs done
  double (*exps)(int64_t turns, const float* x, float* y);               // exps done
  void (*read)(const float* p, int64_t count, int64_t passes, float* sink);
};

// Of AVX3_BF16 or NEON_BFDOT, in roofline_bf16.cc: as fma_chains; FLOP of one turn and lane. 0 FLOP where this build has neither.
constexpr double kBf16DotChainsFlop = 24 * 4;
double Bf16DotChains(int64_t turns, const float* start, float* sink);

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_LIMIT_KERNELS_H_
