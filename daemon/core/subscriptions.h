// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

/// What agents wish to be told of, and the union of it that the hypervisor must know.
///
/// Purpose:  who gets an event; what the hypervisor must be told when a wish comes or goes: on first and last only.
/// Shapes:   sets of agents for each vCPU and event kind, CR, MSR and for single step.
/// Units:    CRs are 0, 3 and 4. MSR lists are sorted.
/// Errors:   none: callers check ids against vcpu_count() and rights against policy.
/// Threads:  none of its own.
class Subscriptions {
 public:
  /// The part of the union that one vCPU of the hypervisor must know.
  struct VcpuUnion {
    EventSet events;
    std::uint8_t crs = 0;  ///< bit n: CR n
    bool singlestep = false;
    std::vector<std::uint32_t> msrs;  ///< sorted
    friend bool operator==(const VcpuUnion&, const VcpuUnion&) = default;
  };

  explicit Subscriptions(std::uint16_t vcpu_count);
  [[nodiscard]] std::uint16_t vcpu_count() const { return static_cast<std::uint16_t>(vcpus_.size()); }

  // Wishes of one agent on one vCPU
  void set_event(VcpuId vcpu, AgentSlot slot, EventKind kind, std::optional<Role> role);
  void set_cr(VcpuId vcpu, AgentSlot slot, std::uint32_t cr, bool on);
  void set_msr(VcpuId vcpu, AgentSlot slot, std::uint32_t msr, bool on);
  void set_singlestep(VcpuId vcpu, AgentSlot slot, bool on);
  /// The agent tracks no CR, no MSR, steps no vCPU any more. False: it did not.
  bool remove_crs(AgentSlot slot);
  bool remove_msrs(AgentSlot slot);
  bool remove_singlestep(AgentSlot slot);
  /// The agent wishes nothing any more.
  void remove(AgentSlot slot);
  /// Those of the events that it decided it only observes from now on. False: there was none.
  bool demote(AgentSlot slot, EventSet events);

  [[nodiscard]] std::optional<Role> role_of(VcpuId vcpu, AgentSlot slot, EventKind kind) const;
  [[nodiscard]] bool has_cr(VcpuId vcpu, AgentSlot slot, std::uint32_t cr) const;
  [[nodiscard]] bool has_msr(VcpuId vcpu, AgentSlot slot, std::uint32_t msr) const;
  [[nodiscard]] bool has_singlestep(VcpuId vcpu, AgentSlot slot) const;
  /// Events of the agent on that vCPU, in either role.
  [[nodiscard]] EventSet events_of(VcpuId vcpu, AgentSlot slot) const;
  /// MSRs tracked for the agent, summed over vCPUs.
  [[nodiscard]] std::size_t msrs_of(AgentSlot slot) const;

  // Who gets an event
  [[nodiscard]] AgentSet deciders(VcpuId vcpu, EventKind kind) const { return vcpus_[vcpu.value].decide[index(kind)]; }
  [[nodiscard]] AgentSet observers(VcpuId vcpu, EventKind kind) const {
    return vcpus_[vcpu.value].observe[index(kind)];
  }
  [[nodiscard]] AgentSet wishing_cr(VcpuId vcpu, std::uint32_t cr) const;
  [[nodiscard]] AgentSet wishing_msr(VcpuId vcpu, std::uint32_t msr) const;
  [[nodiscard]] AgentSet stepping(VcpuId vcpu) const { return vcpus_[vcpu.value].singlestep; }

  /// What the hypervisor must know of that vCPU.
  [[nodiscard]] VcpuUnion union_of(VcpuId vcpu) const;

 private:
  struct Vcpu {
    std::array<AgentSet, kEventCount> decide{};
    std::array<AgentSet, kEventCount> observe{};
    std::array<AgentSet, 5> crs{};  // by number
    AgentSet singlestep;
    std::vector<std::pair<std::uint32_t, AgentSet>> msrs;  // sorted by number
  };
  static constexpr std::size_t index(EventKind kind) { return static_cast<std::size_t>(kind); }
  std::vector<Vcpu> vcpus_;
};

}  // namespace kvmid::core
