// out = sum of weights[p] * rows[p], in order, for the merge of partial results. Parts of weight 0 are the caller's to leave out.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/weighted_sum.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// out may be rows[0]. A column's bits do not depend on dim: the last columns do the same operations one by one.
HWY_NOINLINE void WeightedSumF32(const float* const* rows, const float* weights, int64_t n, int64_t dim, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const int64_t N = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + N <= dim; c += N) {
    auto sum = hn::Zero(d);
    for (int64_t p = 0; p < n; ++p) sum = hn::MulAdd(hn::LoadU(d, rows[p] + c), hn::Set(d, weights[p]), sum);
    hn::StoreU(hn::Add(sum, hn::Zero(d)), d, out + c);  // no -0
  }
  for (; c < dim; ++c) {
    auto sum = hn::Zero(d1);
    for (int64_t p = 0; p < n; ++p) sum = hn::MulAdd(hn::LoadU(d1, rows[p] + c), hn::Set(d1, weights[p]), sum);
    hn::StoreU(hn::Add(sum, hn::Zero(d1)), d1, out + c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
