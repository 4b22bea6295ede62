#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "dispatch/targets.h"
#include "lib/error.h"
#include "lib/kernels/kernel_params.h"

namespace fovea {
namespace {

std::atomic<const Target*> chosen{nullptr};
// Who chose it: "set", "FOVEA_TARGET" or "best".
std::atomic<const char*> chosen_by{"best"};

// The runnable target of that name; nullptr with the error text set otherwise. source: what asked for it.
const Target* FindRunnable(const char* name, const char* source) {
  int32_t count;
  const Target* targets = Targets(&count);
  char runnable[160] = "";
  size_t used = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (strcmp(targets[i].name, name) == 0) {
      if (Runnable(targets[i])) return &targets[i];
      Fail(FOVEA_ERR_TARGET_UNAVAILABLE, "%s = \"%s\": compiled in, but this CPU or OS cannot run it", source, name);
      return nullptr;
    }
    if (!Runnable(targets[i]) || used >= sizeof runnable) continue;
    const int n = snprintf(runnable + used, sizeof runnable - used, " %s", targets[i].name);
    used += n > 0 ? static_cast<size_t>(n) : 0;
  }
  Fail(FOVEA_ERR_TARGET_UNAVAILABLE, "%s = \"%.40s\": not a target of this build; this CPU runs:%s", source, name, runnable);
  return nullptr;
}

}  // namespace

const Target* ChosenTarget() {
  const Target* target = chosen.load(std::memory_order_acquire);
  if (target) return target;
  const char* env = getenv("FOVEA_TARGET");
  const bool named = env && env[0] != '\0';
  if (named) {
    target = FindRunnable(env, "FOVEA_TARGET");
    if (!target) return nullptr;
  } else {
    int32_t count;
    const Target* targets = Targets(&count);
    for (int32_t i = 0; i < count && !target; ++i) {
      if (Runnable(targets[i]) && Preferred(targets[i])) target = &targets[i];
    }
  }
  const Target* expected = nullptr;
  // Another thread may have chosen meanwhile; its choice stands.
  if (!chosen.compare_exchange_strong(expected, target, std::memory_order_acq_rel)) return expected;
  chosen_by.store(named ? "FOVEA_TARGET" : "best");
  return target;
}

}  // namespace fovea

using namespace fovea;

extern "C" {

int32_t fovea_target_count(void) {
  int32_t count;
  Targets(&count);
  return count;
}

fovea_status fovea_get_target_info(int32_t index, fovea_target_info* info) {
  int32_t count;
  const Target* targets = Targets(&count);
  if (!info || info->struct_size < sizeof(fovea_target_info)) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "info: call fovea_target_info_init first");
  }
  if (index < 0 || index >= count) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "index = %d: must be in [0, %d)", index, count);
  }
  const Target& target = targets[index];
  snprintf(info->name, sizeof info->name, "%s", target.name);
  info->runnable = Runnable(target) ? 1 : 0;
  const int32_t lanes = info->runnable ? target.table->vector_lanes() : 0;
  info->vector_bytes = lanes * static_cast<int32_t>(sizeof(float));
  info->tile_keys = target.table->tile_keys;
  info->tile_lanes = lanes * kTileVecs;
  return FOVEA_OK;
}

fovea_status fovea_get_target(const char** name, const char** why) {
  if (!name) return Fail(FOVEA_ERR_INVALID_ARGUMENT, "name = NULL: must point to a const char*");
  const Target* target = ChosenTarget();
  if (!target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  *name = target->name;
  if (why) *why = chosen_by.load();
  return FOVEA_OK;
}

fovea_status fovea_set_target(const char* name) {
  const Target* target = nullptr;
  if (name) {
    target = FindRunnable(name, "fovea_set_target");
    if (!target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  }
  if (name) chosen_by.store("set");
  chosen.store(target, std::memory_order_release);
  return FOVEA_OK;
}

}  // extern "C"
