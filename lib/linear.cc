#include "lib/linear.h"

#include <string.h>

#include <algorithm>

#include "lib/carver.h"
#include "lib/dtype.h"
#include "lib/fp_env.h"
#include "lib/kernels/kernel_params.h"
#include "lib/parallel_for.h"

namespace fovea {
namespace {

// Tokens whose x^T is packed at a time: W is read from memory once for each such chunk, and a task holds their sums for
// its rows.
constexpr int64_t kChunkTokens = 2048;
constexpr int64_t kChunkBytes = 64 << 20;  // of x^T, beyond one panel
// A task of dot products reads about this many elements of W.
constexpr int64_t kDotElements = 1 << 18;
constexpr int64_t kTasksPerWorker = 4;

// How a call is cut, and where its arrays lie in the workspace. Nothing here touches bits, except dots.
struct LinearPlan {
  bool dots;        // dot products over W in place, rather than tiles
  int64_t panel;    // lanes of a whole panel
  int64_t chunk;    // tokens packed at a time, a multiple of the vector
  int64_t rows;     // of W per task
  int64_t panels;   // per task
  int64_t x_pitch;  // dots
  float* x;         // dots: [tokens][x_pitch]; tiles: [k block][panel][k][lanes of the panel]
  float* bias;      // as f32, where it is of another type
  char* scratch;    // [worker][scratch_bytes]
  size_t scratch_bytes;
};

// One worker's.
struct LinearScratch {
  float* sums;  // dots: [tokens][rows]; tiles: [panel][rows][lanes of the panel]
  float* w;     // tiles: [group][k][tile_keys]
};

LinearScratch CarveScratch(const LinearPlan& plan, int64_t tokens, Carver* c) {
  LinearScratch s = {};
  s.sums = c->Take<float>(plan.rows * (plan.dots ? tokens : std::min(plan.panels * plan.panel, plan.chunk)));
  if (!plan.dots) s.w = c->Take<float>(plan.rows * kLinearBlockK);
  return s;
}

// With c's memory null the pointers are meaningless and c->used() is the size; extents that CheckLinear or CheckMha took
// cannot overflow it.
void Layout(const fovea_linear_params& p, bool dots, const KernelTable& table, int32_t workers, Carver* c,
            LinearPlan* plan) {
  const int64_t N = table.vector_lanes(), group = std::max(table.tile_keys, 4),
                wanted_tasks = kTasksPerWorker * workers;
  plan->dots = dots;
  plan->panel = kTileVecs * N;
  plan->rows = std::min<int64_t>(RoundUp(p.out_features, group), kLinearBlockRows);
  if (dots) {
    plan->rows = std::clamp<int64_t>(RoundUp(kDotElements / p.in_features, group), group, plan->rows);
    plan->x_pitch = RoundUp(p.in_features, N);
    plan->x = c->Take<float>(p.tokens * plan->x_pitch);
  } else {
    const int64_t fit = kChunkBytes / (p.in_features * int64_t{sizeof(float)});
    plan->chunk = std::max(std::min(RoundUp(kChunkTokens, plan->panel), fit / plan->panel * plan->panel), plan->panel);
    plan->chunk = std::min(plan->chunk, RoundUp(p.tokens, N));
    plan->x = c->Take<float>(plan->chunk * p.in_features);
  }
  plan->bias = p.bias.dtype == FOVEA_F32 || p.bias.dtype == FOVEA_DTYPE_NONE ? nullptr : c->Take<float>(p.out_features);
  // All workers should have several tasks: shorter ones, to a point, then panels are shared out as well.
  if (workers > 1) {
    const int64_t least = std::min<int64_t>(plan->rows, dots ? 16 : 64);
    plan->rows = std::clamp<int64_t>(RoundUp(CeilDiv(p.out_features, wanted_tasks), group), least, plan->rows);
  }
  const int64_t row_tasks = CeilDiv(p.out_features, plan->rows);
  plan->panels = CeilDiv(plan->chunk, plan->panel);
  if (workers > 1 && row_tasks < wanted_tasks) {
    plan->panels =
        std::max(CeilDiv(plan->panels, CeilDiv(wanted_tasks, row_tasks)), std::min<int64_t>(plan->panels, 4));
  }
  Carver one(nullptr);
  CarveScratch(*plan, p.tokens, &one);
  plan->scratch_bytes = one.used();
  plan->scratch = c->Take<char>(static_cast<int64_t>(plan->scratch_bytes) * workers);
}

bool UseDots(int64_t tokens, uint32_t flags) { return tokens <= kLinearDotTokens && !(flags & FOVEA_BATCH_INVARIANT); }

const LinearTypeKernels& TypeKernels(const KernelTable& table, fovea_dtype dtype) {
  return table.linear[dtype - FOVEA_F32];
}

// Row i of a matrix from column c.
char* At(const fovea_tensor& t, int64_t i, int64_t c) {
  return static_cast<char*>(t.data) + (i * t.stride_row + c) * DtypeBytes(t.dtype);
}

// One call's state, and its tasks.
class LinearRun {
 public:
  LinearRun(const fovea_linear_params& p, const Target& target, const LinearPlan& plan)
      : p_(p),
        plan_(plan),
        table_(*target.table),
        x_(TypeKernels(table_, p.x.dtype)),
        w_(TypeKernels(table_, p.w.dtype)),
        y_(TypeKernels(table_, p.y.dtype)),
        bias_(p.bias.dtype == FOVEA_F32 ? static_cast<const float*>(p.bias.data) : plan.bias) {}

  // Number of tasks of each kind.
  int64_t row_tasks() const { return CeilDiv(p_.out_features, plan_.rows); }
  int64_t k_blocks() const { return CeilDiv(p_.in_features, kLinearBlockK); }
  int64_t panels() const { return CeilDiv(lanes_, plan_.panel); }
  int64_t panel_tasks() const { return CeilDiv(panels(), plan_.panels); }

  // Before the tasks: bias as f32.
  void ConvertBias() const {
    if (bias_ == nullptr || p_.bias.dtype == FOVEA_F32) return;
    TypeKernels(table_, p_.bias.dtype).load_row(p_.bias.data, static_cast<int32_t>(p_.out_features), plan_.bias);
  }

  void CopyRow(int64_t token) const {
    float* const row = plan_.x + token * plan_.x_pitch;
    x_.load_row(At(p_.x, token, 0), static_cast<int32_t>(p_.in_features), row);
    std::fill(row + p_.in_features, row + plan_.x_pitch, 0.0f);
  }

  void Dots(int32_t worker, int64_t task) const {
    const int64_t row = task * plan_.rows, rows = std::min(plan_.rows, p_.out_features - row);
    const LinearScratch s = Scratch(worker);
    w_.dot({At(p_.w, row, 0), plan_.x, s.sums, p_.w.stride_row, plan_.x_pitch, plan_.rows,
            static_cast<int32_t>(p_.tokens), static_cast<int32_t>(rows), static_cast<int32_t>(p_.in_features)});
    for (int64_t token = 0; token < p_.tokens; ++token) {
      y_.store_row(s.sums + token * plan_.rows, static_cast<int32_t>(rows), Bias(row), At(p_.y, token, row));
    }
  }

  // The tokens [first, first + plan.chunk), or those that are left, are next.
  void StartChunk(int64_t first) {
    first_ = first;
    tokens_ = std::min(plan_.chunk, p_.tokens - first);
    lanes_ = RoundUp(tokens_, table_.vector_lanes());
  }

  // Task: panel * k_blocks() + k block.
  void Pack(int64_t task) const {
    const int64_t lane = task / k_blocks() * plan_.panel, k = task % k_blocks() * kLinearBlockK, count = KCount(k);
    const int64_t lanes = std::min(plan_.panel, lanes_ - lane), tokens = std::min(lanes, tokens_ - lane);
    x_.pack(At(p_.x, first_ + lane, k), p_.x.stride_row, static_cast<int32_t>(tokens), static_cast<int32_t>(count),
            static_cast<int32_t>(lanes), plan_.x + k * lanes_ + lane * count);
  }

  // Task: block of rows * panel_tasks() + block of panels.
  void Multiply(int32_t worker, int64_t task) const {
    const int64_t row = task / panel_tasks() * plan_.rows, rows = std::min(plan_.rows, p_.out_features - row);
    const int64_t begin = task % panel_tasks() * plan_.panels * plan_.panel,
                  end = std::min(begin + plan_.panels * plan_.panel, lanes_);
    const int64_t padded = RoundUp(rows, table_.tile_keys);
    const LinearScratch s = Scratch(worker);
    memset(s.sums, 0, static_cast<size_t>(padded * (end - begin)) * sizeof(float));
    for (int64_t k = 0; k < p_.in_features; k += kLinearBlockK) {
      const int64_t count = KCount(k);
      for (int64_t r = 0; r < rows; r += table_.tile_keys) {
        w_.pack(At(p_.w, row + r, k), p_.w.stride_row,
                static_cast<int32_t>(std::min<int64_t>(table_.tile_keys, rows - r)), static_cast<int32_t>(count),
                table_.tile_keys, s.w + r * count);
      }
      table_.linear_multiply({plan_.x + k * lanes_ + begin * count, s.w, s.sums, static_cast<int32_t>(end - begin),
                              static_cast<int32_t>(padded), static_cast<int32_t>(count)});
    }
    for (int64_t lane = begin; lane < end; lane += plan_.panel) {
      const int64_t lanes = std::min(plan_.panel, end - lane), tokens = std::min(lanes, tokens_ - lane);
      y_.store_y(s.sums + (lane - begin) * padded, static_cast<int32_t>(lanes), static_cast<int32_t>(tokens),
                 static_cast<int32_t>(rows), Bias(row), At(p_.y, first_ + lane, row), p_.y.stride_row);
    }
  }

 private:
  int64_t KCount(int64_t k) const { return std::min<int64_t>(kLinearBlockK, p_.in_features - k); }
  const float* Bias(int64_t row) const { return bias_ ? bias_ + row : nullptr; }
  LinearScratch Scratch(int32_t worker) const {
    Carver c(plan_.scratch + static_cast<size_t>(worker) * plan_.scratch_bytes);
    return CarveScratch(plan_, p_.tokens, &c);
  }

  const fovea_linear_params& p_;
  const LinearPlan& plan_;
  const KernelTable& table_;
  const LinearTypeKernels &x_, &w_, &y_;  // of the tensors' storage types
  const float* bias_;
  int64_t first_ = 0, tokens_ = 0, lanes_ = 0;  // of the chunk
};

}  // namespace

size_t LinearWorkspaceBytes(const fovea_linear_params& p, uint32_t flags, const Target& target, int32_t workers) {
  size_t bytes = 0;
  // More tokens never need less: those that take tiles are counted as their first kLinearDotTokens would be, too.
  for (const bool dots : {true, false}) {
    fovea_linear_params one = p;
    if (dots) one.tokens = std::min<int64_t>(p.tokens, kLinearDotTokens);
    if (flags & FOVEA_BATCH_INVARIANT ? dots : !dots && UseDots(p.tokens, flags)) continue;
    Carver c(nullptr);
    LinearPlan plan = {};
    Layout(one, dots, *target.table, workers, &c, &plan);
    bytes = std::max(bytes, c.used() + kAlign);  // the caller's memory has any alignment
  }
  return bytes;
}

void RunLinear(const fovea_linear_params& p, const fovea_exec& exec, const Target& target, int32_t workers,
               void* workspace) {
  if (p.tokens == 0) return;
  Carver c(AlignUp(workspace));
  LinearPlan plan = {};
  Layout(p, UseDots(p.tokens, exec.flags), *target.table, workers, &c, &plan);
  // 2 per multiply-add, and what reading an element of W costs, as TaskCost in plan.cc counts it.
  const double cost = static_cast<double>(p.in_features) * static_cast<double>(p.out_features) *
                      (2.0 * static_cast<double>(p.tokens) + 10.0);
  if (cost < kSerialCost) workers = 1;
  LinearRun run(p, target, plan);
  {
    const FpEnvScope env;
    run.ConvertBias();
    for (int64_t token = 0; plan.dots && token < p.tokens; ++token) run.CopyRow(token);
  }
  if (plan.dots) {
    ParallelFor(exec, workers, run.row_tasks(), [&](int32_t worker, int64_t task) {
      const FpEnvScope env;
      run.Dots(worker, task);
    });
    return;
  }
  for (int64_t first = 0; first < p.tokens; first += plan.chunk) {
    run.StartChunk(first);
    ParallelFor(exec, workers, run.panels() * run.k_blocks(), [&](int32_t, int64_t task) {
      const FpEnvScope env;
      run.Pack(task);
    });
    ParallelFor(exec, workers, run.row_tasks() * run.panel_tasks(), [&](int32_t worker, int64_t task) {
      const FpEnvScope env;
      run.Multiply(worker, task);
    });
  }
}

}  // namespace fovea
