// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "daemon/core/policy.h"

namespace kvmid::io {

/// An agent as people see it: what the core knows of it, and what its socket says.
struct AgentSnapshot {
  core::AgentInfo info;
  core::Peer peer;
  std::uint64_t queued_bytes = 0;
  bool control = false;  ///< a control connection: no guest
  std::string dialect = "kvmi2";  ///< "rfc2017", "v6", "v7" or "v12" where it is an older one
  std::string dialed{};           ///< address of a tool that kvmid connected to; empty: it connected to kvmid
};

/// A guest at one moment, copied on its shard.
struct GuestSnapshot {
  Uuid uuid;
  std::string name;
  std::string dialect;  ///< of its hypervisor: "kvmi2", an older one's name, or "older" while that is being found out
  CommandSet commands;  ///< that an agent with every right could use; empty before the guest was online
  EventSet events;      ///< likewise
  unsigned shard = 0;
  core::Peer hypervisor;  ///< the last one, where it is away
  core::TimePoint taken_at;
  core::GuestInfo info;
  std::vector<AgentSnapshot> agents;
};

/// What a new policy meant for those who are connected.
struct PolicyEffect {
  std::uint32_t agents = 0;  ///< looked at, control connections included
  std::uint32_t closed = 0;  ///< of those: known to no rule any more
};

/// One named number.
struct NamedCount {
  std::string name;
  std::uint64_t value = 0;
};

struct StatusSnapshot {
  unsigned shards = 0;
  std::size_t guests = 0;
  std::size_t agents = 0;  ///< control connections included
  std::vector<NamedCount> counters;
};

/// The counters of a guest with their names in JSON and metrics.
std::vector<NamedCount> named(const core::GuestCounters& counters);
void add(core::GuestCounters& sum, const core::GuestCounters& other);

}  // namespace kvmid::io
