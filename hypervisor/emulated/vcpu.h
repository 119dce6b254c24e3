// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "arch/x86/exceptions.h"
#include "arch/x86/page_access.h"
#include "hypervisor/emulated/access.h"
#include "hypervisor/emulated/engine.h"
#include "hypervisor/emulated/msr_table.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/message.h"

namespace kvmid::emulated {

/// DR7.GD: MOV to and from a debug register is #DB.
inline constexpr std::uint64_t kDr7GeneralDetect = 1u << 13;

using Clock = std::chrono::steady_clock;

struct alignas(kPageSize) ShadowPage {
  std::array<std::byte, kPageSize> bytes;
};

/// A right that one instruction is given although its page lacks it: ALLOW of a page fault event.
struct Override {
  Gfn gfn;
  x86::PageRights rights = 0;
};

/// An exception between its cause and its handler.
struct PendingException {
  enum class Origin : std::uint8_t {
    Processor,  ///< an instruction, a breakpoint or the delivery of another exception raised it
    Software,   ///< INT n, INT3
    Injected,   ///< by an agent
  };

  x86::Exception exception;
  Origin origin = Origin::Processor;
  x86::ExceptionKind kind = x86::ExceptionKind::Fault;
  bool at_instruction = true;               ///< RIP is at the instruction that caused it
  std::uint8_t length = 0;                  ///< Software: how far RIP has been moved behind the instruction
  std::uint64_t debug_causes = 0;           ///< #DB: bits of DR6
  std::uint64_t rip = 0;                    ///< where the vCPU was as it began
  std::optional<std::uint8_t> displaced{};  ///< vector of the injected exception that is lost for it
};

struct Vcpu;

/// ALLOW of an event whose instruction is then executed as it stands there: that once, it makes no such event.
struct Pass {
  EventKind kind{};
  std::uint64_t rip = 0;
  std::uint64_t instructions = 0;  ///< the vCPU's count when it was given: good for the next one only

  [[nodiscard]] bool lets(EventKind event, const Vcpu& vcpu) const;
};

enum class Activity : std::uint8_t {
  Running,
  Halted,   ///< after HLT, until `wake`
  Waiting,  ///< for the reply to `event`
};

/// One virtual processor: its state between two instructions.
///
/// Purpose:  plain state; the machine, delivery and the sensitive instructions work on it.
/// Shapes:   `sregs` is the truth of segments, tables and control registers; the engine only has the segment bases.
/// Threads:  none of its own.
struct Vcpu {
  /// The state in which the boot protocol (GUEST.md) starts a vCPU.
  Vcpu(VcpuId vcpu, std::uint16_t vcpu_count);

  VcpuId id;
  std::uint16_t vcpu_count;
  Engine engine;
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  std::array<std::uint64_t, 8> dr{};
  std::uint64_t xcr0 = 1;
  MsrTable msrs;

  Activity activity = Activity::Running;
  Clock::time_point wake{};
  unsigned pauses = 0;  ///< PAUSE events that are asked for and not yet raised
  std::optional<x86::Exception> injection;

  std::optional<PendingException> exception;  ///< on its way to the guest; while Waiting, a TRAP event tells of it
  std::uint64_t debug_causes = 0;             ///< DR6 bits of a debug trap that comes before the next instruction
  bool trap_flag = false;                     ///< RFLAGS.TF as the instruction under way began
  std::optional<bool> step;                   ///< a SINGLESTEP event that is owed: did the step fail?
  std::unique_ptr<AccessRun> access;          ///< the instruction at its RIP makes ACCESS events

  // While Waiting
  Event event;
  std::uint8_t insn_length = 0;               ///< of the instruction that the event is about; 0: none
  Activity before_wait = Activity::Running;

  std::vector<Override> overrides;  ///< for the instruction at overrides_rip
  std::uint64_t overrides_rip = 0;
  std::optional<Pass> pass;
  /// What a store to a read-only page goes to: a copy of the page for one instruction. Made when it is needed.
  std::unique_ptr<ShadowPage> shadow;

  std::uint64_t instructions = 0;
  std::uint64_t events = 0;
};

inline bool Pass::lets(EventKind event, const Vcpu& vcpu) const {
  return event == kind && vcpu.regs.rip == rip && vcpu.instructions - instructions <= 1;
}

}  // namespace kvmid::emulated
