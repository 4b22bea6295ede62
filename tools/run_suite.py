#!/usr/bin/env python3
"""Runs what tools/test.sh has built, and counts.

    tools/run_suite.py BUILD_DIR [--no-checks] [--fuzz PROGRAM...] [--emulate AARCH64_BUILD_DIR [--brief] [--emulate-avx512]]

build/tests/fovea_tests runs once per instruction set that this CPU has (FOVEA_TARGET), its suite "once" a single time;
with --emulate also on those it lacks, and on Arm's (tools/emulators.py). The list says which ran natively, which
emulated and where, and which not at all. A test case on one target counts as one, so does each line "PASS name", "FAIL
name" or "SKIP name" of the check scripts. Cases on compiled targets that did not run count as skipped. A program that is
missing, crashes or says nothing counts as failed.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from emulators import emulate

root = pathlib.Path(__file__).resolve().parent.parent
FUZZ_RUNS = 20000


class Table:
    def __init__(self):
        self.rows = []
        self.last = time.monotonic()

    def add(self, name, how, passed, failed, skipped):
        now = time.monotonic()
        self.rows.append((name, how, passed, failed, skipped, round(now - self.last), ""))
        self.last = now

    def print(self):
        print(f"\n{'target':<14} {'ran':<8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
        for row in self.rows:
            print("{:<14} {:<8} {:>7} {:>7} {:>8} {:>8}  {}".format(*row).rstrip())
        total = [sum(row[i] for row in self.rows) for i in (2, 3, 4)]
        print("\n{} passed, {} failed, {} skipped".format(*total))
        return total


def run(args, env=None):
    """Runs a program with its output shown; gives (exit status, output)."""
    env = env or {}
    print("\n$", *(f"{key}={value}" for key, value in env.items()), *args, flush=True)
    try:
        process = subprocess.Popen([str(arg) for arg in args], env={**os.environ, **env}, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        print(error)
        return 127, ""
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def doctest(program, filters, env=None):
    """(passed, failed) test cases of a doctest program; a failure too if it ended otherwise than its summary says."""
    return summarize(*run([program, *filters], env))


def summarize(status, output):
    """The same, of what a run has left."""
    summary = re.search(r"test cases:\s*(\d+) \|\s*(\d+) passed \|\s*(\d+) failed", output)
    if not summary:
        return 0, 1
    passed, failed = int(summary.group(2)), int(summary.group(3))
    if status != 0 and failed == 0 or passed + failed == 0:
        failed += 1
    return passed, failed


def count_cases(program, filters):
    output = subprocess.run([program, "--count", *filters], stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(re.search(r"filters: (\d+)", output).group(1))


def checks(args, env=None):
    """(passed, failed, skipped) lines of a check script."""
    status, output = run(args, env)
    counts = [len(re.findall(rf"^{word} ", output, re.MULTILINE)) for word in ("PASS", "FAIL", "SKIP")]
    if sum(counts) == 0 or (status != 0) != (counts[1] > 0):
        counts[1] += 1
    return counts


def header_test(build):
    """fovea.h as C99 and as C++, by every compiler that is here."""
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", f"-I{root / 'include'}"]
    passed = failed = 0
    with tempfile.TemporaryDirectory() as work:
        for compiler in (["gcc", "-std=c99"], ["clang-19", "-std=c99"], ["g++", "-std=c++17", "-x", "c++"]):
            program = pathlib.Path(work) / "header_test"
            status, _ = run([*compiler, *flags, root / "tests/header_test.c", "-o", program, f"-L{build / 'lib'}",
                             f"-Wl,-rpath,{build / 'lib'}", "-lfovea"])
            if status == 0:
                status, _ = run([program])
            passed, failed = passed + (status == 0), failed + (status != 0)
    return passed, failed, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--no-checks", action="store_true", help="not the installed library, the ABI and the objects")
    parser.add_argument("--emulate", type=lambda path: pathlib.Path(path).resolve(), metavar="AARCH64_BUILD",
                        help="the targets that this CPU lacks, and this aarch64 build's, under emulators")
    parser.add_argument("--brief", action="store_true", help="each emulated target at one vector length, without the slowest cases")
    parser.add_argument("--emulate-avx512", action="store_true", help="AVX-512 under its emulator, had it or not")
    parser.add_argument("--fuzz", type=pathlib.Path, nargs="+", default=[], help="libFuzzer programs to run for a bounded count")
    options = parser.parse_args()
    if not options.no_checks and importlib.util.find_spec("numpy") is None:
        sys.exit(f"run_suite.py: {sys.executable} has no numpy, which the checks need: start it as /usr/bin/python3 with Debian's python3-numpy")
    build, table = options.build, Table()
    tests, cli = build / "tests/fovea_tests", build / "tools/fovea"

    clean = {key: value for key, value in os.environ.items() if key != "FOVEA_TARGET"}
    os.environ.clear()
    os.environ.update(clean)
    status, output = run([cli, "info", "--json"])
    targets = json.loads(output)["targets"] if status == 0 else []
    if not any(target["runnable"] for target in targets):
        table.add("fovea info", "failed", 0, 1, 0)
    filters = ["-tse=once"]
    lacking = [target["name"] for target in targets if not target["runnable"]]
    for target in targets:
        if target["runnable"]:
            table.add(target["name"], "native", *doctest(tests, filters, {"FOVEA_TARGET": target["name"]}), 0)
        elif not options.emulate:
            table.add(target["name"], "not run", 0, 0, count_cases(tests, filters))
    table.add("once", "", *doctest(tests, ["-ts=once"]), 0)
    if options.emulate:
        avx512 = [name for name in (target["name"] for target in targets) if name.startswith("AVX3")]
        table.rows += emulate(options.emulate / "tests/fovea_tests", tests,
                              avx512 if options.emulate_avx512 else lacking, filters, summarize,
                              lambda case_filters: count_cases(tests, case_filters), options.brief)
        table.last = time.monotonic()
        if not options.no_checks:
            table.add("objects, arm", "", *checks([root / "tools/check_objects", options.emulate]))
    table.add("npy", "", *doctest(build / "tools/npy_test", []), 0)
    table.add("cli", "", *checks([sys.executable, root / "tests/cli_test.py", cli]))
    table.add("mpi", "", *checks([sys.executable, root / "tests/mpi_test.py", build]))
    if (build / "bench/bench_prefill").exists():
        table.add("bench", "", *checks([sys.executable, root / "tests/bench_test.py", build]))
    for program in options.fuzz:
        status, _ = run([program, f"-runs={FUZZ_RUNS}", "-seed=1", "-max_len=4096", "-verbosity=0"])
        table.add(program.name, "", int(status == 0), int(status != 0), 0)
    if not options.no_checks:
        table.add("header", "", *header_test(build))
        table.add("abi", "", *checks([root / "tools/check_abi", build]))
        table.add("objects", "", *checks([root / "tools/check_objects", build]))
        table.add("tiles", "", *checks([sys.executable, root / "tests/tile_stack_check.py", build]))
        table.add("consumers", "", *checks([sys.executable, root / "tests/consumers/run.py", build]))
    passed, failed, _ = table.print()
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
