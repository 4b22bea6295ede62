#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/roofline.cc"
#include "bench/limit_kernels.h"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::ScalableTag<float>;

template <class V>
HWY_INLINE void Fma12(V x, V y, V& a0, V& a1, V& a2, V& a3, V& a4, V& a5, V& a6, V& a7, V& a8, V& a9, V& a10, V& a11) {
  a0 = hn::MulAdd(a0, x, y), a1 = hn::MulAdd(a1, x, y), a2 = hn::MulAdd(a2, x, y), a3 = hn::MulAdd(a3, x, y);
  a4 = hn::MulAdd(a4, x, y), a5 = hn::MulAdd(a5, x, y), a6 = hn::MulAdd(a6, x, y), a7 = hn::MulAdd(a7, x, y);
  a8 = hn::MulAdd(a8, x, y), a9 = hn::MulAdd(a9, x, y), a10 = hn::MulAdd(a10, x, y), a11 = hn::MulAdd(a11, x, y);
}

template <class V>
HWY_INLINE V Sum12(V a0, V a1, V a2, V a3, V a4, V a5, V a6, V a7, V a8, V a9, V a10, V a11) {
  const V low = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
  return hn::Add(low, hn::Add(hn::Add(a8, a9), hn::Add(a10, a11)));
}

// 12 chains cover 2 pipes of latency 5; 24, where the registers are there, 4 pipes of latency 4 (Neoverse V, Apple).
// The start values differ and are known at run time only: from equal constants g++ makes one chain. The chains run
// through the factor, so that a product cannot be hoisted where multiply and add are two instructions (12 chains of
// both reach some 85% of two per cycle there).
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2
constexpr bool kWide = false;
#else
constexpr bool kWide = true;
#endif

HWY_NOINLINE double FmaChains(int64_t turns, const float* start, float* sink) {
  const DF d;
  using V = hn::Vec<DF>;
  V a0 = hn::Set(d, start[0]), a1 = hn::Set(d, start[1]), a2 = hn::Set(d, start[2]), a3 = hn::Set(d, start[3]);
  V a4 = hn::Set(d, start[4]), a5 = hn::Set(d, start[5]), a6 = hn::Set(d, start[6]), a7 = hn::Set(d, start[7]);
  V a8 = hn::Set(d, start[8]), a9 = hn::Set(d, start[9]), a10 = hn::Set(d, start[10]), a11 = hn::Set(d, start[11]);
  V b0 = hn::Set(d, start[12]), b1 = hn::Set(d, start[13]), b2 = hn::Set(d, start[14]), b3 = hn::Set(d, start[15]);
  V b4 = hn::Set(d, start[16]), b5 = hn::Set(d, start[17]), b6 = hn::Set(d, start[18]), b7 = hn::Set(d, start[19]);
  V b8 = hn::Set(d, start[20]), b9 = hn::Set(d, start[21]), b10 = hn::Set(d, start[22]), b11 = hn::Set(d, start[23]);
  const V x = hn::Set(d, start[24]), y = hn::Set(d, start[25]);
  for (int64_t i = 0; i < turns; ++i) {
    Fma12(x, y, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11);
    if constexpr (kWide) Fma12(x, y, b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11);
  }
  V sum = Sum12(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11);
  if constexpr (kWide) sum = hn::Add(sum, Sum12(b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11));
  *sink = hn::GetLane(hn::SumOfLanes(d, sum));
  return (kWide ? 48.0 : 24.0) * static_cast<double>(hn::Lanes(d)) * static_cast<double>(turns);
}

HWY_NOINLINE double FmaChain(int64_t turns, const float* start, float* sink) {
  const DF d;
  auto a = hn::Set(d, start[0]);
  const auto x = hn::Set(d, start[24]), y = hn::Set(d, start[25]);
  for (int64_t i = 0; i < turns; ++i) {
    a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y);
    a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y), a = hn::MulAdd(a, x, y);
  }
  *sink = hn::GetLane(hn::SumOfLanes(d, a));
  return 8.0 * static_cast<double>(turns);
}

// x, y: kExpFloats arguments and results.
HWY_NOINLINE double Exps(int64_t turns, const float* x, float* y) {
  const DF d;
  const size_t N = hn::Lanes(d);
  for (int64_t i = 0; i < turns; ++i) {
    for (size_t j = 0; j < kExpFloats; j += N) hn::Store(fovea::HWY_NAMESPACE::Exp2(d, hn::Load(d, x + j)), d, y + j);
    asm volatile("" : "+r"(x), "+r"(y) : : "memory");  // they may have changed: no pass can be left out
  }
  return static_cast<double>(kExpFloats) * static_cast<double>(turns);
}

// 4 streams of 2 vectors a step: more lines are under way than with one, where the hardware prefetcher is the limit.
HWY_NOINLINE void Read(const float* p, int64_t count, int64_t passes, float* sink) {
  const DF d;
  const int64_t N = static_cast<int64_t>(hn::Lanes(d)), stream = count / (8 * N) * (2 * N);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const float *p0 = p, *p1 = p + stream, *p2 = p1 + stream, *p3 = p2 + stream;
    for (int64_t i = 0; i < stream; i += 2 * N) {
      s0 = hn::Add(s0, hn::LoadU(d, p0 + i)), s1 = hn::Add(s1, hn::LoadU(d, p0 + i + N));
      s2 = hn::Add(s2, hn::LoadU(d, p1 + i)), s3 = hn::Add(s3, hn::LoadU(d, p1 + i + N));
      s4 = hn::Add(s4, hn::LoadU(d, p2 + i)), s5 = hn::Add(s5, hn::LoadU(d, p2 + i + N));
      s6 = hn::Add(s6, hn::LoadU(d, p3 + i)), s7 = hn::Add(s7, hn::LoadU(d, p3 + i + N));
    }
    asm volatile("" : "+r"(p) : : "memory");
  }
  s0 = hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)));
  *sink = hn::GetLane(hn::SumOfLanes(d, s0));
}

HWY_NOINLINE LimitKernels GetLimitKernels() {
  return {static_cast<int>(hn::Lanes(DF())), &FmaChains, &FmaChain, &Exps, &Read};
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "bench/per_target.h"
#include "bench/roofline.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fovea_bench {
namespace {

HWY_EXPORT(GetLimitKernels);

LimitKernels Kernels(const std::string& target) { return HWY_DISPATCH_TABLE(GetLimitKernels)[TargetIndex(target)](); }

volatile float kept;  // results go here

// Start values and factors that no compiler knows.
struct Seeds {
  float start[26];
  Seeds() {
    static const volatile float step = 0.0625f;
    for (int i = 0; i < 24; ++i) start[i] = step * static_cast<float>(i + 1);
    start[24] = 1.0f - step;
    start[25] = step * step;
  }
};

// Seconds from the first thread's start of task(thread) to the last one's end.
template <class Task>
double TimeOnThreads(int threads, const Task& task) {
  double first = 1e300, last = 0;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp barrier
      const double begin = Seconds();
      task(omp_get_thread_num());
      const double end = Seconds();
#pragma omp critical
      first = std::min(first, begin), last = std::max(last, end);
    }
    return last - first;
  }
#endif
  first = Seconds();
  for (int t = 0; t < threads; ++t) task(t);
  last = Seconds();
  return last - first;
}

// x + y, then ^ z: two cycles a step everywhere; neither can be merged with the next, nor done at renaming as adding a
// constant can.
HWY_NOINLINE uint64_t IntegerChain(int64_t turns, uint64_t x, uint64_t y, uint64_t z) {
  for (int64_t i = 0; i < turns; ++i) {
    x = (x + y) ^ z, x = (x + y) ^ z, x = (x + y) ^ z, x = (x + y) ^ z;
    x = (x + y) ^ z, x = (x + y) ^ z, x = (x + y) ^ z, x = (x + y) ^ z;
  }
  return x;
}

double ClockRate() {
  constexpr int64_t kTurns = 100000;
  static const volatile uint64_t seed = 0x9E3779B97F4A7C15u;
  const uint64_t y = seed, z = seed + 1;
  const double t0 = Seconds();
  kept = static_cast<float>(IntegerChain(kTurns, seed, y, z));
  return 16.0 * kTurns / (Seconds() - t0);
}

}  // namespace

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int MaxThreads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void ParallelFor(int threads, int n, const std::function<void(int, int)>& task) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int i = 0; i < n; ++i) task(i, omp_get_thread_num());
#else
  (void)threads;
  for (int i = 0; i < n; ++i) task(i, 0);
#endif
}

double FmaRate(const std::string& target, double flop, int threads) {
  const LimitKernels k = Kernels(target);
  const Seeds seeds;
  const int64_t turns = static_cast<int64_t>(flop / (48.0 * k.lanes)) + 1;
  double done = 0;
  const double seconds = TimeOnThreads(threads, [&](int thread) {
    float sink;
    const double mine = k.fma_chains(turns, seeds.start, &sink);
    kept = sink;
    if (thread == 0) done = mine;
  });
  return threads * done / seconds;
}

double Bf16DotRate(const std::string& target, double flop, int threads) {
  if (target != "AVX3_BF16" && target != "NEON_BFDOT") return 0.0;
  const Seeds seeds;
  const int64_t turns = static_cast<int64_t>(flop / (kBf16DotChainsFlop * Kernels(target).lanes)) + 1;
  double done = 0;
  const double seconds = TimeOnThreads(threads, [&](int thread) {
    float sink;
    const double mine = Bf16DotChains(turns, seeds.start, &sink);
    kept = sink;
    if (thread == 0) done = mine;
  });
  return threads * done / seconds;
}

FmaCheck CheckFma(const std::string& target) {
  constexpr int64_t kTurns = 50000;
  constexpr int kRounds = 15;
  const LimitKernels k = Kernels(target);
  const Seeds seeds;
  std::vector<double> clock, per_cycle, latency;
  for (int i = 0; i < kRounds; ++i) {
    const double before = ClockRate(), rate = FmaRate(target, 1e7 * k.lanes, 1);
    float sink;
    const double t0 = Seconds();
    const double chained = k.fma_chain(kTurns, seeds.start, &sink);
    const double t1 = Seconds(), hertz = 0.5 * (before + ClockRate());
    kept = sink;
    clock.push_back(hertz * 1e-9);
    per_cycle.push_back(rate / (2.0 * k.lanes * hertz));
    latency.push_back((t1 - t0) * hertz / chained);
  }
  return {k.lanes, Median(clock), Median(per_cycle), Median(latency)};
}

double ExpRate(const std::string& target, double count, int threads) {
  const LimitKernels k = Kernels(target);
  alignas(64) float x[kExpFloats];
  const Seeds seeds;
  for (size_t i = 0; i < kExpFloats; ++i) x[i] = seeds.start[i % 24] - 2.0f * static_cast<float>(i % 7);
  double done = 0;
  const double seconds = TimeOnThreads(threads, [&](int thread) {
    alignas(64) float y[kExpFloats];
    const double mine = k.exps(static_cast<int64_t>(count / kExpFloats) + 1, x, y);
    if (thread == 0) done = mine;
  });
  return threads * done / seconds;
}

double ReadRate(const std::string& target, const std::vector<Span>& spans, int threads) {
  constexpr int64_t kAtLeast = 16 << 20;  // bytes: some 100 us or more
  constexpr int64_t kStep = 8 * 64;       // what the loop reads in one step with the widest vectors
  const LimitKernels k = Kernels(target);
  int64_t bytes = 0;
  for (const Span& span : spans) bytes += span.bytes / (kStep * threads) * (kStep * threads);
  if (bytes == 0) return 0.0;
  const int64_t passes = std::max<int64_t>(1, kAtLeast / bytes);
  // Small spans are gone over together, as they would be used; passes of one span at a time would be another footprint.
  const int64_t inner = spans.size() == 1 ? passes : 1, outer = passes / inner;
  const double seconds = TimeOnThreads(threads, [&](int thread) {
    for (int64_t pass = 0; pass < outer; ++pass) {
      for (const Span& span : spans) {
        const int64_t mine = span.bytes / (kStep * threads) * kStep / int64_t{sizeof(float)};
        float sink;
        k.read(span.data + thread * mine, mine, inner, &sink);
        kept = sink;
      }
    }
  });
  return static_cast<double>(bytes) * static_cast<double>(passes) / seconds;
}

double ReadRate(const std::string& target, int64_t bytes, int threads) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  static std::unique_ptr<float[], Free> buffer;
  static int64_t have = 0;
  if (bytes > have) {
    buffer.reset(static_cast<float*>(std::aligned_alloc(4096, static_cast<size_t>(bytes + 4095) / 4096 * 4096)));
    if (!buffer) throw std::bad_alloc();
    std::fill_n(buffer.get(), bytes / int64_t{sizeof(float)}, 1.0f);
    have = bytes;
  }
  return ReadRate(target, std::vector<Span>{{buffer.get(), bytes}}, threads);
}

int64_t CacheBytes(int level) {
  const std::string base = "/sys/devices/system/cpu/cpu0/cache/index";
  for (int i = 0; i < 8; ++i) {
    const std::string dir = base + std::to_string(i) + "/";
    int number = 0;
    std::string type;
    int64_t size = 0;
    char unit = ' ';
    std::ifstream(dir + "level") >> number;
    std::ifstream(dir + "type") >> type;
    std::ifstream(dir + "size") >> size >> unit;
    if (number == level && type != "Instruction" && size > 0) return size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
  }
  return level == 1 ? 32 << 10 : level == 2 ? 1 << 20 : 32 << 20;
}

}  // namespace fovea_bench
#endif  // HWY_ONCE
