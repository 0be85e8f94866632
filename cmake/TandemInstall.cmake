# `cmake --install`: the library, its headers, what find_package(Tandem) and pkg-config read, and the programs, where
# they are built. A copy can be moved.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
find_package(LibTorch REQUIRED)  # for its version

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Tandem)
set(libraries tandem tandem_core)
if(TARGET tandem_shared)
  list(APPEND libraries tandem_shared)
endif()
set_target_properties(tandem_core PROPERTIES EXPORT_NAME core)
install(TARGETS ${libraries} EXPORT TandemTargets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT TandemTargets NAMESPACE Tandem:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tandem DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/NOTICE
        DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/tandem)
if(TARGET train)
  install(TARGETS train tandem_tool DESTINATION ${CMAKE_INSTALL_BINDIR})
  set_target_properties(
    train tandem_tool PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}/libtorch/lib;${TANDEM_LIBTORCH}/lib")
endif()
if(TARGET tandem_cuda)
  install(TARGETS tandem_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/TandemConfig.cmake.in TandemConfig.cmake
                              INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(TandemConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/TandemConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/TandemConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindDeflate.cmake ${CMAKE_CURRENT_LIST_DIR}/FindLibTorch.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindWebP.cmake
              ${CMAKE_CURRENT_LIST_DIR}/TandemPrecompileHeaders.cmake
        DESTINATION ${package_dir})

# From the .pc file's own folder, so that it can be moved.
file(RELATIVE_PATH prefix_of_pc /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${CMAKE_CURRENT_LIST_DIR}/tandem.pc.in tandem.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tandem.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(TARGET tandem_shared)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/tandem-c.pc.in tandem-c.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tandem-c.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
