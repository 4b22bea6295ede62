// The calling thread's floating-point control register. FOVEA_TEST_FP_CONTROL where this knows how.
#ifndef FOVEA_TESTS_HARNESS_FP_CONTROL_H_
#define FOVEA_TESTS_HARNESS_FP_CONTROL_H_

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#define FOVEA_TEST_FP_CONTROL 1
#elif defined(__aarch64__)
#define FOVEA_TEST_FP_CONTROL 1
#endif

namespace fovea_test {

#if defined(__x86_64__) || defined(__i386__)
inline uint32_t FpControl() { return _mm_getcsr() & ~0x3fu; }  // without the sticky exception flags
inline void SetFpControl(uint32_t control) { _mm_setcsr(control); }
constexpr uint32_t kFlushAll = 0x8040;
#elif defined(__aarch64__)
inline uint32_t FpControl() {
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return static_cast<uint32_t>(control);
}
inline void SetFpControl(uint32_t control) { asm volatile("msr fpcr, %0" : : "r"(uint64_t{control})); }
constexpr uint32_t kFlushAll = 1u << 24;
#endif

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_FP_CONTROL_H_
