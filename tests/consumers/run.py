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

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
sys.path.insert(0, str(root / "tests"))
from checks import Checks, command, equal  # noqa: E402

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def readme_examples():
    readme = (root / "README.md").read_text()
    for language, names in (("c", ["example.c", "shared_prefix.c"]), ("cpp", ["example.cpp"])):
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        equal(blocks, [(here / name).read_text() for name in names], f"the ```{language} blocks of README.md")


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
        command(work / "by_pkg_config", env=env)

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
