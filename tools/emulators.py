"""The tests on CPUs that this machine does not have, for tools/run_suite.py.

Every target that is compiled runs at every vector length that some emulated CPU gives it, all its test cases, with
FOVEA_TEST_SCALE's part of the random ones (0.05 unless the environment says otherwise). In brief: each at one length,
but for the first (NEON) without the slowest cases, and AVX3_DL, which is AVX3 but for int8, those of int8. Every CPU also shows that the
library chooses the best of its targets by itself. A run counts only if it says that the target was the one asked for.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import time

root = pathlib.Path(__file__).resolve().parent.parent
# A run that takes longer hangs: those of qemu take one to eight minutes, those of Bochs ten to forty.
QEMU_SECONDS, BOCHS_SECONDS = 3600, 7200
SCALE, BOCHS_SCALE = "0.05", "0.01"
# Three quarters of a run's time: same bits however a call is made, NaN that must reach nothing, positions, long lists of shapes, and what is
# the same on every target (allocation, sizes of workspaces).
SLOW_CASES = ["*same bits*", "*changes no bit*", "BATCH_INVARIANT: any*", "*do not depend on the other rows*", "stride 0 broadcasts*",
              "mask and bias broadcast*", "mask and bias with column*", "positions: *", "MiniLM*", "kv_append: the last row*",
              "*rounding mode*", "mha: a two-layer*", "one row without keys*", "NaN in *", "plan and run_tasks have*",
              "paged: block_table is not read*", "no allocation*", "linear: workspace_size*", "a padding mask of one row*"]
# In brief, of a target whose other kernels are those of one before it: what it has of its own.
OWN_CASES = {"AVX3_DL": ["*int8*"]}
CHOICE = "-tc=this run's target*,set_target: every*,FOVEA_TARGET chooses*"


class Cpu:
    """A CPU model of an emulator, and the target that the library is to choose on it (None: not looked at)."""

    def __init__(self, label, command, best=None, guest=False):
        self.label, self.command, self.best, self.guest = label, command, best, guest

    def run(self, program, arguments, env):
        """(exit status, output, seconds). The environment goes to a guest by options, to qemu's program as it is."""
        command, seconds = list(self.command), QEMU_SECONDS
        if self.guest:
            seconds = BOCHS_SECONDS
            command += ["--timeout", seconds - 60]
            command += [word for item in env.items() for word in ("--env", "=".join(item))]
        command = [str(word) for word in [*command, program, *arguments]]
        start = time.monotonic()
        try:
            done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, errors="replace", timeout=seconds)
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            status, output = 124, f"{(error.stdout or b'').decode(errors='replace')}\n{error}\n"
        except OSError as error:
            status, output = 127, f"{error}\n"
        shown = " ".join([*(f"{key}={value}" for key, value in env.items()), *command])
        print(f"\n$ {shown}\n{output}", end="", flush=True)
        return status, output, round(time.monotonic() - start)

    def targets(self, program):
        """[(name, runnable, vector bytes)], best first."""
        status, output, _ = self.run(program, [], {"FOVEA_TEST_LIST": "1"})
        lines = re.findall(r"^(\w+) ([01]) (\d+)$", output, re.MULTILINE) if status == 0 else []
        return [(name, runnable == "1", int(bytes_)) for name, runnable, bytes_ in lines]


def qemu_aarch64(model, best):
    return Cpu(f"qemu-aarch64 -cpu {model}", ["qemu-aarch64", "-L", "/", "-cpu", model], best)


def qemu_x86_64(model, best):
    return Cpu(f"qemu-x86_64 -cpu {model}", ["qemu-x86_64", "-cpu", model], best)


# `max` has SVE2 and BF16; 16, 32 and 64 are bytes.
AARCH64_CPUS = [qemu_aarch64("cortex-a57", ["NEON"]), qemu_aarch64("a64fx", ["SVE"]),
                qemu_aarch64("max,sve-default-vector-length=16", ["NEON_BFDOT"]),
                qemu_aarch64("max,sve-default-vector-length=32", ["SVE_256"]),
                qemu_aarch64("max,sve-default-vector-length=64", ["SVE2"])]
X86_CPUS = [qemu_x86_64("qemu64", ["SCALAR", "EMU128", "SSE2"]), qemu_x86_64("Nehalem", ["SSSE3"]),
            qemu_x86_64("Westmere", ["SSE4"]), qemu_x86_64("Haswell", ["AVX2"])]
AVX512_CPU = Cpu("Bochs, Sapphire Rapids", [root / "tools/run-avx512", "--file", root / "tests/data"], guest=True)


def _environment(cpu, **more):
    # passive: threads that wait must not use up the time of those that work.
    env = {"OMP_WAIT_POLICY": "passive", "FOVEA_TEST_SCALE": os.environ.get("FOVEA_TEST_SCALE", SCALE), **more}
    if cpu.guest:
        env["FOVEA_TEST_SCALE"] = os.environ.get("FOVEA_TEST_SCALE", BOCHS_SCALE)
    else:
        env["FOVEA_TEST_RUNNER"] = " ".join(cpu.command)
    return env


def _cases(summarize, cpu, program, filters, target, env):
    """(passed, failed, seconds) of a run that must say that `target`, one of a list, was the one that ran."""
    status, output, seconds = cpu.run(program, [*filters, "-nc=true"], env)  # a guest's terminal would get colours
    passed, failed = summarize(status, output)
    ran = re.search(r"^fovea_tests: target (\w+) ", output, re.MULTILINE)
    if not ran or ran.group(1) not in target:
        return 0, passed + failed, seconds
    return passed, failed, seconds


def emulate(aarch64_tests, x86_tests, avx512, filters, summarize, count_cases, brief):
    """Rows (target, ran, passed, failed, skipped, seconds, where). avx512: names of the targets to run under Bochs.
    brief: at the first vector length that a CPU of the list gives, and all but NEON without SLOW_CASES.
    summarize(status, output) gives (passed, failed), count_cases(filters) how many cases they leave."""
    rows, jobs, seen, ran = [], [], set(), {name: False for name in avx512}

    def row(name, where, left_out, function, *args):
        passed, failed, seconds = function(summarize, *args)
        return name, "emulated", passed, failed, left_out, seconds, where

    with concurrent.futures.ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        def submit(name, cpu, program, case_filters, target, where=None, left_out=0, **env):
            jobs.append(pool.submit(row, name, where or cpu.label, left_out, _cases, cpu, program, case_filters, target,
                                    _environment(cpu, **env)))

        def submit_targets(cpu, program, wanted=None):
            listed = cpu.targets(program)
            if not listed:
                rows.append((cpu.label, "failed", 0, 1, 0, 0, "no list of targets"))
            for name, runnable, vector_bytes in listed:
                if wanted is not None and name not in wanted:
                    continue
                ran.setdefault(name, False)
                length = None if brief else vector_bytes
                if not runnable or (name, length) in seen:
                    continue
                seen.add((name, length))
                ran[name] = True
                leaves_out = brief and name != "NEON"
                own = OWN_CASES.get(name, []) if brief else []
                case_filters = [*filters, "-tce=" + ",".join(SLOW_CASES)] if leaves_out else filters
                case_filters = [*case_filters, "-tc=" + ",".join(own)] if own else case_filters
                submit(f"{name} {8 * vector_bytes}", cpu, program, case_filters, [name],
                       cpu.label + (", its own cases" if own else ", without the slow cases" if leaves_out else ""),
                       count_cases(filters) - count_cases(case_filters), FOVEA_TARGET=name)

        if avx512:
            submit_targets(AVX512_CPU, x86_tests, avx512)
        for cpu in AARCH64_CPUS:
            submit_targets(cpu, aarch64_tests)
        submit("once, aarch64", AARCH64_CPUS[-1], aarch64_tests, ["-ts=once"], AARCH64_CPUS[-1].best)
        for cpu in AARCH64_CPUS:
            submit("choice", cpu, aarch64_tests, [CHOICE], cpu.best)
        for cpu in X86_CPUS:
            submit("choice", cpu, x86_tests, [CHOICE], cpu.best)
        rows += [job.result() for job in jobs]
    rows += [(name, "not run", 0, 0, count_cases(filters), 0, "no emulated CPU has it")
             for name, did in ran.items() if not did]
    return rows
