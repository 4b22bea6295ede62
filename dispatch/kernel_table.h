// What a target offers: one const table each, filled by lib/kernels/table.cc in every HWY_NAMESPACE.
#ifndef FOVEA_DISPATCH_KERNEL_TABLE_H_
#define FOVEA_DISPATCH_KERNEL_TABLE_H_

#include <stdint.h>

#include "lib/kernels/linear_params.h"

namespace fovea {

struct AttentionTask;
struct KernelScratch;
struct QuantizeTask;
struct RopeTask;

struct KernelTable {
  int32_t (*vector_lanes)();  // f32 lanes, known at run time only on SVE. Call it, and all below, only where the target runs
  int32_t tile_keys;          // keys of the prefill register tile, G of lib/NUMERICS.md
  void (*prefill_f32)(const AttentionTask&, const KernelScratch&);
  void (*prefill_bf16)(const AttentionTask&, const KernelScratch&);  // q, k and v all bf16; null: by prefill_f32, which converts them
  void (*decode_f32)(const AttentionTask&, const KernelScratch&);
  void (*decode_bf16)(const AttentionTask&, const KernelScratch&);   // as prefill_bf16
  void (*decode_i8)(const AttentionTask&, const KernelScratch&);     // k int8, Q K^T in integers; null: by decode_f32
  void (*scores_f32)(const AttentionTask&, const KernelScratch&);
  int64_t (*live_pairs)(const AttentionTask&, const KernelScratch&, bool padded);
  void (*add_weighted)(int32_t dtype, const void* row, float weight, int64_t n, float* sum);
  void (*store_sum)(const float* sum, int64_t n, int32_t dtype, void* out);
  void (*rope)(const RopeTask&);
  void (*rms_norm)(const float* weight, float eps, int64_t heads, int64_t dim, float* row);
  void (*quantize)(const QuantizeTask&);
  void (*linear_multiply)(const LinearBlock&);
  const LinearTypeKernels* linear;  // by storage type, F32, BF16, F16
};

}  // namespace fovea

#endif  // FOVEA_DISPATCH_KERNEL_TABLE_H_
