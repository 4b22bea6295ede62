// fovea.hpp: views, initialization, and a status turned into an exception.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "fovea/fovea.hpp"

namespace {

// One query that sees two keys with equal scores: out is the mean of the values, lse is log(2).
struct Small {
  std::vector<float> q{0, 0}, k{1, 2, 3, 4}, v{1, 10, 3, 30}, out{7, 7}, lse{7};
  fovea::AttentionParams p;

  Small() {
    p.batch = p.num_q_heads = p.num_kv_heads = p.q_len = 1;
    p.kv_len = p.head_dim = 2;
    p.q = fovea::bhsd(q, 1, 1, 1, 2);
    p.k = fovea::bhsd(k, 1, 1, 2, 2);
    p.v = fovea::bshd(v, 1, 1, 2, 2);
    p.out = fovea::bhsd(out, 1, 1, 1, 2);
    p.lse = fovea::bhs(lse, 1, 1, 1);
  }
};

template <typename Call>
fovea_status StatusOf(const Call& call, const std::string& part) {
  try {
    call();
  } catch (const fovea::Error& error) {
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
    return error.status();
  }
  return FOVEA_OK;
}

static_assert(std::is_base_of_v<std::runtime_error, fovea::Error>);
static_assert(fovea::dtype_of<const float>() == FOVEA_F32);
static_assert(fovea::dtype_of<bool>() == FOVEA_U8);
static_assert(fovea::dtype_of<uint8_t>() == FOVEA_U8);
static_assert(fovea::dtype_of<int8_t>() == FOVEA_I8);
static_assert(fovea::dtype_of<double>() == FOVEA_F64);

TEST_CASE("hpp: attention_forward, with and without a workspace") {
  Small s;
  fovea::attention_forward(s.p);
  CHECK(s.out == std::vector<float>{2, 20});
  CHECK(s.lse[0] == doctest::Approx(std::log(2.0)));

  Small t;
  fovea::Exec exec;
  exec.num_threads = 1;
  std::vector<unsigned char> workspace(fovea::workspace_size(t.p, &exec) + 1);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  fovea::attention_forward(t.p, &exec);
  CHECK(t.out == s.out);
}

TEST_CASE("hpp: merge joins two halves of the keys") {
  Small whole;
  whole.q = {1, -1};
  whole.k = {1, 2, 3, 5};
  whole.p.q = fovea::bhsd(whole.q, 1, 1, 1, 2);
  whole.p.k = fovea::bhsd(whole.k, 1, 1, 2, 2);
  fovea::attention_forward(whole.p);
  std::vector<fovea_tensor> outs, lses;
  std::vector<float> out_parts(4), lse_parts(2);
  for (int i = 0; i < 2; ++i) {
    fovea::AttentionParams p = whole.p;
    p.kv_len = 1;
    p.k = fovea::bhsd(whole.k.data() + 2 * i, 1, 1, 2);
    p.v = fovea::bhsd(whole.v.data() + 2 * i, 1, 1, 2);
    p.out = fovea::bhsd(out_parts.data() + 2 * i, 1, 1, 2);
    p.lse = fovea::bhs(lse_parts.data() + i, 1, 1);
    fovea::attention_forward(p);
    outs.push_back(p.out);
    lses.push_back(p.lse);
  }
  std::array<float, 2> out{};
  float lse[1] = {};
  const fovea_tensor lse_view = fovea::bhs(lse, 1, 1, 1);
  fovea::merge(outs, lses, 1, 1, 1, 2, fovea::bhsd(out, 1, 1, 1, 2), &lse_view);
  CHECK(out[0] == doctest::Approx(whole.out[0]));
  CHECK(out[1] == doctest::Approx(whole.out[1]));
  CHECK(lse[0] == doctest::Approx(whole.lse[0]));
}

TEST_CASE("hpp: describe names the target that runs") {
  const Small s;
  const fovea_attention_info info = fovea::describe(s.p);
  CHECK(info.target == fovea::target());
  CHECK(info.flop == 2 * (2 + 2) * 2);
}

TEST_SUITE("once") {
  TEST_CASE("hpp: a failing status becomes an Error with the library's text") {
    Small s;
    s.p.causal = 3;
    CHECK(StatusOf([&] { fovea::attention_forward(s.p); }, "causal = 3") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::workspace_size(s.p); }, "causal = 3") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::describe(s.p); }, "causal = 3") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(s.out == std::vector<float>{7, 7});
    Small t;
    t.p.k.dtype = FOVEA_Q8_0;
    CHECK(StatusOf([&] { fovea::attention_forward(t.p); }, "k.dtype = Q8_0") == FOVEA_ERR_UNSUPPORTED);
    CHECK(StatusOf([&] { fovea::merge({t.p.out}, {}, 1, 1, 1, 2, t.p.out); }, "lses.size() = 0") ==
          FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::merge({}, {}, 1, 1, 1, 2, t.p.out); }, "n = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::set_target("no such target"); }, "no such target") == FOVEA_ERR_TARGET_UNAVAILABLE);
  }

  TEST_CASE("hpp: a view of a container checks its size") {
    std::vector<float> x(24);
    const std::vector<uint8_t> mask(24);
    const fovea_tensor a = fovea::bhsd(x, 1, 2, 3, 4);
    CHECK(a.data == x.data());
    CHECK(a.dtype == FOVEA_F32);
    CHECK(a.stride_head == 12);
    CHECK(fovea::bshd(x, 1, 2, 3, 4).stride_head == 4);
    CHECK(fovea::bhs(x, 4, 2, 3).stride_batch == 6);
    CHECK(fovea::bhsd(mask, 1, 2, 3, 4).dtype == FOVEA_U8);
    CHECK(StatusOf([&] { fovea::bhsd(x, 2, 2, 3, 4); }, "size() = 24: must be at least 48") ==
          FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::bhs(x, 5, 1, 5); }, "size() = 24") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::bhsd(x, -1, 2, -3, 4); }, "-1") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::bhsd(x, 1, int64_t{1} << 40, int64_t{1} << 40, 1); }, "overflow") ==
          FOVEA_ERR_INVALID_ARGUMENT);
    std::vector<float> none;
    CHECK(fovea::bhsd(none, 1, 2, 0, 4).stride_row == 4);
  }

  TEST_CASE("hpp: targets, best first, and the choice among them") {
    const std::string before = fovea::target();
    bool found = false;
    for (const fovea_target_info& info : fovea::targets()) {
      found |= info.name == before;
      if (!info.runnable) continue;
      fovea::set_target(info.name);
      CHECK(fovea::target() == info.name);
    }
    CHECK(found);
    fovea::set_target(nullptr);
    CHECK(fovea::target() == before);
  }
}

}  // namespace
