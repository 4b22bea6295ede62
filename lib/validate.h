// The argument checks of the C ABI: of params, exec and tensors. What else is checked: which pages are needed (pages.cc); rows per kv head and the
// workspace (plan.cc); NULLs, run_tasks' ranges and whether params are a plan's (api.cc); targets (select.cc). All else may rely on these. Attention,
// exec and merge are in validate.cc, RoPE and the cache in validate_rope.cc, linear and the layer in validate_layer.cc; validate_parts.h has what
// these are made of.
#ifndef FOVEA_LIB_VALIDATE_H_
#define FOVEA_LIB_VALIDATE_H_

#include "fovea/fovea.h"

namespace fovea {

class Views;  // validate_parts.h

// Lengths and positions stay within +-2^30, so that a distance j - pos(i) fits int32 in the kernels.
constexpr int64_t kMaxLength = (int64_t{1} << 30) - 1;

// A struct_size above this is no struct's: it is refused before anything else of the struct is read.
constexpr uint64_t kMaxStructSize = 1 << 16;

// Whether tensors' data pointers (NULL, alignment, overlap) and the values of alibi_slopes are checked as well. kNo
// serves workspace queries: dtypes and strides must be right, data may be missing.
enum class CheckData { kNo, kYes };

// Copies *user into *p at this library's own size, checks it, and resolves defaults. A longer struct's tail must be
// zero; a shorter one is refused, since today's layout is the first. Arrays of lengths, offsets and positions are read,
// tensor data is not. Behind it: v_head_dim is set, scale is a number, windows fit int32 (one that reaches past every key is -1),
// strides that no index uses (extent at most 1, stride_batch of a packed tensor) are 0, no dimension spans more than
// 2^56 elements, and neither does any product of extents (batch, heads, rows or total, head_dim). mask_kv_len keeps 0
// for "each sequence's kv_len".
fovea_status CheckParams(const fovea_attention_params* user, CheckData data, fovea_attention_params* p);

// As CheckParams, of an exec that is not NULL. num_threads keeps 0.
fovea_status CheckExec(const fovea_exec* user, fovea_exec* e);

fovea_status CheckMerge(int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
                        int64_t rows, int64_t v_head_dim, const fovea_tensor* out, const fovea_tensor* lse);

fovea_status CheckRope(const fovea_rope_params* user, fovea_rope_params* p);
fovea_status CheckRopeTables(const fovea_rope_tables_params* user, fovea_rope_tables_params* p);
// p->rope points to *rope, whose heads and lengths are those of p, or is NULL.
fovea_status CheckKvAppend(const fovea_kv_append_params* user, fovea_kv_append_params* p, fovea_rope_params* rope);

// As CheckParams, of fovea_linear: behind it strides that no index uses are 0.
fovea_status CheckLinear(const fovea_linear_params* user, CheckData data, fovea_linear_params* p);

// Of fovea_mha_forward, in this order:
//   CheckMha            as CheckParams, of all of p but the options of attention
//   CheckParams         of *attention, with the strides of q, k, v and out but no data: its sizes
//   then, with the workspace, q, k, v and out in it, and kv_lens where there is a cache:
//   CheckMhaAttention   as CheckParams with data, in place, and against the views of the layer
//   CheckMhaPositions   where p.rope is given and its rotations have their positions (those of cross attention are attention's)
//   CheckPages          (pages.h)
// CheckMha gives *attention the options and the layer's lengths, as a caller of fovea_attention_forward would set them, without what is named above.
// *rope and *kv_rope get the lengths of q and of the new keys, and the rotation of each where p->rope is given (else rotary_dim is 0).
fovea_status CheckMha(const fovea_mha_params* user, CheckData data, fovea_mha_params* p, fovea_rope_params* rope, fovea_rope_params* kv_rope,
                      fovea_attention_params* attention, Views* views);
fovea_status CheckMhaAttention(const Views& layer, fovea_attention_params* attention);
fovea_status CheckMhaPositions(const fovea_mha_params& p, const fovea_rope_params& rope, const fovea_rope_params& kv_rope);
// Whether p.rope says where q stands.
bool HasPositions(const fovea_rope_params& rope);
// Attention's kv_len: rows of the cache, of x_kv or of x.
int64_t MhaKvLen(const fovea_mha_params& p);
// The append to the layer's cache, without k_new and v_new.
fovea_kv_append_params MhaAppend(const fovea_mha_params& p);

// Of checked params: sequence b's lengths.
template <class Params>
int64_t QLen(const Params& p, int64_t b) {
  return p.cu_seqlens_q ? p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] : p.q_lens ? p.q_lens[b] : p.q_len;
}
inline int64_t KvLen(const fovea_attention_params& p, int64_t b) {
  return p.cu_seqlens_kv ? p.cu_seqlens_kv[b + 1] - p.cu_seqlens_kv[b] : p.kv_lens ? p.kv_lens[b] : p.kv_len;
}
// pos(i) = i + PositionOffset(p, b).
inline int64_t PositionOffset(const fovea_attention_params& p, int64_t b) {
  return (p.q_offsets ? p.q_offsets[b] : p.q_offset) +
         (p.q_align == FOVEA_Q_ALIGN_BOTTOM_RIGHT ? KvLen(p, b) - QLen(p, b) : 0);
}

// Where sequence b's queries and keys stand, or NULL; in a packed side's array they lie as its rows do.
inline const int32_t* QPositions(const fovea_attention_params& p, int64_t b) {
  return !p.q_positions ? nullptr : p.q_positions + (p.cu_seqlens_q ? p.cu_seqlens_q[b] : b * p.q_positions_stride);
}
inline const int32_t* KvPositions(const fovea_attention_params& p, int64_t b) {
  return !p.kv_positions ? nullptr : p.kv_positions + (p.cu_seqlens_kv ? p.cu_seqlens_kv[b] : b * p.kv_positions_stride);
}

}  // namespace fovea

#endif  // FOVEA_LIB_VALIDATE_H_
