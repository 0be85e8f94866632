#!/usr/bin/env bash
# Builds users' programs against copies of the build BUILD: with find_package, static and shared, in Release (with
# precompiled headers) against the unpacked .tar.gz of cpack, in Debug against an installed copy that was moved, beside
# find_package(Torch), and with pkg-config, in C++ and C. Configures them with Tandem's sources too. Looks at what the
# packages hold and depend on. Usage: check.sh BUILD CXX [--all]. Without --all the programs in Debug
# and beside find_package(Torch) are only configured.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/consumer" && pwd)
build=$1
cxx=$2
all=${3:-}
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

configure() {
  local to=$work/$1
  shift
  cmake -S "$source" -B "$to" -G Ninja -DCMAKE_CXX_COMPILER="$cxx" "$@" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
}

tandem=$(cd "$source/../../.." && pwd)
libtorch=$(sed -n 's/^TANDEM_LIBTORCH:PATH=//p' "$build/CMakeCache.txt")
for file in LICENSE NOTICE; do cmp "$tandem/$file" "$work/moved/share/doc/tandem/$file"; done

# LibTorch in the copy's lib/libtorch, which goes before the one that Tandem was built with.
cpack --config "$build/CPackConfig.cmake" -B "$work/packages" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mkdir -p "$work/tar" "$work/tar/lib/libtorch"
tar -xzf "$work"/packages/tandem-*.tar.gz -C "$work/tar" --strip-components=1
cp -rs "$libtorch/lib" "$libtorch/include" "$work/tar/lib/libtorch"
[[ ! -e $libtorch/../nvidia ]] || ln -s "$(realpath "$libtorch/../nvidia")" "$work/tar/lib/nvidia"

for type in Release Debug; do
  copy=$work/moved precompiled=OFF
  [[ $type == Debug ]] || copy=$work/tar precompiled=ON
  configure $type -DCMAKE_BUILD_TYPE=$type -DCMAKE_PREFIX_PATH="$copy" -DPRECOMPILED=$precompiled -DCMAKE_CXX_FLAGS=-H
  [[ $type == Release || $all ]] || continue
  ninja -C "$work/$type" >"$work/log" 2>&1 || { grep -v '^[.!x]* /' "$work/log" | tail -n 40 >&2; exit 1; }
  # -H has the compiler list what it reads, and marks what is precompiled.
  if [[ $precompiled == ON ]] && ! grep '^! .*cmake_pch\.hxx\.gch' "$work/log" >/dev/null; then
    echo "main.cpp was compiled without the precompiled headers" >&2
    exit 1
  fi
  run "$work/$type/one_file"
  run "$work/$type/one_file_shared"
done

# As a part of the user's project, which takes as long to build as Tandem; here only that it can be.
configure added -DADD_SUBDIRECTORY="$tandem" -DTANDEM_LIBTORCH="$libtorch" -DPRECOMPILED=ON
ninja -C "$work/added" -n one_file | grep 'compiled\.dir/cmake_pch\.hxx\.gch' >/dev/null ||
  { echo "add_subdirectory does not precompile headers" >&2; exit 1; }
if commit=$(git -C "$tandem" rev-parse HEAD 2>/dev/null); then
  configure fetched -DFETCH="$tandem" -DFETCH_TAG="$commit" -DTANDEM_LIBTORCH="$libtorch"
  ninja -C "$work/fetched" -n one_file >/dev/null
fi
# LibTorch's own package wants CUDA's compiler.
if command -v nvcc >/dev/null; then
  configure with_torch -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$work/moved" -DWITH_TORCH="$libtorch"
  if [[ $all ]]; then
    ninja -C "$work/with_torch" one_file >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
    run "$work/with_torch/one_file"
  fi
  configure added_with_torch -DADD_SUBDIRECTORY="$tandem" -DWITH_TORCH="$libtorch"
  ninja -C "$work/added_with_torch" -n one_file >/dev/null
fi

# What the program exports would get in the way of others in its process.
check_hidden() {
  if nm -DC --defined-only "$1" | grep -F ' tandem::'; then
    echo "$1 shows Tandem's symbols" >&2
    exit 1
  fi
}
check_hidden "$work/Release/one_file"
if nm -DC --defined-only "$work/moved"/lib*/libtandem_shared.so | grep -vE ' (tandem|typeinfo( name)? for tandem|v?table for tandem|VTT for tandem|guard variable for tandem|.*tandem::)' | grep -E ' [TDB] '; then
  echo "the shared library shows what is not Tandem's" >&2
  exit 1
fi

export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$work/moved" -name tandem.pc)")
"$cxx" "$source/main.cpp" $(pkg-config --cflags --libs tandem) -o "$work/by_pkg_config"
run "$work/by_pkg_config"
check_hidden "$work/by_pkg_config"
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

"$(dirname "${BASH_SOURCE[0]}")/packages.sh" "$work" "$libtorch"
