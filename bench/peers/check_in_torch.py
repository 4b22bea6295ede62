#!/usr/bin/env python3
"""fovea inside PyTorch's own process: `import torch` and a matmul on all threads first, then calls by ctypes on several
threads, again in forked children (fovea loaded before the fork, and after it), and in two Python threads at once; each
against an f64 evaluation.

    python3 bench/peers/check_in_torch.py [libfovea.so]     prints PASS/FAIL lines, exits non-zero if one fails
"""
import os
import signal
import sys
import threading

import peers_venv

peers_venv.enter()

import torch  # before fovea: it brings the OpenMP runtime that both then use
import numpy

import fovea_ctypes

sys.path.insert(0, str(fovea_ctypes.REPO / "tests"))
from checks import Checks

TOLERANCE = 5e-6  # f32 output of values near 1 against f64
THREADS = (1, 2, 3, 8)


def matmul_on_all_threads():
    torch.set_num_threads(os.cpu_count())
    a = torch.randn(700, 700)
    return float((a @ a).sum())


def make_cases():
    """(q, k, v, causal, f64 result) of a prefill, a causal prefill and a decode. By torch, hence before any fork, which
    torch's own thread pool does not outlive."""
    cases = []
    torch.manual_seed(1)
    for q_len, kv_len, causal in ((300, 300, False), (300, 300, True), (1, 4000, False)):
        q, k, v = (torch.randn(2, heads, rows, 64) for heads, rows in ((8, q_len), (2, kv_len), (2, kv_len)))
        want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal,
                                                                enable_gqa=True)
        cases.append((q.numpy(), k.numpy(), v.numpy(), causal, want.numpy()))
    return cases


def attention(library, cases, num_threads):
    """NumPy and fovea only, so that a forked child can call it."""
    for q, k, v, causal, want in cases:
        out = numpy.full_like(q, numpy.nan)
        library.attention(q, k, v, out, causal, num_threads)()
        difference = float(numpy.abs(out - want).max())
        if not difference <= TOLERANCE:
            raise AssertionError(f"{num_threads} threads: off by {difference:.3g}, {TOLERANCE} allowed")


def all_threads(library, cases):
    for n in THREADS:
        attention(library, cases, n)


def in_forked_child(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a hang in a dead thread pool ends the child
        try:
            check()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise AssertionError("the child hung" if os.WTERMSIG(status) == signal.SIGALRM else f"exit status {status:#x}")


def two_at_once(library, cases):
    errors = []

    def work():
        try:
            all_threads(library, cases)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def openmp_runtimes():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line})


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else None
    cases = make_cases()
    checks = Checks()
    matmul_on_all_threads()
    checks.run("in_torch/loaded_in_forked_child",
               lambda: in_forked_child(lambda: all_threads(fovea_ctypes.Fovea(path), cases)))
    library = fovea_ctypes.Fovea(path)
    print(f"torch {torch.__version__}, fovea {library.version()} {library.target()} {library.path}")
    print("OpenMP:", *openmp_runtimes())
    checks.run("in_torch/layout", fovea_ctypes.check_layout)
    checks.run("in_torch/threads", lambda: all_threads(library, cases))
    matmul_on_all_threads()
    checks.run("in_torch/after_torch_again", lambda: all_threads(library, cases))
    checks.run("in_torch/forked_child", lambda: in_forked_child(lambda: all_threads(library, cases)))
    matmul_on_all_threads()
    checks.run("in_torch/parent_after_fork", lambda: all_threads(library, cases))
    checks.run("in_torch/two_python_threads", lambda: two_at_once(library, cases))
    checks.exit()


if __name__ == "__main__":
    main()
