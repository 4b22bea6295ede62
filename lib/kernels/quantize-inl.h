// New rows of an int8 cache: scale = max |x| / 127, int8 = x / scale to nearest even, for each row of a head by itself.
//
// A row is made f32 (rotated, by the RoPE kernel) on the stack, where the maximum and then the quotients are taken; bound by the divisions, one
// per element, which unlike a product with 1 / scale give the same bits everywhere and the nearest number of steps.

#if defined(FOVEA_LIB_KERNELS_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_QUANTIZE_INL_H_
#undef FOVEA_LIB_KERNELS_QUANTIZE_INL_H_
#else
#define FOVEA_LIB_KERNELS_QUANTIZE_INL_H_
#endif

#include <float.h>
#include <math.h>
#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/rope-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x (padded with zeros to whole vectors) to n int8; returns the scale. channel_scale may be null.
HWY_INLINE float QuantizeRow(float* HWY_RESTRICT x, size_t n, const float* channel_scale, int8_t* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const size_t N = hn::Lanes(d);
  for (size_t c = 0; channel_scale && c < n; ++c) x[c] /= channel_scale[c];
  // As integers magnitudes are in the same order, Inf and NaN above all numbers.
  auto most = hn::Zero(di);
  for (size_t c = 0; c < n; c += N) most = hn::Max(most, hn::And(hn::BitCast(di, hn::Load(d, x + c)), hn::Set(di, 0x7FFFFFFF)));
  const float amax = hn::GetLane(hn::BitCast(d, hn::MaxOfLanes(di, most)));
  const float scale = amax <= FLT_MAX ? amax / 127.0f : NAN;
  if (!(scale > 0.0f)) {
    memset(out, 0, n);
    return scale;
  }
  // Adding 1.5 * 2^23 leaves a whole number in the low bits, rounded as the environment says: to nearest even.
  const auto divisor = hn::Set(d, scale), limit = hn::Set(d, 127.0f), whole = hn::Set(d, 0x1.8p23f);
  for (size_t c = 0; c < n; c += N) {
    auto y = hn::Div(hn::Load(d, x + c), divisor);
    y = hn::Min(hn::Max(y, hn::Neg(limit)), limit);  // past it only where scale is subnormal
    const auto steps = hn::Sub(hn::BitCast(di, hn::Add(y, whole)), hn::BitCast(di, whole));
    const auto bytes = hn::DemoteTo(d8, steps);
    if (c + N <= n) {
      hn::StoreU(bytes, d8, out + c);
    } else {
      StoreFirstN(bytes, d8, out + c, n - c);
    }
  }
  return scale;
}

HWY_NOINLINE void Quantize(const QuantizeTask& t) {
  HWY_ALIGN float x[kMaxQuantizedColumns + HWY_MAX_BYTES / sizeof(float)];
  const RopeTask& all = t.rows;
  const size_t n = static_cast<size_t>(all.head_dim);
  const auto quantize = [&](int64_t h, int64_t r) HWY_ATTR {
    RopeTask row = all;
    row.rows = row.heads = 1;
    row.x = At(all.x, all.x_dtype, h * all.x_stride_head + r * all.x_stride_row);
    row.out = x;
    row.out_dtype = kF32;
    row.position += r;
    if (row.positions) row.positions += r;
    Rope(row);
    for (size_t c = n; c % hn::Lanes(hn::ScalableTag<float>()) != 0; ++c) x[c] = 0.0f;
    const float* channel_scale = t.channel_scale ? t.channel_scale + h * t.channel_scale_stride_head : nullptr;
    t.scale[h * t.scale_stride_head + r * t.scale_stride_row] =
        QuantizeRow(x, n, channel_scale, static_cast<int8_t*>(all.out) + (h * all.out_stride_head + r * all.out_stride_row));
  };
  // In the order in which new rows lie.
  const int64_t head = all.x_stride_head < 0 ? -all.x_stride_head : all.x_stride_head;
  const int64_t row = all.x_stride_row < 0 ? -all.x_stride_row : all.x_stride_row;
  if (head < row) {
    for (int64_t r = 0; r < all.rows; ++r) {
      for (int64_t h = 0; h < all.heads; ++h) quantize(h, r);
    }
  } else {
    for (int64_t h = 0; h < all.heads; ++h) {
      for (int64_t r = 0; r < all.rows; ++r) quantize(h, r);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
