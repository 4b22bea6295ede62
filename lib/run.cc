#include "lib/run.h"

#include <math.h>

#include <algorithm>

#include "lib/fp_env.h"
#include "lib/parallel_for.h"
#include "lib/validate.h"

namespace fovea {
namespace {

// Below this cost (FLOP, see TaskCost; some 60 us of one core) a call stays on its thread: waking a sleeping pool costs 40-80 us.
constexpr double kSerialCost = 3e6;

constexpr double kLn2 = 0.693147180559945309417;

// Parts joined at once; more are joined in runs of this many, in order.
constexpr int64_t kMergeBatch = 64;

// out = sum_p 2^(m_p - m) l_p / l * out_p for parts in order, (m, l) joined likewise. get(p) gives a part's row, m and l. A part with l = 0 is not
// an operand.
template <class Get>
void MergeRow(const KernelTable& table, int64_t n, const Get& get, int64_t dim, float* out, double* m_out, double* l_out) {
  double m = -HUGE_VAL, l = 0.0;
  for (int64_t p = 0; p < n; ++p) {
    const auto part = get(p);
    if (part.l != 0.0 && !(part.m <= m)) m = part.m;
  }
  const auto scale = [&](double part_m) { return part_m == m ? 1.0 : exp2(part_m - m); };  // inf - inf is no NaN here
  for (int64_t p = 0; p < n; ++p) {
    const auto part = get(p);
    if (part.l != 0.0) l += scale(part.m) * part.l;
  }
  const float* rows[kMergeBatch + 1];
  float weights[kMergeBatch + 1];
  int64_t used = 0;
  const auto flush = [&] {
    table.weighted_sum_f32(rows, weights, used, dim, out);
    rows[0] = out;
    weights[0] = 1.0f;
    used = 1;
  };
  for (int64_t p = 0; p < n; ++p) {
    const auto part = get(p);
    if (part.l == 0.0) continue;
    rows[used] = part.row;
    weights[used++] = static_cast<float>(scale(part.m) * part.l / l);
    if (used > kMergeBatch) flush();
  }
  table.weighted_sum_f32(rows, weights, used, dim, out);  // of no part: zeros
  *m_out = m;
  *l_out = l;
}

struct PartRow {
  const float* row;
  double m, l;
};

void RunMergeTask(const fovea_plan& plan, const PlanTask& task, const AttentionTask& t) {
  for (int64_t lane = 0; lane < task.lane_count; ++lane) {
    const int64_t h = lane % t.group, i = lane / t.group;
    const auto get = [&](int64_t p) {
      const int64_t slot = task.first_part + p * task.lane_count + lane;
      return PartRow{plan.part_out + slot * t.v_head_dim, static_cast<double>(plan.part_ml[slot * 2]),
                     static_cast<double>(plan.part_ml[slot * 2 + 1])};
    };
    double m, l;
    MergeRow(*plan.target->table, task.num_parts, get, t.v_head_dim, t.out + h * t.out_stride_head + i * t.out_stride_row, &m, &l);
    if (t.lse) t.lse[h * t.lse_stride_head + i * t.lse_stride_row] = Lse(m, l, t.sinks ? t.sinks + h : nullptr);
    if (t.stats) {
      float* stats = t.stats + h * t.stats_stride_head + i * 2;
      stats[0] = l == 0.0 ? 0.0f : static_cast<float>(m);
      stats[1] = static_cast<float>(l);
    }
  }
}

}  // namespace

void RunTasks(const fovea_plan& plan, const fovea_attention_params& p, Phase phase, int64_t begin, int64_t end, int32_t worker) {
  const FpEnvScope env;
  const KernelTable& table = *plan.target->table;
  KernelScratch scratch = WorkerScratch(plan, worker);
  float* const copy = scratch.copy;
  const PlanTask* tasks = plan.tasks[static_cast<int32_t>(phase)];
  for (int64_t n = begin; n < end; ++n) {
    const PlanTask& task = tasks[n];
    AttentionTask t;
    FillTask(plan, p, task, &t);
    // Decode reads each row once: a copy would cost more than it saves.
    scratch.copy = task.decode ? nullptr : copy;
    switch (phase) {
      case Phase::kAttention:
        (task.decode ? table.decode_f32 : table.prefill_f32)(t, scratch);
        break;
      case Phase::kMerge:
        RunMergeTask(plan, task, t);
        break;
      case Phase::kScores:
        t.v = nullptr;
        table.scores_f32(t, scratch);
        break;
    }
  }
}

void RunPlan(const fovea_plan& plan, const fovea_attention_params& p, const fovea_exec& exec) {
  const int32_t workers = plan.cost < kSerialCost ? 1 : plan.workers;
  for (int32_t k = 0; k < plan.num_phases; ++k) {
    const Phase phase = plan.phases[k];
    const int64_t n = plan.num_tasks[static_cast<int32_t>(phase)];
    if (workers == 1) {
      RunTasks(plan, p, phase, 0, n, 0);
    } else {
      ParallelFor(exec, workers, n, [&](int32_t worker, int64_t i) { RunTasks(plan, p, phase, i, i + 1, worker); });
    }
  }
}

void RunMerge(const Target& target, int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
              int64_t rows, int64_t v_head_dim, const fovea_tensor& out, const fovea_tensor* lse, const fovea_exec& exec) {
  const auto at = [](const fovea_tensor& x, int64_t b, int64_t h, int64_t i) {
    return static_cast<float*>(x.data) + (b * x.stride_batch + h * x.stride_head + i * x.stride_row);
  };
  const double cost = static_cast<double>(n) * static_cast<double>(batch * num_heads * rows) * static_cast<double>(10 * v_head_dim);
  ParallelFor(exec, cost < kSerialCost ? 1 : NumWorkers(exec), batch * num_heads, [&](int32_t, int64_t bh) {
    const FpEnvScope env;
    const int64_t b = bh / num_heads, h = bh % num_heads;
    for (int64_t i = 0; i < rows; ++i) {
      const auto get = [&](int64_t p) {
        const float part = *at(lses[p], b, h, i);
        // 2^m with l = 1; -inf stands for no keys.
        return PartRow{at(outs[p], b, h, i), static_cast<double>(part) / kLn2, part == -HUGE_VALF ? 0.0 : 1.0};
      };
      double m, l;
      MergeRow(*target.table, n, get, v_head_dim, at(out, b, h, i), &m, &l);
      if (lse && lse->data) *at(*lse, b, h, i) = Lse(m, l, nullptr);
    }
  });
}

}  // namespace fovea
