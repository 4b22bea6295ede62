#!/usr/bin/env python3
"""The library as others use it: installed into a prefix of its own, found by pkg-config and by CMake, loaded by Python,
and built as a Meson subproject. Also: the README's examples are the files that are compiled here.

    tests/consumers/run.py BUILD_DIR
"""
import os
import pathlib
import re
import shutil
import sys
import tempfile

import numpy as np

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
sys.path.insert(0, str(root / "tests"))
from checks import Checks, command, equal  # noqa: E402

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def readme_examples():
    readme = (root / "README.md").read_text()
    for language, names in (("c", ["example.c", "decode_loop.c", "shared_prefix.c"]), ("cpp", ["example.cpp"])):
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        equal(blocks, [(here / name).read_text() for name in names], f"the ```{language} blocks of README.md")


def numbers(*shape, size, seed):
    """As fill() of decode_tokens.c: 2^k of its numbers at once give the next 2^k."""
    count = int(np.prod(shape))
    a, b, at = np.uint32(1664525), np.uint32(1013904223), np.array([], np.uint32)
    with np.errstate(over="ignore"):
        at = np.array([np.uint32(seed) * a + b], np.uint32)
        while len(at) < count:
            at = np.concatenate([at, at * a + b])
            a, b = a * a, a * b + b
    return ((at[:count] >> 8).astype(np.float64) / 2**23 - 1).reshape(shape) * size


def decoded():
    """decode_loop.c in float64 and without a cache: each token is a pass over all before it. The best logit leads by 0.4 % or more."""
    d, hq, hkv, dim, layers = 256, 8, 2, 32, 2
    embeddings, w_qkv = numbers(1000, d, size=1.0, seed=1), numbers(layers, (hq + 2 * hkv) * dim, d, size=0.25, seed=2)
    wo, tokens = numbers(layers, d, hq * dim, size=0.25, seed=3), [11, 42, 7]
    angles = np.arange(64)[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))

    def rotated(heads):
        a, b = heads[..., :dim // 2], heads[..., dim // 2:]
        cos, sin = np.cos(angles)[:heads.shape[1]], np.sin(angles)[:heads.shape[1]]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    while len(tokens) <= 64:
        x = embeddings[tokens]
        for layer in range(layers):
            heads = (x @ w_qkv[layer].T).reshape(len(x), hq + 2 * hkv, dim).transpose(1, 0, 2)
            q, k, v = rotated(heads[:hq]), rotated(heads[hq:hq + hkv]), heads[hq + hkv:]
            k, v = np.repeat(k, hq // hkv, 0), np.repeat(v, hq // hkv, 0)
            scores = np.where(np.tri(len(x), dtype=bool), q @ k.transpose(0, 2, 1) / np.sqrt(dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            o = weights / weights.sum(-1, keepdims=True) @ v
            x = x + o.transpose(1, 0, 2).reshape(len(x), -1) @ wo[layer].T
        logits = embeddings @ x[-1]
        tokens.append(int(logits.argmax()))
    return tokens[3:]


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    work = pathlib.Path(tempfile.mkdtemp(prefix="fovea_consumers_"))
    prefix = work / "prefix"
    checks = Checks()
    env = dict(os.environ)
    cc, cxx = env.get("CC", "cc"), env.get("CXX", "c++")

    def install():
        command("meson", "install", "-C", build, "--no-rebuild", env={**env, "DESTDIR": str(work / "stage")})
        # The configured prefix lies under stage/; moved elsewhere it must work too.
        stage = next((work / "stage").rglob("include")).parent
        shutil.move(stage, prefix)
        library = next(prefix.rglob("libfovea.so")).parent
        env["LD_LIBRARY_PATH"] = f"{library}:{env.get('LD_LIBRARY_PATH', '')}"
        env["PKG_CONFIG_PATH"] = str(library / "pkgconfig")
        return library

    def by_pkg_config(name, compiler, standard):
        flags = command("pkg-config", f"--define-variable=prefix={prefix}", "--cflags", "--libs", "fovea", env=env)
        command(compiler, standard, *WARNINGS, here / name, "-o", work / "by_pkg_config", *flags.split())
        return command(work / "by_pkg_config", env=env)

    def decode_loop():
        """One token for each row of the cache from the prompt's last on; with weights, the tokens that NumPy finds."""
        equal(len(by_pkg_config("decode_loop.c", cc, "-std=c99").split()), 62, "tokens")
        equal([int(token) for token in by_pkg_config("decode_tokens.c", cc, "-std=c99").split()], decoded(), "the tokens")

    def by_cmake():
        command("cmake", "-S", here / "cmake", "-B", work / "cmake", "-DCMAKE_PREFIX_PATH=" + str(prefix), env=env)
        command("cmake", "--build", work / "cmake", env=env)
        command(work / "cmake" / "example", env=env)

    def by_cmake_refused():
        """A version that is not installed is not found."""
        source = work / "cmake_refused"
        source.mkdir()
        (source / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.13)\nproject(x CXX)\nfind_package(fovea 99 QUIET)\n"
            "if(fovea_FOUND)\n  message(FATAL_ERROR found)\nendif()\n")
        command("cmake", "-S", source, "-B", source / "build", "-DCMAKE_PREFIX_PATH=" + str(prefix), env=env)

    def by_subproject():
        source = work / "subproject"
        (source / "subprojects").mkdir(parents=True)
        for name in (here / "subproject" / "meson.build", here / "example.c", here / "example.cpp"):
            shutil.copy(name, source)
        (source / "subprojects" / "fovea").symlink_to(root)
        command("meson", "setup", source / "build", source, "--wrap-mode=forcefallback", "-Dbuildtype=plain")
        command("ninja", "-C", source / "build", "example", "example_cpp")
        command(source / "build" / "example")
        command(source / "build" / "example_cpp")

    try:
        checks.run("consumers: README.md shows the examples that are compiled", readme_examples)
        libraries = []
        checks.run("consumers: meson install", lambda: libraries.append(install()))
        if libraries:
            checks.run("consumers: C, pkg-config", by_pkg_config, "example.c", cc, "-std=c99")
            checks.run("consumers: C, decode loop, pkg-config", decode_loop)
            checks.run("consumers: C, shared prefix, pkg-config", by_pkg_config, "shared_prefix.c", cc, "-std=c99")
            checks.run("consumers: C++, pkg-config", by_pkg_config, "example.cpp", cxx, "-std=c++17")
            checks.run("consumers: C++, CMake find_package", by_cmake)
            checks.run("consumers: CMake refuses another major version", by_cmake_refused)
            checks.run("consumers: Python, ctypes", command, sys.executable, here / "caller.py",
                       libraries[0] / "libfovea.so")
        checks.run("consumers: Meson subproject", by_subproject)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    checks.exit()


if __name__ == "__main__":
    main()
