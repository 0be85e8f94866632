#!/usr/bin/env bash
# Looks at the packages in WORK/packages. The .tar.gz is unpacked in WORK/tar, with a LibTorch of its own, and WORK/Release
# was configured with it. Its programs run; the .deb holds the same, and depends on what that is linked with.
# Part of check.sh. Usage: packages.sh WORK LIBTORCH
set -euo pipefail
work=$1
libtorch=$2
data=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/data/mnist

fail() {
  echo "packages: $*" >&2
  exit 1
}

# Where the copy's programs, and what is built against it, find LibTorch.
for binary in bin/train bin/tandem lib/libtandem_shared.so; do
  ldd "$work/tar/$binary" | grep "libtorch_cpu.so => $work/tar/.*libtorch/lib/libtorch_cpu.so" >/dev/null ||
    fail "$binary does not take the LibTorch in lib/libtorch"
done
grep -q "LibTorch_CPU_LIBRARY:FILEPATH=$work/tar/lib/libtorch" "$work/Release/CMakeCache.txt" ||
  fail "find_package(Tandem) does not take the LibTorch in lib/libtorch"

[[ $("$work/tar/bin/tandem" plan --length 13 --batch-size 4 --ranks 2) == *"step 1  8 9 10 11  |  12 0 1 2"* ]]
"$work/tar/bin/train" --cpu 2 --max-steps 2 --limit-train-samples 256 --quiet --data-dir "$data" >/dev/null

debs=("$work"/packages/*.deb)
if [[ ! -e ${debs[0]} ]]; then
  [[ -z ${CI:-} ]] || fail "there is no .deb: install dpkg-dev and file"
  echo "no .deb: dpkg-dev or file is not installed"
  exit 0
fi
deb=${debs[0]}
dpkg-deb -x "$deb" "$work/deb"
rm -rf "$work/tar/lib/libtorch" "$work/tar/lib/nvidia"
diff -r "$work/tar" "$work/deb/usr" || fail "the .deb and the .tar.gz differ"
! find "$work/deb" -name 'libtorch*' -o -name 'libc10*' | grep . || fail "LibTorch is in the package"

depends=" $(dpkg-deb -f "$deb" Depends | tr ',|' '\n\n' | sed 's/ *(.*//' | xargs) "
[[ $depends == *" libc6 "* ]] || fail "no libc6 in Depends:$depends"
for binary in "$work"/deb/usr/bin/* "$work"/deb/usr/lib/*.so; do
  for needed in $(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    # Nothing for LibTorch, and for CUDA from PyPI.
    packages=$(dpkg -S "*/$needed" 2>/dev/null | sed 's/:.*//' | sort -u) || continue
    for package in $packages; do [[ $depends != *" $package "* ]] || continue 2; done
    fail "$(basename "$binary") needs $needed of $packages, which is not in Depends:$depends"
  done
done

# The packages of the libraries that programs are linked with: recommended, or what a recommended one stands for.
recommends=$(dpkg-deb -f "$deb" Recommends | tr ',' '\n' | sed 's/ *(.*//' | xargs)
stands_for=$(dpkg-query -W -f '${Depends},' $recommends 2>/dev/null | tr ',|' '\n\n' | sed 's/ *(.*//' | xargs || true)
recommends=" $recommends $stands_for "
linked=$(ninja -C "$work/Release" -t commands one_file | tail -n 1 | grep -oE '/usr/lib/[^ ]*\.so' | sort -u)
[[ -n $linked ]] || fail "the program is linked with no library of a package"
for library in $linked; do
  package=$(dpkg -S "$library" | sed 's/:.*//')
  [[ $recommends == *" $package "* ]] || fail "programs are linked with $library of $package, which is not in Recommends"
done
echo "packages: $(basename "$deb"):$depends"
