// Decode: attention of a few query rows (at most kDecodeMaxRows rows x heads of a group) over a range of keys of one kv head. Bound by reading K
// and V once: all rows take their dot products with a K row while it is in registers, V is walked row by row.
//
//   for each block of kDecodeKeys keys:
//     s[row][key] = dot(q[row], K[key])      vectors along head_dim, up to 4 rows of q for each K row, or 4 K rows for each row of q
//     p = 2^(s - m), vectors along keys; the block's maximum moves m lazily (by more than 2^8)
//     O[row] += p[row][key] V[key]           O of 1 or 2 rows (or 4: kWidensOnce) in registers, in key order
//
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
#include "lib/kernels/decode_memory-inl.h"
#include "lib/kernels/decode_products-inl.h"
#include "lib/kernels/int8_dot-inl.h"
#include "lib/kernels/query_tile-inl.h"
#include "lib/kernels/score-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The policy, what the products are made of: f32, whatever is stored. Others derive from it, overload those that differ of the functions whose first
// parameter it is (below and under "Policy"), and specialize kPolicyChunkKeys, kPolicyVectors and kScalesScores.
struct F32Products {};

// Keys of a block, the group of the running maximum; two blocks are under way at a time, each in its half of scratch.
constexpr int32_t kDecodeKeys = 64;
static_assert(2 * kDecodeKeys <= kBlockKeys, "scratch holds kBlockKeys");
template <class P>
constexpr size_t kPolicyChunkKeys = kChunkKeys;

struct FixedPointRow;  // of int8_dot-inl.h, on targets that have it

// A row of the task in scratch.
struct DecodeRow {
  float *q, *o, *block_o, *p, *bias;  // block_o: O of this block's keys alone, added to o once, as in PvRows
  float m, l, slope;
  int32_t lo, hi, pos;
  FixedPointRow* fixed;  // of Int8Products: q once more, and whether it could be
  bool fits;
};

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

// ---- Blocks and runs of their keys

// A block of the walk: keys [begin, end) of the kDecodeKeys from kb; half: 0 or 1, which half of a row's P and bias is its own.
struct DecodeBlock {
  int32_t kb, begin, end;
  int32_t walk_end;  // WalkEnd
  bool use_bias;
  size_t half;
};

// Where a key's P and bias lie in a row of scratch.
HWY_INLINE size_t PlaceOf(const DecodeBlock& block, int32_t key) { return block.half * kDecodeKeys + static_cast<size_t>(key - block.kb); }

HWY_INLINE bool IsPermitted(const DecodeRow& row, const DecodeBlock& block, int32_t key) {
  return key >= row.lo && key <= row.hi && !(block.use_bias && row.bias[PlaceOf(block, key)] == kMinusInf);
}

// The rows that come kPrefetchRows<T> after n rows from `key`, before `limit`: at the end of a page the hardware's prefetchers lose the stream.
template <class T>
HWY_INLINE void PrefetchPaged(const AttentionTask& t, const Side& side, T /*its type*/, int32_t key, size_t n, int32_t limit,
                              size_t dim) {
  const int32_t first = key + kPrefetchRows<T>, end = HWY_MIN(first + static_cast<int32_t>(n), limit);
  for (int32_t j = first; j < end; ++j) PrefetchRow(static_cast<const T*>(SideRow(t, side, j)), dim);
}

// Whether there are n rows `ahead` rows after those from `key`. Behind the last row memory may be unmapped: a prefetch does not fault on it, but
// takes long: 64 keys took six times as long as without.
HWY_INLINE bool HasRowsToCome(const DecodeBlock& block, int32_t key, size_t n, int32_t ahead) {
  return key + ahead + static_cast<int32_t>(n) <= block.walk_end;
}

// ---- The products of a turn

// Scores of n keys, one stride apart, for all rows: to row.p[at ..). to_come: used where kPrefetchesInLoops, else ahead: DotAhead.
template <class T>
HWY_INLINE void DotPasses(const T* k, int64_t stride, size_t dim, DecodeRow* rows, size_t num_rows, size_t at, size_t n, ToCome& to_come,
                          int32_t ahead) {
  const size_t pitch = PadToVector(dim);
  size_t r = 0;
  if constexpr (kPrefetchesInLoops) {
    constexpr size_t kMost = kRowsAtOnce<T>;
    const bool once = IsOnePass<T>(num_rows);
    for (size_t step; r < num_rows; r += step, to_come.pass = 1) {
      step = num_rows - r < 2 ? 1 : num_rows - r < kMost ? 2 : kMost;
      const auto chunk = step == 1   ? once ? &DotChunkAhead<1, 1, T> : &DotChunkAhead<1, 2, T>
                         : step == 2 ? once ? &DotChunkAhead<2, 1, T> : &DotChunkAhead<2, 2, T>
                         : once      ? &DotChunkAhead<kMost, 1, T>
                                     : &DotChunkAhead<kMost, 2, T>;
      chunk(k, stride, rows[r].q, pitch, dim, n, &to_come, rows[r].p + at);
    }
  } else {
    for (; r + 4 <= num_rows; r += 4) DotChunk<4>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
    for (; r + 2 <= num_rows; r += 2) DotChunk<2>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
    for (; r < num_rows; ++r) DotChunk<1>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
  }
}

// P V of n keys for all rows, P at row.p[at ..). O of a block's keys alone begins with its first turn and is added to o with its last.
template <class T>
HWY_INLINE void PvPasses(const T* v, int64_t stride, size_t dim, DecodeRow* rows, size_t num_rows, size_t at, size_t n, ToCome& to_come, bool first,
                         bool last) {
  const size_t pitch = PadToVector(dim);
  const auto from = [&](const DecodeRow& row) HWY_ATTR { return first ? nullptr : row.block_o; };
  const auto base = [&](const DecodeRow& row) HWY_ATTR { return last ? row.o : nullptr; };
  const auto to = [&](const DecodeRow& row) HWY_ATTR { return last ? row.o : row.block_o; };
  size_t r = 0;
  constexpr int kMore = kPrefetchesInLoops ? 2 : 1;
  const bool once = IsOnePass<T>(num_rows);
  if constexpr (kWidensOnce<T>) {
    const auto chunk = once ? &PvChunk4<1, T> : &PvChunk4<kMore, T>;
    for (; r + 4 <= num_rows; r += 4, to_come.pass = 1) {
      chunk(v, stride, rows[r].p + at, dim, n, &to_come, from(rows[r]), base(rows[r]), to(rows[r]), pitch);
    }
  }
  // Rows of V that two rows of O cannot walk to their ends: one walks them first.
  const bool one_first = kTileKeys == 8 && dim >= 16 * hn::Lanes(DF());
  for (size_t step; r < num_rows; r += step, to_come.pass = 1) {
    step = num_rows - r < 2 || (r == 0 && one_first) ? 1 : 2;
    const auto chunk = step == 2 ? once ? &PvChunk<2, 1, T> : &PvChunk<2, kMore, T> : once ? &PvChunk<1, 1, T> : &PvChunk<1, kMore, T>;
    chunk(v, stride, rows[r].p + at, 0, dim, n, &to_come, from(rows[r]), base(rows[r]), to(rows[r]), pitch);
  }
}

// On 32 registers, before the products of n rows without pages, `left` keys before the end of the walk: prefetches what the hardware's prefetchers
// do not reach. DotAhead gives 1 where Q K^T is to prefetch rows as it goes, else 0.
template <class T>
HWY_INLINE int32_t DotAhead(const T* k, int64_t stride, size_t dim, size_t num_rows, size_t n, int64_t left) {
  const int64_t keys = static_cast<int64_t>(n);
  if (PrefetchesRows(T(), num_rows, stride, dim)) return left >= keys + kPrefetchRows<T> ? 1 : 0;
  if (left >= keys + static_cast<int64_t>(kChunkKeys)) PrefetchTurn(k + kChunkKeys * dim);
  return 0;
}
template <class T>
HWY_INLINE void PvAhead(const T* v, int64_t stride, size_t dim, size_t num_rows, size_t n, int64_t left) {
  const int64_t keys = static_cast<int64_t>(n);
  if (!PrefetchesRows(T(), num_rows, stride, dim) && !(kWidensOnce<T> && num_rows >= 4)) {
    if (left >= keys + static_cast<int64_t>(kChunkKeys)) PrefetchTurn(v + kChunkKeys * dim);
  } else if (left >= keys + kPrefetchRows<T>) {
    for (int64_t j = 0; j < keys; ++j) PrefetchRow(v + (j + kPrefetchRows<T>) * stride, dim);
  }
}

// ---- Turns over whole blocks. What a turn works out besides its products costs as much as a tenth of their FMAs, and memory idles meanwhile.

// One side in the turns over a block.
struct Turns {
  const AttentionTask* pages;  // where to look rows up by block_table; null: they lie one stride apart from base, key 0's, on
  Side side;
  const char* base;
  int64_t stride, bytes;    // of a row
  int64_t first, walk_end;  // the block's first key; DecodeBlock's walk_end
  const Turns* other;       // where two streams are read: the other side, else null
  size_t dim;
};
HWY_INLINE const char* RowOf(const Turns& turns, int64_t key) {
  if (turns.pages) return static_cast<const char*>(SideRow(*turns.pages, turns.side, static_cast<int32_t>(key)));
  return turns.base + key * turns.stride;
}

// Whether a turn's rows lie one stride apart, and where they lie in pages, that no page ends within it. On 32 registers pages are prefetched by
// PrefetchPaged, turn by turn.
HWY_INLINE bool CanTakeTurns(const AttentionTask& t) {
  return !t.block_table || (kPrefetchesInLoops && t.page_size % static_cast<int32_t>(kChunkKeys) == 0);
}

// Whether each product prefetches for both, two streams at any time: one pass over one or two rows of q, K and V of one type and without gaps, and
// two lines or more for each step of P V.
HWY_INLINE bool ReadsTwoStreams(const AttentionTask& t, size_t num_rows) {
  const size_t columns = num_rows > 2 ? 0 : 8 / num_rows * hn::Lanes(DF());  // of a step: PvChunk
  return columns * static_cast<size_t>(StorageBytes(t.k_dtype)) >= 128 && static_cast<size_t>(t.head_dim) % columns == 0 &&
         t.k_dtype == t.v_dtype && t.head_dim == t.v_head_dim && t.k_stride_row == t.head_dim && t.v_stride_row == t.head_dim;
}

HWY_INLINE Turns MakeTurns(const AttentionTask& t, const Side& side, int32_t dim, const DecodeBlock& block) {
  const int64_t size = StorageBytes(side.dtype);
  return {t.block_table ? &t : nullptr, side,           static_cast<const char*>(side.base), side.stride_row * size, dim * size, block.begin,
          block.walk_end,               nullptr,        static_cast<size_t>(dim)};
}

// What the turn from `key` on prefetches where kPrefetchesInLoops: the rows kPrefetchRows<T> after its own; if there are none such, the first of its own, which is about to be
// read, again and again.
template <class T>
HWY_INLINE ToCome NextTurn(T /*its type*/, const Turns& turns, int64_t key, const char* rows) {
  constexpr int64_t kAhead = kPrefetchRows<T>, kTurn = static_cast<int64_t>(kChunkKeys);
  if (!kPrefetchesInLoops || key + kAhead + kTurn > turns.walk_end) return {rows, 0, turns.bytes, 0, nullptr};
  if (kBeginsPages<T> && turns.stride == turns.bytes && key + kAhead + 2 * kTurn <= turns.walk_end) {
    const char* const after = RowOf(turns, key + kAhead + kTurn);
    for (int64_t i = 2048; i < kTurn * turns.bytes; i += 4096) __builtin_prefetch(after + i, 0, 2);
  }
  const char* other = nullptr;
  if (turns.other) {
    const int64_t beside = turns.other->first + key - turns.first + kAhead;
    if (beside + kTurn <= turns.other->walk_end) other = RowOf(*turns.other, beside);
  }
  return {RowOf(turns, key + kAhead), turns.stride, turns.bytes, 0, other};
}

// The turn from the j-th key of the block on; at: where its scores or P lie.
template <class T>
HWY_NOINLINE void DotTurn(const Turns& k, DecodeRow* rows, size_t num_rows, size_t j, size_t at) {
  const int64_t key = k.first + static_cast<int64_t>(j);
  const char* const from = RowOf(k, key);
  const T* const values = reinterpret_cast<const T*>(from);
  const int64_t stride = k.side.stride_row;
  ToCome to_come = NextTurn(T(), k, key, from);
  const int32_t ahead = kPrefetchesInLoops ? 0 : DotAhead(values, stride, k.dim, num_rows, kChunkKeys, k.walk_end - key);
  DotPasses(values, stride, k.dim, rows, num_rows, at, kChunkKeys, to_come, ahead);
}

template <class T>
HWY_NOINLINE void PvTurn(const Turns& v, DecodeRow* rows, size_t num_rows, size_t j, size_t at) {
  const int64_t key = v.first + static_cast<int64_t>(j);
  const char* const from = RowOf(v, key);
  const T* const values = reinterpret_cast<const T*>(from);
  ToCome to_come = NextTurn(T(), v, key, from);
  if (!kPrefetchesInLoops) PvAhead(values, v.side.stride_row, v.dim, num_rows, kChunkKeys, v.walk_end - key);
  PvPasses(values, v.side.stride_row, v.dim, rows, num_rows, at, kChunkKeys, to_come, j == 0, j + kChunkKeys == kDecodeKeys);
}

// ---- Turns over any block

// Scores of the block's keys [first, first + n), counted from begin and one stride apart, for all rows.
template <class T>
HWY_INLINE void DotKeyRange(const AttentionTask& t, T /*type of K*/, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                            size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim);
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = PlaceOf(block, key);
  const int64_t stride = t.k_stride_row;
  const T* k = static_cast<const T*>(KRow(t, key));
  if (t.block_table) PrefetchPaged(t, KSide(t), T(), key, n, block.walk_end, dim);
  ToCome to_come = OwnRows(k, dim);
  const bool reads_ahead = !kPrefetchesInLoops && !t.block_table;
  const int32_t ahead = reads_ahead ? DotAhead(k, stride, dim, num_rows, n, block.walk_end - key) : 0;
  DotPasses(k, stride, dim, rows, num_rows, at, n, to_come, ahead);
}

// P V of the same, as PvPart.
template <class T>
HWY_INLINE void PvKeyRange(const AttentionTask& t, T /*type of V*/, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                           size_t n, MaxRule rule, bool redo) {
  const size_t dim = static_cast<size_t>(t.v_head_dim);
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = PlaceOf(block, key);
  const int64_t stride = t.v_stride_row;
  const T* v = static_cast<const T*>(VRow(t, key));
  if (redo) {
    for (size_t j = 0; j < n; ++j, v += stride) {
      if (IsPermitted(rows[0], block, key + static_cast<int32_t>(j))) Pv1(v, rows[0].p[at + j] * rule.weight, dim, rows[0].block_o);
    }
    return;
  }
  if (t.block_table) PrefetchPaged(t, VSide(t), T(), key, n, block.walk_end, dim);
  if (!kPrefetchesInLoops && !t.block_table) PvAhead(v, stride, dim, num_rows, n, block.walk_end - key);
  ToCome to_come = OwnRows(v, dim);
  const bool last = first + n == static_cast<size_t>(block.end - block.begin);
  PvPasses(v, stride, dim, rows, num_rows, at, n, to_come, first == 0, last);
}

// Calls f(first, n) for those of the block's keys [first, first + n), counted from begin, that lie one stride apart: all, or a page's.
template <class F>
HWY_INLINE void EachRun(const AttentionTask& t, const DecodeBlock& block, size_t first, size_t n, const F& f) {
  for (size_t run; n > 0; first += run, n -= run) {
    run = static_cast<size_t>(KeysInStride(t, block.begin + static_cast<int32_t>(first), static_cast<int32_t>(n)));
    f(first, run);
  }
}

// The scales of the block's rows of a side that has any, where DecodeSoftmax looks for them.
HWY_INLINE void LoadScales(const AttentionTask& t, const Side& side, const DecodeBlock& block, float* to) {
  EachRun(t, block, 0, static_cast<size_t>(block.end - block.begin), [&](size_t first, size_t n) HWY_ATTR {
    const int32_t key = block.begin + static_cast<int32_t>(first);
    const float* scale = SideScale(t, side, key);
    for (size_t j = 0; j < n; ++j) to[static_cast<size_t>(key - block.kb) + j] = scale[static_cast<int64_t>(j) * side.scale_stride_row];
  });
}

// Calls f with a value of the storage type.
template <class F>
HWY_INLINE void WithType(int32_t dtype, const F& f) {
  if (dtype == kBF16) return f(BF16());
  if (dtype == kF16) return f(F16());
  if (dtype == kI8) return f(I8());
  f(0.0f);
}

// ---- Policy

// Row i of head h, as the products want it, to row.q; room: as much again.
HWY_INLINE void LoadQ(F32Products /*policy*/, const AttentionTask& t, const ScoreRule& score, int64_t i, int64_t h, DecodeRow& row, float* /*room*/) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim);
  ConvertRowToF32(t.q_dtype, At(t.q, t.q_dtype, h * t.q_stride_head + i * t.q_stride_row), dim, row.q);
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

HWY_INLINE void LoadQ(Int8Products /*policy*/, const AttentionTask& t, const ScoreRule& score, int64_t i, int64_t h, DecodeRow& row, float* room) {
  const size_t pitch = PadToVector(static_cast<size_t>(t.head_dim));
  LoadQ(F32Products(), t, score, i, h, row, room);
  row.fixed = reinterpret_cast<FixedPointRow*>(room);
  row.fits = ToFixedPoint(row.q, pitch, row.fixed) && pitch <= kMaxInt8DotDim;
}

HWY_INLINE void DotRun(Int8Products /*policy*/, const AttentionTask& t, const KernelScratch& s, DecodeRow* rows, size_t num_rows,
                       const DecodeBlock& block, size_t first, size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim), q_bytes = pitch * sizeof(float), groups = (dim + 3) / 4;
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = PlaceOf(block, key);
  const int64_t stride = t.k_stride_row;
  const I8* const k = static_cast<const I8*>(KRow(t, key));
  if (t.block_table) {
    PrefetchPaged(t, KSide(t), I8(), key, n, block.walk_end, dim);
  } else if (HasRowsToCome(block, key, n, kPrefetchRows<I8>)) {
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

// All turns over two whole blocks: Q K^T of one, P V of the other. Null: none.
template <class P>
HWY_NOINLINE void TakeTurns(P /*F32Products*/, const AttentionTask& t, DecodeRow* rows, size_t num_rows, const DecodeBlock* qk, const DecodeBlock* pv) {
  Turns k = {}, v = {};
  if (qk) k = MakeTurns(t, KSide(t), t.head_dim, *qk);
  if (pv) v = MakeTurns(t, VSide(t), t.v_head_dim, *pv);
  if (qk && pv && ReadsTwoStreams(t, num_rows)) k.other = &v, v.other = &k;
  auto dot = &DotTurn<float>;
  auto weigh = &PvTurn<float>;
  WithType(t.k_dtype, [&](auto type) HWY_ATTR { dot = &DotTurn<decltype(type)>; });
  WithType(t.v_dtype, [&](auto type) HWY_ATTR { weigh = &PvTurn<decltype(type)>; });
  for (size_t j = 0; j < kDecodeKeys; j += kChunkKeys) {
    if (qk) dot(k, rows, num_rows, j, qk->half * kDecodeKeys + j);
    if (pv) weigh(v, rows, num_rows, j, pv->half * kDecodeKeys + j);
  }
}

// ---- The walk

// Behind the last key whose rows may be prefetched: where the walk ends, or where this task is a part and the next one goes on behind it, where the
// rows' permitted keys end.
HWY_INLINE int32_t WalkEnd(const AttentionTask& t, const DecodeRow* rows, size_t n, int32_t hi) {
  int64_t end = int64_t{hi} + 1;
  if (end < t.kv_end || t.mask || t.bias) return hi + 1;
  for (size_t r = 0; r < n; ++r) {
    const int64_t last = t.causal ? rows[r].pos : t.window_right >= 0 ? rows[r].pos + t.window_right : t.kv_prefetch_end;
    end = HWY_MAX(end, HWY_MIN(last + 1, int64_t{t.kv_prefetch_end}));
  }
  return static_cast<int32_t>(end);
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
    StartRow(t, (t.lane_begin + static_cast<int64_t>(first_row + r)) % t.group, &rows[r].m, &rows[r].l);
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
      if (whole) TakeTurns(policy, t, rows, n, more ? &next : nullptr, pending ? &block : nullptr);
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
      const int64_t lane = t.lane_begin + static_cast<int64_t>(first_row + r), i = lane / t.group, h = lane % t.group;
      if (bias) LoadBias(t, MaskRow(t, i, h), BiasRow(t, i, h), next.begin, next.end, bias + (next.begin - next.kb), 1);
      DecodeSoftmax(policy, rows[r], score, next.kb, next.begin, next.end, rows[r].p + next.half * kDecodeKeys, scales, bias, o_pitch, rule);
    }
    pending = more;
    if (more) block = next, kb = next.kb + kDecodeKeys;
  }
}

// O / l to the row's place.
HWY_INLINE void WriteDecodeRow(const AttentionTask& t, const DecodeRow& row, size_t r, float weight) {
  const int64_t lane = t.lane_begin + static_cast<int64_t>(r);
  const int32_t dtype = t.part_out ? int32_t{kF32} : t.out_dtype;
  void* const place = t.part_out ? t.part_out + static_cast<int64_t>(r) * t.v_head_dim
                                 : At(t.out, dtype, (lane % t.group) * t.out_stride_head + (lane / t.group) * t.out_stride_row);
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
    const int64_t lane = t.lane_begin + static_cast<int64_t>(r), i = lane / t.group, h = lane % t.group;
    DecodeRow& row = rows[r];
    row.q = s.qt + r * q_pitch;
    row.o = s.ot + r * o_pitch;
    row.block_o = s.ot + (n + r) * o_pitch;
    row.p = s.p + r * kBlockKeys;
    row.bias = s.bias + r * kBlockKeys;
    row.slope = t.slopes ? t.slopes[h] : 0.0f;
    row.pos = static_cast<int32_t>(Position(t, i));
    RowRange(t, i, &row.lo, &row.hi);
    LoadQ(policy, t, score, i, h, row, s.qt + (n + r) * q_pitch);
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
