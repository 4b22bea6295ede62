// What the kernels of fovea_linear are handed: plain structs and constants, no std types.
#ifndef FOVEA_LIB_KERNELS_LINEAR_PARAMS_H_
#define FOVEA_LIB_KERNELS_LINEAR_PARAMS_H_

#include <stdint.h>

namespace fovea {

// Input features of one block: x^T and W of a block are multiplied into a sum that starts at 0 and is added to y's
// once. Blocks start at multiples of it on every target: part of the numerical contract (lib/NUMERICS.md).
constexpr int32_t kLinearBlockK = 128;
// Calls of up to this many tokens take dot products over W in place, unless FOVEA_BATCH_INVARIANT is set.
constexpr int32_t kLinearDotTokens = 8;
// Rows of W that a task packs at a time.
constexpr int32_t kLinearBlockRows = 256;

// One block of input features of a task: sum[panel][row][lane] += W[row][.] * x^T[.][lane].
struct LinearBlock {
  const float* xt;  // [panel][k][lanes of the panel]: tokens in lanes, kTileVecs vectors per panel, fewer in the last
  const float* w;   // [group][k][tile_keys]: rows of W, the last group's padded with zeros
  float* sum;       // [panel][rows][lanes of the panel]
  int32_t lanes;    // of all panels, a multiple of the vector
  int32_t rows;     // of whole groups
  int32_t k;        // features of the block
};

// A few tokens' dot products with rows of W where they lie: sums[token][row] = dot(W[row], x[token]).
struct LinearDots {
  const void* w;
  const float* x;  // [token][x_pitch], zeros past column k
  float* sums;     // [token][sums_pitch], rows rounded up to 4 are written
  int64_t w_stride, x_pitch, sums_pitch;
  int32_t tokens, rows, k;
};

// The kernels that read or write one storage type.
struct LinearTypeKernels {
  // packed[k][lane] = x[lane][k] of `rows` rows, zeros in lanes past them: tokens of a panel, and rows of W of a group.
  void (*pack)(const void* x, int64_t stride, int32_t rows, int32_t k, int32_t lanes, float* packed);
  // The first n elements of a row.
  void (*load_row)(const void* x, int32_t n, float* row);
  void (*dot)(const LinearDots& t);
  // y[token][row] = sum[row][lane] + bias[row] for the tokens of one panel; bias may be null. sum has rows of whole
  // groups.
  void (*store_y)(const float* sum, int32_t lanes, int32_t tokens, int32_t rows, const float* bias, void* y,
                  int64_t stride);
  // y[row] = sums[row] + bias[row].
  void (*store_row)(const float* sums, int32_t rows, const float* bias, void* y);
};

}  // namespace fovea

#endif  // FOVEA_LIB_KERNELS_LINEAR_PARAMS_H_
