// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The two kinds of connections of a GuestSession. Included by its source files only.

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bridge/agent_bridge.h"
#include "bridge/hypervisor_bridge.h"
#include "daemon/io/connection.h"
#include "daemon/io/guest_session.h"
#include "daemon/io/log_budget.h"
#include "protocol/dialect_kvmi2.h"

namespace kvmid::io {

/// So many malformed messages in a row, and the agent is disconnected.
inline constexpr unsigned kMalformedMax = 16;
/// What the machine may have queued for a hypervisor at once. Its ledger holds 1024 commands of at most 64 KiB, so only
/// a hypervisor that does not read at all comes near it.
inline constexpr std::uint64_t kHypervisorQueueMax = 96U << 20U;
/// From here on agents' commands are answered KVMI_EBUSY, so that event replies never wait behind a long queue.
inline constexpr std::uint64_t kHypervisorQueueBusy = 4U << 20U;

class GuestSession::HypervisorLink final : public Connection::Owner {
 public:
  HypervisorLink(GuestSession& session, std::shared_ptr<Connection> socket, HypervisorArrival& arrival,
                 std::unique_ptr<bridge::HypervisorBridge> of_older_dialect)
      : session_(session),
        connection(std::move(socket)),
        bridge(std::move(of_older_dialect)),
        peer(std::move(arrival.peer)),
        ticket(std::move(arrival.connection)) {}

  void on_frame(const Frame& frame) override;
  void on_frame_refused(const FrameError& error) override;
  void on_turn_end() override { session_.finish_step(); }  // may destroy *this
  void on_lost(std::string_view reason) override;

  [[nodiscard]] std::string_view dialect_name() const {
    if (!bridge) return dialect.name();
    const auto older = bridge->dialect();
    return older ? name_of(*older) : "older";
  }

 private:
  GuestSession& session_;

 public:
  std::shared_ptr<Connection> connection;
  DialectKvmi2 dialect_kvmi2;
  Dialect& dialect = dialect_kvmi2;
  std::unique_ptr<bridge::HypervisorBridge> bridge;  ///< of an older dialect; null: KVMI 2
  bool dialect_told = false;                         ///< the log has its name
  bool served = false;                               ///< its guest was online
  OffReason unhooked_for = OffReason::LinkLost;      ///< older dialects: what UNHOOK said
  core::Peer peer;
  Ticket ticket;
  bool dirty = false;
  bool lost = false;
  bool flush_first = false;
  OffReason reason{};
  std::string text;
};

class GuestSession::AgentLink final : public Connection::Owner {
 public:
  AgentLink(GuestSession& session, std::shared_ptr<Connection> socket, AgentArrival& arrival,
            std::unique_ptr<bridge::AgentBridge> of_older_dialect)
      : session_(session),
        connection(std::move(socket)),
        bridge(std::move(of_older_dialect)),
        dialed(std::move(arrival.dialed)),
        id(arrival.id),
        name(std::move(arrival.hello.name)),
        peer(std::move(arrival.peer)),
        ticket(std::move(arrival.connection)),
        attachment(std::move(arrival.attachment)),
        rule(arrival.grant.rule),
        role(arrival.grant.role) {}

  void on_frame(const Frame& frame) override;
  void on_frame_refused(const FrameError& error) override;
  void on_turn_end() override { session_.finish_step(); }  // may destroy *this
  void on_lost(std::string_view reason) override;

 private:
  void refuse_frame(ErrorCode error, std::string_view text);
  GuestSession& session_;

 public:
  std::shared_ptr<Connection> connection;
  std::unique_ptr<bridge::AgentBridge> bridge;  ///< of a tool of an older dialect; null: KVMI 2
  std::optional<DialedArrival> dialed;          ///< there with a bridge
  std::optional<core::TimePoint> close_by{};    ///< such a tool was told UNHOOK; then it is closed
  AgentId id;
  std::string name;
  DialectKvmi2 dialect_kvmi2;
  Dialect& dialect = dialect_kvmi2;
  core::Peer peer;
  Ticket ticket;
  Ticket attachment;
  std::string rule;
  Role role{};
  unsigned malformed_in_a_row = 0;
  std::optional<shm::GrantFile> ram_grant;  ///< revoked when it goes
  LogBudget log_budget;
  LogBudget audit_budget;  ///< of refused commands: they cost the peer nothing
  bool dirty = false;
  bool lost = false;
  bool flush_first = false;
};

}  // namespace kvmid::io
