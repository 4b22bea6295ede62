// What bench_tile.cc hands to the tiles of one target. No std types: it is compiled for every target.
#ifndef FOVEA_BENCH_TILE_OPERANDS_H_
#define FOVEA_BENCH_TILE_OPERANDS_H_

#include <stdint.h>

namespace fovea_bench {

struct TileShape {
  int keys, lanes;
};

struct TileOperands {
  const float* const* rows;  // [num_rows], of K or V, `dim` elements each
  int64_t num_rows, dim;
  float *qt, *p, *ot, *m, *l, *mx;  // as fovea::KernelScratch
  int64_t p_rows;                   // rows of P before they repeat
  int64_t ot_rows;                  // columns of V that are used
  bool softmax;
};

}  // namespace fovea_bench

#endif  // FOVEA_BENCH_TILE_OPERANDS_H_
