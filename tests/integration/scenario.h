// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the integration tests share: a policy, test-agent as an object, and what its lines say.
///
/// Threads:  as tests/support/process.h.

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/processes.h"

namespace kvmid::test {

using Json = nlohmann::json;

/// A policy with one rule: everybody may everything. The deadline is longer than any bound unless a test is about it,
/// so that a wait for a deadline that should not be is a failure.
struct PolicyOptions {
  unsigned deadline_ms = 60000;
  unsigned strikes = 3;
  unsigned queue_bytes = 4U << 20U;
};
[[nodiscard]] std::string config_text(const PolicyOptions& policy);

/// A test-agent process.
class TestAgent {
 public:
  /// Starts it and waits until kvmid has confirmed all that it wishes. `options` come behind --socket and --guest.
  TestAgent(const Daemon& daemon, const Guest& guest, std::vector<std::string> options);

  [[nodiscard]] Process& process() { return process_; }
  /// Its number in notices.
  [[nodiscard]] std::uint32_t id() const { return id_; }

  /// All lines so far of that type: "event", "notice", "guest_off", "guest_on", "closed".
  [[nodiscard]] std::vector<Json> lines(const std::string& type);
  /// All notices so far of that kind: "expired", "reply_refused", "demoted", "outcome".
  [[nodiscard]] std::vector<Json> notices(const std::string& kind);
  [[nodiscard]] std::vector<std::uint32_t> event_seqs();
  /// Waits until there are at least so many. TestError when there are not.
  std::vector<Json> wait_lines(const std::string& type, std::size_t count);
  std::vector<Json> wait_notices(const std::string& kind, std::size_t count);
  /// Waits for an event that it owes a reply to.
  Json wait_owed();

 private:
  void parse();
  void wait_until_or_end(const std::function<bool()>& condition);
  std::vector<Json> parsed_;
  std::uint32_t id_ = 0;
  Process process_;
};

/// How the events of an agent and their outcomes belong together.
struct Account {
  bool contiguous = true;      ///< each event's number is the one after the one before: none lost, none twice
  bool outcomes_match = true;  ///< one outcome for each event, in the same order
  std::size_t events = 0;
  std::string text;  ///< what was wrong
};
/// Waits until the agent has an outcome for each event it has (the guest must be idle), and looks.
[[nodiscard]] Account account_of(TestAgent& agent);

/// The guest does nothing any more that could be watched.
void to_idle(const Guest& guest, unsigned vcpu = 0);

}  // namespace kvmid::test
