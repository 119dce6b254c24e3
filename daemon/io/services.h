// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <optional>
#include <string>

#include "daemon/core/guest_machine.h"
#include "daemon/io/audit.h"
#include "daemon/io/counters.h"
#include "daemon/io/event_tap.h"
#include "daemon/io/failures.h"
#include "daemon/io/log.h"
#include "daemon/io/ticket.h"
#include "daemon/io/unique_fd.h"
#include "protocol/handshake.h"
#include "protocol/kvmi1.h"

namespace kvmid::io {

class Registry;

/// Who else is told what happens. Null: nobody.
struct Witnesses {
  AuditSink* audit = nullptr;
  EventTap* tap = nullptr;
  [[nodiscard]] bool audited() const { return audit != nullptr && audit->wanted(); }
  [[nodiscard]] bool tapped() const { return tap != nullptr && tap->open(); }
};

/// What every session is handed. All of it outlives every session and may be used from any thread.
struct Services {
  Registry& registry;
  IoCounters& counters;
  Log& log;
  core::GuestLimits limits;  ///< of new guests; read and changed on the front's thread
  FailureRing& failures;
  Witnesses witnesses{};
};

/// A hypervisor that said hello and was answered; its socket moves to the guest's shard with this.
struct HypervisorArrival {
  UniqueFd fd;
  HypervisorHello hello;
  core::Peer peer;
  Ticket connection;
  UniqueFd ram;  ///< guest RAM, if it came with the handshake
  std::optional<kvmi1::DialectId> dialect{};  ///< of one that is not KVMI 2; none: it is found out
};

/// What is particular to a tool of an older dialect that kvmid connected to.
struct DialedArrival {
  kvmi1::DialectId dialect{};
  std::string address;                    ///< for people
  std::optional<Role> role;               ///< not more than the grant gives
  std::optional<std::uint32_t> priority;  ///< in place of the grant's
  Ticket connected;                       ///< given back when the connection ends
};

/// An agent that policy lets in; it has had no welcome yet, and a dialed one gets none.
struct AgentArrival {
  UniqueFd fd;
  AgentId id;
  AgentHello hello;
  core::Peer peer;
  core::Grant grant;
  Ticket connection;
  Ticket attachment;
  std::optional<DialedArrival> dialed{};
};

}  // namespace kvmid::io
