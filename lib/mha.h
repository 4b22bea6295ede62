// fovea_mha_forward behind its argument checks: the projections, norms, rotation, append, attention and output projection of a layer, in turn.
#ifndef FOVEA_LIB_MHA_H_
#define FOVEA_LIB_MHA_H_

#include "dispatch/targets.h"
#include "fovea/fovea.h"
#include "lib/plan.h"
#include "lib/validate.h"
#include "lib/validate_parts.h"

namespace fovea {

// A call, checked but for what needs its workspace.
struct MhaCall {
  fovea_mha_params p;
  fovea_rope_params rope, kv_rope;   // of q and of the new keys; they have their lengths where there is no rotation, too
  fovea_attention_params attention;  // q, k, v and out are laid out, without data
  Views views;                       // of p
  uint32_t flags;
  const Target* target;
  int32_t workers;
};

fovea_status PrepareMha(const fovea_mha_params* user, CheckData data, uint32_t flags, const Target& target, int32_t workers, MhaCall* call);

// Monotone in lengths and batch.
fovea_status MhaWorkspaceBytes(const MhaCall& call, size_t* bytes);

// workspace: MhaWorkspaceBytes() of it, any alignment. Finishes the checks and plans attention before anything is written but the workspace.
fovea_status RunMha(MhaCall* call, const fovea_exec& exec, void* workspace);

// For fovea_mha_describe: the attention of a call as RunMha would make it, and the projections' part of info; workspace as there.
fovea_status DescribeMha(MhaCall* call, void* workspace, fovea_attention_params* attention, fovea_mha_info* info);

}  // namespace fovea

#endif  // FOVEA_LIB_MHA_H_
