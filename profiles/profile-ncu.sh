#!/usr/bin/env bash
# Profiles the kernels of one rank (GPU 0) with Nsight Compute and prints them:
#   profiles/profile-ncu.sh build/apps/train --gpus 8 --max-steps 60
# Captures steps 20 to 40 (TANDEM_NVTX_STEPS=20:40) and writes tandem.ncu-rep (TANDEM_PROFILE=path without extension).
# The options are in ncu.options. Collectives are left out: a kernel that waits for other GPUs cannot be replayed alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require_tool ncu nsight-compute "$@"

mapfile -t options <"$folder/ncu.options"
rm -f "$report.ncu-rep"
ncu "${options[@]}" --export="$report" "$@"
if [[ ! -e $report.ncu-rep ]]; then
  say "nothing was captured: did the program end before step ${TANDEM_NVTX_STEPS%:*}, or was Tandem built without NVTX?"
  exit 1
fi
ncu --import="$report.ncu-rep" --page=details --print-summary=per-kernel
echo "every kernel: ncu-ui $report.ncu-rep"
