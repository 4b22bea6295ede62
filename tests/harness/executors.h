// Executors for fovea_exec::parallel_for.
#ifndef FOVEA_TESTS_HARNESS_EXECUTORS_H_
#define FOVEA_TESTS_HARNESS_EXECUTORS_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "fovea/fovea.h"

namespace fovea_test {

using Task = void (*)(void* arg, int64_t i);

// Counts what it was asked to run, if ctx points to a counter.
inline void Serial(void* ctx, int64_t n, Task task, void* arg) {
  if (ctx) *static_cast<int64_t*>(ctx) += n;
  for (int64_t i = 0; i < n; ++i) task(arg, i);
}

inline void Reversed(void*, int64_t n, Task task, void* arg) {
  for (int64_t i = n - 1; i >= 0; --i) task(arg, i);
}

// Every task on a thread of its own, eight at a time.
inline void StdThreads(void*, int64_t n, Task task, void* arg) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&next, n, task, arg] {
      for (int64_t i = next++; i < n; i = next++) task(arg, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Ways to run a call's tasks; NULL is OpenMP's.
constexpr fovea_parallel_for kExecutors[] = {nullptr, &Serial, &Reversed, &StdThreads};

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_EXECUTORS_H_
