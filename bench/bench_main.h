// The main program of the Google Benchmarks here: rows, their targets, and JSON in which every row has its target by
// name.
//   --all_targets, or an '@' in --benchmark_filter: rows for every target that this CPU runs; else for the one that
//   fovea takes.
#ifndef FOVEA_BENCH_BENCH_MAIN_H_
#define FOVEA_BENCH_BENCH_MAIN_H_

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "bench/bench_util.h"

namespace fovea_bench {

// Counters are numbers: the target's name, from the row's, is put beside them.
class JsonReporter : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    std::ostream& out = GetOutputStream();
    std::ostringstream text;
    SetOutputStream(&text);
    JSONReporter::ReportRuns(runs);
    SetOutputStream(&out);
    std::istringstream lines(text.str());
    auto run = runs.begin();
    bool first = true;
    for (std::string line; std::getline(lines, line); first = false) {
      if (!first) out << '\n';
      if (line.find("\"name\":") != std::string::npos && run != runs.end()) {
        const std::string& name = (run++)->run_name.function_name;
        out << "      \"target\": \"" << name.substr(name.find('@') + 1) << "\",\n";
      }
      out << line;
    }
  }
};

inline bool& SomeRowFailed() {
  static bool failed = false;
  return failed;
}

// Runs body, whose exceptions are the row's error and the program's exit status 1.
inline void Guarded(benchmark::State& state, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    SomeRowFailed() = true;
    state.SkipWithError(error.what());
  }
}

// A median wants some.
constexpr int kLeastRounds = 5;

// A row that times one call of attention, alternating with the machine's limits. The case is kept from one trial of
// Google Benchmark to the next, until another row comes: the check is done once.
inline void RunCase(benchmark::State& state, const Shape& shape) {
  static std::unique_ptr<Case> kept;
  Guarded(state, [&] {
    if (!kept || Name(kept->shape()) != Name(shape)) {
      kept.reset();
      kept = std::make_unique<Case>(shape);
    }
    std::vector<Round> rounds;
    for (auto _ : state) {
      Round round;
      round.seconds = kept->Run();
      state.PauseTiming();  // leaves the row's name as it is, which manual time does not
      kept->MeasureLimits(&round);
      rounds.push_back(round);
      state.ResumeTiming();
    }
    while (rounds.size() < kLeastRounds) {
      Round round;
      round.seconds = kept->Run();
      kept->MeasureLimits(&round);
      rounds.push_back(round);
    }
    const Result result = kept->Summarize(rounds);
    state.counters["GFLOP/s"] = result.gflops;
    state.counters["fma_fraction"] = result.fma_fraction;
    state.counters["GB/s"] = result.gbps;
    state.counters["bandwidth_fraction"] = result.bandwidth_fraction;
    state.counters["max_err"] = result.max_err;
    state.SetLabel(std::string(kept->info().kernels) + "@" + kept->info().target);
  });
}

inline void AddCase(const Shape& shape) {
  benchmark::RegisterBenchmark(Name(shape).c_str(), [shape](benchmark::State& state) {
    RunCase(state, shape);
  })->Unit(benchmark::kMillisecond);
}

// add_rows(target) registers the rows of one target.
inline int BenchMain(int argc, char** argv, const std::function<void(const std::string&)>& add_rows) {
  bool all = false, json = false, json_file = false;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    json |= arg == "--benchmark_format=json";
    json_file |= arg.rfind("--benchmark_out=", 0) == 0;
    all |= arg == "--all_targets" || (arg.rfind("--benchmark_filter=", 0) == 0 && arg.find('@') != std::string::npos);
    if (arg != "--all_targets") argv[kept++] = argv[i];
  }
  for (int i = 1; i < kept; ++i) json_file &= std::strcmp(argv[i], "--benchmark_out_format=console") != 0;
  argc = kept;
  try {
    for (const std::string& target : all ? RunnableTargets() : std::vector<std::string>{ChosenTarget()})
      add_rows(target);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  JsonReporter display, file;
  if (json && json_file) {
    benchmark::RunSpecifiedBenchmarks(&display, &file);
  } else if (json) {
    benchmark::RunSpecifiedBenchmarks(&display);
  } else if (json_file) {
    const std::unique_ptr<benchmark::BenchmarkReporter> console(new benchmark::ConsoleReporter);
    benchmark::RunSpecifiedBenchmarks(console.get(), &file);
  } else {
    benchmark::RunSpecifiedBenchmarks();
  }
  benchmark::Shutdown();
  return SomeRowFailed() ? 1 : 0;
}

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_BENCH_MAIN_H_
