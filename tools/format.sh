#!/usr/bin/env bash
# Formats our own sources; with --check only says which are not formatted, and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mapfile -t sources < <(find include src apps tests benchmarks examples -name '*.h' -o -name '*.cpp' -o -name '*.cu')
if [[ ${1:-} == --check ]]; then
  clang-format --dry-run -Werror "${sources[@]}"
else
  clang-format -i "${sources[@]}"
fi
