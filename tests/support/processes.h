// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// kvmid, emulated guests and agents as a test wants them: started, ready, and looked into.
///
/// Purpose:  tests say what they are about; starting and waiting for readiness is here.
/// Errors:   TestError, with the reason and what the program printed.
/// Threads:  as process.h.
/// Source:   hypervisor/emulated/GUEST.md for the mailbox.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/agent_client.h"
#include "hypervisor/emulated/mailbox.h"
#include "tests/support/process.h"

namespace kvmid::test {

using emulated::GuestMode;
using emulated::Mailbox;

/// A uuid that ends in `number`.
[[nodiscard]] Uuid uuid_of(std::uint8_t number);

struct DaemonOptions {
  std::string config;  ///< the text of a configuration file; empty: the daemon's defaults
  std::vector<std::string> arguments;
};

/// A kvmid on a runtime folder; it is ready when the constructor returns.
class Daemon {
 public:
  explicit Daemon(const RuntimeFolder& folder, DaemonOptions options = {});

  [[nodiscard]] Process& process() { return process_; }
  [[nodiscard]] std::string agent_socket() const { return folder_.file("agent.sock"); }
  [[nodiscard]] std::string hypervisor_socket() const { return folder_.file("hypervisor.sock"); }
  [[nodiscard]] std::string admin_socket() const { return folder_.file("admin.sock"); }
  /// kill -9, and start it again on the same folder with the same options.
  void kill_and_restart();
  void kill() { process_.kill(); }
  void restart();

 private:
  [[nodiscard]] Process start() const;
  void wait_ready();
  const RuntimeFolder& folder_;
  DaemonOptions options_;
  Process process_;
};

/// A guest's memory, seen from outside of everything under test: the memfd of its hypervisor process.
class GuestMemory {
 public:
  /// Waits until process `pid` has guest RAM.
  explicit GuestMemory(pid_t pid);
  void read(Gpa gpa, void* out, std::size_t size) const;
  void write(Gpa gpa, const void* data, std::size_t size) const;
  [[nodiscard]] std::uint64_t read_u64(Gpa gpa) const;

 private:
  client::UniqueFd fd_;
};

struct GuestOptions {
  std::string name = "web1";
  Uuid uuid = uuid_of(1);
  unsigned vcpus = 1;
  GuestMode mode = GuestMode::Idle;  ///< of every vCPU, in effect when the constructor returns
  std::vector<std::string> arguments;
};

/// A kvmi-emu with the test guest. When the constructor returns its vCPUs are in their loops; kvmid may not know it
/// yet.
class Guest {
 public:
  Guest(const RuntimeFolder& folder, GuestOptions options = {});

  [[nodiscard]] Process& process() { return process_; }
  [[nodiscard]] const Uuid& uuid() const { return options_.uuid; }
  [[nodiscard]] std::string uuid_text() const;
  [[nodiscard]] const GuestOptions& options() const { return options_; }
  /// Waits until kvmid lists it as online.
  Guest& wait_online();

  // The guest's own state, past kvmid.
  [[nodiscard]] const GuestMemory& memory() const { return memory_; }
  [[nodiscard]] Mailbox mailbox(unsigned vcpu = 0) const;
  [[nodiscard]] std::uint64_t rounds(unsigned vcpu = 0) const { return mailbox(vcpu).rounds; }
  /// Times the vCPU finished what it does in that mode.
  [[nodiscard]] std::uint64_t done(GuestMode mode, unsigned vcpu = 0) const;
  void set_mode(GuestMode mode, unsigned vcpu = 0) const;
  void set_field(std::size_t offset, std::uint64_t value, unsigned vcpu = 0) const;
  /// Waits until it began `more` further rounds. TestError when it does not.
  void wait_rounds(std::uint64_t more, unsigned vcpu = 0, Millis bound = kBound) const;
  /// Sets the mode and waits until the vCPU finished `times` of it. TestError when it does not.
  void do_times(GuestMode mode, std::uint64_t times, unsigned vcpu = 0, Millis bound = kBound) const;
  /// Has every vCPU call hammer_target `calls` times more; wait_hammered() waits until all have. Where it is, and what
  /// was counted: Mailbox::hammer_*.
  void hammer(std::uint64_t calls) const;
  [[nodiscard]] bool hammered() const;
  void wait_hammered(Millis bound = kBound) const;

 private:
  std::string socket_;
  std::string agent_socket_;
  GuestOptions options_;
  Process process_;
  GuestMemory memory_;
};

/// The guest is in kvmid's list, online.
[[nodiscard]] bool is_online(const std::string& agent_socket, const Uuid& guest);

// ---- an agent in the test itself ----

/// Attached. TestError when it is refused.
[[nodiscard]] AgentClient attach(const std::string& agent_socket, const Uuid& guest, std::string name = "test",
                                 bool outcomes = false);
/// The value of a result; TestError with its text when there is none.
template <class T>
T check(Result<T, client::ClientError> result) {
  if (!result) throw TestError(result.error().text);
  return std::move(result).value();
}
inline void check(const Result<void, client::ClientError>& result) {
  if (!result) throw TestError(result.error().text);
}
/// A field of a vCPU's mailbox, by READ_PHYSICAL and WRITE_PHYSICAL: read_mailbox(agent, 0, offsetof(Mailbox, rounds)).
[[nodiscard]] std::uint64_t read_mailbox(AgentClient& agent, unsigned vcpu, std::size_t offset);
void write_mailbox(AgentClient& agent, unsigned vcpu, std::size_t offset, std::uint64_t value);

}  // namespace kvmid::test
