// SPDX-License-Identifier: GPL-2.0-or-later
// What policy refuses: agents, hypervisors, commands, events, roles. Each refusal says who and what.
#include <unistd.h>
#include <catch2/catch.hpp>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

std::string text_in(const kvmi_welcome& welcome) { return std::string(text_of(welcome.text, sizeof welcome.text)); }

EventSet set_of(EventKind kind) {
  EventSet set;
  set.add(kind);
  return set;
}

/// Everybody may do everything with the bystander; this user may do a little with "web*"; nobody knows other guests.
const std::string kNarrow = wire_config(R"({"policy": [
  {"name": "bystander", "match": "*", "guests": ["bystander"], "commands": ["*"], "events": ["*"], "role": "decider",
   "deadline_ms": 60000},
  {"name": "watchers", "match": "*", "guests": ["watched*"], "commands": ["CONTROL_EVENTS", "GET_REGISTERS"],
   "events": ["hypercall", "msr"], "role": "observer"},
  {"name": "web", "match": "*", "guests": ["web?"], "commands": ["CONTROL_EVENTS", "GET_REGISTERS"],
   "events": ["hypercall"], "role": "decider", "deadline_ms": 60000}]})");

}  // namespace

TEST_CASE("an agent whose guest no rule names is refused", "[wire][policy]") {
  WireDaemon daemon(kNarrow);
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "database"});
  ScriptedHypervisor known(daemon.hypervisors(), {.uuid = uuid_of(2), .name = "web1"});
  attach_agent(daemon.agents(), uuid_of(2), "probe");
  daemon.wait_log({"guest online", "guest=database"});
  const auto refused = daemon.counter("connections_refused");

  WireSocket socket(daemon.agents());
  const auto welcome = say_hello(socket, bytes_of(good_hello(uuid_of(1), "curious")));

  REQUIRE(welcome);
  CHECK(welcome->status == -KVMI_EPERM);
  CHECK_THAT(text_in(*welcome), Catch::Contains("database") && Catch::Contains("uid " + std::to_string(::getuid())));
  CHECK(socket.wait_closed());
  daemon.wait_log({"agent refused", "name=curious", "uid=" + std::to_string(::getuid()), "error=EPERM"});
  CHECK(daemon.wait_counter("connections_refused", refused + 1) == refused + 1);
  // Nor does the list of guests show it.
  auto control = client::AgentClient::connect({.socket = daemon.agents(), .name = "lister", .guest = {}});
  REQUIRE(control);
  const auto guests = control->list_guests();
  REQUIRE(guests);
  CHECK(guests->size() == 2);
  for (const auto& guest : *guests) CHECK(guest.name != "database");
  bystander.check();
}

TEST_CASE("an agent that no rule knows is refused everywhere, and learns nothing of guests", "[wire][policy]") {
  const auto other = std::to_string(::getuid() + 1);
  WireDaemon daemon(wire_config(R"({"policy": [{"match": {"uid": [)" + other + R"(]}, "commands": ["*"]}]})"));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  daemon.wait_log({"guest online", "guest=web1"});
  std::string text;
  for (const Uuid& guest : {uuid_of(1), uuid_of(99)}) {
    WireSocket socket(daemon.agents());
    const auto welcome = say_hello(socket, bytes_of(good_hello(guest, "stranger")));
    REQUIRE(welcome);
    CHECK(welcome->status == -KVMI_EPERM);
    CHECK_THAT(text_in(*welcome), !Catch::Contains("web1"));
    CHECK(socket.wait_closed());
  }
  WireSocket control(daemon.agents());
  const auto welcome = say_hello(control, bytes_of(good_hello(Uuid{}, "stranger")));
  REQUIRE(welcome);
  CHECK(welcome->status == -KVMI_EPERM);
  CHECK(daemon.wait_counter("connections_refused", 3) == 3);
  daemon.wait_log({"agent refused", "name=stranger", "error=EPERM"});
}

TEST_CASE("a command that policy does not give is EPERM, also where the hypervisor has it", "[wire][policy]") {
  WireDaemon daemon(kNarrow);
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "web-agent");
  CHECK(agent.welcome().commands.has(CommandId::GetRegisters));
  CHECK_FALSE(agent.welcome().commands.has(CommandId::ReadPhysical));
  CHECK(agent.get_registers(VcpuId{0}));
  const auto refused = daemon.counter("commands_refused");
  const auto read = agent.read_physical(Gpa{0x1000}, 8);
  REQUIRE_FALSE(read);
  CHECK(read.error().code == ErrorCode::NotPermitted);
  CHECK_THAT(read.error().text, Catch::Contains("policy"));
  const auto shutdown = agent.shutdown_guest();
  REQUIRE_FALSE(shutdown);
  CHECK(shutdown.error().code == ErrorCode::NotPermitted);
  daemon.wait_log({"command refused", "guest=web1", "command=READ_PHYSICAL", "error=EPERM"});
  daemon.wait_log({"command refused", "guest=web1", "command=SHUTDOWN_GUEST", "error=EPERM"});
  CHECK(daemon.wait_counter("commands_refused", refused + 2) == refused + 2);
  CHECK(agent.get_registers(VcpuId{0}));
  bystander.check();
}

TEST_CASE("an event that policy does not give is EPERM, and none of the set is taken", "[wire][policy]") {
  WireDaemon daemon(kNarrow);
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "web-agent");
  CHECK(agent.welcome().events == set_of(EventKind::Hypercall));
  EventSet both = set_of(EventKind::Hypercall);
  both.add(EventKind::Msr);
  const auto refused = agent.subscribe(both, Role::Decider);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::NotPermitted);
  CHECK_THAT(refused.error().text, Catch::Contains("policy"));
  daemon.wait_log({"command refused", "guest=web1", "command=CONTROL_EVENTS", "error=EPERM"});
  // The hypercall of the refused set is nobody's: kvmid answers alone.
  const Seq seq = hypervisor.raise(make_event(EventKind::Hypercall));
  REQUIRE(hypervisor.wait_reply(seq));
  CHECK_FALSE(agent.next_message(Millis{0}).value());
  const auto allowed = agent.subscribe(set_of(EventKind::Hypercall), Role::Decider);
  REQUIRE(allowed);
  CHECK(*allowed == set_of(EventKind::Hypercall));
  bystander.check();
}

TEST_CASE("an agent that may only observe cannot decide", "[wire][policy]") {
  WireDaemon daemon(kNarrow);
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "watched1"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "watcher");
  CHECK(agent.welcome().role == Role::Observer);
  const auto refused = agent.subscribe(set_of(EventKind::Hypercall), Role::Decider);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::NotPermitted);
  CHECK_THAT(refused.error().text, Catch::Contains("observ"));
  REQUIRE(agent.subscribe(set_of(EventKind::Hypercall), Role::Observer));
  const Seq seq = hypervisor.raise(make_event(EventKind::Hypercall));
  const auto reply = hypervisor.wait_reply(seq);
  REQUIRE(reply);
  CHECK(reply->action == Action::Allow);
  const auto seen = agent.wait_event(kBound);
  REQUIRE(seen);
  REQUIRE(*seen);
  CHECK_FALSE((*seen)->event.decide);
  bystander.check();
}

TEST_CASE("a hypervisor of a user that the configuration does not name is refused", "[wire][policy]") {
  const auto other = std::to_string(::getuid() + 1);
  WireDaemon daemon(wire_config(R"({"hypervisors": {"uid": [)" + other + "]}}"));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "intruder"});
  REQUIRE(hypervisor.answer());
  CHECK(hypervisor.answer()->status == ErrorCode::NotPermitted);
  CHECK_THAT(hypervisor.answer()->text, Catch::Contains("uid=" + std::to_string(::getuid())));
  CHECK(hypervisor.wait_closed());
  daemon.wait_log({"hypervisor refused", "guest=intruder", "error=EPERM"});
  CHECK(daemon.wait_counter("connections_refused", 1) == 1);
}
