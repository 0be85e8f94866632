#!/usr/bin/env bash
# Builds targets of a preset, if they are out of date: tools/build.sh PRESET [TARGET...]
# One line says so; the full output is in the log that a failure names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=$1
shift
build=build
[[ $preset == release ]] || build=build-$preset
log=$build/logs/build.log

fail() {
  tail -n 30 "$log" >&2
  echo "tandem: $1 failed; the whole log is in $PWD/$log" >&2
  exit 1
}

# One build in a folder at a time.
mkdir -p "$build/logs"
exec 8>"$build/logs/lock"
flock 8

options=(-DTANDEM_UNITY_BUILD=ON)
[[ -n ${TANDEM_LIBTORCH:-} ]] && options+=("-DTANDEM_LIBTORCH=$TANDEM_LIBTORCH")
[[ -n ${TANDEM_CUDA_ROOT:-} ]] && options+=("-DTANDEM_CUDA_ROOT=$TANDEM_CUDA_ROOT")
[[ -n ${CI:-} ]] && options+=("-DTANDEM_WERROR=ON")
# A compiler for the GPU module may have come since.
if [[ ! -e $build/build.ninja || CMakePresets.json -nt $build/build.ninja || .deps/cuda-13.0 -nt $build/build.ninja || ${options[*]} != "$(cat "$build/logs/options" 2>/dev/null)" ]]; then
  echo "tandem: configuring $build" >&2
  cmake --preset "$preset" "${options[@]}" >"$log" 2>&1 || fail "configuring"
  echo "${options[*]}" >"$build/logs/options"
fi

# -n only looks. Its answer when all is up to date is one line.
[[ $(ninja -C "$build" -n "$@" 2>&1 | tail -n 1) == "ninja: no work to do." ]] && exit 0
echo "tandem: building $build" >&2
ninja -C "$build" "$@" >"$log" 2>&1 || fail "building"
