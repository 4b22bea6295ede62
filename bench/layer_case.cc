#include "bench/layer_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "lib/reference.h"

namespace fovea_bench {
namespace {

// Weights beyond this share memory: 1 GB.
constexpr int64_t kMostWeights = int64_t{1} << 28;
constexpr double kRopeBase = 500000;

void Want(fovea_status status) {
  if (status != FOVEA_OK) throw std::runtime_error(fovea_last_error());
}

fovea_tensor Rows(const Floats& data, int64_t rows, int64_t columns) {
  return fovea_tensor_bhsd(data.get(), FOVEA_F32, 1, rows, columns);
}

}  // namespace

std::string Name(const LayerShape& shape) {
  std::string name = Name(shape.attention);
  const size_t dims = name.find("/d");
  return name.substr(0, dims) + "/m" + std::to_string(shape.d_model) + name.substr(dims);
}

LayerCase::LayerCase(const LayerShape& shape) : shape_(shape) {
  const Shape& s = shape.attention;
  if (s.dtype != FOVEA_F32 || s.batch != 1) throw std::runtime_error("a layer is measured in f32, batch 1");
  const int64_t n = s.q_len, m = shape.d_model, d = s.head_dim, q = s.num_q_heads * d, k = s.num_kv_heads * d;
  Want(fovea_set_target(s.target.c_str()));
  Want(fovea_exec_init(&exec_, sizeof exec_));
  exec_.num_threads = s.threads;
  start_ = static_cast<int32_t>(s.kv_len - n);

  x_ = RandomFloats(n * m, uint64_t{1} << 40);
  for (int64_t i = 0; i < n * m; ++i) x_[static_cast<size_t>(i)] /= std::sqrt(static_cast<float>(m));  // q and k of deviation 1
  q_ = NewFloats(n * q), q_rotated_ = NewFloats(n * q), o_ = NewFloats(n * q), y_ = NewFloats(n * m);
  k_new_ = NewFloats(n * k), v_new_ = NewFloats(n * k);
  k_ = RandomFloats(s.kv_len * k, uint64_t{2} << 40), v_ = RandomFloats(s.kv_len * k, uint64_t{3} << 40);
  cos_ = NewFloats(s.kv_len * (d / 2)), sin_ = NewFloats(s.kv_len * (d / 2));
  fovea_rope_tables_params tables;
  Want(fovea_rope_tables_params_init(&tables, sizeof tables));
  tables.rotary_dim = d / 2 * 2, tables.num_positions = s.kv_len, tables.base = kRopeBase;
  tables.cos = Rows(cos_, s.kv_len, d / 2), tables.sin = Rows(sin_, s.kv_len, d / 2);
  Want(fovea_rope_tables(&tables, &exec_));
  AddWeights();

  // The stages by themselves.
  Want(fovea_rope_params_init(&k_rope_, sizeof k_rope_));
  k_rope_.cos = tables.cos, k_rope_.sin = tables.sin, k_rope_.num_positions = s.kv_len, k_rope_.rotary_dim = tables.rotary_dim;
  rope_ = k_rope_;
  rope_.batch = 1, rope_.num_heads = s.num_q_heads, rope_.q_len = n, rope_.head_dim = d;
  rope_.x = fovea_tensor_bshd(q_.get(), FOVEA_F32, s.num_q_heads, n, d);
  rope_.out = fovea_tensor_bshd(q_rotated_.get(), FOVEA_F32, s.num_q_heads, n, d);
  rope_.position_offset = k_rope_.position_offset = start_;
  Want(fovea_kv_append_params_init(&append_, sizeof append_));
  append_.batch = 1, append_.num_kv_heads = s.num_kv_heads, append_.q_len = n, append_.head_dim = d;
  append_.k_new = fovea_tensor_bshd(k_new_.get(), FOVEA_F32, s.num_kv_heads, n, d);
  append_.v_new = fovea_tensor_bshd(v_new_.get(), FOVEA_F32, s.num_kv_heads, n, d);
  append_.k_cache = fovea_tensor_bhsd(k_.get(), FOVEA_F32, s.num_kv_heads, s.kv_len, d);
  append_.v_cache = fovea_tensor_bhsd(v_.get(), FOVEA_F32, s.num_kv_heads, s.kv_len, d);
  append_.kv_starts = &start_, append_.capacity = s.kv_len;
  append_.rope = &k_rope_;
  Want(fovea_attention_params_init(&options_, sizeof options_));
  options_.causal = s.causal;
  options_.logits_soft_cap = s.soft_cap;
  if (s.window) options_.window_left = s.window - 1, options_.window_right = 0;
  attention_ = options_;
  attention_.batch = 1, attention_.num_q_heads = s.num_q_heads, attention_.num_kv_heads = s.num_kv_heads;
  attention_.q_len = n, attention_.kv_len = s.kv_len, attention_.head_dim = d;
  attention_.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  attention_.q = rope_.out, attention_.k = append_.k_cache, attention_.v = append_.v_cache;
  attention_.out = fovea_tensor_bshd(o_.get(), FOVEA_F32, s.num_q_heads, n, d);

  Want(fovea_mha_params_init(&mha_, sizeof mha_));
  mha_.batch = 1, mha_.q_len = n, mha_.d_model = m, mha_.num_q_heads = s.num_q_heads, mha_.num_kv_heads = s.num_kv_heads, mha_.head_dim = d;
  mha_.x = linear_[0].x, mha_.y = linear_[3].y;
  mha_.wq = linear_[0].w, mha_.wk = linear_[1].w, mha_.wv = linear_[2].w, mha_.wo = linear_[3].w;
  mha_.k_cache = append_.k_cache, mha_.v_cache = append_.v_cache, mha_.kv_starts = &start_, mha_.capacity = s.kv_len;
  mha_.rope = &k_rope_, mha_.attention = &options_;

  size_t bytes = 0, one = 0;
  for (const fovea_linear_params& linear : linear_) {
    Want(fovea_linear_workspace_size(&linear, &exec_, &one));
    bytes = std::max(bytes, one);
  }
  Want(fovea_attention_workspace_size(&attention_, &exec_, &one));
  bytes = std::max(bytes, one);
  Want(fovea_mha_workspace_size(&mha_, &exec_, &one));
  bytes = std::max(bytes, one);
  workspace_ = NewFloats(static_cast<int64_t>(bytes / sizeof(float)) + 1);
  exec_.workspace = workspace_.get();
  exec_.workspace_bytes = bytes;

  fovea_mha_info info;
  Want(fovea_mha_info_init(&info, sizeof info));
  Want(fovea_mha_describe(&mha_, &exec_, &info));
  if (info.target != s.target) throw std::runtime_error(s.target + " was asked for, " + info.target + " would run");
  kernels_ = info.kernels;
  const double new_rows = static_cast<double>(n), columns = static_cast<double>(q + k);
  flop_[0] = info.qkv_flop;
  flop_[1] = 3.0 * new_rows * columns;  // 4 products and 2 sums for each pair
  flop_[2] = info.attention_flop;
  flop_[3] = info.out_flop;
  flop_[kWhole] = flop_[0] + flop_[1] + flop_[2] + flop_[3];
  spans_[1] = {{q_.get(), n * q * 4}, {k_new_.get(), n * k * 4}, {v_new_.get(), n * k * 4}};
  const int64_t keys = s.window ? std::min(s.kv_len, n + s.window - 1) : s.kv_len;
  spans_[2] = {{k_.get(), keys * k * 4}, {v_.get(), keys * k * 4}};
  for (const int stage : {0, 2, 3}) spans_[kWhole].insert(spans_[kWhole].end(), spans_[stage].begin(), spans_[stage].end());
  Check();
}

void LayerCase::AddWeights() {
  const Shape& s = shape_.attention;
  const int64_t n = s.q_len, m = shape_.d_model, q = s.num_q_heads * s.head_dim, k = s.num_kv_heads * s.head_dim;
  const int64_t counts[] = {q * m, k * m, k * m, m * q};
  const bool share = counts[0] + counts[1] + counts[2] + counts[3] > kMostWeights;
  weights_ = RandomFloats(share ? counts[0] : counts[0] + counts[1] + counts[2] + counts[3], uint64_t{4} << 40);
  const float* const xs[] = {x_.get(), x_.get(), x_.get(), o_.get()};
  float* const ys[] = {q_.get(), k_new_.get(), v_new_.get(), y_.get()};
  const int64_t in[] = {m, m, m, q}, out[] = {q, k, k, m};
  int64_t at = 0;
  for (int i = 0; i < 4; ++i) {
    fovea_linear_params& p = linear_[i];
    const float* const w = weights_.get() + (share ? 0 : at);
    at += counts[i];
    Want(fovea_linear_params_init(&p, sizeof p));
    p.tokens = n, p.in_features = in[i], p.out_features = out[i];
    p.x = fovea_tensor_bhsd(xs[i], FOVEA_F32, 1, n, in[i]);
    p.w = fovea_tensor_bhsd(w, FOVEA_F32, 1, out[i], in[i]);
    p.y = fovea_tensor_bhsd(ys[i], FOVEA_F32, 1, n, out[i]);
    spans_[i < 3 ? 0 : 3].push_back({w, counts[i] * 4});
  }
}

double LayerCase::Run(int stage) {
  const double begin = Seconds();
  fovea_status status = FOVEA_OK;
  if (stage == 0) {
    for (int i = 0; i < 3 && status == FOVEA_OK; ++i) status = fovea_linear(&linear_[i], &exec_);
  } else if (stage == 1) {
    status = fovea_rope(&rope_, &exec_);
    if (status == FOVEA_OK) status = fovea_kv_append(&append_, &exec_);
  } else if (stage == 2) {
    status = fovea_attention_forward(&attention_, &exec_);
  } else if (stage == 3) {
    status = fovea_linear(&linear_[3], &exec_);
  } else {
    status = fovea_mha_forward(&mha_, &exec_);
  }
  const double seconds = Seconds() - begin;
  Want(status);
  return seconds;
}

void LayerCase::Errors::Add(double our, double plain) {
  if (!(our <= ours)) ours = our;  // NaN stays
  naive = std::max(naive, plain);
}

// Relative to the sum of the products' magnitudes.
LayerCase::Errors LayerCase::CheckProjection(const fovea_linear_params& p) const {
  const float *x = static_cast<const float*>(p.x.data), *w = static_cast<const float*>(p.w.data), *y = static_cast<const float*>(p.y.data);
  Errors errors;
  for (int64_t n = 0; n < 200; ++n) {
    const int64_t t = n * 37 % p.tokens, o = n * 61 % p.out_features;
    double want = 0, magnitude = 1e-30;
    float naive = 0;
    for (int64_t i = 0; i < p.in_features; ++i) {
      const float a = x[t * p.in_features + i], b = w[o * p.in_features + i];
      const double product = static_cast<double>(a) * static_cast<double>(b);
      naive += a * b;
      want += product;
      magnitude += std::fabs(product);
    }
    errors.Add(std::fabs(static_cast<double>(y[t * p.out_features + o]) - want) / magnitude,
               std::fabs(static_cast<double>(naive) - want) / magnitude);
  }
  return errors;
}

// Of the first of a rotated pair in the cache, relative to the pair's size.
LayerCase::Errors LayerCase::CheckKeys() const {
  const Shape& s = shape_.attention;
  const int64_t d = s.head_dim, half = d / 2, heads = s.num_kv_heads;
  Errors errors;
  for (int64_t n = 0; n < 200; ++n) {
    const int64_t i = n * 37 % s.q_len, h = n * 61 % heads, j = n * 13 % half, row = start_ + i;
    const float* const fresh = k_new_.get() + (i * heads + h) * d;
    const float a = fresh[j], b = fresh[j + half], stored = k_[static_cast<size_t>((h * s.kv_len + row) * d + j)];
    const double angle = static_cast<double>(row) * std::pow(kRopeBase, -static_cast<double>(j) / static_cast<double>(half));
    const double want = static_cast<double>(a) * std::cos(angle) - static_cast<double>(b) * std::sin(angle);
    const float naive = a * static_cast<float>(std::cos(angle)) - b * static_cast<float>(std::sin(angle));
    const double size = std::hypot(static_cast<double>(a), static_cast<double>(b)) + 1e-30;
    errors.Add(std::fabs(static_cast<double>(stored) - want) / size, std::fabs(static_cast<double>(naive) - want) / size);
  }
  return errors;
}

// Of some rows of the first group of heads.
LayerCase::Errors LayerCase::CheckAttention() const {
  fovea_attention_params p = attention_;
  p.num_q_heads /= p.num_kv_heads;
  p.num_kv_heads = 1;
  const fovea::AttentionCheck check = fovea::CheckAttention(p, std::max<int64_t>(1, p.q_len / 8) | 1);
  if (!check.passed()) throw std::runtime_error("wrong result: attention's error is " + std::to_string(check.out.ratio) + " of its bound");
  Errors errors;
  errors.Add(check.out.error, check.out.naive);
  return errors;
}

void LayerCase::Check() {
  for (int stage = 0; stage < kWhole; ++stage) Run(stage);
  for (int i = 0; i < 3; ++i) {
    const Errors one = CheckProjection(linear_[i]);
    errors_[0].Add(one.ours, one.naive);
  }
  errors_[1] = CheckKeys();
  errors_[2] = CheckAttention();
  errors_[3] = CheckProjection(linear_[3]);
  for (const int stage : {0, 1, 3}) {
    if (!(errors_[stage].ours < 1e-6)) {
      throw std::runtime_error(std::string("wrong result: ") + kStageNames[stage] + ": relative error " + std::to_string(errors_[stage].ours));
    }
  }
  const size_t count = static_cast<size_t>(shape_.attention.q_len * shape_.d_model);
  const std::vector<float> by_stages(y_.get(), y_.get() + count);
  std::memset(y_.get(), 0xff, count * sizeof(float));
  Run(kWhole);
  if (std::memcmp(by_stages.data(), y_.get(), count * sizeof(float)) != 0)
    throw std::runtime_error("wrong result: the whole layer differs from its stages");
  for (int stage = 0; stage < kWhole; ++stage) errors_[kWhole].Add(errors_[stage].ours, errors_[stage].naive);
}

double LayerCase::bytes(int stage) const {
  double bytes = 0;
  for (const Span& span : spans_[stage]) bytes += static_cast<double>(span.bytes);
  return bytes;
}

void LayerCase::MeasureLimits(int stage, Round* round) const {
  const Shape& s = shape_.attention;
  round->fma_rate = FmaRate(s.target, std::clamp(flop_[stage] / (4 * s.threads), 1e7, 4e9), s.threads);
  round->read_rate = ReadRate(s.target, spans_[stage], s.threads);
}

Result LayerCase::Summarize(int stage, const std::vector<Round>& rounds) const {
  Result result = fovea_bench::Summarize(rounds, flop_[stage], bytes(stage), shape_.attention.q_len == 1);
  result.max_err = errors_[stage].ours;
  result.naive_err = errors_[stage].naive;
  return result;
}

}  // namespace fovea_bench
