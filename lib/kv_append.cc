#include "lib/kv_append.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lib/fp_env.h"
#include "lib/rope.h"

// Rows that may go to one place (pages shared by sequences, rings) are never written by two tasks: a task owns a share
// of the cache's slots and looks through all new rows for its own, in order. So the last row stays, whoever runs the
// tasks, and nothing needs to be looked for before. In a contiguous cache no two rows meet, and a task is a range of
// rows.

namespace fovea {
namespace {

// Slots of a share lie in chunks of this many, dealt in turn.
constexpr int64_t kSlotChunk = 32;

// A block of rows of all heads without conversion; strides in bytes. What lies together on both sides is copied at
// once.
void CopyRows(const char* from, char* to, int64_t heads, int64_t rows, int64_t bytes, int64_t from_head,
              int64_t from_row, int64_t to_head, int64_t to_row) {
  if (from_head == bytes && to_head == bytes) bytes *= heads, heads = 1;
  if (from_row == bytes && to_row == bytes) bytes *= rows, rows = 1;
  const auto copy = [&](int64_t h, int64_t r) {
    std::memcpy(to + h * to_head + r * to_row, from + h * from_head + r * from_row, static_cast<size_t>(bytes));
  };
  if (std::llabs(from_head) < std::llabs(from_row)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) copy(h, r);
    }
  } else {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < rows; ++r) copy(h, r);
    }
  }
}

class Appender {
 public:
  Appender(const Target& target, const fovea_kv_append_params& p) : target_(target), p_(p) {}

  // Rows [i, i + count) of sequence b into rows [row, row + count) of the cache's entry, a sequence or a page.
  void Append(int64_t b, int64_t i, int64_t count, int64_t entry, int64_t row) const {
    if (p_.k_new.dtype != FOVEA_DTYPE_NONE)
      AppendSide(p_.k_new, p_.k_cache, p_.k_scale, p_.k_channel_scale, p_.head_dim, p_.rope, b, i, count, entry, row);
    if (p_.v_new.dtype != FOVEA_DTYPE_NONE)
      AppendSide(p_.v_new, p_.v_cache, p_.v_scale, {}, p_.v_head_dim, nullptr, b, i, count, entry, row);
  }

  // Of sequence b's rows those whose slots are of share `share` of `shares`.
  void AppendPaged(int64_t b, int64_t share, int64_t shares) const {
    const int64_t len = QLen(p_, b), size = p_.page_size, chunk = shares == 1 ? INT64_MAX : kSlotChunk;
    const int32_t* slots = p_.slot_mapping
                               ? p_.slot_mapping + (p_.cu_seqlens_q ? p_.cu_seqlens_q[b] : b * p_.slot_mapping_stride)
                               : nullptr;
    const int64_t start = p_.kv_starts ? p_.kv_starts[b] : 0;
    for (int64_t i = 0, count; i < len; i += count) {
      count = 1;
      if (slots && slots[i] < 0) continue;
      const int64_t n = slots ? slots[i] : start + i;
      const int64_t page = slots ? n / size : p_.block_table[b * p_.block_table_stride + n / size], row = n % size;
      const int64_t slot = page * size + row;
      const int64_t most = std::min({len - i, size - row, chunk - slot % chunk});
      if (slots) {
        while (count < most && slots[i + count] == slots[i] + count) ++count;
      } else {
        count = most;
      }
      if (slot / chunk % shares == share) Append(b, i, count, page, row);
    }
  }

 private:
  void AppendSide(const fovea_tensor& from, const fovea_tensor& to, const fovea_tensor& scale,
                  const fovea_tensor& channel_scale, int64_t dim, const fovea_rope_params* rope, int64_t b, int64_t i,
                  int64_t count, int64_t entry, int64_t row) const {
    const void* x = NewRow(p_, from, b, i);
    const int64_t to_bytes = DtypeBytes(to.dtype);
    char* out = static_cast<char*>(to.data) + (entry * to.stride_batch + row * to.stride_row) * to_bytes;
    if (!rope && from.dtype == to.dtype) {
      CopyRows(static_cast<const char*>(x), out, p_.num_kv_heads, count, dim * to_bytes, from.stride_head * to_bytes,
               from.stride_row * to_bytes, to.stride_head * to_bytes, to.stride_row * to_bytes);
      return;
    }
    RopeTask t = {};
    if (rope) SetRotation(*rope, b, i, &t);
    t.x = x;
    t.out = out;
    t.rows = count;
    t.heads = p_.num_kv_heads;
    t.head_dim = dim;
    t.x_stride_head = from.stride_head;
    t.x_stride_row = from.stride_row;
    t.out_stride_head = to.stride_head;
    t.out_stride_row = to.stride_row;
    t.x_dtype = from.dtype;
    t.out_dtype = to.dtype;
    if (to.dtype != FOVEA_I8) {
      target_.table->rope(t);
      return;
    }
    QuantizeTask quantize = {};
    quantize.rows = t;
    quantize.scale = static_cast<float*>(scale.data) + (entry * scale.stride_batch + row * scale.stride_row);
    quantize.scale_stride_head = scale.stride_head;
    quantize.scale_stride_row = scale.stride_row;
    if (channel_scale.data) quantize.channel_scale = static_cast<const float*>(channel_scale.data) + b * channel_scale.stride_batch;
    quantize.channel_scale_stride_head = channel_scale.stride_head;
    target_.table->quantize(quantize);
  }

  const Target& target_;
  const fovea_kv_append_params& p_;
};

}  // namespace

void RunKvAppend(const Target& target, const fovea_kv_append_params& p, const fovea_exec& exec) {
  const Appender appender(target, p);
  const int64_t rows = NumNewRows(p);
  const double row_bytes = 8.0 * static_cast<double>(p.num_kv_heads * (p.head_dim + p.v_head_dim));
  const int32_t workers = WorkersForBytes(exec, static_cast<double>(rows) * row_bytes);
  if (!p.block_table && !p.slot_mapping) {
    const int64_t tasks = NumTasks(workers, rows);
    ParallelFor(exec, workers, tasks, [&](int32_t, int64_t n) {
      const FpEnvScope env;
      ForNewRows(p, rows * n / tasks, rows * (n + 1) / tasks, [&](int64_t b, int64_t first, int64_t count) {
        appender.Append(b, first, count, b, (p.kv_starts ? p.kv_starts[b] : 0) + first);
      });
    });
    return;
  }
  const int64_t shares = workers == 1 ? 1 : int64_t{2} * workers;
  ParallelFor(exec, workers, shares, [&](int32_t, int64_t share) {
    const FpEnvScope env;
    for (int64_t b = 0; b < p.batch; ++b) appender.AppendPaged(b, share, shares);
  });
}

}  // namespace fovea
