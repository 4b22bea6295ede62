// Compiles the rest of a file for the target of fovea's own that has a dot product of bf16: a target of Highway's with one more feature in the
// attribute of its functions, no compiler flag, and a namespace of its own. Include it first. FOVEA_HAVE_BF16_TARGET is 0 where there is none.
//
//   AVX3_BF16    AVX3 with vdpbf16ps   (Highway 1.0.3 has none; AVX3_ZEN4 and AVX3_SPR of newer ones are others)
//   NEON_BFDOT   NEON with bfdot       (NEON_BF16 of newer ones is another)
#ifndef FOVEA_LIB_KERNELS_BF16_TARGET_H_
#define FOVEA_LIB_KERNELS_BF16_TARGET_H_

#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_AVX3
#define HWY_COMPILE_ONLY_STATIC
#elif defined(__aarch64__)
#define HWY_BASELINE_TARGETS HWY_NEON
#define HWY_COMPILE_ONLY_STATIC
#endif
#include "hwy/highway.h"

#if defined(__x86_64__) && HWY_TARGET == HWY_AVX3
#define FOVEA_HAVE_BF16_TARGET 1
namespace hwy {
namespace N_AVX3_BF16 = HWY_NAMESPACE;
}
#undef HWY_NAMESPACE
#define HWY_NAMESPACE N_AVX3_BF16
#undef HWY_TARGET_STR
#define HWY_TARGET_STR HWY_TARGET_STR_AVX3 ",avx512bf16"

#elif defined(__aarch64__) && HWY_TARGET == HWY_NEON && HWY_HAVE_RUNTIME_DISPATCH
#define FOVEA_HAVE_BF16_TARGET 1
namespace hwy {
namespace N_NEON_BFDOT = HWY_NAMESPACE;
}
#undef HWY_NAMESPACE
#define HWY_NAMESPACE N_NEON_BFDOT
// g++ inlines arm_neon.h's functions of bf16 into what has all that Armv8.2 has.
#undef HWY_TARGET_STR
#define HWY_TARGET_STR "arch=armv8.2-a+crypto+bf16"

#else
#define FOVEA_HAVE_BF16_TARGET 0
#endif

#endif  // FOVEA_LIB_KERNELS_BF16_TARGET_H_
