#include "lib/pages.h"

#include <math.h>

#include <algorithm>

#include "lib/error.h"
#include "lib/plan.h"

namespace fovea {
namespace {

// Whether mask and bias let some row of sequence b attend to some key of [first, last]. t: of FillRange.
bool AnyPermitted(const fovea_attention_params& p, int64_t b, const AttentionTask& t, int32_t first, int32_t last) {
  if (!t.mask && !t.bias) return true;
  const bool per_head = (t.mask && p.mask.stride_head != 0) || (t.bias && p.bias.stride_head != 0);
  const int64_t mask_row = p.mask_offsets ? p.mask_offsets[b] : 0;
  for (int64_t h = 0; h < (per_head ? p.num_q_heads : 1); ++h) {
    for (int64_t i = 0; i < t.q_len; ++i) {
      const auto offset = [&](const fovea_tensor& x, int64_t column) {
        return b * x.stride_batch + h * x.stride_head + (mask_row + i) * x.stride_row + column * x.stride_col;
      };
      int32_t lo, hi;
      RowRange(t, i, &lo, &hi);
      for (int64_t j = std::max(lo, first); j <= std::min(hi, last); ++j) {
        const int64_t column = j - t.mask_first;
        if (column < 0) return true;
        if (t.mask && t.mask[offset(p.mask, column)] == 0) continue;
        if (t.bias && t.bias[offset(p.bias, column)] == -HUGE_VALF) continue;
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
    // Neighbouring rows' ranges touch: what they permit together is the last row's with a window that much wider.
    AttentionTask all = t;
    if (all.window_left >= 0) all.window_left += t.q_len - 1;
    int32_t lo = 0, hi = t.kv_len - 1;
    if (!every_key) RowRange(all, t.q_len - 1, &lo, &hi);
    const int32_t* table = p.block_table + b * p.block_table_stride;
    for (int32_t first = lo; first <= hi;) {
      const int32_t index = first / page_size, next = first - first % page_size + page_size,
                    last = std::min(hi, next - 1);
      const int32_t page = table[index];
      if ((page < 0 || page >= p.num_pages) && (every_key || AnyPermitted(p, b, t, first, last))) {
        return Fail(FOVEA_ERR_INVALID_ARGUMENT,
                    "block_table[%lld][%d] = %d: must be in [0, num_pages = %lld), it holds keys in %d to %d that are "
                    "attended to",
                    static_cast<long long>(b), index, page, static_cast<long long>(p.num_pages), first, last);
      }
      first = next;
    }
  }
  return FOVEA_OK;
}

}  // namespace fovea
