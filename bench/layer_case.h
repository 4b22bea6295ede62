// A whole attention layer as a case: its stages by the library's single functions, timed each, and the call that does all of them.
#ifndef FOVEA_BENCH_LAYER_CASE_H_
#define FOVEA_BENCH_LAYER_CASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "fovea/fovea.h"

namespace fovea_bench {

// q_len new tokens, whose rows are the last of the kv_len that the cache holds afterwards. f32.
struct LayerShape {
  Shape attention;
  int64_t d_model;
};

// "layer/f32/m4096/d128/s512/h32x8/causal/t1@AVX2"
std::string Name(const LayerShape& shape);

class LayerCase {
 public:
  static constexpr int kStages = 5, kWhole = 4;
  static constexpr const char* kStageNames[kStages] = {"qkv", "append", "attention", "out", "whole"};

  // Fills the buffers, runs every stage once, and checks: projections, keys in the cache and attention by samples against f64, the whole against
  // the stages, bit for bit. Throws std::runtime_error.
  explicit LayerCase(const LayerShape& shape);

  double Run(int stage);  // seconds
  void MeasureLimits(int stage, Round* round) const;
  Result Summarize(int stage, const std::vector<Round>& rounds) const;

  double flop(int stage) const { return flop_[stage]; }
  double bytes(int stage) const;  // weights, keys and values that the stage reads, once
  const std::string& kernels() const { return kernels_; }

 private:
  void AddWeights();
  void Check();
  // Largest errors of a sample, of the library and of a plain float32 evaluation.
  struct Errors {
    double ours = 0, naive = 0;
    void Add(double our, double plain);
  };
  Errors CheckProjection(const fovea_linear_params& p) const;
  Errors CheckKeys() const;
  Errors CheckAttention() const;

  LayerShape shape_;
  std::string kernels_;
  Floats weights_, x_, q_, q_rotated_, k_new_, v_new_, k_, v_, o_, y_, cos_, sin_, workspace_;
  fovea_exec exec_;
  fovea_linear_params linear_[4];  // q, k, v, out
  fovea_rope_params rope_, k_rope_;
  fovea_kv_append_params append_;
  fovea_attention_params attention_, options_;
  fovea_mha_params mha_;
  int32_t start_ = 0;
  double flop_[kStages] = {};
  Errors errors_[kStages];
  std::vector<Span> spans_[kStages];
};

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_LAYER_CASE_H_
