#include "lib/validate.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <limits>
#include <utility>

#include "lib/validate_parts.h"

// Reading order: the fields of fovea_attention_params group by group, its tensors and arrays, and CheckFields, which
// checks them in this order; then exec and merge.

namespace fovea {
namespace {

fovea_status CheckExtents(fovea_attention_params* p) {
  FOVEA_TRY(CheckPositive("batch", p->batch));
  FOVEA_TRY(CheckPositive("num_q_heads", p->num_q_heads));
  FOVEA_TRY(CheckPositive("num_kv_heads", p->num_kv_heads));
  if (p->num_q_heads % p->num_kv_heads != 0) {
    return Fail(kInvalid, "num_kv_heads = %" PRId64 ": must divide num_q_heads = %" PRId64, p->num_kv_heads,
                p->num_q_heads);
  }
  FOVEA_TRY(CheckLength("q_len", p->q_len));
  FOVEA_TRY(CheckLength("kv_len", p->kv_len));
  FOVEA_TRY(CheckPositive("head_dim", p->head_dim));
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  if (p->v_head_dim < 0) {
    return Fail(kInvalid, "v_head_dim = %" PRId64 ": must be positive, or 0 for head_dim", p->v_head_dim);
  }
  if (p->total_q < 0 || (p->total_q > 0 && p->cu_seqlens_q == nullptr)) {
    return Fail(kInvalid, "total_q = %" PRId64 ": must be %s", p->total_q,
                p->total_q < 0 ? "at least 0" : "0 without cu_seqlens_q");
  }
  if (p->total_kv < 0 || (p->total_kv > 0 && p->cu_seqlens_kv == nullptr)) {
    return Fail(kInvalid, "total_kv = %" PRId64 ": must be %s", p->total_kv,
                p->total_kv < 0 ? "at least 0" : "0 without cu_seqlens_kv");
  }
  // So that plan.cc may multiply extents. Broadcasting inputs can make these large where no tensor is.
  const int64_t dim = std::max(p->head_dim, p->v_head_dim);
  const int64_t q_rows = std::max<int64_t>(p->q_len, 1), kv_rows = std::max<int64_t>(p->kv_len, 1);
  FOVEA_TRY(CheckCount("batch * num_q_heads * q_len * head_dim", p->batch, p->num_q_heads, q_rows, dim));
  FOVEA_TRY(CheckCount("batch * num_kv_heads * kv_len * head_dim", p->batch, p->num_kv_heads, kv_rows, dim));
  FOVEA_TRY(CheckCount("total_q * num_q_heads * head_dim", p->total_q, p->num_q_heads, dim, 1));
  FOVEA_TRY(CheckCount("total_kv * num_kv_heads * head_dim", p->total_kv, p->num_kv_heads, dim, 1));
  FOVEA_TRY(CheckExtent("batch", p->batch));
  FOVEA_TRY(CheckExtent("num_kv_heads", p->num_kv_heads));
  FOVEA_TRY(CheckExtent("head_dim", p->head_dim));
  return CheckExtent("v_head_dim", p->v_head_dim);
}

fovea_status CheckReserved(const fovea_attention_params& p) {
  const char* set = !(p.dropout_p == 0)     ? "dropout_p"
                    : p.reserved != 0       ? "reserved"
                    : p.dropout_seed != 0   ? "dropout_seed"
                    : p.dropout_offset != 0 ? "dropout_offset"
                                            : nullptr;
  if (set == nullptr) return FOVEA_OK;
  return Fail(kUnsupported, "%s is set: this version does not support it, it must be 0", set);
}

fovea_status CheckWindow(const char* name, int64_t* window) {
  if (*window < -1) return Fail(kInvalid, "%s = %" PRId64 ": must be at least 0, or -1 for open", name, *window);
  // A key and a position are less than 2^31 apart.
  if (*window >= std::numeric_limits<int32_t>::max()) *window = -1;
  return FOVEA_OK;
}

fovea_status CheckOptions(fovea_attention_params* p) {
  if (std::isinf(p->scale))
    return Fail(kInvalid, "scale = %g: must be finite, or NaN for the default", double{p->scale});
  if (std::isnan(p->scale)) p->scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p->head_dim)));
  if (!(p->logits_soft_cap >= 0) || std::isinf(p->logits_soft_cap)) {
    return Fail(kInvalid, "logits_soft_cap = %g: must be finite and positive, or 0 for none",
                double{p->logits_soft_cap});
  }
  FOVEA_TRY(CheckEnum("causal", p->causal, 1));
  FOVEA_TRY(CheckEnum("q_align", p->q_align, FOVEA_Q_ALIGN_BOTTOM_RIGHT));
  FOVEA_TRY(CheckEnum("mask_align", p->mask_align, FOVEA_MASK_ALIGN_RIGHT));
  FOVEA_TRY(CheckEnum("scores_stage", p->scores_stage, FOVEA_SCORES_PROBABILITIES));
  if (IsGiven(p->scores) != (p->scores_stage != FOVEA_SCORES_NONE)) {
    return Fail(kInvalid, "scores_stage = %s: must %s", fovea_scores_stage_str(p->scores_stage),
                IsGiven(p->scores) ? "say what scores receives" : "be NONE where scores is not given");
  }
  if (p->q_offset < -kMaxLength || p->q_offset > kMaxLength) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be within +-%" PRId64, p->q_offset, kMaxLength);
  }
  if (p->q_offset != 0 && p->q_offsets != nullptr) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be 0 where q_offsets is given", p->q_offset);
  }
  if (p->q_positions != nullptr &&
      (p->q_offset != 0 || p->q_offsets != nullptr || p->q_align != FOVEA_Q_ALIGN_TOP_LEFT)) {
    return Fail(kInvalid, "q_positions is given: q_offset, q_offsets and q_align must be at their defaults then");
  }
  FOVEA_TRY(CheckWindow("window_left", &p->window_left));
  FOVEA_TRY(CheckWindow("window_right", &p->window_right));
  FOVEA_TRY(CheckLength("mask_kv_len", p->mask_kv_len));
  if (p->alibi_slopes == nullptr && p->alibi_stride_batch != 0) {
    return Fail(kInvalid, "alibi_stride_batch = %" PRId64 ": must be 0 without alibi_slopes", p->alibi_stride_batch);
  }
  int64_t span;
  if (__builtin_mul_overflow(p->batch, p->alibi_stride_batch, &span) || span > kMaxElements || span < -kMaxElements) {
    return Fail(kInvalid,
                "alibi_stride_batch = %" PRId64 ": over a batch of %" PRId64 " it must span at most 2^56 elements",
                p->alibi_stride_batch, p->batch);
  }
  return FOVEA_OK;
}

fovea_status CheckPaging(const fovea_attention_params& p) {
  if (p.block_table == nullptr) {
    const std::pair<const char*, int64_t> fields[] = {
        {"block_table_stride", p.block_table_stride}, {"num_pages", p.num_pages}, {"page_size", p.page_size}};
    for (const auto& [name, value] : fields) {
      if (value != 0) return Fail(kInvalid, "%s = %" PRId64 ": must be 0 without block_table", name, value);
    }
    return FOVEA_OK;
  }
  if (p.cu_seqlens_kv != nullptr) {
    return Fail(kInvalid, "cu_seqlens_kv is given: must be NULL where block_table is given");
  }
  FOVEA_TRY(CheckPositive("page_size", p.page_size));
  FOVEA_TRY(CheckLength("page_size", p.page_size));
  if (p.num_pages < 0 || p.num_pages > std::numeric_limits<int32_t>::max()) {
    return Fail(kInvalid, "num_pages = %" PRId64 ": must be in [0, 2^31 - 1]", p.num_pages);
  }
  return CheckCount("num_pages * num_kv_heads * page_size * head_dim", p.num_pages, p.num_kv_heads, p.page_size,
                    std::max(p.head_dim, p.v_head_dim));
}

// What mask and bias, and arrays of rows per sequence, must hold over all sequences.
struct Needed {
  int64_t mask_rows, mask_cols, longest_q, longest_kv;
};

// The distance between the rows of sequences in an array that needs `cols` of each.
fovea_status CheckArrayStride(const char* name, int64_t stride, int64_t batch, int64_t cols, const char* what) {
  // 0: one row for all. A smaller one than cols would let sequences run into one another.
  if (stride < 0 || (stride != 0 && batch > 1 && stride < cols)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0, or at least %" PRId64 ", the %s of the longest sequence", name,
                stride, cols, what);
  }
  int64_t span;
  if (__builtin_mul_overflow(batch, stride, &span) || span > kMaxElements) {
    return Fail(kInvalid, "%s = %" PRId64 ": over a batch of %" PRId64 " it must span at most 2^56 elements", name,
                stride, batch);
  }
  return FOVEA_OK;
}

int64_t TableColumns(const fovea_attention_params& p, int64_t kv_len) {
  return (kv_len + p.page_size - 1) / p.page_size;
}

// Positions of one side: their array's stride, and the values, which may be negative only down to `least`. One array may serve both sides.
struct PositionSide {
  bool queries;
  const char *name, *stride_name;
  const int32_t* data;
  int64_t stride, least, longest;
  const Lengths& rows;
};
fovea_status CheckPositions(const fovea_attention_params& p, const PositionSide& side) {
  if (side.stride != 0 && (side.data == nullptr || side.rows.cu != nullptr)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0 %s %s", side.stride_name, side.stride,
                side.data == nullptr ? "without" : "with", side.data == nullptr ? side.name : side.rows.cu_name);
  }
  if (side.data == nullptr) return FOVEA_OK;
  FOVEA_TRY(CheckArrayStride(side.stride_name, side.stride, p.batch, side.longest, "rows"));
  for (int64_t b = 0; b < p.batch; ++b) {
    const int32_t* values = side.queries ? QPositions(p, b) : KvPositions(p, b);
    const int64_t n = side.queries ? QLen(p, b) : KvLen(p, b);
    int32_t low = 0, high = 0;
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
    if (high <= kMaxLength && low >= side.least) continue;
    int64_t i = 0;
    while (values[i] <= kMaxLength && values[i] >= side.least) ++i;
    return Fail(kInvalid, "%s[%" PRId64 "][%" PRId64 "] = %" PRId32 ": must be %s 2^30", side.name, b, i, values[i],
                side.queries ? "within +-" : "below");
  }
  return FOVEA_OK;
}

// Every sequence's lengths, positions and mask rows. Where no array tells sequences apart, one stands for all.
fovea_status CheckSequences(const fovea_attention_params& p, Needed* needed) {
  const Lengths q = QueryLengths(p), kv = KvLengths(p);
  FOVEA_TRY(CheckLengths(q));
  FOVEA_TRY(CheckLengths(kv));
  const bool differ = q.lens != nullptr || q.cu != nullptr || kv.lens != nullptr || kv.cu != nullptr ||
                      p.q_offsets != nullptr || p.mask_offsets != nullptr;
  int64_t mask_rows = 0, longest_q = 0, longest_kv = 0;
  for (int64_t b = 0; b < (differ ? p.batch : 1); ++b) {
    if (p.q_offsets != nullptr && (p.q_offsets[b] < -kMaxLength || p.q_offsets[b] > kMaxLength)) {
      return Fail(kInvalid, "q_offsets[%" PRId64 "] = %" PRId32 ": must be within +-%" PRId64, b, p.q_offsets[b],
                  kMaxLength);
    }
    const int64_t mask_offset = p.mask_offsets != nullptr ? p.mask_offsets[b] : 0;
    if (mask_offset < 0) {
      return Fail(kInvalid, "mask_offsets[%" PRId64 "] = %" PRId64 ": must be at least 0", b, mask_offset);
    }
    const int64_t kv_len = KvLen(p, b), q_len = QLen(p, b);
    if (kv.cu != nullptr && IsGiven(p.scores) && kv_len > p.kv_len) {
      return Fail(kInvalid,
                  "kv_len = %" PRId64 ": must be at least %" PRId64 ", the keys of sequence %" PRId64
                  ", where scores is given",
                  p.kv_len, kv_len, b);
    }
    longest_q = std::max(longest_q, q_len);
    longest_kv = std::max(longest_kv, kv_len);
    if (q_len == 0) continue;
    mask_rows = std::max(mask_rows, mask_offset + q_len);
    const int64_t first = PositionOffset(p, b), last = first + q_len - 1;
    if (first < -(kMaxLength + 1) || last > kMaxLength + 1) {
      const Name name = p.q_offsets != nullptr ? Name{"q_offsets", static_cast<int>(b)} : Name{"q_offset"};
      return Fail(kInvalid,
                  "%s = %" PRId64 ": positions of sequence %" PRId64 ", %" PRId64 " to %" PRId64
                  ", must be within +-2^30",
                  Text(name).text, p.q_offsets != nullptr ? p.q_offsets[b] : p.q_offset, b, first, last);
    }
  }
  needed->mask_rows = mask_rows;
  needed->mask_cols = p.mask_kv_len != 0 ? p.mask_kv_len : kv.cu != nullptr ? longest_kv : p.kv_len;
  needed->longest_q = longest_q;
  needed->longest_kv = longest_kv;
  if (p.block_table != nullptr) {
    const int64_t columns = TableColumns(p, longest_kv);
    FOVEA_TRY(CheckArrayStride("block_table_stride", p.block_table_stride, p.batch, columns, "pages"));
  }
  constexpr int64_t kAny = std::numeric_limits<int32_t>::min();
  FOVEA_TRY(CheckPositions(
      p, {true, "q_positions", "q_positions_stride", p.q_positions, p.q_positions_stride, -kMaxLength, longest_q, q}));
  return CheckPositions(
      p, {false, "kv_positions", "kv_positions_stride", p.kv_positions, p.kv_positions_stride, kAny, longest_kv, kv});
}

fovea_status CheckSlopes(const fovea_attention_params& p) {
  const int64_t rows = p.alibi_stride_batch == 0 ? 1 : p.batch;
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      const float slope = p.alibi_slopes[b * p.alibi_stride_batch + h];
      if (!(std::fabs(slope) <= 1e38f)) {
        return Fail(kInvalid, "alibi_slopes[%" PRId64 "][%" PRId64 "] = %g: must be finite, at most 1e38 in size", b, h, double{slope});
      }
    }
  }
  return FOVEA_OK;
}

// layer: the views of the layer around the attention, or NULL.
fovea_status CheckTensors(CheckData data, const Needed& needed, const Views* layer, fovea_attention_params* p) {
  const Lengths q = QueryLengths(*p), kv = KvLengths(*p);
  const bool paged = p->block_table != nullptr;
  const int64_t q_heads = p->num_q_heads, q_entries = q.Entries(), q_rows = q.Rows(), kv_heads = p->num_kv_heads;
  const int64_t kv_entries = paged ? p->num_pages : kv.Entries(), kv_rows = paged ? p->page_size : kv.Rows();
  const int64_t scale_extent[] = {kv_entries, kv_heads, kv_rows, 1};
  const int64_t channel_extent[] = {p->batch, kv_heads, 1, p->head_dim};
  const int64_t mask_extent[] = {p->batch, q_heads, needed.mask_rows, needed.mask_cols};
  constexpr int kOutputs = 3, kOptions = 9;  // out, lse, scores; q, k, v and their scales; then options
  Views views(kOutputs, data);
  FOVEA_TRY(views.AddTensor({"out"}, true, {q_entries, q_heads, q_rows, p->v_head_dim}, &p->out));
  FOVEA_TRY(views.AddTensor({"lse"}, false, {q_entries, q_heads, q_rows, 1}, &p->lse, Takes::kF32));
  const int64_t scores_extent[] = {q_entries, q_heads, q_rows, p->kv_len};
  FOVEA_TRY(views.AddTensor({"scores"}, false, scores_extent, &p->scores, Takes::kF32, Columns::kStrided));
  FOVEA_TRY(views.AddTensor({"q"}, true, {q_entries, q_heads, q_rows, p->head_dim}, &p->q));
  FOVEA_TRY(views.AddTensor({"k"}, true, {kv_entries, kv_heads, kv_rows, p->head_dim}, &p->k, Takes::kFloatsOrI8));
  FOVEA_TRY(views.AddTensor({"v"}, true, {kv_entries, kv_heads, kv_rows, p->v_head_dim}, &p->v, Takes::kFloatsOrI8));
  FOVEA_TRY(views.AddTensor({"k_scale"}, false, scale_extent, &p->k_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"v_scale"}, false, scale_extent, &p->v_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"k_channel_scale"}, false, channel_extent, &p->k_channel_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"mask"}, false, mask_extent, &p->mask, Takes::kU8, Columns::kStrided));
  FOVEA_TRY(views.AddTensor({"bias"}, false, mask_extent, &p->bias, Takes::kFloats, Columns::kStrided));
  FOVEA_TRY(CheckScaled("k_scale", p->k_scale, "k", p->k));
  FOVEA_TRY(CheckScaled("v_scale", p->v_scale, "v", p->v));
  FOVEA_TRY(CheckScaled("k_channel_scale", p->k_channel_scale, "k", p->k));
  FOVEA_TRY(views.AddArray({"alibi_slopes"}, p->alibi_slopes, p->batch, p->alibi_stride_batch, q_heads));
  FOVEA_TRY(views.AddArray({"sinks"}, p->sinks, q_heads));
  FOVEA_TRY(views.AddArray({"q_offsets"}, p->q_offsets, p->batch));
  FOVEA_TRY(views.AddArray({"mask_offsets"}, p->mask_offsets, p->batch));
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddLengths(kv));
  const int64_t table_columns = paged ? TableColumns(*p, needed.longest_kv) : 0;
  FOVEA_TRY(views.AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, table_columns));
  // Of padded sides only the longest sequence's rows are read.
  const int64_t q_read = q.cu != nullptr ? q.total : needed.longest_q;
  const int64_t kv_read = kv.cu != nullptr ? kv.total : needed.longest_kv;
  FOVEA_TRY(views.AddArray({"q_positions"}, p->q_positions, q_entries, p->q_positions_stride, q_read));
  FOVEA_TRY(views.AddArray({"kv_positions"}, p->kv_positions, kv.Entries(), p->kv_positions_stride, kv_read));
  if (data == CheckData::kNo) return FOVEA_OK;
  // out, q, k, v and scales are the layer's own. Its outputs are held against lse, scores and all options; its inputs
  // against lse and scores.
  for (int i = 0; layer != nullptr && i < layer->size(); ++i) {
    const bool output = i < layer->outputs();
    for (int j = 1; j < (output ? views.size() : kOutputs); ++j) {
      if (j >= kOutputs && j < kOptions) continue;
      const View &of_layer = (*layer)[i], &option = views[j];
      FOVEA_TRY(output ? CheckDisjoint(of_layer, option) : CheckDisjoint(option, of_layer));
    }
  }
  FOVEA_TRY(views.CheckOutputs());
  return p->alibi_slopes != nullptr ? CheckSlopes(*p) : FOVEA_OK;
}

fovea_status CheckFields(CheckData data, const Views* layer, fovea_attention_params* p) {
  Needed needed = {0, 0, 0, 0};
  FOVEA_TRY(CheckReserved(*p));
  FOVEA_TRY(CheckExtents(p));
  FOVEA_TRY(CheckOptions(p));
  FOVEA_TRY(CheckPaging(*p));
  FOVEA_TRY(CheckSequences(*p, &needed));
  return CheckTensors(data, needed, layer, p);
}

}  // namespace

fovea_status CheckParams(const fovea_attention_params* user, CheckData data, fovea_attention_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_attention_params_init", p));
  return CheckFields(data, nullptr, p);
}

fovea_status CheckMhaAttention(const Views& layer, fovea_attention_params* a) {
  return CheckFields(CheckData::kYes, &layer, a);
}

fovea_status CheckExec(const fovea_exec* user, fovea_exec* e) {
  FOVEA_TRY(CopyStruct(user, "exec", "fovea_exec_init", e));
  constexpr int32_t kMaxThreads = 1024;
  if (e->num_threads < 0 || e->num_threads > kMaxThreads) {
    return Fail(kInvalid, "exec.num_threads = %" PRId32 ": must be in [0, %" PRId32 "]", e->num_threads, kMaxThreads);
  }
  if ((e->flags & ~static_cast<uint32_t>(FOVEA_BATCH_INVARIANT)) != 0) {
    return Fail(kUnsupported, "exec.flags = 0x%" PRIx32 ": this version knows FOVEA_BATCH_INVARIANT = 0x%x", e->flags,
                FOVEA_BATCH_INVARIANT);
  }
  if (e->workspace == nullptr && e->workspace_bytes != 0) {
    return Fail(kInvalid, "exec.workspace_bytes = %zu: must be 0 where exec.workspace is NULL", e->workspace_bytes);
  }
  if (e->error_text == nullptr && e->error_capacity != 0) {
    return Fail(kInvalid, "exec.error_capacity = %zu: must be 0 where exec.error_text is NULL", e->error_capacity);
  }
  return FOVEA_OK;
}

fovea_status CheckMerge(int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
                        int64_t rows, int64_t v_head_dim, const fovea_tensor* out, const fovea_tensor* lse) {
  FOVEA_TRY(CheckPositive("n", n));
  if (outs == nullptr || lses == nullptr || out == nullptr) {
    return Fail(kInvalid, "%s = NULL: must be given", outs == nullptr ? "outs" : lses == nullptr ? "lses" : "out");
  }
  FOVEA_TRY(CheckPositive("batch", batch));
  FOVEA_TRY(CheckPositive("num_heads", num_heads));
  FOVEA_TRY(CheckLength("rows", rows));
  FOVEA_TRY(CheckPositive("v_head_dim", v_head_dim));
  FOVEA_TRY(CheckCount("batch * num_heads * rows * v_head_dim", batch, num_heads, std::max<int64_t>(rows, 1), v_head_dim));
  const int64_t out_extent[] = {batch, num_heads, rows, v_head_dim}, lse_extent[] = {batch, num_heads, rows, 1};
  const auto check = [](Name name, Takes takes, const int64_t(&extent)[kDims], const fovea_tensor& tensor, View* view) {
    fovea_tensor t = tensor;
    return CheckTensor({name, true, takes, Columns::kContiguous}, extent, CheckData::kYes, &t, view);
  };
  View out_view, lse_view = {};  // an lse that is not given overlaps nothing
  FOVEA_TRY(check({"out"}, Takes::kFloats, out_extent, *out, &out_view));
  FOVEA_TRY(CheckDistinct(out_view));
  if (lse != nullptr) {
    FOVEA_TRY(check({"lse"}, Takes::kF32, lse_extent, *lse, &lse_view));
    FOVEA_TRY(CheckDistinct(lse_view));
    FOVEA_TRY(CheckDisjoint(out_view, lse_view));
  }
  for (int32_t i = 0; i < n; ++i) {
    View part_out, part_lse;
    FOVEA_TRY(check({"outs", i}, Takes::kFloats, out_extent, outs[i], &part_out));
    FOVEA_TRY(check({"lses", i}, Takes::kF32, lse_extent, lses[i], &part_lse));
    // The first part may be joined in place.
    if (i != 0 || !SameElements(out_view, part_out)) FOVEA_TRY(CheckDisjoint(out_view, part_out));
    if (i != 0 || !SameElements(lse_view, part_lse)) FOVEA_TRY(CheckDisjoint(lse_view, part_lse));
    FOVEA_TRY(CheckDisjoint(out_view, part_lse));
    FOVEA_TRY(CheckDisjoint(lse_view, part_out));
  }
  return FOVEA_OK;
}

}  // namespace fovea
