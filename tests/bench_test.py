#!/usr/bin/env python3
"""The benches, `fovea sweep`, its presets and the plots: that they run, check their results and write what they say.
No speed is asked for.

    tests/bench_test.py BUILD_DIR
"""
import csv
import io
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

from checks import Checks, command, equal

root = pathlib.Path(__file__).resolve().parent.parent
build = pathlib.Path(sys.argv[1]).resolve()
fovea = build / "tools/fovea"
checks = Checks()
os.environ.pop("FOVEA_TARGET", None)

# Errors: half an ulp of a bf16 output below 1/2 is 1e-3; each row is held to its own bound before it is timed. Fractions: of limits measured in turn
# on machines that others use too, so that only what cannot be a fraction at all is refused.
RATE = {"GFLOP/s": 1e6, "fma_fraction": 4}
CALL = {**RATE, "GB/s": 1e6, "bandwidth_fraction": 20, "max_err": 1e-3}
TILE = {**RATE, "max_err": 1e-4}
BENCHES = [  # program, rows, upper bounds of the counters, which are positive
    ("bench_prefill", "prefill/f32/d64/s128/h8/(causal/)?t1", CALL),
    ("bench_prefill", "d128/s2048/h8/row16k/t1|d128/s2048/h8/cap50/t1|d64/s2048/h8/bias/t1", CALL),
    ("bench_decode", "kv1024/h32x8/t1|kv1024/h32x8/b4/t1", CALL),
    ("bench_tile", "d64/L1", TILE),
    ("bench_gemm", "d64/s2048/h8/block256x512/t1", TILE),
    ("bench_softmax", "", {"Gexp/s": 1e6, "exp_fraction": 1.5, "max_err": 1e-4}),
    ("bench_api", "/hot/", {"ns": 1e9, "max_err": 1e-4}),
]


def bench(program, filters, *options):
    args = [build / "bench" / program, f"--benchmark_filter={filters}", "--benchmark_min_time=0.02", *options]
    done = subprocess.run(args, capture_output=True, text=True)  # stderr: the machine, and warnings about it
    if done.returncode != 0 and not done.stdout:
        raise AssertionError(f"{program}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def within(row, bounds):
    for key, most in bounds.items():
        if not 0 < row[key] < most:
            raise AssertionError(f"{row['name']}: {key} = {row[key]}, not between 0 and {most}")


def bench_counters(program, filters, bounds):
    rows = json.loads(bench(program, filters, "--benchmark_format=json"))["benchmarks"]
    if not rows:
        raise AssertionError("no rows")
    for row in rows:
        equal(row.get("error_message"), None, f"{row['name']}: error")
        equal(row["target"], chosen, f"{row['name']}: target")
        if not row["name"].endswith("@" + chosen):
            raise AssertionError(f"{row['name']} does not end in @{chosen}")
        within(row, bounds)


def bench_file_and_targets():
    """JSON to a file as well, beside the console's table; an '@' in the filter gives the rows of other targets."""
    other = [target["name"] for target in info["targets"] if target["runnable"]][-1]
    path = work / "bench.json"
    bench("bench_tile", f"qk/f32/d64/L1/t1@{other}$", f"--benchmark_out={path}")
    rows = json.loads(path.read_text())["benchmarks"]
    equal([(row["name"], row["target"]) for row in rows], [(f"tile/qk/f32/d64/L1/t1@{other}", other)], "rows")


def roofline():
    limits = json.loads(command(fovea, "info", "--roofline", "--json"))["roofline"]
    equal([entry["target"] for entry in limits["targets"]],
          [target["name"] for target in info["targets"] if target["runnable"]], "targets")
    for entry in limits["targets"]:
        for key, least, most in (("clock_ghz", 0.1, 20), ("fma_per_cycle", 0.1, 8), ("fma_latency_cycles", 1, 40),
                                 ("lanes", 0, 1024)):
            if not least < entry[key] < most:
                raise AssertionError(f"{entry['target']}: {key} = {entry[key]}")
        equal([read["level"] for read in entry["read"]], ["L1", "L2", "L3", "DRAM"], "levels")
        for curve in [entry["fma_gflops"], entry["exp_gps"]] + [read["gbps"] for read in entry["read"]]:
            equal([point["threads"] for point in curve], limits["threads"], "threads")
            if not all(point["value"] > 0 for point in curve):
                raise AssertionError(f"{entry['target']}: {curve}")


TINY = ["sweep", "--quick", "--lengths", "16..64", "--head-dims", "32", "--threads", "1", "--min-time", "0"]


def sweep():
    out = command(fovea, *TINY, "--json", work / "s.json", "--csv", work / "s.csv", "--targets", "all")
    data = json.loads((work / "s.json").read_text())
    targets = [target["name"] for target in info["targets"] if target["runnable"]]
    equal(len(data["rows"]), 6 * len(targets), "rows of 2 ops and 3 lengths")
    equal([entry["target"] for entry in data["roofline"]["targets"]], targets, "roofline")
    equal(data["interrupted"], False, "interrupted")
    for row in data["rows"]:
        within(row, {
            "GFLOP/s": 1e6,
            "fma_fraction": 100,
            "GB/s": 1e6,
            "bandwidth_fraction": 100,
            "max_err": 1e-4,
            "time_s": 100
        })
        if row["name"] not in out:
            raise AssertionError(f"{row['name']} is not in the table")
    equal(data["rows"][0]["name"], f"prefill/f32/d32/s16/h8/t1@{targets[0]}", "the first row's name")
    table = list(csv.DictReader(io.StringIO((work / "s.csv").read_text())))
    equal([row["name"] for row in table], [row["name"] for row in data["rows"]], "names in the CSV file")
    equal([float(row["GFLOP/s"]) for row in table], [row["GFLOP/s"] for row in data["rows"]], "rates in the CSV file")


PRESETS = {  # what the names of its rows must hold, one for each kind of layer
    "bert-base": ["d64/s16/h12/"],
    "gemma-2-9b": ["d256/s16/h16x8/causal/cap50/", "d256/s16/h16x8/causal/window4096/cap50/"],
    "gpt-oss-20b": ["d64/s16/h64x8/causal/sinks/", "d64/s16/h64x8/causal/window128/sinks/"],
    "gpt3-175b": ["d128/s16/h96/causal/"],
    "llama-2-7b": ["d128/s16/h32/causal/"],
    "llama-3-70b": ["d128/s16/h64x8/causal/"],
    "llama-3-8b": ["d128/s16/h32x8/causal/"],
    "minilm-l6": ["d32/s16/h12/"],
    "mistral-7b": ["d128/s16/h32x8/causal/window4096/"],
    "qwen2.5-7b": ["d128/s16/h28x4/causal/"],
    "vit-b16": ["d64/s16/h12/"],
    "whisper-small": ["d64/s16/h12/", "d64/s16/h12/causal/", "d64/q16/kv1500/h12/"],
}


def presets():
    equal(sorted(path.stem for path in (root / "bench/shapes").glob("*.txt")), sorted(PRESETS), "files in bench/shapes")
    for name, want in PRESETS.items():
        out = command(fovea, "sweep", "--preset", name, "--op", "prefill", "--quick", "--lengths", "16", "--threads",
                      "1", "--min-time", "0")
        rows = [line for line in out.splitlines() if line.startswith("prefill/")]
        equal(len(rows), len(want), f"{name}: layers")
        for row, part in zip(rows, want):
            if part not in row:
                raise AssertionError(f"{name}: {row!r} does not hold {part!r}")


def layer():
    """A row for each stage and the whole; its time is about that of the stages."""
    command(fovea, "sweep", "--op", "layer", "--lengths", "1,33", "--head-dims", "32", "--heads", "4/2", "--causal", "--threads", "1", "--quick",
            "--json", work / "layer.json", "--csv", work / "layer.csv")
    rows = json.loads((work / "layer.json").read_text())["rows"]
    stages = ["qkv", "append", "attention", "out", "whole"]
    equal([row["stage"] for row in rows], 2 * stages, "stages")
    equal([row["name"] for row in rows[4:6]], [f"layer/f32/m128/d32/kv1024/h4x2/t1@{chosen}/whole",
                                               f"layer/f32/m128/d32/s33/h4x2/causal/t1@{chosen}/qkv"], "names")
    for row in rows:
        within(row, {**CALL, "max_err": 1e-6, "naive_err": 1e-5, "flop": 1e12, "kv_bytes": 1e12, "bandwidth_fraction": 100, "fma_fraction": 100})
    for of_length in (rows[:5], rows[5:]):
        equal(of_length[4]["flop"], sum(row["flop"] for row in of_length[:4]), "FLOP of the whole")
    command(fovea, "sweep", "--op", "layer", "--lengths", "2", "--head-dims", "32", "--dtypes", "bf16", "--threads", "1", status=2)
    out = command(fovea, "sweep", "--op", "layer", "--preset", "llama-3-8b", "--lengths", "1", "--threads", "1", "--quick", "--min-time", "0")
    if "layer/f32/m4096/d128/kv1024/h32x8/" not in out:
        raise AssertionError(out)


def refusals():
    path = work / "kept.json"
    path.write_text("kept")
    for part, *args in (("F64", "--dtypes", "f64"), ("x9", "--dtypes", "x9"), ("NEON_9", "--targets", "NEON_9"),
                        ("--lengths", "--lengths", "12,"), ("--lengths", "--lengths", "64..16"), ("--heads", "--heads",
                                                                                                  "8/3"),
                        ("llama-3-8b", "--preset", "llama"), ("--threads", "--threads", "0"), ("--op", "--op", "train"),
                        ("--heads", "--preset", "bert-base", "--heads", "8"), ("nothing", "--preset", "bert-base",
                                                                               "--op", "decode"),
                        ("no/such", "--csv", work / "no/such.csv"), ("--min-time", "--min-time", "-1")):
        out = command(fovea, "sweep", "--json", path, *args, status=2)
        if part not in out or out.count("\n") != 1:
            raise AssertionError(f"{args}: {out!r}")
    equal(path.read_text(), "kept", "a file that a refused command would have written")


def interrupted():
    directory = work / "interrupted"
    directory.mkdir()
    process = subprocess.Popen(
        [fovea, "sweep", "--lengths", "16,32,64", "--threads", "1", "--min-time", "0.2", "--csv", directory / "i.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True)
    for line in process.stdout:
        if "@" in line:  # a row
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    equal(process.returncode, 130, f"exit status ({errors})")
    rows = 1 + rest.count("@")
    equal(len((directory / "i.csv").read_text().splitlines()), 1 + rows, "lines of the CSV file")
    equal(f"{rows} of 12 rows" in errors, True, f"{errors!r} says how many rows")
    equal([path.name for path in directory.iterdir()], ["i.csv"], "files")


def progress_bar():
    """On a terminal, not in a pipe."""
    main, terminal = pty.openpty()
    shown = command(fovea, *TINY)
    equal("\x1b" in shown, False, "escape sequences in a pipe")
    done = subprocess.run([fovea, *TINY], stdout=subprocess.DEVNULL, stderr=terminal, check=True)
    equal(done.returncode, 0, "exit status")
    os.close(terminal)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    if not re.search(r"\[#*\.+\] \d/6 .*prefill/", shown):
        raise AssertionError(f"no progress bar: {shown[:200]!r}")


def pictures(paths):
    for path in paths:
        if path.stat().st_size < 5000:
            raise AssertionError(f"{path}: {path.stat().st_size} bytes")
        if path.suffix == ".svg":
            xml.etree.ElementTree.parse(path)
        else:
            equal(path.read_bytes()[:4], b"\x89PNG", path)


def plot_sweep():
    peers = [{
        "name": f"{op}/f32/d64/t1@AVX2",
        "op": op,
        "provider": provider,
        "time_s": 1,
        "gflops": 50,
        "gbps": 5,
        "ratio": ratio
    } for op in ("prefill", "decode") for provider, ratio in (("fovea", 1), ("torch", 1.5))]
    peers.append({**peers[-1], "provider": "absent", "time_s": None, "gflops": None, "gbps": None, "ratio": None})
    (work / "peers.json").write_text(json.dumps({"rows": peers}))
    # Lengths down to one key, which has no read rate; heads that let decode multiply bf16.
    command(fovea, "sweep", "--quick", "--lengths", "1,16,32", "--head-dims", "32", "--heads", "4/2", "--dtypes", "f32,bf16", "--min-time", "0",
            "--targets", "all", "--json", work / "p.json")
    command(sys.executable, root / "tools/plot_sweep.py", work / "p.json", work / "peers.json", "--out", work / "plots")
    threads = len(json.loads((work / "p.json").read_text())["roofline"]["threads"]) > 1
    want = ["length", "peers", "targets"
           ] + ["threads"] * threads + [f"roofline_{t['name']}" for t in info["targets"] if t["runnable"]]
    equal(sorted(path.stem[2:] for path in (work / "plots").glob("*.png")), sorted(want), "plots")
    pictures((work / "plots").iterdir())
    command(sys.executable, root / "tools/plot_sweep.py", fovea, status=1)


def plot_attention():
    data = root / "tests/data"
    command(fovea, "attend", "--q", data / "minilm_q.npy", "--k", data / "minilm_k.npy", "--v", data / "minilm_v.npy",
            "--mask", data / "minilm_valid.npy", "--weights", work / "W.npy")
    command(sys.executable, root / "tools/plot_attention.py", work / "W.npy", "--queries", "24", "--keys", "24")
    pictures([work / "W.png", work / "W.svg"])
    command(sys.executable, root / "tools/plot_attention.py", data / "minilm_valid.npy", status=1)


def spills_are_found():
    """tile_stack_check on tiles written by hand: a spill in the loop counts, one in a rare block behind it does not."""

    def tile(name, body, behind=""):
        fmas = "".join(f"vfmadd231ps %ymm13, %ymm14, %ymm{i}\n" for i in range(12))
        symbol = f"_ZN5fovea6N_AVX2{len(name)}{name}ILi3EEEvv"  # void fovea::N_AVX2::name<3>()
        return (f".globl {symbol}\n{symbol}:\nvmovaps %ymm0, (%rsp)\n1:\n{fmas}{body}dec %rax\njne 1b\nje 3f\n2:\nret\n"
                f"3:\n{behind}jmp 2b\n")

    spill = "  vmovaps %ymm3, -0x20(%rsp)\n  vmovaps -0x20(%rsp), %ymm3\n"
    for spilled, status in (("", 0), (spill, 1)):
        source, obj = work / "tile.s", work / "tile.o"
        source.write_text(
            tile("QkSoftmaxGroup", spilled) + tile("QkStoreGroup", "  mov -0x30(%rsp), %rcx\n", spill) +
            tile("PvTile", "") + tile("LinearGroup", ""))
        command("gcc", "-c", source, "-o", obj)
        out = command(sys.executable, root / "tests/tile_stack_check.py", work, "--objects", obj, status=status)
        equal([line.split()[0] for line in out.splitlines() if "keeps its registers" in line],
              ["FAIL" if spilled else "PASS", "PASS", "PASS", "PASS"], out)


info = json.loads(command(fovea, "info", "--json"))
chosen = info["target"]
with tempfile.TemporaryDirectory() as name:
    work = pathlib.Path(name)
    for program, filters, bounds in BENCHES:
        if program == "bench_gemm" and subprocess.run(
            [sys.executable, "-c", "import ctypes; ctypes.CDLL('libopenblas.so.0')"],
                stderr=subprocess.DEVNULL).returncode != 0:
            print("SKIP bench: bench_gemm: libopenblas.so.0 is not here (Debian: libopenblas0-pthread)")
            continue
        checks.run(f"bench: {program} {filters}".rstrip(), bench_counters, program, filters, bounds)
    checks.run("bench: JSON to a file, and another target's rows by name", bench_file_and_targets)
    checks.run("bench: fovea info --roofline", roofline)
    checks.run("sweep: rows, JSON and CSV", sweep)
    checks.run("sweep: every preset", presets)
    checks.run("sweep: a layer's stages", layer)
    checks.run("sweep: refusals", refusals)
    checks.run("sweep: Ctrl-C keeps what is measured", interrupted)
    checks.run("sweep: a progress bar on a terminal only", progress_bar)
    if subprocess.run([sys.executable, "-c", "import matplotlib"], stderr=subprocess.DEVNULL).returncode == 0:
        checks.run("plots: plot_sweep.py", plot_sweep)
        checks.run("plots: plot_attention.py", plot_attention)
    else:
        print("SKIP plots: python3-matplotlib is not here")
    if os.uname().machine == "x86_64":
        checks.run("tile_stack_check: finds a spilled accumulator", spills_are_found)
checks.exit()
