#!/usr/bin/env bash
# Everything on the GPUs of this machine, in at most 8 minutes and without a network: builds Tandem with its GPU module,
# runs tests/gpu and the other tests, measures, and writes benchmarks/results/GPU-NAME.json and a table to standard
# output. Uses what is there: LibTorch of TANDEM_LIBTORCH, of .deps/, or of `python3 -c 'import torch'`; other libraries
# where CMake finds them (CMAKE_PREFIX_PATH counts). The comparison with PyTorch needs a python3 with torch and accelerate.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deadline=$((SECONDS + ${TANDEM_GPU_SECONDS:-470}))
build=${TANDEM_GPU_BUILD:-build-gpu}
mkdir -p "$build/logs"
say() { echo "gpu.sh: $* ($((deadline - SECONDS)) s left)" >&2; }
left() { local s=$((deadline - SECONDS)); echo $((s < $1 ? (s > 1 ? s : 1) : $1)); }

libtorch=${TANDEM_LIBTORCH:-$PWD/.deps/libtorch-2.11.0/torch}
[[ -e $libtorch/lib/libtorch_cuda.so ]] ||
  libtorch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 1

say "building in $build with LibTorch of $libtorch"
if ! { timeout "$(left 300)" cmake --preset release -B "$build" -DTANDEM_CUDA=ON "-DTANDEM_LIBTORCH=$libtorch" &&
  timeout "$(left 300)" ninja -C "$build" tandem_cuda train gpu tandem_gpu_tests; } >"$build/logs/gpu.log" 2>&1; then
  tail -n 30 "$build/logs/gpu.log" >&2
  say "the build failed; the whole log is in $build/logs/gpu.log"
  exit 1
fi
# The other tests are compiled while the GPU is tested.
timeout "$(left 300)" nice ninja -k 0 -C "$build" >"$build/logs/all.log" 2>&1 &
rest=$!

say "tests/gpu with 1, 2, 4 and 8 ranks"
timeout "$(left 120)" "$build/tests/tandem_gpu_tests" >"$build/logs/tests-gpu.log" 2>&1
gpu_tests=$?
grep -v '^ok' "$build/logs/tests-gpu.log" >&2
if ((gpu_tests == 77)); then
  kill $rest 2>/dev/null
  exit 77
fi

wait $rest
built=$?
((built == 0)) || say "not all tests could be built: $build/logs/all.log"
say "tests"
# But for those that fetch packages.
timeout "$(left 150)" ctest --test-dir "$build" -j "$(nproc)" -LE python --timeout 120 --output-on-failure >"$build/logs/tests.log" 2>&1
tests=$?
tail -n 15 "$build/logs/tests.log" >&2

say "measuring"
python3 benchmarks/gpu_report.py "$build" "$gpu_tests" "$tests" "$deadline" $SECONDS
report=$?
say "done"
((gpu_tests == 0 && tests == 0 && report == 0))
