// Every argument check, through the C ABI alone: a call that is right but for one change is refused with the status
// that fovea.h names and a text that names the field, by every function that takes params, and writes nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fovea/fovea.h"
#include "tests/harness/random.h"

namespace {

using fovea_test::Rng;

constexpr int64_t kBatch = 2, kQHeads = 4, kKvHeads = 2, kQLen = 3, kKvLen = 5, kHeadDim = 8, kVHeadDim = 6;
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// All memory that a call may touch, in one object that compares bytewise.
struct Memory {
  float q[kBatch * kQHeads * kQLen * kHeadDim];
  float k[kBatch * kKvHeads * kKvLen * kHeadDim];
  float v[kBatch * kKvHeads * kKvLen * kVHeadDim];
  float out[kBatch * kQHeads * kQLen * kVHeadDim];
  float lse[kBatch * kQHeads * kQLen];
  float scores[kBatch * kQHeads * kQLen * kKvLen];
  float bias[kBatch * kQHeads * kQLen * kKvLen];
  uint8_t mask[kBatch * kQHeads * kQLen * kKvLen];
  float slopes[kBatch * kQHeads];
  float sinks[kQHeads];
  float shared[4096];  // for layouts in which tensors interleave
  int32_t array[2 * (kBatch + 1)];
  unsigned char longer[sizeof(fovea_attention_params) + 64];  // params of a later version
  size_t bytes;                                               // what a workspace query writes
};

struct Problem {
  Memory memory;
  fovea_attention_params p;
  fovea_exec exec;
  const fovea_attention_params* params = &p;  // what is passed
  char text[256];

  Problem() {
    std::memset(static_cast<void*>(&memory), 0, sizeof memory);
    for (float& slope : memory.slopes) slope = 0.5f;
    REQUIRE(fovea_attention_params_init(&p, sizeof p) == FOVEA_OK);
    REQUIRE(fovea_exec_init(&exec, sizeof exec) == FOVEA_OK);
    p.batch = kBatch;
    p.num_q_heads = kQHeads;
    p.num_kv_heads = kKvHeads;
    p.q_len = kQLen;
    p.kv_len = kKvLen;
    p.head_dim = kHeadDim;
    p.v_head_dim = kVHeadDim;
    p.q = fovea_tensor_bhsd(memory.q, FOVEA_F32, kQHeads, kQLen, kHeadDim);
    p.k = fovea_tensor_bhsd(memory.k, FOVEA_F32, kKvHeads, kKvLen, kHeadDim);
    p.v = fovea_tensor_bhsd(memory.v, FOVEA_F32, kKvHeads, kKvLen, kVHeadDim);
    p.out = fovea_tensor_bhsd(memory.out, FOVEA_F32, kQHeads, kQLen, kVHeadDim);
    p.lse = fovea_tensor_bhs(memory.lse, FOVEA_F32, kQHeads, kQLen);
    exec.num_threads = 1;
    exec.error_text = text;
    exec.error_capacity = sizeof text;
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  void GiveScores() {
    p.scores = fovea_tensor_bhsd(memory.scores, FOVEA_F32, kQHeads, kQLen, kKvLen);
    p.scores_stage = FOVEA_SCORES_RAW;
  }
  void GiveMask() { p.mask = fovea_tensor_bhsd(memory.mask, FOVEA_U8, kQHeads, kQLen, kKvLen); }
  void GiveBias() { p.bias = fovea_tensor_bhsd(memory.bias, FOVEA_F32, kQHeads, kQLen, kKvLen); }
  void GiveSlopes() {
    p.alibi_slopes = memory.slopes;
    p.alibi_stride_batch = kQHeads;
  }
  const int32_t* Array(std::vector<int32_t> values, size_t at = 0) {
    std::copy(values.begin(), values.end(), memory.array + at);
    return memory.array + at;
  }
  void PackQueries(std::vector<int32_t> cu, int64_t total) {
    p.cu_seqlens_q = Array(std::move(cu));
    p.total_q = total;
    p.q = fovea_tensor_bshd(memory.q, FOVEA_F32, kQHeads, 1, kHeadDim);
    p.out = fovea_tensor_bshd(memory.out, FOVEA_F32, kQHeads, 1, kVHeadDim);
    p.lse = fovea_tensor_bhs(memory.lse, FOVEA_F32, kQHeads, total);
  }
  void PackKeys(std::vector<int32_t> cu, int64_t total) {
    p.cu_seqlens_kv = Array(std::move(cu), kBatch + 1);
    p.total_kv = total;
    p.k = fovea_tensor_bshd(memory.k, FOVEA_F32, kKvHeads, 1, kHeadDim);
    p.v = fovea_tensor_bshd(memory.v, FOVEA_F32, kKvHeads, 1, kVHeadDim);
  }
  // Pages of two keys, 5 of them; three per sequence.
  void PageKeys() {
    p.block_table = Array({0, 1, 2, 3, 4, 0});
    p.block_table_stride = 3;
    p.num_pages = 5;
    p.page_size = 2;
    p.k = fovea_tensor_bhsd(memory.k, FOVEA_F32, kKvHeads, 2, kHeadDim);
    p.v = fovea_tensor_bhsd(memory.v, FOVEA_F32, kKvHeads, 2, kVHeadDim);
  }
  // Params as a later version would pass them, with one more field.
  void Lengthen(unsigned char new_field) {
    p.struct_size = sizeof memory.longer;
    std::memcpy(memory.longer, &p, sizeof p);
    memory.longer[sizeof p + 11] = new_field;
    params = reinterpret_cast<const fovea_attention_params*>(memory.longer);
  }
};
static_assert(offsetof(Memory, longer) % alignof(fovea_attention_params) == 0);

// kData: found by calls that use the data; a workspace query, which does not, succeeds.
enum Found { kAlways, kData };

struct Case {
  const char* text;  // part of the message
  fovea_status status;
  Found found;
  void (*change)(Problem&);
};

constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT, kUnsupported = FOVEA_ERR_UNSUPPORTED;

const Case kRefused[] = {
    // The structs.
    {"params = NULL", kInvalid, kAlways, [](Problem& t) { t.params = nullptr; }},
    {"params.struct_size = 0: must be", kInvalid, kAlways, [](Problem& t) { t.p.struct_size = 0; }},
    {"call fovea_attention_params_init first", kInvalid, kAlways, [](Problem& t) { t.p.struct_size = 100; }},
    {"params.struct_size", kInvalid, kAlways, [](Problem& t) { t.p.struct_size = ~uint64_t{0}; }},
    {"params.struct_size", kUnsupported, kAlways, [](Problem& t) { t.Lengthen(1); }},
    {"call fovea_exec_init first", kInvalid, kAlways, [](Problem& t) { t.exec.struct_size = 0; }},
    {"exec.num_threads = -1", kInvalid, kAlways, [](Problem& t) { t.exec.num_threads = -1; }},
    {"exec.num_threads = 65537", kInvalid, kAlways, [](Problem& t) { t.exec.num_threads = 65537; }},
    {"exec.flags = 0x3", kUnsupported, kAlways, [](Problem& t) { t.exec.flags = 3; }},
    {"exec.workspace_bytes = 64", kInvalid, kAlways, [](Problem& t) { t.exec.workspace_bytes = 64; }},
    {"exec.error_capacity = 256", kInvalid, kAlways, [](Problem& t) { t.exec.error_text = nullptr; }},

    // Extents.
    {"batch = 0", kInvalid, kAlways, [](Problem& t) { t.p.batch = 0; }},
    {"batch = -3", kInvalid, kAlways, [](Problem& t) { t.p.batch = -3; }},
    {"num_q_heads = 0", kInvalid, kAlways, [](Problem& t) { t.p.num_q_heads = 0; }},
    {"num_kv_heads = 0", kInvalid, kAlways, [](Problem& t) { t.p.num_kv_heads = 0; }},
    {"num_kv_heads = 3: must divide num_q_heads = 4", kInvalid, kAlways, [](Problem& t) { t.p.num_kv_heads = 3; }},
    {"num_kv_heads = 8", kInvalid, kAlways, [](Problem& t) { t.p.num_kv_heads = 8; }},
    {"q_len = -1", kInvalid, kAlways, [](Problem& t) { t.p.q_len = -1; }},
    {"kv_len = -1", kInvalid, kAlways, [](Problem& t) { t.p.kv_len = -1; }},
    {"q_len = 1073741824", kInvalid, kAlways, [](Problem& t) { t.p.q_len = int64_t{1} << 30; }},
    {"kv_len = 1073741824", kInvalid, kAlways, [](Problem& t) { t.p.kv_len = int64_t{1} << 30; }},
    {"head_dim = 0", kInvalid, kAlways, [](Problem& t) { t.p.head_dim = 0; }},
    {"v_head_dim = -6", kInvalid, kAlways, [](Problem& t) { t.p.v_head_dim = -6; }},
    {"batch * num_q_heads", kInvalid, kAlways, [](Problem& t) { t.p.batch = kMax; }},
    {"batch * num_q_heads", kInvalid, kAlways, [](Problem& t) { t.p.num_q_heads = int64_t{1} << 62; }},
    {"head_dim = 2 * 4 * 3 *", kInvalid, kAlways, [](Problem& t) { t.p.head_dim = kMax; }},
    {"head_dim = 2 * 4 * 3 *", kInvalid, kAlways, [](Problem& t) { t.p.v_head_dim = kMax; }},
    {"total_q", kInvalid, kAlways, [](Problem& t) { t.PackQueries({0, 1, 2}, kMax); }},
    {"total_kv", kInvalid, kAlways, [](Problem& t) { t.PackKeys({0, 1, 2}, kMax); }},

    // Tensors: dtype, data, strides.
    {"q.dtype = NONE: must be F32, BF16 or F16", kInvalid, kAlways, [](Problem& t) { t.p.q = {}; }},
    {"out.dtype = NONE: must be F32", kInvalid, kAlways, [](Problem& t) { t.p.out = {}; }},
    {"q.dtype = F8E4M3: this version takes F32, BF16 or F16", kUnsupported, kAlways,
     [](Problem& t) { t.p.q.dtype = FOVEA_F8E4M3; }},
    {"k.dtype = U8", kUnsupported, kAlways, [](Problem& t) { t.p.k.dtype = FOVEA_U8; }},
    {"q.data", kInvalid, kData,
     [](Problem& t) {
       t.p.q.dtype = FOVEA_BF16;
       t.p.q.data = reinterpret_cast<char*>(t.p.q.data) + 1;
     }},
    {"out overlaps q", kInvalid, kData,
     [](Problem& t) {
       // Halfway into q's bytes of 2 per element, where 4 would be past them.
       t.p.out.dtype = t.p.q.dtype = FOVEA_F16;
       t.p.out.data = reinterpret_cast<char*>(t.p.q.data) + kBatch * kQHeads * kQLen * kHeadDim;
     }},
    {"q.dtype = I8: this version takes F32, BF16 or F16", kUnsupported, kAlways, [](Problem& t) { t.p.q.dtype = FOVEA_I8; }},
    {"out.dtype = I8", kUnsupported, kAlways, [](Problem& t) { t.p.out.dtype = FOVEA_I8; }},
    {"v.dtype = F8E5M2: this version takes F32, BF16, F16 or I8", kUnsupported, kAlways,
     [](Problem& t) { t.p.v.dtype = FOVEA_F8E5M2; }},
    {"out.dtype = F64", kUnsupported, kAlways, [](Problem& t) { t.p.out.dtype = FOVEA_F64; }},
    {"k.dtype = Q8_0", kUnsupported, kAlways, [](Problem& t) { t.p.k.dtype = FOVEA_Q8_0; }},
    {"k.dtype = 10", kInvalid, kAlways, [](Problem& t) { t.p.k.dtype = 10; }},
    {"k.dtype = -1", kInvalid, kAlways, [](Problem& t) { t.p.k.dtype = -1; }},
    {"lse.dtype = BF16: this version takes F32", kUnsupported, kAlways, [](Problem& t) { t.p.lse.dtype = FOVEA_BF16; }},
    {"scores.dtype = F16", kUnsupported, kAlways, [](Problem& t) { t.GiveScores(), t.p.scores.dtype = FOVEA_F16; }},
    {"mask.dtype = F32", kUnsupported, kAlways, [](Problem& t) { t.GiveMask(), t.p.mask.dtype = FOVEA_F32; }},
    {"bias.dtype = U8", kUnsupported, kAlways, [](Problem& t) { t.GiveBias(), t.p.bias.dtype = FOVEA_U8; }},
    {"mask.dtype = NONE", kInvalid, kAlways, [](Problem& t) { t.GiveMask(), t.p.mask.dtype = FOVEA_DTYPE_NONE; }},
    {"lse.dtype = NONE", kInvalid, kAlways, [](Problem& t) { t.p.lse.dtype = FOVEA_DTYPE_NONE; }},
    {"q.reserved = 1", kUnsupported, kAlways, [](Problem& t) { t.p.q.reserved = 1; }},
    {"v.reserved = 0, 7, 0", kUnsupported, kAlways, [](Problem& t) { t.p.v.reserved1 = 7; }},
    {"mask.reserved = 0, 0, 7", kUnsupported, kAlways, [](Problem& t) { t.p.mask.reserved2 = 7; }},
    {"q.data = NULL", kInvalid, kData, [](Problem& t) { t.p.q.data = nullptr; }},
    {"k.data = NULL", kInvalid, kData, [](Problem& t) { t.p.k.data = nullptr; }},
    {"v.data = NULL", kInvalid, kData, [](Problem& t) { t.p.v.data = nullptr; }},
    {"out.data = NULL", kInvalid, kData, [](Problem& t) { t.p.out.data = nullptr; }},
    {"lse.data = NULL", kInvalid, kData, [](Problem& t) { t.p.lse.data = nullptr; }},
    {"scores.data = NULL", kInvalid, kData, [](Problem& t) { t.GiveScores(), t.p.scores.data = nullptr; }},
    {"mask.data = NULL", kInvalid, kData, [](Problem& t) { t.GiveMask(), t.p.mask.data = nullptr; }},
    {"bias.data = NULL", kInvalid, kData, [](Problem& t) { t.GiveBias(), t.p.bias.data = nullptr; }},
    {"k.data = 0x", kInvalid, kData, [](Problem& t) { t.p.k.data = reinterpret_cast<unsigned char*>(t.memory.k) + 2; }},
    {"q.stride_col = 2", kInvalid, kAlways, [](Problem& t) { t.p.q.stride_col = 2; }},
    {"k.stride_col = -1", kInvalid, kAlways, [](Problem& t) { t.p.k.stride_col = -1; }},
    {"v.stride_col = 2", kInvalid, kAlways, [](Problem& t) { t.p.v.stride_col = 2; }},
    {"out.stride_col = 2", kInvalid, kAlways, [](Problem& t) { t.p.out.stride_col = 2; }},
    {"lse.stride_col = 2", kInvalid, kAlways, [](Problem& t) { t.p.lse.stride_col = 2; }},
    {"q.stride_batch = 9223372036854775807", kInvalid, kAlways, [](Problem& t) { t.p.q.stride_batch = kMax; }},
    {"k.stride_head = -9223372036854775808", kInvalid, kAlways, [](Problem& t) { t.p.k.stride_head = -kMax - 1; }},
    {"v.stride_row = 4611686018427387904", kInvalid, kAlways, [](Problem& t) { t.p.v.stride_row = int64_t{1} << 62; }},
    {"bias.stride_col", kInvalid, kAlways, [](Problem& t) { t.GiveBias(), t.p.bias.stride_col = int64_t{1} << 60; }},
    {"k.data", kInvalid, kData, [](Problem& t) { t.p.k.stride_batch = -(int64_t{1} << 50); }},

    // Options.
    {"scale = inf", kInvalid, kAlways, [](Problem& t) { t.p.scale = kInf; }},
    {"scale = -inf", kInvalid, kAlways, [](Problem& t) { t.p.scale = -kInf; }},
    {"logits_soft_cap = -1", kInvalid, kAlways, [](Problem& t) { t.p.logits_soft_cap = -1; }},
    {"logits_soft_cap = inf", kInvalid, kAlways, [](Problem& t) { t.p.logits_soft_cap = kInf; }},
    {"logits_soft_cap = ", kInvalid, kAlways, [](Problem& t) { t.p.logits_soft_cap = kNan; }},
    {"causal = 2", kInvalid, kAlways, [](Problem& t) { t.p.causal = 2; }},
    {"causal = -1", kInvalid, kAlways, [](Problem& t) { t.p.causal = -1; }},
    {"q_align = 2", kInvalid, kAlways, [](Problem& t) { t.p.q_align = 2; }},
    {"mask_align = -1", kInvalid, kAlways, [](Problem& t) { t.p.mask_align = -1; }},
    {"scores_stage = 5", kInvalid, kAlways, [](Problem& t) { t.p.scores_stage = 5; }},
    {"scores_stage = FOVEA_SCORES_BIASED", kInvalid, kAlways,
     [](Problem& t) { t.p.scores_stage = FOVEA_SCORES_BIASED; }},
    {"scores_stage = FOVEA_SCORES_NONE", kInvalid, kAlways,
     [](Problem& t) { t.GiveScores(), t.p.scores_stage = FOVEA_SCORES_NONE; }},
    {"q_offset = 1073741824", kInvalid, kAlways, [](Problem& t) { t.p.q_offset = int64_t{1} << 30; }},
    {"q_offset = -1073741824", kInvalid, kAlways, [](Problem& t) { t.p.q_offset = -(int64_t{1} << 30); }},
    {"q_offset = -9223372036854775808", kInvalid, kAlways, [](Problem& t) { t.p.q_offset = -kMax - 1; }},
    {"q_offset = 1073741823: positions", kInvalid, kAlways, [](Problem& t) { t.p.q_offset = (int64_t{1} << 30) - 1; }},
    {"q_offset = 1: must be 0 where q_offsets", kInvalid, kAlways,
     [](Problem& t) { t.p.q_offsets = t.Array({0, 0}), t.p.q_offset = 1; }},
    {"q_offsets[1] = -1073741824", kInvalid, kAlways, [](Problem& t) { t.p.q_offsets = t.Array({0, -(1 << 30)}); }},
    {"q_offsets[1] = 1073741822: positions of sequence 1", kInvalid, kAlways,
     [](Problem& t) { t.p.q_offsets = t.Array({0, (1 << 30) - 2}), t.p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT; }},
    {"window_left = -2", kInvalid, kAlways, [](Problem& t) { t.p.window_left = -2; }},
    {"window_right = -7", kInvalid, kAlways, [](Problem& t) { t.p.window_left = 3, t.p.window_right = -7; }},
    {"mask_kv_len = -1", kInvalid, kAlways, [](Problem& t) { t.GiveMask(), t.p.mask_kv_len = -1; }},
    {"mask_kv_len = ", kInvalid, kAlways, [](Problem& t) { t.GiveMask(), t.p.mask_kv_len = kMax; }},
    {"mask_offsets[1] = -1", kInvalid, kAlways, [](Problem& t) { t.GiveMask(), t.p.mask_offsets = t.Array({0, -1}); }},
    {"alibi_stride_batch = 4", kInvalid, kAlways, [](Problem& t) { t.p.alibi_stride_batch = 4; }},
    {"alibi_stride_batch = 9", kInvalid, kAlways, [](Problem& t) { t.GiveSlopes(), t.p.alibi_stride_batch = kMax; }},
    {"alibi_slopes[1][2] = inf", kInvalid, kData,
     [](Problem& t) { t.GiveSlopes(), t.memory.slopes[kQHeads + 2] = kInf; }},

    // Lengths.
    {"q_lens[1] = 4: must be in [0, q_len = 3]", kInvalid, kAlways, [](Problem& t) { t.p.q_lens = t.Array({3, 4}); }},
    {"q_lens[0] = -1", kInvalid, kAlways, [](Problem& t) { t.p.q_lens = t.Array({-1, 1}); }},
    {"kv_lens[1] = 6: must be in [0, kv_len = 5]", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_lens = t.Array({5, 6}); }},
    {"kv_lens[0] = -2147483648", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_lens = t.Array({std::numeric_limits<int32_t>::min(), 1}); }},
    {"cu_seqlens_q[0] = 1: must be 0", kInvalid, kAlways, [](Problem& t) { t.PackQueries({1, 2, 3}, 6); }},
    {"cu_seqlens_q[2] = 2: must be at least", kInvalid, kAlways, [](Problem& t) { t.PackQueries({0, 3, 2}, 6); }},
    {"cu_seqlens_q[2] = 7: must be at most total_q = 6", kInvalid, kAlways,
     [](Problem& t) { t.PackQueries({0, 3, 7}, 6); }},
    {"cu_seqlens_q[1] = 1073741824", kInvalid, kAlways,
     [](Problem& t) { t.PackQueries({0, 1 << 30, 1 << 30}, int64_t{1} << 30); }},
    {"cu_seqlens_kv[0] = -1", kInvalid, kAlways, [](Problem& t) { t.PackKeys({-1, 2, 3}, 10); }},
    {"cu_seqlens_kv[1] = -2147483648", kInvalid, kAlways,
     [](Problem& t) { t.PackKeys({0, std::numeric_limits<int32_t>::min(), 3}, 10); }},
    {"cu_seqlens_kv[2] = 11: must be at most total_kv = 10", kInvalid, kAlways,
     [](Problem& t) { t.PackKeys({0, 3, 11}, 10); }},
    {"q_lens is given: must be NULL where cu_seqlens_q", kInvalid, kAlways,
     [](Problem& t) { t.PackQueries({0, 1, 2}, 6), t.p.q_lens = t.memory.array; }},
    {"kv_lens is given: must be NULL where cu_seqlens_kv", kInvalid, kAlways,
     [](Problem& t) { t.PackKeys({0, 1, 2}, 6), t.p.kv_lens = t.memory.array; }},
    {"total_q = 6: must be 0 without cu_seqlens_q", kInvalid, kAlways, [](Problem& t) { t.p.total_q = 6; }},
    {"total_kv = 1: must be 0 without cu_seqlens_kv", kInvalid, kAlways, [](Problem& t) { t.p.total_kv = 1; }},
    {"total_q = -1", kInvalid, kAlways, [](Problem& t) { t.PackQueries({0, 1, 2}, 6), t.p.total_q = -1; }},
    {"total_kv = -1", kInvalid, kAlways, [](Problem& t) { t.PackKeys({0, 1, 2}, 6), t.p.total_kv = -1; }},
    {"kv_len = 2: must be at least 3, the keys of sequence 1", kInvalid, kAlways,
     [](Problem& t) { t.PackKeys({0, 2, 5}, 6), t.GiveScores(), t.p.kv_len = 2; }},

    // Reserved fields.
    {"block_table_stride = 1: must be 0 without block_table", kInvalid, kAlways,
     [](Problem& t) { t.p.block_table_stride = 1; }},
    {"num_pages = 1: must be 0 without block_table", kInvalid, kAlways, [](Problem& t) { t.p.num_pages = 1; }},
    {"page_size = 16: must be 0 without block_table", kInvalid, kAlways, [](Problem& t) { t.p.page_size = 16; }},
    {"page_size = 0: must be positive", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.page_size = 0; }},
    {"page_size = -2", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.page_size = -2; }},
    {"page_size = 1073741824", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.page_size = int64_t{1} << 30; }},
    {"num_pages = -1", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.num_pages = -1; }},
    {"num_pages = 2147483648", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.num_pages = int64_t{1} << 31; }},
    {"num_pages * num_kv_heads * page_size * head_dim = 2147483647 *", kInvalid, kAlways,
     [](Problem& t) { t.PageKeys(), t.p.num_pages = INT32_MAX, t.p.page_size = 1 << 29; }},
    {"block_table_stride = 2: must be 0, or at least 3", kInvalid, kAlways,
     [](Problem& t) { t.PageKeys(), t.p.block_table_stride = 2; }},
    {"block_table_stride = -3", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.block_table_stride = -3; }},
    {"block_table_stride = 9223372036854775807: over a batch", kInvalid, kAlways,
     [](Problem& t) { t.PageKeys(), t.p.block_table_stride = kMax; }},
    {"cu_seqlens_kv is given: must be NULL where block_table", kInvalid, kAlways,
     [](Problem& t) { t.PackKeys({0, 1, 2}, 6), t.PageKeys(); }},
    {"k.data = NULL", kInvalid, kData, [](Problem& t) { t.PageKeys(), t.p.k.data = nullptr; }},
    {"k.stride_batch", kInvalid, kAlways, [](Problem& t) { t.PageKeys(), t.p.k.stride_batch = kMax; }},
    {"block_table[1][1] = 5: must be in [0, num_pages = 5)", kInvalid, kData,
     [](Problem& t) { t.PageKeys(), t.memory.array[4] = 5; }},
    {"block_table[0][2] = -1", kInvalid, kData, [](Problem& t) { t.PageKeys(), t.memory.array[2] = -1; }},
    {"out overlaps block_table", kInvalid, kData,
     [](Problem& t) { t.PageKeys(), t.p.block_table = reinterpret_cast<int32_t*>(t.memory.out); }},
    {"lse overlaps k", kInvalid, kData, [](Problem& t) { t.PageKeys(), t.p.lse.data = t.memory.k + 159; }},
    {"q_positions_stride = 1: must be 0 without q_positions", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions_stride = 1; }},
    {"kv_positions_stride = 5: must be 0 without kv_positions", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_positions_stride = 5; }},
    {"q_positions_stride = 2: must be 0, or at least 3", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.memory.array, t.p.q_positions_stride = 2; }},
    {"kv_positions_stride = -5", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_positions = t.memory.array, t.p.kv_positions_stride = -5; }},
    {"kv_positions_stride = 9223372036854775807: over a batch", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_positions = t.memory.array, t.p.kv_positions_stride = kMax; }},
    {"q_positions_stride = 3: must be 0 with cu_seqlens_q", kInvalid, kAlways,
     [](Problem& t) { t.PackQueries({0, 1, 2}, 6), t.p.q_positions = t.memory.array, t.p.q_positions_stride = 3; }},
    {"q_positions[0][2] = 1073741824: must be within", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.Array({0, 1, 1 << 30}); }},
    {"q_positions[1][0] = -1073741824: must be within", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.Array({0, 1, 2, -(1 << 30), 1, 2}), t.p.q_positions_stride = 3; }},
    {"kv_positions[0][4] = 1073741824: must be below 2^30", kInvalid, kAlways,
     [](Problem& t) { t.p.kv_positions = t.Array({0, 1, -1, INT32_MIN, 1 << 30}); }},
    {"kv_positions[0][4] = 1073741824: must be below 2^30", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.p.kv_positions = t.Array({0, 1, 2, 3, 1 << 30}); }},
    {"q_positions is given: q_offset, q_offsets and q_align", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.memory.array, t.p.q_offset = 1; }},
    {"q_positions is given", kInvalid, kAlways, [](Problem& t) { t.p.q_positions = t.p.q_offsets = t.memory.array; }},
    {"q_positions is given", kInvalid, kAlways,
     [](Problem& t) { t.p.q_positions = t.memory.array, t.p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT; }},
    {"out overlaps q_positions", kInvalid, kData,
     [](Problem& t) { t.p.q_positions = reinterpret_cast<int32_t*>(t.memory.out); }},
    {"lse overlaps kv_positions", kInvalid, kData,
     [](Problem& t) { t.p.kv_positions = reinterpret_cast<int32_t*>(t.memory.lse); }},
    {"k_scale is given: must be absent where k.dtype = F32", kInvalid, kAlways,
     [](Problem& t) { t.p.k_scale = fovea_tensor_bhs(t.memory.sinks, FOVEA_F32, 0, 0); }},
    {"v_scale is given: must be absent where v.dtype = BF16", kInvalid, kAlways,
     [](Problem& t) { t.p.v.dtype = FOVEA_BF16, t.p.v_scale = fovea_tensor_bhs(t.memory.sinks, FOVEA_F32, 0, 0); }},
    {"k_channel_scale is given", kInvalid, kAlways,
     [](Problem& t) { t.p.k_channel_scale = fovea_tensor_bhs(t.memory.sinks, FOVEA_F32, 0, 0); }},
    {"v_scale.dtype = NONE: must be F32 where v_scale.data is given", kInvalid, kAlways,
     [](Problem& t) { t.p.v_scale.data = t.memory.sinks; }},
    {"k_scale.dtype = F16", kUnsupported, kAlways,
     [](Problem& t) { t.p.k.dtype = FOVEA_I8, t.p.k_scale = fovea_tensor_bhs(t.memory.sinks, FOVEA_F16, 0, 0); }},
    {"k_scale.data = NULL", kInvalid, kData,
     [](Problem& t) { t.p.k.dtype = FOVEA_I8, t.p.k_scale = fovea_tensor_bhs(nullptr, FOVEA_F32, 0, 0); }},
    {"k_scale.stride_row", kInvalid, kAlways,
     [](Problem& t) {
       t.p.k.dtype = FOVEA_I8, t.p.k_scale = fovea_tensor_bhs(t.memory.sinks, FOVEA_F32, 0, 0);
       t.p.k_scale.stride_row = INT64_MAX;
     }},
    {"out overlaps v_scale", kInvalid, kData,
     [](Problem& t) { t.p.v.dtype = FOVEA_I8, t.p.v_scale = fovea_tensor_bhs(t.memory.out, FOVEA_F32, 0, 0); }},
    {"dropout_p", kUnsupported, kAlways, [](Problem& t) { t.p.dropout_p = 0.1f; }},
    {"dropout_p", kUnsupported, kAlways, [](Problem& t) { t.p.dropout_p = kNan; }},
    {"reserved is set", kUnsupported, kAlways, [](Problem& t) { t.p.reserved = 1; }},
    {"dropout_seed", kUnsupported, kAlways, [](Problem& t) { t.p.dropout_seed = 1; }},
    {"dropout_offset", kUnsupported, kAlways, [](Problem& t) { t.p.dropout_offset = 1; }},

    // Overlap of an output with itself.
    {"out.stride_batch = 0", kInvalid, kData, [](Problem& t) { t.p.out.stride_batch = 0; }},
    {"out.stride_head = 0", kInvalid, kData, [](Problem& t) { t.p.out.stride_head = 0; }},
    {"lse.stride_row = 0", kInvalid, kData, [](Problem& t) { t.p.lse.stride_row = 0; }},
    {"scores.stride_col = 0", kInvalid, kData, [](Problem& t) { t.GiveScores(), t.p.scores.stride_col = 0; }},
    {"out overlaps itself", kInvalid, kData, [](Problem& t) { t.p.out.stride_row = kVHeadDim - 1; }},
    {"out overlaps itself", kInvalid, kData, [](Problem& t) { t.p.out.stride_head = -t.p.out.stride_row; }},
    {"lse overlaps itself", kInvalid, kData,  // only as 7 - 2 * 5 + 3 = 0
     [](Problem& t) {
       t.p.lse.data = t.memory.shared;
       t.p.lse.stride_batch = 7, t.p.lse.stride_head = 5, t.p.lse.stride_row = 3;
     }},
    {"scores overlaps itself", kInvalid, kData,
     [](Problem& t) { t.GiveScores(), t.p.scores.stride_row = 1, t.p.scores.stride_col = 2; }},

    // Overlap with another tensor or array.
    {"out overlaps q", kInvalid, kData, [](Problem& t) { t.p.out.data = t.memory.q; }},
    {"out overlaps k", kInvalid, kData, [](Problem& t) { t.p.k.data = t.memory.out; }},
    {"out overlaps v", kInvalid, kData,
     [](Problem& t) { t.p.v.data = t.memory.out + kBatch * kQHeads * kQLen * kVHeadDim - 1; }},
    {"out overlaps lse", kInvalid, kData, [](Problem& t) { t.p.lse.data = t.memory.out + 1; }},
    {"out overlaps mask", kInvalid, kData,
     [](Problem& t) { t.GiveMask(), t.p.mask.data = reinterpret_cast<uint8_t*>(t.memory.out + 7) + 3; }},
    {"lse overlaps bias", kInvalid, kData, [](Problem& t) { t.GiveBias(), t.p.lse.data = t.memory.bias; }},
    {"lse overlaps scores", kInvalid, kData, [](Problem& t) { t.GiveScores(), t.p.lse.data = t.memory.scores; }},
    {"scores overlaps q", kInvalid, kData, [](Problem& t) { t.GiveScores(), t.p.scores.data = t.memory.q; }},
    {"lse overlaps alibi_slopes", kInvalid, kData, [](Problem& t) { t.GiveSlopes(), t.p.lse.data = t.memory.slopes; }},
    {"out overlaps sinks", kInvalid, kData, [](Problem& t) { t.p.sinks = t.memory.out + 5; }},
    {"lse overlaps q_lens", kInvalid, kData, [](Problem& t) { t.p.q_lens = reinterpret_cast<int32_t*>(t.memory.lse); }},
    {"lse overlaps kv_lens", kInvalid, kData,
     [](Problem& t) { t.p.kv_lens = reinterpret_cast<int32_t*>(t.memory.lse + 1); }},
    {"out overlaps q_offsets", kInvalid, kData,
     [](Problem& t) { t.p.q_offsets = reinterpret_cast<int32_t*>(t.memory.out); }},
    {"out overlaps mask_offsets", kInvalid, kData,
     [](Problem& t) { t.p.mask_offsets = reinterpret_cast<int32_t*>(t.memory.out); }},
    {"out overlaps cu_seqlens_q", kInvalid, kData,
     [](Problem& t) { t.PackQueries({}, 6), t.p.cu_seqlens_q = reinterpret_cast<int32_t*>(t.memory.out); }},
    {"lse overlaps cu_seqlens_kv", kInvalid, kData,
     [](Problem& t) { t.PackKeys({}, 6), t.p.cu_seqlens_kv = reinterpret_cast<int32_t*>(t.memory.lse); }},
};

// [batch][rows][4][heads][dim]: q, k, v and out as the four slices of one buffer.
void Interleave(Problem& t, int64_t out_shift) {
  t.p.num_kv_heads = kQHeads;
  t.p.kv_len = kQLen;
  t.p.v_head_dim = kHeadDim;
  fovea_tensor* const slices[] = {&t.p.q, &t.p.k, &t.p.v, &t.p.out};
  for (int64_t i = 0; i < 4; ++i) {
    *slices[i] = fovea_tensor_bshd(t.memory.shared + i * kQHeads * kHeadDim, FOVEA_F32, kQHeads, kQLen, kHeadDim);
    slices[i]->stride_row *= 4;
    slices[i]->stride_batch *= 4;
  }
  t.p.out.data = static_cast<float*>(t.p.out.data) + out_shift;
}

const struct {
  const char* what;
  void (*change)(Problem&);
} kAccepted[] = {
    {"nothing changed", [](Problem&) {}},
    {"params of a later version, new fields 0", [](Problem& t) { t.Lengthen(0); }},
    {"v_head_dim by default",
     [](Problem& t) {
       t.p.v_head_dim = 0;
       t.p.head_dim = kVHeadDim;
     }},
    {"scale 0 and negative windows' default", [](Problem& t) { t.p.scale = 0, t.p.window_left = -1; }},
    {"a window past everything", [](Problem& t) { t.p.window_left = t.p.window_right = kMax; }},
    {"stride_col 0 means contiguous",
     [](Problem& t) { t.p.q.stride_col = t.p.k.stride_col = t.p.v.stride_col = t.p.out.stride_col = 0; }},
    {"broadcast inputs",
     [](Problem& t) { t.p.q.stride_batch = t.p.k.stride_head = t.p.v.stride_row = t.p.v.stride_batch = 0; }},
    {"k and v share memory", [](Problem& t) { t.p.v.data = t.p.k.data; }},
    {"strides that no index uses",
     [](Problem& t) {
       t.p.batch = 1;
       t.p.q.stride_batch = t.p.out.stride_batch = kMax;
       t.p.lse.stride_batch = 0;
     }},
    {"stride_batch of packed tensors",
     [](Problem& t) {
       t.PackQueries({0, 2, 6}, 6);
       t.PackKeys({0, 5, 5}, 10);
       t.p.q.stride_batch = t.p.k.stride_batch = kMax;
       t.p.out.stride_batch = t.p.lse.stride_batch = 0;
     }},
    {"no queries, no data", [](Problem& t) { t.p.q_len = 0, t.p.q.data = t.p.out.data = t.p.lse.data = nullptr; }},
    {"no keys, no data", [](Problem& t) { t.p.kv_len = 0, t.p.k.data = t.p.v.data = nullptr; }},
    {"no queries, overlap", [](Problem& t) { t.p.q_len = 0, t.p.out.data = t.p.q.data; }},
    {"all sequences empty", [](Problem& t) { t.PackQueries({0, 0, 0}, 0), t.PackKeys({0, 0, 0}, 0); }},
    {"the outermost positions", [](Problem& t) { t.p.q_offset = (int64_t{1} << 30) - kQLen; }},
    {"negative strides",
     [](Problem& t) {
       t.p.out.data = t.memory.out + (kBatch * kQHeads * kQLen - 1) * kVHeadDim;
       t.p.out.stride_batch *= -1, t.p.out.stride_head *= -1, t.p.out.stride_row *= -1;
     }},
    {"scores transposed", [](Problem& t) { t.GiveScores(), t.p.scores.stride_row = 1, t.p.scores.stride_col = kQLen; }},
    {"mask broadcast over all but keys",
     [](Problem& t) { t.GiveMask(), t.p.mask.stride_batch = t.p.mask.stride_head = t.p.mask.stride_row = 0; }},
    {"pages", [](Problem& t) { t.PageKeys(); }},
    {"pages, all sequences of one table", [](Problem& t) { t.PageKeys(), t.p.block_table_stride = 0; }},
    {"pages, an entry past kv_lens",
     [](Problem& t) {
       static const int32_t lens[] = {2, 5};
       t.PageKeys(), t.p.kv_lens = lens, t.memory.array[1] = -1, t.memory.array[2] = 99;
     }},
    {"one page",
     [](Problem& t) {
       t.PageKeys(), t.p.num_pages = 1, t.p.page_size = 5, t.p.block_table_stride = 0, t.p.k.stride_batch = kMax;
     }},
    {"positions of both sides",
     [](Problem& t) { t.p.q_positions = t.p.kv_positions = t.Array({0, 7, (1 << 30) - 1, 3, -1, 1}); }},
    {"packed positions", [](Problem& t) { t.PackQueries({0, 2, 3}, 3), t.p.q_positions = t.memory.array; }},
    {"slopes shared by the batch", [](Problem& t) { t.GiveSlopes(), t.p.alibi_stride_batch = 0; }},
    {"a mask of more columns than keys",
     [](Problem& t) {
       t.GiveMask(), t.p.mask.stride_batch = t.p.mask.stride_head = t.p.mask.stride_row = 0;
       t.p.mask_kv_len = 100;
     }},
    {"q, k, v and out interleaved in one buffer", [](Problem& t) { Interleave(t, 0); }},
    {"out in the gaps of lse and the other way",
     [](Problem& t) {
       t.p.v_head_dim = 1;
       t.p.out.data = t.memory.shared;
       t.p.lse.data = t.memory.shared + 1;
       t.p.out.stride_row = t.p.lse.stride_row = 2;
       t.p.out.stride_head = t.p.lse.stride_head = 2 * kQLen;
       t.p.out.stride_batch = t.p.lse.stride_batch = 2 * kQLen * kQHeads;
     }},
};

bool Contains(const char* text, const std::string& part) { return std::string(text).find(part) != std::string::npos; }

TEST_SUITE("once") {
  TEST_CASE("validate: every refused argument has its status and names its field, and nothing is written") {
    for (const Case& c : kRefused) {
      CAPTURE(std::string(c.text));
      Problem t;
      c.change(t);
      const bool exec_is_right = std::string(c.text).find("exec") == std::string::npos;
      std::vector<unsigned char> before(sizeof t.memory);
      std::memcpy(before.data(), &t.memory, sizeof t.memory);
      fovea_attention_info info;
      REQUIRE(fovea_attention_info_init(&info, sizeof info) == FOVEA_OK);

      CHECK(fovea_attention_forward(t.params, &t.exec) == c.status);
      CHECK_MESSAGE(Contains(fovea_last_error(), c.text), fovea_last_error());
      if (exec_is_right) CHECK(Contains(t.text, c.text));
      CHECK(fovea_attention_describe(t.params, &t.exec, &info) == c.status);
      CHECK_MESSAGE(Contains(fovea_last_error(), c.text), fovea_last_error());
      const fovea_status query = fovea_attention_workspace_size(t.params, &t.exec, &t.memory.bytes);
      CHECK(query == (c.found == kAlways ? c.status : FOVEA_OK));
      if (query == FOVEA_OK) t.memory.bytes = 0;
      CHECK(std::memcmp(before.data(), &t.memory, sizeof t.memory) == 0);
    }
  }

  TEST_CASE("validate: legal arguments at the edge of what is refused are accepted") {
    for (const auto& c : kAccepted) {
      CAPTURE(std::string(c.what));
      Problem t;
      c.change(t);
      size_t bytes = 0;
      CHECK(fovea_attention_workspace_size(t.params, &t.exec, &bytes) == FOVEA_OK);
      CHECK_MESSAGE(fovea_attention_forward(t.params, &t.exec) == FOVEA_OK, fovea_last_error());
      CHECK(t.text[0] == '\0');
      CHECK(fovea_attention_forward(t.params, nullptr) == FOVEA_OK);
    }
  }

  TEST_CASE("validate: an output one element off its slice of an interleaved buffer is refused") {
    for (const int64_t shift : {-1, 1}) {
      Problem t;
      Interleave(t, shift);
      CHECK(fovea_attention_forward(&t.p, &t.exec) == FOVEA_ERR_INVALID_ARGUMENT);
      CHECK_MESSAGE(Contains(fovea_last_error(), shift < 0 ? "out overlaps v" : "out overlaps q"), fovea_last_error());
    }
  }

  TEST_CASE("validate: a workspace query needs no data") {
    Problem t;
    t.GiveScores(), t.GiveMask(), t.GiveBias();
    for (fovea_tensor* x : {&t.p.q, &t.p.k, &t.p.v, &t.p.out, &t.p.lse, &t.p.scores, &t.p.mask, &t.p.bias}) {
      x->data = nullptr;
    }
    size_t bytes = 0;
    CHECK(fovea_attention_workspace_size(&t.p, nullptr, &bytes) == FOVEA_OK);
    CHECK(fovea_attention_workspace_size(&t.p, nullptr, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(Contains(fovea_last_error(), "bytes"));
  }

  // The overlap checks against all pairs of bytes: out, lse and mask in one buffer, in layouts drawn at random.
  TEST_CASE("validate: overlap is found exactly where two tensors, or two indices of an output, share a byte") {
    struct Bytes {
      std::set<intptr_t> all;
      bool overlaps_itself = false;
    };
    const auto draw = [](Rng* rng, Problem* t, fovea_dtype dtype, int64_t cols, bool strided_columns) {
      const int64_t largest = rng->Pick({4, 30, 200});
      fovea_tensor x = fovea_tensor_bhsd(t->memory.shared + 2048, dtype, 1, 1, 1);
      const int64_t shift = rng->Int(-40, 40);
      x.data = dtype == FOVEA_U8 ? static_cast<void*>(static_cast<uint8_t*>(x.data) + shift)
                                 : static_cast<void*>(static_cast<float*>(x.data) + shift / 4);
      for (int64_t* stride : {&x.stride_batch, &x.stride_head, &x.stride_row}) {
        *stride = rng->Chance(50) ? cols * rng->Int(-20, 20) : rng->Int(-largest, largest);
      }
      if (strided_columns) x.stride_col = rng->Int(-largest, largest);
      return x;
    };
    const auto bytes_of = [](const Problem& t, const fovea_tensor& x, int64_t cols) {
      Bytes bytes;
      std::set<int64_t> elements;
      const int64_t size = x.dtype == FOVEA_U8 ? 1 : x.dtype == FOVEA_F32 ? 4 : 2;
      const intptr_t base = reinterpret_cast<intptr_t>(x.data);
      for (int64_t b = 0; b < t.p.batch; ++b) {
        for (int64_t h = 0; h < t.p.num_q_heads; ++h) {
          for (int64_t i = 0; i < t.p.q_len; ++i) {
            for (int64_t c = 0; c < cols; ++c) {
              const int64_t at = b * x.stride_batch + h * x.stride_head + i * x.stride_row + c * x.stride_col;
              bytes.overlaps_itself |= !elements.insert(at).second;
              for (int64_t k = 0; k < size; ++k) bytes.all.insert(base + at * size + k);
            }
          }
        }
      }
      return bytes;
    };
    const auto meet = [](const Bytes& a, const Bytes& b) {
      for (const intptr_t byte : a.all) {
        if (b.all.count(byte) != 0) return true;
      }
      return false;
    };
    int refused = 0, accepted = 0;
    for (uint64_t seed = 0; seed < 4000; ++seed) {
      CAPTURE(seed);
      Rng rng(seed);
      Problem t;
      t.p.batch = rng.Int(1, 2);
      t.p.num_q_heads = kKvHeads * rng.Int(1, 2);
      t.p.q_len = rng.Int(1, 3);
      t.p.kv_len = rng.Int(1, 4);
      t.p.v_head_dim = rng.Int(1, 4);
      t.p.out = draw(&rng, &t, rng.Chance(70) ? FOVEA_F32 : FOVEA_BF16, t.p.v_head_dim, false);
      t.p.lse = draw(&rng, &t, FOVEA_F32, 1, false);
      t.p.mask = draw(&rng, &t, FOVEA_U8, t.p.kv_len, true);
      const Bytes out = bytes_of(t, t.p.out, t.p.v_head_dim), lse = bytes_of(t, t.p.lse, 1);
      const Bytes mask = bytes_of(t, t.p.mask, t.p.kv_len);
      const bool bad =
          out.overlaps_itself || lse.overlaps_itself || meet(out, lse) || meet(out, mask) || meet(lse, mask);
      REQUIRE(fovea_attention_forward(&t.p, &t.exec) == (bad ? FOVEA_ERR_INVALID_ARGUMENT : FOVEA_OK));
      (bad ? refused : accepted)++;
    }
    CHECK(refused > 400);
    CHECK(accepted > 300);
  }

  TEST_CASE("validate: merge") {
    constexpr int64_t kHeads = 2, kRows = 3, kCols = 4, kOut = kBatch * kHeads * kRows * kCols;
    constexpr int64_t kLse = kBatch * kHeads * kRows;
    struct Merge {
      float outs[3][kOut], lses[3][kLse], out_data[kOut], lse_data[kLse];
      fovea_tensor parts[3], part_lses[3], out, lse;
      int32_t n = 3;
      int64_t batch = kBatch, num_heads = kHeads, rows = kRows, v_head_dim = kCols;
      const fovea_tensor *outs_passed = parts, *lses_passed = part_lses, *out_passed = &out, *lse_passed = &lse;
      fovea_exec exec;
    };
    const struct {
      const char* text;  // "" where it is legal
      fovea_status status;
      void (*change)(Merge&);
    } cases[] = {
        {"", FOVEA_OK, [](Merge&) {}},
        {"", FOVEA_OK, [](Merge& m) { m.lse_passed = nullptr; }},
        {"", FOVEA_OK, [](Merge& m) { m.n = 1; }},
        {"", FOVEA_OK, [](Merge& m) { m.out = m.parts[0], m.lse = m.part_lses[0]; }},
        {"", FOVEA_OK, [](Merge& m) { m.parts[1] = m.parts[0]; }},
        {"", FOVEA_OK, [](Merge& m) { m.rows = 0, m.out.data = m.parts[2].data = nullptr; }},
        {"n = 0", kInvalid, [](Merge& m) { m.n = 0; }},
        {"n = -1", kInvalid, [](Merge& m) { m.n = -1; }},
        {"outs = NULL", kInvalid, [](Merge& m) { m.outs_passed = nullptr; }},
        {"lses = NULL", kInvalid, [](Merge& m) { m.lses_passed = nullptr; }},
        {"out = NULL", kInvalid, [](Merge& m) { m.out_passed = nullptr; }},
        {"batch = 0", kInvalid, [](Merge& m) { m.batch = 0; }},
        {"num_heads = -1", kInvalid, [](Merge& m) { m.num_heads = -1; }},
        {"rows = -1", kInvalid, [](Merge& m) { m.rows = -1; }},
        {"v_head_dim = 0", kInvalid, [](Merge& m) { m.v_head_dim = 0; }},
        {"batch * num_heads", kInvalid, [](Merge& m) { m.batch = m.num_heads = int64_t{1} << 40; }},
        {"", FOVEA_OK, [](Merge& m) { m.out.dtype = FOVEA_BF16, m.parts[2].dtype = FOVEA_F16; }},
        {"out.dtype = F64", kUnsupported, [](Merge& m) { m.out.dtype = FOVEA_F64; }},
        {"lses[1].dtype = BF16", kUnsupported, [](Merge& m) { m.part_lses[1].dtype = FOVEA_BF16; }},
        {"out overlaps outs[0]", kInvalid, [](Merge& m) { m.out = m.parts[0], m.out.dtype = FOVEA_F16; }},
        {"lse.dtype = NONE", kInvalid, [](Merge& m) { m.lse.dtype = FOVEA_DTYPE_NONE; }},
        {"outs[2].dtype = I8", kUnsupported, [](Merge& m) { m.parts[2].dtype = FOVEA_I8; }},
        {"lses[1].data = NULL", kInvalid, [](Merge& m) { m.part_lses[1].data = nullptr; }},
        {"outs[1].stride_col = 2", kInvalid, [](Merge& m) { m.parts[1].stride_col = 2; }},
        {"out.stride_row = 0", kInvalid, [](Merge& m) { m.out.stride_row = 0; }},
        {"lse overlaps itself", kInvalid, [](Merge& m) { m.lse.stride_head = 1; }},
        {"out overlaps lse", kInvalid, [](Merge& m) { m.lse.data = m.out_data; }},
        {"out overlaps outs[0]", kInvalid, [](Merge& m) { m.parts[0].data = m.out_data, m.parts[0].stride_row = 0; }},
        {"out overlaps outs[1]", kInvalid, [](Merge& m) { m.out = m.parts[1]; }},
        {"out overlaps outs[1]", kInvalid, [](Merge& m) { m.out = m.parts[1] = m.parts[0]; }},
        {"lse overlaps lses[2]", kInvalid, [](Merge& m) { m.part_lses[2].data = m.lse_data + 3; }},
        {"out overlaps lses[0]", kInvalid, [](Merge& m) { m.part_lses[0].data = m.out_data; }},
        {"lse overlaps outs[1]", kInvalid, [](Merge& m) { m.parts[1].data = m.lse_data; }},
        {"exec.num_threads = -1", kInvalid, [](Merge& m) { m.exec.num_threads = -1; }},
    };
    for (const auto& c : cases) {
      CAPTURE(std::string(c.text));
      Merge m;
      std::memset(m.outs, 0, sizeof m.outs);
      std::memset(m.lses, 0, sizeof m.lses);
      std::fill_n(m.out_data, kOut, 7.0f);
      std::fill_n(m.lse_data, kLse, 7.0f);
      REQUIRE(fovea_exec_init(&m.exec, sizeof m.exec) == FOVEA_OK);
      for (int i = 0; i < 3; ++i) {
        m.parts[i] = fovea_tensor_bhsd(m.outs[i], FOVEA_F32, kHeads, kRows, kCols);
        m.part_lses[i] = fovea_tensor_bhs(m.lses[i], FOVEA_F32, kHeads, kRows);
      }
      m.out = fovea_tensor_bhsd(m.out_data, FOVEA_F32, kHeads, kRows, kCols);
      m.lse = fovea_tensor_bhs(m.lse_data, FOVEA_F32, kHeads, kRows);
      c.change(m);
      const fovea_status status = fovea_attention_merge(m.n, m.outs_passed, m.lses_passed, m.batch, m.num_heads, m.rows,
                                                        m.v_head_dim, m.out_passed, m.lse_passed, &m.exec);
      CHECK_MESSAGE(status == c.status, fovea_last_error());
      if (c.status == FOVEA_OK) continue;
      CHECK_MESSAGE(Contains(fovea_last_error(), c.text), fovea_last_error());
      for (const float x : m.out_data) CHECK(x == 7.0f);
      for (const float x : m.lse_data) CHECK(x == 7.0f);
    }
  }

  TEST_CASE("last_error: a thread's own text, kept over success") {
    Problem t;
    t.p.causal = 5;
    REQUIRE(fovea_attention_forward(&t.p, &t.exec) == FOVEA_ERR_INVALID_ARGUMENT);
    std::string first, after;
    std::thread([&] {
      first = fovea_last_error();
      Problem other;
      other.p.batch = 0;
      fovea_attention_forward(&other.p, &other.exec);
      after = fovea_last_error();
    }).join();
    CHECK(first.empty());
    CHECK(Contains(after.c_str(), "batch = 0"));
    t.p.causal = 1;
    CHECK(fovea_attention_forward(&t.p, &t.exec) == FOVEA_OK);
    CHECK(Contains(fovea_last_error(), "causal = 5"));
  }

  TEST_CASE("init: zeroes the caller's size, sets defaults where they fit") {
    unsigned char bytes[sizeof(fovea_attention_params) + 40];
    std::memset(bytes, 0xff, sizeof bytes);
    auto* p = reinterpret_cast<fovea_attention_params*>(bytes);
    REQUIRE(fovea_attention_params_init(p, sizeof *p + 32) == FOVEA_OK);
    CHECK(p->struct_size == sizeof *p + 32);
    CHECK(std::isnan(p->scale));
    CHECK(p->window_left == -1);
    CHECK(p->window_right == -1);
    CHECK(p->v_head_dim == 0);
    for (size_t i = 0; i < 40; ++i) CHECK(bytes[sizeof *p + i] == (i < 32 ? 0 : 0xff));

    std::memset(bytes, 0xff, sizeof bytes);
    const size_t half = offsetof(fovea_attention_params, window_right) + 4;
    REQUIRE(fovea_attention_params_init(p, half) == FOVEA_OK);
    CHECK(p->window_left == -1);
    for (size_t i = half - 4; i < sizeof bytes; ++i) CHECK(bytes[i] == (i < half ? 0 : 0xff));

    CHECK(fovea_attention_params_init(nullptr, sizeof *p) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(Contains(fovea_last_error(), "fovea_attention_params_init"));
    CHECK(fovea_attention_params_init(p, 7) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(Contains(fovea_last_error(), "size = 7"));
    fovea_exec exec;
    CHECK(fovea_exec_init(&exec, sizeof exec) == FOVEA_OK);
    CHECK(exec.struct_size == sizeof exec);
    CHECK(fovea_exec_init(nullptr, sizeof exec) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(fovea_attention_info_init(nullptr, 8) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(fovea_target_info_init(nullptr, 8) == FOVEA_ERR_INVALID_ARGUMENT);
  }

  TEST_CASE("tensor layouts") {
    float x = 0;
    const fovea_tensor a = fovea_tensor_bhsd(&x, FOVEA_F32, 3, 5, 7);
    CHECK(a.data == &x);
    CHECK(a.dtype == FOVEA_F32);
    CHECK(a.stride_batch == 105);
    CHECK(a.stride_head == 35);
    CHECK(a.stride_row == 7);
    CHECK(a.stride_col == 1);
    const fovea_tensor b = fovea_tensor_bshd(&x, FOVEA_U8, 3, 5, 7);
    CHECK(b.dtype == FOVEA_U8);
    CHECK(b.stride_batch == 105);
    CHECK(b.stride_head == 7);
    CHECK(b.stride_row == 21);
    const fovea_tensor c = fovea_tensor_bhs(&x, FOVEA_F32, 3, 5);
    CHECK(c.stride_batch == 15);
    CHECK(c.stride_head == 5);
    CHECK(c.stride_row == 1);
    CHECK(fovea_tensor_bhsd(&x, FOVEA_F32, kMax, kMax, 7).stride_batch == kMax);  // saturates, and is refused later
  }

  TEST_CASE("names and versions") {
    CHECK(std::string(fovea_status_str(FOVEA_OK)) == "FOVEA_OK");
    CHECK(std::string(fovea_status_str(FOVEA_ERR_WORKSPACE_TOO_SMALL)) == "FOVEA_ERR_WORKSPACE_TOO_SMALL");
    CHECK(std::string(fovea_status_str(6)) == "unknown fovea_status");
    CHECK(std::string(fovea_dtype_str(FOVEA_DTYPE_NONE)) == "NONE");
    CHECK(std::string(fovea_dtype_str(FOVEA_Q8_0)) == "Q8_0");
    CHECK(std::string(fovea_dtype_str(-1)) == "unknown fovea_dtype");
    CHECK(std::string(fovea_q_align_str(FOVEA_Q_ALIGN_BOTTOM_RIGHT)) == "FOVEA_Q_ALIGN_BOTTOM_RIGHT");
    CHECK(std::string(fovea_q_align_str(2)) == "unknown fovea_q_align");
    CHECK(std::string(fovea_mask_align_str(FOVEA_MASK_ALIGN_RIGHT)) == "FOVEA_MASK_ALIGN_RIGHT");
    CHECK(std::string(fovea_mask_align_str(2)) == "unknown fovea_mask_align");
    CHECK(std::string(fovea_scores_stage_str(FOVEA_SCORES_SOFT_CAPPED)) == "FOVEA_SCORES_SOFT_CAPPED");
    CHECK(std::string(fovea_scores_stage_str(5)) == "unknown fovea_scores_stage");
    CHECK(fovea_version() == FOVEA_VERSION);
    CHECK(std::string(fovea_version_str()) == FOVEA_VERSION_STRING);
  }
}

}  // namespace
