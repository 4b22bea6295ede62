// fovea_linear behind its argument checks: how a call is cut into blocks and tasks, and its run.
#ifndef FOVEA_LIB_LINEAR_H_
#define FOVEA_LIB_LINEAR_H_

#include "dispatch/targets.h"
#include "fovea/fovea.h"

namespace fovea {

// Of checked params. Monotone in tokens.
size_t LinearWorkspaceBytes(const fovea_linear_params& p, uint32_t flags, const Target& target, int32_t workers);

// workspace: LinearWorkspaceBytes() of it, any alignment. Cannot fail.
void RunLinear(const fovea_linear_params& p, const fovea_exec& exec, const Target& target, int32_t workers,
               void* workspace);

}  // namespace fovea

#endif  // FOVEA_LIB_LINEAR_H_
