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
static_assert(fovea::dtype_of<fovea::bf16_t>() == FOVEA_BF16);
static_assert(fovea::dtype_of<const fovea::f16_t>() == FOVEA_F16);
static_assert(sizeof(fovea::bf16_t) == 2 && sizeof(fovea::f16_t) == 2);

// A half of somebody else's.
struct Half {
  uint16_t bits;
};

}  // namespace

template <>
struct fovea::element_dtype<Half> : fovea::element_dtype_constant<FOVEA_F16> {};

namespace {

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

TEST_CASE("hpp: elements of 16 bits, a type of one's own among them") {
  Small s;
  const std::vector<fovea::bf16_t> k{{0x3F80}, {0x4000}, {0x4040}, {0x4080}};  // 1 2 3 4
  const std::array<Half, 4> v{{{0x3C00}, {0x4900}, {0x4200}, {0x4F80}}};       // 1 10 3 30
  std::vector<fovea::f16_t> out(2);
  s.p.k = fovea::bhsd(k, 1, 1, 2, 2);
  s.p.v = fovea::bhsd(v, 1, 1, 2, 2);
  s.p.out = fovea::bhsd(out, 1, 1, 1, 2);
  fovea::attention_forward(s.p);
  CHECK(out[0].bits == 0x4000);  // 2
  CHECK(out[1].bits == 0x4D00);  // 20
}

TEST_CASE("hpp: linear, with and without a workspace") {
  const std::vector<float> x{1, 2, 3, 4, 5, 6}, w{1, 0, -1, 2, 2, 2}, bias{10, 20};
  std::vector<float> y(4), again(4);
  fovea::LinearParams p;
  p.tokens = 2, p.in_features = 3, p.out_features = 2;
  p.x = fovea::matrix(x, 2, 3);
  p.w = fovea::matrix(w.data(), 3);
  p.bias = fovea::matrix(bias, 1, 2);
  p.y = fovea::matrix(y, 2, 2);
  fovea::linear(p);
  CHECK(y == std::vector<float>{8, 32, 8, 50});

  fovea::Exec exec;
  exec.num_threads = 1;
  std::vector<unsigned char> workspace(fovea::linear_workspace_size(p, &exec) + 1);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  p.y = fovea::matrix(again, 2, 2);
  fovea::linear(p, &exec);
  CHECK(again == y);
}

TEST_CASE("hpp: rope_tables, rope and kv_append") {
  std::vector<float> cos(4), sin(4);  // 2 positions, 2 pairs
  fovea::RopeTablesParams tables;
  tables.rotary_dim = 4, tables.num_positions = 2;
  tables.cos = fovea::matrix(cos, 2, 2);
  tables.sin = fovea::matrix(sin, 2, 2);
  fovea::rope_tables(tables);
  CHECK(cos[2] == doctest::Approx(std::cos(1.0)));
  CHECK(sin[3] == doctest::Approx(std::sin(0.01)));

  const std::vector<float> x{1, 2, 0, 0};
  std::vector<float> rotated(4);
  fovea::RopeParams p;
  p.batch = p.num_heads = p.q_len = 1;
  p.head_dim = 4;
  p.x = fovea::bhsd(x, 1, 1, 1, 4);
  p.out = fovea::bhsd(rotated, 1, 1, 1, 4);
  p.cos = tables.cos, p.sin = tables.sin;
  p.num_positions = 2, p.position_offset = 1;
  fovea::rope(p);
  CHECK(rotated[0] == doctest::Approx(std::cos(1.0)));
  CHECK(rotated[3] == doctest::Approx(2 * std::sin(0.01)));

  std::vector<float> cache(3 * 4, 7);
  const int32_t start = 2;
  fovea::KvAppendParams append;
  append.batch = append.num_kv_heads = append.q_len = 1;
  append.head_dim = 4, append.capacity = 3, append.kv_starts = &start;
  append.k_new = fovea::bhsd(rotated, 1, 1, 1, 4);
  append.k_cache = fovea::bhsd(cache, 1, 1, 3, 4);
  fovea::kv_append(append);
  CHECK(std::vector<float>(cache.begin() + 8, cache.end()) == rotated);
  CHECK(cache[7] == 7);
}

TEST_CASE("hpp: mha_forward, with and without a workspace") {
  const std::vector<float> x{3, 5}, same{1, 0, 0, 1}, twice{2, 0, 0, 2}, swap{0, 1, 1, 0};
  std::vector<float> y(2), again(2);
  fovea::MhaParams p;
  p.batch = p.q_len = p.num_q_heads = p.num_kv_heads = 1;
  p.d_model = p.head_dim = 2;
  p.x = fovea::bhsd(x, 1, 1, 1, 2);
  p.y = fovea::bhsd(y, 1, 1, 1, 2);
  p.wq = p.wk = fovea::matrix(same, 2, 2);
  p.wv = fovea::matrix(twice, 2, 2);
  p.wo = fovea::matrix(swap, 2, 2);
  fovea::mha_forward(p);
  CHECK(y == std::vector<float>{10, 6});  // one token attends to itself

  fovea::Exec exec;
  exec.num_threads = 1;
  std::vector<unsigned char> workspace(fovea::mha_workspace_size(p, &exec) + 1);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  p.y = fovea::bhsd(again, 1, 1, 1, 2);
  fovea::mha_forward(p, &exec);
  CHECK(again == y);
  CHECK(std::string(fovea::mha_describe(p).target) == fovea::target());
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
    t.p.k.dtype = FOVEA_I8;
    CHECK(StatusOf([&] { fovea::attention_forward(t.p); }, "k.dtype = I8") == FOVEA_ERR_UNSUPPORTED);
    CHECK(StatusOf([&] { fovea::merge({t.p.out}, {}, 1, 1, 1, 2, t.p.out); }, "lses.size() = 0") ==
          FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::merge({}, {}, 1, 1, 1, 2, t.p.out); }, "n = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    fovea::LinearParams linear;
    CHECK(StatusOf([&] { fovea::linear(linear); }, "in_features = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([&] { fovea::linear_workspace_size(linear); }, "in_features = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::rope(fovea::RopeParams()); }, "batch = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::rope_tables(fovea::RopeTablesParams()); }, "rotary_dim = 0") ==
          FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::kv_append(fovea::KvAppendParams()); }, "v_head_dim = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::mha_forward(fovea::MhaParams()); }, "batch = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::mha_workspace_size(fovea::MhaParams()); }, "batch = 0") == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(StatusOf([] { fovea::mha_describe(fovea::MhaParams()); }, "batch = 0") == FOVEA_ERR_INVALID_ARGUMENT);
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
    CHECK(fovea::matrix(x, 4, 6).stride_row == 6);
    CHECK(StatusOf([&] { fovea::matrix(x, 5, 5); }, "size() = 24") == FOVEA_ERR_INVALID_ARGUMENT);
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
