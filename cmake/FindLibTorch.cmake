# LibTorch from the PyPI wheel's `torch` folder or from an unpacked LibTorch zip: TANDEM_LIBTORCH names either.
#
# Makes LibTorch::cpu, and LibTorch::cuda where that library is there. The wheel's own TorchConfig.cmake is not used: it
# demands a CUDA toolkit, and makes every program load the CUDA libraries.

find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h
          PATHS ${TANDEM_LIBTORCH} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu PATHS ${TANDEM_LIBTORCH}/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 PATHS ${TANDEM_LIBTORCH}/lib NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda PATHS ${TANDEM_LIBTORCH}/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda PATHS ${TANDEM_LIBTORCH}/lib NO_DEFAULT_PATH)
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY
                 LibTorch_C10_CUDA_LIBRARY)

# Newer ones have it in the first of these files.
foreach(file torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(LibTorch_INCLUDE_DIR AND EXISTS ${LibTorch_INCLUDE_DIR}/${file} AND NOT LibTorch_VERSION)
    set(parts)
    foreach(part MAJOR MINOR PATCH)
      file(STRINGS ${LibTorch_INCLUDE_DIR}/${file} line REGEX "define TORCH_VERSION_${part} [0-9]+")
      string(REGEX REPLACE ".* ([0-9]+).*" "\\1" part "${line}")
      list(APPEND parts ${part})
    endforeach()
    list(JOIN parts "." LibTorch_VERSION)
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "TANDEM_LIBTORCH is '${TANDEM_LIBTORCH}'. Run tools/setup.sh, or set it to a LibTorch zip's folder or the torch folder of a wheel")

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  # The wheel's libraries find the CUDA runtime by their own rpath; the linker has to be told.
  file(GLOB cuda_runtime_dirs ${TANDEM_LIBTORCH}/../nvidia/*/lib)
  list(JOIN cuda_runtime_dirs ":" rpath_link)

  add_library(LibTorch::c10 SHARED IMPORTED)
  set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION ${LibTorch_C10_LIBRARY})
  target_include_directories(LibTorch::c10 SYSTEM INTERFACE ${LibTorch_INCLUDE_DIR}
                                                            ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include)

  add_library(LibTorch::cpu SHARED IMPORTED)
  set_target_properties(LibTorch::cpu PROPERTIES IMPORTED_LOCATION ${LibTorch_CPU_LIBRARY})
  target_link_libraries(LibTorch::cpu INTERFACE LibTorch::c10)
  if(rpath_link)
    target_link_options(LibTorch::cpu INTERFACE "LINKER:-rpath-link,${rpath_link}")
  endif()

  if(LibTorch_CUDA_LIBRARY AND LibTorch_C10_CUDA_LIBRARY)
    add_library(LibTorch::cuda SHARED IMPORTED)
    set_target_properties(LibTorch::cuda PROPERTIES IMPORTED_LOCATION ${LibTorch_CUDA_LIBRARY})
    target_link_libraries(LibTorch::cuda INTERFACE ${LibTorch_C10_CUDA_LIBRARY} LibTorch::cpu)
  endif()
endif()
