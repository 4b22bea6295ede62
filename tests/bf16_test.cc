// Prefill and decode whose weights are bf16 (AVX3_BF16, and of prefill NEON_BFDOT, with q, k and v in BF16), beyond what every type is held to:
// dtype_test.cc, and the cases of contract_test.cc and bits_test.cc, which run with bf16 inputs too. On other targets the same calls convert, and
// must pass as well.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "lib/dtype.h"
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
// Elements of O that are not what weights that sum to 1 give, but for the roundings of equal addends (lib/NUMERICS.md), of rows that may attend to
// something.
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

// Each of the first num_options options alone, and then beside others; with_scores: PROBABILITIES in every fifth case.
void EachRandomShape(uint64_t seeds, int64_t cases, ShapeKind kind, int64_t num_options, bool with_scores) {
  const uint64_t first = FirstSeed(seeds);
  for (int64_t n = 0; n < CaseCount(cases); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    Rng rng(Mix(seed) ^ 0xBF16);
    uint32_t options = 1u << n % num_options;
    for (uint32_t bit = 1; n % 2 && (bit & kAllOptions); bit <<= 1) options |= rng.Chance(20) ? bit : 0;
    const int32_t stage = with_scores && rng.Chance(20) ? FOVEA_SCORES_PROBABILITIES : FOVEA_SCORES_NONE;
    CaseSpec spec = RandomSpec(seed, kind, options, stage, CaseWork(1000000));
    spec.q_dtype = spec.k_dtype = spec.v_dtype = FOVEA_BF16;
    spec.out_dtype = static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");
  }
}

}  // namespace

TEST_CASE("bf16 prefill: random shapes, each option alone and in combinations, equals f64") {
  EachRandomShape(8000000, 300, ShapeKind::kPrefill, 24, true);
}
TEST_CASE("bf16 decode: random shapes of few rows, each option alone and in combinations, equals f64") {
  EachRandomShape(8500000, 400, ShapeKind::kFewRows, 27, false);
}

// Pairs of keys begin at even keys: here the range of keys begins and ends at odd and even ones, inside a block and at its ends, and NaN lies on both
// sides of it and in its middle, at a key that is masked.
TEST_CASE("bf16 decode: a key without permission does not reach the partner in its pair, nor a key outside the range") {
  for (int64_t head_dim : {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 96, 128, 160}) {
    for (int64_t begin : {0, 1, 2, 7, 62, 63, 64, 65}) {
      for (int64_t keys : {1, 2, 3, 8, 9, 64, 65, 131}) {
        CaseSpec spec = Bf16Spec(1, begin + keys + 1, head_dim, head_dim);
        spec.num_q_heads = 1 + static_cast<int64_t>(head_dim + begin + keys) % 7 + 1;
        AttentionCase c(spec);
        const int64_t masked = keys > 2 ? begin + keys / 2 : -1, last = begin + keys - 1;
        c.p.q_offset = last;
        c.p.causal = 1;
        c.p.window_left = keys - 1;
        c.SetMask([&](int64_t, int64_t, int64_t, int64_t j) { return j != masked; });
        for (int64_t k = 0; k < head_dim; ++k) {
          for (int64_t j : {begin - 1, last + 1, masked}) {
            if (j >= 0) c.k->Set(0, 0, j, k, std::nanf("")), c.v->Set(0, 0, j, k, std::nanf(""));
          }
        }
        CHECK(RunAndCheck(&c) == "");
      }
    }
  }
}

TEST_CASE("bf16 decode: pages of any length, odd ones too, have the bits of a contiguous cache; 1, 2, 3 and 8 threads") {
  for (int64_t page_size : {1, 2, 3, 5, 7, 16, 33, 100}) {
    for (int64_t q_len : {1, 3}) {
      constexpr int64_t kLen = 1301, kDim = 48;
      const int64_t num_pages = (kLen + page_size - 1) / page_size;
      CaseSpec spec = Bf16Spec(q_len, kLen, kDim, kDim);
      spec.options = kCausal | kBottomRight | kWindowLeft;
      AttentionCase c(spec);
      Run(c.p);
      const std::vector<float> want = Outputs(c.p);
      std::vector<uint16_t> k(static_cast<size_t>(num_pages * page_size * kDim)), v = k;
      std::vector<int32_t> table(static_cast<size_t>(num_pages));
      for (int64_t n = 0; n < num_pages; ++n) table[static_cast<size_t>(n)] = static_cast<int32_t>((n * 7 + 3) % num_pages);
      if (num_pages % 7 == 0) {
        for (int64_t n = 0; n < num_pages; ++n) table[static_cast<size_t>(n)] = static_cast<int32_t>(num_pages - 1 - n);
      }
      for (int64_t j = 0; j < kLen; ++j) {
        const int64_t row = table[static_cast<size_t>(j / page_size)] * page_size + j % page_size;
        for (int64_t i = 0; i < kDim; ++i) {
          fovea::StoreElement(FOVEA_BF16, c.k->Get(0, 0, j, i), k.data(), row * kDim + i);
          fovea::StoreElement(FOVEA_BF16, c.v->Get(0, 0, j, i), v.data(), row * kDim + i);
        }
      }
      fovea_attention_params p = c.p;
      p.k = fovea_tensor_bhsd(k.data(), FOVEA_BF16, 1, page_size, kDim);
      p.v = fovea_tensor_bhsd(v.data(), FOVEA_BF16, 1, page_size, kDim);
      p.block_table = table.data();
      p.block_table_stride = num_pages;
      p.num_pages = num_pages;
      p.page_size = page_size;
      for (int32_t threads : {1, 2, 3, 8}) {
        const fovea_exec exec = Threads(threads);
        c.ClearOutputs();
        Run(p, &exec);
        CAPTURE(page_size);
        CHECK(BitDifference(want, Outputs(p)) == "");
      }
    }
  }
}

TEST_CASE("bf16: describe names the kernel that runs") {
  for (int64_t q_len : {1, 4, 5}) {  // 2, 8 and 10 rows
    AttentionCase c(Bf16Spec(q_len, 30, 8, 8));
    fovea_attention_info info;
    fovea_attention_info_init(&info, sizeof info);
    REQUIRE(fovea_attention_describe(&c.p, nullptr, &info) == FOVEA_OK);
    const bool native = target_name == "AVX3_BF16" || (target_name == "NEON_BFDOT" && q_len == 5);
    const std::string want = std::string(q_len < 5 ? "decode_" : "prefill_") + (native ? "bf16" : "f32");
    CHECK(std::string(info.kernels).find(want) == 0);
    CHECK((info.conversions == std::string("none")) == native);
  }
  AttentionCase one(Bf16Spec(1, 30, 8, 8));
  one.p.num_q_heads = 1;
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  REQUIRE(fovea_attention_describe(&one.p, nullptr, &info) == FOVEA_OK);
  CHECK(info.kernels == std::string("decode_f32"));

  // One row of the first sequence, two of the second.
  CaseSpec spec = Bf16Spec(2, 30, 8, 8);
  spec.batch = 2;
  AttentionCase both(spec);
  const std::vector<int32_t> q_lens = {1, 2};
  both.p.num_q_heads = 1;
  both.p.q_lens = q_lens.data();
  REQUIRE(fovea_attention_describe(&both.p, nullptr, &info) == FOVEA_OK);
  CHECK(info.kernels == std::string(target_name == "AVX3_BF16" ? "decode_f32 decode_bf16" : "decode_f32"));
  CHECK(info.conversions == std::string("q BF16, k BF16, v BF16"));

  // The score matrix is of f32.
  CaseSpec with_scores = Bf16Spec(5, 30, 8, 8);
  with_scores.scores_stage = FOVEA_SCORES_RAW;
  const AttentionCase scores(with_scores);
  REQUIRE(fovea_attention_describe(&scores.p, nullptr, &info) == FOVEA_OK);
  const bool native = target_name == "AVX3_BF16" || target_name == "NEON_BFDOT";
  CHECK(info.conversions == std::string(native ? "q BF16, k BF16" : "q BF16, k BF16, v BF16"));
}

TEST_CASE("bf16 prefill and decode: rounded weights sum to 1: equal V are given back") {
  for (uint32_t options : {0u, static_cast<uint32_t>(kSpread), static_cast<uint32_t>(kCausal), static_cast<uint32_t>(kMask | kSpread)}) {
    for (int64_t q_len : {70, 3}) {
      CaseSpec spec = Bf16Spec(q_len, 700, 33, 37);
      spec.options = options;
      AttentionCase c(spec);
      SetEqualV(&c);
      CHECK(RunAndCheck(&c) == "");
      CHECK(FarFromEqualV(c) == 0);
    }
  }
}

// The maximum moves by whole powers of two, also from a sink, which is none: nothing is rounded a second time. Scores rise so much that l, O and the
// weights of the block are rescaled in every few keys, and so little that those weigh something after it: rounded again, they would not sum to l.
TEST_CASE("bf16 prefill and decode: many rescales round nothing twice, with a sink too") {
  const std::vector<float> sinks = {-3.3f, 0.7f};
  for (const bool with_sinks : {false, true}) {
    for (const float step : {0.7f, 0.73f, 1.3f, 6.1f}) {
      for (int64_t q_len : {60, 4}) {
        CAPTURE(step);
        AttentionCase c(Bf16Spec(q_len, 300, 8, 9));
        if (with_sinks) c.p.sinks = sinks.data();
        c.SetBias([step](int64_t, int64_t, int64_t i, int64_t j) { return static_cast<float>(j) * step - static_cast<float>(i); });
        CHECK(RunAndCheck(&c) == "");
        SetEqualV(&c);
        CHECK(RunAndCheck(&c) == "");
        CHECK(FarFromEqualV(c) == 0);
      }
    }
  }
}

// vdpbf16ps and bfdot take and give subnormal numbers as 0: the error is below 2^-125 per key, and nothing is NaN.
TEST_CASE("bf16 prefill and decode: subnormal inputs count as themselves or as 0") {
  for (int64_t q_len : {50, 4}) {
    AttentionCase c(Bf16Spec(q_len, 40, 6, 3));
    for (int64_t j = 0; j < 40; ++j) {
      for (int64_t k = 0; k < 3; ++k) c.v->Set(0, 0, j, k, 0x1p-130f * static_cast<float>(j % 4));
      c.k->Set(0, 0, j, 5, 0x1p-131f);
    }
    c.q->Set(0, 0, 3, 2, 0x1p-127f);
    Run(c.p);
    for (int64_t i = 0; i < q_len; ++i) CHECK((c.Out(0, 0, i, 0) >= 0.0f && c.Out(0, 0, i, 0) <= 0x1p-127f));
  }
}

}  // namespace fovea_test
