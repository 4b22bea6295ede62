// Pairs of bf16 as the elements of the tiles (tile-inl.h) and of decode (decode_bf16.cc): one instruction adds both products of a pair to an f32 sum.
// Vectors of pairs travel as vectors of f32. Whatever the floating-point environment says, subnormals are taken and given as 0, and sums are rounded
//   by vdpbf16ps   to nearest, each product in turn;
//   by bfdot       to odd, first that of both products, then that with the sum: a unit in the last place at most, not half of one.
// In a namespace of bf16_target.h only.

#ifndef FOVEA_LIB_KERNELS_BF16_DOT_INL_H_
#define FOVEA_LIB_KERNELS_BF16_DOT_INL_H_

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/kernel_params.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DU = hn::RebindToUnsigned<DF>;

// As they lie in memory: 2-byte aligned. In this namespace, so that the tiles find the overloads for it.
struct Bf16Pair {
  BF16 low, high;
};

// The pair in every lane.
template <class V>
HWY_INLINE V RepeatPair(const Bf16Pair* x, V /*type*/) {
  uint32_t bits;
  memcpy(&bits, x, sizeof bits);
  return hn::BitCast(DF(), hn::Set(DU(), bits));
}

// Exp2ForBf16 is 2^x with relative error < 1.02e-4, a thirtieth of what rounding to bf16 adds: minimax of degree 3 on [-1/2, 1/2] with c0 = 1, so
// that 2^n is exact. 0 for -inf; NaN stays NaN. These are c3, c2, c1.
constexpr float kExp2Cubic[3] = {0.0550089329f, 0.242210954f, 0.693282902f};

#if HWY_ARCH_X86

template <class V>
HWY_INLINE V BroadcastElement(const Bf16Pair* x, V type) {
  return RepeatPair(x, type);
}

// sum += x . y, lane by lane.
template <class V>
HWY_INLINE V DotPairs(V x, V y, V sum) {
  return V{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(x.raw), reinterpret_cast<__m512bh>(y.raw))};
}
template <class V>
HWY_INLINE V MulAddElement(const Bf16Pair* /*type*/, V x, V v, V sum) {
  return DotPairs(x, v, sum);
}
// sum += both numbers of x.
template <class V>
HWY_INLINE V AddPairs(V x, V sum) {
  return DotPairs(hn::BitCast(DF(), hn::Set(DU(), 0x3F803F80u)), x, sum);
}

// Each lane's two numbers as a pair, rounded to nearest even; NaN stays NaN.
template <class V>
HWY_INLINE V RoundToPairs(V low, V high) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.raw, low.raw));
  return V{_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both))};
}

// Subnormal or 0 below -126: scalef(NaN, -inf) is 0.
template <class V>
HWY_INLINE V Exp2ForBf16(V x) {
  const DF d;
  const V n = V{_mm512_roundscale_ps(x.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  const V f = hn::Sub(x, n);
  V p = hn::MulAdd(hn::Set(d, kExp2Cubic[0]), f, hn::Set(d, kExp2Cubic[1]));
  p = hn::MulAdd(p, f, hn::Set(d, kExp2Cubic[2]));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return V{_mm512_scalef_ps(p.raw, n.raw)};
}

#else  // Arm

// A pair's four bytes at the low end of a register are enough: bfdot takes an operand by its index. ld1r would cost an issue slot of the dot
// products.
struct LoadedPair {
  float32x2_t raw;
};
template <class V>
HWY_INLINE LoadedPair BroadcastElement(const Bf16Pair* x, V /*type*/) {
  float bits;
  memcpy(&bits, x, sizeof bits);
  return {vset_lane_f32(bits, vdup_n_f32(0.0f), 0)};
}
template <class V>
HWY_INLINE V MulAddElement(const Bf16Pair* /*type*/, LoadedPair x, V v, V sum) {
  return V{vbfdotq_lane_f32(sum.raw, vreinterpretq_bf16_f32(v.raw), vreinterpret_bf16_f32(x.raw), 0)};
}

// sum += x . y, lane by lane.
template <class V>
HWY_INLINE V DotPairs(V x, V y, V sum) {
  return V{vbfdotq_f32(sum.raw, vreinterpretq_bf16_f32(x.raw), vreinterpretq_bf16_f32(y.raw))};
}
// sum += both numbers of x.
template <class V>
HWY_INLINE V AddPairs(V x, V sum) {
  float32x4_t ones = vreinterpretq_f32_u32(vdupq_n_u32(0x3F803F80u));
  asm("" : "+w"(ones));  // known to be 1.0 in bf16, g++ 12 makes it by fmov as 1.0 in f16
  return DotPairs(V{ones}, x, sum);
}

// Each lane's two numbers as a pair, rounded to nearest even; NaN stays NaN.
template <class V>
HWY_INLINE V RoundToPairs(V low, V high) {
  const uint16x8_t a = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(low.raw)), b = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(high.raw));
  return V{vreinterpretq_f32_u16(vzip1q_u16(a, b))};
}

// 0 below -126. As Exp2 in exp-inl.h.
template <class V>
HWY_INLINE V Exp2ForBf16(V x) {
  const DF d;
  const V magic = hn::Set(d, 12583039.0f);
  const V t = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(t, magic));
  const V pow2n = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(DU(), t)));
  V p = hn::MulAdd(hn::Set(d, kExp2Cubic[0]), f, hn::Set(d, kExp2Cubic[1]));
  p = hn::MulAdd(p, f, hn::Set(d, kExp2Cubic[2]));
  p = hn::MulAdd(p, hn::Mul(f, pow2n), pow2n);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), p);
}

#endif

// The numbers of a pair, and the pair of numbers that are bf16 already.
template <class V>
HWY_INLINE V LowOfPair(V pairs) {
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::BitCast(DU(), pairs)));
}
template <class V>
HWY_INLINE V HighOfPair(V pairs) {
  return hn::And(pairs, hn::BitCast(DF(), hn::Set(DU(), 0xFFFF0000u)));
}
template <class V>
HWY_INLINE V MakePairs(V low, V high) {
  return hn::Or(hn::BitCast(DF(), hn::ShiftRight<16>(hn::BitCast(DU(), low))), HighOfPair(high));
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_LIB_KERNELS_BF16_DOT_INL_H_
