// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "arch/x86/exceptions.h"
#include "arch/x86/page_access.h"
#include "hypervisor/emulated/engine.h"
#include "hypervisor/emulated/msr_table.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/message.h"

namespace kvmid::emulated {

using Clock = std::chrono::steady_clock;

/// A right that one instruction is given although its page lacks it: ALLOW of a page fault event.
struct Override {
  Gfn gfn;
  x86::PageRights rights = 0;
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

  // While Waiting
  Event event;
  std::uint8_t insn_length = 0;               ///< of the instruction that the event is about; 0: none
  Activity before_wait = Activity::Running;

  std::vector<Override> overrides;  ///< for the instruction at overrides_rip
  std::uint64_t overrides_rip = 0;

  std::uint64_t instructions = 0;
  std::uint64_t events = 0;
};

}  // namespace kvmid::emulated
