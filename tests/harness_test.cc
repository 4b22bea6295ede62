// The harness itself: that the oracle is right on examples worked out by hand, and that what is wrong is seen.
#include <doctest/doctest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

CaseSpec Spec(uint32_t options = 0, int32_t stage = FOVEA_SCORES_NONE) {
  CaseSpec spec;
  spec.batch = 2;
  spec.num_q_heads = 2;
  spec.q_len = 9;
  spec.kv_len = 30;
  spec.head_dim = 8;
  spec.options = options;
  spec.scores_stage = stage;
  return spec;
}

// Writes what the oracle says, as a perfect kernel would.
void WriteOracle(const AttentionCase& c) {
  fovea::ReferenceRow<double> row;
  for (int64_t b = 0; b < c.p.batch; ++b) {
    for (int64_t h = 0; h < c.p.num_q_heads; ++h) {
      for (int64_t i = 0; i < c.p.q_len; ++i) {
        fovea::EvaluateRow(c.p, b, h, i, &row);
        for (size_t k = 0; k < row.out.size(); ++k)
          c.out->F32(b, h, i, static_cast<int64_t>(k)) = static_cast<float>(row.out[k]);
        c.lse->F32(b, h, i) = static_cast<float>(row.lse);
        for (size_t j = 0; j < row.scores.size(); ++j) {
          c.scores->F32(b, h, i, static_cast<int64_t>(j)) = static_cast<float>(row.scores[j]);
        }
      }
    }
  }
}

}  // namespace

TEST_SUITE("once") {
  TEST_CASE("harness: the oracle on two keys by hand") {
    CaseSpec spec;
    spec.kv_len = 2;
    spec.head_dim = 1;
    spec.scores_stage = FOVEA_SCORES_PROBABILITIES;
    AttentionCase c(spec);
    c.q->F32(0, 0, 0, 0) = 2;
    c.k->F32(0, 0, 0, 0) = 0;
    c.k->F32(0, 0, 1, 0) = static_cast<float>(std::log(3.0) / 2);
    c.v->F32(0, 0, 0, 0) = 8;
    c.v->F32(0, 0, 1, 0) = 4;
    fovea::ReferenceRow<double> row;
    fovea::EvaluateRow(c.p, 0, 0, 0, &row);  // weights 1/4, 3/4
    CHECK(row.out[0] == doctest::Approx(5.0).epsilon(1e-6));
    CHECK(row.lse == doctest::Approx(std::log(4.0)).epsilon(1e-6));
    CHECK(row.scores[0] == doctest::Approx(0.25).epsilon(1e-6));
    CHECK(row.dot_magnitude == doctest::Approx(std::log(3.0)).epsilon(1e-6));
    CHECK(row.v_magnitude == 8.0);
    const float sink = static_cast<float>(std::log(4.0));
    c.p.sinks = &sink;
    fovea::EvaluateRow(c.p, 0, 0, 0, &row);
    CHECK(row.out[0] == doctest::Approx(2.5).epsilon(1e-6));
    CHECK(row.lse == doctest::Approx(std::log(8.0)).epsilon(1e-6));
  }

  TEST_CASE("harness: the oracle on rows without a finite score, NaN and -FLT_MAX") {
    AttentionCase c(Spec());
    fovea::ReferenceRow<double> row;
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t) { return i != 0; });
    c.SetBias([](int64_t, int64_t, int64_t i, int64_t j) {
      return i == 1 ? -FLT_MAX : i == 2 && j == 3 ? kInf : 0.0f;
    });
    fovea::EvaluateRow(c.p, 0, 0, 0, &row);
    CHECK(row.out[0] == 0.0);
    CHECK(row.lse == -std::numeric_limits<double>::infinity());
    fovea::EvaluateRow(c.p, 0, 0, 1, &row);
    double mean = 0;
    for (int64_t j = 0; j < 30; ++j) mean += static_cast<double>(c.v->F32(0, 0, j, 0)) / 30;
    CHECK(row.out[0] == doctest::Approx(mean).epsilon(1e-12));
    CHECK(row.row_magnitude < 100.0);  // all equal, exactly: -FLT_MAX does not loosen the bound
    fovea::EvaluateRow(c.p, 0, 0, 2, &row);
    CHECK(std::isnan(row.out[0]));
    CHECK(std::isnan(row.lse));
  }

  TEST_CASE("harness: a perfect result passes with room, one wrong element in any output does not") {
    for (int32_t stage : {FOVEA_SCORES_RAW, FOVEA_SCORES_BIASED, FOVEA_SCORES_PROBABILITIES}) {
      AttentionCase c(Spec(kCausal, stage));
      c.p.q_offset = -1;  // row 0 is empty
      WriteOracle(c);
      const fovea::AttentionCheck perfect = fovea::CheckAttention(c.p);
      CHECK(perfect.passed());
      CHECK(perfect.out.ratio < 0.3);
      CHECK(perfect.lse.ratio < 0.3);
      CHECK(perfect.scores.ratio < 0.3);
      const auto refused = [&c](float* element, float value) {
        const float kept = *element;
        *element = value;
        const fovea::AttentionCheck check = fovea::CheckAttention(c.p);
        *element = kept;
        return !check.passed();
      };
      for (float* element : {&c.out->F32(1, 1, 8, 7), &c.lse->F32(0, 1, 3), &c.scores->F32(1, 0, 5, 2)}) {
        CHECK(refused(element, *element + 2e-5f));
        CHECK(refused(element, std::nanf("")));
        CHECK(refused(element, kInf));
        CHECK(refused(element, -kInf));
      }
      CHECK(refused(&c.out->F32(0, 0, 0, 0), 1e-3f));
      CHECK(refused(&c.lse->F32(0, 0, 0), -1e30f));
      CHECK(refused(&c.lse->F32(0, 0, 0), 0.0f));
      if (stage != FOVEA_SCORES_RAW)
        CHECK(refused(&c.scores->F32(0, 0, 2, 20), stage == FOVEA_SCORES_BIASED ? -1e30f : 1e-5f));
    }
  }

  TEST_CASE("harness: naive f32 is within the bound of f64 by its definition, and near the floor") {
    AttentionCase c(Spec());
    fovea::ReferenceRow<float> row;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t i = 0; i < 9; ++i) {
          fovea::EvaluateRow(c.p, b, h, i, &row);
          for (int64_t k = 0; k < 8; ++k) c.out->F32(b, h, i, k) = row.out[static_cast<size_t>(k)];
          c.lse->F32(b, h, i) = row.lse;
        }
      }
    }
    const fovea::AttentionCheck check = fovea::CheckAttention(c.p);
    CHECK(check.passed());
    CHECK(check.out.error > 0.0);
    CHECK(check.out.error == check.out.naive);
    CHECK(check.out.error < 1e-6);
  }

  TEST_CASE("harness: a write into a gap, the canary or an input is seen") {
    Rng rng(3);
    for (int n = 0; n < 20; ++n) {
      const Shape shape{2, 3, 5, 7};
      TestTensor t(FOVEA_F32, shape, RandomStrides(&rng, shape, true, false), n % 2 ? Guard::kAfter : Guard::kBefore);
      t.Snapshot();
      CHECK(t.Changed() == "");
      t.F32(1, 2, 4, 6) = 1.0f;
      CHECK(t.Changed() != "");
      CHECK(t.Changed([](int64_t, int64_t, int64_t) { return true; }) == "");
      CHECK(t.Changed([](int64_t, int64_t, int64_t i) { return i < 4; }) != "");
    }
    TestTensor gap(FOVEA_F32, {1, 1, 2, 3}, {0, 0, 5, 1}, Guard::kAfter);
    gap.Snapshot();
    (&gap.F32(0, 0, 0, 0))[4] = 1.0f;
    CHECK(gap.Changed([](int64_t, int64_t, int64_t) { return true; }) != "");
    TestTensor canary(FOVEA_F32, {1, 1, 2, 3}, {0, 0, 3, 1}, Guard::kAfter);
    canary.Snapshot();
    reinterpret_cast<unsigned char*>(&canary.F32(0, 0, 0, 0))[-1] = 0;
    CHECK(canary.Changed([](int64_t, int64_t, int64_t) { return true; }) != "");
  }

  TEST_CASE("harness: numbers are the same in every layout") {
    AttentionCase dense(Spec(kQLens | kKvLens)), strided(Spec(kQLens | kKvLens | kStrides)),
        packed(Spec(kPackedQ | kPackedKv));
    REQUIRE(dense.p.kv_lens[1] == packed.p.cu_seqlens_kv[2] - packed.p.cu_seqlens_kv[1]);
    for (int64_t j = 0; j < dense.p.kv_lens[1]; ++j) {
      CHECK(dense.k->F32(1, 0, j, 5) == strided.k->F32(1, 0, j, 5));
      CHECK(dense.k->F32(1, 0, j, 5) == packed.k->F32(0, 0, packed.p.cu_seqlens_kv[1] + j, 5));
    }
  }

  TEST_CASE("harness: the random numbers are those of every platform") {
    Rng rng(1);
    CHECK(rng.Bits() == Mix(Mix(1)));
    CHECK(Mix(0) == 0xe220a8397b1dcdafu);  // splitmix64's first output for seed 0
    CHECK(NormalFromBits(0) == doctest::Approx(-3.4641).epsilon(1e-4));
    double sum = 0, squares = 0;
    for (int n = 0; n < 100000; ++n) {
      const double x = static_cast<double>(rng.Normal());
      sum += x;
      squares += x * x;
    }
    CHECK(std::fabs(sum / 1e5) < 0.02);
    CHECK(squares / 1e5 == doctest::Approx(1.0).epsilon(0.02));
  }
}

}  // namespace fovea_test
