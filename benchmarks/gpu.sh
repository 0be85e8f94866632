#!/usr/bin/env bash
# Everything on the GPUs of this machine, one or several, in at most 8 minutes and without a network: builds Tandem with
# its GPU module, runs tests/gpu, `tandem test --gpus` and the measurements, and, with the time that is left, the other
# tests. The most important comes first, and each part writes its result when it has it, so that a run that is cut off
# keeps what it found: benchmarks/results/GPU-NAME.json, and a table on standard output. Uses what is there: LibTorch of
# TANDEM_LIBTORCH, of .deps/, or of `python3 -c 'import torch'`; other libraries where CMake finds them
# (CMAKE_PREFIX_PATH counts). The comparison with PyTorch needs a python3 with torch and accelerate.
#
# For trying this script where there is no GPU: TANDEM_GPU_RUNNER is a command before each program, and nothing is built.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deadline=$((SECONDS + ${TANDEM_GPU_SECONDS:-470}))
build=${TANDEM_GPU_BUILD:-build-gpu}
runner=${TANDEM_GPU_RUNNER:-}
mkdir -p "$build/logs"
say() { echo "gpu.sh: $* ($((deadline - SECONDS)) s left)" >&2; }
left() { local s=$((deadline - SECONDS)); echo $((s < $1 ? (s > 1 ? s : 1) : $1)); }

build_programs() {
  local libtorch=${TANDEM_LIBTORCH:-$PWD/.deps/libtorch-2.11.0/torch}
  [[ -e $libtorch/lib/libtorch_cuda.so ]] ||
    libtorch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 1
  say "building in $build with LibTorch of $libtorch"
  if ! { timeout "$(left 300)" cmake --preset release -B "$build" -DTANDEM_CUDA=ON "-DTANDEM_LIBTORCH=$libtorch" &&
    timeout "$(left 300)" ninja -C "$build" tandem_cuda train tandem_tool gpu session tandem_gpu_tests; } >"$build/logs/gpu.log" 2>&1; then
    tail -n 30 "$build/logs/gpu.log" >&2
    say "the build failed; the whole log is in $build/logs/gpu.log"
    exit 1
  fi
}
[[ -n $runner ]] || build_programs

say "tests/gpu with 1, 2, 4 and 8 ranks"
# shellcheck disable=SC2086  # the runner is a command with arguments
timeout "$(left 120)" $runner "$build/tests/tandem_gpu_tests" >"$build/logs/tests-gpu.log" 2>&1
gpu_tests=$?
grep -v '^ok' "$build/logs/tests-gpu.log" >&2
((gpu_tests == 77)) && exit 77

say "tandem test --gpus"
# shellcheck disable=SC2086
timeout "$(left 150)" $runner "$build/apps/tandem" test --gpus --timeout 60 --report "$build/logs/gpus.json" \
  >"$build/logs/tandem-test.log" 2>&1
gpus=$?
cat "$build/logs/tandem-test.log" >&2

say "measuring"
python3 benchmarks/gpu_report.py "$build" "$gpu_tests" "$deadline" $SECONDS
report=$?

tests=0
if [[ -z $runner ]]; then
  say "the other tests"
  # But for those that fetch packages.
  timeout "$(left 300)" nice ninja -k 0 -C "$build" >"$build/logs/all.log" 2>&1 ||
    say "not all tests could be built: $build/logs/all.log"
  timeout "$(left 150)" ctest --test-dir "$build" -j "$(nproc)" -LE python --timeout 120 --output-on-failure >"$build/logs/tests.log" 2>&1
  tests=$?
  tail -n 15 "$build/logs/tests.log" >&2
  python3 benchmarks/gpu_report.py --tests "$tests" "$build"
fi
say "done"
((gpu_tests == 0 && gpus == 0 && tests == 0 && report == 0))
