# tandem_add_tests(LAYER SOURCES NAME... LIBRARIES TARGET...): the tests of one layer, tests/LAYER/NAME_test.cpp, as one
# program that CTest runs for each file, or for each case, with a time limit: a hang is a failure. Files that include
# LibTorch are compiled eight at a time as one, which takes less than half the time.
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
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  endif()
  # A process for each file, as LibTorch takes a third of a second to load; for each case where that is no matter, or
  # cases start programs or wait, and are better done side by side.
  if(layer MATCHES "^(apps|core|session|report|waits)$")
    set(cost 0)
    if(layer STREQUAL apps)
      set(cost 1)
    endif()
    # Catch2 2 is content with a name that it does not have, such as one that CMake cuts off at a semicolon.
    catch_discover_tests(${target} TEST_PREFIX "${layer}: " DISCOVERY_MODE PRE_TEST
                         PROPERTIES FAIL_REGULAR_EXPRESSION "No test cases matched" TIMEOUT 400 LABELS ${layer}
                                    COST ${cost} ENVIRONMENT "TANDEM_SOURCE_DIR=${CMAKE_SOURCE_DIR}")
    return()
  endif()
  foreach(file IN LISTS sources)
    get_filename_component(file ${file} NAME_WE)
    string(REGEX REPLACE "_test$" "" name ${file})
    add_test(NAME "${layer}: ${name}" COMMAND ${target} --filenames-as-tags --durations yes "[#${file}]~[.]")
    set_tests_properties("${layer}: ${name}" PROPERTIES FAIL_REGULAR_EXPRESSION "No test cases matched" TIMEOUT 400
                         LABELS ${layer} ENVIRONMENT "TANDEM_SOURCE_DIR=${CMAKE_SOURCE_DIR}")
  endforeach()
endfunction()
