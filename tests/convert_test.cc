// lib/kernels/convert-inl.h on the target of this run, and lib/dtype.h: every pattern up, every rounding case down, nothing beyond a row.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/convert_test.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_test {
namespace HWY_NAMESPACE {
namespace kernels = fovea::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

HWY_NOINLINE void RowToF32(int32_t dtype, const void* src, size_t n, float* dst) { kernels::ConvertRowToF32(dtype, src, n, dst); }
HWY_NOINLINE void RowFromF32(int32_t dtype, const float* src, size_t n, void* dst) { kernels::ConvertRowFromF32(dtype, src, n, dst); }

// One vector: its first n lanes of src to whole[0 .. lanes) and to dst[0 .. n). Returns the lanes.
template <class T>
HWY_INLINE size_t VectorNOf(const T* src, size_t n, float* whole, T* dst) {
  const hn::ScalableTag<float> d;
  const auto v = kernels::LoadF32N(d, src, n);
  kernels::StoreF32(v, d, whole);
  kernels::StoreF32N(v, d, dst, n);
  return hn::Lanes(d);
}
HWY_NOINLINE size_t VectorN(int32_t dtype, const void* src, size_t n, float* whole, void* dst) {
  if (dtype == fovea::kBF16) return VectorNOf(static_cast<const fovea::BF16*>(src), n, whole, static_cast<fovea::BF16*>(dst));
  if (dtype == fovea::kF16) return VectorNOf(static_cast<const fovea::F16*>(src), n, whole, static_cast<fovea::F16*>(dst));
  return VectorNOf(static_cast<const float*>(src), n, whole, static_cast<float*>(dst));
}
HWY_NOINLINE size_t NumLanes() { return hn::Lanes(hn::ScalableTag<float>()); }

}  // namespace HWY_NAMESPACE
}  // namespace fovea_test
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "bench/per_target.h"
#include "lib/dtype.h"
#include "tests/harness/environment.h"
#include "tests/harness/guarded_buffer.h"
#include "tests/harness/random.h"

namespace fovea_test {
namespace {

HWY_EXPORT(RowToF32);
HWY_EXPORT(RowFromF32);
HWY_EXPORT(VectorN);
HWY_EXPORT(NumLanes);

size_t Index() {
  static const size_t index = fovea_bench::TargetIndex(target_name);
  return index;
}

constexpr int32_t kTypes[] = {fovea::kBF16, fovea::kF16};

// A 16-bit format by its definition: sign, exponent, fraction.
struct Format {
  int exponent_bits, fraction_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  // The value of a magnitude; of infinity's pattern, the number that would come after the largest.
  double Value(uint32_t magnitude) const {
    const int exponent = static_cast<int>(magnitude >> fraction_bits);
    const double fraction = static_cast<double>(magnitude & ((1u << fraction_bits) - 1)) / (1 << fraction_bits);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias()) : std::ldexp(1 + fraction, exponent - bias());
  }
};
Format FormatOf(int32_t dtype) { return dtype == fovea::kBF16 ? Format{8, 7} : Format{5, 10}; }

// The pattern of x by search among all of them: the nearest value, of two the even pattern. NaN: sign, and the top of its payload, quiet.
uint16_t Nearest(const Format& f, const std::vector<double>& values, float x) {
  const uint32_t sign = fovea::BitsOf(x) >> 31 << 15;
  if (std::isnan(x)) {
    const uint32_t payload = (fovea::BitsOf(x) & 0x7FFFFF) >> (23 - f.fraction_bits);
    return static_cast<uint16_t>(sign | f.infinity() | 1u << (f.fraction_bits - 1) | payload);
  }
  const double magnitude = std::fabs(static_cast<double>(x));
  const size_t above = static_cast<size_t>(std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
  if (above == values.size()) return static_cast<uint16_t>(sign | f.infinity());
  size_t at = above;
  if (above > 0) {
    const double up = values[above] - magnitude, down = magnitude - values[above - 1];
    if (down < up || (down == up && above % 2 == 1)) at = above - 1;
  }
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(at));
}

std::vector<double> Values(const Format& f) {
  std::vector<double> values;
  for (uint32_t m = 0; m <= f.infinity(); ++m) values.push_back(f.Value(m));
  return values;
}

}  // namespace

TEST_CASE("convert: every bf16 and f16 pattern to f32") {
  std::vector<uint16_t> patterns;
  for (uint32_t n = 0; n < 65536; ++n) patterns.push_back(static_cast<uint16_t>(n));
  for (int32_t dtype : kTypes) {
    CAPTURE(dtype);
    const Format f = FormatOf(dtype);
    std::vector<float> got(65536);
    HWY_DISPATCH_TABLE(RowToF32)[Index()](dtype, patterns.data(), 65536, got.data());
    int64_t wrong = 0, scalar_wrong = 0;
    for (uint32_t n = 0; n < 65536; ++n) {
      const uint32_t magnitude = n & 0x7FFF, sign = n >> 15 << 31;
      uint32_t want;
      if (magnitude > f.infinity()) {
        // bf16 is the top of an f32 as it stands; f16's NaN is made quiet by the instructions.
        const uint32_t payload = (magnitude & ((1u << f.fraction_bits) - 1)) << (23 - f.fraction_bits);
        want = sign | 0x7F800000u | payload | (dtype == fovea::kF16 ? 0x400000u : 0);
      } else if (magnitude == f.infinity()) {
        want = sign | 0x7F800000u;
      } else {
        want = sign | fovea::BitsOf(static_cast<float>(f.Value(magnitude)));
      }
      wrong += fovea::BitsOf(got[n]) != want;
      scalar_wrong += fovea::BitsOf(fovea::LoadElement(dtype, patterns.data(), n)) != want;
    }
    CHECK(wrong == 0);
    CHECK(scalar_wrong == 0);
  }
}

TEST_CASE("convert: f32 to bf16 and f16, to nearest and ties to even: every midpoint and its neighbours, overflow, subnormals, NaN, random bits") {
  const float inf = std::numeric_limits<float>::infinity();
  for (int32_t dtype : kTypes) {
    CAPTURE(dtype);
    const Format f = FormatOf(dtype);
    const std::vector<double> values = Values(f);
    std::vector<float> from;
    for (size_t n = 0; n + 1 < values.size(); ++n) {
      for (double x : {values[n], (values[n] + values[n + 1]) / 2}) {
        const float exact = static_cast<float>(x);
        for (float y : {exact, std::nextafterf(exact, inf), std::nextafterf(exact, -inf)}) from.push_back(y), from.push_back(-y);
      }
    }
    for (float x : {65504.0f, 65519.996f, 65520.0f, 65536.0f, 1e30f, 3.4028235e38f, inf, 0x1p-25f, 0x1.000002p-25f, 0x1p-149f, 0.0f}) {
      from.push_back(x), from.push_back(-x);
    }
    for (uint32_t payload : {1u, 0x1000u, 0x1FFFu, 0x2000u, 0x8000u, 0xFFFFu, 0x10000u, 0x3FFFFFu, 0x400000u, 0x412345u, 0x7FFFFFu}) {
      from.push_back(fovea::FloatOf(0x7F800000u | payload)), from.push_back(fovea::FloatOf(0xFF800000u | payload));
    }
    Rng rng(FirstSeed(90000));
    for (int64_t n = 0; n < CaseCount(1000000); ++n) from.push_back(fovea::FloatOf(static_cast<uint32_t>(rng.Bits())));
    // Exponents that f16 has.
    for (int64_t n = 0; n < CaseCount(1000000); ++n) {
      const uint32_t bits = static_cast<uint32_t>(rng.Bits());
      from.push_back(fovea::FloatOf((bits & 0x807FFFFFu) | static_cast<uint32_t>(rng.Int(100, 144)) << 23));
    }
    std::vector<uint16_t> got(from.size());
    HWY_DISPATCH_TABLE(RowFromF32)[Index()](dtype, from.data(), from.size(), got.data());
    for (size_t n = 0; n < from.size(); ++n) {
      const uint16_t want = Nearest(f, values, from[n]);
      uint16_t one[2];  // as large as an f32, which StoreElement might have stored
      fovea::StoreElement(dtype, from[n], one, 0);
      const uint16_t scalar = one[0];
      if (got[n] == want && scalar == want) continue;
      CAPTURE(fovea::BitsOf(from[n]));
      CHECK(got[n] == want);
      CHECK(scalar == want);
      break;
    }
  }
}

TEST_CASE("convert: rows of every length end at a guard page, and write nothing beyond") {
  const size_t lanes = HWY_DISPATCH_TABLE(NumLanes)[Index()]();
  Rng rng(FirstSeed(91000));
  for (int32_t dtype : {fovea::kF32, fovea::kBF16, fovea::kF16}) {
    const size_t bytes = static_cast<size_t>(fovea::DtypeBytes(dtype));
    for (size_t n = 0; n <= 2 * lanes + 3; ++n) {
      CAPTURE(dtype);
      CAPTURE(n);
      GuardedBuffer stored(n * bytes, Guard::kAfter), floats(n * 4, Guard::kAfter), back(n * bytes, Guard::kAfter);
      for (size_t i = 0; i < n; ++i) fovea::StoreElement(dtype, rng.Normal(), stored.data(), static_cast<int64_t>(i));
      HWY_DISPATCH_TABLE(RowToF32)[Index()](dtype, stored.data(), n, static_cast<float*>(floats.data()));
      for (size_t i = 0; i < n; ++i) {
        CHECK(static_cast<float*>(floats.data())[i] == fovea::LoadElement(dtype, stored.data(), static_cast<int64_t>(i)));
      }
      HWY_DISPATCH_TABLE(RowFromF32)[Index()](dtype, static_cast<const float*>(floats.data()), n, back.data());
      if (n) CHECK(std::memcmp(back.data(), stored.data(), n * bytes) == 0);
      if (n > lanes) continue;
      // One vector: zeros behind the first n, nothing beyond n written.
      std::vector<float> whole(lanes, 7.0f), first(lanes, 0.0f);
      std::copy_n(static_cast<float*>(floats.data()), n, first.begin());
      std::memset(back.data(), 0, n * bytes);
      HWY_DISPATCH_TABLE(VectorN)[Index()](dtype, stored.data(), n, whole.data(), back.data());
      CHECK(whole == first);
      if (n) CHECK(std::memcmp(back.data(), stored.data(), n * bytes) == 0);
    }
  }
}

}  // namespace fovea_test
#endif  // HWY_ONCE
