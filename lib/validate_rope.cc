#include <algorithm>
#include <cinttypes>
#include <cmath>

#include "lib/dtype.h"
#include "lib/validate.h"
#include "lib/validate_parts.h"

// Reading order: lengths of new rows, a rotation and its positions, the cache and the places of new rows in it; then
// CheckRope, CheckRopeTables and CheckKvAppend, which call them in order. The layer calls some of them too.

namespace fovea {
namespace {

// Lengths of new rows; the same fields in every struct that has them.
template <class Params>
fovea_status CheckNewRows(const Params& p, const char* heads_name, int64_t heads, int64_t dim) {
  FOVEA_TRY(CheckPositive("batch", p.batch));
  FOVEA_TRY(CheckPositive(heads_name, heads));
  FOVEA_TRY(CheckLength("q_len", p.q_len));
  FOVEA_TRY(CheckPositive("head_dim", p.head_dim));
  if (p.total_q < 0 || (p.total_q > 0 && p.cu_seqlens_q == nullptr)) {
    return Fail(kInvalid, "total_q = %" PRId64 ": must be %s", p.total_q,
                p.total_q < 0 ? "at least 0" : "0 without cu_seqlens_q");
  }
  FOVEA_TRY(CheckCount("batch * heads * q_len * head_dim", p.batch, heads, std::max<int64_t>(p.q_len, 1), dim));
  FOVEA_TRY(CheckCount("total_q * heads * head_dim", p.total_q, heads, dim, 1));
  return CheckLengths(QueryLengths(p));
}

// The stride of an array of which each new row has an entry.
fovea_status CheckRowStride(const char* name, int64_t stride, bool may_share, const Lengths& rows) {
  if (rows.cu != nullptr) return FOVEA_OK;
  int64_t span;
  if ((stride >= rows.len || (stride == 0 && (may_share || rows.batch == 1))) &&
      !__builtin_mul_overflow(rows.batch, stride, &span)) {
    return FOVEA_OK;
  }
  return Fail(kInvalid, "%s = %" PRId64 ": must be at least q_len = %" PRId64 "%s", name, stride, rows.len,
              may_share ? ", or 0 for one row of all sequences" : "");
}

}  // namespace

// ---- A rotation -----------------------------------------------------------------------------------------------------

fovea_status CheckRotation(const RopeNames& names, fovea_rope_params* p, Views* views) {
  if (p->rotary_dim == 0) p->rotary_dim = p->head_dim;
  if (p->rotary_dim < 0 || p->rotary_dim > p->head_dim || p->rotary_dim % 2 != 0) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be even and at most head_dim = %" PRId64, names.rotary_dim,
                p->rotary_dim, p->head_dim);
  }
  FOVEA_TRY(CheckLength(names.num_positions, p->num_positions));
  if (p->table_batch == 0) p->table_batch = 1;
  if (p->table_batch != 1 && p->table_batch != p->batch) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 1 (or 0) or batch = %" PRId64, names.table_batch, p->table_batch,
                p->batch);
  }
  FOVEA_TRY(CheckEnum(names.interleaved, p->interleaved, 1));
  if (p->reserved != 0) return Fail(kUnsupported, "%s = %" PRId32 ": must be 0", names.reserved, p->reserved);
  if (p->position_offsets != nullptr && p->position_ids != nullptr) {
    return Fail(kInvalid, "%s is given: must be NULL where %s is given", names.position_offsets, names.position_ids);
  }
  if (p->position_offset != 0 && (p->position_offsets != nullptr || p->position_ids != nullptr)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0 where %s is given", names.position_offset, p->position_offset,
                p->position_ids != nullptr ? names.position_ids : names.position_offsets);
  }
  if (p->position_ids != nullptr) {
    FOVEA_TRY(CheckRowStride(names.position_ids_stride, p->position_ids_stride, true, QueryLengths(*p)));
  }
  const int64_t extent[] = {p->table_batch, 1, p->num_positions, p->rotary_dim / 2};
  FOVEA_TRY(views->AddTensor({names.cos}, true, extent, &p->cos));
  return views->AddTensor({names.sin}, true, extent, &p->sin);
}

fovea_status CheckRowPositions(const RopeNames& names, const int32_t* skips, int64_t skips_stride,
                               const fovea_rope_params& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = QLen(p, b), first = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b] : 0;
    const int32_t* skip = skips == nullptr            ? nullptr
                          : p.cu_seqlens_q != nullptr ? skips + first
                                                      : skips + b * skips_stride;
    if (p.position_ids != nullptr) {
      const int32_t* ids = p.position_ids + (p.cu_seqlens_q != nullptr ? first : b * p.position_ids_stride);
      for (int64_t i = 0; i < len; ++i) {
        if (skip != nullptr && skip[i] == -1) continue;
        if (ids[i] < 0 || ids[i] >= p.num_positions) {
          return Fail(kInvalid,
                      "%s of row %" PRId64 " of sequence %" PRId64 " = %" PRId32 ": must be in [0, %s = %" PRId64 ")",
                      names.position_ids, i, b, ids[i], names.num_positions, p.num_positions);
        }
      }
      continue;
    }
    const int64_t offset = p.position_offsets != nullptr ? p.position_offsets[b] : p.position_offset;
    int64_t used_begin = 0, used_end = len;
    while (skip != nullptr && used_begin < used_end && skip[used_begin] == -1) ++used_begin;
    while (skip != nullptr && used_begin < used_end && skip[used_end - 1] == -1) --used_end;
    if (used_begin == used_end) continue;
    if (offset < -used_begin || offset > p.num_positions - used_end) {
      return Fail(kInvalid,
                  "%s of sequence %" PRId64 " = %" PRId64 ": its positions, %" PRId64
                  " rows, must be in [0, %s = %" PRId64 ")",
                  p.position_offsets != nullptr ? names.position_offsets : names.position_offset, b, offset, len,
                  names.num_positions, p.num_positions);
    }
  }
  return FOVEA_OK;
}

void TakeLengths(const Lengths& rows, int64_t num_heads, int64_t head_dim, fovea_rope_params* rope) {
  rope->batch = rows.batch;
  rope->num_heads = num_heads;
  rope->q_len = rows.len;
  rope->head_dim = head_dim;
  rope->q_lens = rows.lens;
  rope->cu_seqlens_q = rows.cu;
  rope->total_q = rows.total;
}

fovea_status CopyRotation(const char* name, const fovea_rope_params* user, const Lengths& rows, int64_t num_heads,
                          int64_t head_dim, fovea_rope_params* rope) {
  FOVEA_TRY(CopyStruct(user, name, "fovea_rope_params_init", rope));
  if ((rope->batch | rope->num_heads | rope->q_len | rope->head_dim | rope->total_q) != 0 || rope->q_lens != nullptr ||
      rope->cu_seqlens_q != nullptr || !IsZero(rope->x) || !IsZero(rope->out)) {
    return Fail(kInvalid, "%s: its batch, num_heads, q_len, head_dim, x, out, q_lens, cu_seqlens_q and total_q must be 0", name);
  }
  TakeLengths(rows, num_heads, head_dim, rope);
  return FOVEA_OK;
}

// ---- The cache ------------------------------------------------------------------------------------------------------

fovea_status CheckCacheKind(const fovea_kv_append_params& p) {
  const bool paged = p.block_table != nullptr || p.slot_mapping != nullptr;
  if (p.block_table != nullptr && p.slot_mapping != nullptr) {
    return Fail(kInvalid, "slot_mapping is given: must be NULL where block_table is given");
  }
  if (p.slot_mapping != nullptr && p.kv_starts != nullptr) {
    return Fail(kInvalid, "kv_starts is given: must be NULL where slot_mapping is given");
  }
  const struct {
    const char* name;
    int64_t value;
    bool used;
  } fields[] = {{"capacity", p.capacity, !paged},
                {"num_pages", p.num_pages, paged},
                {"page_size", p.page_size, paged},
                {"block_table_stride", p.block_table_stride, p.block_table != nullptr},
                {"slot_mapping_stride", p.slot_mapping_stride, p.slot_mapping != nullptr}};
  for (const auto& f : fields) {
    if (!f.used && f.value != 0) {
      return Fail(kInvalid, "%s = %" PRId64 ": must be 0 for a cache that is %s", f.name, f.value,
                  !paged                     ? "contiguous"
                  : p.block_table != nullptr ? "paged by block_table"
                                             : "paged by slot_mapping");
    }
  }
  FOVEA_TRY(CheckLength("capacity", p.capacity));
  FOVEA_TRY(CheckLength("num_pages", p.num_pages));
  FOVEA_TRY(CheckLength("page_size", p.page_size));
  FOVEA_TRY(CheckLength("block_table_stride", p.block_table_stride));
  if (paged) FOVEA_TRY(CheckPositive("page_size", p.page_size));
  if (p.slot_mapping != nullptr) {
    FOVEA_TRY(CheckRowStride("slot_mapping_stride", p.slot_mapping_stride, false, QueryLengths(p)));
  }
  const int64_t dim = std::max(p.head_dim, p.v_head_dim);
  return paged ? CheckCount("num_pages * num_kv_heads * page_size * head_dim", p.num_pages, p.num_kv_heads, p.page_size, dim)
               : CheckCount("batch * num_kv_heads * capacity * head_dim", p.batch, p.num_kv_heads, p.capacity, dim);
}

fovea_status CheckPlaces(const fovea_kv_append_params& p) {
  const bool paged = p.block_table != nullptr || p.slot_mapping != nullptr;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = QLen(p, b);
    if (len == 0) continue;
    if (p.slot_mapping != nullptr) {
      const int32_t* slots =
          p.slot_mapping + (p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b] : b * p.slot_mapping_stride);
      const int64_t num_slots = p.num_pages * p.page_size;
      for (int64_t i = 0; i < len; ++i) {
        if (slots[i] < -1 || slots[i] >= num_slots) {
          return Fail(kInvalid,
                      "slot_mapping of row %" PRId64 " of sequence %" PRId64 " = %" PRId32
                      ": must be in [0, num_pages * page_size = %" PRId64 "), or -1 to skip the row",
                      i, b, slots[i], num_slots);
        }
      }
      continue;
    }
    const int64_t start = p.kv_starts != nullptr ? p.kv_starts[b] : 0;
    const int64_t room = paged ? p.block_table_stride * p.page_size : p.capacity;
    if (start < 0 || start > room - len) {
      return Fail(kInvalid,
                  "kv_starts[%" PRId64 "] = %" PRId64 ": must be at least 0 and leave room for %" PRId64
                  " rows in %s = %" PRId64,
                  b, start, len, paged ? "block_table_stride * page_size" : "capacity", room);
    }
    if (!paged) continue;
    for (int64_t e = start / p.page_size; e <= (start + len - 1) / p.page_size; ++e) {
      const int32_t page = p.block_table[b * p.block_table_stride + e];
      if (page < 0 || page >= p.num_pages) {
        return Fail(kInvalid,
                    "block_table[%" PRId64 "][%" PRId64 "] = %" PRId32 ": must be in [0, num_pages = %" PRId64 ")", b,
                    e, page, p.num_pages);
      }
    }
  }
  return FOVEA_OK;
}

fovea_status CheckQuantizedDim(const char* name, int64_t dim, const char* cache_name, const fovea_tensor& cache) {
  if (cache.dtype != FOVEA_I8 || dim <= kMaxQuantizedColumns) return FOVEA_OK;
  return Fail(kUnsupported, "%s = %" PRId64 ": must be at most %" PRId64 " where %s.dtype = I8", name, dim, kMaxQuantizedColumns,
              cache_name);
}

fovea_status CheckChannelScales(const fovea_kv_append_params& p) {
  const fovea_tensor& t = p.k_channel_scale;
  for (int64_t b = 0; b < (t.stride_batch == 0 ? 1 : p.batch); ++b) {
    for (int64_t h = 0; h < (t.stride_head == 0 ? 1 : p.num_kv_heads); ++h) {
      const float* scale = static_cast<const float*>(t.data) + (b * t.stride_batch + h * t.stride_head);
      for (int64_t c = 0; c < p.head_dim; ++c) {
        if (std::isfinite(scale[c]) && scale[c] != 0) continue;
        return Fail(kInvalid, "k_channel_scale[%" PRId64 "][%" PRId64 "][0][%" PRId64 "] = %g: must be finite and not 0",
                    b, h, c, double{scale[c]});
      }
    }
  }
  return FOVEA_OK;
}

// ---- The calls ------------------------------------------------------------------------------------------------------

fovea_status CheckRope(const fovea_rope_params* user, fovea_rope_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_rope_params_init", p));
  FOVEA_TRY(CheckNewRows(*p, "num_heads", p->num_heads, p->head_dim));
  const Lengths q = QueryLengths(*p);
  const int64_t extent[] = {q.Entries(), p->num_heads, q.Rows(), p->head_dim};
  Views views(1);
  FOVEA_TRY(views.AddTensor({"out"}, true, extent, &p->out));
  FOVEA_TRY(views.AddTensor({"x"}, true, extent, &p->x));
  FOVEA_TRY(CheckRotation(kRopeNames, p, &views));
  FOVEA_TRY(CheckRowPositions(kRopeNames, nullptr, 0, *p));
  FOVEA_TRY(views.AddArray({"position_offsets"}, p->position_offsets, p->batch));
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddRowArray({"position_ids"}, p->position_ids, p->position_ids_stride, q));
  return views.CheckOutputs(p->x.dtype == p->out.dtype && SameElements(views[0], views[1]));
}

fovea_status CheckRopeTables(const fovea_rope_tables_params* user, fovea_rope_tables_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_rope_tables_params_init", p));
  if (p->rotary_dim <= 0 || p->rotary_dim > kMaxLength || p->rotary_dim % 2 != 0) {
    return Fail(kInvalid, "rotary_dim = %" PRId64 ": must be even and positive, below 2^30", p->rotary_dim);
  }
  FOVEA_TRY(CheckLength("num_positions", p->num_positions));
  if (p->first_position < 0 || p->first_position > kMaxLength + 1 - p->num_positions) {
    return Fail(kInvalid,
                "first_position = %" PRId64 ": must be at least 0, and %" PRId64 " positions from there at most 2^30",
                p->first_position, p->num_positions);
  }
  FOVEA_TRY(CheckEnum("scaling", p->scaling, FOVEA_ROPE_SCALING_LLAMA3));
  FOVEA_TRY(CheckEnum("yarn_truncate", p->yarn_truncate, 1));
  const bool dynamic = p->scaling == FOVEA_ROPE_SCALING_DYNAMIC_NTK, yarn = p->scaling == FOVEA_ROPE_SCALING_YARN;
  const bool llama3 = p->scaling == FOVEA_ROPE_SCALING_LLAMA3;
  // Each must be above its limit and finite, where its scaling reads it.
  const struct {
    const char* name;
    double value, above;
    bool read;
  } numbers[] = {{"base", p->base, 1.0, true},
                 {"beta_slow", p->beta_slow, 0.0, yarn},
                 {"beta_fast", p->beta_fast, p->beta_slow, yarn},
                 {"low_freq_factor", p->low_freq_factor, 0.0, llama3},
                 {"high_freq_factor", p->high_freq_factor, p->low_freq_factor, llama3}};
  for (const auto& n : numbers) {
    if (n.read && !(n.value > n.above && std::isfinite(n.value))) {
      return Fail(kInvalid, "%s = %g: must be finite and above %g", n.name, n.value, n.above);
    }
  }
  if (p->scaling != FOVEA_ROPE_SCALING_NONE && !(p->factor >= 1.0 && std::isfinite(p->factor))) {
    return Fail(kInvalid, "factor = %g: must be finite and at least 1", p->factor);
  }
  if (!std::isfinite(p->attention_factor) || p->attention_factor < 0.0) {
    return Fail(kInvalid, "attention_factor = %g: must be finite and positive, or 0 for the scaling's own",
                p->attention_factor);
  }
  if (dynamic || yarn || llama3) FOVEA_TRY(CheckPositive("original_max_position", p->original_max_position));
  if (dynamic) FOVEA_TRY(CheckLength("seq_len", p->seq_len));
  const int64_t extent[] = {1, 1, p->num_positions, p->rotary_dim / 2};
  FOVEA_TRY(CheckCount("num_positions * rotary_dim", p->num_positions, p->rotary_dim, 1, 1));
  Views views(2);
  FOVEA_TRY(views.AddTensor({"cos"}, true, extent, &p->cos));
  FOVEA_TRY(views.AddTensor({"sin"}, true, extent, &p->sin));
  return views.CheckOutputs();
}

fovea_status CheckKvAppend(const fovea_kv_append_params* user, fovea_kv_append_params* p, fovea_rope_params* rope) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_kv_append_params_init", p));
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  FOVEA_TRY(CheckPositive("v_head_dim", p->v_head_dim));
  const int64_t dim = std::max(p->head_dim, p->v_head_dim);
  FOVEA_TRY(CheckNewRows(*p, "num_kv_heads", p->num_kv_heads, dim));
  FOVEA_TRY(CheckCacheKind(*p));
  const Lengths q = QueryLengths(*p);
  const bool paged = p->block_table != nullptr || p->slot_mapping != nullptr;
  const int64_t entries = paged ? p->num_pages : p->batch, rows = paged ? p->page_size : p->capacity;
  if (!IsGiven(p->k_new) && !IsGiven(p->v_new)) return Fail(kInvalid, "k_new and v_new: at least one must be given");
  const struct {
    Name new_name, cache_name, scale_name;
    const char* dim_name;
    fovea_tensor *fresh, *cache, *scale;
    int64_t dim;
  } sides[] = {{{"k_new"}, {"k_cache"}, {"k_scale"}, "head_dim", &p->k_new, &p->k_cache, &p->k_scale, p->head_dim},
               {{"v_new"}, {"v_cache"}, {"v_scale"}, "v_head_dim", &p->v_new, &p->v_cache, &p->v_scale, p->v_head_dim}};
  Views views(4);
  for (const auto& side : sides) {
    const int64_t extent[] = {entries, p->num_kv_heads, rows, side.dim};
    if (!IsGiven(*side.fresh) && IsGiven(*side.cache)) {
      return Fail(kInvalid, "%s is given: must be absent where %s is", side.cache_name.base, side.new_name.base);
    }
    FOVEA_TRY(views.AddTensor(side.cache_name, IsGiven(*side.fresh), extent, side.cache, Takes::kFloatsOrI8));
    const bool quantized = side.cache->dtype == FOVEA_I8;
    const int64_t scale_extent[] = {entries, p->num_kv_heads, rows, 1};
    FOVEA_TRY(views.AddTensor(side.scale_name, quantized, scale_extent, side.scale, Takes::kF32));
    FOVEA_TRY(CheckScaled(side.scale_name.base, *side.scale, side.cache_name.base, *side.cache));
    FOVEA_TRY(CheckQuantizedDim(side.dim_name, side.dim, side.cache_name.base, *side.cache));
  }
  for (const auto& side : sides) {
    const int64_t extent[] = {q.Entries(), p->num_kv_heads, q.Rows(), side.dim};
    FOVEA_TRY(views.AddTensor(side.new_name, false, extent, side.fresh));
  }
  const int64_t channel_extent[] = {p->batch, p->num_kv_heads, 1, p->head_dim};
  FOVEA_TRY(views.AddTensor({"k_channel_scale"}, false, channel_extent, &p->k_channel_scale, Takes::kF32));
  FOVEA_TRY(CheckScaled("k_channel_scale", p->k_channel_scale, "k_cache", p->k_cache));
  if (IsGiven(p->k_channel_scale)) FOVEA_TRY(CheckChannelScales(*p));
  FOVEA_TRY(CheckPlaces(*p));
  if (p->rope == nullptr) {
    *rope = {};  // no arrays of its own, below
  } else {
    FOVEA_TRY(CopyRotation("rope", p->rope, q, p->num_kv_heads, p->head_dim, rope));
    if (!IsGiven(p->k_new)) return Fail(kInvalid, "rope is given: must be NULL where k_new is absent");
    FOVEA_TRY(CheckRotation(kPartRopeNames, rope, &views));
    FOVEA_TRY(CheckRowPositions(kPartRopeNames, p->slot_mapping, p->slot_mapping_stride, *rope));
    p->rope = rope;
  }
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddArray({"kv_starts"}, p->kv_starts, p->batch));
  FOVEA_TRY(views.AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, p->block_table_stride));
  FOVEA_TRY(views.AddRowArray({"slot_mapping"}, p->slot_mapping, p->slot_mapping_stride, q));
  FOVEA_TRY(views.AddRowArray({"rope.position_ids"}, rope->position_ids, rope->position_ids_stride, q));
  FOVEA_TRY(views.AddArray({"rope.position_offsets"}, rope->position_offsets, p->batch));
  return views.CheckOutputs();
}

}  // namespace fovea
