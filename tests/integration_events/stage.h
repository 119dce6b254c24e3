// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One guest, one deciding agent, and the guest's own account of what happened to it.
///
/// Purpose:  each test makes the guest do one thing, answers it, and looks into the guest for what came of it.
/// Shapes:   watch, then provoke(): the guest begins; the event is there and the vCPU stands still. While it does, the
///           guest is told to do nothing more. After the answer, finish() waits until the guest has got through.
/// Errors:   TestError.
/// Threads:  one.

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/processes.h"

namespace kvmid::test {

/// A kvmid for these tests: everything allowed, deadlines that no slow machine misses, default action ALLOW. Who
/// attaches to a guest of the name silent_guest(action) has a short deadline and that default.
class EventDaemon {
 public:
  EventDaemon() : EventDaemon("") {}
  /// `rules`: of its policy, each with a comma behind it; they come before its own. `member`: one more of the whole
  /// configuration; `hypervisors`: one more of that object in it.
  explicit EventDaemon(const std::string& rules, const std::string& member = "", const std::string& hypervisors = "");
  [[nodiscard]] const RuntimeFolder& folder() const { return folder_; }
  [[nodiscard]] Daemon& daemon() { return *daemon_; }

 private:
  RuntimeFolder folder_;
  std::optional<Daemon> daemon_;
};

/// The name of a guest whose agents are not waited for.
std::string silent_guest(Action default_action);

struct StageOptions {
  unsigned vcpus = 1;
  std::string guest = "web1";
  std::uint8_t number = 1;  ///< of its uuid
  bool two_agents = false;
  bool outcomes = false;
  std::vector<std::string> arguments{};  ///< of kvmi-emu
};

/// What the agent was told, and what was sent to whom besides.
class Stage {
 public:
  explicit Stage(EventDaemon& daemon, unsigned vcpus = 1) : Stage(daemon, StageOptions{.vcpus = vcpus}) {}
  Stage(EventDaemon& daemon, const StageOptions& options);

  Guest guest;
  AgentClient agent;
  std::optional<AgentClient> second;  ///< with StageOptions::two_agents

  /// `agent` and, where there is one, `second`.
  [[nodiscard]] std::vector<AgentClient*> agents();
  [[nodiscard]] const std::string& agent_socket() const { return agent_socket_; }
  void subscribe(EventKind kind) { subscribe(agent, kind); }
  static void subscribe(AgentClient& who, EventKind kind);
  /// Lets the guest do it; the event that stops it. The guest's next rounds are idle.
  client::ReceivedEvent provoke(GuestMode mode);
  /// The next event, which must come.
  client::ReceivedEvent next_event() { return next_event(agent); }
  client::ReceivedEvent next_event(AgentClient& who);
  /// The next notice, which must come.
  client::ReceivedNotice next_notice();
  /// Waits until the guest has done that `times` more than before provoke(), allowing events on the way; how many came
  /// to `agent`.
  unsigned finish(GuestMode mode, std::uint64_t times = 1);
  /// The mailbox as it was before provoke().
  [[nodiscard]] const Mailbox& before() const { return before_; }
  [[nodiscard]] Mailbox now() const { return guest.mailbox(); }
  [[nodiscard]] std::uint64_t done(GuestMode mode) const { return guest.done(mode); }
  [[nodiscard]] std::uint64_t done_before(GuestMode mode) const {
    return before_.done.at(static_cast<std::size_t>(mode));
  }

 private:
  std::string agent_socket_;
  std::deque<client::ReceivedEvent> kept_;  ///< came to `agent` before a notice that was waited for
  Mailbox before_{};
};

/// A set of one.
EventSet only(EventKind kind);

}  // namespace kvmid::test
