#!/usr/bin/env python3
"""The fovea command against NumPy: what it computes, reads, writes and refuses.

    tests/cli_test.py build/tools/fovea
"""
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from checks import Checks, equal

DATA = pathlib.Path(__file__).resolve().parent / "data"
fovea = pathlib.Path(sys.argv[1]).resolve()
random = np.random.default_rng(1)
checks = Checks()


def run(*args, status=0, **env):
    done = subprocess.run([str(fovea), *map(str, args)], capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode != status:
        raise AssertionError(f"{' '.join(map(str, args))}: exit status {done.returncode}, {status} is wanted\n"
                             f"{done.stdout}{done.stderr}")
    return done


def refused(part, *args, **env):
    """Exit status 2, one line on stderr that holds part, and nothing else."""
    done = run(*args, status=2, **env)
    equal(done.stdout, "", "stdout")
    equal((done.stderr.count("\n"), done.stderr[-1:]), (1, "\n"), f"lines of {done.stderr!r}")
    if part not in done.stderr:
        raise AssertionError(f"{done.stderr!r} does not say {part!r}")


def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)


def attention(q, k, v, mask=True, bias=0.0, scale=None, cap=0):
    """(out, lse, weights) in float64; arrays are [batch, heads, rows, dim], mask and bias broadcast as in NumPy."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    s = (q @ k.transpose(0, 1, 3, 2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if cap:
        s = cap * np.tanh(s / cap)
    s = np.where(mask, s + bias, -np.inf)
    top = s.max(-1, keepdims=True, initial=-1e300)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.where(total > 0, top + np.log(total), -np.inf)[..., 0]
        p = np.where(total > 0, p / total, 0)
    return p @ v, lse, p


class Folder:
    """Arrays as files of a directory of their own."""

    def __init__(self, **arrays):
        self.directory = tempfile.TemporaryDirectory(prefix="fovea_cli_")
        self.path = pathlib.Path(self.directory.name)
        for name, array in arrays.items():
            np.save(self / f"{name}.npy", array)

    def __truediv__(self, name):
        return self.path / name

    def names(self):
        return sorted(os.listdir(self.path))

    def args(self, *more):
        """attend --q .. --k .. --v .., and more with {} as this directory."""
        base = ["attend"]
        for name in "qkv":
            base += [f"--{name}", self / f"{name}.npy"]
        return base + [str(arg).replace("{}", str(self.path)) for arg in more]


def computes(q, k, v, options=(), files=None, **reference):
    """attend gives what NumPy gives, in files that NumPy reads. files: the arrays of --mask and --bias."""
    files = files or {}
    folder = Folder(q=q, k=k, v=v, **files)
    given = [part for name in files for part in (f"--{name}", f"{{}}/{name}.npy")]
    run(*folder.args(*given, *options, "--out", "{}/o.npy", "--lse", "{}/l.npy", "--weights", "{}/w.npy", "--check",
                     "--repeat", 1))
    four = [a if a.ndim == 4 else a[None] for a in (q, k, v)]
    want = attention(*four, **reference)
    for name, expected in zip("olw", want):
        got = np.load(folder / f"{name}.npy")
        equal(got.dtype.str, "<f4", "dtype")
        equal(got.shape, expected.shape[4 - q.ndim:], f"shape of {name}")
        if q.ndim == 3:
            expected = expected[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    equal(folder.names(), sorted(f"{name}.npy" for name in [*"qkvolw", *files]), "files")


# ---- what it computes ---------------------------------------------------------------------------------------------

B, HQ, HK, S, K, D, DV = 2, 4, 2, 5, 9, 8, 3
q, k, v = normal(B, HQ, S, D), normal(B, HK, K, D), normal(B, HK, K, DV)
i, j = np.arange(S)[:, None], np.arange(K)[None, :]

for name, options, reference in (
        ("grouped heads, v_dim unlike dim", [], {}),
        ("--scale", ["--scale", "-0.3"], {"scale": float(np.float32(-0.3))}),
        ("--soft-cap", ["--soft-cap", 1.5], {"cap": 1.5}),
        ("--causal", ["--causal"], {"mask": j <= i}),
        ("--causal --q-offset 2", ["--causal", "--q-offset", 2], {"mask": j <= i + 2}),
        ("--causal --q-offset -2", ["--causal", "--q-offset", -2], {"mask": j <= i - 2}),
        ("--causal --q-offset bottom-right", ["--causal", "--q-offset", "bottom-right"], {"mask": j <= i + K - S}),
        ("windows", ["--window-left", 1, "--window-right", 2], {"mask": (j >= i - 1) & (j <= i + 2)}),
        ("--page-size 4", ["--page-size", 4, "--causal", "--q-offset", "bottom-right"], {"mask": j <= i + K - S}),
        ("--page-size 1000", ["--page-size", 1000], {}),
        ("--threads 1", ["--threads", 1], {})):
    checks.run(f"cli: {name}", lambda: computes(q, k, v, options, **reference))
checks.run("cli: 3 dimensions are a batch of 1", computes, q[0], k[0], v[0])
checks.run("cli: 0 keys", computes, q, k[:, :, :0], v[:, :, :0])
checks.run("cli: 0 keys in pages", computes, q, k[:, :, :0], v[:, :, :0], ["--page-size", 4])
checks.run("cli: 0 queries", computes, q[:, :, :0], k, v)

def dtype_option(name, rounded):
    bias = normal(S, K)
    folder = Folder(q=q, k=k, v=v, bias=bias)
    # Not AVX3_BF16, which rounds the weights as well: that would hide whether q, k, v and bias were.
    target = json.loads(run("info", "--json").stdout)["targets"][-1]["name"]
    done = run(*folder.args("--bias", "{}/bias.npy", "--dtype", name, "--out", "{}/o.npy", "--check", "--target", target))
    want = attention(rounded(q), rounded(k), rounded(v), bias=rounded(bias).astype(np.float64))[0]
    # A prefill of bf16's own rounds the weights too, and converts the bias only; --check knows its bound.
    native = "prefill_bf16" in done.stdout
    tolerance = 0.02 if native else 1e-5
    np.testing.assert_allclose(np.load(folder / "o.npy"), want, rtol=tolerance, atol=tolerance)
    tensors = ["bias"] if native else ["q", "k", "v", "bias"]
    converted = "" if name == "f32" else "converted " + ", ".join(f"{t} {name.upper()}" for t in tensors)
    if converted not in done.stdout or (not converted and "converted" in done.stdout):
        raise AssertionError(f"{done.stdout!r} does not say {converted!r}")


half = [a.astype(np.float16) for a in (q, k, v)]
checks.run("cli: float16 arrays", computes, *half)
checks.run("cli: float16 k and v, float32 q", computes, q, *half[1:])


def bf16(a):
    """a's numbers rounded to bfloat16, as float32."""
    bits = a.astype(np.float32).view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & np.uint32(0xffff0000)).view(np.float32)


for name, rounded in (("bf16", bf16), ("f16", lambda a: a.astype(np.float16).astype(np.float32)), ("f32", lambda a: a)):
    checks.run(f"cli: --dtype {name} rounds q, k, v and bias first", lambda: dtype_option(name, rounded))


def int8_option(options):
    def quantized(a):
        scale = np.abs(a).max(-1, keepdims=True).astype(np.float32) / np.float32(127)
        return np.rint(a / scale).astype(np.float64) * scale
    folder = Folder(q=q, k=k, v=v)
    done = run(*folder.args("--dtype", "i8", *options, "--out", "{}/o.npy", "--check"))
    want = attention(q, quantized(k), quantized(v))[0]
    np.testing.assert_allclose(np.load(folder / "o.npy"), want, rtol=1e-5, atol=1e-5)
    if "converted k I8, v I8" not in done.stdout:
        raise AssertionError(f"{done.stdout!r} does not say which are converted")


checks.run("cli: --dtype i8 quantizes k and v row by row", int8_option, [])
checks.run("cli: --dtype i8 --page-size 4", int8_option, ["--page-size", 4])
checks.run("cli: --dtype f32 of float16 arrays", computes, *half, ["--dtype", "f32"])


def float16_bias():
    bias = normal(B, 1, S, K).astype(np.float16)
    computes(q, k, v, files={"bias": bias}, bias=bias.astype(np.float64))


checks.run("cli: float16 bias", float16_bias)

keep = random.random((B, HQ, S, K)) < 0.6
keep[..., 0] = True
for name, saved, full in (("[keys]", keep[0, 0, 0], keep[0, 0, 0]),
                          ("[batch, keys]", keep[:, 0, 0], keep[:, :1, :1]),
                          ("[1, keys]", keep[0, 0, :1], keep[0, 0, :1]),
                          ("[queries, keys]", keep[0, 0], keep[0, 0]),
                          ("[queries, 1]", keep[0, 0, :, 1:2], keep[0, 0, :, 1:2]),
                          ("[heads, queries, keys]", keep[0], keep[0]),
                          ("[1, queries, keys]", keep[0, :1], keep[0, :1]),
                          ("[batch, 1, 1, keys]", keep[:, :1, :1], keep[:, :1, :1]),
                          ("[batch, 1, queries, keys]", keep[:, :1], keep[:, :1]),
                          ("[batch, heads, queries, keys]", keep, keep)):
    checks.run(f"cli: bool mask {name}", lambda: computes(q, k, v, files={"mask": saved}, mask=full))
    checks.run(f"cli: uint8 mask {name}", lambda: computes(q, k, v, files={"mask": saved * np.uint8(3)}, mask=full))
    bias = np.where(full, normal(*full.shape), np.float32(-np.inf)).astype(np.float32)
    checks.run(f"cli: bias {name}", lambda: computes(q, k, v, files={"bias": bias.reshape(saved.shape)}, bias=bias))


def minilm():
    layer = {name: DATA / f"minilm_{name}.npy" for name in ("q", "k", "v", "valid", "out", "lse")}
    done = run("attend", "--q", layer["q"], "--k", layer["k"], "--v", layer["v"], "--mask", layer["valid"],
               "--expect", layer["out"], "--expect-lse", layer["lse"], "--tolerance", 2e-6, "--check")
    equal(done.stdout.count(": ok\n"), 4, f"comparisons that are ok in\n{done.stdout}")


checks.run("cli: the MiniLM layer, within 2e-6 of the model's own result", minilm)


def minilm_layer():
    files = {name: DATA / f"minilm_{name}.npy" for name in ("x", "wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo")}
    given = [part for name, path in files.items() for part in (f"--{name}", path)]
    args = ["layer", *given, "--mask", DATA / "minilm_valid.npy", "--heads", 12, "--expect", DATA / "minilm_y.npy"]
    done = run(*args)
    if "tolerance 2.00e-05: ok" not in done.stdout:
        raise AssertionError(f"no comparison that is ok in\n{done.stdout}")
    done = run(*args, "--tolerance", 1e-9, status=1)
    if "PAST TOLERANCE" not in done.stdout:
        raise AssertionError(done.stdout)


checks.run("cli: layer: MiniLM's, within 2e-5 of the model's own result; past a tolerance is status 1", minilm_layer)


def rotated(a, base, interleaved):
    """a [batch, heads, rows, dim], row i at position i."""
    half = a.shape[-1] // 2
    angle = np.arange(a.shape[2])[:, None] * float(base) ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (a[..., 0::2], a[..., 1::2]) if interleaved else (a[..., :half], a[..., half:2 * half])
    out = np.empty_like(a)
    pair = (x * cos - y * sin, x * sin + y * cos)
    (out[..., 0::2], out[..., 1::2]) = pair if interleaved else (0, 0)
    return out if interleaved else np.concatenate(pair, -1)


def layer(packed=False, cross=False, norm=False, rope=None, interleaved=False, causal=False, batched=True):
    """fovea layer gives what NumPy gives."""
    b, s, t, m, mk, h, kv, d, o = 2 if batched else 1, 7, 5, 12, 9 if cross else 12, 4, 2, 6, 11
    w = {"wq": normal(h * d, m), "wk": normal(kv * d, mk), "wv": normal(kv * d, mk), "wo": normal(o, h * d) / 5}
    bias = {"bq": normal(h * d), "bk": normal(kv * d), "bv": normal(kv * d), "bo": normal(o)}
    arrays = {"x": normal(b, s, m) / 3, **w, **bias}
    if cross:
        arrays["x-kv"] = normal(b, t, mk) / 3
    if norm:
        arrays.update({"q-norm": normal(d), "k-norm": normal(d)})
    wide = {name: a.astype(np.float64) for name, a in arrays.items()}

    def heads(x, n, name, norm_name=None):
        y = x @ wide["w" + name].T + wide["b" + name]
        y = y.reshape(b, -1, n, d).transpose(0, 2, 1, 3)
        if norm and norm_name:
            y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * wide[norm_name]
        return rotated(y, rope, interleaved) if rope and name != "v" else y

    x_kv = wide.get("x-kv", wide["x"])
    i, j = np.arange(s)[:, None], np.arange(x_kv.shape[1])[None, :]
    o_heads = attention(heads(wide["x"], h, "q", "q-norm"), heads(x_kv, kv, "k", "k-norm"), heads(x_kv, kv, "v"),
                        mask=(j <= i) if causal else True)[0]
    want = o_heads.transpose(0, 2, 1, 3).reshape(b, s, h * d) @ wide["wo"].T + wide["bo"]
    if packed:
        arrays["w-qkv"] = np.concatenate([arrays.pop(name) for name in ("wq", "wk", "wv")])
        arrays["b-qkv"] = np.concatenate([arrays.pop(name) for name in ("bq", "bk", "bv")])
    if not batched:
        arrays["x"], want = arrays["x"][0], want[0]
    folder = Folder(**arrays)
    given = [part for name in arrays for part in (f"--{name}", folder / f"{name}.npy")]
    options = ["--rope", rope] if rope else []
    options += ["--interleaved"] * interleaved + ["--causal"] * causal
    run("layer", *given, "--heads", f"{h}/{kv}", *options, "--out", folder / "y.npy", "--repeat", 1)
    got = np.load(folder / "y.npy")
    equal((got.dtype.str, got.shape), ("<f4", want.shape), "the result")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


for name, options in (("separate weights", {}), ("packed weights", {"packed": True}), ("cross attention", {"cross": True}),
                      ("norms", {"norm": True}), ("rope, causal", {"rope": 10000, "causal": True}),
                      ("rope, cross", {"rope": 10000, "cross": True}),
                      ("rope, interleaved, norms, packed", {"rope": 500, "interleaved": True, "norm": True, "packed": True}),
                      ("no batch dimension", {"batched": False})):
    checks.run(f"cli: layer: {name}", lambda: layer(**options))


def layer_refuses(part, *options, **arrays):
    given = {"x": normal(1, 3, 8), "wq": normal(8, 8), "wk": normal(4, 8), "wv": normal(4, 8), "wo": normal(8, 8), **arrays}
    given = {name: array for name, array in given.items() if array is not None}
    folder = Folder(**given)
    before = folder.names()
    args = [arg for name in given for arg in (f"--{name}", folder / f"{name}.npy")]
    refused(part, "layer", *args, "--out", folder / "y.npy", *(options or ["--heads", "4/2"]))
    equal(folder.names(), before, "files")


for part, options, arrays in (
        ("--heads", ["--threads", 1], {}), ("kv heads must divide", ["--heads", "4/3"], {}),
        ("--wq, --wk and --wv are wanted", [], {"wk": None}), ("--w-qkv", [], {"w-qkv": normal(16, 8)}),
        ("--wo is wanted", [], {"wo": None}), ("rows must be a multiple of 3", ["--heads", "3/1"], {}),
        ("--wk must be [4, 8]", [], {"wk": normal(6, 8)}), ("--wo must be [8, 8]", [], {"wo": normal(8, 7)}),
        ("--bo must be [8]", [], {"bo": normal(7)}), ("--bq wants [out]", [], {"bq": normal(8, 1)}),
        ("[batch, tokens, columns]", [], {"x": normal(8)}), ("--expect wants [1, 3, 8]", [], {"expect": normal(3, 9)}),
        ("base", ["--heads", "4/2", "--rope", 0.5], {}), ("only with --rope", ["--heads", "4/2", "--interleaved"], {}),
        ("--repeat", ["--heads", "4/2", "--repeat", 0], {}), ("--mask wants bool", [], {"mask": normal(3)})):
    checks.run(f"cli: layer: refused: {part}", lambda: layer_refuses(part, *options, **arrays))


# ---- what it compares ---------------------------------------------------------------------------------------------

def past_tolerance():
    """Exit status 1 where an expected array differs, and the outputs are written all the same."""
    folder = Folder(q=q, k=k, v=v)
    run(*folder.args("--out", "{}/o.npy", "--lse", "{}/l.npy"))
    run(*folder.args("--expect", "{}/o.npy", "--expect-lse", "{}/l.npy"))
    for name in "ol":
        right = np.load(folder / f"{name}.npy")
        option = "--expect" if name == "o" else "--expect-lse"
        for wrong in (right[0, 0, 0].flat[0] + np.float32(1e-3), np.nan, np.inf, -np.inf):
            changed = right.copy()
            changed.flat[0] = wrong
            np.save(folder / "wrong.npy", changed)
            done = run(*folder.args(option, "{}/wrong.npy", "--out", "{}/again.npy"), status=1)
            if "PAST TOLERANCE" not in done.stdout:
                raise AssertionError(done.stdout)
            os.remove(folder / "again.npy")
        run(*folder.args(option, "{}/wrong.npy", "--tolerance", "inf"))


def infinities_agree():
    """A row with no permitted key: out 0, lse -inf, equal to an expected -inf."""
    folder = Folder(q=q, k=k, v=v, mask=np.zeros(K, bool), o=np.zeros((B, HQ, S, DV), np.float32),
                    l=np.full((B, HQ, S), -np.inf, np.float32))
    run(*folder.args("--mask", "{}/mask.npy", "--expect", "{}/o.npy", "--expect-lse", "{}/l.npy", "--check"))


checks.run("cli: past tolerance is exit status 1", past_tolerance)
checks.run("cli: -inf equals -inf", infinities_agree)


# ---- what it says -------------------------------------------------------------------------------------------------

def info():
    about = json.loads(run("info", "--json").stdout)
    chosen = [target for target in about["targets"] if target["chosen"]]
    equal([target["name"] for target in chosen], [about["target"]], "the chosen target")
    equal(chosen[0]["runnable"], True, "runnable")
    equal(about["why"], "best", "why")
    if about["threads"] < 1 or chosen[0]["vector_bytes"] < 4 or not about["cpu"]:
        raise AssertionError(about)
    text, folder = run("info").stdout, Folder(q=q, k=k, v=v)
    for part in (about["cpu"], about["version"], *(target["name"] for target in about["targets"])):
        if part not in text:
            raise AssertionError(f"{text!r} does not say {part!r}")
    for target in about["targets"]:
        if target["runnable"]:
            about = json.loads(run("info", "--json", FOVEA_TARGET=target["name"]).stdout)
            equal((about["target"], about["why"]), (target["name"], "FOVEA_TARGET"), "target and why")
        else:
            refused(target["name"], "info", FOVEA_TARGET=target["name"])
            refused(target["name"], *folder.args("--target", target["name"]))


def target_of_attend():
    names = [target["name"] for target in json.loads(run("info", "--json").stdout)["targets"] if target["runnable"]]
    folder = Folder(q=q, k=k, v=v)
    for name in names:
        done = run(*folder.args("--target", name, "--check"))
        if f"target    {name}," not in done.stdout:
            raise AssertionError(done.stdout)


checks.run("cli: info", info)
checks.run("cli: info of an unknown target", lambda: refused("AVX9", "info", FOVEA_TARGET="AVX9"))
checks.run("cli: attend --target", target_of_attend)
for args in (["--help"], ["attend", "--help"], ["info", "--help"], ["--version"]):
    checks.run(f"cli: {' '.join(args)}", run, *args)


# ---- what it refuses ----------------------------------------------------------------------------------------------

def refuses(part, *options, **arrays):
    """attend with these arrays in place of the good ones is refused, and leaves its outputs, old or new, alone."""
    folder = Folder(**{"q": q, "k": k, "v": v, **arrays})
    (folder / "l.npy").write_text("old")
    before = folder.names()
    refused(part, *folder.args("--out", "{}/o.npy", "--lse", "{}/l.npy", *options))
    equal(folder.names(), before, "files")
    equal((folder / "l.npy").read_text(), "old", "l.npy")


square = normal(B, HQ, B, D)
for name, part, options, arrays in (
        ("float64", "dtype float64", [], {"q": q.astype(np.float64)}),
        ("a float16 mask", "--bias", ["--mask", "{}/m.npy"], {"m": np.ones(K, np.float16)}),
        ("--dtype u8", "--dtype", ["--dtype", "u8"], {}),
        ("--dtype half", "--dtype", ["--dtype", "half"], {}),
        ("an integer v", "dtype int32", [], {"v": v.astype(np.int32)}),
        ("a bool q", "--q wants float32", [], {"q": q > 0}),
        ("big-endian", "big-endian", [], {"q": q.astype(">f4")}),
        ("Fortran order", "Fortran order", [], {"q": np.asfortranarray(q)}),
        ("2 dimensions", "--q wants", [], {"q": q[0, 0]}),
        ("5 dimensions", "--k wants", [], {"k": k[None]}),
        ("batches that differ", "batch", [], {"k": k[:1]}),
        ("dims that differ", "dim", [], {"k": k[..., :-1]}),
        ("key counts that differ", "rows", [], {"v": v[:, :, :-1]}),
        ("kv head counts that differ", "heads", [], {"v": v[:, :1]}),
        ("heads that do not divide", "num_kv_heads", [], {"q": q[:, :3]}),
        ("a dim of 0", "dim", [], {"v": v[..., :0]}),
        ("a batch of 0", "batch", [], {name: a[:0] for name, a in (("q", q), ("k", k), ("v", v))}),
        ("a mask that does not broadcast", "does not broadcast", ["--mask", "{}/m.npy"],
         {"m": np.ones((B, 1, S, K - 1), bool)}),
        ("a mask of 5 dimensions", "at most 4", ["--mask", "{}/m.npy"], {"m": np.ones((1, 1, 1, 1, K), bool)}),
        ("a mask that could be two things", "could be", ["--mask", "{}/m.npy"],
         {"q": square, "m": np.ones((B, K), bool)}),
        ("a float mask", "--bias", ["--mask", "{}/m.npy"], {"m": np.ones(K, np.float32)}),
        ("a bool bias", "--bias wants float32", ["--bias", "{}/m.npy"], {"m": np.ones(K, bool)}),
        ("an expected array of another shape", "--expect wants", ["--expect", "{}/e.npy"], {"e": q}),
        ("an expected lse of another shape", "--expect-lse wants", ["--expect-lse", "{}/e.npy"], {"e": q}),
        ("a missing file", "No such file", ["--bias", "{}/none.npy"], {}),
        ("an output folder that is not there", "No such file", ["--weights", "{}/none/w.npy"], {}),
        ("two outputs of one name", "two outputs", ["--weights", "{}/o.npy"], {}),
        ("an output folder that is a file", "Not a directory", ["--weights", "{}/q.npy/w.npy"], {}),
        ("an output that is a folder", "not a regular file", ["--weights", "{}"], {}),
        ("an output that is a device", "not a regular file", ["--weights", "/dev/null"], {}),
        ("--scale nan", "--scale", ["--scale", "nan"], {}),
        ("--scale inf", "scale", ["--scale", "inf"], {}),
        ("--scale x", "--scale", ["--scale", "x"], {}),
        ("--soft-cap -1", "logits_soft_cap", ["--soft-cap", "-1"], {}),
        ("--window-left -2", "window_left", ["--window-left", "-2"], {}),
        ("--window-left of 2^64", "--window-left", ["--window-left", str(2 ** 64)], {}),
        ("--window-left 1.5", "--window-left", ["--window-left", "1.5"], {}),
        ("--q-offset of 2^30", "q_offset", ["--q-offset", str(2 ** 30)], {}),
        ("--q-offset of 2^64", "--q-offset", ["--q-offset", str(2 ** 64)], {}),
        ("--q-offset top", "--q-offset", ["--q-offset", "top"], {}),
        ("--q-offset of nothing", "--q-offset", ["--q-offset", ""], {}),
        ("--threads -1", "num_threads", ["--threads", "-1"], {}),
        ("--page-size -1", "--page-size", ["--page-size", "-1"], {}),
        ("--page-size 0", "--page-size", ["--page-size", "0"], {}),
        ("--repeat 0", "--repeat", ["--repeat", "0"], {}),
        ("--tolerance -1", "--tolerance", ["--tolerance", "-1"], {}),
        ("--tolerance nan", "--tolerance", ["--tolerance", "nan"], {}),
        ("--target AVX9", "AVX9", ["--target", "AVX9"], {}),
        ("an unknown option", "--frobnicate", ["--frobnicate"], {}),
        ("an option without its value", "--mask", ["--mask"], {}),
        ("a word too many", "word", ["word"], {})):
    checks.run(f"cli: refuses {name}", lambda: refuses(part, *options, **arrays))

checks.run("cli: refuses no subcommand", refused, "subcommand")
checks.run("cli: refuses an unknown subcommand", refused, "dance", "dance")
checks.run("cli: refuses attend without --v", refused, "--v", "attend", "--q", "q.npy", "--k", "k.npy")


def npy_versions():
    folder = Folder(q=q, k=k, v=v)
    run(*folder.args("--out", "{}/want.npy"))
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(folder / "q.npy", "wb") as file:
            np.lib.format.write_array(file, q, version=version)
        run(*folder.args("--expect", "{}/want.npy", "--tolerance", 0, "--threads", 1))


def damaged():
    folder = Folder(q=q, k=k, v=v)
    whole = (folder / "q.npy").read_bytes()
    for part, content in (("empty", b""), ("not a .npy", b"hello, world, and more"), ("truncated", whole[:-1]),
                          ("truncated", whole[:50]), ("oversized", whole + b"\0"),
                          ("damaged", whole.replace(b"'descr'", b"'desc' "))):
        (folder / "q.npy").write_bytes(content)
        refused(part, *folder.args("--out", "{}/o.npy"))
    equal(folder.names(), ["k.npy", "q.npy", "v.npy"], "files")


def full_disk():
    """Where an output cannot be written whole, none is: two fit below the limit of a file's size, --weights does not."""
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))  # libomp has a small shared file of its own

    folder = Folder(q=normal(B, HQ, 300, D), k=k, v=v)
    args = map(str, folder.args("--lse", "{}/l.npy", "--out", "{}/o.npy", "--weights", "{}/w.npy"))
    done = subprocess.run([str(fovea), *args], capture_output=True, text=True, preexec_fn=small_files)
    equal((done.returncode, done.stdout), (2, ""), "exit status and stdout")
    equal(done.stderr, f"fovea: {folder / 'w.npy'}: File too large\n", "stderr")
    equal(folder.names(), ["k.npy", "q.npy", "v.npy"], "files")


SHORT = ["sweep", "--quick", "--op", "prefill", "--min-time", "0"]
TINY = [*SHORT, "--lengths", "16", "--head-dims", "32"]


def sweep_to_full_device():
    """What stdout does not take makes the exit status 1; files are written all the same."""
    folder = Folder()
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(fovea), *TINY, "--threads", "1", "--csv", str(folder / "s.csv")], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    equal(done.returncode, 1, "exit status")
    equal("fovea: standard output cannot be written\n" in done.stderr, True, f"{done.stderr!r} says so")
    equal(len((folder / "s.csv").read_text().splitlines()), 2, "lines of the CSV file")


def attend_to_full_device():
    """The same of attend: 1, since its outputs are written; 2 is bad input, and nothing written."""
    folder = Folder()
    operands = [folder / f"{name}.npy" for name in "qkv"]
    for operand in operands:
        np.save(operand, np.ones((1, 1, 4, 8), np.float32))
    q, k, v = map(str, operands)
    for buffered in ([], ["stdbuf", "-o0"]):
        out = folder / f"o{len(buffered)}.npy"
        with open("/dev/full", "w") as full:
            done = subprocess.run([*buffered, str(fovea), "attend", "--q", q, "--k", k, "--v", v, "--repeat", "1", "--out", str(out)],
                                  stdout=full, stderr=subprocess.PIPE, text=True)
        equal(done.returncode, 1, "exit status")
        equal(done.stderr, "fovea: standard output cannot be written\n", "stderr")
        equal(np.load(out).tolist(), np.load(v).tolist(), "O")


def sweep_refuses(part, *options):
    folder = Folder()
    refused(part, *TINY, *options, "--json", folder / "s.json")
    equal(folder.names(), [], "files")


def sweep_layer(preset, name):
    done = run("sweep", "--quick", "--op", "layer", "--preset", preset, "--lengths", 1, "--threads", 1, "--min-time", 0)
    if name not in done.stdout:
        raise AssertionError(f"{done.stdout!r} does not say {name!r}")


def sweep_stopped(number, twice):
    """A signal ends the measuring, a second one the program: the rows before are in the file."""
    folder = Folder()
    lengths = "16,16384" if twice else "16,4096"  # the second row takes seconds
    process = subprocess.Popen([str(fovea), *SHORT, "--threads", "1", "--lengths", lengths, "--head-dims", "128", "--csv",
                                str(folder / "s.csv")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "@" not in process.stdout.readline():
        equal(process.poll(), None, "exit status before the first row")
    if twice:
        time.sleep(0.3)  # into the second row
    process.send_signal(number)
    while "once more" not in process.stderr.readline():  # after a warning of the load, it may be
        equal(process.poll(), None, "exit status before the signal is answered")
    if twice:
        process.send_signal(number)
        equal(process.wait(timeout=60), -number, "exit status")
        equal(len((folder / "s.csv").read_text().splitlines()), 2, "lines of the CSV file")
    else:
        errors = process.stderr.read()
        equal((process.wait(timeout=60), " of 2 rows" in errors), (128 + number, True), f"exit status, and a count in {errors!r}")
    equal(folder.names(), ["s.csv"], "files")


checks.run("cli: sweep to a full device", sweep_to_full_device)
checks.run("cli: attend to a full device", attend_to_full_device)
for part, options in (("--threads: 100000", ["--threads", 100000]), ("--threads: 1025", ["--threads", "1,1025"]),
                      ("--targets: FOO", ["--threads", 1, "--targets", "FOO"])):
    checks.run(f"cli: sweep refuses {part}", sweep_refuses, part, *options)
checks.run("cli: sweep refuses --min-time inf", refused, "--min-time inf", "sweep", "--quick", "--min-time", "inf")
for option in ("--preset", "--op", "--targets", "--json", "--lengths"):
    checks.run(f"cli: sweep refuses an empty {option}", refused, f"{option}: a value", "sweep", "--quick", option, "")
checks.run("cli: attend refuses an empty --bias", refuses, "--bias: a value", "--bias", "")
checks.run("cli: sweep: gemma-2-9b has its own d_model", sweep_layer, "gemma-2-9b", "layer/f32/m3584/d256/kv1024/h16x8/")
checks.run("cli: sweep: whisper-small has 448 tokens at most", sweep_layer, "whisper-small", "layer/f32/m768/d64/kv448/h12x12/")
checks.run("cli: sweep: SIGTERM keeps what is measured", sweep_stopped, signal.SIGTERM, False)
checks.run("cli: sweep: a second Ctrl-C as well", sweep_stopped, signal.SIGINT, True)
checks.run("cli: .npy versions as NumPy writes them", npy_versions)
checks.run("cli: damaged files", damaged)
checks.run("cli: a full disk", full_disk)
checks.exit()
