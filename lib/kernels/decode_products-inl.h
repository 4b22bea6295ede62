// The products of decode over a chunk of K or V rows: dot products along head_dim for the scores, sums of V's rows for O. Rows of any storage type,
// arithmetic in f32. Where the products prefetch (kPrefetchesInLoops), `to_come` says what.

#if defined(FOVEA_LIB_KERNELS_DECODE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_DECODE_PRODUCTS_INL_H_
#undef FOVEA_LIB_KERNELS_DECODE_PRODUCTS_INL_H_
#else
#define FOVEA_LIB_KERNELS_DECODE_PRODUCTS_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/decode_memory-inl.h"
#include "lib/kernels/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE size_t PadToVector(size_t n) {
  const size_t N = hn::Lanes(DF());
  return (n + N - 1) / N * N;
}

// How many rows of q or O take the products together, at most, where they prefetch; and whether all rows are one such pass.
template <class T>
constexpr size_t kRowsAtOnce = kWidensOnce<T> ? 4 : 2;
template <class T>
HWY_INLINE bool IsOnePass(size_t num_rows) {
  return num_rows <= 2 || num_rows == kRowsAtOnce<T>;
}

// ---- Q K^T

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
  const bool gaps = to_come->stride != to_come->bytes, two = NQ <= 2 && kPasses == 1 && to_come->other;
  // With gaps a pass takes every kPasses-th row.
  const int64_t line = gaps ? kPasses * to_come->stride : 64;
  LineWalk walk = {to_come->rows, line, 2 * line, gaps ? 64 : 64 * kLines};
  if (two) walk = TwoStreams<kLines>(to_come, to_come->rows);
  const int64_t next = gaps ? kKeys * to_come->stride : (two ? kLines / 2 : kLines) * to_come->bytes;
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

// ---- P V

// to[row][c .. c + W vectors) = from + p V + base for R rows, in key order: R * W accumulators, a for the first row and b for the second; where
// one row has 16, b for its vectors from 8 on. p: [row][kBlockKeys]; the others: [row][pitch], from and base null for 0. Where kPairsAreMixed the
// order of columns is LoadPair's until base is added. to_come: used where kPrefetchesInLoops; kPasses: as ColumnsAhead.
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
    if constexpr (kPairsAreMixed<T> && W > 1) {
      const auto pair = [&](V& a, V& b, V& next_a, V& next_b, size_t i) HWY_ATTR {
        V x, y;
        LoadPair(d, row + i * N, x, y);
        asm volatile("" ::: "memory");
        a = hn::MulAdd(pa, x, a), next_a = hn::MulAdd(pa, y, next_a);
        if constexpr (R > 1) b = hn::MulAdd(pb, x, b), next_b = hn::MulAdd(pb, y, next_b);
      };
      pair(a0, b0, a1, b1, 0);
      if constexpr (W > 2) pair(a2, b2, a3, b3, 2);
      if constexpr (W > 4) pair(a4, b4, a5, b5, 4), pair(a6, b6, a7, b7, 6);
      continue;
    }
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
    if constexpr (kPairsAreMixed<T> && W > 1) {
      InOrder(d, T(), a0, a1), InOrder(d, T(), a2, a3), InOrder(d, T(), a4, a5), InOrder(d, T(), a6, a7);
      if constexpr (R > 1) InOrder(d, T(), b0, b1), InOrder(d, T(), b2, b3), InOrder(d, T(), b4, b5), InOrder(d, T(), b6, b7);
    }
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
    const auto step = [&](V x, V& a, V& b, V& e, V& g) HWY_ATTR {
      a = hn::MulAdd(pa, x, a);
      b = hn::MulAdd(pb, x, b);
      e = hn::MulAdd(pe, x, e);
      g = hn::MulAdd(pg, x, g);
    };
    V x, y;
    LoadPair(d, row, x, y);
    step(x, a0, b0, e0, g0), step(y, a1, b1, e1, g1);
    if constexpr (W > 2) {
      LoadPair(d, row + 2 * N, x, y);
      step(x, a2, b2, e2, g2), step(y, a3, b3, e3, g3);
    }
  }
  if (base) InOrder(d, T(), a0, a1), InOrder(d, T(), b0, b1), InOrder(d, T(), e0, e1), InOrder(d, T(), g0, g1);
  if (base && W > 2) InOrder(d, T(), a2, a3), InOrder(d, T(), b2, b3), InOrder(d, T(), e2, e3), InOrder(d, T(), g2, g3);
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

// The columns of R rows from c on for a chunk of keys, as many whole vectors of V at a time as the registers hold: R * W accumulators, of 8 on 16
// registers, 16 on 32. to_come and kPasses: as for PvColumns.
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

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
