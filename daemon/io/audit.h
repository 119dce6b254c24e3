// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/effects.h"
#include "daemon/core/policy.h"

namespace kvmid::io {

/// What the audit log tells of. Names on paper: docs/admin-http.md, "Audit log".
enum class AuditKind : std::uint8_t {
  AgentAttached,
  AgentRefused,
  AgentDetached,
  AgentRevoked,  ///< rights were withdrawn from it
  AgentExpired,  ///< it missed a deadline
  AgentDemoted,  ///< too many of them
  CommandGranted,
  CommandRefused,
  CommandFailed,  ///< granted, and the hypervisor answered it with an error
  Verdict,        ///< an event ended with another action than ALLOW, or with changed values
  Crash,          ///< a verdict that crashes the guest
  HypervisorAttached,
  HypervisorRefused,
  HypervisorLost,
  ConfigReloaded,
  ConfigRefused,
};

/// One line of the audit log. A field that its kind does not have stays empty and is not written.
struct AuditRecord {
  AuditKind kind{};
  std::chrono::system_clock::time_point time = std::chrono::system_clock::now();

  AgentId agent{};  ///< 0: none
  std::string agent_name;
  std::optional<Uuid> guest;
  std::string guest_name;
  std::optional<core::Peer> peer;
  std::string rule;
  std::string role;

  std::optional<VcpuId> vcpu;
  Seq seq{};  ///< of the command, or what agents know the event by; 0: none
  std::optional<CommandId> command;
  std::uint64_t gpa = 0;  ///< with `amount`
  std::uint64_t amount = 0;
  std::uint8_t detail = 0;

  std::optional<EventData> event;
  std::uint64_t rip = 0;  ///< of the event
  std::optional<Action> action;
  std::optional<AgentId> decided_by;
  std::vector<core::Vote> votes;
  AgentId value_by{};
  AgentId registers_by{};
  AgentId xsave_by{};
  std::optional<std::uint64_t> new_value;
  std::optional<EventKind> event_kind;  ///< where the event itself is not at hand
  std::uint32_t agents = 0;             ///< ConfigReloaded: how many were looked at
  std::uint32_t agents_closed = 0;      ///< and how many of those closed

  ErrorCode error = ErrorCode::None;
  std::string reason;
  std::string path;  ///< of a mistake in the configuration
  std::uint64_t left_out = 0;  ///< refusals that the same peer caused before this one, too many for a line each
};

/// Takes records and never waits: what cannot be kept is dropped and counted.
///
/// Threads:  any.
/// Lifetime: outlives the broker that is given it.
class AuditSink {
 public:
  /// Nobody keeps records: whoever makes one may save the work.
  [[nodiscard]] virtual bool wanted() const = 0;
  virtual void record(AuditRecord record) = 0;

 protected:
  ~AuditSink() = default;
};

}  // namespace kvmid::io
