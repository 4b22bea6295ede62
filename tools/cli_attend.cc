// fovea attend: attention over .npy files, timed, and compared with an expected array or with the float64 oracle.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "tools/arrays.h"
#include "tools/cli.h"

namespace fovea::tools {
namespace {

constexpr double kDefaultTolerance = 2e-6;

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
  if (o.page_size && *o.page_size < 1) throw InputError(fmt::format("--page-size {}: at least 1", *o.page_size));
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
  if (o.page_size) {
    const int64_t page_size = *o.page_size;
    k_pages = DealPages(k_data, k.shape, page_size, &table);
    v_pages = DealPages(v_data, v.shape, page_size, &table);
    params.k = Contiguous(k_pages.data(), k_pages.dtype, {0, k.shape[1], page_size, k.shape[3]});
    params.v = Contiguous(v_pages.data(), v_pages.dtype, {0, v.shape[1], page_size, v.shape[3]});
    add_scales(k_pages, v_pages, page_size);
    params.page_size = page_size;
    params.num_pages = static_cast<int64_t>(table.size());
    params.block_table_stride = (params.kv_len + page_size - 1) / page_size;
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
  const double seconds = MedianSeconds(o.repeat, [&] { ThrowOnError(fovea_attention_forward(&params, &exec)); });
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
    const AttentionCheck check = CheckAttention(params, 1, ArithmeticOf(info));
    good &= ReportChecked("out", check.out);
    good &= ReportChecked("lse", check.lse);
    if (!o.weights.empty()) good &= ReportChecked("weights", check.scores);
  }

  for (const NpyOutput& output : outputs) fmt::print("wrote     {} {}\n", output.path, ShapeText(output.shape));
  return good ? kExitOk : kExitFailed;
}

}  // namespace fovea::tools
