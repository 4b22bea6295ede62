// A paged cache: the bits of a contiguous one, whatever the pages' size and order; garbage in entries that no row
// needs.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/plan.h"
#include "lib/reference.h"
#include "lib/validate.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The same call over a contiguous copy of the pages, with outputs of its own. Rows of garbage entries are NaN.
struct Contiguous {
  explicit Contiguous(const fovea_attention_params& paged) : p(paged) {
    const int64_t v_head_dim = p.v_head_dim ? p.v_head_dim : p.head_dim;
    const int64_t q_rows = p.cu_seqlens_q ? p.total_q : p.q_len, q_batch = p.cu_seqlens_q ? 1 : p.batch;
    k = Gather(paged.k, p.head_dim);
    v = Gather(paged.v, v_head_dim);
    if (paged.k_scale.data) {
      k_scale = Gather(paged.k_scale, 1);
      p.k_scale = fovea_tensor_bhs(k_scale.data(), FOVEA_F32, p.num_kv_heads, p.kv_len);
    }
    if (paged.v_scale.data) {
      v_scale = Gather(paged.v_scale, 1);
      p.v_scale = fovea_tensor_bhs(v_scale.data(), FOVEA_F32, p.num_kv_heads, p.kv_len);
    }
    p.k = fovea_tensor_bhsd(k.data(), paged.k.dtype, p.num_kv_heads, p.kv_len, p.head_dim);
    p.v = fovea_tensor_bhsd(v.data(), paged.v.dtype, p.num_kv_heads, p.kv_len, v_head_dim);
    const auto make = [&](std::vector<float>* memory, int64_t cols) {
      memory->assign(static_cast<size_t>(q_batch * p.num_q_heads * q_rows * cols) + 1, kNan);
      return fovea_tensor_bhsd(memory->data(), FOVEA_F32, p.num_q_heads, q_rows, cols);
    };
    p.out = make(&out, v_head_dim);
    if (p.lse.data) p.lse = make(&lse, 1);
    if (p.lse.data) p.lse.stride_col = 0;
    if (p.scores.data) p.scores = make(&scores, p.kv_len);
    p.block_table = nullptr;
    p.block_table_stride = p.num_pages = p.page_size = 0;
  }

  std::vector<unsigned char> Gather(const fovea_tensor& pages, int64_t cols) const {
    const int64_t bytes = fovea::DtypeBytes(pages.dtype);
    std::vector<unsigned char> copy(static_cast<size_t>((p.batch * p.num_kv_heads * p.kv_len * cols + 1) * bytes), 0xff);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t j = 0; j < fovea::KvLen(p, b); ++j) {
        const int64_t page = p.block_table[b * p.block_table_stride + j / p.page_size];
        if (page < 0 || page >= p.num_pages) continue;
        for (int64_t h = 0; h < p.num_kv_heads; ++h) {
          const int64_t row = page * pages.stride_batch + h * pages.stride_head + j % p.page_size * pages.stride_row;
          std::memcpy(copy.data() + ((b * p.num_kv_heads + h) * p.kv_len + j) * cols * bytes,
                      static_cast<const unsigned char*>(pages.data) + row * bytes, static_cast<size_t>(cols * bytes));
        }
      }
    }
    return copy;
  }

  fovea_attention_params p;
  std::vector<unsigned char> k, v, k_scale, v_scale;
  std::vector<float> out, lse, scores;
};

// Pages [page_size][num_kv_heads][head_dim] of a cache for `lengths`, dealt in a random order; packed queries.
struct Serving {
  Serving(const std::vector<int32_t>& q_lens, const std::vector<int32_t>& kv_lens_in, int64_t page_size,
          uint64_t seed = 7)
      : kv_lens(kv_lens_in) {
    Rng rng(seed);
    fovea_attention_params_init(&p, sizeof p);
    p.batch = static_cast<int64_t>(q_lens.size());
    p.num_q_heads = 4;
    p.num_kv_heads = 2;
    p.head_dim = 16;
    p.kv_len = *std::max_element(kv_lens.begin(), kv_lens.end());
    cu.assign(1, 0);
    for (int32_t length : q_lens) cu.push_back(cu.back() + length);
    p.cu_seqlens_q = cu.data();
    p.total_q = cu.back();
    p.kv_lens = kv_lens.data();
    p.page_size = page_size;
    p.block_table_stride = (p.kv_len + page_size - 1) / page_size;
    table.assign(static_cast<size_t>(p.batch * p.block_table_stride), -1);
    int32_t pages = 0;
    for (size_t b = 0; b < kv_lens.size(); ++b) pages += static_cast<int32_t>((kv_lens[b] + page_size - 1) / page_size);
    std::vector<int32_t> deal(static_cast<size_t>(pages));
    std::iota(deal.begin(), deal.end(), 0);
    for (size_t n = 1; n < deal.size(); ++n)
      std::swap(deal[n], deal[static_cast<size_t>(rng.Int(0, static_cast<int64_t>(n)))]);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t n = 0; n * page_size < kv_lens[static_cast<size_t>(b)]; ++n) {
        table[static_cast<size_t>(b * p.block_table_stride + n)] = deal.back();
        deal.pop_back();
      }
    }
    p.block_table = table.data();
    p.num_pages = pages;
    const auto fill = [&rng](std::vector<float>* memory, int64_t count) {
      memory->resize(static_cast<size_t>(count));
      for (float& x : *memory) x = rng.Normal();
    };
    fill(&q, p.total_q * p.num_q_heads * p.head_dim);
    fill(&k, p.num_pages * page_size * p.num_kv_heads * p.head_dim);
    fill(&v, p.num_pages * page_size * p.num_kv_heads * p.head_dim);
    out.assign(q.size(), kNan);
    lse.assign(static_cast<size_t>(p.total_q * p.num_q_heads), kNan);
    p.q = fovea_tensor_bshd(q.data(), FOVEA_F32, p.num_q_heads, p.total_q, p.head_dim);
    p.out = fovea_tensor_bshd(out.data(), FOVEA_F32, p.num_q_heads, p.total_q, p.head_dim);
    p.lse = fovea_tensor_bhs(lse.data(), FOVEA_F32, p.num_q_heads, p.total_q);
    p.k = fovea_tensor_bshd(k.data(), FOVEA_F32, p.num_kv_heads, page_size, p.head_dim);
    p.v = fovea_tensor_bshd(v.data(), FOVEA_F32, p.num_kv_heads, page_size, p.head_dim);
    p.causal = 1;
    p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  }
  Serving(const Serving&) = delete;
  Serving& operator=(const Serving&) = delete;

  fovea_attention_params p;
  std::vector<int32_t> kv_lens, cu, table;
  std::vector<float> q, k, v, out, lse;
};

void EachPaged(uint64_t built_in_seed, int64_t count, uint32_t options, int32_t stage = FOVEA_SCORES_NONE,
               fovea_dtype k_dtype = FOVEA_F32, fovea_dtype v_dtype = FOVEA_F32) {
  const uint64_t first = FirstSeed(built_in_seed);
  for (int64_t n = 0; n < CaseCount(count); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    const ShapeKind kind = n % 2 ? ShapeKind::kFewRows : ShapeKind::kPrefill;
    CaseSpec spec = RandomSpec(seed, kind, options | kPaged, stage, CaseWork(1500000));
    spec.k_dtype = k_dtype;
    spec.v_dtype = v_dtype;
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");
    // Threads and flags as they come; the bits of a contiguous copy.
    const fovea_exec exec = Threads(n % 3 == 0 ? 3 : 1, n % 4 == 3 ? uint32_t{FOVEA_BATCH_INVARIANT} : 0u);
    c.ClearOutputs();
    Run(c.p, &exec);
    const Contiguous copy(c.p);
    Run(copy.p, &exec);
    INFO(Repeat(seed, c.Describe()));
    CHECK(BitDifference(Outputs(copy.p), Outputs(c.p)) == "");
  }
}

// An error that names the entry, with nothing written; params that a workspace query, which does not read the table,
// takes.
void ExpectRefused(AttentionCase* c, const std::string& text) {
  c->ClearOutputs();
  c->out->Snapshot();
  const fovea_exec exec = Threads(2);
  CHECK(fovea_attention_forward(&c->p, &exec) == FOVEA_ERR_INVALID_ARGUMENT);
  INFO(fovea_last_error());
  CHECK(std::string(fovea_last_error()).find(text) != std::string::npos);
  CHECK(c->out->Changed() == "");
  size_t bytes = 0;
  CHECK(fovea_attention_workspace_size(&c->p, &exec, &bytes) == FOVEA_OK);
}

// One sequence of 40 keys in 10 pages of 4, all entries right.
struct SmallPages {
  explicit SmallPages(int64_t q_len, uint32_t options = 0, int32_t stage = FOVEA_SCORES_NONE)
      : c(Spec(q_len, options, stage)), table(10) {
    std::iota(table.begin(), table.end(), 0);
    std::swap(table[3], table[8]);
    const auto page =
        [&](TestTensor* t) {  // the padded tensor's rows are pages as they lie: one head, so batch stride = 4 rows
          fovea_tensor view = t->view();
          view.stride_batch = 4 * view.stride_row;
          return view;
        };
    c.p.k = page(c.k.get());
    c.p.v = page(c.v.get());
    c.p.block_table = table.data();
    c.p.block_table_stride = 10;
    c.p.num_pages = 10;
    c.p.page_size = 4;
  }
  static CaseSpec Spec(int64_t q_len, uint32_t options, int32_t stage) {
    CaseSpec spec;
    spec.seed = 5;
    spec.q_len = q_len;
    spec.kv_len = 40;
    spec.head_dim = 12;
    spec.options = options;
    spec.scores_stage = stage;
    return spec;
  }
  // Each entry in turn is made garbage: the call must fail exactly where `needed` says so, and else compute what it
  // did.
  void ExpectNeeded(const std::vector<int>& needed) {
    c.ClearOutputs();
    Run(c.p);
    const std::vector<float> expected = Outputs(c.p);
    for (int n = 0; n < 10; ++n) {
      for (int32_t garbage : {-1, 10, INT32_MIN, INT32_MAX}) {
        const int32_t right = table[static_cast<size_t>(n)];
        table[static_cast<size_t>(n)] = garbage;
        CAPTURE(n);
        if (std::count(needed.begin(), needed.end(), n)) {
          ExpectRefused(&c, "block_table[0][" + std::to_string(n) + "] = " + std::to_string(garbage));
        } else {
          c.ClearOutputs();
          Run(c.p);
          CHECK(BitDifference(expected, Outputs(c.p)) == "");
        }
        table[static_cast<size_t>(n)] = right;
      }
    }
  }

  AttentionCase c;
  std::vector<int32_t> table;
};

void NeededEntries(int64_t q_len) {
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  SUBCASE("no option") { SmallPages(q_len).ExpectNeeded(all); }
  SUBCASE("kv_lens") {
    SmallPages t(q_len);
    const int32_t kv_len = 13;
    t.c.p.kv_lens = &kv_len;
    t.ExpectNeeded({0, 1, 2, 3});
  }
  SUBCASE("causal") {
    SmallPages t(q_len);
    t.c.p.causal = 1;
    t.c.p.q_offset = 8 - (q_len - 1);  // the last row sees keys 0 to 8
    t.ExpectNeeded({0, 1, 2});
  }
  SUBCASE("window_left") {
    SmallPages t(q_len);
    t.c.p.causal = 1;
    t.c.p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
    t.c.p.window_left = 5;  // the first row stands at 40 - q_len
    t.ExpectNeeded(q_len == 1 ? std::vector<int>{8, 9} : std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9});
  }
  SUBCASE("both windows") {
    SmallPages t(q_len);
    t.c.p.q_offset = 20 - (q_len - 1);
    t.c.p.window_left = t.c.p.window_right = 2;
    t.ExpectNeeded(q_len == 1 ? std::vector<int>{4, 5} : std::vector<int>{0, 1, 2, 3, 4, 5});
  }
  SUBCASE("mask") {
    SmallPages t(q_len);
    t.c.SetMask([&](int64_t, int64_t, int64_t i, int64_t j) { return (i == q_len - 1 && j == 19) || j == 32; });
    t.ExpectNeeded({4, 8});
  }
  SUBCASE("mask, raw scores: every key") {
    SmallPages t(q_len, 0, FOVEA_SCORES_RAW);
    t.c.SetMask([&](int64_t, int64_t, int64_t, int64_t j) { return j == 32; });
    t.ExpectNeeded(all);
  }
  SUBCASE("bias under causality") {
    SmallPages t(q_len);
    t.c.p.causal = 1;
    t.c.p.q_offset = 20 - (q_len - 1);
    t.c.SetBias([&](int64_t, int64_t, int64_t, int64_t j) { return j == 3 || j == 20 || j == 21 ? 1.0f : -INFINITY; });
    t.ExpectNeeded({0, 5});
  }
  SUBCASE("mask_offsets: the rows that count begin there") {
    SmallPages t(q_len);
    const int32_t offset = 3;
    t.c.p.q_len = q_len + 3;
    t.c.SetMask([&](int64_t, int64_t, int64_t i, int64_t j) { return i < 3 || j >= 36; });
    t.c.p.q_len = q_len;
    t.c.p.mask_offsets = &offset;
    t.ExpectNeeded({9});
  }
  SUBCASE("mask_kv_len: columns beyond it are forbidden") {
    SmallPages t(q_len);
    t.c.p.mask_kv_len = 10;
    t.c.SetMask([](int64_t, int64_t, int64_t, int64_t) { return true; });
    t.ExpectNeeded({0, 1, 2});
  }
  SUBCASE("mask aligned right: keys before it are permitted") {
    SmallPages t(q_len);
    t.c.p.mask_kv_len = 10;
    t.c.p.mask_align = FOVEA_MASK_ALIGN_RIGHT;
    t.c.SetMask([](int64_t, int64_t, int64_t, int64_t j) { return j < 2; });
    t.ExpectNeeded({0, 1, 2, 3, 4, 5, 6, 7});
  }
  SUBCASE("no queries") {
    SmallPages t(q_len);
    const int32_t none = 0;
    t.c.p.q_lens = &none;
    t.ExpectNeeded({});
  }
}

}  // namespace

TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, no options") { EachPaged(40000, 60, 0); }
TEST_CASE(
    "paged: equals f64 and has the bits of a contiguous copy, packed queries, kv_lens, causal: the serving call") {
  EachPaged(40100, 60, kPackedQ | kKvLens | kCausal | kBottomRight | kPoison);
}
TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, windows with garbage outside") {
  EachPaged(40200, 60, kKvLens | kCausal | kBottomRight | kWindowLeft | kPoison);
  EachPaged(40250, 20, kQOffsets | kWindowLeft | kWindowRight | kPoison);
}
TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, masks and biases with garbage where they forbid") {
  EachPaged(40300, 60, kMask | kKvLens | kPoison);
  EachPaged(40350, 60, kMask | kBias | kMaskKvLen | kMaskRight | kMaskOffsets | kQLens | kPoison);
}
TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, any strides") {
  EachPaged(40400, 60, kStrides | kQLens | kKvLens | kAlibi | kSinks | kSoftCap);
  EachPaged(40450, 20, kStrides | kBroadcast);
}
TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, every stage of scores") {
  for (int32_t stage : {FOVEA_SCORES_RAW, FOVEA_SCORES_SOFT_CAPPED, FOVEA_SCORES_BIASED, FOVEA_SCORES_PROBABILITIES}) {
    EachPaged(40500 + 100 * static_cast<uint64_t>(stage), 16, kKvLens | kCausal | kMask | kPoison, stage);
  }
}

TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, pages of bf16 and f16") {
  EachPaged(41000, 20, kPackedQ | kKvLens | kCausal | kBottomRight | kMask | kPoison, FOVEA_SCORES_NONE, FOVEA_BF16, FOVEA_F16);
  EachPaged(41050, 20, kStrides | kBias, FOVEA_SCORES_NONE, FOVEA_F16, FOVEA_F32);
}

TEST_CASE("paged: equals f64 and has the bits of a contiguous copy, pages of int8 and their scales") {
  EachPaged(41100, 30, kPackedQ | kKvLens | kCausal | kBottomRight | kMask | kPoison, FOVEA_SCORES_NONE, FOVEA_I8, FOVEA_I8);
  EachPaged(41150, 20, kStrides | kBias, FOVEA_SCORES_BIASED, FOVEA_I8, FOVEA_I8);
}

TEST_CASE("paged: an entry that is no page is refused exactly where a permitted key needs it: one row") {
  NeededEntries(1);
}
TEST_CASE("paged: an entry that is no page is refused exactly where a permitted key needs it: many rows") {
  NeededEntries(30);
}

TEST_CASE("paged: no page at all is fine where no key is attended to") {
  AttentionCase c(SmallPages::Spec(3, 0, FOVEA_SCORES_NONE));
  const int32_t table[10] = {}, none = 0;
  c.p.block_table = table;
  c.p.block_table_stride = 10;
  c.p.page_size = 4;
  c.p.k.data = c.p.v.data = nullptr;
  ExpectRefused(&c, "block_table[0][0] = 0: must be in [0, num_pages = 0)");
  c.p.kv_lens = &none;
  Run(c.p);
  CHECK(c.Out(0, 0, 2, 11) == 0.0f);
  CHECK(c.Lse(0, 0, 2) == -INFINITY);
}

TEST_CASE("paged: one row of block_table serves all sequences with stride 0") {
  CaseSpec spec = SmallPages::Spec(5, kPaged, FOVEA_SCORES_NONE);
  spec.batch = 3;
  AttentionCase c(spec);
  const std::vector<int32_t> first(c.p.block_table, c.p.block_table + (40 + c.p.page_size - 1) / c.p.page_size);
  c.p.block_table = first.data();
  c.p.block_table_stride = 0;
  Run(c.p);
  CHECK(fovea::CheckAttention(c.p).passed());
}

TEST_CASE("paged: block_table is not read before the first key that a window leaves, where rows are prefetched") {
  constexpr int64_t kRows = 9, kDim = 64, kKeys = fovea::kNearBytes / (2 * kDim * static_cast<int64_t>(sizeof(float))) + 200;
  Rng rng(FirstSeed(4));
  std::vector<float> q(kRows * kDim), kv(2 * kDim), out[2];  // one key and its value, which all keys are
  for (std::vector<float>* x : {&q, &kv}) {
    for (float& value : *x) value = rng.Normal();
  }
  const GuardedArray<int32_t> table(std::vector<int32_t>(kKeys, 0), Guard::kBefore);
  for (int64_t first = 0; first < 9; ++first) {
    CAPTURE(first);
    fovea_attention_params p;
    fovea_attention_params_init(&p, sizeof p);
    p.batch = p.num_q_heads = p.num_kv_heads = 1;
    p.q_len = kRows;
    p.kv_len = first + kKeys;
    p.head_dim = kDim;
    p.window_left = 0;
    p.q_offset = first;
    p.q = fovea_tensor_bhsd(q.data(), FOVEA_F32, 1, kRows, kDim);
    p.k = fovea_tensor_bhsd(kv.data(), FOVEA_F32, 1, 1, kDim);
    p.v = fovea_tensor_bhsd(kv.data() + kDim, FOVEA_F32, 1, 1, kDim);
    p.k.stride_row = p.v.stride_row = 0;
    for (std::vector<float>& result : out) {
      result.assign(kRows * kDim, kNan);
      p.out = fovea_tensor_bhsd(result.data(), FOVEA_F32, 1, kRows, kDim);
      Run(p);
      p.block_table = table.data() - first;
      p.num_pages = p.page_size = 1;
    }
    CHECK(std::memcmp(out[0].data(), out[1].data(), sizeof(float) * out[0].size()) == 0);
  }
}

// Where decode prefetches: no row behind the last permitted key is one, nor its entry read, whatever part of the keys is the last.
TEST_CASE("paged: few rows over a cache in parts, pages of any size and order of axes: the bits of a contiguous one, no entry behind causality read") {
  constexpr int64_t kHeads = 2, kMostDim = 64, kKeys = 1300;
  Rng rng(FirstSeed(9));
  for (int32_t dtype : {FOVEA_F32, FOVEA_BF16, FOVEA_F16, FOVEA_I8}) {
    const size_t size = static_cast<size_t>(fovea::DtypeBytes(dtype));
    std::vector<unsigned char> kv[2];  // [head][key][dim]
    for (std::vector<unsigned char>& bytes : kv) {
      bytes.resize(kHeads * kKeys * kMostDim * size);
      for (size_t i = 0; i < bytes.size() / size; ++i) {
        const float value = rng.Normal();
        const int8_t step = static_cast<int8_t>(40.0f * std::clamp(value, -3.0f, 3.0f));
        if (dtype == FOVEA_I8) std::memcpy(&bytes[i], &step, 1);
        if (dtype == FOVEA_F32) std::memcpy(&bytes[i * size], &value, 4);
        if (dtype == FOVEA_BF16) std::memcpy(&bytes[i * size], reinterpret_cast<const unsigned char*>(&value) + 2, 2);
        const uint16_t small = static_cast<uint16_t>(0x2C00 + rng.Int(0, 0x0FFF) + (value < 0.0f ? 0x8000 : 0));  // +-2^-4 to 1
        if (dtype == FOVEA_F16) std::memcpy(&bytes[i * size], &small, 2);
      }
    }
    for (int64_t page : {1, 2, 8, 16, 24, 32, 64, 112}) {
      for (int64_t keys : {kKeys, int64_t{1111}, int64_t{1024}}) {
        const int64_t rows = rng.Int(1, 4), group = rng.Int(1, 2), pages = (keys + page - 1) / page;
        const int64_t dims[2] = {rng.Int(0, 1) == 1 ? kMostDim : 40, std::array<int64_t, 3>{8, 40, kMostDim}[static_cast<size_t>(rng.Int(0, 2))]};
        const bool heads_outside = rng.Int(0, 1) == 1;
        CAPTURE(dtype);
        CAPTURE(page);
        CAPTURE(keys);
        CAPTURE(rows);
        CAPTURE(group);
        CAPTURE(heads_outside);
        CAPTURE(dims[0]);
        CAPTURE(dims[1]);
        std::vector<int32_t> order(static_cast<size_t>(pages));
        std::iota(order.begin(), order.end(), 0);
        for (int64_t n = pages - 1; n > 0; --n) std::swap(order[static_cast<size_t>(n)], order[static_cast<size_t>(rng.Int(0, n))]);
        const GuardedArray<int32_t> table(order, Guard::kAfter);
        std::vector<unsigned char> cache[2];
        for (int side = 0; side < 2; ++side) {
          const size_t row = size * static_cast<size_t>(dims[side]);
          cache[side].resize(static_cast<size_t>(kHeads * pages * page) * row);
          for (int64_t h = 0; h < kHeads; ++h) {
            for (int64_t j = 0; j < keys; ++j) {
              const int64_t in_page = heads_outside ? h * page + j % page : j % page * kHeads + h;
              const int64_t to = order[static_cast<size_t>(j / page)] * kHeads * page + in_page;
              std::memcpy(&cache[side][static_cast<size_t>(to) * row], &kv[side][static_cast<size_t>(h * kKeys + j) * row], row);
            }
          }
        }
        std::vector<float> q(static_cast<size_t>(kHeads * group * rows * dims[0])), out[2];
        for (float& value : q) value = rng.Normal();
        fovea_attention_params p;
        fovea_attention_params_init(&p, sizeof p);
        p.batch = 1;
        p.num_q_heads = kHeads * group;
        p.num_kv_heads = kHeads;
        p.q_len = rows;
        p.kv_len = kKeys;
        p.head_dim = dims[0];
        p.v_head_dim = dims[1];
        p.causal = 1;
        p.q_offset = keys - rows;
        p.q = fovea_tensor_bhsd(q.data(), FOVEA_F32, kHeads * group, rows, dims[0]);
        p.k = fovea_tensor_bhsd(kv[0].data(), dtype, kHeads, kKeys, dims[0]);
        p.v = fovea_tensor_bhsd(kv[1].data(), dtype, kHeads, kKeys, dims[1]);
        for (std::vector<float>& result : out) {
          result.assign(static_cast<size_t>(kHeads * group * rows * dims[1]), kNan);
          p.out = fovea_tensor_bhsd(result.data(), FOVEA_F32, kHeads * group, rows, dims[1]);
          fovea_exec exec = Threads(1);
          size_t bytes = 0;
          REQUIRE(fovea_attention_workspace_size(&p, &exec, &bytes) == FOVEA_OK);
          const GuardedBuffer workspace(bytes, Guard::kAfter);
          exec.workspace = workspace.data();
          exec.workspace_bytes = bytes;
          Run(p, &exec);
          p.block_table = table.data();
          p.num_pages = pages;
          p.page_size = page;
          for (int side = 0; side < 2; ++side) {
            fovea_tensor& cached = side ? p.v : p.k;
            cached = heads_outside ? fovea_tensor_bhsd(cache[side].data(), dtype, kHeads, page, dims[side])
                                   : fovea_tensor_bshd(cache[side].data(), dtype, kHeads, page, dims[side]);
          }
        }
        CHECK(std::memcmp(out[0].data(), out[1].data(), sizeof(float) * out[0].size()) == 0);
        CHECK(!std::isnan(out[0][0]));
      }
    }
  }
}

TEST_CASE("paged: a sliding window over a ring of pages, step by step") {
  // 4 pages of 5 rows hold a window of 12 keys for ever: token j overwrites what left the window long ago.
  constexpr int64_t kSteps = 90, kPageSize = 5, kPages = 4, kDim = 9, kWindow = 12;
  std::vector<float> k(kSteps * kDim), v(k.size()), q(k.size()), ring_k(kPages * kPageSize * kDim, kNan),
      ring_v = ring_k;
  Rng rng(FirstSeed(3));
  for (std::vector<float>* x : {&k, &v, &q}) {
    for (float& value : *x) value = rng.Normal();
  }
  std::vector<int32_t> table(kSteps / kPageSize, -1);
  for (int64_t step = 0; step < kSteps; ++step) {
    const int64_t page = step / kPageSize;
    table[static_cast<size_t>(page)] = static_cast<int32_t>(page % kPages);
    if (page >= kPages) table[static_cast<size_t>(page - kPages)] = -12345;  // its page is being overwritten
    const int64_t row = page % kPages * kPageSize + step % kPageSize;
    std::copy_n(k.data() + step * kDim, kDim, ring_k.data() + row * kDim);
    std::copy_n(v.data() + step * kDim, kDim, ring_v.data() + row * kDim);
    float out[2][kDim], lse[2];
    fovea_attention_params p;
    fovea_attention_params_init(&p, sizeof p);
    p.batch = p.num_q_heads = p.num_kv_heads = p.q_len = 1;
    p.kv_len = step + 1;
    p.head_dim = kDim;
    p.causal = 1;
    p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
    p.window_left = kWindow - 1;
    p.q = fovea_tensor_bhsd(q.data() + step * kDim, FOVEA_F32, 1, 1, kDim);
    p.k = fovea_tensor_bhsd(k.data(), FOVEA_F32, 1, p.kv_len, kDim);
    p.v = fovea_tensor_bhsd(v.data(), FOVEA_F32, 1, p.kv_len, kDim);
    p.out = fovea_tensor_bhsd(out[0], FOVEA_F32, 1, 1, kDim);
    p.lse = fovea_tensor_bhs(&lse[0], FOVEA_F32, 1, 1);
    Run(p);
    p.k = fovea_tensor_bhsd(ring_k.data(), FOVEA_F32, 1, kPageSize, kDim);
    p.v = fovea_tensor_bhsd(ring_v.data(), FOVEA_F32, 1, kPageSize, kDim);
    p.out.data = out[1];
    p.lse.data = &lse[1];
    p.block_table = table.data();
    p.block_table_stride = static_cast<int64_t>(table.size());
    p.page_size = kPageSize;
    p.num_pages = kPages;
    Run(p);
    CAPTURE(step);
    CHECK(std::memcmp(out[0], out[1], sizeof out[0]) == 0);
    CHECK(lse[0] == lse[1]);
  }
}

TEST_CASE(
    "paged: a ragged batch of prefill and decode, one long sequence beside thirty short: same bits alone, on any "
    "threads") {
  std::vector<int32_t> q_lens, kv_lens;
  Rng rng(FirstSeed(12));
  for (int n = 0; n < 30; ++n) {
    q_lens.push_back(static_cast<int32_t>(rng.Pick({0, 1, 1, 1, 2, 17, 60})));
    kv_lens.push_back(q_lens.back() + static_cast<int32_t>(rng.Int(0, 150)));
  }
  q_lens.insert(q_lens.begin() + 11, 1);
  kv_lens.insert(kv_lens.begin() + 11, 16384);
  q_lens.push_back(40);
  kv_lens.push_back(3000);
  Serving s(q_lens, kv_lens, 16);
  const fovea_exec one = Threads(1);
  Run(s.p, &one);
  CHECK(fovea::CheckAttention(s.p).passed());
  const std::vector<float> expected = Outputs(s.p);
  for (int32_t threads : {2, 3, 8}) {
    std::fill(s.out.begin(), s.out.end(), kNan);
    const fovea_exec exec = Threads(threads);
    Run(s.p, &exec);
    CHECK(BitDifference(expected, Outputs(s.p)) == "");
  }
  for (int64_t b = 0; b < s.p.batch; ++b) {
    const std::vector<float> together = Outputs(s.p, b);
    if (together.empty()) continue;
    fovea_attention_params alone = AloneParams(s.p, b);
    std::vector<float> out(together.size()), lse(together.size());
    alone.out = fovea_tensor_bhsd(out.data(), FOVEA_F32, alone.num_q_heads, alone.q_len, alone.head_dim);
    alone.lse = fovea_tensor_bhs(lse.data(), FOVEA_F32, alone.num_q_heads, alone.q_len);
    Run(alone, &one);
    CAPTURE(b);
    CHECK(BitDifference(together, Outputs(alone)) == "");
  }
}

TEST_CASE(
    "a long sequence beside thirty short ones keeps every worker busy: tasks in the plan's order, each to the first "
    "free worker") {
  for (const std::vector<int32_t>& mix :
       {std::vector<int32_t>{300, 300, 64, 65536}, {1, 500, 1, 65536}, {1, 100, 500, 65536}, {300, 300, 1, 65536}}) {
    std::vector<int32_t> q_lens(30, mix[0]), kv_lens(30, mix[1]);
    q_lens.push_back(mix[2]);
    kv_lens.push_back(mix[3]);
    Serving s(q_lens, kv_lens, 64);
    for (int32_t workers : {2, 8, 16}) {
      const fovea_exec exec = Threads(workers);
      size_t bytes = 0;
      REQUIRE(fovea_attention_workspace_size(&s.p, &exec, &bytes) == FOVEA_OK);
      std::vector<unsigned char> memory(bytes);
      const fovea_plan* plan = nullptr;
      REQUIRE(fovea_attention_plan(&s.p, &exec, memory.data(), bytes, &plan) == FOVEA_OK);
      std::vector<double> busy(static_cast<size_t>(workers), 0.0);
      double total = 0.0;
      for (int64_t n = 0; n < plan->num_tasks[0]; ++n) {
        const double cost = static_cast<double>(plan->tasks[0][n].cost);
        *std::min_element(busy.begin(), busy.end()) += cost;
        total += cost;
      }
      INFO("short ", mix[0], " over ", mix[1], ", long ", mix[2], " over ", mix[3], ", workers ", workers, ", tasks ",
           plan->num_tasks[0]);
      CHECK(*std::max_element(busy.begin(), busy.end()) <= 1.2 * total / workers);
    }
  }
}

TEST_CASE("paged: a shared prefix by two calls and a merge is the whole call within the bound") {
  // Every sequence: 48 keys of a prefix that lies in the same three pages, then keys of its own.
  std::vector<int32_t> q_lens = {1, 5, 20}, kv_lens = {61, 53, 90};
  constexpr int64_t kPrefix = 48;
  Serving s(q_lens, kv_lens, 16);
  for (int64_t b = 1; b < 3; ++b) {
    for (int64_t n = 0; n < kPrefix / 16; ++n) {
      s.table[static_cast<size_t>(b * s.p.block_table_stride + n)] = s.table[static_cast<size_t>(n)];
    }
  }
  // The prefix: all queries as one sequence over the shared pages, nothing masked.
  std::vector<float> outs(2 * s.out.size()), lses(2 * s.lse.size());
  fovea_tensor parts[2], part_lses[2];
  for (int n = 0; n < 2; ++n) {
    parts[n] = s.p.out;
    parts[n].data = outs.data() + static_cast<size_t>(n) * s.out.size();
    part_lses[n] = s.p.lse;
    part_lses[n].data = lses.data() + static_cast<size_t>(n) * s.lse.size();
  }
  fovea_attention_params prefix = s.p;
  const int32_t cu[2] = {0, s.cu.back()};
  prefix.batch = 1;
  prefix.cu_seqlens_q = cu;
  prefix.kv_lens = nullptr;
  prefix.kv_len = kPrefix;
  prefix.causal = 0;
  prefix.out = parts[0];
  prefix.lse = part_lses[0];
  Run(prefix);
  // Each sequence's own keys: its table from the fourth page on.
  fovea_attention_params own = s.p;
  std::vector<int32_t> own_lens = kv_lens;
  for (int32_t& length : own_lens) length -= kPrefix;
  own.block_table = s.p.block_table + kPrefix / 16;
  own.kv_lens = own_lens.data();
  own.out = parts[1];
  own.lse = part_lses[1];
  Run(own);
  const fovea_exec exec = Threads(1);
  REQUIRE(fovea_attention_merge(2, parts, part_lses, 1, s.p.num_q_heads, s.p.total_q, s.p.head_dim, &s.p.out, &s.p.lse,
                                &exec) == FOVEA_OK);
  CHECK(fovea::CheckAttention(s.p).passed());
}

TEST_CASE("paged: a plan serves another table over other pages") {
  Serving s({1, 30}, {700, 60}, 16), other({1, 30}, {700, 60}, 16, 8);
  const fovea_exec exec = Threads(2);
  size_t bytes = 0;
  REQUIRE(fovea_attention_workspace_size(&s.p, &exec, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  const fovea_plan* plan = nullptr;
  REQUIRE(fovea_attention_plan(&s.p, &exec, memory.data(), bytes, &plan) == FOVEA_OK);
  Run(other.p, &exec);
  const std::vector<float> expected = Outputs(other.p);
  std::fill(other.out.begin(), other.out.end(), kNan);
  const auto run = [&] {
    fovea_status status = FOVEA_OK;
    for (int32_t phase = 0; phase < fovea_plan_phases(plan) && status == FOVEA_OK; ++phase) {
      status = fovea_attention_run_tasks(plan, &other.p, phase, 0, fovea_plan_tasks(plan, phase), 0);
    }
    return status;
  };
  CHECK(run() == FOVEA_OK);
  CHECK(BitDifference(expected, Outputs(other.p)) == "");
  other.table[0] = -1;
  CHECK(run() == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(std::string(fovea_last_error()).find("block_table[0][0] = -1") != std::string::npos);
}

}  // namespace fovea_test
