// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Exceptions reach the guest here: through its IDT, by hand, as a 64-bit processor does it.
///
/// Purpose:  Unicorn delivers nothing through a guest's IDT; error code and CR2 are exact because we write them.
/// Errors:   TripleFault: the guest cannot go on.
/// Threads:  none of its own.
/// Leaves out: changes of privilege (guests run in ring 0), task gates (64-bit mode has none), shadow stacks.
/// Source:   Intel SDM volume 3, 6.14 (64-bit delivery), 6.15 and table 6-5 (double faults).

#include <cstdint>
#include <optional>

#include "arch/x86/exceptions.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"

namespace kvmid::emulated {

enum class Delivery : std::uint8_t { Delivered, TripleFault };

/// Makes `exception` happen at vcpu.regs.rip (for a trap, the caller has moved RIP behind the instruction).
Delivery deliver(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception);
/// Software interrupt: vector 0 to 255, RIP behind the instruction.
Delivery deliver_interrupt(Mmu& mmu, Vcpu& vcpu, std::uint8_t vector);

/// IRETQ within ring 0. An exception where the frame cannot be used.
std::optional<x86::Exception> return_from_interrupt(Mmu& mmu, Vcpu& vcpu);

}  // namespace kvmid::emulated
