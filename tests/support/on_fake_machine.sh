#!/usr/bin/env bash
# Runs a program where there seem to be eight GPUs: on_fake_machine.sh MODULE DRIVER PROGRAM [ARGUMENT...]
set -euo pipefail
machine=$(mktemp -d)
trap 'rm -rf "$machine"' EXIT
cp "$1" "$machine/libtandem_cuda.so"
cp "$2" "$machine/libcuda.so.1"
cp "$3" "$machine/program"
shift 3
LD_LIBRARY_PATH=$machine "$machine/program" "$@"
