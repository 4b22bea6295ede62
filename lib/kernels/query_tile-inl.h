// A tile of query lanes: NV vectors of (row, head of the group) pairs, their Q^T and O^T, and which keys they may attend to. Shared by the
// prefill and the scores kernel; decode takes rows of K and V from here, linear the transposition.

#if defined(FOVEA_LIB_KERNELS_QUERY_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_QUERY_TILE_INL_H_
#undef FOVEA_LIB_KERNELS_QUERY_TILE_INL_H_
#else
#define FOVEA_LIB_KERNELS_QUERY_TILE_INL_H_
#endif

#include <string.h>

#include "hwy/highway.h"
#include "lib/kernels/score-inl.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Its pointers are a tile's slices of KernelScratch; L lanes, of which `lanes` are queries and the rest zeros without permitted keys.
struct Tile {
  float *qt, *ot, *p, *m, *block_l, *slope, *mx, *poison, *l;
  int32_t *lo, *hi, *pos;
  int32_t first_lane, lanes;
  int32_t vecs;  // L / N: kTileVecs, fewer in a task's last tile
  int32_t any_lo, any_hi;  // union of the lanes' ranges (RowRange); empty if any_lo > any_hi
  int32_t all_lo, all_hi;  // intersection
};

HWY_INLINE size_t TileLanes(const Tile& tile) { return static_cast<size_t>(tile.vecs) * hn::Lanes(DF()); }

HWY_INLINE size_t SetUpTiles(const AttentionTask& t, const KernelScratch& s, Tile* tiles) {
  const size_t head_dim = static_cast<size_t>(t.head_dim), v_head_dim = static_cast<size_t>(t.v_head_dim);
  const size_t N = hn::Lanes(DF()), L = kTileVecs * N;
  size_t n = 0;
  tiles[0] = {};  // there is a lane, and the loop sets all fields, but g++ would warn
  for (int32_t first = 0; first < t.lane_count; first += static_cast<int32_t>(L), ++n) {
    Tile& tile = tiles[n];
    tile.qt = s.qt + n * head_dim * L;
    tile.ot = s.ot + n * v_head_dim * L;
    tile.p = s.p + n * kBlockKeys * L;
    tile.m = s.m + n * L;
    tile.l = s.l + n * 2 * L;
    tile.block_l = tile.l + L;
    tile.slope = s.lane_f + n * 3 * L;
    tile.mx = tile.slope + L;
    tile.poison = tile.mx + L;
    tile.lo = s.lane_i + n * 3 * L;
    tile.hi = tile.lo + L;
    tile.pos = tile.hi + L;
    tile.first_lane = t.lane_begin + first;
    tile.lanes = HWY_MIN(t.lane_count - first, static_cast<int32_t>(L));
    tile.vecs = static_cast<int32_t>((static_cast<size_t>(tile.lanes) + N - 1) / N);
    tile.any_lo = tile.all_hi = INT32_MAX;
    tile.any_hi = tile.all_lo = -1;
    for (int32_t lane = 0; lane < static_cast<int32_t>(TileLanes(tile)); ++lane) {
      int32_t lo = 0, hi = -1, pos = 0;
      float slope = 0.0f;
      if (lane < tile.lanes) {
        const QueryLane query = LaneQuery(t, tile.first_lane + lane);
        RowRange(t, query.row, &lo, &hi);
        pos = static_cast<int32_t>(Position(t, query.row));
        if (t.slopes) slope = t.slopes[query.head];
        if (lo <= hi) {
          tile.any_lo = HWY_MIN(tile.any_lo, lo);
          tile.any_hi = HWY_MAX(tile.any_hi, hi);
        }
        tile.all_lo = HWY_MAX(tile.all_lo, lo);
        tile.all_hi = HWY_MIN(tile.all_hi, hi);
      }
      tile.lo[lane] = lo;
      tile.hi[lane] = hi;
      tile.pos[lane] = pos;
      tile.slope[lane] = slope;
    }
  }
  return n;
}

// Keys that some tile may need.
HWY_INLINE void KeyUnion(const AttentionTask& t, const Tile* tiles, size_t num_tiles, int32_t* lo, int32_t* hi) {
  *lo = INT32_MAX;
  *hi = -1;
  if (t.kv_positions) return TaskKeys(t, lo, hi);
  for (size_t n = 0; n < num_tiles; ++n) {
    *lo = HWY_MIN(*lo, tiles[n].any_lo);
    *hi = HWY_MAX(*hi, tiles[n].any_hi);
  }
}

// O = +0, and m and l before the first key.
HWY_INLINE void StartTile(const AttentionTask& t, const Tile& tile) {
  const size_t L = TileLanes(tile);
  memset(tile.ot, 0, static_cast<size_t>(t.v_head_dim) * L * sizeof(float));
  for (int32_t lane = 0; lane < static_cast<int32_t>(L); ++lane) {
    StartRow(t, lane < tile.lanes ? LaneQuery(t, tile.first_lane + lane).head : 0, tile.m + lane, tile.l + lane);
  }
}

#if HWY_TARGET != HWY_SCALAR
using D4 = hn::FixedTag<float, 4>;
template <class V>
HWY_INLINE void Transpose4x4(V& r0, V& r1, V& r2, V& r3) {
  const D4 d;
  const V lo01 = hn::InterleaveLower(d, r0, r1), lo23 = hn::InterleaveLower(d, r2, r3);
  const V hi01 = hn::InterleaveUpper(d, r0, r1), hi23 = hn::InterleaveUpper(d, r2, r3);
  r0 = hn::ConcatLowerLower(d, lo23, lo01);
  r1 = hn::ConcatUpperUpper(d, lo23, lo01);
  r2 = hn::ConcatLowerLower(d, hi23, hi01);
  r3 = hn::ConcatUpperUpper(d, hi23, hi01);
}
#endif

// Columns of Q or O rows that are transposed at once, so that rows of other types than f32 can be converted in a buffer on the stack.
constexpr size_t kTransposeColumns = 128;

// Q^T[k][lane] = Q[lane][k] * factor for the columns k of [first, first + dim), zeros in lanes past the last query. Scales of K's columns follow.
HWY_INLINE void TransposeQColumns(const AttentionTask& t, const Tile& tile, float factor, size_t first, size_t dim) {
  const size_t L = TileLanes(tile);
  HWY_ALIGN float buffer[4 * kTransposeColumns];
  const auto row = [&](int32_t lane, size_t slot) HWY_ATTR {
    return RowAsF32(t.q_dtype, QRow(t, LaneQuery(t, tile.first_lane + lane)), first, dim, buffer + slot * kTransposeColumns);
  };
  for (int32_t lane = 0; lane < static_cast<int32_t>(L); ++lane) {
    float* dst = tile.qt + first * L + static_cast<size_t>(lane);
    size_t k = 0;
#if HWY_TARGET != HWY_SCALAR
    if (lane + 4 <= tile.lanes) {
      const D4 d;
      const float *q0 = row(lane, 0), *q1 = row(lane + 1, 1), *q2 = row(lane + 2, 2), *q3 = row(lane + 3, 3);
      const auto f = hn::Set(d, factor);
      for (; k + 4 <= dim; k += 4) {
        auto r0 = hn::Mul(hn::LoadU(d, q0 + k), f), r1 = hn::Mul(hn::LoadU(d, q1 + k), f);
        auto r2 = hn::Mul(hn::LoadU(d, q2 + k), f), r3 = hn::Mul(hn::LoadU(d, q3 + k), f);
        Transpose4x4(r0, r1, r2, r3);
        hn::StoreU(r0, d, dst + k * L);
        hn::StoreU(r1, d, dst + (k + 1) * L);
        hn::StoreU(r2, d, dst + (k + 2) * L);
        hn::StoreU(r3, d, dst + (k + 3) * L);
      }
      for (; k < dim; ++k) {
        dst[k * L] = q0[k] * factor;
        dst[k * L + 1] = q1[k] * factor;
        dst[k * L + 2] = q2[k] * factor;
        dst[k * L + 3] = q3[k] * factor;
      }
      lane += 3;
      continue;
    }
#endif
    const float* src = lane < tile.lanes ? row(lane, 0) : nullptr;
    for (; k < dim; ++k) dst[k * L] = src ? src[k] * factor : 0.0f;
  }
  if (!t.k_channel_scale) return;
  const DF d;
  for (size_t k = first; k < first + dim; ++k) {
    const auto scale = hn::Set(d, t.k_channel_scale[k]);
    for (size_t c = 0; c < L; c += hn::Lanes(d)) hn::Store(hn::Mul(hn::Load(d, tile.qt + k * L + c), scale), d, tile.qt + k * L + c);
  }
}
HWY_INLINE void TransposeQ(const AttentionTask& t, const Tile& tile, float factor) {
  const size_t dim = static_cast<size_t>(t.head_dim);
  for (size_t k = 0; k < dim; k += kTransposeColumns) TransposeQColumns(t, tile, factor, k, HWY_MIN(dim - k, kTransposeColumns));
}

// K or V, as AttentionTask has them.
struct Side {
  const void* base;
  int32_t dtype;
  int64_t stride_row, stride_page;
  const float* scale;  // of rows, or null
  int64_t scale_stride_row, scale_stride_page;
};
HWY_INLINE Side KSide(const AttentionTask& t) {
  return {t.k, t.k_dtype, t.k_stride_row, t.k_stride_page, t.k_scale, t.k_scale_stride_row, t.k_scale_stride_page};
}
HWY_INLINE Side VSide(const AttentionTask& t) {
  return {t.v, t.v_dtype, t.v_stride_row, t.v_stride_page, t.v_scale, t.v_scale_stride_row, t.v_scale_stride_page};
}

// Where a key lies.
struct KeyPlace {
  int64_t page, row;
};
HWY_INLINE KeyPlace PlaceOf(const AttentionTask& t, int32_t key) {
  if (!t.block_table) return {0, key};
  // An entry that no permitted key needs may be anything, but its rows are read where they share a block with permitted keys: any
  // row serves, since what it gives is replaced.
  const int32_t index = t.page_size == 1 ? key : key / t.page_size, page = t.block_table[index];
  return {page >= 0 && page < t.num_pages ? page : 0, key - index * t.page_size};
}

HWY_INLINE const void* SideRow(const AttentionTask& t, const Side& side, int32_t key) {
  const KeyPlace place = PlaceOf(t, key);
  return At(side.base, side.dtype, place.page * side.stride_page + place.row * side.stride_row);
}
// The scale of that row, if the side has any; those of its page are scale_stride_row apart.
HWY_INLINE const float* SideScale(const AttentionTask& t, const Side& side, int32_t key) {
  const KeyPlace place = PlaceOf(t, key);
  return side.scale + (place.page * side.scale_stride_page + place.row * side.scale_stride_row);
}

HWY_INLINE const void* KRow(const AttentionTask& t, int32_t key) { return SideRow(t, KSide(t), key); }
HWY_INLINE const void* VRow(const AttentionTask& t, int32_t key) { return SideRow(t, VSide(t), key); }

// How many of the n keys from `key` on lie one row stride apart: those of its page.
HWY_INLINE int32_t KeysInStride(const AttentionTask& t, int32_t key, int32_t n) {
  return t.block_table ? HWY_MIN(n, t.page_size - key % t.page_size) : n;
}

// Whole groups: a key outside [lo, hi] repeats the nearest inside, whose score is then replaced.
template <class T>
HWY_INLINE void RepeatRows(int32_t kb, int32_t lo, int32_t hi, const T** rows) {
  for (int32_t j = lo / kTileKeys * kTileKeys; j < lo; ++j) rows[j - kb] = rows[lo - kb];
  const int32_t end = HWY_MIN((hi / kTileKeys + 1) * kTileKeys, kb + kBlockKeys);
  for (int32_t j = hi + 1; j < end; ++j) rows[j - kb] = rows[hi - kb];
}

HWY_INLINE void LoadSide(const AttentionTask& t, const Side& side, int32_t kb, int32_t lo, int32_t hi, const float** rows, float* copy,
                         size_t dim) {
  const int64_t row_bytes = side.stride_row * StorageBytes(side.dtype);
  for (int32_t j = lo, end; j <= hi; j = end) {
    end = j + KeysInStride(t, j, hi + 1 - j);
    const char* const first = static_cast<const char*>(SideRow(t, side, j));
    const float* const scale = side.scale ? SideScale(t, side, j) : nullptr;
    for (int32_t key = j; key < end; ++key) {
      const char* const row = first + (key - j) * row_bytes;
      float* const to = copy ? copy + static_cast<size_t>(key - kb) * dim : nullptr;
      if (scale) {
        DequantizeRow(reinterpret_cast<const I8*>(row), scale[(key - j) * side.scale_stride_row], dim, to);
      } else if (to) {
        ConvertRowToF32(side.dtype, row, dim, to);
      }
      rows[key - kb] = to ? to : reinterpret_cast<const float*>(row);
    }
  }
  RepeatRows(kb, lo, hi, rows);
}

// Row pointers of block kb, of which the keys [lo, hi] are read. Rows of other types than f32 are converted to copies, int8 times its row's scale,
// and rows that alias in L1 copied; the same bits.
HWY_INLINE void LoadRows(const AttentionTask& t, const KernelScratch& s, int32_t kb, int32_t lo, int32_t hi) {
  const size_t k_dim = static_cast<size_t>(t.head_dim), v_dim = static_cast<size_t>(t.v_head_dim);
  LoadSide(t, KSide(t), kb, lo, hi, s.rows, s.copy && CopiesRows(t.k_dtype, t.k_stride_row) ? s.copy : nullptr, k_dim);
  if (!t.v) return;  // the scores kernel needs K only
  LoadSide(t, VSide(t), kb, lo, hi, s.rows + kBlockKeys,
           s.copy && CopiesRows(t.v_dtype, t.v_stride_row) ? s.copy + kBlockKeys * k_dim : nullptr, v_dim);
}

// Mask and bias of the tile's lanes for keys [begin, end): bias[key - begin][lane].
HWY_INLINE void TransposeBias(const AttentionTask& t, const Tile& tile, size_t L, int32_t begin, int32_t end, float* bias) {
  const uint8_t* last_mask = nullptr;
  const void* last_bias = nullptr;
  const size_t keys = static_cast<size_t>(end - begin);
  for (size_t lane = 0; lane < L; ++lane) {
    const bool is_query = static_cast<int32_t>(lane) < tile.lanes;
    const QueryLane query = LaneQuery(t, tile.first_lane + static_cast<int64_t>(lane));
    const uint8_t* mask_row = is_query ? MaskRow(t, query.row, query.head) : last_mask;
    const void* bias_row = is_query ? BiasRow(t, query.row, query.head) : last_bias;
    if (lane > 0 && mask_row == last_mask && bias_row == last_bias) {
      for (size_t j = 0; j < keys; ++j) bias[j * L + lane] = bias[j * L + lane - 1];
    } else {
      LoadBias(t, mask_row, bias_row, begin, end, bias + lane, L);
    }
    last_mask = mask_row;
    last_bias = bias_row;
  }
}

// S^T of one group of keys, in registers, to its rows.
template <int NV, class V>
HWY_INLINE void StoreGroup(float* HWY_RESTRICT p, V a0, V b0, V c0, V a1, V b1, V c1, V a2, V b2, V c2, V a3, V b3, V c3, V a4,
                           V b4, V c4, V a5, V b5, V c5, V a6, V b6, V c6, V a7, V b7, V c7) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const auto store = [&](size_t r, V a, V b, V c) HWY_ATTR {
    if (r >= kTileKeys) return;
    hn::Store(a, d, p + r * L);
    if constexpr (NV > 1) hn::Store(b, d, p + r * L + N);
    if constexpr (NV > 2) hn::Store(c, d, p + r * L + 2 * N);
  };
  store(0, a0, b0, c0), store(1, a1, b1, c1), store(2, a2, b2, c2), store(3, a3, b3, c3);
  store(4, a4, b4, c4), store(5, a5, b5, c5), store(6, a6, b6, c6), store(7, a7, b7, c7);
}

// S^T of one group of keys, stored.
template <int NV, bool kAhead = false, class T>
HWY_NOINLINE void QkStoreGroup(const Tile& tile, const T* const* k, size_t dim, const Ahead* ahead, float* HWY_RESTRICT p) {
  const DF d;
  using V = hn::Vec<DF>;
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
  V b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, c4 = a0, c5 = a0, c6 = a0, c7 = a0;
  QkTile<NV, false, kAhead>(k, tile.qt, dim, 0, ahead, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7,
                            b7, c7);
  StoreGroup<NV>(p, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
}

// Where key `key` stands; nowhere past the last.
HWY_INLINE int32_t KeyPosition(const int32_t* kv_positions, int32_t key, int32_t end) {
  return !kv_positions ? key : key < end ? kv_positions[key] : -1;
}

// The score of the key that stands at `key` for the lanes at c: options applied, -inf where forbidden. allow (optional) notes permission.
template <class V>
HWY_INLINE V MaskedScore(const Tile& tile, const ScoreRule& score, int32_t key, const float* bias, float* allow, V s, size_t c) {
  const DF d;
  const DI di;
  const auto j = hn::Set(di, key);
  const V dist = hn::Abs(hn::ConvertTo(d, hn::Sub(j, hn::Load(di, tile.pos + c))));
  const V b = bias ? hn::Load(d, bias + c) : hn::Zero(d);
  const V x = AdjustScore(d, score, s, hn::Mul(hn::Load(d, tile.slope + c), hn::Set(d, score.unit)), dist, b);
  const auto outside =
      hn::RebindMask(d, hn::Or(hn::Lt(j, hn::Load(di, tile.lo + c)), hn::Gt(j, hn::Load(di, tile.hi + c))));
  const V minus_inf = hn::Set(d, kMinusInf);
  const auto forbidden = hn::Or(outside, hn::Eq(b, minus_inf));
  if (allow) hn::Store(hn::IfThenElse(forbidden, hn::Zero(d), hn::Set(d, 1.0f)), d, allow + c);
  return hn::IfThenElse(forbidden, minus_inf, x);
}

enum WhichLanes { kAllLanes, kPoisonedLanes };

// O * inv to the columns [first, first + dim) of the rows of those lanes where write is not 0. + 0.0f: no output is -0.
HWY_INLINE void WriteColumns(const AttentionTask& t, const Tile& tile, const float* inv, const float* write, size_t first, size_t dim) {
  const size_t L = TileLanes(tile);
  HWY_ALIGN float buffer[4 * kTransposeColumns];
  const int32_t dtype = t.part_out ? int32_t{kF32} : t.out_dtype;
  const auto place = [&](int32_t lane) HWY_ATTR {
    const int64_t n = tile.first_lane + lane;
    const QueryLane query = LaneQuery(t, n);
    const int64_t row = t.part_out ? (n - t.lane_begin) * t.v_head_dim : query.head * t.out_stride_head + query.row * t.out_stride_row;
    return At(t.part_out ? t.part_out : t.out, dtype, row + static_cast<int64_t>(first));
  };
  // f32 is written where it belongs; other types go through the buffer.
  const auto out_row = [&](int32_t lane, size_t slot) HWY_ATTR {
    return dtype == kF32 ? static_cast<float*>(place(lane)) : buffer + slot * kTransposeColumns;
  };
  const auto put = [&](int32_t lane, const float* row) HWY_ATTR {
    if (dtype != kF32) ConvertRowFromF32(dtype, row, dim, place(lane));
  };
  for (int32_t lane = 0; lane < tile.lanes; ++lane) {
    const float* src = tile.ot + first * L + static_cast<size_t>(lane);
    size_t r = 0;
#if HWY_TARGET != HWY_SCALAR
    const D4 d4;
    if (lane + 4 <= tile.lanes && hn::AllTrue(d4, hn::Gt(hn::LoadU(d4, write + lane), hn::Zero(d4)))) {
      float *o0 = out_row(lane, 0), *o1 = out_row(lane + 1, 1), *o2 = out_row(lane + 2, 2), *o3 = out_row(lane + 3, 3);
      const auto f = hn::LoadU(d4, inv + lane), zero = hn::Zero(d4);
      for (; r + 4 <= dim; r += 4) {
        auto r0 = hn::Add(hn::Mul(hn::LoadU(d4, src + r * L), f), zero);
        auto r1 = hn::Add(hn::Mul(hn::LoadU(d4, src + (r + 1) * L), f), zero);
        auto r2 = hn::Add(hn::Mul(hn::LoadU(d4, src + (r + 2) * L), f), zero);
        auto r3 = hn::Add(hn::Mul(hn::LoadU(d4, src + (r + 3) * L), f), zero);
        Transpose4x4(r0, r1, r2, r3);
        hn::StoreU(r0, d4, o0 + r);
        hn::StoreU(r1, d4, o1 + r);
        hn::StoreU(r2, d4, o2 + r);
        hn::StoreU(r3, d4, o3 + r);
      }
      for (; r < dim; ++r) {
        o0[r] = src[r * L] * inv[lane] + 0.0f;
        o1[r] = src[r * L + 1] * inv[lane + 1] + 0.0f;
        o2[r] = src[r * L + 2] * inv[lane + 2] + 0.0f;
        o3[r] = src[r * L + 3] * inv[lane + 3] + 0.0f;
      }
      put(lane, o0), put(lane + 1, o1), put(lane + 2, o2), put(lane + 3, o3);
      lane += 3;
      continue;
    }
#endif
    if (write[lane] == 0.0f) continue;
    float* out = out_row(lane, 0);
    for (; r < dim; ++r) out[r] = src[r * L] * inv[lane] + 0.0f;
    put(lane, out);
  }
}

// O / l / weight to the lanes' rows, and with kAllLanes LSE and (m, l) as well. Returns whether O is not finite in a written lane, and notes those
// lanes as poisoned; kPoisonedLanes writes only the lanes noted by the call before.
HWY_INLINE bool WriteTile(const AttentionTask& t, const Tile& tile, WhichLanes which, float weight) {
  const DF d;
  const size_t L = TileLanes(tile), dim = static_cast<size_t>(t.v_head_dim), N = hn::Lanes(d);
  float* const inv = tile.mx;  // 1 / l; lanes that saw no key give 0
  float* const write = tile.p;
  bool poisoned = false;
  for (size_t c = 0; c < L; c += N) {
    const auto zero = hn::Zero(d), one = hn::Set(d, 1.0f);
    auto check = zero, check1 = zero, check2 = zero, check3 = zero;  // 0 * x is NaN exactly where x is NaN or Inf
    const auto add = [&](size_t r, auto& to) HWY_ATTR { to = hn::MulAdd(hn::Load(d, tile.ot + r * L + c), zero, to); };
    size_t r = 0;
    for (; r + 4 <= dim; r += 4) add(r, check), add(r + 1, check1), add(r + 2, check2), add(r + 3, check3);
    for (; r < dim; ++r) add(r, check);
    check = hn::Add(hn::Add(check, check1), hn::Add(check2, check3));
    const auto l = hn::Load(d, tile.l + c);
    hn::Store(hn::IfThenElse(hn::Eq(l, zero), zero, hn::Div(hn::Set(d, 1.0f / weight), l)), d, inv + c);
    const auto was = which == kAllLanes ? one : hn::Load(d, tile.poison + c);
    hn::Store(was, d, write + c);
    hn::Store(hn::IfThenElse(hn::Eq(check, check), zero, was), d, tile.poison + c);
  }
  for (int32_t lane = 0; lane < tile.lanes; ++lane) {
    poisoned |= tile.poison[lane] != 0.0f;
    if (which == kAllLanes) WriteRowStats(t, tile.first_lane + lane, tile.m[lane], tile.l[lane]);
  }
  for (size_t r = 0; r < dim; r += kTransposeColumns) WriteColumns(t, tile, inv, write, r, HWY_MIN(dim - r, kTransposeColumns));
  return poisoned;
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
