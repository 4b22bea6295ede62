// Workers: OpenMP's, the caller's executor's, or just this thread.
#ifndef FOVEA_LIB_PARALLEL_FOR_H_
#define FOVEA_LIB_PARALLEL_FOR_H_

#include <pthread.h>
#include <unistd.h>

#include <atomic>

#include "fovea/fovea.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fovea {

// Below this cost (FLOP, see TaskCost in plan.cc; some 60 us of one core) a call stays on its thread: waking a sleeping pool costs 40-80 us.
constexpr double kSerialCost = 3e6;

// Set in a forked child, whose OpenMP pool has no threads: entering it would hang. (api.cc registers the handler when the library loads.)
extern std::atomic<bool> forked_child;

// How many workers a call gets.
inline int32_t NumWorkers(const fovea_exec& exec) {
  if (exec.num_threads > 0) return exec.num_threads;
  if (exec.parallel_for) {
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus > 0 ? static_cast<int32_t>(cpus) : 1;
  }
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls body(worker, i) for each i in [0, n), workers pulling the next i from a counter. At most max_workers run, each with a worker number of its
// own. body must not throw.
template <class Body>
void ParallelFor(const fovea_exec& exec, int32_t max_workers, int64_t n, const Body& body) {
  struct Shared {
    const Body* body;
    int64_t n;
    std::atomic<int64_t> next;
  } shared = {&body, n, {0}};
  const auto work = [](void* arg, int64_t worker) {
    Shared* s = static_cast<Shared*>(arg);
    for (int64_t i; (i = s->next.fetch_add(1, std::memory_order_relaxed)) < s->n;) (*s->body)(static_cast<int32_t>(worker), i);
  };
  const int32_t workers = static_cast<int32_t>(n < max_workers ? n : max_workers);
  if (workers > 1 && exec.parallel_for) {
    exec.parallel_for(exec.parallel_for_ctx, workers, work, &shared);
    return;
  }
#ifdef _OPENMP
  if (workers > 1 && !omp_in_parallel() && !forked_child.load(std::memory_order_relaxed)) {
#pragma omp parallel num_threads(workers)
    work(&shared, omp_get_thread_num());
    return;
  }
#endif
  work(&shared, 0);
}

}  // namespace fovea

#endif  // FOVEA_LIB_PARALLEL_FOR_H_
