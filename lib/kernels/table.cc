// One kernel table per target: what each HWY_NAMESPACE has to offer.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/table.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "dispatch/kernel_table.h"
#include "hwy/highway.h"
#include "lib/kernels/int8_dot-inl.h"
#include "lib/kernels/kernel_params.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

void PrefillF32(const AttentionTask& t, const KernelScratch& s);
void DecodeF32(const AttentionTask& t, const KernelScratch& s);
#if FOVEA_INT8_DOT
void DecodeI8(const AttentionTask& t, const KernelScratch& s);
#endif
void ScoresF32(const AttentionTask& t, const KernelScratch& s);
int64_t LivePairs(const AttentionTask& t, const KernelScratch& s, bool padded);
void AddWeighted(int32_t dtype, const void* row, float weight, int64_t n, float* sum);
void StoreSum(const float* sum, int64_t n, int32_t dtype, void* out);
void Rope(const RopeTask& t);
void RmsNorm(const float* weight, float eps, int64_t heads, int64_t dim, float* row);
void Quantize(const QuantizeTask& t);
void LinearMultiplyF32(const LinearBlock& t);
extern const LinearTypeKernels kLinearKernels[3];

static HWY_NOINLINE int32_t VectorLanes() { return static_cast<int32_t>(hwy::HWY_NAMESPACE::Lanes(DF())); }

using AttentionKernel = void (*)(const AttentionTask&, const KernelScratch&);
static constexpr KernelTable MakeTable(AttentionKernel prefill_bf16, AttentionKernel decode_bf16, AttentionKernel decode_i8) {
  return {&VectorLanes, kTileKeys,    &PrefillF32, prefill_bf16, &DecodeF32, decode_bf16, decode_i8,          &ScoresF32,
          &LivePairs,   &AddWeighted, &StoreSum,   &Rope,        &RmsNorm,   &Quantize,   &LinearMultiplyF32, kLinearKernels};
}

extern const KernelTable kTable;
#if FOVEA_INT8_DOT
const KernelTable kTable = MakeTable(nullptr, nullptr, &DecodeI8);
#else
const KernelTable kTable = MakeTable(nullptr, nullptr, nullptr);
#endif

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

// The targets of bf16_target.h: Highway's target with some kernels of their own (prefill_bf16.cc, decode_bf16.cc).
#if HWY_ONCE
namespace fovea {
#if HWY_ARCH_X86_64 && (HWY_TARGETS & HWY_AVX3)
namespace N_AVX3_BF16 {
void PrefillBf16(const AttentionTask& t, const KernelScratch& s);
void DecodeBf16(const AttentionTask& t, const KernelScratch& s);
void DecodeI8(const AttentionTask& t, const KernelScratch& s);
extern const KernelTable kTable;
const KernelTable kTable = N_AVX3::MakeTable(&PrefillBf16, &DecodeBf16, &DecodeI8);
}  // namespace N_AVX3_BF16
#endif
#if HWY_ARCH_ARM_A64 && HWY_HAVE_RUNTIME_DISPATCH && (HWY_TARGETS & HWY_NEON)
namespace N_NEON_BFDOT {
void PrefillBf16(const AttentionTask& t, const KernelScratch& s);
extern const KernelTable kTable;
const KernelTable kTable = N_NEON::MakeTable(&PrefillBf16, nullptr, nullptr);
}  // namespace N_NEON_BFDOT
#endif
}  // namespace fovea
#endif
