// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

void change(Guest& guest, AgentId agent, const Grant& grant) {
  guest.step([&](Effects& out) { guest.machine.on_grant_changed(agent, grant, guest.now, out); });
}
Grant without(CommandId command) {
  Grant grant = full_grant();
  grant.commands.bits &= ~KVMI_COMMAND_BIT(static_cast<unsigned>(command));
  return grant;
}
struct Holder {
  Holder() : agent(guest.attach()) {
    guest.subscribe(agent, events({EventKind::Cr, EventKind::Msr, EventKind::PageFault, EventKind::Hypercall}));
    guest.command(agent, ControlCr{kAllVcpus, true, 3});
    guest.command(agent, ControlMsr{kAllVcpus, true, 0x10});
    guest.command(agent, ControlSinglestep{VcpuId{0}, true});
    guest.set_pages(agent, {pages(1, 1, kR)});
    guest.forget();
  }
  Guest guest;
  AgentId agent;
};

}  // namespace

TEST_CASE("events that policy takes away are withdrawn, and the agent is told", "[revoke]") {
  Holder t;
  Grant grant = full_grant();
  grant.events = only(EventKind::Msr);
  change(t.guest, t.agent, grant);
  REQUIRE(t.guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_MSR));
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Revoked)->notice.error == ErrorCode::NotPermitted);
  REQUIRE(t.guest.error_of(t.agent, t.guest.subscribe(t.agent, only(EventKind::Cr))) == ErrorCode::NotPermitted);
}

TEST_CASE("what a command gave goes with the right to the command", "[revoke]") {
  Holder t;
  HypervisorState expected = t.guest.state;
  CommandId command{};
  SECTION("CONTROL_EVENTS") {
    command = CommandId::ControlEvents;
    for (auto& vcpu : expected.vcpus) vcpu.events = 0;
  }
  SECTION("CONTROL_CR") {
    command = CommandId::ControlCr;
    for (auto& vcpu : expected.vcpus) vcpu.crs.clear();
  }
  SECTION("CONTROL_MSR") {
    command = CommandId::ControlMsr;
    for (auto& vcpu : expected.vcpus) vcpu.msrs.clear();
  }
  SECTION("CONTROL_SINGLESTEP") {
    command = CommandId::ControlSinglestep;
    for (auto& vcpu : expected.vcpus) vcpu.singlestep = false;
  }
  SECTION("SET_PAGE_ACCESS") {
    command = CommandId::SetPageAccess;
    expected.pages.clear();
  }
  change(t.guest, t.agent, without(command));
  REQUIRE(t.guest.state == expected);
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Revoked) != nullptr);
}

TEST_CASE("a policy that takes nothing away says nothing", "[revoke]") {
  Holder t;
  Grant grant = full_grant();
  grant.deadline = 7ms;
  change(t.guest, t.agent, grant);
  REQUIRE(t.guest.to_agents.empty());
  REQUIRE(t.guest.to_hypervisor.empty());
  t.guest.event(0);
  REQUIRE(t.guest.last_event(t.agent)->deadline_us == 7000);
}

TEST_CASE("an agent that may not decide any more does not hold up the event that it owes", "[revoke]") {
  Holder t;
  const Seq seq = t.guest.event(0);
  Grant grant = full_grant();
  SECTION("it may only observe") { grant.role = Role::Observer; }
  SECTION("it may not have such events") { grant.events = only(EventKind::Cr); }
  change(t.guest, t.agent, grant);
  REQUIRE(t.guest.verdict(seq)->action == Action::Allow);
  const Seq next = t.guest.event(0);
  REQUIRE(t.guest.verdict(next) != nullptr);
}

TEST_CASE("a pause ends when policy takes PAUSE_VCPU away", "[revoke]") {
  Holder t;
  t.guest.command(t.agent, PauseVcpu{kAllVcpus});
  const Seq seq = t.guest.event(0, PauseData{});
  change(t.guest, t.agent, without(CommandId::PauseVcpu));
  REQUIRE(t.guest.verdict(seq) != nullptr);
  REQUIRE(t.guest.verdict(t.guest.event(1, PauseData{})) != nullptr);
}

TEST_CASE("a change that waited when policy changed is refused when its turn comes", "[revoke]") {
  Holder t;
  t.guest.answering = false;
  t.guest.subscribe(t.agent, only(EventKind::Cpuid));
  const Seq waiting = t.guest.subscribe(t.agent, only(EventKind::Trap));
  Grant grant = full_grant();
  grant.events.bits &= ~KVMI_EVENT_BIT(KVMI_EVENT_TRAP);
  change(t.guest, t.agent, grant);
  t.guest.answer_all();
  REQUIRE(t.guest.error_of(t.agent, waiting) == ErrorCode::NotPermitted);
  REQUIRE((t.guest.state.vcpus[0].events & KVMI_EVENT_BIT(KVMI_EVENT_TRAP)) == 0);
  REQUIRE(t.guest.requests_open(t.agent) == 0);
}

TEST_CASE("policy that changes while the hypervisor is away holds when it is back", "[revoke]") {
  Holder t;
  t.guest.lose_hypervisor();
  Grant grant = without(CommandId::SetPageAccess);
  grant.events = only(EventKind::Msr);
  change(t.guest, t.agent, grant);
  t.guest.connect();
  REQUIRE(t.guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_MSR));
  REQUIRE(t.guest.state.pages.empty());
}

}  // namespace kvmid::core::testing
