// Random shapes and options against the f64 oracle, in guarded memory.
#include <doctest/doctest.h>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr int64_t kWork = 2000000;

// Each option with probability 1/4, lengths and layouts included.
uint32_t RandomOptions(uint64_t seed) {
  Rng rng(Mix(seed) ^ 0x0707);
  uint32_t options = 0;
  for (uint32_t bit = 1; bit & kAllOptions; bit <<= 1) {
    if (rng.Chance(25)) options |= bit;
  }
  return options;
}

int32_t RandomStage(uint64_t seed) {
  Rng rng(Mix(seed) ^ 0x5c07e5);
  return static_cast<int32_t>(
      rng.Pick({FOVEA_SCORES_NONE, FOVEA_SCORES_NONE, FOVEA_SCORES_NONE, FOVEA_SCORES_NONE, FOVEA_SCORES_RAW,
                FOVEA_SCORES_SOFT_CAPPED, FOVEA_SCORES_BIASED, FOVEA_SCORES_PROBABILITIES}));
}

void RunRandom(uint64_t built_in_seed, int64_t count, ShapeKind kind, bool with_options) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(count); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    const uint32_t options = with_options ? RandomOptions(seed) : 0;
    const int32_t stage = with_options ? RandomStage(seed) : FOVEA_SCORES_NONE;
    AttentionCase c(RandomSpec(seed, kind, options, stage, CaseWork(kWork)));
    CHECK(RunAndCheck(&c) == "");
  }
}

}  // namespace

TEST_CASE("random shapes, no options: prefill equals f64") { RunRandom(1000000, 300, ShapeKind::kPrefill, false); }

TEST_CASE("random shapes, no options: few rows equal f64") { RunRandom(2000000, 300, ShapeKind::kFewRows, false); }

TEST_CASE("random shapes, random combinations of options: prefill equals f64") {
  RunRandom(3000000, 800, ShapeKind::kPrefill, true);
}

TEST_CASE("random shapes, random combinations of options: few rows equal f64") {
  RunRandom(4000000, 800, ShapeKind::kFewRows, true);
}

TEST_CASE("random shapes, empty lengths included: equal f64") { RunRandom(5000000, 800, ShapeKind::kAny, true); }

TEST_CASE("random shapes, BATCH_INVARIANT: equal f64") {
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  const uint64_t first = FirstSeed(6000000);
  for (int64_t n = 0; n < CaseCount(300); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    AttentionCase c(RandomSpec(seed, ShapeKind::kAny, RandomOptions(seed), RandomStage(seed), CaseWork(kWork)));
    CHECK(RunAndCheck(&c, &exec) == "");
  }
}

}  // namespace fovea_test
