// fovea_linear against what the FMA units or memory allow, alternating in one run:
//   taskset -c 1 build/bench/bench_linear --benchmark_filter=/t1@
//   build/bench/bench_linear --benchmark_filter=n1/
// Names: linear/f32/n<tokens>/in<in_features>/out<out_features>. GB/s is W read once; bandwidth_fraction is that over
// the read rate of that footprint.
#include <cmath>

#include "bench/bench_main.h"

namespace fovea_bench {
namespace {

struct LinearRow {
  int64_t tokens, in, out;
  bool invariant;  // FOVEA_BATCH_INVARIANT
  int threads;
  std::string target;
};

std::string Name(const LinearRow& r) {
  return "linear/f32/n" + std::to_string(r.tokens) + "/in" + std::to_string(r.in) + "/out" + std::to_string(r.out) +
         (r.invariant ? "/invariant" : "") + "/t" + std::to_string(r.threads) + "@" + r.target;
}

void Want(fovea_status status) {
  if (status != FOVEA_OK) throw std::runtime_error(fovea_last_error());
}

class LinearCase {
 public:
  explicit LinearCase(const LinearRow& row) : row_(row) {
    Want(fovea_set_target(row.target.c_str()));
    x_ = RandomFloats(row.tokens * row.in, 1);
    w_ = RandomFloats(row.out * row.in, uint64_t{2} << 40);
    bias_ = RandomFloats(row.out, uint64_t{3} << 40);
    y_ = NewFloats(row.tokens * row.out);
    Want(fovea_linear_params_init(&p_, sizeof p_));
    p_.tokens = row.tokens, p_.in_features = row.in, p_.out_features = row.out;
    p_.x = fovea_tensor_bhsd(x_.get(), FOVEA_F32, 1, row.tokens, row.in);
    p_.w = fovea_tensor_bhsd(w_.get(), FOVEA_F32, 1, row.out, row.in);
    p_.bias = fovea_tensor_bhsd(bias_.get(), FOVEA_F32, 1, 1, row.out);
    p_.y = fovea_tensor_bhsd(y_.get(), FOVEA_F32, 1, row.tokens, row.out);
    Want(fovea_exec_init(&exec_, sizeof exec_));
    exec_.num_threads = row.threads;
    exec_.flags = row.invariant ? FOVEA_BATCH_INVARIANT : 0;
    size_t bytes = 0;
    Want(fovea_linear_workspace_size(&p_, &exec_, &bytes));
    workspace_ = NewFloats(static_cast<int64_t>(bytes / sizeof(float)) + 1);
    exec_.workspace = workspace_.get();
    exec_.workspace_bytes = bytes;
    Run();
    Check();
  }

  double Run() {
    const double begin = Seconds();
    const fovea_status status = fovea_linear(&p_, &exec_);
    const double seconds = Seconds() - begin;
    Want(status);
    return seconds;
  }

  double flop() const { return 2.0 * static_cast<double>(row_.tokens * row_.in) * static_cast<double>(row_.out); }
  double w_bytes() const { return 4.0 * static_cast<double>(row_.in * row_.out); }
  double max_err() const { return max_err_; }
  double MeasureFma() const {
    return FmaRate(row_.target, std::min(std::max(flop() / (4 * row_.threads), 1e7), 4e9), row_.threads);
  }
  double MeasureRead() const {
    return ReadRate(row_.target, std::vector<Span>{{w_.get(), row_.in * row_.out * 4}}, row_.threads);
  }

 private:
  // Some elements, relative to the sum of the products' magnitudes.
  void Check() {
    for (int64_t n = 0; n < 500; ++n) {
      const int64_t t = n * 37 % row_.tokens, o = n * 61 % row_.out;
      double want = static_cast<double>(bias_[static_cast<size_t>(o)]), magnitude = std::fabs(want);
      for (int64_t i = 0; i < row_.in; ++i) {
        const double product = static_cast<double>(x_[static_cast<size_t>(t * row_.in + i)]) *
                               static_cast<double>(w_[static_cast<size_t>(o * row_.in + i)]);
        want += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(static_cast<double>(y_[static_cast<size_t>(t * row_.out + o)]) - want) / magnitude;
      if (!(error <= max_err_)) max_err_ = error;  // NaN stays
    }
    if (!(max_err_ < 1e-6)) throw std::runtime_error("wrong result: relative error " + std::to_string(max_err_));
  }

  LinearRow row_;
  Floats x_, w_, bias_, y_, workspace_;
  fovea_linear_params p_;
  fovea_exec exec_;
  double max_err_ = 0;
};

void RunLinear(benchmark::State& state, const LinearRow& row) {
  static std::unique_ptr<LinearCase> kept;
  static std::string kept_name;
  Guarded(state, [&] {
    if (kept_name != Name(row)) {
      kept.reset();
      kept = std::make_unique<LinearCase>(row);
      kept_name = Name(row);
    }
    std::vector<double> seconds, fma, read;
    const auto limits = [&] {
      fma.push_back(kept->flop() / seconds.back() / kept->MeasureFma());
      read.push_back(kept->w_bytes() / seconds.back() / kept->MeasureRead());
    };
    for (auto _ : state) {
      seconds.push_back(kept->Run());
      state.PauseTiming();
      limits();
      state.ResumeTiming();
    }
    while (seconds.size() < kLeastRounds) {
      seconds.push_back(kept->Run());
      limits();
    }
    const double median = Median(seconds);
    state.counters["GFLOP/s"] = kept->flop() / median * 1e-9;
    state.counters["fma_fraction"] = Median(fma);
    state.counters["GB/s"] = kept->w_bytes() / median * 1e-9;
    state.counters["bandwidth_fraction"] = Median(read);
    state.counters["max_err"] = kept->max_err();
  });
}

void AddRows(const std::string& target) {
  const auto add = [&](int64_t tokens, int64_t in, int64_t out, bool invariant = false) {
    for (const int threads : {1, MaxThreads()}) {
      const LinearRow row = {tokens, in, out, invariant, threads, target};
      benchmark::RegisterBenchmark(Name(row).c_str(), [row](benchmark::State& state) {
        RunLinear(state, row);
      })->Unit(benchmark::kMillisecond);
      if (MaxThreads() == 1) return;
    }
  };
  for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048}) add(tokens, 4096, 4096);
  for (const int64_t tokens : {1, 2048}) {
    add(tokens, 4096, 1024);   // Llama 3 8B: K and V
    add(tokens, 4096, 14336);  // and its feed-forward layer
    add(tokens, 14336, 4096);
    add(tokens, 768, 768);  // BERT base
  }
  add(1, 4096, 4096, true);
  add(8, 4096, 4096, true);
}

}  // namespace
}  // namespace fovea_bench

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, fovea_bench::AddRows); }
