// NumPy's .npy files, format versions 1.0 to 3.0, as numpy/lib/format.py defines them: C order, little-endian, float32,
// float16, uint8, bool. Everything else is refused by name.
#ifndef FOVEA_TOOLS_NPY_H_
#define FOVEA_TOOLS_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tools/output.h"

namespace fovea::tools {

enum class NpyType { kF32, kF16, kU8, kBool };

struct NpyArray {
  NpyType type = NpyType::kF32;
  std::vector<int64_t> shape;  // () is a scalar
  std::vector<float> f32;      // the elements of kF32
  std::vector<uint16_t> f16;   // the elements of kF16, as bits
  std::vector<uint8_t> u8;     // the elements of kU8 and kBool
};

// "float32"
const char* TypeText(NpyType type);
// "[2, 12, 128, 32]"
std::string ShapeText(const std::vector<int64_t>& shape);

// Throws InputError unless the file is exactly one whole array of a type above.
NpyArray ReadNpy(const std::string& path);

struct NpyOutput {
  std::string path;
  std::vector<int64_t> shape;
  const float* data;
};

// As CheckOutputFiles and WriteOutputFiles.
void CheckOutputs(const std::vector<NpyOutput>& outputs);
void WriteNpy(const std::vector<NpyOutput>& outputs);

}  // namespace fovea::tools

#endif  // FOVEA_TOOLS_NPY_H_
