# tandem_add_tests(LAYER SOURCES NAME... LIBRARIES TARGET...): the tests of one layer, tests/LAYER/NAME_test.cpp, as one
# program whose test cases CTest runs one by one, each with a time limit: a hang is a failure. Files that include
# LibTorch are compiled four at a time as one, which takes about half the time.
include(Catch)

function(tandem_add_tests layer)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  list(TRANSFORM arg_SOURCES REPLACE "(.+)" "${CMAKE_SOURCE_DIR}/tests/${layer}/\\1_test.cpp" OUTPUT_VARIABLE sources)
  # A test that is not built passes unseen. Only looked at when configuring: CONFIGURE_DEPENDS would keep ninja busy.
  file(GLOB present ${CMAKE_SOURCE_DIR}/tests/${layer}/*_test.cpp)
  list(REMOVE_ITEM present ${sources})
  if(present)
    message(FATAL_ERROR "${present}: not listed in tests/CMakeLists.txt")
  endif()

  set(target tandem_${layer}_tests)
  add_executable(${target} ${sources})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(${target} PRIVATE ${arg_LIBRARIES} tandem_warnings tandem_catch_main)
  if(NOT layer STREQUAL core AND NOT layer STREQUAL report)  # which need no LibTorch
    target_link_libraries(${target} PRIVATE tandem_quick_build)
    target_precompile_headers(${target} REUSE_FROM tandem_quick_build)
  endif()
  if(NOT layer STREQUAL core)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
  endif()
  set(cost 0)
  if(layer STREQUAL apps)  # each starts programs, some very often
    set(cost 1)
  endif()
  # Catch2 2 is content with a name that it does not have, such as one that CMake cuts off at a semicolon.
  catch_discover_tests(${target} TEST_PREFIX "${layer}: " DISCOVERY_MODE PRE_TEST
                       PROPERTIES FAIL_REGULAR_EXPRESSION "No test cases matched" TIMEOUT 400 LABELS ${layer} COST ${cost}
                                  ENVIRONMENT "TANDEM_SOURCE_DIR=${CMAKE_SOURCE_DIR}")
endfunction()
