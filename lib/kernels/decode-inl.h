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

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/dot-inl.h"
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
// Keys whose K rows, and then as many V rows, are read in one go: 4 or 8 KB of each at head_dim 128 in f32. All rows of q share them while they
// are in L1.
constexpr size_t kChunkKeys = kTileKeys == 4 ? 16 : 8;
template <class P>
constexpr size_t kPolicyChunkKeys = kChunkKeys;

HWY_INLINE size_t PadToVector(size_t n) {
  const size_t N = hn::Lanes(DF());
  return (n + N - 1) / N * N;
}

// How the walk over K and V meets the memory system; all of it measured (bench_decode), none of it visible in the results' bits.
// - On 32 registers each row is walked to its end before the next, and by an unrolled body: the prefetchers go by the instruction that loads, and
//   see one stride then. Four rows side by side, column by column, were read at half the speed; on 16 registers they are prefetched.
// - K of the next block and V of this one are read in turns of kChunkKeys rows: two streams are faster than one.
// - Rows are addressed by a stride: pointers out of memory had to wait for older stores, and cost a third of the speed.
// - Many rows of q fill the scheduler with waiting FMAs: the rows to come are prefetched into L2 then.
// - On 16 registers they always are, by prefetches spread over the FMAs of a turn, that go through memory line by line (ToCome). In bursts, or only
//   while the first rows of q walk, they fill the queues of memory, and reading and multiplying take turns: 4 rows of q lost a quarter.
// - The hardware's prefetchers stop at the end of a page, which is what a turn reads at head_dim 128 in f32: the next page of the same stream is
//   begun for them, one turn ahead.
// - No bool and no struct by value is passed through the stack: compilers store its bytes one by one and load them as words, which waits.
// Rows of q from which on the scheduler is full, on 32 registers.
constexpr size_t kPrefetchFrom = 5;
// An int8 row is two cache lines at head_dim 128, and where its rows are prefetched they go by 16 at a time.
template <class T>
constexpr int32_t kPrefetchRows = (sizeof(T) == 1 ? 2 : 1) * (kTileKeys == 4 ? static_cast<int32_t>(kChunkKeys) : 12);

// On 16 registers the products prefetch the rows to come between their FMAs.
constexpr bool kPrefetchesInLoops = kTileKeys == 4;

// What a pass over a chunk of rows prefetches: kChunkKeys rows of `bytes` bytes, `stride` bytes apart. Rows without gaps are walked line by line,
// others in the order of the products. pass: 0 for the first rows of q, 1 for others; where there are others, each takes half of the lines (the third
// and later passes the second's once more).
struct ToCome {
  const char* rows;
  int64_t stride, bytes;
  int64_t pass;
};

// A loop's prefetches: at every kEvery-th step kLines lines, `line` bytes apart; `step` bytes on at the next one.
struct LineWalk {
  const char* at;
  int64_t line, step;
};
template <int kLines, int kEvery>
HWY_INLINE void PrefetchLines(LineWalk& walk, size_t n) {
  static_assert(kLines == 1 || kLines == 2 || kLines == 4, "");
  if (kEvery > 1 && n % kEvery > 0) return;
  __builtin_prefetch(walk.at, 0, 2);
  if constexpr (kLines > 1) __builtin_prefetch(walk.at + walk.line, 0, 2);
  if constexpr (kLines > 2) __builtin_prefetch(walk.at + 2 * walk.line, 0, 2), __builtin_prefetch(walk.at + 3 * walk.line, 0, 2);
  walk.at += walk.step;
}

// Narrow types are converted once for 4 rows of q. On 32 registers a row of V is walked in parts then, which costs the 16-bit types more than that.
template <class T>
constexpr bool kWidensOnce = kTileKeys == 8 ? sizeof(T) == 1 : sizeof(T) < 4;

// On 32 registers. Rows with gaps between them are no stream to the hardware's prefetchers. Bytes come faster than they are converted.
template <class T>
HWY_INLINE bool PrefetchesRows(T /*its type*/, size_t num_rows, int64_t stride, size_t dim) {
  return (num_rows >= kPrefetchFrom && sizeof(T) > 1) || stride != static_cast<int64_t>(dim);
}

// A row into L2.
template <class T>
HWY_INLINE void PrefetchRow(const T* row, size_t dim) {
  constexpr size_t kLine = 64 / sizeof(T);
  size_t c = 0;
  for (; c + 8 * kLine <= dim; c += 8 * kLine) {
    const T* at = row + c;
    __builtin_prefetch(at, 0, 2), __builtin_prefetch(at + kLine, 0, 2), __builtin_prefetch(at + 2 * kLine, 0, 2);
    __builtin_prefetch(at + 3 * kLine, 0, 2), __builtin_prefetch(at + 4 * kLine, 0, 2), __builtin_prefetch(at + 5 * kLine, 0, 2);
    __builtin_prefetch(at + 6 * kLine, 0, 2), __builtin_prefetch(at + 7 * kLine, 0, 2);
  }
  for (; c < dim; c += kLine) __builtin_prefetch(row + c, 0, 2);
}

// The beginning of what a stream reads in its next turn.
template <class T>
HWY_INLINE void PrefetchTurn(const T* rows) {
  if (sizeof(T) == 1) return;
  PrefetchRow(reinterpret_cast<const char*>(rows), 8 * 64);
}

// LoadF32, but a cache line in two loads.
template <class T>
HWY_INLINE hn::Vec<DF> LoadRow(DF d, const T* p) {
  return LoadF32(d, p);
}
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
// Zen 4's prefetchers follow two loads of 32 bytes, and fall behind where each line is loaded by one instruction: bf16 came from memory at 26 and at
// 18 GB/s.
template <class D>
HWY_INLINE hn::Vec<D> LoadLine(D d, const hn::TFromD<D>* p) {
  const hn::Half<D> half;
  return hn::Combine(d, hn::LoadU(half, p + hn::Lanes(half)), hn::LoadU(half, p));
}
HWY_INLINE hn::Vec<DF> LoadRow(DF d, const float* p) { return LoadLine(d, p); }
#endif

// NQ accumulators += one K row times NQ rows of q (padded with zeros to whole vectors, pitch apart).
template <int NQ, class T, class V>
HWY_INLINE void DotRow(const T* k, const float* HWY_RESTRICT q, size_t pitch, size_t dim, V& s0, V& s1, V& s2, V& s3) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const auto step = [&](V x, size_t i) HWY_ATTR {
    asm volatile("" ::: "memory");  // as in PvColumns
    s0 = hn::MulAdd(x, hn::Load(d, q + i), s0);
    if constexpr (NQ > 1) s1 = hn::MulAdd(x, hn::Load(d, q + pitch + i), s1);
    if constexpr (NQ > 2) s2 = hn::MulAdd(x, hn::Load(d, q + 2 * pitch + i), s2);
    if constexpr (NQ > 3) s3 = hn::MulAdd(x, hn::Load(d, q + 3 * pitch + i), s3);
  };
  size_t i = 0;
  for (; i + 8 * N <= dim; i += 8 * N) {
    step(LoadRow(d, k + i), i), step(LoadRow(d, k + i + N), i + N);
    step(LoadRow(d, k + i + 2 * N), i + 2 * N), step(LoadRow(d, k + i + 3 * N), i + 3 * N);
    step(LoadRow(d, k + i + 4 * N), i + 4 * N), step(LoadRow(d, k + i + 5 * N), i + 5 * N);
    step(LoadRow(d, k + i + 6 * N), i + 6 * N), step(LoadRow(d, k + i + 7 * N), i + 7 * N);
  }
  for (; i + N <= dim; i += N) step(LoadRow(d, k + i), i);
  if (i < dim) step(LoadF32N(d, k + i, dim - i), i);
}

// s[row * kBlockKeys] of one key for NQ rows of q.
template <int NQ, class T>
HWY_INLINE void DotKey(const T* k, const float* HWY_RESTRICT q, size_t pitch, size_t dim, float* s) {
  HWY_ALIGN float sums[4];
  hn::Vec<DF> a = hn::Zero(DF()), b = a, c = a, e = a;
  DotRow<NQ>(k, q, pitch, dim, a, b, c, e);
  SumOfLanes4(a, b, c, e, sums);
  for (size_t r = 0; r < NQ; ++r) s[r * kBlockKeys] = sums[r];
}

// DotRow for several K rows side by side, as many as make 4 to 8 sums: fewer loads per FMA than one K row at a time, and enough sums for the
// latency of FMAs. The sums of 4 K rows with 1 or 2 rows of q are a0 .. a3 and b0 .. b3; those of 2 with 4 are a0 a1, a2 a3, b0 b1, b2 b3.
template <int NQ>
constexpr int kKeysAtOnce = NQ == 4 ? 2 : 4;
template <int NQ, int kLines, class T, class V>
HWY_INLINE void DotRows(const T* k, int64_t stride, const float* HWY_RESTRICT q, size_t pitch, size_t dim, LineWalk walk, V& a0, V& a1, V& a2, V& a3,
                        V& b0, V& b1, V& b2, V& b3) {
  const DF d;
  const size_t N = hn::Lanes(d);
  constexpr size_t kLine = 64 / sizeof(T);
  const T *const k1 = k + stride, *const k2 = NQ < 4 ? k1 + stride : k, *const k3 = NQ < 4 ? k2 + stride : k;
  const auto step = [&](size_t i, const auto& load) HWY_ATTR {
    const V x0 = load(k + i), x1 = load(k1 + i);
    V x2 = x0, x3 = x0;
    if constexpr (NQ < 4) x2 = load(k2 + i), x3 = load(k3 + i);
    asm volatile("" ::: "memory");  // as in PvColumns
    const V qa = hn::Load(d, q + i);
    a0 = hn::MulAdd(x0, qa, a0), a1 = hn::MulAdd(x1, qa, a1);
    if constexpr (NQ < 4) a2 = hn::MulAdd(x2, qa, a2), a3 = hn::MulAdd(x3, qa, a3);
    if constexpr (NQ == 1) return;
    const V qb = hn::Load(d, q + pitch + i);
    if constexpr (NQ == 2) b0 = hn::MulAdd(x0, qb, b0), b1 = hn::MulAdd(x1, qb, b1), b2 = hn::MulAdd(x2, qb, b2), b3 = hn::MulAdd(x3, qb, b3);
    if constexpr (NQ == 4) {
      a2 = hn::MulAdd(x0, qb, a2), a3 = hn::MulAdd(x1, qb, a3);
      const V qc = hn::Load(d, q + 2 * pitch + i);
      b0 = hn::MulAdd(x0, qc, b0), b1 = hn::MulAdd(x1, qc, b1);
      const V qe = hn::Load(d, q + 3 * pitch + i);
      b2 = hn::MulAdd(x0, qe, b2), b3 = hn::MulAdd(x1, qe, b3);
    }
  };
  const auto whole = [&](const T* at) HWY_ATTR { return LoadRow(d, at); };
  size_t i = 0;
  if (dim % kLine > 0) PrefetchLines<kLines, 1>(walk, 0);  // as many as the rows have lines; at the end g++ made the loop slower
  for (; i + kLine <= dim; i += kLine) {
    PrefetchLines<kLines, 1>(walk, 0);
    for (size_t n = i; n < i + kLine; n += N) step(n, whole);
  }
  for (; i + N <= dim; i += N) step(i, whole);
  if (i < dim) step(i, [&](const T* at) HWY_ATTR { return LoadF32N(d, at, dim - i); });
}

// DotChunk, where the products prefetch.
template <int NQ, int kPasses, class T>
HWY_NOINLINE void DotChunkAhead(const T* k, int64_t stride, const float* HWY_RESTRICT q, size_t pitch, size_t dim, size_t keys, const ToCome* to_come,
                                float* s) {
  const DF d;
  using V = hn::Vec<DF>;
  constexpr int kKeys = kKeysAtOnce<NQ>, kLines = kKeys / kPasses;
  const bool gaps = to_come->stride != to_come->bytes;
  // With gaps a pass takes every kPasses-th row.
  LineWalk walk = {to_come->rows, gaps ? kPasses * to_come->stride : 64, gaps ? 64 : 64 * kLines};
  const int64_t next = gaps ? kKeys * to_come->stride : kLines * to_come->bytes;
  walk.at += to_come->pass * (gaps ? to_come->stride : static_cast<int64_t>(keys) * to_come->bytes / kPasses);
  HWY_ALIGN float sums[8];
  size_t j = 0;
  for (; j + kKeys <= keys; j += kKeys, k += kKeys * stride, walk.at += next) {
    V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    DotRows<NQ, kLines>(k, stride, q, pitch, dim, walk, a0, a1, a2, a3, b0, b1, b2, b3);
    if constexpr (NQ < 4) {
      SumOfLanes4(a0, a1, a2, a3, s + j);
      if constexpr (NQ > 1) SumOfLanes4(b0, b1, b2, b3, s + kBlockKeys + j);
    } else {
      SumOfLanes4(a0, a1, a2, a3, sums);
      SumOfLanes4(b0, b1, b2, b3, sums + 4);
      for (size_t r = 0; r < 4; ++r) memcpy(s + r * kBlockKeys + j, sums + 2 * r, 2 * sizeof(float));
    }
  }
  for (; j < keys; ++j, k += stride) DotKey<NQ>(k, q, pitch, dim, s + j);
}

// s[row * kBlockKeys + key] for NQ rows of q and neighbouring keys. One accumulator per dot product, so that its bits do not depend on how many are
// computed together.
template <int NQ, class T>
HWY_NOINLINE void DotChunk(const T* k, int64_t stride, const float* HWY_RESTRICT q, size_t pitch, size_t dim, size_t keys, int32_t ahead,
                           float* s) {
  const DF d;
  using V = hn::Vec<DF>;
  size_t j = 0;
  // One row of q: four keys' sums at once. Their ends would take as long as their products.
  for (; NQ == 1 && j + 4 <= keys; j += 4, k += 4 * stride) {
    V a = hn::Zero(d), b = a, c = a, e = a, none = a;
    const auto row = [&](const T* at, V& sum) HWY_ATTR {
      if (ahead) PrefetchRow(at + kPrefetchRows<T> * stride, dim);
      DotRow<1>(at, q, pitch, dim, sum, none, none, none);
    };
    row(k, a), row(k + stride, b), row(k + 2 * stride, c), row(k + 3 * stride, e);
    SumOfLanes4(a, b, c, e, s + j);
  }
  for (; j < keys; ++j, k += stride) {
    if (ahead) PrefetchRow(k + kPrefetchRows<T> * stride, dim);
    DotKey<NQ>(k, q, pitch, dim, s + j);
  }
}

// Prefetches of a loop over a chunk's keys and kBytes bytes of each row from `offset` on. kPasses: among how many passes over the rows of q they are
// shared out.
template <size_t kBytes, int kPasses>
struct ColumnsAhead {
  static constexpr int kParts = kBytes < 64 ? 64 / kBytes : 1;  // of a line
  static constexpr int kLines = kBytes > 64 ? kBytes / 64 : 1, kEvery = kParts * kPasses;

  static HWY_INLINE LineWalk Start(const ToCome* to_come, size_t offset, size_t keys) {
    if (!kPrefetchesInLoops) return {};
    const int64_t part = static_cast<int64_t>(offset / kBytes);  // as if all columns before had been passed by loops of this width
    if (to_come->stride == to_come->bytes) {
      const int64_t before = to_come->pass * static_cast<int64_t>(keys) * to_come->bytes / kPasses;
      return {to_come->rows + before + part * static_cast<int64_t>(keys) / kEvery * (64 * kLines), 64, 64 * kLines};
    }
    // Passes, and parts of a line, take turns with the rows.
    const int64_t turn = (to_come->pass + kPasses * (part % kParts)) % static_cast<int64_t>(kChunkKeys);
    return {to_come->rows + static_cast<int64_t>(offset) + turn * to_come->stride, 64, kEvery * to_come->stride};
  }
  static HWY_INLINE void Prefetch(LineWalk& walk, size_t j) {
    if constexpr (kPrefetchesInLoops) PrefetchLines<kLines, kEvery>(walk, j);
  }
};

// to[row][c .. c + W vectors) = from + p V + base for R rows, in key order: R * W accumulators, a for the first row and b for the second; where
// one row has 16, b for its vectors from 8 on. p: [row][kBlockKeys]; the others: [row][pitch], from and base null for 0. to_come: used where
// kPrefetchesInLoops; kPasses: as ColumnsAhead.
template <int R, int W, int kPasses, class T>
HWY_INLINE void PvColumns(const T* v, int64_t stride, const float* HWY_RESTRICT p, size_t c, size_t keys, const ToCome* to_come,
                          const float* from, const float* base, float* to, size_t pitch) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  using Columns = ColumnsAhead<W * hn::MaxLanes(DF()) * sizeof(T), kPasses>;
  LineWalk walk = Columns::Start(to_come, c * sizeof(T), keys);
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
  V b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0;
  constexpr bool kUsesB = R > 1 || W > 8;
  const auto at = [&](size_t row, size_t i) HWY_ATTR { return (row < R ? row : 0) * pitch + c + (i < W ? i : 0) * N; };
  if (from) {
    const auto load = [&](V& a, V& b, size_t i) HWY_ATTR {
      a = hn::Load(d, from + at(0, i));
      if constexpr (kUsesB) b = hn::Load(d, from + at(R > 1 ? 1 : 0, R > 1 ? i : i + 8));
    };
    load(a0, b0, 0), load(a1, b1, 1), load(a2, b2, 2), load(a3, b3, 3), load(a4, b4, 4), load(a5, b5, 5), load(a6, b6, 6), load(a7, b7, 7);
  }
  const T* row = v + c;
  for (size_t j = 0; j < keys; ++j, row += stride) {
    const V pa = hn::Set(d, p[j]), pb = hn::Set(d, p[(R > 1 ? kBlockKeys : 0) + j]);
    Columns::Prefetch(walk, j);
    const auto step = [&](V& a, V& b, size_t i) HWY_ATTR {
      const V x = LoadRow(d, row + i * N);
      asm volatile("" ::: "memory");  // loaded once and in this order: g++ would load it again for each FMA
      a = hn::MulAdd(pa, x, a);
      if constexpr (R > 1) b = hn::MulAdd(pb, x, b);
    };
    step(a0, b0, 0);
    if constexpr (W > 1) step(a1, b1, 1);
    if constexpr (W > 2) step(a2, b2, 2), step(a3, b3, 3);
    if constexpr (W > 4) step(a4, b4, 4), step(a5, b5, 5), step(a6, b6, 6), step(a7, b7, 7);
    if constexpr (W > 8) {
      step(b0, b0, 8), step(b1, b1, 9), step(b2, b2, 10), step(b3, b3, 11);
      step(b4, b4, 12), step(b5, b5, 13), step(b6, b6, 14), step(b7, b7, 15);
    }
  }
  if (base) {
    const auto plus = [&](V& a, V& b, size_t i) HWY_ATTR {
      a = hn::Add(hn::Load(d, base + at(0, i)), a);
      if constexpr (kUsesB) b = hn::Add(hn::Load(d, base + at(R > 1 ? 1 : 0, R > 1 ? i : i + 8)), b);
    };
    plus(a0, b0, 0), plus(a1, b1, 1), plus(a2, b2, 2), plus(a3, b3, 3), plus(a4, b4, 4), plus(a5, b5, 5), plus(a6, b6, 6), plus(a7, b7, 7);
  }
  const auto store = [&](V a, V b, size_t i) HWY_ATTR {
    hn::Store(a, d, to + at(0, i));
    if constexpr (kUsesB) hn::Store(b, d, to + at(R > 1 ? 1 : 0, R > 1 ? i : i + 8));
  };
  store(a0, b0, 0);
  if constexpr (W > 1) store(a1, b1, 1);
  if constexpr (W > 2) store(a2, b2, 2), store(a3, b3, 3);
  if constexpr (W > 4) store(a4, b4, 4), store(a5, b5, 5), store(a6, b6, 6), store(a7, b7, 7);
}

// The same for 4 rows and W vectors of columns, 2 on 16 registers, 4 on 32, so that narrow types are converted once for all.
template <int W, int kPasses, class T>
HWY_INLINE void PvColumnsOf4(const T* v, int64_t stride, const float* HWY_RESTRICT p, size_t c, size_t keys, const ToCome* to_come, const float* from,
                             const float* base, float* to, size_t pitch) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  using Columns = ColumnsAhead<W * hn::MaxLanes(DF()) * sizeof(T), kPasses>;
  LineWalk walk = Columns::Start(to_come, c * sizeof(T), keys);
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  V e0 = a0, e1 = a0, e2 = a0, e3 = a0, g0 = a0, g1 = a0, g2 = a0, g3 = a0;
  const auto each = [&](const auto& f) HWY_ATTR {
    const auto row = [&](size_t r, V& x0, V& x1, V& x2, V& x3) HWY_ATTR {
      const size_t i = r * pitch + c;
      f(x0, i), f(x1, i + N);
      if constexpr (W > 2) f(x2, i + 2 * N), f(x3, i + 3 * N);
    };
    row(0, a0, a1, a2, a3), row(1, b0, b1, b2, b3), row(2, e0, e1, e2, e3), row(3, g0, g1, g2, g3);
  };
  if (from) each([&](V& x, size_t i) HWY_ATTR { x = hn::Load(d, from + i); });
  const T* row = v + c;
  for (size_t j = 0; j < keys; ++j, row += stride) {
    const V pa = hn::Set(d, p[j]), pb = hn::Set(d, p[kBlockKeys + j]);
    const V pe = hn::Set(d, p[2 * kBlockKeys + j]), pg = hn::Set(d, p[3 * kBlockKeys + j]);
    Columns::Prefetch(walk, j);
    const auto step = [&](V& a, V& b, V& e, V& g, size_t i) HWY_ATTR {
      const V x = LoadF32(d, row + i * N);
      a = hn::MulAdd(pa, x, a);
      b = hn::MulAdd(pb, x, b);
      e = hn::MulAdd(pe, x, e);
      g = hn::MulAdd(pg, x, g);
    };
    step(a0, b0, e0, g0, 0), step(a1, b1, e1, g1, 1);
    if constexpr (W > 2) step(a2, b2, e2, g2, 2), step(a3, b3, e3, g3, 3);
  }
  if (base) each([&](V& x, size_t i) HWY_ATTR { x = hn::Add(hn::Load(d, base + i), x); });
  each([&](V& x, size_t i) HWY_ATTR { hn::Store(x, d, to + i); });
}

// The columns from c on, less than a vector, of one row.
template <class T>
HWY_INLINE void PvTail(const T* v, int64_t stride, const float* HWY_RESTRICT p, size_t c, size_t dim, size_t keys, const float* from,
                       const float* base, float* to) {
  const DF d;
  auto a = from ? hn::Load(d, from + c) : hn::Zero(d);
  for (size_t j = 0; j < keys; ++j, v += stride) a = hn::MulAdd(hn::Set(d, p[j]), LoadF32N(d, v + c, dim - c), a);
  if (base) a = hn::Add(hn::Load(d, base + c), a);
  hn::Store(a, d, to + c);
}

// One key, one row: the redo of poisoned rows. The same arithmetic as PvColumns.
template <class T>
HWY_INLINE void Pv1(const T* v, float p, size_t dim, float* HWY_RESTRICT o) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const auto w = hn::Set(d, p);
  size_t c = 0;
  for (; c + N <= dim; c += N) hn::Store(hn::MulAdd(w, LoadF32(d, v + c), hn::Load(d, o + c)), d, o + c);
  if (c < dim) hn::Store(hn::MulAdd(w, LoadF32N(d, v + c, dim - c), hn::Load(d, o + c)), d, o + c);
}

// The columns of R rows from c on for a chunk of keys. As many whole vectors of V as the registers hold: R * W accumulators, of 8 on 16 registers, 16
// on 32.
// to_come and kPasses: as for PvColumns.
template <int R, int kPasses, class T>
HWY_NOINLINE void PvChunk(const T* v, int64_t stride, const float* p, size_t c, size_t dim, size_t keys, const ToCome* to_come,
                          const float* from, const float* base, float* to, size_t pitch) {
  constexpr int W = kTileKeys == 4 ? 8 / R : 8;
  const size_t N = hn::Lanes(DF());
  // Rows of up to 256 columns of AVX-512 are walked to their ends.
  if constexpr (R == 1 && kTileKeys == 8) {
    for (; c + 16 * N <= dim; c += 16 * N) PvColumns<R, 16, kPasses>(v, stride, p, c, keys, to_come, from, base, to, pitch);
  }
  for (; c + W * N <= dim; c += W * N) PvColumns<R, W, kPasses>(v, stride, p, c, keys, to_come, from, base, to, pitch);
  if constexpr (W > 4) {
    for (; c + 4 * N <= dim; c += 4 * N) PvColumns<R, 4, kPasses>(v, stride, p, c, keys, to_come, from, base, to, pitch);
  }
  for (; c + N <= dim; c += N) PvColumns<R, 1, kPasses>(v, stride, p, c, keys, to_come, from, base, to, pitch);
  for (size_t r = 0; c < dim && r < R; ++r) {
    PvTail(v, stride, p + r * kBlockKeys, c, dim, keys, from ? from + r * pitch : nullptr,
           base ? base + r * pitch : nullptr, to + r * pitch);
  }
}

// The same for 4 rows.
template <int kPasses, class T>
HWY_NOINLINE void PvChunk4(const T* v, int64_t stride, const float* p, size_t dim, size_t keys, const ToCome* to_come, const float* from,
                           const float* base, float* to, size_t pitch) {
  constexpr int W = kTileKeys == 4 ? 2 : 4;
  const size_t step = W * hn::Lanes(DF());
  size_t c = 0;
  for (; c + step <= dim; c += step) PvColumnsOf4<W, kPasses>(v, stride, p, c, keys, to_come, from, base, to, pitch);
  for (size_t r = 0; c < dim && r < 4; r += 2) {
    const auto at = [&](auto* rows) HWY_ATTR { return rows ? rows + r * pitch : rows; };
    PvChunk<2, kPasses>(v, stride, p + r * kBlockKeys, c, dim, keys, to_come, at(from), at(base), at(to), pitch);
  }
}

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

// A block of the walk: keys [begin, end) of the kDecodeKeys from kb; half: 0 or 1, which half of a row's P and bias is its own.
struct DecodeBlock {
  int32_t kb, begin, end;
  int32_t walk_end;  // behind the last key of all blocks
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

// The rows kPrefetchRows<T> after the chunk of n at `rows`, the first of which is `key`'s. If there are none such, or the chunk is no whole one, or
// in pages: the first of its own rows, which is about to be read, again and again.
template <class T>
HWY_INLINE ToCome RowsToCome(const AttentionTask& t, const T* rows, int64_t stride, size_t dim, const DecodeBlock& block, int32_t key, size_t n) {
  const int64_t size = sizeof(T), bytes = static_cast<int64_t>(dim) * size;
  const bool any = !t.block_table && n == kChunkKeys && HasRowsToCome(block, key, n, kPrefetchRows<T>);
  if (!any) return {reinterpret_cast<const char*>(rows), 0, bytes, 0};
  return {reinterpret_cast<const char*>(rows + kPrefetchRows<T> * stride), stride * size, bytes, 0};
}

// How many rows of q or O take the products together, at most, where they prefetch; and whether all rows are one such pass.
template <class T>
constexpr size_t kRowsAtOnce = kWidensOnce<T> ? 4 : 2;
template <class T>
HWY_INLINE bool IsOnePass(size_t num_rows) {
  return num_rows <= 2 || num_rows == kRowsAtOnce<T>;
}

// Scores of the block's keys [first, first + n), counted from begin and one stride apart, for all rows.
template <class T>
HWY_INLINE void DotKeyRange(const AttentionTask& t, T /*type of K*/, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                            size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim);
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = PlaceOf(block, key);
  const int64_t stride = t.k_stride_row;
  const T* k = static_cast<const T*>(KRow(t, key));
  if (t.block_table) PrefetchPaged(t, KSide(t), T(), key, n, block.walk_end, dim);
  if constexpr (kPrefetchesInLoops) {
    ToCome to_come = RowsToCome(t, k, stride, dim, block, key, n);
    constexpr size_t kMost = kRowsAtOnce<T>;
    const bool once = IsOnePass<T>(num_rows);
    for (size_t r = 0, step; r < num_rows; r += step) {
      step = num_rows - r < 2 ? 1 : num_rows - r < kMost ? 2 : kMost;
      const auto chunk = step == 1   ? once ? &DotChunkAhead<1, 1, T> : &DotChunkAhead<1, 2, T>
                         : step == 2 ? once ? &DotChunkAhead<2, 1, T> : &DotChunkAhead<2, 2, T>
                         : once      ? &DotChunkAhead<kMost, 1, T>
                                     : &DotChunkAhead<kMost, 2, T>;
      chunk(k, stride, rows[r].q, pitch, dim, n, &to_come, rows[r].p + at);
      to_come.pass = 1;
    }
  } else {
    const bool prefetches = PrefetchesRows(T(), num_rows, stride, dim);
    const int32_t ahead = !t.block_table && prefetches && HasRowsToCome(block, key, n, kPrefetchRows<T>) ? 1 : 0;
    if (!t.block_table && !prefetches && HasRowsToCome(block, key, n, static_cast<int32_t>(kChunkKeys))) PrefetchTurn(k + kChunkKeys * dim);
    size_t r = 0;
    for (; r + 4 <= num_rows; r += 4) DotChunk<4>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
    for (; r + 2 <= num_rows; r += 2) DotChunk<2>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
    for (; r < num_rows; ++r) DotChunk<1>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
  }
}

// P V of the same, as PvPart.
template <class T>
HWY_INLINE void PvKeyRange(const AttentionTask& t, T /*type of V*/, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                           size_t n, MaxRule rule, bool redo) {
  const size_t dim = static_cast<size_t>(t.v_head_dim), pitch = PadToVector(dim);
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
  ToCome to_come = {};
  if (t.block_table) PrefetchPaged(t, VSide(t), T(), key, n, block.walk_end, dim);
  if constexpr (kPrefetchesInLoops) {
    to_come = RowsToCome(t, v, stride, dim, block, key, n);
  } else if (!t.block_table) {
    if (!PrefetchesRows(T(), num_rows, stride, dim) && !(kWidensOnce<T> && num_rows >= 4)) {
      if (HasRowsToCome(block, key, n, static_cast<int32_t>(kChunkKeys))) PrefetchTurn(v + kChunkKeys * dim);
    } else if (HasRowsToCome(block, key, n, kPrefetchRows<T>)) {
      for (size_t j = 0; j < n; ++j) PrefetchRow(v + (static_cast<int64_t>(j) + kPrefetchRows<T>) * stride, dim);
    }
  }
  // O of the block's keys alone begins with its first chunk, and is added to o with the last.
  const bool last = first + n == static_cast<size_t>(block.end - block.begin);
  const auto from = [&](const DecodeRow& row) HWY_ATTR { return first == 0 ? nullptr : row.block_o; };
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
  for (size_t c = 0; c < pitch; ++c) row.q[c] = c < dim ? row.q[c] * score.q_factor : 0.0f;
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

// ---- The walk

// The next block with a permitted key, from kb on. False: none.
HWY_INLINE bool NextBlock(const AttentionTask& t, size_t first_row, size_t n, int32_t lo, int32_t hi, size_t half, int32_t kb,
                          DecodeBlock* block) {
  for (; kb <= hi; kb += kDecodeKeys) {
    const int32_t begin = HWY_MAX(kb, lo), end = HWY_MIN(kb + kDecodeKeys, hi + 1);
    const Permits permits = ScanLanes(t, t.lane_begin + static_cast<int64_t>(first_row), static_cast<int64_t>(n), begin, end);
    if (!permits.any) continue;
    *block = {kb, begin, end, hi + 1, t.bias != nullptr || !permits.all, half};
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
  DecodeBlock block = {}, next;
  int32_t kb = lo / kDecodeKeys * kDecodeKeys;
  for (bool more = true, pending = false; more || pending;) {
    more = more && NextBlock(t, first_row, n, lo, hi, 1 - block.half, kb, &next);
    const size_t qk_keys = more ? static_cast<size_t>(next.end - next.begin) : 0;
    const size_t pv_keys = pending ? static_cast<size_t>(block.end - block.begin) : 0;
    for (size_t j = 0; j < HWY_MAX(qk_keys, pv_keys); j += kChunk) {
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
  float* const out = dtype == kF32 ? static_cast<float*>(place) : row.block_o;
  const float inv = row.l == 0.0f ? 0.0f : 1.0f / weight / row.l;
  for (int32_t c = 0; c < t.v_head_dim; ++c) out[c] = row.o[c] * inv + 0.0f;
  if (dtype != kF32) ConvertRowFromF32(dtype, out, static_cast<size_t>(t.v_head_dim), place);
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
