// The operator evaluated straight from its definition in fovea.h, one row at a time, for the tests and `fovea attend
// --check`: in double it is the oracle, in float the naive evaluation that the error bound is stated against. Slow, and
// meant to be right at a glance. Params must be valid (fovea_attention_forward took them); scale NaN and v_head_dim 0
// are understood.
#ifndef FOVEA_LIB_REFERENCE_H_
#define FOVEA_LIB_REFERENCE_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "fovea/fovea.h"

namespace fovea {

// Whether query i of head h may attend to key j, both within sequence b; j < that sequence's kv_len. Reads mask and
// bias only.
bool Permitted(const fovea_attention_params& p, int64_t b, int64_t h, int64_t i, int64_t j);

template <typename T>
struct ReferenceRow {
  std::vector<T> out;  // [v_head_dim]
  T lse;
  std::vector<T> scores;  // [p.kv_len], of p.scores_stage; empty without scores

  // For the error bound, in double whatever T is. Values that are not finite are left out.
  std::vector<double>
      magnitudes;        // per key: sum_k |scale q_k k_k| + |bias| + |alibi term|, the latter two where permitted
  double dot_magnitude;  // max over permitted keys of sum_k |scale q_k k_k|
  double row_magnitude;  // max of magnitudes over the keys that matter, P >= 2^-24 and S > -FLT_MAX (all such scores
                         // are equal, exactly), and of |sink| where its weight is as much
  double v_magnitude;  // max |V| over permitted keys
  std::vector<double> spreads;  // per column: sum_j P_j |V_j - O|, what O moves by if each P moves by its own size; with kBf16Weights only
};

// What the kernels' arithmetic has beside f32, for the bounds and for EvaluateRow<float>.
enum class Arithmetic {
  kF32,
  kBf16Weights,  // exp(S_j - m) is rounded to bf16 before it is summed and used
  kInt8Dot,      // int8 k by integers: q scaled is rounded to fixed point, by max |q| 2^-23; magnitudes have |q| + max |q| / 2 for |q|
};

// T = double or float. In T throughout, no fused multiply-add, sums in the order of the index, std::exp, std::tanh,
// std::log:
//   S_j = scale * sum_k q_k k_jk; soft cap; S_j += bias_j - slope |j - pos|, -FLT_MAX if below -FLT_MAX / log2(e)
//   m = max(S_j, sink); l = sum_j exp(S_j - m) + exp(sink - m); P_j = exp(S_j - m) / l; O = sum_j P_j V_j; LSE = m +
//   log(l)
// With T = float out is rounded to its dtype. I8: S_j = (scale * sum_k (q_k channel_k) k_jk) * k_scale_j, O = sum_j (P_j v_scale_j) V_j.
// K, V and bias of a key that is not permitted are not read; for RAW and SOFT_CAPPED scores, K of every key is.
template <typename T>
void EvaluateRow(const fovea_attention_params& p, int64_t b, int64_t h, int64_t i, ReferenceRow<T>* row,
                 Arithmetic arithmetic = Arithmetic::kF32);

// Of a call for which fovea_attention_describe() gave these kernels.
inline Arithmetic ArithmeticOf(const fovea_attention_info& info) {
  if (std::strstr(info.kernels, "_bf16")) return Arithmetic::kBf16Weights;
  return std::strstr(info.kernels, "decode_i8") ? Arithmetic::kInt8Dot : Arithmetic::kF32;
}

// One output against the oracle.
struct OutputCheck {
  double error = 0;  // the largest: of out relative to its head's largest permitted |V|; of lse and scores absolute
  double naive = 0;  // the same of the naive f32 evaluation
  double ratio =
      0;  // the largest error / bound, infinite where one is NaN or infinite and the other is not. Right if <= 1
  int64_t b = 0, h = 0, i = 0, c = 0;  // where ratio is largest, and what was there
  double got = 0, want = 0, bound = 0;
};

struct AttentionCheck {
  OutputCheck out, lse, scores;  // those that p does not have stay 0
  bool passed() const { return out.ratio <= 1 && lse.ratio <= 1 && scores.ratio <= 1; }
};

// Compares what a call of fovea_attention_forward(&p, ...) has written, every row_step-th row of each head, with the
// oracle. The bound of lib/NUMERICS.md, for row i of one head, with u = 2^-24:
//   out      |out - f64| <= max(4 u (1 + max(D, R_i)) V,  2 |naive_i - f64|)      V = the head's largest permitted |V|
//   lse      |lse - f64| <= max(4 u w (1 + max(D, R_i, |lse|)),  2 |naive_i - f64|)
//   scores   likewise, with max(D, the element's own magnitude) for RAW to BIASED, max(D, R_i) for PROBABILITIES
// D = max over the head of dot_magnitude, R_i = row_magnitude of the row, w = max(1, sqrt(head_dim) / 4): the rounding
// errors of a sum in order add up like a random walk, which a softmax averages and a single score does not. A naive
// that is not finite counts as exact. In bf16 and f16 naive and out are rounded at the same point; past the largest finite number of out's dtype
// Inf is right. An out of +-Inf (from Inf in a permitted V) may be NaN as well: P may be 0 in
// f32. kInt8Dot: magnitudes are larger, see there. kBf16Weights adds to the first of both, with e = 1.04 2^-8 for the rounding of P and its exp2:
//   out      e spread + u' |f64|, and 2^-125 per key for what is flushed to 0      u' of out's dtype: 2^-8, 2^-11 or 0
//   lse      e
//   scores   e P for PROBABILITIES
AttentionCheck CheckAttention(const fovea_attention_params& p, int64_t row_step = 1, Arithmetic arithmetic = Arithmetic::kF32);

}  // namespace fovea

#endif  // FOVEA_LIB_REFERENCE_H_
