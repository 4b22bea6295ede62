#include "tests/harness/test_tensor.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>

#include "lib/dtype.h"

namespace fovea_test {
namespace {

bool Empty(const Shape& s) { return s.batch == 0 || s.heads == 0 || s.rows == 0 || s.cols == 0; }

size_t ElementBytes(fovea_dtype dtype) { return static_cast<size_t>(fovea::DtypeBytes(dtype)); }

}  // namespace

Strides DenseStrides(const Shape& s) { return {s.heads * s.rows * s.cols, s.rows * s.cols, s.cols, 1}; }

Strides RandomStrides(Rng* rng, const Shape& shape, bool free_columns, bool broadcast) {
  const int64_t extents[4] = {shape.batch, shape.heads, shape.rows, shape.cols};
  int64_t strides[4];
  int order[4] = {3, 2, 1, 0};  // innermost first
  const int first = free_columns && rng->Chance(40) ? 0 : 1;
  for (int n = first; n < 3; ++n) std::swap(order[n], order[rng->Int(n, 3)]);
  int64_t next = 1;
  for (int n = 0; n < 4; ++n) {
    if (n > 0 || (free_columns && rng->Chance(20))) next += rng->Chance(50) ? rng->Int(0, 3) : 0;
    strides[order[n]] = next;
    next *= std::max<int64_t>(1, extents[order[n]]);
  }
  const int last = free_columns ? 4 : 3;
  for (int n = 0; n < last; ++n) {
    if (broadcast && rng->Chance(25)) strides[n] = 0;
    if (rng->Chance(15)) strides[n] = -strides[n];
  }
  return {strides[0], strides[1], strides[2], strides[3]};
}

TestTensor::TestTensor(fovea_dtype dtype, const Shape& shape, const Strides& strides, Guard guard)
    : dtype_(dtype), shape_(shape), strides_(strides), guard_(guard), base_(nullptr) {
  if (Empty(shape)) return;
  int64_t low = 0, high = 0;
  const int64_t extents[4] = {shape.batch, shape.heads, shape.rows, shape.cols};
  const int64_t steps[4] = {strides.batch, strides.head, strides.row, strides.col};
  for (int n = 0; n < 4; ++n) {
    const int64_t span = (extents[n] - 1) * steps[n];
    (span < 0 ? low : high) += span;
  }
  const size_t count = static_cast<size_t>(high - low + 1);
  buffer_ = GuardedBuffer(count * ElementBytes(dtype), guard);
  const float nan = fovea::FloatOf(0x7fc0dead);
  if (dtype == FOVEA_I8) {
    std::memset(buffer_.data(), 0x80, count);
  } else if (dtype != FOVEA_U8) {
    for (size_t n = 0; n < count; ++n) fovea::StoreElement(dtype, nan, buffer_.data(), static_cast<int64_t>(n));
  }
  base_ = static_cast<unsigned char*>(buffer_.data()) + static_cast<size_t>(-low) * ElementBytes(dtype);
}

fovea_tensor TestTensor::view() const {
  fovea_tensor t{};
  t.data = base_;
  t.dtype = dtype_;
  t.stride_batch = strides_.batch;
  t.stride_head = strides_.head;
  t.stride_row = strides_.row;
  t.stride_col = strides_.col;
  return t;
}

float TestTensor::Get(int64_t b, int64_t h, int64_t i, int64_t c) const {
  return fovea::LoadElement(dtype_, base_, Offset(b, h, i, c));
}

void TestTensor::Set(int64_t b, int64_t h, int64_t i, int64_t c, float value) {
  if (dtype_ == FOVEA_I8) {
    static_cast<int8_t*>(base_)[Offset(b, h, i, c)] = static_cast<int8_t>(value);
    return;
  }
  fovea::StoreElement(dtype_, value, base_, Offset(b, h, i, c));
}

std::unique_ptr<TestTensor> TestTensor::As(fovea_dtype dtype) const {
  auto other = std::make_unique<TestTensor>(dtype, shape_, strides_, guard_);
  const float largest = dtype == FOVEA_F16 ? 65504.0f : dtype == FOVEA_BF16 ? 0x1.FEp127f : FLT_MAX;
  for (int64_t b = 0; b < shape_.batch; ++b) {
    for (int64_t h = 0; h < shape_.heads; ++h) {
      for (int64_t i = 0; i < shape_.rows; ++i) {
        for (int64_t c = 0; c < shape_.cols; ++c) {
          const float x = Get(b, h, i, c);
          other->Set(b, h, i, c, std::isfinite(x) ? std::clamp(x, -largest, largest) : x);
        }
      }
    }
  }
  return other;
}

void TestTensor::Snapshot() { snapshot_.assign(buffer_.region(), buffer_.region() + buffer_.region_bytes()); }

std::string TestTensor::Changed(const std::function<bool(int64_t b, int64_t h, int64_t i)>& may_change) const {
  std::vector<unsigned char> expected = snapshot_;
  if (may_change && base_) {
    const size_t bytes = ElementBytes(dtype_);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      for (int64_t h = 0; h < shape_.heads; ++h) {
        for (int64_t i = 0; i < shape_.rows; ++i) {
          if (!may_change(b, h, i)) continue;
          for (int64_t c = 0; c < shape_.cols; ++c) {
            const unsigned char* at =
                static_cast<unsigned char*>(base_) + Offset(b, h, i, c) * static_cast<int64_t>(bytes);
            std::memcpy(expected.data() + (at - buffer_.region()), at, bytes);
          }
        }
      }
    }
  }
  const auto difference = std::mismatch(expected.begin(), expected.end(), buffer_.region());
  if (difference.first == expected.end()) return "";
  const auto data_begin = static_cast<unsigned char*>(buffer_.data()) - buffer_.region();
  return "byte " + std::to_string(difference.first - expected.begin() - data_begin) + " of " +
         std::to_string(buffer_.size()) + " changed";
}

}  // namespace fovea_test
