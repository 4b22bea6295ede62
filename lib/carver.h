// Workspaces are cut into arrays by one pass of a Carver, and measured by the same pass with no memory.
#ifndef FOVEA_LIB_CARVER_H_
#define FOVEA_LIB_CARVER_H_

#include <stddef.h>
#include <stdint.h>

namespace fovea {

constexpr size_t kAlign = 64;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Where a Carver may begin in memory of any alignment: up to kAlign - 1 bytes are lost.
inline char* AlignUp(void* memory) {
  return static_cast<char*>(memory) + (kAlign - reinterpret_cast<uintptr_t>(memory) % kAlign) % kAlign;
}

// Cuts memory into aligned arrays; with base null only counts. Overflow sticks.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  template <class T>
  T* Take(int64_t count) {
    char* const at = base_ + (base_ ? used_ : 0);
    size_t bytes = 0;
    overflow_ |= __builtin_mul_overflow(static_cast<size_t>(count), sizeof(T), &bytes) || bytes > SIZE_MAX / 4 ||
                 __builtin_add_overflow(used_, (bytes + kAlign - 1) & ~(kAlign - 1), &used_);
    return base_ ? reinterpret_cast<T*>(at) : nullptr;
  }
  size_t used() const { return used_; }
  bool overflow() const { return overflow_; }

 private:
  char* base_;
  size_t used_ = 0;
  bool overflow_ = false;
};

}  // namespace fovea

#endif  // FOVEA_LIB_CARVER_H_
