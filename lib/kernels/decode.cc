#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/decode.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/decode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

HWY_NOINLINE void DecodeF32(const AttentionTask& t, const KernelScratch& s) { Decode(F32Products(), t, s); }
#if FOVEA_INT8_DOT
HWY_NOINLINE void DecodeI8(const AttentionTask& t, const KernelScratch& s) { Decode(Int8Products(), t, s); }
#endif

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
