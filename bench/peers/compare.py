#!/usr/bin/env python3
"""fovea against PyTorch, ONNX Runtime and OpenVINO: the same shapes in one process, alternating call by call.

    python3 bench/peers/compare.py --threads 1,2 --json peers.json --markdown peers.md

README.md beside this file says what is measured and how.
"""
import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import re
import statistics
import sys
import time

import peers_venv

# Of the largest |V|: two correct evaluations, whatever their order of summation, that may round weights and results.
TOLERANCE = {"f32": 1e-5, "f16": 2**-10, "bf16": 2**-7, "int8": 2**-7}
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}  # of K and V


@dataclasses.dataclass(frozen=True)
class Row:
    op: str
    head_dim: int
    q_len: int
    kv_len: int
    num_q_heads: int
    num_kv_heads: int
    causal: bool = False
    dtype: str = "f32"  # of q, k, v and out; int8: of k and v, the rest is f32

    @property
    def group(self):
        return self.num_q_heads // self.num_kv_heads

    @property
    def flop(self):
        """Useful: permitted (query, key) pairs only."""
        pairs = self.q_len * (self.q_len + 1) // 2 if self.causal else self.q_len * self.kv_len
        return 4 * self.head_dim * pairs * self.num_q_heads

    @property
    def kv_bytes(self):
        return 2 * ELEMENT_BYTES[self.dtype] * self.head_dim * self.kv_len * self.num_kv_heads

    def name(self, threads, target):
        heads = f"h{self.num_q_heads}" + (f"x{self.num_kv_heads}" if self.op == "decode" or self.group > 1 else "")
        length = f"kv{self.kv_len}" if self.op == "decode" else f"s{self.q_len}"
        return "/".join([self.op, self.dtype, f"d{self.head_dim}", length, heads] + ["causal"] * self.causal +
                        [f"t{threads}"]) + f"@{target}"

    def rate(self, seconds):
        if self.op == "decode":
            return f"{self.kv_bytes / seconds / 1e9:.1f} GB/s"
        return f"{self.flop / seconds / 1e9:.1f} GFLOP/s"

    def tensors(self, rng):
        """q, k, v in the row's dtype; int8 k and v are multiples of INT8_STEP, and q is f32."""
        shapes = [(1, heads, length, self.head_dim) for heads, length in
                  ((self.num_q_heads, self.q_len), *[(self.num_kv_heads, self.kv_len)] * 2)]
        return [aligned_random(rng, shape, "f32" if self.dtype == "int8" and i == 0 else self.dtype)
                for i, shape in enumerate(shapes)]

    def prepare(self, fovea, tensors, threads):
        """fovea's call, where its result lies, what ran, and by how much a peer's may differ."""
        import numpy
        q, k, v = tensors
        out = numpy.full_like(q, numpy.nan)
        kv_step = INT8_STEP if self.dtype == "int8" else None
        call = fovea.attention(q, k, v, out, self.causal, threads, kv_step)
        assert call.describe().flop == self.flop, "useful FLOP counted differently"
        largest = float(abs(v.astype(numpy.float32)).max()) * (kv_step or 1)
        return call, out, call.describe().kernels.decode(), TOLERANCE[self.dtype] * largest


@dataclasses.dataclass(frozen=True)
class LinearRow:
    """A projection: x [tokens][in], w [out][in], bias [out]."""
    tokens: int
    in_features: int
    out_features: int
    op = "linear"
    dtype = "f32"
    causal = False

    @property
    def flop(self):
        return 2 * self.tokens * self.in_features * self.out_features

    @property
    def kv_bytes(self):
        """What a call of few tokens reads: w."""
        return 4 * self.in_features * self.out_features

    def name(self, threads, target):
        return f"linear/f32/n{self.tokens}/in{self.in_features}/out{self.out_features}/t{threads}@{target}"

    def rate(self, seconds):
        if self.tokens <= 8:
            return f"{self.kv_bytes / seconds / 1e9:.1f} GB/s"
        return f"{self.flop / seconds / 1e9:.1f} GFLOP/s"

    def tensors(self, rng):
        return [aligned_random(rng, shape) for shape in
                ((self.tokens, self.in_features), (self.out_features, self.in_features), (self.out_features,))]

    def prepare(self, fovea, tensors, threads):
        import numpy
        y = numpy.full((self.tokens, self.out_features), numpy.nan, numpy.float32)
        call = fovea.linear(*tensors, y, threads)
        call()
        return call, y, "fovea_linear", TOLERANCE["f32"] * float(abs(y).max())


ROWS = [Row("prefill", d, s, s, 8, 8, causal) for causal in (False, True) for d in (64, 128) for s in (128, 512, 2048)]
ROWS += [Row("prefill", 128, 1024, 1024, 32, 8, causal=True)]
ROWS += [Row("decode", 128, 1, kv, 32, kv_heads) for kv_heads in (8, 32) for kv in (1024, 8192)]
ROWS += [Row("prefill", d, 2048, 2048, 8, 8, causal, dtype)
         for dtype in ("bf16", "f16") for causal in (False, True) for d in (64, 128)]
ROWS += [Row("decode", 128, 1, 8192, 32, kv_heads, dtype=dtype)
         for dtype in ("bf16", "f16", "int8") for kv_heads in (8, 32)]
ROWS += [LinearRow(tokens, 4096, 4096) for tokens in (1, 8, 64, 2048)]


def settle():
    """Waits until no provider's idle workers spin (ONNX Runtime's do for 50 ms): the process uses no CPU time while
    this thread sleeps."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.0005:
            return


def timed(call, repeats, threads):
    """Seconds per call, with this provider's workers awake and its operands as the last call left them."""
    if threads > 1:
        settle()
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


class Missing:
    """Stands for a peer that could not be installed or imported: its rows say so."""
    version = "not available"
    ops = ("prefill", "decode", "linear")

    def __init__(self, name, error):
        self.name, self.error = name, error

    def ways(self, row, *tensors_and_threads):
        def make():
            raise self.error
        yield "import", make


class Contestant:
    """A provider's fastest right way to compute a row, or the reason why there is none."""

    def __init__(self, provider, row, tensors, threads, expected, limit):
        self.provider, self.times, self.ratios = provider, [], []
        self.via = self.max_diff = self.call = self.output = self.reason = None
        self.expected, self.limit = expected, limit
        self.other_ways, reasons = {}, []
        # No peer has an operator over int8 keys and values: OpenVINO's is inside a stateful model, which quantizes by itself.
        ways = provider.ways(row, *tensors, threads) if row.dtype != "int8" else ()
        for via, make in ways:
            try:
                call, output = make()
                call()
                diff = self.difference(output)
                seconds = min(timed(call, 1, threads) for _ in range(3))
            except Exception as error:  # a peer's own, of any kind: it is reported, and the others go on
                reasons.append(f"{via}: {(str(error).strip() or repr(error)).splitlines()[0]}")
                continue
            self.other_ways[via] = seconds
            if seconds == min(self.other_ways.values()):
                self.via, self.call, self.output, self.max_diff = via, call, output, diff
        self.seconds = self.other_ways.pop(self.via, None)
        self.reason = None if self.call else "; ".join(reasons) or f"has no {row.op} of {row.dtype}"
        self.failed_ways = reasons

    def difference(self, output):
        diff = float(abs(output().astype("f4") - self.expected).max())
        if not diff <= self.limit:
            raise ValueError(f"wrong result: off by {diff:.3g}, {self.limit:.3g} allowed")
        return diff


def measure(row, threads, fovea, providers, args, tensors):
    """One result per provider, fovea's first."""
    call, out, kernels, limit = row.prepare(fovea, tensors, threads)
    call()
    first = out.copy()
    expected = first.astype("f4")
    contestants = [Contestant(p, row, tensors, threads, expected, limit) for p in providers if row.op in p.ops]
    live = [c for c in contestants if c.call]
    own_seconds = min(timed(call, 1, threads) for _ in range(3))
    own_times = []

    def repeats(seconds):
        return max(1, min(500, int(0.002 / seconds)))

    minimum, budget = (3, 0.3) if args.quick else (9, 1.5)
    start, rounds = time.perf_counter(), 0
    while rounds < minimum or time.perf_counter() - start < budget * (1 + len(live)):
        for c in live:
            pair = [(call, repeats(own_seconds), own_times), (c.call, repeats(c.seconds), c.times)]
            for function, n, times in pair if rounds % 2 == 0 else reversed(pair):
                times.append(timed(function, n, threads))
            c.ratios.append(c.times[-1] / own_times[-1])
        if not live:
            own_times.append(timed(call, repeats(own_seconds), threads))
        rounds += 1
    for c in live:
        try:
            c.difference(c.output)  # the calls that were timed were right as well
        except ValueError as error:
            c.times, c.ratios, c.reason = [], [], f"{c.via}: {error} after several calls"
    assert (out == first).all(), "fovea's bits changed from call to call"
    name = row.name(threads, fovea.target())

    def result(provider, version, times, **rest):
        seconds = statistics.median(times) if times else None
        return {"name": name, "op": row.op, "provider": provider, "version": version, "threads": threads,
                "time_s": seconds, "gflops": seconds and row.flop / seconds / 1e9,
                "gbps": seconds and row.kv_bytes / seconds / 1e9, "pairs": len(times), **rest}

    results = [result("fovea", fovea.version(), own_times, ratio=1.0, max_diff=0.0, reason=None,
                      via=kernels)]
    for c in contestants:
        results.append(result(c.provider.name, c.provider.version, c.times, max_diff=c.max_diff, reason=c.reason,
                              ratio=statistics.median(c.ratios) if c.ratios else None, tolerance=limit, via=c.via,
                              slower_ways_s=c.other_ways, failed_ways=c.failed_ways))
    return results


def line(row, result):
    if result["time_s"] is None:
        return f"  {result['provider']:12} cannot: {result['reason']}"
    text = f"  {result['provider']:12} {result['time_s'] * 1e3:10.3f} ms  {row.rate(result['time_s']):>14}"
    if result["provider"] == "fovea":
        return text
    return (f"{text}  {result['ratio']:6.2f}x  diff {result['max_diff']:.1e}  {result['via']}" +
            ("  <- FASTER THAN FOVEA" if result["ratio"] < 1 else ""))


def markdown(context, by_row):
    """One table per operation: a line per row, a column per provider, and what the columns ran."""
    lines = [f"fovea {context['fovea']} {context['target']} against " +
             ", ".join(f"{name} {version}" for name, version in context["peers"].items()) +
             f". {context['cpu']}, {context['cpus']} CPUs, load average {context['load_average']:.1f} before the run, "
             f"{context['date']}: "
             f"`{context['command']}`" + ", interrupted" * context["interrupted"], "",
             "Each cell: median time, rate, and how many times fovea's time (median of adjacent pairs). "
             "**Bold: the peer is faster.**", ""]
    notes = {}
    for op in dict.fromkeys(row.op for row, _ in by_row):
        names = list(dict.fromkeys(r["provider"] for row, results in by_row if row.op == op for r in results))
        lines += [f"| {op} | " + " | ".join(names) + " | best peer |", "|---|" + "---|" * (len(names) + 1)]
        for row, results in by_row:
            if row.op != op:
                continue
            cells = []
            for r in results:
                what = r["reason"] if r["time_s"] is None else f"{r['provider']}: {r['via']}"
                note = "" if r["provider"] == "fovea" else f" [{notes.setdefault(what, len(notes) + 1)}]"
                if r["time_s"] is None:
                    cells.append("cannot" + note)
                    continue
                cell = f"{r['time_s'] * 1e3:.3g} ms, {row.rate(r['time_s'])}"
                if r["provider"] != "fovea":
                    cell += f", {r['ratio']:.2f}x"
                cells.append((f"**{cell}**" if r["ratio"] < 1 else cell) + note)
            ratios = [r["ratio"] for r in results[1:] if r["ratio"]]
            lines.append(f"| {results[0]['name']} | " + " | ".join(cells) +
                         (f" | {min(ratios):.2f}x |" if ratios else " | - |"))
        lines.append("")
    return "\n".join(lines + [f"[{number}] {what}  " for what, number in notes.items()]) + "\n"


def summary(by_row):
    """The lowest ratio of each kind of row, which is what the project's targets speak of."""
    kinds = {}
    for row, results in by_row:
        for r in results[1:]:
            if r["ratio"]:
                kind = f"{row.op} {row.dtype}" + (" causal" if row.causal else "") + f", {r['threads']} threads"
                kinds[kind] = min(kinds.get(kind, (float("inf"),)), (r["ratio"], r["provider"], r["name"]))
    return [f"{kind}: at least {ratio:.2f}x the best peer ({provider}, {name})"
            for kind, (ratio, provider, name) in kinds.items()]


def cpu_name():
    match = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return match[1] if match else "unknown CPU"


INT8_STEP = 4 / 127  # of a standard normal distribution: what lies beyond 4 is cut


def aligned_random(rng, shape, dtype="f32"):
    """Standard normal numbers at a 64-byte boundary, where every provider's own allocator would put them."""
    import ml_dtypes
    import numpy
    kind = {"f32": numpy.float32, "f16": numpy.float16, "bf16": ml_dtypes.bfloat16, "int8": numpy.int8}[dtype]
    size = int(numpy.prod(shape)) * ELEMENT_BYTES[dtype]
    raw = numpy.empty(size + 64, numpy.uint8)
    view = raw[-raw.ctypes.data % 64:][:size].view(kind).reshape(shape)
    numbers = rng.standard_normal(shape, numpy.float32)
    view[...] = numpy.clip(numpy.rint(numbers / INT8_STEP), -127, 127) if dtype == "int8" else numbers
    return view


def temporary(path):
    """A new file's name beside the one that path names, and that one's, symbolic links followed."""
    target = os.path.realpath(path)
    return f"{target}.{os.getpid()}.tmp", target


def check_writable(path):
    """Raises OSError now rather than after the measuring."""
    name, target = temporary(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError("exists and is not a regular file")
    with open(name, "x"):
        os.remove(name)


def write_whole(path, text):
    """The file as a whole or as it was."""
    name, target = temporary(path)
    try:
        pathlib.Path(name).write_text(text)
        os.replace(name, target)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def write_files(args, context, by_row):
    if args.json:
        rows = [result for _, results in by_row for result in results]
        write_whole(args.json, json.dumps({"context": context, "rows": rows}, indent=1) + "\n")
    if args.markdown:
        write_whole(args.markdown, markdown(context, by_row))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="", metavar="N[,N]",
                        help="thread counts, each for every provider; default: 1 and all CPUs")
    parser.add_argument("--providers", default="", metavar="A[,B]",
                        help="of torch, onnxruntime, openvino; default: all")
    parser.add_argument("--filter", default="", metavar="REGEX", help="only rows whose name contains it")
    parser.add_argument("--quick", action="store_true", help="3 pairs per row instead of 9 and more")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--library", metavar="SO", help="libfovea.so; default: the newest build*/lib/libfovea.so")
    args = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    try:
        args.threads = sorted({int(n) for n in args.threads.split(",")}) if args.threads else sorted({1, cpus})
        args.filter = re.compile(args.filter)
    except (ValueError, re.error) as error:
        parser.error(str(error))
    if min(args.threads) < 1:
        parser.error("--threads: 1 or more")
    for option, path in (("--json", args.json), ("--markdown", args.markdown)):
        try:
            if path is not None:
                check_writable(path)
        except OSError as error:
            parser.error(f"{option} {path}: {error.strerror or error}")
    return args


def main():
    args = parse_arguments()
    peers_venv.enter()

    import numpy
    import fovea_ctypes
    import providers as known

    names = args.providers.split(",") if args.providers else list(known.ALL)
    providers = []
    for name in names:
        if name not in known.ALL:
            sys.exit(f"--providers {name}: unknown, one of {', '.join(known.ALL)} is wanted")
        try:
            providers.append(known.ALL[name]())
        except Exception as error:  # not installed, or a wheel that this machine cannot load
            providers.append(Missing(name, error))
    fovea = fovea_ctypes.Fovea(args.library)
    context = {"date": datetime.date.today().isoformat(), "cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)),
               "fovea": fovea.version(), "target": fovea.target(), "library": str(fovea.path),
               "peers": {p.name: p.version for p in providers},
               "load_average": os.getloadavg()[0], "command": " ".join(sys.argv),
               "interrupted": True}  # until all rows are measured
    print(json.dumps(context), flush=True)

    rng, by_row = numpy.random.default_rng(1), []
    affinity = os.sched_getaffinity(0)
    rows = [(threads, row) for threads, row in itertools.product(args.threads, ROWS)
            if args.filter.search(row.name(threads, fovea.target()))]
    if not rows:
        sys.exit(f"--filter {args.filter.pattern}: no row")
    try:
        for threads, row in rows:
            print(row.name(threads, fovea.target()), flush=True)
            results = measure(row, threads, fovea, providers, args, row.tensors(rng))
            by_row.append((row, results))
            for result in results:
                print(line(row, result), flush=True)
            assert os.sched_getaffinity(0) == affinity, "a peer pinned this thread"
        context["interrupted"] = False
    except KeyboardInterrupt:
        print(f"interrupted: {len(by_row)} of {len(rows)} rows were measured", file=sys.stderr)
    finally:  # whatever ended it, what is measured is kept
        if by_row:
            write_files(args, context, by_row)
    print("\n" + "\n".join(summary(by_row)))
    if context["interrupted"]:
        sys.exit(130)


if __name__ == "__main__":
    main()
