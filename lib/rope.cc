#include "lib/rope.h"

#include <algorithm>
#include <cmath>

#include "lib/fp_env.h"

namespace fovea {
namespace {

constexpr double kTwoPi = 6.283185307179586476925;

// The dimension pair that turns `rotations` times within the original context, as a real number (YaRN's
// find_correction_dim).
double YarnDim(const fovea_rope_tables_params& p, double rotations) {
  return static_cast<double>(p.rotary_dim) *
         std::log(static_cast<double>(p.original_max_position) / (rotations * kTwoPi)) / (2.0 * std::log(p.base));
}

// w[j] of fovea_rope_tables for every j.
class Frequencies {
 public:
  explicit Frequencies(const fovea_rope_tables_params& p) : p_(p), base_(p.base) {
    const double d = static_cast<double>(p.rotary_dim), original = static_cast<double>(p.original_max_position);
    double stretch = 1.0;
    if (p.scaling == FOVEA_ROPE_SCALING_NTK) stretch = p.factor;
    if (p.scaling == FOVEA_ROPE_SCALING_DYNAMIC_NTK && p.seq_len > p.original_max_position) {
      stretch = p.factor * static_cast<double>(p.seq_len) / original - (p.factor - 1.0);
    }
    // One pair alone has frequency 1 whatever the base.
    if (stretch != 1.0 && p.rotary_dim > 2) base_ *= std::pow(stretch, d / (d - 2.0));
    if (p.scaling == FOVEA_ROPE_SCALING_YARN) {
      low_ = YarnDim(p, p.beta_fast);
      high_ = YarnDim(p, p.beta_slow);
      if (p.yarn_truncate) low_ = std::floor(low_), high_ = std::ceil(high_);
      low_ = std::max(low_, 0.0);
      high_ = std::min(high_, d - 1.0);
      if (low_ == high_) high_ += 0.001;  // as YaRN's code does
    }
  }

  double At(int64_t j) const {
    const double t = std::pow(base_, -2.0 * static_cast<double>(j) / static_cast<double>(p_.rotary_dim));
    switch (p_.scaling) {
      case FOVEA_ROPE_SCALING_LINEAR:
        return t / p_.factor;
      case FOVEA_ROPE_SCALING_YARN:
        return Blend(t, 1.0 - std::clamp((static_cast<double>(j) - low_) / (high_ - low_), 0.0, 1.0));
      case FOVEA_ROPE_SCALING_LLAMA3: {
        const double rotations = static_cast<double>(p_.original_max_position) * t / kTwoPi;
        return Blend(
            t, std::clamp((rotations - p_.low_freq_factor) / (p_.high_freq_factor - p_.low_freq_factor), 0.0, 1.0));
      }
      default:
        return t;
    }
  }

 private:
  // keep of t itself, the rest of t interpolated.
  double Blend(double t, double keep) const { return (1.0 - keep) * (t / p_.factor) + keep * t; }

  const fovea_rope_tables_params& p_;
  double base_, low_ = 0.0, high_ = 0.0;
};

}  // namespace

void SetRotation(const fovea_rope_params& p, int64_t b, int64_t i, RopeTask* t) {
  const int64_t table = p.table_batch == 1 ? 0 : b;
  const auto at = [table](const fovea_tensor& x) {
    return static_cast<const char*>(x.data) + table * x.stride_batch * DtypeBytes(x.dtype);
  };
  t->cos = at(p.cos);
  t->sin = at(p.sin);
  t->cos_stride_row = p.cos.stride_row;
  t->sin_stride_row = p.sin.stride_row;
  t->cos_dtype = p.cos.dtype;
  t->sin_dtype = p.sin.dtype;
  t->rotary_dim = p.rotary_dim;
  t->interleaved = p.interleaved != 0;
  t->positions = p.position_ids
                     ? p.position_ids + ((p.cu_seqlens_q ? p.cu_seqlens_q[b] : b * p.position_ids_stride) + i)
                     : nullptr;
  t->position = (p.position_offsets ? p.position_offsets[b] : p.position_offset) + i;
}

void RunRope(const Target& target, const fovea_rope_params& p, const fovea_exec& exec) {
  const int64_t rows = NumNewRows(p),
                row_bytes = p.num_heads * p.head_dim * (DtypeBytes(p.x.dtype) + DtypeBytes(p.out.dtype));
  const int32_t workers = WorkersForBytes(exec, static_cast<double>(rows) * static_cast<double>(row_bytes));
  const int64_t tasks = NumTasks(workers, rows);
  ParallelFor(exec, workers, tasks, [&](int32_t, int64_t n) {
    const FpEnvScope env;
    ForNewRows(p, rows * n / tasks, rows * (n + 1) / tasks, [&](int64_t b, int64_t first, int64_t count) {
      RopeTask t;
      SetRotation(p, b, first, &t);
      t.x = NewRow(p, p.x, b, first);
      t.out = NewRow(p, p.out, b, first);
      t.rows = count;
      t.heads = p.num_heads;
      t.head_dim = p.head_dim;
      t.x_stride_head = p.x.stride_head;
      t.x_stride_row = p.x.stride_row;
      t.out_stride_head = p.out.stride_head;
      t.out_stride_row = p.out.stride_row;
      t.x_dtype = p.x.dtype;
      t.out_dtype = p.out.dtype;
      target.table->rope(t);
    });
  });
}

void RunRopeTables(const fovea_rope_tables_params& p, const fovea_exec& exec) {
  const FpEnvScope outer;
  const Frequencies frequencies(p);
  double factor = p.attention_factor;
  if (factor == 0.0) factor = p.scaling == FOVEA_ROPE_SCALING_YARN ? 0.1 * std::log(p.factor) + 1.0 : 1.0;
  // Elements take some 50 ns each, as many as 1000 bytes.
  const double elements = static_cast<double>(p.num_positions) * static_cast<double>(p.rotary_dim / 2);
  const int32_t workers = WorkersForBytes(exec, 1000.0 * elements);
  const int64_t tasks = NumTasks(workers, p.num_positions), half = p.rotary_dim / 2;
  ParallelFor(exec, workers, tasks, [&](int32_t, int64_t n) {
    const FpEnvScope env;
    const int64_t begin = p.num_positions * n / tasks, end = p.num_positions * (n + 1) / tasks;
    constexpr int64_t kColumns = 256;
    double w[kColumns];
    for (int64_t j0 = 0; j0 < half; j0 += kColumns) {
      const int64_t columns = std::min(half - j0, kColumns);
      for (int64_t j = 0; j < columns; ++j) w[j] = frequencies.At(j0 + j);
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          const double angle = static_cast<double>(p.first_position + i) * w[j];
          StoreElement(p.cos.dtype, static_cast<float>(factor * std::cos(angle)), p.cos.data,
                       i * p.cos.stride_row + j0 + j);
          StoreElement(p.sin.dtype, static_cast<float>(factor * std::sin(angle)), p.sin.data,
                       i * p.sin.stride_row + j0 + j);
        }
      }
    }
  });
}

}  // namespace fovea
