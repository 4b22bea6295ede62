// The list of targets, and the choice among them. Highway's process-wide chosen target is neither read nor set: another library in
// the process may use it.
#ifndef FOVEA_DISPATCH_TARGETS_H_
#define FOVEA_DISPATCH_TARGETS_H_

#include <stdint.h>

#include "dispatch/kernel_table.h"
#include "fovea/fovea.h"

namespace fovea {

struct Target {
  const char* name;
  int64_t bit;  // of SupportedTargets()
  const KernelTable* table;
};

// Compiled targets, best first.
const Target* Targets(int32_t* count);

// Whether this CPU and OS run it.
bool Runnable(const Target& target);
// Whether it is taken unasked where it runs: not AVX3_BF16 or NEON_BFDOT where another is better.
bool Preferred(const Target& target);

// The chosen target: set, else FOVEA_TARGET, else the best preferred; held in one atomic pointer. nullptr, with fovea_last_error set, if
// FOVEA_TARGET cannot run.
const Target* ChosenTarget();

}  // namespace fovea

#endif  // FOVEA_DISPATCH_TARGETS_H_
