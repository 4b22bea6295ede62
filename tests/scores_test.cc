// Scores out, at four stages.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void RunStage(int32_t stage) {
  const uint64_t first = FirstSeed(40000 + static_cast<uint64_t>(stage) * 1000);
  for (int64_t n = 0; n < CaseCount(60); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    Rng rng(seed);
    uint32_t options = 0;
    for (uint32_t bit = 1; bit & kAllOptions; bit <<= 1) options |= rng.Chance(20) ? bit : 0;
    AttentionCase c(RandomSpec(seed, ShapeKind::kAny, options, stage, CaseWork(1000000)));
    CHECK(RunAndCheck(&c) == "");
  }
}

CaseSpec Small(int32_t stage, int64_t q_len = 9, int64_t kv_len = 30) {
  CaseSpec spec;
  spec.batch = 2;
  spec.num_q_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 8;
  spec.scores_stage = stage;
  return spec;
}

}  // namespace

TEST_CASE("scores RAW equal f64, random options") { RunStage(FOVEA_SCORES_RAW); }
TEST_CASE("scores SOFT_CAPPED equal f64, random options") { RunStage(FOVEA_SCORES_SOFT_CAPPED); }
TEST_CASE("scores BIASED equal f64, random options") { RunStage(FOVEA_SCORES_BIASED); }
TEST_CASE("scores PROBABILITIES equal f64, random options") { RunStage(FOVEA_SCORES_PROBABILITIES); }

TEST_CASE("RAW and SOFT_CAPPED hold every key of the sequence, permitted or not, and -inf past its kv_len") {
  for (int32_t stage : {FOVEA_SCORES_RAW, FOVEA_SCORES_SOFT_CAPPED}) {
    AttentionCase c(Small(stage));
    const std::vector<int32_t> kv_lens = {21, 30};
    c.p.kv_lens = kv_lens.data();
    c.p.causal = 1;
    c.p.logits_soft_cap = 0.5f;
    CHECK(RunAndCheck(&c) == "");
    for (int64_t j = 0; j < 30; ++j) {
      CHECK(std::isfinite(c.scores->F32(0, 1, 0, j)) == (j < 21));
      CHECK(c.scores->F32(0, 1, 0, j) != 0.0f);
      if (j >= 21) CHECK(c.scores->F32(0, 1, 0, j) == -kInf);
      if (stage == FOVEA_SCORES_SOFT_CAPPED && j < 21) CHECK(std::fabs(c.scores->F32(0, 0, 3, j)) <= 0.5f);
    }
  }
}

TEST_CASE("RAW of a forbidden key with NaN is NaN there; O and LSE do not see it") {
  AttentionCase c(Small(FOVEA_SCORES_RAW));
  c.p.causal = 1;
  for (int64_t k = 0; k < 8; ++k) c.k->F32(0, 0, 20, k) = c.v->F32(0, 0, 20, k) = std::nanf("");
  CHECK(RunAndCheck(&c) == "");
  CHECK(std::isnan(c.scores->F32(0, 0, 0, 20)));
  CHECK(std::isfinite(c.Out(0, 0, 8, 0)));
}

TEST_CASE("BIASED holds -inf where forbidden and past kv_len, PROBABILITIES 0") {
  for (int32_t stage : {FOVEA_SCORES_BIASED, FOVEA_SCORES_PROBABILITIES}) {
    const float forbidden = stage == FOVEA_SCORES_BIASED ? -kInf : 0.0f;
    AttentionCase c(Small(stage));
    const std::vector<int32_t> kv_lens = {21, 30};
    c.p.kv_lens = kv_lens.data();
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return (i + j) % 3 != 0; });
    CHECK(RunAndCheck(&c) == "");
    for (int64_t i = 0; i < 9; ++i) {
      for (int64_t j = 0; j < 30; ++j) {
        CHECK((c.scores->F32(0, 0, i, j) == forbidden) == ((i + j) % 3 == 0 || j >= 21));
      }
    }
  }
}

TEST_CASE("PROBABILITIES of a row sum to 1, with a sink to less; an empty row is 0") {
  for (int64_t q_len : {1, 9, 60}) {
    AttentionCase c(Small(FOVEA_SCORES_PROBABILITIES, q_len, 70));
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t) { return i != 3; });
    Run(c.p);
    for (int64_t i = 0; i < q_len; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < 70; ++j) sum += static_cast<double>(c.scores->F32(1, 1, i, j));
      CHECK(sum == doctest::Approx(i == 3 ? 0.0 : 1.0).epsilon(1e-6));
    }
    const std::vector<float> sinks = {0.0f, 4.0f};
    c.p.sinks = sinks.data();
    CHECK(RunAndCheck(&c) == "");
    double sum = 0;
    for (int64_t j = 0; j < 70; ++j) sum += static_cast<double>(c.scores->F32(1, 1, 0, j));
    CHECK(sum < 0.9);
  }
}

TEST_CASE("PROBABILITIES of a row at -FLT_MAX are 1/n, as O's weights are") {
  AttentionCase c(Small(FOVEA_SCORES_PROBABILITIES));
  c.SetBias([](int64_t, int64_t, int64_t, int64_t) { return -std::numeric_limits<float>::max(); });
  CHECK(RunAndCheck(&c) == "");
  CHECK(c.scores->F32(0, 0, 0, 7) == doctest::Approx(1.0 / 30).epsilon(1e-6));
}

TEST_CASE("scores where no sequence has a key: columns are filled all the same") {
  AttentionCase c(Small(FOVEA_SCORES_BIASED));
  const std::vector<int32_t> kv_lens = {0, 0};
  c.p.kv_lens = kv_lens.data();
  CHECK(RunAndCheck(&c) == "");
  CHECK(c.scores->F32(1, 1, 8, 29) == -kInf);
}

}  // namespace fovea_test
