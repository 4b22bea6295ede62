// fovea layer: a multi-head attention layer over .npy files, timed, and compared with an expected array.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tools/arrays.h"
#include "tools/cli.h"
#include "tools/words.h"

namespace fovea::tools {
namespace {

constexpr double kDefaultTolerance = 2e-5;

// An array of the call and its file.
struct Operand {
  std::string path;
  Shape shape;
  Stored data;

  fovea_tensor Tensor() const {
    if (path.empty()) return {};
    const Shape rows_cols = shape.size() == 1 ? Shape{1, shape[0]} : Shape{shape[shape.size() - 2], shape.back()};
    return fovea_tensor_bhsd(data.data(), data.dtype, 1, rows_cols[0], rows_cols[1]);
  }
};

Operand Read(const char* option, const std::string& path, size_t dimensions, const char* wanted) {
  Operand operand;
  if (path.empty()) return operand;
  NpyArray array = ReadFloats(option, path);
  if (array.shape.size() != dimensions) {
    throw InputError(fmt::format("{}: shape {}; {} wants {}", path, ShapeText(array.shape), option, wanted));
  }
  operand.path = path;
  operand.shape = array.shape;
  operand.data = Store(&array, FOVEA_DTYPE_NONE);
  return operand;
}

// x or x_kv, given a batch dimension where it has none.
Operand ReadRows(const char* option, const std::string& path, bool* batched) {
  if (path.empty()) return {};
  NpyArray array = ReadFloats(option, path);
  *batched = array.shape.size() != 2;
  if (*batched && array.shape.size() != 3) {
    throw InputError(fmt::format("{}: shape {}; {} wants [batch, tokens, columns] or [tokens, columns]", path, ShapeText(array.shape), option));
  }
  if (!*batched) array.shape.insert(array.shape.begin(), 1);
  return {path, array.shape, Store(&array, FOVEA_DTYPE_NONE)};
}

void WantShape(const char* option, const Operand& operand, const Shape& wanted) {
  if (operand.path.empty() || operand.shape == wanted) return;
  throw InputError(fmt::format("{}: shape {}; {} must be {}", operand.path, ShapeText(operand.shape), option, ShapeText(wanted)));
}

// An equal share of a weight's rows for each head.
int64_t RowsPerHead(const char* option, const Operand& weight, int64_t heads) {
  if (weight.shape[0] == 0 || weight.shape[0] % heads != 0) {
    throw InputError(fmt::format("{}: shape {}; {}'s rows must be a multiple of {}, its heads", weight.path, ShapeText(weight.shape), option, heads));
  }
  return weight.shape[0] / heads;
}

}  // namespace

int RunLayer(const LayerOptions& o) {
  if (o.repeat < 1) throw InputError(fmt::format("--repeat {}: at least 1", o.repeat));
  if (o.tolerance && !(*o.tolerance >= 0)) throw InputError(fmt::format("--tolerance {}: at least 0", *o.tolerance));
  if (o.interleaved && !o.rope) throw InputError("--interleaved: only with --rope");
  if (!o.target.empty()) ThrowOnError(fovea_set_target(o.target.c_str()));
  const HeadCounts heads = ParseHeads("--heads", o.heads);
  const bool packed = !o.w_qkv.empty();
  if (packed ? !o.wq.empty() || !o.wk.empty() || !o.wv.empty() : o.wq.empty() || o.wk.empty() || o.wv.empty())
    throw InputError("either --w-qkv, or --wq, --wk and --wv are wanted");
  if (o.wo.empty()) throw InputError("--wo is wanted");

  bool batched = false, kv_batched = false;
  const Operand x = ReadRows("--x", o.x, &batched), x_kv = ReadRows("--x-kv", o.x_kv, &kv_batched);
  const Operand wq = Read("--wq", o.wq, 2, "[out, in]"), wk = Read("--wk", o.wk, 2, "[out, in]"), wv = Read("--wv", o.wv, 2, "[out, in]"),
                w_qkv = Read("--w-qkv", o.w_qkv, 2, "[out, in]"), wo = Read("--wo", o.wo, 2, "[out, in]");
  const Operand bq = Read("--bq", o.bq, 1, "[out]"), bk = Read("--bk", o.bk, 1, "[out]"), bv = Read("--bv", o.bv, 1, "[out]"),
                b_qkv = Read("--b-qkv", o.b_qkv, 1, "[out]"), bo = Read("--bo", o.bo, 1, "[out]");
  const Operand q_norm = Read("--q-norm", o.q_norm, 1, "[dim]"), k_norm = Read("--k-norm", o.k_norm, 1, "[dim]");

  fovea_mha_params params;
  ThrowOnError(fovea_mha_params_init(&params, sizeof params));
  params.batch = x.shape[0];
  params.q_len = x.shape[1];
  params.d_model = x.shape[2];
  params.d_out = wo.shape[0];
  params.num_q_heads = heads.q;
  params.num_kv_heads = heads.kv;
  if (packed) {
    params.head_dim = params.v_head_dim = RowsPerHead("--w-qkv", w_qkv, heads.q + 2 * heads.kv);
  } else {
    params.head_dim = RowsPerHead("--wq", wq, heads.q);
    params.v_head_dim = RowsPerHead("--wv", wv, heads.kv);
  }
  const int64_t d_model = params.d_model, d_kv = o.x_kv.empty() ? d_model : x_kv.shape[2];
  const int64_t q_rows = heads.q * params.head_dim, k_rows = heads.kv * params.head_dim, v_rows = heads.kv * params.v_head_dim;
  const struct {
    const char* option;
    const Operand& operand;
    Shape shape;
  } shapes[] = {{"--wq", wq, {q_rows, d_model}}, {"--wk", wk, {k_rows, d_kv}}, {"--wv", wv, {v_rows, d_kv}},
                {"--w-qkv", w_qkv, {q_rows + k_rows + v_rows, d_model}}, {"--wo", wo, {params.d_out, heads.q * params.v_head_dim}},
                {"--bq", bq, {q_rows}}, {"--bk", bk, {k_rows}}, {"--bv", bv, {v_rows}}, {"--b-qkv", b_qkv, {q_rows + k_rows + v_rows}},
                {"--bo", bo, {params.d_out}}, {"--q-norm", q_norm, {params.head_dim}}, {"--k-norm", k_norm, {params.head_dim}}};
  for (const auto& s : shapes) WantShape(s.option, s.operand, s.shape);
  params.x = x.Tensor();
  if (!o.x_kv.empty()) {
    if (x_kv.shape[0] != x.shape[0]) throw InputError(fmt::format("{}: batch {}, but {} has {}", o.x_kv, x_kv.shape[0], o.x, x.shape[0]));
    params.x_kv = x_kv.Tensor();
    params.kv_len = x_kv.shape[1];
    params.d_kv = d_kv;
  }
  params.wq = wq.Tensor(), params.wk = wk.Tensor(), params.wv = wv.Tensor(), params.w_qkv = w_qkv.Tensor(), params.wo = wo.Tensor();
  params.bq = bq.Tensor(), params.bk = bk.Tensor(), params.bv = bv.Tensor(), params.b_qkv = b_qkv.Tensor(), params.bo = bo.Tensor();
  params.q_norm = q_norm.Tensor(), params.k_norm = k_norm.Tensor();
  params.norm_eps = o.norm_eps;

  fovea_exec exec;
  ThrowOnError(fovea_exec_init(&exec, sizeof exec));
  exec.num_threads = o.threads;
  fovea_rope_params rope;
  std::vector<float> cos, sin;
  if (o.rope) {
    fovea_rope_tables_params tables;
    ThrowOnError(fovea_rope_tables_params_init(&tables, sizeof tables));
    ThrowOnError(fovea_rope_params_init(&rope, sizeof rope));
    const int64_t columns = params.head_dim / 2, positions = std::max(params.q_len, params.kv_len);
    cos.resize(Elements("RoPE's table", {positions, columns}));
    sin.resize(cos.size());
    tables.base = *o.rope;
    tables.rotary_dim = params.head_dim;
    tables.num_positions = rope.num_positions = positions;
    tables.cos = rope.cos = fovea_tensor_bhsd(cos.data(), FOVEA_F32, 1, positions, columns);
    tables.sin = rope.sin = fovea_tensor_bhsd(sin.data(), FOVEA_F32, 1, positions, columns);
    rope.interleaved = o.interleaved;
    ThrowOnError(fovea_rope_tables(&tables, &exec));
    params.rope = &rope;
  }
  fovea_attention_params options;
  ThrowOnError(fovea_attention_params_init(&options, sizeof options));
  options.causal = o.causal;
  options.window_left = o.window_left;
  NpyArray mask;
  if (!o.mask.empty()) {
    mask = ReadNpy(o.mask);
    if (IsFloat(mask)) throw InputError(fmt::format("{}: dtype {}; --mask wants bool or uint8", o.mask, TypeText(mask.type)));
    const int64_t keys = o.x_kv.empty() ? params.q_len : params.kv_len;
    options.mask = Broadcast("--mask", o.mask, mask.shape, mask.u8.data(), FOVEA_U8, {params.batch, heads.q, params.q_len, keys});
  }
  params.attention = &options;

  const Shape y_shape = {params.batch, params.q_len, params.d_out};
  std::vector<float> expect, y(Elements("the result", y_shape));
  if (!o.expect.empty()) expect = ReadExpected("--expect", o.expect, y_shape);
  params.y = fovea_tensor_bhsd(y.data(), FOVEA_F32, 1, params.q_len, params.d_out);
  fovea_mha_info info;
  ThrowOnError(fovea_mha_info_init(&info, sizeof info));
  ThrowOnError(fovea_mha_describe(&params, &exec, &info));
  std::vector<unsigned char> workspace(info.workspace_bytes);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  std::vector<NpyOutput> outputs;
  if (!o.out.empty()) outputs.push_back({o.out, batched ? y_shape : Shape(y_shape.begin() + 1, y_shape.end()), y.data()});
  CheckOutputs(outputs);
  const double seconds = MedianSeconds(o.repeat, [&] { ThrowOnError(fovea_mha_forward(&params, &exec)); });
  WriteNpy(outputs);

  fmt::print("layer     x {}, {}/{} heads of {}, d_out {}\n", ShapeText(x.shape), heads.q, heads.kv, params.head_dim, params.d_out);
  fmt::print("target    {}, {} {}\n", info.target, info.num_threads, info.num_threads == 1 ? "thread" : "threads");
  fmt::print("kernels   {}\n", info.kernels);
  fmt::print("time      {:.4g} ms (median of {}), {:.4g} GFLOP/s\n", seconds * 1e3, o.repeat,
             (info.qkv_flop + info.attention_flop + info.out_flop) / seconds * 1e-9);
  const bool good = o.expect.empty() || ReportExpected("y", LargestError(y, expect, 0), o.tolerance.value_or(kDefaultTolerance));
  for (const NpyOutput& output : outputs) fmt::print("wrote     {} {}\n", output.path, ShapeText(output.shape));
  return good ? kExitOk : kExitFailed;
}

}  // namespace fovea::tools
