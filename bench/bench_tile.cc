// The register tiles alone, beside the FMA rate of the same target: what of prefill's time is theirs, and what is lost
// when K, V and P come from L2.
//   taskset -c 0 build/bench/bench_tile
// qk: S^T of a group of keys, stored.  qk_softmax: with the softmax as its epilogue (FLOP of the product only).  pv:
// O^T += V^T P^T of a block. L1: all operands in L1; P of 8 keys, and of O^T one group of columns. L2: K or V rows
// stream from half of L2, P and O^T as in prefill.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/bench_tile.cc"
#include "bench/tile_operands.h"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_bench {
namespace HWY_NAMESPACE {
namespace kernels = fovea::HWY_NAMESPACE;
constexpr int NV = fovea::kTileVecs;
constexpr int kKeys = kernels::kTileKeys;

HWY_NOINLINE TileShape GetTileShape() {
  return {kKeys, static_cast<int>(NV * hwy::HWY_NAMESPACE::Lanes(kernels::DF()))};
}

// Goes over all rows once; P rows repeat every p_rows.
HWY_NOINLINE void RunQk(const TileOperands& o) {
  kernels::Tile tile = {};
  tile.qt = o.qt, tile.ot = o.ot, tile.p = o.p, tile.m = o.m, tile.block_l = o.l, tile.mx = o.mx;
  const int64_t lanes = GetTileShape().lanes;
  for (int64_t row = 0; row < o.num_rows; row += kKeys) {
    float* const p = o.p + row % o.p_rows * lanes;
    if (o.softmax) {
      kernels::QkSoftmaxGroup<NV>(tile, o.rows + row, static_cast<size_t>(o.dim), static_cast<size_t>(o.ot_rows), 1.0f, nullptr, p,
                                  p, o.p, kernels::kLazyMax);
    } else {
      kernels::QkStoreGroup<NV>(tile, o.rows + row, static_cast<size_t>(o.dim), nullptr, p);
    }
  }
}

HWY_NOINLINE void RunPv(const TileOperands& o) {
  for (int64_t row = 0; row < o.num_rows; row += o.p_rows) {
    kernels::PvTile<NV>(o.rows + row, static_cast<size_t>(o.ot_rows), static_cast<size_t>(o.p_rows), o.p, o.ot);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>

#include "bench/bench_main.h"
#include "bench/per_target.h"

namespace fovea_bench {
namespace {

HWY_EXPORT(GetTileShape);
HWY_EXPORT(RunQk);
HWY_EXPORT(RunPv);

enum class Kind { kQk, kQkSoftmax, kPv };

struct TileRow {
  Kind kind;
  int64_t dim;
  bool l2;  // K or V rows come from L2
  std::string target;
};

class TileCase {
 public:
  explicit TileCase(const TileRow& row) : row_(row), index_(TargetIndex(row.target)) {
    const TileShape tile = HWY_DISPATCH_TABLE(GetTileShape)[index_]();
    keys_ = tile.keys, lanes_ = tile.lanes;
    const bool pv = row.kind == Kind::kPv;
    o_.dim = row.dim;
    o_.softmax = row.kind == Kind::kQkSoftmax;
    // As many whole blocks as fill half of L2; in L1 a few rows, over and over.
    const int64_t blocks = CacheBytes(2) / 2 / (fovea::kBlockKeys * row.dim * int64_t{sizeof(float)});
    o_.num_rows = row.l2 ? std::max<int64_t>(1, blocks) * fovea::kBlockKeys : 4 * fovea::kBlockKeys;
    distinct_ = row.l2 ? o_.num_rows : 8;
    o_.p_rows = pv || row.l2 ? fovea::kBlockKeys : 8;
    o_.ot_rows = pv && !row.l2 ? keys_ : row.dim;
    rows_data_ = RandomFloats(distinct_ * row.dim, 1);
    qt_ = RandomFloats(row.dim * lanes_, 2);
    p_ = RandomFloats(fovea::kBlockKeys * lanes_, 3);
    ot_ = NewFloats(row.dim * lanes_);
    stats_ = NewFloats(3 * lanes_);
    for (int64_t i = 0; i < o_.num_rows; ++i)
      rows_.push_back(&rows_data_[static_cast<size_t>(i % distinct_ * row.dim)]);
    for (int64_t i = 0; i < row.dim * lanes_; ++i) {
      if (!pv) qt_[static_cast<size_t>(i)] *= 1.4427f / std::sqrt(static_cast<float>(row.dim));
    }
    o_.rows = rows_.data();
    o_.qt = qt_.get(), o_.p = p_.get(), o_.ot = ot_.get();
    o_.m = stats_.get(), o_.l = o_.m + lanes_, o_.mx = o_.l + lanes_;
    std::fill_n(ot_.get(), row.dim * lanes_, 0.0f);
    std::fill_n(stats_.get(), 3 * lanes_, 0.0f);  // scores stay below m + 8: no rescaling
    Run();
    Check();
  }

  void Run() { (row_.kind == Kind::kPv ? HWY_DISPATCH_TABLE(RunPv) : HWY_DISPATCH_TABLE(RunQk))[index_](o_); }

  double flop() const {
    return 2.0 * static_cast<double>(lanes_ * o_.num_rows * (row_.kind == Kind::kPv ? o_.ot_rows : row_.dim));
  }
  double max_err() const { return max_err_; }

 private:
  // The last P rows, or O^T after one run, in double.
  void Check() {
    for (int64_t lane = 0; lane < lanes_; ++lane) {
      if (row_.kind == Kind::kPv) {
        for (int64_t c = 0; c < o_.ot_rows; ++c) {
          double sum = 0, magnitude = 0;
          for (int64_t j = 0; j < o_.num_rows; ++j)
            Add(o_.rows[j][c], o_.p[j % o_.p_rows * lanes_ + lane], &sum, &magnitude);
          Compare(o_.ot[c * lanes_ + lane], sum, magnitude);
        }
        continue;
      }
      for (int64_t j = o_.num_rows - o_.p_rows; j < o_.num_rows; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t c = 0; c < o_.dim; ++c) Add(o_.rows[j][c], o_.qt[c * lanes_ + lane], &sum, &magnitude);
        const double p = std::exp2(sum);
        Compare(o_.p[j % o_.p_rows * lanes_ + lane], o_.softmax ? p : sum,
                o_.softmax ? p * (1 + magnitude) : magnitude);
      }
    }
    if (!(max_err_ < 1e-5)) throw std::runtime_error("wrong result: relative error " + std::to_string(max_err_));
  }
  static void Add(float x, float y, double* sum, double* magnitude) {
    const double product = static_cast<double>(x) * static_cast<double>(y);
    *sum += product;
    *magnitude += std::fabs(product);
  }
  void Compare(float got, double want, double magnitude) {
    const double error = std::fabs(static_cast<double>(got) - want) / magnitude;
    if (!(error <= max_err_)) max_err_ = error;  // NaN stays
  }

  TileRow row_;
  size_t index_;
  int64_t keys_, lanes_, distinct_;
  TileOperands o_ = {};
  Floats rows_data_, qt_, p_, ot_, stats_;
  std::vector<const float*> rows_;
  double max_err_ = 0;
};

void RunTile(benchmark::State& state, const TileRow& row) {
  Guarded(state, [&] {
    TileCase tile(row);
    std::vector<double> gflops, fractions;
    const int64_t calls = static_cast<int64_t>(2e7 / tile.flop()) + 1;  // some 0.2 ms
    const double flop = static_cast<double>(calls) * tile.flop();
    for (auto _ : state) {
      const double begin = Seconds();
      for (int64_t i = 0; i < calls; ++i) tile.Run();
      const double rate = flop / (Seconds() - begin);
      state.PauseTiming();
      gflops.push_back(rate * 1e-9);
      fractions.push_back(rate / FmaRate(row.target, flop, 1));
      state.ResumeTiming();
    }
    state.counters["GFLOP/s"] = Median(gflops);
    state.counters["fma_fraction"] = Median(fractions);
    state.counters["max_err"] = tile.max_err();
  });
}

void AddRows(const std::string& target) {
  for (const Kind kind : {Kind::kQk, Kind::kQkSoftmax, Kind::kPv}) {
    for (const int64_t dim : {64, 128}) {
      for (const bool l2 : {false, true}) {
        const std::string name = kind == Kind::kQk ? "qk" : kind == Kind::kQkSoftmax ? "qk_softmax" : "pv";
        benchmark::RegisterBenchmark(
            ("tile/" + name + "/f32/d" + std::to_string(dim) + (l2 ? "/L2" : "/L1") + "/t1@" + target).c_str(),
            [row = TileRow{kind, dim, l2, target}](benchmark::State& state) { RunTile(state, row); })
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace fovea_bench

int main(int argc, char** argv) { return fovea_bench::BenchMain(argc, argv, fovea_bench::AddRows); }
#endif  // HWY_ONCE
