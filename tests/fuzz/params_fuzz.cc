// A fuzz target over fovea_attention_params: bytes become params, mostly valid, over small real buffers. Whatever they
// are, calls must return a status, write inside the outputs only, and be right where they say so. libFuzzer: meson
// setup -Dfuzz=true with clang, build/tests/fuzz/fuzz_params. Without it fuzz_test.cc feeds seeded random bytes.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fovea/fovea.h"
#include "lib/dtype.h"
#include "lib/reference.h"
#include "tests/fuzz/bytes.h"

// NULL, or what was wrong.
const char* FuzzParams(const uint8_t* data, size_t size);

namespace {

using fovea_test::Bytes;
using fovea_test::FillFloats;
using fovea_test::Wide;

constexpr int64_t kMaxBatch = 4, kMaxHeads = 8, kMaxLength = 40, kMaxDim = 20;
constexpr int64_t kArena =
    1 << 18;  // elements; the tensors' data lies in the middle, so that small negative strides stay inside

struct Arenas {
  Arenas() : out(kArena), lse(kArena), scores(kArena), scales(kArena), mask(kArena) {
    uint32_t state = 1;
    for (std::vector<float>* arenas : {q, k, v, bias}) {
      for (fovea_dtype dtype : {FOVEA_F32, FOVEA_BF16, FOVEA_F16}) {
        std::vector<float>& arena = arenas[dtype];
        arena.resize(kArena);  // room for twice as many elements of 16 bits
        FillFloats(dtype, kArena * 4 / fovea::DtypeBytes(dtype), &state, arena.data());
      }
    }
    for (std::vector<float>* arenas : {k, v}) {
      arenas[FOVEA_I8].resize(kArena);
      uint8_t* bytes = reinterpret_cast<uint8_t*>(arenas[FOVEA_I8].data());
      for (int64_t i = 0; i < kArena * 4; ++i) bytes[i] = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
    }
    for (float& x : scales) x = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-30f;
    for (uint8_t& x : mask) x = (state = state * 1664525u + 1013904223u) >> 30 ? 1 : 0;
  }
  std::vector<float> q[FOVEA_F16 + 1], k[FOVEA_I8 + 1], v[FOVEA_I8 + 1], bias[FOVEA_F16 + 1];  // by dtype
  std::vector<float> out, lse, scores, scales;
  std::vector<uint8_t> mask;
};

// Within the arena.
bool Inside(const fovea_tensor& t, int64_t batch, int64_t heads, int64_t rows, int64_t cols, int64_t stride_col) {
  return fovea_test::Inside(t, batch, heads, rows, cols, stride_col, kArena / 2);
}

template <typename T>
void* Middle(std::vector<T>& arena) {
  return arena.data() + kArena / 2;
}

}  // namespace

const char* FuzzParams(const uint8_t* data, size_t size) {
  static Arenas* const arenas = new Arenas;  // reached until the end: not a leak
  Bytes in(data, size);
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);

  p.batch = in.Int(1, kMaxBatch);
  p.num_kv_heads = in.Int(1, 2);
  p.num_q_heads = p.num_kv_heads * in.Int(1, kMaxHeads / 2);
  p.q_len = in.Int(0, kMaxLength);
  p.kv_len = in.Int(0, kMaxLength);
  p.head_dim = in.Int(1, kMaxDim);
  p.v_head_dim = in.Int(0, kMaxDim);
  const int64_t dv = p.v_head_dim ? p.v_head_dim : p.head_dim;

  int32_t q_lens[kMaxBatch + 1], kv_lens[kMaxBatch + 1], q_offsets[kMaxBatch + 1], mask_offsets[kMaxBatch + 1];
  const auto lengths = [&](int32_t* values, int64_t max, bool cumulative) {
    values[0] = 0;
    for (int64_t b = 0; b <= kMaxBatch; ++b) {
      const int32_t length = static_cast<int32_t>(in.Int(0, max));
      values[b] = cumulative ? (b ? values[b - 1] + length : 0) : length;
    }
    if (in.Chance(8)) values[in.Int(0, kMaxBatch)] = static_cast<int32_t>(in.Odd());
  };
  if (in.Chance(80)) {
    const bool packed = in.Chance(128);
    lengths(q_lens, p.q_len, packed);
    (packed ? p.cu_seqlens_q : p.q_lens) = q_lens;
    if (packed) p.total_q = q_lens[p.batch];
  }
  if (in.Chance(80)) {
    const bool packed = in.Chance(128);
    lengths(kv_lens, p.kv_len, packed);
    (packed ? p.cu_seqlens_kv : p.kv_lens) = kv_lens;
    if (packed) p.total_kv = kv_lens[p.batch];
  }
  int32_t table[kMaxBatch * kMaxLength];
  if (in.Chance(60)) {
    p.page_size = in.Int(1, kMaxLength + 9);
    p.num_pages = in.Int(0, 9);
    p.block_table_stride = in.Chance(20) ? 0 : in.Int((p.kv_len + p.page_size - 1) / p.page_size, kMaxLength);
    p.block_table = table;
    uint32_t state = in.Byte();  // few bytes for many entries; seldom one that is no page
    for (int32_t& page : table) {
      state = state * 1664525u + 1013904223u;
      page = static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(p.num_pages + 1));
      if (page == p.num_pages && (state >> 28) != 0) page = 0;
    }
    if (in.Chance(20)) table[in.Int(0, 40)] = static_cast<int32_t>(in.Odd());
    if (in.Chance(240)) p.cu_seqlens_kv = nullptr, p.total_kv = 0;
  }
  int32_t q_positions[kMaxBatch * kMaxLength], kv_positions[kMaxBatch * kMaxLength];
  const auto positions = [&](int32_t* values, const int32_t** field, int64_t* stride, const int32_t* cu,
                             int64_t length) {
    if (!in.Chance(40)) return;
    uint32_t state = in.Byte();
    for (int64_t i = 0; i < kMaxBatch * kMaxLength; ++i) {
      state = state * 1664525u + 1013904223u;
      values[i] = static_cast<int32_t>((state >> 8) % (kMaxLength + 8)) - 4;
    }
    if (in.Chance(20)) values[in.Int(0, 40)] = static_cast<int32_t>(in.Odd());
    *field = values;
    if (!cu && in.Chance(200)) *stride = in.Int(length, kMaxLength);
  };
  positions(q_positions, &p.q_positions, &p.q_positions_stride, p.cu_seqlens_q, p.q_len);
  positions(kv_positions, &p.kv_positions, &p.kv_positions_stride, p.cu_seqlens_kv, p.kv_len);
  const auto kv_rows_of = [](const fovea_attention_params& x) {
    return x.block_table ? x.page_size : x.cu_seqlens_kv ? x.total_kv : x.kv_len;
  };
  const int64_t q_rows = p.cu_seqlens_q ? p.total_q : p.q_len, kv_rows = kv_rows_of(p);

  const auto tensor = [&](void* base, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t cols) {
    fovea_tensor t = in.Chance(128) ? fovea_tensor_bhsd(base, dtype, heads, rows, cols)
                                    : fovea_tensor_bshd(base, dtype, heads, rows, cols);
    if (in.Chance(20)) t.stride_row = -t.stride_row;
    if (in.Chance(10)) t.stride_head = 0;
    if (in.Chance(10)) t.stride_batch += in.Int(0, 9);
    return t;
  };
  const auto draw_dtype = [&] { return in.Chance(170) ? FOVEA_F32 : in.Chance(128) ? FOVEA_BF16 : FOVEA_F16; };
  const auto input = [&](std::vector<float>* of, int64_t heads, int64_t rows, int64_t cols) {
    const fovea_dtype dtype = draw_dtype();
    return tensor(Middle(of[dtype]), dtype, heads, rows, cols);
  };
  p.q = input(arenas->q, p.num_q_heads, q_rows, p.head_dim);
  const auto input_or_int8 = [&](std::vector<float>* of, int64_t cols, fovea_tensor* scale) {
    if (!in.Chance(50)) return input(of, p.num_kv_heads, kv_rows, cols);
    if (in.Chance(200)) *scale = tensor(Middle(arenas->scales), FOVEA_F32, p.num_kv_heads, kv_rows, 1);
    return tensor(Middle(of[FOVEA_I8]), FOVEA_I8, p.num_kv_heads, kv_rows, cols);
  };
  p.k = input_or_int8(arenas->k, p.head_dim, &p.k_scale);
  p.v = input_or_int8(arenas->v, dv, &p.v_scale);
  if (p.k.dtype == FOVEA_I8 && in.Chance(100)) {
    p.k_channel_scale = tensor(Middle(arenas->scales), FOVEA_F32, p.num_kv_heads, 1, p.head_dim);
  }
  p.out = tensor(Middle(arenas->out), draw_dtype(), p.num_q_heads, q_rows, dv);
  if (in.Chance(128)) p.lse = fovea_tensor_bhs(Middle(arenas->lse), FOVEA_F32, p.num_q_heads, q_rows);
  if (in.Chance(60)) {
    p.scores_stage = static_cast<int32_t>(in.Int(FOVEA_SCORES_RAW, FOVEA_SCORES_PROBABILITIES));
    p.scores = tensor(Middle(arenas->scores), FOVEA_F32, p.num_q_heads, q_rows, p.kv_len);
    p.scores.stride_col = 1;
  }
  if (in.Chance(60)) p.mask_kv_len = in.Int(1, kMaxLength + 9);
  const int64_t mask_columns = p.mask_kv_len ? p.mask_kv_len : p.kv_len;
  if (in.Chance(60)) {
    for (int32_t& offset : mask_offsets) offset = static_cast<int32_t>(in.Int(0, 9));
    p.mask_offsets = mask_offsets;
  }
  const int64_t mask_rows = q_rows + 10;
  if (in.Chance(80)) {
    p.mask = tensor(Middle(arenas->mask), FOVEA_U8, p.num_q_heads, mask_rows, mask_columns);
    p.mask.stride_col = in.Int(-1, 2);
  }
  if (in.Chance(80)) {
    p.bias = input(arenas->bias, p.num_q_heads, mask_rows, mask_columns);
    p.bias.stride_col = in.Int(-1, 2);
  }
  p.mask_align = static_cast<int32_t>(in.Int(0, 1));
  if (in.Chance(128)) p.causal = 1;
  if (!p.q_positions) p.q_align = static_cast<int32_t>(in.Int(0, 1));
  if (p.q_positions && in.Chance(250)) {
    // No other way to say where queries stand.
  } else if (in.Chance(80)) {
    p.q_offset = in.Int(-kMaxLength, kMaxLength);
  } else if (in.Chance(80)) {
    for (int32_t& offset : q_offsets) offset = static_cast<int32_t>(in.Int(-kMaxLength, kMaxLength));
    p.q_offsets = q_offsets;
  }
  if (in.Chance(60)) p.window_left = in.Int(0, kMaxLength);
  if (in.Chance(60)) p.window_right = in.Int(0, kMaxLength);
  if (in.Chance(40)) p.logits_soft_cap = 0.5f + static_cast<float>(in.Int(0, 50));
  if (in.Chance(40)) p.scale = static_cast<float>(in.Int(-8, 8)) / 8;
  static const float slopes[kMaxHeads * kMaxBatch] = {0.5f, 0.25f, 0, -0.5f, 0.125f, 1, 2, 4, 0.5f};
  static const float sinks[kMaxHeads] = {0, 1, -1, 20, -90, 3, 0.5f, 2};
  if (in.Chance(40)) {
    p.alibi_slopes = slopes;
    p.alibi_stride_batch = in.Int(0, 1) * p.num_q_heads;
  }
  if (in.Chance(40)) p.sinks = sinks;

  // Damage: one 8-byte word of the struct, anywhere but in a pointer that is followed.
  if (in.Chance(64)) {
    const fovea_attention_params before = p;
    const size_t words = sizeof p / 8;
    const size_t word = static_cast<size_t>(in.Int(0, static_cast<int64_t>(words) - 1));
    const int64_t value = in.Odd();
    std::memcpy(reinterpret_cast<unsigned char*>(&p) + 8 * word, &value, 8);
    const auto keep = [&p, &before](auto field) { p.*field = before.*field; };
    p.q.data = before.q.data;
    p.k.data = before.k.data;
    p.v.data = before.v.data;
    p.k_scale.data = before.k_scale.data;
    p.v_scale.data = before.v_scale.data;
    p.k_channel_scale.data = before.k_channel_scale.data;
    p.out.data = before.out.data;
    p.lse.data = before.lse.data;
    p.scores.data = before.scores.data;
    p.mask.data = before.mask.data;
    p.bias.data = before.bias.data;
    // The arena of another float type holds other numbers there.
    for (auto field : {&fovea_attention_params::q, &fovea_attention_params::k, &fovea_attention_params::v, &fovea_attention_params::bias}) {
      if ((p.*field).dtype >= FOVEA_F32 && (p.*field).dtype <= FOVEA_F16) (p.*field).dtype = (before.*field).dtype;
    }
    keep(&fovea_attention_params::q_offsets);
    keep(&fovea_attention_params::mask_offsets);
    keep(&fovea_attention_params::alibi_slopes);
    keep(&fovea_attention_params::sinks);
    keep(&fovea_attention_params::q_lens);
    keep(&fovea_attention_params::kv_lens);
    keep(&fovea_attention_params::cu_seqlens_q);
    keep(&fovea_attention_params::cu_seqlens_kv);
    keep(&fovea_attention_params::block_table);
    keep(&fovea_attention_params::q_positions);
    keep(&fovea_attention_params::kv_positions);
    if (p.struct_size > sizeof p) p.struct_size = before.struct_size;  // a longer struct's tail would be read
  }

  fovea_exec exec;
  fovea_exec_init(&exec, sizeof exec);
  exec.num_threads = 1;
  exec.flags = in.Chance(60) ? FOVEA_BATCH_INVARIANT : 0;

  // Arrays hold kMaxBatch + 1 entries and kMaxHeads heads, and no library can know.
  const bool arrays = p.batch <= kMaxBatch && p.num_q_heads <= kMaxHeads && p.alibi_stride_batch >= 0 &&
                      p.alibi_stride_batch <= kMaxHeads;
  if (!arrays) p.q_lens = p.kv_lens = p.cu_seqlens_q = p.cu_seqlens_kv = p.q_offsets = p.mask_offsets = nullptr;
  if (!arrays) p.alibi_slopes = p.sinks = nullptr;
  const bool table_fits =
      p.page_size <= 0 || p.block_table_stride < 0 ||
      static_cast<Wide>(p.batch - 1) * p.block_table_stride + p.kv_len / p.page_size + 1 <= kMaxBatch * kMaxLength;
  if (!arrays || !table_fits) p.block_table = nullptr;
  const auto places_fit = [&](int64_t stride, const int32_t* cu, int64_t length, int64_t total) {
    return stride < 0 || (cu ? total : static_cast<Wide>(p.batch - 1) * stride + length) <= kMaxBatch * kMaxLength;
  };
  if (!arrays || !places_fit(p.q_positions_stride, p.cu_seqlens_q, p.q_len, p.total_q)) p.q_positions = nullptr;
  if (!arrays || !places_fit(p.kv_positions_stride, p.cu_seqlens_kv, p.kv_len, p.total_kv)) p.kv_positions = nullptr;
  size_t bytes = 0;
  (void)fovea_attention_workspace_size(&p, &exec, &bytes);

  const int64_t q_rows_now = p.cu_seqlens_q ? p.total_q : p.q_len, kv_rows_now = kv_rows_of(p);
  const int64_t q_batch = p.cu_seqlens_q ? 1 : p.batch, kv_batch = p.block_table     ? p.num_pages
                                                                   : p.cu_seqlens_kv ? 1
                                                                                     : p.batch;
  const int64_t dv_now = p.v_head_dim ? p.v_head_dim : p.head_dim;
  const int64_t mask_columns_now = p.mask_kv_len ? p.mask_kv_len : p.cu_seqlens_kv ? p.total_kv : p.kv_len;
  const bool inside = arrays && p.kv_len <= 4096 && Inside(p.q, q_batch, p.num_q_heads, q_rows_now, p.head_dim, 1) &&
                      Inside(p.k, kv_batch, p.num_kv_heads, kv_rows_now, p.head_dim, 1) &&
                      Inside(p.v, kv_batch, p.num_kv_heads, kv_rows_now, dv_now, 1) &&
                      Inside(p.k_scale, kv_batch, p.num_kv_heads, kv_rows_now, 1, 1) &&
                      Inside(p.v_scale, kv_batch, p.num_kv_heads, kv_rows_now, 1, 1) &&
                      Inside(p.k_channel_scale, p.batch, p.num_kv_heads, 1, p.head_dim, 1) &&
                      Inside(p.out, q_batch, p.num_q_heads, q_rows_now, dv_now, 1) &&
                      Inside(p.lse, q_batch, p.num_q_heads, q_rows_now, 1, 1) &&
                      Inside(p.scores, q_batch, p.num_q_heads, q_rows_now, p.kv_len, p.scores.stride_col) &&
                      Inside(p.mask, p.batch, p.num_q_heads, q_rows_now + 10, mask_columns_now, p.mask.stride_col) &&
                      Inside(p.bias, p.batch, p.num_q_heads, q_rows_now + 10, mask_columns_now, p.bias.stride_col);
  if (!inside) return nullptr;

  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  const fovea_status described = fovea_attention_describe(&p, &exec, &info);
  std::vector<unsigned char> workspace(described == FOVEA_OK ? info.workspace_bytes : 0);
  if (in.Chance(128) && !workspace.empty()) {
    exec.workspace = workspace.data();
    exec.workspace_bytes = workspace.size();
  }
  const fovea_status status = fovea_attention_forward(&p, &exec);
  if (status != described) return "describe and forward do not agree";
  if (status != FOVEA_OK && fovea_last_error()[0] == '\0') return "a failing call left no text";
  if (status != FOVEA_OK || p.struct_size != sizeof p) return nullptr;
  const fovea::AttentionCheck check = fovea::CheckAttention(p, 1, fovea::ArithmeticOf(info));
  return check.out.ratio > 1      ? "wrong out"
         : check.lse.ratio > 1    ? "wrong lse"
         : check.scores.ratio > 1 ? "wrong scores"
                                  : nullptr;
}
