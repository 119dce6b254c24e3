// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Which events, control registers and MSRs are watched, per vCPU.
///
/// Purpose:  the state behind CONTROL_EVENTS, CONTROL_CR, CONTROL_MSR and CONTROL_SINGLESTEP, the same in every
///           hypervisor.
/// Errors:   none; callers check numbers first.
/// Threads:  none of its own.

#include <bitset>
#include <cstdint>
#include <vector>

#include "arch/x86/msrs.h"
#include "protocol/ids.h"
#include "protocol/message.h"

namespace kvmid::hypervisor {

class Hooks {
 public:
  explicit Hooks(std::uint16_t vcpu_count) : vcpus_(vcpu_count) {}

  /// Is this event on? For CR and MSR events see watches_cr() and watches_msr().
  [[nodiscard]] bool watches(VcpuId vcpu, EventKind kind) const { return vcpus_[vcpu.value].events.has(kind); }
  [[nodiscard]] bool watches_cr(VcpuId vcpu, unsigned cr) const {
    return watches(vcpu, EventKind::Cr) && cr < 8 && ((vcpus_[vcpu.value].crs >> cr) & 1u) != 0;
  }
  [[nodiscard]] bool watches_msr(VcpuId vcpu, std::uint32_t msr) const;

  [[nodiscard]] EventSet events(VcpuId vcpu) const { return vcpus_[vcpu.value].events; }
  void set_events(VcpuId vcpu, EventSet events) { vcpus_[vcpu.value].events = events; }
  /// REQUIRES: x86::is_trackable_cr(cr).
  void set_cr(VcpuId vcpu, unsigned cr, bool enable);
  /// REQUIRES: x86::is_trackable_msr(msr).
  void set_msr(VcpuId vcpu, std::uint32_t msr, bool enable);
  void clear();

  /// Does every instruction make an event?
  [[nodiscard]] bool singlesteps(VcpuId vcpu) const {
    return vcpus_[vcpu.value].singlestep && watches(vcpu, EventKind::Singlestep);
  }
  void set_singlestep(VcpuId vcpu, bool enable) { vcpus_[vcpu.value].singlestep = enable; }

 private:
  struct Vcpu {
    EventSet events;
    std::uint8_t crs = 0;
    bool singlestep = false;
    std::bitset<x86::kTrackableMsrCount> msrs;
  };
  std::vector<Vcpu> vcpus_;
};

}  // namespace kvmid::hypervisor
