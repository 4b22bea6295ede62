// Prefill of bf16 q, k and v, both products by vdpbf16ps or bfdot: the tiles and blocks of prefill-inl.h over pairs of bf16.
//
//   S^T[key][lane]  = factor * sum over pairs of columns  K[key][2i, 2i+1] . Q^T[2i, 2i+1][lane]
//   O^T[col][lane] += sum over pairs of keys              V[2j, 2j+1][col] . P^T[2j, 2j+1][lane]
//
// K rows are read where they lie, as pairs; V is interleaved once per block into rows of pairs of keys, shared by the task's tiles. P is rounded to
// bf16 in the tile's epilogue, and l sums what was rounded. The maximum moves by whole powers of two, so that P, l and O are rescaled exactly.
#include "lib/kernels/bf16_target.h"
#if FOVEA_HAVE_BF16_TARGET
#include <string.h>

#include "lib/kernels/bf16_dot-inl.h"
#include "lib/kernels/prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

template <>
constexpr int32_t kPerElement<Bf16Pair> = 2;

// Q^T[pair of columns][lane], unscaled: scaled, Q would be rounded again. An odd last column is paired with 0.
HWY_INLINE void LoadQ(Bf16Pair /*type*/, const AttentionTask& t, const Tile& tile, const ScoreRule& /*score*/) {
  const size_t L = TileLanes(tile), dim = static_cast<size_t>(t.head_dim);
  for (size_t lane = 0; lane < L; ++lane) {
    const bool is_query = static_cast<int32_t>(lane) < tile.lanes;
    const BF16* q = static_cast<const BF16*>(is_query ? QRow(t, LaneQuery(t, tile.first_lane + static_cast<int64_t>(lane))) : t.q);
    for (size_t k = 0; k < dim; k += 2) {
      const Bf16Pair pair = {is_query ? q[k] : BF16{0}, is_query && k + 1 < dim ? q[k + 1] : BF16{0}};
      memcpy(tile.qt + k / 2 * L + lane, &pair, sizeof pair);
    }
  }
}

template <class V>
HWY_INLINE V ScaleScore(Bf16Pair /*type*/, V s, float factor) {
  return hn::Mul(s, hn::Set(DF(), factor));
}

// Row pointers of K, and V as rows of pairs of keys. K rows are copied where they alias in L1 or where an odd last column needs a 0 behind it.
// The partner of a key at the end of [lo, hi] is 0: its P is 0, but the V that lies there might be NaN.
HWY_INLINE void LoadBlock(Bf16Pair /*type*/, const AttentionTask& t, const KernelScratch& s, int32_t kb, int32_t lo, int32_t hi) {
  const size_t dim = static_cast<size_t>(t.head_dim), even_dim = (dim + 1) / 2 * 2, v_dim = static_cast<size_t>(t.v_head_dim);
  const bool copies = dim % 2 != 0 || Aliases(t.k_stride_row * StorageBytes(kBF16));
  const Bf16Pair** const rows = reinterpret_cast<const Bf16Pair**>(s.rows);
  for (int32_t j = lo; j <= hi; ++j) {
    const void* row = KRow(t, j);
    if (copies) {
      BF16* const to = reinterpret_cast<BF16*>(s.copy) + static_cast<size_t>(j - kb) * even_dim;
      to[even_dim - 1] = BF16{0};
      row = memcpy(to, row, dim * sizeof(BF16));
    }
    rows[j - kb] = static_cast<const Bf16Pair*>(row);
  }
  RepeatRows(kb, lo, hi, rows);

  const DU du;
  const hn::Rebind<uint16_t, DU> d16;
  const size_t N = hn::Lanes(du);
  uint32_t* const pairs = reinterpret_cast<uint32_t*>(s.copy + kBlockKeys * dim);
  for (int32_t j = lo / 2 * 2; j <= hi; j += 2) {
    uint32_t* const dst = pairs + static_cast<size_t>((j - kb) / 2) * v_dim;
    const uint16_t* const low = static_cast<const uint16_t*>(j >= lo ? VRow(t, j) : nullptr);
    const uint16_t* const high = static_cast<const uint16_t*>(j < hi ? VRow(t, j + 1) : nullptr);
    for (size_t c = 0; c < v_dim; c += N) {
      const size_t n = HWY_MIN(N, v_dim - c);
      const auto x = low ? LoadFirstN(d16, low + c, n) : hn::Zero(d16), y = high ? LoadFirstN(d16, high + c, n) : hn::Zero(d16);
      StoreFirstN(hn::Or(hn::PromoteTo(du, x), hn::ShiftLeft<16>(hn::PromoteTo(du, y))), du, dst + c, n);
    }
    rows[kBlockKeys + (j - kb) / 2] = reinterpret_cast<const Bf16Pair*>(dst);
  }
}

// m plus a whole number. Where that is far, m may be -FLT_MAX, no key yet, and mx is lost in the sum: nothing of what was weighs any longer.
template <class V>
HWY_INLINE V MoveMax(Bf16Pair /*type*/, V m, V mx, V& exponent) {
  const DF d;
  const V steps = hn::Ceil(hn::Sub(mx, m));
  exponent = hn::Neg(steps);
  return hn::IfThenElse(hn::Gt(steps, hn::Set(d, 300.0f)), mx, hn::Add(m, steps));
}
// alpha is a power of two: exact.
template <class V>
HWY_INLINE V ScaleWeights(Bf16Pair /*type*/, V p, V alpha) {
  return MakePairs(hn::Mul(LowOfPair(p), alpha), hn::Mul(HighOfPair(p), alpha));
}

// One vector column of a group: P = 2^(S - m) stored as pairs of keys, l += its sum, pair by pair.
template <class V>
HWY_INLINE void ExpColumn(Bf16Pair /*type*/, V s0, V s1, V s2, V s3, V s4, V s5, V s6, V s7, V m, float* p, size_t L,
                          float* HWY_RESTRICT l) {
  const DF d;
  V sum = hn::Load(d, l);
  const auto pair = [&](V low, V high, size_t r) HWY_ATTR {
    const V weights = RoundToPairs(Exp2ForBf16(hn::Sub(low, m)), Exp2ForBf16(hn::Sub(high, m)));
    hn::Store(weights, d, p + r * L);
    sum = AddPairs(weights, sum);
  };
  pair(s0, s1, 0), pair(s2, s3, 1), pair(s4, s5, 2), pair(s6, s7, 3);
  hn::Store(sum, d, l);
}

// PV where V may hold NaN or Inf in keys that a lane may not attend to: they are 0 then, as their P is, so that the bits are those of PvTile.
template <int NV>
HWY_NOINLINE void PvSelect(const Bf16Pair* const* v, size_t v_head_dim, size_t n, const float* HWY_RESTRICT p,
                           const float* HWY_RESTRICT allow, float weight, float* HWY_RESTRICT ot) {
  const DF d;
  const DU du;
  const size_t N = hn::Lanes(d), L = NV * N;
  for (size_t col = 0; col < v_head_dim; ++col) {
    for (size_t c = 0; c < L; c += N) {
      auto o = hn::Zero(d);
      for (size_t j = 0; j < n; ++j) {
        const auto yes = [&](size_t key, uint32_t half) HWY_ATTR {
          return hn::IfThenElseZero(hn::Gt(hn::Load(d, allow + (2 * j + key) * L + c), hn::Zero(d)), hn::BitCast(d, hn::Set(du, half)));
        };
        const auto x = hn::And(RepeatPair(v[j] + col, o), hn::Or(yes(0, 0xFFFFu), yes(1, 0xFFFF0000u)));
        o = DotPairs(x, ScaleWeights(Bf16Pair(), hn::Load(d, p + j * L + c), hn::Set(d, weight)), o);
      }
      hn::Store(hn::Add(hn::Load(d, ot + col * L + c), o), d, ot + col * L + c);
    }
  }
}

HWY_NOINLINE void PrefillBf16(const AttentionTask& t, const KernelScratch& s) { Prefill<Bf16Pair>(t, s); }

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_HAVE_BF16_TARGET
