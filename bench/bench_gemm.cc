// The honest bound for "two matmuls": S = Q K^T and O += S V without any softmax, as sgemm calls of OpenBLAS, which
// packs its operands, in the blocks that suit it best, beside the FMA rate of the target. OpenBLAS is told to use that
// target's kernels (it takes one set per process).
//   build/bench/bench_gemm      FOVEA_TARGET=AVX2 build/bench/bench_gemm
// It is loaded at run time (Debian: libopenblas0-pthread); without it the rows say so.
#include <dlfcn.h>

#include <cmath>
#include <map>
#include <stdexcept>

#include "bench/bench_main.h"

namespace fovea_bench {
namespace {

// CBLAS as OpenBLAS has it, with 32-bit integers.
constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                       const float* b, int ldb, float beta, float* c, int ldc);

struct Blas {
  Sgemm sgemm = nullptr;
  std::string core;
};

const Blas& LoadBlas(const std::string& target) {
  static const Blas blas = [&target] {
    const std::map<std::string, const char*> cores = {
        {"AVX3_BF16", "SkylakeX"}, {"AVX3_DL", "SkylakeX"}, {"AVX3", "SkylakeX"},
        {"AVX2", "Haswell"},       {"SSE4", "Nehalem"},     {"SSSE3", "Core2"}};
    const auto core = cores.find(target);
    if (core != cores.end()) setenv("OPENBLAS_CORETYPE", core->second, 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);  // each thread below makes its own calls
    Blas loaded;
    void* const library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library) return loaded;
    loaded.sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    const auto corename = reinterpret_cast<char* (*)()>(dlsym(library, "openblas_get_corename"));
    loaded.core = corename ? corename() : "unknown";
    return loaded;
  }();
  return blas;
}

struct GemmRow {
  int len, head_dim, heads, block_q, block_kv, threads;
  std::string target;
};

void RunGemm(benchmark::State& state, const GemmRow& row) {
  const Blas& blas = LoadBlas(row.target);
  Guarded(state, [&] {
    if (!blas.sgemm) throw std::runtime_error("libopenblas.so.0 is not here: apt-get install libopenblas0-pthread");
    const int64_t head = int64_t{row.len} * row.head_dim, scratch = int64_t{row.block_q} * row.block_kv;
    const Floats q = RandomFloats(row.heads * head, 1), k = RandomFloats(row.heads * head, 2),
                 v = RandomFloats(row.heads * head, 3);
    const Floats o = NewFloats(row.heads * head), s = NewFloats(row.threads * scratch);
    const int d = row.head_dim, q_blocks = row.len / row.block_q;
    const float scale = 1.0f / static_cast<float>(row.len);  // keeps O of the size of V
    const auto block = [&](int task, int thread) {
      const int64_t base = task / q_blocks * head, rows = int64_t{task % q_blocks} * row.block_q * d;
      float* const scores = s.get() + thread * scratch;
      for (int kv = 0; kv < row.len; kv += row.block_kv) {
        const int64_t keys = base + int64_t{kv} * d;
        blas.sgemm(kRowMajor, kNoTrans, kTrans, row.block_q, row.block_kv, d, scale, q.get() + base + rows, d,
                   k.get() + keys, d, 0.0f, scores, row.block_kv);
        blas.sgemm(kRowMajor, kNoTrans, kNoTrans, row.block_q, d, row.block_kv, 1.0f, scores, row.block_kv,
                   v.get() + keys, d, kv == 0 ? 0.0f : 1.0f, o.get() + base + rows, d);
      }
    };
    const int tasks = row.heads * q_blocks;
    const auto run = [&] {
      if (row.threads == 1) {
        for (int task = 0; task < tasks; ++task) block(task, 0);
        return;
      }
      ParallelFor(row.threads, tasks, block);
    };
    run();
    double max_err = 0;  // of some elements, relative to the sum of the products' magnitudes
    for (int64_t i = 0; i < row.len; i += row.len / 7) {
      const int64_t h = i % row.heads, c = i % d;
      double want = 0, magnitude = 0;
      for (int64_t j = 0; j < row.len; ++j) {
        double dot = 0;
        const float *qi = q.get() + h * head + i * d, *kj = k.get() + h * head + j * d;
        for (int64_t x = 0; x < d; ++x) dot += static_cast<double>(qi[x]) * static_cast<double>(kj[x]);
        const double term =
            dot * static_cast<double>(scale) * static_cast<double>(v[static_cast<size_t>(h * head + j * d + c)]);
        want += term;
        magnitude += std::fabs(term);
      }
      max_err = std::max(
          max_err, std::fabs(static_cast<double>(o[static_cast<size_t>(h * head + i * d + c)]) - want) / magnitude);
    }
    if (!(max_err < 1e-5)) throw std::runtime_error("wrong result: relative error " + std::to_string(max_err));
    const double flop = 4.0 * static_cast<double>(row.heads) * row.len * row.len * d;
    std::vector<double> gflops, fractions;
    const auto measure_peak = [&] { return FmaRate(row.target, std::min(flop / (4 * row.threads), 4e9), row.threads); };
    const auto round = [&](double seconds) {
      gflops.push_back(flop / seconds * 1e-9);
      fractions.push_back(flop / seconds / measure_peak());
    };
    for (auto _ : state) {
      const double begin = Seconds();
      run();
      const double seconds = Seconds() - begin;
      state.PauseTiming();
      round(seconds);
      state.ResumeTiming();
    }
    while (gflops.size() < kLeastRounds) {
      const double begin = Seconds();
      run();
      round(Seconds() - begin);
    }
    state.counters["GFLOP/s"] = Median(gflops);
    state.counters["fma_fraction"] = Median(fractions);
    state.counters["max_err"] = max_err;
    state.SetLabel("OpenBLAS " + blas.core);
  });
}

void AddRows(const std::string& target) {
  if (target != ChosenTarget()) return;
  for (const int threads : {1, MaxThreads()}) {
    for (const int head_dim : {64, 128}) {
      for (const int block_q : {256, 512}) {  // 128 x 512 and blocks of 2048 keys were slower
        const GemmRow row = {2048, head_dim, 8, block_q, 512, threads, target};
        const std::string name = "gemm/f32/d" + std::to_string(head_dim) + "/s2048/h8/block" + std::to_string(block_q) +
                                 "x512/t" + std::to_string(threads) + "@" + target;
        benchmark::RegisterBenchmark(name.c_str(), [row](benchmark::State& state) {
          RunGemm(state, row);
        })->Unit(benchmark::kMillisecond);
      }
    }
    if (MaxThreads() == 1) return;
  }
}

}  // namespace
}  // namespace fovea_bench

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, fovea_bench::AddRows); }
