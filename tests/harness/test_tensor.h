// A strided tensor in guarded memory whose gaps hold NaN and are checked.
#ifndef FOVEA_TESTS_HARNESS_TEST_TENSOR_H_
#define FOVEA_TESTS_HARNESS_TEST_TENSOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "tests/harness/guarded_buffer.h"
#include "tests/harness/random.h"

namespace fovea_test {

struct Shape {
  int64_t batch, heads, rows, cols;
};
struct Strides {
  int64_t batch, head, row, col;
};

Strides DenseStrides(const Shape& shape);  // [batch][heads][rows][cols]

// Dimensions in a random order with random gaps, some negative; for an input with broadcast some 0. free_columns: the
// last dimension takes part too (mask, bias, scores), else its stride is 1.
Strides RandomStrides(Rng* rng, const Shape& shape, bool free_columns, bool broadcast);

class TestTensor {
 public:
  TestTensor(fovea_dtype dtype, const Shape& shape, const Strides& strides, Guard guard);

  // stride_col is 1 in any view with contiguous columns.
  fovea_tensor view() const;
  const Shape& shape() const { return shape_; }
  // Of F32, BF16, F16 or I8 (whole numbers within its range).
  float Get(int64_t b, int64_t h, int64_t i, int64_t c = 0) const;
  void Set(int64_t b, int64_t h, int64_t i, int64_t c, float value);
  // The same numbers in the same layout as another of these types, rounded, but finite ones to finite ones.
  std::unique_ptr<TestTensor> As(fovea_dtype dtype) const;
  float& F32(int64_t b, int64_t h, int64_t i, int64_t c = 0) const {
    return static_cast<float*>(base_)[Offset(b, h, i, c)];
  }
  uint8_t& U8(int64_t b, int64_t h, int64_t i, int64_t c = 0) const {
    return static_cast<uint8_t*>(base_)[Offset(b, h, i, c)];
  }

  const Strides& strides() const { return strides_; }
  Guard guard() const { return guard_; }

  void Snapshot();
  // "" if every byte of the memory, gaps and canary included, is as it was at Snapshot(), except those of elements
  // for which may_change (empty: of none); else where it is not.
  std::string Changed(const std::function<bool(int64_t b, int64_t h, int64_t i)>& may_change = nullptr) const;

 private:
  int64_t Offset(int64_t b, int64_t h, int64_t i, int64_t c) const {
    return b * strides_.batch + h * strides_.head + i * strides_.row + c * strides_.col;
  }

  fovea_dtype dtype_;
  Shape shape_;
  Strides strides_;
  Guard guard_;
  GuardedBuffer buffer_;
  void* base_;  // element (0, 0, 0, 0); NULL where there is none
  std::vector<unsigned char> snapshot_;
};

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_TEST_TENSOR_H_
