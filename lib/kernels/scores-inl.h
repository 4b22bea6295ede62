// Scores out: a pass of its own over Q K^T that writes one stage (RAW, SOFT_CAPPED, BIASED, PROBABILITIES) of the score matrix, since attention
// itself never has it. The same tile as prefill; PROBABILITIES uses the rows' final (m, l).

#if defined(FOVEA_LIB_KERNELS_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_SCORES_INL_H_
#undef FOVEA_LIB_KERNELS_SCORES_INL_H_
#else
#define FOVEA_LIB_KERNELS_SCORES_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/query_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <int NV>
HWY_INLINE void ScoresTile(const AttentionTask& t, const KernelScratch& s, Tile& tile) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const bool every_key = t.scores_stage == kScoresRaw || t.scores_stage == kScoresSoftCapped;
  const bool probabilities = t.scores_stage == kScoresProbabilities;
  ScoreRule score = MakeScoreRule(t, probabilities ? kLog2E : 1.0f);
  if (t.scores_stage == kScoresRaw) score.cap = 0.0f, score.q_factor = t.sm_scale;
  if (every_key) {
    score.alibi = score.bias = false;
    for (size_t lane = 0; lane < L; ++lane) tile.lo[lane] = 0, tile.hi[lane] = t.kv_len - 1;
    tile.any_lo = 0, tile.any_hi = t.kv_len - 1;
  }
  int32_t lo = tile.any_lo, hi = tile.any_hi;
  const int32_t* const kv_positions = every_key ? nullptr : t.kv_positions;
  if (kv_positions) TaskKeys(t, &lo, &hi);
  TransposeQ(t, tile, score.q_factor);
  const float empty = probabilities ? 0.0f : kMinusInf;
  float* rows[kTileVecs * hn::MaxLanes(DF())];  // of scores, a lane's each
  for (int32_t lane = 0; lane < tile.lanes; ++lane) {
    const QueryLane query = LaneQuery(t, tile.first_lane + lane);
    rows[lane] = t.scores + query.head * t.scores_stride_head + query.row * t.scores_stride_row;
  }
  const auto fill = [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int32_t lane = 0; lane < tile.lanes; ++lane) {
      float* row = rows[lane];
      for (int64_t j = begin; j < end; ++j) row[j * t.scores_stride_col] = empty;
    }
  };
  const bool use_bias = !every_key && (t.mask || t.bias);
  for (int32_t kb = 0; kb < t.kv_len; kb += kBlockKeys) {
    const int32_t kb_end = HWY_MIN(kb + kBlockKeys, t.kv_len);
    const int32_t begin = HWY_MAX(kb, lo), end = HWY_MIN(kb_end, hi + 1);
    if (begin >= end) {
      fill(kb, kb_end);
      continue;
    }
    const int32_t g0 = begin / kTileKeys * kTileKeys;
    LoadRows(t, s, kb, begin, end - 1);
    if (use_bias) TransposeBias(t, tile, L, g0, end, s.bias + static_cast<size_t>(g0 - kb) * L);
    fill(kb, g0);
    for (int32_t g = g0; g < end; g += kTileKeys) {
      QkStoreGroup<NV>(tile, s.rows + (g - kb), static_cast<size_t>(t.head_dim), nullptr, tile.p);
      for (int32_t key = g; key < HWY_MIN(g + kTileKeys, end); ++key) {
        float* p = tile.p + static_cast<size_t>(key - g) * L;
        for (size_t c = 0; c < L; c += N) {
          const float* bias = use_bias ? s.bias + static_cast<size_t>(key - kb) * L : nullptr;
          auto x = MaskedScore(tile, score, KeyPosition(kv_positions, key, t.kv_end), bias, nullptr, hn::Load(d, p + c), c);
          if (probabilities) {
            const auto l = hn::Load(d, tile.l + c), zero = hn::Zero(d);
            const auto weight = hn::Div(Exp2(d, hn::Sub(x, hn::Load(d, tile.m + c))), l);
            // (m, l) of few rows are those of the decode kernel, whose dot products round differently: large scores could give more than 1.
            const auto most = hn::Set(d, 1.0f);
            x = hn::IfThenElse(hn::Or(hn::Eq(x, hn::Set(d, kMinusInf)), hn::Eq(l, zero)), zero, hn::IfThenElse(hn::Gt(weight, most), most, weight));
          }
          hn::Store(x, d, p + c);
        }
        for (int32_t lane = 0; lane < tile.lanes; ++lane) rows[lane][key * t.scores_stride_col] = p[lane];
      }
    }
    fill(end, kb_end);
  }
  fill(t.kv_len, t.scores_cols);
}

HWY_NOINLINE void ScoresF32(const AttentionTask& t, const KernelScratch& s) {
  if (t.scores_cols == 0) return;
  Tile tiles[kMaxTiles];
  const size_t num_tiles = SetUpTiles(t, s, tiles);
  for (size_t n = 0; n < num_tiles; ++n) {
    Tile& tile = tiles[n];
    for (int32_t lane = 0; lane < static_cast<int32_t>(TileLanes(tile)); ++lane) {
      const QueryLane query = LaneQuery(t, tile.first_lane + lane);
      const bool have = t.stats && lane < tile.lanes;
      const float* const stats = have ? t.stats + query.head * t.stats_stride_head + query.row * 2 : nullptr;
      tile.m[lane] = have ? stats[0] : 0.0f;
      tile.l[lane] = have ? stats[1] : 1.0f;
    }
    if (tile.vecs == 3) {
      ScoresTile<3>(t, s, tile);
    } else if (tile.vecs == 2) {
      ScoresTile<2>(t, s, tile);
    } else {
      ScoresTile<1>(t, s, tile);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
