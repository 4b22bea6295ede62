// fovea_rope against f64, and the tables of fovea_rope_tables against their formulas in long double.
#include <doctest/doctest.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"
#include "tests/harness/guarded_buffer.h"
#include "tests/harness/random.h"
#include "tests/harness/test_tensor.h"

namespace fovea_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 0x1p-24;

void Fill(TestTensor& t, uint64_t seed, uint64_t tag) {
  const Shape& s = t.shape();
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t i = 0; i < s.rows; ++i) {
        for (int64_t c = 0; c < s.cols; ++c) t.Set(b, h, i, c, NormalFromBits(ElementBits(seed, tag, b, h, i, c)));
      }
    }
  }
}

struct RopeSpec {
  uint64_t seed = 1;
  int64_t batch = 1, num_heads = 1, q_len = 1, head_dim = 2, rotary_dim = 0, num_positions = 1, table_batch = 1;
  bool interleaved = false, in_place = false, packed = false, lens = false, strides = false;
  enum { kOffset, kOffsets, kIds, kSharedIds } positions = kOffset;
  fovea_dtype x = FOVEA_F32, out = FOVEA_F32, tables = FOVEA_F32;  // x is out's in place
};

// A call with all its memory guarded.
struct RopeCase {
  explicit RopeCase(const RopeSpec& s) : spec(s) {
    Rng rng(s.seed);
    const Guard guard = rng.Chance(50) ? Guard::kAfter : Guard::kBefore;
    std::vector<int32_t> lens, cu = {0};
    for (int64_t b = 0; b < s.batch; ++b) {
      lens.push_back(static_cast<int32_t>(s.packed || s.lens ? rng.Int(0, s.q_len) : s.q_len));
      cu.push_back(cu.back() + lens.back());
    }
    const int64_t total = cu.back() + (s.packed ? rng.Int(0, 2) : 0);  // rows of no sequence
    const Shape shape = {s.packed ? 1 : s.batch, s.num_heads, s.packed ? total : s.q_len, s.head_dim};
    const int64_t half = (s.rotary_dim ? s.rotary_dim : s.head_dim) / 2;
    const Shape table = {s.table_batch, 1, s.num_positions, half};
    const auto make = [&](fovea_dtype dtype, const Shape& of, bool input) {
      return std::make_unique<TestTensor>(dtype, of,
                                          s.strides ? RandomStrides(&rng, of, false, input) : DenseStrides(of), guard);
    };
    out = make(s.out, shape, false);
    if (!s.in_place) x = make(s.x, shape, true);
    cos = make(s.tables, table, true);
    sin = make(s.tables, table, true);
    Fill(s.in_place ? *out : *x, s.seed, 1);
    Fill(*cos, s.seed, 2);
    Fill(*sin, s.seed, 3);
    fovea_rope_params_init(&p, sizeof p);
    p.batch = s.batch;
    p.num_heads = s.num_heads;
    p.q_len = s.packed && rng.Chance(50) ? 0 : s.q_len;
    p.head_dim = s.head_dim;
    p.rotary_dim = s.rotary_dim;
    p.out = out->view();
    p.x = s.in_place ? p.out : x->view();
    p.cos = cos->view();
    p.sin = sin->view();
    p.num_positions = s.num_positions;
    p.table_batch = s.table_batch == 1 ? rng.Int(0, 1) : s.table_batch;
    p.interleaved = s.interleaved;
    if (s.packed) {
      cu_ = GuardedArray<int32_t>(cu, guard);
      p.cu_seqlens_q = cu_.data();
      p.total_q = total;
    } else if (s.lens) {
      lens_ = GuardedArray<int32_t>(lens, guard);
      p.q_lens = lens_.data();
    }
    std::vector<int32_t> positions;
    if (s.positions == RopeSpec::kOffset) {
      p.position_offset = rng.Int(0, s.num_positions - s.q_len);
    } else if (s.positions == RopeSpec::kOffsets) {
      for (int64_t b = 0; b < s.batch; ++b)
        positions.push_back(static_cast<int32_t>(rng.Int(0, s.num_positions - s.q_len)));
      positions_ = GuardedArray<int32_t>(positions, guard);
      p.position_offsets = positions_.data();
    } else {
      p.position_ids_stride = s.packed ? -7 : s.positions == RopeSpec::kSharedIds ? 0 : s.q_len + rng.Int(0, 2);
      const int64_t count = s.packed ? total : (s.batch - 1) * p.position_ids_stride + s.q_len;
      for (int64_t n = 0; n < count; ++n) positions.push_back(static_cast<int32_t>(rng.Int(0, s.num_positions - 1)));
      for (int64_t b = 0; s.lens && p.position_ids_stride > 0 && b < s.batch; ++b) {  // of rows that are not there
        for (int64_t i = lens[static_cast<size_t>(b)]; i < s.q_len; ++i) {
          positions[static_cast<size_t>(b * p.position_ids_stride + i)] = -123;
        }
      }
      positions_ = GuardedArray<int32_t>(positions, guard);
      p.position_ids = positions_.data();
    }
    Snapshot();
  }

  void Snapshot() {
    for (TestTensor* t : {out.get(), x.get(), cos.get(), sin.get()}) {
      if (t) t->Snapshot();
    }
    before.clear();
    ForRows([&](int64_t b, int64_t i) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        for (int64_t c = 0; c < p.head_dim; ++c) before.push_back(Get(spec.in_place ? *out : *x, b, h, i, c));
      }
    });
  }

  int64_t Len(int64_t b) const {
    return p.cu_seqlens_q ? p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] : p.q_lens ? p.q_lens[b] : spec.q_len;
  }
  void ForRows(const std::function<void(int64_t b, int64_t i)>& body) const {
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t i = 0; i < Len(b); ++i) body(b, i);
    }
  }
  float Get(const TestTensor& t, int64_t b, int64_t h, int64_t i, int64_t c) const {
    return p.cu_seqlens_q ? t.Get(0, h, p.cu_seqlens_q[b] + i, c) : t.Get(b, h, i, c);
  }
  int64_t Position(int64_t b, int64_t i) const {
    if (p.position_ids) return p.position_ids[(p.cu_seqlens_q ? p.cu_seqlens_q[b] : b * p.position_ids_stride) + i];
    return i + (p.position_offsets ? p.position_offsets[b] : p.position_offset);
  }

  std::vector<float> Results() const {
    std::vector<float> all;
    ForRows([&](int64_t b, int64_t i) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        for (int64_t c = 0; c < p.head_dim; ++c) all.push_back(Get(*out, b, h, i, c));
      }
    });
    return all;
  }

  // Of the last step, into out's dtype; none where a column is copied.
  double Rounding(double value, double bound) const {
    if (p.out.dtype == FOVEA_F32 || (bound == 0 && p.x.dtype == p.out.dtype)) return 0;
    return (std::fabs(value) + bound) * (p.out.dtype == FOVEA_F16 ? 0x1p-11 : 0x1p-8) + 0x1p-25;
  }

  // "" or what is wrong with out, and with anything that should not have changed.
  std::string Check() const {
    const int64_t rotary = p.rotary_dim ? p.rotary_dim : p.head_dim, half = rotary / 2;
    std::string wrong;
    size_t n = 0;
    ForRows([&](int64_t b, int64_t i) {
      const int64_t pos = Position(b, i), table = p.table_batch > 1 ? b : 0;
      for (int64_t h = 0; h < p.num_heads; ++h, n += static_cast<size_t>(p.head_dim)) {
        for (int64_t c = 0; c < p.head_dim; ++c) {
          double expected = static_cast<double>(before[n + static_cast<size_t>(c)]), bound = 0;
          if (c < rotary) {
            const int64_t j = p.interleaved ? c / 2 : c % half;
            const bool second = p.interleaved ? c % 2 == 1 : c >= half;
            const int64_t other = p.interleaved ? c ^ 1 : second ? c - half : c + half;
            const double a = expected * static_cast<double>(cos->Get(table, 0, pos, j));
            const double s = static_cast<double>(before[n + static_cast<size_t>(other)]) *
                             static_cast<double>(sin->Get(table, 0, pos, j));
            expected = second ? a + s : a - s;
            bound = 2.001 * kUnit * (std::fabs(a) + std::fabs(s)) + 0x1p-149;
          }
          bound += Rounding(expected, bound);
          const double got = static_cast<double>(Get(*out, b, h, i, c));
          if (!(std::fabs(got - expected) <= bound) && wrong.empty()) {
            wrong = "sequence " + std::to_string(b) + " head " + std::to_string(h) + " row " + std::to_string(i) +
                    " column " + std::to_string(c) + ": " + std::to_string(got) + ", f64 " + std::to_string(expected);
          }
        }
      }
    });
    const auto written = [&](int64_t b, int64_t, int64_t i) {
      return p.cu_seqlens_q ? i < p.cu_seqlens_q[p.batch] : i < Len(b);
    };
    if (wrong.empty()) wrong = out->Changed(written);
    for (const TestTensor* t : {x.get(), cos.get(), sin.get()}) {
      if (wrong.empty() && t) wrong = t->Changed();
    }
    return wrong;
  }

  std::string Describe() const {
    return Repeat(spec.seed, {{"batch", spec.batch},
                              {"heads", spec.num_heads},
                              {"q_len", spec.q_len},
                              {"head_dim", spec.head_dim},
                              {"rotary_dim", spec.rotary_dim},
                              {"positions", spec.positions},
                              {"table_batch", spec.table_batch},
                              {"interleaved", spec.interleaved},
                              {"in_place", spec.in_place},
                              {"packed", spec.packed},
                              {"lens", spec.lens},
                              {"strides", spec.strides},
                              {"x", spec.x},
                              {"out", spec.out},
                              {"tables", spec.tables}});
  }

  RopeSpec spec;
  fovea_rope_params p;
  std::unique_ptr<TestTensor> out, x, cos, sin;
  std::vector<float> before;  // x, in the order of Results()

 private:
  GuardedArray<int32_t> cu_, lens_, positions_;
};

RopeSpec RandomRope(uint64_t seed) {
  Rng rng(seed);
  RopeSpec s;
  s.seed = seed;
  s.batch = rng.Pick({1, 1, 2, 3});
  s.num_heads = rng.Pick({1, 2, 3, 8});
  s.q_len = rng.Pick({0, 1, 1, 2, 3, 31, 32, 33, 65});
  s.head_dim = rng.Pick({1, 2, 3, 4, 5, 6, 8, 10, 14, 16, 18, 30, 32, 34, 64, 66, 126, 128, 130, 256});
  s.rotary_dim = rng.Chance(50) || s.head_dim == 1 ? 0 : 2 * rng.Int(1, s.head_dim / 2);
  if (s.rotary_dim == 0) s.head_dim += s.head_dim % 2;
  s.interleaved = rng.Chance(50);
  s.in_place = rng.Chance(40);
  s.packed = rng.Chance(25);
  s.lens = !s.packed && rng.Chance(30);
  s.strides = rng.Chance(60);
  s.positions = static_cast<decltype(s.positions)>(rng.Int(0, 3));
  s.num_positions = s.q_len + rng.Int(1, 9);
  s.table_batch = rng.Chance(30) ? s.batch : 1;
  if (rng.Chance(60)) {
    s.out = static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
    s.x = s.in_place ? s.out : static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
    s.tables = static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
  }
  return s;
}

std::string Rotate(const fovea_rope_params& p, const fovea_exec* exec = nullptr) {
  return fovea_rope(&p, exec) == FOVEA_OK ? "" : fovea_last_error();
}

// A call large enough to be spread over threads.
RopeSpec LargeSpec() {
  RopeSpec s;
  s.batch = 2;
  s.num_heads = 3;
  s.q_len = 700;
  s.head_dim = 66;
  s.rotary_dim = 60;
  s.num_positions = 900;
  s.positions = RopeSpec::kIds;
  return s;
}

}  // namespace

TEST_CASE("rope: random shapes, dtypes, strides, positions, packed and padded, in place and not, against f64") {
  const uint64_t first = FirstSeed(90000);
  for (int64_t n = 0; n < CaseCount(600); ++n) {
    RopeCase c(RandomRope(first + static_cast<uint64_t>(n)));
    INFO(c.Describe());
    REQUIRE(Rotate(c.p) == "");
    CHECK(c.Check() == "");
  }
}

TEST_CASE("rope: rows longer than the kernel's table scratch") {
  for (const bool interleaved : {false, true}) {
    RopeSpec s;
    s.num_heads = 2;
    s.q_len = 3;
    s.head_dim = 10007;
    s.rotary_dim = 10002;
    s.num_positions = 5;
    s.interleaved = interleaved;
    RopeCase c(s);
    REQUIRE(Rotate(c.p) == "");
    CHECK(c.Check() == "");
    s.out = s.tables = FOVEA_BF16;
    RopeCase converted(s);
    REQUIRE(Rotate(converted.p) == "");
    CHECK(converted.Check() == "");
  }
}

TEST_CASE("rope by hand: quarter turns") {
  float x[] = {1, 2, 3, 4, 5}, out[5];
  const float cos[] = {0, 1}, sin[] = {1, 0};
  fovea_rope_params p;
  fovea_rope_params_init(&p, sizeof p);
  p.batch = p.num_heads = p.q_len = p.num_positions = 1;
  p.head_dim = 5;
  p.rotary_dim = 4;
  p.x = fovea_tensor_bhsd(x, FOVEA_F32, 1, 1, 5);
  p.out = fovea_tensor_bhsd(out, FOVEA_F32, 1, 1, 5);
  p.cos = fovea_tensor_bhsd(cos, FOVEA_F32, 1, 1, 2);
  p.sin = fovea_tensor_bhsd(sin, FOVEA_F32, 1, 1, 2);
  REQUIRE(Rotate(p) == "");
  for (int c = 0; c < 5; ++c) CHECK(out[c] == std::vector<float>{-3, 2, 1, 4, 5}[static_cast<size_t>(c)]);
  p.interleaved = 1;
  REQUIRE(Rotate(p) == "");
  for (int c = 0; c < 5; ++c) CHECK(out[c] == std::vector<float>{-2, 1, 3, 4, 5}[static_cast<size_t>(c)]);
}

TEST_CASE("rope: same bits interleaved and half-split, in place and not, any strides") {
  for (const int64_t half : {1, 3, 4, 15, 16, 17, 33, 64}) {
    RopeSpec s;
    s.num_heads = 2;
    s.q_len = 35;
    s.head_dim = 2 * half;
    s.num_positions = 40;
    RopeCase split(s);
    s.interleaved = s.strides = s.in_place = true;
    RopeCase pairs(s);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 35; ++i) {
        for (int64_t j = 0; j < half; ++j) {
          pairs.out->F32(0, h, i, 2 * j) = split.x->F32(0, h, i, j);
          pairs.out->F32(0, h, i, 2 * j + 1) = split.x->F32(0, h, i, half + j);
        }
      }
    }
    for (int64_t i = 0; i < 40; ++i) {
      for (int64_t j = 0; j < half; ++j) {
        split.cos->F32(0, 0, i, j) = pairs.cos->F32(0, 0, i, j);  // this way round: rows of pairs' tables may be one
        split.sin->F32(0, 0, i, j) = pairs.sin->F32(0, 0, i, j);
      }
    }
    pairs.p.position_offset = split.p.position_offset;
    REQUIRE(Rotate(split.p) == "");
    REQUIRE(Rotate(pairs.p) == "");
    int64_t different = 0;
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 35; ++i) {
        for (int64_t j = 0; j < half; ++j) {
          different += pairs.out->F32(0, h, i, 2 * j) != split.out->F32(0, h, i, j);
          different += pairs.out->F32(0, h, i, 2 * j + 1) != split.out->F32(0, h, i, half + j);
        }
      }
    }
    INFO("half ", half);
    CHECK(different == 0);
  }
}

TEST_CASE("rope: same bits over threads and executors; the caller's rounding mode changes none") {
  for (const bool interleaved : {false, true}) {
    RopeSpec s = LargeSpec();
    s.interleaved = interleaved;
    RopeCase c(s);
    const fovea_exec one = Threads(1);
    REQUIRE(Rotate(c.p, &one) == "");
    CHECK(c.Check() == "");
    const std::vector<float> expected = c.Results();
    for (int n = 0; n < 5; ++n) {
      fovea_exec exec = Threads(n == 0 ? 2 : n == 1 ? 3 : 8);
      if (n == 3) exec.parallel_for = Reversed;
      if (n == 4) exec.parallel_for = StdThreads;
      for (int64_t i = 0; i < s.q_len; ++i) c.out->F32(1, 2, i, 5) = kNan;
      const int mode = fegetround();
      fesetround(FE_UPWARD);
      const std::string error = Rotate(c.p, &exec);
      const bool kept = fegetround() == FE_UPWARD;
      fesetround(mode);
      CHECK(error == "");
      CHECK(kept);
      CHECK(BitDifference(expected, c.Results()) == "");
    }
  }
}

TEST_CASE("rope: NaN and Inf reach their own pair of columns only") {
  for (const bool interleaved : {false, true}) {
    RopeSpec s;
    s.num_heads = 2;
    s.q_len = 5;
    s.head_dim = 40;
    s.num_positions = 9;
    s.interleaved = interleaved;
    RopeCase c(s);
    c.x->F32(0, 1, 3, 7) = kNan;
    c.x->F32(0, 0, 2, 30) = std::numeric_limits<float>::infinity();
    REQUIRE(Rotate(c.p) == "");
    const auto pair = [&](int64_t column, int64_t of) {
      return interleaved ? column / 2 == of / 2 : column % 20 == of % 20;
    };
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 5; ++i) {
        for (int64_t column = 0; column < 40; ++column) {
          const bool reached = (h == 1 && i == 3 && pair(column, 7)) || (h == 0 && i == 2 && pair(column, 30));
          CHECK(std::isfinite(c.out->F32(0, h, i, column)) != reached);
        }
      }
    }
  }
}

TEST_CASE("rope: bad arguments are refused by name, nothing is written") {
  struct Bad {
    std::function<void(fovea_rope_params*)> change;
    fovea_status status;
    const char* text;
  };
  static int32_t array[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  static const int32_t decreasing[] = {0, 3, 1}, far[] = {0, 5, 6, 0, 9, 1}, negative[] = {0, -1, 0, 0, 0, 0},
                       offsets[] = {0, 7};
  static float memory[4096];
  constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT, kUnsupported = FOVEA_ERR_UNSUPPORTED;
  const Bad bad[] = {
      {[](fovea_rope_params* p) { p->struct_size = 0; }, kInvalid, "struct_size"},
      {[](fovea_rope_params* p) { p->batch = 0; }, kInvalid, "batch = 0"},
      {[](fovea_rope_params* p) { p->num_heads = -1; }, kInvalid, "num_heads = -1"},
      {[](fovea_rope_params* p) { p->q_len = -2; }, kInvalid, "q_len = -2"},
      {[](fovea_rope_params* p) { p->q_len = int64_t{1} << 30; }, kInvalid, "q_len"},
      {[](fovea_rope_params* p) { p->head_dim = 0; }, kInvalid, "head_dim = 0"},
      {[](fovea_rope_params* p) { p->head_dim = INT64_MAX; }, kInvalid, "2^56"},
      {[](fovea_rope_params* p) { p->rotary_dim = 3; }, kInvalid, "rotary_dim = 3"},
      {[](fovea_rope_params* p) { p->rotary_dim = 10; }, kInvalid, "rotary_dim = 10"},
      {[](fovea_rope_params* p) { p->rotary_dim = -2; }, kInvalid, "rotary_dim = -2"},
      {[](fovea_rope_params* p) { p->x.dtype = FOVEA_DTYPE_NONE; }, kInvalid, "x.dtype"},
      {[](fovea_rope_params* p) { p->x.dtype = FOVEA_I8; }, kUnsupported, "x.dtype"},
      {[](fovea_rope_params* p) { p->cos.dtype = 77; }, kInvalid, "cos.dtype = 77"},
      {[](fovea_rope_params* p) { p->sin.data = nullptr; }, kInvalid, "sin.data"},
      {[](fovea_rope_params* p) {
         p->out.data = memory + 4;
         p->x.data = memory;
       },
       kInvalid, "out overlaps x"},
      {[](fovea_rope_params* p) { p->out.data = p->cos.data; }, kInvalid, "out overlaps cos"},
      {[](fovea_rope_params* p) {
         p->out = p->x, p->out.stride_row = p->x.stride_head, p->out.stride_head = p->x.stride_row;
       },
       kInvalid, "out overlaps"},
      {[](fovea_rope_params* p) { p->out.stride_head = 0; }, kInvalid, "out.stride_head = 0"},
      {[](fovea_rope_params* p) { p->num_positions = -1; }, kInvalid, "num_positions = -1"},
      {[](fovea_rope_params* p) { p->table_batch = 3; }, kInvalid, "table_batch = 3"},
      {[](fovea_rope_params* p) { p->interleaved = 2; }, kInvalid, "interleaved = 2"},
      {[](fovea_rope_params* p) { p->reserved = 1; }, kUnsupported, "reserved = 1"},
      {[](fovea_rope_params* p) { p->position_offset = 7; }, kInvalid, "position_offset of sequence 0 = 7"},
      {[](fovea_rope_params* p) { p->position_offset = -1; }, kInvalid, "position_offset of sequence 0 = -1"},
      {[](fovea_rope_params* p) { p->position_offset = INT64_MIN; }, kInvalid, "position_offset"},
      {[](fovea_rope_params* p) { p->position_offsets = offsets; }, kInvalid, "position_offsets of sequence 1 = 7"},
      {[](fovea_rope_params* p) { p->position_offsets = array, p->position_offset = 1; }, kInvalid,
       "position_offset = 1"},
      {[](fovea_rope_params* p) { p->position_ids = far, p->position_ids_stride = 3; }, kInvalid,
       "row 1 of sequence 1 = 9"},
      {[](fovea_rope_params* p) { p->position_ids = negative, p->position_ids_stride = 3; }, kInvalid,
       "row 1 of sequence 0 = -1"},
      {[](fovea_rope_params* p) { p->position_ids = array, p->position_ids_stride = 2; }, kInvalid,
       "position_ids_stride = 2"},
      {[](fovea_rope_params* p) { p->position_ids = array, p->position_ids_stride = INT64_MAX; }, kInvalid,
       "position_ids_stride"},
      {[](fovea_rope_params* p) { p->position_ids = array, p->position_offsets = array; }, kInvalid,
       "position_offsets is given"},
      {[](fovea_rope_params* p) { p->position_ids = static_cast<int32_t*>(p->out.data), p->position_ids_stride = 3; },
       kInvalid, "position_ids"},
      {[](fovea_rope_params* p) { p->q_lens = far; }, kInvalid, "q_lens[1] = 5"},
      {[](fovea_rope_params* p) { p->total_q = 3; }, kInvalid, "total_q = 3"},
      {[](fovea_rope_params* p) { p->cu_seqlens_q = decreasing, p->total_q = 6; }, kInvalid, "cu_seqlens_q[2] = 1"},
      {[](fovea_rope_params* p) { p->cu_seqlens_q = array, p->q_lens = array, p->total_q = 6; }, kInvalid,
       "q_lens is given"},
  };
  for (const Bad& b : bad) {
    RopeSpec s;
    s.batch = 2;
    s.num_heads = 2;
    s.q_len = 3;
    s.head_dim = 8;
    s.num_positions = 9;
    RopeCase c(s);
    c.p.position_offset = 0;
    REQUIRE(Rotate(c.p) == "");
    c.Snapshot();
    b.change(&c.p);
    INFO(std::string(b.text));
    CHECK(fovea_rope(&c.p, nullptr) == b.status);
    CHECK_MESSAGE(std::strstr(fovea_last_error(), b.text), std::string(fovea_last_error()));
    CHECK(c.out->Changed() == "");
  }
  CHECK(fovea_rope(nullptr, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
}

// ---- Tables ---------------------------------------------------------------------------------------------------------

namespace {

struct Tables {
  Tables(int64_t rotary_dim, int64_t first, int64_t rows) {
    const Shape shape = {1, 1, rows, rotary_dim / 2};
    Strides strides = DenseStrides(shape);
    strides.row += 3;
    for (auto* t : {&cos, &sin}) *t = std::make_unique<TestTensor>(FOVEA_F32, shape, strides, Guard::kAfter);
    fovea_rope_tables_params_init(&p, sizeof p);
    p.rotary_dim = rotary_dim;
    p.first_position = first;
    p.num_positions = rows;
    p.cos = cos->view();
    p.sin = sin->view();
    cos->Snapshot();
    sin->Snapshot();
  }
  // w[j], from the table's first row past position 0 (of which it must be small enough).
  double Frequency(int64_t j) const {
    return std::atan2(static_cast<double>(sin->F32(0, 0, 1, j)), static_cast<double>(cos->F32(0, 0, 1, j)));
  }
  fovea_rope_tables_params p;
  std::unique_ptr<TestTensor> cos, sin;
};

// w[j] as fovea.h has it.
long double ExactFrequency(const fovea_rope_tables_params& p, int64_t j) {
  const long double pi = 3.14159265358979323846264338327950288L;
  const auto d = static_cast<long double>(p.rotary_dim), s = static_cast<long double>(p.factor);
  const auto original = static_cast<long double>(p.original_max_position);
  auto base = static_cast<long double>(p.base);
  if (p.scaling == FOVEA_ROPE_SCALING_NTK) base *= std::pow(s, d / (d - 2));
  if (p.scaling == FOVEA_ROPE_SCALING_DYNAMIC_NTK) {
    const long double l = std::max(static_cast<long double>(p.seq_len), original);
    base *= std::pow(s * l / original - (s - 1), d / (d - 2));
  }
  const long double t = std::pow(base, -2 * static_cast<long double>(j) / d);
  if (p.scaling == FOVEA_ROPE_SCALING_LINEAR) return t / s;
  if (p.scaling == FOVEA_ROPE_SCALING_YARN) {
    const auto dim = [&](double b) {
      return d * std::log(original / (2 * pi * static_cast<long double>(b))) / (2 * std::log(base));
    };
    long double lo = dim(p.beta_fast), hi = dim(p.beta_slow);
    if (p.yarn_truncate) lo = std::floor(lo), hi = std::ceil(hi);
    lo = std::max(lo, 0.0L);
    hi = std::min(hi, d - 1);
    const long double r = std::min(1.0L, std::max(0.0L, (static_cast<long double>(j) - lo) / (hi - lo)));
    return r * t / s + (1 - r) * t;
  }
  if (p.scaling == FOVEA_ROPE_SCALING_LLAMA3) {  // as Meta's code has it, by wavelengths
    const long double wavelength = 2 * pi / t;
    if (wavelength < original / static_cast<long double>(p.high_freq_factor)) return t;
    if (wavelength > original / static_cast<long double>(p.low_freq_factor)) return t / s;
    const long double r = (original / wavelength - static_cast<long double>(p.low_freq_factor)) /
                          static_cast<long double>(p.high_freq_factor - p.low_freq_factor);
    return (1 - r) * t / s + r * t;
  }
  return t;
}

std::string CheckTables(const Tables& t, double attention_factor, double angle_error) {
  const long double m = static_cast<long double>(attention_factor);
  for (int64_t j = 0; j < t.p.rotary_dim / 2; ++j) {
    const long double w = ExactFrequency(t.p, j);
    for (int64_t i = 0; i < t.p.num_positions; ++i) {
      const long double angle = static_cast<long double>(t.p.first_position + i) * w;
      const double half_ulp = attention_factor > 1.0 ? 0x1p-24 : 0x1p-25;  // of the table's largest values
      const double bound = (half_ulp + attention_factor * angle_error) * 1.0001;
      const double cos_error =
          std::fabs(static_cast<double>(static_cast<long double>(t.cos->F32(0, 0, i, j)) - m * std::cos(angle)));
      const double sin_error =
          std::fabs(static_cast<double>(static_cast<long double>(t.sin->F32(0, 0, i, j)) - m * std::sin(angle)));
      if (!(cos_error <= bound && sin_error <= bound)) {
        return "position " + std::to_string(t.p.first_position + i) + ", j " + std::to_string(j) + ": cos off by " +
               std::to_string(cos_error / bound) + ", sin by " + std::to_string(sin_error / bound) + " bounds";
      }
    }
  }
  const auto all = [](int64_t, int64_t, int64_t) { return true; };
  const std::string changed = t.cos->Changed(all) + t.sin->Changed(all);
  return changed;
}

}  // namespace

TEST_CASE("rope tables: every scaling within half an ulp of 1 + 1e-9 of long double, positions 0 to 10^6" *
          doctest::test_suite("once")) {
  for (int32_t scaling = FOVEA_ROPE_SCALING_NONE; scaling <= FOVEA_ROPE_SCALING_LLAMA3; ++scaling) {
    for (const double base : {10000.0, 500000.0, 1e6}) {
      for (const int64_t rotary_dim : {2, 64, 128, 1030}) {
        if (rotary_dim == 2 && (scaling == FOVEA_ROPE_SCALING_NTK || scaling == FOVEA_ROPE_SCALING_DYNAMIC_NTK))
          continue;  // d - 2 = 0
        for (const int64_t first : {0, 4090, 999990}) {
          Tables t(rotary_dim, first, 11);
          t.p.base = base;
          t.p.scaling = scaling;
          t.p.factor = scaling == FOVEA_ROPE_SCALING_NONE ? 1.0 : 8.0;
          t.p.original_max_position = 8192;
          t.p.seq_len = 50000;
          t.p.yarn_truncate = first != 0;
          INFO("scaling ", std::string(fovea_rope_scaling_str(scaling)), ", base ", base, ", rotary_dim ", rotary_dim,
               ", first ", first);
          REQUIRE(fovea_rope_tables(&t.p, nullptr) == FOVEA_OK);
          CHECK(CheckTables(t, scaling == FOVEA_ROPE_SCALING_YARN ? 0.1 * std::log(8.0) + 1.0 : 1.0, 1e-9) == "");
        }
      }
    }
  }
}

TEST_CASE("rope tables: by hand, Llama 2's YaRN range, Llama 3.1's frequencies, attention_factor" *
          doctest::test_suite("once")) {
  Tables plain(128, 0, 2), yarn(128, 0, 2);
  REQUIRE(fovea_rope_tables(&plain.p, nullptr) == FOVEA_OK);
  yarn.p.scaling = FOVEA_ROPE_SCALING_YARN;
  yarn.p.factor = 16.0;
  yarn.p.original_max_position = 4096;
  REQUIRE(fovea_rope_tables(&yarn.p, nullptr) == FOVEA_OK);
  CHECK(yarn.cos->F32(0, 0, 0, 5) == doctest::Approx(0.1 * std::log(16.0) + 1.0).epsilon(1e-7));  // "YaRN", eq. 22
  const auto near = [](double x) { return doctest::Approx(x).epsilon(1e-5); };
  // D(32) = 20.9 and D(1) = 45.03: 20 and 46 when rounded outwards, 33 is half way.
  CHECK(yarn.Frequency(20) == near(plain.Frequency(20)));
  CHECK(yarn.Frequency(21) == near(plain.Frequency(21) * (1 - 15.0 / 16 / 26)));
  CHECK(yarn.Frequency(33) == near(plain.Frequency(33) * (0.5 + 0.5 / 16)));
  CHECK(yarn.Frequency(46) == near(plain.Frequency(46) / 16));
  CHECK(yarn.Frequency(63) == near(plain.Frequency(63) / 16));

  Tables base(128, 0, 2), llama(128, 0, 2);
  base.p.base = llama.p.base = 500000.0;
  REQUIRE(fovea_rope_tables(&base.p, nullptr) == FOVEA_OK);
  llama.p.scaling = FOVEA_ROPE_SCALING_LLAMA3;
  llama.p.factor = 8.0;
  llama.p.original_max_position = 8192;
  REQUIRE(fovea_rope_tables(&llama.p, nullptr) == FOVEA_OK);
  CHECK(base.Frequency(1) == near(0.814619));
  // Wavelengths of 2048 and 8192 lie at j = 28.2 and 35.0.
  CHECK(llama.Frequency(28) == near(base.Frequency(28)));
  CHECK(llama.Frequency(29) < 0.95 * base.Frequency(29));
  CHECK(llama.Frequency(29) > 0.5 * base.Frequency(29));
  CHECK(llama.Frequency(36) == near(base.Frequency(36) / 8));
  CHECK(llama.Frequency(63) == near(base.Frequency(63) / 8));

  Tables scaled(64, 3, 4);
  scaled.p.attention_factor = 0.5;
  REQUIRE(fovea_rope_tables(&scaled.p, nullptr) == FOVEA_OK);
  CHECK(CheckTables(scaled, 0.5, 1e-12) == "");

  Tables dynamic(64, 0, 2), unscaled(64, 0, 2);
  dynamic.p.scaling = FOVEA_ROPE_SCALING_DYNAMIC_NTK;
  dynamic.p.factor = 4.0;
  dynamic.p.original_max_position = 2048;
  dynamic.p.seq_len = 2048;
  REQUIRE(fovea_rope_tables(&dynamic.p, nullptr) == FOVEA_OK);
  REQUIRE(fovea_rope_tables(&unscaled.p, nullptr) == FOVEA_OK);
  for (int64_t j = 0; j < 32; ++j) CHECK(dynamic.sin->F32(0, 0, 1, j) == unscaled.sin->F32(0, 0, 1, j));
}

TEST_CASE("rope tables: one pair has frequency 1 under NTK too; no rows; same bits over threads" *
          doctest::test_suite("once")) {
  Tables pair(2, 5, 3);
  pair.p.scaling = FOVEA_ROPE_SCALING_NTK;
  pair.p.factor = 8.0;
  REQUIRE(fovea_rope_tables(&pair.p, nullptr) == FOVEA_OK);
  CHECK(pair.cos->F32(0, 0, 2, 0) == static_cast<float>(std::cos(7.0)));
  Tables none(8, 0, 0);
  CHECK(fovea_rope_tables(&none.p, nullptr) == FOVEA_OK);
  Tables one(530, 100, 90), many(530, 100, 90);
  const fovea_exec serial = Threads(1), eight = Threads(8);
  REQUIRE(fovea_rope_tables(&one.p, &serial) == FOVEA_OK);
  REQUIRE(fovea_rope_tables(&many.p, &eight) == FOVEA_OK);
  int64_t different = 0;
  for (int64_t i = 0; i < 90; ++i) {
    for (int64_t j = 0; j < 265; ++j) different += one.cos->F32(0, 0, i, j) != many.cos->F32(0, 0, i, j);
  }
  CHECK(different == 0);
}

TEST_CASE("rope tables: bad arguments are refused by name, nothing is written" * doctest::test_suite("once")) {
  struct Bad {
    std::function<void(fovea_rope_tables_params*)> change;
    const char* text;
  };
  using P = fovea_rope_tables_params;
  const Bad bad[] = {
      {[](P* p) { p->struct_size = 8; }, "struct_size = 8"},
      {[](P* p) { p->rotary_dim = 7; }, "rotary_dim = 7"},
      {[](P* p) { p->rotary_dim = 0; }, "rotary_dim = 0"},
      {[](P* p) { p->num_positions = -1; }, "num_positions = -1"},
      {[](P* p) { p->first_position = -1; }, "first_position = -1"},
      {[](P* p) { p->first_position = int64_t{1} << 30; }, "first_position"},
      {[](P* p) { p->scaling = 6; }, "scaling = 6"},
      {[](P* p) { p->base = 1.0; }, "base = 1"},
      {[](P* p) { p->base = std::nan(""); }, "base = nan"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_LINEAR, p->factor = 0.5; }, "factor = 0.5"},
      {[](P* p) { p->attention_factor = -1.0; }, "attention_factor = -1"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_YARN; }, "original_max_position = 0"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_YARN, p->beta_slow = 40.0; }, "beta_fast = 32"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_YARN, p->yarn_truncate = 2; }, "yarn_truncate = 2"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_LLAMA3, p->high_freq_factor = 1.0; }, "high_freq_factor = 1"},
      {[](P* p) { p->scaling = FOVEA_ROPE_SCALING_DYNAMIC_NTK, p->original_max_position = 5, p->seq_len = -1; },
       "seq_len = -1"},
      {[](P* p) { p->sin = p->cos; }, "cos overlaps sin"},
      {[](P* p) { p->cos.stride_row = 0; }, "cos.stride_row = 0"},
      {[](P* p) { p->cos.dtype = FOVEA_DTYPE_NONE; }, "cos.dtype"},
  };
  for (const Bad& b : bad) {
    Tables t(8, 0, 3);
    b.change(&t.p);
    INFO(std::string(b.text));
    CHECK(fovea_rope_tables(&t.p, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK_MESSAGE(std::strstr(fovea_last_error(), b.text), std::string(fovea_last_error()));
    CHECK(t.cos->Changed() == "");
    CHECK(t.sin->Changed() == "");
  }
  CHECK(std::string(fovea_rope_scaling_str(FOVEA_ROPE_SCALING_YARN)) == "FOVEA_ROPE_SCALING_YARN");
  CHECK(std::string(fovea_rope_scaling_str(6)) == "unknown fovea_rope_scaling");
}

}  // namespace fovea_test
