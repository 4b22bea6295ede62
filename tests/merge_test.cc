// fovea_attention_merge: partial results over disjoint sets of keys, joined.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Part {
  Part(const Shape& shape, Rng* rng) {
    Shape lse_shape = shape;
    lse_shape.cols = 1;
    const auto make = [rng](const Shape& s) {
      return std::make_unique<TestTensor>(FOVEA_F32, s, rng ? RandomStrides(rng, s, false, false) : DenseStrides(s),
                                          Guard::kAfter);
    };
    out = make(shape);
    lse = make(lse_shape);
  }
  std::unique_ptr<TestTensor> out, lse;
};

// Cuts the keys of c into n parts, computes each, merges them into c's own outputs, and has the oracle judge the whole.
std::string MergeParts(AttentionCase* c, int32_t n, Rng* strides, bool in_place) {
  const Shape shape{c->p.batch, c->p.num_q_heads, c->p.q_len, c->out->shape().cols};
  std::vector<Part> parts;
  std::vector<fovea_tensor> outs, lses;
  for (int32_t part = 0; part < n; ++part) {
    parts.emplace_back(shape, strides);
    const int64_t begin = c->p.kv_len * part / n, end = c->p.kv_len * (part + 1) / n;
    fovea_attention_params p = c->p;
    p.kv_len = end - begin;
    p.k.data = static_cast<float*>(p.k.data) + begin * p.k.stride_row;
    p.v.data = static_cast<float*>(p.v.data) + begin * p.v.stride_row;
    p.q_offset = c->p.q_offset - begin;
    if (p.mask.data) {
      p.mask.data = static_cast<uint8_t*>(p.mask.data) + begin * p.mask.stride_col;
      p.mask_kv_len = p.kv_len;
    }
    if (part > 0) p.sinks = nullptr;
    p.out = parts.back().out->view();
    p.lse = parts.back().lse->view();
    if (p.kv_len == 0) p.k.data = p.v.data = nullptr, p.mask = fovea_tensor{}, p.mask_kv_len = 0;
    Run(p);
    outs.push_back(p.out);
    lses.push_back(p.lse);
  }
  fovea_attention_params whole = c->p;
  if (in_place) {
    whole.out = outs[0];
    whole.lse = lses[0];
  }
  if (fovea_attention_merge(n, outs.data(), lses.data(), shape.batch, shape.heads, shape.rows, shape.cols, &whole.out,
                            &whole.lse, nullptr) != FOVEA_OK) {
    return fovea_last_error();
  }
  const fovea::AttentionCheck check = fovea::CheckAttention(whole);
  if (check.out.ratio > 1.5 || check.lse.ratio > 1.5) {  // half a bound for the merge itself
    return "out " + std::to_string(check.out.ratio) + " and lse " + std::to_string(check.lse.ratio) +
           " times the bound";
  }
  return "";
}

// Rows of out with columns = {value}, and lse.
void Set(const Part& part, int64_t i, float value, float lse) {
  for (int64_t c = 0; c < part.out->shape().cols; ++c) part.out->F32(0, 0, i, c) = value;
  part.lse->F32(0, 0, i) = lse;
}

}  // namespace

TEST_CASE("merge of parts equals the whole: any number of parts, strides, masks, sinks, empty parts") {
  const uint64_t first = FirstSeed(50000);
  for (int64_t n = 0; n < CaseCount(40); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    Rng rng(seed);
    uint32_t options = 0;
    if (rng.Chance(50)) options |= kCausal;
    if (rng.Chance(50)) options |= kMask;
    if (rng.Chance(50)) options |= kSinks;
    if (rng.Chance(30)) options |= kSpread;
    AttentionCase c(RandomSpec(seed, ShapeKind::kAny, options, FOVEA_SCORES_NONE, CaseWork(1000000)));
    const int32_t parts = static_cast<int32_t>(rng.Pick({1, 2, 3, 5, 9}));
    INFO(Repeat(seed, c.Describe()), ", parts ", parts);
    CHECK(MergeParts(&c, parts, rng.Chance(50) ? &rng : nullptr, rng.Chance(50)) == "");
  }
}

TEST_CASE("merge by hand: weights are exp(lse), a part at -inf is no operand, all at -inf give 0 and -inf") {
  const Shape shape{1, 1, 5, 3};
  Part a(shape, nullptr), b(shape, nullptr), merged(shape, nullptr);
  const float log3 = std::log(3.0f);
  Set(a, 0, 1.0f, 0.0f);
  Set(b, 0, 5.0f, log3);  // (1 + 3 * 5) / 4
  Set(a, 1, kNan, -kInf);
  Set(b, 1, 2.5f, -7.0f);
  Set(a, 2, kNan, -kInf);
  Set(b, 2, kInf, -kInf);
  Set(a, 3, 1.0f, kNan);
  Set(b, 3, 1.0f, 0.0f);
  Set(a, 4, 2.0f, -1000.0f);
  Set(b, 4, 3.0f, 1000.0f);
  const fovea_tensor outs[] = {a.out->view(), b.out->view()}, lses[] = {a.lse->view(), b.lse->view()};
  const fovea_tensor out = merged.out->view(), lse = merged.lse->view();
  REQUIRE(fovea_attention_merge(2, outs, lses, 1, 1, 5, 3, &out, &lse, nullptr) == FOVEA_OK);
  for (int64_t c = 0; c < 3; ++c) {
    CHECK(merged.out->F32(0, 0, 0, c) == doctest::Approx(4.0).epsilon(1e-6));
    CHECK(merged.out->F32(0, 0, 1, c) == 2.5f);
    CHECK(merged.out->F32(0, 0, 2, c) == 0.0f);
    CHECK_FALSE(std::signbit(merged.out->F32(0, 0, 2, c)));
    CHECK(std::isnan(merged.out->F32(0, 0, 3, c)));
    CHECK(merged.out->F32(0, 0, 4, c) == 3.0f);
  }
  CHECK(merged.lse->F32(0, 0, 0) == doctest::Approx(std::log(4.0)).epsilon(1e-6));
  CHECK(merged.lse->F32(0, 0, 1) == -7.0f);
  CHECK(merged.lse->F32(0, 0, 2) == -kInf);
  CHECK(std::isnan(merged.lse->F32(0, 0, 3)));
  CHECK(merged.lse->F32(0, 0, 4) == 1000.0f);
}

TEST_CASE("merge: NaN in one part's out reaches its own element's row only") {
  const Shape shape{1, 1, 3, 20};
  Part a(shape, nullptr), b(shape, nullptr), merged(shape, nullptr);
  for (int64_t i = 0; i < 3; ++i) Set(a, i, 1.0f, 0.5f), Set(b, i, 2.0f, 0.25f);
  a.out->F32(0, 0, 1, 4) = kNan;
  const fovea_tensor outs[] = {a.out->view(), b.out->view()}, lses[] = {a.lse->view(), b.lse->view()};
  const fovea_tensor out = merged.out->view();
  REQUIRE(fovea_attention_merge(2, outs, lses, 1, 1, 3, 20, &out, nullptr, nullptr) == FOVEA_OK);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t c = 0; c < 20; ++c) CHECK(std::isnan(merged.out->F32(0, 0, i, c)) == (i == 1 && c == 4));
  }
}

TEST_CASE("merge of one part is that part; in place, without lse, over threads the bits are the same") {
  const Shape shape{2, 3, 41, 20};
  Rng rng(5);
  Part a(shape, nullptr), b(shape, nullptr), merged(shape, nullptr);
  for (Part* part : {&a, &b}) {
    for (int64_t n = 0; n < 2 * 3 * 41; ++n) {
      for (int64_t c = 0; c < 20; ++c) part->out->F32(n / 123, n / 41 % 3, n % 41, c) = rng.Normal();
      part->lse->F32(n / 123, n / 41 % 3, n % 41) = rng.Normal();
    }
  }
  const fovea_tensor outs[] = {a.out->view(), b.out->view()}, lses[] = {a.lse->view(), b.lse->view()};
  const fovea_tensor out = merged.out->view(), lse = merged.lse->view();
  const auto bits = [](const Part& part) {
    std::vector<float> all;
    for (int64_t n = 0; n < 2 * 3 * 41; ++n) {
      for (int64_t c = 0; c < 20; ++c) all.push_back(part.out->F32(n / 123, n / 41 % 3, n % 41, c));
    }
    return all;
  };
  REQUIRE(fovea_attention_merge(1, outs, lses, 2, 3, 41, 20, &out, &lse, nullptr) == FOVEA_OK);
  CHECK(BitDifference(bits(a), bits(merged)) == "");
  CHECK(merged.lse->F32(1, 2, 40) == a.lse->F32(1, 2, 40));

  const fovea_exec one = Threads(1), eight = Threads(8);
  REQUIRE(fovea_attention_merge(2, outs, lses, 2, 3, 41, 20, &out, &lse, &one) == FOVEA_OK);
  const std::vector<float> expected = bits(merged);
  REQUIRE(fovea_attention_merge(2, outs, lses, 2, 3, 41, 20, &out, nullptr, &eight) == FOVEA_OK);
  CHECK(BitDifference(expected, bits(merged)) == "");
  REQUIRE(fovea_attention_merge(2, outs, lses, 2, 3, 41, 20, &outs[0], &lses[0], &one) == FOVEA_OK);
  CHECK(BitDifference(expected, bits(a)) == "");
  CHECK(a.lse->F32(1, 1, 7) == merged.lse->F32(1, 1, 7));
}

TEST_CASE("merge writes out and lse only, gaps stay") {
  const Shape shape{2, 3, 5, 7};
  Rng rng(17);
  Part a(shape, &rng), b(shape, &rng), merged(shape, &rng);
  for (int64_t n = 0; n < 2 * 3 * 5; ++n) {
    for (Part* part : {&a, &b}) {
      for (int64_t c = 0; c < 7; ++c) part->out->F32(n / 15, n / 5 % 3, n % 5, c) = rng.Normal();
      part->lse->F32(n / 15, n / 5 % 3, n % 5) = rng.Normal();
    }
  }
  for (Part* part : {&a, &b, &merged}) part->out->Snapshot(), part->lse->Snapshot();
  const fovea_tensor outs[] = {a.out->view(), b.out->view()}, lses[] = {a.lse->view(), b.lse->view()};
  const fovea_tensor out = merged.out->view(), lse = merged.lse->view();
  REQUIRE(fovea_attention_merge(2, outs, lses, 2, 3, 5, 7, &out, &lse, nullptr) == FOVEA_OK);
  for (Part* part : {&a, &b}) {
    CHECK(part->out->Changed() == "");
    CHECK(part->lse->Changed() == "");
  }
  const auto all = [](int64_t, int64_t, int64_t) { return true; };
  CHECK(merged.out->Changed(all) == "");
  CHECK(merged.lse->Changed(all) == "");
  CHECK(std::isfinite(merged.out->F32(1, 2, 4, 6)));
}

TEST_CASE("merge of nothing: no rows") {
  const fovea_tensor none = fovea_tensor_bhsd(nullptr, FOVEA_F32, 1, 0, 3);
  const fovea_tensor none_lse = fovea_tensor_bhs(nullptr, FOVEA_F32, 1, 0);
  CHECK(fovea_attention_merge(1, &none, &none_lse, 1, 1, 0, 3, &none, &none_lse, nullptr) == FOVEA_OK);
}

}  // namespace fovea_test
