# SPDX-License-Identifier: GPL-2.0-or-later
#
# What LIBRARY exports equals what HEADER declares: functions called kvmid_*, no more and no less.

execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${NM} cannot read ${LIBRARY}")
endif()
string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
set(exported)
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^[0-9a-f]* *[A-Za-z] ([^@]*).*$" "\\1" name "${line}")
  if(NOT name STREQUAL "KVMID_0")
    list(APPEND exported ${name})
  endif()
endforeach()

file(READ ${HEADER} text)
string(REGEX MATCHALL "\n[a-z][a-z0-9_ *]*[ *](kvmid_[a-z_]+)\\(" declarations "${text}")
set(declared)
foreach(declaration IN LISTS declarations)
  string(REGEX REPLACE "^.*(kvmid_[a-z_]+)\\($" "\\1" name "${declaration}")
  list(APPEND declared ${name})
endforeach()

list(SORT exported)
list(SORT declared)
list(LENGTH declared count)
if(count LESS 40)
  message(FATAL_ERROR "only ${count} declarations were found in ${HEADER}")
endif()
if(NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\ndeclared: ${declared}")
endif()
