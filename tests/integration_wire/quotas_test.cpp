// SPDX-License-Identifier: GPL-2.0-or-later
// What one peer may hold at once. Over it is an answer or a disconnect with its reason, never growth.
#include <catch2/catch.hpp>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

EventSet set_of(EventKind kind) {
  EventSet set;
  set.add(kind);
  return set;
}

/// One rule for everybody with that quota.
std::string with_quota(const std::string& quota, const std::string& limits = "{}") {
  return wire_config(R"({"policy": [{"match": "*", "commands": ["*"], "events": ["*"], "role": "decider",
      "deadline_ms": 60000, "quota": )" +
                     quota + R"(}], "limits": )" + limits + "}");
}

}  // namespace

TEST_CASE("an agent that does not read is disconnected, and costs a bounded amount of memory", "[wire][quotas]") {
  constexpr std::uint64_t kQueueBytes = 1U << 20U;
  WireDaemon daemon(with_quota(R"({"queue_bytes": 1048576})"));
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  auto reader = attach_agent(daemon.agents(), uuid_of(1), "reader");
  WireSocket slow = raw_agent(daemon.agents(), uuid_of(1), "slow");
  slow.send(encoded(Command{ControlEvents{kAllVcpus, Operation::Enable, Role::Observer, set_of(EventKind::Hypercall)}},
                    Seq{1}));
  REQUIRE(slow.next_frame());
  const auto before = daemon.resident_bytes();

  // Each event is more than 1 KiB towards an observer that never reads.
  const std::size_t event_bytes = encoded(make_event(EventKind::Hypercall), Seq{1}).size();
  std::uint64_t peak = before;
  std::uint64_t events = 0;
  while (daemon.counter("slow_readers") == 0) {
    REQUIRE(events * event_bytes < 64 * kQueueBytes);
    for (int i = 0; i < 100; ++i, ++events) {
      REQUIRE(hypervisor.wait_reply(hypervisor.raise(make_event(EventKind::Hypercall))));
    }
    peak = std::max(peak, daemon.resident_bytes());
  }

  CHECK(events * event_bytes > kQueueBytes);  // not before its quota was used up
  // Its queue, what a growing buffer wastes, and some room for what else goes on.
  CHECK(peak < before + 16 * kQueueBytes);
  daemon.wait_log({"agent gone", "name=slow", "guest=web1", "slow reader", "queue_bytes"});
  CHECK(slow.wait_closed());
  // The guest never waited for it, and others at the same guest are served.
  CHECK(hypervisor.is_open());
  CHECK(reader.get_registers(VcpuId{0}));
  bystander.check();
}

TEST_CASE("a decider that does not read is disconnected, and its default counts", "[wire][quotas]") {
  WireDaemon daemon(
      wire_config(R"({"policy": [{"match": "*", "guests": ["bystander"], "commands": ["*"], "events": ["*"],
      "role": "decider", "deadline_ms": 60000}, {"match": "*", "commands": ["*"], "events": ["*"], "role": "decider",
      "deadline_ms": 60000, "default": "skip", "quota": {"queue_bytes": 65536, "requests": 1024}}]})"));
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  attach_agent(daemon.agents(), uuid_of(1), "probe");
  WireSocket slow = raw_agent(daemon.agents(), uuid_of(1), "slow");
  slow.send(encoded(Command{ControlEvents{kAllVcpus, Operation::Enable, Role::Decider, set_of(EventKind::Hypercall)}},
                    Seq{1}));
  REQUIRE(slow.next_frame());
  const Seq seq = hypervisor.raise(make_event(EventKind::Hypercall));
  REQUIRE(slow.next_frame());

  // Answers that it asks for and never reads.
  ByteBuffer commands;
  for (std::uint32_t i = 0; i < 64; ++i) {
    const ByteBuffer one = encoded(Command{GetRegisters{}}, Seq{i});
    commands.insert(commands.end(), one.begin(), one.end());
  }
  while (daemon.counter("slow_readers") == 0) {
    if (!slow.send(commands)) break;
  }

  const auto reply = hypervisor.wait_reply(seq);
  REQUIRE(reply);
  CHECK(reply->action == Action::Skip);
  CHECK(daemon.wait_counter("slow_readers", 1) == 1);
  CHECK(slow.wait_closed());
  daemon.wait_log({"agent gone", "name=slow", "slow reader"});
  bystander.check();
}

TEST_CASE("commands over the quota of open requests are EBUSY, and the others are answered", "[wire][quotas]") {
  WireDaemon daemon(with_quota(R"({"requests": 4})"));
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "greedy");
  auto modest = attach_agent(daemon.agents(), uuid_of(1), "modest");
  CHECK(agent.welcome().requests_max == 4);
  hypervisor.hold(CommandId::GetCpuid);
  std::vector<client::Ticket> tickets;
  for (int i = 0; i < 6; ++i) {
    const auto ticket = agent.submit(GetCpuid{.vcpu = VcpuId{0}});
    REQUIRE(ticket);
    tickets.push_back(*ticket);
  }
  for (const std::size_t over : {std::size_t{4}, std::size_t{5}}) {
    auto reply = agent.collect(tickets[over], kBound);
    REQUIRE(reply);
    CHECK(reply->error() == ErrorCode::Busy);
    CHECK_THAT(std::string(reply->text()), Catch::Contains("requests"));
  }
  daemon.wait_log({"command refused", "guest=web1", "command=GET_CPUID", "error=EBUSY"});
  CHECK(daemon.wait_counter("commands_refused", 2) >= 2);
  // The quota is the agent's own: another one's command goes through.
  CHECK(modest.get_registers(VcpuId{1}));

  const auto held = hypervisor.wait_held(4);
  REQUIRE(held.size() == 4);
  for (const auto& command : held)
    hypervisor.send(
        encoded(CommandReply{.id = KVMI_MSG_GET_CPUID, .text = {}, .body = GetCpuidReply{7, 0, 0, 0}}, command.seq));
  for (std::size_t i = 0; i < 4; ++i) {
    auto reply = agent.collect(tickets[i], kBound);
    REQUIRE(reply);
    CHECK(reply->ok());
  }
  CHECK(agent.get_registers(VcpuId{0}));  // what was answered is free again
  bystander.check();
}

TEST_CASE("tracked MSRs and restricted pages over their quota are EBUSY", "[wire][quotas]") {
  WireDaemon daemon(with_quota(R"({"msrs": 4, "pages": 10})"));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "greedy");
  REQUIRE(agent.control_msr(kAllVcpus, 0x174, true));  // two vCPUs, so two
  REQUIRE(agent.control_msr(kAllVcpus, 0x175, true));
  const auto msr = agent.control_msr(VcpuId{0}, 0x176, true);
  REQUIRE_FALSE(msr);
  CHECK(msr.error().code == ErrorCode::Busy);
  CHECK_THAT(msr.error().text, Catch::Contains("msrs"));
  REQUIRE(agent.control_msr(kAllVcpus, 0x174, false));
  CHECK(agent.control_msr(VcpuId{0}, 0x176, true));

  REQUIRE(agent.set_page_access(Gpa{0x10000}, 10, KVMI_PAGE_ACCESS_R));
  const auto page = agent.set_page_access(Gpa{0x40000}, 1, KVMI_PAGE_ACCESS_R);
  REQUIRE_FALSE(page);
  CHECK(page.error().code == ErrorCode::Busy);
  CHECK_THAT(page.error().text, Catch::Contains("pages"));
  REQUIRE(agent.set_page_access(Gpa{0x10000}, 10, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));
  CHECK(agent.set_page_access(Gpa{0x40000}, 1, KVMI_PAGE_ACCESS_R));
}

TEST_CASE("attachments over the quota of a user are EBUSY until one of them goes", "[wire][quotas]") {
  WireDaemon daemon(with_quota(R"({"attachments": 2})"));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"});
  std::optional<client::AgentClient> first = attach_agent(daemon.agents(), uuid_of(1), "first");
  auto second = attach_agent(daemon.agents(), uuid_of(1), "second");
  const auto refused = daemon.counter("connections_refused");
  const auto third = client::AgentClient::connect({.socket = daemon.agents(), .name = "third", .guest = uuid_of(1)});
  REQUIRE_FALSE(third);
  CHECK(third.error().kind == client::ClientErrc::Refused);
  CHECK(third.error().code == ErrorCode::Busy);
  CHECK_THAT(third.error().text, Catch::Contains("attachments"));
  CHECK(daemon.wait_counter("connections_refused", refused + 1) == refused + 1);
  daemon.wait_log({"agent refused", "name=third", "error=EBUSY"});
  first.reset();
  CHECK(wait_until([&] {
    return client::AgentClient::connect({.socket = daemon.agents(), .name = "third", .guest = uuid_of(1)}).has_value();
  }));
  CHECK(second.get_registers(VcpuId{0}));
}

TEST_CASE("guests over limits.guests_max are EBUSY until one of them goes", "[wire][quotas]") {
  WireDaemon daemon(wire_config(R"({"limits": {"guests_max": 2}})"));
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  auto second =
      std::make_unique<ScriptedHypervisor>(daemon.hypervisors(), ScriptedGuest{.uuid = uuid_of(2), .name = "web2"});
  REQUIRE(second->accepted());
  ScriptedHypervisor third(daemon.hypervisors(), {.uuid = uuid_of(3), .name = "web3"});
  REQUIRE(third.answer());
  CHECK(third.answer()->status == ErrorCode::Busy);
  CHECK_THAT(third.answer()->text, Catch::Contains("guests_max"));
  daemon.wait_log({"hypervisor refused", "guest=web3", "error=EBUSY"});
  second.reset();
  CHECK(wait_until([&] {
    return ScriptedHypervisor(daemon.hypervisors(), ScriptedGuest{.uuid = uuid_of(3), .name = "web3"}).accepted();
  }));
  bystander.check();
}

TEST_CASE("connections over limits.connections_max are refused until one of them goes", "[wire][quotas]") {
  WireDaemon daemon(wire_config(R"({"limits": {"connections_max": 4}})"));
  Bystander bystander(daemon.hypervisors(), daemon.agents());  // two of them
  auto first = attach_agent(daemon.agents(), uuid_of(0xbb), "first");
  std::optional<client::AgentClient> second = attach_agent(daemon.agents(), uuid_of(0xbb), "second");
  const auto refused = daemon.counter("connections_refused");
  WireSocket third(daemon.agents());
  CHECK(third.wait_closed());
  daemon.wait_log({"connection refused", "connections_max"});
  CHECK(daemon.wait_counter("connections_refused", refused + 1) == refused + 1);
  second.reset();
  CHECK(wait_until([&] {
    return client::AgentClient::connect({.socket = daemon.agents(), .name = "third", .guest = uuid_of(0xbb)})
        .has_value();
  }));
  CHECK(first.get_registers(VcpuId{0}));
  bystander.check();
}
