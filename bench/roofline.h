// This machine's own limits, measured in the same process as what is compared with them, so that both see the same
// clock and neighbours: FMA and exp throughput per target, and read bandwidth by footprint. Rates are of all `threads`
// together, which start at a barrier; a caller takes medians. Targets are named as by fovea_get_target(); one that is
// not compiled in throws std::runtime_error.
#ifndef FOVEA_BENCH_ROOFLINE_H_
#define FOVEA_BENCH_ROOFLINE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fovea_bench {

double Seconds();  // of a steady clock
double Median(std::vector<double> values);

// The threads that fovea takes by default; 1 without OpenMP.
int MaxThreads();

// task(i, thread) for each i in [0, n), on OpenMP's threads; serially without OpenMP.
void ParallelFor(int threads, int n, const std::function<void(int, int)>& task);

// f32 FLOP/s of independent FMA chains in registers: what a matrix product tends to. Each thread does about `flop`.
double FmaRate(const std::string& target, double flop, int threads);

// FLOP/s of independent chains of dot products of bf16, which the target's bf16 prefill consists of; 0 where it has none.
double Bf16DotRate(const std::string& target, double flop, int threads);

// The same instructions seen from the clock, one thread; FMA means multiply and add on targets without FMA.
struct FmaCheck {
  int lanes;             // f32 lanes of a vector
  double clock_ghz;      // by a dependent chain of integer add and xor, one cycle each
  double fma_per_cycle;  // FmaRate / (2 lanes clock): near a whole number, the pipes, unless something was folded or
                         // stalls
  double fma_latency;    // cycles of a dependent FMA
};
FmaCheck CheckFma(const std::string& target);

// Exp2 of lib/kernels/exp-inl.h per second, operands in L1.
double ExpRate(const std::string& target, double count, int threads);

// Bytes/s of reading the spans once (small ones several times), each span cut evenly among the threads, by whole
// vectors in 4 streams per thread.
struct Span {
  const float* data;  // aligned to 64 bytes
  int64_t bytes;
};
double ReadRate(const std::string& target, const std::vector<Span>& spans, int threads);
// The same for a buffer of the function's own; kept for the next call. bytes is the footprint of all threads together.
double ReadRate(const std::string& target, int64_t bytes, int threads);

// Size of the data cache of this level, 1 to 3, of one core (level 3: all that cpu0 shares); a usual one where the
// kernel does not say.
int64_t CacheBytes(int level);

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_ROOFLINE_H_
