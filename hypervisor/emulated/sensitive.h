// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Instructions that touch system state: executed here, not in the engine.
///
/// Purpose:  the vCPU's control registers, MSRs and tables are ours, and each of these instructions can be an event.
/// Shapes:   execute() either does the instruction, or says what has to happen instead. A watched write is not done:
///           the caller raises the event and calls write_cr() or write_msr() when it is allowed.
/// Errors:   what the guest did wrong is an exception for it.
/// Threads:  none of its own.
/// Leaves out: SYSENTER and SYSEXIT (#UD), far calls and returns.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "arch/x86/exceptions.h"
#include "arch/x86/instruction.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"
#include "hypervisor/server/hooks.h"
#include "protocol/message.h"

namespace kvmid::emulated {

struct Executed {  ///< done; RIP is where it goes on
  bool resume_flag = false;  ///< RFLAGS.RF is what the instruction loaded
};
struct Raised {      ///< a fault; RIP is at the instruction
  x86::Exception exception;
};
struct Interrupted {  ///< INT n, INT1; RIP is behind it
  std::uint8_t vector = 0;
  std::uint8_t insn_length = 0;
  bool software = true;  ///< not INT1, which no gate forbids
};
struct HaltExecuted {};  ///< HLT; RIP is behind it
struct Watched {         ///< not done: an event comes first; RIP is at the instruction
  EventData data;
  std::uint8_t insn_length = 0;
};
struct HypercallMade {};  ///< VMCALL that nobody watches; RIP is behind it, and RAX is still the caller's
using Effect = std::variant<Executed, Raised, Interrupted, HaltExecuted, Watched, HypercallMade>;

/// RAX after a hypercall that nobody answered: -KVM_ENOSYS.
inline constexpr std::uint64_t kHypercallUnknown = static_cast<std::uint64_t>(std::int64_t{-1000});

/// The instruction at RIP.
Effect execute_sensitive(Mmu& mmu, Vcpu& vcpu, const hypervisor::Hooks& hooks);

/// Loads a control register as MOV does; mappings that depended on the old value are dropped. #GP where the processor
/// would not take the value.
std::optional<x86::Exception> write_cr(Mmu& mmu, Vcpu& vcpu, unsigned cr, std::uint64_t value);
/// As XSETBV of register 0: #GP where the processor would not take the value.
std::optional<x86::Exception> write_xcr0(Vcpu& vcpu, std::uint64_t value);
/// What CPUID says on this vCPU now; nothing where there is no such leaf.
std::optional<GetCpuidReply> cpuid_of(const x86::CpuFeatures& cpu, const Vcpu& vcpu, std::uint32_t function,
                                      std::uint32_t index);
/// As WRMSR: #GP where there is no such MSR, or it does not take the value.
std::optional<x86::Exception> write_msr(Mmu& mmu, Vcpu& vcpu, std::uint32_t msr, std::uint64_t value);
/// As RDMSR; nothing where there is no such MSR.
std::optional<std::uint64_t> read_msr(const Vcpu& vcpu, std::uint32_t msr);

}  // namespace kvmid::emulated
