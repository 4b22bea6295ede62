// fovea_kv_append: what stands in the cache afterwards, place by place, and that nothing else does.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fovea/fovea.h"
#include "lib/dtype.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"
#include "tests/harness/guarded_buffer.h"
#include "tests/harness/random.h"
#include "tests/harness/test_tensor.h"

namespace fovea_test {
namespace {

enum class Cache { kContiguous, kBlockTable, kSlots };

struct AppendSpec {
  uint64_t seed = 1;
  Cache cache = Cache::kContiguous;
  int64_t batch = 1, num_kv_heads = 1, q_len = 1, head_dim = 1, v_head_dim = 0, page_size = 1, num_pages = 0;
  bool k = true, v = true, rope = false, packed = false, lens = false, strides = false, repeats = false;
  fovea_dtype fresh = FOVEA_F32, k_dtype = FOVEA_F32, v_dtype = FOVEA_F32, tables = FOVEA_F32;
};

struct Place {
  int64_t entry, row;
  bool operator<(const Place& other) const { return entry != other.entry ? entry < other.entry : row < other.row; }
};
struct Source {
  int64_t b, i;
};

// A call with all its memory guarded. repeats: pages or slots that several rows go to.
struct AppendCase {
  explicit AppendCase(const AppendSpec& s) : spec(s) {
    Rng rng(s.seed);
    const Guard guard = rng.Chance(50) ? Guard::kAfter : Guard::kBefore;
    std::vector<int32_t> lens, cu = {0}, starts;
    for (int64_t b = 0; b < s.batch; ++b) {
      lens.push_back(static_cast<int32_t>(s.packed || s.lens ? rng.Int(0, s.q_len) : s.q_len));
      cu.push_back(cu.back() + lens.back());
      starts.push_back(static_cast<int32_t>(rng.Int(0, 2 * s.page_size)));
    }
    const int64_t total = cu.back() + (s.packed ? rng.Int(0, 2) : 0);
    fovea_kv_append_params_init(&p, sizeof p);
    p.batch = s.batch;
    p.num_kv_heads = s.num_kv_heads;
    p.q_len = s.packed && rng.Chance(50) ? 0 : s.q_len;
    p.head_dim = s.head_dim;
    p.v_head_dim = s.v_head_dim;
    if (s.packed) {
      cu_ = GuardedArray<int32_t>(cu, guard);
      p.cu_seqlens_q = cu_.data();
      p.total_q = total;
    } else if (s.lens) {
      lens_ = GuardedArray<int32_t>(lens, guard);
      p.q_lens = lens_.data();
    }
    if (s.cache != Cache::kSlots && rng.Chance(80)) {
      starts_ = GuardedArray<int32_t>(starts, guard);
      p.kv_starts = starts_.data();
    }
    int64_t entries = s.batch, rows = 0;
    if (s.cache == Cache::kContiguous) {
      rows = p.capacity = s.q_len + 2 * s.page_size + rng.Int(0, 2);
    } else {
      rows = p.page_size = s.page_size;
      const int64_t pages_of_one = s.q_len / s.page_size + 4;
      entries = p.num_pages =
          s.num_pages ? s.num_pages
                      : std::max<int64_t>(1, s.repeats ? pages_of_one * s.batch / 3 : pages_of_one * s.batch + 3);
      std::vector<int32_t> order;  // every page once, in a random order
      for (int64_t n = 0; n < p.num_pages; ++n) order.insert(order.begin() + rng.Int(0, n), static_cast<int32_t>(n));
      if (s.cache == Cache::kBlockTable) {
        p.block_table_stride = pages_of_one;
        std::vector<int32_t> table;
        for (int64_t b = 0; b < s.batch; ++b) {
          const int64_t start = p.kv_starts ? p.kv_starts[b] : 0, len = lens[static_cast<size_t>(b)];
          for (int64_t e = 0; e < pages_of_one; ++e) {
            const bool used = len > 0 && e >= start / s.page_size && e <= (start + len - 1) / s.page_size;
            const size_t n = static_cast<size_t>(b * pages_of_one + e) % order.size();
            table.push_back(used ? order[s.repeats && rng.Chance(30) ? 0 : n]
                                 : static_cast<int32_t>(rng.Pick({-1, INT32_MIN, 1 << 30})));
          }
        }
        table_ = GuardedArray<int32_t>(table, guard);
        p.block_table = table_.data();
      } else {
        p.slot_mapping_stride = s.packed ? -5 : s.q_len + rng.Int(0, 3);
        std::vector<int32_t> slots(
            static_cast<size_t>(s.packed ? total : (s.batch - 1) * p.slot_mapping_stride + s.q_len), -99);
        size_t at = 0;  // in order of pages
        for (int64_t b = 0; b < s.batch; ++b) {
          for (int64_t i = 0; i < lens[static_cast<size_t>(b)]; ++i) {
            at += rng.Chance(10) ? 2u : 1u;
            const int64_t slot =
                s.repeats && rng.Chance(20)
                    ? rng.Int(0, std::min<int64_t>(2, p.num_pages * s.page_size - 1))
                    : int64_t{order[at / static_cast<size_t>(s.page_size) % order.size()]} * s.page_size +
                          static_cast<int64_t>(at % static_cast<size_t>(s.page_size));
            const int64_t n = s.packed ? cu[static_cast<size_t>(b)] + i : b * p.slot_mapping_stride + i;
            slots[static_cast<size_t>(n)] = rng.Chance(15) ? -1 : static_cast<int32_t>(slot);
          }
        }
        slots_ = GuardedArray<int32_t>(slots, guard);
        p.slot_mapping = slots_.data();
      }
    }
    const int64_t v_dim = s.v_head_dim ? s.v_head_dim : s.head_dim;
    const auto make = [&](fovea_dtype dtype, const Shape& of, bool input) {
      return std::make_unique<TestTensor>(dtype, of,
                                          s.strides ? RandomStrides(&rng, of, false, input) : DenseStrides(of), guard);
    };
    const Shape fresh = {s.packed ? 1 : s.batch, s.num_kv_heads, s.packed ? total : s.q_len, 0},
                cache = {entries, s.num_kv_heads, rows, 0};
    const auto with = [](Shape shape, int64_t cols) {
      shape.cols = cols;
      return shape;
    };
    if (s.k) {
      k_new = make(s.fresh, with(fresh, s.head_dim), true);
      k_cache = make(s.k_dtype, with(cache, s.head_dim), false);
      Fill(*k_new, 1);
      Fill(*k_cache, 2);
      p.k_new = k_new->view();
      p.k_cache = k_cache->view();
      if (s.k_dtype == FOVEA_I8) {
        k_scale = make(FOVEA_F32, with(cache, 1), false);
        p.k_scale = k_scale->view();
        if (rng.Chance(50)) {
          k_channel_scale = make(FOVEA_F32, {s.batch, s.num_kv_heads, 1, s.head_dim}, true);
          Fill(*k_channel_scale, 7);  // none is 0
          p.k_channel_scale = k_channel_scale->view();
        }
      }
    }
    if (s.v) {
      v_new = make(s.fresh, with(fresh, v_dim), true);
      v_cache = make(s.v_dtype, with(cache, v_dim), false);
      Fill(*v_new, 3);
      Fill(*v_cache, 4);
      p.v_new = v_new->view();
      p.v_cache = v_cache->view();
      if (s.v_dtype == FOVEA_I8) {
        v_scale = make(FOVEA_F32, with(cache, 1), false);
        p.v_scale = v_scale->view();
      }
    }
    if (s.rope) AddRope(&rng, guard);
    Snapshot();
  }

  void AddRope(Rng* rng, Guard guard) {
    fovea_rope_params_init(&rope, sizeof rope);
    rope.rotary_dim = 2 * rng->Int(1, spec.head_dim / 2);
    rope.interleaved = rng->Chance(50);
    rope.num_positions = spec.q_len + 2 * spec.page_size + 1;
    const Shape shape = {1, 1, rope.num_positions, rope.rotary_dim / 2};
    cos = std::make_unique<TestTensor>(spec.tables, shape, DenseStrides(shape), guard);
    sin = std::make_unique<TestTensor>(spec.tables, shape, DenseStrides(shape), guard);
    Fill(*cos, 5);
    Fill(*sin, 6);
    rope.cos = cos->view();
    rope.sin = sin->view();
    if (p.kv_starts && rng->Chance(50)) {
      rope.position_offsets = p.kv_starts;
    } else if (rng->Chance(70)) {
      rope.position_ids_stride = spec.q_len;
      std::vector<int32_t> ids(static_cast<size_t>(p.cu_seqlens_q ? p.total_q : spec.batch * spec.q_len), -44);
      ForRows([&](int64_t b, int64_t i) {
        const size_t n = static_cast<size_t>(p.cu_seqlens_q ? p.cu_seqlens_q[b] + i : b * spec.q_len + i);
        if (Where(b, i).entry >= 0) ids[n] = static_cast<int32_t>(rng->Int(0, rope.num_positions - 1));
      });
      ids_ = GuardedArray<int32_t>(ids, guard);
      rope.position_ids = ids_.data();
    } else {
      rope.position_offset = rng->Int(0, 2);
    }
    p.rope = &rope;
  }

  void Fill(TestTensor& t, uint64_t tag) const {
    const Shape& s = t.shape();
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t h = 0; h < s.heads; ++h) {
        for (int64_t i = 0; i < s.rows; ++i) {
          for (int64_t c = 0; c < s.cols; ++c)
            t.Set(b, h, i, c, NormalFromBits(ElementBits(spec.seed, tag, b, h, i, c)));
        }
      }
    }
  }

  void Snapshot() {
    for (TestTensor* t : {k_new.get(), v_new.get(), k_cache.get(), v_cache.get(), k_scale.get(), v_scale.get(),
                          k_channel_scale.get(), cos.get(), sin.get()}) {
      if (t) t->Snapshot();
    }
  }

  int64_t Len(int64_t b) const {
    return p.cu_seqlens_q ? p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] : p.q_lens ? p.q_lens[b] : spec.q_len;
  }
  void ForRows(const std::function<void(int64_t b, int64_t i)>& body) const {
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t i = 0; i < Len(b); ++i) body(b, i);
    }
  }
  // entry -1: nowhere.
  Place Where(int64_t b, int64_t i) const {
    const int64_t start = p.kv_starts ? p.kv_starts[b] : 0;
    if (p.slot_mapping) {
      const int64_t slot = p.slot_mapping[p.cu_seqlens_q ? p.cu_seqlens_q[b] + i : b * p.slot_mapping_stride + i];
      return slot < 0 ? Place{-1, 0} : Place{slot / p.page_size, slot % p.page_size};
    }
    if (!p.block_table) return {b, start + i};
    return {p.block_table[b * p.block_table_stride + (start + i) / p.page_size], (start + i) % p.page_size};
  }

  // What row i of sequence b should be in the cache, and its scale, as fovea.h has it; in f32, each operation rounded.
  std::vector<float> Expected(fovea_dtype dtype, const TestTensor& fresh, const TestTensor* channel_scale, const Source& source,
                              int64_t h, float* scale) const {
    std::vector<float> row(static_cast<size_t>(fresh.shape().cols));
    float most = 0;
    bool finite = true;
    for (size_t n = 0; n < row.size(); ++n) {
      const int64_t c = static_cast<int64_t>(n);
      row[n] = p.cu_seqlens_q ? fresh.Get(0, h, p.cu_seqlens_q[source.b] + source.i, c) : fresh.Get(source.b, h, source.i, c);
      if (dtype != FOVEA_I8) {
        float stored = 0;
        fovea::StoreElement(dtype, row[n], &stored, 0);
        row[n] = fovea::LoadElement(dtype, &stored, 0);
      }
      if (channel_scale) row[n] /= channel_scale->Get(source.b, h, 0, c);
      finite &= std::isfinite(row[n]);
      most = std::max(most, std::fabs(row[n]));
    }
    if (dtype != FOVEA_I8) return row;
    *scale = finite ? most / 127 : std::nanf("");
    for (float& x : row) x = *scale > 0 ? std::clamp(std::nearbyint(x / *scale), -127.0f, 127.0f) : 0.0f;
    return row;
  }

  std::string CheckSide(const TestTensor& cache, const TestTensor* scales, const TestTensor* channel_scale, const TestTensor& fresh,
                        const std::map<Place, Source>& last) const {
    const Shape& s = cache.shape();
    for (const auto& [place, source] : last) {
      for (int64_t h = 0; h < s.heads; ++h) {
        float scale = 0;
        const std::vector<float> row = Expected(cache.view().dtype, fresh, channel_scale, source, h, &scale);
        if (scales && BitDifference({scale}, {scales->Get(place.entry, h, place.row)}) != "") {
          return "scale of entry " + std::to_string(place.entry) + " row " + std::to_string(place.row) + ": " +
                 BitDifference({scale}, {scales->Get(place.entry, h, place.row)});
        }
        for (int64_t c = 0; c < s.cols; ++c) {
          const float got = cache.Get(place.entry, h, place.row, c), expected = row[static_cast<size_t>(c)];
          const bool same = scales ? got == expected : std::memcmp(&got, &expected, sizeof got) == 0;
          if (!same) {
            return "entry " + std::to_string(place.entry) + " row " + std::to_string(place.row) + " head " +
                   std::to_string(h) + " column " + std::to_string(c) + ": " + std::to_string(got) + ", row " +
                   std::to_string(source.i) + " of sequence " + std::to_string(source.b) + " has " +
                   std::to_string(expected);
          }
        }
      }
    }
    const auto written = [&](int64_t entry, int64_t, int64_t row) { return last.count({entry, row}) != 0; };
    const std::string changed = cache.Changed(written);
    return changed.empty() && scales ? scales->Changed(written) : changed;
  }

  // "" or what is wrong. Rotated rows are those that fovea_rope gives, bit for bit (rope_test.cc has it right).
  std::string Check() const {
    std::map<Place, Source> last;
    ForRows([&](int64_t b, int64_t i) {
      const Place place = Where(b, i);
      if (place.entry >= 0) last[place] = {b, i};
    });
    std::string wrong;
    if (k_new) {
      if (p.rope) {
        TestTensor rotated(spec.k_dtype == FOVEA_I8 ? FOVEA_F32 : spec.k_dtype, k_new->shape(), DenseStrides(k_new->shape()), Guard::kAfter);
        fovea_rope_params r = rope;
        r.batch = p.batch;
        r.num_heads = p.num_kv_heads;
        r.q_len = p.q_len;
        r.head_dim = p.head_dim;
        r.q_lens = p.q_lens;
        r.cu_seqlens_q = p.cu_seqlens_q;
        r.total_q = p.total_q;
        r.x = p.k_new;
        r.out = rotated.view();
        std::vector<int32_t> ids;  // those of skipped rows are garbage here
        if (r.position_ids) {
          ids.assign(r.position_ids, r.position_ids + (p.cu_seqlens_q ? p.total_q : p.batch * spec.q_len));
          for (int32_t& id : ids) id = std::max(id, 0);
          r.position_ids = ids.data();
        }
        if (fovea_rope(&r, nullptr) != FOVEA_OK) return fovea_last_error();
        wrong = CheckSide(*k_cache, k_scale.get(), k_channel_scale.get(), rotated, last);
      } else {
        wrong = CheckSide(*k_cache, k_scale.get(), k_channel_scale.get(), *k_new, last);
      }
    }
    if (wrong.empty() && v_new) wrong = CheckSide(*v_cache, v_scale.get(), nullptr, *v_new, last);
    for (const TestTensor* t : {k_new.get(), v_new.get(), k_channel_scale.get(), cos.get(), sin.get()}) {
      if (wrong.empty() && t) wrong = t->Changed();
    }
    return wrong;
  }

  std::string Describe() const {
    return Repeat(spec.seed, {{"cache", static_cast<int64_t>(spec.cache)},
                              {"batch", spec.batch},
                              {"heads", spec.num_kv_heads},
                              {"q_len", spec.q_len},
                              {"head_dim", spec.head_dim},
                              {"v_head_dim", spec.v_head_dim},
                              {"page_size", spec.page_size},
                              {"k", spec.k},
                              {"v", spec.v},
                              {"rope", spec.rope},
                              {"packed", spec.packed},
                              {"lens", spec.lens},
                              {"strides", spec.strides},
                              {"repeats", spec.repeats},
                              {"fresh", spec.fresh},
                              {"k_dtype", spec.k_dtype},
                              {"v_dtype", spec.v_dtype},
                              {"tables", spec.tables}});
  }

  AppendSpec spec;
  fovea_kv_append_params p;
  fovea_rope_params rope;
  std::unique_ptr<TestTensor> k_new, v_new, k_cache, v_cache, k_scale, v_scale, k_channel_scale, cos, sin;

 private:
  GuardedArray<int32_t> cu_, lens_, starts_, table_, slots_, ids_;
};

AppendSpec RandomAppend(uint64_t seed) {
  Rng rng(seed);
  AppendSpec s;
  s.seed = seed;
  s.cache = static_cast<Cache>(rng.Int(0, 2));
  s.batch = rng.Pick({1, 1, 2, 3, 7});
  s.num_kv_heads = rng.Pick({1, 2, 3, 8});
  s.q_len = rng.Pick({0, 1, 1, 1, 2, 3, 17, 64, 65, 130});
  s.head_dim = rng.Pick({1, 2, 3, 8, 16, 17, 64, 66, 128});
  s.v_head_dim = rng.Chance(60) ? 0 : rng.Pick({1, 5, 32, 80});
  s.page_size = rng.Pick({1, 2, 3, 7, 16, 32, 33, 128});
  s.k = rng.Chance(85);
  s.v = !s.k || rng.Chance(80);
  s.rope = s.k && s.head_dim > 1 && rng.Chance(40);
  s.packed = rng.Chance(30);
  s.lens = !s.packed && rng.Chance(30);
  s.strides = rng.Chance(60);
  s.repeats = rng.Chance(30);
  if (rng.Chance(60)) {
    for (fovea_dtype* dtype : {&s.fresh, &s.k_dtype, &s.v_dtype, &s.tables}) {
      *dtype = static_cast<fovea_dtype>(rng.Pick({FOVEA_F32, FOVEA_BF16, FOVEA_F16}));
    }
    if (rng.Chance(30)) s.k_dtype = FOVEA_I8;
    if (rng.Chance(30)) s.v_dtype = FOVEA_I8;
  }
  return s;
}

std::string Append(const fovea_kv_append_params& p, const fovea_exec* exec = nullptr) {
  return fovea_kv_append(&p, exec) == FOVEA_OK ? "" : fovea_last_error();
}

// Keys of one head that are quantized.
fovea_kv_append_params QuantizedKeys(int64_t rows, int64_t dim, const TestTensor& fresh, const TestTensor& cache, const TestTensor& scale) {
  fovea_kv_append_params p;
  fovea_kv_append_params_init(&p, sizeof p);
  p.batch = p.num_kv_heads = 1;
  p.q_len = p.capacity = rows;
  p.head_dim = dim;
  p.k_new = fresh.view();
  p.k_cache = cache.view();
  p.k_scale = scale.view();
  return p;
}

}  // namespace

TEST_CASE(
    "kv_append: random contiguous and paged caches, dtypes, packed and padded, skipped rows, rings, rotated or not") {
  const uint64_t first = FirstSeed(91000);
  for (int64_t n = 0; n < CaseCount(600); ++n) {
    AppendCase c(RandomAppend(first + static_cast<uint64_t>(n)));
    INFO(c.Describe());
    REQUIRE(Append(c.p) == "");
    CHECK(c.Check() == "");
  }
}

TEST_CASE("kv_append: an int8 row has a scale of its own: NaN, Inf, zeros, the range of f32, ties to even") {
  constexpr int64_t kRows = 9, kDim = 37;
  const Shape shape = {1, 1, kRows, kDim};
  const TestTensor fresh(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter), cache(FOVEA_I8, shape, DenseStrides(shape), Guard::kAfter),
      scale(FOVEA_F32, {1, 1, kRows, 1}, DenseStrides({1, 1, kRows, 1}), Guard::kAfter);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t c = 0; c < kDim; ++c) fresh.F32(0, 0, i, c) = static_cast<float>(c) - 18.0f;
  }
  fresh.F32(0, 0, 1, 36) = std::nanf("");
  fresh.F32(0, 0, 2, 0) = HUGE_VALF;
  for (int64_t c = 0; c < kDim; ++c) {
    fresh.F32(0, 0, 3, c) = c % 2 ? 0.0f : -0.0f;
    fresh.F32(0, 0, 4, c) *= 0x1p123f;
    fresh.F32(0, 0, 5, c) *= 0x1p-149f;                                                         // the scale is 0
    fresh.F32(0, 0, 6, c) = c % 2 ? 100 * 0x1p-149f : -7 * 0x1p-149f;                           // a scale of 2^-149
    fresh.F32(0, 0, 7, c) = c == 0 ? -127.0f : c == 1 ? 2.5f : c == 2 ? 3.5f : c == 3 ? -0.5f : 126.5f;  // a scale of 1
  }
  fovea_kv_append_params p = QuantizedKeys(kRows, kDim, fresh, cache, scale);
  REQUIRE(Append(p) == "");
  const auto row = [&](int64_t i) {
    std::vector<float> values;
    for (int64_t c = 0; c < kDim; ++c) values.push_back(cache.Get(0, 0, i, c));
    return values;
  };
  CHECK(scale.F32(0, 0, 0) == 18.0f / 127.0f);
  CHECK(row(0)[0] == -127);
  CHECK(row(0)[19] == 7);
  CHECK(row(8) == row(0));
  for (int64_t i : {1, 2}) {
    CHECK(std::isnan(scale.F32(0, 0, i)));
    CHECK(row(i) == std::vector<float>(kDim, 0.0f));
  }
  for (int64_t i : {3, 5}) {
    CHECK(scale.F32(0, 0, i) == 0);
    CHECK(row(i) == std::vector<float>(kDim, 0.0f));
  }
  CHECK(scale.F32(0, 0, 4) == 0x1p123f * 18.0f / 127.0f);
  CHECK(row(4) == row(0));
  CHECK(scale.F32(0, 0, 6) == 0x1p-149f);
  CHECK(row(6)[0] == -7);
  CHECK(row(6)[1] == 100);
  CHECK(scale.F32(0, 0, 7) == 1);
  std::vector<float> ties = row(7);
  ties.resize(5);
  CHECK(ties == std::vector<float>{-127, 2, 4, 0, 126});
}

TEST_CASE("kv_append: a row's int8 times its scale is within half a step of it, more by 2^-16 steps") {
  constexpr int64_t kRows = 400, kDim = 64;
  const Shape shape = {1, 1, kRows, kDim};
  const TestTensor fresh(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter), cache(FOVEA_I8, shape, DenseStrides(shape), Guard::kAfter),
      scale(FOVEA_F32, {1, 1, kRows, 1}, DenseStrides({1, 1, kRows, 1}), Guard::kAfter),
      channel(FOVEA_F32, {1, 1, 1, kDim}, DenseStrides({1, 1, 1, kDim}), Guard::kAfter);
  Rng rng(3);
  for (int64_t i = 0; i < kRows; ++i) {
    const float factor = std::ldexp(1.0f, static_cast<int>(rng.Int(-100, 100)));
    for (int64_t c = 0; c < kDim; ++c) fresh.F32(0, 0, i, c) = factor * rng.Normal();
  }
  for (int64_t c = 0; c < kDim; ++c) channel.F32(0, 0, 0, c) = std::ldexp(1 + 0.001f * static_cast<float>(c), static_cast<int>(c % 11) - 5);
  for (const bool channels : {false, true}) {
    fovea_kv_append_params p = QuantizedKeys(kRows, kDim, fresh, cache, scale);
    if (channels) p.k_channel_scale = channel.view();
    REQUIRE(Append(p) == "");
    double worst = 0;
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t c = 0; c < kDim; ++c) {
        const double step = static_cast<double>(scale.F32(0, 0, i)) * (channels ? static_cast<double>(channel.F32(0, 0, 0, c)) : 1);
        const double error = static_cast<double>(cache.Get(0, 0, i, c)) * step - static_cast<double>(fresh.F32(0, 0, i, c));
        worst = std::max(worst, std::fabs(error) / step);
      }
    }
    CHECK(worst <= 0.5 + 0x1p-16);
    CHECK(worst > 0.49);
  }
}

TEST_CASE("kv_append: the last row stays and the bits are the same, over threads and executors") {
  for (const Cache cache : {Cache::kContiguous, Cache::kBlockTable, Cache::kSlots}) {
    for (const int kind : {0, 1, 2, 3}) {
      const bool rope = kind % 2 != 0;
      AppendSpec s;
      s.seed = 7;
      s.cache = cache;
      s.batch = 3;
      s.num_kv_heads = 2;
      s.q_len = 400;
      s.head_dim = 64;
      s.page_size = 16;
      s.rope = rope;
      if (kind >= 2) s.k_dtype = s.v_dtype = FOVEA_I8;
      s.repeats = true;
      if (cache != Cache::kContiguous) s.num_pages = 5;  // each slot is written many times
      for (int n = 0; n < 6; ++n) {
        AppendCase c(s);
        fovea_exec exec = Threads(n == 0 ? 1 : n == 1 ? 2 : n == 2 ? 3 : 8);
        if (n == 4) exec.parallel_for = Reversed;
        if (n == 5) exec.parallel_for = StdThreads;
        INFO("cache ", static_cast<int>(cache), ", rope ", rope, ", n ", n);
        REQUIRE(Append(c.p, &exec) == "");
        CHECK(c.Check() == "");
      }
    }
  }
}

TEST_CASE("kv_append then attention: steps into a cache equal one pass over the whole, RoPE on the way") {
  constexpr int64_t kBatch = 2, kQHeads = 4, kKvHeads = 2, kLen = 37, kDim = 24;
  const Shape q_shape = {kBatch, kQHeads, kLen, kDim}, kv_shape = {kBatch, kKvHeads, kLen, kDim};
  const auto make = [](const Shape& shape) { return TestTensor(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter); };
  const TestTensor q = make(q_shape), k = make(kv_shape), v = make(kv_shape), cos = make({1, 1, kLen, kDim / 2}),
                   sin = make({1, 1, kLen, kDim / 2});
  Rng rng(11);
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t i = 0; i < kLen; ++i) {
      for (int64_t c = 0; c < kDim; ++c) {
        for (int64_t h = 0; h < kQHeads; ++h) q.F32(b, h, i, c) = rng.Normal();
        for (int64_t h = 0; h < kKvHeads; ++h) k.F32(b, h, i, c) = rng.Normal(), v.F32(b, h, i, c) = rng.Normal();
      }
    }
  }
  fovea_rope_tables_params tables;
  fovea_rope_tables_params_init(&tables, sizeof tables);
  tables.rotary_dim = kDim;
  tables.num_positions = kLen;
  tables.cos = cos.view();
  tables.sin = sin.view();
  REQUIRE(fovea_rope_tables(&tables, nullptr) == FOVEA_OK);
  fovea_rope_params rope;
  fovea_rope_params_init(&rope, sizeof rope);
  rope.num_positions = kLen;
  rope.cos = tables.cos;
  rope.sin = tables.sin;

  const TestTensor whole_k = make(kv_shape), whole_out = make(q_shape), step_k = make(kv_shape),
                   step_v = make(kv_shape), step_out = make(q_shape);
  fovea_exec exec = Threads(1, FOVEA_BATCH_INVARIANT);
  fovea_attention_params a;
  fovea_attention_params_init(&a, sizeof a);
  a.batch = kBatch;
  a.num_q_heads = kQHeads;
  a.num_kv_heads = kKvHeads;
  a.q_len = a.kv_len = kLen;
  a.head_dim = kDim;
  a.causal = 1;
  a.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  fovea_rope_params whole = rope;
  whole.batch = kBatch;
  whole.num_heads = kKvHeads;
  whole.q_len = kLen;
  whole.head_dim = kDim;
  whole.x = k.view();
  whole.out = whole_k.view();
  REQUIRE(fovea_rope(&whole, nullptr) == FOVEA_OK);
  a.q = q.view();
  a.k = whole_k.view();
  a.v = v.view();
  a.out = whole_out.view();
  Run(a, &exec);

  for (int64_t begin = 0, rows = 20; begin < kLen; begin += rows, rows = 1) {  // a prefill of 20, then single steps
    const int32_t starts[kBatch] = {static_cast<int32_t>(begin), static_cast<int32_t>(begin)};
    const auto from = [begin](const TestTensor& t) {
      fovea_tensor view = t.view();
      view.data = static_cast<float*>(view.data) + begin * view.stride_row;
      return view;
    };
    fovea_kv_append_params p;
    fovea_kv_append_params_init(&p, sizeof p);
    p.batch = kBatch;
    p.num_kv_heads = kKvHeads;
    p.q_len = rows;
    p.head_dim = kDim;
    p.capacity = kLen;
    p.kv_starts = starts;
    p.k_new = from(k);
    p.v_new = from(v);
    p.k_cache = step_k.view();
    p.v_cache = step_v.view();
    rope.position_offsets = starts;
    p.rope = &rope;
    REQUIRE(Append(p) == "");
    a.q = from(q);
    a.out = from(step_out);
    a.k = step_k.view();
    a.v = step_v.view();
    a.q_len = rows;
    a.kv_len = begin + rows;
    Run(a, &exec);
  }
  int64_t different = 0;
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t h = 0; h < kQHeads; ++h) {
      for (int64_t i = 0; i < kLen; ++i) {
        for (int64_t c = 0; c < kDim; ++c) different += whole_out.F32(b, h, i, c) != step_out.F32(b, h, i, c);
      }
    }
  }
  CHECK(different == 0);
}

TEST_CASE("kv_append: bad arguments are refused by name, nothing is written") {
  using P = fovea_kv_append_params;
  struct Bad {
    Cache cache;
    std::function<void(P*, fovea_rope_params*)> change;
    fovea_status status;
    const char* text;
  };
  constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT, kUnsupported = FOVEA_ERR_UNSUPPORTED;
  constexpr Cache kContiguous = Cache::kContiguous, kTable = Cache::kBlockTable, kSlots = Cache::kSlots;
  static int32_t array[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  static float scales[4096], zeros[4096];
  static const int32_t late[] = {0, 17}, early[] = {-1, 0}, slots[] = {0, 1, -2, 3, 4, 5}, high[] = {0, 1, 2, 3, 4, 30},
                       pages[] = {0, 1, 2, 77};
  const Bad bad[] = {
      {kContiguous, [](P* p, fovea_rope_params*) { p->struct_size = 9; }, kInvalid, "struct_size = 9"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->batch = 0; }, kInvalid, "batch = 0"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->num_kv_heads = 0; }, kInvalid, "num_kv_heads = 0"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->q_len = -1; }, kInvalid, "q_len = -1"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->head_dim = -1; }, kInvalid, "head_dim = -1"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_head_dim = -1; }, kInvalid, "v_head_dim = -1"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_head_dim = INT64_MAX; }, kInvalid, "2^56"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->capacity = 2; }, kInvalid, "kv_starts[0] = 0"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->capacity = -2; }, kInvalid, "capacity = -2"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->kv_starts = late; }, kInvalid, "kv_starts[1] = 17"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->kv_starts = early; }, kInvalid, "kv_starts[0] = -1"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->num_pages = 3; }, kInvalid, "num_pages = 3"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->slot_mapping_stride = 3; }, kInvalid, "slot_mapping_stride = 3"},
      {kContiguous,
       [](P* p, fovea_rope_params*) {
         p->k_new = p->k_cache = p->v_new = p->v_cache = fovea_tensor{}, p->rope = nullptr;
       },
       kInvalid, "k_new and v_new"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_new = fovea_tensor{}; }, kInvalid, "k_cache is given"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_cache = fovea_tensor{}; }, kInvalid, "v_cache.dtype = NONE"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_cache.dtype = FOVEA_F8E4M3; }, kUnsupported,
       "k_cache.dtype = F8E4M3: this version takes F32, BF16, F16 or I8"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_new.dtype = FOVEA_I8; }, kUnsupported, "k_new.dtype = I8"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_cache.dtype = FOVEA_I8; }, kInvalid, "k_scale.dtype = NONE: must be F32"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_scale = fovea_tensor_bhs(array, FOVEA_F32, 1, 1); }, kInvalid,
       "v_scale is given: must be absent where v_cache.dtype = "},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_channel_scale = fovea_tensor_bhs(array, FOVEA_F32, 1, 1); }, kInvalid,
       "k_channel_scale is given: must be absent where k_cache.dtype = "},
      {kContiguous,
       [](P* p, fovea_rope_params*) {
         p->v_cache.dtype = FOVEA_I8;
         p->v_scale = fovea_tensor_bhs(p->v_cache.data, FOVEA_F32, p->num_kv_heads, p->capacity);
       },
       kInvalid, "overlaps v_scale"},
      {kContiguous,
       [](P* p, fovea_rope_params*) {
         p->k_cache.dtype = FOVEA_I8;
         p->k_scale = fovea_tensor_bhs(scales, FOVEA_F32, p->num_kv_heads, p->capacity);
         p->k_channel_scale = fovea_tensor_bhsd(zeros, FOVEA_F32, p->num_kv_heads, 1, p->head_dim);
         p->k_channel_scale.stride_batch = p->k_channel_scale.stride_head = 0;
       },
       kInvalid, "k_channel_scale[0][0][0][0] = 0: must be finite and not 0"},
      {kContiguous,
       [](P* p, fovea_rope_params*) {
         p->head_dim = 4097;
         p->rope = nullptr;
         p->k_new.stride_batch = p->k_cache.stride_batch = p->k_new.stride_head = p->k_cache.stride_head = 1 << 20;
         p->k_new.stride_row = p->k_cache.stride_row = 4097;
         p->v_new = p->v_cache = fovea_tensor{};
         p->k_cache.data = reinterpret_cast<void*>(uintptr_t{1} << 40);
         p->k_cache.dtype = FOVEA_I8;
         p->k_scale = fovea_tensor_bhs(scales, FOVEA_F32, p->num_kv_heads, p->capacity);
       },
       kUnsupported, "head_dim = 4097: must be at most 4096 where k_cache.dtype = I8"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_cache.data = p->k_new.data; }, kInvalid,
       "k_cache overlaps k_new"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_cache = p->k_cache; }, kInvalid, "k_cache overlaps v_cache"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->v_cache.stride_batch = 0; }, kInvalid,
       "v_cache.stride_batch = 0"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->q_lens = late; }, kInvalid, "q_lens[1] = 17"},
      {kContiguous, [](P* p, fovea_rope_params* r) { r->batch = 2, p->rope = r; }, kInvalid, "rope: its batch"},
      {kContiguous, [](P* p, fovea_rope_params* r) { r->x = p->k_new; }, kInvalid, "rope: its batch"},
      {kContiguous, [](P*, fovea_rope_params* r) { r->struct_size = 0; }, kInvalid, "rope.struct_size = 0"},
      {kContiguous, [](P*, fovea_rope_params* r) { r->rotary_dim = 30; }, kInvalid, "rope.rotary_dim = 30"},
      {kContiguous, [](P*, fovea_rope_params* r) { r->position_offset = 30; }, kInvalid,
       "rope.position_offset of sequence 0 = 30"},
      {kContiguous, [](P* p, fovea_rope_params* r) { r->cos.data = p->v_cache.data; }, kInvalid,
       "v_cache overlaps rope.cos"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->k_new = p->k_cache = fovea_tensor{}; }, kInvalid,
       "rope is given"},
      {kContiguous, [](P* p, fovea_rope_params*) { p->kv_starts = static_cast<int32_t*>(p->v_cache.data); }, kInvalid,
       "kv_starts"},
      {kTable, [](P* p, fovea_rope_params*) { p->capacity = 3; }, kInvalid, "capacity = 3"},
      {kTable, [](P* p, fovea_rope_params*) { p->page_size = 0; }, kInvalid, "page_size = 0"},
      {kTable, [](P* p, fovea_rope_params*) { p->page_size = INT64_MAX; }, kInvalid, "page_size"},
      {kTable, [](P* p, fovea_rope_params*) { p->num_pages = -1; }, kInvalid, "num_pages = -1"},
      {kTable, [](P* p, fovea_rope_params*) { p->block_table = pages, p->block_table_stride = 2; }, kInvalid,
       "block_table[1][1] = 77"},
      {kTable, [](P* p, fovea_rope_params*) { p->block_table_stride = 1; }, kInvalid, "kv_starts[0] = 0"},
      {kTable, [](P* p, fovea_rope_params*) { p->slot_mapping = array; }, kInvalid, "slot_mapping is given"},
      {kSlots, [](P* p, fovea_rope_params*) { p->slot_mapping = slots, p->slot_mapping_stride = 3; }, kInvalid,
       "row 2 of sequence 0 = -2"},
      {kSlots, [](P* p, fovea_rope_params*) { p->slot_mapping = high, p->slot_mapping_stride = 3, p->num_pages = 7; },
       kInvalid, "row 2 of sequence 1 = 30"},
      {kSlots, [](P* p, fovea_rope_params*) { p->slot_mapping_stride = 2; }, kInvalid, "slot_mapping_stride = 2"},
      {kSlots, [](P* p, fovea_rope_params*) { p->kv_starts = array; }, kInvalid, "kv_starts is given"},
  };
  for (const Bad& b : bad) {
    AppendSpec s;
    s.cache = b.cache;
    s.batch = 2;
    s.num_kv_heads = 2;
    s.q_len = 3;
    s.head_dim = 8;
    s.page_size = 2;
    s.rope = true;
    AppendCase c(s);
    c.p.kv_starts = nullptr;
    c.rope.position_ids = c.rope.position_offsets = nullptr;
    c.rope.position_offset = c.rope.position_ids_stride = 0;
    if (b.cache == Cache::kBlockTable) c.p.block_table = array;
    REQUIRE(Append(c.p) == "");
    c.Snapshot();
    b.change(&c.p, &c.rope);
    INFO(std::string(b.text));
    CHECK(fovea_kv_append(&c.p, nullptr) == b.status);
    CHECK_MESSAGE(std::strstr(fovea_last_error(), b.text), std::string(fovea_last_error()));
    CHECK(c.k_cache->Changed() == "");
    CHECK(c.v_cache->Changed() == "");
  }
  CHECK(fovea_kv_append(nullptr, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
}

}  // namespace fovea_test
