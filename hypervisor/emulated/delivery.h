// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Exceptions reach the guest here: through its IDT, by hand, as a 64-bit processor does it.
///
/// Purpose:  Unicorn delivers nothing through a guest's IDT; error code and CR2 are exact because we write them.
/// Shapes:   one attempt at a time: what a delivery itself raised is for the caller to deliver next, so that it can
///           tell of it first.
/// Errors:   TripleFault: the guest cannot go on.
/// Threads:  none of its own.
/// Leaves out: task gates (64-bit mode has none), handlers and callers that are no 64-bit code, shadow stacks.
/// Source:   Intel SDM volume 3, 6.14 (64-bit delivery), 6.15 and table 6-5 (double faults), 5.8.2 (stacks).

#include <cstdint>
#include <optional>
#include <variant>

#include "arch/x86/exceptions.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/vcpu.h"

namespace kvmid::emulated {

struct Delivered {};    ///< RIP is at the handler
struct TripleFault {};  ///< the guest cannot go on
/// Or an exception that is to be delivered in its place; vCPU and guest memory are as they were.
using Delivery = std::variant<Delivered, x86::Exception, TripleFault>;

/// How an exception comes about.
struct DeliveryKind {
  bool software = false;     ///< INT n, INT3: the gate's DPL counts, and what goes wrong is not "external"
  bool resume_flag = false;  ///< a fault: RF is set in the frame, so that a breakpoint on it does not hit again
};

/// Makes `exception` happen at vcpu.regs.rip (for a trap, the caller has moved RIP behind the instruction).
Delivery deliver(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception, DeliveryKind kind);

}  // namespace kvmid::emulated
