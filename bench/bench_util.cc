#include "bench/bench_util.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>

#include "lib/dtype.h"
#include "lib/reference.h"

namespace fovea_bench {
namespace {

constexpr double kConsumable = 0.75;  // of the FMA rate, by a decode kernel that is not held up by memory

void Want(fovea_status status) {
  if (status != FOVEA_OK) throw std::runtime_error(fovea_last_error());
}

// x with the batch entry b and the head h as its first.
fovea_tensor From(fovea_tensor x, int64_t b, int64_t h) {
  if (x.data) x.data = static_cast<char*>(x.data) + (b * x.stride_batch + h * x.stride_head) * fovea::DtypeBytes(x.dtype);
  return x;
}

// Rows of F32 into an int8 cache of the same layout.
void Quantize(const Shape& s, const fovea_tensor& from, const fovea_tensor& to, const fovea_tensor& scale) {
  fovea_kv_append_params a;
  Want(fovea_kv_append_params_init(&a, sizeof a));
  a.batch = s.batch;
  a.num_kv_heads = s.num_kv_heads;
  a.q_len = a.capacity = s.kv_len;
  a.head_dim = s.head_dim;
  a.k_new = from;
  a.k_cache = to;
  a.k_scale = scale;
  Want(fovea_kv_append(&a, nullptr));
}

}  // namespace

std::string Name(const Shape& s) {
  const auto number = [](int64_t n) { return std::to_string(n); };
  std::string dtype = fovea_dtype_str(s.dtype);
  for (char& c : dtype) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool decode = s.op == "decode" || (s.op == "layer" && s.q_len == 1);
  std::string name = s.op + "/" + dtype + "/d" + number(s.head_dim);
  if (!decode && s.q_len == s.kv_len) {
    name += "/s" + number(s.q_len);
  } else {
    if (!decode || s.q_len != 1) name += "/q" + number(s.q_len);
    name += "/kv" + number(s.kv_len);
  }
  name += "/h" + number(s.num_q_heads);
  if (decode || s.num_kv_heads != s.num_q_heads) name += "x" + number(s.num_kv_heads);
  if (s.batch != 1) name += "/b" + number(s.batch);
  if (s.causal && !decode) name += "/causal";
  if (s.window) name += "/window" + number(s.window);
  if (s.soft_cap > 0) name += "/cap" + number(static_cast<int64_t>(s.soft_cap));
  if (s.bias) name += "/bias";
  if (s.sinks) name += "/sinks";
  if (s.row_stride) name += "/row" + number(s.row_stride * fovea::DtypeBytes(s.dtype) / 1024) + "k";
  if (s.page_size) name += "/page" + number(s.page_size);
  return name + "/t" + number(s.threads) + "@" + s.target;
}

Floats NewFloats(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  Floats p(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
  if (!p) throw std::bad_alloc();
  return p;
}

Floats RandomFloats(int64_t count, uint64_t seed, fovea_dtype dtype) {
  Floats p = NewFloats(count);
  // The sum of four 16-bit numbers, of deviation 2^16 / sqrt(3), from splitmix64.
  for (int64_t i = 0; i < count; ++i) {
    uint64_t x = seed += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    const uint64_t sum = (x & 0xFFFF) + (x >> 16 & 0xFFFF) + (x >> 32 & 0xFFFF) + (x >> 48);
    fovea::StoreElement(dtype, (static_cast<float>(sum) - 131070.0f) * (1.7320508f / 65536.0f), p.get(), i);
  }
  return p;
}

Case::Case(const Shape& shape) : shape_(shape) {
  const Shape& s = shape_;
  Want(fovea_set_target(s.target.c_str()));
  fovea_attention_params& p = params_;
  Want(fovea_attention_params_init(&p, sizeof p));
  p.batch = s.batch;
  p.num_q_heads = s.num_q_heads;
  p.num_kv_heads = s.num_kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.head_dim = s.head_dim;
  p.causal = s.causal;
  p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  if (s.window) p.window_left = s.window - 1;
  if (s.window) p.window_right = 0;
  p.logits_soft_cap = s.soft_cap;

  uint64_t seed = 1;
  const fovea_dtype float_dtype = s.dtype == FOVEA_I8 ? FOVEA_F32 : s.dtype;
  const auto tensor = [&](Floats* buffer, int64_t heads, int64_t rows, bool random) {
    const int64_t count = s.row_stride ? s.batch * rows * s.row_stride : s.batch * heads * rows * s.head_dim;
    *buffer = random ? RandomFloats(count, seed++ << 40, float_dtype) : NewFloats(count);
    fovea_tensor t = fovea_tensor_bhsd(buffer->get(), float_dtype, heads, rows, s.head_dim);
    if (s.row_stride) {
      t.stride_head = s.head_dim;
      t.stride_row = s.row_stride;
      t.stride_batch = rows * s.row_stride;
    }
    return t;
  };
  p.q = tensor(&q_, s.num_q_heads, s.q_len, true);
  const auto cache = [&](Floats* buffer, Floats* scale_buffer, fovea_tensor* scale) {
    const fovea_tensor t = tensor(buffer, s.num_kv_heads, s.kv_len, true);
    if (s.dtype != FOVEA_I8) return t;
    const Floats floats = std::move(*buffer);
    *buffer = NewFloats((s.row_stride ? s.batch * s.kv_len * s.row_stride : s.batch * s.num_kv_heads * s.kv_len * s.head_dim) / 4 + 1);
    *scale_buffer = NewFloats(s.batch * s.num_kv_heads * s.kv_len);
    *scale = fovea_tensor_bhs(scale_buffer->get(), FOVEA_F32, s.num_kv_heads, s.kv_len);
    fovea_tensor quantized = t;
    quantized.data = buffer->get();
    quantized.dtype = FOVEA_I8;
    Quantize(s, t, quantized, *scale);
    return quantized;
  };
  p.k = cache(&k_, &k_scale_, &p.k_scale);
  p.v = cache(&v_, &v_scale_, &p.v_scale);
  p.out = tensor(&out_, s.num_q_heads, s.q_len, false);
  if (s.page_size) {
    if (s.batch != 1 || s.kv_len % s.page_size != 0 || s.row_stride || s.dtype == FOVEA_I8) throw std::runtime_error(Name(s) + ": no such pages");
    block_table_.resize(static_cast<size_t>(s.kv_len / s.page_size));
    std::iota(block_table_.begin(), block_table_.end(), 0);
    std::shuffle(block_table_.begin(), block_table_.end(), std::mt19937(1));
    p.block_table = block_table_.data();
    p.block_table_stride = p.num_pages = s.kv_len / s.page_size;
    p.page_size = s.page_size;
    p.k = fovea_tensor_bhsd(k_.get(), s.dtype, s.num_kv_heads, s.page_size, s.head_dim);
    p.v = fovea_tensor_bhsd(v_.get(), s.dtype, s.num_kv_heads, s.page_size, s.head_dim);
  }
  if (s.bias) {
    bias_ = RandomFloats(s.q_len * s.kv_len, seed++ << 40, float_dtype);
    p.bias = fovea_tensor_bhsd(bias_.get(), float_dtype, 1, s.q_len, s.kv_len);
    p.bias.stride_batch = p.bias.stride_head = 0;
  }
  if (s.sinks) {
    sinks_ = RandomFloats(s.num_q_heads, seed++ << 40);
    p.sinks = sinks_.get();
  }
  const int64_t keys = s.window ? std::min(s.kv_len, s.q_len + s.window - 1) : s.kv_len;
  const int64_t bytes = s.batch * s.num_kv_heads * keys * s.head_dim * fovea::DtypeBytes(s.dtype);
  spans_ = {{k_.get(), bytes}, {v_.get(), bytes}};

  Want(fovea_exec_init(&exec_, sizeof exec_));
  exec_.num_threads = s.threads;
  size_t workspace_bytes = 0;
  Want(fovea_attention_workspace_size(&p, &exec_, &workspace_bytes));
  workspace_ = NewFloats(static_cast<int64_t>(workspace_bytes / sizeof(float)) + 1);
  exec_.workspace = workspace_.get();
  exec_.workspace_bytes = workspace_bytes;
  Want(fovea_attention_info_init(&info_, sizeof info_));
  Want(fovea_attention_describe(&p, &exec_, &info_));
  if (info_.target != s.target) throw std::runtime_error(s.target + " was asked for, " + info_.target + " would run");
  Want(fovea_attention_forward(&p, &exec_));
  Check();
}

void Case::Check() {
  // About 8 rows of each head of the first and the last group, in different lanes of their tiles: the oracle is a plain
  // loop in double.
  const int64_t step = std::max<int64_t>(1, params_.q_len / 8) | 1, group = params_.num_q_heads / params_.num_kv_heads;
  for (const bool last : {false, true}) {
    const int64_t b = last ? params_.batch - 1 : 0, h = last ? params_.num_kv_heads - 1 : 0;
    fovea_attention_params p = params_;
    p.batch = p.num_kv_heads = 1;
    p.num_q_heads = group;
    p.q = From(p.q, b, h * group);
    p.k = From(p.k, b, h);
    p.v = From(p.v, b, h);
    p.k_scale = From(p.k_scale, b, h);
    p.v_scale = From(p.v_scale, b, h);
    p.out = From(p.out, b, h * group);
    if (p.sinks) p.sinks += h * group;
    const fovea::AttentionCheck check = fovea::CheckAttention(p, step, fovea::ArithmeticOf(info_));
    max_err_ = std::max(max_err_, check.out.error);
    naive_err_ = std::max(naive_err_, check.out.naive);
    if (!check.passed()) {
      throw std::runtime_error("wrong result: batch " + std::to_string(b + check.out.b) + ", head " +
                               std::to_string(h * group + check.out.h) + ", row " + std::to_string(check.out.i) +
                               ", column " + std::to_string(check.out.c) + " is " + std::to_string(check.out.got) +
                               ", should be " + std::to_string(check.out.want));
    }
    if (b == params_.batch - 1 && h == params_.num_kv_heads - 1) return;
  }
}

double Case::Run() {
  const double begin = Seconds();
  const fovea_status status = fovea_attention_forward(&params_, &exec_);
  const double seconds = Seconds() - begin;
  Want(status);
  return seconds;
}

void Case::MeasureLimits(Round* round) {
  // A quarter of the call's work, but long enough to be timed and short enough to see the clock that the call saw.
  const double flop = std::clamp(info_.flop / (4 * shape_.threads), 1e7, 4e9);
  const bool bf16_dot = fovea::ArithmeticOf(info_) == fovea::Arithmetic::kBf16Weights;
  round->fma_rate = (bf16_dot ? Bf16DotRate : FmaRate)(shape_.target, flop, shape_.threads);
  round->read_rate = ReadRate(shape_.target, spans_, shape_.threads);
}

Result Case::Summarize(const std::vector<Round>& rounds) const {
  Result result = fovea_bench::Summarize(rounds, info_.flop, kv_bytes(), shape_.op == "decode");
  result.max_err = max_err_;
  result.naive_err = naive_err_;
  return result;
}

Result Summarize(const std::vector<Round>& rounds, double flop, double bytes, bool decode) {
  std::vector<double> seconds, fma_rates, read_rates, fma_fractions, bandwidth_fractions;
  for (const Round& r : rounds) {
    const double read = r.read_rate, consumed = kConsumable * r.fma_rate * bytes / flop;
    seconds.push_back(r.seconds);
    fma_rates.push_back(r.fma_rate);
    read_rates.push_back(r.read_rate);
    fma_fractions.push_back(flop / r.seconds / r.fma_rate);
    bandwidth_fractions.push_back(bytes / r.seconds / (decode ? std::min(read, consumed) : read));
  }
  Result result;
  result.seconds = Median(seconds);
  result.gflops = flop / result.seconds * 1e-9;
  result.gbps = bytes / result.seconds * 1e-9;
  result.fma_fraction = Median(fma_fractions);
  result.bandwidth_fraction = Median(bandwidth_fractions);
  result.fma_gflops = Median(fma_rates) * 1e-9;
  result.read_gbps = Median(read_rates) * 1e-9;
  result.rounds = static_cast<int>(rounds.size());
  return result;
}

std::vector<std::string> RunnableTargets() {
  std::vector<std::string> names;
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    Want(fovea_target_info_init(&info, sizeof info));
    Want(fovea_get_target_info(i, &info));
    if (info.runnable) names.push_back(info.name);
  }
  return names;
}

std::string ChosenTarget() {
  const char *name = nullptr, *why = nullptr;
  Want(fovea_get_target(&name, &why));
  return name;
}

}  // namespace fovea_bench
