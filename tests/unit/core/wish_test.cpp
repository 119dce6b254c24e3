// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

TEST_CASE("the hypervisor is told of the first and of the last wish only", "[wish]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.subscribe(a, only(EventKind::Cpuid));
  REQUIRE(guest.sent<ControlEvents>() == 1);
  REQUIRE(std::get<ControlEvents>(guest.to_hypervisor.back().command).vcpu == kAllVcpus);
  guest.subscribe(b, only(EventKind::Cpuid), Role::Observer);
  REQUIRE(guest.sent<ControlEvents>() == 1);
  guest.subscribe(a, only(EventKind::Cpuid), Role::Decider, kAllVcpus, Operation::Disable);
  REQUIRE(guest.sent<ControlEvents>() == 1);
  REQUIRE(guest.state.vcpus[1].events == KVMI_EVENT_BIT(KVMI_EVENT_CPUID));
  guest.subscribe(b, only(EventKind::Cpuid), Role::Decider, kAllVcpus, Operation::Disable);
  REQUIRE(guest.sent<ControlEvents>() == 2);
  REQUIRE(guest.state.vcpus[1].events == 0);
}

TEST_CASE("an agent is told yes only after the hypervisor confirmed", "[wish]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq seq = guest.subscribe(agent, only(EventKind::Cr));
  REQUIRE(guest.error_of(agent, seq) == std::nullopt);
  guest.answer_one();
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::None);
}

TEST_CASE("CONTROL_EVENTS answers what is enabled for this agent now", "[wish]") {
  Guest guest;
  const AgentId other = guest.attach();
  const AgentId agent = guest.attach();
  guest.subscribe(other, only(EventKind::Trap));
  const auto enabled = [&](Seq seq) {
    return std::get<ControlEventsReply>(guest.answer_to(agent, seq)->reply.body).events;
  };
  REQUIRE(enabled(guest.subscribe(agent, events({EventKind::Cr, EventKind::Msr}))) ==
          events({EventKind::Cr, EventKind::Msr}));
  REQUIRE(enabled(guest.subscribe(agent, only(EventKind::Cpuid), Role::Decider, VcpuId{1})) ==
          events({EventKind::Cr, EventKind::Msr, EventKind::Cpuid}));
  REQUIRE(enabled(guest.subscribe(agent, only(EventKind::Cr), Role::Decider, kAllVcpus, Operation::Disable)) ==
          only(EventKind::Msr));
  REQUIRE(enabled(guest.subscribe(agent, only(EventKind::Xsetbv), Role::Decider, kAllVcpus, Operation::Set)) ==
          only(EventKind::Xsetbv));
}

TEST_CASE("wishes of one vCPU and of all add up, vCPU by vCPU", "[wish]") {
  Guest guest(3);
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.subscribe(a, only(EventKind::Cr));
  guest.subscribe(b, only(EventKind::Msr), Role::Decider, VcpuId{2});
  guest.command(a, ControlMsr{kAllVcpus, true, 0x10});
  guest.command(b, ControlMsr{VcpuId{0}, true, 0x11});
  guest.command(b, ControlSinglestep{VcpuId{1}, true});
  HypervisorState expected;
  expected.vcpus.resize(3);
  for (auto& vcpu : expected.vcpus) {
    vcpu.events = KVMI_EVENT_BIT(KVMI_EVENT_CR);
    vcpu.msrs = {0x10};
  }
  expected.vcpus[2].events |= KVMI_EVENT_BIT(KVMI_EVENT_MSR);
  expected.vcpus[0].msrs.insert(0x11);
  expected.vcpus[1].singlestep = true;
  REQUIRE(guest.state == expected);
}

TEST_CASE("changes are carried out one after another", "[wish]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.answering = false;
  const Seq on = guest.subscribe(a, only(EventKind::Cr));
  const Seq off = guest.subscribe(a, only(EventKind::Cr), Role::Decider, kAllVcpus, Operation::Disable);
  const Seq other = guest.subscribe(b, only(EventKind::Cr));
  REQUIRE(guest.unanswered.size() == 1);
  guest.answer_one();
  REQUIRE(guest.error_of(a, on) == ErrorCode::None);
  REQUIRE(guest.error_of(a, off) == std::nullopt);
  guest.answer_one();
  REQUIRE(guest.error_of(a, off) == ErrorCode::None);
  guest.answer_one();
  REQUIRE(guest.error_of(b, other) == ErrorCode::None);
  REQUIRE(guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_CR));
}

TEST_CASE("a wish that changes nothing is answered at once and tells nothing", "[wish]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Cr));
  guest.forget();
  guest.answering = false;
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Cr))) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, guest.command(agent, ControlCr{kAllVcpus, false, 3})) == ErrorCode::None);
  REQUIRE(guest.to_hypervisor.empty());
}

TEST_CASE("CR and MSR events go only to agents that wished for that register on that vCPU", "[wish]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  const AgentId watcher = guest.attach();
  for (const AgentId agent : {a, b}) guest.subscribe(agent, events({EventKind::Cr, EventKind::Msr}));
  guest.subscribe(watcher, events({EventKind::Cr, EventKind::Msr}), Role::Observer);
  guest.command(a, ControlCr{kAllVcpus, true, 3});
  guest.command(b, ControlCr{kAllVcpus, true, 4});
  guest.command(a, ControlMsr{VcpuId{0}, true, 0x10});
  guest.command(b, ControlMsr{VcpuId{1}, true, 0x10});
  const auto told = [&] { return std::array{guest.events_told(a), guest.events_told(b), guest.events_told(watcher)}; };
  using Told = std::array<std::size_t, 3>;
  guest.event(0, CrData{3, 0, 1});
  REQUIRE(told() == Told{1, 0, 0});
  guest.vote(a, Action::Allow);
  guest.event(0, CrData{4, 0, 1});
  REQUIRE(told() == Told{1, 1, 0});
  guest.vote(b, Action::Allow);
  guest.event(1, MsrData{0x10, 0, 1});
  REQUIRE(told() == Told{1, 2, 0});
  guest.vote(b, Action::Allow);
  REQUIRE(guest.verdict(guest.event(0, CrData{0, 0, 1})) != nullptr);
  REQUIRE(guest.verdict(guest.event(0, CrData{60000, 0, 1})) != nullptr);
  REQUIRE(guest.verdict(guest.event(0, MsrData{0xffffffff, 0, 1})) != nullptr);
  REQUIRE(told() == Told{1, 2, 0});
}

TEST_CASE("single step events go to agents that step that vCPU", "[wish]") {
  Guest guest;
  const AgentId stepper = guest.attach();
  const AgentId other = guest.attach();
  guest.subscribe(stepper, only(EventKind::Singlestep));
  guest.subscribe(other, only(EventKind::Singlestep));
  guest.command(stepper, ControlSinglestep{VcpuId{0}, true});
  guest.event(0, SinglestepData{});
  REQUIRE(guest.events_told(stepper) == 1);
  REQUIRE(guest.events_told(other) == 0);
}

TEST_CASE("wishes that make no sense are refused with a reason", "[wish]") {
  Guest guest;
  Grant grant = full_grant();
  grant.events = events({EventKind::Cr, EventKind::Msr});
  grant.quota.msrs_max = 3;
  const AgentId agent = guest.attach(grant);
  const auto error = [&](const Command& command) {
    const Seq seq = guest.command(agent, command);
    if (guest.error_of(agent, seq) != ErrorCode::None) REQUIRE_FALSE(guest.answer_to(agent, seq)->text.empty());
    return guest.error_of(agent, seq);
  };
  const auto control = [](EventSet set, VcpuId vcpu = kAllVcpus) {
    return ControlEvents{vcpu, Operation::Enable, Role::Decider, set};
  };
  REQUIRE(error(control(EventSet{std::uint64_t{1} << 40})) == ErrorCode::Invalid);
  REQUIRE(error(control(only(EventKind::Trap))) == ErrorCode::NotPermitted);
  REQUIRE(error(control(only(EventKind::Cr), VcpuId{2})) == ErrorCode::Invalid);
  REQUIRE(error(ControlCr{kAllVcpus, true, 2}) == ErrorCode::Invalid);
  REQUIRE(error(ControlCr{kAllVcpus, true, 0xffffffff}) == ErrorCode::Invalid);
  REQUIRE(error(ControlMsr{kAllVcpus, true, 0x2000}) == ErrorCode::Invalid);
  REQUIRE(error(ControlSinglestep{kAllVcpus, true}) == ErrorCode::Invalid);
  REQUIRE(error(ControlMsr{kAllVcpus, true, 1}) == ErrorCode::None);
  REQUIRE(error(ControlMsr{kAllVcpus, true, 2}) == ErrorCode::Busy);
  REQUIRE(error(ControlMsr{kAllVcpus, true, 1}) == ErrorCode::None);
  REQUIRE(error(ControlMsr{VcpuId{0}, true, 2}) == ErrorCode::None);
  REQUIRE(error(ControlMsr{VcpuId{0}, true, 3}) == ErrorCode::Busy);
  REQUIRE(error(GrantMemory{}) == ErrorCode::NotSupported);
  REQUIRE(error(GetGuests{}) == ErrorCode::NotServed);
}

TEST_CASE("an observer by policy cannot decide", "[wish]") {
  Guest guest;
  Grant grant = full_grant();
  grant.role = Role::Observer;
  const AgentId agent = guest.attach(grant);
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Cr))) == ErrorCode::NotPermitted);
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Cr), Role::Observer)) == ErrorCode::None);
}

TEST_CASE("quotas hold for changes that wait as well", "[wish][hostile]") {
  // They were measured when a change arrived, against tables that did not have the changes before it yet.
  Guest guest;
  Grant grant = full_grant();
  grant.quota.msrs_max = 2;
  grant.quota.pages_max = 10;
  const AgentId agent = guest.attach(grant);
  guest.answering = false;
  std::vector<Seq> seqs;
  for (std::uint32_t i = 0; i < 4; ++i) seqs.push_back(guest.command(agent, ControlMsr{VcpuId{0}, true, i}));
  for (std::uint32_t i = 0; i < 4; ++i) seqs.push_back(guest.set_pages(agent, {pages(i * 100, 5, kR)}));
  guest.answer_all();
  std::vector<ErrorCode> errors;
  for (const Seq seq : seqs) errors.push_back(*guest.error_of(agent, seq));
  const auto ok = ErrorCode::None;
  const auto busy = ErrorCode::Busy;
  REQUIRE(errors == std::vector{ok, ok, busy, busy, ok, ok, busy, busy});
  REQUIRE(guest.state.vcpus[0].msrs.size() == 2);
  REQUIRE(guest.state.pages.size() == 10);
  REQUIRE(guest.requests_open(agent) == 0);
}

TEST_CASE("the queue of changes has an end", "[wish][hostile]") {
  Guest guest;
  Grant grant = full_grant();
  grant.quota.requests_max = 5000;
  const AgentId agent = guest.attach(grant);
  guest.answering = false;
  std::size_t busy = 0;
  for (unsigned i = 0; i < kWishQueueMax + 10; ++i) {
    const Seq seq = guest.subscribe(agent, only(EventKind::Cr), Role::Decider, kAllVcpus,
                                    i % 2 == 0 ? Operation::Enable : Operation::Disable);
    busy += guest.error_of(agent, seq) == ErrorCode::Busy ? 1U : 0U;
  }
  REQUIRE(busy == 10);
  guest.answer_all();
  REQUIRE(guest.requests_open(agent) == 0);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("a change of more parts than may be open at once is told in turns", "[wish]") {
  Guest guest(300);
  Grant grant = full_grant();
  grant.quota.msrs_max = 100000;
  const AgentId agent = guest.attach(grant);
  guest.command(agent, ControlMsr{VcpuId{7}, true, 1});
  for (std::uint32_t msr = 2; msr < 8; ++msr) guest.command(agent, ControlMsr{kAllVcpus, true, msr});
  guest.answering = false;

  guest.lose(agent);

  REQUIRE(guest.unanswered.size() <= kWishPartsOpenMax);
  guest.answer_all();
  HypervisorState nothing;
  nothing.vcpus.resize(300);
  REQUIRE(guest.state == nothing);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("wishes are told even while agents' own commands fill the ledger", "[wish][hostile]") {
  // A withdrawal that found the ledger full was forgotten: its pages stayed restricted for good.
  Guest guest;
  Grant grant = full_grant();
  grant.quota.requests_max = 5000;
  const AgentId flooder = guest.attach(grant);
  const AgentId agent = guest.attach();
  guest.set_pages(agent, {pages(1, 2, kR)});
  guest.answering = false;
  std::size_t busy = 0;
  for (unsigned i = 0; i < 2000; ++i)
    busy += guest.error_of(flooder, guest.command(flooder, GetCpuid{})) == ErrorCode::Busy ? 1U : 0U;
  REQUIRE(busy == 2000 - kOpenForAgentsMax);

  guest.lose(agent);

  REQUIRE(std::holds_alternative<SetPageAccess>(guest.unanswered.back().command));
  guest.answer_all();
  REQUIRE(guest.state.pages.empty());
  REQUIRE(guest.requests_open(flooder) == 0);
}

}  // namespace kvmid::core::testing
