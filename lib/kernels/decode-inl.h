// Decode: attention of a few query rows (at most kDecodeMaxRows rows x heads of a group) over a range of keys of one kv head. Bound by reading K
// and V once: all rows take their dot products with a K row while it is in registers, V is walked row by row.
//
//   for each block of kBlockKeys keys:
//     s[row][key] = dot(q[row], K[key])      vectors along head_dim, NQ rows x NK keys in registers
//     p = 2^(s - m), vectors along keys; the block's maximum moves m lazily (by more than 2^8)
//     O[row] += p[row][key] V[key]           4 V rows at a time, in key order
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
#include "lib/kernels/query_tile-inl.h"
#include "lib/kernels/score-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Dot products taken together: 4 rows x 4 keys on 32 registers (16 accumulators + 4 + 4), 4 x 2 on 16 (8 + 2 + 1): K is loaded once for 4 rows.
constexpr size_t kDotKeys = kTileKeys == 8 ? 4 : 2;
// Rows of O that take a V row together: 4 x 4 weights + 4 + 1 on 32 registers, 2 x 4 + 4 + 1 on 16.
constexpr size_t kPvRows = kTileKeys == 8 ? 4 : 2;

// Keys of a block, the group of the running maximum: K and V of one stay in L1 or L2 between prefetch and use.
constexpr int32_t kDecodeKeys = 64;
static_assert(kDecodeKeys <= kBlockKeys, "scratch holds kBlockKeys");

HWY_INLINE size_t PadToVector(size_t n) {
  const size_t N = hn::Lanes(DF());
  return (n + N - 1) / N * N;
}

// The last n < N columns of a row without touching what lies behind it; zeros in the other lanes.
HWY_INLINE hn::Vec<DF> LoadTail(const float* p, size_t n) {
  const DF d;
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
  return hn::Load(d, buffer);
#else
  return hn::MaskedLoad(hn::FirstN(d, n), d, p);
#endif
}

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
// Sum of a vector's 128-bit blocks.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumOfBlocks(hn::FixedTag<float, 4> /*d*/, hn::Vec<hn::FixedTag<float, 4>> v) { return v; }
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumOfBlocks(D /*d*/, V v) {
  const hn::Half<D> half;
  return SumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
}
#endif

// sums[0 .. 4) = the sums of the lanes of a, b, c, e, each in the same fixed order.
template <class V>
HWY_INLINE void SumOfLanes4(V a, V b, V c, V e, float* sums) {
  const DF d;
#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
  // Within each block of 4: two adds of interleaved pairs leave [a b c e].
  const hn::Repartition<uint64_t, DF> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab64 = hn::BitCast(d64, ab), ce64 = hn::BitCast(d64, ce);
  const V abce = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)), hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));
  hn::StoreU(SumOfBlocks(d, abce), hn::FixedTag<float, 4>(), sums);
#else
  sums[0] = hn::GetLane(hn::SumOfLanes(d, a));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, b));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, c));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, e));
#endif
}

// One vector of a K row against NQ rows of q.
template <int NQ, class V>
HWY_INLINE void DotStep(V k, V q0, V q1, V q2, V q3, V& s0, V& s1, V& s2, V& s3) {
  s0 = hn::MulAdd(k, q0, s0);
  if constexpr (NQ > 1) s1 = hn::MulAdd(k, q1, s1);
  if constexpr (NQ > 2) s2 = hn::MulAdd(k, q2, s2);
  if constexpr (NQ > 3) s3 = hn::MulAdd(k, q3, s3);
}

// s[row * kBlockKeys + key] for NQ rows of q (padded with zeros to whole vectors, pitch apart) and up to NK keys; writes whole groups of 4 or 2 keys.
// One accumulator per dot product, so that its bits do not depend on how many are computed together.
template <int NQ, int NK>
HWY_INLINE void DotKeys(const float* const* k, const float* HWY_RESTRICT q, size_t pitch, size_t dim, size_t keys, float* s) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  const float *k0 = k[0], *k1 = k[keys > 1 ? 1 : 0], *k2 = k0, *k3 = k0;
  if constexpr (NK > 2) k2 = k[keys > 2 ? 2 : 0], k3 = k[keys > 3 ? 3 : 0];
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, e0 = a0, e1 = a0, e2 = a0, e3 = a0;
  const auto load_q = [&](size_t row, size_t i) HWY_ATTR { return hn::Load(d, q + (row < NQ ? row : 0) * pitch + i); };
  size_t i = 0;
  for (; i + N <= dim; i += N) {
    const V q0 = load_q(0, i), q1 = load_q(1, i), q2 = load_q(2, i), q3 = load_q(3, i);
    DotStep<NQ>(hn::LoadU(d, k0 + i), q0, q1, q2, q3, a0, a1, a2, a3);
    DotStep<NQ>(hn::LoadU(d, k1 + i), q0, q1, q2, q3, b0, b1, b2, b3);
    if constexpr (NK > 2) DotStep<NQ>(hn::LoadU(d, k2 + i), q0, q1, q2, q3, c0, c1, c2, c3);
    if constexpr (NK > 2) DotStep<NQ>(hn::LoadU(d, k3 + i), q0, q1, q2, q3, e0, e1, e2, e3);
  }
  if (i < dim) {
    const size_t n = dim - i;
    const V q0 = load_q(0, i), q1 = load_q(1, i), q2 = load_q(2, i), q3 = load_q(3, i);
    DotStep<NQ>(LoadTail(k0 + i, n), q0, q1, q2, q3, a0, a1, a2, a3);
    DotStep<NQ>(LoadTail(k1 + i, n), q0, q1, q2, q3, b0, b1, b2, b3);
    if constexpr (NK > 2) DotStep<NQ>(LoadTail(k2 + i, n), q0, q1, q2, q3, c0, c1, c2, c3);
    if constexpr (NK > 2) DotStep<NQ>(LoadTail(k3 + i, n), q0, q1, q2, q3, e0, e1, e2, e3);
  }
  if constexpr (NK > 2) {
    SumOfLanes4(a0, b0, c0, e0, s);
    if constexpr (NQ > 1) SumOfLanes4(a1, b1, c1, e1, s + kBlockKeys);
    if constexpr (NQ > 2) SumOfLanes4(a2, b2, c2, e2, s + 2 * kBlockKeys);
    if constexpr (NQ > 3) SumOfLanes4(a3, b3, c3, e3, s + 3 * kBlockKeys);
  } else {
    HWY_ALIGN float sums[8];
    SumOfLanes4(a0, b0, a1, b1, sums);
    if constexpr (NQ > 2) SumOfLanes4(a2, b2, a3, b3, sums + 4);
    for (size_t r = 0; r < NQ; ++r) memcpy(s + r * kBlockKeys, sums + 2 * r, 2 * sizeof(float));
  }
}

// Rows that the next pass reads, brought into L2 while this one computes: K and V are walked in turn, and the products take 4 rows at a time, column by
// column, an order in which the hardware's prefetcher sees no stream.
struct Ahead {
  const void* base;
  int64_t first, stride_bytes;  // first row
  size_t rows, row_bytes;
};

HWY_INLINE void PrefetchRows(const Ahead& a, size_t first, size_t n) {
  constexpr size_t kLine = 64;
  for (size_t j = first; j < HWY_MIN(first + n, a.rows); ++j) {
    const char* row = static_cast<const char*>(a.base) + (a.first + static_cast<int64_t>(j)) * a.stride_bytes;
    for (size_t c = 0; c < a.row_bytes; c += kLine) __builtin_prefetch(row + c, 0, 2);  // to L2: more misses may be in flight there than in L1
  }
}

template <int NQ>
HWY_NOINLINE void DotBlock(const float* const* k, const float* q, size_t pitch, size_t dim, size_t keys, float* s,
                           const Ahead& ahead) {
  constexpr size_t NK = NQ > 2 ? kDotKeys : 4;
  for (size_t j = 0; j < keys; j += NK) {
    PrefetchRows(ahead, j, NK);
    DotKeys<NQ, NK>(k + j, q, pitch, dim, HWY_MIN(keys - j, NK), s + j);
  }
}

// O[c .. c + N) of one row += p[0 .. 4) * v0 .. v3, in this order.
template <class V>
HWY_INLINE void PvStep(V v0, V v1, V v2, V v3, V p0, V p1, V p2, V p3, float* HWY_RESTRICT o) {
  const DF d;
  V x = hn::MulAdd(p0, v0, hn::Load(d, o));
  x = hn::MulAdd(p1, v1, x);
  x = hn::MulAdd(p2, v2, x);
  x = hn::MulAdd(p3, v3, x);
  hn::Store(x, d, o);
}

// O rows [0, NQ) += P V for 4 keys. p: [row][kBlockKeys]; o: [row][pitch].
template <int NQ>
HWY_INLINE void Pv4(const float* const* v, const float* HWY_RESTRICT p, size_t dim, float* HWY_RESTRICT o, size_t pitch) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  const float *v0 = v[0], *v1 = v[1], *v2 = v[2], *v3 = v[3];
  const auto weight = [&](size_t row, size_t j) HWY_ATTR { return hn::Set(d, p[(row < NQ ? row : 0) * kBlockKeys + j]); };
  const V p00 = weight(0, 0), p01 = weight(0, 1), p02 = weight(0, 2), p03 = weight(0, 3);
  const V p10 = weight(1, 0), p11 = weight(1, 1), p12 = weight(1, 2), p13 = weight(1, 3);
  const V p20 = weight(2, 0), p21 = weight(2, 1), p22 = weight(2, 2), p23 = weight(2, 3);
  const V p30 = weight(3, 0), p31 = weight(3, 1), p32 = weight(3, 2), p33 = weight(3, 3);
  const auto column = [&](V x0, V x1, V x2, V x3, size_t c) HWY_ATTR {
    PvStep(x0, x1, x2, x3, p00, p01, p02, p03, o + c);
    if constexpr (NQ > 1) PvStep(x0, x1, x2, x3, p10, p11, p12, p13, o + pitch + c);
    if constexpr (NQ > 2) PvStep(x0, x1, x2, x3, p20, p21, p22, p23, o + 2 * pitch + c);
    if constexpr (NQ > 3) PvStep(x0, x1, x2, x3, p30, p31, p32, p33, o + 3 * pitch + c);
  };
  size_t c = 0;
  for (; c + N <= dim; c += N) {
    column(hn::LoadU(d, v0 + c), hn::LoadU(d, v1 + c), hn::LoadU(d, v2 + c), hn::LoadU(d, v3 + c), c);
  }
  if (c < dim) {
    const size_t n = dim - c;
    column(LoadTail(v0 + c, n), LoadTail(v1 + c, n), LoadTail(v2 + c, n), LoadTail(v3 + c, n), c);
  }
}

// One key, one row: remainders, and the redo of poisoned rows. The same arithmetic as a step of Pv4.
HWY_INLINE void Pv1(const float* v, float p, size_t dim, float* HWY_RESTRICT o) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const auto w = hn::Set(d, p);
  size_t c = 0;
  for (; c + N <= dim; c += N) hn::Store(hn::MulAdd(w, hn::LoadU(d, v + c), hn::Load(d, o + c)), d, o + c);
  if (c < dim) hn::Store(hn::MulAdd(w, LoadTail(v + c, dim - c), hn::Load(d, o + c)), d, o + c);
}

template <int NQ>
HWY_NOINLINE void PvBlock(const float* const* v, const float* p, size_t dim, size_t keys, float* o, size_t pitch, const Ahead& ahead) {
  size_t j = 0;
  for (; j + 4 <= keys; j += 4) {
    PrefetchRows(ahead, j, 4);
    Pv4<NQ>(v + j, p + j, dim, o, pitch);
  }
  for (; j < keys; ++j) {
    for (size_t r = 0; r < NQ; ++r) Pv1(v[j], p[r * kBlockKeys + j], dim, o + r * pitch);
  }
}

// A row of the task in scratch.
struct DecodeRow {
  float *q, *o, *block_o, *p, *bias;  // block_o: O of this block's keys alone, added to o once, as in PvRows
  float m, l, slope;
  int32_t lo, hi, pos;
};

// o += block_o, which is left 0.
HWY_INLINE void AddBlock(const DecodeRow& row, size_t pitch) {
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

// Scores of one row for block kb to P; m, l and O follow. use_bias: row.bias holds the block's mask and bias.
HWY_NOINLINE void DecodeSoftmax(DecodeRow& row, const ScoreRule& score, int32_t kb, int32_t begin, int32_t end, bool use_bias,
                                size_t pitch, MaxRule rule) {
  const DF d;
  const DI di;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  const size_t first = static_cast<size_t>(begin - kb) / N * N, last = static_cast<size_t>(end - kb);
  const V minus_inf = hn::Set(d, kMinusInf);
  V mx = minus_inf;
  for (size_t j = first; j < last; j += N) {
    const auto key = hn::Iota(di, kb + static_cast<int32_t>(j));
    const V dist = hn::Abs(hn::ConvertTo(d, hn::Sub(key, hn::Set(di, row.pos))));
    const V bias = use_bias ? hn::Load(d, row.bias + j) : hn::Zero(d);
    V x = AdjustScore(d, score, hn::Load(d, row.p + j), hn::Set(d, row.slope * score.unit), dist, bias);
    const auto outside = hn::RebindMask(d, hn::Or(hn::Lt(key, hn::Set(di, row.lo)), hn::Gt(key, hn::Set(di, row.hi))));
    x = hn::IfThenElse(hn::Or(outside, hn::Eq(bias, minus_inf)), minus_inf, x);
    hn::Store(x, d, row.p + j);
    mx = hn::Max(mx, x);
  }
  const float top = hn::GetLane(hn::MaxOfLanes(d, mx));
  if (top > row.m + rule.threshold) {
    const V alpha = Exp2(d, hn::Set(d, row.m - top));
    row.l *= hn::GetLane(alpha);
    row.m = top;
    for (size_t c = 0; c < pitch; c += N) hn::Store(hn::Mul(hn::Load(d, row.o + c), alpha), d, row.o + c);
  }
  V sum = hn::Zero(d);
  const V m = hn::Set(d, row.m);
  for (size_t j = first; j < last; j += N) {
    const V p = Exp2(d, hn::Sub(hn::Load(d, row.p + j), m));
    hn::Store(p, d, row.p + j);
    sum = hn::Add(sum, p);
  }
  row.l += hn::GetLane(hn::SumOfLanes(d, sum));
}

// All blocks for n neighbouring rows, of which first_row is the first. redo: one row, whose forbidden keys are skipped in P V.
HWY_NOINLINE void DecodeRows(const AttentionTask& t, const KernelScratch& s, const ScoreRule& score, DecodeRow* rows, size_t n,
                             size_t first_row, MaxRule rule, bool redo) {
  const size_t dim = static_cast<size_t>(t.head_dim), v_dim = static_cast<size_t>(t.v_head_dim);
  const size_t q_pitch = PadToVector(dim), o_pitch = PadToVector(v_dim);
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
  const int64_t k_bytes = StorageBytes(t.k_dtype), v_bytes = StorageBytes(t.v_dtype);
  const size_t k_row = dim * static_cast<size_t>(k_bytes), v_row = v_dim * static_cast<size_t>(v_bytes);
  // The first block's K, which no pass before it has brought.
  PrefetchRows({t.k, lo, t.k_stride_row * k_bytes, static_cast<size_t>(HWY_MIN(hi + 1 - lo, kDecodeKeys)), k_row}, 0,
               static_cast<size_t>(kDecodeKeys));
  for (int32_t kb = lo / kDecodeKeys * kDecodeKeys; kb <= hi; kb += kDecodeKeys) {
    const int32_t begin = HWY_MAX(kb, lo), end = HWY_MIN(kb + kDecodeKeys, hi + 1);
    const Permits permits = ScanLanes(t, t.lane_begin + static_cast<int64_t>(first_row), static_cast<int64_t>(n), begin, end);
    if (!permits.any) continue;
    const bool use_bias = t.bias != nullptr || !permits.all;
    const size_t first = static_cast<size_t>(begin - kb), keys = static_cast<size_t>(end - begin);
    LoadRows(t, s, kb, begin, end - 1);
    const float *const *k = s.rows + first, *const *v = s.rows + kBlockKeys + first;
    const Ahead this_v = {t.v, begin, t.v_stride_row * v_bytes, keys, v_row};
    const Ahead next_k = {t.k, end, t.k_stride_row * k_bytes, static_cast<size_t>(HWY_MIN(hi + 1 - end, kDecodeKeys)), k_row};
    const Ahead nothing = {nullptr, 0, 0, 0, 0};
    size_t r = 0;
    for (; r + 4 <= n; r += 4) DotBlock<4>(k, rows[r].q, q_pitch, dim, keys, rows[r].p + first, r == 0 ? this_v : nothing);
    for (; r + 2 <= n; r += 2) DotBlock<2>(k, rows[r].q, q_pitch, dim, keys, rows[r].p + first, r == 0 ? this_v : nothing);
    for (; r < n; ++r) DotBlock<1>(k, rows[r].q, q_pitch, dim, keys, rows[r].p + first, r == 0 ? this_v : nothing);
    for (r = 0; r < n; ++r) {
      const int64_t lane = t.lane_begin + static_cast<int64_t>(first_row + r);
      if (use_bias) {
        LoadBias(t, MaskRow(t, lane / t.group, lane % t.group), BiasRow(t, lane / t.group, lane % t.group), begin, end,
                 rows[r].bias + first, 1);
      }
      DecodeSoftmax(rows[r], score, kb, begin, end, use_bias, o_pitch, rule);
    }
    if (redo) {
      for (size_t j = 0; j < keys; ++j) {
        const int32_t key = begin + static_cast<int32_t>(j);
        const bool permitted =
            key >= rows[0].lo && key <= rows[0].hi && !(use_bias && rows[0].bias[first + j] == kMinusInf);
        if (permitted) Pv1(v[j], rows[0].p[first + j] * rule.weight, v_dim, rows[0].block_o);
      }
      AddBlock(rows[0], o_pitch);
      continue;
    }
    r = 0;
    if constexpr (kPvRows == 4) {
      for (; r + 4 <= n; r += 4) PvBlock<4>(v, rows[r].p + first, v_dim, keys, rows[r].block_o, o_pitch, r == 0 ? next_k : nothing);
    }
    for (; r + 2 <= n; r += 2) PvBlock<2>(v, rows[r].p + first, v_dim, keys, rows[r].block_o, o_pitch, r == 0 ? next_k : nothing);
    for (; r < n; ++r) PvBlock<1>(v, rows[r].p + first, v_dim, keys, rows[r].block_o, o_pitch, r == 0 ? next_k : nothing);
    for (r = 0; r < n; ++r) AddBlock(rows[r], o_pitch);
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

HWY_NOINLINE void DecodeF32(const AttentionTask& t, const KernelScratch& s) {
  const size_t dim = static_cast<size_t>(t.head_dim), q_pitch = PadToVector(dim);
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
    row.pos = static_cast<int32_t>(i + t.pos0);
    RowRange(t, i, &row.lo, &row.hi);
    ConvertRowToF32(t.q_dtype, At(t.q, t.q_dtype, h * t.q_stride_head + i * t.q_stride_row), dim, row.q);
    for (size_t c = 0; c < q_pitch; ++c) row.q[c] = c < dim ? row.q[c] * score.q_factor : 0.0f;
  }
  DecodeRows(t, s, score, rows, n, 0, kLazyMax, false);
  for (size_t r = 0; r < n; ++r) {
    WriteRowStats(t, t.lane_begin + static_cast<int64_t>(r), rows[r].m, rows[r].l);
    WriteDecodeRow(t, rows[r], r, kLazyMax.weight);
  }
  // As in PrefillF32: first without the values that the row may not attend to, then with P small enough for any sum.
  for (size_t r = 0; r < n; ++r) {
    if (RowIsFinite(rows[r].o, o_pitch)) continue;
    MaxRule rule = kLazyMax;
    DecodeRows(t, s, score, &rows[r], 1, r, rule, true);
    if (!RowIsFinite(rows[r].o, o_pitch)) {
      rule = kOverflowSafeMax;
      DecodeRows(t, s, score, &rows[r], 1, r, rule, true);
    }
    WriteDecodeRow(t, rows[r], r, rule.weight);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
