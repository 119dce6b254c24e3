// SPDX-License-Identifier: GPL-2.0-or-later
// No descriptor left: newcomers are turned away, who is there goes on, and when descriptors are free again all is well.
#include <catch2/catch.hpp>
#include <list>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

TEST_CASE("without a descriptor left existing connections go on, and it recovers", "[wire][descriptors]") {
  constexpr std::size_t kDescriptors = 48;
  WireDaemon daemon(wire_config(), {"/usr/bin/prlimit", "--nofile=" + std::to_string(kDescriptors)});
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto before = daemon.open_descriptors();
  REQUIRE(before < kDescriptors);

  // More than there can be: connect() succeeds as long as the backlog has room.
  std::list<WireSocket> crowd;
  for (std::size_t i = 0; i < kDescriptors; ++i) {
    INFO("connection " << i);
    crowd.emplace_back(daemon.agents());
    const ByteBuffer hello = bytes_of(good_hello(uuid_of(0xbb), "crowd"));
    crowd.back().send(hello);  // may be turned away already
  }
  daemon.wait_log({"no descriptor left", "socket=", "reason="});
  bystander.check(100);

  // Each of the crowd was let in, or closed; nobody hangs.
  std::size_t let_in = 0;
  std::size_t turned_away = 0;
  for (auto& socket : crowd) {
    if (socket.read_exact(sizeof(kvmi_welcome)))
      ++let_in;
    else
      ++turned_away;
  }
  CHECK(let_in > 0);
  CHECK(turned_away > 0);
  CHECK(let_in < kDescriptors - 8);  // what the daemon needs for itself and for the bystander
  bystander.check(100);

  crowd.clear();
  CHECK(wait_until([&] { return daemon.open_descriptors() <= before; }));
  CHECK(daemon.wait_counter("accept_paused", 1) >= 1);
  CHECK(daemon.wait_counter("connections_refused", turned_away) >= turned_away);
  auto agent = attach_agent(daemon.agents(), uuid_of(0xbb), "late");
  CHECK(agent.get_registers(VcpuId{0}));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "late"});
  CHECK(hypervisor.accepted());
  bystander.check();
}

TEST_CASE("a crowd of silent connections is cleared by the hello timeout", "[wire][descriptors]") {
  WireDaemon daemon(wire_config(R"({"limits": {"hello_timeout_ms": 200}})"), {"/usr/bin/prlimit", "--nofile=48"});
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  std::list<WireSocket> crowd;
  for (int i = 0; i < 60; ++i) crowd.emplace_back(daemon.hypervisors());
  // They stay open on this side and never say a word, yet a newcomer who tries again gets in.
  CHECK(wait_until([&] {
    return client::AgentClient::connect({.socket = daemon.agents(), .name = "patient", .guest = uuid_of(0xbb)})
        .has_value();
  }));
  for (auto& socket : crowd) CHECK(socket.wait_closed());
  CHECK(daemon.wait_counter("hello_timeouts", 1) >= 1);
  bystander.check();
}
