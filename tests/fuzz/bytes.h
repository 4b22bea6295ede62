// What fuzz targets share: bytes as a source of numbers, and memory in whose middle tensors lie.
#ifndef FOVEA_TESTS_FUZZ_BYTES_H_
#define FOVEA_TESTS_FUZZ_BYTES_H_

#include <cstddef>
#include <cstdint>

#include "fovea/fovea.h"
#include "lib/dtype.h"

namespace fovea_test {

__extension__ typedef __int128 Wide;  // in which no product of fields wraps

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t Byte() { return at_ < size_ ? data_[at_++] : 0; }
  int64_t Int(int64_t low, int64_t high) { return low + (Byte() | Byte() << 8) % (high - low + 1); }
  bool Chance(int of_256) { return Byte() < of_256; }
  // A number that a field was not made for.
  int64_t Odd() {
    static constexpr int64_t kValues[] = {0, 1, -1, 2, -2, 7, 1 << 20, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, int64_t{1} << 30,
                                          (int64_t{1} << 30) - 1, int64_t{1} << 32, int64_t{1} << 62, -(int64_t{1} << 40)};
    return kValues[Byte() % (sizeof kValues / sizeof kValues[0])];
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// Elements of an array of `dtype`, in [-2, 2).
inline void FillFloats(fovea_dtype dtype, int64_t count, uint32_t* state, void* data) {
  for (int64_t i = 0; i < count; ++i) {
    *state = *state * 1664525u + 1013904223u;
    fovea::StoreElement(dtype, static_cast<float>(*state >> 8) * 0x1p-22f - 2.0f, data, i);
  }
}

// Whether every element that the extents and strides name lies within `room` elements on both sides of the first.
inline bool Inside(const fovea_tensor& t, int64_t batch, int64_t heads, int64_t rows, int64_t cols, int64_t stride_col, int64_t room) {
  if (!t.data) return true;
  Wide low = 0, high = 0;
  const auto span = [&](int64_t extent, int64_t stride) {
    if (extent < 2) return;
    const Wide reach = static_cast<Wide>(extent - 1) * stride;
    (reach < 0 ? low : high) += reach;
  };
  span(batch, t.stride_batch);
  span(heads, t.stride_head);
  span(rows, t.stride_row);
  span(cols, stride_col);
  return low >= -room && high < room;
}

}  // namespace fovea_test

#endif  // FOVEA_TESTS_FUZZ_BYTES_H_
