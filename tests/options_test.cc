// Each option alone: against the oracle on random shapes, and on examples small enough to be worked out by hand.
#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

void EachAlone(uint64_t built_in_seed, uint32_t options, int32_t stage = FOVEA_SCORES_NONE) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(16); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    const ShapeKind kind = n % 2 ? ShapeKind::kFewRows : ShapeKind::kPrefill;
    AttentionCase c(RandomSpec(seed, kind, options, stage, CaseWork(1500000)));
    CHECK(RunAndCheck(&c) == "");
  }
}

// Q = 0, so that all permitted keys weigh the same, and V[j] = 2^j: the output says exactly which keys took part.
struct Indicator {
  explicit Indicator(int64_t q_len, int64_t kv_len) {
    CaseSpec spec;
    spec.q_len = q_len;
    spec.kv_len = kv_len;
    spec.head_dim = 3;
    spec.v_head_dim = 1;
    c = std::make_unique<AttentionCase>(spec);
    for (int64_t i = 0; i < q_len; ++i) {
      for (int64_t k = 0; k < 3; ++k) c->q->F32(0, 0, i, k) = 0;
    }
    for (int64_t j = 0; j < kv_len; ++j) c->v->F32(0, 0, j, 0) = static_cast<float>(1 << j);
  }
  // The set of keys that row i attended to, as bits.
  int Keys(int64_t i) const {
    const double count = std::exp(static_cast<double>(c->Lse(0, 0, i)));
    return static_cast<int>(std::lround(static_cast<double>(c->Out(0, 0, i, 0)) * count));
  }
  void Expect(std::initializer_list<int> rows) const {
    c->ClearOutputs();
    const fovea_exec one = Threads(1);
    Run(c->p, &one);
    int64_t i = 0;
    for (int row : rows) {
      CAPTURE(i);
      CHECK(Keys(i) == row);
      ++i;
    }
  }
  std::unique_ptr<AttentionCase> c;
};

}  // namespace

TEST_CASE("option alone: causal") { EachAlone(100, kCausal); }
TEST_CASE("option alone: causal, bottom-right") { EachAlone(200, kCausal | kBottomRight); }
TEST_CASE("option alone: causal, q_offset") { EachAlone(300, kCausal | kQOffset); }
TEST_CASE("option alone: causal, q_offsets") { EachAlone(400, kCausal | kQOffsets); }
TEST_CASE("option alone: window_left") { EachAlone(500, kWindowLeft | kBottomRight); }
TEST_CASE("option alone: window_right") { EachAlone(600, kWindowRight); }
TEST_CASE("option alone: both windows") { EachAlone(700, kWindowLeft | kWindowRight | kBottomRight); }
TEST_CASE("option alone: soft cap") { EachAlone(800, kSoftCap); }
TEST_CASE("option alone: soft cap, large scores") { EachAlone(850, kSoftCap | kSpread); }
TEST_CASE("option alone: scale, negative too") { EachAlone(900, kScale); }
TEST_CASE("option alone: mask") { EachAlone(1000, kMask); }
TEST_CASE("option alone: bias") { EachAlone(1100, kBias); }
TEST_CASE("option alone: mask and bias") { EachAlone(1200, kMask | kBias); }
TEST_CASE("option alone: mask_kv_len, left") { EachAlone(1300, kMask | kMaskKvLen); }
TEST_CASE("option alone: mask_kv_len, right") { EachAlone(1400, kMask | kMaskKvLen | kMaskRight); }
TEST_CASE("option alone: bias, mask_kv_len, left") { EachAlone(1500, kBias | kMaskKvLen); }
TEST_CASE("option alone: bias, mask_kv_len, right") { EachAlone(1600, kBias | kMaskKvLen | kMaskRight); }
TEST_CASE("option alone: mask_offsets") { EachAlone(1700, kMask | kBias | kMaskOffsets); }
TEST_CASE("option alone: one mask over a packed buffer by mask_offsets") {
  EachAlone(1800, kMask | kMaskOffsets | kPackedQ);
}
TEST_CASE("option alone: mask aligned right with kv_lens") { EachAlone(1900, kMask | kMaskRight | kKvLens); }
TEST_CASE("option alone: ALiBi") { EachAlone(2000, kAlibi); }
TEST_CASE("option alone: ALiBi, bottom-right") { EachAlone(2100, kAlibi | kBottomRight | kCausal); }
TEST_CASE("option alone: sinks") { EachAlone(2200, kSinks); }
TEST_CASE("option alone: sinks with causal, bottom-right (rows with a sink only)") {
  EachAlone(2300, kSinks | kCausal | kBottomRight);
}
TEST_CASE("option alone: q_lens") { EachAlone(2400, kQLens); }
TEST_CASE("option alone: kv_lens") { EachAlone(2500, kKvLens | kPoison); }
TEST_CASE("option alone: packed queries") { EachAlone(2600, kPackedQ); }
TEST_CASE("option alone: packed keys") { EachAlone(2700, kPackedKv); }
TEST_CASE("option alone: packed both, causal") { EachAlone(2800, kPackedQ | kPackedKv | kCausal | kBottomRight); }
TEST_CASE("option alone: packed queries, padded keys with kv_lens") {
  EachAlone(2900, kPackedQ | kKvLens | kCausal | kBottomRight);
}
TEST_CASE("option alone: no lse") { EachAlone(3000, kNoLse); }
TEST_CASE("option alone: strides of every kind, inputs and outputs") { EachAlone(3100, kStrides); }
TEST_CASE("option alone: stride 0 broadcasts any input") { EachAlone(3200, kStrides | kBroadcast); }
TEST_CASE("option alone: mask and bias with any strides, columns included") {
  EachAlone(3300, kMask | kBias | kStrides);
}
TEST_CASE("option alone: mask and bias with broadcast strides") {
  EachAlone(3400, kMask | kBias | kStrides | kBroadcast);
}
TEST_CASE("option alone: large scores") { EachAlone(3500, kSpread); }

TEST_CASE("by hand: causal keys are j <= i + q_offset") {
  Indicator t(4, 5);
  t.c->p.causal = 1;
  t.Expect({0b00001, 0b00011, 0b00111, 0b01111});
  t.c->p.q_offset = 2;
  t.Expect({0b00111, 0b01111, 0b11111, 0b11111});
  t.c->p.q_offset = -2;
  t.Expect({0, 0, 0b00001, 0b00011});
  t.c->p.q_offset = 0;
  t.c->p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  t.Expect({0b00011, 0b00111, 0b01111, 0b11111});
  t.c->p.q_offset = 1;
  t.Expect({0b00111, 0b01111, 0b11111, 0b11111});
}

TEST_CASE("by hand: bottom-right with more queries than keys leaves the first rows empty") {
  Indicator t(4, 2);
  t.c->p.causal = 1;
  t.c->p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  t.Expect({0, 0, 0b01, 0b11});
}

TEST_CASE("by hand: window edges are inclusive") {
  Indicator t(5, 5);
  t.c->p.window_left = 1;
  t.Expect({0b11111, 0b11111, 0b11110, 0b11100, 0b11000});
  t.c->p.window_right = 0;
  t.Expect({0b00001, 0b00011, 0b00110, 0b01100, 0b11000});
  t.c->p.window_left = -1;
  t.c->p.window_right = 1;
  t.Expect({0b00011, 0b00111, 0b01111, 0b11111, 0b11111});
  t.c->p.window_left = 0;
  t.c->p.window_right = 0;
  t.c->p.q_offset = 1;
  t.Expect({0b00010, 0b00100, 0b01000, 0b10000, 0});
}

TEST_CASE("by hand: window without causal at q_align bottom-right") {
  Indicator t(2, 6);
  t.c->p.window_left = 1;
  t.c->p.window_right = 1;
  t.c->p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  t.Expect({0b111000, 0b110000});
}

TEST_CASE("by hand: mask columns, left and right") {
  Indicator t(2, 5);
  t.c->p.mask_kv_len = 3;
  t.c->SetMask([](int64_t, int64_t, int64_t i, int64_t c) { return c != i; });
  t.Expect({0b00110, 0b00101});
  t.c->p.mask_align = FOVEA_MASK_ALIGN_RIGHT;
  t.Expect({0b11011, 0b10111});
  t.c->p.mask_kv_len = 7;  // more columns than keys: the first two belong to no key
  t.c->SetMask([](int64_t, int64_t, int64_t i, int64_t c) { return c != i + 2; });
  t.Expect({0b11110, 0b11101});
  t.c->p.mask_align = FOVEA_MASK_ALIGN_LEFT;
  t.Expect({0b11011, 0b10111});
}

TEST_CASE("by hand: a right-aligned mask ends at the sequence's own last key") {
  Indicator t(1, 5);
  const std::vector<int32_t> kv_lens = {3};
  t.c->p.kv_lens = kv_lens.data();
  t.c->p.mask_kv_len = 2;
  t.c->p.mask_align = FOVEA_MASK_ALIGN_RIGHT;
  t.c->SetMask([](int64_t, int64_t, int64_t, int64_t c) { return c == 0; });
  t.Expect({0b00011});
}

TEST_CASE("by hand: a right-aligned bias is 0 for earlier keys") {
  Indicator t(1, 4);
  t.c->p.mask_kv_len = 2;
  t.c->p.mask_align = FOVEA_MASK_ALIGN_RIGHT;
  t.c->SetBias([](int64_t, int64_t, int64_t, int64_t c) { return c == 0 ? -INFINITY : 0.0f; });
  t.Expect({0b1011});
}

TEST_CASE("by hand: mask_offsets moves the mask's row, per sequence") {
  CaseSpec spec;
  spec.batch = 2;
  spec.q_len = 2;
  spec.kv_len = 3;
  spec.head_dim = 1;
  AttentionCase c(spec);
  const std::vector<int32_t> offsets = {1, 0};
  c.p.q_len = 3;  // a mask of three rows
  c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return i == j; });
  c.p.q_len = 2;
  c.p.mask_offsets = offsets.data();
  Run(c.p);
  for (int64_t i = 0; i < 2; ++i) {
    CHECK(c.Out(0, 0, i, 0) == c.v->F32(0, 0, i + 1, 0));
    CHECK(c.Out(1, 0, i, 0) == c.v->F32(1, 0, i, 0));
  }
}

TEST_CASE("by hand: two keys, scale, soft cap, bias, ALiBi and sink") {
  CaseSpec spec;
  spec.kv_len = 2;
  spec.head_dim = 4;
  spec.v_head_dim = 1;
  AttentionCase c(spec);
  for (int64_t k = 0; k < 4; ++k) {
    c.q->F32(0, 0, 0, k) = 1;
    c.k->F32(0, 0, 0, k) = 1;
    c.k->F32(0, 0, 1, k) = 2;
  }
  c.v->F32(0, 0, 0, 0) = 1;
  c.v->F32(0, 0, 1, 0) = 0;
  // The weight of key 0 for scores s0, s1 and optionally a sink.
  const auto expect = [&c](double s0, double s1, double sink) {
    Run(c.p);
    const double sum = std::exp(s0) + std::exp(s1) + std::exp(sink);
    CHECK(static_cast<double>(c.Out(0, 0, 0, 0)) == doctest::Approx(std::exp(s0) / sum).epsilon(1e-6));
    CHECK(static_cast<double>(c.Lse(0, 0, 0)) == doctest::Approx(std::log(sum)).epsilon(1e-6));
  };
  const double none = -INFINITY;
  expect(2, 4, none);  // 4 / sqrt(4), 8 / sqrt(4)
  c.p.scale = 0.25f;
  expect(1, 2, none);
  c.p.logits_soft_cap = 2;
  const double s0 = 2 * std::tanh(0.5), s1 = 2 * std::tanh(1.0);
  expect(s0, s1, none);
  const float slope = 0.5f;
  c.p.alibi_slopes = &slope;
  expect(s0, s1 - 0.5, none);
  c.p.q_offset = 3;
  expect(s0 - 1.5, s1 - 1.0, none);
  c.SetBias([](int64_t, int64_t, int64_t, int64_t j) { return j == 0 ? 0.75f : -0.25f; });
  expect(s0 - 0.75, s1 - 1.25, none);
  const float sink = 0.125f;
  c.p.sinks = &sink;
  expect(s0 - 0.75, s1 - 1.25, 0.125);
}

TEST_CASE("by hand: ALiBi counts the distance on both sides") {
  CaseSpec spec;
  spec.kv_len = 5;
  spec.head_dim = 2;
  spec.scores_stage = FOVEA_SCORES_BIASED;
  AttentionCase c(spec);
  c.q->F32(0, 0, 0, 0) = c.q->F32(0, 0, 0, 1) = 0;
  const float slope = 0.5f;
  c.p.alibi_slopes = &slope;
  c.p.q_offset = 2;
  Run(c.p);
  for (int64_t j = 0; j < 5; ++j) CHECK(c.scores->F32(0, 0, 0, j) == -0.5f * static_cast<float>(std::abs(j - 2)));
}

TEST_CASE("by hand: query head h reads kv head h / group, each with its own slope and sink") {
  CaseSpec spec;
  spec.batch = 2;
  spec.num_q_heads = 6;
  spec.num_kv_heads = 2;
  spec.q_len = 3;
  spec.kv_len = 1;
  spec.head_dim = 5;
  AttentionCase c(spec);
  Run(c.p);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 6; ++h) {
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t k = 0; k < 5; ++k) CHECK(c.Out(b, h, i, k) == c.v->F32(b, h / 3, 0, k));
      }
    }
  }
}

TEST_CASE("v_head_dim 0 means head_dim, scale NaN means 1/sqrt(head_dim)") {
  CaseSpec spec;
  spec.q_len = 5;
  spec.kv_len = 9;
  spec.head_dim = 16;
  AttentionCase c(spec);
  const fovea_exec one = Threads(1);
  Run(c.p, &one);
  const std::vector<float> defaults = Outputs(c.p);
  c.p.v_head_dim = 16;
  c.p.scale = 0.25f;
  c.ClearOutputs();
  Run(c.p, &one);
  CHECK(BitDifference(defaults, Outputs(c.p)) == "");
}

}  // namespace fovea_test
