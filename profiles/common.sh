# What the profile scripts share. To be sourced.

say() { echo "${0##*/}: $*" >&2; }

# Ends with a sentence unless the arguments name a tool that is there and a program that it can follow:
# require_tool TOOL PACKAGE ARGUMENT...
require_tool() {
  local tool=$1 package=$2
  shift 2
  if [[ $# -eq 0 ]]; then
    say "use: $0 PROGRAM [ARGUMENT...], such as $0 build/apps/train --gpus 8 --max-steps 60"
    exit 2
  fi
  if [[ $1 -ef $folder/../train ]]; then
    say "$1 sets up and builds before it trains, and $tool would follow that too; give the program, build/apps/train"
    exit 2
  fi
  if ! command -v "$tool" >/dev/null; then
    say "$tool is not installed (or not in PATH); it comes with a CUDA toolkit, or alone as NVIDIA's package $package"
    exit 1
  fi
}

# The steps that are captured; those before are warm-up. train opens the range that the tools wait for; a program of your
# own sets LaunchConfig::nvtx_capture.
export TANDEM_NVTX_STEPS=${TANDEM_NVTX_STEPS:-20:40}
if [[ ! $TANDEM_NVTX_STEPS =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]]; then
  say "TANDEM_NVTX_STEPS is '$TANDEM_NVTX_STEPS'; use FIRST:LAST, such as 20:40"
  exit 2
fi
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
report=${TANDEM_PROFILE:-$PWD/tandem}
