# SPDX-License-Identifier: GPL-2.0-or-later
#
# The rules a room's CMakeLists.txt uses. Sources are named relative to the room; includes are written from the
# repository root. Link with target_link_libraries(name PUBLIC|PRIVATE ...) as usual.
#
#   kvmid_library(name files...)      a static library
#   kvmid_executable(name files...)   a program in <build>/bin
#   kvmid_test(name SOURCES files... [LIBS libs...] [LABELS labels...] [TIMEOUT seconds])
#                                     a Catch2 program in <build>/bin, registered with ctest under its name;
#                                     LABELS defaults to `unit`, TIMEOUT to 120
#   kvmid_fuzz_target(name SOURCES files... [LIBS libs...])
#                                     a libFuzzer program in <build>/bin; name starts with fuzz_ (KVMID_FUZZ only)

function(kvmid_library name)
  add_library(${name} STATIC ${ARGN})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE $<BUILD_INTERFACE:kvmid_warnings>)
endfunction()

function(kvmid_executable name)
  add_executable(${name} ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE kvmid_warnings)
endfunction()

function(kvmid_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "SOURCES;LIBS;LABELS")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "kvmid_test(${name}): SOURCES missing, or not understood: '${arg_UNPARSED_ARGUMENTS}'")
  endif()
  if(NOT BUILD_TESTING)
    return()
  endif()
  # Catch2's main takes long to compile, so one copy serves every test. catch.hpp itself is not precompiled: a
  # compiler cache cannot share objects between build trees when they depend on a precompiled header.
  if(NOT TARGET kvmid_test_main)
    add_library(kvmid_test_main STATIC ${PROJECT_SOURCE_DIR}/tests/support/catch_main.cpp)
    target_link_libraries(kvmid_test_main PUBLIC Catch2::Catch2)
  endif()
  kvmid_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBS} kvmid_test_main)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT})
endfunction()

function(kvmid_fuzz_target name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBS")
  if(NOT name MATCHES "^fuzz_" OR arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "kvmid_fuzz_target(${name}): the name starts with fuzz_, SOURCES is needed")
  endif()
  kvmid_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
