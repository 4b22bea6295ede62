// Prefill: attention of many query rows of one sequence over one kv head; queries lie in SIMD lanes.
//
//   for each block of kBlockKeys keys, for each tile of NV vectors of query lanes:
//     S^T = K Q^T, P^T = 2^(S^T - m) in the tile's epilogue, scores never leave registers before they are P
//   then, for each tile: O^T += V^T P^T
//   at exit O^T / l is transposed to rows.
//
// Memory: K and V are read where they lie, once per block for all tiles of the task (the second tile finds them in L1 or L2); a tile's
// P^T block (24 KB at 48 lanes) stays in L1 or L2. Q and O are touched once.
// What the products read is a type T: float, or pairs of bf16 (prefill_bf16.cc), which overloads the functions under "Policy" below.
// Numerics: lib/NUMERICS.md. Source: Dao 2023, FlashAttention-2, alg. 1; lazy rescaling as in FlashAttention-4.

#if defined(FOVEA_LIB_KERNELS_PREFILL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_PREFILL_INL_H_
#undef FOVEA_LIB_KERNELS_PREFILL_INL_H_
#else
#define FOVEA_LIB_KERNELS_PREFILL_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/query_tile-inl.h"
#include "lib/kernels/score-inl.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Policy: f32

// Keys of one row of P and of V, and columns of one element of K and Q^T.
template <class T>
constexpr int32_t kPerElement = 1;

HWY_INLINE void LoadQ(float /*type*/, const AttentionTask& t, const Tile& tile, const ScoreRule& score) {
  TransposeQ(t, tile, score.q_factor);
}
// What is left of the scale for the scores themselves; f32 has it folded into Q.
template <class V>
HWY_INLINE V ScaleScore(float /*type*/, V s, float /*factor*/) {
  return s;
}

HWY_INLINE void LoadBlock(float /*type*/, const AttentionTask& t, const KernelScratch& s, int32_t kb, int32_t lo, int32_t hi) {
  LoadRows(t, s, kb, lo, hi);
}

// The maximum that m moves to, at least mx, and log2 of what P, l and O are multiplied by.
template <class V>
HWY_INLINE V MoveMax(float /*type*/, V m, V mx, V& exponent) {
  exponent = hn::Sub(m, mx);
  return mx;
}
template <class V>
HWY_INLINE V ScaleWeights(float /*type*/, V p, V alpha) {
  return hn::Mul(p, alpha);
}

// ---- Blocks

// What of block kb a tile has to compute: keys [begin, end), empty if nothing is permitted; use_bias: mask or bias matter there.
struct BlockWork {
  int32_t begin, end;
  int32_t all_begin, all_end;  // keys within, which causality and window permit to all lanes
  bool use_bias;
  size_t o_columns;  // of O^T that are multiplied where m moves: none while O is 0
  int32_t ahead;     // the last key whose rows are prefetched meanwhile, or -1
};

// has_o: whether the tile had a block with work before.
HWY_INLINE BlockWork FindBlockWork(const AttentionTask& t, const Tile& tile, int32_t kb, bool has_o) {
  BlockWork w;
  w.ahead = -1;
  w.o_columns = has_o ? static_cast<size_t>(t.v_head_dim) : 0;
  int32_t lo, hi;
  KeyUnion(t, &tile, 1, &lo, &hi);
  w.begin = HWY_MAX(kb, lo);
  w.end = HWY_MIN(kb + kBlockKeys, hi + 1);
  w.all_begin = HWY_MAX(w.begin, tile.all_lo);
  w.all_end = tile.all_hi < w.end ? tile.all_hi + 1 : w.end;  // all_hi may be INT32_MAX
  w.use_bias = false;
  if (const int32_t* at = t.kv_positions) {
    const auto outside = [&](int32_t key) HWY_ATTR { return at[key] < tile.any_lo || at[key] > tile.any_hi; };
    while (w.begin < w.end && outside(w.begin)) ++w.begin;
    while (w.begin < w.end && outside(w.end - 1)) --w.end;
    w.all_begin = w.begin;
    w.all_end = w.end;
    for (int32_t j = w.begin; j < w.end; ++j) {
      if (at[j] < tile.all_lo || at[j] > tile.all_hi) w.all_end = w.begin;
    }
  }
  if (w.begin >= w.end) return w;
  const Permits permits = ScanLanes(t, tile.first_lane, tile.lanes, w.begin, w.end);
  if (!permits.any) w.end = w.begin;
  w.use_bias = t.bias != nullptr || !permits.all;
  return w;
}

// O, l, m and the P rows already written of this block, for the lanes whose maximum moves. alpha is exactly 1 elsewhere. Out of line: rare
// after the first group.
template <int NV, class T>
HWY_NOINLINE void Rescale(const Tile& tile, size_t o_columns, float* HWY_RESTRICT p, size_t rows, const MaxRule& rule) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d), L = NV * N;
  for (size_t c = 0; c < L; c += N) {
    const V m = hn::Load(d, tile.m + c), mx = hn::Load(d, tile.mx + c);
    const auto moves = hn::Gt(mx, hn::Add(m, hn::Set(d, rule.threshold)));
    if (hn::AllFalse(d, moves)) continue;
    V exponent;
    const V new_m = MoveMax(T(), m, mx, exponent);
    const V alpha = hn::IfThenElse(moves, Exp2(d, exponent), hn::Set(d, 1.0f));
    hn::Store(hn::IfThenElse(moves, new_m, m), d, tile.m + c);
    hn::Store(hn::Mul(hn::Load(d, tile.l + c), alpha), d, tile.l + c);
    hn::Store(hn::Mul(hn::Load(d, tile.block_l + c), alpha), d, tile.block_l + c);
    for (size_t r = 0; r < o_columns; ++r) {
      hn::Store(hn::Mul(hn::Load(d, tile.ot + r * L + c), alpha), d, tile.ot + r * L + c);
    }
    for (size_t r = 0; r < rows; ++r) hn::Store(ScaleWeights(T(), hn::Load(d, p + r * L + c), alpha), d, p + r * L + c);
  }
}

// The sum of a group, in a fixed order.
template <class V>
HWY_INLINE V GroupSum(V s0, V s1, V s2, V s3, V s4, V s5, V s6, V s7) {
  const V low = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  if constexpr (kTileKeys == 4) return low;
  return hn::Add(low, hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)));
}
template <class V>
HWY_INLINE V GroupMax(V s0, V s1, V s2, V s3, V s4, V s5, V s6, V s7) {
  const V low = hn::Max(hn::Max(s0, s1), hn::Max(s2, s3));
  if constexpr (kTileKeys == 4) return low;
  return hn::Max(low, hn::Max(hn::Max(s4, s5), hn::Max(s6, s7)));
}

// One vector column of a group: P = 2^(S - m) stored, l += its sum.
template <class V>
HWY_INLINE void ExpColumn(float /*type*/, V s0, V s1, V s2, V s3, V s4, V s5, V s6, V s7, V m, float* p, size_t L,
                          float* HWY_RESTRICT l) {
  const DF d;
  const auto row = [&](V& s, size_t r) HWY_ATTR {
    s = Exp2(d, hn::Sub(s, m));
    hn::Store(s, d, p + r * L);
  };
  row(s0, 0), row(s1, 1), row(s2, 2), row(s3, 3);
  if constexpr (kTileKeys == 8) row(s4, 4), row(s5, 5), row(s6, 6), row(s7, 7);
  hn::Store(hn::Add(hn::Load(d, l), GroupSum(s0, s1, s2, s3, s4, s5, s6, s7)), d, l);
}

// m for a group whose scores lie at s. The block's P rows before it, at p_begin, are rescaled if it moves.
template <int NV, class T>
HWY_NOINLINE void MoveGroupMax(const Tile& tile, size_t o_columns, const float* s, const float* p, float* p_begin, const MaxRule& rule) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const auto row = [&](size_t r, size_t c) HWY_ATTR { return hn::Load(d, s + (r < kTileKeys ? r : 0) * L + c); };
  bool any_moves = false;
  for (size_t c = 0; c < L; c += N) {
    const auto mx = GroupMax(row(0, c), row(1, c), row(2, c), row(3, c), row(4, c), row(5, c), row(6, c), row(7, c));
    hn::Store(mx, d, tile.mx + c);
    any_moves |= !hn::AllFalse(d, hn::Gt(mx, hn::Add(hn::Load(d, tile.m + c), hn::Set(d, rule.threshold))));
  }
  if (any_moves) Rescale<NV, T>(tile, o_columns, p_begin, static_cast<size_t>(p - p_begin) / L, rule);
}

// P at p and l of a group whose scores lie at s, which may be p.
template <int NV, class T>
HWY_NOINLINE void ExpGroup(const Tile& tile, const float* s, float* p) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const auto row = [&](size_t r, size_t c) HWY_ATTR { return hn::Load(d, s + (r < kTileKeys ? r : 0) * L + c); };
  for (size_t c = 0; c < L; c += N) {
    ExpColumn(T(), row(0, c), row(1, c), row(2, c), row(3, c), row(4, c), row(5, c), row(6, c), row(7, c),
              hn::Load(d, tile.m + c), p + c, L, tile.block_l + c);
  }
}

// P at p, l and m of a group whose scores lie at s, which may be p. p_begin: where the block's P rows begin.
template <int NV, class T>
HWY_NOINLINE void SoftmaxGroup(const Tile& tile, size_t o_columns, const float* s, float* p, float* p_begin, const MaxRule& rule) {
  MoveGroupMax<NV, T>(tile, o_columns, s, p, p_begin, rule);
  ExpGroup<NV, T>(tile, s, p);
}

// On AVX2's 16 registers the epilogue's exp2 overlaps too little with the next group's FMAs: a group's scores are stored, and become P between the
// steps of the next group's QK^T.
constexpr bool kExpBehind = HWY_TARGET == HWY_AVX2;

// One row of a group, its scores at p, as ExpColumn.
template <int NV>
HWY_INLINE void ExpRow(const float* m, float* p) {
#if HWY_TARGET == HWY_AVX2
  const DF d;
  const size_t N = hn::Lanes(d);
  const auto exp = [&](size_t c) HWY_ATTR { hn::Store(Exp2FromMemory(d, hn::Sub(hn::Load(d, p + c), hn::Load(d, m + c))), d, p + c); };
  exp(0);
  if constexpr (NV > 1) exp(N);
  if constexpr (NV > 2) exp(2 * N);
#else
  (void)m, (void)p;  // not called
#endif
}
// l += the sum of a group's P.
template <int NV>
HWY_INLINE void AddGroup(const float* p, float* HWY_RESTRICT l) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const auto add = [&](size_t c) HWY_ATTR {
    const auto row = [&](size_t r) HWY_ATTR { return hn::Load(d, p + (r < kTileKeys ? r : 0) * L + c); };
    hn::Store(hn::Add(hn::Load(d, l + c), GroupSum(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7))), d, l + c);
  };
  add(0);
  if constexpr (NV > 1) add(N);
  if constexpr (NV > 2) add(2 * N);
}

// One group of wholly permitted keys without options: QK^T with the softmax as its epilogue, the same bits as SoftmaxGroup. k: its rows, of dim
// elements; factor: of ScaleScore; s: where its scores may lie; p: its P rows. One group per call: in a loop over groups g++ keeps the epilogue's
// constants in registers and spills accumulators. The rare rescale goes through memory, so that no accumulator lives across a call, for which clang
// would spill it in the k loop. With kExpBehind, the exp2 is that of the group before, and this one's scores are left at p.
template <int NV, bool kAhead = false, class T>
HWY_NOINLINE void QkSoftmaxGroup(const Tile& tile, const T* const* HWY_RESTRICT k, size_t dim, size_t o_columns, float factor, const Ahead* ahead,
                                 float* s, float* p, float* p_begin, const MaxRule& rule) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d), L = NV * N;
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
  V b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, c4 = a0, c5 = a0, c6 = a0, c7 = a0;
  const auto exp_row = [&](size_t r) HWY_ATTR {
    if constexpr (kExpBehind) ExpRow<NV>(tile.m, p + r * L - kTileKeys * L);
  };
  if constexpr (kAhead) asm volatile("" : "+m"(factor));  // g++ would keep it in a register, one more than AVX3_BF16 has
  QkTile<NV, kExpBehind, kAhead>(k, tile.qt, dim, exp_row, ahead, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6,
                                 a7, b7, c7);
  if constexpr (kExpBehind) {
    AddGroup<NV>(p - kTileKeys * L, tile.block_l);
    StoreGroup<NV>(p, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
  }
  const auto scale = [&](V& x0, V& x1, V& x2) HWY_ATTR {
    x0 = ScaleScore(T(), x0, factor);
    if constexpr (NV > 1) x1 = ScaleScore(T(), x1, factor);
    if constexpr (NV > 2) x2 = ScaleScore(T(), x2, factor);
  };
  scale(a0, b0, c0), scale(a1, b1, c1), scale(a2, b2, c2), scale(a3, b3, c3);
  if constexpr (kTileKeys == 8) scale(a4, b4, c4), scale(a5, b5, c5), scale(a6, b6, c6), scale(a7, b7, c7);
  const V threshold = hn::Set(d, rule.threshold);
  auto moves = hn::Gt(GroupMax(a0, a1, a2, a3, a4, a5, a6, a7), hn::Add(hn::Load(d, tile.m), threshold));
  if constexpr (NV > 1) {
    const V m = hn::Add(hn::Load(d, tile.m + N), threshold);
    moves = hn::Or(moves, hn::Gt(GroupMax(b0, b1, b2, b3, b4, b5, b6, b7), m));
  }
  if constexpr (NV > 2) {
    const V m = hn::Add(hn::Load(d, tile.m + 2 * N), threshold);
    moves = hn::Or(moves, hn::Gt(GroupMax(c0, c1, c2, c3, c4, c5, c6, c7), m));
  }
  if constexpr (kExpBehind) {
    if (HWY_UNLIKELY(!hn::AllFalse(d, moves))) MoveGroupMax<NV, T>(tile, o_columns, p, p, p_begin, rule);
    return;
  }
  if (HWY_UNLIKELY(!hn::AllFalse(d, moves))) {
    StoreGroup<NV>(s, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
    return SoftmaxGroup<NV, T>(tile, o_columns, s, p, p_begin, rule);
  }
  // 24 accumulators and the constants of exp2 are more than 32 registers: the third column waits in memory, or g++ spills in the k loop.
  constexpr bool kPark = NV > 2 && kTileKeys == 8 && HWY_COMPILER_GCC_ACTUAL;
  const auto third = [&](V& c, size_t r) HWY_ATTR {
    if constexpr (kPark) hn::Store(c, d, s + r * L + 2 * N);
  };
  third(c0, 0), third(c1, 1), third(c2, 2), third(c3, 3), third(c4, 4), third(c5, 5), third(c6, 6), third(c7, 7);
  ExpColumn(T(), a0, a1, a2, a3, a4, a5, a6, a7, hn::Load(d, tile.m), p, L, tile.block_l);
  if constexpr (NV > 1) ExpColumn(T(), b0, b1, b2, b3, b4, b5, b6, b7, hn::Load(d, tile.m + N), p + N, L, tile.block_l + N);
  if constexpr (kPark) asm volatile("" ::: "memory");  // or it would stay in registers as well
  const auto back = [&](V& c, size_t r) HWY_ATTR {
    if constexpr (kPark) c = hn::Load(d, s + r * L + 2 * N);
  };
  back(c0, 0), back(c1, 1), back(c2, 2), back(c3, 3), back(c4, 4), back(c5, 5), back(c6, 6), back(c7, 7);
  if constexpr (NV > 2) ExpColumn(T(), c0, c1, c2, c3, c4, c5, c6, c7, hn::Load(d, tile.m + 2 * N), p + 2 * N, L, tile.block_l + 2 * N);
}

// Options and permission applied to a group whose S^T rows lie at s, then its softmax. key: the group's first; end: keys from here on are not
// permitted (with kv_positions; without, the lanes' ranges say so); bias: the group's rows, or null; allow: where to note permission, or null.
template <int NV, class T>
HWY_NOINLINE void MaskedSoftmaxGroup(const Tile& tile, const ScoreRule& score, const int32_t* kv_positions, int32_t key, int32_t end,
                                     const float* HWY_RESTRICT bias, float* HWY_RESTRICT allow, size_t o_columns, float* s, float* p, float* p_begin,
                                     const MaxRule& rule) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  for (size_t r = 0; r < kTileKeys; ++r) {
    for (size_t c = 0; c < L; c += N) {
      const auto dot = ScaleScore(T(), hn::Load(d, s + r * L + c), score.q_factor);
      const auto x = MaskedScore(tile, score, KeyPosition(kv_positions, key + static_cast<int32_t>(r), end), bias ? bias + r * L : nullptr,
                                 allow ? allow + r * L : nullptr, dot, c);
      hn::Store(x, d, s + r * L + c);
    }
  }
  SoftmaxGroup<NV, T>(tile, o_columns, s, p, p_begin, rule);
}

// The K rows of the block, then the V rows, of which a row has kPerElement<T> keys.
template <class T>
HWY_INLINE const T* const* BlockRows(const KernelScratch& s) {
  return reinterpret_cast<const T* const*>(s.rows);
}

// Keys and values of a long sequence come from L3 or from memory, and the hardware's prefetchers don't find rows of which each element is broadcast.
// A block's first tile prefetches the next block's K rows, and the V rows that P V comes to (the next block's, where V is copied first). The rows of
// a group begin at `first` and lie one stride apart, or, where pages are no multiple of a group, some of them elsewhere. A page's number is read only
// where a key may be needed: none before w.begin.
template <class T>
HWY_INLINE Ahead RowsAhead(const AttentionTask& t, const BlockWork& w, int32_t first) {
  const bool copies_v = kPerElement<T> > 1 || CopiesRows(t.v_dtype, t.v_stride_row);
  const int32_t next = HWY_MIN(first + kBlockKeys, w.ahead), now = HWY_MAX(first, w.begin);
  const int64_t k_bytes = StorageBytes(t.k_dtype), v_bytes = StorageBytes(t.v_dtype);
  return {static_cast<const char*>(KRow(t, next)), static_cast<const char*>(VRow(t, copies_v ? next : now)), t.k_stride_row * k_bytes,
          t.v_stride_row * v_bytes, 2 * kTileKeys * kPerElement<T> * k_bytes};
}

// S^T, P^T, m and l of a tile for the keys of w in block kb.
template <int NV, class T>
HWY_NOINLINE void QkSoftmaxBlock(const AttentionTask& t, const KernelScratch& s, const Tile& tile, const ScoreRule& score,
                                 const BlockWork& w, int32_t kb, MaxRule rule, bool redo) {
  const size_t L = NV * hn::Lanes(DF());
  const size_t dim = static_cast<size_t>((t.head_dim + kPerElement<T> - 1) / kPerElement<T>);
  const int32_t g0 = w.begin / kTileKeys * kTileKeys;
  const bool plain = score.cap == 0.0f && !score.alibi && !w.use_bias && !redo;
  const auto p_row = [&](int32_t key) HWY_ATTR { return tile.p + static_cast<size_t>((key - kb) / kPerElement<T>) * L; };
  // Scores lie where their P will; behind all P, where that takes less room.
  const auto s_row = [&](int32_t key) HWY_ATTR {
    return kPerElement<T> == 1 ? p_row(key) : tile.p + static_cast<size_t>(kBlockKeys / kPerElement<T>) * L;
  };
  const T* const* k = BlockRows<T>(s) - kb;
  if (w.use_bias) TransposeBias(t, tile, L, g0, w.end, s.bias + static_cast<size_t>(g0 - kb) * L);
  const DF d;
  for (size_t c = 0; c < L; c += hn::Lanes(d)) hn::Store(hn::Zero(d), d, tile.block_l + c);
  float* behind = nullptr;  // the rows of the group before, while they are scores
  const auto catch_up = [&]() HWY_ATTR {
    if (behind) ExpGroup<NV, T>(tile, behind, behind);
    behind = nullptr;
  };
  const auto softmax_group = w.ahead >= 0 ? &QkSoftmaxGroup<NV, true, T> : &QkSoftmaxGroup<NV, false, T>;
  const auto store_group = w.ahead >= 0 ? &QkStoreGroup<NV, true, T> : &QkStoreGroup<NV, false, T>;
  for (int32_t g = g0; g < w.end; g += kTileKeys) {
    const Ahead ahead = w.ahead >= 0 ? RowsAhead<T>(t, w, g) : Ahead();
    // A group that every lane may attend to wholly.
    if (plain && g >= w.all_begin && g + kTileKeys <= w.all_end) {
      if (kExpBehind && !behind) {
        store_group(tile, k + g, dim, &ahead, p_row(g));
        MoveGroupMax<NV, T>(tile, w.o_columns, p_row(g), p_row(g), p_row(g0), rule);
      } else {
        softmax_group(tile, k + g, dim, w.o_columns, score.q_factor, &ahead, s_row(g), p_row(g), p_row(g0), rule);
      }
      behind = kExpBehind ? p_row(g) : nullptr;
      continue;
    }
    catch_up();
    store_group(tile, k + g, dim, &ahead, s_row(g));
    const size_t row = static_cast<size_t>(g - kb) * L;
    MaskedSoftmaxGroup<NV, T>(tile, score, t.kv_positions, g, w.end, w.use_bias ? s.bias + row : nullptr, redo ? s.allow + row : nullptr, w.o_columns,
                              s_row(g), p_row(g), p_row(g0), rule);
  }
  catch_up();
  for (size_t c = 0; c < L; c += hn::Lanes(d)) {
    hn::Store(hn::Add(hn::Load(d, tile.l + c), hn::Load(d, tile.block_l + c)), d, tile.l + c);
  }
}

// PV where V may hold NaN or Inf in keys that a lane may not attend to: those are never operands.
template <int NV>
HWY_NOINLINE void PvSelect(const float* const* v, size_t v_head_dim, size_t n, const float* HWY_RESTRICT p,
                           const float* HWY_RESTRICT allow, float weight, float* HWY_RESTRICT ot) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  for (size_t col = 0; col < v_head_dim; ++col) {
    for (size_t c = 0; c < L; c += N) {
      auto o = hn::Zero(d);
      for (size_t j = 0; j < n; ++j) {
        const auto yes = hn::Gt(hn::Load(d, allow + j * L + c), hn::Zero(d));
        o = hn::IfThenElse(yes, hn::MulAdd(hn::Set(d, v[j][col]), hn::Mul(hn::Load(d, p + j * L + c), hn::Set(d, weight)), o), o);
      }
      hn::Store(hn::Add(hn::Load(d, ot + col * L + c), o), d, ot + col * L + c);
    }
  }
}

template <class T>
HWY_INLINE void QkSoftmaxBlock(const AttentionTask& t, const KernelScratch& s, const Tile& tile, const ScoreRule& score,
                               const BlockWork& w, int32_t kb, MaxRule rule, bool redo) {
  if (tile.vecs == 3) return QkSoftmaxBlock<3, T>(t, s, tile, score, w, kb, rule, redo);
  if (tile.vecs == 2) return QkSoftmaxBlock<2, T>(t, s, tile, score, w, kb, rule, redo);
  QkSoftmaxBlock<1, T>(t, s, tile, score, w, kb, rule, redo);
}

template <int NV, class T>
HWY_INLINE void PvBlock(const AttentionTask& t, const KernelScratch& s, const Tile& tile, const BlockWork& w, int32_t kb, MaxRule rule,
                        bool redo) {
  const size_t L = NV * hn::Lanes(DF()), v_head_dim = static_cast<size_t>(t.v_head_dim);
  const size_t first = static_cast<size_t>((w.begin - kb) / kPerElement<T>);
  const size_t rows = static_cast<size_t>((w.end - kb + kPerElement<T> - 1) / kPerElement<T>) - first;
  const T* const* v = BlockRows<T>(s) + kBlockKeys + first;
  const float* p = tile.p + first * L;
  if (redo) return PvSelect<NV>(v, v_head_dim, rows, p, s.allow + first * kPerElement<T> * L, rule.weight, tile.ot);
  PvTile<NV>(v, v_head_dim, rows, p, tile.ot);
}
template <class T>
HWY_INLINE void PvBlock(const AttentionTask& t, const KernelScratch& s, const Tile& tile, const BlockWork& w, int32_t kb, MaxRule rule,
                        bool redo) {
  if (tile.vecs == 3) return PvBlock<3, T>(t, s, tile, w, kb, rule, redo);
  if (tile.vecs == 2) return PvBlock<2, T>(t, s, tile, w, kb, rule, redo);
  PvBlock<1, T>(t, s, tile, w, kb, rule, redo);
}

// All blocks of the task for the given tiles. redo: one tile, with select.
template <class T>
HWY_NOINLINE void RunBlocks(const AttentionTask& t, const KernelScratch& s, const Tile* tiles, size_t num_tiles, MaxRule rule,
                            bool redo) {
  const ScoreRule score = MakeScoreRule(t, kLog2E);
  for (size_t n = 0; n < num_tiles; ++n) StartTile(t, tiles[n]);
  int32_t lo, hi;
  KeyUnion(t, tiles, num_tiles, &lo, &hi);
  if (lo > hi) return;
  const bool prefetches = t.reads_far || (int64_t{hi} - lo + 1) * KvRowBytes(t) > kNearBytes;
  BlockWork work[kMaxTiles];
  bool has_o[kMaxTiles] = {};
  for (int32_t kb = lo / kBlockKeys * kBlockKeys; kb <= hi; kb += kBlockKeys) {
    BlockWork* first = nullptr;
    for (size_t n = 0; n < num_tiles; ++n) {
      work[n] = FindBlockWork(t, tiles[n], kb, has_o[n]);
      if (!first && work[n].begin < work[n].end) first = &work[n];
    }
    if (!first) continue;
    if (prefetches) first->ahead = hi;
    LoadBlock(T(), t, s, kb, HWY_MAX(kb, lo), HWY_MIN(kb + kBlockKeys - 1, hi));
    for (size_t n = 0; n < num_tiles; ++n) {
      if (work[n].begin < work[n].end) QkSoftmaxBlock<T>(t, s, tiles[n], score, work[n], kb, rule, redo);
    }
    for (size_t n = 0; n < num_tiles; ++n) {
      if (work[n].begin >= work[n].end) continue;
      PvBlock<T>(t, s, tiles[n], work[n], kb, rule, redo);
      has_o[n] = true;
    }
  }
}

template <class T>
HWY_INLINE void Prefill(const AttentionTask& t, const KernelScratch& s) {
  Tile tiles[kMaxTiles];
  const size_t num_tiles = SetUpTiles(t, s, tiles);
  const ScoreRule score = MakeScoreRule(t, kLog2E);
  for (size_t n = 0; n < num_tiles; ++n) LoadQ(T(), t, tiles[n], score);
  RunBlocks<T>(t, s, tiles, num_tiles, kLazyMax, false);
  for (size_t n = 0; n < num_tiles; ++n) {
    if (!WriteTile(t, tiles[n], kAllLanes, kLazyMax.weight)) continue;
    // Some lane's O is not finite: NaN or Inf in a value it may not attend to, or in one it may, or overflow of P V. The first is cured by
    // select, the last by a smaller P; each lane's bits depend on its own keys only.
    RunBlocks<T>(t, s, &tiles[n], 1, kLazyMax, true);
    if (!WriteTile(t, tiles[n], kPoisonedLanes, kLazyMax.weight)) continue;
    RunBlocks<T>(t, s, &tiles[n], 1, kOverflowSafeMax, true);
    WriteTile(t, tiles[n], kPoisonedLanes, kOverflowSafeMax.weight);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
