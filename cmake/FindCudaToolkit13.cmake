# What the GPU module is made with: nvcc 13, CUDA's runtime and NCCL. From TANDEM_CUDA_ROOT alone if that is set; else
# from PATH, /usr/local/cuda, or what tools/setup.sh has fetched from PyPI (nvidia/cu13 and nvidia/nccl beside it).
#
# Makes CudaToolkit13_NVCC, CudaToolkit13_INCLUDE_DIRS, CudaToolkit13_RUNTIME_LIBRARY and CudaToolkit13_NCCL_LIBRARY.

if(NOT CudaToolkit13_NVCC)
  set(candidates ${TANDEM_CUDA_ROOT}/bin/nvcc)
  if(NOT TANDEM_CUDA_ROOT)
    find_program(nvcc_of_path nvcc NO_CACHE)
    set(candidates ${nvcc_of_path} /usr/local/cuda/bin/nvcc ${PROJECT_SOURCE_DIR}/.deps/cuda-13.0/nvidia/cu13/bin/nvcc)
  endif()
  foreach(candidate ${candidates})
    execute_process(COMMAND ${candidate} --version OUTPUT_VARIABLE text ERROR_QUIET)
    if(text MATCHES "release (13\\.[0-9]+)")
      set(CudaToolkit13_NVCC ${candidate} CACHE FILEPATH "CUDA 13's compiler")
      set(CudaToolkit13_VERSION ${CMAKE_MATCH_1} CACHE STRING "")
      break()
    endif()
  endforeach()
endif()
if(CudaToolkit13_NVCC)
  file(REAL_PATH ${CudaToolkit13_NVCC} nvcc)
  cmake_path(GET nvcc PARENT_PATH root)
  cmake_path(GET root PARENT_PATH root)
endif()

# NCCL lies in the toolkit, in PyPI's folder beside it, or came with LibTorch for GPUs; or it is Debian's.
set(nccl ${root}/../nccl ${TANDEM_LIBTORCH}/../nvidia/nccl)
set(options NO_DEFAULT_PATH)
if(NOT TANDEM_CUDA_ROOT)
  set(options)
endif()
find_path(CudaToolkit13_RUNTIME_INCLUDE_DIR cuda_runtime_api.h PATHS ${root}/include NO_DEFAULT_PATH)
find_library(CudaToolkit13_RUNTIME_LIBRARY NAMES cudart libcudart.so.13 PATHS ${root}/lib64 ${root}/lib
             NO_DEFAULT_PATH)
find_path(CudaToolkit13_NCCL_INCLUDE_DIR nccl.h HINTS ${root} ${nccl} PATH_SUFFIXES include ${options})
find_library(CudaToolkit13_NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${root} ${nccl} PATH_SUFFIXES lib64 lib
             ${options})
set(CudaToolkit13_INCLUDE_DIRS ${CudaToolkit13_RUNTIME_INCLUDE_DIR} ${CudaToolkit13_NCCL_INCLUDE_DIR})
list(REMOVE_DUPLICATES CudaToolkit13_INCLUDE_DIRS)
mark_as_advanced(CudaToolkit13_NVCC CudaToolkit13_VERSION CudaToolkit13_RUNTIME_INCLUDE_DIR CudaToolkit13_RUNTIME_LIBRARY
                 CudaToolkit13_NCCL_INCLUDE_DIR CudaToolkit13_NCCL_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  CudaToolkit13
  REQUIRED_VARS CudaToolkit13_NVCC CudaToolkit13_RUNTIME_INCLUDE_DIR CudaToolkit13_RUNTIME_LIBRARY
                CudaToolkit13_NCCL_INCLUDE_DIR CudaToolkit13_NCCL_LIBRARY
  VERSION_VAR CudaToolkit13_VERSION
  REASON_FAILURE_MESSAGE
    "The GPU module needs CUDA 13 and NCCL: install the toolkit, set TANDEM_CUDA_ROOT to its folder, run TANDEM_CUDA_TOOLKIT=pypi tools/setup.sh, or build with TANDEM_CUDA=OFF")
