// fovea info: the CPU, the targets compiled into the library, the one that is chosen and why.
#include <fmt/format.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "tools/cli.h"

namespace fovea::tools {
namespace {

// The kernel's name for the CPU; Arm kernels give the numbers of implementer and part only.
std::string CpuModel() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string implementer, part;
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 > line.size()) continue;
    const std::string key = line.substr(0, line.find_last_not_of("\t ", colon - 1) + 1), value = line.substr(colon + 2);
    if (key == "model name") return value;
    if (key == "CPU implementer") implementer = value;
    if (key == "CPU part") part = value;
  }
  return implementer.empty() ? "unknown" : fmt::format("implementer {}, part {}", implementer, part);
}

// The threads of a call with work for all of them.
int32_t DefaultThreads() {
  constexpr int64_t kHeads = 64, kRows = 512, kDim = 64;
  fovea_attention_params params;
  ThrowOnError(fovea_attention_params_init(&params, sizeof params));
  params.batch = 1;
  params.num_q_heads = params.num_kv_heads = kHeads;
  params.q_len = params.kv_len = kRows;
  params.head_dim = kDim;
  const float input[kDim] = {};
  params.q = params.k = params.v = fovea_tensor_bhsd(input, FOVEA_F32, 0, 0, 0);  // all strides 0
  const std::unique_ptr<float[]> out(new float[kHeads * kRows * kDim]);           // never touched
  params.out = fovea_tensor_bhsd(out.get(), FOVEA_F32, kHeads, kRows, kDim);
  fovea_attention_info info;
  ThrowOnError(fovea_attention_info_init(&info, sizeof info));
  ThrowOnError(fovea_attention_describe(&params, nullptr, &info));
  return info.num_threads;
}

}  // namespace

int RunInfo(bool json) {
  const char *chosen = nullptr, *why = nullptr;
  ThrowOnError(fovea_get_target(&chosen, &why));
  nlohmann::ordered_json result = {{"version", fovea_version_str()},
                                   {"cpu", CpuModel()},
                                   {"threads", DefaultThreads()},
                                   {"target", chosen},
                                   {"why", why},
                                   {"targets", nlohmann::json::array()}};
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    ThrowOnError(fovea_target_info_init(&info, sizeof info));
    ThrowOnError(fovea_get_target_info(i, &info));
    result["targets"].push_back({{"name", info.name},
                                 {"runnable", info.runnable != 0},
                                 {"chosen", std::string(chosen) == info.name},
                                 {"vector_bytes", info.vector_bytes},
                                 {"tile_keys", info.tile_keys},
                                 {"tile_lanes", info.tile_lanes}});
  }
  if (json) {
    fmt::print("{}\n", result.dump(2));
    return kExitOk;
  }
  fmt::print("fovea    {}\nCPU      {}\nthreads  {}\ntarget   {} ({})\n\n", fovea_version_str(), CpuModel(),
             result["threads"].get<int32_t>(), chosen,
             std::string(why) == "best" ? "the best that this CPU runs" : fmt::format("by {}", why));
  fmt::print("compiled    runnable  vector bytes  prefill tile\n");
  for (const auto& target : result["targets"]) {
    const bool runnable = target["runnable"];
    fmt::print("{:<11} {:<9}", target["name"].get<std::string>(), runnable ? "yes" : "no");
    if (runnable) {
      fmt::print(" {:<13} {} keys x {} queries", target["vector_bytes"].get<int32_t>(),
                 target["tile_keys"].get<int32_t>(), target["tile_lanes"].get<int32_t>());
    }
    fmt::print("{}\n", target["chosen"] ? "  <- chosen" : "");
  }
  return kExitOk;
}

}  // namespace fovea::tools
