// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A small service manager: opens listening sockets, starts kvmid on them, and hears what kvmid says of itself.
///
/// Purpose:  what systemd does for kvmid, without systemd: socket activation and the notify socket.
/// Errors:   TestError, with the reason and what kvmid printed.
/// Threads:  one, the test's.
/// Lifetime: the sockets live as long as the manager, whatever becomes of kvmid. The folder outlives it.
/// Source:   sd_listen_fds(3), sd_notify(3).

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "client/socket.h"
#include "tests/support/processes.h"

namespace kvmid::test {

using client::UniqueFd;

/// A unix socket of that type (SOCK_STREAM and so on) bound to `path`; `listening`: and listening.
[[nodiscard]] UniqueFd bound_socket(const std::string& path, int type, bool listening);
/// Connected. TestError when it is refused.
[[nodiscard]] UniqueFd connected_socket(const std::string& path);

/// One message of sd_notify: lines of NAME=VALUE.
struct Notification {
  std::string text;
  [[nodiscard]] std::optional<std::string> value(const std::string& name) const;
  [[nodiscard]] bool says(const std::string& line) const;
};

/// A descriptor that kvmid gets, and the name it gets it under.
struct Passed {
  int fd = -1;
  std::string name;
};

class Manager {
 public:
  /// Opens hypervisor.sock, agent.sock and admin.sock in the folder, with the rights of the units.
  explicit Manager(const RuntimeFolder& folder);

  struct Start {
    std::string config{};                      ///< text of a configuration file
    std::vector<std::string> environment{};    ///< NAME=VALUE
    std::optional<std::vector<Passed>> fds{};  ///< instead of the three sockets
    std::string names{};                       ///< LISTEN_FDNAMES; empty: those of `fds`
    std::string pid = "self";                  ///< LISTEN_PID
    std::vector<std::string> arguments{};      ///< of kvmid, behind --config
  };
  /// Starts kvmid and does not wait for it.
  Process& start(const Start& how);
  /// start(), and waits until it says READY=1.
  Process& start_ready(const Start& how);
  [[nodiscard]] Process& process() { return *process_; }

  [[nodiscard]] std::string agents() const { return folder_.file("agent.sock"); }
  [[nodiscard]] std::string hypervisors() const { return folder_.file("hypervisor.sock"); }
  [[nodiscard]] std::string admin() const { return folder_.file("admin.sock"); }
  [[nodiscard]] std::vector<Passed> sockets() const;

  /// Everything that kvmid said so far.
  const std::vector<Notification>& said();
  [[nodiscard]] std::size_t count(const std::string& line);
  /// Waits for a notification that has that line, from the one with number `first` on; returns its number.
  std::size_t wait_said(const std::string& line, std::size_t first = 0);

 private:
  const RuntimeFolder& folder_;
  UniqueFd hypervisor_;
  UniqueFd agent_;
  UniqueFd admin_;
  UniqueFd notify_;
  std::vector<Notification> said_;
  std::optional<Process> process_;
};

/// How many guests kvmid lists on that agent socket; TestError where nobody serves it.
[[nodiscard]] std::size_t guests_at(const std::string& agent_socket);
/// Body of the answer to a GET on that admin socket. TestError unless the status is 200.
[[nodiscard]] std::string admin_get(const std::string& admin_socket, const std::string& target);

/// A configuration in which everybody may everything and no deadline passes in a test.
[[nodiscard]] std::string open_config(unsigned shards = 2);

}  // namespace kvmid::test
