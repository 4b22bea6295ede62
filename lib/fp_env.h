// The floating-point environment of kernels: round to nearest, no flush of subnormals, no traps; the thread's own comes back at the end of the scope.
// A caller's FTZ, DAZ or rounding mode is on its own thread only, so results would otherwise depend on who runs a task.
#ifndef FOVEA_LIB_FP_ENV_H_
#define FOVEA_LIB_FP_ENV_H_

#include <stdint.h>
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace fovea {

class FpEnvScope {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FpEnvScope() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FpEnvScope() { _mm_setcsr(saved_); }

 private:
  uint32_t saved_;
#elif defined(__aarch64__)
  FpEnvScope() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FpEnvScope() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  FpEnvScope() {}
  ~FpEnvScope() {}
#endif
 public:
  FpEnvScope(const FpEnvScope&) = delete;
  FpEnvScope& operator=(const FpEnvScope&) = delete;
};

}  // namespace fovea

#endif  // FOVEA_LIB_FP_ENV_H_
