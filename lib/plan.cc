#include "lib/plan.h"

#include <algorithm>

#include "lib/carver.h"
#include "lib/error.h"
#include "lib/validate.h"

namespace fovea {
namespace {

// Split points over keys, for calls of few rows: parts of at least kMinPartKeys keys, at most kMaxParts of them, and at most PartRows
// partial rows per kv head (fewer where there are many kv heads to share the work), so that the workspace stays small and does not grow
// with kv_len.
constexpr int64_t kMinPartKeys = 512;
constexpr int64_t kMaxParts = 32;
int64_t PartRows(int64_t num_kv_heads) { return std::clamp<int64_t>(1024 / num_kv_heads, 1, 256); }

// Q^T, O^T and P^T of a task's tiles should stay in L2 beside the K and V rows that pass through.
constexpr int64_t kTaskScratchBudget = 256 * 1024;
// More tiles where K or V rows are copied: rows 4 KB and more apart are as many pages, and each task walks them all.
constexpr int64_t kCopyScratchBudget = 1280 * 1024;

// Keys per part for a sequence of `rows` lanes per kv head; kv_len or more: not split.
int64_t PartKeys(const fovea_attention_params& p, int64_t rows, int64_t kv_len, uint32_t flags) {
  const int64_t parts = rows > 0 ? std::min(kMaxParts, PartRows(p.num_kv_heads) / rows) : 1;
  if (parts <= 1 || (flags & FOVEA_BATCH_INVARIANT)) return std::max<int64_t>(kv_len, 1);
  return std::max(kMinPartKeys, RoundUp(CeilDiv(kv_len, parts), kBlockKeys));
}

// The most part rows that a kv head of a sequence of up to `rows` lanes can need. Monotone in rows.
int64_t MaxPartRows(const fovea_attention_params& p, int64_t rows, uint32_t flags) {
  return flags & FOVEA_BATCH_INVARIANT ? 0 : std::min(kMaxParts * rows, PartRows(p.num_kv_heads));
}

bool IsDecodeRows(const fovea_attention_params& p, int64_t rows, uint32_t flags) {
  // The dot-product kernel does not know kv_positions yet.
  return rows <= kDecodeMaxRows && !(flags & FOVEA_BATCH_INVARIANT) && !p.kv_positions;
}

// Bytes of what a TLB entry maps at least.
constexpr int64_t kMemoryPage = 4096;
// The order of tasks: for each part of the keys all heads, or for each head all parts. Where the heads' rows of a key lie side by side, or a cache's
// pages are short, a page of memory holds rows of several heads, which take it in turn while the TLB knows it: decode from [B, S, H, D] is 1.4 to 1.5
// times as fast for it.
bool HeadsTakeTurns(const fovea_attention_params& p) {
  const bool short_pages = p.block_table && p.k.stride_head * StorageBytes(p.k.dtype) < kMemoryPage;
  return p.num_kv_heads > 1 && (short_pages || p.k.stride_head < p.k.stride_row);
}

bool NeedsCopy(const fovea_attention_params& p) {
  return CopiesRows(p.k.dtype, p.k.stride_row) || CopiesRows(p.v.dtype, p.v.stride_row);
}

int32_t MaxTiles(const fovea_attention_params& p, int64_t tile_lanes) {
  const int64_t tile_bytes = tile_lanes * (p.head_dim + p.v_head_dim + kBlockKeys) * static_cast<int64_t>(sizeof(float));
  return static_cast<int32_t>(std::clamp<int64_t>((NeedsCopy(p) ? kCopyScratchBudget : kTaskScratchBudget) / tile_bytes, 1, kMaxTiles));
}

KernelScratch CarveScratch(const fovea_attention_params& p, int32_t vector_lanes, Carver* c) {
  const int64_t N = vector_lanes, L = N * kTileVecs, T = MaxTiles(p, L);
  const int64_t lanes = std::max<int64_t>(T * L, 2 * kDecodeMaxRows);
  KernelScratch s;
  s.qt = c->Take<float>(lanes * RoundUp(p.head_dim, N));
  s.ot = c->Take<float>(lanes * RoundUp(p.v_head_dim, N));
  s.p = c->Take<float>(lanes * kBlockKeys);
  s.m = c->Take<float>(lanes);
  s.l = c->Take<float>(2 * lanes);
  s.bias = c->Take<float>(std::max<int64_t>(L, kDecodeMaxRows) * kBlockKeys);
  s.allow = c->Take<float>(L * kBlockKeys);
  s.lane_f = c->Take<float>(3 * lanes);
  s.lane_i = c->Take<int32_t>(3 * lanes);
  s.rows = c->Take<const float*>(2 * kBlockKeys);
  s.copy = NeedsCopy(p) ? c->Take<float>(kBlockKeys * (p.head_dim + p.v_head_dim)) : nullptr;
  const bool gathers = p.block_table && p.page_size <= kMaxGatheredPage;
  s.turn = gathers ? c->Take<char>(kMaxTurnKeys * std::max(p.head_dim, p.v_head_dim) * static_cast<int64_t>(sizeof(float))) : nullptr;
  return s;
}

// The plan's parts, in the order in which they lie in memory. With base null the pointers are meaningless and used() is the size.
void Layout(const fovea_attention_params& p, uint32_t flags, const Target& target, int32_t workers, Carver* c, fovea_plan* plan) {
  const int32_t N = target.table->vector_lanes();
  const int64_t group = p.num_q_heads / p.num_kv_heads, tile_lanes = int64_t{N} * kTileVecs;
  const int64_t total_rows = TotalQRows(p);
  int64_t rows = INT64_MAX, heads = 0, seq_tasks = 0, tile_tasks = 0, tasks = 0, merges = 0, part_rows = 0, stats = 0;
  // Rows of the longest sequence that these arguments allow, not that they have: the bound is monotone.
  const int64_t longest = p.cu_seqlens_q ? p.total_q : p.q_len;
  bool bad = __builtin_mul_overflow(longest, group, &rows) || __builtin_mul_overflow(p.batch, p.num_kv_heads, &heads);
  const int64_t part_bound = MaxPartRows(p, rows, flags);
  // Tasks of a kv head: its tiles, and for short sequences each tile once per part.
  bad |= __builtin_mul_overflow(heads, 2 + (part_bound ? kMaxParts + part_bound / tile_lanes : 0), &seq_tasks);
  bad |= __builtin_mul_overflow(total_rows, p.num_q_heads, &tile_tasks);
  bad |= __builtin_mul_overflow(heads, part_bound, &part_rows);
  if (part_bound) merges = heads;
  bad |= __builtin_add_overflow(seq_tasks, tile_tasks / tile_lanes, &tasks);
  if (p.scores_stage == FOVEA_SCORES_PROBABILITIES) bad |= __builtin_mul_overflow(tile_tasks, 2, &stats);
  bad |= part_rows > INT32_MAX;
  int64_t part_floats;
  bad |= __builtin_mul_overflow(part_rows, p.v_head_dim, &part_floats);
  if (bad) part_floats = INT64_MAX;  // times 4 overflows: Take refuses it
  plan->tasks[0] = c->Take<PlanTask>(tasks);
  plan->tasks[1] = c->Take<PlanTask>(merges);
  plan->tasks[2] = c->Take<PlanTask>(p.scores_stage != FOVEA_SCORES_NONE ? tasks : 0);
  plan->part_out = c->Take<float>(part_floats);
  plan->part_ml = c->Take<float>(2 * part_rows);
  plan->stats = c->Take<float>(stats);
  if (stats == 0) plan->stats = nullptr;
  plan->stats_rows = total_rows;
  Carver one(nullptr);
  CarveScratch(p, N, &one);
  plan->scratch_bytes = one.overflow() ? SIZE_MAX / 2 : one.used();
  int64_t scratch;
  if (__builtin_mul_overflow(plan->scratch_bytes, static_cast<size_t>(workers), &scratch)) scratch = INT64_MAX;
  plan->scratch = c->Take<char>(scratch);
}

float TaskCost(const fovea_attention_params& p, const AttentionTask& range, const PlanTask& task, int64_t group) {
  // Keys of the first and the last row: exact enough for causal and windows.
  AttentionTask t = range;
  t.kv_begin = task.kv_begin;
  t.kv_end = task.kv_end;
  int32_t lo0, hi0, lo1, hi1;
  RowRange(t, task.lane_begin / group, &lo0, &hi0);
  RowRange(t, (task.lane_begin + task.lane_count - 1) / group, &lo1, &hi1);
  const double keys = t.kv_positions ? t.kv_end - t.kv_begin : 0.5 * ((hi0 - lo0 + 1) + (hi1 - lo1 + 1));
  const double dims = static_cast<double>(p.head_dim + p.v_head_dim);
  // In FLOP: 2 per multiply-add and lane, and what reading a K or V element costs (4 bytes at some 20 GB/s beside some 50 GFLOP/s).
  return static_cast<float>(dims * (keys * (2.0 * task.lane_count + 10.0) + 10.0 * task.lane_count));
}

}  // namespace

void FillRange(const fovea_attention_params& p, int64_t b, AttentionTask* t) {
  const int64_t kv_len = KvLen(p, b);
  t->q_len = static_cast<int32_t>(QLen(p, b));
  t->kv_len = static_cast<int32_t>(kv_len);
  t->kv_begin = 0;
  t->kv_end = t->kv_len;
  t->causal = p.causal;
  t->window_left = p.window_left;
  t->window_right = p.window_right;
  t->pos0 = PositionOffset(p, b);
  t->q_positions = QPositions(p, b);
  t->kv_positions = KvPositions(p, b);
  t->mask = static_cast<const uint8_t*>(p.mask.data);
  t->bias = p.bias.data;
  t->bias_dtype = p.bias.dtype;
  t->mask_cols = p.mask_kv_len ? p.mask_kv_len : p.cu_seqlens_kv ? kv_len : p.kv_len;
  t->mask_first = p.mask_align == FOVEA_MASK_ALIGN_RIGHT ? kv_len - t->mask_cols : 0;
}

int64_t TotalQRows(const fovea_attention_params& p) { return p.cu_seqlens_q ? p.total_q : p.batch * p.q_len; }

fovea_status WorkspaceBytes(const fovea_attention_params& p, uint32_t flags, const Target& target, int32_t workers,
                            size_t* bytes) {
  // Lanes are counted in int32.
  const int64_t longest = p.cu_seqlens_q ? p.total_q : p.q_len, group = p.num_q_heads / p.num_kv_heads;
  if (group > INT32_MAX || longest > INT32_MAX / std::max<int64_t>(group, 1)) {
    return Fail(FOVEA_ERR_UNSUPPORTED, "%s = %lld: with %lld query heads per kv head, must be at most 2^31 - 1 rows",
                p.cu_seqlens_q ? "total_q" : "q_len", static_cast<long long>(longest), static_cast<long long>(group));
  }
  Carver c(nullptr);
  c.Take<fovea_plan>(1);
  fovea_plan plan;
  Layout(p, flags, target, workers, &c, &plan);
  if (c.overflow()) return Fail(FOVEA_ERR_INVALID_ARGUMENT, "batch, heads and lengths: the workspace overflows size_t");
  *bytes = c.used() + kAlign;  // the caller's memory has any alignment
  return FOVEA_OK;
}

fovea_status BuildPlan(const fovea_attention_params& p, uint32_t flags, const Target& target, int32_t workers, void* mem,
                       size_t bytes, fovea_plan** out) {
  size_t need = 0;
  FOVEA_TRY(WorkspaceBytes(p, flags, target, workers, &need));
  if (bytes < need) {
    return Fail(FOVEA_ERR_WORKSPACE_TOO_SMALL, "workspace_bytes = %zu: must be at least %zu for these shapes and %d threads", bytes,
                need, workers);
  }
  Carver c(AlignUp(mem));
  fovea_plan* plan = c.Take<fovea_plan>(1);
  plan->lengths_hash = LengthsHash(p);
  plan->params = p;
  plan->target = &target;
  plan->flags = flags;
  plan->workers = workers;
  plan->num_phases = 0;
  plan->cost = 0.0;
  Layout(p, flags, target, workers, &c, plan);

  const int64_t group = p.num_q_heads / p.num_kv_heads;
  const int64_t tile_lanes = int64_t{target.table->vector_lanes()} * kTileVecs;
  // Several tiles share the K and V rows that a task reads; but all workers should have several tasks, and none be large beside their share:
  // a long sequence among short ones is cut finer than they are.
  double pairs = 0.0;  // (lane, key)
  for (int64_t b = 0; b < p.batch; ++b) pairs += static_cast<double>(QLen(p, b) * p.num_q_heads) * static_cast<double>(KvLen(p, b));
  const double task_pairs = pairs / (4.0 * workers);
  const int64_t max_tiles = MaxTiles(p, tile_lanes);

  const bool in_turn = HeadsTakeTurns(p);
  int64_t num_attention = 0, num_merge = 0, num_scores = 0;
  int32_t part_row = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    AttentionTask range;
    FillRange(p, b, &range);
    const int64_t rows = QLen(p, b) * group, kv_len = KvLen(p, b);
    const int64_t part_keys = PartKeys(p, rows, kv_len, flags), parts = std::max<int64_t>(CeilDiv(kv_len, part_keys), 1);
    const bool decode = IsDecodeRows(p, rows, flags);
    const double tiles = task_pairs / static_cast<double>(std::clamp<int64_t>(kv_len, 1, part_keys) * tile_lanes);
    const int64_t tiles_per_task = static_cast<int64_t>(std::clamp(tiles, 1.0, static_cast<double>(max_tiles)));
    const int64_t lanes_per_task = decode ? kDecodeMaxRows : tiles_per_task * tile_lanes;
    for (int64_t i = 0; i < p.num_kv_heads * parts; ++i) {
      const int64_t h = in_turn ? i % p.num_kv_heads : i / parts, part = in_turn ? i / p.num_kv_heads : i % parts;
      for (int64_t lane = 0; lane < rows; lane += lanes_per_task) {
        PlanTask task;
        task.decode = decode;
        task.seq = static_cast<int32_t>(b);
        task.kv_head = static_cast<int32_t>(h);
        task.lane_begin = static_cast<int32_t>(lane);
        task.lane_count = static_cast<int32_t>(std::min(lanes_per_task, rows - lane));
        task.kv_begin = static_cast<int32_t>(part * part_keys);
        task.kv_end = static_cast<int32_t>(std::min(kv_len, (part + 1) * part_keys));
        task.first_part = parts > 1 ? static_cast<int32_t>(part_row + (h * parts + part) * rows + lane) : -1;
        task.num_parts = 1;
        task.cost = TaskCost(p, range, task, group);
        plan->cost += static_cast<double>(task.cost);
        plan->tasks[0][num_attention++] = task;
      }
    }
    for (int32_t h = 0; h < p.num_kv_heads; ++h) {
      if (parts > 1 && rows > 0) {
        const int32_t head_part = part_row;
        part_row += static_cast<int32_t>(parts * rows);
        plan->tasks[1][num_merge++] = {false, static_cast<int32_t>(b), h, 0, static_cast<int32_t>(rows), 0, range.kv_len, head_part,
                                       static_cast<int32_t>(parts), static_cast<float>(parts * rows * p.v_head_dim)};
      }
      if (p.scores_stage == FOVEA_SCORES_NONE) continue;
      for (int64_t lane = 0; lane < rows; lane += tile_lanes) {
        plan->tasks[2][num_scores++] = {false, static_cast<int32_t>(b), h, static_cast<int32_t>(lane),
                                        static_cast<int32_t>(std::min(tile_lanes, rows - lane)), 0, range.kv_len, -1, 1,
                                        static_cast<float>(2 * kv_len * p.head_dim * tile_lanes)};
        plan->cost += static_cast<double>(plan->tasks[2][num_scores - 1].cost);
      }
    }
  }
  plan->num_tasks[0] = num_attention;
  plan->num_tasks[1] = num_merge;
  plan->num_tasks[2] = num_scores;
  for (int32_t phase = 0; phase < 3; ++phase) {
    if (plan->num_tasks[phase] > 0) plan->phases[plan->num_phases++] = static_cast<Phase>(phase);
  }
  if (workers > 1 && num_attention > 1) {
    // Largest first; ties in order of position (heads and parts as above, then rows), so that neighbours share K and V in L2.
    std::sort(plan->tasks[0], plan->tasks[0] + num_attention, [in_turn](const PlanTask& x, const PlanTask& y) {
      if (x.cost != y.cost) return x.cost > y.cost;
      if (x.seq != y.seq) return x.seq < y.seq;
      if (in_turn && x.kv_begin != y.kv_begin) return x.kv_begin < y.kv_begin;
      if (x.kv_head != y.kv_head) return x.kv_head < y.kv_head;
      return x.kv_begin != y.kv_begin ? x.kv_begin < y.kv_begin : x.lane_begin < y.lane_begin;
    });
  }
  *out = plan;
  return FOVEA_OK;
}

KernelChoice ChooseKernel(const fovea_attention_params& p, const Target& target, const PlanTask& task) {
  const KernelTable& table = *target.table;
  const bool bf16 = p.q.dtype == FOVEA_BF16 && p.k.dtype == FOVEA_BF16 && p.v.dtype == FOVEA_BF16;
  if (!task.decode) {
    if (table.prefill_bf16 && bf16) return {table.prefill_bf16, "bf16"};
    return {table.prefill_f32, "f32"};
  }
  // One row of q is bound by memory as it is.
  if (task.lane_count > 1 && table.decode_bf16 && bf16) return {table.decode_bf16, "bf16"};
  if (task.lane_count > 1 && table.decode_i8 && p.k.dtype == FOVEA_I8) return {table.decode_i8, "i8"};
  return {table.decode_f32, "f32"};
}

KernelScratch WorkerScratch(const fovea_plan& plan, int32_t worker) {
  Carver c(plan.scratch + static_cast<size_t>(worker) * plan.scratch_bytes);
  return CarveScratch(plan.params, plan.target->table->vector_lanes(), &c);
}

void FillTask(const fovea_plan& plan, const fovea_attention_params& p, const PlanTask& task, AttentionTask* t) {
  const int64_t b = task.seq, group = p.num_q_heads / p.num_kv_heads, head = task.kv_head * group;
  FillRange(p, b, t);
  const int64_t q_row = p.cu_seqlens_q ? p.cu_seqlens_q[b] : 0, q_batch = p.cu_seqlens_q ? 0 : b;
  const int64_t kv_row = p.cu_seqlens_kv ? p.cu_seqlens_kv[b] : 0, kv_batch = p.cu_seqlens_kv || p.block_table ? 0 : b;
  const auto at = [](const fovea_tensor& x, int64_t batch, int64_t h, int64_t row) {
    const int64_t offset = batch * x.stride_batch + h * x.stride_head + row * x.stride_row;
    return x.data ? At(x.data, x.dtype, offset) : nullptr;  // NULL where an extent is 0
  };
  t->q = at(p.q, q_batch, head, q_row);
  t->k = at(p.k, kv_batch, task.kv_head, kv_row);
  t->v = at(p.v, kv_batch, task.kv_head, kv_row);
  t->out = at(p.out, q_batch, head, q_row);
  t->q_dtype = p.q.dtype;
  t->k_dtype = p.k.dtype;
  t->v_dtype = p.v.dtype;
  t->out_dtype = p.out.dtype;
  t->lse = static_cast<float*>(at(p.lse, q_batch, head, q_row));
  t->scores = static_cast<float*>(at(p.scores, q_batch, head, q_row));
  const int64_t stats_row = p.cu_seqlens_q ? q_row : b * p.q_len;
  t->stats = plan.stats ? plan.stats + (head * plan.stats_rows + stats_row) * 2 : nullptr;
  t->stats_stride_head = plan.stats_rows * 2;
  const int64_t mask_row = p.mask_offsets ? p.mask_offsets[b] : 0;
  if (t->mask) t->mask += b * p.mask.stride_batch + head * p.mask.stride_head + mask_row * p.mask.stride_row;
  if (t->bias) t->bias = at(p.bias, b, head, mask_row);
  t->slopes = p.alibi_slopes ? p.alibi_slopes + b * p.alibi_stride_batch + head : nullptr;
  t->sinks = p.sinks ? p.sinks + head : nullptr;
  t->q_stride_head = p.q.stride_head;
  t->q_stride_row = p.q.stride_row;
  t->k_stride_row = p.k.stride_row;
  t->v_stride_row = p.v.stride_row;
  // Scales lie as the rows do; those of columns are a sequence's.
  t->k_scale = static_cast<const float*>(at(p.k_scale, kv_batch, task.kv_head, kv_row));
  t->v_scale = static_cast<const float*>(at(p.v_scale, kv_batch, task.kv_head, kv_row));
  t->k_channel_scale = static_cast<const float*>(at(p.k_channel_scale, b, task.kv_head, 0));
  t->k_scale_stride_row = p.k_scale.stride_row;
  t->v_scale_stride_row = p.v_scale.stride_row;
  t->k_scale_stride_page = p.k_scale.stride_batch;
  t->v_scale_stride_page = p.v_scale.stride_batch;
  t->block_table = p.block_table ? p.block_table + b * p.block_table_stride : nullptr;
  t->k_stride_page = p.k.stride_batch;
  t->v_stride_page = p.v.stride_batch;
  t->page_size = static_cast<int32_t>(p.page_size);
  t->num_pages = static_cast<int32_t>(p.num_pages);
  t->out_stride_head = p.out.stride_head;
  t->out_stride_row = p.out.stride_row;
  t->lse_stride_head = p.lse.stride_head;
  t->lse_stride_row = p.lse.stride_row;
  t->scores_stride_head = p.scores.stride_head;
  t->scores_stride_row = p.scores.stride_row;
  t->scores_stride_col = p.scores.stride_col;
  t->mask_stride_head = p.mask.stride_head;
  t->mask_stride_row = p.mask.stride_row;
  t->mask_stride_col = p.mask.stride_col;
  t->bias_stride_head = p.bias.stride_head;
  t->bias_stride_row = p.bias.stride_row;
  t->bias_stride_col = p.bias.stride_col;
  t->scores_cols = p.kv_len;
  t->group = static_cast<int32_t>(group);
  t->head_dim = static_cast<int32_t>(p.head_dim);
  t->v_head_dim = static_cast<int32_t>(p.v_head_dim);
  t->lane_begin = task.lane_begin;
  t->lane_count = task.lane_count;
  t->kv_begin = task.kv_begin;
  t->kv_end = task.kv_end;
  t->kv_prefetch_end = plan.workers == 1 && !HeadsTakeTurns(p) ? t->kv_len : task.kv_end;
  // Divided, since the product of all four may pass int64 where K and V are broadcast.
  t->reads_far = task.lane_count == t->q_len * group && t->kv_len * KvRowBytes(*t) > kNearBytes / (p.batch * p.num_kv_heads);
  t->has_sink_here = task.kv_begin == 0;
  t->sm_scale = p.scale;
  t->soft_cap = p.logits_soft_cap;
  t->scores_stage = p.scores_stage;
  t->part_out = task.first_part >= 0 ? plan.part_out + task.first_part * p.v_head_dim : nullptr;
  t->part_ml = task.first_part >= 0 ? plan.part_ml + int64_t{task.first_part} * 2 : nullptr;
}

uint64_t LengthsHash(const fovea_attention_params& p) {
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  const auto add = [&](const int32_t* values, int64_t n) {
    for (int64_t i = 0; values && i < n; ++i) hash = (hash ^ static_cast<uint32_t>(values[i])) * 0x100000001B3u;
  };
  add(p.q_lens, p.batch);
  add(p.kv_lens, p.batch);
  add(p.cu_seqlens_q, p.batch + 1);
  add(p.cu_seqlens_kv, p.batch + 1);
  add(p.q_offsets, p.batch);
  return hash;
}

double UsefulPairs(const fovea_attention_params& p) {
  double pairs = 0.0;
  for (int64_t b = 0; b < p.batch; ++b) {
    AttentionTask t;
    FillRange(p, b, &t);
    t.mask = nullptr;
    t.bias = nullptr;
    for (int64_t i = 0; i < t.q_len; ++i) {
      int32_t lo, hi;
      RowRange(t, i, &lo, &hi);
      if (!t.kv_positions) {
        pairs += hi - lo + 1;
        continue;
      }
      int64_t keys = 0;
      for (int64_t j = 0; j < t.kv_len; ++j) keys += t.kv_positions[j] >= lo && t.kv_positions[j] <= hi;
      pairs += static_cast<double>(keys);
    }
  }
  return pairs * static_cast<double>(p.num_q_heads);
}

}  // namespace fovea
