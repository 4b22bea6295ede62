// Real tensors: layer 0 of MiniLM on two padded sentences (tests/data), with the output and LSE that were expected of
// it.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "lib/reference.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr int64_t kBatch = 2, kHeads = 12, kRows = 128, kDim = 32;

// The data of a .npy file of version 1.0, little-endian and C-ordered, as those in tests/data are.
template <typename T>
std::vector<T> Load(const std::string& name, size_t count) {
  std::ifstream file(std::string(FOVEA_TEST_DATA) + "/minilm_" + name + ".npy", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  REQUIRE_MESSAGE(bytes.size() > 10, name);
  REQUIRE(bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) == 0);
  const size_t header = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  REQUIRE(bytes.size() == 10 + header + count * sizeof(T));
  std::vector<T> values(count);
  std::memcpy(values.data(), bytes.data() + 10 + header, count * sizeof(T));
  return values;
}

// Relative where the expected value is over 1: LSE reaches 46 here, where f32 numbers are 3.8e-6 apart.
double LargestDifference(const std::vector<float>& got, const std::vector<float>& expected) {
  double largest = 0;
  for (size_t n = 0; n < got.size(); ++n) {
    const double want = static_cast<double>(expected[n]);
    const double difference = std::fabs(static_cast<double>(got[n]) - want) / std::fmax(1, std::fabs(want));
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

}  // namespace

TEST_CASE("MiniLM layer: out and LSE within 2e-6 of the expected, padding by mask or kv_lens") {
  // Without FMA every product is rounded once more, and scores reach 60 here.
  bool fma = true;
  for (const char* name : {"SCALAR", "EMU128", "SSE2", "SSSE3", "SSE4"}) fma = fma && target_name != name;
  const double tolerance = fma ? 2e-6 : 3e-6;
  const size_t rows = static_cast<size_t>(kBatch * kHeads * kRows), count = rows * static_cast<size_t>(kDim);
  const auto q = Load<float>("q", count), k = Load<float>("k", count), v = Load<float>("v", count),
             expected_out = Load<float>("out", count), expected_lse = Load<float>("lse", rows);
  const auto valid = Load<uint8_t>("valid", static_cast<size_t>(kBatch * kRows));
  std::vector<float> out(count), lse(rows);

  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = kBatch;
  p.num_q_heads = p.num_kv_heads = kHeads;
  p.q_len = p.kv_len = kRows;
  p.head_dim = kDim;
  p.q = fovea_tensor_bhsd(q.data(), FOVEA_F32, kHeads, kRows, kDim);
  p.k = fovea_tensor_bhsd(k.data(), FOVEA_F32, kHeads, kRows, kDim);
  p.v = fovea_tensor_bhsd(v.data(), FOVEA_F32, kHeads, kRows, kDim);
  p.out = fovea_tensor_bhsd(out.data(), FOVEA_F32, kHeads, kRows, kDim);
  p.lse = fovea_tensor_bhs(lse.data(), FOVEA_F32, kHeads, kRows);

  fovea_tensor mask{};  // [batch][keys], the same for all heads and rows
  mask.data = const_cast<uint8_t*>(valid.data());
  mask.dtype = FOVEA_U8;
  mask.stride_batch = kRows;
  mask.stride_col = 1;
  std::vector<int32_t> kv_lens;
  for (int64_t b = 0; b < kBatch; ++b) {
    int32_t length = 0;
    for (int64_t j = 0; j < kRows; ++j) length += valid[static_cast<size_t>(b * kRows + j)] != 0;
    kv_lens.push_back(length);
  }
  CHECK(kv_lens[0] != kv_lens[1]);

  for (bool by_mask : {true, false}) {
    CAPTURE(by_mask);
    p.mask = by_mask ? mask : fovea_tensor{};
    p.kv_lens = by_mask ? nullptr : kv_lens.data();
    std::fill(out.begin(), out.end(), NAN);
    REQUIRE(fovea_attention_forward(&p, nullptr) == FOVEA_OK);
    CHECK(LargestDifference(out, expected_out) <= tolerance);
    CHECK(LargestDifference(lse, expected_lse) <= tolerance);
    CHECK(fovea::CheckAttention(p).passed());
  }
}

TEST_CASE("MiniLM layer: x, weights and biases give y within 2e-5 of the expected") {
  constexpr int64_t kModel = kHeads * kDim;
  const size_t tokens = static_cast<size_t>(kBatch * kRows), model = static_cast<size_t>(kModel);
  const auto x = Load<float>("x", tokens * model), expected = Load<float>("y", tokens * model);
  const auto valid = Load<uint8_t>("valid", tokens);
  std::vector<float> weights[4], biases[4], y(tokens * model);
  const char* names[] = {"q", "k", "v", "o"};
  for (size_t n = 0; n < 4; ++n) {
    weights[n] = Load<float>(std::string("w") + names[n], model * model);
    biases[n] = Load<float>(std::string("b") + names[n], model);
  }
  std::vector<int32_t> kv_lens;
  for (int64_t b = 0; b < kBatch; ++b) {
    int32_t length = 0;
    for (int64_t j = 0; j < kRows; ++j) length += valid[static_cast<size_t>(b * kRows + j)] != 0;
    kv_lens.push_back(length);
  }

  fovea_mha_params p;
  fovea_mha_params_init(&p, sizeof p);
  p.batch = kBatch;
  p.q_len = kRows;
  p.d_model = kModel;
  p.num_q_heads = p.num_kv_heads = kHeads;
  p.head_dim = kDim;
  p.x = fovea_tensor_bhsd(x.data(), FOVEA_F32, 1, kRows, kModel);
  p.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, kRows, kModel);
  fovea_tensor* const to_weights[] = {&p.wq, &p.wk, &p.wv, &p.wo};
  fovea_tensor* const to_biases[] = {&p.bq, &p.bk, &p.bv, &p.bo};
  for (size_t n = 0; n < 4; ++n) {
    *to_weights[n] = fovea_tensor_bhsd(weights[n].data(), FOVEA_F32, 1, kModel, kModel);
    *to_biases[n] = fovea_tensor_bhsd(biases[n].data(), FOVEA_F32, 1, 1, kModel);
  }
  p.kv_lens = kv_lens.data();
  REQUIRE(fovea_mha_forward(&p, nullptr) == FOVEA_OK);
  CHECK(LargestDifference(y, expected) <= 2e-5);
  MESSAGE("largest difference ", LargestDifference(y, expected));

  // The same by mask.
  const std::vector<float> by_lens = y;
  fovea_attention_params options;
  fovea_attention_params_init(&options, sizeof options);
  options.mask.data = const_cast<uint8_t*>(valid.data());
  options.mask.dtype = FOVEA_U8;
  options.mask.stride_batch = kRows;
  options.mask.stride_col = 1;
  p.attention = &options;
  p.kv_lens = nullptr;
  std::fill(y.begin(), y.end(), NAN);
  REQUIRE(fovea_mha_forward(&p, nullptr) == FOVEA_OK);
  CHECK(y == by_lens);
}

}  // namespace fovea_test
