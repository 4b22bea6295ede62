#!/usr/bin/env python3
"""fovea_mpi_attend on 1, 2 and 4 ranks, against `fovea attend` and against its own oracle.

    tests/mpi_test.py BUILD_DIR
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from checks import Checks, command, equal

build = pathlib.Path(sys.argv[1]).resolve()
program, fovea = build / "tools/fovea_mpi_attend", build / "tools/fovea"
random = np.random.default_rng(1)
checks = Checks()
# Any number of ranks on any number of cores, as root or not; OpenMPI's own leaks are none of ours.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--quiet"] + (["--allow-run-as-root"] if os.getuid() == 0 else [])
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
       "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}


def run(ranks, *args, status=0, target=None):
    """(stdout, stderr) of the program on so many ranks, the last of them with this FOVEA_TARGET."""
    job = [*MPIRUN, "-n", str(ranks), str(program), *map(str, args)]
    if target:
        job = [*MPIRUN, "-n", str(ranks - 1), *job[-len(args) - 1:], ":", "-n", "1", "env", f"FOVEA_TARGET={target}",
               *job[-len(args) - 1:]]
    done = subprocess.run(job, capture_output=True, text=True, env=ENV)
    if done.returncode != status:
        raise AssertionError(f"{' '.join(job)}: exit status {done.returncode}, {status} is wanted\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


class Folder:
    def __init__(self, **arrays):
        self.directory = tempfile.TemporaryDirectory(prefix="fovea_mpi_")
        self.path = pathlib.Path(self.directory.name)
        for name, array in arrays.items():
            if array is not None:
                np.save(self.path / f"{name}.npy", array)
        self.qkv = [part for name in "qkv" for part in (f"--{name}", self.path / f"{name}.npy")]

    def load(self, name):
        return np.load(self.path / f"{name}.npy")


def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)


def same(got, want, what):
    """Equal to the bit."""
    equal(got.shape, want.shape, f"shape of {what}")
    equal(got.tobytes() == want.tobytes(), True, f"the same bits of {what}")


def joins(q, k, v, *options):
    """1 rank has the bits of fovea attend; more are within the bound of float64, near 1 rank, and the same in every run."""
    folder = Folder(q=q, k=k, v=v)
    outputs = ["--out", folder.path / "o.npy", "--lse", folder.path / "l.npy"]
    command(fovea, "attend", *folder.qkv, *options, "--repeat", 1, *outputs)
    want = [folder.load(name) for name in "ol"]
    for ranks in (1, 2, 4):
        text, _ = run(ranks, *folder.qkv, *options, *outputs, "--check")
        equal(text.count(": ok\n"), 2 if ranks == 1 else 4, f"comparisons that are ok in\n{text}")
        got = [folder.load(name) for name in "ol"]
        for name, a, b in zip(("out", "lse"), got, want):
            if ranks == 1:
                same(a, b, name)
            else:
                np.testing.assert_allclose(a, b, rtol=4e-6, atol=4e-6)
        if ranks == 4:
            run(ranks, *folder.qkv, *options, *outputs)
            for name, a, b in zip("ol", got, [folder.load(name) for name in "ol"]):
                same(b, a, f"{name} of another run")


def heads_in_rows():
    """--heads H/KV: arrays [batch, rows, heads * dim] have the bits of [batch, heads, rows, dim]."""
    q, k, v = normal(2, 6, 33, 16), normal(2, 2, 71, 16), normal(2, 2, 71, 24)
    rows = [a.transpose(0, 2, 1, 3).reshape(2, a.shape[2], -1) for a in (q, k, v)]
    for cut in (slice(None), 0):
        by_heads = Folder(q=q[cut], k=k[cut], v=v[cut])
        by_rows = Folder(q=rows[0][cut], k=rows[1][cut], v=rows[2][cut])
        run(4, *by_heads.qkv, "--causal", "--q-offset", "bottom-right", "--out", by_heads.path / "o.npy")
        run(4, *by_rows.qkv, "--heads", "6/2", "--causal", "--q-offset", "bottom-right", "--out", by_rows.path / "o.npy")
        want = by_heads.load("o")
        same(by_rows.load("o"), np.ascontiguousarray(np.moveaxis(want, -3, -2)).reshape(*want.shape[:-3], 33, 6 * 24), "out")


def balanced():
    """The useful FLOP of causal shares are equal, of whole blocks to the last pair."""
    folder = Folder(q=normal(1, 64, 8), k=normal(1, 64, 8), v=normal(1, 64, 8))
    for ranks in (1, 2, 4):
        text, _ = run(ranks, *folder.qkv, "--causal")
        flop = re.findall(r"^rank .*: ([0-9.e+-]+) MFLOP", text, re.MULTILINE)
        equal(len(flop), ranks, f"ranks in\n{text}")
        pairs = 64 * 65 / 2
        equal({round(float(f) * 1e6 / (4 * 8)) for f in flop}, {round(pairs / ranks)}, "pairs of query and key per rank")
        ranges = sorted((int(a), int(b)) for line in re.findall(r"keys ([0-9. ]+):", text) for a, b in
                        re.findall(r"(\d+)\.\.(\d+)", line))
        equal([b for _, b in ranges], [a for a, _ in ranges[1:]] + [64], "ends of the ranges of keys")
        equal(ranges[0][0], 0, "the first key")


def targets():
    """Ranks of different instruction sets join; one that cannot run ends the whole job, by the name of its rank."""
    folder = Folder(q=normal(2, 30, 16), k=normal(2, 90, 16), v=normal(2, 90, 16))
    others = [target["name"] for target in json.loads(command(fovea, "info", "--json"))["targets"] if target["runnable"]]
    text, _ = run(3, *folder.qkv, "--causal", "--check", target=others[-1])
    equal(re.findall(r"^rank 2 .*, (\w+)$", text, re.MULTILINE), [others[-1]], "the last rank's target")
    out, err = run(3, *folder.qkv, "--out", folder.path / "o.npy", status=2, target="AVX9")
    equal((out, re.findall(r"rank \d+: ", err), "AVX9" in err), ("", ["rank 2: "], True), "stdout, ranks that speak, AVX9")
    equal((folder.path / "o.npy").exists(), False, "o.npy")


def refuses(part, ranks, *options, **arrays):
    """Exit status 2, one line of the program on stderr that holds part, nothing on stdout, nothing written."""
    folder = Folder(**{"q": normal(4, 5, 8), "k": normal(2, 9, 8), "v": normal(2, 9, 8), **arrays})
    out, err = run(ranks, *folder.qkv, "--out", folder.path / "o.npy", *options, status=2)
    equal(out, "", "stdout")
    lines = [line for line in err.splitlines() if line.startswith("fovea_mpi_attend: ")]
    equal(len(lines), 1, f"lines in {err!r}")
    if part not in lines[0]:
        raise AssertionError(f"{err!r} does not say {part!r}")
    equal((folder.path / "o.npy").exists(), False, "o.npy")


if not shutil.which("mpirun"):
    print("SKIP mpi: fovea_mpi_attend on 1, 2 and 4 ranks: mpirun is not installed")
    sys.exit(0)
checks.run("mpi: fovea_mpi_attend is built where mpirun is", equal, program.exists(), True, str(program))
for name, arrays, options in (
        ("all keys", (normal(2, 4, 50, 32), normal(2, 2, 300, 32), normal(2, 2, 300, 40)), []),
        ("causal, zig-zag", (normal(4, 257, 64), normal(2, 257, 64), normal(2, 257, 64)), ["--causal"]),
        ("causal, some queries see no key", (normal(2, 40, 16), normal(2, 70, 16), normal(2, 70, 16)),
         ["--causal", "--q-offset", -9]),
        ("causal, chunked prefill", (normal(2, 40, 16), normal(2, 170, 16), normal(2, 170, 16)),
         ["--causal", "--q-offset", "bottom-right"]),
        ("decode", (normal(2, 8, 1, 64), normal(2, 2, 1030, 64), normal(2, 2, 1030, 64)),
         ["--causal", "--q-offset", "bottom-right"]),
        ("float16", [normal(2, 30, 16).astype(np.float16) for _ in range(3)], ["--causal"]),
        ("fewer keys than blocks", (normal(1, 7, 8), normal(1, 3, 8), normal(1, 3, 8)), ["--causal"]),
        ("0 keys", (normal(1, 7, 8), normal(1, 0, 8), normal(1, 0, 8)), []),
        ("0 queries", (normal(1, 0, 8), normal(1, 9, 8), normal(1, 9, 8)), [])):
    checks.run(f"mpi: {name}: 1, 2 and 4 ranks", joins, *arrays, *options)
checks.run("mpi: --heads", heads_in_rows)
checks.run("mpi: causal shares are balanced", balanced)
checks.run("mpi: ranks of different instruction sets", targets)


def nan_in_a_key():
    k = normal(2, 64, 16)
    k[0, 60] = np.nan
    folder = Folder(q=normal(2, 64, 16), k=k, v=normal(2, 64, 16))
    run(4, *folder.qkv, "--causal", "--check", "--out", folder.path / "o.npy")
    equal(np.isnan(folder.load("o")).any(axis=-1).nonzero()[1].tolist(), [60, 61, 62, 63], "rows with NaN")


checks.run("mpi: NaN in a key reaches the rows that see it, through every merge", nan_in_a_key)
for name, part, options, arrays in (
        ("an output folder that is not there", "No such file", ["--lse", "/none/l.npy"], {}),
        ("a missing file", "No such file", [], {"k": None}),
        ("dims that differ", "dim", [], {"k": normal(2, 9, 7)}),
        ("heads that do not divide", "num_kv_heads", [], {"q": normal(3, 5, 8)}),
        ("--heads of other arrays", "--heads", ["--heads", "3/1"], {"q": normal(5, 8)}),
        ("--q-offset top", "--q-offset top", ["--causal", "--q-offset", "top"], {}),
        ("--q-offset of -2^30", "q_offset", ["--causal", "--q-offset", -2 ** 30], {}),
        ("--threads -1", "num_threads", ["--threads", -1], {}),
        ("--target AVX9", "AVX9", ["--target", "AVX9"], {}),
        ("an unknown option", "--frobnicate", ["--frobnicate"], {})):
    checks.run(f"mpi: refuses {name}", lambda: refuses(part, 2, *options, **arrays))
checks.run("mpi: --help", lambda: equal(run(2, "--help")[0].count("Usage"), 1, "usages of two ranks"))
checks.exit()
