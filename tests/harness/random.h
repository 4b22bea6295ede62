// Random numbers that are the same on every platform and compiler: integer arithmetic and exact conversions only.
#ifndef FOVEA_TESTS_HARNESS_RANDOM_H_
#define FOVEA_TESTS_HARNESS_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace fovea_test {

// The finaliser of splitmix64 (Steele et al. 2014), also good as a hash of a counter.
inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// About N(0, 1): the sum of four uniform 16-bit numbers, at most 3.47 in size.
inline float NormalFromBits(uint64_t bits) {
  const int64_t sum = static_cast<int64_t>(bits & 0xffff) + static_cast<int64_t>((bits >> 16) & 0xffff) +
                      static_cast<int64_t>((bits >> 32) & 0xffff) + static_cast<int64_t>(bits >> 48);
  return static_cast<float>(sum - 2 * 0xffff) * (1.7320508f / 65536.0f);
}

// The value that element (b, h, i, c) of the tensor named by tag has for this seed, in whatever layout it is stored.
inline uint64_t ElementBits(uint64_t seed, uint64_t tag, int64_t b, int64_t h, int64_t i, int64_t c) {
  uint64_t x = Mix(seed ^ (tag << 56));
  x = Mix(x ^ (static_cast<uint64_t>(b) << 40) ^ static_cast<uint64_t>(h));
  return Mix(x ^ (static_cast<uint64_t>(i) << 32) ^ static_cast<uint64_t>(c));
}

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(Mix(seed)) {}
  uint64_t Bits() { return Mix(state_++); }
  int64_t Int(int64_t low, int64_t high) {  // both inclusive
    return low + static_cast<int64_t>(Bits() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Int(0, 99) < percent; }
  float Normal() { return NormalFromBits(Bits()); }
  int64_t Pick(std::initializer_list<int64_t> values) {
    return values.begin()[Int(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  uint64_t state_;
};

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_RANDOM_H_
