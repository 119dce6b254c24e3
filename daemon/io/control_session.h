// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "daemon/io/connection.h"
#include "daemon/io/registry.h"
#include "daemon/io/services.h"
#include "daemon/io/snapshot.h"
#include "protocol/dialect_kvmi2.h"

namespace kvmid::io {

/// An agent's control connection: the list of guests it may see, and their arrivals and departures.
///
/// Purpose:  serves GET_VERSION and GET_GUESTS, sends GUEST_ON and GUEST_OFF; anything else is answered KVMI_ENOSYS.
/// Threads:  the thread of `context`, never a shard.
/// Lifetime: `services` outlive it. `gone` is called once, at the end of a turn; it may destroy the session.
class ControlSession final : private Connection::Owner {
 public:
  using Gone = std::function<void(ControlSession&)>;

  ControlSession(boost::asio::io_context& context, AgentArrival arrival,
                 std::shared_ptr<const core::Policy> policy, const Services& services, Gone gone);
  ~ControlSession();

  /// Sends the welcome and begins.
  void start();
  /// A guest came or went; told if policy lets this peer see it.
  void tell(const GuestChange& change);
  /// A new policy: told of guests that it may see now and of those it may not see any more. False: no rule knows it any
  /// more, and it is being closed.
  bool apply(std::shared_ptr<const core::Policy> policy);
  [[nodiscard]] AgentSnapshot snapshot() const;

 private:
  void on_frame(const Frame& frame) override;
  void on_frame_refused(const FrameError& error) override;
  void on_turn_end() override;
  void on_lost(std::string_view reason) override;

  void serve(Seq seq, const Command& command);
  void serve_guests(Seq seq, const GetGuests& command);
  void reply(Seq seq, const CommandReply& reply);
  void queued();
  void refuse_frame(ErrorCode error, std::string_view text);
  void lose(std::string_view reason, bool flush_first);
  void audit(AuditKind kind, std::string_view reason);
  [[nodiscard]] bool visible(const Uuid& uuid, std::string_view name) const;

  std::shared_ptr<const core::Policy> policy_;
  const Services& services_;
  AgentArrival arrival_;
  Gone gone_;
  std::shared_ptr<Connection> connection_;
  DialectKvmi2 dialect_kvmi2_;
  Dialect& dialect_ = dialect_kvmi2_;
  std::vector<kvmi_guest_entry> entries_;
  unsigned malformed_in_a_row_ = 0;
  bool lost_ = false;
  bool flush_first_ = false;
};

}  // namespace kvmid::io
