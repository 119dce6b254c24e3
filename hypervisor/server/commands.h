// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Checks a command and has the backend do it.
///
/// Purpose:  the rules of each command in one place, for every hypervisor.
/// Errors:   every refusal has a sentence that names what was wrong.
/// Threads:  none of its own.
/// Lifetime: made for one command: what a reply's views point at lives as long as the CommandServer.

#include <cstddef>
#include <string>
#include <vector>

#include "hypervisor/server/guest_backend.h"
#include "hypervisor/server/patches.h"

namespace kvmid::hypervisor {

class CommandServer {
 public:
  /// `patches` are those of the connection, over the memory of `backend`.
  CommandServer(GuestBackend& backend, Patches& patches) : backend_(backend), patches_(patches) {}
  [[nodiscard]] CommandReply serve(const Command& command);

 private:
  using Outcome = Answer<ReplyBody>;

  Outcome run(const GetVersion& command);
  Outcome run(const GetGuestInfo& command);
  Outcome run(const PauseVcpu& command);
  Outcome run(const GetRegisters& command);
  Outcome run(const SetRegisters& command);
  Outcome run(const GetPageAccess& command);
  Outcome run(const SetPageAccess& command);
  Outcome run(const InjectException& command);
  Outcome run(const ReadPhysical& command);
  Outcome run(const WritePhysical& command);
  Outcome run(const ControlEvents& command);
  Outcome run(const ControlCr& command);
  Outcome run(const ControlMsr& command);
  Outcome run(const ControlSinglestep& command);
  // state_commands.cpp
  Outcome run(const ShutdownGuest& command);
  Outcome run(const GetCpuid& command);
  Outcome run(const TranslateGva& command);
  Outcome run(const GetXsave& command);
  Outcome run(const SetXsave& command);
  Outcome run(const GetXcr& command);
  Outcome run(const GetMemoryMap& command);
  template <class Unserved>
  Outcome run(const Unserved&) {
    return not_served();
  }
  static Refusal not_served() {
    return {ErrorCode::NotServed, "this hypervisor does not serve the command; GET_VERSION lists what it does"};
  }
  [[nodiscard]] bool serves(CommandId id) const { return backend_.facts().commands.has(id); }

  [[nodiscard]] bool is_vcpu(VcpuId vcpu) const { return vcpu.value < backend_.facts().vcpu_count; }
  [[nodiscard]] Refusal no_such_vcpu(VcpuId vcpu) const;
  /// First and one past the last vCPU that `vcpu` (or kAllVcpus) names; both 0 if there is none.
  struct VcpuRange {
    std::uint16_t begin, end;
  };
  [[nodiscard]] VcpuRange vcpus(VcpuId vcpu) const;
  [[nodiscard]] Done check_memory(AddressSpace space, Gpa gpa, std::uint64_t bytes) const;

  GuestBackend& backend_;
  Patches& patches_;
  std::string text_;
  std::vector<std::byte> data_;
  std::vector<kvmi_x86_msr> msrs_;
  std::vector<kvmi_page_access_entry> entries_;
  std::vector<kvmi_memory_slot> slots_;
};

}  // namespace kvmid::hypervisor
