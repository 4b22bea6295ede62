#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/peak.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "hwy/targets.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// start: 12 values and 2 factors that the compiler does not know. 12 chains cover 2 pipes x latency 4 (5 on some).
HWY_NOINLINE double FmaPeak(int64_t turns, const float* start, float* sink) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  V a0 = hn::Set(d, start[0]), a1 = hn::Set(d, start[1]), a2 = hn::Set(d, start[2]), a3 = hn::Set(d, start[3]);
  V a4 = hn::Set(d, start[4]), a5 = hn::Set(d, start[5]), a6 = hn::Set(d, start[6]), a7 = hn::Set(d, start[7]);
  V a8 = hn::Set(d, start[8]), a9 = hn::Set(d, start[9]), a10 = hn::Set(d, start[10]), a11 = hn::Set(d, start[11]);
  const V x = hn::Set(d, start[12]), y = hn::Set(d, start[13]);
  for (int64_t i = 0; i < turns; ++i) {
    a0 = hn::MulAdd(a0, x, y), a1 = hn::MulAdd(a1, x, y), a2 = hn::MulAdd(a2, x, y), a3 = hn::MulAdd(a3, x, y);
    a4 = hn::MulAdd(a4, x, y), a5 = hn::MulAdd(a5, x, y), a6 = hn::MulAdd(a6, x, y), a7 = hn::MulAdd(a7, x, y);
    a8 = hn::MulAdd(a8, x, y), a9 = hn::MulAdd(a9, x, y), a10 = hn::MulAdd(a10, x, y), a11 = hn::MulAdd(a11, x, y);
  }
  a0 = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
  a0 = hn::Add(a0, hn::Add(hn::Add(a8, a9), hn::Add(a10, a11)));
  *sink = hn::GetLane(hn::SumOfLanes(d, a0));
  return 2.0 * 12.0 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(turns);
}

HWY_NOINLINE int64_t PeakLanes() { return static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>())); }

}  // namespace HWY_NAMESPACE
}  // namespace fovea_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "bench/roofline.h"

namespace fovea_bench {

HWY_EXPORT(FmaPeak);
HWY_EXPORT(PeakLanes);

double RunFmaPeak(const std::string& target, double flop) {
  int64_t bit = 0;
  for (int64_t t = HWY_TARGETS; t != 0; t &= t - 1) {
    if (target == hwy::TargetName(t & -t)) bit = t & -t;
  }
  if (bit == 0) return 0.0;
  // This program's own choice of Highway target; libfovea does not read it.
  hwy::SetSupportedTargetsForTest(bit);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  static const volatile float seeds[14] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 1.1f, 1.2f, 1.3f, 0.999f, 1e-3f};
  float start[14], sink;
  for (int i = 0; i < 14; ++i) start[i] = seeds[i];
  const double lanes = static_cast<double>(HWY_DYNAMIC_DISPATCH(PeakLanes)());
  const double done = HWY_DYNAMIC_DISPATCH(FmaPeak)(static_cast<int64_t>(flop / (24.0 * lanes)) + 1, start, &sink);
  static volatile float keep;
  keep = sink;
  (void)keep;
  hwy::SetSupportedTargetsForTest(0);
  return done;
}

}  // namespace fovea_bench
#endif  // HWY_ONCE
