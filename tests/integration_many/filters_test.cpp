// SPDX-License-Identifier: GPL-2.0-or-later
//
// What an agent does not want to be asked about kvmid answers, also while the agent is stopped: no deadline passes.
// Deadlines are a minute here, longer than any wait of a test: a guest that goes on was not waiting for one.

#include <catch2/catch.hpp>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr std::uint32_t kMsr = 0x176;  // arg_msr as the guest starts
constexpr std::uint64_t kWanted = 0x2000;
constexpr std::uint64_t kUnwanted = 0x1000;

void set_msr_value(const Guest& guest, std::uint64_t value) {
  guest.set_field(offsetof(Mailbox, arg_msr_value), value);
}

void filter(AgentClient& agent, EventKind event, Action action, std::string_view text, VcpuId vcpu = kAllVcpus) {
  check(agent.set_filter(vcpu, event, action, filter_terms(text, event)));
}

void watch_msr(AgentClient& agent) {
  check(agent.control_msr(kAllVcpus, kMsr, true));
  check(agent.subscribe(events_of({EventKind::Msr}), Role::Decider));
}

/// Lets the guest do it so often without anybody there to answer.
void goes_on(const ManyScene& scene, GuestMode mode, std::uint64_t times) {
  const std::uint64_t filtered = scene.counter("filtered");
  const std::uint64_t expired = scene.counter("expired");
  scene.guest.do_times(mode, times);
  to_idle(scene.guest);
  CHECK(scene.counter("filtered") >= filtered + times);
  CHECK(scene.counter("expired") == expired);
}

}  // namespace

TEST_CASE("events that a filter does not match are answered while its agent is stopped", "[integration][many]") {
  ManyScene scene;
  Process agent = scene.start_agent(
      "stopped", {"--events", "msr,cr", "--msr", "0x176", "--cr", "4,3", "--filter", "msr:allow:new == 0x2000",
                  "--filter", "cr:allow:number == 0 or number == 4 and changed & 0x10 == 0x10"});
  agent.stop();
  set_msr_value(scene.guest, kUnwanted);
  goes_on(scene, GuestMode::Msr, 50);
  CHECK(scene.guest.mailbox().msr == kUnwanted);  // allowed, so written
  goes_on(scene, GuestMode::Cr4, 50);             // PGE is 0x80
  goes_on(scene, GuestMode::Cr3, 50);
  CHECK(scene.counter("expired") == 0);

  // One that matches waits for the agent, and goes on when that does.
  set_msr_value(scene.guest, kWanted);
  scene.guest.set_mode(GuestMode::Msr);
  CHECK(wait_until([&] { return scene.guest_json().at("vcpu").at(0).at("state") == "waiting"; }));
  CHECK(scene.guest_json().at("vcpu").at(0).at("event") == "msr");
  scene.guest.set_mode(GuestMode::Idle);
  agent.cont();
  scene.guest.wait_rounds(2);
  CHECK(scene.guest.mailbox().msr == kWanted);
  CHECK(scene.counter("expired") == 0);
  // It was told of this one only.
  CHECK(wait_until([&] { return lines_with(agent, R"("type":"event")") >= 1; }));
  CHECK(lines_with(agent, R"("type":"event")") == 1);
  const Json shown = scene.agents_json();
  REQUIRE(shown.size() == 1);
  CHECK(shown[0].at("filters") >= 2);
  CHECK(shown[0].at("filtered") == scene.counter("filtered"));
}

TEST_CASE("a filter's action is what the guest gets", "[integration][many]") {
  ManyScene scene;
  AgentClient agent = scene.attach("agent");
  watch_msr(agent);
  set_msr_value(scene.guest, kUnwanted);
  filter(agent, EventKind::Msr, Action::Allow, "new == 0x2000");
  goes_on(scene, GuestMode::Msr, 2);
  REQUIRE(scene.guest.mailbox().msr == kUnwanted);
  filter(agent, EventKind::Msr, Action::Skip, "new == 0x2000");
  set_msr_value(scene.guest, 0x3000);
  goes_on(scene, GuestMode::Msr, 3);
  CHECK(scene.guest.mailbox().msr == kUnwanted);  // read back: never written
  CHECK(scene.counter("skipped") >= 3);
  CHECK_FALSE(check(agent.wait_event(Millis{0})));
}

TEST_CASE("a filter of one agent does not keep events from another, and its answer is merged",
          "[integration][many]") {
  ManyScene scene;
  AgentClient filtering = scene.attach("filtering");
  AgentClient asked = scene.attach("asked");
  watch_msr(filtering);
  watch_msr(asked);
  set_msr_value(scene.guest, kUnwanted);
  filter(filtering, EventKind::Msr, Action::Allow, "new == 0x2000");
  const auto one = [&](Action action) {
    const std::uint64_t before = scene.guest.done(GuestMode::Msr);
    scene.guest.set_mode(GuestMode::Msr);
    const auto event = check(asked.wait_event(kBound));
    REQUIRE(event);
    scene.guest.set_mode(GuestMode::Idle);
    check(asked.reply(*event, action));
    CHECK(wait_until([&] { return scene.guest.done(GuestMode::Msr) == before + 1; }));
    if (filtering.is_open()) CHECK_FALSE(check(filtering.wait_event(Millis{0})));
  };
  one(Action::Allow);
  CHECK(scene.guest.mailbox().msr == kUnwanted);
  // SKIP of the filter is stricter than the other's ALLOW.
  filter(filtering, EventKind::Msr, Action::Skip, "new == 0x2000");
  set_msr_value(scene.guest, 0x3000);
  one(Action::Allow);
  CHECK(scene.guest.mailbox().msr == kUnwanted);
  // An agent that goes takes its filter with it.
  filtering.close();
  scene.wait_agents(1);
  one(Action::Allow);
  CHECK(scene.guest.mailbox().msr == 0x3000);
}

TEST_CASE("a filter can be for one vCPU, is replaced by the next, and can be taken away", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  AgentClient agent = scene.attach("agent");
  watch_msr(agent);
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) scene.guest.set_field(offsetof(Mailbox, arg_msr_value), kUnwanted, vcpu);
  filter(agent, EventKind::Msr, Action::Allow, "new == 0x2000", VcpuId{1});
  goes_on(scene, GuestMode::Idle, 0);
  scene.guest.do_times(GuestMode::Msr, 5, 1);
  to_idle(scene.guest, 1);
  CHECK_FALSE(check(agent.wait_event(Millis{0})));
  const auto asked_on = [&](unsigned vcpu) {
    scene.guest.set_mode(GuestMode::Msr, vcpu);
    const auto event = check(agent.wait_event(kBound));
    REQUIRE(event);
    CHECK(event->event.vcpu.value == vcpu);
    scene.guest.set_mode(GuestMode::Idle, vcpu);
    check(agent.reply(*event, Action::Allow));
    scene.guest.wait_rounds(2, vcpu);
  };
  asked_on(0);
  filter(agent, EventKind::Msr, Action::Allow, "new == 0x1000", VcpuId{1});
  asked_on(1);
  filter(agent, EventKind::Msr, Action::Allow, "vcpu == 7");
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) {
    scene.guest.do_times(GuestMode::Msr, 3, vcpu);
    to_idle(scene.guest, vcpu);
  }
  CHECK_FALSE(check(agent.wait_event(Millis{0})));
  check(agent.set_filter(kAllVcpus, EventKind::Msr, Action::Allow, {}));
  asked_on(0);
  asked_on(1);
  CHECK(scene.counter("expired") == 0);
}

TEST_CASE("an observer is told of what its filter matches only", "[integration][many]") {
  ManyScene scene;
  AgentClient agent = scene.attach("observer");
  check(agent.control_msr(kAllVcpus, kMsr, true));
  check(agent.subscribe(events_of({EventKind::Msr}), Role::Observer));
  filter(agent, EventKind::Msr, Action::Allow, "new in 0x2000..0x2fff");
  set_msr_value(scene.guest, kUnwanted);
  scene.guest.do_times(GuestMode::Msr, 5);
  set_msr_value(scene.guest, kWanted);
  scene.guest.do_times(GuestMode::Msr, 2);
  to_idle(scene.guest);
  const auto event = check(agent.wait_event(kBound));
  REQUIRE(event);
  CHECK(std::get<MsrData>(event->event.data).new_value == kWanted);
}

}  // namespace kvmid::test
