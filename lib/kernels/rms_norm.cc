// RMS norm of the columns of each head of a row, in place: x[d] / sqrt(mean_d x[d]^2 + eps) * weight[d]. A row's heads lie together; two passes
// over head_dim columns that stay in L1.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/rms_norm.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include <math.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_NOINLINE void RmsNorm(const float* HWY_RESTRICT weight, float eps, int64_t heads, int64_t dim, float* HWY_RESTRICT row) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d), n = static_cast<size_t>(dim);
  for (int64_t h = 0; h < heads; ++h, row += dim) {
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    size_t c = 0;
    for (; c + 2 * N <= n; c += 2 * N) {
      const auto a = hn::LoadU(d, row + c), b = hn::LoadU(d, row + c + N);
      sum0 = hn::MulAdd(a, a, sum0);
      sum1 = hn::MulAdd(b, b, sum1);
    }
    for (; c < n; c += N) {
      const auto a = c + N <= n ? hn::LoadU(d, row + c) : LoadF32N(d, row + c, n - c);
      sum0 = hn::MulAdd(a, a, sum0);
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1))) / static_cast<float>(dim);
    const auto scale = hn::Set(d, 1.0f / sqrtf(mean + eps));
    for (c = 0; c + N <= n; c += N) hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, row + c), scale), hn::LoadU(d, weight + c)), d, row + c);
    if (c < n) {
      StoreF32N(hn::Mul(hn::Mul(LoadF32N(d, row + c, n - c), scale), LoadF32N(d, weight + c, n - c)), d, row + c, n - c);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
