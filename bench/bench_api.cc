// What a call costs before and beside its arithmetic: one head, 16 x 16, head_dim 64, on one thread, in the caller's
// workspace.
//   build/bench/bench_api
// ns is the median of a call's time. hot: called again and again. cold: after a walk over more than L2, so that data
// and code come from L3; the row's own time includes the walk. pool_asleep: exec.num_threads = 0 while OpenMP's threads
// sleep, which this call must not wake; and what waking them costs. Parts are the library's own functions (linked
// statically): validate, dispatch, plan, run.
#include "bench/bench_main.h"
#include "dispatch/targets.h"
#include "lib/plan.h"
#include "lib/reference.h"
#include "lib/run.h"
#include "lib/validate.h"

namespace fovea_bench {
namespace {

constexpr int64_t kLen = 16, kDim = 64;

class Tiny {
 public:
  explicit Tiny(const std::string& target) : target_(target) {
    Check(fovea_set_target(target.c_str()));
    Check(fovea_attention_params_init(&p_, sizeof p_));
    p_.batch = p_.num_q_heads = p_.num_kv_heads = 1;
    p_.q_len = p_.kv_len = kLen;
    p_.head_dim = kDim;
    for (size_t i = 0; i < 4; ++i) data_[i] = RandomFloats(kLen * kDim, i);
    p_.q = fovea_tensor_bhsd(data_[0].get(), FOVEA_F32, 1, kLen, kDim);
    p_.k = fovea_tensor_bhsd(data_[1].get(), FOVEA_F32, 1, kLen, kDim);
    p_.v = fovea_tensor_bhsd(data_[2].get(), FOVEA_F32, 1, kLen, kDim);
    p_.out = fovea_tensor_bhsd(data_[3].get(), FOVEA_F32, 1, kLen, kDim);
    Check(fovea_exec_init(&exec_, sizeof exec_));
    exec_.num_threads = 0;
    size_t bytes = 0;
    Check(fovea_attention_workspace_size(&p_, &exec_, &bytes));  // enough for one thread and for all
    workspace_ = NewFloats(static_cast<int64_t>(bytes / sizeof(float)) + 1);
    exec_.num_threads = 1;
    exec_.workspace = workspace_.get();
    exec_.workspace_bytes = bytes;
    Forward();
    const fovea::AttentionCheck check = fovea::CheckAttention(p_);
    if (!check.passed()) throw std::runtime_error("wrong result");
    max_err_ = check.out.error;
    Validate(), Plan();
  }

  void AllThreads() { exec_.num_threads = 0; }
  void OwnWorkspace() { exec_.workspace = nullptr, exec_.workspace_bytes = 0; }
  void Forward() { Check(fovea_attention_forward(&p_, &exec_)); }
  void Validate() {
    Check(fovea::CheckExec(&exec_, &checked_exec_));
    Check(fovea::CheckParams(&p_, fovea::CheckData::kYes, &checked_));
  }
  void Dispatch() { chosen_ = fovea::ChosenTarget(); }
  void Plan() {
    Dispatch();
    Check(fovea::BuildPlan(checked_, 0, *chosen_, 1, exec_.workspace, exec_.workspace_bytes, &plan_));
  }
  void Run() { fovea::RunPlan(*plan_, checked_, checked_exec_); }
  double max_err() const { return max_err_; }

 private:
  static void Check(fovea_status status) {
    if (status != FOVEA_OK) throw std::runtime_error(fovea_last_error());
  }

  std::string target_;
  Floats data_[4], workspace_;
  fovea_attention_params p_, checked_;
  fovea_exec exec_, checked_exec_;
  const fovea::Target* volatile chosen_ = nullptr;
  fovea_plan* plan_ = nullptr;
  double max_err_ = 0;
};

// Seconds that two reads of the clock take.
double ClockCost() {
  std::vector<double> costs;
  for (int i = 0; i < 1001; ++i) {
    const double begin = Seconds();
    costs.push_back(Seconds() - begin);
  }
  return Median(costs);
}

enum class Before { kNothing, kWalk, kSleep };

void WakePool() {
  ParallelFor(MaxThreads(), MaxThreads(), [](int, int) {});
}

// call is timed; before, in an iteration of the benchmark, comes what makes it cold.
void Measure(benchmark::State& state, Before before, const std::function<void()>& call) {
#ifdef __clang__
  constexpr double kAsleep = 0.25;  // libomp's threads spin for 200 ms
#else
  constexpr double kAsleep = 0.02;
#endif
  const double clock = ClockCost();
  const int calls = before == Before::kNothing ? 1000 : 1;
  std::vector<double> seconds;
  const auto once = [&] {
    if (before == Before::kWalk) ReadRate(ChosenTarget(), 4 * CacheBytes(2), 1);
    if (before == Before::kSleep) {
      WakePool();
      // Not asleep itself: Google Benchmark counts iterations by CPU time.
      for (const double end = Seconds() + kAsleep; Seconds() < end;) {
      }
    }
    const double begin = Seconds();
    for (int i = 0; i < calls; ++i) call();
    seconds.push_back((Seconds() - begin - clock) / calls);
  };
  for (auto _ : state) once();
  while (seconds.size() < kLeastRounds) once();
  state.counters["ns"] = Median(seconds) * 1e9;
}

void AddRows(const std::string& target) {
  struct Part {
    const char* name;
    void (Tiny::*call)();
    void (Tiny::*prepare)();
  };
  const auto add = [&](const Part& part, Before before, const char* when) {
    benchmark::RegisterBenchmark(
        (std::string("api/") + part.name + "/f32/d64/s16/h1/" + when + "/t1@" + target).c_str(),
        [=](benchmark::State& state) {
          Guarded(state, [&] {
            Tiny tiny(target);
            if (part.prepare) (tiny.*part.prepare)();
            Measure(state, before, [&] { (tiny.*part.call)(); });
            state.counters["max_err"] = tiny.max_err();
          });
        })
        ->Unit(benchmark::kMicrosecond);
  };
  for (const Part& part :
       {Part{"forward", &Tiny::Forward, nullptr}, Part{"validate", &Tiny::Validate, nullptr},
        Part{"dispatch", &Tiny::Dispatch, nullptr}, Part{"plan", &Tiny::Plan, nullptr},
        Part{"run", &Tiny::Run, nullptr}, Part{"forward_own_workspace", &Tiny::Forward, &Tiny::OwnWorkspace}}) {
    add(part, Before::kNothing, "hot");
    add(part, Before::kWalk, "cold");
  }
  if (MaxThreads() == 1) return;
  add({"forward", &Tiny::Forward, nullptr}, Before::kSleep, "pool_asleep");
  add({"forward_all_threads", &Tiny::Forward, &Tiny::AllThreads}, Before::kSleep, "pool_asleep");
  benchmark::RegisterBenchmark(("api/omp_parallel/pool_asleep/t" + std::to_string(MaxThreads()) + "@" + target).c_str(),
                               [](benchmark::State& state) { Measure(state, Before::kSleep, WakePool); })
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace
}  // namespace fovea_bench

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, fovea_bench::AddRows); }
