// The fovea command: what main() in fovea_cli.cc hands to its subcommands.
#ifndef FOVEA_TOOLS_CLI_H_
#define FOVEA_TOOLS_CLI_H_

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "fovea/fovea.h"
#include "tools/output.h"

namespace fovea::tools {

enum ExitCode { kExitOk = 0, kExitFailed = 1, kExitBadInput = 2 };

// "bf16" and the like, of what: an option. Throws InputError for other words.
fovea_dtype ParseDtype(const char* option, const std::string& text);

inline void ThrowOnError(fovea_status status) {
  if (status != FOVEA_OK) throw InputError(fovea_last_error());
}

struct AttendOptions {
  std::string q, k, v;  // paths; the following ones are empty where not given
  std::string mask, bias;
  std::string out, lse, weights;   // written
  std::string expect, expect_lse;  // compared with
  std::string q_offset;            // a number or "bottom-right"
  std::string dtype;               // that q, k, v and bias are rounded to, or i8: k and v; empty: as their files have them
  std::string target;
  std::optional<float> scale;
  std::optional<double> tolerance;
  float soft_cap = 0;
  int64_t window_left = -1, window_right = -1;
  int32_t threads = 0;
  int32_t repeat = 5;
  std::optional<int64_t> page_size;  // none: K and V as they are
  bool causal = false;
  bool check = false;
};

struct LayerOptions {
  std::string x, wq, wk, wv, w_qkv, wo;  // paths; those below and of weights not used are empty where not given
  std::string x_kv, bq, bk, bv, b_qkv, bo, q_norm, k_norm, mask;
  std::string out;     // written
  std::string expect;  // compared with
  std::string heads;   // "32/8"
  std::string target;
  std::optional<double> rope;  // the base
  std::optional<double> tolerance;
  float norm_eps = 1e-6f;
  int64_t window_left = -1;
  int32_t threads = 0;
  int32_t repeat = 5;
  bool interleaved = false;
  bool causal = false;
};

struct SweepOptions {
  std::string op, lengths, head_dims, heads, targets, threads;  // lists; empty: the usual
  std::string dtypes = "f32";
  std::string preset;
  std::string json, csv;  // paths, written
  std::string command;    // for the record
  std::optional<double> min_time;
  bool causal = false;
  bool quick = false;
};

// Print to stdout and give the exit code; throw InputError on bad input, before anything is written.
int RunInfo(bool json, bool roofline);
int RunAttend(const AttendOptions& options);
int RunLayer(const LayerOptions& options);
int RunSweep(const SweepOptions& options);

std::string CpuModel();
// FMA, exp and read rates of these targets, the best of so many rounds (bench/roofline.h); JSON as in `fovea info
// --roofline --json`.
nlohmann::ordered_json MeasureRoofline(const std::vector<std::string>& targets, const std::vector<int>& threads,
                                       int rounds);

}  // namespace fovea::tools

#endif  // FOVEA_TOOLS_CLI_H_
