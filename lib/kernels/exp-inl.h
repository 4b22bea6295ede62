// exp2 and tanh of the softmax, one source for every target.

#if defined(FOVEA_LIB_KERNELS_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_EXP_INL_H_
#undef FOVEA_LIB_KERNELS_EXP_INL_H_
#else
#define FOVEA_LIB_KERNELS_EXP_INL_H_
#endif

#include <float.h>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 127, relative error < 1.7e-7 (minimax of degree 5 on [-1/2, 1/2] with c0 = 1, so that 2^0 is exactly 1).
// Exactly 0 below -126, -inf included; NaN stays NaN, whatever its payload: 2^n is multiplied, not added to the exponent bits.
// t = x + 1.5 * 2^23 + 127 has round(x) + 127 in its low mantissa bits, without the overflow fix-ups of a convert on x86: shifted up, 2^round(x).
// constant(i): kExp2Constants[i] in all lanes.
constexpr float kExp2Constants[7] = {12583039.0f, 0.0013264727f, 0.009671513f, 0.055507336f, 0.24022242f, 0.693147f, -126.0f};
template <class D, class Constant, class V = hn::Vec<D>>
HWY_INLINE V Exp2By(D d, V x, const Constant& constant) {
  const hn::RebindToSigned<D> di;
  const V t = hn::Add(x, constant(0));
  const V f = hn::Sub(x, hn::Sub(t, constant(0)));
  const V pow2n = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, t)));
  V p = hn::MulAdd(constant(1), f, constant(2));
  p = hn::MulAdd(p, f, constant(3));
  p = hn::MulAdd(p, f, constant(4));
  p = hn::MulAdd(p, f, constant(5));
  p = hn::MulAdd(p, hn::Mul(f, pow2n), pow2n);
  return hn::IfThenZeroElse(hn::Lt(x, constant(6)), p);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  return Exp2By(d, x, [d](size_t i) HWY_ATTR { return hn::Set(d, kExp2Constants[i]); });
}

#if HWY_TARGET == HWY_AVX2
// The same bits in 4 registers: constants stay in memory. The asm hides that they are the same every time, or they would be kept in registers.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2FromMemory(D d, V x) {
#define FOVEA_REPEAT(x) {x, x, x, x, x, x, x, x}
  constexpr const float* k = kExp2Constants;
  alignas(64) static constexpr float kRepeated[7][8] = {FOVEA_REPEAT(k[0]), FOVEA_REPEAT(k[1]), FOVEA_REPEAT(k[2]), FOVEA_REPEAT(k[3]),
                                                        FOVEA_REPEAT(k[4]), FOVEA_REPEAT(k[5]), FOVEA_REPEAT(k[6])};
#undef FOVEA_REPEAT
  const float* repeated = kRepeated[0];
  asm volatile("" : "+r"(repeated));
  return Exp2By(d, x, [&](size_t i) HWY_ATTR { return hn::Load(d, repeated + 8 * i); });
}
#endif

// tanh within 7 ulp, at most 1 + 2^-22: x P(x^2) / Q(x^2), minimax in relative error on [0, 9.1], beyond which tanh rounds to 1; relative, so that
// small x lose nothing. NaN stays NaN: the clamp is a select.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tanh(D d, V x) {
  const V top = hn::Set(d, 9.1f), one = hn::Set(d, 1.0f);
  const V y = hn::IfThenElse(hn::Gt(hn::Abs(x), top), hn::CopySign(top, x), x);
  const V z = hn::Mul(y, y);
  V p = hn::MulAdd(hn::Set(d, 1.31775311e-08f), z, hn::Set(d, 2.04811913e-05f));
  p = hn::MulAdd(p, z, hn::Set(d, 0.00348781119f));
  p = hn::MulAdd(p, z, hn::Set(d, 0.133744746f));
  p = hn::MulAdd(p, z, one);
  V q = hn::MulAdd(hn::Set(d, 7.70404938e-07f), z, hn::Set(d, 0.000327292073f));
  q = hn::MulAdd(q, z, hn::Set(d, 0.0258473903f));
  q = hn::MulAdd(q, z, hn::Set(d, 0.467077881f));
  q = hn::MulAdd(q, z, one);
  return hn::Div(hn::Mul(y, p), q);
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
