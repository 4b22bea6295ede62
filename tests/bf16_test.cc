// Prefill whose weights are bf16 (AVX3_BF16 and NEON_BFDOT with q, k and v in BF16), beyond what every type is held to: dtype_test.cc, and the cases of
// contract_test.cc and bits_test.cc, which run with bf16 inputs too. On other targets the same calls convert, and must pass as well.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

CaseSpec Bf16Spec(int64_t q_len, int64_t kv_len, int64_t head_dim, int64_t v_head_dim) {
  CaseSpec spec;
  spec.num_q_heads = 2;
  spec.num_kv_heads = 1;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = head_dim;
  spec.v_head_dim = v_head_dim;
  spec.q_dtype = spec.k_dtype = spec.v_dtype = FOVEA_BF16;
  return spec;
}

constexpr float kEqualV = 1.25f;
void SetEqualV(AttentionCase* c) {
  for (int64_t j = 0; j < c->spec.kv_len; ++j) {
    for (int64_t k = 0; k < c->spec.v_head_dim; ++k) c->v->Set(0, 0, j, k, kEqualV);
  }
}
// Elements of O that are not what weights that sum to 1 give, but for the roundings of equal addends (lib/NUMERICS.md), of rows that may attend to something.
int64_t FarFromEqualV(const AttentionCase& c) {
  int64_t far = 0;
  for (int64_t h = 0; h < c.spec.num_q_heads; ++h) {
    for (int64_t i = 0; i < c.spec.q_len; ++i) {
      for (int64_t k = 0; k < c.spec.v_head_dim; ++k) {
        far += c.Lse(0, h, i) != -HUGE_VALF && !(std::fabs(c.Out(0, h, i, k) - kEqualV) <= 30 * 0x1p-24f * kEqualV);
      }
    }
  }
  return far;
}

}  // namespace

TEST_CASE("bf16 prefill: random shapes, each option alone and in combinations, equals f64") {
  const uint64_t first = FirstSeed(8000000);
  for (int64_t n = 0; n < CaseCount(300); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    Rng rng(Mix(seed) ^ 0xBF16);
    uint32_t options = 1u << n % 24;
    for (uint32_t bit = 1; n % 2 && (bit & kAllOptions); bit <<= 1) options |= rng.Chance(20) ? bit : 0;
    const int32_t stage = rng.Chance(20) ? FOVEA_SCORES_PROBABILITIES : FOVEA_SCORES_NONE;
    CaseSpec spec = RandomSpec(seed, ShapeKind::kPrefill, options, stage, CaseWork(1000000));
    spec.q_dtype = spec.k_dtype = spec.v_dtype = FOVEA_BF16;
    spec.out_dtype = static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("bf16 prefill: rounded weights sum to 1: equal V are given back") {
  for (uint32_t options : {0u, static_cast<uint32_t>(kSpread), static_cast<uint32_t>(kCausal), static_cast<uint32_t>(kMask | kSpread)}) {
    CaseSpec spec = Bf16Spec(70, 700, 33, 5);
    spec.options = options;
    AttentionCase c(spec);
    SetEqualV(&c);
    CHECK(RunAndCheck(&c) == "");
    CHECK(FarFromEqualV(c) == 0);
  }
}

// The maximum moves by whole powers of two, also from a sink, which is none: nothing is rounded a second time. Scores rise so much that l, O and the
// weights of the block are rescaled in every few keys, and so little that those weigh something after it: rounded again, they would not sum to l.
TEST_CASE("bf16 prefill: many rescales round nothing twice, with a sink too") {
  const std::vector<float> sinks = {-3.3f, 0.7f};
  for (const bool with_sinks : {false, true}) {
    for (const float step : {0.7f, 0.73f, 1.3f, 6.1f}) {
      CAPTURE(step);
      AttentionCase c(Bf16Spec(60, 300, 8, 9));
      if (with_sinks) c.p.sinks = sinks.data();
      c.SetBias([step](int64_t, int64_t, int64_t i, int64_t j) { return static_cast<float>(j) * step - static_cast<float>(i); });
      CHECK(RunAndCheck(&c) == "");
      SetEqualV(&c);
      CHECK(RunAndCheck(&c) == "");
      CHECK(FarFromEqualV(c) == 0);
    }
  }
}

// vdpbf16ps and bfdot take and give subnormal numbers as 0: the error is below 2^-125 per key, and nothing is NaN.
TEST_CASE("bf16 prefill: subnormal inputs count as themselves or as 0") {
  AttentionCase c(Bf16Spec(50, 40, 6, 3));
  for (int64_t j = 0; j < 40; ++j) {
    for (int64_t k = 0; k < 3; ++k) c.v->Set(0, 0, j, k, 0x1p-130f * static_cast<float>(j % 4));
    c.k->Set(0, 0, j, 5, 0x1p-131f);
  }
  c.q->Set(0, 0, 3, 2, 0x1p-127f);
  Run(c.p);
  for (int64_t i = 0; i < 50; ++i) CHECK((c.Out(0, 0, i, 0) >= 0.0f && c.Out(0, 0, i, 0) <= 0x1p-127f));
}

}  // namespace fovea_test
