// fovea for C++17: fovea.h with constructors, typed views and exceptions. Header-only; adds no state and no copies.
//
// Every function throws fovea::Error where the C function returns a failing status; nothing was written then.
// Everything else, shapes, strides, aliasing, numerics, is as fovea.h says of the C function of the same name. Threads:
// any number of calls at once, as in C; an AttentionParams or Exec is plain data, shared by threads as long as none
// changes it.
//
//   fovea::AttentionParams p;
//   p.batch = 1; p.num_q_heads = 32; p.num_kv_heads = 8; p.q_len = p.kv_len = 512; p.head_dim = 128;
//   p.q = fovea::bhsd(q, 1, 32, 512, 128);     // q, k, v, out: std::vector<float> or any container of contiguous
//   elements p.k = fovea::bhsd(k, 1, 8, 512, 128); p.v = fovea::bhsd(v, 1, 8, 512, 128); p.out = fovea::bhsd(out, 1,
//   32, 512, 128); p.causal = 1; fovea::attention_forward(p);
#ifndef FOVEA_FOVEA_HPP_
#define FOVEA_FOVEA_HPP_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "fovea/fovea.h"

namespace fovea {

// what() names the field, its value and what was wanted, as fovea_last_error() does.
class Error : public std::runtime_error {
 public:
  explicit Error(fovea_status status) : Error(status, fovea_last_error()) {}
  Error(fovea_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  fovea_status status() const noexcept { return status_; }

 private:
  fovea_status status_;
};

namespace detail {

inline void Check(fovea_status status) {
  if (status != FOVEA_OK) throw Error(status);
}

// The product of extents, or a throw where there is none: a negative one, or one past int64.
inline std::uint64_t Count(std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  std::int64_t count = 1;
  for (const std::int64_t extent : {batch, heads, rows, cols}) {
    if (extent < 0 || (count != 0 && extent > INT64_MAX / count)) {
      throw Error(FOVEA_ERR_INVALID_ARGUMENT,
                  "extent = " + std::to_string(extent) + ": must not be negative or overflow");
    }
    count *= extent;
  }
  return static_cast<std::uint64_t>(count);
}

template <typename Container>
auto* Data(Container& container, std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  if (Count(batch, heads, rows, cols) > std::size(container)) {
    throw Error(FOVEA_ERR_INVALID_ARGUMENT, "size() = " + std::to_string(std::size(container)) + ": must be at least " +
                                                std::to_string(Count(batch, heads, rows, cols)));
  }
  return std::data(container);
}

}  // namespace detail

// Elements of 16 bits, as those bits.
struct bf16_t {
  std::uint16_t bits;
};
struct f16_t {
  std::uint16_t bits;
};

// The dtype of an element type. Specialize it for types of your own, such as a library's half:
//   template <> struct fovea::element_dtype<Eigen::half> { static constexpr fovea_dtype value = FOVEA_F16; };
template <typename T>
struct element_dtype {
  static_assert(!sizeof(T), "no fovea_dtype has this element type: specialize fovea::element_dtype");
};
template <fovea_dtype dtype>
struct element_dtype_constant {
  static constexpr fovea_dtype value = dtype;
};
template <>
struct element_dtype<float> : element_dtype_constant<FOVEA_F32> {};
template <>
struct element_dtype<bf16_t> : element_dtype_constant<FOVEA_BF16> {};
template <>
struct element_dtype<f16_t> : element_dtype_constant<FOVEA_F16> {};
template <>
struct element_dtype<double> : element_dtype_constant<FOVEA_F64> {};
template <>
struct element_dtype<std::int8_t> : element_dtype_constant<FOVEA_I8> {};
template <>
struct element_dtype<std::uint8_t> : element_dtype_constant<FOVEA_U8> {};
template <>
struct element_dtype<bool> : element_dtype_constant<FOVEA_U8> {};  // one byte, as a mask has it
static_assert(sizeof(bool) == 1, "a mask has one byte per element");

// The same of T, const or not.
template <typename T>
constexpr fovea_dtype dtype_of() {
  return element_dtype<std::remove_cv_t<T>>::value;
}

// Typed views of the caller's memory, which must outlive the call they are used in. Layouts as fovea_tensor_bhsd and
// its kin: bhsd is [batch][heads][rows][cols], bshd is [batch][rows][heads][cols], bhs is [batch][heads][rows], for
// lse. Change a stride_* of the result for any other layout; 0 broadcasts an input.
template <typename T>
fovea_tensor bhsd(T* data, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  return fovea_tensor_bhsd(data, dtype_of<T>(), heads, rows, cols);
}
template <typename T>
fovea_tensor bshd(T* data, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  return fovea_tensor_bshd(data, dtype_of<T>(), heads, rows, cols);
}
template <typename T>
fovea_tensor bhs(T* data, std::int64_t heads, std::int64_t rows) {
  return fovea_tensor_bhs(data, dtype_of<T>(), heads, rows);
}

// The same over a container with data() and size(), or an array; batch is there so that the size can be checked.
template <typename Container>
fovea_tensor bhsd(Container& container, std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  return bhsd(detail::Data(container, batch, heads, rows, cols), heads, rows, cols);
}
template <typename Container>
fovea_tensor bshd(Container& container, std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t cols) {
  return bshd(detail::Data(container, batch, heads, rows, cols), heads, rows, cols);
}
template <typename Container>
fovea_tensor bhs(Container& container, std::int64_t batch, std::int64_t heads, std::int64_t rows) {
  return bhs(detail::Data(container, batch, heads, rows, 1), heads, rows);
}

// A matrix [rows][cols]: of linear(), or tables of rope(); a vector is one of 1 row.
template <typename T>
fovea_tensor matrix(T* data, std::int64_t cols) {
  return bhsd(data, 1, 1, cols);
}
template <typename Container>
fovea_tensor matrix(Container& container, std::int64_t rows, std::int64_t cols) {
  return bhsd(container, 1, 1, rows, cols);
}

// The C structs, born initialized.
struct AttentionParams : fovea_attention_params {
  AttentionParams() { detail::Check(fovea_attention_params_init(this, sizeof(fovea_attention_params))); }
};
struct LinearParams : fovea_linear_params {
  LinearParams() { detail::Check(fovea_linear_params_init(this, sizeof(fovea_linear_params))); }
};
struct RopeParams : fovea_rope_params {
  RopeParams() { detail::Check(fovea_rope_params_init(this, sizeof(fovea_rope_params))); }
};
struct RopeTablesParams : fovea_rope_tables_params {
  RopeTablesParams() { detail::Check(fovea_rope_tables_params_init(this, sizeof(fovea_rope_tables_params))); }
};
struct KvAppendParams : fovea_kv_append_params {
  KvAppendParams() { detail::Check(fovea_kv_append_params_init(this, sizeof(fovea_kv_append_params))); }
};
struct MhaParams : fovea_mha_params {
  MhaParams() { detail::Check(fovea_mha_params_init(this, sizeof(fovea_mha_params))); }
};
struct Exec : fovea_exec {
  Exec() { detail::Check(fovea_exec_init(this, sizeof(fovea_exec))); }
};

// In all of these exec == nullptr means the default exec: OpenMP on all cores.
inline void attention_forward(const fovea_attention_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_attention_forward(&params, exec));
}

// Bytes for exec->workspace. Data pointers may still be null.
inline std::size_t workspace_size(const fovea_attention_params& params, const fovea_exec* exec = nullptr) {
  std::size_t bytes = 0;
  detail::Check(fovea_attention_workspace_size(&params, exec, &bytes));
  return bytes;
}

inline fovea_attention_info describe(const fovea_attention_params& params, const fovea_exec* exec = nullptr) {
  fovea_attention_info info;
  detail::Check(fovea_attention_info_init(&info, sizeof info));
  detail::Check(fovea_attention_describe(&params, exec, &info));
  return info;
}

// Joins partial results: outs[i] [batch][num_heads][rows][v_head_dim] with lses[i] [batch][num_heads][rows]; lse may be
// null.
inline void merge(const std::vector<fovea_tensor>& outs, const std::vector<fovea_tensor>& lses, std::int64_t batch,
                  std::int64_t num_heads, std::int64_t rows, std::int64_t v_head_dim, const fovea_tensor& out,
                  const fovea_tensor* lse = nullptr, const fovea_exec* exec = nullptr) {
  if (outs.size() != lses.size() || outs.size() > INT32_MAX) {
    throw Error(FOVEA_ERR_INVALID_ARGUMENT, "lses.size() = " + std::to_string(lses.size()) +
                                                ": must be outs.size() = " + std::to_string(outs.size()) +
                                                ", below 2^31");
  }
  detail::Check(fovea_attention_merge(static_cast<std::int32_t>(outs.size()), outs.data(), lses.data(), batch,
                                      num_heads, rows, v_head_dim, &out, lse, exec));
}

inline void linear(const fovea_linear_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_linear(&params, exec));
}

// Bytes for exec->workspace of linear(). Data pointers may still be null.
inline std::size_t linear_workspace_size(const fovea_linear_params& params, const fovea_exec* exec = nullptr) {
  std::size_t bytes = 0;
  detail::Check(fovea_linear_workspace_size(&params, exec, &bytes));
  return bytes;
}

inline void rope(const fovea_rope_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_rope(&params, exec));
}

inline void rope_tables(const fovea_rope_tables_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_rope_tables(&params, exec));
}

inline void kv_append(const fovea_kv_append_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_kv_append(&params, exec));
}

inline void mha_forward(const fovea_mha_params& params, const fovea_exec* exec = nullptr) {
  detail::Check(fovea_mha_forward(&params, exec));
}

// Bytes for exec->workspace of mha_forward(). Data pointers may still be null.
inline std::size_t mha_workspace_size(const fovea_mha_params& params, const fovea_exec* exec = nullptr) {
  std::size_t bytes = 0;
  detail::Check(fovea_mha_workspace_size(&params, exec, &bytes));
  return bytes;
}

inline fovea_mha_info mha_describe(const fovea_mha_params& params, const fovea_exec* exec = nullptr) {
  fovea_mha_info info;
  detail::Check(fovea_mha_info_init(&info, sizeof info));
  detail::Check(fovea_mha_describe(&params, exec, &info));
  return info;
}

// The instruction set of all later calls of the process; nullptr returns to the default choice.
inline void set_target(const char* name) { detail::Check(fovea_set_target(name)); }

// The name of the instruction set that calls use.
inline std::string target() {
  const char* name = nullptr;
  detail::Check(fovea_get_target(&name, nullptr));
  return name;
}

// All targets compiled into the library, best first.
inline std::vector<fovea_target_info> targets() {
  std::vector<fovea_target_info> infos(static_cast<std::size_t>(fovea_target_count()));
  for (std::size_t i = 0; i < infos.size(); ++i) {
    detail::Check(fovea_target_info_init(&infos[i], sizeof infos[i]));
    detail::Check(fovea_get_target_info(static_cast<std::int32_t>(i), &infos[i]));
  }
  return infos;
}

}  // namespace fovea

#endif  // FOVEA_FOVEA_HPP_
