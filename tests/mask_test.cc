// Masks and biases by strides, and what masked blocks cost.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

CaseSpec Spec(int64_t q_len, int64_t kv_len) {
  CaseSpec spec;
  spec.seed = 41;
  spec.batch = 2;
  spec.num_q_heads = 4;
  spec.num_kv_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 20;
  return spec;
}

constexpr int64_t kLengths[][2] = {{1, 129}, {3, 2500}, {70, 300}};

double Executed(const fovea_attention_params& p) {
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  REQUIRE(fovea_attention_describe(&p, nullptr, &info) == FOVEA_OK);
  return info.flop_executed;
}

// Eight sequences of `each` tokens in one buffer, told apart by a boolean mask only.
AttentionCase Unified(int64_t each) {
  CaseSpec spec;
  spec.seed = 8;
  spec.num_q_heads = 2;
  spec.num_kv_heads = 1;
  spec.q_len = spec.kv_len = 8 * each;
  spec.head_dim = 16;
  AttentionCase c(spec);
  const Shape shape{1, 1, 8 * each, 8 * each};
  c.mask = std::make_unique<TestTensor>(FOVEA_U8, shape, DenseStrides(shape), Guard::kAfter);
  for (int64_t i = 0; i < shape.rows; ++i) {
    for (int64_t j = 0; j < shape.cols; ++j) c.mask->U8(0, 0, i, j) = i / each == j / each;
  }
  return c;
}

}  // namespace

TEST_CASE("mask and bias broadcast over batch, heads and rows by stride 0") {
  for (const auto& lengths : kLengths) {
    for (int which = 0; which < 3; ++which) {
      AttentionCase c(Spec(lengths[0], lengths[1]));
      const Shape shape{which == 0 ? 2 : 1, which == 1 ? 4 : 1, which == 2 ? lengths[0] : 1, lengths[1]};
      Strides strides = DenseStrides(shape);
      if (which != 0) strides.batch = 0;
      if (which != 1) strides.head = 0;
      if (which != 2) strides.row = 0;
      c.mask = std::make_unique<TestTensor>(FOVEA_U8, shape, strides, Guard::kAfter);
      c.bias = std::make_unique<TestTensor>(FOVEA_F32, shape, strides, Guard::kAfter);
      Rng rng(static_cast<uint64_t>(which));
      for (int64_t j = 0; j < lengths[1]; ++j) {
        for (int64_t b = 0; b < shape.batch; ++b) {
          for (int64_t h = 0; h < shape.heads; ++h) {
            for (int64_t i = 0; i < shape.rows; ++i) {
              c.mask->U8(b, h, i, j) = rng.Chance(70);
              c.bias->F32(b, h, i, j) = rng.Normal();
            }
          }
        }
      }
      c.p.mask = c.mask->view();
      CHECK(RunAndCheck(&c) == "");
      c.p.bias = c.bias->view();
      CHECK(RunAndCheck(&c) == "");
      c.p.mask = fovea_tensor{};
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("mask and bias with column strides: transposed, spread, reversed, one column for all keys") {
  for (const auto& lengths : kLengths) {
    AttentionCase c(Spec(lengths[0], lengths[1]));
    const Shape shape{1, 1, lengths[0], lengths[1]};
    const Strides all[] = {{0, 0, 1, lengths[0]}, {0, 0, 3 * lengths[1], 3}, {0, 0, lengths[1], -1}, {0, 0, 1, 0}};
    for (const Strides& strides : all) {
      c.mask = std::make_unique<TestTensor>(FOVEA_U8, shape, strides, Guard::kBefore);
      c.bias = std::make_unique<TestTensor>(FOVEA_F32, shape, strides, Guard::kBefore);
      Rng rng(static_cast<uint64_t>(strides.col + 10));
      for (int64_t i = 0; i < lengths[0]; ++i) {
        for (int64_t j = 0; j < lengths[1]; ++j) {
          c.mask->U8(0, 0, i, j) = rng.Chance(70);
          c.bias->F32(0, 0, i, j) = rng.Normal();
        }
      }
      c.p.mask = c.mask->view();
      c.p.bias = c.bias->view();
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("any non-zero byte of a mask permits") {
  for (uint8_t value : {uint8_t{1}, uint8_t{2}, uint8_t{0x80}, uint8_t{0xff}}) {
    AttentionCase c(Spec(25, 129));
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return (i + j) % 2 == 0; });
    for (int64_t i = 0; i < 25; ++i) {
      for (int64_t j = 0; j < 129; ++j) c.mask->U8(0, 0, i, j) = c.mask->U8(0, 0, i, j) ? value : 0;
    }
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("mask at every tile edge: runs of permitted keys begin and end anywhere") {
  for (int64_t q_len : {1, 25, 60}) {
    for (int64_t begin : {0, 1, 3, 7, 8, 63, 64, 65, 127, 128, 129, 200}) {
      for (int64_t length : {1, 4, 5, 64, 130}) {
        INFO("q_len ", q_len, ", begin ", begin, ", length ", length);
        CaseSpec spec = Spec(q_len, 300);
        spec.batch = 1;
        spec.num_q_heads = 2;
        spec.num_kv_heads = 1;
        spec.head_dim = 3;
        AttentionCase c(spec);
        c.SetMask(
            [=](int64_t, int64_t h, int64_t i, int64_t j) { return j >= begin + i % 3 && j < begin + length + h; });
        CHECK(RunAndCheck(&c) == "");
      }
    }
  }
}

TEST_CASE("eight sequences in one buffer, told apart by a mask, cost what their live blocks cost") {
  AttentionCase c = Unified(256);
  const double unmasked = Executed(c.p);
  c.p.mask = c.mask->view();
  c.p.mask.stride_batch = c.p.mask.stride_head = 0;
  const double masked = Executed(c.p);
  CAPTURE(masked / unmasked);
  CHECK(masked >= unmasked / 8);
  CHECK(masked <= 1.5 * unmasked / 8);  // tiles that straddle two sequences run for both

  const fovea_exec exec = Threads(2);
  Run(c.p, &exec);
  CHECK(fovea::CheckAttention(c.p, 97).passed());
}

TEST_CASE("a bias of -inf skips dead blocks as a mask does") {
  AttentionCase c = Unified(256);
  const double unmasked = Executed(c.p);
  const Shape shape = c.mask->shape();
  c.bias = std::make_unique<TestTensor>(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter);
  for (int64_t i = 0; i < shape.rows; ++i) {
    for (int64_t j = 0; j < shape.cols; ++j) {
      c.bias->F32(0, 0, i, j) = c.mask->U8(0, 0, i, j) ? 0.25f : -std::numeric_limits<float>::infinity();
    }
  }
  c.p.bias = c.bias->view();
  c.p.bias.stride_batch = c.p.bias.stride_head = 0;
  CHECK(Executed(c.p) <= 1.5 * unmasked / 8);
  const fovea_exec exec = Threads(2);
  Run(c.p, &exec);
  CHECK(fovea::CheckAttention(c.p, 211).passed());
}

TEST_CASE("a padding mask of one row skips the blocks of padding") {
  CaseSpec spec = Spec(300, 4096);
  spec.batch = 1;
  spec.head_dim = 4;
  AttentionCase c(spec);
  const double unmasked = Executed(c.p);
  const Shape shape{1, 1, 1, 4096};
  c.mask = std::make_unique<TestTensor>(FOVEA_U8, shape, Strides{0, 0, 0, 1}, Guard::kAfter);
  for (int64_t j = 0; j < 4096; ++j) c.mask->U8(0, 0, 0, j) = j < 500;
  c.p.mask = c.mask->view();
  CHECK(Executed(c.p) <= 0.2 * unmasked);
  // The skipped blocks are not read at all.
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t j = 500; j < 4096; ++j) c.k->F32(0, h, j, 0) = c.v->F32(0, h, j, 0) = std::nanf("");
  }
  CHECK(RunAndCheck(&c) == "");
}

}  // namespace fovea_test
