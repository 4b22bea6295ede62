// Rows of heads, rotated and converted on their way from x to out: fovea_rope, and what fovea_kv_append does to them.
//
//   out[a] = cos * x[a] - sin * x[c],  out[c] = sin * x[a] + cos * x[c]
//
// half-split: a = j, c = j + rotary_dim / 2; interleaved: a = 2j, c = 2j + 1. Both in the same two operations per
// element, one product and one MulAdd, so that they have the same bits. Bound by memory: x is read once, out is written
// once; cos and sin of a chunk of rows stay in L1 for all heads. out may be x, in place.

#if defined(FOVEA_LIB_KERNELS_ROPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_ROPE_INL_H_
#undef FOVEA_LIB_KERNELS_ROPE_INL_H_
#else
#define FOVEA_LIB_KERNELS_ROPE_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/kernel_params.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of a chunk at most, for which all heads are walked: its tables and each head's rows, 4 KB each for 128 columns
// of f32, stay in L1. With 32 rows they do not, and it is a third slower; fewer rows break the prefetcher's streams
// where heads are many.
constexpr int64_t kRopeRows = 8;
// Tables that are not f32 are converted for a chunk first, on the stack.
constexpr int64_t kRopeStackFloats = 4096;

// Columns [0, n) and [half, half + n) of a row, half-split.
template <class From, class To>
HWY_INLINE void RotateHalves(const From* x, To* out, int64_t half, const float* cos, const float* sin, int64_t n) {
  const hn::ScalableTag<float> d;
  const int64_t N = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + N <= n; j += N) {
    const auto a = LoadF32(d, x + j), b = LoadF32(d, x + half + j);
    const auto c = hn::LoadU(d, cos + j), s = hn::LoadU(d, sin + j);
    StoreF32(hn::NegMulAdd(s, b, hn::Mul(c, a)), d, out + j);
    StoreF32(hn::MulAdd(s, a, hn::Mul(c, b)), d, out + half + j);
  }
  if (j < n) {
    const size_t rest = static_cast<size_t>(n - j);
    const auto a = LoadF32N(d, x + j, rest), b = LoadF32N(d, x + half + j, rest);
    const auto c = LoadF32N(d, cos + j, rest), s = LoadF32N(d, sin + j, rest);
    StoreF32N(hn::NegMulAdd(s, b, hn::Mul(c, a)), d, out + j, rest);
    StoreF32N(hn::MulAdd(s, a, hn::Mul(c, b)), d, out + half + j, rest);
  }
}

#if HWY_TARGET != HWY_SCALAR
// Each lane of the half vector v twice.
template <class D, class VH>
HWY_INLINE hn::Vec<D> Twice(D d, VH v) {
  const hn::Repartition<uint64_t, D> d64;
  const hn::Rebind<uint32_t, decltype(d64)> du;
  const auto low = hn::PromoteTo(d64, hn::BitCast(du, v));
  return hn::BitCast(d, hn::Or(low, hn::ShiftLeft<32>(low)));
}
#endif

// The first 2n columns of a row, interleaved.
template <class From, class To>
HWY_INLINE void RotatePairs(const From* x, To* out, const float* cos, const float* sin, int64_t n) {
  const hn::ScalableTag<float> d;
#if HWY_TARGET == HWY_SCALAR  // one lane has no neighbour
  for (int64_t j = 0; j < n; ++j) {
    const auto a = LoadF32(d, x + 2 * j), b = LoadF32(d, x + 2 * j + 1);
    const auto c = hn::LoadU(d, cos + j), s = hn::LoadU(d, sin + j);
    StoreF32(hn::NegMulAdd(s, b, hn::Mul(c, a)), d, out + 2 * j);
    StoreF32(hn::MulAdd(s, a, hn::Mul(c, b)), d, out + 2 * j + 1);
  }
#else
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const hn::Rebind<float, decltype(d64)> half;
  const auto first_sign = hn::BitCast(d, hn::Set(d64, uint64_t{0x80000000}));  // of -sin, sin
  const int64_t pairs = static_cast<int64_t>(hn::Lanes(half));
  int64_t j = 0;
  for (; j + pairs <= n; j += pairs) {
    const auto v = LoadF32(d, x + 2 * j), c = Twice(d, hn::LoadU(half, cos + j));
    const auto s = hn::Xor(Twice(d, hn::LoadU(half, sin + j)), first_sign);
    StoreF32(hn::MulAdd(s, hn::Shuffle2301(v), hn::Mul(c, v)), d, out + 2 * j);
  }
  if (j < n) {
    const size_t rest = static_cast<size_t>(n - j);
    const auto v = LoadF32N(d, x + 2 * j, 2 * rest), c = Twice(d, LoadF32N(half, cos + j, rest));
    const auto s = hn::Xor(Twice(d, LoadF32N(half, sin + j, rest)), first_sign);
    StoreF32N(hn::MulAdd(s, hn::Shuffle2301(v), hn::Mul(c, v)), d, out + 2 * j, 2 * rest);
  }
#endif
}

// Elements of one type keep their bits.
template <class T>
HWY_INLINE void CopyColumns(const T* x, T* out, int64_t n) {
  if (x != out) memcpy(out, x, static_cast<size_t>(n) * sizeof(T));
}
template <class From, class To>
HWY_INLINE void CopyColumns(const From* x, To* out, int64_t n) {
  ConvertRow(x, static_cast<size_t>(n), out);
}

// A row of a table from column j on; n of its columns as f32 in `to` where it holds something else.
HWY_INLINE const float* TableRow(const void* table, int32_t dtype, int64_t offset, int64_t n, float* to) {
  if (dtype == kF32) return static_cast<const float*>(table) + offset;
  ConvertRowToF32(dtype, static_cast<const uint16_t*>(table) + offset, static_cast<size_t>(n), to);
  return to;
}

template <class From, class To>
HWY_NOINLINE void RopeRows(const RopeTask& t) {
  HWY_ALIGN float tables[kRopeStackFloats];
  const int64_t half = t.rotary_dim / 2;
  const int64_t abs_head = t.x_stride_head < 0 ? -t.x_stride_head : t.x_stride_head;
  const int64_t abs_row = t.x_stride_row < 0 ? -t.x_stride_row : t.x_stride_row;
  // Columns in blocks whose tables fit: all of them in one block but for rows of more than 4096 columns.
  for (int64_t j0 = 0, n;; j0 += n) {
    n = HWY_MIN(half - j0, kRopeStackFloats / 2);
    // Where a row's heads lie next to one another they are walked row by row, else head by head.
    const int64_t chunk = abs_head < abs_row || n == 0 ? 1 : HWY_MIN(kRopeRows, kRopeStackFloats / (2 * n));
    for (int64_t r0 = 0; r0 < t.rows; r0 += chunk) {
      const int64_t rows = HWY_MIN(chunk, t.rows - r0);
      for (int64_t h = 0; h < t.heads; ++h) {
        for (int64_t r = 0; r < rows; ++r) {
          const From* x = static_cast<const From*>(t.x) + (h * t.x_stride_head + (r0 + r) * t.x_stride_row);
          To* out = static_cast<To*>(t.out) + (h * t.out_stride_head + (r0 + r) * t.out_stride_row);
          if (n > 0) {
            const int64_t pos = t.positions ? t.positions[r0 + r] : t.position + r0 + r;
            float* to = tables + r * 2 * n;
            const float *cos = to, *sin = to + n;
            // Converted for the first head.
            if (h == 0 || t.cos_dtype == kF32) cos = TableRow(t.cos, t.cos_dtype, pos * t.cos_stride_row + j0, n, to);
            if (h == 0 || t.sin_dtype == kF32)
              sin = TableRow(t.sin, t.sin_dtype, pos * t.sin_stride_row + j0, n, to + n);
            if (t.interleaved) {
              RotatePairs(x + 2 * j0, out + 2 * j0, cos, sin, n);
            } else {
              RotateHalves(x + j0, out + j0, half, cos, sin, n);
            }
          }
          if (j0 + n == half && t.rotary_dim < t.head_dim) {
            CopyColumns(x + t.rotary_dim, out + t.rotary_dim, t.head_dim - t.rotary_dim);
          }
        }
      }
    }
    if (j0 + n == half) break;
  }
}

template <class From>
HWY_INLINE void RopeTo(const RopeTask& t) {
  if (t.out_dtype == kBF16) {
    RopeRows<From, BF16>(t);
  } else if (t.out_dtype == kF16) {
    RopeRows<From, F16>(t);
  } else {
    RopeRows<From, float>(t);
  }
}

HWY_NOINLINE void Rope(const RopeTask& t) {
  if (t.x_dtype == kBF16) {
    RopeTo<BF16>(t);
  } else if (t.x_dtype == kF16) {
    RopeTo<F16>(t);
  } else {
    RopeTo<float>(t);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
