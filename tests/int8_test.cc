// Keys and values in int8 with scales.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

CaseSpec RandomInt8(uint64_t seed, ShapeKind kind) {
  Rng rng(Mix(seed) ^ 0x18);
  uint32_t options = 0;
  for (uint32_t bit = 1; bit & kAllOptions; bit <<= 1) {
    if (rng.Chance(20)) options |= bit;
  }
  const int32_t stage =
      rng.Chance(30) ? static_cast<int32_t>(rng.Int(FOVEA_SCORES_RAW, FOVEA_SCORES_PROBABILITIES)) : FOVEA_SCORES_NONE;
  CaseSpec s = RandomSpec(seed, kind, options, stage, CaseWork(1000000));
  const auto any = [&] { return static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16})); };
  s.q_dtype = any();
  s.out_dtype = any();
  const int64_t which = rng.Int(0, 3);  // both, twice as often
  s.k_dtype = which == 0 ? any() : FOVEA_I8;
  s.v_dtype = which == 1 ? any() : FOVEA_I8;
  return s;
}

void RunInt8(uint64_t built_in_seed, int64_t count, ShapeKind kind, const fovea_exec* exec = nullptr) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(count); ++n) {
    AttentionCase c(RandomInt8(first + static_cast<uint64_t>(n), kind));
    CHECK(RunAndCheck(&c, exec) == "");
  }
}

// A small case, decode or prefill, whose keys and values are int8 with scales of rows.
AttentionCase SmallCase(int64_t q_len, int64_t kv_len = 150) {
  CaseSpec spec;
  spec.num_q_heads = spec.num_kv_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 20;
  spec.v_head_dim = 36;
  spec.k_dtype = spec.v_dtype = FOVEA_I8;
  while (true) {
    AttentionCase c(spec);
    if (c.k_scale && c.v_scale) return c;
    ++spec.seed;
  }
}

}  // namespace

TEST_CASE("int8: random shapes and options, rows' and columns' scales: prefill equals f64") { RunInt8(8000000, 400, ShapeKind::kPrefill); }

TEST_CASE("int8: random shapes and options, rows' and columns' scales: few rows equal f64") { RunInt8(8100000, 400, ShapeKind::kFewRows); }

TEST_CASE("int8: random shapes and options, empty lengths included, BATCH_INVARIANT: equal f64") {
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  RunInt8(8200000, 300, ShapeKind::kAny, &exec);
}

TEST_CASE("int8: by hand: an element is int8 times its row's and its column's scale") {
  for (int64_t q_len : {1, 40}) {
    CaseSpec spec;
    spec.q_len = q_len;
    spec.kv_len = 2;
    spec.head_dim = 2;
    spec.v_head_dim = 1;
    spec.k_dtype = spec.v_dtype = FOVEA_I8;
    AttentionCase c(spec);
    const float k_scale[] = {0.5f, 0.25f}, v_scale[] = {2.0f, 0.125f}, channel[] = {3.0f, -1.0f};
    const int8_t k[] = {1, 2, 4, -8}, v[] = {7, -127};
    c.p.scale = 1.0f;
    c.p.k = fovea_tensor_bhsd(k, FOVEA_I8, 1, 2, 2);
    c.p.v = fovea_tensor_bhsd(v, FOVEA_I8, 1, 2, 1);
    c.p.k_scale = fovea_tensor_bhs(k_scale, FOVEA_F32, 1, 2);
    c.p.v_scale = fovea_tensor_bhs(v_scale, FOVEA_F32, 1, 2);
    c.p.k_channel_scale = fovea_tensor_bhsd(channel, FOVEA_F32, 1, 1, 2);
    for (int64_t i = 0; i < q_len; ++i) c.q->F32(0, 0, i, 0) = 1, c.q->F32(0, 0, i, 1) = 0.5f;
    Run(c.p);
    // Keys (1.5, -1) and (3, 2): scores 1 and 4. Values 14 and -15.875.
    const double p0 = 1 / (1 + std::exp(3.0)), want = 14 * p0 - 15.875 * (1 - p0);
    for (int64_t i = 0; i < q_len; ++i) {
      CHECK(std::fabs(static_cast<double>(c.Out(0, 0, i, 0)) - want) < 1e-5);
      CHECK(std::fabs(static_cast<double>(c.Lse(0, 0, i)) - std::log(std::exp(1.0) + std::exp(4.0))) < 1e-6);
    }
  }
}

TEST_CASE("int8: long caches, split over keys; the same bits from 1, 2, 3 and 8 threads, strided and contiguous") {
  for (int64_t q_len : {1, 3, 30}) {
    std::vector<float> first;
    for (const uint32_t options : {0u, uint32_t{kStrides}}) {
      CaseSpec spec;
      spec.seed = 6;
      spec.num_q_heads = 4;
      spec.num_kv_heads = 2;
      spec.q_len = q_len;
      spec.kv_len = 3000;
      spec.head_dim = 40;
      spec.options = options;
      spec.k_dtype = spec.v_dtype = FOVEA_I8;
      AttentionCase c(spec);
      REQUIRE(c.k_scale);
      REQUIRE(c.v_scale);
      CHECK(RunAndCheck(&c) == "");
      for (int32_t threads : {1, 2, 3, 8}) {
        const fovea_exec exec = Threads(threads);
        c.ClearOutputs();
        Run(c.p, &exec);
        if (first.empty()) first = Outputs(c.p);
        CHECK(BitDifference(first, Outputs(c.p)) == "");
      }
    }
  }
}

TEST_CASE("int8: the same bits alone and in a batch, padded, packed and paged") {
  const uint64_t first = FirstSeed(8300000);
  for (int64_t n = 0; n < CaseCount(90); ++n) {
    CaseSpec spec = RandomInt8(first + static_cast<uint64_t>(n), ShapeKind::kAny);
    spec.scores_stage = FOVEA_SCORES_NONE;
    const AttentionCase c(spec);
    INFO(Repeat(spec.seed, c.Describe()));
    Run(c.p);
    for (int64_t b = 0; b < spec.batch; ++b) {
      const std::vector<float> together = Outputs(c.p, b);
      Run(AloneParams(c.p, b));
      CHECK(BitDifference(together, Outputs(c.p, b)) == "");
    }
  }
}

TEST_CASE("int8: NaN and Inf in the scales of forbidden keys reach nothing, of permitted ones the rows that attend") {
  for (int64_t q_len : {1, 4, 60}) {
    for (const float bad : {std::nanf(""), kInf, -kInf}) {
      for (const bool in_v : {false, true}) {
        AttentionCase c = SmallCase(q_len);
        CAPTURE(q_len);
        CAPTURE(bad);
        CAPTURE(in_v);
        // Key 70 is permitted to row 0 of head 1 only.
        c.SetMask([](int64_t, int64_t h, int64_t i, int64_t j) { return j != 70 || (h == 1 && i == 0); });
        Run(c.p);
        const std::vector<float> want = Outputs(c.p);
        for (int64_t h = 0; h < 2; ++h) (in_v ? c.v_scale : c.k_scale)->F32(0, h, 70) = bad;
        Run(c.p);
        const std::vector<float> got = Outputs(c.p);
        const size_t row = want.size() / static_cast<size_t>(2 * q_len);
        for (size_t n = 0; n < want.size(); ++n) {
          const size_t h = n / row / static_cast<size_t>(q_len), i = n / row % static_cast<size_t>(q_len);
          if (h != 1 || i != 0) CHECK(got[n] == want[n]);
        }
        const size_t at = row * static_cast<size_t>(q_len);
        if (in_v || std::isnan(bad)) CHECK(!std::isfinite(got[at]));
      }
    }
  }
}

TEST_CASE("int8: a value near the top of the range by its scale does not overflow where the output does not") {
  for (int64_t q_len : {1, 40}) {
    AttentionCase c = SmallCase(q_len);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t j = 0; j < 150; ++j) c.v_scale->F32(0, h, j) = 0x1p120f;
    }
    CHECK(RunAndCheck(&c) == "");
    CHECK(std::isfinite(c.Out(0, 0, 0, 0)));
  }
}

TEST_CASE("int8: k and v with head stride 0, but a scale for each head, are so many kv heads") {
  for (int64_t q_len : {1, 40}) {
    AttentionCase c = SmallCase(q_len);
    c.p.k.stride_head = c.p.v.stride_head = 0;
    CHECK(RunAndCheck(&c) == "");
    c.p.k_scale.stride_head = c.p.v_scale.stride_head = 0;
    c.p.k_channel_scale.stride_head = 0;
    CHECK(RunAndCheck(&c) == "");
  }
}

// Few rows take Q K^T in integers where the CPU can (decode_i8): q is rounded to fixed point, by up to max |q scaled| 2^-23. With one key LSE is
// the score.
TEST_CASE("int8: a score of few rows is within f32's rounding and that of q to fixed point of f64, q spiky or not, any head_dim") {
  for (int64_t head_dim : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 128, 200, 1000}) {
    for (const float spike : {1.0f, 1.992f, 1e5f, 1e30f, 1e-20f}) {
      for (const bool spike_meets_zero : {false, true}) {
        CaseSpec spec;
        spec.seed = static_cast<uint64_t>(head_dim);
        spec.num_q_heads = 7;
        spec.q_len = spec.kv_len = 1;
        spec.head_dim = head_dim;
        spec.k_dtype = FOVEA_I8;
        AttentionCase c(spec);
        c.p.k_scale = c.p.k_channel_scale = fovea_tensor{};
        const float channel = 0.75f, k_scale = 0.01f;
        const std::vector<float> channels(static_cast<size_t>(head_dim), channel);
        c.p.k_scale = fovea_tensor_bhs(&k_scale, FOVEA_F32, 1, 1);
        c.p.k_channel_scale = fovea_tensor_bhsd(channels.data(), FOVEA_F32, 1, 1, head_dim);
        const int64_t at = head_dim / 2;
        for (int64_t h = 0; h < 7; ++h) c.q->F32(0, h, 0, at) = h % 2 ? -spike : spike;
        if (spike_meets_zero) c.k->Set(0, 0, 0, at, 0);
        Run(c.p);
        for (int64_t h = 0; h < 7; ++h) {
          double want = 0, size = 0, k_size = 0, largest = 0;
          for (int64_t i = 0; i < head_dim; ++i) {
            const double scale = static_cast<double>(channel * k_scale) / std::sqrt(static_cast<double>(head_dim));
            const double q = static_cast<double>(c.q->F32(0, h, 0, i)) * scale;
            const double k = static_cast<double>(c.k->Get(0, 0, 0, i));
            want += q * k, size += std::fabs(q * k), k_size += std::fabs(k), largest = std::max(largest, std::fabs(q));
          }
          const double walk = std::max(1.0, std::sqrt(static_cast<double>(head_dim)) / 4);
          CAPTURE(head_dim);
          CAPTURE(spike);
          CAPTURE(h);
          CHECK(std::fabs(static_cast<double>(c.Lse(0, h, 0)) - want) <= 0x1p-24 * (8 * walk * size + 2 * largest * k_size) + 1e-30);
        }
      }
    }
  }
}

TEST_CASE("int8: the largest sums of a dot product, and a head_dim beyond them") {
  for (int64_t head_dim : {65535, 65536, 65537, 70001}) {
    CaseSpec spec;
    spec.num_q_heads = 2;
    spec.kv_len = 3;
    spec.head_dim = head_dim;
    spec.v_head_dim = 4;
    spec.k_dtype = FOVEA_I8;
    AttentionCase c(spec);
    const float k_scale[] = {1e-4f, 1e-4f, 1e-4f};
    c.p.k_scale = fovea_tensor_bhs(k_scale, FOVEA_F32, 1, 3);
    c.p.k_channel_scale = fovea_tensor{};
    for (int64_t i = 0; i < head_dim; ++i) {
      c.q->F32(0, 0, 0, i) = 1.99f;
      c.q->F32(0, 1, 0, i) = -1.0f;
      c.k->Set(0, 0, 0, i, 127);
      c.k->Set(0, 0, 1, i, -128);
      c.k->Set(0, 0, 2, i, static_cast<float>(i % 256 - 128));
    }
    Run(c.p);
    // f32 sums of so many products of one sign leave the bound behind; an overflow would be off by millions of it.
    const fovea::AttentionCheck check = fovea::CheckAttention(c.p);
    CHECK(check.out.ratio < 1000);
    CHECK(check.lse.ratio < 1000);
  }
}

TEST_CASE("int8: a row of q that fixed point cannot hold is as ever, and the rows beside it keep their bits") {
  for (const float bad : {std::nanf(""), kInf, -kInf, 0.0f, 1e-35f, 1e-44f}) {
    CaseSpec spec;
    spec.num_q_heads = 6;
    spec.kv_len = 200;
    spec.head_dim = 24;
    spec.k_dtype = spec.v_dtype = FOVEA_I8;
    AttentionCase c(spec);
    Run(c.p);
    const std::vector<float> before = Outputs(c.p);
    for (int64_t i = 0; i < 24; ++i) c.q->F32(0, 2, 0, i) = bad;
    CHECK(RunAndCheck(&c) == "");
    const std::vector<float> after = Outputs(c.p);
    const size_t row = before.size() / 6;
    int64_t changed = 0;
    for (size_t n = 0; n < before.size(); ++n) changed += n / row != 2 && before[n] != after[n];
    CHECK(changed == 0);
    CHECK(std::isnan(after[2 * row]) == !std::isfinite(bad));
  }
}

TEST_CASE("int8: describe names the conversions and counts bytes and scales") {
  AttentionCase c = SmallCase(30, 100);
  c.p.k_channel_scale = fovea_tensor{};
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  REQUIRE(fovea_attention_describe(&c.p, nullptr, &info) == FOVEA_OK);
  CHECK(info.conversions == std::string("k I8, v I8"));
  CHECK(info.bytes == 2.0 * 4 * 30 * (20 + 36) + 2.0 * 100 * (20 + 36 + 8));
  for (const int64_t q_len : {1, 2}) {
    AttentionCase few = SmallCase(q_len);
    REQUIRE(fovea_attention_describe(&few.p, nullptr, &info) == FOVEA_OK);
    const bool has_vnni = target_name == "AVX3_BF16" || target_name == "AVX3_DL";
    if (target_name == "AVX3_ZEN4" || target_name == "AVX3_SPR") continue;
    CHECK(info.kernels == std::string(has_vnni && q_len > 1 ? "decode_i8" : "decode_f32"));
  }
}

TEST_CASE("int8: append, then attention: within the quantization's error of the same numbers in f32") {
  constexpr int64_t kLen = 300, kDim = 64;
  for (int64_t q_len : {1, 33}) {
    CaseSpec spec;
    spec.q_len = q_len;
    spec.kv_len = kLen;
    spec.head_dim = kDim;
    AttentionCase c(spec);
    Run(c.p);
    const std::vector<float> want = Outputs(c.p);
    std::vector<int8_t> k(kLen * kDim), v(kLen * kDim);
    std::vector<float> k_scale(kLen), v_scale(kLen);
    fovea_kv_append_params a;
    fovea_kv_append_params_init(&a, sizeof a);
    a.batch = a.num_kv_heads = 1;
    a.q_len = a.capacity = kLen;
    a.head_dim = kDim;
    a.k_new = c.p.k;
    a.v_new = c.p.v;
    a.k_cache = c.p.k = fovea_tensor_bhsd(k.data(), FOVEA_I8, 1, kLen, kDim);
    a.v_cache = c.p.v = fovea_tensor_bhsd(v.data(), FOVEA_I8, 1, kLen, kDim);
    a.k_scale = c.p.k_scale = fovea_tensor_bhs(k_scale.data(), FOVEA_F32, 1, kLen);
    a.v_scale = c.p.v_scale = fovea_tensor_bhs(v_scale.data(), FOVEA_F32, 1, kLen);
    REQUIRE(fovea_kv_append(&a, nullptr) == FOVEA_OK);
    CHECK(RunAndCheck(&c) == "");
    const std::vector<float> got = Outputs(c.p);
    float largest_step = 0, worst = 0;
    for (const float s : v_scale) largest_step = std::max(largest_step, s);
    for (size_t n = 0; n < got.size(); ++n) worst = std::max(worst, std::fabs(got[n] - want[n]));
    CHECK(worst < largest_step);
    CHECK(worst > 0);
  }
}

}  // namespace fovea_test
