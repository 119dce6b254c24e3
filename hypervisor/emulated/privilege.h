// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Changes of ring: SYSCALL, SYSRET, IRETQ, and what they load into CS and SS.
///
/// Purpose:  Unicorn executes everything as the kernel; which ring a vCPU is in is ours to know (SS.DPL), and the
///           software TLB is looked at again whenever it changes.
/// Errors:   an exception for the guest; the vCPU is as it was then.
/// Threads:  none of its own.
/// Leaves out: compatibility mode (a return to what is no 64-bit code is #GP), far calls and returns.
/// Source:   Intel SDM volume 2 (SYSCALL, SYSRET, IRET); volume 3, 5.5, 5.8.

#include <cstdint>
#include <optional>

#include "arch/x86/exceptions.h"
#include "arch/x86/instruction.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"
#include "protocol/kvmi.h"

namespace kvmid::emulated {

[[nodiscard]] constexpr bool is_code64(const kvmi_x86_segment& segment) {
  return segment.s != 0 && (segment.type & 8) != 0 && segment.l != 0 && segment.db == 0;
}
[[nodiscard]] constexpr bool is_conforming(const kvmi_x86_segment& code) { return (code.type & 4) != 0; }

/// The segment as CS holds it in ring `cpl`.
[[nodiscard]] kvmi_x86_segment with_ring(kvmi_x86_segment code, std::uint16_t selector, unsigned cpl);
/// SS after a change to an inner ring: null, its RPL and DPL are the ring.
[[nodiscard]] kvmi_x86_segment null_stack(unsigned cpl);
/// Loads CS and SS. Mappings that the old ring had and the new one has not are dropped.
void enter_ring(Mmu& mmu, Vcpu& vcpu, const kvmi_x86_segment& code, const kvmi_x86_segment& stack);

/// SYSCALL of `length` bytes, from any ring.
std::optional<x86::Exception> execute_syscall(Mmu& mmu, Vcpu& vcpu, std::uint8_t length);
/// SYSRET. Its 32-bit form leads to compatibility mode and is #GP(0).
std::optional<x86::Exception> execute_sysret(Mmu& mmu, Vcpu& vcpu, bool to_64_bit);
/// IRETQ, to the same ring or an outer one.
std::optional<x86::Exception> return_from_interrupt(Mmu& mmu, Vcpu& vcpu);

/// RFLAGS after a load of `value` by POPF or IRET in the ring the vCPU is in: what that ring may not change stays.
[[nodiscard]] std::uint64_t loaded_flags(const Vcpu& vcpu, std::uint64_t value, std::uint64_t loadable);

/// PUSHF and POPF, CLI and STI, IN, OUT, INS and OUTS (there are no devices: reads give ones), RDTSC, RDPMC. RIP is not
/// moved. The outer value is empty if `insn` is none of these.
std::optional<std::optional<x86::Exception>> execute_flags_and_ports(Mmu& mmu, Vcpu& vcpu,
                                                                     const x86::Instruction& insn);

}  // namespace kvmid::emulated
