// Decode on AVX3_BF16: bf16 q, k and v by vdpbf16ps, both products, and int8 keys by vpdpbusd; the walk of decode-inl.h.
//
//   s[row][key]  = factor * sum over pairs of columns  q[row][2i, 2i+1] . K[key][2i, 2i+1]
//   O[row][col] += sum over pairs of keys              p[row][2j, 2j+1] . V[2j, 2j+1][col]
//
// q is not scaled, which would round it again. Pairs of keys begin at even keys, whatever range is walked and wherever pages end; a key without a
// partner in the range has itself for one, with P = 0. Two rows of V are interleaved as they are read, 32 columns of each give two vectors of pairs,
// and O of a block stays in that order until the block ends. P is rounded to bf16, and l sums what was rounded. The maximum m moves by whole numbers,
// as in prefill_bf16.cc; but the sum is rounded to f32, and alpha = 2^(m - m') is made of what it was rounded to, so that it need not be a power of
// two. Only l and O are rescaled, which are f32.
#include "lib/kernels/bf16_target.h"
#if FOVEA_HAVE_BF16_TARGET && HWY_ARCH_X86_64
#include <string.h>

#include "lib/kernels/bf16_dot-inl.h"
#include "lib/kernels/decode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

struct Bf16Products : F32Products {};
using D16 = hn::Repartition<uint16_t, DF>;  // 32 of bf16, by their bits
using VF = hn::Vec<DF>;

// How many rows before their use K and V are prefetched into L2 where there are two rows of q or more.
constexpr int32_t kPrefetchPairRows = 16;

// ---- Q K^T

HWY_INLINE void LoadQ(Bf16Products /*policy*/, const AttentionTask& t, const ScoreRule& /*score*/, DecodeRow& row, float* /*room*/) {
  const size_t dim = static_cast<size_t>(t.head_dim);
  memset(row.q, 0, PadToVector(dim) * sizeof(float));
  memcpy(row.q, QRow(t, row.query), dim * sizeof(BF16));
}

// NQ accumulators += one K row times NQ rows of q, pitch floats apart.
template <int NQ>
HWY_INLINE void DotPairRow(const BF16* k, const float* HWY_RESTRICT q, size_t pitch, size_t dim, VF& s0, VF& s1, VF& s2, VF& s3) {
  const D16 d16;
  const DF d;
  const size_t N = hn::Lanes(d);
  const auto step = [&](hn::Vec<D16> bits, size_t i) HWY_ATTR {
    const VF x = hn::BitCast(d, bits);
    s0 = DotPairs(x, hn::Load(d, q + i), s0);
    if constexpr (NQ > 1) s1 = DotPairs(x, hn::Load(d, q + pitch + i), s1);
    if constexpr (NQ > 2) s2 = DotPairs(x, hn::Load(d, q + 2 * pitch + i), s2);
    if constexpr (NQ > 3) s3 = DotPairs(x, hn::Load(d, q + 3 * pitch + i), s3);
  };
  const uint16_t* const bits = &k->bits;
  size_t i = 0;  // columns
  for (; i + 8 * N <= dim; i += 8 * N) {
    step(LoadLine(d16, bits + i), i / 2), step(LoadLine(d16, bits + i + 2 * N), i / 2 + N);
    step(LoadLine(d16, bits + i + 4 * N), i / 2 + 2 * N), step(LoadLine(d16, bits + i + 6 * N), i / 2 + 3 * N);
  }
  for (; i + 2 * N <= dim; i += 2 * N) step(LoadLine(d16, bits + i), i / 2);
  if (i < dim) step(LoadFirstN(d16, bits + i, dim - i), i / 2);
}

// x, y, z, w: SumsInBlocks of 4 keys; to sums of rows a, b, c, e as blocks of 4 keys. In the order of SumOfLanes4, so with its bits.
HWY_INLINE VF SumsOf4Keys(VF x, VF y, VF z, VF w) {
  alignas(64) static constexpr uint32_t kRowsOfKeys[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const __m512 xy = _mm512_add_ps(_mm512_shuffle_f32x4(x.raw, y.raw, 0x44), _mm512_shuffle_f32x4(x.raw, y.raw, 0xEE));
  const __m512 zw = _mm512_add_ps(_mm512_shuffle_f32x4(z.raw, w.raw, 0x44), _mm512_shuffle_f32x4(z.raw, w.raw, 0xEE));
  const __m512 keys = _mm512_add_ps(_mm512_shuffle_f32x4(xy, zw, 0x88), _mm512_shuffle_f32x4(xy, zw, 0xDD));
  return VF{_mm512_permutexvar_ps(_mm512_load_si512(kRowsOfKeys), keys)};
}

// SumsInBlocks of one key with NQ rows of q, or the one row's sum itself.
template <int NQ>
HWY_INLINE VF DotPairKey(const BF16* k, int64_t stride, const float* HWY_RESTRICT q, size_t pitch, size_t dim, int32_t ahead) {
  if (ahead) PrefetchRow(k + kPrefetchPairRows * stride, dim);
  VF a = hn::Zero(DF()), b = a, c = a, e = a;
  DotPairRow<NQ>(k, q, pitch, dim, a, b, c, e);
  if constexpr (NQ == 1) return a;
  return SumsInBlocks(a, b, c, e);
}

// s[row * kBlockKeys + key] for NQ rows of q and neighbouring keys, 4 at a time: the ends of 16 sums are one vector's. Groups of 4 begin where the
// run does; no bit depends on that.
template <int NQ>
HWY_NOINLINE void DotPairChunk(const BF16* k, int64_t stride, const float* HWY_RESTRICT q, size_t pitch, size_t dim, size_t keys, int32_t ahead,
                               float* s) {
  for (size_t j = 0; j < keys; j += 4) {
    const size_t n = HWY_MIN(keys - j, size_t{4});
    const auto key = [&](size_t i) HWY_ATTR { return k + static_cast<int64_t>(j + HWY_MIN(i, n - 1)) * stride; };
    const VF x = DotPairKey<NQ>(key(0), stride, q, pitch, dim, ahead), y = DotPairKey<NQ>(key(1), stride, q, pitch, dim, ahead);
    const VF z = DotPairKey<NQ>(key(2), stride, q, pitch, dim, ahead), w = DotPairKey<NQ>(key(3), stride, q, pitch, dim, ahead);
    const __mmask8 mask = static_cast<__mmask8>((1u << n) - 1);
    if constexpr (NQ == 1) {
      _mm_mask_storeu_ps(s + j, mask, SumOfBlocks(DF(), SumsInBlocks(x, y, z, w)).raw);
      continue;
    }
    const __m512 sums = SumsOf4Keys(x, y, z, w).raw;
    _mm_mask_storeu_ps(s + j, mask, _mm512_castps512_ps128(sums));
    if constexpr (NQ > 1) _mm_mask_storeu_ps(s + kBlockKeys + j, mask, _mm512_extractf32x4_ps(sums, 1));
    if constexpr (NQ > 2) {
      _mm_mask_storeu_ps(s + 2 * kBlockKeys + j, mask, _mm512_extractf32x4_ps(sums, 2));
      _mm_mask_storeu_ps(s + 3 * kBlockKeys + j, mask, _mm512_extractf32x4_ps(sums, 3));
    }
  }
}

HWY_INLINE void DotRun(Bf16Products /*policy*/, const AttentionTask& t, const KernelScratch& /*s*/, DecodeRow* rows, size_t num_rows,
                       const DecodeBlock& block, size_t first, size_t n) {
  const size_t dim = static_cast<size_t>(t.head_dim), pitch = PadToVector(dim);
  const int32_t key = block.begin + static_cast<int32_t>(first);
  const size_t at = ScratchIndex(block, key);
  const int64_t stride = t.k_stride_row;
  const BF16* const k = static_cast<const BF16*>(KRow(t, key));
  if (t.block_table) PrefetchPaged(t, KSide(t), BF16(), key, n, block.walk_end, dim);
  const bool prefetches = num_rows > 1 || PrefetchesRows(BF16(), num_rows, stride, dim);
  const int32_t ahead = !t.block_table && prefetches && HasRowsToCome(block.walk_end - key, n, kPrefetchPairRows) ? 1 : 0;
  size_t r = 0;
  for (; r + 4 <= num_rows; r += 4) DotPairChunk<4>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
  for (; r + 2 <= num_rows; r += 2) DotPairChunk<2>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
  for (; r < num_rows; ++r) DotPairChunk<1>(k, stride, rows[r].q, pitch, dim, n, r == 0 ? ahead : 0, rows[r].p + at);
}

// ---- Softmax

template <>
constexpr size_t kPolicyVectors<Bf16Products> = 2;

template <>
constexpr bool kScalesScores<Bf16Products> = true;
template <class V>
HWY_INLINE V ScaleScore(Bf16Products /*policy*/, V s, float factor) {
  return hn::Mul(s, hn::Set(DF(), factor));
}

// As MoveMax of prefill_bf16.cc.
HWY_INLINE float MoveMax(Bf16Products /*policy*/, float m, float top) {
  const float steps = hn::GetLane(hn::Ceil(hn::Set(DF(), top - m)));
  return steps > 300.0f ? top : m + steps;
}

// P as bf16, two vectors of scores to one of P in the first half of their place: P of key j is half a float from p, j halves on.
HWY_INLINE float ExpBlock(Bf16Products /*policy*/, float* p, size_t first, size_t last, float m, const float* /*v_scale*/) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const VF max = hn::Set(d, m);
  VF sum = hn::Zero(d);
  for (size_t j = first; j < last; j += 2 * N) {
    const VF low = Exp2ForBf16(hn::Sub(hn::Load(d, p + j), max)), high = Exp2ForBf16(hn::Sub(hn::Load(d, p + j + N), max));
    const VF weights{_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.raw, low.raw)))};
    hn::Store(weights, d, p + j / 2);
    sum = AddPairs(weights, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// ---- P V

// Columns of V whose pairs are interleaved by halves of 128-bit blocks; the rest, in order.
HWY_INLINE size_t InterleavedColumns(size_t dim) { return dim / 32 * 32; }

HWY_INLINE void InterleavePairs(const uint16_t* low, const uint16_t* high, VF& x, VF& y) {
  const D16 d16;
  const auto l = hn::LoadU(d16, low), h = hn::LoadU(d16, high);
  x = hn::BitCast(DF(), hn::InterleaveLower(d16, l, h));
  y = hn::BitCast(DF(), hn::InterleaveUpper(d16, l, h));
}
// Up to 16 columns in order.
HWY_INLINE VF PairsInOrder(const uint16_t* low, const uint16_t* high, size_t n) {
  const DU du;
  const hn::Rebind<uint16_t, DU> d16;
  const auto l = hn::PromoteTo(du, LoadFirstN(d16, low, n)), h = hn::PromoteTo(du, LoadFirstN(d16, high, n));
  return hn::BitCast(DF(), hn::Or(l, hn::ShiftLeft<16>(h)));
}

// Pairs of keys: row 2 i at low + i * step, row 2 i + 1 at high + i * step; P of pair i at p[i] of a row, rows kBlockKeys apart.
struct PairRun {
  const uint16_t *low, *high;
  int64_t step;
  size_t pairs;
};

// O[row][c .. c + 16 W) += P V for R rows, R W accumulators, W even, c within the interleaved columns.
template <int R, int W>
HWY_INLINE void PvPairColumns(const PairRun& run, const float* HWY_RESTRICT p, size_t c, float* HWY_RESTRICT o, size_t pitch) {
  const DF d;
  const D16 d16;
  const size_t N = hn::Lanes(d);
  const auto at = [&](size_t row, size_t i) HWY_ATTR { return o + (row < R ? row : 0) * pitch + c + (i < W ? i : 0) * N; };
  VF a0 = hn::Load(d, at(0, 0)), a1 = hn::Load(d, at(0, 1)), a2 = hn::Load(d, at(0, 2)), a3 = hn::Load(d, at(0, 3));
  VF a4 = hn::Load(d, at(0, 4)), a5 = hn::Load(d, at(0, 5)), a6 = hn::Load(d, at(0, 6)), a7 = hn::Load(d, at(0, 7));
  VF b0 = hn::Load(d, at(1, 0)), b1 = hn::Load(d, at(1, 1)), b2 = hn::Load(d, at(1, 2)), b3 = hn::Load(d, at(1, 3));
  VF b4 = hn::Load(d, at(1, 4)), b5 = hn::Load(d, at(1, 5)), b6 = hn::Load(d, at(1, 6)), b7 = hn::Load(d, at(1, 7));
  const uint16_t *low = run.low + c, *high = run.high + c;
  for (size_t i = 0; i < run.pairs; ++i, low += run.step, high += run.step) {
    const VF pa = hn::Set(d, p[i]), pb = hn::Set(d, p[(R > 1 ? kBlockKeys : 0) + i]);
    const auto load = [&](const uint16_t* row, size_t at_column) HWY_ATTR {
      const auto x = LoadLine(d16, row + (at_column < 16 * W ? at_column : 0));
      asm volatile("" ::: "memory");  // in this order: each row to its end
      return x;
    };
    const auto l0 = load(low, 0), l1 = load(low, 32), l2 = load(low, 64), l3 = load(low, 96);
    const auto h0 = load(high, 0), h1 = load(high, 32), h2 = load(high, 64), h3 = load(high, 96);
    const auto step = [&](auto l, auto h, VF& ax, VF& ay, VF& bx, VF& by) HWY_ATTR {
      const VF x = hn::BitCast(d, hn::InterleaveLower(d16, l, h)), y = hn::BitCast(d, hn::InterleaveUpper(d16, l, h));
      ax = DotPairs(x, pa, ax), ay = DotPairs(y, pa, ay);
      if constexpr (R > 1) bx = DotPairs(x, pb, bx), by = DotPairs(y, pb, by);
    };
    step(l0, h0, a0, a1, b0, b1);
    if constexpr (W > 2) step(l1, h1, a2, a3, b2, b3);
    if constexpr (W > 4) step(l2, h2, a4, a5, b4, b5), step(l3, h3, a6, a7, b6, b7);
  }
  const auto store = [&](VF a, VF b, size_t i) HWY_ATTR {
    hn::Store(a, d, at(0, i));
    if constexpr (R > 1) hn::Store(b, d, at(1, i));
  };
  store(a0, b0, 0), store(a1, b1, 1);
  if constexpr (W > 2) store(a2, b2, 2), store(a3, b3, 3);
  if constexpr (W > 4) store(a4, b4, 4), store(a5, b5, 5), store(a6, b6, 6), store(a7, b7, 7);
}

// R rows of O += P V for a run of pairs.
template <int R>
HWY_NOINLINE void PvPairs(const PairRun& run, const float* HWY_RESTRICT p, size_t dim, float* HWY_RESTRICT o, size_t pitch) {
  constexpr int W = 8;
  const DF d;
  const size_t N = hn::Lanes(d), whole = InterleavedColumns(dim);
  size_t c = 0;
  for (; c + W * N <= whole; c += W * N) PvPairColumns<R, W>(run, p, c, o, pitch);
  for (; c + 4 * N <= whole; c += 4 * N) PvPairColumns<R, 4>(run, p, c, o, pitch);
  for (; c < whole; c += 2 * N) PvPairColumns<R, 2>(run, p, c, o, pitch);
  for (; c < dim; c += N) {
    const uint16_t *low = run.low + c, *high = run.high + c;
    for (size_t i = 0; i < run.pairs; ++i, low += run.step, high += run.step) {
      const VF x = PairsInOrder(low, high, HWY_MIN(N, dim - c));
      for (size_t r = 0; r < R; ++r) {
        float* const to = o + r * pitch + c;
        hn::Store(DotPairs(x, hn::Set(d, p[r * kBlockKeys + i]), hn::Load(d, to)), d, to);
      }
    }
  }
}

// One pair, one row, V of keys without permission as 0, as their P is: the same arithmetic as PvPairs.
HWY_INLINE void PvPairSelect(const uint16_t* low, const uint16_t* high, bool use_low, bool use_high, float p, float weight, size_t dim, float* o) {
  const DF d;
  const size_t N = hn::Lanes(d), whole = InterleavedColumns(dim);
  const VF mask = hn::BitCast(d, hn::Set(DU(), (use_low ? 0xFFFFu : 0u) | (use_high ? 0xFFFF0000u : 0u)));
  const VF pair = hn::Set(d, p), factor = hn::Set(d, weight);
  const VF weights = hn::And(mask, MakePairs(hn::Mul(LowOfPair(pair), factor), hn::Mul(HighOfPair(pair), factor)));
  const auto add = [&](VF v, float* to) HWY_ATTR { hn::Store(DotPairs(hn::And(mask, v), weights, hn::Load(d, to)), d, to); };
  size_t c = 0;
  for (; c < whole; c += 2 * N) {
    VF x, y;
    InterleavePairs(low + c, high + c, x, y);
    add(x, o + c), add(y, o + c + N);
  }
  for (; c < dim; c += N) add(PairsInOrder(low + c, high + c, HWY_MIN(N, dim - c)), o + c);
}

HWY_INLINE void PvPart(Bf16Products /*policy*/, const AttentionTask& t, DecodeRow* rows, size_t num_rows, const DecodeBlock& block, size_t first,
                       size_t n, MaxRule rule, bool redo) {
  const size_t dim = static_cast<size_t>(t.v_head_dim), pitch = PadToVector(dim);
  const int64_t stride = t.v_stride_row;
  const int32_t from = block.begin + static_cast<int32_t>(first), to = from + static_cast<int32_t>(n);
  // From an even key to an even key, but at the block's ends.
  const int32_t end = to == block.end ? to : to / 2 * 2;
  const auto v_row = [&](int32_t key) HWY_ATTR { return static_cast<const uint16_t*>(VRow(t, key)); };
  for (int32_t key = first == 0 ? from : from / 2 * 2; key < end;) {
    const int32_t in_stride = KeysInStride(t, key, end - key);
    PairRun run = {v_row(key), nullptr, 2 * stride, 1};
    int32_t next = key + 2;
    bool use_low = true, use_high = true;
    if (key % 2 != 0 || key + 1 == end) {
      run.high = run.low;
      use_low = key % 2 == 0, use_high = !use_low;
      next = key + 1;
    } else if (in_stride >= 2) {
      run.high = run.low + stride;
      if (!redo) run.pairs = static_cast<size_t>(in_stride / 2), next = key + in_stride / 2 * 2;
    } else {
      run.high = v_row(key + 1);
    }
    const size_t pair = block.half * kDecodeKeys + static_cast<size_t>(key - block.kb) / 2;
    if (redo) {
      const int32_t low = key / 2 * 2;
      const auto permitted = [&](int32_t j) HWY_ATTR { return IsPermitted(rows[0], block, j); };
      PvPairSelect(run.low, run.high, use_low && permitted(low), use_high && permitted(low + 1), rows[0].p[pair], rule.weight, dim, rows[0].block_o);
    } else {
      if (t.block_table) {
        PrefetchPaged(t, VSide(t), BF16(), key, 2 * run.pairs, block.walk_end, dim);
      } else if ((num_rows > 1 || PrefetchesRows(BF16(), num_rows, stride, dim)) && HasRowsToCome(block.walk_end - key, 2 * run.pairs, kPrefetchPairRows)) {
        for (size_t i = 0; i < 2 * run.pairs; ++i) {
          PrefetchRow(reinterpret_cast<const BF16*>(run.low) + (static_cast<int64_t>(i) + kPrefetchPairRows) * stride, dim);
        }
      }
      size_t r = 0;
      for (; r + 2 <= num_rows; r += 2) PvPairs<2>(run, rows[r].p + pair, dim, rows[r].block_o, pitch);
      for (; r < num_rows; ++r) PvPairs<1>(run, rows[r].p + pair, dim, rows[r].block_o, pitch);
    }
    key = next;
  }
}

// o += block_o, whose columns are put in order, and which is left 0.
HWY_INLINE void AddBlock(Bf16Products /*policy*/, const AttentionTask& t, const DecodeRow& row, size_t pitch, bool /*redo*/) {
  alignas(64) static constexpr uint32_t kFirst[16] = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
  alignas(64) static constexpr uint32_t kSecond[16] = {8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
  const DF d;
  const size_t N = hn::Lanes(d), whole = InterleavedColumns(static_cast<size_t>(t.v_head_dim));
  const auto add = [&](VF v, size_t c) HWY_ATTR {
    hn::Store(hn::Add(hn::Load(d, row.o + c), v), d, row.o + c);
    hn::Store(hn::Zero(d), d, row.block_o + c);
  };
  size_t c = 0;
  for (; c < whole; c += 2 * N) {
    const VF x = hn::Load(d, row.block_o + c), y = hn::Load(d, row.block_o + c + N);
    add(VF{_mm512_permutex2var_ps(x.raw, _mm512_load_si512(kFirst), y.raw)}, c);
    add(VF{_mm512_permutex2var_ps(x.raw, _mm512_load_si512(kSecond), y.raw)}, c + N);
  }
  for (; c < pitch; c += N) add(hn::Load(d, row.block_o + c), c);
}

HWY_NOINLINE void DecodeBf16(const AttentionTask& t, const KernelScratch& s) { Decode(Bf16Products(), t, s); }
HWY_NOINLINE void DecodeI8(const AttentionTask& t, const KernelScratch& s) { Decode(Int8Products(), t, s); }

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_HAVE_BF16_TARGET
