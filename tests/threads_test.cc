// Calls from many threads at once, from within a parallel region, and in a forked child.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"

namespace fovea_test {
namespace {

std::vector<std::unique_ptr<AttentionCase>> Cases(int count) {
  std::vector<std::unique_ptr<AttentionCase>> cases;
  for (int n = 0; n < count; ++n) {
    CaseSpec spec;
    spec.seed = 70 + static_cast<uint64_t>(n);
    spec.num_q_heads = 4;
    spec.num_kv_heads = 2;
    spec.q_len = n % 2 ? 100 + n : 1;
    spec.kv_len = n % 2 ? 200 : 4000;
    spec.head_dim = 24;
    spec.options = kCausal | kBottomRight;
    cases.push_back(std::make_unique<AttentionCase>(spec));
  }
  return cases;
}

std::vector<std::vector<float>> Expected(const std::vector<std::unique_ptr<AttentionCase>>& cases) {
  std::vector<std::vector<float>> expected;
  const fovea_exec one = Threads(1);
  for (const auto& c : cases) {
    Run(c->p, &one);
    expected.push_back(Outputs(c->p));
    c->ClearOutputs();
  }
  return expected;
}

// The exit status of a forked child that runs body (0 if it returned true); 99 if it did not come to an end by itself.
template <typename Body>
int InChild(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a hang in a dead thread pool ends the child, not the suite
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

}  // namespace

TEST_SUITE_BEGIN("threads");  // what `tools/test.sh --thread-sanitize` runs

TEST_CASE("eight threads call at once, each with OpenMP threads of its own: the same bits") {
  const auto cases = Cases(8);
  const auto expected = Expected(cases);
  for (int32_t threads_each : {1, 2}) {
    std::vector<std::thread> threads;
    std::atomic<int> failed{0};
    for (const auto& c : cases) {
      threads.emplace_back([&failed, &c, threads_each] {
        const fovea_exec exec = Threads(threads_each);
        for (int repeat = 0; repeat < 5; ++repeat) failed += fovea_attention_forward(&c->p, &exec) != FOVEA_OK;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(failed == 0);
    for (size_t n = 0; n < cases.size(); ++n) {
      CHECK(BitDifference(expected[n], Outputs(cases[n]->p)) == "");
      cases[n]->ClearOutputs();
    }
  }
}

TEST_CASE("eight threads share their inputs") {
  const auto cases = Cases(2);
  const auto expected = Expected(cases);
  std::vector<std::vector<float>> outs(8);
  std::vector<std::thread> threads;
  const AttentionCase& c = *cases[1];
  std::vector<fovea_attention_params> params(8, c.p);
  for (size_t t = 0; t < 8; ++t) {
    outs[t].resize(static_cast<size_t>(4 * c.p.q_len * 25));
    params[t].out = fovea_tensor_bhsd(outs[t].data(), FOVEA_F32, 4, c.p.q_len, 24);
    params[t].lse = fovea_tensor_bhs(outs[t].data() + 4 * c.p.q_len * 24, FOVEA_F32, 4, c.p.q_len);
    threads.emplace_back([&params, t] {
      const fovea_exec exec = Threads(1);
      fovea_attention_forward(&params[t], &exec);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t t = 0; t < 8; ++t) CHECK(BitDifference(expected[1], Outputs(params[t])) == "");
}

TEST_CASE("tasks on threads of the caller's, by executor and by run_tasks: the same bits") {
  const auto cases = Cases(2);
  const auto expected = Expected(cases);
  for (size_t n = 0; n < cases.size(); ++n) {
    const fovea_attention_params& p = cases[n]->p;
    fovea_exec exec = Threads(4);
    exec.parallel_for = &StdThreads;
    Run(p, &exec);
    CHECK(BitDifference(expected[n], Outputs(p)) == "");

    cases[n]->ClearOutputs();
    size_t bytes = 0;
    REQUIRE(fovea_attention_workspace_size(&p, &exec, &bytes) == FOVEA_OK);
    std::vector<unsigned char> memory(bytes);
    const fovea_plan* plan = nullptr;
    REQUIRE(fovea_attention_plan(&p, &exec, memory.data(), bytes, &plan) == FOVEA_OK);
    for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
      std::atomic<int64_t> next{0};
      std::vector<std::thread> threads;
      for (int32_t worker = 0; worker < fovea_plan_workers(plan); ++worker) {
        threads.emplace_back([&, worker] {
          for (int64_t t = next++; t < fovea_plan_tasks(plan, phase); t = next++) {
            fovea_attention_run_tasks(plan, &p, phase, t, t + 1, worker);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    CHECK(BitDifference(expected[n], Outputs(p)) == "");
  }
}

TEST_CASE("errors of one thread are not another's: fovea_last_error is thread-local") {
  AttentionCase c(CaseSpec{});
  c.p.head_dim = -77;
  CHECK(fovea_attention_forward(&c.p, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  std::string fresh = "?", own;
  std::thread([&fresh, &own, &c] {
    fresh = fovea_last_error();
    fovea_attention_params p = c.p;
    p.head_dim = -88;
    fovea_attention_forward(&p, nullptr);
    own = fovea_last_error();
  }).join();
  CHECK(fresh.empty());
  CHECK(own.find("-88") != std::string::npos);
  CHECK(std::string(fovea_last_error()).find("-77") != std::string::npos);
}

#if defined(_OPENMP) && (!defined(FOVEA_TEST_TSAN) || defined(__clang__))  // libgomp's barriers are unknown to TSan

TEST_CASE("inside a caller's OpenMP parallel region a call runs on the calling thread: the same bits") {
  const auto cases = Cases(4);
  const auto expected = Expected(cases);
  int failed = 0;
#pragma omp parallel for num_threads(4) schedule(static, 1) reduction(+ : failed)
  for (size_t n = 0; n < 4; ++n) {
    const fovea_exec exec = Threads(3);
    failed += fovea_attention_forward(&cases[n]->p, &exec) != FOVEA_OK;
  }
  CHECK(failed == 0);
  for (size_t n = 0; n < 4; ++n) CHECK(BitDifference(expected[n], Outputs(cases[n]->p)) == "");
}

#endif
#ifndef FOVEA_TEST_TSAN  // which does not follow a fork of a process with threads

TEST_CASE("a forked child's calls return and are right, after the parent's pool was warm") {
  const auto cases = Cases(4);
  const auto expected = Expected(cases);
  const fovea_exec two = Threads(2);
  for (const auto& c : cases) Run(c->p, &two);
  for (const fovea_exec& exec : {Threads(2), Threads(0)}) {
    CHECK(InChild([&] {
            for (size_t n = 0; n < cases.size(); ++n) {
              cases[n]->ClearOutputs();
              if (fovea_attention_forward(&cases[n]->p, &exec) != FOVEA_OK) return false;
              if (!BitDifference(expected[n], Outputs(cases[n]->p)).empty()) return false;
            }
            return true;
          }) == 0);
  }
  for (size_t n = 0; n < cases.size(); ++n) {  // and the parent goes on
    cases[n]->ClearOutputs();
    Run(cases[n]->p, &two);
    CHECK(BitDifference(expected[n], Outputs(cases[n]->p)) == "");
  }
}

TEST_CASE("a forked child's child too, and a child of a thread") {
  const auto cases = Cases(2);
  const auto expected = Expected(cases);
  const fovea_exec two = Threads(2);
  Run(cases[1]->p, &two);
  const auto right = [&] {
    cases[1]->ClearOutputs();
    return fovea_attention_forward(&cases[1]->p, &two) == FOVEA_OK &&
           BitDifference(expected[1], Outputs(cases[1]->p)).empty();
  };
  CHECK(InChild([&] { return right() && InChild(right) == 0; }) == 0);
  int status = -1;
  std::thread([&] {
    Run(cases[1]->p, &two);
    status = InChild(right);
  }).join();
  CHECK(status == 0);
}

#endif

TEST_SUITE_END();

#ifdef FOVEA_TEST_HOST_OMP

TEST_SUITE("once") {
  TEST_CASE("a host with another OpenMP runtime: calls inside and outside its parallel regions return and are right") {
    CHECK(InChild([] {
            execl(FOVEA_TEST_HOST_OMP, FOVEA_TEST_HOST_OMP, FOVEA_TEST_LIBRARY, static_cast<char*>(nullptr));
            return false;
          }) == 0);
  }
}

#endif

}  // namespace fovea_test
