// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Loads of segment registers, LDTR and TR from the guest's descriptor tables.
///
/// Purpose:  Unicorn would look into tables of its own; the guest's are read here.
/// Errors:   an exception for the guest.
/// Threads:  none of its own.
/// Source:   Intel SDM volume 2 (MOV, LTR, LLDT); volume 3, 3.4.5 (segment descriptors), 3.5 (system descriptors).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "arch/x86/exceptions.h"
#include "arch/x86/instruction.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"
#include "protocol/result.h"

namespace kvmid::emulated {

/// What the code or data descriptor says that `selector` names; nothing is loaded and nothing of it is checked.
Result<kvmi_x86_segment, x86::Exception> read_segment(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector);

std::optional<x86::Exception> load_task_register(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector);
std::optional<x86::Exception> load_local_table(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector);

/// MOV to or from a segment register (8C, 8E). The outer value is empty if `code` is none; the inner one is the
/// exception it raised. RIP is not moved.
std::optional<std::optional<x86::Exception>> execute_segment_move(Mmu& mmu, Vcpu& vcpu, const x86::Instruction& insn,
                                                                  std::span<const std::byte> code);

}  // namespace kvmid::emulated
