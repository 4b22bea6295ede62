// Decode's turns over two blocks of keys, f32 products: Q K^T of one and P V of the other, kChunkKeys keys at a time (decode_memory-inl.h). Whole
// blocks take theirs together (TakeTurns), others one by one (DotKeyRange, PvKeyRange).

#if defined(FOVEA_LIB_KERNELS_DECODE_TURNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_DECODE_TURNS_INL_H_
#undef FOVEA_LIB_KERNELS_DECODE_TURNS_INL_H_
#else
#define FOVEA_LIB_KERNELS_DECODE_TURNS_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/decode_memory-inl.h"
#include "lib/kernels/decode_products-inl.h"
#include "lib/kernels/query_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Rows, blocks and runs of their keys

// Keys of a block, the group of the running maximum; two blocks are under way at a time, each in its half of scratch.
constexpr int32_t kDecodeKeys = 64;
static_assert(2 * kDecodeKeys <= kBlockKeys, "scratch holds kBlockKeys");

struct FixedPointRow;  // of int8_dot-inl.h, on targets that have it

// A row of the task in scratch.
struct DecodeRow {
  float *q, *o, *block_o, *p, *bias;  // block_o: O of this block's keys alone, added to o once, as in PvRows
  float m, l, slope;
  int32_t lo, hi, pos;
  FixedPointRow* fixed;  // of Int8Products: q once more, and whether it could be
  bool fits;
  QueryLane query;  // which row of q this is. Last: 1 row of q was 5% slower with it between the others (Zen 1)
};

// A block of the walk: keys [begin, end) of the kDecodeKeys from kb; half: 0 or 1, which half of a row's P and bias is its own.
struct DecodeBlock {
  int32_t kb, begin, end;
  int32_t walk_end;  // WalkEnd
  bool use_bias;
  size_t half;
};

// Where a key's P and bias lie in a row of scratch.
HWY_INLINE size_t ScratchIndex(const DecodeBlock& block, int32_t key) { return block.half * kDecodeKeys + static_cast<size_t>(key - block.kb); }

HWY_INLINE bool IsPermitted(const DecodeRow& row, const DecodeBlock& block, int32_t key) {
  return key >= row.lo && key <= row.hi && !(block.use_bias && row.bias[ScratchIndex(block, key)] == kMinusInf);
}

// The rows that come kPrefetchRows<T> after n rows from `key`, before `limit`: at the end of a page the hardware's prefetchers lose the stream.
template <class T>
HWY_INLINE void PrefetchPaged(const AttentionTask& t, const Side& side, T /*its type*/, int32_t key, size_t n, int32_t limit,
                              size_t dim) {
  const int32_t first = key + kPrefetchRows<T>, end = HWY_MIN(first + static_cast<int32_t>(n), limit);
  for (int32_t j = first; j < end; ++j) PrefetchRow(static_cast<const T*>(SideRow(t, side, j)), dim);
}

// Whether there are n rows `ahead` rows after those that are `left` keys before the end of the walk. Behind the last row memory may be unmapped: a
// prefetch does not fault on it, but takes long: 64 keys took six times as long as without.
HWY_INLINE bool HasRowsToCome(int64_t left, size_t n, size_t ahead) { return left >= static_cast<int64_t>(ahead + n); }

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
  if (PrefetchesRows(T(), num_rows, stride, dim)) return HasRowsToCome(left, n, kPrefetchRows<T>) ? 1 : 0;
  if (HasRowsToCome(left, n, kChunkKeys)) PrefetchTurn(k + kChunkKeys * dim);
  return 0;
}
template <class T>
HWY_INLINE void PvAhead(const T* v, int64_t stride, size_t dim, size_t num_rows, size_t n, int64_t left) {
  if (!PrefetchesRows(T(), num_rows, stride, dim) && !(kWidensOnce<T> && num_rows >= 4)) {
    if (HasRowsToCome(left, n, kChunkKeys)) PrefetchTurn(v + kChunkKeys * dim);
  } else if (HasRowsToCome(left, n, kPrefetchRows<T>)) {
    for (size_t j = 0; j < n; ++j) PrefetchRow(v + (static_cast<int64_t>(j) + kPrefetchRows<T>) * stride, dim);
  }
}

// Calls f with a value of the storage type.
template <class F>
HWY_INLINE void WithType(int32_t dtype, const F& f) {
  if (dtype == kBF16) return f(BF16());
  if (dtype == kF16) return f(F16());
  if (dtype == kI8) return f(I8());
  f(0.0f);
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
  char* gathered;           // where the rows of a turn are copied to, one after another (GathersTurns); else null
};
HWY_INLINE const char* RowOf(const Turns& turns, int64_t key) {
  if (turns.pages) return static_cast<const char*>(SideRow(*turns.pages, turns.side, static_cast<int32_t>(key)));
  return turns.base + key * turns.stride;
}

// Whether a turn's rows are copied, to lie one stride apart: with pages of 1 key the products take 1.4 to 1.6 times as long row by row, from 4 keys
// on the copy costs more (AVX2 on Zen 1; elsewhere by analogy).
HWY_INLINE bool GathersTurns(const AttentionTask& t) { return t.block_table && t.page_size <= kMaxGatheredPage; }
// Contiguous rows, gathered ones, and on 16 registers pages that no turn straddles. Others go the general way, with PrefetchPaged.
HWY_INLINE bool CanTakeTurns(const AttentionTask& t) {
  return !t.block_table || GathersTurns(t) || (kPrefetchesInLoops && t.page_size % static_cast<int32_t>(kChunkKeys) == 0);
}

// Whether each product prefetches for both, two streams at any time: one pass over one or two rows of q, K and V of one type and without gaps, and
// two lines or more for each step of P V.
HWY_INLINE bool ReadsTwoStreams(const AttentionTask& t, size_t num_rows) {
  const size_t columns = num_rows > 2 ? 0 : 8 / num_rows * hn::Lanes(DF());  // of a step: PvChunk
  return columns * static_cast<size_t>(StorageBytes(t.k_dtype)) >= 128 && static_cast<size_t>(t.head_dim) % columns == 0 &&
         t.k_dtype == t.v_dtype && t.head_dim == t.v_head_dim && t.k_stride_row == t.head_dim && t.v_stride_row == t.head_dim;
}

HWY_INLINE Turns MakeTurns(const AttentionTask& t, const KernelScratch& s, const Side& side, int32_t dim, const DecodeBlock& block) {
  const int64_t size = StorageBytes(side.dtype);
  const AttentionTask* const pages = t.block_table ? &t : nullptr;
  const char* const base = static_cast<const char*>(side.base);
  return {pages, side, base, side.stride_row * size, dim * size, block.begin, block.walk_end, nullptr, static_cast<size_t>(dim),
          GathersTurns(t) ? s.turn : nullptr};
}

// The first row of the turn from `key` on, and the distance between its rows, in elements. A copy lasts until the other side's turn; the rows to come
// are prefetched meanwhile.
template <class T>
HWY_INLINE const T* FindOrGatherRows(const Turns& turns, int64_t key, int64_t* stride) {
  *stride = turns.side.stride_row;
  if (!turns.gathered) return reinterpret_cast<const T*>(RowOf(turns, key));
  static_assert(kChunkKeys <= kMaxTurnKeys, "room for a turn");
  *stride = static_cast<int64_t>(turns.dim);
  const bool more = HasRowsToCome(turns.walk_end - key, kChunkKeys, kPrefetchRows<T>);
  char* to = turns.gathered;
  for (int64_t i = key; i < key + static_cast<int64_t>(kChunkKeys); ++i, to += turns.bytes) {
    if (more) PrefetchRow(reinterpret_cast<const T*>(RowOf(turns, i + kPrefetchRows<T>)), turns.dim);
    memcpy(to, RowOf(turns, i), static_cast<size_t>(turns.bytes));
  }
  return reinterpret_cast<const T*>(turns.gathered);
}

// What the turn from `key` on prefetches where kPrefetchesInLoops: the rows kPrefetchRows<T> after its own; if there are none such, or they are
// prefetched already (FindOrGatherRows), the first of its own, which is about to be read, again and again.
template <class T>
HWY_INLINE ToCome NextTurn(const T* own, const Turns& turns, int64_t key) {
  constexpr int64_t kAhead = kPrefetchRows<T>, kTurn = static_cast<int64_t>(kChunkKeys);
  const int64_t left = turns.walk_end - key;
  if (!kPrefetchesInLoops || turns.gathered || !HasRowsToCome(left, kTurn, kAhead)) return OwnRows(own, turns.dim);
  if (kBeginsPages<T> && turns.stride == turns.bytes && HasRowsToCome(left, kTurn, kAhead + kTurn)) {
    const char* const after = RowOf(turns, key + kAhead + kTurn);
    for (int64_t i = 2048; i < kTurn * turns.bytes; i += 4096) __builtin_prefetch(after + i, 0, 2);
  }
  const char* other = nullptr;
  if (turns.other) {
    const int64_t beside = turns.other->first + key - turns.first;
    if (HasRowsToCome(turns.other->walk_end - beside, kTurn, kAhead)) other = RowOf(*turns.other, beside + kAhead);
  }
  return {RowOf(turns, key + kAhead), turns.stride, turns.bytes, 0, other};
}

// The turn from the j-th key of the block on; at: where its scores or P lie.
template <class T>
HWY_NOINLINE void DotTurn(const Turns& k, DecodeRow* rows, size_t num_rows, size_t j, size_t at) {
  const int64_t key = k.first + static_cast<int64_t>(j);
  int64_t stride;
  const T* const values = FindOrGatherRows<T>(k, key, &stride);
  ToCome to_come = NextTurn(values, k, key);
  const int32_t ahead = kPrefetchesInLoops || k.gathered ? 0 : DotAhead(values, stride, k.dim, num_rows, kChunkKeys, k.walk_end - key);
  DotPasses(values, stride, k.dim, rows, num_rows, at, kChunkKeys, to_come, ahead);
}

template <class T>
HWY_NOINLINE void PvTurn(const Turns& v, DecodeRow* rows, size_t num_rows, size_t j, size_t at) {
  const int64_t key = v.first + static_cast<int64_t>(j);
  int64_t stride;
  const T* const values = FindOrGatherRows<T>(v, key, &stride);
  ToCome to_come = NextTurn(values, v, key);
  if (!kPrefetchesInLoops && !v.gathered) PvAhead(values, stride, v.dim, num_rows, kChunkKeys, v.walk_end - key);
  PvPasses(values, stride, v.dim, rows, num_rows, at, kChunkKeys, to_come, j == 0, j + kChunkKeys == kDecodeKeys);
}

// All turns over two whole blocks: Q K^T of one, P V of the other. Null: none. A template, so that units of other policies do not compile it.
template <class P>
HWY_NOINLINE void TakeTurns(P /*F32Products*/, const AttentionTask& t, const KernelScratch& s, DecodeRow* rows, size_t num_rows,
                            const DecodeBlock* qk, const DecodeBlock* pv) {
  Turns k = {}, v = {};
  if (qk) k = MakeTurns(t, s, KSide(t), t.head_dim, *qk);
  if (pv) v = MakeTurns(t, s, VSide(t), t.v_head_dim, *pv);
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

// ---- Turns over any block

// Scores of the block's keys [first, first + n), counted from begin and one stride apart, for all rows.
template <class T>
HWY_INLINE void DotKeyRange(const AttentionTask& t, T /*type of K*/, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                            size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim);
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = ScratchIndex(block, key);
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
  const size_t at = ScratchIndex(block, key);
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

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
