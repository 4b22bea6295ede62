// Runs fovea_rope and fovea_rope_tables, and what fovea_kv_append shares with them.
#ifndef FOVEA_LIB_ROPE_H_
#define FOVEA_LIB_ROPE_H_

#include <algorithm>

#include "dispatch/targets.h"
#include "lib/dtype.h"
#include "lib/kernels/kernel_params.h"
#include "lib/parallel_for.h"
#include "lib/validate.h"

namespace fovea {

// Checked params throughout.
void RunRope(const Target& target, const fovea_rope_params& p, const fovea_exec& exec);
void RunRopeTables(const fovea_rope_tables_params& p, const fovea_exec& exec);

// Sets the tables and positions of row i and those after it of sequence b.
void SetRotation(const fovea_rope_params& p, int64_t b, int64_t i, RopeTask* t);

// Element (b, h = 0, i) of new rows, padded or packed.
template <class Params>
void* NewRow(const Params& p, const fovea_tensor& x, int64_t b, int64_t i) {
  const int64_t offset =
      p.cu_seqlens_q ? (p.cu_seqlens_q[b] + i) * x.stride_row : b * x.stride_batch + i * x.stride_row;
  return static_cast<char*>(x.data) + offset * DtypeBytes(x.dtype);
}

template <class Params>
int64_t NumNewRows(const Params& p) {
  if (p.cu_seqlens_q) return p.cu_seqlens_q[p.batch];
  if (!p.q_lens) return p.batch * p.q_len;
  int64_t rows = 0;
  for (int64_t b = 0; b < p.batch; ++b) rows += p.q_lens[b];
  return rows;
}

// Calls body(b, first, count) for runs of new rows, those [begin, end) of all in order.
template <class Params, class Body>
void ForNewRows(const Params& p, int64_t begin, int64_t end, const Body& body) {
  int64_t before = 0;
  for (int64_t b = 0; b < p.batch && before < end; ++b) {
    const int64_t len = QLen(p, b), first = std::max(begin - before, int64_t{0}), last = std::min(end - before, len);
    if (first < last) body(b, first, last - first);
    before += len;
  }
}

// How many workers a call that moves this many bytes gets: waking a sleeping pool costs 40-80 us, in which one core
// moves a megabyte.
inline int32_t WorkersForBytes(const fovea_exec& exec, double bytes) { return bytes < 1e6 ? 1 : NumWorkers(exec); }

// Tasks of a call: a few per worker, so that a slow one does not hold up the others.
inline int64_t NumTasks(int32_t workers, int64_t rows) {
  return workers == 1 ? 1 : std::min<int64_t>(rows, int64_t{4} * workers);
}

}  // namespace fovea

#endif  // FOVEA_LIB_ROPE_H_
