// Compiles the rest of a file for AVX3_BF16, a target of fovea's own: Highway's AVX3 with one more feature in the attribute of its functions, no
// compiler flag, and a namespace of its own (Highway 1.0.3 has no target with bf16; the AVX3_ZEN4 and AVX3_SPR of newer ones are others). Include it
// first. FOVEA_HAVE_AVX3_BF16 is 0 where there is none.
#ifndef FOVEA_LIB_KERNELS_AVX3_BF16_H_
#define FOVEA_LIB_KERNELS_AVX3_BF16_H_

#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_AVX3
#define HWY_COMPILE_ONLY_STATIC
#endif
#include "hwy/highway.h"

#if defined(__x86_64__) && HWY_TARGET == HWY_AVX3
#define FOVEA_HAVE_AVX3_BF16 1
namespace hwy {
namespace N_AVX3_BF16 = HWY_NAMESPACE;
}
#undef HWY_NAMESPACE
#define HWY_NAMESPACE N_AVX3_BF16
#undef HWY_TARGET_STR
#define HWY_TARGET_STR HWY_TARGET_STR_AVX3 ",avx512bf16"
#else
#define FOVEA_HAVE_AVX3_BF16 0
#endif

#endif  // FOVEA_LIB_KERNELS_AVX3_BF16_H_
