#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test on every instruction set of this CPU; with --emulate on the others too. The last line is
# "N passed, N failed, N skipped"; the exit status is 0 only if nothing failed and everything that should run did.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

usage() {
  cat << 'END'
tools/test.sh [--compiler gcc|clang] [--emulate [--brief] [--emulate-avx512] | --sanitize | --thread-sanitize] [--jobs N]

  --compiler clang   build with clang++-19 rather than g++
  --emulate          also the instruction sets that this CPU lacks: Arm's NEON, SVE and SVE2 (cross-built with g++) under
                     qemu-user, AVX-512 under Bochs
  --brief            with --emulate: each target at one vector length, and but for NEON without the slowest cases
  --emulate-avx512   with --emulate: AVX-512 under Bochs even if this CPU has it
  --sanitize         the suite under AddressSanitizer and UndefinedBehaviorSanitizer
  --thread-sanitize  the suite under ThreadSanitizer (clang, libomp and its Archer)
  --jobs N           parallel compilations
END
}

fail_usage() {
  echo "test.sh: $1" >&2
  usage >&2
  exit 2
}

compiler=gcc mode=plain emulate= brief= avx512= jobs=()
while [ $# -gt 0 ]; do
  case $1 in
    --compiler | --jobs)
      [ $# -gt 1 ] || fail_usage "$1 wants a value"
      if [ "$1" = --jobs ]; then jobs=(-j "$2"); else compiler=$2; fi
      shift
      ;;
    --sanitize) mode=address ;;
    --thread-sanitize) mode=thread ;;
    --emulate) emulate=1 ;;
    --brief) brief=1 ;;
    --emulate-avx512) avx512=1 ;;
    -h | --help) usage; exit 0 ;;
    *) fail_usage "unknown option $1" ;;
  esac
  shift
done
[ -z "$avx512" ] || [ -n "$emulate" ] || fail_usage "--emulate-avx512 goes with --emulate"
[ -z "$brief" ] || [ -n "$emulate" ] || fail_usage "--brief goes with --emulate"
if [ -n "$emulate" ]; then
  [ $mode = plain ] || fail_usage "--emulate is not for sanitizers"
  [ "$(uname -m)" = x86_64 ] || fail_usage "--emulate is for x86-64: this is $(uname -m)"
fi
[ "$compiler" = gcc ] || [ "$compiler" = clang ] || fail_usage "--compiler gcc or clang"

# Bare names: meson finds them, and CC and CXX are what the consumers' programs are built with.
use_clang() { export CC=clang-19 CXX=clang++-19; }
use_gcc() { export CC=gcc CXX=g++; }
use_$compiler

clang_packages=(clang-19 libclang-rt-19-dev libomp-19-dev)
need_packages "${build_packages[@]}" doctest-dev libbenchmark-dev cmake binutils python3 python3-numpy python3-matplotlib "${mpi_packages[@]}" "${clang_packages[@]}"

options=(-Dtests=true -Dbench=true -Dmpi=enabled)
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

if [ -n "$emulate" ]; then
  need_packages "${aarch64_packages[@]}"
  [ -f build-aarch64/build.ninja ] || configure build-aarch64 --cross-file tools/cross-aarch64.ini -Dbench=false -Dtools=false
  ninja -C build-aarch64 "${jobs[@]}"
fi

suite=(/usr/bin/python3 tools/run_suite.py $build)
case $mode in
  plain)
    use_clang
    # Sanitized kernels take minutes to compile: those of AVX3, AVX2 and the fallback only.
    configure build-fuzz -Dtests=true -Dbench=false -Dtools=false -Dfuzz=true -Dbuildtype=debugoptimized \
      -Db_sanitize=address,undefined -Db_lundef=false \
      "-Dcpp_args=-fsanitize=fuzzer-no-link -DHWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_SSE4|HWY_AVX3_DL)"
    ninja -C build-fuzz "${jobs[@]}" tests/fuzz/fuzz_params tests/fuzz/fuzz_layer
    use_$compiler
    [ -z "$emulate" ] || suite+=(--emulate build-aarch64)
    [ -z "$brief" ] || suite+=(--brief)
    [ -z "$avx512" ] || suite+=(--emulate-avx512)
    "${suite[@]}" --fuzz build-fuzz/tests/fuzz/fuzz_params build-fuzz/tests/fuzz/fuzz_layer
    ;;
  address)
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 FOVEA_TEST_SCALE=0.25
    "${suite[@]}" --no-checks
    ;;
  thread)
    OMP_TOOL_LIBRARIES=$(clang-19 -print-file-name=libarcher.so)
    # libomp and libstdc++ are not instrumented. A tenth of the random cases: what is shared is the same in all of them.
    export OMP_TOOL_LIBRARIES TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 FOVEA_TEST_SCALE=0.1
    "${suite[@]}" --no-checks
    ;;
esac
