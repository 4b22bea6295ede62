#include "dispatch/targets.h"

#include "dispatch/cpu.h"
#include "hwy/highway.h"

// A target of Highway's: declared where this build has it, listed below in the same order.
#define FOVEA_DECLARE(name) \
  namespace N_##name {      \
  extern const KernelTable kTable; \
  }
#define FOVEA_LIST(name) {#name, HWY_##name, &N_##name::kTable},

namespace fovea {

// HWY_TARGETS is what foreach_target.h compiles. Bits that this Highway does not know are 0 in #if.
#ifndef HWY_AVX10_2
#define HWY_AVX10_2 0
#endif
#ifndef HWY_AVX3_SPR
#define HWY_AVX3_SPR 0
#endif
#ifndef HWY_AVX3_ZEN4
#define HWY_AVX3_ZEN4 0
#endif
#ifndef HWY_SSE2
#define HWY_SSE2 0
#endif
#ifndef HWY_NEON_BF16
#define HWY_NEON_BF16 0
#endif
#ifndef HWY_NEON_WITHOUT_AES
#define HWY_NEON_WITHOUT_AES 0
#endif

// fovea's own: see lib/kernels/bf16_target.h.
#if HWY_ARCH_X86_64 && (HWY_TARGETS & HWY_AVX3)
FOVEA_DECLARE(AVX3_BF16)
#endif
#if HWY_ARCH_ARM_A64 && HWY_HAVE_RUNTIME_DISPATCH && (HWY_TARGETS & HWY_NEON)
FOVEA_DECLARE(NEON_BFDOT)
#endif
#if HWY_TARGETS & HWY_AVX10_2
FOVEA_DECLARE(AVX10_2)
#endif
#if HWY_TARGETS & HWY_AVX3_SPR
FOVEA_DECLARE(AVX3_SPR)
#endif
#if HWY_TARGETS & HWY_AVX3_ZEN4
FOVEA_DECLARE(AVX3_ZEN4)
#endif
#if HWY_TARGETS & HWY_AVX3_DL
FOVEA_DECLARE(AVX3_DL)
#endif
#if HWY_TARGETS & HWY_AVX3
FOVEA_DECLARE(AVX3)
#endif
#if HWY_TARGETS & HWY_AVX2
FOVEA_DECLARE(AVX2)
#endif
#if HWY_TARGETS & HWY_SSE4
FOVEA_DECLARE(SSE4)
#endif
#if HWY_TARGETS & HWY_SSSE3
FOVEA_DECLARE(SSSE3)
#endif
#if HWY_TARGETS & HWY_SSE2
FOVEA_DECLARE(SSE2)
#endif
#if HWY_TARGETS & HWY_SVE2_128
FOVEA_DECLARE(SVE2_128)
#endif
#if HWY_TARGETS & HWY_SVE_256
FOVEA_DECLARE(SVE_256)
#endif
#if HWY_TARGETS & HWY_SVE2
FOVEA_DECLARE(SVE2)
#endif
#if HWY_TARGETS & HWY_SVE
FOVEA_DECLARE(SVE)
#endif
#if HWY_TARGETS & HWY_NEON_BF16
FOVEA_DECLARE(NEON_BF16)
#endif
#if HWY_TARGETS & HWY_NEON
FOVEA_DECLARE(NEON)
#endif
#if HWY_TARGETS & HWY_NEON_WITHOUT_AES
FOVEA_DECLARE(NEON_WITHOUT_AES)
#endif
#if HWY_TARGETS & HWY_EMU128
FOVEA_DECLARE(EMU128)
#endif
#if HWY_TARGETS & HWY_SCALAR
FOVEA_DECLARE(SCALAR)
#endif

static const Target kTargets[] = {
#if HWY_ARCH_X86_64 && (HWY_TARGETS & HWY_AVX3)
    {"AVX3_BF16", kBf16Target, &N_AVX3_BF16::kTable},
#endif
#if HWY_ARCH_ARM_A64 && HWY_HAVE_RUNTIME_DISPATCH && (HWY_TARGETS & HWY_NEON)
    {"NEON_BFDOT", kBf16Target, &N_NEON_BFDOT::kTable},
#endif
#if HWY_TARGETS & HWY_AVX10_2
    FOVEA_LIST(AVX10_2)
#endif
#if HWY_TARGETS & HWY_AVX3_SPR
    FOVEA_LIST(AVX3_SPR)
#endif
#if HWY_TARGETS & HWY_AVX3_ZEN4
    FOVEA_LIST(AVX3_ZEN4)
#endif
#if HWY_TARGETS & HWY_AVX3_DL
    FOVEA_LIST(AVX3_DL)
#endif
#if HWY_TARGETS & HWY_AVX3
    FOVEA_LIST(AVX3)
#endif
#if HWY_TARGETS & HWY_AVX2
    FOVEA_LIST(AVX2)
#endif
#if HWY_TARGETS & HWY_SSE4
    FOVEA_LIST(SSE4)
#endif
#if HWY_TARGETS & HWY_SSSE3
    FOVEA_LIST(SSSE3)
#endif
#if HWY_TARGETS & HWY_SSE2
    FOVEA_LIST(SSE2)
#endif
#if HWY_TARGETS & HWY_SVE2_128
    FOVEA_LIST(SVE2_128)
#endif
#if HWY_TARGETS & HWY_SVE_256
    FOVEA_LIST(SVE_256)
#endif
#if HWY_TARGETS & HWY_SVE2
    FOVEA_LIST(SVE2)
#endif
#if HWY_TARGETS & HWY_SVE
    FOVEA_LIST(SVE)
#endif
#if HWY_TARGETS & HWY_NEON_BF16
    FOVEA_LIST(NEON_BF16)
#endif
#if HWY_TARGETS & HWY_NEON
    FOVEA_LIST(NEON)
#endif
#if HWY_TARGETS & HWY_NEON_WITHOUT_AES
    FOVEA_LIST(NEON_WITHOUT_AES)
#endif
#if HWY_TARGETS & HWY_EMU128
    FOVEA_LIST(EMU128)
#endif
#if HWY_TARGETS & HWY_SCALAR
    FOVEA_LIST(SCALAR)
#endif
};

const Target* Targets(int32_t* count) {
  *count = static_cast<int32_t>(sizeof(kTargets) / sizeof(kTargets[0]));
  return kTargets;
}

bool Runnable(const Target& target) { return (target.bit & SupportedTargets()) != 0; }

bool Preferred(const Target& target) { return target.bit != kBf16Target || HasFastBf16Dot(); }

}  // namespace fovea
