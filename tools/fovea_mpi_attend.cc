// fovea_mpi_attend: attention over .npy files with the keys and values cut over the ranks of an MPI job. Each rank
// calls fovea_attention_forward on its share, rank 0 joins the partial (out, lse) by fovea_attention_merge, in rank
// order, so that the result is the same in every run. lib/ARCHITECTURE.md, "Over several machines", has the counts of
// bytes.
#include <fmt/format.h>
#include <mpi.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "lib/dtype.h"
#include "lib/reference.h"
#include "tools/arrays.h"
#include "tools/cli.h"
#include "tools/npy.h"
#include "tools/words.h"

namespace fovea::tools {
namespace {

constexpr const char* kHelp = R"(softmax(scale * Q K^T, masked) V over .npy files, K and V cut over the ranks of mpirun

Arrays are float32 or float16 in C order, read by rank 0: Q [batch, q_heads, queries, dim], K [batch, kv_heads, keys, dim],
V [batch, kv_heads, keys, v_dim]; of 3 dimensions they are a batch of 1. With --heads they are as projections leave them,
[batch, rows, heads * dim] or [rows, heads * dim], and so is the output, float32.

The keys are cut into 2 R blocks for R ranks; rank r holds blocks r and 2 R - 1 - r, so that with --causal all ranks have
as much to do. Queries go to every rank.)";

constexpr const char* kFooter =
    R"(Exit status: 0 done; 1 an error past tolerance or standard output full, files are written all the same; 2 bad input, nothing is written.
Example: mpirun -n 4 fovea_mpi_attend --q Q.npy --k K.npy --v V.npy --causal --threads 1 --out O.npy --check)";

// The merges round as well, of two shares' halves and of the ranks: half a bound for them, as in tests/merge_test.cc.
constexpr double kMergedLimit = 1.5;

struct Options {
  std::string q, k, v, out, lse, heads, target;
  std::string q_offset = "0";
  int32_t threads = 0;
  bool causal = false, check = false;
};

// What every rank has to know of the arrays; sent as bytes.
struct Problem {
  int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim;
  int64_t q_offset;  // position of query 0
  fovea_dtype q_dtype, k_dtype, v_dtype;
  int32_t rows_first;  // [batch][rows][heads][dim], of --heads
  int32_t causal;

  fovea_tensor View(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t dim) const {
    return rows_first ? fovea_tensor_bshd(data, dtype, heads, rows, dim)
                      : fovea_tensor_bhsd(data, dtype, heads, rows, dim);
  }
  // A contiguous array is [Outer][rows][RowBytes].
  size_t Outer() const { return static_cast<size_t>(rows_first ? batch : batch * kv_heads); }
  size_t RowBytes(fovea_dtype dtype, int64_t dim) const {
    return static_cast<size_t>((rows_first ? kv_heads : 1) * dim * DtypeBytes(dtype));
  }
  size_t QBytes() const { return static_cast<size_t>(batch * q_heads * q_len * head_dim * DtypeBytes(q_dtype)); }
  Shape OutShape() const {
    if (rows_first) return {batch, q_len, q_heads * v_head_dim};
    return {batch, q_heads, q_len, v_head_dim};
  }
  Shape LseShape() const { return {batch, q_heads, q_len}; }
};

struct Ranks {
  int rank = 0, count = 1;
};

// What a Together() on every rank throws once it has failed on one. what() is empty on the others.
struct AgreedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs step on every rank; where it throws on any, throws on all: no rank is left waiting for another. One rank speaks.
template <typename Step>
void Together(const Ranks& ranks, const Step& step) {
  std::string problem;
  try {
    step();
  } catch (const std::bad_alloc&) {
    problem = "not enough memory for arrays of these shapes";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  const int mine = problem.empty() ? ranks.count : ranks.rank;
  int first;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (first == ranks.count) return;
  throw AgreedError(first == ranks.rank ? problem : "");
}

// MPI counts in int: call(offset, count) for pieces that fit.
template <typename Call>
void InPieces(size_t bytes, const Call& call) {
  constexpr size_t kPiece = size_t{1} << 30;
  for (size_t at = 0; at < bytes; at += kPiece) call(at, static_cast<int>(std::min(kPiece, bytes - at)));
}
void Send(const void* data, size_t bytes, int to) {
  InPieces(bytes, [&](size_t at, int count) {
    MPI_Send(static_cast<const char*>(data) + at, count, MPI_BYTE, to, 0, MPI_COMM_WORLD);
  });
}
void Receive(void* data, size_t bytes, int from) {
  InPieces(bytes, [&](size_t at, int count) {
    MPI_Recv(static_cast<char*>(data) + at, count, MPI_BYTE, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  });
}
void Broadcast(void* data, size_t bytes) {
  InPieces(bytes,
           [&](size_t at, int count) { MPI_Bcast(static_cast<char*>(data) + at, count, MPI_BYTE, 0, MPI_COMM_WORLD); });
}

struct Range {
  int64_t begin, end;
};

// The zig-zag share of a rank, one or two ranges of keys. Under a causal mask over as many queries as keys block b of n
// is seen by (n - b - 1/2) / n of them, and blocks r and n - 1 - r together by one block's worth of all, for every r.
std::vector<Range> Share(int64_t kv_len, int rank, int ranks) {
  const int64_t blocks = 2 * int64_t{ranks};
  const auto start = [&](int64_t block) { return kv_len * block / blocks; };
  const int64_t low = rank, high = blocks - 1 - rank;
  if (low + 1 == high) return {{start(low), start(high + 1)}};  // the last rank's are neighbours
  return {{start(low), start(low + 1)}, {start(high), start(high + 1)}};
}

int64_t Keys(const std::vector<Range>& share) {
  int64_t keys = 0;
  for (const Range& range : share) keys += range.end - range.begin;
  return keys;
}

std::string RangesText(const std::vector<Range>& share) {
  std::string text;
  for (const Range& range : share) text += fmt::format("{}{}..{}", text.empty() ? "" : " ", range.begin, range.end);
  return text;
}

// K or V as a rank holds it: rank 0 the whole array, others their share's rows one after another.
struct Held {
  const void* data = nullptr;
  std::vector<char> memory;
  int64_t rows = 0;
};

// Rank 0 deals its whole array out to the other ranks' shares, range by range.
void Deal(const Ranks& ranks, const Problem& problem, size_t row_bytes, Held* held) {
  const size_t outer = problem.Outer(), kv_len = static_cast<size_t>(problem.kv_len);
  const char* const whole = static_cast<const char*>(held->data);
  char* to_fill = held->memory.data();
  for (int to = std::max(ranks.rank, 1); to < (ranks.rank == 0 ? ranks.count : ranks.rank + 1); ++to) {
    for (size_t o = 0; o < outer; ++o) {
      for (const Range& range : Share(problem.kv_len, to, ranks.count)) {
        const size_t bytes = static_cast<size_t>(range.end - range.begin) * row_bytes;
        if (ranks.rank == 0) {
          Send(whole + (o * kv_len + static_cast<size_t>(range.begin)) * row_bytes, bytes, to);
        } else {
          Receive(to_fill, bytes, 0);
          to_fill += bytes;
        }
      }
    }
  }
}

struct Part {
  std::vector<float> out, lse;
  explicit Part(const Problem& p)
      : out(Elements("the result", p.OutShape())), lse(Elements("the log-sum-exp", p.LseShape())) {}
};

fovea_tensor OutView(const Problem& p, const Part& part) {
  return p.View(part.out.data(), FOVEA_F32, p.q_heads, p.q_len, p.v_head_dim);
}
fovea_tensor LseView(const Problem& p, const Part& part) {
  return fovea_tensor_bhs(part.lse.data(), FOVEA_F32, p.q_heads, p.q_len);
}

// The call over one range of keys, which are rows first .. of what is held.
fovea_attention_params ParamsOf(const Problem& p, const void* q, const Held& k, const Held& v, int64_t first,
                                Range range, const Part& part) {
  fovea_attention_params params;
  ThrowOnError(fovea_attention_params_init(&params, sizeof params));
  params.batch = p.batch;
  params.num_q_heads = p.q_heads;
  params.num_kv_heads = p.kv_heads;
  params.q_len = p.q_len;
  params.kv_len = range.end - range.begin;
  params.head_dim = p.head_dim;
  params.v_head_dim = p.v_head_dim;
  const auto rows = [&](const Held& held, fovea_dtype dtype, int64_t dim) {
    const size_t skipped = static_cast<size_t>(first) * p.RowBytes(dtype, dim);
    return p.View(static_cast<const char*>(held.data) + skipped, dtype, p.kv_heads, held.rows, dim);
  };
  params.q = p.View(q, p.q_dtype, p.q_heads, p.q_len, p.head_dim);
  params.k = rows(k, p.k_dtype, p.head_dim);
  params.v = rows(v, p.v_dtype, p.v_head_dim);
  params.out = OutView(p, part);
  params.lse = LseView(p, part);
  params.causal = p.causal;
  // Positions count from the range's first key. The lowest offset that is valid leaves no query a key, as a lower one
  // would.
  constexpr int64_t kLowest = 1 - (int64_t{1} << 30);
  if (p.causal) params.q_offset = std::max(p.q_offset - range.begin, std::min(p.q_offset, kLowest));
  return params;
}

// The first count parts, joined into the first.
void Merge(const Problem& p, const std::vector<Part>& parts, size_t count, const fovea_exec& exec) {
  std::vector<fovea_tensor> outs, lses;
  for (size_t i = 0; i < count; ++i) outs.push_back(OutView(p, parts[i])), lses.push_back(LseView(p, parts[i]));
  ThrowOnError(fovea_attention_merge(static_cast<int32_t>(count), outs.data(), lses.data(), p.batch, p.q_heads, p.q_len,
                                     p.v_head_dim, outs.data(), lses.data(), &exec));
}

// What rank 0 prints of each rank; sent as bytes.
struct Report {
  double flop = 0, seconds = 0;
  char target[sizeof(fovea_attention_info::target)] = "";
};

// This rank's share: both ranges, joined into the first part.
Report AttendShare(const Problem& p, const std::vector<Range>& share, const void* q, const Held& k, const Held& v,
                   const fovea_exec& exec, std::vector<Part>* parts) {
  Report report;
  fovea_attention_info info;
  ThrowOnError(fovea_attention_info_init(&info, sizeof info));
  int64_t first = 0;
  for (size_t i = 0; i < share.size(); ++i) {
    const bool whole = k.rows == p.kv_len;
    const fovea_attention_params params = ParamsOf(p, q, k, v, whole ? share[i].begin : first, share[i], (*parts)[i]);
    first += share[i].end - share[i].begin;
    ThrowOnError(fovea_attention_describe(&params, &exec, &info));
    report.flop += info.flop;
    const double begin = MPI_Wtime();
    ThrowOnError(fovea_attention_forward(&params, &exec));
    report.seconds += MPI_Wtime() - begin;
  }
  std::memcpy(report.target, info.target, sizeof report.target);
  const double begin = MPI_Wtime();
  if (share.size() > 1) Merge(p, *parts, share.size(), exec);
  report.seconds += MPI_Wtime() - begin;
  return report;
}

// Q, K or V of --heads: [batch, rows, heads * dim] or without batch, as the shape [batch, heads, rows, dim].
NpyArray ReadProjection(const char* option, const std::string& path, int64_t heads, bool* batched) {
  NpyArray array = ReadFloats(option, path);
  const size_t dims = array.shape.size();
  if ((dims != 2 && dims != 3) || array.shape.back() % heads != 0) {
    throw InputError(fmt::format("{}: shape {}; with --heads {} wants [batch, rows, {} * dim] or [rows, {} * dim]",
                                 path, ShapeText(array.shape), option, heads, heads));
  }
  *batched = dims == 3;
  array.shape = {dims == 3 ? array.shape[0] : 1, heads, array.shape[dims - 2], array.shape[dims - 1] / heads};
  return array;
}

int64_t Offset(const std::string& text, int64_t q_len, int64_t kv_len) {
  if (text == "bottom-right") return kv_len - q_len;
  if (!IsWhole(text)) throw InputError(fmt::format("--q-offset {}: a whole number or bottom-right is wanted", text));
  return std::stoll(text);
}

// Rank 0's arrays.
struct Inputs {
  Stored q, k, v;
  bool batched = false;
};

Inputs ReadInputs(const Options& o, Problem* p) {
  const HeadCounts heads = o.heads.empty() ? HeadCounts{} : ParseHeads("--heads", o.heads);
  Inputs inputs;
  const auto read = [&](const char* option, const std::string& path, int64_t count, bool* batched) {
    return o.heads.empty() ? ReadOperand(option, path, batched) : ReadProjection(option, path, count, batched);
  };
  bool ignored;
  NpyArray q = read("--q", o.q, heads.q, &inputs.batched);
  NpyArray k = read("--k", o.k, heads.kv, &ignored), v = read("--v", o.v, heads.kv, &ignored);
  WantEqual(0, o.q, q, o.k, k);
  WantEqual(0, o.q, q, o.v, v);
  WantEqual(3, o.q, q, o.k, k);
  WantEqual(1, o.k, k, o.v, v);
  WantEqual(2, o.k, k, o.v, v);
  if (v.shape[3] == 0)
    throw InputError(fmt::format("{}: dim 0 of {}", o.v, ShapeText(v.shape)));  // 0 is "as q" in the ABI
  p->batch = q.shape[0];
  p->q_heads = q.shape[1], p->kv_heads = k.shape[1];
  p->q_len = q.shape[2], p->kv_len = k.shape[2];
  p->head_dim = q.shape[3], p->v_head_dim = v.shape[3];
  p->q_offset = Offset(o.q_offset, p->q_len, p->kv_len);
  p->rows_first = !o.heads.empty();
  p->causal = o.causal;
  inputs.q = Store(&q, FOVEA_DTYPE_NONE), inputs.k = Store(&k, FOVEA_DTYPE_NONE),
  inputs.v = Store(&v, FOVEA_DTYPE_NONE);
  p->q_dtype = inputs.q.dtype, p->k_dtype = inputs.k.dtype, p->v_dtype = inputs.v.dtype;
  return inputs;
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
    }
  }
  return largest;
}

// The joined result, and what one rank makes of all keys, against float64; and how far they lie apart.
bool Check(const Problem& p, fovea_attention_params params, const Part& joined, int ranks, const fovea_exec& exec) {
  fovea_attention_info info;
  ThrowOnError(fovea_attention_info_init(&info, sizeof info));
  ThrowOnError(fovea_attention_describe(&params, &exec, &info));
  bool good = true;
  const auto check = [&](int count, double limit) {
    const AttentionCheck result = CheckAttention(params, 1, ArithmeticOf(info));
    good &= ReportChecked(fmt::format("out of {} rank{}", count, count == 1 ? "" : "s"), result.out, limit);
    good &= ReportChecked(fmt::format("lse of {} rank{}", count, count == 1 ? "" : "s"), result.lse, limit);
  };
  check(ranks, ranks == 1 ? 1 : kMergedLimit);
  if (ranks == 1) return good;
  Part single(p);
  params.out = OutView(p, single), params.lse = LseView(p, single);
  ThrowOnError(fovea_attention_forward(&params, &exec));
  check(1, 1);
  fmt::print("check     {} ranks and 1 differ by {:.2e} at most in out, {:.2e} in lse\n", ranks,
             LargestDifference(joined.out, single.out), LargestDifference(joined.lse, single.lse));
  return good;
}

void Print(const Ranks& ranks, const Problem& p, const std::vector<Report>& reports, double join_seconds) {
  fmt::print("shape     batch {}, heads {}/{}, queries {}, keys {}, dim {}, v_dim {}\n", p.batch, p.q_heads, p.kv_heads,
             p.q_len, p.kv_len, p.head_dim, p.v_head_dim);
  for (int r = 0; r < ranks.count; ++r) {
    const Report& report = reports[static_cast<size_t>(r)];
    fmt::print("rank {:<4} keys {}: {:.4g} MFLOP, {:.4g} ms, {}\n", r, RangesText(Share(p.kv_len, r, ranks.count)),
               report.flop * 1e-6, report.seconds * 1e3, report.target);
  }
  // Each count is of what one other rank receives or sends.
  const double keys = static_cast<double>(p.kv_len - Keys(Share(p.kv_len, 0, ranks.count)));
  const double kv_row = static_cast<double>(p.RowBytes(p.k_dtype, p.head_dim) + p.RowBytes(p.v_dtype, p.v_head_dim));
  const double part = static_cast<double>(p.batch * p.q_heads * p.q_len * (p.v_head_dim + 1)) * sizeof(float);
  const int others = ranks.count - 1;
  fmt::print("moved     q {:.4g} MB, k and v {:.4g} MB, partial results {:.4g} MB\n",
             others * static_cast<double>(p.QBytes()) * 1e-6, static_cast<double>(p.Outer()) * keys * kv_row * 1e-6,
             others * part * 1e-6);
  fmt::print("time      {:.4g} ms to gather and merge\n", join_seconds * 1e3);
}

int Run(const Ranks& ranks, const Options& o) {
  Problem p{};
  Inputs inputs;
  std::vector<Part> parts;  // of this rank's ranges; then, on rank 0, of all ranks
  std::vector<NpyOutput> outputs;
  Held k, v;
  fovea_exec exec;
  Together(ranks, [&] {
    if (!o.target.empty()) ThrowOnError(fovea_set_target(o.target.c_str()));
    ThrowOnError(fovea_exec_init(&exec, sizeof exec));
    exec.num_threads = o.threads;
    if (ranks.rank > 0) return;
    inputs = ReadInputs(o, &p);
    k.data = inputs.k.data(), v.data = inputs.v.data();
    k.rows = v.rows = p.kv_len;
    parts.emplace_back(p);
    // Whatever is wrong with the call as a whole is said in the caller's numbers, not a share's.
    const fovea_attention_params params = ParamsOf(p, inputs.q.data(), k, v, 0, {0, p.kv_len}, parts[0]);
    fovea_attention_info info;
    ThrowOnError(fovea_attention_info_init(&info, sizeof info));
    ThrowOnError(fovea_attention_describe(&params, &exec, &info));
    if (!o.out.empty()) outputs.push_back({o.out, p.OutShape(), parts[0].out.data()});
    if (!o.lse.empty()) outputs.push_back({o.lse, p.LseShape(), parts[0].lse.data()});
    for (NpyOutput& output : outputs) {
      if (!inputs.batched) output.shape.erase(output.shape.begin());
    }
    CheckOutputs(outputs);
  });

  Broadcast(&p, sizeof p);
  const std::vector<Range> share = Share(p.kv_len, ranks.rank, ranks.count);
  std::vector<char> q_memory;
  std::vector<Report> reports(static_cast<size_t>(ranks.count));
  const size_t k_row = p.RowBytes(p.k_dtype, p.head_dim), v_row = p.RowBytes(p.v_dtype, p.v_head_dim);
  Together(ranks, [&] {
    if (ranks.rank > 0) {
      k.rows = v.rows = Keys(share);
      q_memory.resize(p.QBytes());
      k.memory.resize(p.Outer() * static_cast<size_t>(k.rows) * k_row);
      v.memory.resize(p.Outer() * static_cast<size_t>(v.rows) * v_row);
      k.data = k.memory.data(), v.data = v.memory.data();
    }
    const size_t wanted = std::max(share.size(), ranks.rank == 0 ? reports.size() : 0);
    while (parts.size() < wanted) parts.emplace_back(p);
  });
  const void* const q = ranks.rank == 0 ? inputs.q.data() : q_memory.data();
  Broadcast(const_cast<void*>(q), p.QBytes());  // rank 0's is only read
  Deal(ranks, p, k_row, &k);
  Deal(ranks, p, v_row, &v);

  Report report;
  Together(ranks, [&] { report = AttendShare(p, share, q, k, v, exec, &parts); });
  MPI_Gather(&report, sizeof report, MPI_BYTE, reports.data(), sizeof report, MPI_BYTE, 0, MPI_COMM_WORLD);

  const double begin = MPI_Wtime();
  const size_t out_bytes = parts[0].out.size() * sizeof(float), lse_bytes = parts[0].lse.size() * sizeof(float);
  if (ranks.rank > 0) {
    Send(parts[0].out.data(), out_bytes, 0);
    Send(parts[0].lse.data(), lse_bytes, 0);
    return kExitOk;
  }
  for (int from = 1; from < ranks.count; ++from) {
    Receive(parts[static_cast<size_t>(from)].out.data(), out_bytes, from);
    Receive(parts[static_cast<size_t>(from)].lse.data(), lse_bytes, from);
  }
  Merge(p, parts, reports.size(), exec);
  const double join_seconds = MPI_Wtime() - begin;
  WriteNpy(outputs);
  Print(ranks, p, reports, join_seconds);
  bool good = true;
  if (o.check) good = Check(p, ParamsOf(p, q, k, v, 0, {0, p.kv_len}, parts[0]), parts[0], ranks.count, exec);
  for (const NpyOutput& output : outputs) fmt::print("wrote     {} {}\n", output.path, ShapeText(output.shape));
  return good ? kExitOk : kExitFailed;
}

int Main(const Ranks& ranks, int argc, char** argv) {
  CLI::App app(kHelp, "fovea_mpi_attend");
  app.footer(kFooter);
  app.set_version_flag("--version", fovea_version_str());
  Options o;
  app.add_option("--q", o.q, "queries")->required()->type_name("Q.npy");
  app.add_option("--k", o.k, "keys")->required()->type_name("K.npy");
  app.add_option("--v", o.v, "values")->required()->type_name("V.npy");
  app.add_flag("--causal", o.causal, "key j is seen by query i where j <= i + q-offset");
  app.add_option("--q-offset", o.q_offset, "a number; or bottom-right: the last query stands at the last key")
      ->type_name("N|bottom-right");
  app.add_option("--heads", o.heads, "query and kv heads of arrays [batch, rows, heads * dim]")->type_name("H/KV");
  app.add_option("--out", o.out, "write the result")->type_name("O.npy");
  app.add_option("--lse", o.lse, "write log(sum(exp(scores))), [batch, q_heads, queries]")->type_name("L.npy");
  app.add_flag("--check", o.check, "compare with an evaluation in float64, and with one rank's result (slow)");
  app.add_option("--threads", o.threads, "of each rank; default: all that OpenMP would use")->type_name("N");
  app.add_option("--target", o.target, "instruction set, one of `fovea info`")->type_name("NAME");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success))
      return ranks.rank == 0 ? app.exit(error) : kExitOk;
    throw AgreedError(ranks.rank == 0 ? error.what() : "");  // every rank has the same arguments
  }
  return Run(ranks, o);
}

}  // namespace
}  // namespace fovea::tools

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  fovea::tools::Ranks ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks.count);
  int code = fovea::tools::kExitOk;
  std::string problem;
  try {
    code = fovea::tools::Main(ranks, argc, argv);
    std::fflush(stdout);
  } catch (const std::bad_alloc&) {
    problem = "not enough memory";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (std::ferror(stdout)) {
    fmt::print(stderr, "fovea_mpi_attend: rank {}: standard output cannot be written\n", ranks.rank);
    if (code == fovea::tools::kExitOk) code = fovea::tools::kExitFailed;  // files are written
  } else if (!problem.empty()) {
    std::replace(problem.begin(), problem.end(), '\n', ' ');
    fmt::print(stderr, "fovea_mpi_attend: rank {}: {}\n", ranks.rank, problem);
    code = fovea::tools::kExitBadInput;
  }
  MPI_Finalize();
  return code;
}
