// Pairs of bf16 as the elements of the tiles (tile-inl.h): vdpbf16ps adds both products of a pair to an f32 sum, to nearest and with subnormals
// taken and given as 0, whatever MXCSR says. Vectors of pairs travel as vectors of f32. For AVX-512 only, in a namespace of a target that has it.

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

template <class V>
HWY_INLINE V BroadcastElement(const Bf16Pair* x, V /*type*/) {
  uint32_t bits;
  memcpy(&bits, x, sizeof bits);
  return hn::BitCast(DF(), hn::Set(DU(), bits));
}

template <class V>
HWY_INLINE V MulAddElement(const Bf16Pair* /*type*/, V x, V v, V sum) {
  return V{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(x.raw), reinterpret_cast<__m512bh>(v.raw))};
}

// Each lane's two numbers as a pair, rounded to nearest even; NaN stays NaN.
template <class V>
HWY_INLINE V RoundToPairs(V low, V high) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.raw, low.raw));
  return V{_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both))};
}

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

// 2^x, relative error < 1.02e-4: a thirtieth of what rounding to bf16 adds (minimax of degree 3 on [-1/2, 1/2] with c0 = 1, so that 2^n is
// exact). Subnormal or 0 below -126, 0 for -inf: scalef(NaN, -inf) is 0; NaN stays NaN.
template <class V>
HWY_INLINE V Exp2ForBf16(V x) {
  const DF d;
  const V n = V{_mm512_roundscale_ps(x.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  const V f = hn::Sub(x, n);
  V p = hn::MulAdd(hn::Set(d, 0.0550089329f), f, hn::Set(d, 0.242210954f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693282902f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return V{_mm512_scalef_ps(p.raw, n.raw)};
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_LIB_KERNELS_BF16_DOT_INL_H_
