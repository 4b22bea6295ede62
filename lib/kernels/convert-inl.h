// Storage types: rows of f32, bf16, f16 or int8 as vectors of f32, and back but for int8. To nearest, ties to even; a NaN stays NaN, quiet, with the
// top of its payload; subnormals are kept. The same bits on every target: f16 by the instruction where there is one (F16C, AVX-512, Arm), else by
// integers, since Highway 1.0.3's emulation loses NaN, Inf and ties; bf16 by integers (AVX-512's vcvtneps2bf16 flushes subnormals). Rounding is that
// of the floating-point environment that tasks set.

#if defined(FOVEA_LIB_KERNELS_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_CONVERT_INL_H_
#undef FOVEA_LIB_KERNELS_CONVERT_INL_H_
#else
#define FOVEA_LIB_KERNELS_CONVERT_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/kernel_params.h"

// Whether this target's PromoteTo and DemoteTo of f16 are instructions. On x86 better targets have smaller numbers.
#undef FOVEA_NATIVE_F16
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || (HWY_ARCH_ARM_A64 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128)
#define FOVEA_NATIVE_F16 1
#else
#define FOVEA_NATIVE_F16 0
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The 16-bit patterns of half as many bits as D's vector has.
template <class D>
using Half16 = hn::Rebind<uint16_t, D>;

// ---- Patterns to f32 and back

template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, BF16 /*type*/, hn::Vec<Half16<D>> bits) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

template <class D>
HWY_INLINE hn::Vec<Half16<D>> Narrow(D d, BF16 /*type*/, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(du, v), top = hn::ShiftRight<16>(bits);
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(du, 0x7FFF), hn::And(top, hn::Set(du, 1)))));
  // Not Ne(v, v), which is false for NaN on AVX2 and AVX-512 in Highway 1.0.3.
  const auto nan = hn::BitCast(du, hn::VecFromMask(d, hn::IsNaN(v)));
  const auto result = hn::IfVecThenElse(nan, hn::Or(top, hn::Set(du, 0x40)), rounded);
  return hn::DemoteTo(Half16<D>(), hn::BitCast(di, result));  // below 2^16: does not saturate
}

#if FOVEA_NATIVE_F16

template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, F16 /*type*/, hn::Vec<Half16<D>> bits) {
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
}

template <class D>
HWY_INLINE hn::Vec<Half16<D>> Narrow(D /*d*/, F16 /*type*/, hn::Vec<D> v) {
  return hn::BitCast(Half16<D>(), hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), v));
}

#else

constexpr int32_t kRebias = 112 << 23;  // between the exponents' biases, 127 - 15, in place

template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, F16 /*type*/, hn::Vec<Half16<D>> bits) {
  const hn::RebindToSigned<D> di;
  const auto all = hn::PromoteTo(di, bits);
  const auto magnitude = hn::And(all, hn::Set(di, 0x7FFF));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(all, magnitude));
  const auto rebias = hn::Set(di, kRebias);
  auto result = hn::Add(hn::ShiftLeft<13>(magnitude), rebias);
  result = hn::Add(result, hn::And(hn::VecFromMask(di, hn::Gt(magnitude, hn::Set(di, 0x7BFF))), rebias));  // Inf and NaN
  result = hn::Or(result, hn::And(hn::VecFromMask(di, hn::Gt(magnitude, hn::Set(di, 0x7C00))), hn::Set(di, 0x400000)));
  const auto subnormal = hn::BitCast(di, hn::Mul(hn::ConvertTo(d, magnitude), hn::Set(d, 0x1p-24f)));
  result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, 0x400)), subnormal, result);
  return hn::BitCast(d, hn::Or(result, sign));
}

template <class D>
HWY_INLINE hn::Vec<Half16<D>> Narrow(D d, F16 /*type*/, hn::Vec<D> v) {
  const hn::RebindToSigned<D> di;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(di, v);
  const auto magnitude = hn::And(bits, hn::Set(di, 0x7FFFFFFF));
  const auto sign = hn::BitCast(di, hn::ShiftRight<16>(hn::BitCast(du, hn::Xor(bits, magnitude))));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(di, 1));
  auto result = hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, hn::Set(di, 0xFFF - kRebias)), odd));
  // Below 2^-14: 0.5 has f16's least subnormal as its last place, so that the sum is rounded as wanted.
  const auto half = hn::Set(d, 0.5f);
  const auto subnormal = hn::Sub(hn::BitCast(di, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(di, half));
  result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, 0x38800000)), subnormal, result);
  result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x477FEFFF)), hn::Set(di, 0x7C00), result);  // 65520 and above
  const auto nan = hn::Or(hn::And(hn::ShiftRight<13>(magnitude), hn::Set(di, 0x3FF)), hn::Set(di, 0x7E00));
  result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7F800000)), nan, result);
  return hn::DemoteTo(Half16<D>(), hn::Or(result, sign));
}

#endif  // FOVEA_NATIVE_F16

// ---- Memory

// The first n lanes, n at most a whole vector, zeros behind; nothing beyond them is read.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadFirstN(D d, const T* p, size_t n) {
// AVX2's masked moves of 4 bytes do not fault.
#if HWY_MEM_OPS_MIGHT_FAULT
  if (HWY_TARGET != HWY_AVX2 || sizeof(T) != 4) {
    HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(T)] = {};
    for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
    return hn::Load(d, buffer);
  }
#endif
  return hn::MaskedLoad(hn::FirstN(d, n), d, p);
}

// Writes the first n lanes; nothing beyond them is touched.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE void StoreFirstN(hn::Vec<D> v, D d, T* p, size_t n) {
#if HWY_MEM_OPS_MIGHT_FAULT
  if (HWY_TARGET != HWY_AVX2 || sizeof(T) != 4) {
    HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(T)];
    hn::Store(v, d, buffer);
    for (size_t i = 0; i < n; ++i) p[i] = buffer[i];
    return;
  }
#endif
  hn::BlendedStore(v, hn::FirstN(d, n), d, p);
}

// A vector of f32 from unaligned memory of any storage type; N: the first n lanes only.
template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadF32N(D d, const float* p, size_t n) {
  return LoadFirstN(d, p, n);
}
template <class D>
HWY_INLINE void StoreF32(hn::Vec<D> v, D d, float* p) {
  hn::StoreU(v, d, p);
}
template <class D>
HWY_INLINE void StoreF32N(hn::Vec<D> v, D d, float* p, size_t n) {
  StoreFirstN(v, d, p, n);
}

template <class D, class T>
HWY_INLINE hn::Vec<D> LoadF32(D d, const T* p) {
  return Widen(d, T(), hn::LoadU(Half16<D>(), &p->bits));
}
template <class D, class T>
HWY_INLINE hn::Vec<D> LoadF32N(D d, const T* p, size_t n) {
  return Widen(d, T(), LoadFirstN(Half16<D>(), &p->bits, n));
}
template <class D, class T>
HWY_INLINE void StoreF32(hn::Vec<D> v, D d, T* p) {
  hn::StoreU(Narrow(d, T(), v), Half16<D>(), &p->bits);
}
template <class D, class T>
HWY_INLINE void StoreF32N(hn::Vec<D> v, D d, T* p, size_t n) {
  StoreFirstN(Narrow(d, T(), v), Half16<D>(), &p->bits, n);
}

#if HWY_TARGET == HWY_AVX2
// One shuffle of a whole vector, where Widen is a promotion and a shift.
template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const BF16* p) {
  if constexpr (hn::MaxLanes(d) < 8) {
    return Widen(d, BF16(), hn::LoadU(Half16<D>(), &p->bits));
  } else {
    alignas(32) static constexpr uint8_t kToHighHalves[32] = {128, 128, 0, 1, 128, 128, 2,  3,  128, 128, 4,  5,  128, 128, 6,  7,
                                                              128, 128, 8, 9, 128, 128, 10, 11, 128, 128, 12, 13, 128, 128, 14, 15};
    const hn::Repartition<uint8_t, D> d8;
    const auto both = hn::LoadDup128(d8, reinterpret_cast<const uint8_t*>(&p->bits));
    return hn::BitCast(d, hn::TableLookupBytesOr0(both, hn::Load(d8, kToHighHalves)));
  }
}
#endif

template <class D>
HWY_INLINE hn::Vec<D> WidenI8(D d, hn::Vec<hn::Rebind<int8_t, D>> v) {
  return hn::ConvertTo(d, hn::PromoteTo(hn::RebindToSigned<D>(), v));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const I8* p) {
  return WidenI8(d, hn::LoadU(hn::Rebind<int8_t, D>(), &p->bits));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadF32N(D d, const I8* p, size_t n) {
  return WidenI8(d, LoadFirstN(hn::Rebind<int8_t, D>(), &p->bits, n));
}

// ---- Two vectors of a row, in the order that costs least

// Whether LoadPair gives the columns of two vectors in another order, which InOrder puts right: on AVX2 two of bf16 are one load and two
// interleavings within its blocks.
template <class T>
constexpr bool kPairsAreMixed = false;

#if HWY_TARGET == HWY_AVX2
template <>
inline constexpr bool kPairsAreMixed<BF16> = true;  // inline: in a header a specialization is none by itself
// x: columns 0 to 3 and 8 to 11 of p, y: the others of 16.
template <class D, class V>
HWY_INLINE void LoadPair(D d, const BF16* p, V& x, V& y) {
  const hn::Repartition<uint16_t, D> d16;
  const auto bits = hn::LoadU(d16, &p->bits), zero = hn::Zero(d16);
  x = hn::BitCast(d, hn::InterleaveLower(d16, zero, bits));
  y = hn::BitCast(d, hn::InterleaveUpper(d16, zero, bits));
}
template <class D, class V>
HWY_INLINE void InOrder(D d, BF16 /*type*/, V& x, V& y) {
  const V first = hn::ConcatLowerLower(d, y, x);
  y = hn::ConcatUpperUpper(d, y, x);
  x = first;
}
#endif
template <class D, class T, class V>
HWY_INLINE void LoadPair(D d, const T* p, V& x, V& y) {
  x = LoadF32(d, p);
  y = LoadF32(d, p + hn::Lanes(d));
}
template <class D, class T, class V>
HWY_INLINE void InOrder(D /*d*/, T /*type*/, V& /*x*/, V& /*y*/) {}

// ---- Rows

template <class From, class To>
HWY_INLINE void ConvertRow(const From* src, size_t n, To* dst) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  size_t i = 0;
  for (; i + N <= n; i += N) StoreF32(LoadF32(d, src + i), d, dst + i);
  if (i < n) StoreF32N(LoadF32N(d, src + i, n - i), d, dst + i, n - i);
}

// n elements of a StorageType; src and dst do not overlap.
HWY_INLINE void ConvertRowToF32(int32_t dtype, const void* src, size_t n, float* dst) {
  if (dtype == kBF16) {
    ConvertRow(static_cast<const BF16*>(src), n, dst);
  } else if (dtype == kF16) {
    ConvertRow(static_cast<const F16*>(src), n, dst);
  } else if (dtype == kI8) {
    ConvertRow(static_cast<const I8*>(src), n, dst);
  } else {
    ConvertRow(static_cast<const float*>(src), n, dst);
  }
}

// A row of int8 times its scale.
HWY_INLINE void DequantizeRow(const I8* src, float scale, size_t n, float* dst) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  const auto s = hn::Set(d, scale);
  size_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(hn::Mul(LoadF32(d, src + i), s), d, dst + i);
  if (i < n) StoreF32N(hn::Mul(LoadF32N(d, src + i, n - i), s), d, dst + i, n - i);
}

HWY_INLINE void ConvertRowFromF32(int32_t dtype, const float* src, size_t n, void* dst) {
  if (dtype == kBF16) {
    ConvertRow(src, n, static_cast<BF16*>(dst));
  } else if (dtype == kF16) {
    ConvertRow(src, n, static_cast<F16*>(dst));
  } else {
    ConvertRow(src, n, static_cast<float*>(dst));
  }
}

// n elements of a row from element `first` on: where they lie if they are f32, else converted to buffer.
HWY_INLINE const float* RowAsF32(int32_t dtype, const void* row, size_t first, size_t n, float* buffer) {
  const void* const src = At(row, dtype, static_cast<int64_t>(first));
  if (dtype == kF32) return static_cast<const float*>(src);
  ConvertRowToF32(dtype, src, n, buffer);
  return buffer;
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
