#!/usr/bin/env bash
# Profiles a program with Nsight Systems and prints a summary:
#   profiles/profile-nsys.sh build/apps/train --gpus 8 --max-steps 60
# Captures steps 20 to 40 (TANDEM_NVTX_STEPS=20:40) and writes tandem.nsys-rep (TANDEM_PROFILE=path without extension).
# The options are in nsys.options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require_tool nsys nsight-systems "$@"

rm -f "$report.nsys-rep" "$report.sqlite"
nsys profile --command-file="$folder/nsys.options" --output="$report" "$@"
if [[ ! -e $report.nsys-rep ]]; then
  say "nothing was captured: did the program end before step ${TANDEM_NVTX_STEPS%:*}, or was Tandem built without NVTX?"
  exit 1
fi

# Where the ranks' time goes; which kernels, copies and calls; then the expert rules: idle GPUs, calls that wait.
nsys stats --force-export=true --report=nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum,cuda_gpu_mem_time_sum,cuda_api_sum \
  "$report.nsys-rep" || say "a part of the summary is missing, see above"
nsys analyze --rule=gpu_gaps,gpu_time_util,cuda_api_sync,cuda_memcpy_async,cuda_memcpy_sync "$report.nsys-rep" ||
  say "a part of the summary is missing, see above"
echo "the whole timeline: nsys-ui $report.nsys-rep"
