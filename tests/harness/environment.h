// What a run of the test binary is told by its environment:
//   FOVEA_TARGET      the one target that this run is for (default: the best)
//   FOVEA_TEST_SEED   first seed of every random test; case n has seed + n
//   FOVEA_TEST_COUNT  number of cases of every random test
//   FOVEA_TEST_SCALE  factor on the built-in numbers of cases, for emulators and sanitizers (default 1)
//   FOVEA_TEST_RUNNER the emulator's command line, words between spaces, where one runs this program: for tests that start
//                     it again
//   FOVEA_TEST_LIST   print "name runnable vector_bytes" of every target, best first, and end
#ifndef FOVEA_TESTS_HARNESS_ENVIRONMENT_H_
#define FOVEA_TESTS_HARNESS_ENVIRONMENT_H_

#include <cstdint>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#define FOVEA_TEST_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define FOVEA_TEST_TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FOVEA_TEST_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define FOVEA_TEST_TSAN 1
#endif
#endif

namespace fovea_test {

// The target of this run. main() has set it before any test.
extern std::string target_name;

// Fewer cases where a vector is short (SCALAR is 15 times as slow as AVX2); never under 1.
int64_t CaseCount(int64_t on_a_fast_target);
// How many of `all` listed cases to run: all, or FOVEA_TEST_SCALE's part of them but at least `least`.
int64_t Portion(int64_t all, int64_t least);
// Largest batch * heads * q_len * kv_len * (head_dim + v_head_dim) of one random case, likewise.
int64_t CaseWork(int64_t on_a_fast_target);
uint64_t FirstSeed(uint64_t built_in);

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_ENVIRONMENT_H_
