# The same objects as one shared library, which shows what is Tandem's and nothing of what it holds.
add_library(tandem_shared SHARED ../quick_build.cpp)
add_library(Tandem::tandem_shared ALIAS tandem_shared)
target_include_directories(tandem_shared INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
target_compile_features(tandem_shared INTERFACE cxx_std_20)
target_link_libraries(tandem_shared PUBLIC LibTorch::cpu Threads::Threads
                                    PRIVATE $<BUILD_INTERFACE:tandem> $<BUILD_INTERFACE:tandem_core>)
target_link_options(tandem_shared PRIVATE LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/exports.map
                                          LINKER:-z,nodelete)  # LibTorch keeps operators that Tandem has registered
# Hosts in other languages load it, and nothing else tells them where LibTorch is.
set_target_properties(tandem_shared PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/libtorch/lib;${TANDEM_LIBTORCH}/lib"
                                               LINK_LIBRARY_OVERRIDE WHOLE_ARCHIVE,tandem,tandem_core
                                               LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/exports.map
                                               VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
