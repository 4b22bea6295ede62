#include "tests/harness/attention_case.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "lib/validate.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

enum Tag : uint64_t {
  kTagQ = 1,
  kTagK,
  kTagV,
  kTagMask,
  kTagBias,
  kTagQLen,
  kTagKvLen,
  kTagPoison,
  kTagLayout,
  kTagOptions,
  kTagPages,
  kTagQPosition,
  kTagKvPosition,
  kTagChannel
};

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A sequence's own length: full, empty or anything between.
int64_t SequenceLength(uint64_t seed, Tag tag, int64_t b, int64_t max) {
  Rng rng(ElementBits(seed, tag, b, 0, 0, 0));
  if (rng.Chance(25)) return max;
  if (rng.Chance(15)) return 0;
  return rng.Int(0, max);
}

std::vector<int32_t> Lengths(uint64_t seed, Tag tag, int64_t batch, int64_t max) {
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < batch; ++b) lengths.push_back(static_cast<int32_t>(SequenceLength(seed, tag, b, max)));
  return lengths;
}

std::vector<int32_t> Cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu(1, 0);
  for (int32_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

int64_t LengthEdge(Rng* rng) {
  return rng->Pick({1, 2, 7, 8, 9, 23, 24, 25, 47, 48, 49, 59, 63, 64, 65, 111, 127, 128, 129, 256, 257});
}

bool MaskValue(uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t c) {
  static constexpr int64_t kDensity[] = {5, 50, 95, 100};
  Rng element(ElementBits(seed, kTagMask, b, h, i, c)), row(ElementBits(seed, kTagMask, b, h, i, -1)),
      block(ElementBits(seed, kTagMask, b, h, -1 - i / 16, c / 64));
  const uint64_t pattern = Mix(seed ^ kTagMask);
  if (pattern % 3 == 0 && block.Chance(50)) return false;
  if (row.Chance(8)) return false;
  return element.Chance(static_cast<int>(kDensity[(pattern >> 8) % 4]));
}

float BiasValue(uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t c) {
  Rng element(ElementBits(seed, kTagBias, b, h, i, c)), row(ElementBits(seed, kTagBias, b, h, i, -1));
  if (row.Chance(4)) return -FLT_MAX;
  if (row.Chance(4)) return -kInf;
  if (element.Chance(8)) return -kInf;
  if (element.Chance(4)) return -FLT_MAX;
  return 2 * element.Normal();
}

// The memory that `view` stands for; a packed one must not have its batch stride read.
fovea_tensor View(const TestTensor& t, bool packed) {
  fovea_tensor view = t.view();
  if (packed) view.stride_batch = int64_t{0x0123456789abcdef};
  return view;
}

fovea_tensor ContiguousColumns(fovea_tensor view, Rng* rng) {
  view.stride_col = rng->Int(0, 1);
  return view;
}

}  // namespace

CaseSpec RandomSpec(uint64_t seed, ShapeKind kind, uint32_t options, int32_t scores_stage, int64_t max_work) {
  Rng rng(Mix(seed) ^ kTagOptions);
  CaseSpec s;
  s.seed = seed;
  s.options = options;
  s.scores_stage = scores_stage;
  for (;;) {
    s.batch = rng.Pick({1, 1, 2, 3});
    s.num_kv_heads = rng.Pick({1, 1, 2, 3});
    s.num_q_heads = s.num_kv_heads * rng.Pick({1, 1, 1, 3, 8});
    const bool few = kind == ShapeKind::kFewRows || (kind == ShapeKind::kAny && rng.Chance(30));
    s.q_len = few ? rng.Pick({1, 1, 1, 2, 3, 4, 5, 7, 8}) : LengthEdge(&rng);
    s.kv_len = few && rng.Chance(50) ? rng.Pick({511, 512, 513, 1000, 1024, 1025, 2049, 4097}) : LengthEdge(&rng);
    if (kind == ShapeKind::kAny && rng.Chance(3)) s.q_len = 0;
    if (kind == ShapeKind::kAny && rng.Chance(3)) s.kv_len = 0;
    s.head_dim = LengthEdge(&rng);
    s.v_head_dim = rng.Chance(40) ? LengthEdge(&rng) : 0;
    const int64_t columns = s.head_dim + (s.v_head_dim ? s.v_head_dim : s.head_dim);
    if (s.batch * s.num_q_heads * s.q_len * s.kv_len * columns <= max_work) return s;
  }
}

AttentionCase::AttentionCase(const CaseSpec& spec_in) : spec(spec_in) {
  const CaseSpec& s = spec;
  const auto has = [&s](Option option) { return (s.options & option) != 0; };
  // The layout's own stream: the numbers in the tensors do not move with it.
  Rng rng(Mix(s.seed ^ kTagLayout)), layout(Mix(s.seed ^ (kTagLayout << 8)));
  const Guard guard = has(kStrides) && layout.Chance(50) ? Guard::kBefore : Guard::kAfter;

  fovea_attention_params_init(&p, sizeof p);
  p.batch = s.batch;
  p.num_q_heads = s.num_q_heads;
  p.num_kv_heads = s.num_kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.head_dim = s.head_dim;
  p.v_head_dim = s.v_head_dim;
  const int64_t v_head_dim = s.v_head_dim ? s.v_head_dim : s.head_dim;

  const std::vector<int32_t> q_lens = Lengths(s.seed, kTagQLen, s.batch, s.q_len);
  const std::vector<int32_t> kv_lens = Lengths(s.seed, kTagKvLen, s.batch, s.kv_len);
  Shape q_shape{s.batch, s.num_q_heads, s.q_len, s.head_dim}, kv_shape{s.batch, s.num_kv_heads, s.kv_len, s.head_dim};
  if (has(kPackedQ)) {
    const std::vector<int32_t> cu = Cumulative(q_lens);
    p.total_q = cu.back() + layout.Int(0, 2);  // rows past the last sequence belong to none
    cu_q_ = GuardedArray<int32_t>(cu, guard);
    p.cu_seqlens_q = cu_q_.data();
    q_shape.batch = 1;
    q_shape.rows = p.total_q;
    if (layout.Chance(50)) p.q_len = 0;
  } else if (has(kQLens)) {
    q_lens_ = GuardedArray<int32_t>(q_lens, guard);
    p.q_lens = q_lens_.data();
  }
  if (has(kPackedKv) && !has(kPaged)) {
    const std::vector<int32_t> cu = Cumulative(kv_lens);
    p.total_kv = cu.back() + layout.Int(0, 2);
    cu_kv_ = GuardedArray<int32_t>(cu, guard);
    p.cu_seqlens_kv = cu_kv_.data();
    kv_shape.batch = 1;
    kv_shape.rows = p.total_kv;
    if (s.scores_stage == FOVEA_SCORES_NONE && layout.Chance(50)) p.kv_len = 0;
  } else if (has(kKvLens)) {
    kv_lens_ = GuardedArray<int32_t>(kv_lens, guard);
    p.kv_lens = kv_lens_.data();
  }

  if (has(kPaged)) AddPages(&layout, guard, &kv_shape);

  // Tensors.
  const auto make = [&](const Shape& shape, bool free_columns, bool input) {
    const Strides strides =
        has(kStrides) ? RandomStrides(&layout, shape, free_columns, input && has(kBroadcast)) : DenseStrides(shape);
    return std::make_unique<TestTensor>(FOVEA_F32, shape, strides, guard);
  };
  Shape v_shape = kv_shape, out_shape = q_shape, scores_shape = q_shape;
  v_shape.cols = out_shape.cols = v_head_dim;
  scores_shape.cols = p.kv_len;
  q = make(q_shape, false, true);
  k = make(kv_shape, false, true);
  v = make(v_shape, false, true);
  out = make(out_shape, false, false);
  Fill(q.get(), kTagQ, true, has(kSpread) ? static_cast<float>(rng.Pick({4, 12, 40})) : 1.0f);
  Fill(k.get(), kTagK, false, 1);
  Fill(v.get(), kTagV, false, 1);
  p.q = ContiguousColumns(View(*q, has(kPackedQ)), &layout);
  p.k = ContiguousColumns(View(*k, p.cu_seqlens_kv), &layout);
  p.v = ContiguousColumns(View(*v, p.cu_seqlens_kv), &layout);
  p.out = ContiguousColumns(View(*out, has(kPackedQ)), &layout);
  if (!has(kNoLse)) {
    Shape lse_shape = q_shape;
    lse_shape.cols = 1;
    lse = make(lse_shape, false, false);
    p.lse = View(*lse, has(kPackedQ));
  }
  if (s.scores_stage != FOVEA_SCORES_NONE) {
    scores = make(scores_shape, true, false);
    p.scores = View(*scores, has(kPackedQ));
    p.scores_stage = s.scores_stage;
  }

  // Options.
  if (has(kCausal)) p.causal = 1;
  AddPositions(guard);
  if (has(kBottomRight) && !has(kQPositions)) p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  const int64_t reach = s.kv_len + 3;
  if (has(kQPositions)) {
    // In place of the other ways to say where queries stand.
  } else if (has(kQOffsets)) {
    std::vector<int32_t> offsets;
    for (int64_t b = 0; b < s.batch; ++b) offsets.push_back(static_cast<int32_t>(rng.Int(-reach, reach)));
    q_offsets_ = GuardedArray<int32_t>(offsets, guard);
    p.q_offsets = q_offsets_.data();
  } else if (has(kQOffset)) {
    p.q_offset = rng.Int(-reach, reach);
  }
  if (has(kWindowLeft)) p.window_left = rng.Pick({0, 1, 5, 31, 64, rng.Int(0, reach)});
  if (has(kWindowRight)) p.window_right = rng.Pick({0, 1, 5, 31, 64, rng.Int(0, reach)});
  if (has(kSoftCap)) p.logits_soft_cap = rng.Chance(50) ? 1.5f : 30.0f;
  if (has(kScale)) p.scale = rng.Chance(20) ? -0.25f : 0.05f + 0.1f * static_cast<float>(rng.Int(0, 5));
  if (has(kAlibi)) {
    std::vector<float> slopes;
    p.alibi_stride_batch = rng.Chance(50) ? 0 : s.num_q_heads + rng.Int(0, 2);
    const int64_t count = p.alibi_stride_batch * (s.batch - 1) + s.num_q_heads;
    for (int64_t n = 0; n < count; ++n) {
      slopes.push_back(rng.Chance(10) ? -0.125f : rng.Chance(10) ? 0.0f : 1.0f / static_cast<float>(2 << (n % 8)));
    }
    alibi_ = GuardedArray<float>(slopes, guard);
    p.alibi_slopes = alibi_.data();
  }
  if (has(kSinks)) {
    std::vector<float> sinks;
    for (int64_t h = 0; h < s.num_q_heads; ++h) {
      sinks.push_back(rng.Chance(20) ? 15.0f : rng.Chance(20) ? -40.0f : 2 * rng.Normal());
    }
    sinks_ = GuardedArray<float>(sinks, guard);
    p.sinks = sinks_.data();
  }
  AddMaskAndBias(&layout, guard);
  if (has(kPoison) && !has(kBroadcast)) Poison();

  // Storage types.
  const auto store_as = [](fovea_dtype dtype, std::unique_ptr<TestTensor>* t, fovea_tensor* view) {
    if (dtype == FOVEA_F32 || !*t) return;
    *t = (*t)->As(dtype);
    view->data = (*t)->view().data;
    view->dtype = dtype;
  };
  store_as(s.q_dtype, &q, &p.q);
  if (s.k_dtype != FOVEA_I8) store_as(s.k_dtype, &k, &p.k);
  if (s.v_dtype != FOVEA_I8) store_as(s.v_dtype, &v, &p.v);
  Quantize(&layout);
  store_as(s.out_dtype, &out, &p.out);
  store_as(s.bias_dtype, &bias, &p.bias);
}

void AttentionCase::Quantize(Rng* layout) {
  Rng rng(Mix(spec.seed ^ kTagChannel));
  const bool scaled_rows = rng.Chance(80), scaled_columns = rng.Chance(scaled_rows ? 40 : 80), v_scaled = rng.Chance(80);
  const bool free_strides = (spec.options & kStrides) != 0;
  const auto make = [&](const TestTensor& like, const Shape& shape) {
    const Strides strides = free_strides ? RandomStrides(layout, shape, false, (spec.options & kBroadcast) != 0) : DenseStrides(shape);
    return std::make_unique<TestTensor>(FOVEA_F32, shape, strides, like.guard());
  };
  // Rows that hold no number, poisoned or of no sequence, get a scale that is none.
  const auto quantize = [&](std::unique_ptr<TestTensor>* t, fovea_tensor* view, std::unique_ptr<TestTensor>* scale,
                            fovea_tensor* scale_view, bool scaled, const TestTensor* columns) {
    const Shape shape = (*t)->shape();
    auto bytes = std::make_unique<TestTensor>(FOVEA_I8, shape, (*t)->strides(), (*t)->guard());
    if (scaled) {
      *scale = make(**t, {shape.batch, shape.heads, shape.rows, 1});
      *scale_view = View(**scale, p.cu_seqlens_kv);
    }
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (int64_t i = 0; i < shape.rows; ++i) {
          float most = 1e-9f, poison = 0;
          bool poisoned = false;
          for (int64_t c = 0; c < shape.cols; ++c) {
            const float x = (*t)->Get(b, h, i, c);
            if (std::isfinite(x)) {
              most = std::max(most, std::fabs(x));
            } else {
              poisoned = true;
              poison = x;
            }
          }
          const float step = scaled ? most / 127 : columns ? 1.0f : 0.05f;
          if (scaled) (*scale)->F32(b, h, i) = poisoned ? poison : step;
          for (int64_t c = 0; c < shape.cols; ++c) {
            float x = poisoned ? 1 : (*t)->Get(b, h, i, c) / step;
            if (columns && !scaled) x /= columns->Get(0, 0, 0, c);
            bytes->Set(b, h, i, c, std::clamp(std::nearbyint(x), -127.0f, 127.0f));
          }
        }
      }
    }
    *t = std::move(bytes);
    view->data = (*t)->view().data;
    view->dtype = FOVEA_I8;
  };
  if (spec.k_dtype == FOVEA_I8) {
    if (scaled_columns) {
      const Shape shape = {p.batch, p.num_kv_heads, 1, p.head_dim};
      k_channel_scale = make(*k, shape);
      for (int64_t b = 0; b < shape.batch; ++b) {
        for (int64_t h = 0; h < shape.heads; ++h) {
          for (int64_t c = 0; c < shape.cols; ++c) {
            const uint64_t bits = ElementBits(spec.seed, kTagChannel, b, h, 0, c);
            k_channel_scale->F32(b, h, 0, c) = (scaled_rows ? 1.0f : 0.03f) * (0.5f + static_cast<float>(bits % 1000) * 1e-3f);
          }
        }
      }
      p.k_channel_scale = ContiguousColumns(k_channel_scale->view(), layout);
    }
    quantize(&k, &p.k, &k_scale, &p.k_scale, scaled_rows, k_channel_scale.get());
  }
  if (spec.v_dtype == FOVEA_I8) quantize(&v, &p.v, &v_scale, &p.v_scale, v_scaled, nullptr);
}

void AttentionCase::AddPages(Rng* layout, Guard guard, Shape* kv_shape) {
  Rng rng(Mix(spec.seed ^ kTagPages));
  p.page_size = rng.Pick({1, 2, 3, 8, 16, 16, 17, 32, 64, 100, 128, 129, 300});
  const int64_t columns = (spec.kv_len + p.page_size - 1) / p.page_size;
  p.block_table_stride = columns + layout->Int(0, 2);
  std::vector<int32_t> table(static_cast<size_t>(spec.batch * p.block_table_stride), INT32_MIN), used;
  // Some entries share a page that another one has; the rest of the pages are dealt in random order, a few are left
  // over.
  const size_t num_pages = table.size() + static_cast<size_t>(rng.Int(0, 2));
  std::vector<int32_t> deal(num_pages);
  for (size_t n = 0; n < num_pages; ++n) deal[n] = static_cast<int32_t>(n);
  for (size_t n = 1; n < num_pages; ++n)
    std::swap(deal[n], deal[static_cast<size_t>(rng.Int(0, static_cast<int64_t>(n)))]);
  const int share = static_cast<int>(rng.Pick({0, 0, 20}));
  for (int64_t b = 0; b < spec.batch; ++b) {
    for (int64_t n = 0; n * p.page_size < fovea::KvLen(p, b); ++n) {
      const bool shared = !used.empty() && rng.Chance(share);
      const int32_t page =
          shared ? used[static_cast<size_t>(rng.Int(0, static_cast<int64_t>(used.size()) - 1))] : deal.back();
      if (!shared) deal.pop_back();
      used.push_back(page);
      table[static_cast<size_t>(b * p.block_table_stride + n)] = page;
    }
  }
  block_table_ = GuardedArray<int32_t>(table, guard);
  // A block_table that holds nothing must still be there.
  static const int32_t none = 0;
  p.block_table = table.empty() ? &none : block_table_.data();
  p.num_pages = static_cast<int64_t>(num_pages);
  kv_shape->batch = p.num_pages;
  kv_shape->rows = p.page_size;
}

// Where row i of `length` stands: shifted, around a ring, or anywhere, twice at one place included.
int32_t PositionValue(uint64_t seed, Tag tag, int64_t b, int64_t i, int64_t length) {
  Rng element(ElementBits(seed, tag, b, 0, i, 0)), sequence(ElementBits(seed, tag, b, 1, 0, 0));
  const int64_t kind = sequence.Int(0, 2), shift = sequence.Int(0, length);
  if (tag == kTagKvPosition && element.Chance(10)) return element.Chance(50) ? -1 : INT32_MIN;
  return static_cast<int32_t>(kind == 0 ? i + shift : kind == 1 ? (i + shift) % length : element.Int(0, length + 3));
}

void AttentionCase::AddPositions(Guard guard) {
  const auto make = [&](Tag tag, const int32_t* cu, int64_t total, int64_t* stride, GuardedArray<int32_t>* array) {
    const bool queries = tag == kTagQPosition;
    int64_t longest = 0;
    for (int64_t b = 0; b < p.batch; ++b) longest = std::max(longest, queries ? fovea::QLen(p, b) : fovea::KvLen(p, b));
    if (!cu) *stride = longest + static_cast<int64_t>(spec.seed % 3);
    std::vector<int32_t> values(static_cast<size_t>(cu ? total : p.batch * *stride) + 1, INT32_MAX);
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t length = queries ? fovea::QLen(p, b) : fovea::KvLen(p, b);
      for (int64_t i = 0; i < length; ++i) {
        values[static_cast<size_t>((cu ? cu[b] : b * *stride) + i)] =
            PositionValue(spec.seed, tag, b, i, spec.kv_len + 1);
      }
    }
    *array = GuardedArray<int32_t>(values, guard);
    return array->data();
  };
  if (spec.options & kQPositions) {
    p.q_positions = make(kTagQPosition, p.cu_seqlens_q, p.total_q, &p.q_positions_stride, &q_positions_);
  }
  if (spec.options & kKvPositions) {
    p.kv_positions = make(kTagKvPosition, p.cu_seqlens_kv, p.total_kv, &p.kv_positions_stride, &kv_positions_);
  }
}

std::pair<int64_t, int64_t> AttentionCase::KvPlace(int64_t b, int64_t j) const {
  if (p.block_table) return {p.block_table[b * p.block_table_stride + j / p.page_size], j % p.page_size};
  return p.cu_seqlens_kv ? std::pair<int64_t, int64_t>{0, p.cu_seqlens_kv[b] + j} : std::pair<int64_t, int64_t>{b, j};
}

void AttentionCase::Fill(TestTensor* t, uint64_t tag, bool queries, float factor) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = queries ? fovea::QLen(p, b) : fovea::KvLen(p, b);
    for (int64_t h = 0; h < t->shape().heads; ++h) {
      for (int64_t i = 0; i < rows; ++i) {
        const std::pair<int64_t, int64_t> place = !queries         ? KvPlace(b, i)
                                                  : p.cu_seqlens_q ? std::make_pair(int64_t{0}, p.cu_seqlens_q[b] + i)
                                                                   : std::make_pair(b, i);
        for (int64_t c = 0; c < t->shape().cols; ++c) {
          t->F32(place.first, h, place.second, c) = factor * NormalFromBits(ElementBits(spec.seed, tag, b, h, i, c));
        }
      }
    }
  }
}

void AttentionCase::AddMaskAndBias(Rng* layout, Guard guard) {
  const auto has = [this](Option option) { return (spec.options & option) != 0; };
  if (!has(kMask) && !has(kBias)) return;
  Rng rng(Mix(spec.seed ^ kTagMask));
  if (has(kMaskKvLen)) p.mask_kv_len = std::max<int64_t>(1, spec.kv_len + rng.Pick({-70, -9, -1, 1, 5, 70}));
  if (has(kMaskRight)) p.mask_align = FOVEA_MASK_ALIGN_RIGHT;
  Shape shape{p.batch, p.num_q_heads, 0, p.mask_kv_len ? p.mask_kv_len : spec.kv_len};
  bool shared_rows = false;
  if (has(kMaskOffsets) && p.cu_seqlens_q && rng.Chance(50)) {  // one mask over the whole packed buffer
    p.mask_offsets = p.cu_seqlens_q;
    shared_rows = true;
  } else if (has(kMaskOffsets)) {
    std::vector<int32_t> offsets;
    for (int64_t b = 0; b < p.batch; ++b) offsets.push_back(static_cast<int32_t>(rng.Int(0, 5)));
    mask_offsets_ = GuardedArray<int32_t>(offsets, guard);
    p.mask_offsets = mask_offsets_.data();
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    shape.rows = std::max(shape.rows, fovea::QLen(p, b) + (p.mask_offsets ? p.mask_offsets[b] : 0));
  }
  const auto make = [&](fovea_dtype dtype) {
    Strides strides = has(kStrides) ? RandomStrides(layout, shape, true, has(kBroadcast)) : DenseStrides(shape);
    if (shared_rows) strides.batch = 0;
    return std::make_unique<TestTensor>(dtype, shape, strides, guard);
  };
  const auto each = [&](const auto& set) {
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (int64_t i = 0; i < shape.rows; ++i) {
          for (int64_t c = 0; c < shape.cols; ++c) set(b, h, i, c);
        }
      }
    }
  };
  if (has(kMask)) {
    mask = make(FOVEA_U8);
    each([&](int64_t b, int64_t h, int64_t i, int64_t c) {
      mask->U8(b, h, i, c) = MaskValue(spec.seed, b, h, i, c) ? static_cast<uint8_t>(rng.Pick({1, 1, 2, 128, 255})) : 0;
    });
    p.mask = mask->view();
  }
  if (has(kBias)) {
    bias = make(FOVEA_F32);
    each([&](int64_t b, int64_t h, int64_t i, int64_t c) { bias->F32(b, h, i, c) = BiasValue(spec.seed, b, h, i, c); });
    p.bias = bias->view();
  }
}

void AttentionCase::Poison() {
  const bool raw = p.scores_stage == FOVEA_SCORES_RAW || p.scores_stage == FOVEA_SCORES_SOFT_CAPPED;
  // Rows of k and v: 0 outside all sequences, 1 held by one, 2 attended to. Shared pages have several holders.
  const Shape& shape = k->shape();
  std::vector<char> state(static_cast<size_t>(shape.batch * shape.heads * shape.rows));
  const auto at = [&](int64_t kv_head, std::pair<int64_t, int64_t> place) -> char& {
    return state[static_cast<size_t>((place.first * shape.heads + kv_head) * shape.rows + place.second)];
  };
  std::vector<int32_t> table;
  if (p.block_table) table.assign(p.block_table, p.block_table + p.batch * p.block_table_stride);
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<char> needed(static_cast<size_t>(p.block_table ? p.block_table_stride : 0));
    for (int64_t j = 0; j < fovea::KvLen(p, b); ++j) {
      for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
        bool attended = false;
        for (int64_t h = kv_head * group(); h < (kv_head + 1) * group(); ++h) {
          for (int64_t i = 0; i < fovea::QLen(p, b); ++i) attended |= fovea::Permitted(p, b, h, i, j);
        }
        char& row = at(kv_head, KvPlace(b, j));
        row = std::max<char>(row, attended ? 2 : 1);
        if (p.block_table && (attended || (raw && fovea::QLen(p, b) > 0)))
          needed[static_cast<size_t>(j / p.page_size)] = 1;
      }
    }
    for (size_t n = 0; n < needed.size(); ++n) {
      static constexpr int32_t kGarbage[] = {-1, INT32_MIN, INT32_MAX, -77777};
      if (needed[n]) continue;
      const uint64_t bits = ElementBits(spec.seed, kTagPages, b, static_cast<int64_t>(n), 0, 0);
      table[static_cast<size_t>(b * p.block_table_stride) + n] =
          bits % 5 == 4 ? static_cast<int32_t>(p.num_pages) : kGarbage[bits % 5];
    }
  }
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t kv_head = 0; kv_head < shape.heads; ++kv_head) {
      for (int64_t row = 0; row < shape.rows; ++row) {
        if (at(kv_head, {b, row}) != 1) continue;
        const uint64_t bits = ElementBits(spec.seed, kTagPoison, b, kv_head, row, 0);
        const float poison = bits % 3 == 0 ? kNan : bits % 3 == 1 ? kInf : -kInf;
        for (int64_t c = 0; c < v->shape().cols; ++c) v->F32(b, kv_head, row, c) = poison;
        for (int64_t c = 0; c < k->shape().cols && !raw; ++c) k->F32(b, kv_head, row, c) = poison;
      }
    }
  }
  if (!table.empty()) std::copy(table.begin(), table.end(), block_table_.data());
  if (!bias || p.mask_offsets == p.cu_seqlens_q) return;  // rows of bias must be one query's own
  fovea_attention_params without_bias = p;
  without_bias.bias = fovea_tensor{};
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t columns = p.mask_kv_len ? p.mask_kv_len : p.cu_seqlens_kv ? fovea::KvLen(p, b) : p.kv_len;
    const int64_t first = p.mask_align == FOVEA_MASK_ALIGN_RIGHT ? fovea::KvLen(p, b) - columns : 0;
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      for (int64_t i = 0; i < fovea::QLen(p, b); ++i) {
        for (int64_t j = std::max<int64_t>(0, first); j < std::min(fovea::KvLen(p, b), first + columns); ++j) {
          if (ElementBits(spec.seed, kTagPoison, b, h, i, j) % 8 || fovea::Permitted(without_bias, b, h, i, j))
            continue;
          bias->F32(b, h, i + (p.mask_offsets ? p.mask_offsets[b] : 0), j - first) = kNan;
        }
      }
    }
  }
}

void AttentionCase::SetMask(const std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)>& may_attend) {
  const Shape shape{p.batch, p.num_q_heads, p.q_len, p.mask_kv_len ? p.mask_kv_len : p.kv_len};
  mask = std::make_unique<TestTensor>(FOVEA_U8, shape, DenseStrides(shape), Guard::kAfter);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t i = 0; i < shape.rows; ++i) {
        for (int64_t j = 0; j < shape.cols; ++j) mask->U8(b, h, i, j) = may_attend(b, h, i, j) ? 1 : 0;
      }
    }
  }
  p.mask = mask->view();
}

void AttentionCase::SetBias(const std::function<float(int64_t b, int64_t h, int64_t i, int64_t j)>& value) {
  const Shape shape{p.batch, p.num_q_heads, p.q_len, p.mask_kv_len ? p.mask_kv_len : p.kv_len};
  bias = std::make_unique<TestTensor>(FOVEA_F32, shape, DenseStrides(shape), Guard::kAfter);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t i = 0; i < shape.rows; ++i) {
        for (int64_t j = 0; j < shape.cols; ++j) bias->F32(b, h, i, j) = value(b, h, i, j);
      }
    }
  }
  p.bias = bias->view();
}

void AttentionCase::ClearOutputs() {
  const uint32_t bits = 0x7fc0beef;
  float unwritten;
  std::memcpy(&unwritten, &bits, 4);
  for (TestTensor* t : {out.get(), lse.get(), scores.get()}) {
    if (!t) continue;
    const Shape& shape = t->shape();
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (int64_t i = 0; i < shape.rows; ++i) {
          for (int64_t c = 0; c < shape.cols; ++c) t->Set(b, h, i, c, unwritten);
        }
      }
    }
  }
}

std::string AttentionCase::Describe() const {
  std::string text = "batch " + std::to_string(p.batch) + ", heads " + std::to_string(p.num_q_heads) + "/" +
                     std::to_string(p.num_kv_heads) + ", q_len " + std::to_string(spec.q_len) + ", kv_len " +
                     std::to_string(spec.kv_len) + ", head_dim " + std::to_string(p.head_dim) + "/" +
                     std::to_string(out->shape().cols);
  const auto add = [&text](bool given, const std::string& what) { text += given ? ", " + what : ""; };
  const auto list = [](const int32_t* values, int64_t count) {
    std::string joined;
    for (int64_t b = 0; values && b < count; ++b) joined += " " + std::to_string(values[b]);
    return joined;
  };
  add(p.q_lens, "q_lens" + list(p.q_lens, p.batch));
  add(p.kv_lens, "kv_lens" + list(p.kv_lens, p.batch));
  add(p.cu_seqlens_q, "cu_seqlens_q" + list(p.cu_seqlens_q, p.batch + 1));
  add(p.cu_seqlens_kv, "cu_seqlens_kv" + list(p.cu_seqlens_kv, p.batch + 1));
  add(p.block_table, "page_size " + std::to_string(p.page_size) + " num_pages " + std::to_string(p.num_pages));
  add(p.q_positions, "q_positions");
  add(p.kv_positions, "kv_positions");
  add(p.causal, "causal");
  add(p.q_align == FOVEA_Q_ALIGN_BOTTOM_RIGHT, "bottom-right");
  add(p.q_offset, "q_offset " + std::to_string(p.q_offset));
  add(p.q_offsets, "q_offsets" + list(p.q_offsets, p.batch));
  add(p.window_left >= 0, "window_left " + std::to_string(p.window_left));
  add(p.window_right >= 0, "window_right " + std::to_string(p.window_right));
  add(p.logits_soft_cap > 0, "soft cap " + std::to_string(p.logits_soft_cap));
  add(!std::isnan(p.scale), "scale " + std::to_string(p.scale));
  add(p.mask.data, "mask");
  add(p.bias.data, "bias");
  add(p.mask_kv_len, "mask_kv_len " + std::to_string(p.mask_kv_len));
  add(p.mask_align == FOVEA_MASK_ALIGN_RIGHT, "mask right");
  add(p.mask_offsets, "mask_offsets" + list(p.mask_offsets, p.batch));
  add(p.alibi_slopes, "alibi");
  add(p.sinks, "sinks");
  add(p.lse.data == nullptr, "no lse");
  std::string dtypes;
  for (const fovea_tensor* t : {&p.q, &p.k, &p.v, &p.out, &p.bias}) dtypes += std::string(" ") + fovea_dtype_str(t->dtype);
  add(dtypes.find("16") != std::string::npos || dtypes.find("I8") != std::string::npos, "q k v out bias" + dtypes);
  add(p.k_scale.data, "k_scale");
  add(p.v_scale.data, "v_scale");
  add(p.k_channel_scale.data, "k_channel_scale");
  add(p.scores_stage, fovea_scores_stage_str(p.scores_stage));
  add(spec.options & kStrides, "strides");
  add(spec.options & kBroadcast, "broadcast");
  add(spec.options & kPoison, "poison");
  add(spec.options & kSpread, "spread");
  return text;
}

fovea_dtype EachInputType() {
  fovea_dtype type = FOVEA_F32;
  SUBCASE("q, k and v in F32") {}
  SUBCASE("q, k and v in BF16") { type = FOVEA_BF16; }
  return type;
}

fovea_exec Threads(int32_t num_threads, uint32_t flags) {
  fovea_exec exec;
  fovea_exec_init(&exec, sizeof exec);
  exec.num_threads = num_threads;
  exec.flags = flags;
  return exec;
}

std::string Repeat(uint64_t seed, const std::string& text) {
  const doctest::TestCaseData* test = doctest::getContextOptions()->currentTest;
  std::string name = test ? test->m_name : "";
  std::replace(name.begin(), name.end(), ',', '?');  // a comma would separate two filters; ? stands for any character
  return "target " + target_name + ": " + text + "; repeat with FOVEA_TARGET=" + target_name +
         " FOVEA_TEST_COUNT=1 FOVEA_TEST_SEED=" + std::to_string(seed) + " fovea_tests -tc='" + name + "'";
}

std::string Repeat(uint64_t seed, std::initializer_list<std::pair<const char*, int64_t>> fields) {
  std::string text;
  for (const auto& field : fields) text += std::string(field.first) + " " + std::to_string(field.second) + " ";
  return Repeat(seed, text);
}

GuardedBuffer DrawWorkspace(Rng* rng, size_t bytes, fovea_exec* exec) {
  GuardedBuffer workspace;
  if (!rng->Chance(70)) return workspace;
  const size_t odd = static_cast<size_t>(rng->Int(0, 3));
  workspace = GuardedBuffer(bytes + odd, Guard::kAfter);
  std::memset(workspace.data(), 0xff, workspace.size());
  exec->workspace = static_cast<unsigned char*>(workspace.data()) + odd;
  exec->workspace_bytes = bytes;
  return workspace;
}

void Run(const fovea_attention_params& p, const fovea_exec* exec) {
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  if (fovea_attention_describe(&p, exec, &info) != FOVEA_OK) {
    throw std::runtime_error(std::string("describe: ") + fovea_last_error());
  }
  if (target_name != info.target)
    throw std::runtime_error(std::string("the table that would run is of ") + info.target);
  const fovea_status status = fovea_attention_forward(&p, exec);
  if (status != FOVEA_OK) {
    throw std::runtime_error(std::string("forward: ") + fovea_status_str(status) + ": " + fovea_last_error());
  }
}

namespace {

std::string Judgement(const char* name, const fovea::OutputCheck& check) {
  if (check.ratio <= 1) return "";
  char text[320];
  std::snprintf(
      text, sizeof text,
      "%s is wrong at b %lld, h %lld, i %lld, c %lld: %.9g, f64 has %.9g, bound %.3g (%.3g times it); worst error "
      "%.3g, naive f32 %.3g",
      name, static_cast<long long>(check.b), static_cast<long long>(check.h), static_cast<long long>(check.i),
      static_cast<long long>(check.c), check.got, check.want, check.bound, check.ratio, check.error, check.naive);
  return text;
}

}  // namespace

std::string RunAndCheck(AttentionCase* c, const fovea_exec* exec) {
  const fovea_attention_params& p = c->p;
  const auto fail = [c](const std::string& what) { return Repeat(c->spec.seed, what + " [" + c->Describe() + "]"); };
  INFO(fail("ended by a signal"));  // evaluated and printed only if it is: a guard page was touched
  c->ClearOutputs();
  TestTensor* const inputs[] = {c->q.get(),    c->k.get(),       c->v.get(),       c->mask.get(),
                                c->bias.get(), c->k_scale.get(), c->v_scale.get(), c->k_channel_scale.get()};
  TestTensor* const outputs[] = {c->out.get(), c->lse.get(), c->scores.get()};
  for (TestTensor* t : inputs) {
    if (t) t->Snapshot();
  }
  for (TestTensor* t : outputs) {
    if (t) t->Snapshot();
  }

  Rng rng(Mix(c->spec.seed ^ 0xe8ec));
  fovea_exec drawn = Threads(static_cast<int32_t>(rng.Pick({1, 1, 2, 3})));
  GuardedBuffer workspace;
  if (!exec && rng.Chance(50)) {
    size_t bytes = 0;
    if (fovea_attention_workspace_size(&p, &drawn, &bytes) != FOVEA_OK) {
      return fail(std::string("workspace_size: ") + fovea_last_error());
    }
    workspace = GuardedBuffer(std::max<size_t>(bytes, 1), Guard::kAfter);
    drawn.workspace = workspace.data();
    drawn.workspace_bytes = bytes;
  }
  try {
    Run(p, exec ? exec : &drawn);
  } catch (const std::runtime_error& error) {
    return fail(error.what());
  }

  for (TestTensor* t : inputs) {
    if (t && !t->Changed().empty()) return fail("an input was written: " + t->Changed());
  }
  const auto written = [&p](int64_t b, int64_t, int64_t i) {
    return i < (p.cu_seqlens_q ? p.cu_seqlens_q[p.batch] : fovea::QLen(p, b));
  };
  for (TestTensor* t : outputs) {
    if (t && !t->Changed(written).empty())
      return fail("memory outside the output's rows was written: " + t->Changed(written));
  }
  const unsigned char* canary = workspace.region();
  for (; canary && canary < workspace.data(); ++canary) {
    if (*canary != 0xa5) return fail("memory before the workspace was written");
  }

  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  fovea_attention_describe(&p, exec ? exec : &drawn, &info);  // Run() has had it succeed
  const fovea::AttentionCheck check = fovea::CheckAttention(p, 1, fovea::ArithmeticOf(info));
  for (const std::string& text :
       {Judgement("out", check.out), Judgement("lse", check.lse), Judgement("scores", check.scores)}) {
    if (!text.empty()) return fail(text);
  }
  return "";
}

std::vector<float> Outputs(const fovea_attention_params& p, int64_t only) {
  std::vector<float> all;
  const auto append = [&](const fovea_tensor& t, int64_t b, int64_t h, int64_t i, int64_t columns, int64_t step) {
    const int64_t row = h * t.stride_head + i * t.stride_row +
                        (p.cu_seqlens_q ? p.cu_seqlens_q[b] * t.stride_row : b * t.stride_batch);
    for (int64_t c = 0; c < columns; ++c) all.push_back(fovea::LoadElement(t.dtype, t.data, row + c * step));
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    if (only >= 0 && b != only) continue;
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      for (int64_t i = 0; i < fovea::QLen(p, b); ++i) {
        append(p.out, b, h, i, p.v_head_dim ? p.v_head_dim : p.head_dim, 1);
        if (p.lse.data) append(p.lse, b, h, i, 1, 1);
        if (p.scores.data) append(p.scores, b, h, i, fovea::KvLen(p, b), p.scores.stride_col);
      }
    }
  }
  return all;
}

std::string BitDifference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return "sizes " + std::to_string(a.size()) + " and " + std::to_string(b.size());
  for (size_t n = 0; n < a.size(); ++n) {
    if (std::memcmp(&a[n], &b[n], 4) == 0 || (std::isnan(a[n]) && std::isnan(b[n]))) continue;
    char text[120];
    std::snprintf(text, sizeof text, "number %zu of %zu: %.9g and %.9g", n, a.size(), static_cast<double>(a[n]),
                  static_cast<double>(b[n]));
    return text;
  }
  return "";
}

fovea_attention_params AloneParams(const fovea_attention_params& p, int64_t b) {
  fovea_attention_params alone = p;
  const auto advance = [](fovea_tensor* t, int64_t elements) {
    t->data = static_cast<unsigned char*>(t->data) + elements * fovea::DtypeBytes(t->dtype);
  };
  const auto shift = [&](fovea_tensor* t, const int32_t* cu) {
    if (!t->data) return;
    advance(t, cu ? cu[b] * t->stride_row : b * t->stride_batch);
    t->stride_batch = 0;
  };
  shift(&alone.q, p.cu_seqlens_q);
  shift(&alone.out, p.cu_seqlens_q);
  shift(&alone.lse, p.cu_seqlens_q);
  shift(&alone.scores, p.cu_seqlens_q);
  if (!p.block_table) shift(&alone.k, p.cu_seqlens_kv);
  if (!p.block_table) shift(&alone.v, p.cu_seqlens_kv);
  if (!p.block_table) shift(&alone.k_scale, p.cu_seqlens_kv);
  if (!p.block_table) shift(&alone.v_scale, p.cu_seqlens_kv);
  shift(&alone.k_channel_scale, nullptr);
  shift(&alone.mask, nullptr);
  shift(&alone.bias, nullptr);
  const int64_t offset = p.mask_offsets ? p.mask_offsets[b] : 0;
  if (p.mask.data) advance(&alone.mask, offset * p.mask.stride_row);
  if (p.bias.data) advance(&alone.bias, offset * p.bias.stride_row);
  alone.mask_offsets = nullptr;
  if (p.mask.data || p.bias.data) {
    alone.mask_kv_len = p.mask_kv_len ? p.mask_kv_len : p.cu_seqlens_kv ? fovea::KvLen(p, b) : p.kv_len;
  }
  if (p.block_table) alone.block_table = p.block_table + b * p.block_table_stride;
  alone.q_positions = fovea::QPositions(p, b);
  alone.kv_positions = fovea::KvPositions(p, b);
  alone.q_positions_stride = alone.kv_positions_stride = 0;
  alone.batch = 1;
  alone.q_len = fovea::QLen(p, b);
  alone.kv_len = fovea::KvLen(p, b);
  alone.q_lens = alone.kv_lens = alone.cu_seqlens_q = alone.cu_seqlens_kv = nullptr;
  alone.total_q = alone.total_kv = 0;
  if (p.q_offsets) alone.q_offset = p.q_offsets[b];
  alone.q_offsets = nullptr;
  if (p.alibi_slopes) alone.alibi_slopes = p.alibi_slopes + b * p.alibi_stride_batch;
  alone.alibi_stride_batch = 0;
  return alone;
}

}  // namespace fovea_test
