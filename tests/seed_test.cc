// The function that the project began with: scaled_dot_product_attention(Q, K, V, mask) -> (output, weights).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "fovea/fovea.h"
#include "tests/harness/environment.h"
#include "tests/harness/random.h"

namespace fovea_test {
namespace {

// [batch][heads][seq][d_k], contiguous.
struct Array {
  int64_t batch, heads, seq, d_k;
  std::vector<float> data;
  float At(int64_t b, int64_t h, int64_t i, int64_t c) const {
    return data[static_cast<size_t>(((b * heads + h) * seq + i) * d_k + c)];
  }
};

// 0/1, broadcast over every dimension of which it has one: [batch or 1][heads or 1][seq or 1][seq or 1].
struct Mask {
  int64_t batch, heads, rows, cols;
  std::vector<uint8_t> data;
  bool At(int64_t b, int64_t h, int64_t i, int64_t j) const {
    b = batch == 1 ? 0 : b;
    h = heads == 1 ? 0 : h;
    i = rows == 1 ? 0 : i;
    j = cols == 1 ? 0 : j;
    return data[static_cast<size_t>(((b * heads + h) * rows + i) * cols + j)] != 0;
  }
};

std::pair<Array, Array> ScaledDotProductAttention(const Array& q, const Array& k, const Array& v, const Mask* mask) {
  Array output = q, weights{q.batch, q.heads, q.seq, k.seq, {}};
  weights.data.resize(static_cast<size_t>(q.batch * q.heads * q.seq * k.seq));
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = q.batch;
  p.num_q_heads = p.num_kv_heads = q.heads;
  p.q_len = q.seq;
  p.kv_len = k.seq;
  p.head_dim = q.d_k;
  p.v_head_dim = v.d_k;
  p.q = fovea_tensor_bhsd(q.data.data(), FOVEA_F32, q.heads, q.seq, q.d_k);
  p.k = fovea_tensor_bhsd(k.data.data(), FOVEA_F32, k.heads, k.seq, k.d_k);
  p.v = fovea_tensor_bhsd(v.data.data(), FOVEA_F32, v.heads, v.seq, v.d_k);
  output.data.resize(static_cast<size_t>(q.batch * q.heads * q.seq * v.d_k));
  p.out = fovea_tensor_bhsd(output.data.data(), FOVEA_F32, q.heads, q.seq, v.d_k);
  p.scores = fovea_tensor_bhsd(weights.data.data(), FOVEA_F32, q.heads, q.seq, k.seq);
  p.scores.stride_col = 1;
  p.scores_stage = FOVEA_SCORES_PROBABILITIES;
  if (mask) {
    p.mask = fovea_tensor_bhsd(mask->data.data(), FOVEA_U8, mask->heads, mask->rows, mask->cols);
    p.mask.stride_col = mask->cols == 1 ? 0 : 1;
    if (mask->rows == 1) p.mask.stride_row = 0;
    if (mask->heads == 1) p.mask.stride_head = 0;
    if (mask->batch == 1) p.mask.stride_batch = 0;
  }
  REQUIRE(fovea_attention_forward(&p, nullptr) == FOVEA_OK);
  return {output, weights};
}

Array RandomArray(uint64_t seed, int64_t batch, int64_t heads, int64_t seq, int64_t d_k) {
  Rng rng(seed);
  Array a{batch, heads, seq, d_k, std::vector<float>(static_cast<size_t>(batch * heads * seq * d_k))};
  for (float& x : a.data) x = rng.Normal();
  return a;
}

// softmax(Q K^T / sqrt(d_k), masked) V in double, written out once more: it shares nothing with lib/reference.cc.
void Expect(const Array& q, const Array& k, const Array& v, const Mask* mask) {
  const auto [output, weights] = ScaledDotProductAttention(q, k, v, mask);
  double worst_output = 0, worst_weight = 0;
  for (int64_t b = 0; b < q.batch; ++b) {
    for (int64_t h = 0; h < q.heads; ++h) {
      for (int64_t i = 0; i < q.seq; ++i) {
        std::vector<double> w(static_cast<size_t>(k.seq));
        double sum = 0;
        for (int64_t j = 0; j < k.seq; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < q.d_k; ++c)
            dot += static_cast<double>(q.At(b, h, i, c)) * static_cast<double>(k.At(b, h, j, c));
          const bool attends = !mask || mask->At(b, h, i, j);
          w[static_cast<size_t>(j)] = attends ? std::exp(dot / std::sqrt(static_cast<double>(q.d_k))) : 0;
          sum += w[static_cast<size_t>(j)];
        }
        for (int64_t j = 0; j < k.seq; ++j) {
          double& weight = w[static_cast<size_t>(j)];
          weight = sum > 0 ? weight / sum : 0;
          worst_weight = std::max(worst_weight, std::fabs(static_cast<double>(weights.At(b, h, i, j)) - weight));
        }
        for (int64_t c = 0; c < v.d_k; ++c) {
          double o = 0;
          for (int64_t j = 0; j < k.seq; ++j) o += w[static_cast<size_t>(j)] * static_cast<double>(v.At(b, h, j, c));
          const double got =
              static_cast<double>(output.data[static_cast<size_t>(((b * q.heads + h) * q.seq + i) * v.d_k + c)]);
          worst_output = std::max(worst_output, std::fabs(got - o));
        }
      }
    }
  }
  CHECK(worst_output < 4e-6);
  CHECK(worst_weight < 2e-6);
}

}  // namespace

TEST_CASE("scaled_dot_product_attention(Q, K, V) returns output and weights equal to f64") {
  for (int64_t seq : {1, 10, 64, 65}) {
    for (int64_t d_k : {8, 64}) {
      Expect(RandomArray(1, 2, 4, seq, d_k), RandomArray(2, 2, 4, seq, d_k), RandomArray(3, 2, 4, seq, d_k), nullptr);
    }
  }
}

TEST_CASE("scaled_dot_product_attention with random 0/1 masks, broadcast over batch, heads, rows or columns") {
  const int64_t batch = 2, heads = 4, seq = 33, d_k = 16;
  const Array q = RandomArray(4, batch, heads, seq, d_k), k = RandomArray(5, batch, heads, seq, d_k),
              v = RandomArray(6, batch, heads, seq, d_k);
  for (int shape = 0; shape < 16; ++shape) {
    CAPTURE(shape);
    Mask mask{shape & 1 ? batch : 1, shape & 2 ? heads : 1, shape & 4 ? seq : 1, shape & 8 ? seq : 1, {}};
    Rng rng(static_cast<uint64_t>(shape));
    mask.data.resize(static_cast<size_t>(mask.batch * mask.heads * mask.rows * mask.cols));
    for (uint8_t& m : mask.data) m = rng.Chance(60);
    Expect(q, k, v, &mask);
  }
}

TEST_CASE("scaled_dot_product_attention with a causal mask") {
  const int64_t seq = 65;
  Mask mask{1, 1, seq, seq, std::vector<uint8_t>(static_cast<size_t>(seq * seq))};
  for (int64_t i = 0; i < seq; ++i) {
    for (int64_t j = 0; j <= i; ++j) mask.data[static_cast<size_t>(i * seq + j)] = 1;
  }
  Expect(RandomArray(7, 2, 8, seq, 64), RandomArray(8, 2, 8, seq, 64), RandomArray(9, 2, 8, seq, 64), &mask);
}

}  // namespace fovea_test
