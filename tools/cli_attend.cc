// fovea attend: attention over .npy files, timed, and compared with an expected array or with the float64 oracle.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "tools/cli.h"
#include "tools/npy.h"

namespace fovea::tools {
namespace {

using Shape = std::vector<int64_t>;

constexpr double kDefaultTolerance = 2e-6;

// The shape's elements; throws where they are more bytes of float than a pointer spans.
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

fovea_tensor Contiguous(const void* data, fovea_dtype dtype, const Shape& bhsd) {
  return fovea_tensor_bhsd(data, dtype, bhsd[1], bhsd[2], bhsd[3]);
}

bool IsFloat(const NpyArray& array) { return array.type == NpyType::kF32 || array.type == NpyType::kF16; }

NpyArray ReadFloats(const char* option, const std::string& path) {
  NpyArray array = ReadNpy(path);
  if (!IsFloat(array)) {
    throw InputError(fmt::format("{}: dtype {}; {} wants float32 or float16", path, TypeText(array.type), option));
  }
  return array;
}

// The elements of an array as the call reads them.
struct Stored {
  fovea_dtype dtype = FOVEA_DTYPE_NONE;
  std::vector<float> f32;
  std::vector<uint16_t> bits;  // of 16-bit types
  std::vector<int8_t> i8;
  std::vector<float> scale;  // of its rows
  const void* data() const {
    return dtype == FOVEA_F32 ? static_cast<const void*>(f32.data()) : dtype == FOVEA_I8 ? static_cast<const void*>(i8.data()) : bits.data();
  }
};

// Takes the elements; dtype NONE: as they are.
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

// Rows of keys or values as int8 with a scale each.
Stored Quantize(const Stored& rows, const Shape& bhsd) {
  Stored stored;
  stored.dtype = FOVEA_I8;
  stored.i8.resize(Elements("int8", bhsd));
  stored.scale.resize(Elements("the scales", {bhsd[0], bhsd[1], bhsd[2]}));
  fovea_kv_append_params params;
  ThrowOnError(fovea_kv_append_params_init(&params, sizeof params));
  params.batch = bhsd[0];
  params.num_kv_heads = bhsd[1];
  params.q_len = params.capacity = bhsd[2];
  params.head_dim = bhsd[3];
  params.k_new = Contiguous(rows.data(), rows.dtype, bhsd);
  params.k_cache = Contiguous(stored.data(), FOVEA_I8, bhsd);
  params.k_scale = fovea_tensor_bhs(stored.scale.data(), FOVEA_F32, bhsd[1], bhsd[2]);
  ThrowOnError(fovea_kv_append(&params, nullptr));
  return stored;
}

// q, k or v, given a batch dimension where it has none.
NpyArray ReadOperand(const char* option, const std::string& path, bool* batched = nullptr) {
  NpyArray array = ReadFloats(option, path);
  if (array.shape.size() != 3 && array.shape.size() != 4) {
    throw InputError(fmt::format("{}: shape {}; {} wants [batch, heads, rows, dim] or [heads, rows, dim]", path,
                                 ShapeText(array.shape), option));
  }
  if (batched) *batched = array.shape.size() == 4;
  if (array.shape.size() == 3) array.shape.insert(array.shape.begin(), 1);
  return array;
}

// Extent `axis` of two operands must agree.
void WantEqual(size_t axis, const std::string& path_a, const NpyArray& a, const std::string& path_b,
               const NpyArray& b) {
  static constexpr const char* kAxes[] = {"batch", "heads", "rows", "dim"};
  if (a.shape[axis] == b.shape[axis]) return;
  throw InputError(fmt::format("{}: {} {} of {}, but {} has {} in {}", path_b, b.shape[axis], kAxes[axis],
                               ShapeText(b.shape), path_a, a.shape[axis], ShapeText(a.shape)));
}

// A mask or bias, at data, as a view that broadcasts to full = [batch, q_heads, queries, keys].
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

// An operand of shape [batch, heads, rows, dim] in pages [heads, page_size, dim], the last rows first, and where they lie.
Stored DealPages(const Stored& array, const Shape& shape, int64_t page_size, std::vector<int32_t>* table) {
  const int64_t heads = shape[1], rows = shape[2];
  const int64_t columns = (rows + page_size - 1) / page_size, num_pages = shape[0] * columns;
  Stored pages;
  pages.dtype = array.dtype;
  table->resize(static_cast<size_t>(num_pages));
  for (int64_t n = 0; n < num_pages; ++n) (*table)[static_cast<size_t>(n)] = static_cast<int32_t>(num_pages - 1 - n);
  const auto deal = [&](const auto& from, auto* to, int64_t dim) {
    if (from.empty()) return;
    to->resize(Elements("the pages", {num_pages, heads, page_size, dim}));
    for (int64_t n = 0; n < num_pages; ++n) {
      const int64_t page = (*table)[static_cast<size_t>(n)], b = n / columns, first = n % columns * page_size;
      for (int64_t h = 0; h < heads; ++h) {
        std::copy_n(from.data() + ((b * heads + h) * rows + first) * dim, std::min(page_size, rows - first) * dim,
                    to->data() + (page * heads + h) * page_size * dim);
      }
    }
  };
  deal(array.f32, &pages.f32, shape[3]);
  deal(array.bits, &pages.bits, shape[3]);
  deal(array.i8, &pages.i8, shape[3]);
  deal(array.scale, &pages.scale, 1);
  return pages;
}

// The largest |got - want| / max(1, |want| * relative). Equal infinities, and NaN at the same place, are no error; any
// other NaN or infinity is an infinite one.
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

bool ReportChecked(const char* what, const OutputCheck& check) {
  const bool good = check.ratio <= 1;
  fmt::print("check     {}: largest error {:.2e} against float64, naive float32 has {:.2e}; {:.2f} of the bound: {}\n",
             what, check.error, check.naive, check.ratio, good ? "ok" : "PAST TOLERANCE");
  if (!good) {
    fmt::print("          at [{}, {}, {}, {}]: {:.9g}, wanted {:.9g}, within {:.2e}\n", check.b, check.h, check.i,
               check.c, check.got, check.want, check.bound);
  }
  return good;
}

// Of int8: an upper bound, within a quarter of a step.
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

// The expected array, with the batch dimension that a batch of 1 may lack.
std::vector<float> ReadExpected(const char* option, const std::string& path, const Shape& wanted) {
  NpyArray array = ReadFloats(option, path);
  const Shape without_batch(wanted.begin() + 1, wanted.end());
  if (array.shape != wanted && !(wanted[0] == 1 && array.shape == without_batch)) {
    throw InputError(fmt::format("{}: shape {}; {} wants {}", path, ShapeText(array.shape), option, ShapeText(wanted)));
  }
  return Store(&array, FOVEA_F32).f32;
}

double MedianSeconds(const fovea_attention_params& params, const fovea_exec& exec, int32_t repeat) {
  using Clock = std::chrono::steady_clock;
  ThrowOnError(fovea_attention_forward(&params, &exec));  // the first call touches pages and starts threads
  std::vector<double> seconds(static_cast<size_t>(repeat));
  for (double& s : seconds) {
    const Clock::time_point begin = Clock::now();
    ThrowOnError(fovea_attention_forward(&params, &exec));
    s = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  const auto middle = seconds.begin() + repeat / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace

fovea_dtype ParseDtype(const char* option, const std::string& text) {
  std::string upper = text;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (fovea_dtype dtype = FOVEA_F32; dtype <= FOVEA_Q8_0; ++dtype) {
    if (upper == fovea_dtype_str(dtype)) return dtype;
  }
  throw InputError(fmt::format("{}: {}: not a dtype; f32, bf16, f16 or i8 is wanted", option, text));
}

int RunAttend(const AttendOptions& o) {
  if (o.repeat < 1) throw InputError(fmt::format("--repeat {}: at least 1", o.repeat));
  if (o.page_size < 0) throw InputError(fmt::format("--page-size {}: at least 1", o.page_size));
  if (o.scale && std::isnan(*o.scale)) throw InputError("--scale nan: a number is wanted");
  if (o.tolerance && !(*o.tolerance >= 0)) throw InputError(fmt::format("--tolerance {}: at least 0", *o.tolerance));
  fovea_dtype dtype = o.dtype.empty() ? FOVEA_DTYPE_NONE : ParseDtype("--dtype", o.dtype);
  if (dtype > FOVEA_F16 && dtype != FOVEA_I8) throw InputError(fmt::format("--dtype: {}: f32, bf16, f16 or i8 is wanted", o.dtype));
  const bool quantize = dtype == FOVEA_I8;
  if (quantize) dtype = FOVEA_DTYPE_NONE;
  if (!o.target.empty()) ThrowOnError(fovea_set_target(o.target.c_str()));

  bool batched = false;
  NpyArray q = ReadOperand("--q", o.q, &batched), k = ReadOperand("--k", o.k), v = ReadOperand("--v", o.v);
  WantEqual(0, o.q, q, o.k, k);
  WantEqual(0, o.q, q, o.v, v);
  WantEqual(3, o.q, q, o.k, k);
  WantEqual(1, o.k, k, o.v, v);
  WantEqual(2, o.k, k, o.v, v);

  fovea_attention_params params;
  ThrowOnError(fovea_attention_params_init(&params, sizeof params));
  params.batch = q.shape[0];
  params.num_q_heads = q.shape[1];
  params.num_kv_heads = k.shape[1];
  params.q_len = q.shape[2];
  params.kv_len = k.shape[2];
  params.head_dim = q.shape[3];
  params.v_head_dim = v.shape[3];
  if (params.v_head_dim == 0)
    throw InputError(fmt::format("{}: dim 0 of {}", o.v, ShapeText(v.shape)));  // 0 is "as q" in the ABI
  const Stored q_data = Store(&q, dtype);
  Stored k_data = Store(&k, dtype), v_data = Store(&v, dtype);
  if (quantize) k_data = Quantize(k_data, k.shape), v_data = Quantize(v_data, v.shape);
  params.q = Contiguous(q_data.data(), q_data.dtype, q.shape);
  params.k = Contiguous(k_data.data(), k_data.dtype, k.shape);
  params.v = Contiguous(v_data.data(), v_data.dtype, v.shape);
  const auto add_scales = [&](const Stored& k_from, const Stored& v_from, int64_t rows) {
    if (!quantize) return;
    params.k_scale = fovea_tensor_bhs(k_from.scale.data(), FOVEA_F32, k.shape[1], rows);
    params.v_scale = fovea_tensor_bhs(v_from.scale.data(), FOVEA_F32, v.shape[1], rows);
  };
  add_scales(k_data, v_data, params.kv_len);
  std::vector<int32_t> table;
  Stored k_pages, v_pages;
  if (o.page_size > 0) {
    k_pages = DealPages(k_data, k.shape, o.page_size, &table);
    v_pages = DealPages(v_data, v.shape, o.page_size, &table);
    params.k = Contiguous(k_pages.data(), k_pages.dtype, {0, k.shape[1], o.page_size, k.shape[3]});
    params.v = Contiguous(v_pages.data(), v_pages.dtype, {0, v.shape[1], o.page_size, v.shape[3]});
    add_scales(k_pages, v_pages, o.page_size);
    params.page_size = o.page_size;
    params.num_pages = static_cast<int64_t>(table.size());
    params.block_table_stride = (params.kv_len + o.page_size - 1) / o.page_size;
    table.resize(table.size() + 1);  // without pages it is a table still
    params.block_table = table.data();
  }
  params.causal = o.causal;
  params.window_left = o.window_left;
  params.window_right = o.window_right;
  params.logits_soft_cap = o.soft_cap;
  if (o.scale) params.scale = *o.scale;
  if (o.q_offset == "bottom-right") {
    params.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
  } else if (!o.q_offset.empty()) {
    params.q_offset = std::stoll(o.q_offset);
  }

  const Shape out_shape = {q.shape[0], q.shape[1], q.shape[2], v.shape[3]};
  const Shape lse_shape = {q.shape[0], q.shape[1], q.shape[2]};
  const Shape score_shape = {q.shape[0], q.shape[1], q.shape[2], k.shape[2]};
  NpyArray mask, bias;
  Stored bias_data;
  if (!o.mask.empty()) {
    mask = ReadNpy(o.mask);
    if (IsFloat(mask)) {
      throw InputError(fmt::format("{}: dtype {}; --mask wants bool or uint8, --bias adds floats to the scores", o.mask,
                                   TypeText(mask.type)));
    }
    params.mask = Broadcast("--mask", o.mask, mask.shape, mask.u8.data(), FOVEA_U8, score_shape);
  }
  if (!o.bias.empty()) {
    bias = ReadFloats("--bias", o.bias);
    bias_data = Store(&bias, dtype);
    params.bias = Broadcast("--bias", o.bias, bias.shape, bias_data.data(), bias_data.dtype, score_shape);
  }
  std::vector<float> expect, expect_lse;
  if (!o.expect.empty()) expect = ReadExpected("--expect", o.expect, out_shape);
  if (!o.expect_lse.empty()) expect_lse = ReadExpected("--expect-lse", o.expect_lse, lse_shape);

  std::vector<float> out(Elements("the result", out_shape)), lse(Elements("the log-sum-exp", lse_shape)), weights;
  params.out = Contiguous(out.data(), FOVEA_F32, out_shape);
  params.lse = fovea_tensor_bhs(lse.data(), FOVEA_F32, lse_shape[1], lse_shape[2]);
  if (!o.weights.empty()) {
    weights.resize(Elements("the softmax", score_shape));
    params.scores = Contiguous(weights.data(), FOVEA_F32, score_shape);
    params.scores_stage = FOVEA_SCORES_PROBABILITIES;
  }

  fovea_exec exec;
  ThrowOnError(fovea_exec_init(&exec, sizeof exec));
  exec.num_threads = o.threads;
  fovea_attention_info info;
  ThrowOnError(fovea_attention_info_init(&info, sizeof info));
  ThrowOnError(fovea_attention_describe(&params, &exec, &info));
  std::vector<unsigned char> workspace(info.workspace_bytes);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  std::vector<NpyOutput> outputs;
  const auto add_output = [&](const std::string& path, Shape shape, const std::vector<float>& values) {
    if (path.empty()) return;
    if (!batched) shape.erase(shape.begin());
    outputs.push_back({path, std::move(shape), values.data()});
  };
  add_output(o.out, out_shape, out);
  add_output(o.lse, lse_shape, lse);
  add_output(o.weights, score_shape, weights);
  CheckOutputs(outputs);
  const double seconds = MedianSeconds(params, exec, o.repeat);
  WriteNpy(outputs);  // whatever is still to go wrong has a place in the exit status

  fmt::print("shape     q {}  k {}  v {}{}{}\n", ShapeText(q.shape), ShapeText(k.shape), ShapeText(v.shape),
             o.mask.empty() ? "" : "  mask " + ShapeText(mask.shape),
             o.bias.empty() ? "" : "  bias " + ShapeText(bias.shape));
  fmt::print("target    {}, {} {}\n", info.target, info.num_threads, info.num_threads == 1 ? "thread" : "threads");
  fmt::print("kernels   {}\n", info.kernels);
  if (std::string(info.conversions) != "none") fmt::print("converted {}\n", info.conversions);
  fmt::print("time      {:.4g} ms (median of {}), {:.4g} GFLOP/s\n", seconds * 1e3, o.repeat,
             info.flop / seconds * 1e-9);

  bool good = true;
  if (!o.expect.empty()) {
    const double tolerance = o.tolerance.value_or(kDefaultTolerance * std::max(1.0, MaxAbs(v_data)));
    good &= ReportExpected("out", LargestError(out, expect, 0), tolerance);
  }
  if (!o.expect_lse.empty()) {
    good &= ReportExpected("lse", LargestError(lse, expect_lse, 1), o.tolerance.value_or(kDefaultTolerance));
  }
  if (o.check) {
    const AttentionCheck check = CheckAttention(params);
    good &= ReportChecked("out", check.out);
    good &= ReportChecked("lse", check.lse);
    if (!o.weights.empty()) good &= ReportChecked("weights", check.scores);
  }

  for (const NpyOutput& output : outputs) fmt::print("wrote     {} {}\n", output.path, ShapeText(output.shape));
  return good ? kExitOk : kExitPastTolerance;
}

}  // namespace fovea::tools
