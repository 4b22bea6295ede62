// Ends of dot products: sums of the lanes of several vectors at once.

#if defined(FOVEA_LIB_KERNELS_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_DOT_INL_H_
#undef FOVEA_LIB_KERNELS_DOT_INL_H_
#else
#define FOVEA_LIB_KERNELS_DOT_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
// Sum of a vector's 128-bit blocks. By its length: newer Highways' tags of halves are other types than FixedTag<float, 4>.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumOfBlocks(D d, V v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    return SumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}

// Per block of 4 lanes: the sums of a, b, c, e over it, by two adds of interleaved pairs.
template <class V>
HWY_INLINE V SumsInBlocks(V a, V b, V c, V e) {
  const DF d;
  const hn::Repartition<uint64_t, DF> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab64 = hn::BitCast(d64, ab), ce64 = hn::BitCast(d64, ce);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)), hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));
}
#endif

// sums[0 .. 4) = the sums of the lanes of a, b, c, e, each in the same fixed order.
template <class V>
HWY_INLINE void SumOfLanes4(V a, V b, V c, V e, float* sums) {
  const DF d;
#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
  hn::StoreU(SumOfBlocks(d, SumsInBlocks(a, b, c, e)), hn::FixedTag<float, 4>(), sums);
#else
  sums[0] = hn::GetLane(hn::SumOfLanes(d, a));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, b));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, c));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, e));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
