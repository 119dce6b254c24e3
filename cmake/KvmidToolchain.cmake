# SPDX-License-Identifier: GPL-2.0-or-later
#
# Language level, warnings, sanitizers, coverage, compiler cache and linker, the same for every target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()

# No -DNDEBUG: a broken invariant stops the process in release builds too. -g1 keeps line numbers in backtraces and
# builds much faster than full debug information.
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g1")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")

# Warnings, carried by kvmid_library, kvmid_executable and kvmid_test. Third-party headers are system headers.
add_library(kvmid_warnings INTERFACE)
set(c_or_cxx "$<COMPILE_LANGUAGE:C,CXX>")
target_compile_options(kvmid_warnings INTERFACE
  "$<${c_or_cxx}:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow>"
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor>
  $<$<AND:${c_or_cxx},$<BOOL:${KVMID_WARNINGS_AS_ERRORS}>>:-Werror>
  # GCC 12 reports overlapping copies inside std::string that cannot happen (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  # Clang counts sign conversions as conversions in C++, GCC does not; GCC is the reference.
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-sign-conversion>
)

if(KVMID_SANITIZE)
  add_compile_options("$<${c_or_cxx}:-fsanitize=${KVMID_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
  add_link_options(-fsanitize=${KVMID_SANITIZE})
  # Instrumentation hides from GCC that a variable is set; the plain builds still check it. GCC also warns that
  # ThreadSanitizer does not model fences; what our fences order is atomic, so no race goes unseen.
  target_compile_options(kvmid_warnings INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-tsan>)
elseif(KVMID_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "KVMID_FUZZ needs clang (libFuzzer); the compiler is ${CMAKE_CXX_COMPILER_ID}. "
                        "Use `cmake --preset fuzz` or scripts/fuzz.")
  endif()
  # A fuzz target itself adds -fsanitize=fuzzer at its link (kvmid_fuzz_target does).
  add_compile_options("$<${c_or_cxx}:-fsanitize=fuzzer-no-link,address,undefined;-fno-sanitize-recover=all>")
  add_compile_options("$<${c_or_cxx}:-fno-omit-frame-pointer>")
  add_link_options(-fsanitize=address,undefined)
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  # Every peer is hostile: what the compiler and the library can check cheaply, they check.
  add_compile_options("$<${c_or_cxx}:-fstack-protector-strong;-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>")
  add_link_options(-Wl,-z,relro,-z,now)
endif()
add_compile_definitions($<$<COMPILE_LANGUAGE:CXX>:_GLIBCXX_ASSERTIONS>)

# Which lines ran, for scripts/coverage. Counters of a daemon with threads must not lose increments.
option(KVMID_COVERAGE "Count which lines run (GCC's gcov)" OFF)
if(KVMID_COVERAGE)
  add_compile_options("$<${c_or_cxx}:--coverage;-fprofile-update=atomic>")
  add_link_options(--coverage)
endif()

include(CheckPIESupported)
check_pie_supported(LANGUAGES CXX)

find_program(KVMID_CCACHE ccache)
if(KVMID_CCACHE)
  foreach(lang C CXX)
    if(NOT CMAKE_${lang}_COMPILER_LAUNCHER)
      set(CMAKE_${lang}_COMPILER_LAUNCHER ${KVMID_CCACHE})
    endif()
  endforeach()
endif()

find_program(KVMID_MOLD mold)
find_program(KVMID_LLD ld.lld)
if(KVMID_MOLD)
  add_link_options(-fuse-ld=mold)
elseif(KVMID_LLD)
  add_link_options(-fuse-ld=lld)
endif()
