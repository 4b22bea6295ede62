// One kernel table per target: what each HWY_NAMESPACE has to offer.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/table.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "dispatch/kernel_table.h"
#include "hwy/highway.h"
#include "lib/kernels/kernel_params.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

void PrefillF32(const AttentionTask& t, const KernelScratch& s);
void DecodeF32(const AttentionTask& t, const KernelScratch& s);
void ScoresF32(const AttentionTask& t, const KernelScratch& s);
int64_t LivePairs(const AttentionTask& t, const KernelScratch& s, bool padded);
void AddWeighted(int32_t dtype, const void* row, float weight, int64_t n, float* sum);
void StoreSum(const float* sum, int64_t n, int32_t dtype, void* out);
void Rope(const RopeTask& t);
void Quantize(const QuantizeTask& t);
void LinearMultiplyF32(const LinearBlock& t);
extern const LinearTypeKernels kLinearKernels[3];

static HWY_NOINLINE int32_t VectorLanes() { return static_cast<int32_t>(hwy::HWY_NAMESPACE::Lanes(DF())); }

extern const KernelTable kTable;
const KernelTable kTable = {&VectorLanes, kTileKeys, &PrefillF32, &DecodeF32, &ScoresF32, &LivePairs, &AddWeighted, &StoreSum,
                            &Rope, &Quantize, &LinearMultiplyF32, kLinearKernels};

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
