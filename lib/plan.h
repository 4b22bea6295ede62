// The work list of one call: which kernel does which rows over which keys, where split points lie, and how the workspace is cut.
//
// Kernel choice, block starts and split points depend only on a sequence's own lengths and the options, never on the batch, the padded
// maximum or the number of threads: that is what makes results the same bits everywhere. Only how many lanes a task holds, and the
// order of tasks, look at the whole call.
#ifndef FOVEA_LIB_PLAN_H_
#define FOVEA_LIB_PLAN_H_

#include "dispatch/targets.h"
#include "fovea/fovea.h"
#include "lib/kernels/kernel_params.h"

namespace fovea {

enum class Phase : int32_t { kAttention, kMerge, kScores };

struct PlanTask {
  bool decode;  // the dot-product kernel rather than the tiles
  int32_t seq, kv_head;
  int32_t lane_begin, lane_count;
  int32_t kv_begin, kv_end;
  int32_t first_part, num_parts;  // attention: this part's slot, or -1; merge: the slots [first_part, first_part + num_parts)
  float cost;                     // FLOP and bytes in one unit, for "largest first"
};

}  // namespace fovea

// In the caller's memory (or the library's own), followed by the arrays that it points to.
struct fovea_plan {
  uint64_t lengths_hash;         // of the arrays that params points to
  fovea_attention_params params;  // checked, defaults resolved
  const fovea::Target* target;
  uint32_t flags;
  int32_t workers;
  int32_t num_phases;
  fovea::Phase phases[3];
  int64_t num_tasks[3];         // by Phase
  fovea::PlanTask* tasks[3];    // by Phase
  float* part_out;              // [part row][v_head_dim]
  float* part_ml;               // [part row][2]
  float* stats;                 // [num_q_heads][stats_rows][2] or null
  int64_t stats_rows;
  char* scratch;                // workers * scratch_bytes
  size_t scratch_bytes;
  double cost;                  // of all tasks of attention and scores
};

namespace fovea {

// Rows of q in the whole call: stats are kept for each.
int64_t TotalQRows(const fovea_attention_params& p);

// An upper bound, monotone in every length and in batch, that from kv_len 2 on does not depend on kv_len.
fovea_status WorkspaceBytes(const fovea_attention_params& p, uint32_t flags, const Target& target, int32_t workers, size_t* bytes);

// Lays the plan out in mem. WORKSPACE_TOO_SMALL if bytes is below WorkspaceBytes.
fovea_status BuildPlan(const fovea_attention_params& p, uint32_t flags, const Target& target, int32_t workers, void* mem,
                       size_t bytes, fovea_plan** plan);

// Fills what RowRange reads, for all keys of sequence b.
void FillRange(const fovea_attention_params& p, int64_t b, AttentionTask* t);

// The kernel of an attention task.
struct KernelChoice {
  void (*run)(const AttentionTask&, const KernelScratch&);
  const char* type;  // "f32", "bf16", "i8": what it multiplies
};
KernelChoice ChooseKernel(const fovea_attention_params& p, const Target& target, const PlanTask& task);

// What the kernel of a task is handed, with p's data pointers.
void FillTask(const fovea_plan& plan, const fovea_attention_params& p, const PlanTask& task, AttentionTask* t);
KernelScratch WorkerScratch(const fovea_plan& plan, int32_t worker);

// Of the contents of lens, cu_seqlens and q_offsets: a plan serves calls with the same.
uint64_t LengthsHash(const fovea_attention_params& p);

// Useful (query, key) pairs over all query heads.
double UsefulPairs(const fovea_attention_params& p);

}  // namespace fovea

#endif  // FOVEA_LIB_PLAN_H_
