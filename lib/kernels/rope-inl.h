// Rows of heads, rotated and converted on their way from x to out: fovea_rope, and what fovea_kv_append does to k and
// v.
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

// Floats of the chunk's tables on the stack: half of a 32 KB L1.
constexpr int64_t kRopeTableFloats = 4096;
// Rows of a chunk at most: enough that each head's rows are a stream for the prefetcher.
constexpr int64_t kRopeRows = 32;

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

// The first n columns of a row, interleaved: n even; cos holds each cosine twice, sin each sine as -sin, sin.
template <class From, class To>
HWY_INLINE void RotatePairs(const From* x, To* out, const float* cos, const float* sin, int64_t n) {
  const hn::ScalableTag<float> d;
#if HWY_TARGET == HWY_SCALAR  // one lane has no neighbour
  for (int64_t k = 0; k < n; k += 2) {
    const auto a = LoadF32(d, x + k), b = LoadF32(d, x + k + 1);
    StoreF32(hn::MulAdd(hn::LoadU(d, sin + k), b, hn::Mul(hn::LoadU(d, cos + k), a)), d, out + k);
    StoreF32(hn::MulAdd(hn::LoadU(d, sin + k + 1), a, hn::Mul(hn::LoadU(d, cos + k + 1), b)), d, out + k + 1);
  }
#else
  const int64_t N = static_cast<int64_t>(hn::Lanes(d));
  int64_t k = 0;
  for (; k + N <= n; k += N) {
    const auto v = LoadF32(d, x + k);
    StoreF32(hn::MulAdd(hn::LoadU(d, sin + k), hn::Shuffle2301(v), hn::Mul(hn::LoadU(d, cos + k), v)), d, out + k);
  }
  if (k < n) {
    const size_t rest = static_cast<size_t>(n - k);
    const auto v = LoadF32N(d, x + k, rest), c = LoadF32N(d, cos + k, rest), s = LoadF32N(d, sin + k, rest);
    StoreF32N(hn::MulAdd(s, hn::Shuffle2301(v), hn::Mul(c, v)), d, out + k, rest);
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

HWY_INLINE const void* TableRow(const void* table, int32_t dtype, int64_t offset) {
  return static_cast<const uint8_t*>(table) + offset * (dtype == kF32 ? 4 : 2);
}

// n entries of a cos or sin row as f32. interleaved: each twice, the first one with sign.
HWY_NOINLINE void FillTable(const void* row, int32_t dtype, int64_t n, bool interleaved, float sign, float* to) {
  float* flat =
      interleaved
          ? to + n
          : to;  // the second half, then spread from the front: entry j is read before 2j + 1 > n + j is written
  ConvertRowToF32(dtype, row, static_cast<size_t>(n), flat);
  if (!interleaved) return;
  for (int64_t j = 0; j < n; ++j) {
    const float value = flat[j];
    to[2 * j] = sign * value;
    to[2 * j + 1] = value;
  }
}

template <class From, class To>
HWY_NOINLINE void RopeRows(const RopeTask& t) {
  HWY_ALIGN float tables[kRopeTableFloats];
  const int64_t half = t.rotary_dim / 2;
  // f32 tables of half-split rows are read where they lie.
  const bool in_place_tables = !t.interleaved && t.cos_dtype == kF32 && t.sin_dtype == kF32;
  const int64_t width = t.interleaved ? 4 : 2;
  const int64_t abs_head = t.x_stride_head < 0 ? -t.x_stride_head : t.x_stride_head;
  const int64_t abs_row = t.x_stride_row < 0 ? -t.x_stride_row : t.x_stride_row;
  // Columns in blocks whose tables fit; all of them in one block but for rows of more than 4096 columns.
  for (int64_t j0 = 0;;) {
    const int64_t n = HWY_MIN(half - j0, kRopeTableFloats / width);
    const bool last = j0 + n == half;
    // Where a row's heads lie next to one another they are walked row by row, else head by head.
    const int64_t chunk = abs_head < abs_row || n == 0 ? 1 : HWY_MIN(kRopeRows, kRopeTableFloats / (width * n));
    for (int64_t r0 = 0; r0 < t.rows; r0 += chunk) {
      const int64_t rows = HWY_MIN(chunk, t.rows - r0);
      const auto position = [&](int64_t r)
                                HWY_ATTR { return t.positions ? int64_t{t.positions[r0 + r]} : t.position + r0 + r; };
      if (!in_place_tables && n > 0) {
        for (int64_t r = 0; r < rows; ++r) {
          float* to = tables + r * width * n;
          const int64_t pos = position(r);
          FillTable(TableRow(t.cos, t.cos_dtype, pos * t.cos_stride_row + j0), t.cos_dtype, n, t.interleaved, 1.0f, to);
          FillTable(TableRow(t.sin, t.sin_dtype, pos * t.sin_stride_row + j0), t.sin_dtype, n, t.interleaved, -1.0f,
                    to + width / 2 * n);
        }
      }
      for (int64_t h = 0; h < t.heads; ++h) {
        for (int64_t r = 0; r < rows; ++r) {
          const From* x = static_cast<const From*>(t.x) + (h * t.x_stride_head + (r0 + r) * t.x_stride_row);
          To* out = static_cast<To*>(t.out) + (h * t.out_stride_head + (r0 + r) * t.out_stride_row);
          const float *cos = tables + r * width * n, *sin = cos + width / 2 * n;
          if (n == 0) {
          } else if (t.interleaved) {
            RotatePairs(x + 2 * j0, out + 2 * j0, cos, sin, 2 * n);
          } else {
            if (in_place_tables) {
              cos = static_cast<const float*>(t.cos) + (position(r) * t.cos_stride_row + j0);
              sin = static_cast<const float*>(t.sin) + (position(r) * t.sin_stride_row + j0);
            }
            RotateHalves(x + j0, out + j0, half, cos, sin, n);
          }
          if (last && t.rotary_dim < t.head_dim) {
            CopyColumns(x + t.rotary_dim, out + t.rotary_dim, t.head_dim - t.rotary_dim);
          }
        }
      }
    }
    if (last) break;
    j0 += n;
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
