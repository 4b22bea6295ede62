// From dot products to scores: soft cap, ALiBi, bias and permission, for both kernels (lanes are queries in prefill, keys in decode), and the
// per-row ranges of permitted keys.

#if defined(FOVEA_LIB_KERNELS_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_SCORE_INL_H_
#undef FOVEA_LIB_KERNELS_SCORE_INL_H_
#else
#define FOVEA_LIB_KERNELS_SCORE_INL_H_
#endif

#include <float.h>
#include <math.h>
#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/exp-inl.h"
#include "lib/kernels/kernel_params.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kMinusInf = -HUGE_VALF;

// Scores are kept in units of log2(e): P = 2^(s - m). `unit` is log2(e) then; 1 gives natural scores (for scores out).
// Everything that the caller can fold into Q is in q_factor: the scale, and 1/cap where there is a soft cap.
struct ScoreRule {
  float q_factor;
  float cap;   // cap * unit, or 0
  float unit;
  bool alibi, bias;
};

HWY_INLINE ScoreRule MakeScoreRule(const AttentionTask& t, float unit) {
  ScoreRule r;
  // A cap above 1e30 is none: scores are far below it, and 1 / cap would be subnormal.
  const bool capped = t.soft_cap > 0 && t.soft_cap <= 1e30f;
  r.cap = capped ? t.soft_cap * unit : 0.0f;
  // A cap below 1e-8 bounds the scores closer to 0 than f32 rounds them; dividing by it could overflow finite scores to inf - inf.
  r.q_factor = capped ? t.sm_scale / HWY_MAX(t.soft_cap, 1e-8f) : t.sm_scale * unit;
  r.unit = unit;
  r.alibi = t.slopes != nullptr;
  r.bias = t.bias != nullptr;
  return r;
}

// s: the dot product of K and the scaled Q. slope: in score units; dist: |j - pos|; bias: as the caller gave it.
// A finite bias or distance stays finite: scores below -FLT_MAX / log2(e), where log2 units end, are -FLT_MAX, by select (Max would lose NaN).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AdjustScore(D d, const ScoreRule& rule, V s, V slope, V dist, V bias) {
  if (rule.cap > 0) s = hn::Mul(Tanh(d, s), hn::Set(d, rule.cap));
  if (rule.alibi) s = hn::NegMulAdd(slope, dist, s);
  if (rule.bias) s = hn::MulAdd(bias, hn::Set(d, rule.unit), s);
  if (rule.alibi || rule.bias) {
    const V least = hn::Set(d, rule.unit == 1.0f ? -FLT_MAX / kLog2E : -FLT_MAX);
    s = hn::IfThenElse(hn::Lt(s, least), hn::Set(d, -FLT_MAX), s);
  }
  return s;
}

HWY_INLINE const uint8_t* MaskRow(const AttentionTask& t, int64_t i, int64_t head) {
  return t.mask ? t.mask + head * t.mask_stride_head + i * t.mask_stride_row : nullptr;
}
HWY_INLINE const void* BiasRow(const AttentionTask& t, int64_t i, int64_t head) {
  return t.bias ? At(t.bias, t.bias_dtype, head * t.bias_stride_head + i * t.bias_stride_row) : nullptr;
}

HWY_INLINE bool IsMinusInf(int32_t dtype, const void* row, int64_t i) {
  if (dtype == kF32) return static_cast<const float*>(row)[i] == kMinusInf;
  return static_cast<const uint16_t*>(row)[i] == (dtype == kBF16 ? 0xFF80 : 0xFC00);
}

// What a row of mask and bias permits of the keys [begin, end).
struct Permits {
  bool any, all;
};

HWY_INLINE Permits ScanMask(const AttentionTask& t, const uint8_t* mask_row, const void* bias_row, int64_t begin, int64_t end) {
  Permits r = {false, true};
  // Keys before the mask's first column are permitted.
  const int64_t first = t.mask_first > begin ? t.mask_first : begin;
  if (first > begin) r.any = true;
  if (first >= end) return r;
  if (mask_row && t.mask_stride_col == 1 && !bias_row) {
    // Eight columns at a time: any byte set, every byte set.
    const uint8_t* p = mask_row + (first - t.mask_first);
    int64_t n = end - first;
    uint64_t any = 0, zero = 0;
    for (; n >= 8; n -= 8, p += 8) {
      uint64_t w;
      memcpy(&w, p, 8);
      any |= w;
      zero |= (w - 0x0101010101010101u) & ~w & 0x8080808080808080u;
    }
    for (; n > 0; --n, ++p) any |= *p, zero |= *p == 0;
    r.any |= any != 0;
    r.all = zero == 0;
    return r;
  }
  for (int64_t j = first; j < end; ++j) {
    const int64_t c = j - t.mask_first;
    const bool yes = (!mask_row || mask_row[c * t.mask_stride_col] != 0) &&
                     (!bias_row || !IsMinusInf(t.bias_dtype, bias_row, c * t.bias_stride_col));
    r.any |= yes;
    r.all &= yes;
  }
  return r;
}

// The same over n neighbouring lanes from first_lane: whether any key is permitted to any, all to all. Heads that share a mask, and key padding
// masks, are scanned once.
HWY_INLINE Permits ScanLanes(const AttentionTask& t, int64_t first_lane, int64_t n, int64_t begin, int64_t end) {
  if (!t.mask && !t.bias) return {true, true};
  Permits sum = {false, true};
  const uint8_t* last_mask = nullptr;
  const void* last_bias = nullptr;
  for (int64_t lane = first_lane; lane < first_lane + n; ++lane) {
    const QueryLane query = LaneQuery(t, lane);
    const uint8_t* mask_row = MaskRow(t, query.row, query.head);
    const void* bias_row = BiasRow(t, query.row, query.head);
    if (lane > first_lane && mask_row == last_mask && bias_row == last_bias) continue;
    last_mask = mask_row;
    last_bias = bias_row;
    const Permits row = ScanMask(t, mask_row, bias_row, begin, end);
    sum.any |= row.any;
    sum.all &= row.all;
  }
  return sum;
}

// Mask and bias of one row for the keys [begin, end) of a block as one float per key, dst[(j - begin) * stride]: the bias (0 without one), -inf
// where forbidden.
HWY_INLINE void LoadBias(const AttentionTask& t, const uint8_t* mask_row, const void* bias_row, int64_t begin, int64_t end,
                         float* HWY_RESTRICT dst, size_t stride) {
  // Columns [first, last) of the row are these keys'.
  const int64_t first = HWY_MAX(begin - t.mask_first, int64_t{0}), last = HWY_MIN(end - t.mask_first, t.mask_cols);
  HWY_ALIGN float converted[kBlockKeys];
  const float* bias = static_cast<const float*>(bias_row);
  int64_t bias_stride = t.bias_stride_col, bias_first = 0;  // of bias[0]: its column
  if (bias_row && t.bias_dtype != kF32 && first < last) {
    const size_t n = static_cast<size_t>(last - first);
    const uint16_t* src = static_cast<const uint16_t*>(bias_row) + first * bias_stride;
    uint16_t gathered[kBlockKeys];
    if (bias_stride != 1) {
      for (size_t c = 0; c < n; ++c) gathered[c] = src[static_cast<int64_t>(c) * bias_stride];
      src = gathered;
    }
    ConvertRowToF32(t.bias_dtype, src, n, converted);
    bias = converted;
    bias_stride = 1;
    bias_first = first;
  }
  for (int64_t j = begin; j < end; ++j, dst += stride) {
    const int64_t c = j - t.mask_first;
    float b = 0.0f;
    if (c >= t.mask_cols) {
      b = kMinusInf;
    } else if (c >= 0) {
      if (bias_row) b = bias[(c - bias_first) * bias_stride];
      if (mask_row && mask_row[c * t.mask_stride_col] == 0) b = kMinusInf;
    }
    *dst = b;
  }
}

// When the running maximum moves: m' = mx if mx > m + threshold, normally lazily, by more than 2^8 (then P < 2^8). Where O has overflowed, the
// redo keeps P <= 1 and weighs V with P * weight, so that no sum of 2^30 values can; the weight is taken out of O again at exit.
struct MaxRule {
  float threshold, weight;
};
constexpr MaxRule kLazyMax = {8.0f, 1.0f};
constexpr MaxRule kOverflowSafeMax = {0.0f, 0x1p-31f};

// m and l before the first key: the sink is a key with score sink and no value. A sink of -inf is none.
HWY_INLINE void StartRow(const AttentionTask& t, int64_t head, float* m, float* l) {
  *m = -FLT_MAX;
  *l = 0.0f;
  if (!t.sinks || !t.has_sink_here || t.sinks[head] == kMinusInf) return;
  const float sink = t.sinks[head] * kLog2E;
  *m = sink < -FLT_MAX ? -FLT_MAX : sink;
  *l = 1.0f;
}

// LSE, (m, l) of lane n where wanted.
HWY_INLINE void WriteRowStats(const AttentionTask& t, int64_t n, float m, float l) {
  if (t.part_ml) {
    t.part_ml[(n - t.lane_begin) * 2] = m;
    t.part_ml[(n - t.lane_begin) * 2 + 1] = l;
    return;
  }
  const QueryLane query = LaneQuery(t, n);
  if (t.lse) {
    t.lse[query.head * t.lse_stride_head + query.row * t.lse_stride_row] =
        Lse(static_cast<double>(m), static_cast<double>(l), t.sinks ? t.sinks + query.head : nullptr);
  }
  if (t.stats) {
    float* const stats = t.stats + query.head * t.stats_stride_head + query.row * 2;
    stats[0] = m;
    stats[1] = l;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
