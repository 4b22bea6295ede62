// Dot products of f32 rows with int8 rows by vpdpbusd, exact but for one rounding of the f32 row to fixed point: decode's Q K^T over int8 keys.
//
//   q[c] = X[c] 2^-e, X = (hi 256 + mid) 256 + lo, three signed bytes, 2^-e as small as X < 2^23 allows
//   dot(q, k) = 2^-e ((sum hi k 256 + sum mid k) 256 + sum lo k)       sums in int32, exact in any order
//
// The instruction multiplies unsigned by signed bytes: k is taken as k + 128, and sums start at -128 times the sum of the digits.
//
// Keys lie in lanes: 16 rows of K are transposed by 4 bytes, shared by all rows of q, whose digits are broadcast 4 at a time. So no sum
// runs across lanes, and 12 accumulators serve 4 rows of q. Intrinsics, not Highway's: AVX3_DL's attributes have AVX-VNNI (VEX encoded) and lack
// AVX512_VNNI, hence a region with attributes of its own here.

#if defined(FOVEA_LIB_KERNELS_INT8_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_INT8_DOT_INL_H_
#undef FOVEA_LIB_KERNELS_INT8_DOT_INL_H_
#else
#define FOVEA_LIB_KERNELS_INT8_DOT_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/tile-inl.h"

// AVX3_DL and what is above it, and AVX3_BF16, which is AVX3 to Highway. On x86 better targets have smaller numbers.
#undef FOVEA_INT8_DOT
#if HWY_ARCH_X86_64 && (HWY_TARGET <= HWY_AVX3_DL || (defined(FOVEA_HAVE_BF16_TARGET) && FOVEA_HAVE_BF16_TARGET))
#define FOVEA_INT8_DOT 1
#else
#define FOVEA_INT8_DOT 0
#endif

#if FOVEA_INT8_DOT

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR_AVX3 ",avx512vnni")
namespace fovea {
namespace HWY_NAMESPACE {

// Keys at a time: the lanes of a vector.
constexpr size_t kDotKeys = 16;
// Sums are below 128 * 128 times that at any time.
constexpr size_t kMaxInt8DotDim = 65536;

// A row of q as digits, followed by [group of 4 columns][hi, mid, lo] of 4 bytes each, zeros past the last column.
struct FixedPointRow {
  int32_t start[3];  // -128 times the sums of hi, mid and lo
  float unit;        // 2^-e
};

// 64 columns of `keys` rows (the last one repeated up to 16) as [4 columns][key] of k + 128. mask: the columns that there are.
HWY_INLINE void TransposeKeySlab(const int8_t* row, int64_t stride, size_t keys, __mmask64 mask, uint32_t* to) {
  const __m512i sign = _mm512_set1_epi8(-128);
  __m512i u[4][4];
  for (size_t g = 0; g < 4; ++g) {
    __m512i r[4];
    for (size_t i = 0; i < 4; ++i) {
      r[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row), sign);
      row += 4 * g + i + 1 < keys ? stride : 0;
    }
    const __m512i lo01 = _mm512_unpacklo_epi32(r[0], r[1]), hi01 = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i lo23 = _mm512_unpacklo_epi32(r[2], r[3]), hi23 = _mm512_unpackhi_epi32(r[2], r[3]);
    u[g][0] = _mm512_unpacklo_epi64(lo01, lo23), u[g][1] = _mm512_unpackhi_epi64(lo01, lo23);
    u[g][2] = _mm512_unpacklo_epi64(hi01, hi23), u[g][3] = _mm512_unpackhi_epi64(hi01, hi23);
  }
  // Block b of u[g][c] has columns 4 (4 b + c) .. + 3 of keys 4 g .. 4 g + 3.
  for (size_t c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0x44), low23 = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(u[0][c], u[1][c], 0xEE), high23 = _mm512_shuffle_i32x4(u[2][c], u[3][c], 0xEE);
    _mm512_store_si512(to + c * kDotKeys, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_store_si512(to + (4 + c) * kDotKeys, _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_store_si512(to + (8 + c) * kDotKeys, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_store_si512(to + (12 + c) * kDotKeys, _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
}

// All columns of up to 16 rows of K; to: [dim padded to 64 / 4][16].
static HWY_NOINLINE void TransposeKeys(const int8_t* k, int64_t stride, size_t keys, size_t dim, uint32_t* to) {
  size_t c = 0;
  for (; c + 64 <= dim; c += 64) TransposeKeySlab(k + c, stride, keys, ~__mmask64{0}, to + c / 4 * kDotKeys);
  if (c < dim) TransposeKeySlab(k + c, stride, keys, (__mmask64{1} << (dim - c)) - 1, to + c / 4 * kDotKeys);
}

// s[key] = the dot product of one row for up to 16 keys, from the sums of its digits.
HWY_INLINE void StoreDots(const FixedPointRow* q, __m512i hi, __m512i mid, __m512i lo, __mmask16 mask, float* s) {
  const __m512 byte = _mm512_set1_ps(256.0f);
  const __m512 low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(mid), byte, _mm512_cvtepi32_ps(lo));
  const __m512 all = _mm512_fmadd_ps(_mm512_cvtepi32_ps(hi), _mm512_set1_ps(65536.0f), low);
  _mm512_mask_storeu_ps(s, mask, _mm512_mul_ps(all, _mm512_set1_ps(q->unit)));
}

// sum += the products of 4 bytes of each key with 4 columns' digits. Not _mm512_dpbusd_epi32: g++ 12 copies each accumulator twice per turn and
// broadcasts by an instruction of its own.
HWY_INLINE void AddDigit(__m512i k, const uint32_t* digit, __m512i& sum) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(k), "m"(*digit));
}
HWY_INLINE void AddDigits(__m512i k, const uint32_t* digits, __m512i& hi, __m512i& mid, __m512i& lo) {
  AddDigit(k, digits, hi);
  AddDigit(k, digits + 1, mid);
  AddDigit(k, digits + 2, lo);
}
HWY_INLINE const FixedPointRow* FixedPointRowAt(const FixedPointRow* q, size_t bytes) {
  return reinterpret_cast<const FixedPointRow*>(reinterpret_cast<const char*>(q) + bytes);
}

// R rows of q, q_bytes apart, with the keys at kt: s[row * kBlockKeys + key].
template <int R>
HWY_NOINLINE void DotTransposedKeys(const uint32_t* kt, size_t groups, const FixedPointRow* q, size_t q_bytes, size_t keys, float* s) {
  const FixedPointRow* const q0 = q;
  const FixedPointRow* const q1 = R > 1 ? FixedPointRowAt(q, q_bytes) : q;
  const FixedPointRow* const q2 = R > 2 ? FixedPointRowAt(q, 2 * q_bytes) : q;
  const FixedPointRow* const q3 = R > 2 ? FixedPointRowAt(q, 3 * q_bytes) : q;
  __m512i h0 = _mm512_set1_epi32(q0->start[0]), m0 = _mm512_set1_epi32(q0->start[1]), l0 = _mm512_set1_epi32(q0->start[2]);
  __m512i h1 = _mm512_set1_epi32(q1->start[0]), m1 = _mm512_set1_epi32(q1->start[1]), l1 = _mm512_set1_epi32(q1->start[2]);
  __m512i h2 = _mm512_set1_epi32(q2->start[0]), m2 = _mm512_set1_epi32(q2->start[1]), l2 = _mm512_set1_epi32(q2->start[2]);
  __m512i h3 = _mm512_set1_epi32(q3->start[0]), m3 = _mm512_set1_epi32(q3->start[1]), l3 = _mm512_set1_epi32(q3->start[2]);
  const uint32_t* const d0 = reinterpret_cast<const uint32_t*>(q0 + 1);
  const uint32_t* const d1 = reinterpret_cast<const uint32_t*>(q1 + 1);
  const uint32_t* const d2 = reinterpret_cast<const uint32_t*>(q2 + 1);
  const uint32_t* const d3 = reinterpret_cast<const uint32_t*>(q3 + 1);
  for (size_t g = 0; g < groups; ++g) {
    const __m512i k = _mm512_load_si512(kt + g * kDotKeys);
    AddDigits(k, d0 + 3 * g, h0, m0, l0);
    if constexpr (R > 1) AddDigits(k, d1 + 3 * g, h1, m1, l1);
    if constexpr (R > 2) AddDigits(k, d2 + 3 * g, h2, m2, l2), AddDigits(k, d3 + 3 * g, h3, m3, l3);
  }
  const __mmask16 mask = static_cast<__mmask16>((1u << keys) - 1);
  StoreDots(q0, h0, m0, l0, mask, s);
  if constexpr (R > 1) StoreDots(q1, h1, m1, l1, mask, s + kBlockKeys);
  if constexpr (R > 2) StoreDots(q2, h2, m2, l2, mask, s + 2 * kBlockKeys), StoreDots(q3, h3, m3, l3, mask, s + 3 * kBlockKeys);
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_POP_ATTRIBUTES

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// q, a row of f32 padded with zeros to whole vectors, as digits at *to, which takes as many bytes as q. False, and digits of 0, where it has NaN or
// Inf, or is too small for 2^e.
HWY_INLINE bool ToFixedPoint(const float* HWY_RESTRICT q, size_t padded_dim, FixedPointRow* to) {
  const DF d;
  const DI di;
  const hn::Rebind<int8_t, DI> d8;
  auto top = hn::Zero(di);
  for (size_t c = 0; c < padded_dim; c += hn::Lanes(d)) {
    top = hn::Max(top, hn::BitCast(di, hn::Abs(hn::Load(d, q + c))));  // NaN above Inf above all
  }
  const int32_t max = hn::GetLane(hn::MaxOfLanes(di, top));
  // The largest number of digits -128 .. 127 is 0x7F7F7F, so that 1.99 2^22 is safe.
  int32_t e = 22 - ((max >> 23) - 127) - ((max & 0x7FFFFF) > 0x7E0000);
  const bool fits = max < 0x7F800000 && e <= 122;
  if (!fits) e = 0;
  const auto scale = hn::BitCast(d, hn::Set(di, (127 + e) << 23));
  to->unit = hn::GetLane(hn::BitCast(d, hn::Set(di, (127 - e) << 23)));
  auto sum_hi = hn::Zero(di), sum_mid = sum_hi, sum_lo = sum_hi;
  uint32_t* const digits = reinterpret_cast<uint32_t*>(to + 1);
  for (size_t c = 0; c < padded_dim; c += hn::Lanes(d)) {
    const auto x = hn::NearestInt(hn::Mul(fits ? hn::Load(d, q + c) : hn::Zero(d), scale));
    const auto low_byte = [&](hn::Vec<DI> v) HWY_ATTR { return hn::ShiftRight<24>(hn::ShiftLeft<24>(v)); };
    const auto lo = low_byte(x), rest = hn::ShiftRight<8>(hn::Sub(x, lo));
    const auto mid = low_byte(rest), hi = hn::ShiftRight<8>(hn::Sub(rest, mid));
    sum_hi = hn::Add(sum_hi, hi), sum_mid = hn::Add(sum_mid, mid), sum_lo = hn::Add(sum_lo, lo);
    HWY_ALIGN int8_t bytes[3][kDotKeys];
    hn::Store(hn::DemoteTo(d8, hi), d8, bytes[0]);
    hn::Store(hn::DemoteTo(d8, mid), d8, bytes[1]);
    hn::Store(hn::DemoteTo(d8, lo), d8, bytes[2]);
    for (size_t g = 0; g < kDotKeys / 4; ++g) {
      for (size_t digit = 0; digit < 3; ++digit) memcpy(digits + 3 * (c / 4 + g) + digit, bytes[digit] + 4 * g, 4);
    }
  }
  to->start[0] = -128 * hn::GetLane(hn::SumOfLanes(di, sum_hi));
  to->start[1] = -128 * hn::GetLane(hn::SumOfLanes(di, sum_mid));
  to->start[2] = -128 * hn::GetLane(hn::SumOfLanes(di, sum_lo));
  return fits;
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_INT8_DOT
#endif  // include guard
