#include "tests/harness/guarded_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace fovea_test {

GuardedBuffer::GuardedBuffer(size_t bytes, Guard guard) : size_(bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  region_bytes_ = std::max<size_t>(1, (bytes + page - 1) / page) * page;
  mapping_bytes_ = region_bytes_ + 2 * page;
  void* mapping = mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("GuardedBuffer: mmap failed");
  mapping_ = static_cast<unsigned char*>(mapping);
  region_ = mapping_ + page;
  if (mprotect(region_, region_bytes_, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("GuardedBuffer: mprotect failed");
  }
  std::memset(region_, 0xa5, region_bytes_);
  data_ = guard == Guard::kAfter ? region_ + region_bytes_ - bytes : region_;
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_) munmap(mapping_, mapping_bytes_);
}

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(region_, other.region_);
  std::swap(region_bytes_, other.region_bytes_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace fovea_test
