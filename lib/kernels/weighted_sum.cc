// A weighted sum of rows of any storage type, row by row, for the merge of partial results. Parts of weight 0 are the caller's to leave out.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/weighted_sum.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
HWY_INLINE void AddRow(const T* row, float weight, size_t n, float* HWY_RESTRICT sum) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  const auto w = hn::Set(d, weight);
  size_t c = 0;
  for (; c + N <= n; c += N) hn::StoreU(hn::MulAdd(LoadF32(d, row + c), w, hn::LoadU(d, sum + c)), d, sum + c);
  if (c < n) StoreF32N(hn::MulAdd(LoadF32N(d, row + c, n - c), w, LoadF32N(d, sum + c, n - c)), d, sum + c, n - c);
}

// sum[c] += weight * row[c].
HWY_NOINLINE void AddWeighted(int32_t dtype, const void* row, float weight, int64_t n, float* sum) {
  const size_t columns = static_cast<size_t>(n);
  if (dtype == kBF16) return AddRow(static_cast<const BF16*>(row), weight, columns, sum);
  if (dtype == kF16) return AddRow(static_cast<const F16*>(row), weight, columns, sum);
  AddRow(static_cast<const float*>(row), weight, columns, sum);
}

template <class T>
HWY_INLINE void StoreRow(const float* sum, size_t n, T* out) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  const auto zero = hn::Zero(d);  // no output is -0
  size_t c = 0;
  for (; c + N <= n; c += N) StoreF32(hn::Add(hn::LoadU(d, sum + c), zero), d, out + c);
  if (c < n) StoreF32N(hn::Add(LoadF32N(d, sum + c, n - c), zero), d, out + c, n - c);
}

HWY_NOINLINE void StoreSum(const float* sum, int64_t n, int32_t dtype, void* out) {
  const size_t columns = static_cast<size_t>(n);
  if (dtype == kBF16) return StoreRow(sum, columns, static_cast<BF16*>(out));
  if (dtype == kF16) return StoreRow(sum, columns, static_cast<F16*>(out));
  StoreRow(sum, columns, static_cast<float*>(out));
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
