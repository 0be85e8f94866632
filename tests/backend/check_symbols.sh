#!/usr/bin/env bash
# The GPU module is loaded into any program: it shows only what Tandem looks up, and brings along what it uses of it.
set -euo pipefail
shown=$(nm -D --defined-only "$1" | awk '{print $3}' | sort | xargs)
[[ $shown == "tandem_cuda_module_version tandem_make_cuda_module" ]] || { echo "$1 shows: $shown" >&2; exit 1; }
missing=$(nm -D --undefined-only -C "$1" | grep -i tandem || true)
[[ -z $missing ]] || { echo "$1 misses: $missing" >&2; exit 1; }
readelf -d "$1" | grep -q 'NEEDED.*libtorch_cuda.so' || { echo "$1 does not load LibTorch's CUDA library" >&2; exit 1; }
