// Decode: attention of a few query rows (at most kDecodeMaxRows rows x heads of a group) over a range of keys of one kv head. Bound by reading K
// and V once: all rows take their dot products with a K row while it is in registers, V is walked row by row.
//
//   for each block of kDecodeKeys keys:
//     s[row][key] = dot(q[row], K[key])      vectors along head_dim, up to 4 rows of q for each K row, or 4 K rows for each row of q
//     p = 2^(s - m), vectors along keys; the block's maximum moves m lazily (by more than 2^8)
//     O[row] += p[row][key] V[key]           O of 1 or 2 rows (or 4: kWidensOnce) in registers, in key order
//
// Two blocks are under way: Q K^T of one beside P V of the one before it, in turns (decode_turns-inl.h).
// A long sequence is cut at fixed split points (plan.cc); a part gives O / l and (m, l), joined in order by run.cc.
// Numerics: lib/NUMERICS.md. Source: Dao et al. 2023, "Flash-Decoding".

#if defined(FOVEA_LIB_KERNELS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_DECODE_INL_H_
#undef FOVEA_LIB_KERNELS_DECODE_INL_H_
#else
#define FOVEA_LIB_KERNELS_DECODE_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/decode_products-inl.h"
#include "lib/kernels/decode_turns-inl.h"
#include "lib/kernels/int8_dot-inl.h"
#include "lib/kernels/query_tile-inl.h"
#include "lib/kernels/score-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The policy, what the products are made of: f32, whatever is stored. Others derive from it, overload those that differ of LoadQ, DotRun, ScaleScore,
// MoveMax, ExpBlock, PvPart and AddBlock, and specialize kPolicyChunkKeys, kPolicyVectors and kScalesScores.
struct F32Products {};

// Keys of a turn.
template <class P>
constexpr size_t kPolicyChunkKeys = kChunkKeys;

// o += block_o, which is left 0: for the redo. Else P V does it with a block's last keys.
HWY_INLINE void AddBlock(F32Products /*policy*/, const AttentionTask& /*t*/, const DecodeRow& row, size_t pitch, bool redo) {
  if (!redo) return;
  const DF d;
  for (size_t c = 0; c < pitch; c += hn::Lanes(d)) {
    hn::Store(hn::Add(hn::Load(d, row.o + c), hn::Load(d, row.block_o + c)), d, row.o + c);
    hn::Store(hn::Zero(d), d, row.block_o + c);
  }
}

HWY_INLINE bool RowIsFinite(const float* o, size_t pitch) {
  const DF d;
  auto check = hn::Zero(d);
  for (size_t c = 0; c < pitch; c += hn::Lanes(d)) check = hn::MulAdd(hn::Load(d, o + c), hn::Zero(d), check);
  return hn::AllTrue(d, hn::Eq(check, check));
}

// Scales of a block's rows of K and V, [kDecodeKeys], or null.
struct BlockScales {
  const float *k, *v;
};

// ---- Softmax

// What DecodeSoftmax leaves to the products: how far a step goes, what a dot product is multiplied by, how the maximum moves, and P.
template <class P>
constexpr size_t kPolicyVectors = 1;

template <class P>
constexpr bool kScalesScores = false;
template <class V>
HWY_INLINE V ScaleScore(F32Products /*policy*/, V s, float /*factor*/) {
  return s;
}
HWY_INLINE float MoveMax(F32Products /*policy*/, float /*m*/, float top) { return top; }

// P = 2^(s - m) of the block's lanes [first, last) in place, times V's scales, which are not in the sum that is returned.
HWY_INLINE float ExpBlock(F32Products /*policy*/, float* HWY_RESTRICT p, size_t first, size_t last, float m, const float* HWY_RESTRICT v_scale) {
  const DF d;
  const auto max = hn::Set(d, m);
  auto sum = hn::Zero(d);
  for (size_t j = first; j < last; j += hn::Lanes(d)) {
    const auto w = Exp2(d, hn::Sub(hn::Load(d, p + j), max));
    hn::Store(v_scale ? hn::Mul(w, hn::Load(d, v_scale + j)) : w, d, p + j);
    sum = hn::Add(sum, w);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Scores of one row for block kb, at p, to P times V's scales, which l leaves out; m, l and O follow. bias: the block's mask and bias, or null.
template <class P>
HWY_NOINLINE void DecodeSoftmax(P policy, DecodeRow& row, const ScoreRule& score, int32_t kb, int32_t begin, int32_t end, float* HWY_RESTRICT p,
                                const BlockScales& scales, const float* HWY_RESTRICT bias, size_t pitch, MaxRule rule) {
  const DF d;
  const DI di;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d), step = kPolicyVectors<P> * N;
  const size_t first = static_cast<size_t>(begin - kb) / step * step, last = (static_cast<size_t>(end - kb) + step - 1) / step * step;
  const V minus_inf = hn::Set(d, kMinusInf);
  // Every lane permitted, and nothing to add: the same bits by fewer instructions.
  const bool plain = !bias && !score.alibi && score.cap == 0.0f && row.lo <= kb + static_cast<int32_t>(first) &&
                     row.hi >= kb + static_cast<int32_t>(last) - 1;
  const bool as_is = plain && !scales.k && !kScalesScores<P>;
  V mx = minus_inf;
  for (size_t j = first; j < last; j += N) {
    const V dot = scales.k ? hn::Mul(hn::Load(d, p + j), hn::Load(d, scales.k + j)) : hn::Load(d, p + j);
    V x = ScaleScore(policy, dot, score.q_factor);
    if (!plain) {
      const auto key = hn::Iota(di, kb + static_cast<int32_t>(j));
      const V dist = hn::Abs(hn::ConvertTo(d, hn::Sub(key, hn::Set(di, row.pos))));
      const V b = bias ? hn::Load(d, bias + j) : hn::Zero(d);
      x = AdjustScore(d, score, x, hn::Set(d, row.slope * score.unit), dist, b);
      const auto outside = hn::RebindMask(d, hn::Or(hn::Lt(key, hn::Set(di, row.lo)), hn::Gt(key, hn::Set(di, row.hi))));
      x = hn::IfThenElse(hn::Or(outside, hn::Eq(b, minus_inf)), minus_inf, x);
    }
    if (!as_is) hn::Store(x, d, p + j);
    mx = hn::Max(mx, x);
  }
  if (!hn::AllFalse(d, hn::Gt(mx, hn::Set(d, row.m + rule.threshold)))) {
    const float top = hn::GetLane(hn::MaxOfLanes(d, mx));
    if (top > row.m + rule.threshold) {
      const float m = MoveMax(policy, row.m, top);
      const V alpha = Exp2(d, hn::Set(d, row.m - m));
      row.l *= hn::GetLane(alpha);
      row.m = m;
      for (size_t c = 0; c < pitch; c += N) hn::Store(hn::Mul(hn::Load(d, row.o + c), alpha), d, row.o + c);
    }
  }
  row.l += ExpBlock(policy, p, first, last, row.m, scales.v);
}

// The scales of the block's rows of a side that has any, where DecodeSoftmax looks for them.
HWY_INLINE void LoadScales(const AttentionTask& t, const Side& side, const DecodeBlock& block, float* to) {
  EachRun(t, block, 0, static_cast<size_t>(block.end - block.begin), [&](size_t first, size_t n) HWY_ATTR {
    const int32_t key = block.begin + static_cast<int32_t>(first);
    const float* scale = SideScale(t, side, key);
    for (size_t j = 0; j < n; ++j) to[static_cast<size_t>(key - block.kb) + j] = scale[static_cast<int64_t>(j) * side.scale_stride_row];
  });
}

// ---- Policy

// row.query's row of q, as the products want it, to row.q; room: as much again.
HWY_INLINE void LoadQ(F32Products /*policy*/, const AttentionTask& t, const ScoreRule& score, DecodeRow& row, float* /*room*/) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim);
  ConvertRowToF32(t.q_dtype, QRow(t, row.query), dim, row.q);
  const DF d;
  const auto factor = hn::Set(d, score.q_factor);
  for (size_t c = 0; c < pitch; c += hn::Lanes(d)) hn::Store(hn::Mul(hn::Load(d, row.q + c), factor), d, row.q + c);
  for (size_t c = dim; c < pitch; ++c) row.q[c] = 0.0f;
  for (size_t c = 0; t.k_channel_scale && c < dim; ++c) row.q[c] *= t.k_channel_scale[c];
}

// Scores of the block's keys [first, first + n), counted from begin and one stride apart, for all rows.
HWY_INLINE void DotRun(F32Products /*policy*/, const AttentionTask& t, const KernelScratch& /*s*/, DecodeRow* rows, size_t num_rows,
                       const DecodeBlock& block, size_t first, size_t n) {
  WithType(t.k_dtype, [&](auto type) HWY_ATTR { DotKeyRange(t, type, rows, num_rows, block, first, n); });
}

// block_o of all rows += P V of the block's keys [first, first + n), counted from begin; what f32 adds to o with the block's last keys, others in
// AddBlock. redo: one row, whose forbidden keys are no operands, always to block_o.
HWY_INLINE void PvPart(F32Products /*policy*/, const AttentionTask& t, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                       size_t n, MaxRule rule, bool redo) {
  EachRun(t, block, first, n, [&](size_t from, size_t run) HWY_ATTR {
    WithType(t.v_dtype, [&](auto type) HWY_ATTR { PvKeyRange(t, type, rows, num_rows, block, from, run, rule, redo); });
  });
}

#if FOVEA_INT8_DOT
// K int8: Q K^T by vpdpbusd.
struct Int8Products : F32Products {};
template <>
constexpr size_t kPolicyChunkKeys<Int8Products> = kDotKeys;

HWY_INLINE void LoadQ(Int8Products /*policy*/, const AttentionTask& t, const ScoreRule& score, DecodeRow& row, float* room) {
  const size_t pitch = PadToVector(static_cast<size_t>(t.head_dim));
  LoadQ(F32Products(), t, score, row, room);
  row.fixed = reinterpret_cast<FixedPointRow*>(room);
  row.fits = ToFixedPoint(row.q, pitch, row.fixed) && pitch <= kMaxInt8DotDim;
}

HWY_INLINE void DotRun(Int8Products /*policy*/, const AttentionTask& t, const KernelScratch& s, DecodeRow* rows, size_t num_rows,
                       const DecodeBlock& block, size_t first, size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim), q_bytes = pitch * sizeof(float), groups = (dim + 3) / 4;
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = ScratchIndex(block, key);
  const int64_t stride = t.k_stride_row;
  const I8* const k = static_cast<const I8*>(KRow(t, key));
  if (t.block_table) {
    PrefetchPaged(t, KSide(t), I8(), key, n, block.walk_end, dim);
  } else if (HasRowsToCome(block.walk_end - key, n, kPrefetchRows<I8>)) {
    for (size_t j = 0; j < n; ++j) PrefetchRow(k + (static_cast<int64_t>(j) + kPrefetchRows<I8>) * stride, dim);
  }
  uint32_t* const transposed = reinterpret_cast<uint32_t*>(s.copy);
  for (size_t j = 0; j < n; j += kDotKeys) {
    const size_t keys = HWY_MIN(kDotKeys, n - j);
    TransposeKeys(&k->bits + static_cast<int64_t>(j) * stride, stride, keys, dim, transposed);
    size_t r = 0;
    for (; r + 4 <= num_rows; r += 4) DotTransposedKeys<4>(transposed, groups, rows[r].fixed, q_bytes, keys, rows[r].p + at + j);
    for (; r + 2 <= num_rows; r += 2) DotTransposedKeys<2>(transposed, groups, rows[r].fixed, q_bytes, keys, rows[r].p + at + j);
    for (; r < num_rows; ++r) DotTransposedKeys<1>(transposed, groups, rows[r].fixed, q_bytes, keys, rows[r].p + at + j);
  }
  for (size_t r = 0; r < num_rows; ++r) {
    if (!rows[r].fits) DotChunk<1>(k, stride, rows[r].q, pitch, dim, n, 0, rows[r].p + at);
  }
}
#endif

// ---- The walk

// Behind the last key that may be prefetched: where the walk ends, or where this task is a part and the next one goes on with keys of the same rows,
// where those end.
HWY_INLINE int32_t WalkEnd(const AttentionTask& t, const DecodeRow* rows, size_t n, int32_t hi) {
  int32_t end = hi + 1;
  if (end < t.kv_end || t.kv_prefetch_end == t.kv_end) return end;
  AttentionTask with_next = t;
  with_next.kv_end = t.kv_prefetch_end;
  for (size_t r = 0; r < n; ++r) {
    int32_t first, last;
    RowRange(with_next, rows[r].query.row, &first, &last);
    if (first <= hi + 1) end = HWY_MAX(end, last + 1);
  }
  return end;
}

// The next block with a permitted key, from kb on. False: none.
HWY_INLINE bool NextBlock(const AttentionTask& t, size_t first_row, size_t n, int32_t lo, int32_t hi, int32_t walk_end, size_t half,
                          int32_t kb, DecodeBlock* block) {
  for (; kb <= hi; kb += kDecodeKeys) {
    const int32_t begin = HWY_MAX(kb, lo), end = HWY_MIN(kb + kDecodeKeys, hi + 1);
    const Permits permits = ScanLanes(t, t.lane_begin + static_cast<int64_t>(first_row), static_cast<int64_t>(n), begin, end);
    if (!permits.any) continue;
    *block = {kb, begin, end, walk_end, t.bias != nullptr || !permits.all, half};
    return true;
  }
  return false;
}

// All blocks for n neighbouring rows, of which first_row is the first. redo: one row, whose forbidden keys are skipped in P V. Q K^T of a block runs
// beside P V of the one before it, some keys at a time: memory reads two streams faster than one.
template <class P>
HWY_NOINLINE void DecodeRows(P policy, const AttentionTask& t, const KernelScratch& s, const ScoreRule& score, DecodeRow* rows, size_t n,
                             size_t first_row, MaxRule rule, bool redo) {
  constexpr size_t kChunk = kPolicyChunkKeys<P>;
  constexpr bool kTurns = hwy::IsSame<P, F32Products>();
  const size_t o_pitch = PadToVector(static_cast<size_t>(t.v_head_dim));
  int32_t lo = INT32_MAX, hi = -1;
  for (size_t r = 0; r < n; ++r) {
    StartRow(t, rows[r].query.head, &rows[r].m, &rows[r].l);
    memset(rows[r].o, 0, o_pitch * sizeof(float));
    memset(rows[r].block_o, 0, o_pitch * sizeof(float));
    if (rows[r].lo > rows[r].hi) continue;
    lo = HWY_MIN(lo, rows[r].lo);
    hi = HWY_MAX(hi, rows[r].hi);
  }
  if (lo > hi) return;
  HWY_ALIGN float k_scale[kDecodeKeys] = {}, v_scale[kDecodeKeys] = {};
  const BlockScales scales = {t.k_scale ? k_scale : nullptr, t.v_scale ? v_scale : nullptr};
  const int32_t walk_end = WalkEnd(t, rows, n, hi);
  DecodeBlock block = {}, next;
  int32_t kb = lo / kDecodeKeys * kDecodeKeys;
  for (bool more = true, pending = false; more || pending;) {
    more = more && NextBlock(t, first_row, n, lo, hi, walk_end, 1 - block.half, kb, &next);
    const size_t qk_keys = more ? static_cast<size_t>(next.end - next.begin) : 0;
    const size_t pv_keys = pending ? static_cast<size_t>(block.end - block.begin) : 0;
    const bool whole = kTurns && qk_keys % kDecodeKeys == 0 && pv_keys % kDecodeKeys == 0 && CanTakeTurns(t) && !redo;
    if constexpr (kTurns) {
      if (whole) TakeTurns(policy, t, s, rows, n, more ? &next : nullptr, pending ? &block : nullptr);
    }
    for (size_t j = 0; j < HWY_MAX(qk_keys, pv_keys) && !whole; j += kChunk) {
      if (j < qk_keys) {
        EachRun(t, next, j, HWY_MIN(kChunk, qk_keys - j), [&](size_t first, size_t run) HWY_ATTR {
          DotRun(policy, t, s, rows, n, next, first, run);
        });
      }
      if (j < pv_keys) PvPart(policy, t, rows, n, block, j, HWY_MIN(kChunk, pv_keys - j), rule, redo);
    }
    for (size_t r = 0; pending && r < n; ++r) AddBlock(policy, t, rows[r], o_pitch, redo);
    if (more && scales.k) LoadScales(t, KSide(t), next, k_scale);
    if (more && scales.v) LoadScales(t, VSide(t), next, v_scale);
    for (size_t r = 0; more && r < n; ++r) {
      float* bias = next.use_bias ? rows[r].bias + next.half * kDecodeKeys : nullptr;
      const QueryLane& query = rows[r].query;
      if (bias) {
        LoadBias(t, MaskRow(t, query.row, query.head), BiasRow(t, query.row, query.head), next.begin, next.end, bias + (next.begin - next.kb), 1);
      }
      DecodeSoftmax(policy, rows[r], score, next.kb, next.begin, next.end, rows[r].p + next.half * kDecodeKeys, scales, bias, o_pitch, rule);
    }
    pending = more;
    if (more) block = next, kb = next.kb + kDecodeKeys;
  }
}

// O / l to the row's place.
HWY_INLINE void WriteDecodeRow(const AttentionTask& t, const DecodeRow& row, size_t r, float weight) {
  const int32_t dtype = t.part_out ? int32_t{kF32} : t.out_dtype;
  void* const place = t.part_out ? t.part_out + static_cast<int64_t>(r) * t.v_head_dim
                                 : At(t.out, dtype, row.query.head * t.out_stride_head + row.query.row * t.out_stride_row);
  const float inv = row.l == 0.0f ? 0.0f : 1.0f / weight / row.l;
  const DF d;
  const size_t dim = static_cast<size_t>(t.v_head_dim);
  for (size_t c = 0; c < dim; c += hn::Lanes(d)) {
    hn::Store(hn::Add(hn::Mul(hn::Load(d, row.o + c), hn::Set(d, inv)), hn::Zero(d)), d, row.block_o + c);  // -0 becomes 0
  }
  ConvertRowFromF32(dtype, row.block_o, dim, place);
}

template <class P>
HWY_INLINE void Decode(P policy, const AttentionTask& t, const KernelScratch& s) {
  const size_t q_pitch = PadToVector(static_cast<size_t>(t.head_dim));
  const size_t o_pitch = PadToVector(static_cast<size_t>(t.v_head_dim)), n = static_cast<size_t>(t.lane_count);
  const ScoreRule score = MakeScoreRule(t, kLog2E);
  DecodeRow rows[kDecodeMaxRows];
  for (size_t r = 0; r < n; ++r) {
    DecodeRow& row = rows[r];
    row.query = LaneQuery(t, t.lane_begin + static_cast<int64_t>(r));
    row.q = s.qt + r * q_pitch;
    row.o = s.ot + r * o_pitch;
    row.block_o = s.ot + (n + r) * o_pitch;
    row.p = s.p + r * kBlockKeys;
    row.bias = s.bias + r * kBlockKeys;
    row.slope = t.slopes ? t.slopes[row.query.head] : 0.0f;
    row.pos = static_cast<int32_t>(Position(t, row.query.row));
    RowRange(t, row.query.row, &row.lo, &row.hi);
    LoadQ(policy, t, score, row, s.qt + (n + r) * q_pitch);
  }
  DecodeRows(policy, t, s, score, rows, n, 0, kLazyMax, false);
  for (size_t r = 0; r < n; ++r) {
    WriteRowStats(t, t.lane_begin + static_cast<int64_t>(r), rows[r].m, rows[r].l);
    WriteDecodeRow(t, rows[r], r, kLazyMax.weight);
  }
  // As in PrefillF32: first without the values that the row may not attend to, then with P small enough for any sum.
  for (size_t r = 0; r < n; ++r) {
    if (RowIsFinite(rows[r].o, o_pitch)) continue;
    MaxRule rule = kLazyMax;
    DecodeRows(policy, t, s, score, &rows[r], 1, r, rule, true);
    if (!RowIsFinite(rows[r].o, o_pitch)) {
      rule = kOverflowSafeMax;
      DecodeRows(policy, t, s, score, &rows[r], 1, r, rule, true);
    }
    WriteDecodeRow(t, rows[r], r, rule.weight);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
