// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A whole broker in the test's process, with sockets in a folder of its own and a policy that lets everybody in.

#include <spdlog/logger.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <catch2/catch.hpp>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>

#include "client/agent_client.h"
#include "daemon/io/broker.h"
#include "tests/support/process.h"

namespace kvmid::test {

inline Uuid uuid_of(std::uint8_t number) {
  Uuid uuid;
  uuid.bytes.fill(number);
  return uuid;
}

/// Every right on every guest, for every peer.
inline core::Policy open_policy() {
  core::Policy policy;
  core::Rule& rule = policy.rules.emplace_back();
  rule.any_peer = true;
  rule.guests = {"*"};
  rule.grant.rule = "everybody";
  rule.grant.commands.bits = ~std::uint64_t{0};
  rule.grant.events = kEveryEvent;
  rule.grant.role = Role::Decider;
  rule.grant.priority = 7;
  rule.grant.deadline = kBound;
  return policy;
}

class Scene {
 public:
  using Change = std::function<void(io::Settings&)>;

  explicit Scene(const Change& change = {}) {
    settings_.hypervisors.unix_path = folder_.file("hv");
    settings_.agents.unix_path = folder_.file("agents");
    settings_.hypervisor_peers.uids = {::getuid()};
    settings_.policy = open_policy();
    if (change) change(settings_);
    broker_.emplace(front_, settings_, log_);
    REQUIRE(broker_->open());
    thread_ = std::thread([this] { front_.run(); });
  }
  ~Scene() {
    std::promise<void> stopped;
    boost::asio::post(front_, [&] { broker_->stop([&] { stopped.set_value(); }); });
    stopped.get_future().wait();
    work_.reset();
    thread_.join();
  }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;

  [[nodiscard]] io::Broker& broker() { return *broker_; }
  [[nodiscard]] std::string file(std::string_view name) const { return folder_.file(name); }
  [[nodiscard]] const std::string& hypervisors() const { return settings_.hypervisors.unix_path; }

  void reload(const Change& change) {
    change(settings_);
    std::promise<void> done;
    broker_->reload(settings_, [&](io::PolicyEffect) { done.set_value(); });
    done.get_future().wait();
  }
  [[nodiscard]] std::optional<io::GuestSnapshot> guest(const Uuid& uuid) {
    for (auto& one : broker_->guests(kBound))
      if (one.uuid == uuid) return one;
    return std::nullopt;
  }
  [[nodiscard]] bool wait_guest(const Uuid& uuid, const std::function<bool(const io::GuestSnapshot&)>& holds) {
    return wait_until([&] {
      const auto found = guest(uuid);
      return found && holds(*found);
    });
  }
  [[nodiscard]] bool wait_online(const Uuid& uuid, bool online = true) {
    return wait_guest(uuid, [&](const io::GuestSnapshot& one) { return one.info.online == online; });
  }
  /// The last failure at that step, once there is one.
  [[nodiscard]] io::ConnectionFailure wait_failure(std::string_view step) {
    std::optional<io::ConnectionFailure> found;
    const bool came = wait_until([&] {
      for (auto& failure : broker_->failures(kBound))
        if (failure.step == step) found = failure;
      return found.has_value();
    });
    INFO("no failure at step " << step);
    REQUIRE(came);
    return *found;
  }
  [[nodiscard]] client::AgentClient attach(const Uuid& uuid) {
    client::ConnectOptions options;
    options.socket = settings_.agents.unix_path;
    options.guest = uuid;
    options.timeout = kBound;
    auto agent = client::AgentClient::connect(options);
    if (!agent) throw TestError("agent: " + agent.error().text);
    return std::move(*agent);
  }

 private:
  RuntimeFolder folder_;
  spdlog::logger log_{"test"};
  boost::asio::io_context front_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{front_.get_executor()};
  io::Settings settings_;
  std::optional<io::Broker> broker_;
  std::thread thread_;
};

}  // namespace kvmid::test
