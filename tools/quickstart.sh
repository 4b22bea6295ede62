#!/usr/bin/env bash
# From a fresh clone to attention on real tensors: installs missing Debian packages, builds into build/, says what this CPU runs, and
# computes one layer of all-MiniLM-L6-v2 (tests/data), compared with the model's own result and with an evaluation in float64.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

need_packages "${build_packages[@]}"
[ -f build/build.ninja ] || configure build -Dtests=false -Dbench=false
ninja -C build

data=tests/data/minilm
echo
build/tools/fovea info
echo
build/tools/fovea attend --q ${data}_q.npy --k ${data}_k.npy --v ${data}_v.npy --mask ${data}_valid.npy \
  --expect ${data}_out.npy --expect-lse ${data}_lse.npy --tolerance 2e-6 --check
