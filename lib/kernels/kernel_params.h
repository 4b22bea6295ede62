// What a kernel is handed: plain structs, no std types. This header is compiled for every target, so its functions are static: an inline
// one could be merged by the linker with a copy compiled for AVX-512.
#ifndef FOVEA_LIB_KERNELS_KERNEL_PARAMS_H_
#define FOVEA_LIB_KERNELS_KERNEL_PARAMS_H_

#include <float.h>
#include <math.h>
#include <stdint.h>

namespace fovea {

// Keys of one block: scores of a query tile for this many keys stay in L1 between QK^T and PV. Blocks start at multiples of it, on
// every target, so that it is part of the numerical contract (rescaled P of a block, see lib/NUMERICS.md).
constexpr int32_t kBlockKeys = 128;
// Calls of up to this many rows per kv head (q_len * group) take the dot-product kernel.
constexpr int32_t kDecodeMaxRows = 8;
// Keys of a turn of decode at most (kChunkKeys).
constexpr int32_t kMaxTurnKeys = 16;
// Pages of up to this many keys are gathered turn by turn: decode's f32 products.
constexpr int32_t kMaxGatheredPage = 2;
// Vectors of query lanes in the largest prefill register tile.
constexpr int32_t kTileVecs = 3;
// Tiles of one task at most.
constexpr int32_t kMaxTiles = 32;

// How elements are stored, as fovea_dtype (I8: K and V only); and what a pointer to those that C++ does not know points to.
enum StorageType : int32_t { kF32 = 1, kBF16 = 2, kF16 = 3, kI8 = 6 };
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct I8 {
  int8_t bits;
};
static inline int64_t StorageBytes(int32_t dtype) { return dtype == kF32 ? 4 : dtype == kI8 ? 1 : 2; }

// Columns of a row that can be quantized as it is appended to an int8 cache: it passes through the stack.
constexpr int64_t kMaxQuantizedColumns = 4096;

// Element i of an array of that type.
static inline const void* At(const void* base, int32_t dtype, int64_t i) {
  return static_cast<const char*>(base) + i * StorageBytes(dtype);
}
static inline void* At(void* base, int32_t dtype, int64_t i) { return static_cast<char*>(base) + i * StorageBytes(dtype); }

// Scores out, as fovea_scores_stage.
enum ScoresStage : int32_t { kScoresNone, kScoresRaw, kScoresSoftCapped, kScoresBiased, kScoresProbabilities };

// A worker's scratch, carved by plan.cc. Lanes are padded to whole tiles; every array is aligned to 64 bytes.
struct KernelScratch {
  float* qt;          // [tile][head_dim][lanes]     prefill: Q^T, scaled (bf16: not).  decode: [2][row][head_dim padded], q and decode_i8's digits
  float* ot;          // [tile][v_head_dim][lanes]   prefill: O^T.                      decode: [2][row][v_head_dim padded], O and that of a block
  float* p;           // [tile][kBlockKeys][lanes]   prefill: S^T, then P^T.            decode: [row][2][kBlockKeys / 2]
  float* m;           // [tile][lanes]               running maximum, log2 units
  float* l;           // [tile][2][lanes]            running sum: of earlier blocks, and of this one
  float* bias;        // [kBlockKeys][lanes]         one tile's mask and bias, transposed; -inf = forbidden.  decode: as p
  float* allow;       // [kBlockKeys][lanes]         1 = permitted, for the redo of poisoned tiles
  float* lane_f;      // [tile][3][lanes]            alibi slope (log2 units), new maximum, poison flag
  int32_t* lane_i;    // [tile][3][lanes]            first and last permitted key of the lane, and its position
  const float** rows; // [2][kBlockKeys]             K and V rows of the block
  float* copy;        // [2][kBlockKeys][row]        contiguous f32 copies of K and V rows that are converted or alias in L1, or null; bf16: as
                      // they are, V in pairs of keys; decode_i8: 16 rows of K, transposed
  char* turn;         // [kMaxTurnKeys][row]         decode: K or V rows of one turn, gathered from pages of up to kMaxGatheredPage keys; else null
};

// One task: the lanes [lane_begin, lane_begin + lane_count) of one sequence and kv head over its keys [kv_begin, kv_end). Lane n is query
// row n / group and head n % group of the kv head's group (LaneQuery). Pointers are those of the sequence and the group's first head; strides
// are in elements.
struct AttentionTask {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  float* lse;           // null: not wanted
  float* stats;         // [head][row][2] (m, l) for probabilities; null: not wanted
  float* scores;        // scores kernel only
  const uint8_t* mask;  // null: none
  const void* bias;     // null: none
  const float* slopes;  // [group] ALiBi, or null
  const float* sinks;   // [group], or null
  int32_t q_dtype, k_dtype, v_dtype, out_dtype, bias_dtype;  // StorageType
  int64_t q_stride_head, q_stride_row;
  int64_t k_stride_row, v_stride_row;
  const float* k_scale;          // of int8 rows, by which a row is multiplied; null: 1
  const float* v_scale;
  const float* k_channel_scale;  // [head_dim], by which a column of K is multiplied; null: 1
  int64_t k_scale_stride_row, v_scale_stride_row;
  const int32_t* block_table;            // of the sequence, null: not paged. Key j is row j % page_size of page block_table[j / page_size]
  int64_t k_stride_page, v_stride_page, k_scale_stride_page, v_scale_stride_page;
  int32_t page_size, num_pages;
  int64_t out_stride_head, out_stride_row;
  int64_t lse_stride_head, lse_stride_row;
  int64_t stats_stride_head;
  int64_t scores_stride_head, scores_stride_row, scores_stride_col;
  int64_t mask_stride_head, mask_stride_row, mask_stride_col;
  int64_t bias_stride_head, bias_stride_row, bias_stride_col;
  int64_t mask_first;  // key of column 0 of mask and bias: 0, or kv_len - mask_kv_len if aligned right
  int64_t mask_cols;   // their columns
  int64_t scores_cols; // columns of a row of scores, >= kv_len
  int64_t window_left, window_right;  // -1 = open
  int64_t pos0;        // pos(i) = i + pos0
  const int32_t* q_positions;   // of the sequence: pos(i) = q_positions[i], or null
  const int32_t* kv_positions;  // of the sequence: key j stands at kv_positions[j], forbidden if negative; or null: at j
  bool reads_far;  // K and V lie farther than L2: no task before this one has read them, and the call's are more than kNearBytes
  int32_t causal;
  int32_t group, q_len, kv_len, head_dim, v_head_dim;
  int32_t lane_begin, lane_count;
  int32_t kv_begin, kv_end;
  int32_t kv_prefetch_end;  // kv_end, or where the task after this one goes on from there, the end of what those after it read
  int32_t has_sink_here;  // this task's range of keys is the first: it starts from the sink
  float sm_scale;         // natural
  float soft_cap;         // natural, 0 = none
  int32_t scores_stage;
  // Split over keys: results go here, [lane][v_head_dim] normalised, and [lane][2] (m, l); null: to out and lse.
  float* part_out;
  float* part_ml;
};

// Rows of a sequence's heads, to be rotated (rotary_dim > 0) and converted. Pointers are those of the first row and
// head, and of the sequence's table at position 0; strides are in elements.
struct RopeTask {
  const void* x;
  void* out;
  const void* cos;
  const void* sin;
  const int32_t* positions;  // [rows], or null: position + row
  int64_t position;
  int64_t rows, heads, head_dim, rotary_dim;
  int64_t x_stride_head, x_stride_row;
  int64_t out_stride_head, out_stride_row;
  int64_t cos_stride_row, sin_stride_row;
  int32_t x_dtype, out_dtype, cos_dtype, sin_dtype;  // StorageType
  bool interleaved;
};

// Rows of an int8 cache: those that `rows` gives (rotated, if it says so) as f32, quantized. rows.out is int8.
struct QuantizeTask {
  RopeTask rows;
  float* scale;  // of the first row and head
  int64_t scale_stride_head, scale_stride_row;
  const float* channel_scale;  // of the first head, or null; columns are divided by it first
  int64_t channel_scale_stride_head;
};

// K and V of which more than this is read before the same rows are read again come from L3 or from memory.
constexpr int64_t kNearBytes = 4 << 20;
static inline int64_t KvRowBytes(const AttentionTask& t) { return t.head_dim * StorageBytes(t.k_dtype) + t.v_head_dim * StorageBytes(t.v_dtype); }

// Row of q and head of the group.
struct QueryLane {
  int64_t row, head;
};
// What lane n stands for; past the last lane nobody reads it. 32 bits hold every lane (WorkspaceBytes): 64-bit divisions, by 1 as well, took a tenth
// of a small call (bench_api).
static inline QueryLane LaneQuery(const AttentionTask& t, int64_t n) {
  if (t.group == 1) return {n, 0};
  const int32_t lane = static_cast<int32_t>(n);
  return {lane / t.group, lane % t.group};
}
static inline const void* QRow(const AttentionTask& t, const QueryLane& query) {
  return At(t.q, t.q_dtype, query.head * t.q_stride_head + query.row * t.q_stride_row);
}

static inline int64_t Position(const AttentionTask& t, int64_t i) { return t.q_positions ? t.q_positions[i] : i + t.pos0; }

// The task's keys that mask and bias have columns for: [*lo, *hi], empty if *lo > *hi.
static inline void TaskKeys(const AttentionTask& t, int32_t* lo, int32_t* hi) {
  int64_t last = int64_t{t.kv_end} - 1;
  if ((t.mask || t.bias) && last > t.mask_first + t.mask_cols - 1) last = t.mask_first + t.mask_cols - 1;
  *lo = t.kv_begin;
  *hi = static_cast<int32_t>(last < t.kv_begin ? int64_t{t.kv_begin} - 1 : last);
}

// What causality and window leave to row i of the task's keys: [*lo, *hi], empty if *lo > *hi. With kv_positions these are not keys but the
// positions at which a key may stand.
static inline void RowRange(const AttentionTask& t, int64_t i, int32_t* lo, int32_t* hi) {
  const int64_t pos = Position(t, i);
  int64_t first = 0, last = INT32_MAX;
  if (!t.kv_positions) {
    TaskKeys(t, lo, hi);
    first = *lo, last = *hi;
  }
  if (t.causal && last > pos) last = pos;
  if (t.window_left >= 0 && first < pos - t.window_left) first = pos - t.window_left;
  if (t.window_right >= 0 && last > pos + t.window_right) last = pos + t.window_right;
  if (first > last) first = t.kv_begin, last = int64_t{t.kv_begin} - 1;
  *lo = static_cast<int32_t>(first);
  *hi = static_cast<int32_t>(last);
}

// Whether rows this far apart fall on few L1 sets: a stride in bytes within a cache line of a multiple of 4 KB.
static inline bool Aliases(int64_t stride_bytes) {
  const int64_t r = stride_bytes & 4095;
  return stride_bytes != 0 && (r <= 64 || r >= 4032);
}

// Whether the tiles read K or V rows from a contiguous f32 copy of the block rather than where they lie. The same bits.
static inline bool CopiesRows(int32_t dtype, int64_t stride_row) { return dtype != kF32 || Aliases(stride_row * StorageBytes(dtype)); }

// LSE, natural, of a running maximum m in log2 units and a sum l. A row that saw no key but its sink gives the sink back exactly; where
// every score is -FLT_MAX (log2 units end there), so is LSE. A sink of -inf is none.
static inline float Lse(double m, double l, const float* sink) {
  const double lowest = -static_cast<double>(FLT_MAX);
  if (l == 0.0) return -HUGE_VALF;
  const bool only_sink = sink && *sink > -HUGE_VALF && l == 1.0;
  if (only_sink && (m == static_cast<double>(*sink * 1.44269504088896341f) || (m == lowest && *sink < -2e38f))) return *sink;
  if (m <= lowest && m >= 1.01 * lowest && l > 0.0) return -FLT_MAX;
  return static_cast<float>((m + log2(l)) * 0.693147180559945309417);
}

}  // namespace fovea

#endif  // FOVEA_LIB_KERNELS_KERNEL_PARAMS_H_
