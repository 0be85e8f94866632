#!/usr/bin/env bash
# Checks that each folder of include/tandem and src includes only itself and what stands above it in the table of
# docs/internals.md, section 1, and that core includes nothing of LibTorch. Takes the tree to look at; without, this one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
layers=$(sed -n '/^## 1\./,/^## 2\./s/^| `\([a-z]*\)` .*/\1/p' docs/internals.md | tr '\n' ' ')
cd "${1:-.}"
find include/tandem src \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 | sort -z | xargs -0 awk -v layers="$layers" -F'[<">]' '
  BEGIN { for (n = split(layers, name, " "); n > 0; --n) place[name[n]] = n }
  FNR == 1 { folder = FILENAME; sub(/^(include\/tandem|src)\//, "", folder); in_folder = sub(/\/.*/, "", folder) }
  !in_folder || !/^ *# *include/ { next }
  { other = $2; sub(/^tandem\//, "", other); sub(/\/.*/, "", other) }
  (/"/ && $2 ~ /\// || $2 ~ /^tandem\//) && other !~ /^(c|version)\.h$/ && !(folder in place && other in place && place[other] <= place[folder]) ||
  folder == "core" && other ~ /^(torch|ATen|c10|caffe2|oneapi|tbb|nlohmann)$/ {
    print FILENAME ":" FNR ": " folder " includes " $2 ", which does not stand above it in docs/internals.md"; found = 1
  }
  END { exit found }' >&2
