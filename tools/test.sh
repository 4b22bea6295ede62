#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test on every instruction set of this CPU. The last line is
# "N passed, N failed, N skipped"; the exit status is 0 only if nothing failed and everything that should run did.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

usage() {
  cat << 'END'
tools/test.sh [--compiler gcc|clang] [--sanitize | --thread-sanitize] [--jobs N]

  --compiler clang   build with clang++-19 rather than g++
  --sanitize         the suite under AddressSanitizer and UndefinedBehaviorSanitizer
  --thread-sanitize  the threading tests under ThreadSanitizer (clang, libomp and its Archer)
  --jobs N           parallel compilations
END
}

compiler=gcc mode=plain jobs=()
while [ $# -gt 0 ]; do
  case $1 in
    --compiler) compiler=${2:-} && shift ;;
    --sanitize) mode=address ;;
    --thread-sanitize) mode=thread ;;
    --jobs) jobs=(-j "${2:-}") && shift ;;
    --emulate) echo "test.sh: --emulate does not exist yet: only instruction sets of this CPU are run" >&2; exit 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
[ "$compiler" = gcc ] || [ "$compiler" = clang ] || { echo "test.sh: --compiler gcc or clang" >&2; exit 2; }

# Bare names: meson finds them, and CC and CXX are what the consumers' programs are built with.
use_clang() { export CC=clang-19 CXX=clang++-19; }
use_gcc() { export CC=gcc CXX=g++; }
use_$compiler

clang_packages=(clang-19 libclang-rt-19-dev libomp-19-dev)
need_packages "${build_packages[@]}" doctest-dev libbenchmark-dev cmake binutils python3 python3-numpy "${clang_packages[@]}"

options=(-Dtests=true -Dbench=true)
case $mode in
  plain)
    build=build
    [ $compiler = gcc ] || build=build-clang
    configure $build "${options[@]}"
    ;;
  address)
    build=build-sanitize
    [ $compiler = gcc ] || build=build-sanitize-clang
    # b_lundef: clang leaves the sanitizer's symbols to the program.
    configure $build "${options[@]}" -Dbench=false -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
    ;;
  thread)
    # libgomp's barriers are unknown to ThreadSanitizer, which would call every parallel loop a race; libomp tells it by Archer.
    use_clang
    build=build-tsan
    configure $build "${options[@]}" -Dbench=false -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
    ;;
esac
ninja -C $build "${jobs[@]}"

suite=(/usr/bin/python3 tools/run_suite.py $build)
case $mode in
  plain)
    use_clang
    configure build-fuzz -Dtests=true -Dbench=false -Dtools=false -Dfuzz=true -Dbuildtype=debugoptimized \
      -Db_sanitize=address,undefined -Db_lundef=false -Dcpp_args=-fsanitize=fuzzer-no-link
    ninja -C build-fuzz "${jobs[@]}" tests/fuzz/fuzz_attention
    use_$compiler
    "${suite[@]}" --fuzz build-fuzz/tests/fuzz/fuzz_attention
    ;;
  address)
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    "${suite[@]}" --no-checks
    ;;
  thread)
    export OMP_TOOL_LIBRARIES=libarcher.so TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1
    "${suite[@]}" --no-checks --only-suite threads
    ;;
esac
