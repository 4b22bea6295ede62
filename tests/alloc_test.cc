// No memory is taken with a caller's workspace: every allocating function of glibc is replaced in this program, and so
// for the library and the OpenMP runtime too, by one that counts.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

#if defined(__GLIBC__) && !defined(FOVEA_TEST_ASAN) && !defined(FOVEA_TEST_TSAN)

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

void Count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
  Count();
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count();
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  Count();
  return __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Count();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  Count();
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) {
  Count();
  *out = __libc_memalign(alignment, bytes);
  return *out ? 0 : ENOMEM;
}
void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  Count();
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}
}

namespace fovea_test {
namespace {

// Allocations while body runs.
template <typename Body>
int64_t Allocations(const Body& body) {
  allocations = 0;
  counting = true;
  body();
  counting = false;
  return allocations;
}

CaseSpec Spec(int64_t q_len, int64_t kv_len, int32_t stage = FOVEA_SCORES_NONE) {
  CaseSpec spec;
  spec.batch = 2;
  spec.num_q_heads = 4;
  spec.num_kv_heads = 2;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.head_dim = 40;
  spec.options = kCausal | kBottomRight | kMask;
  spec.scores_stage = stage;
  return spec;
}

// A size is asked for and a call made without allocation; exec's workspace is what is returned.
template <class Params>
std::vector<unsigned char> CheckCallsAllocateNothing(const Params& p, fovea_exec* exec,
                                                     fovea_status (*workspace_size)(const Params*, const fovea_exec*, size_t*),
                                                     fovea_status (*call)(const Params*, const fovea_exec*)) {
  size_t bytes = 0;
  CHECK(Allocations([&] { workspace_size(&p, exec, &bytes); }) == 0);
  std::vector<unsigned char> memory(bytes);
  exec->workspace = memory.data();
  exec->workspace_bytes = bytes;
  fovea_status status = call(&p, exec);  // starts the pool
  CHECK(status == FOVEA_OK);
  CHECK(Allocations([&] { status = call(&p, exec); }) == 0);
  CHECK(status == FOVEA_OK);
  return memory;
}

}  // namespace

TEST_CASE("allocation hook: it sees the library's own workspace") {
  AttentionCase c(Spec(150, 300));
  const fovea_exec exec = Threads(1);
  CHECK(Allocations([&] { fovea_attention_forward(&c.p, &exec); }) > 0);
}

TEST_CASE("no allocation with a caller's workspace: forward on one thread and on a warm pool") {
  for (int32_t stage : {FOVEA_SCORES_NONE, FOVEA_SCORES_PROBABILITIES}) {
    for (int32_t threads : {1, 2}) {
      for (const auto& lengths : {std::pair<int64_t, int64_t>{150, 300}, {1, 8000}, {4, 3000}}) {
        INFO("threads ", threads, ", q_len ", lengths.first, ", kv_len ", lengths.second);
        AttentionCase c(Spec(lengths.first, lengths.second, stage));
        fovea_exec exec = Threads(threads);
        size_t bytes = 0;
        REQUIRE(fovea_attention_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
        std::vector<unsigned char> memory(bytes);
        exec.workspace = memory.data();
        exec.workspace_bytes = bytes;
        fovea_status status = fovea_attention_forward(&c.p, &exec);  // starts the pool
        CHECK(status == FOVEA_OK);
        c.v->F32(0, 0, 3, 1) = __builtin_nanf("");  // the redone tiles too
        CHECK(Allocations([&] { status = fovea_attention_forward(&c.p, &exec); }) == 0);
        CHECK(status == FOVEA_OK);
      }
    }
  }
}

TEST_CASE("no allocation with a caller's workspace: pages and positions") {
  for (uint32_t options : {uint32_t{kPaged}, kPaged | kQPositions | kKvPositions}) {
    for (const auto& lengths : {std::pair<int64_t, int64_t>{150, 300}, {1, 8000}}) {
      CaseSpec spec = Spec(lengths.first, lengths.second);
      spec.options |= options | kPoison;
      AttentionCase c(spec);
      fovea_exec exec = Threads(2);
      size_t bytes = 0;
      REQUIRE(fovea_attention_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
      std::vector<unsigned char> memory(bytes);
      exec.workspace = memory.data();
      exec.workspace_bytes = bytes;
      fovea_status status = fovea_attention_forward(&c.p, &exec);  // starts the pool
      CHECK(Allocations([&] { status = fovea_attention_forward(&c.p, &exec); }) == 0);
      CHECK(status == FOVEA_OK);
    }
  }
}

TEST_CASE("no allocation in workspace_size, plan, run_tasks, describe, merge, or in a failing call") {
  AttentionCase c(Spec(150, 300));
  const fovea_exec exec = Threads(1);
  size_t bytes = 0;
  CHECK(Allocations([&] { fovea_attention_workspace_size(&c.p, &exec, &bytes); }) == 0);
  std::vector<unsigned char> memory(bytes);
  const fovea_plan* plan = nullptr;
  CHECK(Allocations([&] { fovea_attention_plan(&c.p, &exec, memory.data(), bytes, &plan); }) == 0);
  REQUIRE(plan != nullptr);
  CHECK(Allocations([&] {
          for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
            fovea_attention_run_tasks(plan, &c.p, phase, 0, fovea_plan_tasks(plan, phase), 0);
          }
        }) == 0);
  fovea_attention_info info;
  fovea_attention_info_init(&info, sizeof info);
  Allocations([&] { fovea_attention_describe(&c.p, &exec, &info); });  // may take scratch of its own
  std::vector<float> copy(static_cast<size_t>(2 * 4 * 150 * 40));
  const fovea_tensor out = fovea_tensor_bhsd(copy.data(), FOVEA_F32, 4, 150, 40);
  const fovea_tensor outs[] = {c.p.out, c.p.out}, lses[] = {c.p.lse, c.p.lse};
  CHECK(Allocations([&] { fovea_attention_merge(2, outs, lses, 2, 4, 150, 40, &out, nullptr, &exec); }) == 0);
  fovea_attention_params wrong = c.p;
  wrong.head_dim = -1;
  fovea_status status = FOVEA_OK;
  CHECK(Allocations([&] { status = fovea_attention_forward(&wrong, &exec); }) == 0);
  CHECK(status == FOVEA_ERR_INVALID_ARGUMENT);
}

TEST_CASE("no allocation in rope, rope_tables and kv_append, on one thread and on a warm pool") {
  constexpr int64_t kHeads = 4, kRows = 900, kDim = 64, kSize = kHeads * kRows * kDim;
  std::vector<float> x(kSize), cache(kSize), cos(kRows * kDim / 2), sin(kRows * kDim / 2);
  const int32_t table[] = {1, 0};
  fovea_rope_tables_params tables;
  fovea_rope_tables_params_init(&tables, sizeof tables);
  tables.rotary_dim = kDim;
  tables.num_positions = kRows;
  tables.cos = fovea_tensor_bhsd(cos.data(), FOVEA_F32, 1, kRows, kDim / 2);
  tables.sin = fovea_tensor_bhsd(sin.data(), FOVEA_F32, 1, kRows, kDim / 2);
  fovea_rope_params rope;
  fovea_rope_params_init(&rope, sizeof rope);
  rope.num_positions = kRows;
  rope.cos = tables.cos;
  rope.sin = tables.sin;
  fovea_kv_append_params append;
  fovea_kv_append_params_init(&append, sizeof append);
  append.batch = 1;
  append.num_kv_heads = kHeads;
  append.q_len = kRows;
  append.head_dim = kDim;
  append.k_new = fovea_tensor_bhsd(x.data(), FOVEA_F32, kHeads, kRows, kDim);
  append.k_cache = fovea_tensor_bhsd(cache.data(), FOVEA_F32, kHeads, kRows / 2, kDim);
  append.block_table = table;
  append.block_table_stride = append.num_pages = 2;
  append.page_size = kRows / 2;
  append.rope = &rope;
  fovea_rope_params whole = rope;
  whole.batch = 1;
  whole.num_heads = kHeads;
  whole.q_len = kRows;
  whole.head_dim = kDim;
  whole.x = whole.out = append.k_new;
  for (int32_t threads : {1, 2}) {
    const fovea_exec exec = Threads(threads);
    fovea_status status[3] = {};
    const auto run = [&] {
      status[0] = fovea_rope_tables(&tables, &exec);
      status[1] = fovea_rope(&whole, &exec);
      status[2] = fovea_kv_append(&append, &exec);
    };
    run();  // starts the pool
    CHECK(Allocations(run) == 0);
    for (const fovea_status s : status) CHECK(s == FOVEA_OK);
  }
}

TEST_CASE("no allocation in linear with a caller's workspace") {
  const int64_t in = 300, out = 1000;
  for (const int64_t tokens : {2, 40}) {
    for (const int32_t threads : {1, 2}) {
      const std::vector<float> x(static_cast<size_t>(tokens * in), 1.0f), w(static_cast<size_t>(out * in), 1.0f);
      std::vector<float> y(static_cast<size_t>(tokens * out));
      fovea_linear_params p;
      fovea_linear_params_init(&p, sizeof p);
      p.tokens = tokens, p.in_features = in, p.out_features = out;
      p.x = fovea_tensor_bhsd(x.data(), FOVEA_F32, 1, tokens, in);
      p.w = fovea_tensor_bhsd(w.data(), FOVEA_F32, 1, out, in);
      p.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, tokens, out);
      fovea_exec exec = Threads(threads);
      const std::vector<unsigned char> memory = CheckCallsAllocateNothing(p, &exec, fovea_linear_workspace_size, fovea_linear);
      CHECK(y[0] == 300.0f);
      p.in_features = 0;
      CHECK(Allocations([&] { fovea_linear(&p, &exec); }) == 0);
    }
  }
}

TEST_CASE("no allocation in mha with a caller's workspace") {
  constexpr int64_t kModel = 96, kHeads = 4, kDim = 24, kRoom = 80;
  for (const int64_t tokens : {1, 40}) {
    for (const int32_t threads : {1, 2}) {
      const std::vector<float> x(static_cast<size_t>(2 * tokens * kModel), 1.0f), w(static_cast<size_t>(3 * kModel * kModel), 0.01f);
      std::vector<float> y(x.size()), k(static_cast<size_t>(2 * kHeads * kRoom * kDim)), v(k.size());
      fovea_mha_params p;
      fovea_mha_params_init(&p, sizeof p);
      p.batch = 2, p.q_len = tokens, p.d_model = kModel, p.num_q_heads = p.num_kv_heads = kHeads, p.head_dim = kDim, p.capacity = kRoom;
      p.x = fovea_tensor_bhsd(x.data(), FOVEA_F32, 1, tokens, kModel);
      p.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, tokens, kModel);
      p.w_qkv = p.wo = fovea_tensor_bhsd(w.data(), FOVEA_F32, 1, 3 * kModel, kModel);
      p.k_cache = fovea_tensor_bhsd(k.data(), FOVEA_F32, kHeads, kRoom, kDim);
      p.v_cache = fovea_tensor_bhsd(v.data(), FOVEA_F32, kHeads, kRoom, kDim);
      fovea_exec exec = Threads(threads);
      const std::vector<unsigned char> memory = CheckCallsAllocateNothing(p, &exec, fovea_mha_workspace_size, fovea_mha_forward);
      // Cross attention with RoPE into an int8 cache.
      std::vector<float> table(static_cast<size_t>(kRoom * kDim), 0.5f), k_scale(static_cast<size_t>(2 * kHeads * kRoom)), v_scale(k_scale.size());
      std::vector<int8_t> k8(k.size()), v8(k.size());
      fovea_rope_params rope;
      fovea_rope_params_init(&rope, sizeof rope);
      rope.cos = rope.sin = fovea_tensor_bhsd(table.data(), FOVEA_F32, 1, kRoom, kDim / 2);
      rope.num_positions = kRoom;
      p.rope = &rope, p.x_kv = p.x, p.kv_len = tokens;
      p.k_cache = fovea_tensor_bhsd(k8.data(), FOVEA_I8, kHeads, kRoom, kDim);
      p.v_cache = fovea_tensor_bhsd(v8.data(), FOVEA_I8, kHeads, kRoom, kDim);
      p.k_scale = fovea_tensor_bhs(k_scale.data(), FOVEA_F32, kHeads, kRoom);
      p.v_scale = fovea_tensor_bhs(v_scale.data(), FOVEA_F32, kHeads, kRoom);
      exec = Threads(threads);
      const std::vector<unsigned char> more = CheckCallsAllocateNothing(p, &exec, fovea_mha_workspace_size, fovea_mha_forward);
      p.head_dim = 0;
      CHECK(Allocations([&] { fovea_mha_forward(&p, &exec); }) == 0);
    }
  }
}

TEST_CASE("no allocation in a caller's executor") {
  AttentionCase c(Spec(150, 300));
  fovea_exec exec = Threads(3);
  exec.parallel_for = [](void*, int64_t n, void (*task)(void*, int64_t), void* arg) {
    for (int64_t i = 0; i < n; ++i) task(arg, i);
  };
  size_t bytes = 0;
  REQUIRE(fovea_attention_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  exec.workspace = memory.data();
  exec.workspace_bytes = bytes;
  fovea_status status = FOVEA_OK;
  CHECK(Allocations([&] { status = fovea_attention_forward(&c.p, &exec); }) == 0);
  CHECK(status == FOVEA_OK);
}

}  // namespace fovea_test

#endif  // glibc without a sanitizer, which replaces malloc itself
