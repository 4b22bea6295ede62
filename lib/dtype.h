// Storage types one element at a time, for code that is compiled once: the conversions of lib/kernels/convert-inl.h, bit for bit, in integers, so
// that they do not depend on the caller's floating-point environment.
#ifndef FOVEA_LIB_DTYPE_H_
#define FOVEA_LIB_DTYPE_H_

#include <cstring>

#include "fovea/fovea.h"
#include "lib/kernels/kernel_params.h"

namespace fovea {

static_assert(kF32 == int32_t{FOVEA_F32} && kBF16 == int32_t{FOVEA_BF16} && kF16 == int32_t{FOVEA_F16} && kI8 == int32_t{FOVEA_I8},
              "StorageType is fovea_dtype");

// Bytes of an element; 0 for what this version does not store.
inline int64_t DtypeBytes(fovea_dtype dtype) {
  switch (dtype) {
    case FOVEA_F32:
      return 4;
    case FOVEA_BF16:
    case FOVEA_F16:
      return 2;
    case FOVEA_U8:
    case FOVEA_I8:
      return 1;
    default:
      return 0;
  }
}

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float ToF32(float x) { return x; }
inline float ToF32(BF16 x) { return FloatOf(uint32_t{x.bits} << 16); }
inline float ToF32(F16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude > 0x7C00) return FloatOf(sign | 0x7FC00000u | magnitude << 13);
  if (magnitude == 0x7C00) return FloatOf(sign | 0x7F800000u);
  if (magnitude >= 0x400) return FloatOf(sign | ((magnitude << 13) + (112u << 23)));
  if (magnitude == 0) return FloatOf(sign);
  const uint32_t shift = static_cast<uint32_t>(__builtin_clz(magnitude)) - 8;  // brings the leading bit to the implied one's place
  return FloatOf(sign | (((126 - shift) << 23) + ((magnitude << shift) - 0x800000u)));
}

// m / 2^shift to nearest, ties to even.
inline uint32_t RoundShift(uint32_t m, uint32_t shift) { return (m + (1u << (shift - 1)) - 1 + ((m >> shift) & 1)) >> shift; }

inline void FromF32(float x, float* to) { *to = x; }
inline void FromF32(float x, BF16* to) {
  const uint32_t bits = BitsOf(x);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  to->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : RoundShift(bits, 16));
}
inline void FromF32(float x, F16* to) {
  const uint32_t bits = BitsOf(x), magnitude = bits & 0x7FFFFFFFu, exponent = magnitude >> 23;
  uint32_t r;
  if (magnitude > 0x7F800000u) {
    r = 0x7E00u | (magnitude >> 13 & 0x3FFu);
  } else if (magnitude >= 0x477FF000u) {  // 65520
    r = 0x7C00u;
  } else if (exponent >= 113) {
    r = RoundShift(magnitude - (112u << 23), 13);
  } else if (exponent >= 102) {  // in units of 2^-24
    r = RoundShift((magnitude & 0x7FFFFFu) | 0x800000u, 126 - exponent);
  } else {
    r = 0;
  }
  to->bits = static_cast<uint16_t>(bits >> 16 & 0x8000u) | static_cast<uint16_t>(r);
}

// Element i of an array of F32, BF16, F16 or I8, without the scale that the latter may have.
inline float LoadElement(fovea_dtype dtype, const void* data, int64_t i) {
  if (dtype == FOVEA_BF16) return ToF32(static_cast<const BF16*>(data)[i]);
  if (dtype == FOVEA_F16) return ToF32(static_cast<const F16*>(data)[i]);
  if (dtype == FOVEA_I8) return static_cast<float>(static_cast<const int8_t*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
// Of the same without I8.
inline void StoreElement(fovea_dtype dtype, float x, void* data, int64_t i) {
  if (dtype == FOVEA_BF16) return FromF32(x, static_cast<BF16*>(data) + i);
  if (dtype == FOVEA_F16) return FromF32(x, static_cast<F16*>(data) + i);
  FromF32(x, static_cast<float*>(data) + i);
}

}  // namespace fovea

#endif  // FOVEA_LIB_DTYPE_H_
