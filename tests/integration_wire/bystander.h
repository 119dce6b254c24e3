// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest and its agent that exchange events the whole time, beside whatever a test does to others.
///
/// Purpose:  "only the one who did it loses" is asserted, not assumed.
/// Threads:  one of its own makes an event, has the agent decide it and looks at the reply, again and again.
/// Errors:   check() throws what went wrong there.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "client/agent_client.h"
#include "tests/integration_wire/scripted_hypervisor.h"
#include "tests/support/processes.h"

namespace kvmid::test {

class Bystander {
 public:
  Bystander(const std::string& hypervisor_socket, const std::string& agent_socket);
  ~Bystander();
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  /// Nothing has gone wrong, and events are still exchanged: waits for `rounds` new ones.
  void check(std::uint64_t rounds = 20);
  [[nodiscard]] std::uint64_t rounds() const { return rounds_.load(std::memory_order_relaxed); }

 private:
  void run();
  void round();

  ScriptedHypervisor hypervisor_;
  client::AgentClient agent_;
  std::atomic<std::uint64_t> rounds_{0};
  std::mutex mutex_;
  std::condition_variable stop_wanted_;
  bool stop_ = false;
  std::string failure_;
  std::thread thread_;
};

/// Attaches a well-behaved agent. Throws with kvmid's text where it is refused; waits while the guest is not known yet.
client::AgentClient attach_agent(const std::string& socket_path, const Uuid& guest, const std::string& name);

}  // namespace kvmid::test
