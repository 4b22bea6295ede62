// fovea info: the CPU, the targets compiled into the library, the one that is chosen and why, and this machine's
// measured limits.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/roofline.h"
#include "tools/cli.h"

namespace fovea::tools {
namespace {

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

// Limits: whatever else the machine does can only lower what is measured.
double BestOf(int rounds, const std::function<double()>& measure) {
  double best = 0;
  for (int i = 0; i < rounds; ++i) best = std::max(best, measure());
  return best;
}

void PrintRoofline(const nlohmann::ordered_json& roofline, const std::string& chosen) {
  const auto gflops = [](const nlohmann::ordered_json& limits, const char* what) {
    std::string text;
    for (const auto& entry : limits[what]) text += fmt::format(" {:>10.1f}", entry["value"].get<double>());
    return text;
  };
  std::string threads;
  for (const auto& n : roofline["threads"]) threads += fmt::format(" {:>10}", fmt::format("{} thr.", n.get<int>()));
  fmt::print("\nFMA GFLOP/s{}   = 2 x lanes x FMA/cycle x GHz    FMA latency   Gexp/s{}\n", threads, threads);
  for (const auto& limits : roofline["targets"]) {
    fmt::print("{:<11}{}         {:>2}        {:>5.2f}     {:>4.2f}    {:>5.2f} cycles         {}\n",
               limits["target"].get<std::string>(), gflops(limits, "fma_gflops"), limits["lanes"].get<int>(),
               limits["fma_per_cycle"].get<double>(), limits["clock_ghz"].get<double>(),
               limits["fma_latency_cycles"].get<double>(), gflops(limits, "exp_gps"));
  }
  for (const auto& limits : roofline["targets"]) {
    if (!limits.contains("bf16_dot_gflops")) continue;
    fmt::print("\nbf16 GFLOP/s\n{:<11}{}         by the dot product of bf16\n", limits["target"].get<std::string>(),
               gflops(limits, "bf16_dot_gflops"));
  }
  fmt::print("\nread GB/s  {}    of a buffer of\n", threads);
  for (const auto& limits : roofline["targets"]) {
    if (limits["target"] != chosen) continue;
    for (const auto& read : limits["read"]) {
      fmt::print("{:<11}{}   ", read["level"].get<std::string>(), gflops(read, "gbps"));
      for (const auto& entry : read["gbps"]) fmt::print(" {} KiB", entry["bytes"].get<int64_t>() / 1024);
      fmt::print("\n");
    }
  }
}

}  // namespace

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

nlohmann::ordered_json MeasureRoofline(const std::vector<std::string>& targets, const std::vector<int>& threads,
                                       int rounds) {
  nlohmann::ordered_json roofline = {{"threads", threads}, {"targets", nlohmann::ordered_json::array()}};
  const int64_t l1 = fovea_bench::CacheBytes(1), l2 = fovea_bench::CacheBytes(2), l3 = fovea_bench::CacheBytes(3);
  roofline["cache_bytes"] = {{"L1", l1}, {"L2", l2}, {"L3", l3}};
  for (const std::string& target : targets) {
    const fovea_bench::FmaCheck check = fovea_bench::CheckFma(target);
    nlohmann::ordered_json limits = {{"target", target},
                                     {"lanes", check.lanes},
                                     {"clock_ghz", check.clock_ghz},
                                     {"fma_per_cycle", check.fma_per_cycle},
                                     {"fma_latency_cycles", check.fma_latency}};
    const double flop = 5e7 * check.lanes;  // some 5 ms
    for (const int n : threads) {
      const double fma = BestOf(rounds, [&] { return fovea_bench::FmaRate(target, flop, n); });
      const double exp = BestOf(rounds, [&] { return fovea_bench::ExpRate(target, flop / 20, n); });
      limits["fma_gflops"].push_back({{"threads", n}, {"value", fma * 1e-9}});
      limits["exp_gps"].push_back({{"threads", n}, {"value", exp * 1e-9}});
      const double dot = BestOf(rounds, [&] { return fovea_bench::Bf16DotRate(target, 2 * flop, n); });
      if (dot > 0) limits["bf16_dot_gflops"].push_back({{"threads", n}, {"value", dot * 1e-9}});
    }
    for (const char* level : {"L1", "L2", "L3", "DRAM"}) {
      nlohmann::ordered_json read = {{"level", level}};
      for (const int n : threads) {
        // Half of each core's own caches, half of the shared one.
        const int64_t bytes = level[1] == '1'   ? n * l1 / 2
                              : level[1] == '2' ? n * l2 / 2
                              : level[1] == '3' ? l3 / 2
                                                : 4 * l3;
        const double rate = BestOf(rounds, [&] { return fovea_bench::ReadRate(target, bytes, n); });
        read["gbps"].push_back({{"threads", n}, {"bytes", bytes}, {"value", rate * 1e-9}});
      }
      limits["read"].push_back(read);
    }
    roofline["targets"].push_back(limits);
  }
  return roofline;
}

int RunInfo(bool json, bool roofline) {
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
  if (roofline) {
    std::vector<std::string> runnable;
    for (const auto& target : result["targets"]) {
      if (target["runnable"]) runnable.push_back(target["name"]);
    }
    std::vector<int> threads = {1};
    if (fovea_bench::MaxThreads() > 1) threads.push_back(fovea_bench::MaxThreads());
    result["roofline"] = MeasureRoofline(runnable, threads, 9);
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
  if (roofline) PrintRoofline(result["roofline"], chosen);
  return kExitOk;
}

}  // namespace fovea::tools
