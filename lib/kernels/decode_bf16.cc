// Decode on AVX3_BF16: int8 keys by vpdpbusd.
#include "lib/kernels/avx3_bf16.h"
#if FOVEA_HAVE_AVX3_BF16
#include "lib/kernels/decode-inl.h"
#endif  // FOVEA_HAVE_AVX3_BF16
