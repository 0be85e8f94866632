# `cpack` in the build folder: what `cmake --install` installs, as a .tar.gz and, where Debian's tools for it are there,
# as a .deb. LibTorch is in neither: docs/embedding.md says where an installed copy looks for it.
set(CPACK_GENERATOR TGZ)
find_program(dpkg_shlibdeps dpkg-shlibdeps NO_CACHE)
find_program(file_command file NO_CACHE)
if(dpkg_shlibdeps AND file_command)
  list(APPEND CPACK_GENERATOR DEB)
endif()

set(CPACK_PACKAGE_NAME tandem)
set(CPACK_PACKAGE_VENDOR "The Tandem authors")
set(CPACK_PACKAGE_CONTACT "The Tandem authors <tandem@localhost>" CACHE STRING
    "Whom users of the packages write to: set it if you give them to others")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Trains LibTorch models on all GPUs or cores of a machine from one process")
set(CPACK_PACKAGE_FILE_NAME tandem-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES ON)
set(CPACK_VERBATIM_VARIABLES ON)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
# Depends is what programs and shared libraries are linked with; those of LibTorch and CUDA belong to no package.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${TANDEM_LIBTORCH}/lib)
if(TARGET tandem_cuda)
  get_target_property(linked tandem_cuda LINK_LIBRARIES)
  list(FILTER linked INCLUDE REGEX "^/")
  foreach(library ${linked})
    cmake_path(GET library PARENT_PATH folder)
    list(APPEND CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${folder})
  endforeach()
endif()
# What building a program against it needs beside LibTorch: the packages of what TandemConfig.cmake looks for.
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS
    "cmake (>= 3.25), g++ (>= 4:12), pkg-config, zlib1g-dev, libdeflate-dev, libjpeg-dev, libpng-dev, libwebp-dev, libtbb-dev")
include(CPack)
