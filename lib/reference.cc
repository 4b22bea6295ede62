#include "lib/reference.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <type_traits>

#include "lib/dtype.h"
#include "lib/validate.h"

namespace fovea {
namespace {

constexpr double kUlp = 0x1p-24;
constexpr double kInf = std::numeric_limits<double>::infinity();

// The first element of row i of sequence b in head h; cu is the cu_seqlens of the tensor's side, NULL where it is padded.
int64_t RowStart(const fovea_tensor& t, const int32_t* cu, int64_t b, int64_t h, int64_t i) {
  return (cu ? cu[b] * t.stride_row : b * t.stride_batch) + h * t.stride_head + i * t.stride_row;
}

// That row as f32: where it lies, or n columns of it in *buffer.
const float* Row(const fovea_tensor& t, const int32_t* cu, int64_t b, int64_t h, int64_t i, int64_t n, std::vector<float>* buffer) {
  const int64_t start = RowStart(t, cu, b, h, i);
  if (t.dtype == FOVEA_F32) return static_cast<const float*>(t.data) + start;
  buffer->resize(static_cast<size_t>(n));
  for (int64_t c = 0; c < n; ++c) (*buffer)[static_cast<size_t>(c)] = LoadElement(t.dtype, t.data, start + c);
  return buffer->data();
}

// Row j of sequence b in k or v, likewise.
const float* KvRow(const fovea_attention_params& p, const fovea_tensor& t, int64_t b, int64_t kv_head, int64_t j, int64_t n,
                   std::vector<float>* buffer) {
  if (!p.block_table) return Row(t, p.cu_seqlens_kv, b, kv_head, j, n, buffer);
  const int64_t page = p.block_table[b * p.block_table_stride + j / p.page_size];
  return Row(t, nullptr, page, kv_head, j % p.page_size, n, buffer);
}

// The scale of row j of sequence b in k or v; 1 where scales is absent.
float KvScale(const fovea_attention_params& p, const fovea_tensor& scales, int64_t b, int64_t kv_head, int64_t j) {
  std::vector<float> unused;
  return scales.data ? *KvRow(p, scales, b, kv_head, j, 1, &unused) : 1.0f;
}

int64_t VHeadDim(const fovea_attention_params& p) { return p.v_head_dim ? p.v_head_dim : p.head_dim; }

int64_t MaskColumns(const fovea_attention_params& p, int64_t b) {
  return p.mask_kv_len ? p.mask_kv_len : p.cu_seqlens_kv ? KvLen(p, b) : p.kv_len;
}

// The column of mask and bias for key j; negative before the first column of a right-aligned one.
int64_t MaskColumn(const fovea_attention_params& p, int64_t b, int64_t j) {
  return p.mask_align == FOVEA_MASK_ALIGN_RIGHT ? j - (KvLen(p, b) - MaskColumns(p, b)) : j;
}

// Where an element of mask or bias lies.
int64_t MaskElement(const fovea_attention_params& p, const fovea_tensor& t, int64_t b, int64_t h, int64_t i, int64_t column) {
  return RowStart(t, nullptr, b, h, i + (p.mask_offsets ? p.mask_offsets[b] : 0)) + column * t.stride_col;
}
float Bias(const fovea_attention_params& p, int64_t b, int64_t h, int64_t i, int64_t column) {
  return LoadElement(p.bias.dtype, p.bias.data, MaskElement(p, p.bias, b, h, i, column));
}

float Round(fovea_dtype dtype, float x) {
  float rounded = 0;  // room for any type
  StoreElement(dtype, x, &rounded, 0);
  return LoadElement(dtype, &rounded, 0);
}

int64_t QueryPosition(const fovea_attention_params& p, int64_t b, int64_t i) {
  return p.q_positions ? QPositions(p, b)[i] : i + PositionOffset(p, b);
}
int64_t KeyPosition(const fovea_attention_params& p, int64_t b, int64_t j) {
  return p.kv_positions ? KvPositions(p, b)[j] : j;
}

double Finite(double x) { return std::isfinite(x) ? x : 0; }

}  // namespace

bool Permitted(const fovea_attention_params& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t pos = QueryPosition(p, b, i), at = KeyPosition(p, b, j);
  if (p.kv_positions && at < 0) return false;
  if (p.causal && at > pos) return false;
  if (p.window_left >= 0 && pos - at > p.window_left) return false;
  if (p.window_right >= 0 && at - pos > p.window_right) return false;
  if (!p.mask.data && !p.bias.data) return true;
  const int64_t column = MaskColumn(p, b, j);
  if (column < 0) return true;
  if (column >= MaskColumns(p, b)) return false;
  if (p.mask.data && static_cast<const uint8_t*>(p.mask.data)[MaskElement(p, p.mask, b, h, i, column)] == 0) return false;
  return !(p.bias.data && Bias(p, b, h, i, column) == -INFINITY);
}

template <typename T>
void EvaluateRow(const fovea_attention_params& p, int64_t b, int64_t h, int64_t i, ReferenceRow<T>* row, Arithmetic arithmetic) {
  const int64_t kv_len = KvLen(p, b);
  const int64_t kv_head = h / (p.num_q_heads / p.num_kv_heads);
  const int64_t pos = QueryPosition(p, b, i);
  const T minus_inf = -std::numeric_limits<T>::infinity();
  const T scale = std::isnan(p.scale) ? T{1} / std::sqrt(static_cast<T>(p.head_dim)) : static_cast<T>(p.scale);
  const T cap = static_cast<T>(p.logits_soft_cap);
  const bool every_key = p.scores_stage == FOVEA_SCORES_RAW || p.scores_stage == FOVEA_SCORES_SOFT_CAPPED;

  row->out.assign(static_cast<size_t>(VHeadDim(p)), T{0});
  row->scores.clear();
  if (p.scores_stage != FOVEA_SCORES_NONE) {
    row->scores.assign(static_cast<size_t>(p.kv_len), p.scores_stage == FOVEA_SCORES_PROBABILITIES ? T{0} : minus_inf);
  }
  row->magnitudes.assign(static_cast<size_t>(kv_len), 0);
  row->dot_magnitude = row->row_magnitude = row->v_magnitude = 0;

  std::vector<char> permitted(static_cast<size_t>(kv_len));
  std::vector<T> s(static_cast<size_t>(kv_len), minus_inf);  // the scores, then their weights
  std::vector<float> q_buffer, kv_buffer;
  const float* stored_q = Row(p.q, p.cu_seqlens_q, b, h, i, p.head_dim, &q_buffer);
  // Scales of K's columns are Q's as well as K's.
  std::vector<T> q(stored_q, stored_q + p.head_dim);
  if (p.k_channel_scale.data) {
    const float* scales = Row(p.k_channel_scale, nullptr, b, kv_head, 0, p.head_dim, &kv_buffer);
    for (size_t c = 0; c < q.size(); ++c) q[c] *= static_cast<T>(scales[c]);
  }
  double q_step = 0;  // a fixed-point q is off by up to 2^-24 times 4 of these
  for (size_t c = 0; c < q.size() && arithmetic == Arithmetic::kInt8Dot; ++c) {
    q_step = std::max(q_step, Finite(std::fabs(static_cast<double>(q[c]))) / 2);
  }
  for (int64_t j = 0; j < kv_len; ++j) {
    const size_t at = static_cast<size_t>(j);
    permitted[at] = Permitted(p, b, h, i, j);
    if (!permitted[at] && !every_key) continue;
    const float* k = KvRow(p, p.k, b, kv_head, j, p.head_dim, &kv_buffer);
    T dot = 0;
    double magnitude = 0;
    for (int64_t c = 0; c < p.head_dim; ++c) {
      dot += q[static_cast<size_t>(c)] * static_cast<T>(k[c]);
      magnitude += (std::fabs(static_cast<double>(q[static_cast<size_t>(c)])) + q_step) * std::fabs(static_cast<double>(k[c]));
    }
    const float k_scale = KvScale(p, p.k_scale, b, kv_head, j);
    T score = scale * dot * static_cast<T>(k_scale);
    magnitude = Finite(magnitude * std::fabs(static_cast<double>(scale) * static_cast<double>(k_scale)));
    if (p.scores_stage == FOVEA_SCORES_RAW) row->scores[at] = score;
    if (cap > 0) score = cap * std::tanh(score / cap);
    if (p.scores_stage == FOVEA_SCORES_SOFT_CAPPED) row->scores[at] = score;
    row->magnitudes[at] = magnitude;
    if (!permitted[at]) continue;

    row->dot_magnitude = std::max(row->dot_magnitude, magnitude);
    if (p.bias.data) {
      const int64_t column = MaskColumn(p, b, j);
      const float bias = column < 0 ? 0.0f : Bias(p, b, h, i, column);
      score += static_cast<T>(bias);
      row->magnitudes[at] += Finite(std::fabs(static_cast<double>(bias)));
    }
    if (p.alibi_slopes) {
      const T slope = static_cast<T>(p.alibi_slopes[b * p.alibi_stride_batch + h]);
      const T term = slope * static_cast<T>(std::abs(KeyPosition(p, b, j) - pos));
      score -= term;
      row->magnitudes[at] += std::fabs(static_cast<double>(term));
    }
    // The kernels' units of log2(e) end at -FLT_MAX / log2(e): scores below it are -FLT_MAX. A comparison that NaN
    // fails, so that it stays.
    if ((p.bias.data || p.alibi_slopes) && score < static_cast<T>(-FLT_MAX / 1.44269504088896341))
      score = static_cast<T>(-FLT_MAX);
    if (p.scores_stage == FOVEA_SCORES_BIASED) row->scores[at] = score;
    s[at] = score;
  }

  const T sink = p.sinks ? static_cast<T>(p.sinks[h]) : minus_inf;
  T max = sink;
  for (T score : s) max = score > max ? score : max;
  const T shift = max == minus_inf ? T{0} : max;  // no finite score: exp(-inf - 0) = 0
  T sum = 0;
  std::vector<T> weights(s.size(), T{0});
  for (size_t j = 0; j < s.size(); ++j) {
    if (!permitted[j]) continue;
    weights[j] = std::exp(s[j] - shift);
    if constexpr (std::is_same_v<T, float>) {
      if (arithmetic == Arithmetic::kBf16Weights) weights[j] = Round(FOVEA_BF16, weights[j]);
    }
    sum += weights[j];
  }
  const T sink_weight = p.sinks ? std::exp(sink - shift) : T{0};
  sum += sink_weight;
  const bool empty = sum == T{0};
  row->lse = empty ? minus_inf : shift + std::log(sum);
  if (static_cast<double>(sink_weight) >= kUlp * static_cast<double>(sum) && !empty) {
    row->row_magnitude = Finite(std::fabs(static_cast<double>(sink)));
  }
  for (int64_t j = 0; j < kv_len; ++j) {
    const size_t at = static_cast<size_t>(j);
    if (!permitted[at]) continue;
    const T weight = empty ? T{0} : weights[at] / sum;
    if (p.scores_stage == FOVEA_SCORES_PROBABILITIES) row->scores[at] = weight;
    if (static_cast<double>(weight) >= kUlp && s[at] > static_cast<T>(-FLT_MAX)) {
      row->row_magnitude = std::max(row->row_magnitude, row->magnitudes[at]);
    }
    const float* v = KvRow(p, p.v, b, kv_head, j, VHeadDim(p), &kv_buffer);
    const float v_scale = KvScale(p, p.v_scale, b, kv_head, j);
    const T scaled = weight * static_cast<T>(v_scale);
    for (int64_t c = 0; c < VHeadDim(p); ++c) {
      if (!empty) row->out[static_cast<size_t>(c)] += scaled * static_cast<T>(v[c]);
      row->v_magnitude = std::max(row->v_magnitude, Finite(std::fabs(static_cast<double>(v[c]) * static_cast<double>(v_scale))));
    }
  }
  row->spreads.assign(arithmetic == Arithmetic::kBf16Weights ? row->out.size() : 0, 0);
  for (int64_t j = 0; j < kv_len && arithmetic == Arithmetic::kBf16Weights; ++j) {
    const size_t at = static_cast<size_t>(j);
    if (!permitted[at] || empty) continue;
    const double weight = static_cast<double>(weights[at] / sum);
    const float* v = KvRow(p, p.v, b, kv_head, j, VHeadDim(p), &kv_buffer);
    for (size_t c = 0; c < row->out.size(); ++c) {
      row->spreads[c] += Finite(weight * std::fabs(static_cast<double>(v[c]) - static_cast<double>(row->out[c])));
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    for (float& x : row->out) x = Round(p.out.dtype, x);
  }
}

template void EvaluateRow(const fovea_attention_params&, int64_t, int64_t, int64_t, ReferenceRow<double>*, Arithmetic);
template void EvaluateRow(const fovea_attention_params&, int64_t, int64_t, int64_t, ReferenceRow<float>*, Arithmetic);

namespace {

// One compared element; the bound is known only when the whole head has been seen.
struct Difference {
  double error = 0, naive = 0, magnitude = 0, rounding = 0;  // rounding: what the bound is wider by
  int64_t i = 0, c = 0;
  double got = 0, want = 0;
};

enum class Infinite { kExact, kMayBeNan };

// largest: the largest finite number of the type that got was stored as.
double Distance(double got, double want, Infinite infinite, double largest) {
  if (std::isinf(got) && std::fabs(want) > largest && std::signbit(got) == std::signbit(want)) return 0;
  if (std::isnan(want)) return std::isnan(got) ? 0 : kInf;
  if (std::isinf(want)) return got == want || (infinite == Infinite::kMayBeNan && std::isnan(got)) ? 0 : kInf;
  return std::isfinite(got) ? std::fabs(got - want) : kInf;
}

// Appends the elements of one row, or only the worst of those that share a magnitude, which is all that the bound
// needs.
void Compare(const float* got, int64_t got_stride, const std::vector<double>& want, const std::vector<float>& naive,
             int64_t i, Infinite infinite, const double* magnitudes, double magnitude, std::vector<Difference>* all, double largest = kInf,
             const std::vector<double>& roundings = {}) {
  Difference worst;
  worst.error = -1;
  double worst_naive = 0;
  for (size_t c = 0; c < want.size(); ++c) {
    Difference d;
    d.i = i;
    d.c = static_cast<int64_t>(c);
    d.got = static_cast<double>(got[d.c * got_stride]);
    d.want = want[c];
    d.error = Distance(d.got, d.want, infinite, largest);
    d.naive = Finite(Distance(static_cast<double>(naive[c]), d.want, infinite, largest));
    if (magnitudes || !roundings.empty()) {
      d.magnitude = magnitudes ? magnitudes[c] : magnitude;
      d.rounding = roundings.empty() ? 0 : roundings[c];
      all->push_back(d);
    } else if (d.error > worst.error) {
      worst = d;
    }
    worst_naive = std::max(worst_naive, d.naive);
  }
  if (magnitudes || want.empty()) return;
  if (!roundings.empty()) {
    for (size_t c = all->size() - want.size(); c < all->size(); ++c) (*all)[c].naive = worst_naive;
    return;
  }
  worst.magnitude = magnitude;
  worst.naive = worst_naive;
  all->push_back(worst);
}

// Judges a head's differences; unit is what the bound is relative to, factor * 4 u (1 + magnitude), and floor_magnitude
// the least magnitude of any row.
void Judge(const std::vector<Difference>& all, double unit, double factor, double floor_magnitude, int64_t b, int64_t h,
           OutputCheck* check) {
  for (const Difference& d : all) {
    const double floor = factor * 4 * kUlp * (1 + std::max(floor_magnitude, d.magnitude)) * unit + d.rounding;
    // A result among the subnormal numbers cannot be closer than their spacing.
    const double bound = std::max({floor, 2 * d.naive, 4.0 * static_cast<double>(FLT_TRUE_MIN)});
    const double scale = unit > 0 ? 1 / unit : 1;
    check->error = std::max(check->error, d.error * scale);
    check->naive = std::max(check->naive, d.naive * scale);
    if (d.error / bound <= check->ratio) continue;
    check->ratio = d.error / bound;
    check->b = b;
    check->h = h;
    check->i = d.i;
    check->c = d.c;
    check->got = d.got;
    check->want = d.want;
    check->bound = bound;
  }
}

}  // namespace

AttentionCheck CheckAttention(const fovea_attention_params& p, int64_t row_step, Arithmetic arithmetic) {
  AttentionCheck check;
  ReferenceRow<double> oracle;
  ReferenceRow<float> naive;
  std::vector<Difference> out, lse, scores;
  std::vector<float> got;
  const double weight_rounding = 1.04 * 0x1p-8, out_rounding = p.out.dtype == FOVEA_BF16 ? 0x1p-8 : p.out.dtype == FOVEA_F16 ? 0x1p-11 : 0;
  std::vector<double> out_roundings, lse_roundings(arithmetic == Arithmetic::kBf16Weights ? 1 : 0, weight_rounding);
  const double largest = p.out.dtype == FOVEA_F16 ? 65504 : p.out.dtype == FOVEA_BF16 ? 0x1.FEp127 : static_cast<double>(FLT_MAX);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      out.clear();
      lse.clear();
      scores.clear();
      double dot_magnitude = 0, v_magnitude = 0;
      for (int64_t i = 0; i < QLen(p, b); i += row_step) {
        EvaluateRow(p, b, h, i, &oracle, arithmetic);
        EvaluateRow(p, b, h, i, &naive, arithmetic);
        out_roundings = oracle.spreads;
        for (size_t c = 0; c < out_roundings.size(); ++c) {
          out_roundings[c] = weight_rounding * out_roundings[c] + out_rounding * Finite(std::fabs(oracle.out[c])) +
                             0x1p-125 * static_cast<double>(KvLen(p, b));
        }
        dot_magnitude = std::max(dot_magnitude, oracle.dot_magnitude);
        v_magnitude = std::max(v_magnitude, oracle.v_magnitude);
        Compare(Row(p.out, p.cu_seqlens_q, b, h, i, VHeadDim(p), &got), 1, oracle.out, naive.out, i,
                Infinite::kMayBeNan, nullptr, oracle.row_magnitude, &out, largest, out_roundings);
        if (p.lse.data) {
          Compare(Row(p.lse, p.cu_seqlens_q, b, h, i, 1, &got), 1, {oracle.lse}, {naive.lse}, i, Infinite::kExact,
                  nullptr, std::max(oracle.row_magnitude, Finite(std::fabs(oracle.lse))), &lse, kInf, lse_roundings);
        }
        if (p.scores.data) {
          oracle.magnitudes.resize(oracle.scores.size(), 0);
          const bool probabilities = p.scores_stage == FOVEA_SCORES_PROBABILITIES;
          std::vector<double> roundings;
          for (double weight : oracle.scores) {
            if (probabilities && arithmetic == Arithmetic::kBf16Weights) roundings.push_back(weight_rounding * Finite(weight));
          }
          Compare(Row(p.scores, p.cu_seqlens_q, b, h, i, p.kv_len, &got), p.scores.stride_col, oracle.scores, naive.scores,
                  i, Infinite::kExact, probabilities ? nullptr : oracle.magnitudes.data(), oracle.row_magnitude,
                  &scores, kInf, roundings);
        }
      }
      const double walk = std::max(1.0, std::sqrt(static_cast<double>(p.head_dim)) / 4);
      Judge(out, v_magnitude, 1, dot_magnitude, b, h, &check.out);
      Judge(lse, 1, walk, dot_magnitude, b, h, &check.lse);
      Judge(scores, 1, walk, dot_magnitude, b, h, &check.scores);
    }
  }
  return check;
}

}  // namespace fovea
