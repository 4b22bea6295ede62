// The chains of roofline.cc by the dot product of bf16, for the target that has one.
#include "lib/kernels/bf16_target.h"
//
#include "bench/limit_kernels.h"
#if FOVEA_HAVE_BF16_TARGET
#include "lib/kernels/bf16_dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace kernels = fovea::HWY_NAMESPACE;

template <class V>
HWY_INLINE void Dot12(V x, V y, V& a0, V& a1, V& a2, V& a3, V& a4, V& a5, V& a6, V& a7, V& a8, V& a9, V& a10, V& a11) {
  const auto dot = [&](V& a) HWY_ATTR { a = kernels::DotPairs(x, y, a); };
  dot(a0), dot(a1), dot(a2), dot(a3), dot(a4), dot(a5), dot(a6), dot(a7), dot(a8), dot(a9), dot(a10), dot(a11);
}

template <class V>
HWY_INLINE V Sum12(V a0, V a1, V a2, V a3, V a4, V a5, V a6, V a7, V a8, V a9, V a10, V a11) {
  const V low = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
  return hn::Add(low, hn::Add(hn::Add(a8, a9), hn::Add(a10, a11)));
}

// 24 chains, as many as the tile has accumulators: one vdpbf16ps a cycle of latency 6 on Zen 4, four bfdot of latency 3 on Neoverse V2.
HWY_NOINLINE double Bf16DotChains(int64_t turns, const float* start, float* sink) {
  const kernels::DF d;
  using V = hn::Vec<kernels::DF>;
  V a0 = hn::Set(d, start[0]), a1 = hn::Set(d, start[1]), a2 = hn::Set(d, start[2]), a3 = hn::Set(d, start[3]);
  V a4 = hn::Set(d, start[4]), a5 = hn::Set(d, start[5]), a6 = hn::Set(d, start[6]), a7 = hn::Set(d, start[7]);
  V a8 = hn::Set(d, start[8]), a9 = hn::Set(d, start[9]), a10 = hn::Set(d, start[10]), a11 = hn::Set(d, start[11]);
  V b0 = hn::Set(d, start[12]), b1 = hn::Set(d, start[13]), b2 = hn::Set(d, start[14]), b3 = hn::Set(d, start[15]);
  V b4 = hn::Set(d, start[16]), b5 = hn::Set(d, start[17]), b6 = hn::Set(d, start[18]), b7 = hn::Set(d, start[19]);
  V b8 = hn::Set(d, start[20]), b9 = hn::Set(d, start[21]), b10 = hn::Set(d, start[22]), b11 = hn::Set(d, start[23]);
  const V x = kernels::RoundToPairs(hn::Set(d, start[24]), hn::Set(d, start[25]));
  const V y = kernels::RoundToPairs(hn::Set(d, start[25]), hn::Set(d, start[24]));
  for (int64_t i = 0; i < turns; ++i) {
    Dot12(x, y, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11);
    Dot12(x, y, b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11);
  }
  const V sum = hn::Add(Sum12(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11), Sum12(b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11));
  *sink = hn::GetLane(hn::SumOfLanes(d, sum));
  return kBf16DotChainsFlop * static_cast<double>(hn::Lanes(d)) * static_cast<double>(turns);
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea_bench
HWY_AFTER_NAMESPACE();

namespace fovea_bench {
double Bf16DotChains(int64_t turns, const float* start, float* sink) { return HWY_NAMESPACE::Bf16DotChains(turns, start, sink); }
}  // namespace fovea_bench
#else
namespace fovea_bench {
double Bf16DotChains(int64_t, const float*, float*) { return 0.0; }
}  // namespace fovea_bench
#endif
