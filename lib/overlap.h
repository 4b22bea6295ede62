// Whether two tensors share memory, and whether two indices of one do.
#ifndef FOVEA_LIB_OVERLAP_H_
#define FOVEA_LIB_OVERLAP_H_

#include <cstdint>

namespace fovea {

// "q", or "outs[2]" where index >= 0; the text is only made for a message.
struct Name {
  const char* base;
  int index = -1;
};

// The memory behind a tensor or array. Strides are in elements, and 0 where the extent is at most 1.
constexpr int kDims = 4;  // batch, head, row, column
struct View {
  Name name;
  uintptr_t begin, end;  // its bytes lie in [begin, end); both 0 where an extent is 0 or there is no data
  int64_t element_bytes;
  int64_t extent[kDims], stride[kDims];
};

// Whether some byte belongs to both. Spans of dimensions are at most kMaxElements.
bool Overlap(const View& a, const View& b);

// Whether two different indices mean the same element.
bool OverlapsItself(const View& view);

// Whether both lie in the same bytes with the same strides.
bool SameElements(const View& a, const View& b);

}  // namespace fovea

#endif  // FOVEA_LIB_OVERLAP_H_
