// fovea sweep: attention over lengths, head dims, heads, targets, threads or a model's layers, timed and checked as in
// bench/, to a table, JSON and CSV.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bench/bench_util.h"
#include "bench/layer_case.h"
#include "tools/cli.h"
#include "tools/words.h"

namespace fovea::tools {
namespace {

using fovea_bench::Shape;
using Json = nlohmann::ordered_json;

const std::vector<int64_t> kPrefillLengths = {128, 256, 512, 1024, 2048, 4096};
const std::vector<int64_t> kDecodeLengths = {1024, 2048, 4096, 8192, 16384, 32768};
const std::vector<int64_t> kLayerLengths = {1, 512, 2048};
constexpr int64_t kQuickPrefill = 2048, kQuickDecode = 8192, kQuickLayer = 1;  // the longest of --quick
constexpr int64_t kLayerContext = 4096;  // keys that a single token of a layer attends to, where the context has them
constexpr int kRounds = 5, kQuickRounds = 3;                  // at least
constexpr int kMostThreads = 1024;                            // of a call: fovea_exec.num_threads

volatile std::sig_atomic_t interrupted = 0;  // the signal
bool on_terminal = false;                    // where a progress bar may be in its line

void SetSignals(void (*handler)(int)) {
  std::signal(SIGINT, handler);
  std::signal(SIGTERM, handler);
}

// The first Ctrl-C ends the measuring, the second the program.
void OnInterrupt(int number) {
  constexpr char kText[] = "\nfovea: interrupted: finishing this measurement; once more stops at once, with the rows so far kept\n";
  interrupted = number;
  SetSignals(SIG_DFL);
  const size_t skipped = on_terminal ? 0 : 1;
  if (write(STDERR_FILENO, kText + skipped, sizeof kText - 1 - skipped) < 0) return;  // nobody to tell
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (text.empty() || text.back() == separator) parts.push_back("");
  return parts;
}

// "128,512..4096": numbers, and A..B for A, 2A, 4A up to B.
std::vector<int64_t> Numbers(const std::string& where, const std::string& text) {
  std::vector<int64_t> values;
  for (const std::string& part : Split(text, ',')) {
    const size_t dots = part.find("..");
    const int64_t first = Number<int64_t>(where, part.substr(0, dots), 1);
    const int64_t last = dots == std::string::npos ? first : Number<int64_t>(where, part.substr(dots + 2), first);
    for (int64_t n = first; n <= last && values.size() < 1000; n *= 2) values.push_back(n);
  }
  return values;
}

std::vector<std::string> ParseOps(const std::string& where, const std::string& text) {
  const std::vector<std::string> ops = Split(text, ',');
  for (const std::string& op : ops) {
    if (op != "prefill" && op != "decode" && op != "layer")
      throw InputError(fmt::format("{}: {}: prefill, decode or layer is wanted", where, op));
  }
  return ops;
}

// A kind of layer: what a line of bench/shapes/*.txt holds, or the command's own options.
struct Layer {
  std::string name;
  Shape shape;  // what all its rows share
  std::vector<std::string> ops = {"prefill", "decode", "layer"};
  int64_t d_model = 0;                      // 0: query heads * head_dim
  std::vector<int64_t> lengths;             // empty: the op's usual ones, up to the context
  int64_t context = INT64_MAX, kv_len = 0;  // kv_len: fixed, as in cross attention, where lengths are of the queries
  int64_t layers = 1;
};

// "self layers=32 heads=32/8 head_dim=128 causal context=8192"
Layer ParseLayer(const std::string& where, const std::string& line) {
  std::istringstream words(line);
  Layer layer;
  words >> layer.name;
  bool heads = false, head_dim = false;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    const std::string at = where + ": " + key;
    if (word == "causal") {
      layer.shape.causal = true;
    } else if (word == "sinks") {
      layer.shape.sinks = true;
    } else if (key == "layers") {
      layer.layers = Number<int64_t>(at, value, 1);
    } else if (key == "heads") {
      const HeadCounts parsed = ParseHeads(at, value);
      layer.shape.num_q_heads = parsed.q, layer.shape.num_kv_heads = parsed.kv;
      heads = true;
    } else if (key == "head_dim") {
      layer.shape.head_dim = Number<int64_t>(at, value, 1);
      head_dim = true;
    } else if (key == "d_model") {
      layer.d_model = Number<int64_t>(at, value, 1);
    } else if (key == "window") {
      layer.shape.window = Number<int64_t>(at, value, 1);
    } else if (key == "soft_cap") {
      layer.shape.soft_cap = Number<float>(at, value, 0.0f);
    } else if (key == "context") {
      layer.context = Number<int64_t>(at, value, 1);
    } else if (key == "kv_len") {
      layer.kv_len = Number<int64_t>(at, value, 1);
    } else if (key == "lengths") {
      layer.lengths = Numbers(at, value);
    } else if (key == "ops") {
      layer.ops = ParseOps(at, value);
    } else {
      throw InputError(fmt::format("{}: '{}' is not known", where, word));
    }
  }
  if (!heads || !head_dim) throw InputError(where + ": heads= and head_dim= are wanted");
  // Cross attention has its keys already, and sinks are learned with a layer's own weights.
  if (layer.kv_len || layer.shape.sinks) layer.ops.erase(std::remove(layer.ops.begin(), layer.ops.end(), "layer"), layer.ops.end());
  return layer;
}

// Where presets lie: beside the installed command, else in the sources that it was built from.
std::vector<std::filesystem::path> PresetDirectories() {
  std::error_code error;
  const std::filesystem::path exe = std::filesystem::read_symlink("/proc/self/exe", error);
  return {exe.parent_path().parent_path() / FOVEA_DATADIR / "fovea/shapes", FOVEA_SOURCE_SHAPES};
}

std::vector<Layer> ReadPreset(const std::string& name) {
  std::vector<std::string> known;
  for (const std::filesystem::path& directory : PresetDirectories()) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
      if (entry.path().extension() != ".txt") continue;
      if (entry.path().stem() != name) {
        known.push_back(entry.path().stem());
        continue;
      }
      std::ifstream file(entry.path());
      std::vector<Layer> layers;
      int number = 1;
      for (std::string line; std::getline(file, line); ++number) {
        if (line.empty() || line[0] == '#') continue;
        layers.push_back(ParseLayer(fmt::format("{}:{}", entry.path().string(), number), line));
      }
      if (layers.empty()) throw InputError(entry.path().string() + ": no layers");
      return layers;
    }
    if (!known.empty()) break;
  }
  std::sort(known.begin(), known.end());
  throw InputError(fmt::format("--preset {}: not known; there are: {}", name, fmt::join(known, " ")));
}

std::vector<Layer> LayersOf(const SweepOptions& o) {
  if (!o.preset.empty()) {
    if (!o.heads.empty() || !o.head_dims.empty() || o.causal) {
      throw InputError(
          "--preset says what heads, head dims and causality are: not with --heads, --head-dims or --causal");
    }
    return ReadPreset(o.preset);
  }
  std::vector<Layer> layers;
  // As models have them: equal heads for the one, grouped for the other.
  for (const std::string& op : ParseOps("--op", o.op.empty() ? "prefill,decode" : o.op)) {
    for (const int64_t head_dim : Numbers("--head-dims", o.head_dims.empty() ? "64,128" : o.head_dims)) {
      for (const std::string& text : Split(o.heads.empty() ? (op == "prefill" ? "8" : "32/8") : o.heads, ',')) {
        const HeadCounts heads = ParseHeads("--heads", text);
        Layer layer;
        layer.ops = {op};
        layer.shape.num_q_heads = heads.q;
        layer.shape.num_kv_heads = heads.kv;
        layer.shape.head_dim = head_dim;
        layer.shape.causal = o.causal;
        layers.push_back(layer);
      }
    }
  }
  return layers;
}

std::vector<int64_t> LengthsOf(const SweepOptions& o, const Layer& layer, const std::string& op) {
  const bool decode = op == "decode";
  if (decode && layer.kv_len) return {1};
  if (!o.lengths.empty()) return Numbers("--lengths", o.lengths);
  const bool whole = op == "layer";
  std::vector<int64_t> lengths = !layer.lengths.empty() ? layer.lengths : decode ? kDecodeLengths : kPrefillLengths;
  if (whole) lengths = kLayerLengths;
  const int64_t longest =
      std::min(layer.context, !o.quick ? INT64_MAX : decode ? kQuickDecode : whole ? kQuickLayer : kQuickPrefill);
  lengths.erase(std::remove_if(lengths.begin() + 1, lengths.end(), [&](int64_t n) { return n > longest; }),
                lengths.end());
  return lengths;
}

struct Row {
  Shape shape;
  int64_t d_model;
  std::string layer;
  int64_t layers;
};

// What this build cannot compute is refused before anything is measured.
void CheckDtype(fovea_dtype dtype) {
  fovea_attention_params p;
  ThrowOnError(fovea_attention_params_init(&p, sizeof p));
  p.batch = p.num_q_heads = p.num_kv_heads = p.q_len = p.kv_len = p.head_dim = 1;
  p.k = p.v = fovea_tensor_bhsd(nullptr, dtype, 1, 1, 1);
  p.q = p.out = fovea_tensor_bhsd(nullptr, dtype == FOVEA_I8 ? FOVEA_F32 : dtype, 1, 1, 1);
  size_t bytes;
  if (fovea_attention_workspace_size(&p, nullptr, &bytes) != FOVEA_OK) {
    throw InputError(fmt::format("--dtypes: {}", fovea_last_error()));
  }
}

std::vector<std::string> TargetsOf(const SweepOptions& o) {
  if (o.targets == "all") return fovea_bench::RunnableTargets();
  if (o.targets.empty()) return {fovea_bench::ChosenTarget()};
  const std::vector<std::string> targets = Split(o.targets, ',');
  for (const std::string& target : targets) {
    if (fovea_set_target(target.c_str()) != FOVEA_OK) {
      throw InputError(fmt::format("--targets: {}: one of {} or all is wanted", target, fmt::join(fovea_bench::RunnableTargets(), ", ")));
    }
  }
  return targets;
}

std::vector<int> ThreadsOf(const SweepOptions& o) {
  std::vector<int> threads;
  for (const std::string& part : Split(o.threads.empty() ? "1,all" : o.threads, ',')) {
    const int n = part == "all" ? std::min(fovea_bench::MaxThreads(), kMostThreads) : Number<int>("--threads", part, 1);
    if (n > kMostThreads) throw InputError(fmt::format("--threads: {}: at most {}", n, kMostThreads));
    if (std::find(threads.begin(), threads.end(), n) == threads.end()) threads.push_back(n);
  }
  return threads;
}

std::vector<Row> RowsOf(const SweepOptions& o, const std::vector<std::string>& targets,
                        const std::vector<int>& threads) {
  std::vector<fovea_dtype> dtypes;
  for (const std::string& text : Split(o.dtypes, ',')) CheckDtype(dtypes.emplace_back(ParseDtype("--dtypes", text)));
  const std::vector<std::string> ops = ParseOps("--op", o.op.empty() ? "prefill,decode" : o.op);
  std::vector<Row> rows;
  for (const Layer& layer : LayersOf(o)) {
    for (const std::string& op : layer.ops) {
      if (std::find(ops.begin(), ops.end(), op) == ops.end()) continue;
      for (const int64_t length : LengthsOf(o, layer, op)) {
        for (const fovea_dtype dtype : dtypes) {
          if (op == "layer" && dtype != FOVEA_F32) throw InputError("--dtypes: layers are measured in f32");
          for (const std::string& target : targets) {
            for (const int n : threads) {
              Row row = {layer.shape, layer.d_model ? layer.d_model : layer.shape.num_q_heads * layer.shape.head_dim, layer.name,
                         layer.layers};
              row.shape.op = op;
              row.shape.dtype = dtype;
              row.shape.q_len = op == "decode" ? 1 : length;
              row.shape.kv_len = layer.kv_len ? layer.kv_len : length;
              if (op == "layer" && length == 1) row.shape.kv_len = std::min(layer.context, o.quick ? kLayerContext / 4 : kLayerContext);
              row.shape.target = target;
              row.shape.threads = n;
              rows.push_back(row);
            }
          }
        }
      }
    }
  }
  if (rows.empty()) throw InputError("nothing to measure: this preset has no such --op");
  return rows;
}

// One line at the end of a terminal's output; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(size_t total) : total_(total), on_(isatty(STDERR_FILENO)), start_(fovea_bench::Seconds()) {}
  ~ProgressBar() { Clear(); }
  void Show(size_t done, const std::string& what) const {
    if (!on_) return;
    constexpr size_t kWidth = 24;
    const size_t filled = total_ ? kWidth * done / total_ : 0;
    const double spent = fovea_bench::Seconds() - start_,
                 left = done ? spent / static_cast<double>(done) * static_cast<double>(total_ - done) : 0;
    fmt::print(stderr, "\r\x1b[K[{}{}] {}/{} {:.0f} s{}  {:.60}", std::string(filled, '#'),
               std::string(kWidth - filled, '.'), done, total_, spent, done ? fmt::format(", {:.0f} s left", left) : "",
               what);
    std::fflush(stderr);
  }
  void Clear() const {
    if (!on_) return;
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }

 private:
  size_t total_;
  bool on_;
  double start_;
};

// What identifies a row.
Json RowHead(const Row& row, const std::string& name, const SweepOptions& o) {
  const Shape& s = row.shape;
  std::string dtype = fovea_dtype_str(s.dtype);
  for (char& c : dtype) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  Json json = {{"name", name}};
  if (!o.preset.empty()) json.update({{"model", o.preset}, {"layer", row.layer}, {"layers", row.layers}});
  json.update({{"op", s.op},
               {"dtype", dtype},
               {"target", s.target},
               {"threads", s.threads},
               {"batch", s.batch},
               {"num_q_heads", s.num_q_heads},
               {"num_kv_heads", s.num_kv_heads},
               {"q_len", s.q_len},
               {"kv_len", s.kv_len},
               {"head_dim", s.head_dim},
               {"causal", s.causal},
               {"window", s.window},
               {"soft_cap", s.soft_cap},
               {"sinks", s.sinks}});
  return json;
}

void AddResult(const fovea_bench::Result& r, Json* json) {
  json->update({{"time_s", r.seconds},
                {"GFLOP/s", r.gflops},
                {"fma_fraction", r.fma_fraction},
                {"GB/s", r.gbps},
                {"bandwidth_fraction", std::isfinite(r.bandwidth_fraction) ? Json(r.bandwidth_fraction) : Json()},
                {"max_err", r.max_err},
                {"naive_err", r.naive_err},
                {"fma_gflops", r.fma_gflops},
                {"read_gbps", r.read_gbps},
                {"rounds", r.rounds}});
}

// Rounds until there are enough, or Ctrl-C comes.
std::vector<fovea_bench::Round> Rounds(const SweepOptions& o, const std::function<void(fovea_bench::Round*)>& measure) {
  std::vector<fovea_bench::Round> rounds;
  const size_t least = o.quick ? kQuickRounds : kRounds;
  const double enough = o.min_time.value_or(o.quick ? 0.05 : 0.5);
  for (double spent = 0; !interrupted && (spent < enough || rounds.size() < least);) {
    fovea_bench::Round round;
    measure(&round);
    rounds.push_back(round);
    spent += round.seconds;
  }
  return rounds;
}

// The stages of a layer, a row each, the whole call last.
std::vector<Json> MeasureLayer(const Row& row, const SweepOptions& o) {
  const fovea_bench::LayerShape shape = {row.shape, row.d_model};
  const std::string name = fovea_bench::Name(shape);
  std::vector<Json> rows;
  try {
    fovea_bench::LayerCase bench(shape);
    for (int stage = 0; stage < fovea_bench::LayerCase::kStages; ++stage) {
      const std::vector<fovea_bench::Round> rounds = Rounds(o, [&](fovea_bench::Round* round) {
        round->seconds = bench.Run(stage);
        bench.MeasureLimits(stage, round);
      });
      if (rounds.empty()) break;
      Json json = RowHead(row, name + "/" + fovea_bench::LayerCase::kStageNames[stage], o);
      json.update({{"d_model", row.d_model},
                   {"stage", fovea_bench::LayerCase::kStageNames[stage]},
                   {"kernels", bench.kernels()},
                   {"flop", bench.flop(stage)},
                   {"kv_bytes", bench.bytes(stage)}});
      AddResult(bench.Summarize(stage, rounds), &json);
      rows.push_back(json);
    }
  } catch (const std::bad_alloc&) {
    rows.push_back(RowHead(row, name, o));
    rows.back()["error"] = "not enough memory";
  } catch (const std::exception& error) {
    rows.push_back(RowHead(row, name, o));
    rows.back()["error"] = error.what();
  }
  return rows;
}

// A measured row; none where Ctrl-C came first.
std::vector<Json> Measure(const Row& row, const SweepOptions& o) {
  if (row.shape.op == "layer") return MeasureLayer(row, o);
  Json json = RowHead(row, fovea_bench::Name(row.shape), o);
  try {
    fovea_bench::Case bench(row.shape);
    const std::vector<fovea_bench::Round> rounds = Rounds(o, [&](fovea_bench::Round* round) {
      round->seconds = bench.Run();
      bench.MeasureLimits(round);
    });
    if (rounds.empty()) return {};
    json.update({{"kernels", bench.info().kernels}, {"flop", bench.info().flop}, {"kv_bytes", bench.kv_bytes()}});
    AddResult(bench.Summarize(rounds), &json);
  } catch (const std::bad_alloc&) {
    json["error"] = "not enough memory";
  } catch (const std::exception& error) {
    json["error"] = error.what();
  }
  return {json};
}

void PrintRow(const Json& row) {
  const std::string name = row["name"];
  if (row.contains("error")) {
    fmt::print("{:<58} {}\n", name, row["error"].get<std::string>());
  } else {
    const auto number = [&](const char* key) { return row[key].get<double>(); };
    // Too few bytes for their read rate to be measured: no fraction.
    const std::string of_read = row["bandwidth_fraction"].is_null() ? "-" : fmt::format("{:.1f}%", number("bandwidth_fraction") * 100);
    fmt::print("{:<58} {:>10.3f} {:>9.1f} {:>6.1f}% {:>8.2f} {:>7} {:>9.1e} {:>9.1e}\n", name, number("time_s") * 1e3,
               number("GFLOP/s"), number("fma_fraction") * 100, number("GB/s"), of_read, number("max_err"), number("naive_err"));
  }
  std::fflush(stdout);  // that it failed is seen at the end
}

// All columns that some row has, in their order; names and texts hold no quotes.
std::string Csv(const std::vector<Json>& rows) {
  std::vector<std::string> columns;
  for (const Json& row : rows) {
    for (const auto& [key, value] : row.items()) {
      if (std::find(columns.begin(), columns.end(), key) == columns.end()) columns.push_back(key);
    }
  }
  std::string text = fmt::format("{}\n", fmt::join(columns, ","));
  for (const Json& row : rows) {
    std::vector<std::string> cells;
    for (const std::string& column : columns) cells.push_back(row.contains(column) && !row[column].is_null() ? row[column].dump() : "");
    text += fmt::format("{}\n", fmt::join(cells, ","));
  }
  return text;
}

std::string Now() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

// The load average of the last minute; said where it is so high that others disturb what is measured. NaN: not known.
double LoadAverage() {
  double load;
  if (getloadavg(&load, 1) != 1) return NAN;
  const unsigned cpus = std::thread::hardware_concurrency();
  if (load > 0.5 * cpus) fmt::print(stderr, "fovea: the load average is {:.1f} on {} CPUs: other programs disturb the measurement\n", load, cpus);
  return load;
}

bool WriteText(const std::string& text, std::FILE* file) {
  return std::fwrite(text.data(), 1, text.size(), file) == text.size();
}

}  // namespace

int RunSweep(const SweepOptions& o) {
  constexpr double kMostSeconds = 86400;
  if (o.min_time && !(*o.min_time >= 0 && *o.min_time <= kMostSeconds))
    throw InputError(fmt::format("--min-time {}: must not be negative, nor more than {}, a day", *o.min_time, kMostSeconds));
  const std::vector<std::string> targets = TargetsOf(o);
  const std::vector<int> threads = ThreadsOf(o);
  const std::vector<Row> rows = RowsOf(o, targets, threads);
  std::string json_text, csv_text;
  std::vector<OutputFile> files;
  if (!o.json.empty()) files.push_back({o.json, [&](std::FILE* file) { return WriteText(json_text, file); }});
  if (!o.csv.empty()) files.push_back({o.csv, [&](std::FILE* file) { return WriteText(csv_text, file); }});
  CheckOutputFiles(files);

  const std::string date = Now();
  const double load = LoadAverage();
  on_terminal = isatty(STDERR_FILENO);
  SetSignals(OnInterrupt);
  const ProgressBar bar(rows.size());
  Json roofline;
  if (!o.json.empty()) {
    bar.Show(0, "this machine's limits");
    roofline = MeasureRoofline(targets, threads, o.quick ? 3 : 9);
  }
  bar.Clear();
  fmt::print("{:<58} {:>10} {:>9} {:>7} {:>8} {:>7} {:>9} {:>9}\n", "", "ms", "GFLOP/s", "of FMA", "GB/s", "of read",
             "max_err", "naive");
  std::vector<Json> measured;
  const auto write_files = [&](bool complete) {
    if (files.empty()) return;
    json_text = Json{{"program", "fovea sweep"}, {"version", fovea_version_str()}, {"date", date},
                     {"cpu", CpuModel()},        {"load_average", load},           {"command", o.command},
                     {"interrupted", !complete}, {"roofline", roofline},           {"rows", measured}}
                    .dump(1) +
                "\n";
    csv_text = Csv(measured);
    WriteOutputFiles(files);
  };
  bool failed = false;
  size_t done = 0;
  for (; done < rows.size() && !interrupted; ++done) {
    bar.Show(done, fovea_bench::Name(rows[done].shape));
    const std::vector<Json> of_row = Measure(rows[done], o);
    bar.Clear();
    if (of_row.empty()) break;
    measured.insert(measured.end(), of_row.begin(), of_row.end());
    write_files(false);  // whatever ends the program, a row that was printed is kept
    for (const Json& row : of_row) {
      failed |= row.contains("error");
      PrintRow(row);
    }
  }
  SetSignals(SIG_DFL);
  write_files(!interrupted);
  if (interrupted) {
    fmt::print(stderr, "fovea: interrupted: {} of {} rows were measured\n", done, rows.size());
    return 128 + interrupted;
  }
  return failed ? kExitFailed : kExitOk;
}

}  // namespace fovea::tools
