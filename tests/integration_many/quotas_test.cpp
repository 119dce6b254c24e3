// SPDX-License-Identifier: GPL-2.0-or-later
//
// What one agent may hold, on a real guest. Over it is an answer that names the quota, or a disconnect with its reason;
// once the agents are gone nothing is charged to anybody.

#include <catch2/catch.hpp>
#include <csignal>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr Gpa kPlace{0x600000};
constexpr std::uint8_t kAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

Json quota(const Json& limits) { return {{"quota", limits}}; }

/// The answer names the quota.
template <class T>
void check_over(const Result<T, client::ClientError>& result, const std::string& name) {
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::Busy);
  CHECK_THAT(result.error().text, Catch::Contains("quota") && Catch::Contains("(" + name + ")"));
}

/// Nobody holds anything, kvmid asks nothing of the guest, and whatever agents may hold can be held anew.
void check_nothing_held(const ManyScene& scene) {
  scene.wait_agents(0);
  CHECK(wait_until([&] { return scene.guest_json().at("agents") == 0; }));
  CHECK(scene.agents_json().empty());
  CHECK(scene.guest_json().at("agent_list").empty());
  const std::uint64_t events = scene.counter("events");
  for (const GuestMode mode : {GuestMode::Store, GuestMode::Msr, GuestMode::Lstar, GuestMode::Cr4})
    scene.guest.do_times(mode, 2);
  scene.guest.hammer(5);
  scene.guest.wait_hammered();
  to_idle(scene.guest);
  CHECK(scene.counter("events") == events);
  const AgentClient fresh = scene.attach("fresh");
  const Json shown = scene.agents_json();
  REQUIRE(shown.size() == 1);
  for (const char* key : {"pages", "patches", "filters", "filtered", "requests_open", "strikes", "expired"})
    CHECK(shown[0].at(key) == 0);
  CHECK(shown[0].at("events").empty());
  CHECK(shown[0].at("pending").empty());
}

Json entry_of(const ManyScene& scene, const AgentClient& agent) {
  for (const auto& entry : scene.agents_json())
    if (entry.at("id") == agent.welcome().agent.value) return entry;
  throw TestError("the agent is not listed");
}

}  // namespace

TEST_CASE("patches over the quota are EBUSY, and count until they are given back", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"patches", 3}})});
  AgentClient agent = scene.attach("agent");
  AgentClient other = scene.attach("other");
  const auto place = [](unsigned i) { return Gpa{kPlace.value + 16 * std::uint64_t{i}}; };
  for (unsigned i = 0; i < 3; ++i) check(patch(agent, place(i), bytes_of_values({0xcc, i})));
  check_over(patch(agent, place(3), bytes_of_values({0xcc})), "patches");
  CHECK(raw_memory(scene.guest, place(3), 1) == bytes_of_values({0}));
  check(patch(agent, place(1), bytes_of_values({0xcd, 1})));  // it has that place already
  CHECK(entry_of(scene, agent).at("patches") == 3);
  // A shared one counts for both.
  check(patch(other, place(0), bytes_of_values({0xcc, 0})));
  CHECK(entry_of(scene, other).at("patches") == 1);
  check(unpatch(agent, place(0), 2));
  CHECK(entry_of(scene, agent).at("patches") == 2);
  check(patch(agent, place(3), bytes_of_values({0xcc})));
  agent.close();
  other.close();
  check_nothing_held(scene);
  CHECK(raw_memory(scene.guest, kPlace, kPageSize) == std::vector<std::byte>(kPageSize));
}

TEST_CASE("filters over the quota are EBUSY, and count until they are taken away", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"filters", 2}})});
  AgentClient agent = scene.attach("agent");
  const auto set = [&](EventKind event) {
    return agent.set_filter(VcpuId{0}, event, Action::Allow, filter_terms("rip == 1", event));
  };
  check(set(EventKind::Msr));
  check(set(EventKind::Cr));
  check_over(set(EventKind::Hypercall), "filters");
  check(set(EventKind::Msr));  // in place of its own
  CHECK(entry_of(scene, agent).at("filters") == 2);
  check(agent.set_filter(VcpuId{0}, EventKind::Cr, Action::Allow, {}));
  CHECK(entry_of(scene, agent).at("filters") == 1);
  check(set(EventKind::Hypercall));
  agent.close();
  check_nothing_held(scene);
}

TEST_CASE("restricted pages over the quota are EBUSY, all of a command or nothing", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"pages", 10}})});
  AgentClient agent = scene.attach("agent");
  check(agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_R));
  const std::vector<kvmi_page_access_entry> many{{kPlace.value, 8, KVMI_PAGE_ACCESS_R, {}},
                                                 {kPlace.value + 0x100000, 2, KVMI_PAGE_ACCESS_R, {}}};
  check_over(agent.set_page_access(many), "pages");
  for (const auto& entry : check(agent.get_page_access(kPlace, 8))) CHECK(entry.access == kAll);
  CHECK(entry_of(scene, agent).at("pages") == 1);
  check(agent.set_page_access(kPlace, 9, KVMI_PAGE_ACCESS_R));
  CHECK(entry_of(scene, agent).at("pages") == 10);
  check(agent.set_page_access(kPlace, 9, 0));  // other rights of the same pages
  check_over(agent.set_page_access(Gpa{0x700000}, 1, KVMI_PAGE_ACCESS_R), "pages");
  check(agent.set_page_access(kPlace, 4, kAll));
  check(agent.set_page_access(Gpa{0x700000}, 4, KVMI_PAGE_ACCESS_R));
  agent.close();
  check_nothing_held(scene);
}

TEST_CASE("tracked MSRs over the quota are EBUSY", "[integration][many]") {
  ManyScene scene({.vcpus = 2, .rule_overrides = quota({{"msrs", 4}})});
  AgentClient agent = scene.attach("agent");
  check(agent.subscribe(events_of({EventKind::Msr}), Role::Decider));
  check(agent.control_msr(kAllVcpus, 0x176, true));
  check(agent.control_msr(kAllVcpus, 0xc0000082, true));
  check_over(agent.control_msr(VcpuId{1}, 0x174, true), "msrs");
  check(agent.control_msr(kAllVcpus, 0x176, true));  // tracked already
  check(agent.control_msr(VcpuId{0}, 0x176, false));
  check(agent.control_msr(VcpuId{1}, 0x174, true));
  agent.close();
  check_nothing_held(scene);
}

TEST_CASE("requests over the quota are EBUSY, each by itself, and the others are answered", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"requests", 2}})});
  AgentClient agent = scene.attach("agent");
  CHECK(agent.welcome().requests_max == 2);
  scene.guest.process().stop();  // it answers nothing meanwhile
  std::vector<client::Ticket> tickets;
  for (int i = 0; i < 5; ++i) tickets.push_back(check(agent.submit(GetCpuid{.vcpu = VcpuId{0}})));
  for (std::size_t i = 2; i < tickets.size(); ++i) {
    const auto reply = check(agent.collect(tickets[i], kBound));
    CHECK(reply.error() == ErrorCode::Busy);
    CHECK_THAT(std::string(reply.text()), Catch::Contains("quota") && Catch::Contains("(requests)"));
  }
  CHECK(entry_of(scene, agent).at("requests_open") == 2);
  scene.guest.process().cont();
  for (std::size_t i = 0; i < 2; ++i) CHECK(check(agent.collect(tickets[i], kBound)).ok());
  CHECK(entry_of(scene, agent).at("requests_open") == 0);
  check(agent.get_cpuid(VcpuId{0}, 0));
  SECTION("closed with none open") { agent.close(); }
  SECTION("closed with some open") {
    scene.guest.process().stop();
    static_cast<void>(check(agent.submit(GetCpuid{.vcpu = VcpuId{0}})));
    agent.close();
    CHECK(wait_until([&] { return scene.guest_json().at("agents") == 0; }));
    scene.guest.process().cont();
  }
  check_nothing_held(scene);
}

TEST_CASE("who does not read is disconnected with the reason, and what it held is withdrawn", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"queue_bytes", 65536}})});
  Process reader = scene.start_agent("reader", {"--events", "hypercall"});

  // An observer that reads nothing, as a socket of its own: it owes nothing, so only its queue can be what ends it.
  WireSocket silent = raw_agent(scene.daemon.agent_socket(), scene.guest.uuid(), "silent");
  const EventSet hypercalls = events_of({EventKind::Hypercall});
  REQUIRE(silent.send(
      encoded(Command{ControlEvents{kAllVcpus, Operation::Enable, Role::Observer, hypercalls}}, Seq{1})));
  REQUIRE(silent.next_frame());
  const std::vector<std::byte> bytes = bytes_of_values({0xcc, 0xcc});
  WritePhysical write;
  write.gpa = kPlace;
  write.flags = KVMI_WRITE_PATCH;
  write.data = bytes;
  REQUIRE(silent.send(encoded(Command{write}, Seq{2})));
  REQUIRE(silent.next_frame());
  REQUIRE(raw_memory(scene.guest, kPlace, 2) == bytes);
  scene.guest.set_mode(GuestMode::Vmcall);
  const std::string line = scene.daemon.process().wait_errors("slow reader");
  CHECK_THAT(line, Catch::Contains("name=silent") && Catch::Contains("queue_bytes"));
  CHECK(silent.wait_closed());
  scene.wait_agents(1);
  CHECK(raw_memory(scene.guest, kPlace, 2) == bytes_of_values({0, 0}));
  // Who reads is served.
  const std::size_t told = lines_with(reader, R"("type":"event")");
  CHECK(wait_until([&] { return lines_with(reader, R"("type":"event")") > told; }));
  CHECK(scene.counter("expired") == 0);
  to_idle(scene.guest);
  reader.kill();
  check_nothing_held(scene);
}

TEST_CASE("attachments over the quota of a user are EBUSY, until one of them is killed", "[integration][many]") {
  ManyScene scene({.rule_overrides = quota({{"attachments", 2}})});
  Process first = scene.start_agent("first", {});
  Process second = scene.start_agent("second", {});
  client::ConnectOptions options;
  options.socket = scene.daemon.agent_socket();
  options.name = "third";
  options.guest = scene.guest.uuid();
  const auto refused = AgentClient::connect(options);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::Busy);
  CHECK_THAT(refused.error().text, Catch::Contains("attachments"));
  first.kill();
  CHECK(wait_until([&] { return AgentClient::connect(options).has_value(); }));
  second.kill();
  check_nothing_held(scene);
}

}  // namespace kvmid::test
