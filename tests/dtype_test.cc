// Storage types: q, k, v, out and bias each F32, BF16 or F16, in every mix.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr fovea_dtype kTypes[] = {FOVEA_F32, FOVEA_BF16, FOVEA_F16};

// Mix n of 243: the digits of n to base 3.
CaseSpec WithMix(CaseSpec s, int64_t n) {
  for (fovea_dtype* dtype : {&s.q_dtype, &s.k_dtype, &s.v_dtype, &s.out_dtype, &s.bias_dtype}) *dtype = kTypes[n % 3], n /= 3;
  return s;
}

uint32_t RandomOptions(uint64_t seed) {
  Rng rng(Mix(seed) ^ 0x0707);
  uint32_t options = 0;
  for (uint32_t bit = 1; bit & kAllOptions; bit <<= 1) {
    if (rng.Chance(20)) options |= bit;
  }
  return rng.Chance(40) ? options | kBias : options;
}

CaseSpec RandomMix(uint64_t seed, ShapeKind kind) {
  Rng rng(Mix(seed) ^ 0x77);
  const int32_t stage = rng.Chance(30) ? static_cast<int32_t>(rng.Int(FOVEA_SCORES_RAW, FOVEA_SCORES_PROBABILITIES)) : FOVEA_SCORES_NONE;
  // 101 and 243 have no common factor: a run of 243 cases has every mix.
  return WithMix(RandomSpec(seed, kind, RandomOptions(seed), stage, CaseWork(1000000)), static_cast<int64_t>(seed * 101 % 243));
}

void RunMixes(uint64_t built_in_seed, int64_t count, ShapeKind kind) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(count); ++n) {
    AttentionCase c(RandomMix(first + static_cast<uint64_t>(n), kind));
    CHECK(RunAndCheck(&c) == "");
  }
}

// c's inputs in f32, holding the numbers that c's are rounded to; its outputs in f32.
struct Widened {
  explicit Widened(const AttentionCase& c) : p(c.p) {
    const auto widen = [](const std::unique_ptr<TestTensor>& from, std::unique_ptr<TestTensor>* to, fovea_tensor* view) {
      if (!from) return;
      *to = from->As(FOVEA_F32);
      view->data = (*to)->view().data;
      view->dtype = FOVEA_F32;
    };
    widen(c.q, &q, &p.q);
    widen(c.k, &k, &p.k);
    widen(c.v, &v, &p.v);
    widen(c.out, &out, &p.out);
    widen(c.bias, &bias, &p.bias);
  }
  fovea_attention_params p;
  std::unique_ptr<TestTensor> q, k, v, out, bias;
};

// The first `columns` of each row of Outputs() rounded to out's dtype.
std::vector<float> RoundOut(std::vector<float> all, const fovea_attention_params& p) {
  const size_t columns = static_cast<size_t>(p.v_head_dim ? p.v_head_dim : p.head_dim), row = columns + (p.lse.data ? 1 : 0);
  for (size_t n = 0; n < all.size(); ++n) {
    if (n % row >= columns) continue;
    float stored = 0;
    fovea::StoreElement(p.out.dtype, all[n], &stored, 0);
    all[n] = fovea::LoadElement(p.out.dtype, &stored, 0);
  }
  return all;
}

}  // namespace

TEST_CASE("storage types: every mix, random shapes and options: prefill equals f64") { RunMixes(7000000, 486, ShapeKind::kPrefill); }

TEST_CASE("storage types: every mix, random shapes and options: few rows equal f64") { RunMixes(7100000, 486, ShapeKind::kFewRows); }

TEST_CASE("storage types: every mix, empty lengths included: equal f64") { RunMixes(7200000, 243, ShapeKind::kAny); }

TEST_CASE("storage types: every mix, BATCH_INVARIANT: equal f64") {
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  const uint64_t first = FirstSeed(7300000);
  for (int64_t n = 0; n < CaseCount(243); ++n) {
    AttentionCase c(RandomMix(first + static_cast<uint64_t>(n), ShapeKind::kAny));
    CHECK(RunAndCheck(&c, &exec) == "");
  }
}

namespace {

fovea_attention_info Described(const fovea_attention_params& p) {
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  REQUIRE(fovea_attention_describe(&p, nullptr, &info) == FOVEA_OK);
  return info;
}

}  // namespace

TEST_CASE("storage types: the bits are those of the same numbers in f32, out rounded once; the same from 1, 2 and 5 threads") {
  const uint64_t first = FirstSeed(7400000);
  for (int64_t n = 0; n < CaseCount(243); ++n) {
    CaseSpec spec = RandomMix(first + static_cast<uint64_t>(n), ShapeKind::kAny);
    spec.scores_stage = FOVEA_SCORES_NONE;  // Outputs() has out and lse then
    AttentionCase c(spec);
    const Widened wide(c);
    const fovea_exec one = Threads(1);
    if (fovea::ArithmeticOf(Described(c.p)) == fovea::Arithmetic::kBf16Weights) continue;  // other arithmetic: bf16_test.cc
    INFO(Repeat(spec.seed, c.Describe()));
    Run(wide.p, &one);
    const std::vector<float> want = RoundOut(Outputs(wide.p), c.p);
    for (int32_t threads : {1, 2, 5}) {
      const fovea_exec exec = Threads(threads);
      c.ClearOutputs();
      Run(c.p, &exec);
      CHECK(BitDifference(want, Outputs(c.p)) == "");
    }
  }
}

TEST_CASE("storage types: long caches, split over keys, merged and rounded once") {
  for (fovea_dtype dtype : {FOVEA_BF16, FOVEA_F16}) {
    CaseSpec spec;
    spec.seed = 3;
    spec.num_q_heads = 4;
    spec.q_len = 2;
    spec.kv_len = 4000;
    spec.head_dim = 40;
    spec.q_dtype = spec.k_dtype = spec.v_dtype = spec.out_dtype = dtype;
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");
    const Widened wide(c);
    Run(wide.p);
    if (fovea::ArithmeticOf(Described(c.p)) == fovea::Arithmetic::kBf16Weights) continue;
    CHECK(BitDifference(RoundOut(Outputs(wide.p), c.p), Outputs(c.p)) == "");
  }
}

TEST_CASE("storage types: f16 out past 65504 is Inf, NaN stays NaN, subnormals are numbers") {
  for (int64_t q_len : {1, 40}) {  // decode and prefill
    CaseSpec spec;
    spec.q_len = q_len;
    spec.kv_len = 3;
    spec.head_dim = 4;
    spec.v_head_dim = 5;
    spec.out_dtype = FOVEA_F16;
    AttentionCase c(spec);
    const float values[] = {65519.0f, 65521.0f, -1e9f, std::nanf(""), 0x1.8p-24f};
    for (int64_t j = 0; j < 3; ++j) {
      for (int64_t k = 0; k < 5; ++k) c.v->F32(0, 0, j, k) = values[k];
    }
    Run(c.p);
    for (int64_t i = 0; i < q_len; ++i) {
      CHECK(c.Out(0, 0, i, 0) == 65504.0f);
      CHECK(c.Out(0, 0, i, 1) == kInf);
      CHECK(c.Out(0, 0, i, 2) == -kInf);
      CHECK(std::isnan(c.Out(0, 0, i, 3)));
      CHECK(std::fabs(c.Out(0, 0, i, 4) - 0x1.8p-24f) <= 0x1p-25f);
      CHECK(c.Out(0, 0, i, 4) > 0.0f);
    }
  }
}

TEST_CASE("storage types: a bias of -inf is a mask in bf16 and f16 too; the least finite one is not") {
  for (fovea_dtype dtype : kTypes) {
    CAPTURE(dtype);
    CaseSpec spec;
    spec.q_len = 30;
    spec.kv_len = 140;
    spec.head_dim = 8;
    AttentionCase c(spec);
    c.SetBias([](int64_t, int64_t, int64_t i, int64_t j) { return i == 3 ? -3.0e38f : j % 3 == 0 ? -kInf : 0.5f; });
    c.bias = c.bias->As(dtype);
    c.p.bias = c.bias->view();
    for (int64_t j = 0; j < 140; j += 3) c.v->F32(0, 0, j, 1) = 1e6f;
    CHECK(RunAndCheck(&c) == "");
    CHECK(std::fabs(c.Out(0, 0, 4, 1)) < 10.0f);
    CHECK(c.Out(0, 0, 3, 1) > 1e5f);
  }
}

TEST_CASE("storage types: describe names what is converted, and counts its bytes") {
  CaseSpec spec;
  spec.q_len = 20;
  spec.kv_len = 100;
  spec.head_dim = 16;
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  AttentionCase f32(spec);
  REQUIRE(fovea_attention_describe(&f32.p, nullptr, &info) == FOVEA_OK);
  CHECK(info.conversions == std::string("none"));
  CHECK(info.bytes == 4.0 * 16 * (2 * 20 + 2 * 100));
  spec.options = kBias;
  spec.q_dtype = spec.k_dtype = spec.bias_dtype = FOVEA_BF16;
  spec.v_dtype = FOVEA_F16;
  AttentionCase mixed(spec);
  REQUIRE(fovea_attention_describe(&mixed.p, nullptr, &info) == FOVEA_OK);
  CHECK(info.conversions == std::string("q BF16, k BF16, v F16, bias BF16"));
  CHECK(info.bytes == 16.0 * (2 * 20 + 4 * 20 + 2 * 100 + 2 * 100));
  spec.v_dtype = spec.out_dtype = FOVEA_BF16;
  AttentionCase all(spec);
  REQUIRE(fovea_attention_describe(&all.p, nullptr, &info) == FOVEA_OK);
  // Where there is a product of bf16 none of its operands is.
  const bool product = target_name == "AVX3_BF16" || target_name == "NEON_BFDOT";
  CHECK(info.conversions == std::string(product ? "out BF16, bias BF16" : "q BF16, k BF16, v BF16, out BF16, bias BF16"));
  CHECK((std::string(info.kernels).find("prefill_bf16") == 0) == product);
}

TEST_CASE("storage types: merge takes parts and out of any, 100 parts, in place, and rounds once") {
  constexpr int32_t kParts = 100;
  const Shape shape{2, 2, 3, 600}, lse_shape{2, 2, 3, 1};  // more columns than are joined at once
  for (int64_t mix = 0; mix < 3; ++mix) {
    const fovea_dtype out_dtype = kTypes[mix];
    CAPTURE(out_dtype);
    Rng rng(static_cast<uint64_t>(mix) + 1), layout(9);
    std::vector<std::unique_ptr<TestTensor>> outs, lses;
    std::vector<fovea_tensor> out_views, lse_views;
    for (int32_t part = 0; part < kParts; ++part) {
      const fovea_dtype dtype = part == 0 ? out_dtype : kTypes[rng.Int(0, 2)];
      outs.push_back(std::make_unique<TestTensor>(dtype, shape, RandomStrides(&layout, shape, false, false), Guard::kAfter));
      lses.push_back(std::make_unique<TestTensor>(FOVEA_F32, lse_shape, DenseStrides(lse_shape), Guard::kAfter));
      for (int64_t n = 0; n < 2 * 2 * 3; ++n) {
        for (int64_t c = 0; c < 600; ++c) outs.back()->Set(n / 6, n / 3 % 2, n % 3, c, rng.Normal());
        lses.back()->Set(n / 6, n / 3 % 2, n % 3, 0, rng.Chance(10) ? -kInf : 3 * rng.Normal());
      }
      out_views.push_back(outs.back()->view());
      lse_views.push_back(lses.back()->view());
    }
    // f64 from what the parts hold.
    std::vector<double> want;
    for (int64_t n = 0; n < 2 * 2 * 3; ++n) {
      double sum = 0;
      std::vector<double> row(600, 0.0);
      for (int32_t part = 0; part < kParts; ++part) {
        const double weight = std::exp(static_cast<double>(lses[static_cast<size_t>(part)]->Get(n / 6, n / 3 % 2, n % 3)));
        sum += weight;
        for (size_t c = 0; c < 600; ++c) {
          row[c] += weight * static_cast<double>(outs[static_cast<size_t>(part)]->Get(n / 6, n / 3 % 2, n % 3, static_cast<int64_t>(c)));
        }
      }
      for (double x : row) want.push_back(x / sum);
    }
    TestTensor f32(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter);
    const fovea_tensor f32_view = f32.view();
    REQUIRE(fovea_attention_merge(kParts, out_views.data(), lse_views.data(), 2, 2, 3, 600, &f32_view, nullptr, nullptr) == FOVEA_OK);
    REQUIRE(fovea_attention_merge(kParts, out_views.data(), lse_views.data(), 2, 2, 3, 600, &out_views[0], nullptr, nullptr) == FOVEA_OK);
    int64_t far = 0, rounded_otherwise = 0;
    for (int64_t n = 0; n < 2 * 2 * 3; ++n) {
      for (int64_t c = 0; c < 600; ++c) {
        const float got = f32.Get(n / 6, n / 3 % 2, n % 3, c);
        far += !(std::fabs(static_cast<double>(got) - want[static_cast<size_t>(n * 600 + c)]) <= 1e-6);
        float stored = 0;
        fovea::StoreElement(out_dtype, got, &stored, 0);
        rounded_otherwise += outs[0]->Get(n / 6, n / 3 % 2, n % 3, c) != fovea::LoadElement(out_dtype, &stored, 0);
      }
    }
    CHECK(far == 0);
    CHECK(rounded_otherwise == 0);
  }
}

}  // namespace fovea_test
