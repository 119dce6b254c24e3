// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

TEST_CASE("an agent that dies while it owes a reply lets the guest go on at once, with its default", "[loss]") {
  Guest guest;
  Grant grant = full_grant();
  grant.default_action = Action::Skip;
  const AgentId agent = guest.attach(grant);
  guest.subscribe(agent, only(EventKind::Hypercall));
  const Seq first = guest.event(0);
  const Seq second = guest.event(1);

  guest.lose(agent);

  REQUIRE(guest.verdict(first)->action == Action::Skip);
  REQUIRE(guest.verdict(second)->action == Action::Skip);
  REQUIRE(guest.machine.counters().agents_lost_owing == 1);
  REQUIRE_FALSE(guest.machine.has_agents());
}

TEST_CASE("nothing of a dead agent stays in the hypervisor", "[loss]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, events({EventKind::Cr, EventKind::Msr, EventKind::PageFault, EventKind::Singlestep}));
  guest.command(agent, ControlCr{kAllVcpus, true, 3});
  guest.command(agent, ControlMsr{VcpuId{1}, true, 0xc0000082});
  guest.command(agent, ControlSinglestep{VcpuId{0}, true});
  guest.set_pages(agent, {pages(1, 3, kR), pages(100, 1, 0)});
  HypervisorState nothing;
  nothing.vcpus.resize(2);
  REQUIRE(guest.state != nothing);

  guest.lose(agent);

  REQUIRE(guest.state == nothing);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("what a dead agent held is taken back before changes that wait", "[loss]") {
  Guest guest;
  const AgentId dead = guest.attach();
  const AgentId other = guest.attach();
  guest.subscribe(dead, only(EventKind::Cr));
  guest.answering = false;
  guest.subscribe(other, only(EventKind::Msr));
  guest.subscribe(other, only(EventKind::Cpuid));
  guest.forget();
  guest.lose(dead);
  guest.answer_all();
  std::vector<std::uint64_t> told;
  for (const auto& sent : guest.to_hypervisor) told.push_back(std::get<ControlEvents>(sent.command).events.bits);
  REQUIRE(told == std::vector<std::uint64_t>{KVMI_EVENT_BIT(KVMI_EVENT_CR), KVMI_EVENT_BIT(KVMI_EVENT_CPUID)});
}

TEST_CASE("a wish that is confirmed after its agent died is taken back", "[loss]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  guest.subscribe(agent, only(EventKind::Cr));
  guest.set_pages(agent, {pages(4, 1, kR)});
  guest.lose(agent);
  guest.answer_all();
  REQUIRE(guest.state.vcpus[0].events == 0);
  REQUIRE(guest.state.pages.empty());
  REQUIRE(guest.machine.settled());
}

TEST_CASE("agents that come and go while the hypervisor is silent do not lengthen the queue of changes", "[loss]") {
  Guest guest;
  guest.answering = false;
  const AgentId first = guest.attach();
  guest.subscribe(first, only(EventKind::Cr));
  for (int i = 0; i < 5000; ++i) guest.lose(guest.attach());
  REQUIRE(guest.unanswered.size() == 1);
  guest.answer_all();
  REQUIRE(guest.machine.settled());
  REQUIRE(guest.sent<ControlEvents>() == 1);
}

TEST_CASE("the place of a dead agent is safe for the next one", "[loss]") {
  Guest guest;
  guest.answering = false;
  const AgentId dead = guest.attach();
  const AgentId keeper = guest.attach();
  guest.subscribe(keeper, only(EventKind::Hypercall));
  guest.answer_all();

  SECTION("it gets no reply to a command of the dead one") {
    const Seq seq = guest.command(dead, GetCpuid{VcpuId{0}, 1, 0});
    guest.lose(dead);
    const AgentId heir = guest.attach();
    guest.answer_all();
    REQUIRE(guest.error_of(dead, seq) == std::nullopt);
    REQUIRE(guest.got(heir, ToAgent::Kind::Reply).empty());
    REQUIRE(guest.requests_open(heir) == 0);
  }
  SECTION("a refused wish of the dead one is not undone on it") {
    guest.refuse = [](const auto& sent) {
      return std::holds_alternative<ControlEvents>(sent.command) ? ErrorCode::NoMemory : ErrorCode::None;
    };
    guest.subscribe(dead, only(EventKind::Cr));
    guest.lose(dead);
    const AgentId heir = guest.attach();
    guest.answer_one();
    guest.refuse = [](const auto&) { return ErrorCode::None; };
    guest.answer_all();
    REQUIRE(guest.got(heir, ToAgent::Kind::Reply).empty());
    REQUIRE(guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_HYPERCALL));
    REQUIRE(guest.machine.settled());
  }
  SECTION("it is not told the outcome of an event that only the dead one saw") {
    guest.subscribe(dead, only(EventKind::Hypercall), Role::Observer);
    guest.answer_all();
    guest.event(0);
    guest.lose(dead);
    const AgentId heir = guest.attach(full_grant(), KVMI_HELLO_OUTCOMES);
    guest.vote(keeper, Action::Crash);
    REQUIRE(guest.last_notice(heir, NoticeKind::Outcome) == nullptr);
  }
  SECTION("its reply to an event that the dead one owed is not owed") {
    guest.subscribe(dead, only(EventKind::Hypercall));
    guest.answer_all();
    guest.event(0);
    const Seq told = guest.last_event(dead)->seq;
    guest.lose(dead);
    const AgentId heir = guest.attach();
    guest.vote_as(heir, told, EventReply{.vcpu = VcpuId{0}, .event = EventKind::Hypercall, .value = {}});
    REQUIRE(guest.last_notice(heir, NoticeKind::ReplyRefused)->notice.error == ErrorCode::NoEntry);
  }
  SECTION("a pause that the dead one asked for holds nobody") {
    guest.command(dead, PauseVcpu{VcpuId{0}});
    guest.answer_all();
    guest.lose(dead);
    const AgentId heir = guest.attach();
    const Seq seq = guest.event(0, PauseData{});
    REQUIRE(guest.verdict(seq)->action == Action::Allow);
    REQUIRE(guest.events_told(heir) == 0);
  }
}

TEST_CASE("messages of an agent that is not attached are ignored", "[loss]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.lose(agent);
  guest.forget();
  guest.command(agent, GetVersion{});
  guest.lose(agent);
  guest.vote_as(agent, Seq{1}, EventReply{});
  REQUIRE(guest.to_agents.empty());
  REQUIRE(guest.to_hypervisor.empty());
}

TEST_CASE("a guest takes 64 agents and refuses the next with EBUSY", "[loss]") {
  Guest guest;
  for (unsigned i = 0; i < kAgentsPerGuestMax; ++i) guest.attach();
  const auto refused = guest.machine.attach(AgentId{999}, "one more", full_grant(), 0);
  REQUIRE_FALSE(refused);
  REQUIRE(refused.error().error == ErrorCode::Busy);
}

}  // namespace kvmid::core::testing
