// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// XSAVE and XRSTOR of the guest.
///
/// Purpose:  CPUID offers them, and Unicorn does not know them.
/// Errors:   an exception for the guest.
/// Threads:  none of its own.
/// Leaves out: XSAVEOPT, XSAVEC, XSAVES, XRSTORS (CPUID does not offer them), and the init optimization: every
///           component counts as in use.
/// Source:   Intel SDM volume 2 (XSAVE, XRSTOR); volume 1, 13.7 and 13.8.

#include <cstddef>
#include <optional>
#include <span>

#include "arch/x86/exceptions.h"
#include "arch/x86/instruction.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"

namespace kvmid::emulated {

/// The outer value is empty if `code` is none of the two; the inner one is the exception it raised. RIP is not moved.
std::optional<std::optional<x86::Exception>> execute_xsave(Mmu& mmu, Vcpu& vcpu, const x86::Instruction& insn,
                                                           std::span<const std::byte> code);

}  // namespace kvmid::emulated
