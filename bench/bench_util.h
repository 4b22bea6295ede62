// What the benches and `fovea sweep` share: one call of attention as a case with its own buffers, checked against the
// oracle, and timed in turn with this machine's limits.
#ifndef FOVEA_BENCH_BENCH_UTIL_H_
#define FOVEA_BENCH_BENCH_UTIL_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bench/roofline.h"
#include "fovea/fovea.h"

namespace fovea_bench {

struct Shape {
  std::string op = "prefill";  // or "decode": the name, and what bandwidth_fraction is relative to
  fovea_dtype dtype = FOVEA_F32;  // of q, k, v, out and bias; I8: of k and v, with a scale for each row, the rest F32
  int64_t batch = 1, num_q_heads = 8, num_kv_heads = 8;
  int64_t q_len = 2048, kv_len = 2048, head_dim = 128;
  bool causal = false;  // the last query stands at the last key
  int64_t window = 0;   // keys that a query sees, itself included; 0 = all
  float soft_cap = 0;
  bool bias = false;  // one [q_len][kv_len] for all heads
  bool sinks = false;
  int64_t row_stride =
      0;  // elements from row to row of a [batch][rows][heads][head_dim] layout; 0 = [batch][heads][rows][head_dim]
  int64_t page_size = 0;  // keys of a page of K and V, [pages][num_kv_heads][page_size][head_dim] in random order; 0 = not paged. batch 1, not I8
  int threads = 1;
  std::string target;
};

// "prefill/f32/d128/s2048/h8/causal/t1@AVX2", "decode/f32/d128/kv8192/h32x8/t2@AVX2"
std::string Name(const Shape& shape);

// Uninitialized floats, aligned to 64 bytes.
struct FreeFloats {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;
Floats NewFloats(int64_t count);
// Nearly normal, mean 0, deviation 1, a nanosecond each; stored as dtype (F32, BF16 or F16).
Floats RandomFloats(int64_t count, uint64_t seed, fovea_dtype dtype = FOVEA_F32);

// One measurement: the call, and what the machine gave right after it.
struct Round {
  double seconds = 0;
  double fma_rate = 0;   // FLOP/s: of FMAs, or of dot products of bf16 where the call's products are made of it
  double read_rate = 0;  // bytes/s over as much as the call reads of K and V
};

struct Result {
  double seconds = 0, gflops = 0, gbps = 0;  // medians; gbps of K and V
  double fma_fraction = 0;                   // medians of ratios within a round
  // Prefill: of the read rate. Decode: of the lower of the read rate and what 0.75 of the FMA rate could consume.
  double bandwidth_fraction = 0;
  double fma_gflops = 0, read_gbps = 0;
  double max_err = 0;    // of the sampled rows, relative to their head's largest |V|
  double naive_err = 0;  // of the naive f32 evaluation, its O rounded to the dtype
  int rounds = 0;
};

// Of a call that does `flop` and reads `bytes`.
Result Summarize(const std::vector<Round>& rounds, double flop, double bytes, bool decode);

class Case {
 public:
  // Fills the buffers, runs once and checks a sample of rows. Throws std::runtime_error: fovea_last_error(), or a
  // result past tolerance. Chooses the shape's target for the process.
  explicit Case(const Shape& shape);

  double Run();                      // seconds of one call
  void MeasureLimits(Round* round);  // rates, the same threads and target
  Result Summarize(const std::vector<Round>& rounds) const;

  const Shape& shape() const { return shape_; }
  const fovea_attention_info& info() const { return info_; }
  double kv_bytes() const { return static_cast<double>(spans_[0].bytes + spans_[1].bytes); }

 private:
  void Check();

  Shape shape_;
  Floats q_, k_, v_, k_scale_, v_scale_, out_, bias_, sinks_, workspace_;
  std::vector<int32_t> block_table_;
  fovea_attention_params params_;
  fovea_exec exec_;
  fovea_attention_info info_;
  std::vector<Span> spans_;  // of K and V, as much as the permitted keys are
  double max_err_ = 0, naive_err_ = 0;
};

// Targets that this CPU runs, best first, and the one that fovea takes.
std::vector<std::string> RunnableTargets();
std::string ChosenTarget();

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_BENCH_UTIL_H_
