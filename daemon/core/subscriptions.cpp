// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/subscriptions.h"

#include <algorithm>

namespace kvmid::core {

namespace {

template <class Msrs>
auto find_msr(Msrs& msrs, std::uint32_t msr) {
  return std::lower_bound(msrs.begin(), msrs.end(), msr,
                          [](const auto& entry, std::uint32_t m) { return entry.first < m; });
}

void put(AgentSet& set, AgentSlot slot, bool on) {
  if (on) {
    set.add(slot);
  } else {
    set.remove(slot);
  }
}

}  // namespace

Subscriptions::Subscriptions(std::uint16_t vcpu_count) : vcpus_(vcpu_count) {}

void Subscriptions::set_event(VcpuId vcpu, AgentSlot slot, EventKind kind, std::optional<Role> role) {
  put(vcpus_[vcpu.value].decide[index(kind)], slot, role == Role::Decider);
  put(vcpus_[vcpu.value].observe[index(kind)], slot, role == Role::Observer);
}

void Subscriptions::set_cr(VcpuId vcpu, AgentSlot slot, std::uint32_t cr, bool on) {
  put(vcpus_[vcpu.value].crs.at(cr), slot, on);
}

void Subscriptions::set_msr(VcpuId vcpu, AgentSlot slot, std::uint32_t msr, bool on) {
  auto& msrs = vcpus_[vcpu.value].msrs;
  auto entry = find_msr(msrs, msr);
  const bool found = entry != msrs.end() && entry->first == msr;
  if (on) {
    if (!found) entry = msrs.insert(entry, {msr, AgentSet{}});
    entry->second.add(slot);
  } else if (found) {
    entry->second.remove(slot);
    if (!entry->second.any()) msrs.erase(entry);
  }
}

void Subscriptions::set_singlestep(VcpuId vcpu, AgentSlot slot, bool on) {
  put(vcpus_[vcpu.value].singlestep, slot, on);
}

bool Subscriptions::remove_crs(AgentSlot slot) {
  bool found = false;
  for (Vcpu& vcpu : vcpus_)
    for (AgentSet& set : vcpu.crs) {
      found = found || set.has(slot);
      set.remove(slot);
    }
  return found;
}

bool Subscriptions::remove_msrs(AgentSlot slot) {
  bool found = false;
  for (Vcpu& vcpu : vcpus_) {
    for (auto& entry : vcpu.msrs) {
      found = found || entry.second.has(slot);
      entry.second.remove(slot);
    }
    std::erase_if(vcpu.msrs, [](const auto& entry) { return !entry.second.any(); });
  }
  return found;
}

bool Subscriptions::remove_singlestep(AgentSlot slot) {
  bool found = false;
  for (Vcpu& vcpu : vcpus_) {
    found = found || vcpu.singlestep.has(slot);
    vcpu.singlestep.remove(slot);
  }
  return found;
}

void Subscriptions::remove(AgentSlot slot) {
  for (Vcpu& vcpu : vcpus_) {
    for (AgentSet& set : vcpu.decide) set.remove(slot);
    for (AgentSet& set : vcpu.observe) set.remove(slot);
  }
  remove_crs(slot);
  remove_msrs(slot);
  remove_singlestep(slot);
}

bool Subscriptions::demote(AgentSlot slot, EventSet events) {
  bool found = false;
  for (Vcpu& vcpu : vcpus_) {
    for (unsigned kind = 0; kind < kEventCount; ++kind) {
      if (!events.has(static_cast<EventKind>(kind)) || !vcpu.decide[kind].has(slot)) continue;
      vcpu.decide[kind].remove(slot);
      vcpu.observe[kind].add(slot);
      found = true;
    }
  }
  return found;
}

std::optional<Role> Subscriptions::role_of(VcpuId vcpu, AgentSlot slot, EventKind kind) const {
  if (deciders(vcpu, kind).has(slot)) return Role::Decider;
  if (observers(vcpu, kind).has(slot)) return Role::Observer;
  return std::nullopt;
}

bool Subscriptions::has_cr(VcpuId vcpu, AgentSlot slot, std::uint32_t cr) const {
  return wishing_cr(vcpu, cr).has(slot);
}
bool Subscriptions::has_msr(VcpuId vcpu, AgentSlot slot, std::uint32_t msr) const {
  return wishing_msr(vcpu, msr).has(slot);
}
bool Subscriptions::has_singlestep(VcpuId vcpu, AgentSlot slot) const {
  return vcpus_[vcpu.value].singlestep.has(slot);
}

EventSet Subscriptions::events_of(VcpuId vcpu, AgentSlot slot) const {
  EventSet events;
  for (unsigned kind = 0; kind < kEventCount; ++kind)
    if (role_of(vcpu, slot, static_cast<EventKind>(kind))) events.add(static_cast<EventKind>(kind));
  return events;
}

std::size_t Subscriptions::msrs_of(AgentSlot slot) const {
  std::size_t count = 0;
  for (const Vcpu& vcpu : vcpus_)
    count += static_cast<std::size_t>(
        std::count_if(vcpu.msrs.begin(), vcpu.msrs.end(), [&](const auto& entry) { return entry.second.has(slot); }));
  return count;
}

AgentSet Subscriptions::wishing_cr(VcpuId vcpu, std::uint32_t cr) const {
  const auto& crs = vcpus_[vcpu.value].crs;
  return cr < crs.size() ? crs[cr] : AgentSet{};
}

AgentSet Subscriptions::wishing_msr(VcpuId vcpu, std::uint32_t msr) const {
  const auto& msrs = vcpus_[vcpu.value].msrs;
  const auto entry = find_msr(msrs, msr);
  return entry != msrs.end() && entry->first == msr ? entry->second : AgentSet{};
}

Subscriptions::VcpuUnion Subscriptions::union_of(VcpuId id) const {
  const Vcpu& vcpu = vcpus_[id.value];
  VcpuUnion all;
  for (unsigned kind = 0; kind < kEventCount; ++kind)
    if ((vcpu.decide[kind] | vcpu.observe[kind]).any()) all.events.add(static_cast<EventKind>(kind));
  // A PAUSE event comes from PAUSE_VCPU alone; the hypervisor has no switch for it.
  all.events.bits &= ~KVMI_EVENT_BIT(KVMI_EVENT_PAUSE);
  for (unsigned cr = 0; cr < vcpu.crs.size(); ++cr)
    if (vcpu.crs[cr].any()) all.crs = static_cast<std::uint8_t>(all.crs | (1U << cr));
  all.singlestep = vcpu.singlestep.any();
  all.msrs.reserve(vcpu.msrs.size());
  for (const auto& entry : vcpu.msrs) all.msrs.push_back(entry.first);
  return all;
}

}  // namespace kvmid::core
