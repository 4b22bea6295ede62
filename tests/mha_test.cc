// fovea_mha_forward: a layer against f64, its cache, and its contract.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"

namespace fovea_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

enum class Kv { kNone, kContiguous, kPaged };

struct MhaSpec {
  uint64_t seed = 1;
  int64_t batch = 1, q_len = 1, d_model = 8, d_out = 8, q_heads = 1, kv_heads = 1, head_dim = 8, v_head_dim = 8;
  Kv kv = Kv::kNone;
  int64_t room = 0;      // rows that the cache holds per sequence
  int64_t page_size = 3;
  int64_t start = -1;    // rows that the cache holds already; -1: drawn for each sequence
  bool packed_weight = false, biases = true, norm = false, rope = false, interleaved = false, lens = false, packed = false;
  bool cross = false, strides = false, causal = false, mask = false, sinks = false, window = false, cap = false, lse = false;
  bool broadcast = true; // with strides: inputs may have some of 0
  int64_t kv_len = 0;    // of cross
  fovea_dtype x = FOVEA_F32, w = FOVEA_F32, y = FOVEA_F32, cache = FOVEA_F32;
  fovea_dtype v_cache = FOVEA_DTYPE_NONE;  // as cache
  bool channel_scale = false;              // with an I8 cache of K
  bool offset = false, kv_rope = false;    // cross with rope: rows of x stand at positions of rope's own, those of x_kv at kv_rope's
};

constexpr int64_t kRopeOffset = 2;

// Half the distance of neighbours near 1.
double Unit(fovea_dtype dtype) { return dtype == FOVEA_BF16 ? 0x1p-8 : dtype == FOVEA_F16 ? 0x1p-11 : 0; }

// A layer with all its memory guarded. Weights are about 1 / sqrt(d_model), so that q, k, v are about 1.
struct MhaCase {
  explicit MhaCase(const MhaSpec& s) : spec(s), rng(s.seed) {
    guard = rng.Chance(50) ? Guard::kAfter : Guard::kBefore;
    fovea_mha_params_init(&p, sizeof p);
    p.batch = s.batch, p.q_len = s.q_len, p.d_model = s.d_model, p.d_out = s.d_out;
    p.num_q_heads = s.q_heads, p.num_kv_heads = s.kv_heads, p.head_dim = s.head_dim, p.v_head_dim = s.v_head_dim;
    Rows(s.q_len, s.lens, s.packed, &q_lens, &p.q_lens, &p.cu_seqlens_q, &p.total_q, &q_lens_array);
    x = Make(s.x, Side(s.packed, p.total_q, s.q_len, s.d_model), true, 1, 1.0f);
    y = Make(s.y, Side(s.packed, p.total_q, s.q_len, s.d_out), false, 0, 1.0f);
    p.x = x->view(), p.y = y->view();
    d_kv = s.cross && !s.packed_weight ? s.d_model + 3 : s.d_model;
    if (s.cross) {
      p.kv_len = s.kv_len;
      p.d_kv = d_kv == s.d_model ? 0 : d_kv;
      Rows(s.kv_len, s.lens, s.packed && s.kv != Kv::kPaged, &kv_lens, &p.kv_lens, &p.cu_seqlens_kv, &p.total_kv, &kv_lens_array);
      x_kv = Make(s.x, Side(p.cu_seqlens_kv != nullptr, p.total_kv, s.kv_len, d_kv), true, 2, 1.0f);
      p.x_kv = x_kv->view();
    }
    const int64_t q = s.q_heads * s.head_dim, k = s.kv_heads * s.head_dim, v = s.kv_heads * s.v_head_dim, o = s.q_heads * s.v_head_dim;
    if (s.packed_weight) {
      w.push_back(Weight(q + k + v, s.d_model, 3));
      p.w_qkv = w[0]->view();
      if (s.biases) b.push_back(Bias(q + k + v, 13)), p.b_qkv = b[0]->view();
    } else {
      w.push_back(Weight(q, s.d_model, 3)), w.push_back(Weight(k, d_kv, 4)), w.push_back(Weight(v, d_kv, 5));
      p.wq = w[0]->view(), p.wk = w[1]->view(), p.wv = w[2]->view();
      if (s.biases) {
        b.push_back(Bias(q, 13)), b.push_back(Bias(k, 14)), b.push_back(Bias(v, 15));
        p.bq = b[0]->view(), p.bk = b[1]->view(), p.bv = b[2]->view();
      }
    }
    wo = Weight(s.d_out, o, 6);
    p.wo = wo->view();
    if (s.biases) bo = Bias(s.d_out, 16), p.bo = bo->view();
    if (s.norm) {
      q_norm = Bias(s.head_dim, 17), k_norm = Bias(s.head_dim, 18);
      p.q_norm = q_norm->view(), p.k_norm = k_norm->view();
      p.norm_eps = 1e-5f;
    }
    if (s.kv != Kv::kNone) AddCache();
    if (s.rope) AddRope();
    AddOptions();
  }

  // Lengths of one side, drawn where they differ.
  void Rows(int64_t len, bool with_lens, bool is_packed, std::vector<int32_t>* lens, const int32_t** p_lens, const int32_t** p_cu,
            int64_t* total, GuardedArray<int32_t>* array) {
    std::vector<int32_t> cu = {0};
    for (int64_t n = 0; n < spec.batch; ++n) {
      lens->push_back(static_cast<int32_t>(with_lens || is_packed ? rng.Int(0, len) : len));
      cu.push_back(cu.back() + lens->back());
    }
    if (is_packed) {
      *array = GuardedArray<int32_t>(cu, guard);
      *p_cu = array->data();
      *total = cu.back() + rng.Int(0, 2);
    } else if (with_lens) {
      *array = GuardedArray<int32_t>(*lens, guard);
      *p_lens = array->data();
    }
  }
  Shape Side(bool is_packed, int64_t total, int64_t len, int64_t cols) const {
    return is_packed ? Shape{1, 1, total, cols} : Shape{spec.batch, 1, len, cols};
  }
  std::unique_ptr<TestTensor> Make(fovea_dtype dtype, const Shape& shape, bool input, uint64_t tag, float factor) {
    const auto strides = spec.strides ? RandomStrides(&rng, shape, false, input && spec.broadcast) : DenseStrides(shape);
    auto t = std::make_unique<TestTensor>(dtype, shape, strides, guard);
    Fill(t.get(), tag, factor);
    return t;
  }
  void Fill(TestTensor* t, uint64_t tag, float factor) const {
    const Shape& s = t->shape();
    for (int64_t n = 0; tag != 0 && n < s.batch; ++n) {
      for (int64_t h = 0; h < s.heads; ++h) {
        for (int64_t i = 0; i < s.rows; ++i) {
          for (int64_t c = 0; c < s.cols; ++c) t->Set(n, h, i, c, factor * NormalFromBits(ElementBits(spec.seed, tag, n, h, i, c)));
        }
      }
    }
  }
  std::unique_ptr<TestTensor> Weight(int64_t out, int64_t in, uint64_t tag) {
    return Make(spec.w, {1, 1, out, in}, true, tag, 1.0f / std::sqrt(static_cast<float>(in)));
  }
  std::unique_ptr<TestTensor> Bias(int64_t n, uint64_t tag) { return Make(spec.w, {1, 1, 1, n}, true, tag, 1.0f); }

  void AddCache() {
    const std::vector<int32_t>& fresh = spec.cross ? kv_lens : q_lens;
    const int64_t page = spec.page_size, pages_of_one = spec.room / page + 1;
    for (int64_t n = 0; n < spec.batch; ++n) {
      const int64_t most = spec.room - fresh[static_cast<size_t>(n)];
      starts.push_back(static_cast<int32_t>(spec.start >= 0 ? spec.start : rng.Int(0, most)));
    }
    starts_array = GuardedArray<int32_t>(starts, guard);
    p.kv_starts = starts_array.data();
    Shape shape = {spec.batch, spec.kv_heads, spec.room, spec.head_dim};
    if (spec.kv == Kv::kContiguous) {
      p.capacity = spec.room;
    } else {
      p.page_size = page, p.block_table_stride = pages_of_one, p.num_pages = pages_of_one * spec.batch + 2;
      shape.batch = p.num_pages, shape.rows = page;
      std::vector<int32_t> order;
      for (int64_t n = 0; n < p.num_pages; ++n) order.insert(order.begin() + rng.Int(0, n), static_cast<int32_t>(n));
      order.resize(static_cast<size_t>(pages_of_one * spec.batch));
      table = order;
      table_array = GuardedArray<int32_t>(order, guard);
      p.block_table = table_array.data();
    }
    k_cache = Make(spec.cache, shape, false, 0, 0);
    shape.cols = spec.v_head_dim;
    const fovea_dtype v_type = spec.v_cache == FOVEA_DTYPE_NONE ? spec.cache : spec.v_cache;
    v_cache = Make(v_type, shape, false, 0, 0);
    shape.cols = 1;
    if (spec.cache == FOVEA_I8) k_scale = Make(FOVEA_F32, shape, false, 0, 0), p.k_scale = k_scale->view();
    if (v_type == FOVEA_I8) v_scale = Make(FOVEA_F32, shape, false, 0, 0), p.v_scale = v_scale->view();
    if (spec.channel_scale) {
      const Shape channels = {spec.batch, spec.kv_heads, 1, spec.head_dim};
      k_channel_scale = Make(FOVEA_F32, channels, true, 0, 0);
      for (int64_t n = 0; n < channels.batch; ++n) {
        for (int64_t h = 0; h < channels.heads; ++h) {
          for (int64_t c = 0; c < channels.cols; ++c) k_channel_scale->Set(n, h, 0, c, 1.0f + 0.5f * static_cast<float>(c % 3));
        }
      }
      p.k_channel_scale = k_channel_scale->view();
    }
    for (int64_t n = 0; n < spec.batch; ++n) {  // the same rows whatever the cache; NaN behind them
      for (int64_t i = 0; i < spec.room; ++i) {
        const bool held = i < starts[static_cast<size_t>(n)];
        for (int64_t h = 0; h < spec.kv_heads; ++h) {
          // int8 in 1/32; a row that is not held is NaN by its scale.
          if (k_scale) Cached(*k_scale, n, h, i, 0, held ? 1.0f / 32 : kNan);
          if (v_scale) Cached(*v_scale, n, h, i, 0, held ? 1.0f / 32 : kNan);
          for (int64_t c = 0; c < spec.head_dim; ++c) {
            Cached(*k_cache, n, h, i, c, k_scale ? std::clamp(32 * Value(7, n, h, i, c), -127.0f, 127.0f) : held ? Value(7, n, h, i, c) : kNan);
          }
          for (int64_t c = 0; c < spec.v_head_dim; ++c) {
            Cached(*v_cache, n, h, i, c, v_scale ? std::clamp(32 * Value(8, n, h, i, c), -127.0f, 127.0f) : held ? Value(8, n, h, i, c) : kNan);
          }
        }
      }
    }
    p.k_cache = k_cache->view(), p.v_cache = v_cache->view();
  }
  float Value(uint64_t tag, int64_t n, int64_t h, int64_t i, int64_t c) const { return NormalFromBits(ElementBits(spec.seed, tag, n, h, i, c)); }
  void Place(int64_t n, int64_t i, int64_t* entry, int64_t* row) const {
    *entry = spec.kv == Kv::kPaged ? table[static_cast<size_t>(n * p.block_table_stride + i / spec.page_size)] : n;
    *row = spec.kv == Kv::kPaged ? i % spec.page_size : i;
  }
  void Cached(TestTensor& t, int64_t n, int64_t h, int64_t i, int64_t c, float value) const {
    int64_t entry, row;
    Place(n, i, &entry, &row);
    t.Set(entry, h, row, c, value);
  }
  float Cached(const TestTensor& t, int64_t n, int64_t h, int64_t i, int64_t c) const {
    int64_t entry, row;
    Place(n, i, &entry, &row);
    return t.Get(entry, h, row, c);
  }
  // What an element of the cache stands for, and by how much one step of its type is that.
  float CachedValue(bool v, int64_t n, int64_t h, int64_t i, int64_t c, double* step) const {
    const TestTensor* const scales = (v ? v_scale : k_scale).get();
    const float scale = scales ? Cached(*scales, n, h, i, 0) : 1, channel = !v && k_channel_scale ? k_channel_scale->F32(n, h, 0, c) : 1;
    *step = scales ? std::fabs(static_cast<double>(scale) * static_cast<double>(channel)) : 0;
    return Cached(v ? *v_cache : *k_cache, n, h, i, c) * scale * channel;
  }

  void AddRope() {
    fovea_rope_params_init(&rope, sizeof rope);
    rope.rotary_dim = 2 * std::max<int64_t>(1, spec.head_dim / 2 - Rng(spec.seed * 13).Int(0, 2));  // whatever strides and pages were drawn
    rope.interleaved = spec.interleaved;
    rope.num_positions = spec.q_len + spec.room + spec.kv_len + 3;
    const Shape shape = {1, 1, rope.num_positions, rope.rotary_dim / 2};
    cos = std::make_unique<TestTensor>(FOVEA_F32, shape, DenseStrides(shape), guard);
    sin = std::make_unique<TestTensor>(FOVEA_F32, shape, DenseStrides(shape), guard);
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t c = 0; c < shape.cols; ++c) {
        const double angle = static_cast<double>(i) * std::pow(10000.0, -static_cast<double>(c) / static_cast<double>(shape.cols));
        cos->F32(0, 0, i, c) = static_cast<float>(std::cos(angle));
        sin->F32(0, 0, i, c) = static_cast<float>(std::sin(angle));
      }
    }
    rope.cos = cos->view(), rope.sin = sin->view();
    p.rope = &rope;
    if (spec.kv_rope) {
      kv_rope = rope;
      const int64_t rows = p.cu_seqlens_kv ? p.total_kv : spec.batch * spec.kv_len;
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < rows; ++i) {
        ids.push_back(static_cast<int32_t>(ElementBits(spec.seed, 10, 0, 0, i, 0) % static_cast<uint64_t>(rope.num_positions)));
      }
      kv_ids = GuardedArray<int32_t>(ids, guard);
      kv_rope.position_ids = kv_ids.data(), kv_rope.position_ids_stride = spec.kv_len;
      p.kv_rope = rows > 0 ? &kv_rope : nullptr;
    }
    if (spec.offset) rope.position_offset = kRopeOffset;
  }
  // Of row i of x, and of new row i of the keys.
  int64_t QPosition(int64_t n, int64_t i) const {
    if (!spec.cross) return Start(n) + i;
    return i + (spec.offset ? kRopeOffset : options.q_offset + (options.q_align == FOVEA_Q_ALIGN_BOTTOM_RIGHT ? Start(n) + NewKv(n) - QLen(n) : 0));
  }
  int64_t KPosition(int64_t n, int64_t i) const {
    if (!p.kv_rope) return Start(n) + i;
    return kv_rope.position_ids[p.cu_seqlens_kv ? p.cu_seqlens_kv[n] + i : n * spec.kv_len + i];
  }
  fovea_dtype QDtype() const {
    const bool narrow = (spec.x == FOVEA_BF16 || spec.x == FOVEA_F16) && p.k_cache.dtype == spec.x && p.v_cache.dtype == spec.x;
    return narrow ? spec.x : FOVEA_F32;
  }

  void AddOptions() {
    fovea_attention_params_init(&options, sizeof options);
    options.causal = spec.causal;
    if (spec.window) options.window_left = 5;
    if (spec.cap) options.logits_soft_cap = 2.5f;
    if (spec.sinks) {
      std::vector<float> values;
      for (int64_t h = 0; h < spec.q_heads; ++h) values.push_back(rng.Normal());
      sinks_array = GuardedArray<float>(values, guard);
      options.sinks = sinks_array.data();
    }
    if (spec.cross && spec.causal) options.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
    if (spec.cross && !spec.causal) options.q_offset = 1;
    const int64_t keys = KvRoom();
    if (spec.mask) {
      const Shape shape = {spec.batch, 1, spec.q_len, keys};
      mask = std::make_unique<TestTensor>(FOVEA_U8, shape, DenseStrides(shape), guard);
      for (int64_t n = 0; n < shape.batch; ++n) {
        for (int64_t i = 0; i < shape.rows; ++i) {
          for (int64_t c = 0; c < shape.cols; ++c) mask->U8(n, 0, i, c) = ElementBits(spec.seed, 9, n, 0, i, c) % 4 != 0;
        }
      }
      options.mask = mask->view();
      options.mask.stride_head = 0;
      options.mask_kv_len = keys;
    }
    if (spec.lse) {
      const Shape shape = {spec.packed ? 1 : spec.batch, spec.q_heads, spec.packed ? p.total_q : spec.q_len, 1};
      lse = std::make_unique<TestTensor>(FOVEA_F32, shape, DenseStrides(shape), guard);
      options.lse = lse->view();
    }
    p.attention = &options;
  }
  int64_t KvRoom() const {
    if (spec.kv == Kv::kPaged) return p.block_table_stride * p.page_size;
    return spec.kv == Kv::kContiguous ? spec.room : spec.cross ? spec.kv_len : spec.q_len;
  }

  fovea_status Run(const fovea_exec* exec = nullptr) const { return fovea_mha_forward(&p, exec); }

  int64_t QLen(int64_t n) const { return q_lens[static_cast<size_t>(n)]; }
  int64_t NewKv(int64_t n) const { return spec.cross ? kv_lens[static_cast<size_t>(n)] : QLen(n); }
  int64_t Start(int64_t n) const { return starts.empty() ? 0 : starts[static_cast<size_t>(n)]; }
  void XRow(int64_t n, int64_t i, int64_t* batch, int64_t* row) const {
    *batch = spec.packed ? 0 : n;
    *row = spec.packed ? p.cu_seqlens_q[n] + i : i;
  }

  std::vector<float> Y() const {
    std::vector<float> all;
    for (int64_t n = 0; n < spec.batch; ++n) {
      for (int64_t i = 0; i < QLen(n); ++i) {
        int64_t batch, row;
        XRow(n, i, &batch, &row);
        for (int64_t c = 0; c < spec.d_out; ++c) all.push_back(y->Get(batch, 0, row, c));
      }
    }
    return all;
  }
  // Keys and values of all sequences, as they stand in the cache.
  std::vector<float> Cache() const {
    std::vector<float> all;
    for (int64_t n = 0; n < spec.batch; ++n) {
      for (int64_t i = 0; i < Start(n) + NewKv(n); ++i) {
        for (int64_t h = 0; h < spec.kv_heads; ++h) {
          double step;
          for (int64_t c = 0; c < spec.head_dim; ++c) all.push_back(CachedValue(false, n, h, i, c, &step));
          for (int64_t c = 0; c < spec.v_head_dim; ++c) all.push_back(CachedValue(true, n, h, i, c, &step));
        }
      }
    }
    return all;
  }

  // ---- The oracle, in f64 ----

  // Rows [first, first + rows) of weight `which` of 0 q, 1 k, 2 v, times a row of x.
  std::vector<double> Project(const TestTensor& in, int64_t batch, int64_t row, size_t which) const {
    const int64_t q = spec.q_heads * spec.head_dim, k = spec.kv_heads * spec.head_dim, v = spec.kv_heads * spec.v_head_dim;
    const int64_t rows[] = {q, k, v}, firsts[] = {0, q, q + k};
    const size_t matrix = spec.packed_weight ? 0 : which;
    const int64_t first = spec.packed_weight ? firsts[which] : 0;
    std::vector<double> result;
    for (int64_t o = first; o < first + rows[which]; ++o) {
      double sum = spec.biases ? static_cast<double>(b[matrix]->Get(0, 0, 0, o)) : 0;
      for (int64_t c = 0; c < in.shape().cols; ++c) {
        sum += static_cast<double>(in.Get(batch, 0, row, c)) * static_cast<double>(w[matrix]->Get(0, 0, o, c));
      }
      result.push_back(sum);
    }
    return result;
  }
  // Gives the most that errors of the projection grow by.
  double NormAndRotate(std::vector<double>* heads, const TestTensor* norm, int64_t position) const {
    double gain = 1;
    for (size_t h = 0; h < heads->size(); h += static_cast<size_t>(spec.head_dim)) {
      double* head = heads->data() + h;
      if (norm) {
        double squares = 0;
        for (int64_t c = 0; c < spec.head_dim; ++c) squares += head[c] * head[c];
        const double scale = 1 / std::sqrt(squares / static_cast<double>(spec.head_dim) + static_cast<double>(p.norm_eps));
        for (int64_t c = 0; c < spec.head_dim; ++c) {
          const double factor = scale * static_cast<double>(norm->Get(0, 0, 0, c));
          head[c] *= factor;
          gain = std::max(gain, std::fabs(factor));
        }
      }
      for (int64_t j = 0; p.rope && j < rope.rotary_dim / 2; ++j) {
        double& a = head[rope.interleaved ? 2 * j : j];
        double& e = head[rope.interleaved ? 2 * j + 1 : j + rope.rotary_dim / 2];
        const double co = static_cast<double>(cos->F32(0, 0, position, j)), si = static_cast<double>(sin->F32(0, 0, position, j));
        const double rotated = co * a - si * e;
        e = si * a + co * e;
        a = rotated;
      }
    }
    return gain;
  }

  // "" or the first of y, lse and the new rows of the cache that is off. Call it after Run(): attention's keys and values are taken from the cache,
  // where there is one.
  std::string Compare() const {
    // An element of q may be rounded to either neighbour, where f64 and f32 do not agree; AVX3_BF16 rounds weights, too.
    const double narrow = 2 * Unit(QDtype());
    double walk = 4e-6, gain = 1;
    for (int64_t n = 0; n < spec.batch; ++n) {
      const int64_t q_len = QLen(n), kv_len = Start(n) + NewKv(n), d = spec.head_dim, dv = spec.v_head_dim;
      std::vector<float> q(static_cast<size_t>(q_len * spec.q_heads * d)), k(static_cast<size_t>(kv_len * spec.kv_heads * d)),
          v(static_cast<size_t>(kv_len * spec.kv_heads * dv));
      const TestTensor& source = spec.cross ? *x_kv : *x;
      for (int64_t i = 0; i < kv_len; ++i) {
        std::vector<double> new_k, new_v;
        if (i >= Start(n)) {
          int64_t batch, row;
          XRow(n, i - Start(n), &batch, &row);
          if (spec.cross) batch = p.cu_seqlens_kv ? 0 : n, row = (p.cu_seqlens_kv ? p.cu_seqlens_kv[n] : 0) + i - Start(n);
          new_k = Project(source, batch, row, 1), new_v = Project(source, batch, row, 2);
          gain = std::max(gain, NormAndRotate(&new_k, k_norm.get(), KPosition(n, i - Start(n))));
          walk = 4e-6 * gain;
        }
        for (int64_t h = 0; h < spec.kv_heads; ++h) {
          for (int side = 0; side < 2; ++side) {
            const int64_t cols = side ? dv : d;
            for (int64_t c = 0; c < cols; ++c) {
              float& to = (side ? v : k)[static_cast<size_t>((i * spec.kv_heads + h) * cols + c)];
              const std::vector<double>& fresh = side ? new_v : new_k;
              if (!fresh.empty()) to = static_cast<float>(fresh[static_cast<size_t>(h * cols + c)]);
              if (spec.kv == Kv::kNone) continue;
              double step;
              const float stored = CachedValue(side != 0, n, h, i, c, &step);
              if (fresh.empty()) to = stored;  // held before: Untouched() looks at those
              const double want = static_cast<double>(to);
              const double bound = (walk + Unit((side ? v_cache : k_cache)->view().dtype)) * (1 + std::fabs(want)) + 0.501 * step;
              if (!(std::fabs(static_cast<double>(stored) - want) <= bound)) {
                return std::string(side ? "v" : "k") + "_cache of sequence " + std::to_string(n) + " row " + std::to_string(i) + " is " +
                       std::to_string(stored) + ", should be " + std::to_string(want);
              }
              to = stored;
            }
          }
        }
      }
      for (int64_t i = 0; i < q_len; ++i) {
        int64_t batch, row;
        XRow(n, i, &batch, &row);
        std::vector<double> of_row = Project(*x, batch, row, 0);
        gain = std::max(gain, NormAndRotate(&of_row, q_norm.get(), QPosition(n, i)));
        walk = 4e-6 * gain;
        for (size_t c = 0; c < of_row.size(); ++c) {
          float rounded[1] = {};
          fovea::StoreElement(QDtype(), static_cast<float>(of_row[c]), rounded, 0);
          q[static_cast<size_t>(i) * of_row.size() + c] = fovea::LoadElement(QDtype(), rounded, 0);
        }
      }
      // Attention of this sequence alone; the reference reads the options.
      fovea_attention_params a = options;
      a.batch = 1, a.num_q_heads = spec.q_heads, a.num_kv_heads = spec.kv_heads, a.q_len = q_len, a.kv_len = kv_len;
      a.head_dim = d, a.v_head_dim = dv;
      a.q = fovea_tensor_bshd(q.data(), FOVEA_F32, spec.q_heads, q_len, d);
      a.k = fovea_tensor_bshd(k.data(), FOVEA_F32, spec.kv_heads, kv_len, d);
      a.v = fovea_tensor_bshd(v.data(), FOVEA_F32, spec.kv_heads, kv_len, dv);
      a.out = fovea_tensor_bshd(nullptr, FOVEA_F32, spec.q_heads, q_len, dv);
      a.lse = {};
      if (mask) a.mask.data = &mask->U8(n, 0, 0, 0);
      if (!spec.cross) a.q_offset = Start(n);
      for (int64_t i = 0; i < q_len; ++i) {
        int64_t batch, row;
        XRow(n, i, &batch, &row);
        std::vector<double> heads;
        double scores = 1;
        for (int64_t h = 0; h < spec.q_heads; ++h) {
          fovea::ReferenceRow<double> of_head;
          fovea::EvaluateRow(a, 0, h, i, &of_head);
          heads.insert(heads.end(), of_head.out.begin(), of_head.out.end());
          scores = std::max(scores, of_head.dot_magnitude);
          if (!lse) continue;
          const double got = static_cast<double>(lse->F32(batch, h, row));
          if (got != of_head.lse && !(std::fabs(got - of_head.lse) <= (walk + narrow) * (1 + of_head.dot_magnitude))) {
            return "lse of sequence " + std::to_string(n) + " row " + std::to_string(i) + " is " + std::to_string(got) + ", should be " +
                   std::to_string(of_head.lse);
          }
        }
        for (int64_t o = 0; o < spec.d_out; ++o) {
          double want = spec.biases ? static_cast<double>(bo->Get(0, 0, 0, o)) : 0, magnitude = std::fabs(want);
          for (size_t c = 0; c < heads.size(); ++c) {
            const double weight = static_cast<double>(wo->Get(0, 0, o, static_cast<int64_t>(c)));
            want += heads[c] * weight;
            magnitude += std::fabs(weight);  // values are about 1, errors of them absolute
          }
          const double got = static_cast<double>(y->Get(batch, 0, row, o));
          if (!(std::fabs(got - want) <= (walk + narrow) * scores * (1 + magnitude) + Unit(spec.y) * (1 + std::fabs(want)))) {
            return "y of sequence " + std::to_string(n) + " row " + std::to_string(i) + " column " + std::to_string(o) + " is " +
                   std::to_string(got) + ", should be " + std::to_string(want);
          }
        }
      }
    }
    return "";
  }

  std::vector<TestTensor*> Inputs() const {
    std::vector<TestTensor*> all = {x.get(),      x_kv.get(), wo.get(),  bo.get(),   q_norm.get(),
                                    k_norm.get(), cos.get(),  sin.get(), mask.get(), k_channel_scale.get()};
    for (const auto& t : w) all.push_back(t.get());
    for (const auto& t : b) all.push_back(t.get());
    all.erase(std::remove(all.begin(), all.end(), nullptr), all.end());
    return all;
  }
  void Snapshot() const {
    for (TestTensor* t : Inputs()) t->Snapshot();
    for (TestTensor* t : {y.get(), k_cache.get(), v_cache.get(), k_scale.get(), v_scale.get(), lse.get()}) {
      if (t) t->Snapshot();
    }
  }
  // "" if nothing changed but what a call may write.
  std::string Untouched(bool ran) const {
    for (const TestTensor* t : Inputs()) {
      if (t->Changed() != "") return "an input changed: " + t->Changed();
    }
    std::map<std::pair<int64_t, int64_t>, bool> rows, places;
    for (int64_t n = 0; ran && n < spec.batch; ++n) {
      for (int64_t i = 0; i < QLen(n); ++i) {
        int64_t batch, row;
        XRow(n, i, &batch, &row);
        rows[{batch, row}] = true;
      }
      for (int64_t i = 0; k_cache && i < NewKv(n); ++i) {
        int64_t entry, row;
        Place(n, Start(n) + i, &entry, &row);
        places[{entry, row}] = true;
      }
    }
    const auto in = [](const auto& set) { return [&set](int64_t n, int64_t, int64_t i) { return set.count({n, i}) != 0; }; };
    if (const std::string changed = y->Changed(in(rows)); changed != "") return "y: " + changed;
    if (lse && lse->Changed(in(rows)) != "") return "lse: " + lse->Changed(in(rows));
    const std::pair<const char*, const TestTensor*> caches[] = {
        {"k_cache: ", k_cache.get()}, {"v_cache: ", v_cache.get()}, {"k_scale: ", k_scale.get()}, {"v_scale: ", v_scale.get()}};
    for (const auto& [name, t] : caches) {
      if (t && t->Changed(in(places)) != "") return name + t->Changed(in(places));
    }
    return "";
  }

  // Runs with threads and a workspace drawn from the seed, then compares.
  std::string RunAndCompare(uint32_t flags) {
    Rng draw(spec.seed * 104729);
    fovea_exec exec = Threads(static_cast<int32_t>(draw.Pick({1, 1, 2, 3})), flags);
    size_t bytes = 0;
    if (fovea_mha_workspace_size(&p, &exec, &bytes) != FOVEA_OK) return fovea_last_error();
    const GuardedBuffer workspace = DrawWorkspace(&draw, bytes, &exec);
    Snapshot();
    if (Run(&exec) != FOVEA_OK) return fovea_last_error();
    const std::string touched = Untouched(true);
    return touched != "" ? touched : Compare();
  }

  MhaSpec spec;
  Rng rng;
  Guard guard;
  fovea_mha_params p;
  fovea_rope_params rope, kv_rope;
  fovea_attention_params options;
  int64_t d_kv = 0;
  std::vector<int32_t> q_lens, kv_lens, starts, table;
  std::unique_ptr<TestTensor> x, x_kv, y, wo, bo, q_norm, k_norm, k_cache, v_cache, k_scale, v_scale, k_channel_scale, cos, sin, mask, lse;
  std::vector<std::unique_ptr<TestTensor>> w, b;
  GuardedArray<int32_t> q_lens_array, kv_lens_array, starts_array, table_array, kv_ids;
  GuardedArray<float> sinks_array;
};

MhaSpec RandomMha(uint64_t seed) {
  MhaSpec s;
  s.seed = seed;
  Rng rng(seed * 31);
  s.batch = rng.Pick({1, 1, 2, 3});
  s.q_len = rng.Pick({0, 1, 1, 2, 5, 9, 17, 33});
  s.kv_heads = rng.Pick({1, 1, 2, 3});
  s.q_heads = s.kv_heads * rng.Pick({1, 1, 2, 4});
  s.head_dim = 2 * rng.Int(1, 20);
  s.v_head_dim = rng.Chance(70) ? s.head_dim : rng.Int(1, 30);
  s.d_model = rng.Int(1, 70);
  s.d_out = rng.Chance(70) ? s.d_model : rng.Int(1, 50);
  s.kv = rng.Chance(40) ? Kv::kNone : rng.Chance(50) ? Kv::kContiguous : Kv::kPaged;
  s.cross = rng.Chance(20);
  s.kv_len = s.cross ? rng.Pick({0, 1, 7, 20}) : 0;
  s.page_size = rng.Int(1, 9);
  s.room = s.q_len + s.kv_len + rng.Int(0, 40);
  s.packed_weight = rng.Chance(40), s.biases = rng.Chance(60), s.norm = rng.Chance(40), s.rope = rng.Chance(50);
  s.interleaved = rng.Chance(50), s.packed = rng.Chance(30), s.lens = !s.packed && rng.Chance(30), s.strides = rng.Chance(50);
  s.causal = rng.Chance(50), s.mask = rng.Chance(25), s.sinks = rng.Chance(20), s.window = rng.Chance(20), s.cap = rng.Chance(20);
  s.lse = rng.Chance(40);
  for (fovea_dtype* dtype : {&s.x, &s.w, &s.y, &s.cache}) {
    if (rng.Chance(25)) *dtype = rng.Chance(50) ? FOVEA_BF16 : FOVEA_F16;
  }
  if (rng.Chance(20)) s.x = s.cache = rng.Chance(50) ? FOVEA_BF16 : FOVEA_F16;
  if (s.kv != Kv::kNone && rng.Chance(25)) {
    s.cache = FOVEA_I8, s.channel_scale = rng.Chance(50);
    if (rng.Chance(30)) s.v_cache = FOVEA_F32;
  } else if (rng.Chance(15)) {
    s.v_cache = s.kv == Kv::kNone ? FOVEA_DTYPE_NONE : FOVEA_I8;
  }
  // Positions of queries before the first key, which causal calls from the end may have, are no table's.
  s.offset = s.cross && s.rope && (s.causal || rng.Chance(50)), s.kv_rope = s.cross && s.rope && rng.Chance(40);
  return s;
}

std::string Describe(const MhaSpec& s, uint32_t flags) {
  std::string text = "batch " + std::to_string(s.batch) + ", q_len " + std::to_string(s.q_len) + ", d_model " + std::to_string(s.d_model) +
                     ", heads " + std::to_string(s.q_heads) + "/" + std::to_string(s.kv_heads) + ", head_dim " + std::to_string(s.head_dim) +
                     (s.kv == Kv::kNone ? "" : s.kv == Kv::kPaged ? ", paged" : ", cache");
  const std::pair<const char*, bool> options[] = {{"packed weight", s.packed_weight}, {"norm", s.norm}, {"rope", s.rope}, {"packed", s.packed},
                                                  {"lens", s.lens}, {"cross", s.cross}, {"strides", s.strides}, {"causal", s.causal},
                                                  {"mask", s.mask}, {"I8", s.cache == FOVEA_I8}, {"kv_rope", s.kv_rope},
                                                  {"BATCH_INVARIANT", flags != 0}};
  for (const auto& [name, on] : options) text += on ? std::string(", ") + name : "";
  return text;
}

MhaSpec Spec(int64_t batch, int64_t q_len, uint64_t seed = 1) {
  MhaSpec s;
  s.seed = seed, s.batch = batch, s.q_len = q_len, s.d_model = s.d_out = 48;
  s.q_heads = 4, s.kv_heads = 2, s.head_dim = 24, s.v_head_dim = 20;
  s.causal = s.rope = s.norm = true;
  return s;
}

// A decoder's layer with room for its whole sequence of q_len rows in an empty cache.
MhaSpec Decoder(int64_t q_len, Kv kv, uint64_t seed) {
  MhaSpec s = Spec(2, q_len, seed);
  s.kv = kv, s.room = q_len, s.start = 0, s.page_size = 7;
  return s;
}

// Rows of x in calls of so many rows each, one after another; the cache grows.
void RunInChunks(const MhaCase& c, const std::vector<int64_t>& chunks, const fovea_exec& exec) {
  const auto from = [](fovea_tensor t, int64_t row) {
    t.data = static_cast<char*>(t.data) + row * t.stride_row * fovea::DtypeBytes(t.dtype);
    return t;
  };
  int64_t first = 0;
  for (const int64_t rows : chunks) {
    const std::vector<int32_t> starts(static_cast<size_t>(c.spec.batch), static_cast<int32_t>(first));
    fovea_mha_params p = c.p;
    p.q_len = rows;
    p.kv_starts = starts.data();
    p.x = from(p.x, first), p.y = from(p.y, first);
    REQUIRE_MESSAGE(fovea_mha_forward(&p, &exec) == FOVEA_OK, std::string(fovea_last_error()));
    first += rows;
  }
}

// The next layer's x: the layer's y and x (the residual).
void Chain(const MhaCase& from, MhaCase* to) {
  for (int64_t n = 0; n < from.spec.batch; ++n) {
    for (int64_t i = 0; i < from.spec.q_len; ++i) {
      for (int64_t c = 0; c < from.spec.d_out; ++c) to->x->F32(n, 0, i, c) = from.x->F32(n, 0, i, c) + from.y->F32(n, 0, i, c);
    }
  }
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t n = 0; n < a.size(); ++n) {
    const double difference = std::fabs(static_cast<double>(a[n]) - static_cast<double>(b[n]));
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

}  // namespace

TEST_CASE("mha: random layers equal f64 within the bound; inputs, gaps, other rows and guards stay") {
  const uint64_t first = FirstSeed(90000);
  for (int64_t n = 0; n < CaseCount(300); ++n) {
    const MhaSpec s = RandomMha(first + static_cast<uint64_t>(n));
    const uint32_t flags = Rng(s.seed * 7).Chance(40) ? FOVEA_BATCH_INVARIANT : 0;
    INFO(Repeat(s.seed, Describe(s, flags)));
    CHECK(MhaCase(s).RunAndCompare(flags) == "");
  }
}

TEST_CASE("mha: a two-layer decoder with RoPE, GQA and cache: a prefill and 64 steps equal one causal pass, both equal f64") {
  constexpr int64_t kPrefill = 21, kRows = kPrefill + 64;
  std::vector<int64_t> steps = {kPrefill};
  for (int64_t n = kPrefill; n < kRows; ++n) steps.push_back(1);
  for (const Kv kv : {Kv::kContiguous, Kv::kPaged}) {
    for (const uint32_t flags : {uint32_t{FOVEA_BATCH_INVARIANT}, uint32_t{0}}) {
      INFO("paged ", kv == Kv::kPaged, ", flags ", flags);
      const fovea_exec exec = Threads(2, flags);
      MhaCase whole[] = {MhaCase(Decoder(kRows, kv, 11)), MhaCase(Decoder(kRows, kv, 12))};
      MhaCase stepped[] = {MhaCase(Decoder(kRows, kv, 11)), MhaCase(Decoder(kRows, kv, 12))};
      for (size_t layer = 0; layer < 2; ++layer) {
        if (layer == 1) Chain(whole[0], &whole[1]), Chain(stepped[0], &stepped[1]);
        REQUIRE_MESSAGE(whole[layer].Run(&exec) == FOVEA_OK, std::string(fovea_last_error()));
        RunInChunks(stepped[layer], steps, exec);
        CHECK(whole[layer].Compare() == "");
        CHECK(stepped[layer].Compare() == "");
        if (flags) {
          CHECK(BitDifference(whole[layer].Y(), stepped[layer].Y()) == "");
          CHECK(BitDifference(whole[layer].Cache(), stepped[layer].Cache()) == "");
        } else {
          CHECK(LargestDifference(whole[layer].Y(), stepped[layer].Y()) < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("mha BATCH_INVARIANT: chunks of a prefill have the bits of the whole") {
  const fovea_exec exec = Threads(1, FOVEA_BATCH_INVARIANT);
  for (const fovea_dtype cache : {FOVEA_F32, FOVEA_BF16, FOVEA_I8}) {
    MhaSpec s = Decoder(60, Kv::kContiguous, 13);
    s.cache = cache, s.x = cache == FOVEA_BF16 ? cache : FOVEA_F32;
    MhaCase whole(s), chunked(s);
    REQUIRE(whole.Run(&exec) == FOVEA_OK);
    RunInChunks(chunked, {17, 1, 25, 8, 9}, exec);
    CHECK(BitDifference(whole.Y(), chunked.Y()) == "");
  }
}

// The three weights and biases of a case one after another, in f32.
class PackedWeights {
 public:
  explicit PackedWeights(const MhaCase& c) {
    for (size_t n = 0; n < 3; ++n) {
      for (int64_t o = 0; o < c.w[n]->shape().rows; ++o) {
        for (int64_t i = 0; i < c.spec.d_model; ++i) weights_.push_back(c.w[n]->Get(0, 0, o, i));
        biases_.push_back(c.b[n]->Get(0, 0, 0, o));
      }
    }
  }

  fovea_mha_params InsteadOf(fovea_mha_params p) {
    const int64_t rows = static_cast<int64_t>(biases_.size());
    p.wq = p.wk = p.wv = p.bq = p.bk = p.bv = {};
    p.w_qkv = fovea_tensor_bhsd(weights_.data(), FOVEA_F32, 1, rows, p.d_model);
    p.b_qkv = fovea_tensor_bhsd(biases_.data(), FOVEA_F32, 1, 1, rows);
    return p;
  }

 private:
  std::vector<float> weights_, biases_;
};

TEST_CASE("mha: same bits paged or contiguous, or without a cache; packed or separate weights; padded or packed") {
  for (const uint32_t flags : {uint32_t{0}, uint32_t{FOVEA_BATCH_INVARIANT}}) {
    const fovea_exec exec = Threads(1, flags);
    for (const int64_t q_len : {3, 31}) {
      INFO("q_len ", q_len, ", flags ", flags);
      MhaCase contiguous(Decoder(q_len, Kv::kContiguous, 15)), paged(Decoder(q_len, Kv::kPaged, 15)), none(Decoder(q_len, Kv::kNone, 15));
      for (MhaCase* c : {&contiguous, &paged, &none}) REQUIRE_MESSAGE(c->Run(&exec) == FOVEA_OK, std::string(fovea_last_error()));
      CHECK(BitDifference(contiguous.Y(), paged.Y()) == "");
      CHECK(BitDifference(contiguous.Cache(), paged.Cache()) == "");
      CHECK(BitDifference(contiguous.Y(), none.Y()) == "");

      const MhaCase& c = none;
      PackedWeights weights(c);
      fovea_mha_params p = weights.InsteadOf(c.p);
      REQUIRE(fovea_mha_forward(&p, &exec) == FOVEA_OK);
      CHECK(BitDifference(contiguous.Y(), c.Y()) == "");

      // Dense tensors are packed ones as they stand.
      const std::vector<int32_t> cu = {0, static_cast<int32_t>(q_len), static_cast<int32_t>(2 * q_len)};
      p = c.p;
      p.cu_seqlens_q = cu.data(), p.total_q = 2 * q_len, p.q_len = 0;
      std::vector<float> y(contiguous.Y().size());
      p.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, 2 * q_len, c.spec.d_out);
      REQUIRE_MESSAGE(fovea_mha_forward(&p, &exec) == FOVEA_OK, std::string(fovea_last_error()));
      CHECK(BitDifference(contiguous.Y(), y) == "");
    }
  }
}

TEST_CASE("mha BATCH_INVARIANT: a sequence's bits do not depend on the batch or its padding") {
  const fovea_exec exec = Threads(1, FOVEA_BATCH_INVARIANT);
  MhaSpec s = Spec(3, 30, 17);
  s.kv = Kv::kPaged, s.room = 60;
  s.lens = true;
  MhaCase all(s);
  REQUIRE_MESSAGE(all.Run(&exec) == FOVEA_OK, std::string(fovea_last_error()));
  const std::vector<float> expected = all.Y();
  size_t at = 0;
  for (int64_t n = 0; n < 3; ++n) {
    MhaCase alone(s);
    fovea_mha_params p = alone.p;
    p.batch = 1;
    p.q_len = alone.QLen(n);
    p.q_lens = nullptr;
    p.kv_starts += n;
    p.block_table += n * p.block_table_stride;
    std::vector<float> y(static_cast<size_t>(p.q_len * s.d_out));
    p.x.data = static_cast<float*>(p.x.data) + n * p.x.stride_batch;
    p.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, p.q_len, s.d_out);
    REQUIRE_MESSAGE(fovea_mha_forward(&p, &exec) == FOVEA_OK, std::string(fovea_last_error()));
    CHECK(BitDifference(std::vector<float>(expected.begin() + static_cast<std::ptrdiff_t>(at),
                                           expected.begin() + static_cast<std::ptrdiff_t>(at + y.size())), y) == "");
    at += y.size();
  }
}

TEST_CASE("mha: same bits from 1, 2, 3 and 8 threads, any executor, any strides") {
  for (const int64_t q_len : {3, 70}) {
    for (const int variant : {0, 1, 2}) {
      MhaSpec s = Decoder(q_len, Kv::kPaged, 19);
      s.d_model = 300, s.d_out = 130;
      if (variant == 1) s.cache = FOVEA_I8, s.channel_scale = true;
      if (variant == 2) s.cross = s.kv_rope = true, s.causal = false, s.kv_len = s.room = 90, s.x = s.cache = FOVEA_BF16;
      MhaCase c(s);
      const fovea_exec one = Threads(1);
      REQUIRE_MESSAGE(c.Run(&one) == FOVEA_OK, std::string(fovea_last_error()));
      constexpr int32_t kThreads[] = {1, 2, 3, 8};
      for (int64_t n = 0; n < Portion(16, 4); ++n) {  // 4 are each executor and each number of threads
        const int32_t threads = kThreads[n % 4];
        s.strides = threads != 2, s.broadcast = false;
        MhaCase again(s);
        fovea_exec exec = Threads(threads);
        exec.parallel_for = kExecutors[(n + n / 4) % 4];
        REQUIRE(again.Run(&exec) == FOVEA_OK);
        CHECK(BitDifference(again.Y(), c.Y()) == "");
        CHECK(BitDifference(again.Cache(), c.Cache()) == "");
      }
    }
  }
}

// The layer of a case by the calls that it is made of: one sequence, separate weights, a contiguous cache, y in f32, no norms.
struct Parts {
  Parts(const MhaCase& by_hand, const fovea_exec& exec) : c(by_hand) {
    const MhaSpec& s = c.spec;
    const int64_t new_rows = c.NewKv(0);
    const fovea_dtype dtype = c.QDtype();
    const fovea_tensor& source = s.cross ? c.p.x_kv : c.p.x;
    std::vector<float> q32(static_cast<size_t>(s.q_len * s.q_heads * s.head_dim)), k(static_cast<size_t>(new_rows * s.kv_heads * s.head_dim)),
        v(static_cast<size_t>(new_rows * s.kv_heads * s.v_head_dim));
    q.resize(q32.size()), o.resize(static_cast<size_t>(s.q_len * s.q_heads * s.v_head_dim));
    const fovea_tensor q_heads = fovea_tensor_bshd(q.data(), dtype, s.q_heads, s.q_len, s.head_dim);
    Linear(exec, c.p.x, *c.w[0], *c.b[0], s.q_len, s.rope ? q32.data() : q.data(), s.rope ? FOVEA_F32 : dtype);
    Linear(exec, source, *c.w[1], *c.b[1], new_rows, k.data(), FOVEA_F32);
    Linear(exec, source, *c.w[2], *c.b[2], new_rows, v.data(), FOVEA_F32);
    fovea_kv_append_params append;
    fovea_kv_append_params_init(&append, sizeof append);
    append.batch = 1, append.num_kv_heads = s.kv_heads, append.q_len = new_rows, append.head_dim = s.head_dim, append.v_head_dim = s.v_head_dim;
    append.k_new = fovea_tensor_bshd(k.data(), FOVEA_F32, s.kv_heads, new_rows, s.head_dim);
    append.v_new = fovea_tensor_bshd(v.data(), FOVEA_F32, s.kv_heads, new_rows, s.v_head_dim);
    append.k_cache = c.p.k_cache, append.v_cache = c.p.v_cache;
    append.k_scale = c.p.k_scale, append.v_scale = c.p.v_scale, append.k_channel_scale = c.p.k_channel_scale;
    append.kv_starts = c.p.kv_starts, append.capacity = s.room;
    fovea_rope_params rope = c.rope, k_rope = s.kv_rope ? c.kv_rope : c.rope;
    if (s.rope) {
      rope.batch = 1, rope.num_heads = s.q_heads, rope.q_len = s.q_len, rope.head_dim = s.head_dim;
      rope.x = fovea_tensor_bshd(q32.data(), FOVEA_F32, s.q_heads, s.q_len, s.head_dim), rope.out = q_heads;
      rope.position_offset = c.QPosition(0, 0);
      REQUIRE(fovea_rope(&rope, &exec) == FOVEA_OK);
      k_rope.position_offset = s.kv_rope ? 0 : s.start;
      append.rope = &k_rope;
    }
    REQUIRE_MESSAGE(fovea_kv_append(&append, &exec) == FOVEA_OK, std::string(fovea_last_error()));
    attention = c.options;
    attention.batch = 1, attention.num_q_heads = s.q_heads, attention.num_kv_heads = s.kv_heads;
    attention.q_len = s.q_len, attention.kv_len = s.start + new_rows, attention.head_dim = s.head_dim, attention.v_head_dim = s.v_head_dim;
    attention.q = q_heads, attention.k = c.p.k_cache, attention.v = c.p.v_cache;
    attention.k_scale = c.p.k_scale, attention.v_scale = c.p.v_scale, attention.k_channel_scale = c.p.k_channel_scale;
    attention.out = fovea_tensor_bshd(o.data(), FOVEA_F32, s.q_heads, s.q_len, s.v_head_dim);
    if (!s.cross) attention.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
    REQUIRE_MESSAGE(fovea_attention_forward(&attention, &exec) == FOVEA_OK, std::string(fovea_last_error()));
  }
  static void Linear(const fovea_exec& exec, const fovea_tensor& x, const TestTensor& w, const TestTensor& bias, int64_t rows, void* y,
                     fovea_dtype dtype) {
    fovea_linear_params l;
    fovea_linear_params_init(&l, sizeof l);
    l.tokens = rows, l.in_features = w.shape().cols, l.out_features = w.shape().rows;
    l.x = x, l.w = w.view(), l.bias = bias.view(), l.y = fovea_tensor_bhsd(y, dtype, 1, rows, l.out_features);
    REQUIRE(fovea_linear(&l, &exec) == FOVEA_OK);
  }
  // y of what out holds.
  std::vector<float> Project(const fovea_exec& exec) const {
    std::vector<float> y(static_cast<size_t>(c.spec.q_len * c.spec.d_out));
    Linear(exec, fovea_tensor_bhsd(o.data(), FOVEA_F32, 1, c.spec.q_len, c.spec.q_heads * c.spec.v_head_dim), *c.wo, *c.bo, c.spec.q_len,
           y.data(), FOVEA_F32);
    return y;
  }

  const MhaCase& c;
  std::vector<float> q, o;  // q in QDtype
  fovea_attention_params attention;
};

MhaSpec OfParts(int64_t q_len) {
  MhaSpec s = Spec(1, q_len, 23);
  s.kv = Kv::kContiguous, s.room = 90, s.start = 60;
  s.norm = false;
  return s;
}

TEST_CASE("mha is its parts: projections, RoPE, append and attention by hand give the same bits; keys in three shards, merged, within 1e-5") {
  const MhaSpec s = OfParts(19);
  MhaCase c(s), by_hand(s);
  const fovea_exec exec = Threads(1);
  REQUIRE(c.Run(&exec) == FOVEA_OK);
  const Parts parts(by_hand, exec);
  CHECK(BitDifference(c.Cache(), by_hand.Cache()) == "");
  CHECK(BitDifference(c.Y(), parts.Project(exec)) == "");

  // Keys [0, 30), [30, 64), [64, 79): a key's position is its place less the shard's first.
  const int64_t cuts[] = {0, 30, 64, 79};
  std::vector<std::vector<float>> outs(3, std::vector<float>(parts.o.size())), lses(3, std::vector<float>(static_cast<size_t>(s.q_heads * s.q_len)));
  std::vector<fovea_tensor> out_views, lse_views;
  for (size_t n = 0; n < 3; ++n) {
    fovea_attention_params shard = parts.attention;
    shard.kv_len = cuts[n + 1] - cuts[n];
    shard.q_align = FOVEA_Q_ALIGN_TOP_LEFT;
    shard.q_offset = s.start - cuts[n];
    shard.k.data = static_cast<float*>(shard.k.data) + cuts[n] * shard.k.stride_row;
    shard.v.data = static_cast<float*>(shard.v.data) + cuts[n] * shard.v.stride_row;
    shard.out.data = outs[n].data();
    shard.lse = fovea_tensor_bhs(lses[n].data(), FOVEA_F32, s.q_heads, s.q_len);
    REQUIRE(fovea_attention_forward(&shard, &exec) == FOVEA_OK);
    out_views.push_back(shard.out), lse_views.push_back(shard.lse);
  }
  REQUIRE(fovea_attention_merge(3, out_views.data(), lse_views.data(), 1, s.q_heads, s.q_len, s.v_head_dim, &parts.attention.out, nullptr,
                                &exec) == FOVEA_OK);
  CHECK(LargestDifference(c.Y(), parts.Project(exec)) < 1e-5);
}

TEST_CASE("mha is its parts: int8 and 16-bit caches, and cross attention with RoPE, to the bit") {
  struct Variant {
    const char* name;
    void (*change)(MhaSpec* s);
  };
  const Variant variants[] = {
      {"int8", [](MhaSpec* s) { s->cache = FOVEA_I8; }},
      {"int8, scales of K's columns, no rope", [](MhaSpec* s) { s->cache = FOVEA_I8, s->channel_scale = true, s->rope = false; }},
      {"int8 V, bf16 K", [](MhaSpec* s) { s->cache = FOVEA_BF16, s->v_cache = FOVEA_I8; }},
      {"bf16", [](MhaSpec* s) { s->x = s->cache = FOVEA_BF16; }},
      {"bf16, no rope", [](MhaSpec* s) { s->x = s->cache = s->w = FOVEA_BF16, s->rope = false; }},
      {"f16, no rope", [](MhaSpec* s) { s->x = s->cache = FOVEA_F16, s->rope = false; }},
      {"bf16 x, f16 caches", [](MhaSpec* s) { s->x = FOVEA_BF16, s->cache = FOVEA_F16; }},
      {"cross", [](MhaSpec* s) { s->cross = true; }},
      {"cross, positions of their own", [](MhaSpec* s) { s->cross = s->offset = s->kv_rope = true; }},
      {"cross, bf16, no causality", [](MhaSpec* s) { s->cross = true, s->causal = false, s->x = s->cache = FOVEA_BF16; }},
      {"cross, int8, all keys in the cache", [](MhaSpec* s) { s->cross = true, s->kv_len = 0, s->cache = FOVEA_I8; }},
  };
  for (const Variant& variant : variants) {
    for (const int64_t q_len : {2, 19}) {
      for (const uint32_t flags : {uint32_t{0}, uint32_t{FOVEA_BATCH_INVARIANT}}) {
        INFO(std::string(variant.name), ", q_len ", q_len, ", flags ", flags);
        MhaSpec s = OfParts(q_len);
        s.kv_len = 23;
        variant.change(&s);
        if (!s.cross) s.kv_len = 0;
        MhaCase c(s), by_hand(s);
        const fovea_exec exec = Threads(1, flags);
        REQUIRE_MESSAGE(c.Run(&exec) == FOVEA_OK, std::string(fovea_last_error()));
        const Parts parts(by_hand, exec);
        CHECK(BitDifference(c.Cache(), by_hand.Cache()) == "");
        CHECK(BitDifference(c.Y(), parts.Project(exec)) == "");
        CHECK(c.Compare() == "");
        if (s.rope || s.cross) continue;

        // One weight for all: q goes where it went.
        PackedWeights weights(c);
        MhaCase packed(s);
        const fovea_mha_params p = weights.InsteadOf(packed.p);
        REQUIRE(fovea_mha_forward(&p, &exec) == FOVEA_OK);
        CHECK(BitDifference(c.Y(), packed.Y()) == "");
      }
    }
  }
}

TEST_CASE("mha: with x and both caches in bf16 a prefill has the target's bf16 kernel, where it has one") {
  for (const bool rope : {false, true}) {
    for (const bool narrow : {false, true}) {
      MhaSpec s = OfParts(40);
      s.room = 100, s.rope = rope, s.cache = FOVEA_BF16, s.x = narrow ? FOVEA_BF16 : FOVEA_F32;
      MhaCase c(s);
      fovea_mha_info info;
      REQUIRE(fovea_mha_info_init(&info, sizeof info) == FOVEA_OK);
      REQUIRE(fovea_mha_describe(&c.p, nullptr, &info) == FOVEA_OK);
      const std::string wanted = narrow && (target_name == "AVX3_BF16" || target_name == "NEON_BFDOT") ? "prefill_bf16" : "prefill_f32";
      CHECK(std::string(info.kernels).substr(0, wanted.size()) == wanted);
    }
  }
}

TEST_CASE("mha: NaN in a token reaches its own row, later ones of its sequence, and its place in the cache; nothing else") {
  for (const uint32_t flags : {uint32_t{0}, uint32_t{FOVEA_BATCH_INVARIANT}}) {
    for (const int64_t q_len : {3, 20}) {
      const fovea_exec exec = Threads(1, flags);
      MhaCase clean(Decoder(q_len, Kv::kContiguous, 29)), c(Decoder(q_len, Kv::kContiguous, 29));
      REQUIRE(clean.Run(&exec) == FOVEA_OK);
      c.x->F32(0, 0, 1, 5) = kNan;
      REQUIRE(c.Run(&exec) == FOVEA_OK);
      for (int64_t n = 0; n < 2; ++n) {
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t col = 0; col < c.spec.d_out; ++col) {
            const float got = c.y->F32(n, 0, i, col);
            if (n == 0 && i >= 1 ? !std::isnan(got) : got != clean.y->F32(n, 0, i, col)) FAIL_CHECK("y[", n, "][", i, "][", col, "] = ", got);
          }
          for (int64_t h = 0; h < 2; ++h) CHECK(std::isnan(c.k_cache->F32(n, h, i, 0)) == (n == 0 && i == 1));
        }
      }
    }
  }
  // Rows past q_lens and behind kv_lens are nobody's keys.
  MhaSpec s = Spec(2, 12, 30);
  s.lens = true;
  s.causal = false;
  MhaCase c(s);
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t i = c.QLen(n); i < 12; ++i) c.x->F32(n, 0, i, 0) = kNan;
  }
  CHECK(c.RunAndCompare(0) == "");
}

TEST_CASE("mha workspace: monotone in batch and lengths, reads no data; a smaller one is refused, nothing written") {
  for (const uint32_t flags : {uint32_t{0}, uint32_t{FOVEA_BATCH_INVARIANT}}) {
    for (const bool cross : {false, true}) {
      const fovea_exec exec = Threads(3, flags);
      MhaSpec s = Spec(1, 1, 31);
      s.cross = cross, s.rope = false, s.kv_len = cross ? 5 : 0;
      size_t last_batch = 0;
      for (const int64_t batch : {1, 2, 5}) {
        size_t last = 0;
        for (const int64_t q_len : {0, 1, 2, 8, 9, 40, 41, 300, 2049}) {
          MhaCase c(s);
          fovea_mha_params p = c.p;
          p.batch = batch, p.q_len = q_len;
          p.x.stride_batch = p.y.stride_batch = 300 * s.d_model;  // at one stride for one length only
          p.x.data = p.y.data = p.wq.data = p.wk.data = p.wv.data = p.wo.data = p.bq.data = nullptr;
          size_t bytes = 0;
          REQUIRE_MESSAGE(fovea_mha_workspace_size(&p, &exec, &bytes) == FOVEA_OK, std::string(fovea_last_error()));
          CHECK(bytes >= last);
          last = bytes;
        }
        CHECK(last >= last_batch);
        last_batch = last;
      }
    }
  }
  MhaCase c(Decoder(9, Kv::kContiguous, 32));
  fovea_exec exec = Threads(1);
  size_t bytes = 0;
  REQUIRE(fovea_mha_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  exec.workspace = memory.data();
  exec.workspace_bytes = bytes - 1;
  c.Snapshot();
  CHECK(c.Run(&exec) == FOVEA_ERR_WORKSPACE_TOO_SMALL);
  CHECK(std::strstr(fovea_last_error(), "workspace_bytes") != nullptr);
  CHECK(c.Untouched(false) == "");
}

TEST_CASE("mha describe: target, FLOP and bytes of a layer by hand") {
  MhaCase c(Decoder(10, Kv::kContiguous, 33));
  fovea_mha_info info;
  REQUIRE(fovea_mha_info_init(&info, sizeof info) == FOVEA_OK);
  const fovea_exec exec = Threads(1);
  REQUIRE(fovea_mha_describe(&c.p, &exec, &info) == FOVEA_OK);
  CHECK(info.target == target_name);
  CHECK(info.qkv_flop == 2.0 * 20 * 48 * (4 * 24 + 2 * 24 + 2 * 20));
  CHECK(info.out_flop == 2.0 * 20 * 80 * 48);
  CHECK(info.attention_flop == 2.0 * (24 + 20) * 2 * 4 * 55);
  CHECK(info.kv_bytes == 4.0 * 2 * 10 * 2 * (24 + 20));
  CHECK(info.weight_bytes == 4.0 * (48 * 184 + 184 + 80 * 48 + 48));
  CHECK(info.workspace_bytes > 0);
  CHECK(c.y->Changed() == "");
  CHECK(fovea_mha_describe(&c.p, &exec, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  // A call that is refused, late, leaves info as it was.
  c.p.num_q_heads = 2, c.p.wq = c.p.wo, c.options.window_left = -5;
  fovea_mha_info refused = info;
  refused.qkv_flop = refused.weight_bytes = 7;
  info = refused;
  CHECK(fovea_mha_describe(&c.p, &exec, &info) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(std::memcmp(&info, &refused, sizeof info) == 0);
}

TEST_CASE("mha: bad arguments are refused by name, nothing written") {
  constexpr int64_t kHuge = int64_t{1} << 40;
  constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT, kUnsupported = FOVEA_ERR_UNSUPPORTED;
  using C = MhaCase;
  struct Refused {
    const char* text;
    fovea_status status;
    void (*change)(C* c);
  };
  const Refused contiguous[] = {
      {"params.struct_size", kInvalid, [](C* c) { c->p.struct_size = 8; }},
      {"batch = 0", kInvalid, [](C* c) { c->p.batch = 0; }},
      {"batch = 1099511627776", kUnsupported, [](C* c) { c->p.batch = kHuge; }},
      {"q_len = -1", kInvalid, [](C* c) { c->p.q_len = -1; }},
      {"batch * q_len", kUnsupported, [](C* c) { c->p.q_len = (1 << 30) - 1; }},
      {"d_model = 0", kInvalid, [](C* c) { c->p.d_model = 0; }},
      {"d_out = -4", kInvalid, [](C* c) { c->p.d_out = -4; }},
      {"num_kv_heads = 3: must divide", kInvalid, [](C* c) { c->p.num_kv_heads = 3; }},
      {"head_dim = -2", kInvalid, [](C* c) { c->p.head_dim = -2; }},
      {"num_q_heads, num_kv_heads, head_dim", kUnsupported, [](C* c) { c->p.head_dim = 1 << 29; }},
      {"norm_eps", kInvalid, [](C* c) { c->p.norm_eps = kNan; }},
      {"reserved", kUnsupported, [](C* c) { c->p.reserved = 1; }},
      {"total_q = 5: must be 0", kInvalid, [](C* c) { c->p.total_q = 5; }},
      {"kv_len = 5: must be 0", kInvalid, [](C* c) { c->p.kv_len = 5; }},
      {"d_kv = 7: must be 0", kInvalid, [](C* c) { c->p.d_kv = 7; }},
      {"kv_lens is given", kInvalid, [](C* c) { c->p.kv_lens = c->p.kv_starts; }},
      {"k_scale is given: must be absent where its cache is not I8", kInvalid, [](C* c) { c->p.k_scale = c->p.x; }},
      {"k_channel_scale is given", kInvalid, [](C* c) { c->p.k_channel_scale = c->p.x; }},
      {"kv_rope is given: must be NULL without x_kv", kInvalid, [](C* c) { c->p.kv_rope = &c->rope; }},
      {"x.dtype = NONE", kInvalid, [](C* c) { c->p.x.dtype = FOVEA_DTYPE_NONE; }},
      {"x.data = NULL", kInvalid, [](C* c) { c->p.x.data = nullptr; }},
      {"wq.dtype = I8", kUnsupported, [](C* c) { c->p.wq.dtype = FOVEA_I8; }},
      {"wv.dtype = NONE", kInvalid, [](C* c) { c->p.wv = {}; }},
      {"wo.dtype = NONE", kInvalid, [](C* c) { c->p.wo = {}; }},
      {"wo.stride_col", kInvalid, [](C* c) { c->p.wo.stride_col = 2; }},
      {"bk.data = 0x", kInvalid, [](C* c) { c->p.bk.data = static_cast<char*>(c->p.bk.data) + 1; }},
      {"wq is given: must be absent where w_qkv", kInvalid, [](C* c) { c->p.w_qkv = c->p.wq; }},
      {"b_qkv is given: must be absent without w_qkv", kInvalid, [](C* c) { c->p.b_qkv = c->p.bq; }},
      {"k_norm.data = NULL", kInvalid, [](C* c) { c->p.k_norm.data = nullptr; }},
      {"v_cache.dtype = NONE", kInvalid, [](C* c) { c->p.v_cache = {}; }},
      {"k_cache.dtype = NONE", kInvalid, [](C* c) { c->p.k_cache = {}; }},
      {"kv_starts is given: must be 0 without", kInvalid, [](C* c) { c->p.k_cache = c->p.v_cache = {}; }},
      {"kv_starts[0]", kInvalid, [](C* c) { c->p.capacity -= 1; }},
      {"kv_starts[1]", kInvalid, [](C* c) { c->starts_array.data()[1] = -1; }},
      {"page_size = 4: must be 0 for a cache that is contiguous", kInvalid, [](C* c) { c->p.page_size = 4; }},
      {"k_cache.stride_row = 0", kInvalid, [](C* c) { c->p.k_cache.stride_row = 0; }},
      {"y overlaps itself", kInvalid, [](C* c) { c->p.y.stride_row = 1; }},
      {"y overlaps x", kInvalid, [](C* c) { c->p.x = c->p.y; }},
      {"y overlaps wq", kInvalid, [](C* c) { c->p.wq = c->p.y, c->p.wq.stride_row = 0; }},
      {"y overlaps bo", kInvalid, [](C* c) { c->p.bo = c->p.y; }},
      {"y overlaps q_norm", kInvalid, [](C* c) { c->p.q_norm = c->p.y; }},
      {"k_cache overlaps v_cache", kInvalid, [](C* c) { c->p.v_cache.data = c->p.k_cache.data; }},
      {"y overlaps v_cache", kInvalid, [](C* c) { c->p.v_cache.data = c->p.y.data; }},
      {"v_cache overlaps x", kInvalid, [](C* c) { c->p.x.data = c->p.v_cache.data; }},
      {"y overlaps rope.cos", kInvalid, [](C* c) { c->rope.cos.data = c->p.y.data; }},
      {"rope.struct_size", kInvalid, [](C* c) { c->rope.struct_size = 0; }},
      {"rope: its batch", kInvalid, [](C* c) { c->rope.q_len = 4; }},
      {"rope.rotary_dim = 3", kInvalid, [](C* c) { c->rope.rotary_dim = 3; }},
      {"rope.position_offsets of sequence 0", kInvalid, [](C* c) { c->rope.num_positions = 8; }},
      {"attention.struct_size", kInvalid, [](C* c) { c->options.struct_size = 0; }},
      {"attention: its batch", kInvalid, [](C* c) { c->options.head_dim = 4; }},
      {"attention: its q, k, v or out", kInvalid, [](C* c) { c->options.out = c->p.y; }},
      {"attention: its q_align", kInvalid, [](C* c) { c->options.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT; }},
      {"attention: its q_offset", kInvalid, [](C* c) { c->options.q_offset = 1; }},
      {"attention: its total_q or total_kv", kInvalid, [](C* c) { c->options.total_kv = 1; }},
      {"causal = 2", kInvalid, [](C* c) { c->options.causal = 2; }},
      {"window_left = -5", kInvalid, [](C* c) { c->options.window_left = -5; }},
      {"dropout_p is set", kUnsupported, [](C* c) { c->options.dropout_p = 0.5f; }},
      {"y overlaps sinks", kInvalid, [](C* c) { c->options.sinks = static_cast<float*>(c->p.y.data); }},
      {"k_cache overlaps bias", kInvalid,
       [](C* c) { c->options.bias = c->p.k_cache, c->options.bias.stride_batch = c->options.bias.stride_head = 0; }},
      {"y overlaps lse", kInvalid, [](C* c) { c->options.lse = fovea_tensor_bhs(c->p.y.data, FOVEA_F32, 4, 9); }},
      {"lse overlaps wo", kInvalid, [](C* c) { c->options.lse = fovea_tensor_bhs(c->p.wo.data, FOVEA_F32, 4, 9); }},
      {"lse overlaps", kInvalid, [](C* c) { c->options.lse = fovea_tensor_bhs(c->p.x.data, FOVEA_F32, 4, 9); }},
      {"v_cache overlaps lse", kInvalid, [](C* c) { c->options.lse = fovea_tensor_bhs(c->p.v_cache.data, FOVEA_F32, 4, 9); }},
  };
  const Refused paged[] = {
      {"capacity = 9: must be 0", kInvalid, [](C* c) { c->p.capacity = 9; }},
      {"page_size = 0", kInvalid, [](C* c) { c->p.page_size = 0; }},
      {"block_table[1][0] = -1", kInvalid, [](C* c) { c->table_array.data()[c->p.block_table_stride] = -1; }},
      {"block_table[0][1]", kInvalid, [](C* c) { c->table_array.data()[1] = static_cast<int32_t>(c->p.num_pages); }},
  };
  const Refused quantized[] = {
      {"k_scale.dtype = NONE", kInvalid, [](C* c) { c->p.k_scale = {}; }},
      {"v_scale.dtype = F16", kUnsupported, [](C* c) { c->p.v_scale.dtype = FOVEA_F16; }},
      {"v_scale is given: must be absent where its cache is not I8", kInvalid, [](C* c) { c->p.v_cache = c->p.y, c->p.v_cache.dtype = FOVEA_F32; }},
      {"k_channel_scale[1][0][0][3] = 0", kInvalid, [](C* c) { c->k_channel_scale->F32(1, 0, 0, 3) = 0; }},
      {"k_scale overlaps v_scale", kInvalid, [](C* c) { c->p.v_scale = c->p.k_scale; }},
      {"y overlaps k_scale", kInvalid, [](C* c) { c->p.k_scale.data = c->p.y.data; }},
      {"k_scale overlaps x", kInvalid, [](C* c) { c->p.k_scale.data = c->p.x.data; }},
      {"k_scale.stride_row = 0", kInvalid, [](C* c) { c->p.k_scale.stride_row = 0; }},
      {"v_head_dim = 4097: must be at most 4096 where v_cache.dtype = I8", kUnsupported, [](C* c) { c->p.v_head_dim = 4097; }},
      {"attention: its k_scale", kInvalid, [](C* c) { c->options.k_scale = c->p.k_scale; }},
  };
  static const int32_t far_offsets[] = {0, 40};
  const Refused crossed[] = {
      {"rope.cos.dtype = NONE", kInvalid, [](C* c) { c->rope.cos = {}; }},
      {"rope: the position of row 0 of x of sequence 0 = -3", kInvalid, [](C* c) { c->options.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT; }},
      {"rope: the position of row 0 of x of sequence 1 = 40", kInvalid, [](C* c) { c->options.q_offsets = far_offsets, c->options.q_offset = 0; }},
      {"rope: the position of row 0 of x_kv of sequence 0 = 0: its positions, 5 rows", kInvalid,
       [](C* c) { c->rope.num_positions = 4, c->p.q_len = 2; }},
      {"kv_rope.struct_size", kInvalid, [](C* c) { c->p.kv_rope = &c->kv_rope, c->kv_rope = {}; }},
      {"kv_rope: its batch", kInvalid, [](C* c) { c->p.kv_rope = &c->kv_rope, c->kv_rope = c->rope, c->kv_rope.q_len = 5; }},
      {"kv_rope.rotary_dim = 3", kInvalid, [](C* c) { c->p.kv_rope = &c->kv_rope, c->kv_rope = c->rope, c->kv_rope.rotary_dim = 3; }},
      {"kv_rope.position_offset of sequence 0 = 40", kInvalid,
       [](C* c) { c->p.kv_rope = &c->kv_rope, c->kv_rope = c->rope, c->kv_rope.position_offset = 40; }},
      {"y overlaps kv_rope.sin", kInvalid, [](C* c) { c->p.kv_rope = &c->kv_rope, c->kv_rope = c->rope, c->kv_rope.sin.data = c->p.y.data; }},
      {"kv_rope is given: must be NULL without rope", kInvalid, [](C* c) { c->p.kv_rope = &c->rope, c->p.rope = nullptr; }},
      {"kv_len = -2", kInvalid, [](C* c) { c->p.kv_len = -2; }},
      {"total_kv = 3: must be 0", kInvalid, [](C* c) { c->p.total_kv = 3; }},
      {"x_kv.data = NULL", kInvalid, [](C* c) { c->p.x_kv.data = nullptr; }},
      {"y overlaps x_kv", kInvalid, [](C* c) { c->p.x_kv.data = c->p.y.data; }},
      {"d_kv = 51: must be d_model", kInvalid, [](C* c) {
         c->p.w_qkv = c->p.wq, c->p.w_qkv.stride_row = 0;
         c->p.wq = c->p.wk = c->p.wv = c->p.bq = c->p.bk = c->p.bv = {};
       }},
  };
  const auto check = [](const MhaSpec& s, const Refused& refused) {
    INFO(std::string(refused.text));
    MhaCase c(s);
    refused.change(&c);
    c.Snapshot();
    char text[200] = "";
    fovea_exec exec = Threads(1);
    exec.error_text = text;
    exec.error_capacity = sizeof text;
    CHECK(c.Run(&exec) == refused.status);
    CHECK(std::string(fovea_last_error()).substr(0, std::strlen(refused.text)) == std::string(refused.text));
    CHECK(std::string(text) == fovea_last_error());
    CHECK(c.Untouched(false) == "");
  };
  for (const Refused& refused : contiguous) check(Decoder(9, Kv::kContiguous, 41), refused);
  for (const Refused& refused : paged) check(Decoder(9, Kv::kPaged, 41), refused);
  MhaSpec s = Spec(2, 9, 42);
  s.cross = true, s.kv_len = 5, s.causal = false;
  for (const Refused& refused : crossed) check(s, refused);
  s = Decoder(9, Kv::kContiguous, 41);
  s.cache = FOVEA_I8, s.channel_scale = true;
  for (const Refused& refused : quantized) check(s, refused);

  MhaCase c(Decoder(9, Kv::kContiguous, 41));
  CHECK(fovea_mha_forward(nullptr, nullptr) == kInvalid);
  CHECK(fovea_mha_workspace_size(&c.p, nullptr, nullptr) == kInvalid);
  CHECK(fovea_mha_params_init(nullptr, sizeof c.p) == kInvalid);
  CHECK(fovea_mha_info_init(nullptr, 8) == kInvalid);
}

TEST_CASE("mha: keys past q_lens are refused where rope is given, which rotates the rows of q; sizes are asked for without pages") {
  float x[6] = {1, 2, -1, 0.5f, 0.7f, -2}, w[4] = {1, 0, 0, 1}, y[6] = {7, 7, 7, 7, 7, 7}, table[3] = {1, 1, 1}, cache[12] = {};
  int32_t q_lens[1] = {1}, kv_lens[1] = {3};
  fovea_rope_params rope;
  fovea_rope_params_init(&rope, sizeof rope);
  rope.cos = rope.sin = fovea_tensor_bhsd(table, FOVEA_F32, 1, 3, 1);
  rope.num_positions = 3;
  fovea_mha_params p;
  fovea_mha_params_init(&p, sizeof p);
  p.batch = p.num_q_heads = p.num_kv_heads = 1, p.q_len = 3, p.d_model = p.head_dim = 2;
  p.x = fovea_tensor_bhsd(x, FOVEA_F32, 1, 3, 2);
  p.y = fovea_tensor_bhsd(y, FOVEA_F32, 1, 3, 2);
  p.wq = p.wk = p.wv = p.wo = fovea_tensor_bhsd(w, FOVEA_F32, 1, 2, 2);
  p.q_lens = q_lens;
  p.kv_lens = kv_lens;
  p.rope = &rope;
  CHECK(fovea_mha_forward(&p, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  CHECK(std::string(fovea_last_error()).find("kv_lens[0] = 3") != std::string::npos);
  CHECK(y[0] == 7);
  kv_lens[0] = 1;
  CHECK(fovea_mha_forward(&p, nullptr) == FOVEA_OK);
  p.q_lens = p.kv_lens = nullptr;
  const int32_t pages[2] = {-1, 99}, start[1] = {0};  // not dealt yet
  p.k_cache = fovea_tensor_bhsd(cache, FOVEA_F32, 1, 2, 2);
  p.v_cache = fovea_tensor_bhsd(cache + 8, FOVEA_F32, 1, 2, 2);
  p.block_table = pages, p.block_table_stride = 2, p.num_pages = 1, p.page_size = 2, p.kv_starts = start;
  size_t bytes = 0;
  CHECK(fovea_mha_workspace_size(&p, nullptr, &bytes) == FOVEA_OK);
  CHECK(bytes > 0);
  CHECK(fovea_mha_forward(&p, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
}

}  // namespace fovea_test
