// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "daemon/io/control_session.h"
#include "daemon/io/counters.h"
#include "daemon/io/dialler.h"
#include "daemon/io/failures.h"
#include "daemon/io/hello_reader.h"
#include "daemon/io/listener.h"
#include "daemon/io/log_budget.h"
#include "daemon/io/registry.h"
#include "daemon/io/services.h"
#include "daemon/io/settings.h"
#include "daemon/io/shard.h"
#include "daemon/io/snapshot.h"

namespace kvmid::io {

/// The front of the daemon: listeners, hellos, control connections, and the shards behind it.
///
/// Purpose:  finds out who a newcomer is, and hands its socket to the right shard.
/// Shapes:   open(), then run `front` (on one thread) until stop() has done its work and run() returns.
/// Errors:   open() says which socket could not be opened; a newcomer's fault is a refusal and a log line.
/// Threads:  `front` runs on one thread; stop() there too. snapshots may be asked for on any other thread but a shard's.
/// Lifetime: `front`, `log` and the witnesses outlive it; destroy it after `front` has stopped running.
class Broker {
 public:
  /// How long stop() waits for hypervisors to confirm that everything was withdrawn.
  static constexpr std::chrono::seconds kStopTimeout{2};

  Broker(boost::asio::io_context& front, Settings settings, Log& log, Witnesses witnesses = {});
  ~Broker();
  Broker(const Broker&) = delete;
  Broker& operator=(const Broker&) = delete;

  /// Opens the sockets that were not passed and starts the shards. The error names the socket.
  Result<void, ListenError> open(PassedSockets passed = {});
  /// No newcomers; everything is withdrawn from every guest, or kStopTimeout passes; then `done` is called, once, on
  /// `front`, which the broker does not keep running any more.
  void stop(std::function<void()> done);

  /// New limits, hypervisors' peers and policy; listeners and shards stay what they are. Whoever is connected is held to
  /// them at once, but for hypervisors: guests keep running. `done` is called on `front` when every shard has done it.
  /// Call from any thread.
  void reload(Settings settings, std::function<void(PolicyEffect)> done);

  /// Calls `answered` on `front` once every shard has taken a turn; never, where one hangs. Not after stop().
  void ask_shards(std::function<void()> answered);

  // Each asks the shards, and leaves out those that do not answer in time.
  [[nodiscard]] StatusSnapshot status(std::chrono::milliseconds timeout);
  [[nodiscard]] std::vector<GuestSnapshot> guests(std::chrono::milliseconds timeout);
  /// Control connections, from the front thread; empty if it does not answer in time.
  [[nodiscard]] std::vector<AgentSnapshot> control_agents(std::chrono::milliseconds timeout);
  /// The policy in force, from the front thread; null if it does not answer in time.
  [[nodiscard]] std::shared_ptr<const core::Policy> policy(std::chrono::milliseconds timeout);
  /// The last connections that failed, oldest first. Call from any thread.
  [[nodiscard]] std::vector<ConnectionFailure> failures(std::chrono::milliseconds timeout) const;

 private:
  enum class Side : std::uint8_t { Hypervisor, Agent };

  Result<void, ListenError> open_side(const ListenAt& at, std::vector<PassedSocket> passed, Side side);
  void accepted(UniqueFd fd, Side side);
  void hello_failed(Side side, Greeted greeted, HelloFailure failure, const std::string& text);
  void hypervisor_greeted(Greeted greeted);
  void agent_greeted(Greeted greeted);
  void attach(AgentArrival arrival);
  void open_control(AgentArrival arrival);
  void refuse(Greeted& greeted, const HypervisorHello& hello, std::string_view step, ErrorCode error,
              const std::string& text);
  void refuse(AgentArrival& arrival, std::string_view step, ErrorCode error, const std::string& text);
  void dial_refused(const AgentArrival& arrival, std::string_view step, ErrorCode error, const std::string& text);
  [[nodiscard]] bool take_place(Ticket& place);
  void apply(Settings settings, std::function<void(PolicyEffect)> done);
  void audit_refusal(AuditRecord record, ErrorCode error, const std::string& text);
  void shards_ended();
  [[nodiscard]] bool may_log_refusal();

  boost::asio::io_context& front_;
  Settings settings_;  ///< the front's thread only
  std::shared_ptr<const core::Policy> policy_;
  Log& log_;
  IoCounters counters_;
  FailureRing failures_;
  std::shared_ptr<std::atomic<std::uint32_t>> connections_ = std::make_shared<std::atomic<std::uint32_t>>(0);
  std::atomic<std::size_t> control_count_{0};
  Registry registry_;
  Services services_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  Dialler dialler_;
  std::unordered_set<std::shared_ptr<HelloReader>> readers_;
  std::unordered_map<ControlSession*, std::unique_ptr<ControlSession>> controls_;
  boost::asio::steady_timer stop_timer_;
  std::thread stop_thread_;
  LogBudget refusals_;  ///< lines that newcomers cause
  LogBudget audited_refusals_;
  std::function<void()> stop_done_;
  bool stopping_ = false;
};

}  // namespace kvmid::io
