// The extern "C" functions that compute: validate, plan, pick the table, run.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <mutex>

#include "lib/dtype.h"
#include "lib/error.h"
#include "lib/fp_env.h"
#include "lib/kv_append.h"
#include "lib/linear.h"
#include "lib/mha.h"
#include "lib/pages.h"
#include "lib/parallel_for.h"
#include "lib/plan.h"
#include "lib/rope.h"
#include "lib/run.h"
#include "lib/validate.h"

namespace fovea {

std::atomic<bool> forked_child{false};

namespace {

// Taken over fork, so that no other thread holds it in the child.
std::mutex default_exec_mutex;

// Loaded in a forked child that has not called exec (PF_FORKNOEXEC, 0x40 in field 9 of /proc/self/stat): the parent may have left an OpenMP pool
// whose threads are gone, and no handler ran.
bool LoadedInForkedChild() {
  char stat[512];
  FILE* file = fopen("/proc/self/stat", "r");
  if (!file) return false;
  const size_t n = fread(stat, 1, sizeof stat - 1, file);
  fclose(file);
  stat[n] = '\0';
  unsigned flags = 0;
  const char* after_name = strrchr(stat, ')');
  return after_name && sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & 0x40) != 0;
}

// OpenMP's worker threads do not survive fork, whoever started them.
__attribute__((constructor)) void RegisterForkHandler() {
  if (LoadedInForkedChild()) forked_child.store(true, std::memory_order_relaxed);
  pthread_atfork([] { default_exec_mutex.lock(); }, [] { default_exec_mutex.unlock(); },
                 [] {
                   default_exec_mutex.unlock();
                   forked_child.store(true, std::memory_order_relaxed);
                 });
}

fovea_exec default_exec_value = {sizeof(fovea_exec), 0, 0, nullptr, nullptr, nullptr, 0, nullptr, 0};

fovea_exec DefaultExec() {
  const std::lock_guard<std::mutex> lock(default_exec_mutex);
  return default_exec_value;
}

fovea_status ResolveExec(const fovea_exec* user, fovea_exec* e) {
  if (user) return CheckExec(user, e);
  *e = DefaultExec();
  return FOVEA_OK;
}

// Copies the thread's error text to the caller's buffer as well.
fovea_status Report(const fovea_exec* user, fovea_status status) {
  // Not through a struct that CheckExec would refuse unread.
  if (user && user->struct_size >= sizeof(fovea_exec) && user->struct_size <= kMaxStructSize && user->error_text &&
      user->error_capacity > 0) {
    snprintf(user->error_text, user->error_capacity, "%s", status == FOVEA_OK ? "" : LastError());
  }
  return status;
}

// Adds a word to a list, as far as there is room.
void Append(const char* separator, const char* word, size_t capacity, char* list) {
  const size_t used = strlen(list);
  snprintf(list + used, capacity - used, "%s%s", used ? separator : "", word);
}

// "q BF16, k F16": the tensors that are converted, or "none". native_qk, native_v: these are not.
void DescribeConversions(const fovea_attention_params& p, bool native_qk, bool native_v, char* text, size_t capacity) {
  const struct {
    const char* name;
    const fovea_tensor& tensor;
  } tensors[] = {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"out", p.out}, {"bias", p.bias}};
  text[0] = '\0';
  for (const auto& t : tensors) {
    if ((native_qk && (&t.tensor == &p.q || &t.tensor == &p.k)) || (native_v && &t.tensor == &p.v)) continue;
    if (t.tensor.dtype == FOVEA_F32 || t.tensor.dtype == FOVEA_DTYPE_NONE) continue;
    Append(", ", t.name, capacity, text);
    Append(" ", fovea_dtype_str(t.tensor.dtype), capacity, text);
  }
  if (!*text) Append("", "none", capacity, text);
}

struct Call {
  fovea_attention_params p;
  fovea_exec e;
  const Target* target;
  int32_t workers;
};

// Checked params as plans are made for them.
fovea_status ResolveParams(const fovea_attention_params* params, CheckData data, fovea_attention_params* p) {
  const FpEnvScope env;  // the default scale is computed here
  fovea_status status = CheckParams(params, data, p);
  if (status == FOVEA_OK && data == CheckData::kYes) status = CheckPages(*p);
  // Multi-query attention written as multi-head: one kv head, with the bits and the speed of num_kv_heads = 1.
  if (status == FOVEA_OK && p->k.stride_head == 0 && p->v.stride_head == 0 && p->k_scale.stride_head == 0 &&
      p->v_scale.stride_head == 0 && p->k_channel_scale.stride_head == 0) {
    p->num_kv_heads = 1;
  }
  return status;
}

fovea_status CheckCall(const fovea_attention_params* params, const fovea_exec* exec, CheckData data, Call* call) {
  FOVEA_TRY(ResolveExec(exec, &call->e));
  FOVEA_TRY(ResolveParams(params, data, &call->p));
  call->target = ChosenTarget();
  if (!call->target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  call->workers = NumWorkers(call->e);
  return FOVEA_OK;
}

fovea_status Forward(const fovea_attention_params* params, const fovea_exec* exec) {
  Call call;
  FOVEA_TRY(CheckCall(params, exec, CheckData::kYes, &call));
  void* memory = call.e.workspace;
  size_t bytes = call.e.workspace_bytes;
  if (!memory) {
    FOVEA_TRY(WorkspaceBytes(call.p, call.e.flags, *call.target, call.workers, &bytes));
    memory = malloc(bytes);
    if (!memory) return Fail(FOVEA_ERR_OUT_OF_MEMORY, "workspace: %zu bytes could not be allocated", bytes);
  }
  fovea_plan* plan;
  const fovea_status status = BuildPlan(call.p, call.e.flags, *call.target, call.workers, memory, bytes, &plan);
  if (status == FOVEA_OK) RunPlan(*plan, call.p, call.e);
  if (!call.e.workspace) free(memory);
  return status;
}

double ElementBytes(const fovea_tensor& x) { return static_cast<double>(DtypeBytes(x.dtype)); }

// Of k and v, each row once.
double KvBytes(const fovea_attention_params& p) {
  double rows = 0.0;
  for (int64_t b = 0; b < p.batch; ++b) rows += static_cast<double>(KvLen(p, b));
  const double row = static_cast<double>(p.head_dim) * ElementBytes(p.k) + static_cast<double>(p.v_head_dim) * ElementBytes(p.v) +
                     ElementBytes(p.k_scale) + ElementBytes(p.v_scale);
  return row * rows * static_cast<double>(p.num_kv_heads);
}

fovea_status Describe(const fovea_attention_params* params, const fovea_exec* exec, fovea_attention_info* info) {
  if (!info || info->struct_size < sizeof(fovea_attention_info)) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "info: call fovea_attention_info_init first");
  }
  Call call;
  FOVEA_TRY(CheckCall(params, exec, CheckData::kYes, &call));
  const fovea_attention_params& p = call.p;
  size_t bytes;
  FOVEA_TRY(WorkspaceBytes(p, call.e.flags, *call.target, call.workers, &bytes));
  void* memory = malloc(bytes);
  if (!memory) return Fail(FOVEA_ERR_OUT_OF_MEMORY, "describe: %zu bytes could not be allocated", bytes);
  fovea_plan* plan;
  const fovea_status status = BuildPlan(p, call.e.flags, *call.target, call.workers, memory, bytes, &plan);
  if (status != FOVEA_OK) {
    free(memory);
    return status;
  }
  const KernelTable& table = *call.target->table;
  const KernelScratch scratch = WorkerScratch(*plan, 0);
  const char *prefill = nullptr, *decode = nullptr;  // their types; decode's beside f32, which sequences of one row take
  bool decode_f32 = false, converts = false;
  double pairs = 0.0, scores_pairs = 0.0;
  for (int64_t n = 0; n < plan->num_tasks[0]; ++n) {
    AttentionTask t;
    FillTask(*plan, p, plan->tasks[0][n], &t);
    const bool is_decode = plan->tasks[0][n].decode;
    const char* const type = ChooseKernel(p, *call.target, plan->tasks[0][n]).type;
    const bool f32 = strcmp(type, "f32") == 0;
    if (!is_decode) prefill = type;
    else if (f32) decode_f32 = true;
    else decode = type;
    converts |= strcmp(type, "bf16") != 0;
    pairs += static_cast<double>(table.live_pairs(t, scratch, !is_decode));
  }
  const int32_t lanes = table.vector_lanes();
  for (int64_t n = 0; n < plan->num_tasks[2]; ++n) {
    scores_pairs += static_cast<double>(lanes * kTileVecs) * plan->tasks[2][n].kv_end;
  }
  snprintf(info->target, sizeof info->target, "%s", call.target->name);
  info->kernels[0] = '\0';
  if (prefill) snprintf(info->kernels, sizeof info->kernels, "prefill_%s_%dx%d", prefill, table.tile_keys, lanes * kTileVecs);
  const auto add = [&](const char* kernel) { Append(" ", kernel, sizeof info->kernels, info->kernels); };
  if (decode_f32) add("decode_f32");
  if (decode) add("decode_"), Append("", decode, sizeof info->kernels, info->kernels);
  if (plan->num_tasks[1]) add("merge_f32");
  if (plan->num_tasks[2]) add("scores_f32");
  const bool native = plan->num_tasks[0] > 0 && !converts;
  DescribeConversions(p, native && plan->num_tasks[2] == 0, native, info->conversions, sizeof info->conversions);
  info->num_threads = call.workers;
  info->phases = plan->num_phases;
  info->tasks = plan->num_tasks[0] + plan->num_tasks[1] + plan->num_tasks[2];
  info->workspace_bytes = bytes;
  const double d = static_cast<double>(p.head_dim), dv = static_cast<double>(p.v_head_dim);
  info->flop = 2.0 * (d + dv) * UsefulPairs(p);
  info->flop_executed = 2.0 * (d + dv) * pairs + 2.0 * d * scores_pairs;
  double q_rows = 0.0;
  for (int64_t b = 0; b < p.batch; ++b) q_rows += static_cast<double>(QLen(p, b));
  info->bytes = (d * ElementBytes(p.q) + dv * ElementBytes(p.out)) * q_rows * static_cast<double>(p.num_q_heads) + KvBytes(p);
  free(memory);
  return FOVEA_OK;
}

// Whether params are of the shapes, strides, lengths and offsets that the plan was made for: its tasks and its workspace depend on them.
fovea_status CheckSamePlan(const fovea_plan& plan, const fovea_attention_params& p) {
  const fovea_attention_params& q = plan.params;
  const auto same = [](const fovea_tensor& x, const fovea_tensor& y) {
    return x.dtype == y.dtype && x.stride_batch == y.stride_batch && x.stride_head == y.stride_head &&
           x.stride_row == y.stride_row && x.stride_col == y.stride_col;
  };
  const char* field = nullptr;
  if (p.batch != q.batch || p.num_q_heads != q.num_q_heads || p.num_kv_heads != q.num_kv_heads) field = "batch or heads";
  else if (p.q_len != q.q_len || p.kv_len != q.kv_len || p.total_q != q.total_q || p.total_kv != q.total_kv) field = "q_len or kv_len";
  else if (p.page_size != q.page_size || p.num_pages != q.num_pages || !p.block_table != !q.block_table) field = "pages";
  else if (p.head_dim != q.head_dim || p.v_head_dim != q.v_head_dim) field = "head_dim or v_head_dim";
  else if (!same(p.q, q.q) || !same(p.k, q.k) || !same(p.v, q.v) || !same(p.out, q.out)) field = "q, k, v or out";
  else if (!same(p.k_scale, q.k_scale) || !same(p.v_scale, q.v_scale) || !same(p.k_channel_scale, q.k_channel_scale))
    field = "k_scale, v_scale or k_channel_scale";
  else if (!same(p.lse, q.lse) || !same(p.scores, q.scores) || p.scores_stage != q.scores_stage) field = "lse or scores";
  else if (!same(p.mask, q.mask) || !same(p.bias, q.bias) || p.mask_kv_len != q.mask_kv_len || p.mask_align != q.mask_align)
    field = "mask or bias";
  else if (p.causal != q.causal || p.q_align != q.q_align || p.q_offset != q.q_offset || p.window_left != q.window_left ||
           p.window_right != q.window_right)
    field = "causal, q_align, q_offset or window";
  else if (!p.cu_seqlens_q != !q.cu_seqlens_q || !p.cu_seqlens_kv != !q.cu_seqlens_kv || !p.q_lens != !q.q_lens ||
           !p.kv_lens != !q.kv_lens || !p.q_positions != !q.q_positions || !p.kv_positions != !q.kv_positions ||
           !p.q_offsets != !q.q_offsets || LengthsHash(p) != plan.lengths_hash)
    field = "lens, cu_seqlens, q_offsets or positions";
  if (field) return Fail(FOVEA_ERR_INVALID_ARGUMENT, "%s: differs from the params that the plan was made for", field);
  return FOVEA_OK;
}

fovea_status Rope(const fovea_rope_params* params, const fovea_exec* exec) {
  fovea_exec e;
  fovea_rope_params p;
  FOVEA_TRY(ResolveExec(exec, &e));
  FOVEA_TRY(CheckRope(params, &p));
  const Target* target = ChosenTarget();
  if (!target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  RunRope(*target, p, e);
  return FOVEA_OK;
}

fovea_status RopeTables(const fovea_rope_tables_params* params, const fovea_exec* exec) {
  fovea_exec e;
  fovea_rope_tables_params p;
  FOVEA_TRY(ResolveExec(exec, &e));
  FOVEA_TRY(CheckRopeTables(params, &p));
  RunRopeTables(p, e);
  return FOVEA_OK;
}

fovea_status KvAppend(const fovea_kv_append_params* params, const fovea_exec* exec) {
  fovea_exec e;
  fovea_kv_append_params p;
  fovea_rope_params rope;
  FOVEA_TRY(ResolveExec(exec, &e));
  FOVEA_TRY(CheckKvAppend(params, &p, &rope));
  const Target* target = ChosenTarget();
  if (!target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  RunKvAppend(*target, p, e);
  return FOVEA_OK;
}

struct LinearCall {
  fovea_linear_params p;
  fovea_exec e;
  const Target* target;
  int32_t workers;
};

fovea_status CheckLinearCall(const fovea_linear_params* params, const fovea_exec* exec, CheckData data, LinearCall* call) {
  FOVEA_TRY(ResolveExec(exec, &call->e));
  FOVEA_TRY(CheckLinear(params, data, &call->p));
  call->target = ChosenTarget();
  if (!call->target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  call->workers = NumWorkers(call->e);
  return FOVEA_OK;
}

// Runs in the caller's workspace of at least `bytes`, or else in memory taken for the call.
template <class F>
fovea_status InWorkspace(const fovea_exec& e, size_t bytes, const char* what, int32_t workers, const F& run) {
  void* memory = e.workspace;
  if (memory && e.workspace_bytes < bytes) {
    return Fail(FOVEA_ERR_WORKSPACE_TOO_SMALL, "workspace_bytes = %zu: must be at least %zu for %s and %d threads", e.workspace_bytes,
                bytes, what, workers);
  }
  if (!memory) memory = malloc(bytes);
  if (!memory) return Fail(FOVEA_ERR_OUT_OF_MEMORY, "workspace: %zu bytes could not be allocated", bytes);
  const fovea_status status = run(memory);
  if (!e.workspace) free(memory);
  return status;
}

fovea_status Linear(const fovea_linear_params* params, const fovea_exec* exec) {
  LinearCall call;
  FOVEA_TRY(CheckLinearCall(params, exec, CheckData::kYes, &call));
  const size_t bytes = LinearWorkspaceBytes(call.p, call.e.flags, *call.target, call.workers);
  return InWorkspace(call.e, bytes, "these extents", call.workers, [&](void* memory) {
    RunLinear(call.p, call.e, *call.target, call.workers, memory);
    return fovea_status{FOVEA_OK};
  });
}

fovea_status CheckMhaCall(const fovea_mha_params* params, const fovea_exec* exec, CheckData data, fovea_exec* e, MhaCall* call, size_t* bytes) {
  FOVEA_TRY(ResolveExec(exec, e));
  const Target* target = ChosenTarget();
  if (!target) return FOVEA_ERR_TARGET_UNAVAILABLE;
  FOVEA_TRY(PrepareMha(params, data, e->flags, *target, NumWorkers(*e), call));
  return MhaWorkspaceBytes(*call, bytes);
}

fovea_status Mha(const fovea_mha_params* params, const fovea_exec* exec) {
  fovea_exec e;
  MhaCall call;
  size_t bytes;
  FOVEA_TRY(CheckMhaCall(params, exec, CheckData::kYes, &e, &call, &bytes));
  return InWorkspace(e, bytes, "this layer", call.workers, [&](void* memory) { return RunMha(&call, e, memory); });
}

fovea_status MhaDescribe(const fovea_mha_params* params, const fovea_exec* exec, fovea_mha_info* info) {
  if (!info || info->struct_size < sizeof(fovea_mha_info)) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "info: call fovea_mha_info_init first");
  }
  fovea_exec e;
  MhaCall call;
  size_t bytes;
  FOVEA_TRY(CheckMhaCall(params, exec, CheckData::kYes, &e, &call, &bytes));
  void* memory = malloc(bytes);
  if (!memory) return Fail(FOVEA_ERR_OUT_OF_MEMORY, "describe: %zu bytes could not be allocated", bytes);
  fovea_attention_params attention;
  fovea_attention_info inner;
  fovea_attention_info_init(&inner, sizeof inner);
  fovea_mha_info found = *info;
  fovea_status status = DescribeMha(&call, memory, &attention, &found);
  if (status == FOVEA_OK) status = Describe(&attention, exec, &inner);
  if (status == FOVEA_OK) found.kv_bytes = KvBytes(attention);
  free(memory);  // attention's lengths as well
  if (status != FOVEA_OK) return status;
  memcpy(found.target, inner.target, sizeof found.target);
  memcpy(found.kernels, inner.kernels, sizeof found.kernels);
  found.num_threads = inner.num_threads;
  found.workspace_bytes = bytes;
  found.attention_flop = inner.flop;
  *info = found;
  return FOVEA_OK;
}

}  // namespace
}  // namespace fovea

using namespace fovea;

extern "C" {

fovea_status fovea_set_default_exec(const fovea_exec* exec) {
  fovea_exec e = {sizeof(fovea_exec), 0, 0, nullptr, nullptr, nullptr, 0, nullptr, 0};
  if (exec) {
    FOVEA_TRY(CheckExec(exec, &e));
    if (e.workspace || e.error_text) {
      return Fail(FOVEA_ERR_INVALID_ARGUMENT, "exec.workspace and exec.error_text: must be NULL in the default exec, calls would share them");
    }
  }
  const std::lock_guard<std::mutex> lock(default_exec_mutex);
  default_exec_value = e;
  return FOVEA_OK;
}

fovea_status fovea_attention_workspace_size(const fovea_attention_params* params, const fovea_exec* exec, size_t* bytes) {
  if (!bytes) return Report(exec, Fail(FOVEA_ERR_INVALID_ARGUMENT, "bytes = NULL: must point to a size_t"));
  Call call;
  fovea_status status = CheckCall(params, exec, CheckData::kNo, &call);
  if (status == FOVEA_OK) status = WorkspaceBytes(call.p, call.e.flags, *call.target, call.workers, bytes);
  return Report(exec, status);
}

fovea_status fovea_attention_forward(const fovea_attention_params* params, const fovea_exec* exec) {
  return Report(exec, Forward(params, exec));
}

fovea_status fovea_attention_plan(const fovea_attention_params* params, const fovea_exec* exec, void* mem, size_t bytes,
                                  const fovea_plan** plan) {
  if (!mem || !plan) return Report(exec, Fail(FOVEA_ERR_INVALID_ARGUMENT, "mem and plan: must not be NULL"));
  Call call;
  fovea_status status = CheckCall(params, exec, CheckData::kYes, &call);
  fovea_plan* made = nullptr;
  if (status == FOVEA_OK) status = BuildPlan(call.p, call.e.flags, *call.target, call.workers, mem, bytes, &made);
  if (status == FOVEA_OK) *plan = made;
  return Report(exec, status);
}

int32_t fovea_plan_phases(const fovea_plan* plan) { return plan ? plan->num_phases : 0; }

int64_t fovea_plan_tasks(const fovea_plan* plan, int32_t phase) {
  return plan && phase >= 0 && phase < plan->num_phases ? plan->num_tasks[static_cast<int32_t>(plan->phases[phase])] : 0;
}

int32_t fovea_plan_workers(const fovea_plan* plan) { return plan ? plan->workers : 0; }

fovea_status fovea_attention_run_tasks(const fovea_plan* plan, const fovea_attention_params* params, int32_t phase, int64_t begin,
                                       int64_t end, int32_t worker) {
  if (!plan) return Fail(FOVEA_ERR_INVALID_ARGUMENT, "plan = NULL: must come from fovea_attention_plan");
  if (phase < 0 || phase >= plan->num_phases) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "phase = %d: must be in [0, %d)", phase, plan->num_phases);
  }
  const int64_t n = fovea_plan_tasks(plan, phase);
  if (begin < 0 || begin > end || end > n) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "begin = %lld, end = %lld: must be a range of the phase's %lld tasks",
                static_cast<long long>(begin), static_cast<long long>(end), static_cast<long long>(n));
  }
  if (worker < 0 || worker >= plan->workers) {
    return Fail(FOVEA_ERR_INVALID_ARGUMENT, "worker = %d: must be in [0, %d)", worker, plan->workers);
  }
  fovea_attention_params p;
  fovea_status status = ResolveParams(params, CheckData::kYes, &p);
  if (status == FOVEA_OK) status = CheckSamePlan(*plan, p);
  if (status == FOVEA_OK) RunTasks(*plan, p, plan->phases[phase], begin, end, worker);
  return status;
}

fovea_status fovea_attention_describe(const fovea_attention_params* params, const fovea_exec* exec, fovea_attention_info* info) {
  return Report(exec, Describe(params, exec, info));
}

fovea_status fovea_linear_workspace_size(const fovea_linear_params* params, const fovea_exec* exec, size_t* bytes) {
  if (!bytes) return Report(exec, Fail(FOVEA_ERR_INVALID_ARGUMENT, "bytes = NULL: must point to a size_t"));
  LinearCall call;
  const fovea_status status = CheckLinearCall(params, exec, CheckData::kNo, &call);
  if (status == FOVEA_OK) *bytes = LinearWorkspaceBytes(call.p, call.e.flags, *call.target, call.workers);
  return Report(exec, status);
}

fovea_status fovea_linear(const fovea_linear_params* params, const fovea_exec* exec) { return Report(exec, Linear(params, exec)); }

fovea_status fovea_attention_merge(int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
                                   int64_t rows, int64_t v_head_dim, const fovea_tensor* out, const fovea_tensor* lse,
                                   const fovea_exec* exec) {
  fovea_exec e;
  fovea_status status = ResolveExec(exec, &e);
  if (status == FOVEA_OK) status = CheckMerge(n, outs, lses, batch, num_heads, rows, v_head_dim, out, lse);
  if (status != FOVEA_OK) return Report(exec, status);
  const Target* target = ChosenTarget();
  if (!target) return Report(exec, FOVEA_ERR_TARGET_UNAVAILABLE);
  RunMerge(*target, n, outs, lses, batch, num_heads, rows, v_head_dim, *out, lse, e);
  return Report(exec, FOVEA_OK);
}

fovea_status fovea_rope(const fovea_rope_params* params, const fovea_exec* exec) {
  return Report(exec, Rope(params, exec));
}

fovea_status fovea_rope_tables(const fovea_rope_tables_params* params, const fovea_exec* exec) {
  return Report(exec, RopeTables(params, exec));
}

fovea_status fovea_kv_append(const fovea_kv_append_params* params, const fovea_exec* exec) {
  return Report(exec, KvAppend(params, exec));
}

fovea_status fovea_mha_workspace_size(const fovea_mha_params* params, const fovea_exec* exec, size_t* bytes) {
  if (!bytes) return Report(exec, Fail(FOVEA_ERR_INVALID_ARGUMENT, "bytes = NULL: must point to a size_t"));
  fovea_exec e;
  MhaCall call;
  size_t need;
  const fovea_status status = CheckMhaCall(params, exec, CheckData::kNo, &e, &call, &need);
  if (status == FOVEA_OK) *bytes = need;
  return Report(exec, status);
}

fovea_status fovea_mha_forward(const fovea_mha_params* params, const fovea_exec* exec) { return Report(exec, Mha(params, exec)); }

fovea_status fovea_mha_describe(const fovea_mha_params* params, const fovea_exec* exec, fovea_mha_info* info) {
  return Report(exec, MhaDescribe(params, exec, info));
}

}  // extern "C"
