// SPDX-License-Identifier: GPL-2.0-or-later
// Patches of agents: whose they are, who hears of them, and that none is left.
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

constexpr std::uint64_t kPlace = 0x5010;
const std::vector<std::byte> kInt3{std::byte{0xcc}};
const std::vector<std::byte> kHook{std::byte{0xe9}, std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};

BreakpointData hit(std::uint64_t gpa = kPlace) { return {Gpa{gpa}, 1}; }

/// An agent that decides breakpoints.
AgentId attach(Guest& guest, Role role = Role::Decider, std::uint32_t flags = 0) {
  const AgentId agent = guest.attach(full_grant(), flags);
  guest.subscribe(agent, only(EventKind::Breakpoint), role);
  return agent;
}

bool takes_breakpoints(const Guest& guest) {
  for (const auto& vcpu : guest.state.vcpus)
    if ((vcpu.events & KVMI_EVENT_BIT(KVMI_EVENT_BREAKPOINT)) == 0) return false;
  return true;
}

}  // namespace

TEST_CASE("a patch is the hypervisor's before its agent is told yes, and gone before it is told of that", "[patch]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq placed = guest.patch(agent, kPlace, kHook);
  // The hits come here before there can be any.
  while (guest.state.patches.empty()) {
    REQUIRE_FALSE(guest.error_of(agent, placed));
    guest.answer_one();
  }
  REQUIRE(takes_breakpoints(guest));
  REQUIRE(guest.error_of(agent, placed) == ErrorCode::None);
  REQUIRE(guest.state.patches.at(kPlace) == kHook);
  REQUIRE(guest.machine.info().agents[0].patches == 1);

  const Seq taken = guest.unpatch(agent, kPlace, kHook.size());
  REQUIRE_FALSE(guest.error_of(agent, taken));
  guest.answer_all();
  REQUIRE(guest.error_of(agent, taken) == ErrorCode::None);
  REQUIRE(guest.state.patches.empty());
  REQUIRE(guest.state.vcpus[0].events == 0);
  REQUIRE(guest.requests_open(agent) == 0);
}

TEST_CASE("the same bytes are shared and counted, other bytes are busy", "[patch]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  guest.patch(one, kPlace, kHook);
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace, kHook)) == ErrorCode::None);
  const auto sent = guest.sent<WritePhysical>();
  REQUIRE(sent == 1);

  auto other = kHook;
  other[4] = std::byte{9};
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace, other)) == ErrorCode::Busy);
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace, kInt3)) == ErrorCode::Busy);
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace + 4, kInt3)) == ErrorCode::Busy);
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace - 1, {std::byte{1}, std::byte{2}})) == ErrorCode::Busy);
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace + 5, kInt3)) == ErrorCode::None);
  guest.unpatch(two, kPlace + 5);

  REQUIRE(guest.error_of(one, guest.unpatch(one, kPlace, 5)) == ErrorCode::None);
  REQUIRE(guest.state.patches.count(kPlace) == 1);
  REQUIRE(guest.error_of(one, guest.unpatch(one, kPlace, 5)) == ErrorCode::NoEntry);
  REQUIRE(guest.error_of(two, guest.unpatch(two, kPlace, 1)) == ErrorCode::NoEntry);
  // Its only owner may write something else there.
  REQUIRE(guest.error_of(two, guest.patch(two, kPlace, other)) == ErrorCode::None);
  REQUIRE(guest.state.patches.at(kPlace) == other);
  REQUIRE(guest.error_of(two, guest.unpatch(two, kPlace, 5)) == ErrorCode::None);
  REQUIRE(guest.state.patches.empty());
}

TEST_CASE("commands in one write are done in their order", "[patch]") {
  Guest guest;
  guest.answering = false;
  const AgentId agent = guest.attach();
  const Seq place = guest.patch(agent, kPlace);
  const Seq take = guest.unpatch(agent, kPlace);
  const Seq again = guest.unpatch(agent, kPlace);
  guest.answer_all();
  REQUIRE(guest.error_of(agent, place) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, take) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, again) == ErrorCode::NoEntry);
  REQUIRE(guest.state.patches.empty());
}

TEST_CASE("bad patches are refused with what is wrong", "[patch][hostile]") {
  Guest guest;
  Grant grant = full_grant();
  grant.quota.patches_max = 2;
  const AgentId agent = guest.attach(grant);
  const auto error = [&](std::uint64_t gpa, std::size_t size, AddressSpace space = AddressSpace::Normal) {
    const std::vector<std::byte> bytes(size, std::byte{0x90});
    return guest.error_of(agent,
                          guest.command(agent, WritePhysical{Gpa{gpa}, space, KVMI_WRITE_PATCH, 0, bytes, {}}));
  };
  REQUIRE(error(0x1000, 257) == ErrorCode::Invalid);
  REQUIRE(error(0x1fff, 2) == ErrorCode::Invalid);
  REQUIRE(error(kGuestRam, 1) == ErrorCode::Fault);
  REQUIRE(error(~std::uint64_t{0}, 1) == ErrorCode::Fault);
  REQUIRE(error(0x1000, 1, AddressSpace::Smm) == ErrorCode::NotSupported);
  REQUIRE(error(0x1000, 256) == ErrorCode::None);
  REQUIRE(error(0x2000, 1) == ErrorCode::None);
  REQUIRE(error(0x3000, 1) == ErrorCode::Busy);
  guest.unpatch(agent, 0x2000);
  REQUIRE(error(0x3000, 1) == ErrorCode::None);
}

TEST_CASE("a patch that is on its way when its agent goes is taken off, and met meanwhile it costs nothing",
          "[patch][withdraw]") {
  Guest guest;
  const AgentId other = attach(guest);
  const AgentId agent = guest.attach();
  guest.answering = false;
  guest.patch(agent, kPlace);
  while (guest.sent<WritePhysical>() == 0) guest.answer_one();
  guest.lose(agent);
  const Seq met = guest.event(0, hit());  // it was there already; the answer is on its way
  REQUIRE(guest.verdict(met) == nullptr);
  guest.answer_all();
  REQUIRE(guest.state.patches.empty());
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.events_told(other) == 0);
}

TEST_CASE("a patch that is not sent when its agent goes is not sent at all", "[patch][withdraw]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  guest.patch(agent, kPlace);
  REQUIRE(guest.sent<WritePhysical>() == 0);  // its events come first
  guest.lose(agent);
  guest.answer_all();
  REQUIRE(guest.sent<WritePhysical>() == 0);
  REQUIRE(guest.state.vcpus[0].events == 0);
}

TEST_CASE("patches do not come back where their hits are not told any more", "[patch]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.patch(agent, kPlace);
  guest.lose_hypervisor();
  guest.version.events.bits &= ~KVMI_EVENT_BIT(KVMI_EVENT_BREAKPOINT);
  guest.connect();
  REQUIRE(guest.state.patches.empty());
  REQUIRE(guest.last_notice(agent, NoticeKind::Revoked) != nullptr);
}

TEST_CASE("a vCPU that begins anew does not run before what agents wish of it is told again", "[patch]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  guest.answering = false;
  guest.command(agent, ControlMsr{kAllVcpus, true, 0x10});  // a change is under way
  const Seq created = guest.event(1, CreateVcpuData{});
  REQUIRE(guest.verdict(created) == nullptr);
  guest.answer_one();
  REQUIRE(guest.verdict(created) == nullptr);
  guest.answer_all();
  REQUIRE(guest.verdict(created)->action == Action::Allow);
}

TEST_CASE("a patch that is given back while its hit is decided is not given to the guest as an exception", "[patch]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  const Seq met = guest.event(0, hit());
  guest.unpatch(agent, kPlace);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
}

TEST_CASE("where no hit would be told, no patch is taken", "[patch]") {
  Guest guest;
  guest.version.events.bits &= ~KVMI_EVENT_BIT(KVMI_EVENT_BREAKPOINT);
  guest.lose_hypervisor();
  guest.connect();
  const AgentId agent = guest.attach();
  REQUIRE(guest.error_of(agent, guest.patch(agent, kPlace)) == ErrorCode::NotSupported);
}

TEST_CASE("a hypervisor that refuses a patch, or that it finds other bytes, is passed on; nothing is left", "[patch]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const auto refusal = GENERATE(ErrorCode::Fault, ErrorCode::Stale);
  guest.refuse = [&](const ToHypervisor& sent) {
    return std::holds_alternative<WritePhysical>(sent.command) ? refusal : ErrorCode::None;
  };
  const Seq seq = guest.command(
      agent, WritePhysical{Gpa{kPlace}, AddressSpace::Normal, KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT, 0, kInt3, kInt3});
  REQUIRE(guest.error_of(agent, seq) == refusal);
  REQUIRE(guest.machine.info().agents[0].patches == 0);
  REQUIRE(guest.state.vcpus[0].events == 0);
  REQUIRE(guest.requests_open(agent) == 0);
}

TEST_CASE("expected bytes are compared by the hypervisor also where the patch is shared", "[patch]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  guest.patch(one, kPlace);
  guest.refuse = [&](const ToHypervisor& sent) {
    const auto* write = std::get_if<WritePhysical>(&sent.command);
    return write != nullptr && (write->flags & KVMI_WRITE_EXPECT) != 0 ? ErrorCode::Stale : ErrorCode::None;
  };
  const Seq seq = guest.command(
      two, WritePhysical{Gpa{kPlace}, AddressSpace::Normal, KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT, 0, kInt3, kInt3});
  REQUIRE(guest.error_of(two, seq) == ErrorCode::Stale);
  REQUIRE(guest.state.patches.count(kPlace) == 1);
  REQUIRE(guest.machine.info().agents[0].patches == 1);
  REQUIRE(guest.machine.info().agents[1].patches == 0);
}

TEST_CASE("a hit is its owners' business alone", "[patch]") {
  Guest guest;
  const AgentId owner = attach(guest);
  const AgentId watcher = attach(guest, Role::Observer);
  const AgentId other = attach(guest);
  guest.patch(owner, kPlace);
  guest.patch(watcher, kPlace);
  const Seq seq = guest.event(0, hit());
  REQUIRE(guest.events_told(owner) == 1);
  REQUIRE(guest.last_event(owner)->decide);
  REQUIRE(guest.events_told(watcher) == 1);
  REQUIRE_FALSE(guest.last_event(watcher)->decide);
  REQUIRE(guest.events_told(other) == 0);
  guest.vote(owner, Action::Skip);
  REQUIRE(guest.verdict(seq)->action == Action::Skip);

  // Elsewhere it is the guest's own.
  guest.event(0, hit(0x7000));
  REQUIRE(guest.events_told(other) == 1);
}

TEST_CASE("the guest's own breakpoint is given to it where nobody wants it", "[patch]") {
  Guest guest;
  const AgentId owner = guest.attach();  // no subscription
  guest.patch(owner, kPlace);
  const Seq seq = guest.event(0, hit(0x7000));
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
}

TEST_CASE("a vCPU that met the patch just before it was taken off goes on, once", "[patch]") {
  Guest guest;
  const AgentId owner = attach(guest);
  const AgentId other = attach(guest);
  guest.patch(owner, kPlace);
  guest.unpatch(owner, kPlace);
  Seq seq = guest.event(0, hit());
  REQUIRE(guest.verdict(seq)->action == Action::Retry);
  REQUIRE(guest.events_told(other) == 0);
  seq = guest.event(1, HypercallData{});  // an event of vCPU 1: no older hit of it can come
  seq = guest.event(1, hit());
  REQUIRE(guest.events_told(other) == 1);
  guest.vote(other, Action::Allow);
  guest.vote(owner, Action::Allow);
  seq = guest.event(0, hit());
  REQUIRE(guest.events_told(other) == 2);
}

TEST_CASE("whatever an agent had is gone with it, patches first", "[patch][withdraw]") {
  Guest guest;
  const AgentId stays = attach(guest);
  const HypervisorState before = guest.state;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  guest.patch(agent, 0x9000, kHook);
  guest.set_pages(agent, {pages(5, 1, kR)});
  guest.command(agent, ControlMsr{kAllVcpus, true, 0x10});
  guest.forget();
  SECTION("it dies") { guest.lose(agent); }
  SECTION("it loses the rights") {
    Grant grant = full_grant();
    grant.commands = {};
    guest.step([&](Effects& out) { guest.machine.on_grant_changed(agent, grant, guest.now, out); });
    REQUIRE(guest.last_notice(agent, NoticeKind::Revoked) != nullptr);
  }
  REQUIRE(guest.state == before);
  std::vector<std::size_t> order;
  for (const auto& sent : guest.to_hypervisor) order.push_back(sent.command.index());
  REQUIRE(order.size() >= 4);
  REQUIRE(order[0] == Command(WritePhysical{}).index());
  REQUIRE(order[1] == Command(WritePhysical{}).index());
  REQUIRE(order[2] == Command(SetPageAccess{}).index());
  REQUIRE(guest.machine.info().agents[0].id == stays);
  for (const auto& info : guest.machine.info().agents) REQUIRE(info.patches == 0);
}

TEST_CASE("before the guest is let go all patches are off, and a hit that waits finds the guest's own bytes",
          "[patch][withdraw]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  const Seq waiting = guest.event(0, hit());
  Event unhook;
  unhook.vcpu = kAllVcpus;
  unhook.data = UnhookData{OffReason::Migration};
  guest.answering = false;
  guest.step([&](Effects& out) { guest.machine.on_hypervisor_message(Seq{77}, Upward{unhook}, guest.now, out); });
  REQUIRE(guest.verdict(waiting) == nullptr);
  REQUIRE(guest.verdict(Seq{77}) == nullptr);
  guest.answer_one();
  REQUIRE(guest.state.patches.empty());
  guest.answer_all();
  REQUIRE(guest.verdict(waiting)->action == Action::Retry);
  REQUIRE(guest.verdict(Seq{77}) != nullptr);
  REQUIRE(guest.machine.settled());
  REQUIRE(guest.state.vcpus[0] == HypervisorState::Vcpu{});
}

TEST_CASE("patches are placed again when the hypervisor is back, behind their events", "[patch]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  guest.lose_hypervisor();
  guest.forget();
  guest.connect();
  REQUIRE(guest.state.patches.at(kPlace) == kInt3);
  REQUIRE(takes_breakpoints(guest));
  REQUIRE(std::holds_alternative<WritePhysical>(guest.to_hypervisor.back().command));
}

TEST_CASE("agents learn that the guest is back when it has what they wish of it", "[patch]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  guest.lose_hypervisor();
  guest.forget();
  guest.answering = false;
  guest.connect();
  while (guest.got(agent, ToAgent::Kind::GuestOn).empty()) guest.answer_one();
  REQUIRE(guest.state.patches.size() == 1);
  REQUIRE(guest.unanswered.empty());
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOn).size() == 1);
}

TEST_CASE("a hypervisor that does not take a patch again costs its owners the patch, not the link", "[patch]") {
  Guest guest;
  const AgentId agent = attach(guest);
  guest.patch(agent, kPlace);
  guest.lose_hypervisor();
  SECTION("the patch") {
    guest.refuse = [](const ToHypervisor& sent) {
      return std::holds_alternative<WritePhysical>(sent.command) ? ErrorCode::NoMemory : ErrorCode::None;
    };
  }
  SECTION("its events") {
    guest.refuse = [](const ToHypervisor& sent) {
      return std::holds_alternative<ControlEvents>(sent.command) ? ErrorCode::NoMemory : ErrorCode::None;
    };
  }
  guest.connect();
  REQUIRE(guest.last_notice(agent, NoticeKind::Revoked) != nullptr);
  REQUIRE(guest.state.patches.empty());
  REQUIRE(guest.machine.info().agents[0].patches == 0);
  REQUIRE_FALSE(guest.closed);
}

}  // namespace kvmid::core::testing
