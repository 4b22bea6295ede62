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
// t = x + 1.5 * 2^23 leaves round(x) in the low mantissa bits without the overflow fix-ups of a convert on x86.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V magic = hn::Set(d, 12582912.0f);
  const V t = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(t, magic));
  const V pow2n = hn::BitCast(d, hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, t)), hn::Set(di, 0x3F800000)));
  V p = hn::MulAdd(hn::Set(d, 0.0013264727f), f, hn::Set(d, 0.009671513f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.055507336f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022242f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693147f));
  p = hn::MulAdd(p, hn::Mul(f, pow2n), pow2n);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), p);
}

// tanh within 4 ulp: an odd polynomial (minimax, degree 11) below 0.6, 1 - 2 / (e^2x + 1) above. The second alone cancels near 0 and
// breaks the error bound fivefold. NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tanh(D d, V x) {
  const V ax = hn::Abs(x);
  const V z = hn::Mul(x, x);
  V p = hn::MulAdd(hn::Set(d, -0.005895155f), z, hn::Set(d, 0.02079597f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.05378383f));
  p = hn::MulAdd(p, z, hn::Set(d, 0.13331924f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.333333f));
  const V small = hn::MulAdd(hn::Mul(p, z), x, x);
  const V one = hn::Set(d, 1.0f);
  // tanh(10) rounds to 1; by select, since Min would lose NaN.
  const V top = hn::Set(d, 10.0f);
  const V capped = hn::IfThenElse(hn::Gt(ax, top), top, ax);
  const V e = Exp2(d, hn::Mul(capped, hn::Set(d, 2.0f * kLog2E)));
  const V large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(hn::Lt(ax, hn::Set(d, 0.6f)), small, hn::CopySign(large, x));
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
