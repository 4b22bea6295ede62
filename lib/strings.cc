// The extern "C" functions that need nothing but the header: names of enum values, versions, tensor layouts, inits.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "fovea/fovea.h"
#include "lib/error.h"

namespace fovea {
namespace {

// A product that no tensor can have stays unmistakably wrong: it saturates, and the argument checks refuse it by name.
int64_t Product(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<int64_t>::max() : product;
}

fovea_tensor MakeTensor(const void* data, fovea_dtype dtype, int64_t stride_batch, int64_t stride_head,
                        int64_t stride_row, int64_t stride_col) {
  fovea_tensor t = {};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  t.stride_batch = stride_batch;
  t.stride_head = stride_head;
  t.stride_row = stride_row;
  t.stride_col = stride_col;
  return t;
}

// size is the caller's sizeof, from a header older or newer than this library; the rest of the struct is defaulted to
// 0.
fovea_status InitStruct(void* object, size_t size, const char* function) {
  if (object == nullptr) return Fail(FOVEA_ERR_INVALID_ARGUMENT, "%s: the struct is NULL", function);
  if (size < sizeof(uint64_t)) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "%s: size = %zu: must be the sizeof of the struct", function, size);
  }
  std::memset(object, 0, size);
  const uint64_t struct_size = size;
  std::memcpy(object, &struct_size, sizeof struct_size);
  return FOVEA_OK;
}

// Sets a field only where the caller's struct reaches it.
template <typename T>
void SetField(void* object, size_t size, size_t offset, T value) {
  if (offset + sizeof value <= size) std::memcpy(static_cast<char*>(object) + offset, &value, sizeof value);
}

}  // namespace
}  // namespace fovea

extern "C" {

const char* fovea_status_str(fovea_status status) {
  switch (status) {
    case FOVEA_OK:
      return "FOVEA_OK";
    case FOVEA_ERR_INVALID_ARGUMENT:
      return "FOVEA_ERR_INVALID_ARGUMENT";
    case FOVEA_ERR_UNSUPPORTED:
      return "FOVEA_ERR_UNSUPPORTED";
    case FOVEA_ERR_TARGET_UNAVAILABLE:
      return "FOVEA_ERR_TARGET_UNAVAILABLE";
    case FOVEA_ERR_OUT_OF_MEMORY:
      return "FOVEA_ERR_OUT_OF_MEMORY";
    case FOVEA_ERR_WORKSPACE_TOO_SMALL:
      return "FOVEA_ERR_WORKSPACE_TOO_SMALL";
  }
  return "unknown fovea_status";
}

const char* fovea_dtype_str(fovea_dtype dtype) {
  switch (dtype) {
    case FOVEA_DTYPE_NONE:
      return "NONE";
    case FOVEA_F32:
      return "F32";
    case FOVEA_BF16:
      return "BF16";
    case FOVEA_F16:
      return "F16";
    case FOVEA_U8:
      return "U8";
    case FOVEA_F64:
      return "F64";
    case FOVEA_I8:
      return "I8";
    case FOVEA_F8E4M3:
      return "F8E4M3";
    case FOVEA_F8E5M2:
      return "F8E5M2";
    case FOVEA_Q8_0:
      return "Q8_0";
  }
  return "unknown fovea_dtype";
}

const char* fovea_q_align_str(fovea_q_align align) {
  switch (align) {
    case FOVEA_Q_ALIGN_TOP_LEFT:
      return "FOVEA_Q_ALIGN_TOP_LEFT";
    case FOVEA_Q_ALIGN_BOTTOM_RIGHT:
      return "FOVEA_Q_ALIGN_BOTTOM_RIGHT";
  }
  return "unknown fovea_q_align";
}

const char* fovea_mask_align_str(fovea_mask_align align) {
  switch (align) {
    case FOVEA_MASK_ALIGN_LEFT:
      return "FOVEA_MASK_ALIGN_LEFT";
    case FOVEA_MASK_ALIGN_RIGHT:
      return "FOVEA_MASK_ALIGN_RIGHT";
  }
  return "unknown fovea_mask_align";
}

const char* fovea_scores_stage_str(fovea_scores_stage stage) {
  switch (stage) {
    case FOVEA_SCORES_NONE:
      return "FOVEA_SCORES_NONE";
    case FOVEA_SCORES_RAW:
      return "FOVEA_SCORES_RAW";
    case FOVEA_SCORES_SOFT_CAPPED:
      return "FOVEA_SCORES_SOFT_CAPPED";
    case FOVEA_SCORES_BIASED:
      return "FOVEA_SCORES_BIASED";
    case FOVEA_SCORES_PROBABILITIES:
      return "FOVEA_SCORES_PROBABILITIES";
  }
  return "unknown fovea_scores_stage";
}

const char* fovea_rope_scaling_str(fovea_rope_scaling scaling) {
  switch (scaling) {
    case FOVEA_ROPE_SCALING_NONE:
      return "FOVEA_ROPE_SCALING_NONE";
    case FOVEA_ROPE_SCALING_LINEAR:
      return "FOVEA_ROPE_SCALING_LINEAR";
    case FOVEA_ROPE_SCALING_NTK:
      return "FOVEA_ROPE_SCALING_NTK";
    case FOVEA_ROPE_SCALING_DYNAMIC_NTK:
      return "FOVEA_ROPE_SCALING_DYNAMIC_NTK";
    case FOVEA_ROPE_SCALING_YARN:
      return "FOVEA_ROPE_SCALING_YARN";
    case FOVEA_ROPE_SCALING_LLAMA3:
      return "FOVEA_ROPE_SCALING_LLAMA3";
  }
  return "unknown fovea_rope_scaling";
}

const char* fovea_last_error(void) { return fovea::LastError(); }

int32_t fovea_version(void) { return FOVEA_VERSION; }
const char* fovea_version_str(void) { return FOVEA_VERSION_STRING; }

fovea_tensor fovea_tensor_bhsd(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t cols) {
  const int64_t head = fovea::Product(rows, cols);
  return fovea::MakeTensor(data, dtype, fovea::Product(heads, head), head, cols, 1);
}

fovea_tensor fovea_tensor_bshd(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t cols) {
  const int64_t row = fovea::Product(heads, cols);
  return fovea::MakeTensor(data, dtype, fovea::Product(rows, row), cols, row, 1);
}

fovea_tensor fovea_tensor_bhs(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows) {
  return fovea::MakeTensor(data, dtype, fovea::Product(heads, rows), rows, 1, 0);
}

fovea_status fovea_attention_params_init(fovea_attention_params* params, size_t size) {
  FOVEA_TRY(fovea::InitStruct(params, size, "fovea_attention_params_init"));
  fovea::SetField(params, size, offsetof(fovea_attention_params, scale), std::numeric_limits<float>::quiet_NaN());
  fovea::SetField(params, size, offsetof(fovea_attention_params, window_left), int64_t{-1});
  fovea::SetField(params, size, offsetof(fovea_attention_params, window_right), int64_t{-1});
  return FOVEA_OK;
}

fovea_status fovea_rope_params_init(fovea_rope_params* params, size_t size) {
  return fovea::InitStruct(params, size, "fovea_rope_params_init");
}

fovea_status fovea_rope_tables_params_init(fovea_rope_tables_params* params, size_t size) {
  FOVEA_TRY(fovea::InitStruct(params, size, "fovea_rope_tables_params_init"));
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, base), 10000.0);
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, yarn_truncate), int32_t{1});
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, factor), 1.0);
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, beta_fast), 32.0);
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, beta_slow), 1.0);
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, low_freq_factor), 1.0);
  fovea::SetField(params, size, offsetof(fovea_rope_tables_params, high_freq_factor), 4.0);
  return FOVEA_OK;
}

fovea_status fovea_kv_append_params_init(fovea_kv_append_params* params, size_t size) {
  return fovea::InitStruct(params, size, "fovea_kv_append_params_init");
}

fovea_status fovea_exec_init(fovea_exec* exec, size_t size) { return fovea::InitStruct(exec, size, "fovea_exec_init"); }

fovea_status fovea_linear_params_init(fovea_linear_params* params, size_t size) {
  return fovea::InitStruct(params, size, "fovea_linear_params_init");
}

fovea_status fovea_mha_params_init(fovea_mha_params* params, size_t size) {
  FOVEA_TRY(fovea::InitStruct(params, size, "fovea_mha_params_init"));
  fovea::SetField(params, size, offsetof(fovea_mha_params, norm_eps), 1e-6f);
  return FOVEA_OK;
}

fovea_status fovea_mha_info_init(fovea_mha_info* info, size_t size) {
  return fovea::InitStruct(info, size, "fovea_mha_info_init");
}

fovea_status fovea_attention_info_init(fovea_attention_info* info, size_t size) {
  return fovea::InitStruct(info, size, "fovea_attention_info_init");
}

fovea_status fovea_target_info_init(fovea_target_info* info, size_t size) {
  return fovea::InitStruct(info, size, "fovea_target_info_init");
}

}  // extern "C"
