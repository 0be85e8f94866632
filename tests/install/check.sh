#!/usr/bin/env bash
# Installs the build BUILD, moves the copy, and builds users' programs against it: with find_package, static and shared,
# in Release and Debug, and with pkg-config, in C++ and C. Usage: check.sh BUILD CXX
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/consumer" && pwd)
build=$1
cxx=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/moved"

run() {
  local said
  said=$("$1")
  [[ $said == "tandem 0.1.0 trained to 3.000" ]] || { echo "$1 said: $said" >&2; exit 1; }
  echo "$1: $said"
}

for type in Release Debug; do
  cmake -S "$source" -B "$work/$type" -G Ninja -DCMAKE_BUILD_TYPE=$type -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_PREFIX_PATH="$work/moved" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  ninja -C "$work/$type" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
  run "$work/$type/one_file"
  run "$work/$type/one_file_shared"
done

# What the program exports would get in the way of others in its process.
if nm -DC --defined-only "$work/Release/one_file" | grep -F ' tandem::'; then
  echo "a program shows Tandem's symbols" >&2
  exit 1
fi
if nm -DC --defined-only "$work/moved"/lib*/libtandem_shared.so | grep -vE ' (tandem|typeinfo( name)? for tandem|v?table for tandem|VTT for tandem|guard variable for tandem|.*tandem::)' | grep -E ' [TDB] '; then
  echo "the shared library shows what is not Tandem's" >&2
  exit 1
fi

export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$work/moved" -name tandem.pc)")
"$cxx" "$source/main.cpp" $(pkg-config --cflags --libs tandem) -o "$work/by_pkg_config"
run "$work/by_pkg_config"
cat >"$work/host.c" <<'C'
#include <stdio.h>
#include <tandem/c.h>
int main(void) {
  printf("tandem %s trained to 3.000\n", tandem_version());
  return 0;
}
C
"${CC:-cc}" "$work/host.c" $(pkg-config --cflags --libs tandem-c) -o "$work/host"
run "$work/host"
# As other languages load it: on its own.
python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1]).tandem_version' "$(find "$work/moved" -name libtandem_shared.so)"
