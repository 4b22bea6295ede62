#include "tools/arrays.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "lib/dtype.h"
#include "tools/output.h"

namespace fovea::tools {

size_t Elements(const char* what, const Shape& shape) {
  int64_t bytes = sizeof(float);
  for (const int64_t extent : shape) {
    if (extent == 0) return 0;
    if (__builtin_mul_overflow(bytes, extent, &bytes)) {
      throw InputError(fmt::format("{} {} is more bytes than 2^63 - 1", what, ShapeText(shape)));
    }
  }
  return static_cast<size_t>(bytes) / sizeof(float);
}

bool IsFloat(const NpyArray& array) { return array.type == NpyType::kF32 || array.type == NpyType::kF16; }

NpyArray ReadFloats(const char* option, const std::string& path) {
  NpyArray array = ReadNpy(path);
  if (!IsFloat(array)) {
    throw InputError(fmt::format("{}: dtype {}; {} wants float32 or float16", path, TypeText(array.type), option));
  }
  return array;
}

Stored Store(NpyArray* array, fovea_dtype dtype) {
  const bool is_f32 = array->type == NpyType::kF32;
  const fovea_dtype from = is_f32 ? FOVEA_F32 : FOVEA_F16;
  Stored stored;
  stored.dtype = dtype == FOVEA_DTYPE_NONE ? from : dtype;
  if (stored.dtype == from) {
    stored.f32 = std::move(array->f32);
    stored.bits = std::move(array->f16);
    return stored;
  }
  const size_t count = is_f32 ? array->f32.size() : array->f16.size();
  if (stored.dtype == FOVEA_F32) stored.f32.resize(count);
  if (stored.dtype != FOVEA_F32) stored.bits.resize(count);
  const void* const src = is_f32 ? static_cast<const void*>(array->f32.data()) : array->f16.data();
  void* const dst = stored.dtype == FOVEA_F32 ? static_cast<void*>(stored.f32.data()) : stored.bits.data();
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) StoreElement(stored.dtype, LoadElement(from, src, i), dst, i);
  return stored;
}

NpyArray ReadOperand(const char* option, const std::string& path, bool* batched) {
  NpyArray array = ReadFloats(option, path);
  if (array.shape.size() != 3 && array.shape.size() != 4) {
    throw InputError(fmt::format("{}: shape {}; {} wants [batch, heads, rows, dim] or [heads, rows, dim]", path,
                                 ShapeText(array.shape), option));
  }
  if (batched) *batched = array.shape.size() == 4;
  if (array.shape.size() == 3) array.shape.insert(array.shape.begin(), 1);
  return array;
}

void WantEqual(size_t axis, const std::string& path_a, const NpyArray& a, const std::string& path_b,
               const NpyArray& b) {
  static constexpr const char* kAxes[] = {"batch", "heads", "rows", "dim"};
  if (a.shape[axis] == b.shape[axis]) return;
  throw InputError(fmt::format("{}: {} {} of {}, but {} has {} in {}", path_b, b.shape[axis], kAxes[axis],
                               ShapeText(b.shape), path_a, a.shape[axis], ShapeText(a.shape)));
}

fovea_tensor Contiguous(const void* data, fovea_dtype dtype, const Shape& bhsd) {
  return fovea_tensor_bhsd(data, dtype, bhsd[1], bhsd[2], bhsd[3]);
}

fovea_tensor Broadcast(const char* option, const std::string& path, const Shape& shape, const void* data, fovea_dtype dtype,
                       const Shape& full) {
  Shape aligned = shape;
  // Two dimensions are [queries, keys] to NumPy and a key padding mask [batch, keys] to users. One row means the same.
  if (shape.size() == 2 && shape[0] != 1) {
    const bool by_batch = shape[0] == full[0], by_query = shape[0] == full[2];
    if (by_batch && by_query) {
      throw InputError(
          fmt::format("{}: shape {} could be [batch, keys] or [queries, keys], as both are {}: save it as [{}, 1, 1, "
                      "{}] or [1, {}, {}]",
                      path, ShapeText(shape), shape[0], shape[0], shape[1], shape[0], shape[1]));
    }
    if (by_batch) aligned = {shape[0], 1, 1, shape[1]};
  }
  if (aligned.size() > 4) {
    throw InputError(fmt::format("{}: shape {}; {} has at most 4 dimensions", path, ShapeText(shape), option));
  }
  aligned.insert(aligned.begin(), 4 - aligned.size(), 1);
  int64_t strides[4];
  int64_t step = 1;
  for (size_t i = 4; i-- > 0;) {
    if (aligned[i] != 1 && aligned[i] != full[i]) {
      throw InputError(fmt::format("{}: shape {} does not broadcast to [batch, q_heads, queries, keys] = {}{}", path,
                                   ShapeText(shape), ShapeText(full),
                                   shape.size() == 2 ? ", nor is it [batch, keys]" : ""));
    }
    strides[i] = aligned[i] == 1 ? 0 : step;
    step *= aligned[i];
  }
  fovea_tensor view = fovea_tensor_bhsd(data, dtype, 0, 0, 0);
  view.stride_batch = strides[0];
  view.stride_head = strides[1];
  view.stride_row = strides[2];
  view.stride_col = strides[3];
  return view;
}

double LargestError(const std::vector<float>& got, const std::vector<float>& want, double relative) {
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = got[i], w = want[i];
    if (g == w || (std::isnan(g) && std::isnan(w))) continue;
    const double error = std::abs(g - w) / std::max(1.0, std::abs(w) * relative);
    largest = std::max(largest, std::isfinite(error) ? error : std::numeric_limits<double>::infinity());
  }
  return largest;
}

bool ReportExpected(const char* what, double error, double tolerance) {
  const bool good = error <= tolerance;
  fmt::print("expect    {}: largest error {:.2e}, tolerance {:.2e}: {}\n", what, error, tolerance,
             good ? "ok" : "PAST TOLERANCE");
  return good;
}

bool ReportChecked(const std::string& what, const OutputCheck& check, double limit) {
  const bool good = check.ratio <= limit;
  fmt::print("check     {}: largest error {:.2e} against float64, naive float32 has {:.2e}; {:.2f} of the bound: {}\n",
             what, check.error, check.naive, check.ratio, good ? "ok" : "PAST TOLERANCE");
  if (!good) {
    fmt::print("          at [{}, {}, {}, {}]: {:.9g}, wanted {:.9g}, within {:.2e}\n", check.b, check.h, check.i,
               check.c, check.got, check.want, check.bound);
  }
  return good;
}

std::vector<float> ReadExpected(const char* option, const std::string& path, const Shape& wanted) {
  NpyArray array = ReadFloats(option, path);
  const Shape without_batch(wanted.begin() + 1, wanted.end());
  if (array.shape != wanted && !(wanted[0] == 1 && array.shape == without_batch)) {
    throw InputError(fmt::format("{}: shape {}; {} wants {}", path, ShapeText(array.shape), option, ShapeText(wanted)));
  }
  return Store(&array, FOVEA_F32).f32;
}

double MaxAbs(const Stored& values) {
  double largest = 0;
  for (const float scale : values.scale) {
    if (std::isfinite(scale)) largest = std::max(largest, 127.0 * static_cast<double>(scale));
  }
  if (values.dtype == FOVEA_I8) return largest;
  const size_t count = values.dtype == FOVEA_F32 ? values.f32.size() : values.bits.size();
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) {
    const float value = LoadElement(values.dtype, values.data(), i);
    if (std::isfinite(value)) largest = std::max(largest, std::abs(static_cast<double>(value)));
  }
  return largest;
}

double MedianSeconds(int32_t repeat, const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  call();
  std::vector<double> seconds(static_cast<size_t>(repeat));
  for (double& s : seconds) {
    const Clock::time_point begin = Clock::now();
    call();
    s = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  const auto middle = seconds.begin() + repeat / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace fovea::tools
