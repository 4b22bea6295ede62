#include "lib/run.h"

#include <math.h>

#include <algorithm>

#include "lib/fp_env.h"
#include "lib/parallel_for.h"
#include "lib/validate.h"

namespace fovea {
namespace {

constexpr double kLn2 = 0.693147180559945309417;

// Columns joined at once.
constexpr int64_t kMergeColumns = 512;

// A part's row of outputs, of type dtype, and its m and l.
struct PartRow {
  const void* row;
  int32_t dtype;
  double m, l;
};

// out = sum_p 2^(m_p - m) l_p / l * out_p for parts in order, (m, l) joined likewise; get(p) is a PartRow. A part with l = 0 is not an operand.
// out may be a part's row.
template <class Get>
void MergeRow(const KernelTable& table, int64_t n, const Get& get, int64_t dim, int32_t out_dtype, void* out, double* m_out, double* l_out) {
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
  for (int64_t c = 0; c < dim; c += kMergeColumns) {
    const int64_t columns = std::min(kMergeColumns, dim - c);
    alignas(64) float sum[kMergeColumns] = {};
    for (int64_t p = 0; p < n; ++p) {
      const auto part = get(p);
      if (part.l == 0.0) continue;
      table.add_weighted(part.dtype, At(part.row, part.dtype, c), static_cast<float>(scale(part.m) * part.l / l), columns, sum);
    }
    table.store_sum(sum, columns, out_dtype, At(out, out_dtype, c));
  }
  *m_out = m;
  *l_out = l;
}

void RunMergeTask(const fovea_plan& plan, const PlanTask& task, const AttentionTask& t) {
  for (int64_t lane = 0; lane < task.lane_count; ++lane) {
    const QueryLane query = LaneQuery(t, lane);
    const int64_t h = query.head, i = query.row;
    const auto get = [&](int64_t p) {
      const int64_t slot = task.first_part + p * task.lane_count + lane;
      return PartRow{plan.part_out + slot * t.v_head_dim, kF32, static_cast<double>(plan.part_ml[slot * 2]),
                     static_cast<double>(plan.part_ml[slot * 2 + 1])};
    };
    double m, l;
    void* const out = At(t.out, t.out_dtype, h * t.out_stride_head + i * t.out_stride_row);
    MergeRow(*plan.target->table, task.num_parts, get, t.v_head_dim, t.out_dtype, out, &m, &l);
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
  const KernelScratch scratch = WorkerScratch(plan, worker);
  const PlanTask* tasks = plan.tasks[static_cast<int32_t>(phase)];
  for (int64_t n = begin; n < end; ++n) {
    const PlanTask& task = tasks[n];
    AttentionTask t;
    FillTask(plan, p, task, &t);
    switch (phase) {
      case Phase::kAttention:
        ChooseKernel(p, *plan.target, task).run(t, scratch);
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
    return At(x.data, x.dtype, b * x.stride_batch + h * x.stride_head + i * x.stride_row);
  };
  const double cost = static_cast<double>(n) * static_cast<double>(batch * num_heads * rows) * static_cast<double>(10 * v_head_dim);
  ParallelFor(exec, cost < kSerialCost ? 1 : NumWorkers(exec), batch * num_heads, [&](int32_t, int64_t bh) {
    const FpEnvScope env;
    const int64_t b = bh / num_heads, h = bh % num_heads;
    for (int64_t i = 0; i < rows; ++i) {
      const auto get = [&](int64_t p) {
        const float part = *static_cast<const float*>(at(lses[p], b, h, i));
        // 2^m with l = 1; -inf stands for no keys.
        return PartRow{at(outs[p], b, h, i), outs[p].dtype, static_cast<double>(part) / kLn2, part == -HUGE_VALF ? 0.0 : 1.0};
      };
      double m, l;
      MergeRow(*target.table, n, get, v_head_dim, out.dtype, at(out, b, h, i), &m, &l);
      if (lse) *static_cast<float*>(at(*lse, b, h, i)) = Lse(m, l, nullptr);
    }
  });
}

}  // namespace fovea
