#include "lib/mha.h"

#include <cstring>

#include "lib/carver.h"
#include "lib/error.h"
#include "lib/fp_env.h"
#include "lib/kv_append.h"
#include "lib/linear.h"
#include "lib/pages.h"
#include "lib/rope.h"
#include "lib/run.h"

namespace fovea {
namespace {

// Floats between rows in the workspace: rows whose distance is near a multiple of 4 KB fall on few L1 sets, and attention would copy K and V. Three
// cache lines more lead out of that, from a line before the multiple as well.
int64_t Pitch(int64_t columns) {
  const int64_t pitch = RoundUp(columns, 16);
  return Aliases(pitch * int64_t{sizeof(float)}) ? pitch + 48 : pitch;
}

fovea_tensor Matrix(void* data, fovea_dtype dtype, int64_t stride_row) {
  fovea_tensor t = {};
  t.data = data;
  t.dtype = dtype;
  t.stride_row = stride_row;
  return t;
}

// Rows of x or y of all sequences as one matrix: whether they lie at one distance, and which.
bool RowsAtOneStride(const fovea_tensor& t, int64_t batch, int64_t len, bool packed, int64_t* stride_row) {
  *stride_row = packed || batch == 1 || len > 1 ? t.stride_row : t.stride_batch;
  return packed || batch == 1 || len <= 1 || t.stride_batch == len * t.stride_row;
}

// Where q, k, v, heads' outputs and what else lies in the workspace. q, k and v are columns of one matrix where IsJoint.
struct MhaPlan {
  int64_t q_rows, kv_rows;            // that are projected
  int64_t q_pitch, kv_pitch, o_pitch;  // floats between rows
  float *q, *k, *v, *o;
  char* narrow_q;          // where QDtype is not F32, [q_rows][QColumns]
  float *q_norm, *k_norm;  // as f32
  int32_t* kv_lens;        // with a cache
  int32_t* q_positions;    // [batch] of row 0 for rope, where attention says it
  char *x, *x_kv, *y;      // rows at one stride, where the caller's are not
  char *linear, *attention;
  size_t linear_bytes, attention_bytes;
};

// The projections before attention (at most 3), and the one behind it.
struct Projections {
  fovea_linear_params before[3];
  int n;
  fovea_linear_params after;
};

int64_t QColumns(const fovea_mha_params& p) { return p.num_q_heads * p.head_dim; }
int64_t KColumns(const fovea_mha_params& p) { return p.num_kv_heads * p.head_dim; }
int64_t VColumns(const fovea_mha_params& p) { return p.num_kv_heads * p.v_head_dim; }
int64_t OColumns(const fovea_mha_params& p) { return p.num_q_heads * p.v_head_dim; }

// A kernel for 16-bit types wants q, k and v of one type, and a q rounded to x's own type loses what the model's k lost.
fovea_dtype QDtype(const fovea_mha_params& p) {
  const bool narrow = p.x.dtype == FOVEA_BF16 || p.x.dtype == FOVEA_F16;
  return narrow && p.k_cache.dtype == p.x.dtype && p.v_cache.dtype == p.x.dtype ? p.x.dtype : FOVEA_F32;
}
// q is rounded once: as it is projected, unless it is f32 first for a norm or a rotation.
bool IsProjectedNarrow(const fovea_mha_params& p) { return QDtype(p) != FOVEA_F32 && !p.rope && !IsGiven(p.q_norm); }
bool IsJoint(const fovea_mha_params& p) { return !IsGiven(p.x_kv) && !IsProjectedNarrow(p); }

// x or x_kv as a matrix: where it lies, or its copy.
fovea_tensor RowsOf(const fovea_tensor& t, char* copy, int64_t batch, int64_t len, bool packed, int64_t columns) {
  int64_t stride_row;
  if (RowsAtOneStride(t, batch, len, packed, &stride_row)) return Matrix(t.data, t.dtype, stride_row);
  return Matrix(copy, t.dtype, columns);
}

fovea_tensor XRows(const fovea_mha_params& p, const MhaPlan& plan) {
  return RowsOf(p.x, plan.x, p.batch, p.q_len, p.cu_seqlens_q != nullptr, p.d_model);
}
fovea_tensor XKvRows(const fovea_mha_params& p, const MhaPlan& plan) {
  return RowsOf(p.x_kv, plan.x_kv, p.batch, p.kv_len, p.cu_seqlens_kv != nullptr, p.d_kv);
}
// Rows past a sequence's q_len must not be written.
fovea_tensor YRows(const fovea_mha_params& p, const MhaPlan& plan) {
  if (p.q_lens) return Matrix(plan.y, p.y.dtype, p.d_out);
  return RowsOf(p.y, plan.y, p.batch, p.q_len, p.cu_seqlens_q != nullptr, p.d_out);
}

// `rows` rows of a weight from row `first`, and of its bias.
fovea_linear_params Projection(int64_t tokens, int64_t in, const fovea_tensor& x, const fovea_tensor& w, const fovea_tensor& bias,
                               int64_t first, int64_t rows, const fovea_tensor& y) {
  const auto from = [](const fovea_tensor& t, int64_t elements) {
    fovea_tensor part = t;
    if (part.data) part.data = static_cast<char*>(part.data) + elements * DtypeBytes(t.dtype);
    return part;
  };
  fovea_linear_params p = {};
  p.struct_size = sizeof p;
  p.tokens = tokens;
  p.in_features = in;
  p.out_features = rows;
  p.x = x;
  p.w = from(w, first * w.stride_row);
  p.bias = from(bias, first);
  p.y = y;
  return p;
}

Projections MakeProjections(const fovea_mha_params& p, const MhaPlan& plan) {
  const bool packed = IsGiven(p.w_qkv);
  const int64_t q = QColumns(p), k = KColumns(p), v = VColumns(p);
  const fovea_tensor x = XRows(p, plan), x_kv = IsGiven(p.x_kv) ? XKvRows(p, plan) : x;
  const fovea_tensor to_k = Matrix(plan.k, FOVEA_F32, plan.kv_pitch);
  const fovea_tensor to_q =
      IsProjectedNarrow(p) ? Matrix(plan.narrow_q, QDtype(p), q) : Matrix(plan.q, FOVEA_F32, plan.q_pitch);
  Projections all = {};
  if (packed && IsJoint(p)) {
    all.before[all.n++] = Projection(plan.q_rows, p.d_model, x, p.w_qkv, p.b_qkv, 0, q + k + v, to_q);
  } else if (packed) {
    all.before[all.n++] = Projection(plan.q_rows, p.d_model, x, p.w_qkv, p.b_qkv, 0, q, to_q);
    all.before[all.n++] = Projection(plan.kv_rows, p.d_kv, x_kv, p.w_qkv, p.b_qkv, q, k + v, to_k);
  } else {
    all.before[all.n++] = Projection(plan.q_rows, p.d_model, x, p.wq, p.bq, 0, q, to_q);
    all.before[all.n++] = Projection(plan.kv_rows, p.d_kv, x_kv, p.wk, p.bk, 0, k, to_k);
    all.before[all.n++] = Projection(plan.kv_rows, p.d_kv, x_kv, p.wv, p.bv, 0, v, Matrix(plan.v, FOVEA_F32, plan.kv_pitch));
  }
  all.after = Projection(plan.q_rows, OColumns(p), Matrix(plan.o, FOVEA_F32, plan.o_pitch), p.wo, p.bo, 0, p.d_out, YRows(p, plan));
  return all;
}

// Heads of a matrix in the workspace, as attention and RoPE see them.
fovea_tensor Heads(void* data, fovea_dtype dtype, int64_t dim, int64_t pitch, int64_t len, bool packed) {
  fovea_tensor t = Matrix(data, dtype, pitch);
  t.stride_batch = packed ? 0 : len * pitch;
  t.stride_head = dim;
  return t;
}

void SetPitches(const fovea_mha_params& p, MhaPlan* plan) {
  const int64_t q = QColumns(p), kv = KColumns(p) + VColumns(p);
  plan->q_pitch = Pitch(IsJoint(p) ? q + kv : q);
  plan->kv_pitch = IsJoint(p) ? plan->q_pitch : Pitch(kv);
  plan->o_pitch = Pitch(OColumns(p));
}

fovea_tensor QHeads(const fovea_mha_params& p, const MhaPlan& plan) {
  return Heads(plan.q, FOVEA_F32, p.head_dim, plan.q_pitch, p.q_len, p.cu_seqlens_q != nullptr);
}
fovea_tensor KHeads(const fovea_mha_params& p, const MhaPlan& plan) {
  const bool cross = IsGiven(p.x_kv);
  return Heads(plan.k, FOVEA_F32, p.head_dim, plan.kv_pitch, cross ? p.kv_len : p.q_len, (cross ? p.cu_seqlens_kv : p.cu_seqlens_q) != nullptr);
}
fovea_tensor VHeads(const fovea_mha_params& p, const MhaPlan& plan) {
  fovea_tensor v = KHeads(p, plan);
  v.data = plan.v;
  v.stride_head = p.v_head_dim;
  return v;
}

// Attention's q, k, v and out: in the workspace, and in the cache where there is one.
void SetHeads(const fovea_mha_params& p, const MhaPlan& plan, fovea_attention_params* a) {
  const bool packed = p.cu_seqlens_q != nullptr, cache = IsGiven(p.k_cache);
  const fovea_dtype dtype = QDtype(p);
  a->q = dtype == FOVEA_F32 ? QHeads(p, plan) : Heads(plan.narrow_q, dtype, p.head_dim, QColumns(p), p.q_len, packed);
  a->out = Heads(plan.o, FOVEA_F32, p.v_head_dim, plan.o_pitch, p.q_len, packed);
  a->k = cache ? p.k_cache : KHeads(p, plan);
  a->v = cache ? p.v_cache : VHeads(p, plan);
}

// With c's memory null the pointers are meaningless and c->used() is the size. Copies of x and y are counted where they may be needed for
// some length: the size is monotone.
fovea_status Layout(const MhaCall& call, Carver* c, MhaPlan* plan) {
  const fovea_mha_params& p = call.p;
  const bool cross = IsGiven(p.x_kv), cache = IsGiven(p.k_cache), joint = IsJoint(p);
  const int64_t q = QColumns(p), k = KColumns(p);
  const auto copy = [&](const fovea_tensor& t, int64_t rows, int64_t columns, bool wanted) {
    return wanted ? c->Take<char>(rows * columns * DtypeBytes(t.dtype)) : nullptr;
  };
  plan->q_rows = p.cu_seqlens_q ? p.total_q : p.batch * p.q_len;
  plan->kv_rows = !cross ? plan->q_rows : p.cu_seqlens_kv ? p.total_kv : p.batch * p.kv_len;
  SetPitches(p, plan);
  if (!IsProjectedNarrow(p)) plan->q = c->Take<float>(plan->q_rows * plan->q_pitch);
  if (QDtype(p) != FOVEA_F32) plan->narrow_q = c->Take<char>(plan->q_rows * q * DtypeBytes(QDtype(p)));
  float* const kv = joint ? plan->q : c->Take<float>(plan->kv_rows * plan->kv_pitch);
  plan->k = kv && joint ? kv + q : kv;
  plan->v = plan->k ? plan->k + k : nullptr;
  plan->o = c->Take<float>(plan->q_rows * plan->o_pitch);
  plan->q_norm = c->Take<float>(IsGiven(p.q_norm) ? p.head_dim : 0);
  plan->k_norm = c->Take<float>(IsGiven(p.k_norm) ? p.head_dim : 0);
  plan->kv_lens = c->Take<int32_t>(cache ? p.batch : 0);
  plan->q_positions = c->Take<int32_t>(cross && p.rope ? p.batch : 0);
  plan->x = copy(p.x, plan->q_rows, p.d_model, !p.cu_seqlens_q && p.batch > 1 && p.q_len > 1);
  plan->x_kv = copy(p.x_kv, plan->kv_rows, p.d_kv, cross && !p.cu_seqlens_kv && p.batch > 1 && p.kv_len > 1);
  plan->y = copy(p.y, plan->q_rows, p.d_out, p.q_lens || (!p.cu_seqlens_q && p.batch > 1 && p.q_len > 1));
  const Projections projections = MakeProjections(p, *plan);
  plan->linear_bytes = 0;
  for (int i = 0; i <= projections.n; ++i) {
    const fovea_linear_params& linear = i < projections.n ? projections.before[i] : projections.after;
    const size_t bytes = LinearWorkspaceBytes(linear, call.flags, *call.target, call.workers);
    plan->linear_bytes = bytes > plan->linear_bytes ? bytes : plan->linear_bytes;
  }
  FOVEA_TRY(WorkspaceBytes(call.attention, call.flags, *call.target, call.workers, &plan->attention_bytes));
  plan->linear = c->Take<char>(static_cast<int64_t>(plan->linear_bytes));
  plan->attention = c->Take<char>(static_cast<int64_t>(plan->attention_bytes));
  return c->overflow() ? Fail(FOVEA_ERR_INVALID_ARGUMENT, "batch, lengths and dims: the workspace overflows size_t") : FOVEA_OK;
}

// Attention's tensors and lengths, the positions of q, and the checks that need them.
fovea_status Bind(MhaCall* call, const MhaPlan& plan) {
  const fovea_mha_params& p = call->p;
  fovea_attention_params& a = call->attention;
  SetHeads(p, plan, &a);
  if (IsGiven(p.k_cache)) {
    const fovea_kv_append_params append = MhaAppend(p);
    for (int64_t b = 0; b < p.batch; ++b) {
      plan.kv_lens[b] = static_cast<int32_t>((p.kv_starts ? p.kv_starts[b] : 0) + QLen(append, b));
    }
    a.kv_lens = plan.kv_lens;
  }
  FOVEA_TRY(CheckMhaAttention(call->views, &a));
  if (p.rope) {
    if (IsGiven(p.x_kv) && !HasPositions(call->rope)) {
      for (int64_t b = 0; b < p.batch; ++b) plan.q_positions[b] = static_cast<int32_t>(PositionOffset(a, b));
      call->rope.position_offsets = plan.q_positions;
    }
    FOVEA_TRY(CheckMhaPositions(p, call->rope, call->kv_rope));
  }
  return CheckPages(a);
}

// Copies rows of a padded tensor to or from rows that follow one another, those of q_lens only where it is given.
void CopyRows(const fovea_exec& exec, const fovea_tensor& padded, char* dense, bool to_dense, int64_t batch, int64_t len,
              const int32_t* lens, int64_t columns) {
  const int64_t element = DtypeBytes(padded.dtype), bytes = columns * element, rows = batch * len;
  const int32_t workers = WorkersForBytes(exec, static_cast<double>(rows) * static_cast<double>(bytes));
  const int64_t tasks = NumTasks(workers, rows);
  ParallelFor(exec, workers, tasks, [&](int32_t, int64_t n) {
    for (int64_t row = rows * n / tasks; row < rows * (n + 1) / tasks; ++row) {
      const int64_t b = row / len, i = row % len;
      if (lens && i >= lens[b]) continue;
      char* const at = static_cast<char*>(padded.data) + (b * padded.stride_batch + i * padded.stride_row) * element;
      std::memcpy(to_dense ? dense + row * bytes : at, to_dense ? at : dense + row * bytes, static_cast<size_t>(bytes));
    }
  });
}

void Normalize(const MhaCall& call, const fovea_exec& exec, const fovea_tensor& weight, float* buffer, float* x, int64_t heads, int64_t rows,
               int64_t pitch) {
  const int64_t dim = call.p.head_dim;
  for (int64_t c = 0; c < dim; ++c) buffer[c] = LoadElement(weight.dtype, weight.data, c);
  const int32_t workers = WorkersForBytes(exec, 8.0 * static_cast<double>(rows) * static_cast<double>(heads * dim));
  const int64_t tasks = NumTasks(workers, rows);
  ParallelFor(exec, workers, tasks, [&](int32_t, int64_t n) {
    const FpEnvScope env;
    for (int64_t row = rows * n / tasks; row < rows * (n + 1) / tasks; ++row) {
      call.target->table->rms_norm(buffer, call.p.norm_eps, heads, dim, x + row * pitch);
    }
  });
}

// Of packed tensors only the rows that sequences have.
void TrimRows(const fovea_mha_params& p, MhaPlan* plan) {
  if (p.cu_seqlens_q) plan->q_rows = p.cu_seqlens_q[p.batch];
  if (!IsGiven(p.x_kv)) plan->kv_rows = plan->q_rows;
  else if (p.cu_seqlens_kv) plan->kv_rows = p.cu_seqlens_kv[p.batch];
}

}  // namespace

fovea_status PrepareMha(const fovea_mha_params* user, CheckData data, uint32_t flags, const Target& target, int32_t workers, MhaCall* call) {
  call->flags = flags;
  call->target = &target;
  call->workers = workers;
  fovea_attention_params a;
  FOVEA_TRY(CheckMha(user, data, &call->p, &call->rope, &call->kv_rope, &a, &call->views));
  MhaPlan plan = {};  // strides alone: the pointers come with the workspace
  SetPitches(call->p, &plan);
  SetHeads(call->p, plan, &a);
  const FpEnvScope env;  // the default scale is computed here
  return CheckParams(&a, CheckData::kNo, &call->attention);
}

fovea_status MhaWorkspaceBytes(const MhaCall& call, size_t* bytes) {
  Carver c(nullptr);
  MhaPlan plan = {};
  const fovea_status status = Layout(call, &c, &plan);
  *bytes = c.used() + kAlign;  // the caller's memory has any alignment
  return status;
}

fovea_status RunMha(MhaCall* call, const fovea_exec& exec, void* workspace) {
  const fovea_mha_params& p = call->p;
  Carver c(AlignUp(workspace));
  MhaPlan plan = {};
  FOVEA_TRY(Layout(*call, &c, &plan));
  FOVEA_TRY(Bind(call, plan));
  fovea_plan* attention = nullptr;
  FOVEA_TRY(BuildPlan(call->attention, call->flags, *call->target, call->workers, plan.attention, plan.attention_bytes, &attention));

  // From here on nothing can fail.
  TrimRows(p, &plan);
  const Projections projections = MakeProjections(p, plan);
  if (plan.x && XRows(p, plan).data == plan.x) CopyRows(exec, p.x, plan.x, true, p.batch, p.q_len, nullptr, p.d_model);
  if (plan.x_kv && XKvRows(p, plan).data == plan.x_kv) CopyRows(exec, p.x_kv, plan.x_kv, true, p.batch, p.kv_len, nullptr, p.d_kv);
  for (int i = 0; i < projections.n; ++i) RunLinear(projections.before[i], exec, *call->target, call->workers, plan.linear);

  if (IsGiven(p.q_norm)) Normalize(*call, exec, p.q_norm, plan.q_norm, plan.q, p.num_q_heads, plan.q_rows, plan.q_pitch);
  if (IsGiven(p.k_norm)) Normalize(*call, exec, p.k_norm, plan.k_norm, plan.k, p.num_kv_heads, plan.kv_rows, plan.kv_pitch);

  if (p.rope || (plan.narrow_q && !IsProjectedNarrow(p))) {  // without rope it rotates no columns, and converts
    call->rope.x = QHeads(p, plan);
    call->rope.out = call->attention.q;
    RunRope(*call->target, call->rope, exec);
  }
  if (IsGiven(p.k_cache)) {
    fovea_kv_append_params append = MhaAppend(p);
    append.k_new = KHeads(p, plan);
    append.v_new = VHeads(p, plan);
    append.rope = p.rope ? &call->kv_rope : nullptr;
    RunKvAppend(*call->target, append, exec);
  } else if (p.rope) {
    call->kv_rope.x = call->kv_rope.out = KHeads(p, plan);
    RunRope(*call->target, call->kv_rope, exec);
  }
  RunPlan(*attention, call->attention, exec);
  RunLinear(projections.after, exec, *call->target, call->workers, plan.linear);
  if (plan.y && YRows(p, plan).data == plan.y) CopyRows(exec, p.y, plan.y, false, p.batch, p.q_len, p.q_lens, p.d_out);
  return FOVEA_OK;
}

fovea_status DescribeMha(MhaCall* call, void* workspace, fovea_attention_params* attention, fovea_mha_info* info) {
  const fovea_mha_params& p = call->p;
  Carver c(AlignUp(workspace));
  MhaPlan plan = {};
  FOVEA_TRY(Layout(*call, &c, &plan));
  FOVEA_TRY(Bind(call, plan));
  *attention = call->attention;
  TrimRows(p, &plan);
  const Projections projections = MakeProjections(p, plan);
  info->qkv_flop = info->out_flop = info->weight_bytes = 0;
  for (int i = 0; i <= projections.n; ++i) {
    const fovea_linear_params& l = i < projections.n ? projections.before[i] : projections.after;
    const double weights = static_cast<double>(l.in_features) * static_cast<double>(l.out_features);
    (i < projections.n ? info->qkv_flop : info->out_flop) += 2.0 * static_cast<double>(l.tokens) * weights;
    info->weight_bytes += weights * static_cast<double>(DtypeBytes(l.w.dtype)) +
                          static_cast<double>(l.out_features) * static_cast<double>(DtypeBytes(l.bias.dtype));
  }
  return FOVEA_OK;
}

}  // namespace fovea
