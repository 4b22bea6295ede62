#include "lib/pages.h"

#include <math.h>

#include <algorithm>

#include "lib/dtype.h"
#include "lib/error.h"
#include "lib/plan.h"

namespace fovea {
namespace {

// What causality and window leave to all rows of a sequence together: keys, or positions where kv_positions are given.
// t: of FillRange.
void SequenceRange(const AttentionTask& t, int32_t* lo, int32_t* hi) {
  if (!t.q_positions) {
    // Neighbouring rows' ranges touch: together they are the last row's with a window that much wider.
    AttentionTask all = t;
    if (all.window_left >= 0) all.window_left += t.q_len - 1;
    return RowRange(all, t.q_len - 1, lo, hi);
  }
  *lo = INT32_MAX;
  *hi = -1;
  for (int64_t i = 0; i < t.q_len; ++i) {
    int32_t row_lo, row_hi;
    RowRange(t, i, &row_lo, &row_hi);
    if (row_lo > row_hi) continue;
    *lo = std::min(*lo, row_lo);
    *hi = std::max(*hi, row_hi);
  }
}

// Whether some row of sequence b may attend to some key of [first, last], mask and bias included.
bool AnyPermitted(const fovea_attention_params& p, int64_t b, const AttentionTask& t, int32_t first, int32_t last) {
  const bool per_head = (t.mask && p.mask.stride_head != 0) || (t.bias && p.bias.stride_head != 0);
  const int64_t mask_row = p.mask_offsets ? p.mask_offsets[b] : 0;
  for (int64_t h = 0; h < (per_head ? p.num_q_heads : 1); ++h) {
    for (int64_t i = 0; i < t.q_len; ++i) {
      const auto offset = [&](const fovea_tensor& x, int64_t column) {
        return b * x.stride_batch + h * x.stride_head + (mask_row + i) * x.stride_row + column * x.stride_col;
      };
      int32_t lo, hi;
      RowRange(t, i, &lo, &hi);
      for (int64_t j = first; j <= last; ++j) {
        const int64_t at = t.kv_positions ? t.kv_positions[j] : j, column = j - t.mask_first;
        if (at < lo || at > hi) continue;
        if (column >= 0 && t.mask && t.mask[offset(p.mask, column)] == 0) continue;
        if (column >= 0 && t.bias && LoadElement(p.bias.dtype, p.bias.data, offset(p.bias, column)) == -HUGE_VALF) continue;
        return true;
      }
    }
  }
  return false;
}

}  // namespace

fovea_status CheckPages(const fovea_attention_params& p) {
  if (!p.block_table) return FOVEA_OK;
  const bool every_key = p.scores_stage == FOVEA_SCORES_RAW || p.scores_stage == FOVEA_SCORES_SOFT_CAPPED;
  const int32_t page_size = static_cast<int32_t>(p.page_size);
  for (int64_t b = 0; b < p.batch; ++b) {
    AttentionTask t;
    FillRange(p, b, &t);
    if (t.q_len == 0) continue;
    const int32_t* const positions = every_key ? nullptr : t.kv_positions;
    int32_t lo = 0, hi = t.kv_len - 1;
    if (!every_key) SequenceRange(t, &lo, &hi);
    const int32_t lo_position = lo, hi_position = hi;
    if (positions) TaskKeys(t, &lo, &hi);
    const int32_t* table = p.block_table + b * p.block_table_stride;
    for (int32_t key = lo, next; key <= hi; key = next) {
      next = key - key % page_size + page_size;
      const int32_t index = key / page_size, page = table[index];
      if (page >= 0 && page < p.num_pages) continue;
      int32_t first = key, last = std::min(hi, next - 1);
      const auto out_of_reach = [&](int32_t j) {
        return positions && (positions[j] < lo_position || positions[j] > hi_position);
      };
      while (first <= last && out_of_reach(first)) ++first;
      while (first <= last && out_of_reach(last)) --last;
      if (first <= last && (every_key || AnyPermitted(p, b, t, first, last))) {
        return Fail(FOVEA_ERR_INVALID_ARGUMENT,
                    "block_table[%lld][%d] = %d: must be in [0, num_pages = %lld), it holds keys in %d to %d that are "
                    "attended to",
                    static_cast<long long>(b), index, page, static_cast<long long>(p.num_pages), first, last);
      }
    }
  }
  return FOVEA_OK;
}

}  // namespace fovea
