# tandem_add_tests(LAYER LIBRARY...): the tests of one layer, tests/LAYER/*_test.cpp, as one program
# whose test cases CTest runs one by one, each with a time limit: a hang is a failure.
include(Catch)

function(tandem_add_tests layer)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${layer}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  set(target tandem_${layer}_tests)
  add_executable(${target} ${sources})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(${target} PRIVATE ${ARGN} tandem_warnings tandem_catch_main)
  if(NOT layer STREQUAL core)
    target_precompile_headers(${target} REUSE_FROM tandem)
  endif()
  catch_discover_tests(${target} TEST_PREFIX "${layer}: " DISCOVERY_MODE PRE_TEST
                       PROPERTIES TIMEOUT 120 LABELS ${layer} ENVIRONMENT "TANDEM_SOURCE_DIR=${CMAKE_SOURCE_DIR}")
endfunction()
