// Arrays of .npy files as operands of a call, and comparisons with expected ones, for the subcommands that compute.
#ifndef FOVEA_TOOLS_ARRAYS_H_
#define FOVEA_TOOLS_ARRAYS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "lib/reference.h"
#include "tools/npy.h"

namespace fovea::tools {

using Shape = std::vector<int64_t>;

// The shape's elements; throws where they are more bytes of float than a pointer spans.
size_t Elements(const char* what, const Shape& shape);

bool IsFloat(const NpyArray& array);
// Throws InputError where it holds no floats.
NpyArray ReadFloats(const char* option, const std::string& path);

// The elements of an array as the call reads them.
struct Stored {
  fovea_dtype dtype = FOVEA_DTYPE_NONE;
  std::vector<float> f32;
  std::vector<uint16_t> bits;  // of 16-bit types
  std::vector<int8_t> i8;
  std::vector<float> scale;  // of int8 rows
  const void* data() const {
    if (dtype == FOVEA_I8) return i8.data();
    return dtype == FOVEA_F32 ? static_cast<const void*>(f32.data()) : bits.data();
  }
};

// Takes the elements; dtype NONE: as they are.
Stored Store(NpyArray* array, fovea_dtype dtype);

// q, k or v, given a batch dimension where it has none.
NpyArray ReadOperand(const char* option, const std::string& path, bool* batched = nullptr);
// Extent `axis` of two operands must agree.
void WantEqual(size_t axis, const std::string& path_a, const NpyArray& a, const std::string& path_b, const NpyArray& b);

fovea_tensor Contiguous(const void* data, fovea_dtype dtype, const Shape& bhsd);
// A mask or bias, at data, as a view that broadcasts to full = [batch, q_heads, queries, keys].
fovea_tensor Broadcast(const char* option, const std::string& path, const Shape& shape, const void* data, fovea_dtype dtype,
                       const Shape& full);

// Of int8: an upper bound, 127 steps of the largest scale.
double MaxAbs(const Stored& values);
// The largest |got - want| / max(1, |want| * relative). Equal infinities, and NaN at the same place, are no error; any
// other NaN or infinity is an infinite one.
double LargestError(const std::vector<float>& got, const std::vector<float>& want, double relative);
// Prints a line; whether it is within.
bool ReportExpected(const char* what, double error, double tolerance);
// The same of a comparison with float64, within limit bounds of lib/reference.h.
bool ReportChecked(const std::string& what, const OutputCheck& check, double limit = 1);
// The expected array, with the batch dimension that a batch of 1 may lack.
std::vector<float> ReadExpected(const char* option, const std::string& path, const Shape& wanted);

// The median time of so many calls after a first one, which touches pages and starts threads.
double MedianSeconds(int32_t repeat, const std::function<void()>& call);

}  // namespace fovea::tools

#endif  // FOVEA_TOOLS_ARRAYS_H_
