#!/usr/bin/env bash
# Every public header compiles alone, with warnings as errors. Usage: headers.sh CXX LIBTORCH
set -euo pipefail
export CXX=$1 LIBTORCH
LIBTORCH=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../../include"
compile() {
  "$CXX" -std=c++20 -Wall -Wextra -Werror -fsyntax-only -I. -isystem "$LIBTORCH/include" \
    -isystem "$LIBTORCH/include/torch/csrc/api/include" -x c++ - <<<"#include \"$1\"" || { echo "$1 does not compile alone"; exit 1; }
}
export -f compile
find tandem -name '*.h' | sort | xargs -P "$(nproc)" -I{} bash -c 'compile {}'
