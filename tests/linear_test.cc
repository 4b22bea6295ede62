// fovea_linear: y = x W^T + bias against f64, and its contract.
#include <doctest/doctest.h>

#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"
#include "tests/harness/fp_control.h"

namespace fovea_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct LinearSpec {
  uint64_t seed = 1;
  int64_t tokens = 1, in = 1, out = 1;
  bool bias = true;
  bool strides = false;   // gaps, negative row strides, and 0 for some inputs
  bool positive = false;  // all terms of one sign: rounding errors add up
  fovea_dtype x_dtype = FOVEA_F32, w_dtype = FOVEA_F32, bias_dtype = FOVEA_F32, y_dtype = FOVEA_F32;
  uint64_t first_token = 0;  // x begins at this token of the seed's sequence
};

// One call with all its memory guarded.
struct LinearCase {
  explicit LinearCase(const LinearSpec& s) : spec(s) {
    Rng rng(s.seed * 7919);
    const auto make = [&](fovea_dtype dtype, int64_t rows, int64_t cols, bool input) {
      const Shape shape{1, 1, rows, cols};
      const Guard guard = rng.Chance(50) ? Guard::kAfter : Guard::kBefore;
      return std::make_unique<TestTensor>(
          dtype, shape, s.strides ? RandomStrides(&rng, shape, false, input) : DenseStrides(shape), guard);
    };
    x = make(s.x_dtype, s.tokens, s.in, true);
    w = make(s.w_dtype, s.out, s.in, true);
    y = make(s.y_dtype, s.tokens, s.out, false);
    bias = make(s.bias_dtype, 1, s.out, true);
    fovea_linear_params_init(&p, sizeof p);
    p.tokens = s.tokens, p.in_features = s.in, p.out_features = s.out;
    p.x = x->view(), p.w = w->view(), p.y = y->view();
    if (s.bias) p.bias = bias->view();
    Fill(x.get(), 1, s.first_token);
    Fill(w.get(), 2, 0);
    Fill(bias.get(), 3, 0);
  }

  void Fill(TestTensor* t, uint64_t tag, uint64_t first) {
    for (int64_t i = 0; i < t->shape().rows; ++i) {
      for (int64_t c = 0; c < t->shape().cols; ++c) {
        const float value = NormalFromBits(ElementBits(spec.seed, tag, 0, 0, i + static_cast<int64_t>(first), c));
        t->Set(0, 0, i, c, spec.positive ? std::fabs(value) : value);
      }
    }
  }

  fovea_status Run(const fovea_exec* exec = nullptr) const { return fovea_linear(&p, exec); }

  std::vector<float> Y() const {
    std::vector<float> all;
    for (int64_t t = 0; t < spec.tokens; ++t) {
      for (int64_t o = 0; o < spec.out; ++o) all.push_back(y->Get(0, 0, t, o));
    }
    return all;
  }

  // "" or the first element beyond max(4 u w D, 2 x the error of the naive f32 sum), D being the largest sum of
  // magnitudes in the token's row of y, and w as in lib/NUMERICS.md: no chain of roundings is longer than 128. Then y's
  // own rounding.
  std::string Compare() const {
    struct Element {
      double want = 0;
      float naive = 0;
    };
    const double walk = std::max(1.0, std::sqrt(static_cast<double>(std::min<int64_t>(spec.in, 128))) / 4);
    std::vector<Element> row(static_cast<size_t>(spec.out));
    for (int64_t t = 0; t < spec.tokens; ++t) {
      double largest = 0;
      for (int64_t o = 0; o < spec.out; ++o) {
        Element e;
        double magnitude = 0;
        const auto add = [&](float a, float b) {
          const double product = static_cast<double>(a) * static_cast<double>(b);
          e.want += product;
          e.naive += a * b;
          magnitude += std::fabs(product);
        };
        for (int64_t i = 0; i < spec.in; ++i) add(x->Get(0, 0, t, i), w->Get(0, 0, o, i));
        if (spec.bias) add(bias->Get(0, 0, 0, o), 1.0f);
        largest = std::max(largest, magnitude);
        row[static_cast<size_t>(o)] = e;
      }
      for (int64_t o = 0; o < spec.out; ++o) {
        const Element& e = row[static_cast<size_t>(o)];
        double bound = std::max(4 * 0x1p-24 * walk * largest, 2 * std::fabs(static_cast<double>(e.naive) - e.want));
        const double error = std::fabs(static_cast<double>(y->Get(0, 0, t, o)) - e.want);
        const double rounding = spec.y_dtype == FOVEA_BF16 ? 0x1p-8 : spec.y_dtype == FOVEA_F16 ? 0x1p-11 : 0.0;
        bound += rounding * (std::fabs(e.want) + bound) + (spec.y_dtype == FOVEA_F16 ? 0x1p-25 : 0.0);
        if (!(error <= bound)) {
          return "token " + std::to_string(t) + ", output " + std::to_string(o) + " is " +
                 std::to_string(y->Get(0, 0, t, o)) + ", should be " + std::to_string(e.want) + ", off by " +
                 std::to_string(error / bound) + " times the bound";
        }
      }
    }
    return "";
  }

  // Runs with threads and workspace drawn from the seed; "" or what is wrong.
  std::string RunAndCompare(uint32_t flags) {
    Rng rng(spec.seed * 104729);
    fovea_exec exec = Threads(static_cast<int32_t>(rng.Pick({1, 1, 2, 3})), flags);
    size_t bytes = 0;
    if (fovea_linear_workspace_size(&p, &exec, &bytes) != FOVEA_OK) return fovea_last_error();
    const GuardedBuffer workspace = DrawWorkspace(&rng, bytes, &exec);
    for (TestTensor* t : {x.get(), w.get(), bias.get(), y.get()}) t->Snapshot();
    if (Run(&exec) != FOVEA_OK) return fovea_last_error();
    for (const TestTensor* t : {x.get(), w.get(), bias.get()}) {
      if (t->Changed() != "") return "an input changed: " + t->Changed();
    }
    const std::string changed = y->Changed([](int64_t, int64_t, int64_t) { return true; });
    return changed != "" ? "y's gaps: " + changed : Compare();
  }

  LinearSpec spec;
  fovea_linear_params p;
  std::unique_ptr<TestTensor> x, w, bias, y;
};

std::string Describe(const LinearSpec& s, uint32_t flags) {
  return "tokens " + std::to_string(s.tokens) + ", in " + std::to_string(s.in) + ", out " + std::to_string(s.out) +
         ", " + fovea_dtype_str(s.x_dtype) + " x, " + fovea_dtype_str(s.w_dtype) + " w, " +
         fovea_dtype_str(s.bias_dtype) + " bias, " + fovea_dtype_str(s.y_dtype) + " y" +
         (s.strides ? ", strides" : "") + (s.bias ? ", bias" : "") + (s.positive ? ", positive" : "") +
         (flags ? ", FOVEA_BATCH_INVARIANT" : "");
}

LinearSpec Spec(int64_t tokens, int64_t in, int64_t out, uint64_t seed = 1) {
  LinearSpec s;
  s.seed = seed, s.tokens = tokens, s.in = in, s.out = out;
  return s;
}

// Both kernels, and the tile with few tokens.
struct Kind {
  int64_t tokens;
  uint32_t flags;
};
constexpr Kind kKinds[] = {{3, 0}, {8, 0}, {3, FOVEA_BATCH_INVARIANT}, {61, 0}};

}  // namespace

TEST_CASE(
    "linear: random shapes, any strides and storage types, equal f64 within the bound; gaps, inputs and guards stay") {
  const uint64_t first = FirstSeed(70000);
  for (int64_t n = 0; n < CaseCount(300); ++n) {
    LinearSpec s;
    s.seed = first + static_cast<uint64_t>(n);
    Rng rng(s.seed);
    s.tokens = rng.Pick({1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 33, 47, 48, 49, 65, 97, 145});
    s.in = rng.Pick({1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257, 511, 513, 770, 1000});
    s.out = rng.Pick({1, 2, 3, 4, 5, 7, 8, 9, 11, 16, 17, 31, 64, 65, 127, 129, 255, 256, 257, 300});
    while (s.tokens * s.in * s.out > CaseWork(2000000)) (s.in > s.out ? s.in : s.out) /= 2;
    s.bias = rng.Chance(60), s.strides = rng.Chance(60), s.positive = rng.Chance(30);
    for (fovea_dtype* dtype : {&s.x_dtype, &s.w_dtype, &s.bias_dtype, &s.y_dtype}) {
      if (rng.Chance(40)) *dtype = rng.Chance(50) ? FOVEA_BF16 : FOVEA_F16;
    }
    const uint32_t flags = rng.Chance(40) ? FOVEA_BATCH_INVARIANT : 0;
    INFO(Repeat(s.seed, Describe(s, flags)));
    CHECK(LinearCase(s).RunAndCompare(flags) == "");
  }
}

TEST_CASE("linear: every mix of storage types has the bits of the same numbers in f32, y rounded once") {
  const fovea_dtype types[] = {FOVEA_F32, FOVEA_BF16, FOVEA_F16};
  for (const Kind& kind : kKinds) {
    for (int mix = 0; mix < 81; ++mix) {
      LinearSpec s = Spec(kind.tokens, 37, 19, 81);
      s.x_dtype = types[mix % 3], s.w_dtype = types[mix / 3 % 3], s.bias_dtype = types[mix / 9 % 3],
      s.y_dtype = types[mix / 27];
      INFO(Describe(s, kind.flags));
      LinearCase c(s);
      const fovea_exec exec = Threads(1, kind.flags);
      REQUIRE(c.Run(&exec) == FOVEA_OK);
      const auto x = c.x->As(FOVEA_F32), w = c.w->As(FOVEA_F32), bias = c.bias->As(FOVEA_F32), y = c.y->As(FOVEA_F32);
      fovea_linear_params p = c.p;
      p.x = x->view(), p.w = w->view(), p.bias = bias->view(), p.y = y->view();
      REQUIRE(fovea_linear(&p, &exec) == FOVEA_OK);
      const auto expected = y->As(s.y_dtype);
      std::vector<float> want;
      for (int64_t t = 0; t < s.tokens; ++t) {
        for (int64_t o = 0; o < s.out; ++o) want.push_back(expected->Get(0, 0, t, o));
      }
      CHECK(BitDifference(want, c.Y()) == "");
    }
  }
}

TEST_CASE("linear: long sums, and all of one sign") {
  for (const Kind& kind : kKinds) {
    for (const bool positive : {false, true}) {
      LinearSpec s = Spec(kind.tokens, 4099, 9, 5);
      s.positive = positive;
      INFO(Describe(s, kind.flags));
      CHECK(LinearCase(s).RunAndCompare(kind.flags) == "");
    }
  }
}

TEST_CASE("linear: more tokens than are packed at a time, more outputs than a task's") {
  for (const int64_t tokens : {2047, 2100, 4200}) {
    const LinearSpec s = Spec(tokens, 3, 5, 9);
    INFO(Describe(s, 0));
    CHECK(LinearCase(s).RunAndCompare(0) == "");
  }
  CHECK(LinearCase(Spec(10, 3, 2500, 10)).RunAndCompare(0) == "");
  CHECK(LinearCase(Spec(2, 3, 2500, 11)).RunAndCompare(0) == "");
}

TEST_CASE("linear by hand: PyTorch's layout, W [out][in]") {
  const float x[] = {1, 2, 3, -1, 0, 1}, w[] = {1, 0, 0, 0, 10, 100}, bias[] = {0.5f, -1};
  float y[4];
  fovea_linear_params p;
  REQUIRE(fovea_linear_params_init(&p, sizeof p) == FOVEA_OK);
  p.tokens = 2, p.in_features = 3, p.out_features = 2;
  p.x = fovea_tensor_bhsd(x, FOVEA_F32, 1, 2, 3);
  p.w = fovea_tensor_bhsd(w, FOVEA_F32, 1, 2, 3);
  p.bias = fovea_tensor_bhsd(bias, FOVEA_F32, 1, 1, 2);
  p.y = fovea_tensor_bhsd(y, FOVEA_F32, 1, 2, 2);
  REQUIRE(fovea_linear(&p, nullptr) == FOVEA_OK);
  CHECK(y[0] == 1.5f);
  CHECK(y[1] == 319.0f);
  CHECK(y[2] == -0.5f);
  CHECK(y[3] == 99.0f);
}

TEST_CASE("linear: same bits from 1, 2, 3 and 8 threads, any executor, any strides, any workspace") {
  for (const Kind& kind : kKinds) {
    for (const int64_t out : {37, 2100}) {  // the second is enough work for a pool
      const LinearSpec s = Spec(kind.tokens, 611, out, 21);
      INFO(Describe(s, kind.flags));
      LinearCase c(s);
      const fovea_exec one = Threads(1, kind.flags);
      REQUIRE(c.Run(&one) == FOVEA_OK);
      const std::vector<float> expected = c.Y();
      constexpr int32_t kThreads[] = {2, 3, 8};
      for (int64_t n = 0; n < Portion(12, 4); ++n) {  // 3 and 4 have no common divisor: 4 are each executor and each number of threads
        LinearCase again(s);
        fovea_exec exec = Threads(kThreads[n % 3], kind.flags);
        exec.parallel_for = kExecutors[n % 4];
        REQUIRE(again.Run(&exec) == FOVEA_OK);
        CHECK(BitDifference(expected, again.Y()) == "");
      }
      LinearCase strided(s);
      const Shape shape{1, 1, s.out, s.in};
      TestTensor far(FOVEA_F32, shape, {0, 0, -1024, 1}, Guard::kBefore);  // a multiple of 4 KB
      for (int64_t i = 0; i < s.out; ++i)
        std::memcpy(&far.F32(0, 0, i), &c.w->F32(0, 0, i), static_cast<size_t>(s.in) * 4);
      strided.p.w = far.view();
      REQUIRE(strided.Run(&one) == FOVEA_OK);
      CHECK(BitDifference(expected, strided.Y()) == "");
    }
  }
}

TEST_CASE("linear BATCH_INVARIANT: a token's bits do not depend on how many share the call") {
  const LinearSpec whole = Spec(150, 530, 75, 31);
  LinearCase all(whole);
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  REQUIRE(all.Run(&exec) == FOVEA_OK);
  const std::vector<float> expected = all.Y();
  for (const int64_t tokens : {1, 2, 7, 8, 9, 20, 49, 100}) {
    for (const int64_t first : {0, 1, 50}) {
      LinearSpec s = whole;
      s.tokens = tokens, s.first_token = static_cast<uint64_t>(first);
      LinearCase some(s);
      INFO("tokens ", tokens, " from ", first);
      REQUIRE(some.Run(&exec) == FOVEA_OK);
      const auto begin = expected.begin() + first * whole.out;
      CHECK(BitDifference(std::vector<float>(begin, begin + tokens * whole.out), some.Y()) == "");
    }
  }
}

TEST_CASE("linear without the flag: up to 8 tokens have the same bits however many they are, and so have more than 8") {
  for (const bool few : {true, false}) {
    const LinearSpec whole = Spec(few ? 8 : 120, 530, 75, 32);
    LinearCase all(whole);
    REQUIRE(all.Run() == FOVEA_OK);
    const std::vector<float> expected = all.Y();
    for (const int64_t tokens :
         few ? std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7} : std::vector<int64_t>{9, 16, 33, 100}) {
      LinearSpec s = whole;
      s.tokens = tokens;
      LinearCase some(s);
      REQUIRE(some.Run() == FOVEA_OK);
      CHECK(BitDifference(std::vector<float>(expected.begin(), expected.begin() + tokens * whole.out), some.Y()) == "");
    }
  }
}

TEST_CASE("linear: NaN and Inf in a token reach its row of y, in a row of W its column, and nothing else") {
  for (const Kind& kind : kKinds) {
    const LinearSpec s = Spec(kind.tokens, 300, 21, 41);
    LinearCase clean(s);
    const fovea_exec exec = Threads(1, kind.flags);
    REQUIRE(clean.Run(&exec) == FOVEA_OK);
    for (const float bad : {kNan, kInf}) {
      INFO(Describe(s, kind.flags), ", ", bad);
      LinearCase c(s);
      c.x->F32(0, 0, 1, 299) = bad;
      c.w->F32(0, 0, 20, 0) = bad;
      REQUIRE(c.Run(&exec) == FOVEA_OK);
      for (int64_t t = 0; t < s.tokens; ++t) {
        for (int64_t o = 0; o < s.out; ++o) {
          const bool hit = t == 1 || o == 20;
          CHECK(std::isfinite(c.y->F32(0, 0, t, o)) == !hit);
          if (!hit) CHECK(c.y->F32(0, 0, t, o) == clean.y->F32(0, 0, t, o));
        }
      }
    }
  }
}

TEST_CASE("linear: caller's rounding mode and flush-to-zero change no bit, and are restored") {
#ifdef FOVEA_TEST_FP_CONTROL
  for (const Kind& kind : kKinds) {
    for (const int32_t threads : {1, 3}) {
      LinearCase c(Spec(kind.tokens, 700, 900, 51));
      for (int64_t i = 0; i < 700; ++i) c.w->F32(0, 0, 5, i) *= 1e-39f, c.x->F32(0, 0, 1, i) *= 1e-39f;
      c.bias->F32(0, 0, 0, 5) = 0;
      const fovea_exec exec = Threads(threads, kind.flags);
      REQUIRE(c.Run(&exec) == FOVEA_OK);
      const std::vector<float> expected = c.Y();
      const uint32_t before = FpControl();
      for (const int rounding : {FE_TONEAREST, FE_UPWARD, FE_TOWARDZERO}) {
        std::fesetround(rounding);
        SetFpControl(FpControl() | kFlushAll);
        const uint32_t set = FpControl();
        const fovea_status status = c.Run(&exec);
        const uint32_t after = FpControl();
        SetFpControl(before);
        CHECK(status == FOVEA_OK);
        CHECK(after == set);
        CHECK(BitDifference(expected, c.Y()) == "");
      }
    }
  }
#endif
}

TEST_CASE("linear: subnormal weights and tokens are numbers") {
  for (const Kind& kind : kKinds) {
    LinearCase c(Spec(kind.tokens, 2, 3, 52));
    for (int64_t o = 0; o < 3; ++o) c.bias->F32(0, 0, 0, o) = 0;
    for (int64_t t = 0; t < kind.tokens; ++t) c.x->F32(0, 0, t, 0) = 1e-40f, c.x->F32(0, 0, t, 1) = 0;
    for (int64_t o = 0; o < 3; ++o) c.w->F32(0, 0, o, 0) = static_cast<float>(o + 1);
    const fovea_exec exec = Threads(1, kind.flags);
    REQUIRE(c.Run(&exec) == FOVEA_OK);
    for (int64_t t = 0; t < kind.tokens; ++t) {
      for (int64_t o = 0; o < 3; ++o) CHECK(c.y->F32(0, 0, t, o) == 1e-40f * static_cast<float>(o + 1));
    }
  }
}

TEST_CASE("linear of no tokens: NULL data is fine") {
  LinearCase c(Spec(1, 3, 2));
  c.p.tokens = 0;
  c.p.x.data = c.p.y.data = nullptr;
  CHECK(c.Run() == FOVEA_OK);
}

TEST_CASE("linear: workspace_size is monotone in tokens; a smaller workspace is refused, nothing written") {
  for (const uint32_t flags : {uint32_t{0}, uint32_t{FOVEA_BATCH_INVARIANT}}) {
    for (const int32_t threads : {1, 5}) {
      const fovea_exec exec = Threads(threads, flags);
      size_t last = 0;
      for (const int64_t tokens : {1, 2, 7, 8, 9, 10, 16, 17, 40, 41, 100, 1000, 2047, 2049, 3000, 100000}) {
        LinearCase c(Spec(1, 700, 900));
        c.p.tokens = tokens;
        c.p.x.data = c.p.y.data = c.p.w.data = nullptr;  // not needed
        size_t bytes = 0;
        REQUIRE(fovea_linear_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
        CHECK(bytes >= last);
        last = bytes;
      }
    }
  }
  LinearCase c(Spec(9, 30, 20));
  fovea_exec exec = Threads(1);
  size_t bytes = 0;
  REQUIRE(fovea_linear_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  exec.workspace = memory.data();
  exec.workspace_bytes = bytes - 1;
  c.y->Snapshot();
  CHECK(c.Run(&exec) == FOVEA_ERR_WORKSPACE_TOO_SMALL);
  CHECK(std::strstr(fovea_last_error(), "workspace_bytes") != nullptr);
  CHECK(c.y->Changed() == "");
}

TEST_CASE("linear: bad arguments are refused by name, nothing written") {
  constexpr int64_t kHuge = int64_t{1} << 40;
  using P = fovea_linear_params;
  const struct {
    const char* text;
    fovea_status status;
    void (*change)(P* p);
  } cases[] = {
      {"params.struct_size", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->struct_size = 0; }},
      {"params.struct_size", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->struct_size = sizeof(P) - 1; }},
      {"tokens = -1", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->tokens = -1; }},
      {"tokens", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->tokens = kHuge; }},
      {"in_features = 0", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->in_features = 0; }},
      {"in_features", FOVEA_ERR_UNSUPPORTED, [](P* p) { p->in_features = kHuge; }},
      {"out_features = -3", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->out_features = -3; }},
      {"out_features", FOVEA_ERR_UNSUPPORTED, [](P* p) { p->out_features = kHuge; }},
      {"in_features * out_features", FOVEA_ERR_INVALID_ARGUMENT,
       [](P* p) { p->in_features = p->out_features = (int64_t{1} << 30) - 1; }},
      {"x.dtype = NONE", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->x.dtype = FOVEA_DTYPE_NONE; }},
      {"w.dtype = I8", FOVEA_ERR_UNSUPPORTED, [](P* p) { p->w.dtype = FOVEA_I8; }},
      {"y.dtype = 77", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->y.dtype = 77; }},
      {"bias.dtype = U8", FOVEA_ERR_UNSUPPORTED, [](P* p) { p->bias.dtype = FOVEA_U8; }},
      {"bias.dtype = NONE", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->bias.dtype = FOVEA_DTYPE_NONE; }},
      {"x.data = NULL", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->x.data = nullptr; }},
      {"w.data = NULL", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->w.data = nullptr; }},
      {"y.data = NULL", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->y.data = nullptr; }},
      {"bias.data = NULL", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->bias.data = nullptr; }},
      {"w.data = 0x", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->w.data = static_cast<char*>(p->w.data) + 1; }},
      {"w.stride_col", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->w.stride_col = 2; }},
      {"x.stride_row", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->x.stride_row = std::numeric_limits<int64_t>::max(); }},
      {"w.reserved", FOVEA_ERR_UNSUPPORTED, [](P* p) { p->w.reserved = 1; }},
      {"y.stride_row = 0", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->y.stride_row = 0; }},
      {"y overlaps itself", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->y.stride_row = 1; }},
      {"y overlaps x", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->x = p->y; }},
      {"y overlaps w", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->w = p->y, p->w.stride_row = 0; }},
      {"y overlaps bias", FOVEA_ERR_INVALID_ARGUMENT, [](P* p) { p->bias = p->y; }},
  };
  for (const auto& refused : cases) {
    INFO(refused.text);
    LinearCase c(Spec(4, 5, 6));
    c.y->Snapshot();
    refused.change(&c.p);
    char text[200] = "";
    fovea_exec exec = Threads(1);
    exec.error_text = text;
    exec.error_capacity = sizeof text;
    CHECK(c.Run(&exec) == refused.status);
    CHECK(std::strncmp(fovea_last_error(), refused.text, std::strlen(refused.text)) == 0);
    CHECK(std::string(text) == fovea_last_error());
    CHECK(c.y->Changed() == "");
  }
  LinearCase c(Spec(4, 5, 6));
  CHECK(fovea_linear(nullptr, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_linear_workspace_size(&c.p, nullptr, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(fovea_linear_params_init(nullptr, sizeof c.p) == FOVEA_ERR_INVALID_ARGUMENT);
  fovea_exec exec = Threads(-1);
  CHECK(c.Run(&exec) == FOVEA_ERR_INVALID_ARGUMENT);
  // Inputs may share memory.
  c.p.out_features = 4;
  c.p.x = c.p.w;
  CHECK(c.Run() == FOVEA_OK);
}

}  // namespace fovea_test
