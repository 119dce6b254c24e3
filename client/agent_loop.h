// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What a command-line agent needs round AgentClient: stopping by signal, waiting, reconnecting, exit codes.
///
/// Purpose:  the shipped agents and kvmictl share it. It is in the static library only.
/// Threads:  one.

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "client/agent_client.h"

namespace kvmid::client {

/// SIGINT and SIGTERM as a descriptor. Construct it before anything that could be interrupted half way.
class StopSignal {
 public:
  StopSignal();
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Waits for the signal at most that long; true when it came (now or earlier).
  [[nodiscard]] bool wait(Millis timeout);

 private:
  UniqueFd fd_;
  bool stopped_ = false;
};

struct Stopped {};
/// What the next turn of an agent's loop has to deal with.
using Turn = std::variant<AgentMessage, Stopped, ClientError>;

/// Waits for a message, the signal, or the end of the connection. Does not wake while nothing happens.
Turn next_turn(AgentClient& client, StopSignal& stop);

/// Attaches to a guest. With `wait` it tries again every second while kvmid or the guest is not there yet; other
/// errors (policy, permissions) end it. nullopt: the signal came.
std::optional<Result<AgentClient, ClientError>> attach_when_there(const ConnectOptions& options, std::string_view guest,
                                                                  bool wait, StopSignal& stop);
/// Would trying again later help?
bool may_pass(const ClientError& error);

/// "12:34:56.789", local time.
std::string time_of_day();
/// "2026-01-31T12:34:56.789Z".
std::string timestamp();
/// KVMID_AGENT_SOCKET, or where kvmid listens by default.
std::string default_socket();
/// Exit codes of agents and kvmictl: 1 failed, 3 kvmid not reachable, 4 no such guest, 5 refused by policy, 6 not
/// supported by this hypervisor, 7 timeout. (0 is success, 2 usage.)
int exit_code(const ClientError& error);

}  // namespace kvmid::client
