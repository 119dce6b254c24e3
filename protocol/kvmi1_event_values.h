// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What codecs of older dialects make of an event's fields, so that message.h's Event keeps the promises that it makes
/// to everybody above. Used by the .cpp files of this folder only.
///
/// Threads:  pure functions.
/// Source:   docs/dialects.md.

#include <cstdint>

#include "protocol/message.h"

namespace kvmid::kvmi1 {

inline constexpr std::uint8_t kPageFaultVector = 14;
inline constexpr std::uint8_t kExceptionVectorMax = 31;
inline constexpr std::uint8_t kInsnLengthMax = 15;
inline constexpr std::uint8_t kRightsAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

/// Padding inside the registers holds left-overs of the kernel's stack.
inline void clear_padding(kvmi_x86_sregs& sregs) {
  for (kvmi_x86_segment* segment :
       {&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.tr, &sregs.ldt}) {
    segment->padding = 0;
  }
  for (kvmi_x86_dtable* table : {&sregs.gdt, &sregs.idt}) {
    for (auto& word : table->padding) word = 0;
  }
}

constexpr bool is_mode(std::uint64_t mode) { return mode == 2 || mode == 4 || mode == 8; }
constexpr bool is_tracked_cr(std::uint64_t cr) { return cr == 0 || cr == 3 || cr == 4; }

/// Vectors that push an error code: #DF, #TS to #PF, #AC, #CP, #VC, #SX.
constexpr bool pushes_error_code(std::uint8_t vector) {
  return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30;
}

/// Whether it was injected, and what it displaced, is not on these wires. An address is a page fault's only.
inline TrapData trap_data(std::uint8_t vector, std::uint32_t error_code, std::uint64_t address) {
  TrapData trap;
  trap.vector = vector;
  if (vector == 2 || vector > kExceptionVectorMax) {
    trap.kind = KVMI_EXCEPTION_INTERRUPT;
  } else if (vector == 1 || vector == 3 || vector == 4) {
    trap.kind = KVMI_EXCEPTION_TRAP;
  } else if (vector == 8 || vector == 18) {
    trap.kind = KVMI_EXCEPTION_ABORT;
  }
  if (pushes_error_code(vector)) {
    trap.flags = KVMI_TRAP_F_ERROR_CODE;
    trap.error_code = error_code;
  }
  if (vector == kPageFaultVector) trap.address = address;
  return trap;
}

/// BREAKPOINT: processors that do not tell the length leave nonsense there; an INT3 has one byte.
constexpr std::uint8_t insn_length_of(std::uint8_t told) { return told >= 1 && told <= kInsnLengthMax ? told : 1; }

}  // namespace kvmid::kvmi1
