// Prefill against the FMA peak of the same target, alternating in one run:
//   taskset -c 0 build/bench/bench_prefill --benchmark_filter=s2048
// A row first checks its result against the f64 oracle (some rows of it), then times attention and the peak loop in turn; the counters are medians.
//   fma_fraction: useful FLOP per second over the peak's; causal counts only permitted pairs.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "bench/roofline.h"
#include "fovea/fovea.h"
#include "lib/reference.h"

namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0.0 : v[v.size() / 2];
}

struct Row {
  int64_t head_dim, len, heads;
  bool causal;
  std::string target;
};

void Prefill(benchmark::State& state, const Row& row) {
  if (fovea_set_target(row.target.c_str()) != FOVEA_OK) return state.SkipWithError(fovea_last_error());
  const size_t n = static_cast<size_t>(row.heads * row.len * row.head_dim);
  std::vector<float> q(n), k(n), v(n), out(n);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (auto* x : {&q, &k, &v}) {
    for (float& f : *x) f = normal(rng);
  }
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = 1;
  p.num_q_heads = p.num_kv_heads = row.heads;
  p.q_len = p.kv_len = row.len;
  p.head_dim = row.head_dim;
  p.causal = row.causal;
  p.q = fovea_tensor_bhsd(q.data(), FOVEA_F32, row.heads, row.len, row.head_dim);
  p.k = fovea_tensor_bhsd(k.data(), FOVEA_F32, row.heads, row.len, row.head_dim);
  p.v = fovea_tensor_bhsd(v.data(), FOVEA_F32, row.heads, row.len, row.head_dim);
  p.out = fovea_tensor_bhsd(out.data(), FOVEA_F32, row.heads, row.len, row.head_dim);
  fovea_exec exec;
  fovea_exec_init(&exec, sizeof exec);
  exec.num_threads = 1;
  size_t bytes = 0;
  fovea_attention_workspace_size(&p, &exec, &bytes);
  std::vector<char> workspace(bytes);
  exec.workspace = workspace.data();
  exec.workspace_bytes = bytes;
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  if (fovea_attention_forward(&p, &exec) != FOVEA_OK || fovea_attention_describe(&p, &exec, &info) != FOVEA_OK) {
    return state.SkipWithError(fovea_last_error());
  }
  const fovea::AttentionCheck check = fovea::CheckAttention(p, std::max<int64_t>(1, row.len / 16));
  if (!check.passed()) return state.SkipWithError("result out of tolerance");
  std::vector<double> fraction, gflops;
  for (auto _ : state) {
    const double t0 = Seconds();
    fovea_attention_forward(&p, &exec);
    const double t1 = Seconds();
    state.PauseTiming();  // leaves the row's name as it is, which manual time does not
    const double t1b = Seconds();
    const double peak = fovea_bench::RunFmaPeak(row.target, info.flop / 4);
    const double t2 = Seconds();
    gflops.push_back(info.flop / (t1 - t0) * 1e-9);
    fraction.push_back((info.flop / (t1 - t0)) / (peak / (t2 - t1b)));
    state.ResumeTiming();
  }
  state.counters["GFLOP/s"] = Median(gflops);
  state.counters["fma_fraction"] = Median(fraction);
  state.counters["max_err"] = check.out.error;
  state.SetLabel(std::string(info.kernels) + "@" + info.target);
}

}  // namespace

int main(int argc, char** argv) {
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    fovea_target_info_init(&info, sizeof info);
    fovea_get_target_info(i, &info);
    if (!info.runnable) continue;
    for (const int64_t d : {64, 128}) {
      for (const int64_t s : {128, 512, 2048}) {
        for (const bool causal : {false, true}) {
          const Row row = {d, s, 4, causal, info.name};
          char name[96];
          std::snprintf(name, sizeof name, "prefill/f32/d%d/s%d/h4%s/t1@%s", static_cast<int>(d), static_cast<int>(s),
                        causal ? "/causal" : "", info.name);
          benchmark::RegisterBenchmark(name, [row](benchmark::State& state) { Prefill(state, row); })
              ->Unit(benchmark::kMillisecond);
        }
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
