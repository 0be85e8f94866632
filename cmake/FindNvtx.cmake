# The header-only NVTX 3: from the set-up's package nvidia-nvtx, a CUDA toolkit, or the system. Nvtx_INCLUDE_DIR; where
# there is none, Tandem has no ranges for NVTX tools.
file(GLOB candidates ${TANDEM_LIBTORCH}/../nvidia/*/include)
find_path(Nvtx_INCLUDE_DIR nvtx3/nvToolsExtPayload.h HINTS ${candidates} PATHS /usr/local/cuda/include)
mark_as_advanced(Nvtx_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Nvtx REQUIRED_VARS Nvtx_INCLUDE_DIR)
