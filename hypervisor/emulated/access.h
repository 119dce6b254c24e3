// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One instruction that is executed on copies of the pages it touches, so that an agent decides on each access.
///
/// Purpose:  ALLOW of a page fault with TRAP_ACCESS.
/// Shapes:   Plan: which places the instruction will read and write, and may it. Read: an ACCESS event for each read;
///           what is answered is put into the copies. Then the instruction is executed on them, whatever it is. Write:
///           an event for each write; what is answered goes to guest memory, and the registers follow. Nothing of the
///           instruction is in the guest before the last answer.
///           A repeated string instruction goes through this once per element; `index` counts on.
/// Bounds:   kAccessesMax accesses in one go; an access of more than KVMI_ACCESS_DATA_MAX bytes, or over the end of a
///           page, is several.
/// Threads:  none of its own.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "arch/x86/instruction.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"

namespace kvmid::emulated {

struct alignas(kPageSize) PageBytes {
  std::array<std::byte, kPageSize> bytes;
};

/// One access, within one page.
struct MemoryAccess {
  Gva gva;
  Gpa gpa;
  std::uint8_t size = 0;
  std::array<std::uint8_t, KVMI_ACCESS_DATA_MAX> data{};
};

/// How many elements a repeated string instruction has yet to do.
[[nodiscard]] std::uint64_t repeat_count(const x86::Instruction& insn, const kvmi_x86_regs& regs);

struct AccessRun {
  enum class Phase : std::uint8_t { Plan, Read, Write };
  static constexpr std::size_t kAccessesMax = 64;

  /// A page as it was, and the copy that the instruction works on.
  struct Copy {
    Gva gva;  ///< of the page
    Gfn gfn;
    std::unique_ptr<PageBytes> before, work;
  };

  std::uint64_t rip = 0;  ///< of the instruction
  Phase phase = Phase::Plan;
  std::uint16_t index = 0;  ///< of the next event
  std::vector<MemoryAccess> reads, writes;
  std::size_t next = 0;  ///< of reads or writes
  std::vector<Copy> copies;
  bool repeated = false;   ///< a string instruction that goes on while RIP stays
  std::uint8_t length = 0;  ///< of the instruction; 0 before it is known
  kvmi_x86_regs regs_before{}, after{};  ///< from phase Write on: what the instruction made of the registers

  [[nodiscard]] Copy* copy_of(Gva gva);
};

}  // namespace kvmid::emulated
