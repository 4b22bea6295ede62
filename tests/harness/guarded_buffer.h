// Memory that touches a PROT_NONE page, so that one element read or written too far is a crash; the rest of its pages
// is canary.
#ifndef FOVEA_TESTS_HARNESS_GUARDED_BUFFER_H_
#define FOVEA_TESTS_HARNESS_GUARDED_BUFFER_H_

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

namespace fovea_test {

enum class Guard { kAfter, kBefore };  // which end of the data touches its guard page

class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  GuardedBuffer(size_t bytes, Guard guard);
  ~GuardedBuffer();
  GuardedBuffer(GuardedBuffer&& other) noexcept { *this = std::move(other); }
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() const { return data_; }
  size_t size() const { return size_; }
  // All accessible bytes, canary included; data() lies within.
  unsigned char* region() const { return region_; }
  size_t region_bytes() const { return region_bytes_; }

 private:
  unsigned char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  unsigned char* region_ = nullptr;
  size_t region_bytes_ = 0;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A guarded array for the small inputs (lengths, slopes, sinks); data() is NULL where it was never set.
template <typename T>
class GuardedArray {
 public:
  GuardedArray() = default;
  GuardedArray(const std::vector<T>& values, Guard guard) : buffer_(values.size() * sizeof(T), guard) {
    if (!values.empty()) std::memcpy(buffer_.data(), values.data(), buffer_.size());
  }
  T* data() const { return static_cast<T*>(buffer_.data()); }

 private:
  GuardedBuffer buffer_;
};

}  // namespace fovea_test

#endif  // FOVEA_TESTS_HARNESS_GUARDED_BUFFER_H_
