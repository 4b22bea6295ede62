// The contract of lib/NUMERICS.md: empty rows, NaN and Inf, the ends of the range, the floating-point environment,
// memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/fp_control.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Shapes for which both the prefill and the few-rows kernel run, one lane to several tiles, one key block to several.
struct RowsAndKeys {
  int64_t q_len, kv_len;
};
constexpr RowsAndKeys kShapes[] = {{1, 1}, {1, 300}, {1, 2500}, {3, 70}, {25, 129}, {70, 300}};

fovea_dtype input_type = FOVEA_F32;  // of q, k and v in Spec()

CaseSpec Spec(const RowsAndKeys& shape, uint64_t seed = 7) {
  CaseSpec spec;
  spec.q_dtype = spec.k_dtype = spec.v_dtype = input_type;
  spec.seed = seed;
  spec.num_q_heads = 2;
  spec.num_kv_heads = 1;
  spec.q_len = shape.q_len;
  spec.kv_len = shape.kv_len;
  spec.head_dim = 17;
  spec.v_head_dim = 9;
  return spec;
}

void SetRow(TestTensor& t, int64_t h, int64_t row, float value) {
  for (int64_t c = 0; c < t.shape().cols; ++c) t.Set(0, h, row, c, value);
}

bool RowIsNan(const AttentionCase& c, int64_t h, int64_t i) {
  for (int64_t k = 0; k < c.out->shape().cols; ++k) {
    if (!std::isnan(c.Out(0, h, i, k))) return false;
  }
  return true;
}

bool RowIsPositiveZero(const AttentionCase& c, int64_t h, int64_t i) {
  for (int64_t k = 0; k < c.out->shape().cols; ++k) {
    if (c.Out(0, h, i, k) != 0.0f || std::signbit(c.Out(0, h, i, k))) return false;
  }
  return true;
}

}  // namespace

// ---- Rows without a key --------------------------------------------------------------------------------------------

TEST_CASE("a row with no permitted key has O = +0 and LSE = -inf, whichever option forbids them") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (int way = 0; way < 6; ++way) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", way ", way);
      CaseSpec spec = Spec(shape);
      spec.scores_stage = FOVEA_SCORES_PROBABILITIES;
      AttentionCase c(spec);
      std::vector<int32_t> kv_lens = {0};
      if (way == 0) c.SetMask([](int64_t, int64_t, int64_t, int64_t) { return false; });
      if (way == 1) c.SetBias([](int64_t, int64_t, int64_t, int64_t) { return -kInf; });
      if (way == 2) c.p.kv_lens = kv_lens.data();
      if (way == 3) c.p.causal = 1, c.p.q_offset = -shape.q_len;
      if (way == 4) c.p.window_left = 0, c.p.window_right = 0, c.p.q_offset = shape.kv_len;
      if (way == 5) c.p.window_right = 2, c.p.q_offset = -shape.q_len - 2;
      CHECK(RunAndCheck(&c) == "");
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t i = 0; i < shape.q_len; ++i) {
          CHECK(RowIsPositiveZero(c, h, i));
          CHECK(c.Lse(0, h, i) == -kInf);
          CHECK(c.scores->F32(0, h, i, 0) == 0.0f);
        }
      }
    }
  }
}

TEST_CASE("kv_len 0 gives O = +0 and LSE = -inf") {
  input_type = EachInputType();
  AttentionCase c(Spec({5, 0}));
  CHECK(RunAndCheck(&c) == "");
  CHECK(RowIsPositiveZero(c, 1, 4));
  CHECK(c.Lse(0, 1, 4) == -kInf);
}

TEST_CASE("a row with a sink and no permitted key has O = +0 and LSE = sink") {
  input_type = EachInputType();
  const std::vector<float> sinks = {1.25f, -30.0f};
  for (const RowsAndKeys& shape : kShapes) {
    for (bool no_keys : {false, true}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", no_keys ", no_keys);
      AttentionCase c(Spec({shape.q_len, no_keys ? 0 : shape.kv_len}));
      if (!no_keys) c.SetMask([](int64_t, int64_t, int64_t, int64_t) { return false; });
      c.p.sinks = sinks.data();
      CHECK(RunAndCheck(&c) == "");
      for (int64_t h = 0; h < 2; ++h) {
        CHECK(RowIsPositiveZero(c, h, shape.q_len - 1));
        CHECK(c.Lse(0, h, shape.q_len - 1) == doctest::Approx(sinks[static_cast<size_t>(h)]).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("a sink of -inf is none: one key whose score is -FLT_MAX gives mean(V), its LSE finite") {
  const std::vector<float> sinks = {-kInf, -kInf};
  for (const RowsAndKeys& shape : {RowsAndKeys{1, 1}, RowsAndKeys{1, 2}, RowsAndKeys{40, 1}}) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec({shape.q_len, shape.kv_len}));
    c.SetBias([](int64_t, int64_t, int64_t, int64_t) { return -3e38f; });
    c.p.sinks = sinks.data();
    CHECK(RunAndCheck(&c) == "");
    for (int64_t h = 0; h < 2; ++h) CHECK(c.Lse(0, h, shape.q_len - 1) == -std::numeric_limits<float>::max());
  }
}

TEST_CASE("one row without keys among others: only that row is empty") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : {RowsAndKeys{3, 70}, RowsAndKeys{70, 300}}) {
    const int64_t rows = (shape.q_len + 1) / 2, tried = Portion(rows, 6);
    for (int64_t n = 0; n < tried; ++n) {
      const int64_t empty = 2 * (n * rows / tried);
      AttentionCase c(Spec(shape));
      c.SetMask([empty](int64_t, int64_t, int64_t i, int64_t) { return i != empty; });
      CHECK(RunAndCheck(&c) == "");
      CHECK(RowIsPositiveZero(c, 0, empty));
    }
  }
}

// ---- NaN and Inf ---------------------------------------------------------------------------------------------------

TEST_CASE("masked key is never an operand: NaN and Inf in K and V, forbidden by mask, bias, causality or window") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape :
       {RowsAndKeys{1, 300}, RowsAndKeys{1, 2500}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    for (int way = 0; way < 5; ++way) {
      for (float poison : {kNan, kInf, -kInf}) {
        INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", way ", way, ", poison ", poison);
        AttentionCase c(Spec(shape));
        const auto may_attend = [](int64_t, int64_t, int64_t, int64_t j) { return j % 5 != 1; };
        if (way == 0) c.SetMask(may_attend);
        if (way == 1)
          c.SetBias([&](int64_t b, int64_t h, int64_t i, int64_t j) { return may_attend(b, h, i, j) ? 0.5f : -kInf; });
        if (way == 2) c.p.causal = 1;
        if (way == 3) c.p.window_left = 9, c.p.window_right = 3, c.p.q_offset = 40;
        if (way == 4)
          c.SetMask([&](int64_t b, int64_t h, int64_t i, int64_t j) { return j < 64 || may_attend(b, h, i, j); }),
              c.p.causal = 1;
        for (int64_t j = 0; j < shape.kv_len; ++j) {
          bool attended = false;
          for (int64_t i = 0; i < shape.q_len; ++i) attended |= fovea::Permitted(c.p, 0, 0, i, j);
          if (!attended) SetRow(*c.k, 0, j, poison), SetRow(*c.v, 0, j, poison);
        }
        CHECK(RunAndCheck(&c) == "");
        CHECK(std::isfinite(c.Out(0, 0, shape.q_len - 1, 0)));
        CHECK(std::isfinite(c.Lse(0, 1, shape.q_len - 1)));
      }
    }
  }
}

TEST_CASE("NaN in a permitted V reaches exactly the rows that attend to it") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape :
       {RowsAndKeys{3, 70}, RowsAndKeys{3, 2500}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    for (float poison : {kNan, kInf, -kInf}) {
      for (int64_t key : {int64_t{0}, shape.kv_len / 2, shape.kv_len - 1}) {
        INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", poison ", poison, ", key ", key);
        AttentionCase c(Spec(shape));
        // Row i of head h attends to the poisoned key if i + h is even.
        c.SetMask([key](int64_t, int64_t h, int64_t i, int64_t j) { return j != key || (i + h) % 2 == 0; });
        c.v->Set(0, 0, key, 4, poison);
        CHECK(RunAndCheck(&c) == "");
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t i = 0; i < shape.q_len; ++i) {
            for (int64_t k = 0; k < 9; ++k) CHECK(std::isfinite(c.Out(0, h, i, k)) == !(k == 4 && (i + h) % 2 == 0));
            CHECK(std::isfinite(c.Lse(0, h, i)));
          }
        }
      }
    }
  }
}

TEST_CASE("NaN in a permitted V reaches its row even where its weight is 0") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : {RowsAndKeys{1, 300}, RowsAndKeys{25, 129}}) {
    AttentionCase c(Spec(shape));
    // Key 0 first scores -inf-like low, then others raise the maximum by hundreds: P(0) is exactly 0.
    c.SetBias([](int64_t, int64_t, int64_t, int64_t j) { return j == 0 ? -1000.0f : 0.0f; });
    c.v->Set(0, 0, 0, 2, kNan);
    CHECK(RunAndCheck(&c) == "");
    for (int64_t i = 0; i < shape.q_len; ++i) CHECK(std::isnan(c.Out(0, 0, i, 2)));
  }
}

TEST_CASE("NaN in a permitted K reaches exactly the rows that attend to it, O and LSE") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape :
       {RowsAndKeys{3, 70}, RowsAndKeys{3, 2500}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    for (int64_t key : {int64_t{0}, shape.kv_len / 2, shape.kv_len - 1}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", key ", key);
      AttentionCase c(Spec(shape));
      c.SetMask([key](int64_t, int64_t h, int64_t i, int64_t j) { return j != key || (i + h) % 2 == 0; });
      c.k->Set(0, 0, key, 16, kNan);
      CHECK(RunAndCheck(&c) == "");
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t i = 0; i < shape.q_len; ++i) {
          CHECK(RowIsNan(c, h, i) == ((i + h) % 2 == 0));
          CHECK(std::isnan(c.Lse(0, h, i)) == ((i + h) % 2 == 0));
        }
      }
    }
  }
}

TEST_CASE("NaN in Q reaches its own row only, and an empty row not at all") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape :
       {RowsAndKeys{3, 70}, RowsAndKeys{3, 2500}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec(shape));
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t) { return i != 1; });
    c.q->Set(0, 0, 0, 3, kNan);
    c.q->Set(0, 0, 1, 3, kNan);
    CHECK(RunAndCheck(&c) == "");
    CHECK(RowIsNan(c, 0, 0));
    CHECK(std::isnan(c.Lse(0, 0, 0)));
    CHECK(RowIsPositiveZero(c, 0, 1));
    CHECK(c.Lse(0, 0, 1) == -kInf);
    CHECK(std::isfinite(c.Out(0, 1, 0, 0)));
    CHECK(std::isfinite(c.Out(0, 0, 2, 0)));
  }
}

TEST_CASE("NaN in bias: forbidden elsewhere it reaches nothing, permitted its row only") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : {RowsAndKeys{3, 70}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec(shape));
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return i == 2 || j != 5; });
    c.SetBias([](int64_t, int64_t, int64_t, int64_t j) { return j == 5 ? kNan : 0.25f; });
    CHECK(RunAndCheck(&c) == "");
    CHECK(std::isfinite(c.Out(0, 0, 0, 0)));
    CHECK(RowIsNan(c, 0, 2));
    CHECK(std::isnan(c.Lse(0, 0, 2)));
  }
}

TEST_CASE("a bias of -inf is a mask, +inf makes its row NaN and no other") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape :
       {RowsAndKeys{3, 70}, RowsAndKeys{3, 2500}, RowsAndKeys{25, 129}, RowsAndKeys{70, 300}}) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase masked(Spec(shape));
    masked.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return (i + j) % 3 != 0; });
    AttentionCase c(Spec(shape));
    c.SetBias([](int64_t, int64_t, int64_t i, int64_t j) { return (i + j) % 3 != 0 ? 0.0f : -kInf; });
    CHECK(RunAndCheck(&masked) == "");
    CHECK(RunAndCheck(&c) == "");
    c.bias->F32(0, 0, 1, shape.kv_len - 1) = kInf;
    CHECK(RunAndCheck(&c) == "");
    CHECK(RowIsNan(c, 0, 1));
    CHECK(std::isnan(c.Lse(0, 0, 1)));
    CHECK(std::isfinite(c.Out(0, 0, 0, 0)));
    CHECK(std::isfinite(c.Out(0, 1, 1, 0)));
  }
}

TEST_CASE("a row whose bias is -FLT_MAX throughout is mean(V), its LSE finite") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (float value : {-FLT_MAX, -FLT_MAX / 1.25f}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", value ", value);
      CaseSpec spec = Spec(shape);
      spec.options = kSpread;  // S + bias would be -inf in f32 for S < -2^103, and is -FLT_MAX for all of these
      AttentionCase c(spec);
      c.SetBias([value](int64_t, int64_t, int64_t i, int64_t) { return i % 2 == 0 ? value : 0.0f; });
      CHECK(RunAndCheck(&c) == "");
      for (int64_t k = 0; k < 9; ++k) {
        double mean = 0;
        for (int64_t j = 0; j < shape.kv_len; ++j) mean += static_cast<double>(c.v->Get(0, 0, j, k));
        mean /= static_cast<double>(shape.kv_len);
        CHECK(static_cast<double>(c.Out(0, 0, 0, k)) == doctest::Approx(mean).epsilon(1e-5));
      }
      CHECK(std::isfinite(c.Lse(0, 0, 0)));
    }
  }
}

TEST_CASE("a row whose bias is -FLT_MAX on top of ALiBi stays -FLT_MAX: mean(V), never empty") {
  input_type = EachInputType();
  AttentionCase c(Spec({25, 129}));
  const std::vector<float> slopes = {1e36f, 0.5f};
  c.p.alibi_slopes = slopes.data();
  c.SetBias([](int64_t, int64_t, int64_t, int64_t) { return -FLT_MAX; });
  CHECK(RunAndCheck(&c) == "");
  double mean = 0;
  for (int64_t j = 0; j < 129; ++j) mean += static_cast<double>(c.v->Get(0, 0, j, 0));
  CHECK(static_cast<double>(c.Out(0, 0, 24, 0)) == doctest::Approx(mean / 129).epsilon(1e-5));
}

TEST_CASE("keys at -FLT_MAX weigh nothing beside ordinary ones, before or after them") {
  input_type = EachInputType();
  for (bool first : {false, true}) {
    AttentionCase c(Spec({25, 129}));
    AttentionCase masked(Spec({25, 129}));
    const auto ordinary = [first](int64_t j) { return first ? j < 40 : j >= 90; };
    c.SetBias([&](int64_t, int64_t, int64_t, int64_t j) { return ordinary(j) ? 0.0f : -FLT_MAX; });
    CHECK(RunAndCheck(&c) == "");
    masked.SetMask([&](int64_t, int64_t, int64_t, int64_t j) { return ordinary(j); });
    CHECK(RunAndCheck(&masked) == "");
  }
}

// ---- The ends of the range -----------------------------------------------------------------------------------------

TEST_CASE("|V| near the top of the range does not overflow: 2^8 times the weights would") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec(shape));
    // Scores that rise by less than the lazy maximum's 8 (in log2) from key to key: P up to 2^8 before a rescale.
    c.SetBias([](int64_t, int64_t, int64_t, int64_t j) { return 0.04f * static_cast<float>(j); });
    const float top = FLT_MAX / (2.0f * static_cast<float>(shape.kv_len));
    for (int64_t j = 0; j < shape.kv_len; ++j) SetRow(*c.v, 0, j, j % 3 == 0 ? -top : top);
    CHECK(RunAndCheck(&c) == "");
    CHECK(std::isfinite(c.Out(0, 0, 0, 0)));
  }
}

TEST_CASE("|V| up to 3e38 in every key does not overflow: the output is a mean, not a sum") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec(shape));
    for (int64_t j = 0; j < shape.kv_len; ++j) SetRow(*c.v, 0, j, 3e38f);
    CHECK(RunAndCheck(&c) == "");
    CHECK(static_cast<double>(c.Out(0, 0, 0, 0)) == doctest::Approx(static_cast<double>(c.v->Get(0, 0, 0, 0))).epsilon(1e-5));
  }
}

TEST_CASE("huge V of other rows' keys reaches nothing") {
  input_type = EachInputType();
  AttentionCase c(Spec({25, 129}));
  c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return i == 7 || j != 3; });
  SetRow(*c.v, 0, 3, 3e38f);
  Run(c.p);
  for (int64_t i = 0; i < 25; ++i) {
    if (i != 7) CHECK(std::fabs(c.Out(0, 0, i, 0)) < 10.0f);
  }
}

TEST_CASE("scores that rise with every key: each raises the maximum") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (float step : {0.01f, 0.7f, 20.0f, 3000.0f}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", step ", step);
      AttentionCase c(Spec(shape));
      c.SetBias([step](int64_t, int64_t, int64_t i, int64_t j) {
        return step * static_cast<float>(j) * (i % 2 ? 1.0f : 0.5f);
      });
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("scores that fall with every key: the first keeps the maximum") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (float step : {0.01f, 0.7f, 20.0f, 3000.0f}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", step ", step);
      AttentionCase c(Spec(shape));
      c.SetBias([step](int64_t, int64_t, int64_t, int64_t j) { return -step * static_cast<float>(j); });
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("rescales decided by Q and K alone: rising scores without a bias") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    AttentionCase c(Spec(shape));
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < shape.q_len; ++i) c.q->Set(0, h, i, 0, 3.0f * static_cast<float>(1 + i % 3));
    }
    for (int64_t j = 0; j < shape.kv_len; ++j) c.k->Set(0, 0, j, 0, 0.5f * static_cast<float>(j));
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("one key far above the others, at every place of a tile") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : {RowsAndKeys{1, 300}, RowsAndKeys{25, 129}}) {
    for (int64_t peak = 0; peak < shape.kv_len; peak += peak < 16 ? 1 : 13) {
      AttentionCase c(Spec(shape));
      c.SetBias([peak](int64_t, int64_t, int64_t, int64_t j) { return j == peak ? 90.0f : 0.0f; });
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("scores of wildly different size in neighbouring rows") {
  input_type = FOVEA_F32;
  for (const RowsAndKeys& shape : kShapes) {
    AttentionCase c(Spec(shape));
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < shape.q_len; ++i) {
        const float factor = std::ldexp(1.0f, static_cast<int>((i * 7 + h * 3) % 24) - 12);
        for (int64_t k = 0; k < 17; ++k) c.q->Set(0, h, i, k, factor * c.q->Get(0, h, i, k));
      }
    }
    // One row at a time is judged against its own scores, so that the largest does not excuse the others.
    CHECK(RunAndCheck(&c) == "");
    for (int64_t i = 0; i < shape.q_len; ++i) {
      AttentionCase row(Spec(shape));
      fovea_attention_params p = c.p;
      p.q_len = 1;
      p.q.data = &c.q->F32(0, 0, i, 0);
      p.out.data = &c.out->F32(0, 0, i, 0);
      p.lse.data = &c.lse->F32(0, 0, i);
      CHECK(fovea::CheckAttention(p).passed());
    }
  }
}

TEST_CASE("very negative scores throughout are as good as any: softmax is shift-invariant") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (float shift : {-300.0f, -88.0f, 88.0f, 300.0f}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", shift ", shift);
      AttentionCase c(Spec(shape));
      c.SetBias([shift](int64_t, int64_t, int64_t, int64_t) { return shift; });
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

TEST_CASE("one permitted key: O is exactly its V, whatever its score") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    for (float score : {-1e30f, -200.0f, 0.0f, 200.0f, 1e30f}) {
      INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", score ", score);
      AttentionCase c(Spec(shape));
      c.SetMask([&shape](int64_t, int64_t, int64_t i, int64_t j) { return j == i * 3 % shape.kv_len; });
      c.SetBias([score](int64_t, int64_t, int64_t, int64_t) { return score; });
      Run(c.p);
      for (int64_t i = 0; i < shape.q_len; ++i) {
        for (int64_t k = 0; k < 9; ++k) CHECK(c.Out(0, 1, i, k) == c.v->Get(0, 0, i * 3 % shape.kv_len, k));
      }
    }
  }
}

TEST_CASE("equal scores: a power of two of keys with V = 1 gives exactly 1, LSE log(n)") {
  input_type = EachInputType();
  for (int64_t n : {1, 2, 64, 256, 2048}) {
    AttentionCase c(Spec({2, n}));
    SetRow(*c.q, 0, 0, 0.0f);
    SetRow(*c.q, 0, 1, 0.0f);
    for (int64_t j = 0; j < n; ++j) SetRow(*c.v, 0, j, 1.0f);
    Run(c.p);
    CHECK(c.Out(0, 0, 0, 0) == 1.0f);
    CHECK(c.Lse(0, 0, 1) == doctest::Approx(std::log(static_cast<double>(n))).epsilon(1e-6));
  }
}

TEST_CASE("alpha is exactly 1 for a row that keeps its maximum: other rows' rescales do not touch it") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : {RowsAndKeys{4, 300}, RowsAndKeys{70, 300}}) {
    AttentionCase calm(Spec(shape)), wild(Spec(shape));
    calm.SetBias([](int64_t, int64_t, int64_t, int64_t) { return 0.0f; });
    wild.SetBias([](int64_t, int64_t, int64_t i, int64_t j) { return i == 0 ? 0.0f : 25.0f * static_cast<float>(j); });
    const fovea_exec one = Threads(1);
    Run(calm.p, &one);
    Run(wild.p, &one);
    for (int64_t h = 0; h < 2; ++h) {
      CHECK(calm.Lse(0, h, 0) == wild.Lse(0, h, 0));
      for (int64_t k = 0; k < 9; ++k) CHECK(calm.Out(0, h, 0, k) == wild.Out(0, h, 0, k));
    }
  }
}

TEST_CASE("a zero output is +0: negative zeros and underflow in V") {
  input_type = FOVEA_F32;
  for (const RowsAndKeys& shape : kShapes) {
    AttentionCase c(Spec(shape));
    for (int64_t j = 0; j < shape.kv_len; ++j) SetRow(*c.v, 0, j, -0.0f);
    Run(c.p);
    for (int64_t i = 0; i < shape.q_len; ++i) CHECK(RowIsPositiveZero(c, 1, i));
  }
}

TEST_CASE("subnormal numbers are numbers: in Q, K and V") {
  input_type = FOVEA_F32;
  for (const RowsAndKeys& shape : kShapes) {
    INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
    AttentionCase c(Spec(shape));
    for (int64_t j = 0; j < shape.kv_len; ++j) {
      for (int64_t k = 0; k < 9; ++k) c.v->Set(0, 0, j, k, 1e-39f * c.v->Get(0, 0, j, k));
      c.k->Set(0, 0, j, 0, 1e-40f * static_cast<float>(j));
    }
    for (int64_t i = 0; i < shape.q_len; ++i) c.q->Set(0, 0, i, 0, 1e30f);  // 1e30 * 1e-40 * j, over sqrt(17)
    CHECK(RunAndCheck(&c) == "");
    float largest = 0;
    for (int64_t k = 0; k < 9; ++k) largest = std::max(largest, std::fabs(c.Out(0, 0, 0, k)));
    CHECK(largest > 0.0f);
  }
}

TEST_CASE("subnormal K with a large Q decides the softmax") {
  input_type = FOVEA_F32;
  AttentionCase c(Spec({25, 129}));
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t i = 0; i < 25; ++i) {
      SetRow(*c.q, h, i, 0.0f);
      c.q->Set(0, h, i, 0, 3e38f);
    }
  }
  for (int64_t j = 0; j < 129; ++j) c.k->Set(0, 0, j, 0, 1e-40f * static_cast<float>(j % 50 ? 1 : 1000));
  CHECK(RunAndCheck(&c) == "");
}

// ---- The floating-point environment --------------------------------------------------------------------------------

TEST_CASE("caller's rounding mode and flush-to-zero change no bit, and are restored") {
  input_type = EachInputType();
#ifdef FOVEA_TEST_FP_CONTROL
  for (const RowsAndKeys& shape : kShapes) {
    AttentionCase c(Spec(shape));
    for (int64_t j = 0; j < shape.kv_len; ++j) {
      for (int64_t k = 0; k < 4; ++k) c.v->Set(0, 0, j, k, 1e-39f * c.v->Get(0, 0, j, k));
    }
    for (int32_t threads : {1, 3}) {
      const fovea_exec exec = Threads(threads);
      Run(c.p, &exec);
      const std::vector<float> expected = Outputs(c.p);
      const uint32_t before = FpControl();
      for (int rounding : {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        for (uint32_t flush : {0u, kFlushAll}) {
          INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", threads ", threads, ", rounding ", rounding,
               ", flush ", flush);
          c.ClearOutputs();
          std::fesetround(rounding);
          SetFpControl(FpControl() | flush);
          const uint32_t set = FpControl();
          const fovea_status status = fovea_attention_forward(&c.p, &exec);
          const uint32_t after = FpControl();
          SetFpControl(before);
          CHECK(status == FOVEA_OK);
          CHECK(after == set);
          CHECK(BitDifference(expected, Outputs(c.p)) == "");
        }
      }
    }
  }
#endif
}

TEST_CASE("caller's rounding mode and flush-to-zero: run_tasks and merge too") {
  input_type = FOVEA_F32;
#ifdef FOVEA_TEST_FP_CONTROL
  AttentionCase c(Spec({25, 129}));
  const fovea_exec one = Threads(1);
  size_t bytes = 0;
  REQUIRE(fovea_attention_workspace_size(&c.p, &one, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  const fovea_plan* plan = nullptr;
  REQUIRE(fovea_attention_plan(&c.p, &one, memory.data(), bytes, &plan) == FOVEA_OK);
  std::vector<std::vector<float>> runs;
  const fovea_tensor merged_parts[2] = {c.p.out, c.p.out}, merged_lses[2] = {c.p.lse, c.p.lse};
  const Shape shape{1, 2, 25, 9};
  TestTensor merged(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter);
  const fovea_tensor merged_view = merged.view();
  for (int rounding : {FE_TONEAREST, FE_UPWARD}) {
    const uint32_t before = FpControl();
    std::fesetround(rounding);
    if (rounding != FE_TONEAREST) SetFpControl(FpControl() | kFlushAll);
    const uint32_t set = FpControl();
    bool ok = true;
    for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
      ok &= fovea_attention_run_tasks(plan, &c.p, phase, 0, fovea_plan_tasks(plan, phase), 0) == FOVEA_OK;
      ok &= FpControl() == set;
    }
    ok &= fovea_attention_merge(2, merged_parts, merged_lses, 1, 2, 25, 9, &merged_view, nullptr, &one) == FOVEA_OK;
    ok &= FpControl() == set;
    SetFpControl(before);
    CHECK(ok);
    runs.push_back(Outputs(c.p));
    for (int64_t i = 0; i < 25; ++i) runs.back().push_back(merged.F32(0, 0, i, 0));
  }
  CHECK(BitDifference(runs[0], runs[1]) == "");
#endif
}

// ---- Memory --------------------------------------------------------------------------------------------------------

TEST_CASE("rows past a sequence's q_len are not written, out, lse and scores") {
  input_type = EachInputType();
  for (int64_t q_len : {4, 70}) {
    CaseSpec spec = Spec({q_len, 129});
    spec.batch = 2;
    spec.scores_stage = FOVEA_SCORES_BIASED;
    AttentionCase c(spec);
    const std::vector<int32_t> q_lens = {static_cast<int32_t>(q_len - 2), 0};
    c.p.q_lens = q_lens.data();
    CHECK(RunAndCheck(&c) == "");  // compares every byte
    CHECK(std::isnan(c.Out(0, 0, q_len - 1, 0)));
    CHECK(std::isnan(c.Lse(1, 1, 0)));
    CHECK(std::isfinite(c.Out(0, 1, q_len - 3, 8)));
  }
}

TEST_CASE("K and V may be the same memory, and Q too") {
  input_type = FOVEA_F32;
  for (const RowsAndKeys& shape : kShapes) {
    CaseSpec spec = Spec(shape);
    spec.num_q_heads = 1;
    spec.v_head_dim = 17;
    AttentionCase c(spec);
    c.p.v = c.p.k;
    CHECK(RunAndCheck(&c) == "");
    c.p.q_len = std::min(shape.q_len, shape.kv_len);
    c.p.q = c.p.k;
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("V may be a part of K's rows: overlapping memory, other row length (MLA)") {
  input_type = FOVEA_F32;
  AttentionCase c(Spec({25, 129}));
  c.p.v = c.p.k;  // the first v_head_dim = 9 of K's 17 columns
  CHECK(RunAndCheck(&c) == "");
  AttentionCase few(Spec({1, 300}));
  few.p.v = few.p.k;
  CHECK(RunAndCheck(&few) == "");
}

TEST_CASE("stride 0 broadcasts an input: one query, one key, one head, one batch entry for all") {
  input_type = EachInputType();
  int64_t fovea_tensor::*const strides[] = {&fovea_tensor::stride_batch, &fovea_tensor::stride_head,
                                            &fovea_tensor::stride_row};
  fovea_tensor fovea_attention_params::*const inputs[] = {&fovea_attention_params::q, &fovea_attention_params::k,
                                                          &fovea_attention_params::v};
  for (const RowsAndKeys& shape : kShapes) {
    for (int input = 0; input < 3; ++input) {
      for (int stride = 0; stride < 3; ++stride) {
        INFO("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", input ", input, ", stride ", stride);
        CaseSpec spec = Spec(shape);
        spec.batch = 2;
        spec.num_kv_heads = 2;
        AttentionCase c(spec);
        (c.p.*inputs[input]).*strides[stride] = 0;
        CHECK(RunAndCheck(&c) == "");
      }
    }
  }
}

TEST_CASE("K and V with head stride 0 are one kv head: multi-query attention written as multi-head") {
  input_type = EachInputType();
  for (const RowsAndKeys& shape : kShapes) {
    CaseSpec spec = Spec(shape);
    spec.num_q_heads = spec.num_kv_heads = 4;
    AttentionCase c(spec);
    c.p.k.stride_head = c.p.v.stride_head = 0;
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("NULL data is fine where an extent is 0") {
  input_type = FOVEA_F32;
  AttentionCase c(Spec({5, 3}));
  fovea_attention_params p = c.p;
  p.kv_len = 0;
  p.k.data = p.v.data = nullptr;
  CHECK(fovea_attention_forward(&p, nullptr) == FOVEA_OK);
  CHECK(RowIsPositiveZero(c, 0, 0));
  p = c.p;
  p.q_len = 0;
  p.q.data = p.out.data = p.lse.data = nullptr;
  CHECK(fovea_attention_forward(&p, nullptr) == FOVEA_OK);
  p.kv_len = 0;
  p.k.data = p.v.data = nullptr;
  CHECK(fovea_attention_forward(&p, nullptr) == FOVEA_OK);
}

TEST_CASE("every sequence of a batch empty: nothing is read or written") {
  input_type = FOVEA_F32;
  CaseSpec spec = Spec({5, 7});
  spec.batch = 2;
  AttentionCase c(spec);
  const std::vector<int32_t> zero = {0, 0, 0};
  c.p.q_lens = zero.data();
  CHECK(RunAndCheck(&c) == "");
  c.p.q_lens = nullptr;
  c.p.cu_seqlens_q = zero.data();
  c.p.total_q = 0;
  CHECK(RunAndCheck(&c) == "");
}

TEST_CASE("no alignment beyond an element's is needed") {
  // The guarded buffers end at a page's end, so an odd number of floats starts at any multiple of 4.
  for (int64_t head_dim : {1, 2, 3, 5, 7, 31, 33}) {
    CaseSpec spec;
    spec.q_len = 9;
    spec.kv_len = 33;
    spec.head_dim = head_dim;
    spec.v_head_dim = 36 - head_dim;
    spec.seed = static_cast<uint64_t>(head_dim);
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");
  }
}

TEST_CASE("positions and windows at the limit of 2^30 do not overflow") {
  input_type = FOVEA_F32;
  for (int64_t offset : {(int64_t{1} << 30) - 25, 1 - (int64_t{1} << 30)}) {
    AttentionCase c(Spec({25, 129}));
    c.p.q_offset = offset;
    c.p.causal = 1;
    CHECK(RunAndCheck(&c) == "");
    for (int64_t window : {(int64_t{1} << 30) - 1, std::numeric_limits<int64_t>::max()}) {
      c.p.window_left = window;
      c.p.window_right = window;
      CHECK(RunAndCheck(&c) == "");
    }
  }
}

}  // namespace fovea_test
