#!/usr/bin/env bash
# Sets up what building Tandem needs: system packages, LibTorch in .deps/, and on a machine with an NVIDIA driver and no
# CUDA 13 the compiler for the GPU module. With TANDEM_CUDA_TOOLKIT=pypi that comes on any machine; with TANDEM_CUDA_ROOT,
# the folder of a CUDA toolkit, it does not. ./train and ./check call it. `tools/setup.sh tests` installs what only tests
# want, which are skipped without.
# Safe to interrupt and to run twice at once. When nothing is missing it does next to nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.11.0
# Packages, each with a file that it brings, so that looking costs no time.
packages=(g++=/usr/bin/g++ cmake=/usr/bin/cmake ninja-build=/usr/bin/ninja git=/usr/bin/git pkg-config=/usr/bin/pkg-config
  'python3-venv=/usr/lib/python3*/ensurepip/__init__.py' zlib1g-dev=/usr/include/zlib.h
  libdeflate-dev=/usr/include/libdeflate.h libjpeg-dev=/usr/include/jpeglib.h libpng-dev=/usr/include/png.h
  libwebp-dev=/usr/include/webp/decode.h
  libcli11-dev=/usr/include/CLI/CLI.hpp 'catch2=/usr/include/catch2/catch*.hpp'
  nlohmann-json3-dev=/usr/include/nlohmann/json.hpp libsimdjson-dev=/usr/include/simdjson.h
  libcpp-httplib-dev=/usr/include/httplib.h
  libtbb-dev=/usr/include/oneapi/tbb.h libjs-dygraphs=/usr/share/javascript/dygraphs/dygraph.min.js)
# Other versions format, and warn, differently, so only CI insists.
[[ -z ${CI:-} ]] || packages+=(clang-format=/usr/bin/clang-format doxygen=/usr/bin/doxygen)
# With these cpack makes a .deb.
[[ -z ${CI:-} ]] || packages+=(dpkg-dev=/usr/bin/dpkg-shlibdeps file=/usr/bin/file)
# Launchers and networks of several machines on this one; a browser to look at reports with.
for_tests=(iproute2=/sbin/ip openmpi-bin=/usr/bin/mpirun munge=/usr/sbin/munged
  slurm-client=/usr/bin/srun slurmctld=/usr/sbin/slurmctld slurmd=/usr/sbin/slurmd)
# Ubuntu's does not run in a container.
[[ -e /etc/lsb-release ]] || for_tests+=(chromium=/usr/bin/chromium)
light=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-nvtx==13.0.85)
libtorch=.deps/libtorch-$torch_version
toolkit_packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  nvidia-cuda-runtime==13.0.96 nvidia-nccl-cu13==2.28.9)
toolkit=.deps/cuda-13.0
driver=/proc/driver/nvidia/version
log=.deps/logs/setup.log

say() { echo "tandem: $*" >&2; }

# Runs a command with its output in the log; on failure shows the end of it.
logged() {
  if ! "$@" >>"$log" 2>&1; then
    say "failed: $*"
    tail -n 20 "$log" >&2
    say "the whole log is in $PWD/$log"
    exit 1
  fi
}

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    compgen -G "${package#*=}" >/dev/null || echo "${package%%=*}"
  done
}

install_packages() {
  local missing as_root=(env DEBIAN_FRONTEND=noninteractive)
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || { say "install these first: ${missing[*]}"; exit 1; }
  if [[ $EUID -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
      say "system packages are missing; install them and run this again:"
      say "  sudo apt-get install ${missing[*]}"
      exit 1
    fi
    as_root=(sudo "${as_root[@]}")
  fi
  # One set-up of this machine at a time, whatever its clone: any file will do that they all see.
  exec 7<"$(command -v apt-get)"
  flock 7
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})); then
    say "installing ${missing[*]}"
    # After an interrupted apt. It fails while another program installs; apt-get waits for that one.
    "${as_root[@]}" dpkg --configure -a >>"$log" 2>&1 || true
    logged "${as_root[@]}" apt-get update
    logged "${as_root[@]}" apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=600 "${missing[@]}"
  fi
  exec 7<&-
}

# Into a folder of its own that is renamed when complete: an interrupted download is begun again.
install_from_pypi() {
  local folder=$1
  shift
  rm -rf .deps/venv "$folder.partial"
  logged python3 -m venv .deps/venv
  logged .deps/venv/bin/pip install --disable-pip-version-check --no-cache-dir --no-compile --target "$folder.partial" "$@"
  rm -rf .deps/venv "$folder"
  mv "$folder.partial" "$folder"
}

install_libtorch() {
  [[ -e $libtorch/torch/lib/libtorch_cpu.so ]] && return 0
  local what=(--no-deps "torch==$torch_version" "${light[@]}") kind="for CPU"
  if [[ -e $driver ]]; then
    what=("torch==$torch_version")
    kind="for GPU"
  fi
  say "installing LibTorch $torch_version ($kind) into $libtorch"
  install_from_pypi "$libtorch" "${what[@]}"
}

needs_toolkit() {
  [[ ! -e $toolkit ]] || return 1
  [[ ${TANDEM_CUDA_TOOLKIT:-} != pypi ]] || return 0
  [[ -e $driver && -z ${TANDEM_CUDA_ROOT:-} ]] || return 1
  local nvcc
  for nvcc in nvcc /usr/local/cuda/bin/nvcc; do
    ! "$nvcc" --version 2>/dev/null | grep -q "release 13\." || return 1
  done
}

install_toolkit() {
  needs_toolkit || return 0
  say "installing CUDA's compiler and NCCL into $toolkit"
  if ! (install_from_pypi "$toolkit" --no-deps "${toolkit_packages[@]}"); then
    [[ ${TANDEM_CUDA_TOOLKIT:-} != pypi ]] || exit 1
    say "going on without: CPU ranks need none of it"
  fi
}

if [[ -n ${TANDEM_LIBTORCH:-} && ! -e $TANDEM_LIBTORCH/lib/libtorch_cpu.so ]]; then
  say "TANDEM_LIBTORCH is '$TANDEM_LIBTORCH', which has no lib/libtorch_cpu.so; use the folder of a LibTorch zip or the torch folder of a wheel"
  exit 1
fi
if [[ ${1:-} != tests && -e ${TANDEM_LIBTORCH:-$libtorch/torch}/lib/libtorch_cpu.so && -z $(missing_packages) ]]; then
  needs_toolkit || exit 0
fi
mkdir -p .deps/logs
if [[ ${1:-} == tests ]]; then
  packages=("${for_tests[@]}")
  log=.deps/logs/setup-tests.log
  : >"$log"
  install_packages
  exit 0
fi
exec 9>.deps/lock
if ! flock -n 9; then
  say "waiting for another set-up in this folder"
  flock 9
fi
: >"$log"
install_packages
[[ -n ${TANDEM_LIBTORCH:-} ]] || install_libtorch
install_toolkit
