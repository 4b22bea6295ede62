// q_positions and kv_positions: where queries and keys stand, in place of their order.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "lib/reference.h"
#include "lib/validate.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void EachPlaced(uint64_t built_in_seed, int64_t count, uint32_t options, int32_t stage = FOVEA_SCORES_NONE) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(count); ++n) {
    const ShapeKind kind = n % 2 ? ShapeKind::kFewRows : ShapeKind::kPrefill;
    AttentionCase c(RandomSpec(first + static_cast<uint64_t>(n), kind, options, stage, CaseWork(1500000)));
    CHECK(RunAndCheck(&c) == "");
    const std::vector<float> expected = Outputs(c.p);
    const fovea_exec exec = Threads(3);
    c.ClearOutputs();
    Run(c.p, &exec);
    CHECK(BitDifference(expected, Outputs(c.p)) == "");
  }
}

std::vector<float> RunBits(AttentionCase* c, uint32_t flags = 0) {
  const fovea_exec exec = Threads(1, flags);
  c->ClearOutputs();
  Run(c->p, &exec);
  return Outputs(c->p);
}

CaseSpec Spec(int64_t q_len, int64_t kv_len, uint32_t options) {
  CaseSpec spec;
  spec.seed = 9;
  spec.batch = 2;
  spec.num_q_heads = 4;
  spec.num_kv_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 20;
  spec.options = options;
  return spec;
}

constexpr int64_t kLengths[][2] = {{130, 600}, {257, 129}, {5, 3000}, {1, 1500}};
constexpr uint32_t kOptionSets[] = {kCausal,
                                    kCausal | kWindowLeft | kAlibi,
                                    kWindowLeft | kWindowRight | kMask,
                                    kCausal | kBias | kSinks,
                                    kCausal | kQLens | kKvLens,
                                    kCausal | kPackedQ | kPackedKv,
                                    kCausal | kPaged | kPackedQ};

}  // namespace

TEST_CASE("positions: equal f64: q_positions, causal") { EachPlaced(50000, 40, kQPositions | kCausal | kPoison); }
TEST_CASE("positions: equal f64: q_positions, windows, ALiBi") {
  EachPlaced(50100, 40, kQPositions | kWindowLeft | kWindowRight | kAlibi | kPoison);
}
TEST_CASE("positions: equal f64: kv_positions, nothing but the negative ones forbidden") {
  EachPlaced(50200, 40, kKvPositions | kPoison);
}
TEST_CASE("positions: equal f64: kv_positions, causal, windows, ALiBi, any alignment of queries") {
  EachPlaced(50300, 40, kKvPositions | kCausal | kBottomRight | kPoison);
  EachPlaced(50350, 40, kKvPositions | kWindowLeft | kWindowRight | kAlibi | kQOffsets | kPoison);
}
TEST_CASE("positions: equal f64: both, causal, packed or padded or paged") {
  EachPlaced(50400, 30, kQPositions | kKvPositions | kCausal | kPackedQ | kPackedKv | kPoison);
  EachPlaced(50450, 30, kQPositions | kKvPositions | kCausal | kWindowLeft | kQLens | kKvLens | kPoison);
  EachPlaced(50470, 30, kQPositions | kKvPositions | kCausal | kPaged | kPackedQ | kKvLens | kPoison);
  EachPlaced(50490, 30, kQPositions | kCausal | kPaged | kWindowLeft | kPoison);
}
TEST_CASE("positions: equal f64: both, mask and bias of fewer columns, soft cap, sinks") {
  EachPlaced(50500, 40, kQPositions | kKvPositions | kCausal | kMask | kBias | kMaskKvLen | kPoison);
  EachPlaced(50550, 40,
             kQPositions | kKvPositions | kMask | kMaskKvLen | kMaskRight | kSoftCap | kSinks | kKvLens | kPoison);
}
TEST_CASE("positions: equal f64: every stage of scores") {
  for (int32_t stage : {FOVEA_SCORES_RAW, FOVEA_SCORES_SOFT_CAPPED, FOVEA_SCORES_BIASED, FOVEA_SCORES_PROBABILITIES}) {
    EachPlaced(50600 + 100 * static_cast<uint64_t>(stage), 12,
               kQPositions | kKvPositions | kCausal | kAlibi | kKvLens | kMask, stage);
  }
}

TEST_CASE("positions: those of the rows' order have the bits of none") {
  for (const auto& lengths : kLengths) {
    for (uint32_t options : kOptionSets) {
      AttentionCase c(Spec(lengths[0], lengths[1], options));
      INFO(Repeat(c.spec.seed, c.Describe()));
      const std::vector<float> expected = RunBits(&c, FOVEA_BATCH_INVARIANT);
      // Padded: one row for all sequences. Packed: the rows count anew in each.
      std::vector<int32_t> order(
          static_cast<size_t>(std::max({c.spec.q_len, c.spec.kv_len, c.p.total_q, c.p.total_kv})));
      std::iota(order.begin(), order.end(), 0);
      std::vector<int32_t> q = order, kv = order;
      for (int64_t b = 0; b < c.p.batch; ++b) {
        if (c.p.cu_seqlens_q) std::iota(q.begin() + c.p.cu_seqlens_q[b], q.end(), 0);
        if (c.p.cu_seqlens_kv) std::iota(kv.begin() + c.p.cu_seqlens_kv[b], kv.end(), 0);
      }
      const std::vector<float> expected_fast = RunBits(&c);
      c.p.q_positions = q.data();
      CHECK(BitDifference(expected, RunBits(&c, FOVEA_BATCH_INVARIANT)) == "");
      CHECK(BitDifference(expected_fast, RunBits(&c)) == "");  // the dot-product kernel knows q_positions
      c.p.kv_positions = kv.data();
      CHECK(BitDifference(expected, RunBits(&c, FOVEA_BATCH_INVARIANT)) == "");
      c.p.q_positions = nullptr;
      CHECK(BitDifference(expected, RunBits(&c, FOVEA_BATCH_INVARIANT)) == "");
    }
  }
}

TEST_CASE("positions: blocks whose keys stand out of reach are skipped, wherever they lie") {
  // 16 blocks; causality leaves those with odd numbers.
  AttentionCase c(Spec(128, 2048, kCausal));
  std::vector<int32_t> kv(2048), q(128, 100);
  for (size_t j = 0; j < kv.size(); ++j)
    kv[j] = j / 128 % 2 ? static_cast<int32_t>(j % 100) : 101 + static_cast<int32_t>(j);
  c.p.kv_positions = kv.data();
  c.p.q_positions = q.data();
  const fovea_exec exec = Threads(1);
  fovea_attention_info placed, whole;
  fovea_attention_info_init(&placed, sizeof placed);
  fovea_attention_info_init(&whole, sizeof whole);
  REQUIRE(fovea_attention_describe(&c.p, &exec, &placed) == FOVEA_OK);
  CHECK(placed.flop == 2.0 * 40 * 2 * 4 * 128 * 1024);
  const std::vector<float> expected = RunBits(&c);
  CHECK(fovea::CheckAttention(c.p).passed());
  c.p.causal = 0;
  REQUIRE(fovea_attention_describe(&c.p, &exec, &whole) == FOVEA_OK);
  CHECK(placed.flop_executed == 0.5 * whole.flop_executed);
  // And what is not reached may be anything.
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t j = 0; j < 2048; ++j) {
        if (j / 128 % 2 == 0) c.k->F32(b, h, j, 3) = c.v->F32(b, h, j, 5) = kNan;
      }
    }
  }
  c.p.causal = 1;
  CHECK(BitDifference(expected, RunBits(&c)) == "");
}

TEST_CASE("positions: a ring buffer of keys, step by step, equals the window over all keys") {
  // Token t lies in slot t % 37; a window of 20.
  constexpr int64_t kSteps = 120, kSlots = 37, kDim = 11;
  std::vector<float> k(kSteps * kDim), v(k.size()), q(k.size()), ring_k(kSlots * kDim, kNan), ring_v = ring_k;
  Rng rng(FirstSeed(4));
  for (std::vector<float>* x : {&k, &v, &q}) {
    for (float& value : *x) value = rng.Normal();
  }
  std::vector<int32_t> slots(kSlots, -1);
  for (int64_t step = 0; step < kSteps; ++step) {
    const int64_t slot = step % kSlots;
    const int32_t at = static_cast<int32_t>(step);
    slots[static_cast<size_t>(slot)] = at;
    std::copy_n(k.data() + step * kDim, kDim, ring_k.data() + slot * kDim);
    std::copy_n(v.data() + step * kDim, kDim, ring_v.data() + slot * kDim);
    float out[kDim], want[kDim];
    fovea_attention_params p;
    fovea_attention_params_init(&p, sizeof p);
    p.batch = p.num_q_heads = p.num_kv_heads = p.q_len = 1;
    p.head_dim = kDim;
    p.causal = 1;
    p.window_left = 19;
    p.q = fovea_tensor_bhsd(q.data() + step * kDim, FOVEA_F32, 1, 1, kDim);
    p.q_positions = &at;
    p.kv_len = kSlots;
    p.kv_positions = slots.data();
    p.k = fovea_tensor_bhsd(ring_k.data(), FOVEA_F32, 1, kSlots, kDim);
    p.v = fovea_tensor_bhsd(ring_v.data(), FOVEA_F32, 1, kSlots, kDim);
    p.out = fovea_tensor_bhsd(out, FOVEA_F32, 1, 1, kDim);
    Run(p);
    p.kv_positions = nullptr;
    p.kv_len = step + 1;
    p.k = fovea_tensor_bhsd(k.data(), FOVEA_F32, 1, p.kv_len, kDim);
    p.v = fovea_tensor_bhsd(v.data(), FOVEA_F32, 1, p.kv_len, kDim);
    p.out.data = want;
    Run(p);
    CAPTURE(step);
    for (int64_t c = 0; c < kDim; ++c) CHECK(std::fabs(out[c] - want[c]) < 2e-6f);
  }
}

TEST_CASE("positions: a tree of drafts: siblings stand at one place, and see what stands before") {
  // Keys 0 to 4 are the text; drafts 5, 6 and 7 stand at 5, 5 and 6. V[j] = 2^j, Q = 0: the output says which keys took
  // part.
  AttentionCase c([] {
    CaseSpec spec;
    spec.q_len = 3;
    spec.kv_len = 8;
    return spec;
  }());
  for (int64_t i = 0; i < 3; ++i) c.q->F32(0, 0, i, 0) = 0;
  for (int64_t j = 0; j < 8; ++j) c.v->F32(0, 0, j, 0) = std::ldexp(1.0f, static_cast<int>(j));
  const int32_t kv[] = {0, 1, 2, 3, 4, 5, 5, 6}, q[] = {5, 5, 6};
  c.p.q_positions = q;
  c.p.kv_positions = kv;
  c.p.causal = 1;
  c.p.window_left = 2;
  RunBits(&c);
  CHECK(c.Out(0, 0, 0, 0) == doctest::Approx((8 + 16 + 32 + 64) / 4.0));  // keys 3 to 6
  CHECK(c.Out(0, 0, 1, 0) == doctest::Approx((8 + 16 + 32 + 64) / 4.0));
  CHECK(c.Out(0, 0, 2, 0) == doctest::Approx((16 + 32 + 64 + 128) / 4.0));  // keys 4 to 7
}

TEST_CASE("positions: all keys forbidden, and the ends of the range") {
  AttentionCase c(Spec(3, 9, kCausal | kAlibi));
  std::vector<int32_t> kv(9, -1), q(3, 5);
  c.p.kv_positions = kv.data();
  c.p.q_positions = q.data();
  RunBits(&c);
  CHECK(c.Out(1, 3, 2, 19) == 0.0f);
  CHECK(c.Lse(1, 3, 2) == -INFINITY);
  const int32_t end = (1 << 30) - 1;
  kv = {0, end, end, 0, -7, 3, end, INT32_MIN, 1};
  for (int32_t at : {-end, 0, end}) {
    std::fill(q.begin(), q.end(), at);
    RunBits(&c);
    CHECK(fovea::CheckAttention(c.p).passed());
    c.p.causal = 0;
    c.p.window_left = c.p.window_right = INT32_MAX - 1;
    RunBits(&c);
    CHECK(fovea::CheckAttention(c.p).passed());
    c.p.causal = 1;
    c.p.window_left = c.p.window_right = -1;
  }
}

}  // namespace fovea_test
