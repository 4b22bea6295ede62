// Runs plans, and the merge of partial results.
#ifndef FOVEA_LIB_RUN_H_
#define FOVEA_LIB_RUN_H_

#include "lib/plan.h"

namespace fovea {

// Tasks [begin, end) of a phase, on this thread, in worker's scratch.
void RunTasks(const fovea_plan& plan, const fovea_attention_params& p, Phase phase, int64_t begin, int64_t end, int32_t worker);

// All phases.
void RunPlan(const fovea_plan& plan, const fovea_attention_params& p, const fovea_exec& exec);

// Checked arguments of fovea_attention_merge.
void RunMerge(const Target& target, int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
              int64_t rows, int64_t v_head_dim, const fovea_tensor& out, const fovea_tensor* lse, const fovea_exec& exec);

}  // namespace fovea

#endif  // FOVEA_LIB_RUN_H_
