// The fovea command: `fovea info` says what would run on this CPU, `fovea attend` computes attention over .npy files,
// `fovea layer` a whole multi-head layer, `fovea sweep` measures.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <new>
#include <string>

#include "tools/cli.h"
#include "tools/words.h"

namespace fovea::tools {
namespace {

constexpr const char* kAttendHelp = R"(softmax(scale * Q K^T + bias, masked) V over .npy files

Arrays are float32 or float16 in C order: Q [batch, q_heads, queries, dim], K [batch, kv_heads, keys, dim],
V [batch, kv_heads, keys, v_dim]; q_heads is a multiple of kv_heads. Arrays of 3 dimensions are a batch of 1; outputs
then have no batch dimension either. Outputs are float32.

Mask (bool or uint8, non-zero = may attend) and bias (float32 or float16, added to the scores; -inf forbids) broadcast to
[batch, q_heads, queries, keys] as NumPy does, from the last dimension; any of them may be 1:
  [keys]   [heads, queries, keys]   [batch, heads, queries, keys]
  [n, keys]  with n = batch: each sequence's key padding mask; with n = queries: one mask for all of them.
             Where batch = queries it could be either and is refused: save [batch, 1, 1, keys] or [1, queries, keys].)";

constexpr const char* kAttendFooter =
    R"(Exit status: 0 done; 1 an error past tolerance or standard output full, files are written all the same; 2 bad input, nothing is written.
Example: fovea attend --q Q.npy --k K.npy --v V.npy --causal --out O.npy --check)";

void AddAttendOptions(CLI::App* attend, AttendOptions* o) {
  const CLI::Validator whole(
      [](const std::string& text) { return IsWhole(text) ? "" : text + ": a whole number is wanted"; }, "");
  const CLI::Validator offset(
      [](const std::string& text) {
        return IsWhole(text) || text == "bottom-right" ? "" : text + ": a whole number or bottom-right is wanted";
      },
      "");
  attend->add_option("--q", o->q, "queries")->required()->type_name("Q.npy");
  attend->add_option("--k", o->k, "keys")->required()->type_name("K.npy");
  attend->add_option("--v", o->v, "values")->required()->type_name("V.npy");
  attend->add_option("--mask", o->mask, "boolean mask, non-zero = may attend")->type_name("M.npy");
  attend->add_option("--bias", o->bias, "added to the scores")->type_name("B.npy");
  attend->add_flag("--causal", o->causal, "key j is seen by query i where j <= pos(i) = i + q-offset");
  attend->add_option("--q-offset", o->q_offset, "a number; or bottom-right: the last query stands at the last key")
      ->type_name("N|bottom-right")
      ->check(offset);
  attend->add_option("--window-left", o->window_left, "keys from pos(i) - N on; -1 = all")
      ->type_name("N")
      ->check(whole);
  attend->add_option("--window-right", o->window_right, "keys up to pos(i) + N; -1 = all")
      ->type_name("N")
      ->check(whole);
  attend->add_option("--soft-cap", o->soft_cap, "scores become X * tanh(score / X); 0 = none")->type_name("X");
  attend->add_option("--scale", o->scale, "default 1 / sqrt(dim)")->type_name("X");
  attend->add_option("--out", o->out, "write the result, [batch, q_heads, queries, v_dim]")->type_name("O.npy");
  attend->add_option("--lse", o->lse, "write log(sum(exp(scores))), [batch, q_heads, queries]")->type_name("L.npy");
  attend->add_option("--weights", o->weights, "write the softmax, [batch, q_heads, queries, keys]")->type_name("W.npy");
  attend->add_option("--expect", o->expect, "compare the result with this array")->type_name("O.npy");
  attend->add_option("--expect-lse", o->expect_lse, "compare the log-sum-exp with this array")->type_name("L.npy");
  attend->add_flag("--check", o->check, "compare with an evaluation in float64 (slow: a plain loop on one thread)");
  attend
      ->add_option("--tolerance", o->tolerance,
                   "of --expect, absolute; of --expect-lse, relative to max(1, |value|). "
                   "Default 2e-6, for --expect times max(1, largest |V|)")
      ->type_name("X");
  attend
      ->add_option("--dtype", o->dtype,
                   "f32, bf16 or f16: round q, k, v and bias to it first; i8: quantize k and v, a scale for each row; "
                   "default: as in their files")
      ->type_name("TYPE");
  attend->add_option("--threads", o->threads, "default: all that OpenMP would use")->type_name("N")->check(whole);
  attend->add_option("--page-size", o->page_size, "deal K and V into pages of this many keys first")
      ->type_name("N")
      ->check(whole);
  attend->add_option("--target", o->target, "instruction set, one of `fovea info`")->type_name("NAME");
  attend->add_option("--repeat", o->repeat, "timed runs after the first; the median is printed")
      ->type_name("N")
      ->check(whole)
      ->capture_default_str();
}

constexpr const char* kLayerHelp = R"(a multi-head attention layer over .npy files: projections, RoPE, attention, output projection

Arrays are float32 or float16 in C order: X [batch, tokens, d_model] or [tokens, d_model]; weights as
torch.nn.Linear has them: Wq [q_heads * dim, d_model], Wk [kv_heads * dim, d_model], Wv [kv_heads * v_dim, d_model], or
one with the rows of all three; Wo [d_out, q_heads * v_dim]; biases [rows of the weight]. The result is float32.)";

constexpr const char* kLayerFooter =
    R"(Exit status: 0 done; 1 an error past tolerance or standard output full, files are written all the same; 2 bad input, nothing is written.
Example: fovea layer --x X.npy --wq Wq.npy --wk Wk.npy --wv Wv.npy --wo Wo.npy --heads 32/8 --rope 500000 --causal --out Y.npy)";

void AddLayerOptions(CLI::App* layer, LayerOptions* o) {
  const CLI::Validator whole(
      [](const std::string& text) { return IsWhole(text) ? "" : text + ": a whole number is wanted"; }, "");
  const struct {
    const char *name, *help;
    std::string* path;
  } files[] = {{"--wq", "weight of the queries", &o->wq},
               {"--wk", "weight of the keys", &o->wk},
               {"--wv", "weight of the values", &o->wv},
               {"--w-qkv", "the rows of the three, in this order, instead of them", &o->w_qkv},
               {"--wo", "weight of the output", &o->wo},
               {"--bq", "bias of the queries", &o->bq},
               {"--bk", "bias of the keys", &o->bk},
               {"--bv", "bias of the values", &o->bv},
               {"--b-qkv", "of --w-qkv", &o->b_qkv},
               {"--bo", "bias of the output", &o->bo},
               {"--x-kv", "[batch, keys, d_kv]: keys and values are made of it (cross attention)", &o->x_kv},
               {"--q-norm", "[dim], RMS norm of each query head", &o->q_norm},
               {"--k-norm", "[dim], RMS norm of each key head", &o->k_norm},
               {"--mask", "boolean mask, as of attend", &o->mask},
               {"--expect", "compare the result with this array", &o->expect}};
  layer->add_option("--x", o->x, "the tokens")->required()->type_name("X.npy");
  for (const auto& file : files) layer->add_option(file.name, *file.path, file.help)->type_name("FILE.npy");
  layer->add_option("--heads", o->heads, "query heads, or query/kv heads")->required()->type_name("H/KV");
  layer->add_option("--norm-eps", o->norm_eps, "of the norms")->type_name("X")->capture_default_str();
  layer->add_option("--rope", o->rope, "rotate queries and keys, with this base: 10000, 500000 ...")->type_name("BASE");
  layer->add_flag("--interleaved", o->interleaved, "of --rope: pairs are neighbours, not half a head apart");
  layer->add_flag("--causal", o->causal, "a token sees itself and those before it");
  layer->add_option("--window-left", o->window_left, "keys from a token's place - N on; -1 = all")->type_name("N")->check(whole);
  layer->add_option("--out", o->out, "write the result, [batch, tokens, d_out]")->type_name("Y.npy");
  layer->add_option("--tolerance", o->tolerance, "of --expect, absolute; default 2e-5")->type_name("X");
  layer->add_option("--threads", o->threads, "default: all that OpenMP would use")->type_name("N")->check(whole);
  layer->add_option("--target", o->target, "instruction set, one of `fovea info`")->type_name("NAME");
  layer->add_option("--repeat", o->repeat, "timed runs after the first; the median is printed")
      ->type_name("N")
      ->check(whole)
      ->capture_default_str();
}

constexpr const char* kSweepHelp = R"(the speed of attention on this machine, one row per combination

Lists are separated by commas; A..B among numbers is A, 2A, 4A up to B. Each row's result is checked against an
evaluation in float64 first, then calls alternate with measurements of this machine's own limits; medians are printed:
  of FMA   useful FLOP (permitted pairs of query and key) per second, of independent FMA chains on as many threads;
           where the kernel multiplies bf16, of chains of that instruction
  GB/s     K and V, read once
  of read  prefill: of the read bandwidth for as many bytes; decode: of the lower of that and what 0.75 of the chains'
           rate could consume
  max_err  of the checked rows of O against float64, relative to their head's largest |V|; naive: of the plain float32
           evaluation of those rows, rounded to the same dtype where the kernel rounds)";

constexpr const char* kSweepFooter =
    R"(Exit status: 0 done; 1 a row's result was wrong or could not be had, or standard output is full; 2 bad input;
130 or 143 interrupted by Ctrl-C or SIGTERM, with what was measured written.
Example: fovea sweep --preset llama-3-8b --quick --json s.json && python3 tools/plot_sweep.py s.json)";

void AddSweepOptions(CLI::App* sweep, SweepOptions* o) {
  sweep->add_option("--op", o->op, "prefill (many queries), decode (one); both are the default; layer: a whole one, by its stages")->type_name("OPS");
  sweep->add_option("--lengths", o->lengths, "prefill: queries and keys; decode: keys")->type_name("LIST");
  sweep->add_option("--head-dims", o->head_dims, "default 64,128")->type_name("LIST");
  sweep->add_option("--heads", o->heads, "query heads, or query/kv heads; default 8 for prefill, 32/8 for decode")
      ->type_name("H/KV,...");
  sweep->add_option("--dtypes", o->dtypes, "of q, k, v and out: f32, bf16, f16; i8: of k and v, the rest f32; default f32")->type_name("LIST");
  sweep->add_option("--targets", o->targets, "instruction sets of `fovea info`, or all; default the chosen one")
      ->type_name("LIST");
  sweep->add_option("--threads", o->threads, "default 1,all")->type_name("LIST");
  sweep->add_flag("--causal", o->causal, "a query sees the keys up to its own");
  sweep->add_option("--preset", o->preset, "a model's layers: llama-3-8b, gemma-2-9b, bert-base ...")
      ->type_name("NAME");
  sweep->add_flag("--quick", o->quick, "shorter lengths, fewer rounds");
  sweep->add_option("--min-time", o->min_time, "seconds of calls per row; default 0.5, with --quick 0.05")
      ->type_name("S");
  sweep->add_option("--json", o->json, "write rows and this machine's limits; tools/plot_sweep.py draws them")
      ->type_name("FILE");
  sweep->add_option("--csv", o->csv, "write rows")->type_name("FILE");
}

int Main(int argc, char** argv) {
  CLI::App app("fovea: attention on CPUs, by the best instruction set of this one", "fovea");
  app.set_version_flag("--version", fovea_version_str());
  app.require_subcommand(0, 1);  // with (1), "fovea dance" would not name what is wrong

  bool json = false, roofline = false;
  CLI::App* info = app.add_subcommand("info", "what would run here: CPU, instruction sets, tile sizes, threads");
  info->add_flag("--json", json, "as JSON");
  info->add_flag(
      "--roofline", roofline,
      "measure this machine's limits: FMA and exp rates of each instruction set, read bandwidth by footprint");

  AttendOptions options;
  CLI::App* attend = app.add_subcommand("attend", kAttendHelp);
  attend->footer(kAttendFooter);
  AddAttendOptions(attend, &options);

  LayerOptions layer_options;
  CLI::App* layer = app.add_subcommand("layer", kLayerHelp);
  layer->footer(kLayerFooter);
  AddLayerOptions(layer, &layer_options);

  SweepOptions sweep_options;
  CLI::App* sweep = app.add_subcommand("sweep", kSweepHelp);
  sweep->footer(kSweepFooter);
  AddSweepOptions(sweep, &sweep_options);
  const CLI::Validator given([](const std::string& text) { return text.empty() ? "a value is wanted" : ""; }, "");
  for (CLI::App* command : {attend, layer, sweep}) {
    for (CLI::Option* option : command->get_options()) {
      if (option->get_expected_max() > 0) option->check(given);  // no flag. Empty would be as if it were not given
    }
  }
  for (int i = 0; i < argc; ++i) sweep_options.command += (i ? " " : "") + std::string(argv[i]);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success))
      return app.exit(error);  // --help, --version
    throw InputError(error.what());
  }
  if (app.get_subcommands().empty())
    throw InputError("a subcommand is wanted: info, attend, layer or sweep; --help says more");
  if (sweep->parsed()) return RunSweep(sweep_options);
  if (layer->parsed()) return RunLayer(layer_options);
  return attend->parsed() ? RunAttend(options) : RunInfo(json, roofline);
}

}  // namespace
}  // namespace fovea::tools

int main(int argc, char** argv) {
  int code = fovea::tools::kExitOk;
  std::string problem;
  try {
    code = fovea::tools::Main(argc, argv);
    std::fflush(stdout);
  } catch (const std::bad_alloc&) {
    problem = "not enough memory for arrays of these shapes";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (std::ferror(stdout)) {
    fmt::print(stderr, "fovea: standard output cannot be written\n");
    return code == fovea::tools::kExitOk ? int{fovea::tools::kExitFailed} : code;  // files are written
  }
  if (problem.empty()) return code;
  std::replace(problem.begin(), problem.end(), '\n', ' ');
  fmt::print(stderr, "fovea: {}\n", problem);
  return fovea::tools::kExitBadInput;
}
