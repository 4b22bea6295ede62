#include "dispatch/cpu.h"

#include "hwy/highway.h"
#if HWY_ARCH_X86
#include <cpuid.h>
#endif
#if HWY_ARCH_ARM_A64
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

namespace fovea {
namespace {

#if HWY_ARCH_X86
// Each target needs what the one below it has. __builtin_cpu_supports includes the OS's XCR0.
int64_t Detect() {
  __builtin_cpu_init();
  int64_t bits = HWY_STATIC_TARGET;
#ifdef HWY_SSE2
  if (!__builtin_cpu_supports("sse2")) return bits;
  bits |= HWY_SSE2;
#endif
  if (!__builtin_cpu_supports("ssse3")) return bits;
  bits |= HWY_SSSE3;
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("aes") || !__builtin_cpu_supports("pclmul")) return bits;
  bits |= HWY_SSE4;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
      !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("f16c")) {
    return bits;
  }
  bits |= HWY_AVX2;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return bits;
  }
  bits |= HWY_AVX3;
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) bits |= kBf16Target;
  if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512vbmi") ||
      !__builtin_cpu_supports("avx512vbmi2") || !__builtin_cpu_supports("avx512bitalg") ||
      !__builtin_cpu_supports("avx512vpopcntdq") || !__builtin_cpu_supports("gfni") ||
      !__builtin_cpu_supports("vaes") || !__builtin_cpu_supports("vpclmulqdq")) {
    return bits;
  }
  bits |= HWY_AVX3_DL;
#if defined(HWY_AVX3_ZEN4)
  if (!__builtin_cpu_supports("avx512bf16")) return bits;
  bits |= HWY_AVX3_ZEN4;
#endif
#if defined(HWY_AVX3_SPR) && (HWY_TARGETS & HWY_AVX3_SPR)
  if (!__builtin_cpu_supports("avx512fp16")) return bits;
  bits |= HWY_AVX3_SPR;
#endif
  // AVX10_2: no compiler that we test can ask for it yet, so it is never chosen.
  return bits;
}
#elif HWY_ARCH_ARM_A64
// 0 without SVE.
int SveVectorBytes() {
  if (!(getauxval(AT_HWCAP) & (1ul << 22))) return 0;  // HWCAP_SVE
  const int length = prctl(PR_SVE_GET_VL);
  return length < 0 ? 0 : length & PR_SVE_VL_LEN_MASK;
}

int64_t Detect() {
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  int64_t bits = HWY_STATIC_TARGET;
#ifdef HWY_NEON_WITHOUT_AES
  bits |= HWY_NEON_WITHOUT_AES;
#endif
  const bool aes = caps & (1ul << 3), bf16 = caps2 & (1ul << 14);  // HWCAP_AES, HWCAP2_BF16
  if (aes) bits |= HWY_NEON;
  if (aes && bf16) bits |= kBf16Target;
#ifdef HWY_NEON_BF16
  if (aes && bf16 && (caps & (1ul << 10)) && (caps & (1ul << 20))) bits |= HWY_NEON_BF16;  // HWCAP_ASIMDHP, HWCAP_ASIMDDP
#endif
  const int vector_bytes = SveVectorBytes();
  if (vector_bytes == 0) return bits;
  bits |= HWY_SVE;
  if (vector_bytes == 32) bits |= HWY_SVE_256;
  if (!(caps2 & (1ul << 1)) || !(caps2 & (1ul << 2))) return bits;  // HWCAP2_SVE2, HWCAP2_SVEAES
  bits |= HWY_SVE2;
  // HWCAP2_SVEI8MM, HWCAP2_SVEBF16: newer Highways compile SVE2_128 with them.
  if (vector_bytes == 16 && (caps2 & (1ul << 9)) && (caps2 & (1ul << 12))) bits |= HWY_SVE2_128;
  return bits;
}
#else
int64_t Detect() { return HWY_STATIC_TARGET; }
#endif

}  // namespace

#if HWY_ARCH_X86
bool HasFastBf16Dot() {
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return false;
  const bool intel = b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx;
  if (!intel || !__get_cpuid(1, &a, &b, &c, &d)) return true;
  const unsigned model = (a >> 4 & 15) | (a >> 12 & 0xF0);
  return model == 0x55;  // the number that Skylake-X, Cascade Lake and Cooper Lake share; the last alone has avx512bf16
}
#elif HWY_ARCH_ARM_A64
bool HasFastBf16Dot() { return SveVectorBytes() <= 16; }
#else
bool HasFastBf16Dot() { return false; }
#endif

int64_t SupportedTargets() {
  static const int64_t bits = Detect();
  return bits;
}

}  // namespace fovea
