// The softmax alone: exp2 and tanh (soft caps) over an array in L1, and the softmax of a group of keys whose scores are
// stored.
//   taskset -c 0 build/bench/bench_softmax
// exp_fraction: of the rate of exp2 that bench/roofline.h measures, in turn.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/bench_softmax.cc"
#include "bench/tile_operands.h"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace kernels = fovea::HWY_NAMESPACE;
constexpr int NV = fovea::kTileVecs;

HWY_NOINLINE TileShape GetTileShape() { return {kernels::kTileKeys, static_cast<int>(NV * hn::Lanes(kernels::DF()))}; }

HWY_NOINLINE void RunExp2(const float* x, float* y, int64_t count) {
  const kernels::DF d;
  const int64_t N = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += N) hn::Store(kernels::Exp2(d, hn::Load(d, x + i)), d, y + i);
}

HWY_NOINLINE void RunTanh(const float* x, float* y, int64_t count) {
  const kernels::DF d;
  const int64_t N = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += N) hn::Store(kernels::Tanh(d, hn::Load(d, x + i)), d, y + i);
}

// S^T at p becomes P^T, group by group; m is such that nothing is rescaled.
HWY_NOINLINE void RunGroups(const TileOperands& o) {
  kernels::Tile tile = {};
  tile.ot = o.ot, tile.p = o.p, tile.m = o.m, tile.block_l = o.l, tile.mx = o.mx;
  const int64_t lanes = GetTileShape().lanes;
  for (int64_t row = 0; row < o.p_rows; row += kernels::kTileKeys) {
    float* const p = o.p + row * lanes;
    kernels::SoftmaxGroup<NV, float>(tile, static_cast<size_t>(o.ot_rows), p, p, o.p, kernels::kLazyMax);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>
#include <cstring>

#include "bench/bench_main.h"
#include "bench/per_target.h"

namespace fovea_bench {
namespace {

HWY_EXPORT(GetTileShape);
HWY_EXPORT(RunExp2);
HWY_EXPORT(RunTanh);
HWY_EXPORT(RunGroups);

enum class Kind { kExp2, kTanh, kGroup };

void RunSoftmax(benchmark::State& state, Kind kind, const std::string& target) {
  Guarded(state, [&] {
    const size_t index = TargetIndex(target);
    const int64_t lanes = HWY_DISPATCH_TABLE(GetTileShape)[index]().lanes;
    const int64_t rows = 32, count = rows * lanes;  // 6 KB at the most
    const Floats x = RandomFloats(count, 1), y = NewFloats(count), ot = NewFloats(lanes), stats = NewFloats(3 * lanes);
    std::fill_n(stats.get(), 3 * lanes, 0.0f);
    TileOperands o = {};
    o.p = y.get(), o.ot = ot.get(), o.p_rows = rows, o.ot_rows = 1;
    o.m = stats.get(), o.l = o.m + lanes, o.mx = o.l + lanes;
    std::fill_n(ot.get(), lanes, 0.0f);
    const auto run = [&] {
      if (kind == Kind::kExp2) return HWY_DISPATCH_TABLE(RunExp2)[index](x.get(), y.get(), count);
      if (kind == Kind::kTanh) return HWY_DISPATCH_TABLE(RunTanh)[index](x.get(), y.get(), count);
      std::memcpy(y.get(), x.get(), static_cast<size_t>(count) * sizeof(float));  // SoftmaxGroup works in place
      HWY_DISPATCH_TABLE(RunGroups)[index](o);
    };
    run();
    double max_err = 0;
    for (int64_t i = 0; i < count; ++i) {
      const size_t at = static_cast<size_t>(i);
      const double arg = static_cast<double>(x[at]), want = kind == Kind::kTanh ? std::tanh(arg) : std::exp2(arg);
      const double error = std::fabs(static_cast<double>(y[at]) - want) / std::fabs(want);
      if (!(error <= max_err)) max_err = error;
    }
    if (!(max_err < 5e-7)) throw std::runtime_error("wrong result: relative error " + std::to_string(max_err));
    std::vector<double> rates, fractions;
    constexpr int kCalls = 200;
    for (auto _ : state) {
      const double begin = Seconds();
      for (int i = 0; i < kCalls; ++i) run();
      const double rate = kCalls * static_cast<double>(count) / (Seconds() - begin);
      state.PauseTiming();
      rates.push_back(rate * 1e-9);
      fractions.push_back(rate / ExpRate(target, kCalls * static_cast<double>(count), 1));
      state.ResumeTiming();
    }
    state.counters["Gexp/s"] = Median(rates);
    state.counters["exp_fraction"] = Median(fractions);
    state.counters["max_err"] = max_err;
  });
}

void AddRows(const std::string& target) {
  for (const Kind kind : {Kind::kExp2, Kind::kTanh, Kind::kGroup}) {
    const std::string name = kind == Kind::kExp2 ? "exp2" : kind == Kind::kTanh ? "tanh" : "group";
    benchmark::RegisterBenchmark(("softmax/" + name + "/f32/L1/t1@" + target).c_str(), [kind, target](
                                                                                           benchmark::State& state) {
      RunSoftmax(state, kind, target);
    })->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace
}  // namespace fovea_bench

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, fovea_bench::AddRows); }
#endif  // HWY_ONCE
