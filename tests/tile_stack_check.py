#!/usr/bin/env python3
"""Reads the library's objects: no vector register of a register tile goes through the stack within its k loop.

    tests/tile_stack_check.py BUILD_DIR [--objects OBJECT...]

A compiler that runs out of registers spills an accumulator, and the tile runs at half its speed without being wrong.
For each register tile of each target with FMA: the innermost loops with at least 8 FMAs (vdpbf16ps of AVX3_BF16 is one),
and per step of the reduction (one k, or a pair) their FMAs, instructions that read or write memory, and vector registers
moved to or from the stack. Also the peak loops of bench/roofline*.cc, by which all speeds are measured: nothing but their
FMAs and their counter.
"""
import argparse
import collections
import pathlib
import platform
import re
import sys

root = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "tests"))
from checks import Checks, command  # noqa: E402

TILES = ["QkSoftmaxGroup<3>", "QkStoreGroup<3>", "PvTile<3>", "LinearGroup<3>"]
# FMAs of one step: keys (or columns) of the tile times its 3 vectors.
STEP = {"AVX2": 12, "AVX3_BF16": 24, "AVX3": 24, "AVX3_DL": 24, "AVX3_ZEN4": 24, "AVX3_SPR": 24}
# What AVX3_BF16 has of its own; the rest is AVX3's.
BF16_TILES = TILES[:3]
LEAST_FMAS = 8
FMA = re.compile(r"^(vfn?m(add|sub)\d*[ps]s|vdpbf16ps)\b")
STACK = re.compile(r"-?(0x[0-9a-f]+)?\(%r[sb]p[,)]")
VECTOR = re.compile(r"%[xyz]mm\d")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")
MEMORY = re.compile(r"\(%")

Loop = collections.namedtuple("Loop", "fmas loads stores stack")


def functions(path):
    """(demangled name, [(address, instruction)]) of an object."""
    for block in command("objdump", "-d", "-C", "--no-show-raw-insn", path).split("\n\n"):
        lines = block.strip().splitlines()
        if not lines or not lines[0].endswith(">:"):
            continue
        code = [(int(m[1], 16), m[2].strip()) for m in (re.match(r"\s*([0-9a-f]+):\s+(.+)", line)
                                                        for line in lines[1:]) if m]
        yield lines[0][lines[0].index("<") + 1:-2], code


def frame_pointer(code):
    """Whether %rbp is the frame: else it is a register like any other."""
    return any(re.match(r"mov\s+%rsp,%rbp", text) for _, text in code)


def reachable(edges, start, barred=None):
    seen, todo = {start}, [start]
    while todo:
        for node in edges[todo.pop()]:
            if node not in seen and node != barred:
                seen.add(node)
                todo.append(node)
    return seen


def innermost_loops(code):
    """Natural loops that hold no other. A jump backwards alone is none: rare blocks lie behind the function's end."""
    index = {address: i for i, (address, _) in enumerate(code)}
    successors, predecessors, back_edges = collections.defaultdict(list), collections.defaultdict(list), []
    for i, (_, text) in enumerate(code):
        jump = JUMP.match(text)
        target = index.get(int(jump[1], 16)) if jump else None
        next_ones = [] if text.startswith(("jmp", "ret", "ud2")) or i + 1 == len(code) else [i + 1]
        for node in next_ones + ([] if target is None else [target]):
            successors[i].append(node)
            predecessors[node].append(i)
        if target is not None and target <= i:
            back_edges.append((i, target))
    bodies = []
    for source, head in back_edges:
        if source == head or source in reachable(successors, head):
            bodies.append({head} | (reachable(predecessors, source, head) & reachable(successors, head)))
    for body in bodies:
        if not any(other < body for other in bodies):
            yield [code[i][1] for i in sorted(body)]


def examine(body, rbp_is_frame):
    stack = [text for text in body if VECTOR.search(text) and STACK.search(text) and (rbp_is_frame or "%rsp" in text)]
    stores = [text for text in body if MEMORY.search(text.rsplit(",", 1)[-1]) and VECTOR.search(text)]
    memory = [
        text for text in body
        if MEMORY.search(text) and not text.startswith(("lea", "nop", "prefetch", "cs nop", "data16"))
    ]
    return Loop(sum(bool(FMA.match(text)) for text in body), len(memory) - len(stores), len(stores), stack)


def tile_loops(objects):
    """{(function, target): [Loop]} of the register tiles."""
    found = collections.defaultdict(list)
    for path in objects:
        for name, code in functions(path):
            match = re.search(r"N_(\w+)::(\w+<\d+)", name)
            tile = match and f"{match[2]}>"  # the type of its elements is left out
            if match and match[1] in STEP and tile in TILES:
                key, rbp_is_frame = (tile, match[1]), frame_pointer(code)
                found[key] += [
                    loop for loop in (examine(body, rbp_is_frame) for body in innermost_loops(code))
                    if loop.fmas >= LEAST_FMAS
                ]
    return found


def check_tile(loops, step):
    if not loops:
        raise AssertionError(f"no loop with {LEAST_FMAS} FMAs or more: was the function inlined or renamed?")
    # PvTile also holds narrower tiles for the last columns.
    if not any(loop.fmas % step == 0 for loop in loops):
        raise AssertionError(f"no loop of whole steps, {step} FMAs each: {[loop.fmas for loop in loops]}")
    spilled = [text for loop in loops for text in loop.stack]
    if spilled:
        raise AssertionError(f"{len(spilled)} vector registers through the stack, such as: {spilled[0]}")


def check_peak(path, function, step):
    for name, code in functions(path):
        if re.search(rf"N_{function}\(", name):
            loops = [body for body in innermost_loops(code) if any(FMA.match(text) for text in body)]
            for body in loops:
                loop = examine(body, frame_pointer(code))
                if loop.fmas % step or loop.loads or loop.stores or loop.stack or len(body) > loop.fmas + 4:
                    raise AssertionError(
                        f"{len(body)} instructions, {loop.fmas} FMAs, {loop.loads + loop.stores} memory accesses")
            if not loops:
                raise AssertionError("no loop of FMAs")
            return
    raise AssertionError(f"no {function} in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--objects", nargs="+", type=pathlib.Path, help="objects of the tiles; default the library's")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        print("SKIP tile_stack_check: reads x86-64 code only")
        return
    objects = options.objects or sorted(options.build.glob("lib/libfovea.so.*.p/*.o"))
    if not objects:
        sys.exit(f"tile_stack_check: no objects in {options.build}/lib/libfovea.so.*.p")
    found = tile_loops(objects)
    targets = [target for target in STEP if any(key[1] == target for key in found)]

    lines = []
    print(f"{'per step of k':<20} {'target':<9} {'FMAs':>5} {'loads':>6} {'stores':>6} {'stack':>6}")
    for tile in TILES:
        for target in targets:
            for loop in found[tile, target]:
                steps = loop.fmas / STEP[target]
                counts = [loop.fmas / steps, loop.loads / steps, loop.stores / steps, len(loop.stack) / steps]
                narrow = "" if steps >= 1 else f"   of a tile of {loop.fmas} FMAs, for the last columns"
                lines.append("{:<20} {:<9} {:>5g} {:>6g} {:>6g} {:>6g}{}".format(tile, target, *counts, narrow))
    print("\n".join(dict.fromkeys(lines)))  # QkStoreGroup is in two objects
    checks = Checks()
    if not targets:
        checks.run("tile_stack_check: tiles of some target", check_tile, [], 1)
    for target in targets:
        for tile in BF16_TILES if target == "AVX3_BF16" else TILES:
            checks.run(f"tile_stack_check: {tile} of {target} keeps its registers", check_tile, found[tile, target],
                       STEP[target])
    bench = options.build / "bench/libbench_roofline.a.p"
    for target in targets if bench.exists() else []:
        path, chains = ("roofline_bf16.cc.o", "Bf16DotChains") if target == "AVX3_BF16" else ("roofline.cc.o", "FmaChains")
        checks.run(f"tile_stack_check: the peak loop of {target} is FMAs", check_peak, bench / path, f"{target}::{chains}",
                   STEP[target])
    checks.exit()


if __name__ == "__main__":
    main()
