// This machine's own limits, measured in the same process and alternating with what is compared to them.
#ifndef FOVEA_BENCH_ROOFLINE_H_
#define FOVEA_BENCH_ROOFLINE_H_

#include <cstdint>
#include <string>

namespace fovea_bench {

// Runs about `flop` FLOP of independent f32 FMA chains (register tile's shape, distinct run-time start values, so that no compiler can merge or fold
// them) with the vectors of a target, on this thread. Returns the FLOP done; 0 for a target that is not compiled in.
double RunFmaPeak(const std::string& target, double flop);

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_ROOFLINE_H_
