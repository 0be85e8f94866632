# What the GPU module is made with: nvcc 13, CUDA's runtime and NCCL. nvcc is that of TANDEM_CUDA_ROOT alone if that is
# set; else of PATH, /usr/local/cuda, or what tools/setup.sh has fetched from PyPI. NCCL is LibTorch's own if it came
# with it; else it lies in the toolkit, in PyPI's folder beside it, or where the system has libraries.
#
# Makes CudaToolkit13_NVCC, CudaToolkit13_INCLUDE_DIRS, CudaToolkit13_RUNTIME_LIBRARY and CudaToolkit13_NCCL_LIBRARY.
# Nothing is kept in the cache: looking costs milliseconds, and another TANDEM_CUDA_ROOT counts at once.

if(TANDEM_CUDA_ROOT)
  set(candidates ${TANDEM_CUDA_ROOT}/bin/nvcc)
else()
  find_program(nvcc_of_path nvcc NO_CACHE)
  set(candidates /usr/local/cuda/bin/nvcc ${PROJECT_SOURCE_DIR}/.deps/cuda-13.0/nvidia/cu13/bin/nvcc)
  if(nvcc_of_path)
    list(PREPEND candidates ${nvcc_of_path})
  endif()
endif()
set(CudaToolkit13_NVCC)
foreach(candidate ${candidates})
  execute_process(COMMAND ${candidate} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(text MATCHES "release (13\\.[0-9]+)")
    set(CudaToolkit13_NVCC ${candidate})
    set(CudaToolkit13_VERSION ${CMAKE_MATCH_1})
    break()
  endif()
endforeach()

if(CudaToolkit13_NVCC)
  file(REAL_PATH ${CudaToolkit13_NVCC} nvcc)
  cmake_path(GET nvcc PARENT_PATH root)
  cmake_path(GET root PARENT_PATH root)
  set(nccl ${TANDEM_LIBTORCH}/../nvidia/nccl ${root} ${root}/../nccl)
  find_path(CudaToolkit13_RUNTIME_INCLUDE_DIR cuda_runtime_api.h PATHS ${root}/include NO_DEFAULT_PATH NO_CACHE)
  find_library(CudaToolkit13_RUNTIME_LIBRARY NAMES cudart libcudart.so.13 PATHS ${root}/lib64 ${root}/lib
               NO_DEFAULT_PATH NO_CACHE)
  find_path(CudaToolkit13_NCCL_INCLUDE_DIR nccl.h HINTS ${nccl} PATH_SUFFIXES include NO_CACHE)
  find_library(CudaToolkit13_NCCL_LIBRARY NAMES nccl libnccl.so.2 NAMES_PER_DIR HINTS ${nccl} PATH_SUFFIXES lib64 lib
               NO_CACHE)
  set(CudaToolkit13_INCLUDE_DIRS ${CudaToolkit13_RUNTIME_INCLUDE_DIR} ${CudaToolkit13_NCCL_INCLUDE_DIR})
  list(REMOVE_DUPLICATES CudaToolkit13_INCLUDE_DIRS)
endif()

# In words, for messages.
set(CudaToolkit13_MISSING)
if(NOT CudaToolkit13_NVCC)
  list(JOIN candidates ", " text)
  set(CudaToolkit13_MISSING "no nvcc of CUDA 13 (looked for ${text})")
elseif(NOT CudaToolkit13_RUNTIME_INCLUDE_DIR OR NOT CudaToolkit13_RUNTIME_LIBRARY)
  set(CudaToolkit13_MISSING "no CUDA runtime with its headers (looked in ${root}, where nvcc is)")
elseif(NOT CudaToolkit13_NCCL_INCLUDE_DIR OR NOT CudaToolkit13_NCCL_LIBRARY)
  list(JOIN nccl ", " text)
  set(CudaToolkit13_MISSING "no NCCL with nccl.h (looked in ${text}, and where the system has libraries)")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  CudaToolkit13
  REQUIRED_VARS CudaToolkit13_NVCC CudaToolkit13_RUNTIME_INCLUDE_DIR CudaToolkit13_RUNTIME_LIBRARY
                CudaToolkit13_NCCL_INCLUDE_DIR CudaToolkit13_NCCL_LIBRARY
  VERSION_VAR CudaToolkit13_VERSION
  REASON_FAILURE_MESSAGE
    "The GPU module cannot be built: ${CudaToolkit13_MISSING}. Install CUDA 13 and NCCL, set TANDEM_CUDA_ROOT to the folder that holds bin/nvcc, run TANDEM_CUDA_TOOLKIT=pypi tools/setup.sh, or build with TANDEM_CUDA=OFF")
