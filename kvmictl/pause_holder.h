// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// vCPUs held still by unanswered PAUSE events.
///
/// Purpose:  a pause lives as long as an agent does not reply; somebody has to be that agent.
/// Threads:  none.
/// Lifetime: the destructor closes the connection, and kvmid lets the vCPUs go.

#include <functional>
#include <string>
#include <vector>

#include "client/agent_client.h"
#include "client/agent_loop.h"
#include "kvmictl/arguments.h"

namespace kvmid::ctl {

class PauseHolder {
 public:
  /// Attaches, asks for the pause, waits until every asked vCPU stands still.
  static Result<PauseHolder, client::ClientError> stop(const Arguments& arguments);

  /// Holds until `until`, the signal, a connection on `listener` (-1: none), or until kvmid ended it all.
  /// `say` gets what people should know meanwhile (kvmid's limit passed). Returns why it ended.
  enum class End { Time, Signal, Asked, Expired, Lost };
  End hold(client::SteadyClock::time_point until, client::StopSignal& signal, int listener,
           const std::function<void(const std::string&)>& say);
  /// Answers what is still held; how many vCPUs that were. Crash ends the guest.
  Result<std::size_t, client::ClientError> release(Action action = Action::Allow);

  [[nodiscard]] std::size_t held() const { return events_.size(); }
  [[nodiscard]] const client::Welcome& guest() const { return client_.welcome(); }
  /// For commands while the vCPUs stand still. Messages are taken by hold() only.
  [[nodiscard]] client::AgentClient& client() { return client_; }
  [[nodiscard]] const std::vector<client::ReceivedEvent>& events() const { return events_; }
  /// kvmid's limit as the PAUSE events said it; 0: none.
  [[nodiscard]] std::chrono::milliseconds limit() const;

 private:
  explicit PauseHolder(client::AgentClient client) : client_(std::move(client)) {}
  End take_all(const std::function<void(const std::string&)>& say, bool& ended);

  client::AgentClient client_;
  std::vector<client::ReceivedEvent> events_;
};

/// The abstract socket of the holder of this user and guest ("@kvmictl-pause-1000-6a1f...").
std::string holder_address(unsigned uid, const Uuid& guest);

}  // namespace kvmid::ctl
