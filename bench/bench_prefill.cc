// Prefill against the FMA peak of the same target, alternating in one run:
//   taskset -c 0 build/bench/bench_prefill --benchmark_filter='s2048/h8/t1|s2048/h8/causal/t1'
// fma_fraction is useful FLOP (permitted pairs only) per second over the FMA rate measured beside it, on as many
// threads; over the rate of the dot product of bf16 for bf16 rows of AVX3_BF16 and NEON_BFDOT.
#include "bench/bench_main.h"

namespace {

using fovea_bench::AddCase;
using fovea_bench::Shape;

Shape Square(const std::string& target, int64_t head_dim, int64_t len, bool causal) {
  Shape s;
  s.target = target;
  s.head_dim = head_dim;
  s.q_len = s.kv_len = len;
  s.causal = causal;
  s.num_q_heads = s.num_kv_heads = len <= 2048 ? 8 : len <= 8192 ? 2 : 1;  // a call of a second or two at most
  return s;
}

void AddRows(const std::string& target) {
  const auto both = [&](int64_t head_dim, int64_t len, const std::function<void(Shape&)>& change) {
    for (const bool causal : {false, true}) {
      Shape s = Square(target, head_dim, len, causal);
      change(s);
      AddCase(s);
    }
  };
  const auto as_is = [](Shape&) {};
  for (const int64_t d : {32, 64, 80, 96, 128, 192, 256}) both(d, 2048, as_is);
  for (const int64_t d : {64, 128}) {
    for (const int64_t len : {128, 256, 512, 1024, 4096, 8192, 16384}) both(d, len, as_is);
    for (const float cap : {50.0f}) both(d, 2048, [cap](Shape& s) { s.soft_cap = cap; });
    both(d, 2048, [](Shape& s) { s.bias = true; });
    both(d, 2048, [](Shape& s) { s.row_stride = 4096; });  // 32 heads of 128, or 64 of 64, of which 8 are computed
  }
  for (const fovea_dtype dtype : {FOVEA_BF16, FOVEA_F16}) {
    for (const int64_t d : {64, 128}) {
      for (const int64_t len : {512, 2048}) both(d, len, [dtype](Shape& s) { s.dtype = dtype; });
    }
  }
  for (const int64_t len : {2048, 4096, 8192, 16384}) {
    Shape s = Square(target, 128, len, true);
    s.window = 1024;
    AddCase(s);
  }
  for (const int64_t group : {4, 8}) both(128, 2048, [group](Shape& s) { s.num_kv_heads = 8 / group; });
  Shape chunk = Square(target, 128, 256, true);  // one chunk of a prompt on 4096 keys
  chunk.kv_len = 4096;
  AddCase(chunk);
  if (fovea_bench::MaxThreads() == 1) return;
  const auto threads = [](Shape& s) { s.threads = fovea_bench::MaxThreads(); };
  for (const int64_t d : {64, 128}) {
    for (const int64_t len : {512, 2048}) both(d, len, threads);
  }
}

}  // namespace

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, AddRows); }
