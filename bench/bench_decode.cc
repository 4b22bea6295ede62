// Decode against what memory and FMA units allow, alternating in one run:
//   build/bench/bench_decode --benchmark_filter=kv8192
// GB/s is K and V read once; bandwidth_fraction is that over the lower of the read rate of that footprint and what 0.75
// of the FMA rate could consume.
#include "bench/bench_main.h"

namespace {

using fovea_bench::Shape;

void AddRows(const std::string& target) {
  Shape base;
  base.op = "decode";
  base.target = target;
  base.q_len = 1;
  base.kv_len = 8192;
  base.num_q_heads = 32;
  base.num_kv_heads = 8;
  base.causal = true;  // speculative decoding: a draft token sees those before it
  const auto add = [&](const std::function<void(Shape&)>& change) {
    Shape s = base;
    change(s);
    fovea_bench::AddCase(s);
    if (fovea_bench::MaxThreads() == 1) return;
    s.threads = fovea_bench::MaxThreads();
    fovea_bench::AddCase(s);
  };
  for (const int64_t kv_len : {1024, 2048, 4096, 8192, 16384, 32768, 65536}) add([&](Shape& s) { s.kv_len = kv_len; });
  for (const int64_t kv_len : {1024, 8192, 65536}) {
    add([&](Shape& s) { s.num_kv_heads = 32, s.kv_len = kv_len; });
    add([&](Shape& s) { s.num_kv_heads = 1, s.kv_len = kv_len; });
  }
  for (const int64_t batch : {4, 16}) {
    for (const int64_t kv_len : {1024, 8192}) add([&](Shape& s) { s.batch = batch, s.kv_len = kv_len; });
  }
  for (const int64_t q_len : {2, 4, 8}) {
    add([&](Shape& s) { s.q_len = q_len; });
    add([&](Shape& s) { s.q_len = q_len, s.num_kv_heads = 32; });
  }
  for (const fovea_dtype dtype : {FOVEA_BF16, FOVEA_F16, FOVEA_I8}) {
    for (const int64_t kv_len : {1024, 8192, 65536}) add([&](Shape& s) { s.dtype = dtype, s.kv_len = kv_len; });
    add([&](Shape& s) { s.dtype = dtype, s.num_kv_heads = 32; });
    add([&](Shape& s) { s.dtype = dtype, s.head_dim = 64; });
  }
  for (const int64_t head_dim : {64, 256}) add([&](Shape& s) { s.head_dim = head_dim; });
  add([](Shape& s) { s.num_q_heads = s.num_kv_heads = 1, s.kv_len = 65536; });  // one kv head, cut over the threads
  add([](Shape& s) { s.num_q_heads = 8, s.num_kv_heads = 1, s.kv_len = 65536; });
  add([](Shape& s) { s.num_kv_heads = 32, s.row_stride = 4096; });  // [batch][rows][heads][head_dim]
  for (const int64_t page_size : {1, 2, 4, 16, 64}) {
    add([&](Shape& s) { s.page_size = page_size; });
    add([&](Shape& s) { s.page_size = page_size, s.num_kv_heads = 32; });
  }
  add([](Shape& s) { s.window = 1024; });
  add([](Shape& s) { s.soft_cap = 50.0f; });
}

}  // namespace

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, AddRows); }
