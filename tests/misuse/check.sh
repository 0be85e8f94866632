#!/usr/bin/env bash
# misuse.cpp does not compile, and the compiler says why, in few lines. Usage: check.sh CXX INCLUDE LIBTORCH
set -euo pipefail
cxx=$1 include=$2 libtorch=$3
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/misuse.cpp
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if "$cxx" -std=c++20 -fsyntax-only -fmax-errors=0 "-I$include" -isystem "$libtorch/include" \
  -isystem "$libtorch/include/torch/csrc/api/include" "$source" 2>"$said"; then
  echo "misuse.cpp compiles" >&2
  exit 1
fi
failed=0
missing() { echo "$1" >&2; failed=1; }
while IFS= read -r text; do
  grep -qF -- "$text" "$said" || missing "the compiler does not say: $text"
done < <(sed -n 's|^// expect: ||p' "$source")
# Each function is an error of its own: the compiler names a line of it.
mapfile -t begins < <(grep -n '^void ' "$source" | cut -d: -f1)
begins+=("$(($(wc -l <"$source") + 1))")
for ((i = 0; i + 1 < ${#begins[@]}; ++i)); do
  grep -o 'misuse\.cpp:[0-9]*' "$said" | cut -d: -f2 |
    awk -v first="${begins[i]}" -v next_one="${begins[i + 1]}" '$1 >= first && $1 < next_one { found = 1 } END { exit !found }' ||
    missing "no error for the function in line ${begins[i]}"
done
lines=$(wc -l <"$said")
misuses=$((${#begins[@]} - 1))
((lines <= 15 * misuses)) || missing "$lines lines of errors for $misuses misuses"
((failed == 0)) || { cat "$said" >&2; exit 1; }
