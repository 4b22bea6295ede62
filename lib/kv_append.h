// Runs fovea_kv_append.
#ifndef FOVEA_LIB_KV_APPEND_H_
#define FOVEA_LIB_KV_APPEND_H_

#include "dispatch/targets.h"
#include "fovea/fovea.h"

namespace fovea {

// Checked params.
void RunKvAppend(const Target& target, const fovea_kv_append_params& p, const fovea_exec& exec);

}  // namespace fovea

#endif  // FOVEA_LIB_KV_APPEND_H_
