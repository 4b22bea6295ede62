// One call of the operator with all its memory guarded: built from a CaseSpec, run, and judged by the oracle.
#ifndef FOVEA_TESTS_HARNESS_ATTENTION_CASE_H_
#define FOVEA_TESTS_HARNESS_ATTENTION_CASE_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fovea/fovea.h"
#include "tests/harness/guarded_buffer.h"
#include "tests/harness/random.h"
#include "tests/harness/test_tensor.h"

namespace fovea_test {

enum Option : uint32_t {
  kCausal = 1u << 0,
  kBottomRight = 1u << 1,
  kQOffset = 1u << 2,
  kQOffsets = 1u << 3,
  kWindowLeft = 1u << 4,
  kWindowRight = 1u << 5,
  kSoftCap = 1u << 6,
  kScale = 1u << 7,
  kMask = 1u << 8,
  kBias = 1u << 9,
  kMaskKvLen = 1u << 10,
  kMaskRight = 1u << 11,
  kMaskOffsets = 1u << 12,
  kAlibi = 1u << 13,
  kSinks = 1u << 14,
  kQLens = 1u << 15,
  kKvLens = 1u << 16,
  kPackedQ = 1u << 17,
  kPackedKv = 1u << 18,
  kNoLse = 1u << 19,
  kStrides = 1u << 20,    // any order of dimensions, gaps, negative strides
  kBroadcast = 1u << 21,  // with kStrides: inputs with stride 0
  kPoison =
      1u << 22,  // NaN and Inf in every K and V row that no query may attend to, NaN in bias where the rest forbids
  kSpread = 1u << 23,  // larger scores: peaked weights, many rescales
  kPaged = 1u << 24,   // keys in pages, in random order, some shared; with kPoison garbage in entries that no row needs
  kQPositions = 1u << 25,   // instead of q_offset, q_offsets and q_align
  kKvPositions = 1u << 26,  // some negative
  kAllOptions = (1u << 27) - 1
};

// Element values depend on seed and on (sequence, head, row, column) only, so that cases of the same seed and shape
// which differ in strides, packing or lengths given otherwise hold the same numbers.
struct CaseSpec {
  uint64_t seed = 1;
  int64_t batch = 1, num_q_heads = 1, num_kv_heads = 1, q_len = 1, kv_len = 1, head_dim = 1;
  int64_t v_head_dim = 0;  // 0 = head_dim
  uint32_t options = 0;
  int32_t scores_stage = FOVEA_SCORES_NONE;
  // F32, BF16 or F16. The numbers are those of F32, rounded. k and v also I8, with scales: of rows, of K's columns, both, or none.
  fovea_dtype q_dtype = FOVEA_F32, k_dtype = FOVEA_F32, v_dtype = FOVEA_F32, out_dtype = FOVEA_F32, bias_dtype = FOVEA_F32;
};

enum class ShapeKind { kAny, kPrefill, kFewRows };

// Extents around every tile edge whose work is at most max_work (see CaseWork).
CaseSpec RandomSpec(uint64_t seed, ShapeKind kind, uint32_t options, int32_t scores_stage, int64_t max_work);

class AttentionCase {
 public:
  explicit AttentionCase(const CaseSpec& spec);

  // Valid as it stands. Tests change what they like; memory belongs to the tensors below.
  fovea_attention_params p;
  CaseSpec spec;
  std::unique_ptr<TestTensor> q, k, v, out, lse, scores, mask, bias, k_scale, v_scale,
      k_channel_scale;  // from lse on: NULL where p has none

  // Replace mask or bias by a dense one of [batch][num_q_heads][q_len][kv_len] (or of mask_kv_len, if set before).
  void SetMask(const std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)>& may_attend);
  void SetBias(const std::function<float(int64_t b, int64_t h, int64_t i, int64_t j)>& value);

  int64_t group() const { return p.num_q_heads / p.num_kv_heads; }
  float Lse(int64_t b, int64_t h, int64_t i) const { return lse->F32(b, h, i); }  // padded only
  float Out(int64_t b, int64_t h, int64_t i, int64_t c) const { return out->Get(b, h, i, c); }

  // Where key j of sequence b lies in k and v: (batch or page, row).
  std::pair<int64_t, int64_t> KvPlace(int64_t b, int64_t j) const;

  void ClearOutputs();  // every element to a NaN of its own
  std::string Describe() const;

 private:
  friend std::string RunAndCheck(AttentionCase* c, const fovea_exec* exec);
  void AddPositions(Guard guard);
  void AddPages(Rng* layout, Guard guard, Shape* kv_shape);
  void Fill(TestTensor* t, uint64_t tag, bool queries, float factor);
  void AddMaskAndBias(Rng* rng, Guard guard);
  void Poison();
  void Quantize(Rng* layout);

  GuardedArray<int32_t> q_lens_, kv_lens_, cu_q_, cu_kv_, q_offsets_, mask_offsets_, block_table_, q_positions_,
      kv_positions_;
  GuardedArray<float> alibi_, sinks_;
};

// F32, then BF16: the rest of the test case runs once per type (doctest's SUBCASE). bf16 is not only converted: AVX3_BF16 and NEON_BFDOT
// have a prefill of their own for it.
fovea_dtype EachInputType();

// An exec with defaults and this number of threads.
fovea_exec Threads(int32_t num_threads, uint32_t flags = 0);

// Runs c: describe() must name this run's target; the call must succeed; every output must be within its bound and
// everything else unchanged. exec NULL draws threads and workspace (a guarded one of exactly the size asked for) from
// the seed.
// "" or what is wrong, with the command that repeats it.
std::string RunAndCheck(AttentionCase* c, const fovea_exec* exec = nullptr);

// Runs p; throws std::runtime_error with the library's text if it fails. describe() must name this run's target.
void Run(const fovea_attention_params& p, const fovea_exec* exec = nullptr);

// Everything that a call wrote for sequence b (of all: b = -1), in logical order: out, lse, scores of its own keys.
std::vector<float> Outputs(const fovea_attention_params& p, int64_t b = -1);

// "" if a and b have the same bits, else where they first differ. NaNs are equal whatever their payload.
std::string BitDifference(const std::vector<float>& a, const std::vector<float>& b);

// Params that compute sequence b of p alone: a batch of 1, padded, its lengths the tensors' own. Outputs are p's own
// rows.
fovea_attention_params AloneParams(const fovea_attention_params& p, int64_t b);

// "target AVX2: <text>; repeat with FOVEA_TARGET=... FOVEA_TEST_SEED=... fovea_tests -tc=..." for the test that runs.
std::string Repeat(uint64_t seed, const std::string& text);
// The same of a case's fields, "name value ".
std::string Repeat(uint64_t seed, std::initializer_list<std::pair<const char*, int64_t>> fields);

// By chance a workspace of so many bytes for exec, to be kept while it is used: of any alignment, no byte more than asked for, and NaN wherever
// it is read before it is written.
GuardedBuffer DrawWorkspace(Rng* rng, size_t bytes, fovea_exec* exec);

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_ATTENTION_CASE_H_
