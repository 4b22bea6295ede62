// A fuzz target over what a layer is made of: fovea_linear, fovea_rope, fovea_kv_append and fovea_mha_forward. Bytes become params, mostly valid,
// over small real buffers, one field spoiled now and then. Calls must return a status, leave a text where they fail, and write inside their outputs
// only, and there only if they succeed. libFuzzer: build-fuzz/tests/fuzz/fuzz_layer; without it fuzz_test.cc feeds seeded random bytes.
#include <array>
#include <cstring>
#include <functional>
#include <vector>

#include "fovea/fovea.h"
#include "tests/fuzz/bytes.h"

// NULL, or what was wrong.
const char* FuzzLayer(const uint8_t* data, size_t size);

namespace {

using fovea_test::Bytes;
using fovea_test::Wide;

constexpr int64_t kMaxBatch = 3, kMaxLength = 20, kMaxHeads = 4, kMaxDim = 20, kMaxPages = 8, kArray = 160;  // of any array
constexpr int64_t kRoom = 1 << 14;  // elements on each side of a tensor's first
constexpr int kOutputs = 8;
constexpr unsigned char kFill = 0x3c;  // a small number in every type

struct Arenas {
  Arenas() {
    uint32_t state = 1;
    for (const fovea_dtype dtype : {FOVEA_F32, FOVEA_BF16, FOVEA_F16}) {
      inputs[dtype].resize(2 * kRoom);
      fovea_test::FillFloats(dtype, 2 * kRoom, &state, inputs[dtype].data());
    }
    for (auto& output : outputs) output.assign(2 * kRoom * sizeof(float), kFill);
  }
  std::vector<float> inputs[FOVEA_F16 + 1];  // by dtype; inputs may overlap one another
  std::vector<unsigned char> outputs[kOutputs];
};

// A call that is being drawn: its tensors and arrays with the extents that they must have, and the numbers that may be spoiled.
class Draw {
 public:
  using Extents = std::array<int64_t, 4>;

  Draw(Bytes* bytes, Arenas* arenas) : in(*bytes), arenas_(*arenas) {}

  fovea_dtype Float() { return in.Chance(170) ? FOVEA_F32 : in.Chance(128) ? FOVEA_BF16 : FOVEA_F16; }
  fovea_dtype FloatOrI8() { return in.Chance(60) ? FOVEA_I8 : Float(); }

  void Input(fovea_tensor* t, fovea_dtype dtype, std::function<Extents()> extents) {
    Tensor(t, dtype, arenas_.inputs[dtype].data() + kRoom * fovea::DtypeBytes(dtype) / int64_t{sizeof(float)}, -1, std::move(extents));
  }
  void Output(fovea_tensor* t, fovea_dtype dtype, std::function<Extents()> extents) {
    Tensor(t, dtype, arenas_.outputs[num_outputs_].data() + kRoom * fovea::DtypeBytes(dtype), num_outputs_, std::move(extents));
    ++num_outputs_;
  }
  void Array(const int32_t** p, const int32_t* data, std::function<Wide()> needed) {
    *p = data;
    arrays_.push_back({p, std::move(needed)});
  }
  void Number(int64_t* p) { numbers_.push_back(p); }
  void Number(int32_t* p) { small_numbers_.push_back(p); }

  // Spoils a field by chance; then, where something would lie outside its memory, takes all memory away: such a call must be refused, or do nothing.
  void Finish() {
    if (in.Byte() >= 192) Spoil();  // not where the bytes have run out
    bool fits = true;
    for (const Slot& s : slots_) {
      const Extents e = s.extents();
      fits &= fovea_test::Inside(*s.t, e[0], e[1], e[2], e[3], 1, kRoom);
    }
    for (const auto& a : arrays_) fits &= a.needed() <= kArray;
    if (fits) return;
    for (const Slot& s : slots_) s.t->data = nullptr;
    for (const auto& a : arrays_) *a.p = nullptr;
  }

  // After a call: NULL, or that memory has changed which had to stay. Restores it.
  const char* Check(bool succeeded) {
    bool outside = false;
    for (const Slot& s : slots_) {
      if (s.output < 0) continue;
      std::vector<unsigned char>& arena = arenas_.outputs[s.output];
      const int64_t bytes = fovea::DtypeBytes(s.t->dtype);
      const Extents e = s.extents();
      const auto element = [&](int64_t b, int64_t h, int64_t i) {
        const int64_t at = b * s.t->stride_batch + h * s.t->stride_head + i * s.t->stride_row;
        std::memset(static_cast<char*>(s.t->data) + at * bytes, kFill, static_cast<size_t>(e[3] * bytes));
      };
      for (int64_t b = 0; succeeded && s.t->data && b < e[0]; ++b) {
        for (int64_t h = 0; h < e[1]; ++h) {
          for (int64_t i = 0; i < e[2]; ++i) element(b, h, i);
        }
      }
      outside |= arena[0] != kFill || std::memcmp(arena.data(), arena.data() + 1, arena.size() - 1) != 0;
      if (outside) arena.assign(arena.size(), kFill);
    }
    return outside ? "wrote outside its outputs" : nullptr;
  }

  Bytes& in;

 private:
  struct Slot {
    fovea_tensor* t;
    int output;  // -1: an input
    std::function<Extents()> extents;
  };
  struct ArraySlot {
    const int32_t** p;
    std::function<Wide()> needed;
  };

  void Tensor(fovea_tensor* t, fovea_dtype dtype, void* base, int output, std::function<Extents()> extents) {
    const Extents e = extents();
    *t = in.Chance(128) ? fovea_tensor_bhsd(base, dtype, e[1], e[2], e[3]) : fovea_tensor_bshd(base, dtype, e[1], e[2], e[3]);
    if (in.Chance(20)) t->stride_row = -t->stride_row;
    if (output < 0 && in.Chance(10)) t->stride_head = 0;
    if (in.Chance(10)) t->stride_batch += in.Int(0, 9);
    slots_.push_back({t, output, std::move(extents)});
  }

  void Spoil() {
    if (in.Chance(128) && !slots_.empty()) {
      fovea_tensor* const t = slots_[static_cast<size_t>(in.Int(0, static_cast<int64_t>(slots_.size()) - 1))].t;
      int64_t* const strides[] = {&t->stride_batch, &t->stride_head, &t->stride_row, &t->stride_col, &t->reserved1};
      const int64_t which = in.Int(0, 6);
      if (which < 5) {
        *strides[which] = in.Odd();
      } else if (which == 5) {
        t->dtype = static_cast<fovea_dtype>(in.Int(FOVEA_U8, FOVEA_Q8_0 + 2));  // no type of floats, whose arena holds others
        if (t->dtype == FOVEA_I8) t->dtype = FOVEA_U8;
      } else {
        t->data = nullptr;
      }
    } else if (in.Chance(200) && !numbers_.empty()) {
      *numbers_[static_cast<size_t>(in.Int(0, static_cast<int64_t>(numbers_.size()) - 1))] = in.Chance(128) ? in.Odd() : in.Int(0, 50);
    } else if (!small_numbers_.empty()) {
      *small_numbers_[static_cast<size_t>(in.Int(0, static_cast<int64_t>(small_numbers_.size()) - 1))] = static_cast<int32_t>(in.Odd());
    }
  }

  Arenas& arenas_;
  int num_outputs_ = 0;
  std::vector<Slot> slots_;
  std::vector<ArraySlot> arrays_;
  std::vector<int64_t*> numbers_;
  std::vector<int32_t*> small_numbers_;
};

// Small arrays of a call; any of their entries may be odd.
struct Numbers {
  int32_t values[kArray];
  void Fill(Bytes* in, int64_t low, int64_t high, bool cumulative = false) {
    uint32_t state = in->Byte();
    for (int64_t i = 0; i < kArray; ++i) {
      state = state * 1664525u + 1013904223u;
      values[i] = static_cast<int32_t>(low + static_cast<int64_t>(state >> 8) % (high - low + 1));
      if (cumulative) values[i] = i == 0 ? 0 : i <= kMaxBatch ? values[i - 1] + values[i] : values[i - 1];
    }
    if (in->Chance(10)) values[in->Int(0, kMaxBatch)] = static_cast<int32_t>(in->Odd());
  }
};

fovea_exec Exec(Bytes* in) {
  fovea_exec exec;
  fovea_exec_init(&exec, sizeof exec);
  exec.num_threads = 1;
  exec.flags = in->Chance(60) ? FOVEA_BATCH_INVARIANT : 0;
  return exec;
}

// Lengths of new rows: the whole of q_len, q_lens or cu_seqlens_q.
template <class Params>
void DrawLengths(Draw* d, Numbers* lens, Params* p, const int32_t** p_lens, const int32_t** p_cu, int64_t len, int64_t* total) {
  if (!d->in.Chance(90)) return;
  const bool packed = d->in.Chance(128);
  lens->Fill(&d->in, 0, len, packed);
  d->Array(packed ? p_cu : p_lens, lens->values, [p, packed] { return Wide{p->batch} + packed; });
  if (packed) *total = lens->values[p->batch] >= 0 && lens->values[p->batch] <= kMaxBatch * kMaxLength ? lens->values[p->batch] : 0;
  d->Number(total);
}

// Entries of an array that has some of each new row, and of one that has some of each sequence: no call reads more.
Wide Entries(int64_t batch, const int32_t* cu, int64_t total, int64_t len, int64_t stride) {
  return batch + (cu ? Wide{total} : Wide{batch} * stride + len);
}
template <class Params>
Wide QEntries(const Params& p, int64_t stride) {
  return Entries(p.batch, p.cu_seqlens_q, p.total_q, p.q_len, stride);
}

// Tables and positions. entries: of an array with this stride.
void DrawRotation(Draw* d, Numbers* positions, fovea_rope_params* r, int64_t head_dim, int64_t batch, int64_t q_len,
                  std::function<Wide(int64_t stride)> entries) {
  Bytes& in = d->in;
  r->num_positions = in.Int(in.Byte() >= 230 ? 0 : 2 * kMaxLength, 3 * kMaxLength);
  r->table_batch = in.Chance(60) ? batch : in.Int(0, 1);
  r->rotary_dim = head_dim % 2 == 0 && in.Byte() >= 128 ? 0 : in.Int(0, head_dim / 2) * 2;
  r->interleaved = in.Chance(128);
  const auto extents = [r, head_dim] { return Draw::Extents{r->table_batch, 1, r->num_positions, (r->rotary_dim ? r->rotary_dim : head_dim) / 2}; };
  d->Input(&r->cos, d->Float(), extents);
  d->Input(&r->sin, d->Float(), extents);
  const int64_t mode = in.Int(0, 5);
  positions->Fill(&in, 0, r->num_positions > kMaxLength ? r->num_positions - kMaxLength : 1);
  if (mode == 0) r->position_offset = in.Int(in.Byte() >= 250 ? -1 : 0, kMaxLength);
  if (mode == 1) d->Array(&r->position_offsets, positions->values, [entries] { return entries(0); });
  if (mode == 2) {
    d->Array(&r->position_ids, positions->values, [r, entries] { return entries(r->position_ids_stride); });
    r->position_ids_stride = in.Chance(60) ? 0 : q_len;
  }
  d->Number(&r->num_positions), d->Number(&r->table_batch), d->Number(&r->rotary_dim), d->Number(&r->position_offset);
  d->Number(&r->position_ids_stride), d->Number(&r->interleaved), d->Number(&r->reserved);
}

// The cache of an append or a layer, and its scales.
template <class Params>
void DrawCache(Draw* d, Numbers* starts, Numbers* table, Params* p, bool k, bool v, int64_t v_dim) {
  Bytes& in = d->in;
  if (in.Chance(128)) {
    p->page_size = in.Int(1, 9), p->num_pages = in.Int(in.Byte() >= 230 ? 0 : 1, kMaxPages);
    p->block_table_stride = in.Byte() >= 230 ? in.Int(0, 9) : 2 * kMaxLength / p->page_size + 1;
    table->Fill(&in, 0, p->num_pages ? p->num_pages - 1 : 0);
    d->Array(&p->block_table, table->values, [p] { return Wide{p->batch} * (p->block_table_stride < 0 ? 0 : p->block_table_stride); });
  } else {
    p->capacity = in.Int(in.Byte() >= 230 ? 0 : 2 * kMaxLength, 2 * kMaxLength);
  }
  const auto rows = [p](int64_t cols) {
    return [p, cols] {
      const bool paged = p->page_size != 0;
      return Draw::Extents{paged ? p->num_pages : p->batch, p->num_kv_heads, paged ? p->page_size : p->capacity, cols ? cols : p->head_dim};
    };
  };
  if (k) d->Output(&p->k_cache, d->FloatOrI8(), rows(0));
  if (v) d->Output(&p->v_cache, d->FloatOrI8(), rows(v_dim));
  if (p->k_cache.dtype == FOVEA_I8) d->Output(&p->k_scale, FOVEA_F32, rows(1));
  if (p->v_cache.dtype == FOVEA_I8) d->Output(&p->v_scale, FOVEA_F32, rows(1));
  if (p->k_cache.dtype == FOVEA_I8 && in.Chance(100)) {
    d->Input(&p->k_channel_scale, FOVEA_F32, [p] { return Draw::Extents{p->batch, p->num_kv_heads, 1, p->head_dim}; });
  }
  if (in.Chance(200)) {
    starts->Fill(&in, 0, kMaxLength);
    d->Array(&p->kv_starts, starts->values, [p] { return Wide{p->batch}; });
  }
  d->Number(&p->capacity), d->Number(&p->page_size), d->Number(&p->num_pages), d->Number(&p->block_table_stride);
}

const char* Judge(Draw* d, fovea_status status) {
  if (const char* what = d->Check(status == FOVEA_OK)) return what;
  return status != FOVEA_OK && fovea_last_error()[0] == '\0' ? "a failing call left no text" : nullptr;
}

// Runs with a workspace of just the size that was asked for, or the library's own.
template <class Params>
const char* Run(Draw* d, const Params& p, fovea_exec exec, fovea_status (*size)(const Params*, const fovea_exec*, size_t*),
                fovea_status (*run)(const Params*, const fovea_exec*)) {
  size_t bytes = 0;
  const fovea_status sized = size(&p, &exec, &bytes);
  std::vector<unsigned char> workspace(sized == FOVEA_OK && bytes < (1 << 24) && d->in.Chance(128) ? bytes : 0);
  if (!workspace.empty()) exec.workspace = workspace.data(), exec.workspace_bytes = workspace.size();
  const fovea_status status = run(&p, &exec);
  if (sized != FOVEA_OK && status == FOVEA_OK) return "a call whose size is refused runs";
  return Judge(d, status);
}

const char* FuzzLinear(Draw* d) {
  fovea_linear_params p;
  fovea_linear_params_init(&p, sizeof p);
  p.tokens = d->in.Int(0, 2 * kMaxLength), p.in_features = d->in.Int(1, d->in.Chance(30) ? 300 : kMaxDim), p.out_features = d->in.Int(1, 2 * kMaxDim);
  d->Output(&p.y, d->Float(), [&p] { return Draw::Extents{1, 1, p.tokens, p.out_features}; });
  d->Input(&p.x, d->Float(), [&p] { return Draw::Extents{1, 1, p.tokens, p.in_features}; });
  d->Input(&p.w, d->Float(), [&p] { return Draw::Extents{1, 1, p.out_features, p.in_features}; });
  if (d->in.Chance(128)) d->Input(&p.bias, d->Float(), [&p] { return Draw::Extents{1, 1, 1, p.out_features}; });
  d->Number(&p.tokens), d->Number(&p.in_features), d->Number(&p.out_features);
  d->Finish();
  return Run(d, p, Exec(&d->in), fovea_linear_workspace_size, fovea_linear);
}

const char* FuzzRope(Draw* d) {
  Bytes& in = d->in;
  Numbers lens, positions;
  fovea_rope_params p;
  fovea_rope_params_init(&p, sizeof p);
  p.batch = in.Int(1, kMaxBatch), p.num_heads = in.Int(1, kMaxHeads), p.q_len = in.Int(0, kMaxLength), p.head_dim = in.Int(1, kMaxDim);
  DrawLengths(d, &lens, &p, &p.q_lens, &p.cu_seqlens_q, p.q_len, &p.total_q);
  const auto extents = [&p] { return Draw::Extents{p.cu_seqlens_q ? 1 : p.batch, p.num_heads, p.cu_seqlens_q ? p.total_q : p.q_len, p.head_dim}; };
  d->Output(&p.out, d->Float(), extents);
  if (in.Chance(60)) {
    p.x = p.out;
  } else {
    d->Input(&p.x, d->Float(), extents);
  }
  DrawRotation(d, &positions, &p, p.head_dim, p.batch, p.q_len, [&p](int64_t stride) { return QEntries(p, stride); });
  const bool in_place = p.x.data == p.out.data;
  d->Number(&p.batch), d->Number(&p.num_heads), d->Number(&p.q_len), d->Number(&p.head_dim);
  d->Finish();
  if (in_place) p.x = p.out;
  const fovea_exec exec = Exec(&in);
  return Judge(d, fovea_rope(&p, &exec));
}

const char* FuzzKvAppend(Draw* d) {
  Bytes& in = d->in;
  Numbers lens, positions, starts, table;
  fovea_kv_append_params p;
  fovea_rope_params rope;
  fovea_kv_append_params_init(&p, sizeof p);
  fovea_rope_params_init(&rope, sizeof rope);
  p.batch = in.Int(1, kMaxBatch), p.num_kv_heads = in.Int(1, kMaxHeads), p.q_len = in.Int(0, kMaxLength), p.head_dim = in.Int(1, kMaxDim);
  p.v_head_dim = in.Chance(128) ? 0 : in.Int(1, kMaxDim);
  const int64_t v_dim = p.v_head_dim;
  const bool k = in.Chance(240), v = !k || in.Chance(200);
  DrawLengths(d, &lens, &p, &p.q_lens, &p.cu_seqlens_q, p.q_len, &p.total_q);
  DrawCache(d, &starts, &table, &p, k, v, v_dim);
  const auto rows = [&p](int64_t cols) {
    return [&p, cols] {
      return Draw::Extents{p.cu_seqlens_q ? 1 : p.batch, p.num_kv_heads, p.cu_seqlens_q ? p.total_q : p.q_len, cols ? cols : p.head_dim};
    };
  };
  if (k) d->Input(&p.k_new, d->Float(), rows(0));
  if (v) d->Input(&p.v_new, d->Float(), rows(v_dim));
  if (p.block_table && in.Chance(100)) {  // slots instead
    p.block_table = nullptr, p.block_table_stride = 0, p.kv_starts = nullptr;
    table.Fill(&in, -1, p.num_pages * p.page_size - 1);
    p.slot_mapping_stride = p.cu_seqlens_q ? 0 : p.q_len;
    d->Array(&p.slot_mapping, table.values, [&p] { return QEntries(p, p.slot_mapping_stride); });
    d->Number(&p.slot_mapping_stride);
  }
  if (in.Chance(128)) {
    p.rope = &rope;
    DrawRotation(d, &positions, &rope, p.head_dim, p.batch, p.q_len, [&p](int64_t stride) { return QEntries(p, stride); });
  }
  d->Number(&p.batch), d->Number(&p.num_kv_heads), d->Number(&p.q_len), d->Number(&p.head_dim);
  d->Finish();
  const fovea_exec exec = Exec(&in);
  return Judge(d, fovea_kv_append(&p, &exec));
}

const char* FuzzMha(Draw* d) {
  Bytes& in = d->in;
  Numbers q_lens, kv_lens, positions, kv_positions, starts, table;
  fovea_mha_params p;
  fovea_rope_params rope, kv_rope;
  fovea_attention_params options;
  fovea_mha_params_init(&p, sizeof p);
  fovea_rope_params_init(&rope, sizeof rope), fovea_rope_params_init(&kv_rope, sizeof kv_rope);
  fovea_attention_params_init(&options, sizeof options);
  p.batch = in.Int(1, kMaxBatch), p.q_len = in.Int(0, kMaxLength), p.d_model = in.Int(1, kMaxDim), p.d_out = in.Chance(128) ? 0 : in.Int(1, kMaxDim);
  p.num_kv_heads = in.Int(1, 2), p.num_q_heads = p.num_kv_heads * in.Int(1, 2), p.head_dim = in.Int(1, kMaxDim);
  p.v_head_dim = in.Chance(128) ? 0 : in.Int(1, kMaxDim);
  const int64_t v_dim = p.v_head_dim ? p.v_head_dim : p.head_dim, d_out = p.d_out ? p.d_out : p.d_model;
  const bool cross = in.Chance(90);
  int64_t d_kv = p.d_model;
  DrawLengths(d, &q_lens, &p, &p.q_lens, &p.cu_seqlens_q, p.q_len, &p.total_q);
  d->Output(&p.y, d->Float(), [&p, d_out] { return Draw::Extents{p.cu_seqlens_q ? 1 : p.batch, 1, p.cu_seqlens_q ? p.total_q : p.q_len, d_out}; });
  d->Input(&p.x, d->Float(), [&p] { return Draw::Extents{p.cu_seqlens_q ? 1 : p.batch, 1, p.cu_seqlens_q ? p.total_q : p.q_len, p.d_model}; });
  const bool cache = in.Chance(150);
  if (cross) {
    p.kv_len = in.Int(0, kMaxLength);
    p.d_kv = d_kv = in.Int(1, kMaxDim);
    DrawLengths(d, &kv_lens, &p, &p.kv_lens, &p.cu_seqlens_kv, p.kv_len, &p.total_kv);
    d->Input(&p.x_kv, d->Float(), [&p] { return Draw::Extents{p.cu_seqlens_kv ? 1 : p.batch, 1, p.cu_seqlens_kv ? p.total_kv : p.kv_len, p.d_kv}; });
    d->Number(&p.kv_len), d->Number(&p.d_kv);
  }
  const int64_t q = p.num_q_heads * p.head_dim, k = p.num_kv_heads * p.head_dim, v = p.num_kv_heads * v_dim;
  const bool biases = in.Chance(128);
  const auto weight = [&](fovea_tensor* w, fovea_tensor* b, int64_t out, int64_t columns) {
    d->Input(w, d->Float(), [out, columns] { return Draw::Extents{1, 1, out, columns}; });
    if (biases) d->Input(b, d->Float(), [out] { return Draw::Extents{1, 1, 1, out}; });
  };
  if (in.Chance(100) && d_kv == p.d_model) {
    weight(&p.w_qkv, &p.b_qkv, q + k + v, p.d_model);
  } else {
    weight(&p.wq, &p.bq, q, p.d_model), weight(&p.wk, &p.bk, k, d_kv), weight(&p.wv, &p.bv, v, d_kv);
  }
  weight(&p.wo, &p.bo, d_out, p.num_q_heads * v_dim);
  if (in.Chance(60)) d->Input(&p.q_norm, d->Float(), [&p] { return Draw::Extents{1, 1, 1, p.head_dim}; });
  if (in.Chance(60)) d->Input(&p.k_norm, d->Float(), [&p] { return Draw::Extents{1, 1, 1, p.head_dim}; });
  if (cache) DrawCache(d, &starts, &table, &p, true, true, v_dim);
  if (in.Chance(128)) {
    p.rope = &rope;
    DrawRotation(d, &positions, &rope, p.head_dim, p.batch, p.q_len, [&p](int64_t stride) { return QEntries(p, stride); });
    if (cross && in.Chance(100)) {
      p.kv_rope = &kv_rope;
      DrawRotation(d, &kv_positions, &kv_rope, p.head_dim, p.batch, p.kv_len,
                   [&p](int64_t stride) { return Entries(p.batch, p.cu_seqlens_kv, p.total_kv, p.kv_len, stride); });
    }
  }
  if (in.Chance(200)) p.attention = &options;
  options.causal = in.Chance(128);
  if (in.Chance(60)) options.window_left = in.Int(0, kMaxLength);
  if (in.Chance(40)) options.logits_soft_cap = 2.0f;
  if (cross) options.q_align = in.Chance(128), options.q_offset = in.Chance(60) ? in.Int(-2, kMaxLength) : 0;
  if (in.Chance(60)) {
    d->Output(&options.lse, FOVEA_F32, [&p] {
      return Draw::Extents{p.cu_seqlens_q ? 1 : p.batch, p.num_q_heads, p.cu_seqlens_q ? p.total_q : p.q_len, 1};
    });
  }
  d->Number(&p.batch), d->Number(&p.q_len), d->Number(&p.d_model), d->Number(&p.num_q_heads), d->Number(&p.num_kv_heads), d->Number(&p.head_dim);
  d->Number(&options.causal), d->Number(&options.q_align), d->Number(&options.q_offset), d->Number(&options.window_left);
  // Extents of weights were fixed above: a spoiled field takes the memory away.
  const int64_t before[] = {p.num_q_heads, p.num_kv_heads, p.head_dim, p.d_model, p.d_kv};
  d->Array(&p.q_lens, p.q_lens, [&] {
    const int64_t now[] = {p.num_q_heads, p.num_kv_heads, p.head_dim, p.d_model, p.d_kv};
    return Wide{std::memcmp(before, now, sizeof now) == 0 ? 0 : kArray + 1};
  });
  d->Finish();
  const fovea_exec exec = Exec(&in);
  fovea_mha_info info;
  fovea_mha_info_init(&info, sizeof info);
  const fovea_mha_info untouched = info;
  const fovea_status described = fovea_mha_describe(&p, &exec, &info);
  if (described != FOVEA_OK && std::memcmp(&info, &untouched, sizeof info) != 0) return "a failing describe wrote to info";
  if (const char* what = Run(d, p, exec, fovea_mha_workspace_size, fovea_mha_forward)) return what;
  const fovea_status status = fovea_mha_forward(&p, &exec);
  if (const char* what = Judge(d, status)) return what;
  return status != described ? "describe and forward do not agree" : nullptr;
}

}  // namespace

const char* FuzzLayer(const uint8_t* data, size_t size) {
  static Arenas* const arenas = new Arenas;  // reached until the end: not a leak
  Bytes in(data, size);
  Draw draw(&in, arenas);
  switch (in.Byte() % 8) {
    case 0:
      return FuzzLinear(&draw);
    case 1:
      return FuzzRope(&draw);
    case 2:
    case 3:
      return FuzzKvAppend(&draw);
    default:
      return FuzzMha(&draw);
  }
}
