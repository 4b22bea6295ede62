// Workspace, plan and run_tasks, describe, the default exec.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"

namespace fovea_test {
namespace {

CaseSpec Spec(int64_t q_len, int64_t kv_len, uint32_t options = kCausal | kBottomRight) {
  CaseSpec spec;
  spec.seed = 21;
  spec.batch = 2;
  spec.num_q_heads = 4;
  spec.num_kv_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 24;
  spec.v_head_dim = 20;
  spec.options = options;
  return spec;
}

constexpr int64_t kLengths[][2] = {{150, 300}, {1, 4000}, {6, 900}};

size_t WorkspaceSize(const fovea_attention_params& p, const fovea_exec& exec) {
  size_t bytes = 0;
  REQUIRE(fovea_attention_workspace_size(&p, &exec, &bytes) == FOVEA_OK);
  return bytes;
}

// Extents only, no data: what an engine asks with before it has buffers.
fovea_attention_params Extents(int64_t batch, int64_t q_len, int64_t kv_len) {
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = batch;
  p.num_q_heads = 8;
  p.num_kv_heads = 2;
  p.q_len = q_len;
  p.kv_len = kv_len;
  p.head_dim = 64;
  p.q = fovea_tensor_bhsd(nullptr, FOVEA_F32, 8, q_len, 64);
  p.out = p.q;
  p.k = p.v = fovea_tensor_bhsd(nullptr, FOVEA_F32, 2, kv_len, 64);
  return p;
}

}  // namespace

TEST_CASE("workspace_size does not read data and is monotone in q_len, kv_len and batch") {
  for (uint32_t flags : {0u, static_cast<uint32_t>(FOVEA_BATCH_INVARIANT)}) {
    for (int32_t threads : {1, 3, 16}) {
      const fovea_exec exec = Threads(threads, flags);
      for (int causal : {0, 1}) {
        INFO("flags ", flags, ", threads ", threads, ", causal ", causal);
        const auto size = [&](int64_t batch, int64_t q_len, int64_t kv_len) {
          fovea_attention_params p = Extents(batch, q_len, kv_len);
          p.causal = causal;
          return WorkspaceSize(p, exec);
        };
        const std::vector<int64_t> lengths = {0, 1, 2, 7, 8, 9, 24, 25, 64, 65, 300, 2048, 100000, int64_t{1} << 28};
        for (size_t n = 1; n < lengths.size(); ++n) {
          CAPTURE(lengths[n]);
          CHECK(size(2, lengths[n], 513) >= size(2, lengths[n - 1], 513));
          CHECK(size(2, lengths[n], 1) >= size(2, lengths[n - 1], 1));
          CHECK(size(2, 1, lengths[n]) >= size(2, 1, lengths[n - 1]));
          CHECK(size(2, 300, lengths[n]) >= size(2, 300, lengths[n - 1]));
        }
        for (int64_t batch = 1; batch < 40; ++batch) {
          CHECK(size(batch + 1, 1, 5000) >= size(batch, 1, 5000));
          CHECK(size(batch + 1, 300, 300) >= size(batch, 300, 300));
        }
      }
    }
  }
}

TEST_CASE("workspace_size does not grow with the number of keys") {
  const fovea_exec exec = Threads(2);
  CHECK(WorkspaceSize(Extents(1, 2048, 1 << 22), exec) == WorkspaceSize(Extents(1, 2048, 8192), exec));
  CHECK(WorkspaceSize(Extents(4, 1, 1 << 22), exec) == WorkspaceSize(Extents(4, 1, 1 << 18), exec));
  // For decoding it is under 1% of the cache: K and V of 2 heads x 64, 4 bytes each.
  CHECK(static_cast<double>(WorkspaceSize(Extents(1, 1, 131072), exec)) < 0.01 * 2 * 2 * 64 * 4 * 131072);
}

TEST_CASE("workspace_size of the largest shapes serves smaller ones: forward takes it") {
  const fovea_exec exec = Threads(2);
  AttentionCase c(Spec(33, 100));
  fovea_attention_params largest = c.p;
  largest.q_len = 1000;
  largest.kv_len = 5000;
  fovea_exec with = exec;
  std::vector<unsigned char> memory(WorkspaceSize(largest, exec));
  with.workspace = memory.data();
  with.workspace_bytes = memory.size();
  for (int64_t q_len = 1; q_len <= 33; ++q_len) {
    for (int64_t kv_len : {int64_t{1}, q_len, int64_t{100}}) {
      fovea_attention_params p = c.p;
      p.q_len = q_len;
      p.kv_len = kv_len;
      CHECK(fovea_attention_forward(&p, &with) == FOVEA_OK);
    }
  }
}

TEST_CASE("workspace too small is FOVEA_ERR_WORKSPACE_TOO_SMALL and nothing is written") {
  for (const auto& lengths : kLengths) {
    AttentionCase c(Spec(lengths[0], lengths[1]));
    fovea_exec exec = Threads(2);
    const size_t bytes = WorkspaceSize(c.p, exec);
    REQUIRE(bytes > 0);
    std::vector<unsigned char> memory(bytes);
    c.ClearOutputs();
    c.out->Snapshot();
    c.lse->Snapshot();
    exec.workspace = memory.data();
    for (size_t given : {bytes - 1, bytes / 2, size_t{0}}) {
      exec.workspace_bytes = given;
      CHECK(fovea_attention_forward(&c.p, &exec) == FOVEA_ERR_WORKSPACE_TOO_SMALL);
      CHECK(std::string(fovea_last_error()).find("workspace") != std::string::npos);
      const fovea_plan* plan = nullptr;
      CHECK(fovea_attention_plan(&c.p, &exec, memory.data(), given, &plan) == FOVEA_ERR_WORKSPACE_TOO_SMALL);
    }
    CHECK(c.out->Changed() == "");
    CHECK(c.lse->Changed() == "");
  }
}

TEST_CASE("plan and run_tasks have the bits of forward: one task at a time, ranges, threads") {
  for (const auto& lengths : kLengths) {
    for (uint32_t flags : {0u, static_cast<uint32_t>(FOVEA_BATCH_INVARIANT)}) {
      INFO("q_len ", lengths[0], ", kv_len ", lengths[1], ", flags ", flags);
      CaseSpec spec = Spec(lengths[0], lengths[1], kCausal | kBottomRight | kMask);
      spec.scores_stage = FOVEA_SCORES_PROBABILITIES;
      AttentionCase c(spec);
      const fovea_exec exec = Threads(3, flags);
      Run(c.p, &exec);
      const std::vector<float> expected = Outputs(c.p);

      const size_t bytes = WorkspaceSize(c.p, exec);
      GuardedBuffer memory(bytes, Guard::kAfter);
      const fovea_plan* plan = nullptr;
      REQUIRE(fovea_attention_plan(&c.p, &exec, memory.data(), bytes, &plan) == FOVEA_OK);
      CHECK(reinterpret_cast<uintptr_t>(plan) >= reinterpret_cast<uintptr_t>(memory.data()));
      CHECK(reinterpret_cast<uintptr_t>(plan) < reinterpret_cast<uintptr_t>(memory.data()) + bytes);
      const int32_t workers = fovea_plan_workers(plan);
      CHECK(workers >= 1);
      CHECK(workers <= 3);

      for (int way = 0; way < 3; ++way) {
        CAPTURE(way);
        c.ClearOutputs();
        for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
          const int64_t tasks = fovea_plan_tasks(plan, phase);
          if (way == 0) {  // backwards, one by one, the last worker's scratch
            for (int64_t t = tasks - 1; t >= 0; --t) {
              CHECK(fovea_attention_run_tasks(plan, &c.p, phase, t, t + 1, workers - 1) == FOVEA_OK);
            }
          } else if (way == 1) {  // all at once, and an empty range
            CHECK(fovea_attention_run_tasks(plan, &c.p, phase, 0, tasks, 0) == FOVEA_OK);
            CHECK(fovea_attention_run_tasks(plan, &c.p, phase, tasks, tasks, 0) == FOVEA_OK);
          } else {  // the engine's own threads
            std::vector<std::thread> threads;
            std::vector<fovea_status> status(static_cast<size_t>(workers), FOVEA_OK);
            for (int32_t w = 0; w < workers; ++w) {
              threads.emplace_back([&, w] {
                status[static_cast<size_t>(w)] =
                    fovea_attention_run_tasks(plan, &c.p, phase, tasks * w / workers, tasks * (w + 1) / workers, w);
              });
            }
            for (std::thread& thread : threads) thread.join();
            for (fovea_status s : status) CHECK(s == FOVEA_OK);
          }
        }
        CHECK(BitDifference(expected, Outputs(c.p)) == "");
      }
    }
  }
}

TEST_CASE("a plan serves other data pointers of the same shape") {
  for (const auto& lengths : kLengths) {
    CaseSpec spec = Spec(lengths[0], lengths[1]);
    AttentionCase first(spec);
    spec.seed = 22;
    AttentionCase second(spec);
    const fovea_exec exec = Threads(2);
    Run(second.p, &exec);
    const std::vector<float> expected = Outputs(second.p);
    second.ClearOutputs();
    std::vector<unsigned char> memory(WorkspaceSize(first.p, exec));
    const fovea_plan* plan = nullptr;
    REQUIRE(fovea_attention_plan(&first.p, &exec, memory.data(), memory.size(), &plan) == FOVEA_OK);
    for (const fovea_attention_params* p : {&first.p, &second.p, &first.p, &second.p}) {
      for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
        CHECK(fovea_attention_run_tasks(plan, p, phase, 0, fovea_plan_tasks(plan, phase), 0) == FOVEA_OK);
      }
    }
    CHECK(BitDifference(expected, Outputs(second.p)) == "");
  }
}

TEST_CASE("run_tasks refuses a phase, range or worker that the plan does not have") {
  AttentionCase c(Spec(150, 300));
  const fovea_exec exec = Threads(2);
  std::vector<unsigned char> memory(WorkspaceSize(c.p, exec));
  const fovea_plan* plan = nullptr;
  REQUIRE(fovea_attention_plan(&c.p, &exec, memory.data(), memory.size(), &plan) == FOVEA_OK);
  const int64_t tasks = fovea_plan_tasks(plan, 0);
  CHECK(fovea_attention_run_tasks(plan, &c.p, -1, 0, 1, 0) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, fovea_plan_phases(plan), 0, 1, 0) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, -1, 1, 0) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, 0, tasks + 1, 0) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, 1, 0, 0) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, 0, 1, -1) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, 0, 1, fovea_plan_workers(plan)) == FOVEA_ERR_INVALID_ARGUMENT);
}

TEST_CASE("plan and describe agree: target, tasks, phases, threads, workspace") {
  for (const auto& lengths : kLengths) {
    AttentionCase c(Spec(lengths[0], lengths[1]));
    const fovea_exec exec = Threads(2);
    fovea_attention_info info;
    fovea_attention_info_init(&info, sizeof info);
    REQUIRE(fovea_attention_describe(&c.p, &exec, &info) == FOVEA_OK);
    CHECK(target_name == info.target);
    CHECK(std::string(info.conversions) == "none");
    CHECK(info.num_threads >= 1);
    CHECK(info.num_threads <= 2);
    CHECK(info.workspace_bytes == WorkspaceSize(c.p, exec));
    std::vector<unsigned char> memory(info.workspace_bytes);
    const fovea_plan* plan = nullptr;
    REQUIRE(fovea_attention_plan(&c.p, &exec, memory.data(), memory.size(), &plan) == FOVEA_OK);
    CHECK(info.phases == fovea_plan_phases(plan));
    int64_t tasks = 0;
    for (int32_t phase = 0; phase < info.phases; ++phase) tasks += fovea_plan_tasks(plan, phase);
    CHECK(info.tasks == tasks);
  }
}

TEST_CASE("describe names the kernels that run: prefill, few rows with merge, scores") {
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  const fovea_exec exec = Threads(2);
  const auto kernels = [&](const AttentionCase& c, const fovea_exec& e) {
    REQUIRE(fovea_attention_describe(&c.p, &e, &info) == FOVEA_OK);
    return std::string(info.kernels);
  };
  const auto has = [](const std::string& text, const char* word) { return text.find(word) != std::string::npos; };
  CaseSpec prefill = Spec(150, 300);
  prefill.scores_stage = FOVEA_SCORES_RAW;
  CHECK(has(kernels(AttentionCase(Spec(150, 300)), exec), "prefill_f32"));
  CHECK_FALSE(has(kernels(AttentionCase(Spec(150, 300)), exec), "decode"));
  CHECK_FALSE(has(kernels(AttentionCase(Spec(150, 300)), exec), "scores"));
  CHECK(has(kernels(AttentionCase(prefill), exec), "scores"));
  CaseSpec decode = Spec(1, 8000);
  decode.num_q_heads = 2;
  CHECK(has(kernels(AttentionCase(decode), exec), "decode_f32"));
  CHECK(has(kernels(AttentionCase(decode), exec), "merge"));
  CHECK_FALSE(has(kernels(AttentionCase(decode), Threads(2, FOVEA_BATCH_INVARIANT)), "decode"));
}

TEST_CASE("describe counts useful FLOP by lengths, causality and window, executed ones by blocks") {
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  const auto flop = [&info](const AttentionCase& c) {
    REQUIRE(fovea_attention_describe(&c.p, nullptr, &info) == FOVEA_OK);
    return info.flop;
  };
  const double per_pair = 2 * (24 + 20);
  CHECK(flop(AttentionCase(Spec(150, 300, 0))) == per_pair * 2 * 4 * 150 * 300);
  CHECK(info.flop_executed >= info.flop);
  CHECK(info.bytes == 4.0 * 2 * (4 * 150 * 24 + 2 * 300 * (24 + 20) + 4 * 150 * 20));
  CHECK(flop(AttentionCase(Spec(150, 300, kCausal))) == per_pair * 2 * 4 * (150 * 151 / 2));
  AttentionCase window(Spec(150, 300, 0));
  window.p.window_left = 0;
  window.p.window_right = 9;
  CHECK(flop(window) == per_pair * 2 * 4 * 150 * 10);
  AttentionCase lengths(Spec(150, 300, 0));
  const std::vector<int32_t> q_lens = {10, 0}, kv_lens = {20, 300};
  lengths.p.q_lens = q_lens.data();
  lengths.p.kv_lens = kv_lens.data();
  CHECK(flop(lengths) == per_pair * 4 * 10 * 20);
}

TEST_CASE("describe: causal attention executes about half") {
  fovea_attention_info whole, causal;
  fovea_attention_info_init(&whole, sizeof whole);
  fovea_attention_info_init(&causal, sizeof causal);
  CaseSpec spec = Spec(2048, 2048, 0);
  spec.batch = 1;
  spec.head_dim = 8;
  spec.v_head_dim = 8;
  spec.num_q_heads = spec.num_kv_heads = 1;
  AttentionCase c(spec);
  REQUIRE(fovea_attention_describe(&c.p, nullptr, &whole) == FOVEA_OK);
  c.p.causal = 1;
  REQUIRE(fovea_attention_describe(&c.p, nullptr, &causal) == FOVEA_OK);
  CHECK(causal.flop_executed < 0.56 * whole.flop_executed);
  CHECK(causal.flop_executed >= causal.flop);
}

TEST_CASE("the default exec serves calls with exec NULL, and NULL restores OpenMP") {
  AttentionCase c(Spec(150, 300));
  const fovea_exec one = Threads(1);
  Run(c.p, &one);
  const std::vector<float> expected = Outputs(c.p);
  int64_t tasks = 0;
  fovea_exec mine = Threads(4);
  mine.parallel_for = &Serial;
  mine.parallel_for_ctx = &tasks;
  REQUIRE(fovea_set_default_exec(&mine) == FOVEA_OK);
  c.ClearOutputs();
  const fovea_status status = fovea_attention_forward(&c.p, nullptr);
  CHECK(fovea_set_default_exec(nullptr) == FOVEA_OK);
  CHECK(status == FOVEA_OK);
  CHECK(tasks > 0);
  CHECK(BitDifference(expected, Outputs(c.p)) == "");
  const int64_t before = tasks;
  c.ClearOutputs();
  CHECK(fovea_attention_forward(&c.p, nullptr) == FOVEA_OK);
  CHECK(tasks == before);
  CHECK(BitDifference(expected, Outputs(c.p)) == "");
}

TEST_CASE("a default exec with a workspace or error text is refused") {
  char memory[64];
  fovea_exec exec = Threads(1);
  exec.workspace = memory;
  exec.workspace_bytes = sizeof memory;
  CHECK(fovea_set_default_exec(&exec) == FOVEA_ERR_INVALID_ARGUMENT);
  exec = Threads(1);
  exec.error_text = memory;
  exec.error_capacity = sizeof memory;
  CHECK(fovea_set_default_exec(&exec) == FOVEA_ERR_INVALID_ARGUMENT);
}

TEST_CASE("exec.error_text: the failing call's text, cut to its capacity, empty on success") {
  AttentionCase c(Spec(6, 9));
  char text[24];
  std::memset(text, 'x', sizeof text);
  fovea_exec exec = Threads(1);
  exec.error_text = text;
  exec.error_capacity = 12;
  CHECK(fovea_attention_forward(&c.p, &exec) == FOVEA_OK);
  CHECK(text[0] == '\0');
  c.p.head_dim = -5;
  CHECK(fovea_attention_forward(&c.p, &exec) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(std::strlen(text) == 11);
  CHECK(std::string(fovea_last_error()).compare(0, 11, text) == 0);
  CHECK(text[12] == 'x');
}

}  // namespace fovea_test
