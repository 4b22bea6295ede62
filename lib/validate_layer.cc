#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <utility>

#include "lib/validate.h"
#include "lib/validate_parts.h"

// Reading order: CheckLinear; then of the layer extents, lengths, tensors, cache and attention's options, and CheckMha,
// which calls them. CheckMhaAttention is in validate.cc.

namespace fovea {

fovea_status CheckLinear(const fovea_linear_params* user, CheckData data, fovea_linear_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_linear_params_init", p));
  FOVEA_TRY(CheckLength("tokens", p->tokens));
  FOVEA_TRY(CheckExtent("in_features", p->in_features));
  FOVEA_TRY(CheckExtent("out_features", p->out_features));
  const int64_t rows = std::max<int64_t>(p->tokens, 1);
  FOVEA_TRY(CheckCount("tokens * in_features", rows, p->in_features, 1, 1));
  FOVEA_TRY(CheckCount("tokens * out_features", rows, p->out_features, 1, 1));
  FOVEA_TRY(CheckCount("in_features * out_features", p->in_features, p->out_features, 1, 1));
  Views views(1, data);
  FOVEA_TRY(views.AddTensor({"y"}, true, {1, 1, p->tokens, p->out_features}, &p->y));
  FOVEA_TRY(views.AddTensor({"x"}, true, {1, 1, p->tokens, p->in_features}, &p->x));
  FOVEA_TRY(views.AddTensor({"w"}, true, {1, 1, p->out_features, p->in_features}, &p->w));
  FOVEA_TRY(views.AddTensor({"bias"}, false, {1, 1, 1, p->out_features}, &p->bias));
  return views.CheckOutputs();
}

// ---- The multi-head layer ------------------------------------------------------------------------------------------

namespace {

// Extents, and that all products of them which later code forms stay small.
fovea_status CheckMhaExtents(fovea_mha_params* p) {
  if (p->d_out == 0) p->d_out = p->d_model;
  if (p->d_kv == 0) p->d_kv = p->d_model;
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  FOVEA_TRY(CheckExtent("batch", p->batch));
  FOVEA_TRY(CheckExtent("num_q_heads", p->num_q_heads));
  FOVEA_TRY(CheckExtent("num_kv_heads", p->num_kv_heads));
  FOVEA_TRY(CheckExtent("head_dim", p->head_dim));
  FOVEA_TRY(CheckExtent("v_head_dim", p->v_head_dim));
  FOVEA_TRY(CheckExtent("d_model", p->d_model));
  FOVEA_TRY(CheckExtent("d_out", p->d_out));
  FOVEA_TRY(CheckExtent("d_kv", p->d_kv));
  if (p->num_q_heads % p->num_kv_heads != 0) {
    return Fail(kInvalid, "num_kv_heads = %" PRId64 ": must divide num_q_heads = %" PRId64, p->num_kv_heads, p->num_q_heads);
  }
  // Each factor is below 2^30.
  const int64_t features = (p->num_q_heads + p->num_kv_heads) * p->head_dim + p->num_kv_heads * p->v_head_dim;
  if (features > kMaxLength || p->num_q_heads * p->v_head_dim > kMaxLength) {
    return Fail(kUnsupported, "num_q_heads, num_kv_heads, head_dim, v_head_dim = %" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                ": all columns of q, k and v must be below 2^30", p->num_q_heads, p->num_kv_heads, p->head_dim, p->v_head_dim);
  }
  const int64_t o_columns = p->num_q_heads * p->v_head_dim;
  const std::pair<Lengths, int64_t> sides[] = {
      {QueryLengths(*p), std::max({p->d_model, p->d_out, features, o_columns})},
      {KvLengths(*p), std::max(p->d_kv, features)}};
  for (const auto& [side, columns] : sides) {
    FOVEA_TRY(CheckLength(side.len_name, side.len));
    if (side.total != 0 && side.cu == nullptr) {
      return Fail(kInvalid, "%s = %" PRId64 ": must be 0 without cu_seqlens", side.total_name, side.total);
    }
    FOVEA_TRY(CheckLength(side.total_name, side.total));
    const int64_t rows = side.Entries() * side.Rows();
    if (rows > kMaxLength) {
      return Fail(kUnsupported, "batch * %s = %" PRId64 " * %" PRId64 ": must be below 2^30 tokens", side.len_name, p->batch, side.len);
    }
    FOVEA_TRY(CheckCount("tokens * columns", std::max<int64_t>(rows, 1), columns, 1, 1));
  }
  if (!(p->norm_eps >= 0) || std::isinf(p->norm_eps)) {
    return Fail(kInvalid, "norm_eps = %g: must be finite, at least 0", double{p->norm_eps});
  }
  if (p->reserved != 0) return Fail(kUnsupported, "reserved = %" PRId32 ": must be 0", p->reserved);
  return FOVEA_OK;
}

fovea_status CheckMhaLengths(const fovea_mha_params& p) {
  const bool cross = IsGiven(p.x_kv), cache = IsGiven(p.k_cache);
  FOVEA_TRY(CheckLengths(QueryLengths(p)));
  if (!cross) {
    if (p.kv_len != 0) return Fail(kInvalid, "kv_len = %" PRId64 ": must be 0 without x_kv", p.kv_len);
    if (p.d_kv != p.d_model) return Fail(kInvalid, "d_kv = %" PRId64 ": must be 0 without x_kv", p.d_kv);
    if (p.cu_seqlens_kv != nullptr) return Fail(kInvalid, "cu_seqlens_kv is given: must be NULL without x_kv");
    if (p.kv_lens != nullptr && (cache || p.cu_seqlens_q != nullptr)) {
      return Fail(kInvalid, "kv_lens is given: must be NULL without x_kv where %s is given", cache ? "k_cache" : "cu_seqlens_q");
    }
    return CheckLengths({"kv_lens", "cu_seqlens_kv", "q_len", "total_kv", p.kv_lens, nullptr, p.batch, p.q_len, 0});
  }
  return CheckLengths(KvLengths(p));
}

// All tensors and arrays but those of attention; zeroes the strides that no index uses.
fovea_status CheckMhaTensors(fovea_mha_params* p, fovea_rope_params* rope, fovea_rope_params* kv_rope, Views* views) {
  const bool packed_weight = IsGiven(p->w_qkv), cross = IsGiven(p->x_kv), paged = p->block_table != nullptr;
  const bool cache = IsGiven(p->k_cache) || IsGiven(p->v_cache);
  const Lengths q = QueryLengths(*p), kv = KvLengths(*p);
  const int64_t q_heads = p->num_q_heads, kv_heads = p->num_kv_heads;
  const int64_t q_cols = q_heads * p->head_dim, k_cols = kv_heads * p->head_dim, v_cols = kv_heads * p->v_head_dim;
  const int64_t all_cols = q_cols + k_cols + v_cols, o_cols = q_heads * p->v_head_dim;
  const int64_t entries = paged ? p->num_pages : p->batch, rows = paged ? p->page_size : p->capacity;
  const bool k_quantized = p->k_cache.dtype == FOVEA_I8, v_quantized = p->v_cache.dtype == FOVEA_I8;
  const char* const packed_only = packed_weight ? nullptr : "without w_qkv";
  const char* const unpacked_only = packed_weight ? "where w_qkv is given" : nullptr;
  constexpr const char* kNoScales = "where its cache is not I8";
  const char* const k_quantized_only = k_quantized ? nullptr : kNoScales;
  const char* const v_quantized_only = v_quantized ? nullptr : kNoScales;
  const struct {
    Name name;
    bool required;
    const char* refused;  // why it must be absent, or NULL
    fovea_tensor* tensor;
    int64_t extent[kDims];
    Takes takes = Takes::kFloats;
  } tensors[] = {
      {{"y"}, true, nullptr, &p->y, {q.Entries(), 1, q.Rows(), p->d_out}},
      {{"k_cache"}, cache, nullptr, &p->k_cache, {entries, kv_heads, rows, p->head_dim}, Takes::kFloatsOrI8},
      {{"v_cache"}, cache, nullptr, &p->v_cache, {entries, kv_heads, rows, p->v_head_dim}, Takes::kFloatsOrI8},
      {{"k_scale"}, k_quantized, k_quantized_only, &p->k_scale, {entries, kv_heads, rows, 1}, Takes::kF32},
      {{"v_scale"}, v_quantized, v_quantized_only, &p->v_scale, {entries, kv_heads, rows, 1}, Takes::kF32},
      {{"x"}, true, nullptr, &p->x, {q.Entries(), 1, q.Rows(), p->d_model}},
      {{"x_kv"}, false, nullptr, &p->x_kv, {kv.Entries(), 1, kv.Rows(), p->d_kv}},
      {{"wq"}, !packed_weight, unpacked_only, &p->wq, {1, 1, q_cols, p->d_model}},
      {{"wk"}, !packed_weight, unpacked_only, &p->wk, {1, 1, k_cols, p->d_kv}},
      {{"wv"}, !packed_weight, unpacked_only, &p->wv, {1, 1, v_cols, p->d_kv}},
      {{"w_qkv"}, false, nullptr, &p->w_qkv, {1, 1, all_cols, p->d_model}},
      {{"wo"}, true, nullptr, &p->wo, {1, 1, p->d_out, o_cols}},
      {{"bq"}, false, unpacked_only, &p->bq, {1, 1, 1, q_cols}},
      {{"bk"}, false, unpacked_only, &p->bk, {1, 1, 1, k_cols}},
      {{"bv"}, false, unpacked_only, &p->bv, {1, 1, 1, v_cols}},
      {{"b_qkv"}, false, packed_only, &p->b_qkv, {1, 1, 1, all_cols}},
      {{"bo"}, false, nullptr, &p->bo, {1, 1, 1, p->d_out}},
      {{"q_norm"}, false, nullptr, &p->q_norm, {1, 1, 1, p->head_dim}},
      {{"k_norm"}, false, nullptr, &p->k_norm, {1, 1, 1, p->head_dim}},
      {{"k_channel_scale"}, false, k_quantized_only, &p->k_channel_scale, {p->batch, kv_heads, 1, p->head_dim}, Takes::kF32},
  };
  for (const auto& t : tensors) {
    if (t.refused != nullptr && IsGiven(*t.tensor)) {
      return Fail(kInvalid, "%s is given: must be absent %s", t.name.base, t.refused);
    }
    FOVEA_TRY(views->AddTensor(t.name, t.required, t.extent, t.tensor, t.takes));
  }
  if (cross && packed_weight && p->d_kv != p->d_model) {
    return Fail(kInvalid, "d_kv = %" PRId64 ": must be d_model = %" PRId64 " where w_qkv is given", p->d_kv, p->d_model);
  }
  if (p->rope != nullptr) {
    FOVEA_TRY(CheckRotation(kPartRopeNames, rope, views));
    FOVEA_TRY(CheckRotation(p->kv_rope != nullptr ? kKvRopeNames : kPartRopeNames, kv_rope, views));
  }
  FOVEA_TRY(views->AddLengths(q));
  FOVEA_TRY(views->AddLengths(kv));
  FOVEA_TRY(views->AddArray({"kv_starts"}, p->kv_starts, p->batch));
  FOVEA_TRY(views->AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, p->block_table_stride));
  FOVEA_TRY(views->AddArray({"rope.position_offsets"}, rope->position_offsets, p->batch));
  FOVEA_TRY(views->AddRowArray({"rope.position_ids"}, rope->position_ids, rope->position_ids_stride, q));
  FOVEA_TRY(views->AddArray({"kv_rope.position_offsets"}, kv_rope->position_offsets, p->batch));
  const Lengths fresh = QueryLengths(*kv_rope);
  return views->AddRowArray({"kv_rope.position_ids"}, kv_rope->position_ids, kv_rope->position_ids_stride, fresh);
}

fovea_status CheckMhaCache(const fovea_mha_params& p, CheckData data) {
  if (IsGiven(p.k_cache) != IsGiven(p.v_cache)) {
    const bool k = IsGiven(p.k_cache);
    return Fail(kInvalid, "%s.dtype = NONE: must be given where %s is", k ? "v_cache" : "k_cache", k ? "k_cache" : "v_cache");
  }
  if (!IsGiven(p.k_cache)) {
    const char* set = p.kv_starts != nullptr      ? "kv_starts"
                      : p.capacity != 0           ? "capacity"
                      : p.block_table != nullptr  ? "block_table"
                      : p.block_table_stride != 0 ? "block_table_stride"
                      : p.num_pages != 0          ? "num_pages"
                      : p.page_size != 0          ? "page_size"
                                                  : nullptr;
    return set == nullptr ? FOVEA_OK : Fail(kInvalid, "%s is given: must be 0 without k_cache and v_cache", set);
  }
  const fovea_kv_append_params append = MhaAppend(p);
  FOVEA_TRY(CheckCacheKind(append));
  FOVEA_TRY(CheckQuantizedDim("head_dim", p.head_dim, "k_cache", p.k_cache));
  FOVEA_TRY(CheckQuantizedDim("v_head_dim", p.v_head_dim, "v_cache", p.v_cache));
  if (data == CheckData::kNo) return FOVEA_OK;
  FOVEA_TRY(CheckPlaces(append));
  // Sequences without new rows are attended to as well.
  const int64_t room = MhaKvLen(p);
  for (int64_t b = 0; p.kv_starts != nullptr && b < p.batch; ++b) {
    if (p.kv_starts[b] < 0 || p.kv_starts[b] > room - QLen(append, b)) {
      return Fail(kInvalid, "kv_starts[%" PRId64 "] = %" PRId32 ": must be at least 0, and with the new rows at most %" PRId64, b,
                  p.kv_starts[b], room);
    }
  }
  return FOVEA_OK;
}

// The layer's pages and scales, for the append to its cache and for attention over it.
template <class Params>
void TakeCache(const fovea_mha_params& p, Params* a) {
  a->block_table = p.block_table;
  a->block_table_stride = p.block_table_stride;
  a->num_pages = p.num_pages;
  a->page_size = p.page_size;
  a->k_scale = p.k_scale;
  a->v_scale = p.v_scale;
  a->k_channel_scale = p.k_channel_scale;
}

// The options of attention, with the lengths and positions of the layer.
fovea_status MhaAttention(const fovea_mha_params& p, fovea_attention_params* a) {
  if (p.attention == nullptr) {
    fovea_attention_params_init(a, sizeof *a);
  } else {
    FOVEA_TRY(CopyStruct(p.attention, "attention", "fovea_attention_params_init", a));
  }
  const bool cross = IsGiven(p.x_kv), cache = IsGiven(p.k_cache);
  const char* set = (a->batch | a->num_q_heads | a->num_kv_heads | a->q_len | a->kv_len | a->head_dim | a->v_head_dim) != 0
                        ? "batch, heads, lengths or dims"
                    : !IsZero(a->q) || !IsZero(a->k) || !IsZero(a->v) || !IsZero(a->out) ? "q, k, v or out"
                    : !IsZero(a->k_scale) || !IsZero(a->v_scale) || !IsZero(a->k_channel_scale) ? "k_scale, v_scale or k_channel_scale"
                    : a->q_lens != nullptr || a->kv_lens != nullptr                      ? "q_lens or kv_lens"
                    : a->cu_seqlens_q != nullptr || a->cu_seqlens_kv != nullptr          ? "cu_seqlens_q or cu_seqlens_kv"
                    : (a->total_q | a->total_kv) != 0                                    ? "total_q or total_kv"
                    : a->block_table != nullptr                                          ? "block_table"
                    : (a->block_table_stride | a->num_pages | a->page_size) != 0         ? "block_table_stride, num_pages or page_size"
                    : !cross && a->q_align != 0                                          ? "q_align"
                    : !cross && (a->q_offset != 0 || a->q_offsets != nullptr)            ? "q_offset or q_offsets"
                                                                                         : nullptr;
  if (set != nullptr) return Fail(kInvalid, "attention: its %s must be 0, the layer's own", set);
  a->batch = p.batch;
  a->num_q_heads = p.num_q_heads;
  a->num_kv_heads = p.num_kv_heads;
  a->head_dim = p.head_dim;
  a->v_head_dim = p.v_head_dim;
  a->q_len = p.q_len;
  a->q_lens = p.q_lens;
  a->cu_seqlens_q = p.cu_seqlens_q;
  a->total_q = p.total_q;
  a->kv_len = MhaKvLen(p);
  if (cache) {
    TakeCache(p, a);
  } else if (cross) {
    a->kv_lens = p.kv_lens;
    a->cu_seqlens_kv = p.cu_seqlens_kv;
    a->total_kv = p.total_kv;
  } else {
    a->kv_lens = p.kv_lens != nullptr ? p.kv_lens : p.q_lens;
    a->cu_seqlens_kv = p.cu_seqlens_q;
    a->total_kv = p.total_q;
  }
  if (!cross && a->q_positions == nullptr) a->q_offsets = p.kv_starts;
  return FOVEA_OK;
}

}  // namespace

int64_t MhaKvLen(const fovea_mha_params& p) {
  if (!IsGiven(p.k_cache)) return IsGiven(p.x_kv) ? p.kv_len : p.q_len;
  return p.block_table != nullptr ? std::min(p.block_table_stride * p.page_size, kMaxLength) : p.capacity;
}

fovea_kv_append_params MhaAppend(const fovea_mha_params& p) {
  fovea_kv_append_params a;
  fovea_kv_append_params_init(&a, sizeof a);
  const bool cross = IsGiven(p.x_kv);
  a.batch = p.batch;
  a.num_kv_heads = p.num_kv_heads;
  a.q_len = cross ? p.kv_len : p.q_len;
  a.head_dim = p.head_dim;
  a.v_head_dim = p.v_head_dim;
  a.q_lens = cross ? p.kv_lens : p.q_lens;
  a.cu_seqlens_q = cross ? p.cu_seqlens_kv : p.cu_seqlens_q;
  a.total_q = cross ? p.total_kv : p.total_q;
  a.k_cache = p.k_cache;
  a.v_cache = p.v_cache;
  a.kv_starts = p.kv_starts;
  a.capacity = p.capacity;
  TakeCache(p, &a);
  return a;
}

bool HasPositions(const fovea_rope_params& rope) {
  return rope.position_ids != nullptr || rope.position_offsets != nullptr || rope.position_offset != 0;
}

fovea_status CheckMha(const fovea_mha_params* user, CheckData data, fovea_mha_params* p, fovea_rope_params* rope, fovea_rope_params* kv_rope,
                      fovea_attention_params* attention, Views* views) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_mha_params_init", p));
  FOVEA_TRY(CheckMhaExtents(p));
  FOVEA_TRY(CheckMhaLengths(*p));
  FOVEA_TRY(CheckMhaCache(*p, data));
  const bool cross = IsGiven(p->x_kv);
  const fovea_kv_append_params append = MhaAppend(*p);  // its lengths are those of new keys without a cache, too
  const Lengths q = QueryLengths(*p), fresh = QueryLengths(append);
  *rope = *kv_rope = {};
  TakeLengths(q, p->num_q_heads, p->head_dim, rope);
  TakeLengths(fresh, p->num_kv_heads, p->head_dim, kv_rope);
  if (p->kv_rope != nullptr && (p->rope == nullptr || !cross)) {
    return Fail(kInvalid, "kv_rope is given: must be NULL without %s", cross ? "rope" : "x_kv");
  }
  if (p->rope != nullptr) {
    FOVEA_TRY(CopyRotation("rope", p->rope, q, p->num_q_heads, p->head_dim, rope));
    const bool own_kv = p->kv_rope != nullptr;
    const fovea_rope_params* user_kv = own_kv ? p->kv_rope : p->rope;
    FOVEA_TRY(CopyRotation(own_kv ? "kv_rope" : "rope", user_kv, fresh, p->num_kv_heads, p->head_dim, kv_rope));
    if (cross && !own_kv) {  // rope's positions are those of q
      kv_rope->position_offset = kv_rope->position_ids_stride = 0;
      kv_rope->position_offsets = kv_rope->position_ids = nullptr;
    }
    if (!cross && !HasPositions(*rope)) rope->position_offsets = p->kv_starts;
    if (!HasPositions(*kv_rope)) kv_rope->position_offsets = p->kv_starts;
    // Only the rows that q has are rotated.
    for (int64_t b = 0; !cross && p->kv_lens != nullptr && b < p->batch; ++b) {
      if (p->kv_lens[b] > QLen(*p, b)) {
        return Fail(kInvalid, "kv_lens[%" PRId64 "] = %" PRId32 ": must be at most the sequence's %" PRId64 " rows where rope is given", b,
                    p->kv_lens[b], QLen(*p, b));
      }
    }
  }
  views->Begin(5, data);
  FOVEA_TRY(CheckMhaTensors(p, rope, kv_rope, views));
  if (data == CheckData::kYes) {
    FOVEA_TRY(views->CheckOutputs());
    if (IsGiven(p->k_channel_scale)) FOVEA_TRY(CheckChannelScales(append));
  }
  return MhaAttention(*p, attention);
}

fovea_status CheckMhaPositions(const fovea_mha_params& p, const fovea_rope_params& rope, const fovea_rope_params& kv_rope) {
  RopeNames q_names = kPartRopeNames, kv_names = p.kv_rope != nullptr ? kKvRopeNames : kPartRopeNames;
  if (IsGiven(p.x_kv)) {  // what they stand at by default is no field of theirs
    if (!HasPositions(*p.rope)) q_names.position_offsets = "rope: the position of row 0 of x";
    if (p.kv_rope == nullptr || !HasPositions(*p.kv_rope)) {
      kv_names.position_offset = kv_names.position_offsets = "rope: the position of row 0 of x_kv";
    }
  }
  FOVEA_TRY(CheckRowPositions(q_names, nullptr, 0, rope));
  return IsGiven(p.x_kv) ? CheckRowPositions(kv_names, nullptr, 0, kv_rope) : FOVEA_OK;
}

}  // namespace fovea
