// GPT-3's layer, 96 heads x 2048 tokens x 128, causal: memory bounded by inputs, outputs and the workspace.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/random.h"

namespace fovea_test {
namespace {

constexpr int64_t kHeads = 96, kRows = 2048, kDim = 128;

fovea_attention_params Layer(const float* q, const float* k, const float* v, float* out, int64_t kv_len) {
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = 1;
  p.num_q_heads = p.num_kv_heads = kHeads;
  p.q_len = kRows;
  p.kv_len = kv_len;
  p.head_dim = kDim;
  p.causal = 1;
  p.q = fovea_tensor_bhsd(q, FOVEA_F32, kHeads, kRows, kDim);
  p.k = fovea_tensor_bhsd(k, FOVEA_F32, kHeads, kv_len, kDim);
  p.v = fovea_tensor_bhsd(v, FOVEA_F32, kHeads, kv_len, kDim);
  p.out = fovea_tensor_bhsd(out, FOVEA_F32, kHeads, kRows, kDim);
  return p;
}

}  // namespace

TEST_CASE("GPT-3's layer: the workspace is under 5% of inputs and outputs, whatever the number of keys") {
  for (int32_t threads : {1, 2, 8}) {
    const fovea_exec exec = Threads(threads);
    size_t bytes = 0, long_bytes = 0;
    const fovea_attention_params p = Layer(nullptr, nullptr, nullptr, nullptr, kRows);
    const fovea_attention_params longer = Layer(nullptr, nullptr, nullptr, nullptr, 1 << 20);
    REQUIRE(fovea_attention_workspace_size(&p, &exec, &bytes) == FOVEA_OK);
    REQUIRE(fovea_attention_workspace_size(&longer, &exec, &long_bytes) == FOVEA_OK);
    CHECK(bytes < 4 * kHeads * kRows * kDim * sizeof(float) / 20);
    CHECK(long_bytes == bytes);
  }
}

#if !defined(FOVEA_TEST_ASAN) && !defined(FOVEA_TEST_TSAN)

namespace {

// A field of /proc/self/status in KB; -1 where there is none.
int64_t StatusKb(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, field.size() + 1, field + ":") == 0) return std::atoll(line.c_str() + field.size() + 1);
  }
  return -1;
}

bool ResetPeak() {  // VmHWM starts again at what is resident now
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5" << std::flush;
  return clear.good();
}

}  // namespace

TEST_SUITE("once") {
  TEST_CASE("GPT-3's layer, computed whole: memory grows by the workspace only, and it is right") {
    if (std::getenv("FOVEA_TEST_SCALE") && std::atof(std::getenv("FOVEA_TEST_SCALE")) < 0.5) return;  // an emulator
    const size_t count = static_cast<size_t>(kHeads * kRows * kDim);
    std::vector<float> q(count), k(count), v(count), out(count);
    Rng rng(96);
    for (std::vector<float>* t : {&q, &k, &v}) {
      for (float& x : *t) x = rng.Normal();
    }
    const fovea_attention_params p = Layer(q.data(), k.data(), v.data(), out.data(), kRows);
    const fovea_exec exec = Threads(2);
    size_t workspace = 0;
    REQUIRE(fovea_attention_workspace_size(&p, &exec, &workspace) == FOVEA_OK);
    const bool measured = ResetPeak();
    const int64_t before = StatusKb("VmRSS");
    Run(p, &exec);
    const int64_t growth = StatusKb("VmHWM") - before;
    if (measured && before > 0) {
      CAPTURE(growth);
      CHECK(growth <= static_cast<int64_t>(workspace / 1024) + 4096);  // and two threads' stacks and the pool, 4 MB
    } else {
      MESSAGE("no /proc/self/clear_refs here: the growth of memory was not measured");
    }
    // A sample of rows: the first, the last and some between, of three heads.
    for (int64_t h : {0, 50, 95}) {
      for (int64_t i : {0, 1, 63, 1000, 2047}) {
        fovea_attention_params row = p;
        row.num_q_heads = row.num_kv_heads = 1;
        row.q_len = 1;
        row.q_offset = i;
        const int64_t head = h * kRows * kDim;
        row.q.data = q.data() + head + i * kDim;
        row.k.data = k.data() + head;
        row.v.data = v.data() + head;
        row.out.data = out.data() + head + i * kDim;
        CHECK(fovea::CheckAttention(row).passed());
      }
    }
  }
}

#endif

}  // namespace fovea_test
