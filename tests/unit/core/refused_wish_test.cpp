// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

/// Refuses commands of type C for which `when` holds.
template <class C, class When>
auto refusing(When when, ErrorCode error = ErrorCode::NoMemory) {
  return [=](const ToHypervisor& sent) {
    const auto* command = std::get_if<C>(&sent.command);
    return command != nullptr && when(*command) ? error : ErrorCode::None;
  };
}

}  // namespace

TEST_CASE("a refused wish is undone, and the agent gets the hypervisor's words", "[wish][refused]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.refuse = refusing<ControlCr>([](const auto&) { return true; });
  const Seq seq = guest.command(agent, ControlCr{kAllVcpus, true, 3});
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
  REQUIRE(guest.answer_to(agent, seq)->text == "the model refuses");
  REQUIRE(guest.requests_open(agent) == 0);

  guest.refuse = [](const auto&) { return ErrorCode::None; };
  guest.forget();
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Msr))) == ErrorCode::None);
  REQUIRE(guest.sent<ControlCr>() == 0);
}

TEST_CASE("of two parts the one that was taken is taken back when the other is refused", "[wish][refused]") {
  Guest guest;
  const AgentId other = guest.attach();
  const AgentId agent = guest.attach();
  guest.subscribe(other, only(EventKind::Cr), Role::Decider, VcpuId{0});
  const HypervisorState before = guest.state;
  guest.refuse = refusing<ControlEvents>(
      [](const ControlEvents& c) { return c.vcpu == VcpuId{1} && c.operation == Operation::Enable; });

  const Seq seq = guest.subscribe(agent, events({EventKind::Cr, EventKind::Msr}));

  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
  REQUIRE(guest.state == before);
  REQUIRE(guest.machine.settled());
  guest.event(0);
  REQUIRE(guest.events_told(agent) == 0);
}

TEST_CASE("events that a refused SET took away are there again", "[wish][refused]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, events({EventKind::Hypercall, EventKind::Trap}));
  guest.refuse = refusing<ControlEvents>([](const ControlEvents& c) { return c.events.has(EventKind::Cr); });
  const Seq seq = guest.subscribe(agent, only(EventKind::Cr), Role::Observer, kAllVcpus, Operation::Set);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
  REQUIRE(guest.state.vcpus[1].events == events({EventKind::Hypercall, EventKind::Trap}).bits);
  guest.event(1);
  REQUIRE(guest.last_event(agent)->decide);
}

TEST_CASE("refused page rights are undone page by page", "[wish][refused]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.set_pages(agent, {pages(1, 1, kR), pages(2, 1, kR | kW)});
  const HypervisorState before = guest.state;
  guest.refuse = [](const ToHypervisor& sent) {
    for (const auto& entry : sent.entries)
      if (entry.access == 0) return ErrorCode::NoMemory;
    return ErrorCode::None;
  };
  // Page 1 is given back and taken again in one command, 9 is new and refused.
  const Seq seq = guest.set_pages(agent, {pages(1, 1, kRwx), pages(2, 1, kR), pages(1, 1, kR | kX), pages(9, 1, 0)});
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
  REQUIRE(guest.state == before);
  guest.answering = false;
  const Seq get = guest.command(agent, GetPageAccess{Gpa{kPageSize}, 9, AddressSpace::Normal});
  const auto& entries = guest.answer_to(agent, get)->entries;
  REQUIRE(entries.size() == 3);
  REQUIRE(entries[0].access == kR);
  REQUIRE(entries[1].access == (kR | kW));
  REQUIRE(entries[2].access == kRwx);
}

TEST_CASE("that the hypervisor does not take a wish back is nobody's error", "[wish][refused]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.subscribe(a, only(EventKind::Cr));
  guest.set_pages(a, {pages(1, 1, kR)});
  guest.refuse = [](const auto&) { return ErrorCode::NoMemory; };
  REQUIRE(guest.error_of(a, guest.subscribe(a, {}, Role::Decider, kAllVcpus, Operation::Set)) == ErrorCode::None);
  REQUIRE(guest.error_of(a, guest.set_pages(a, {pages(1, 1, kRwx)})) == ErrorCode::None);
  REQUIRE(std::ranges::any_of(guest.reports, [](const Report& r) { return r.fact == Fact::UnionRefused; }));
  guest.refuse = refusing<ControlEvents>([](const ControlEvents& c) { return c.operation == Operation::Disable; });
  REQUIRE(guest.error_of(b, guest.subscribe(b, only(EventKind::Msr))) == ErrorCode::None);
  guest.refuse = [](const auto&) { return ErrorCode::None; };
  guest.lose(b);
  REQUIRE(guest.state.vcpus[0].events == 0);
}

TEST_CASE("after a refused part the parts that were not sent yet are not sent", "[wish][refused]") {
  Guest guest(500);
  const AgentId agent = guest.attach();
  const AgentId other = guest.attach();
  for (std::uint16_t i = 0; i < 500; i += 2) guest.subscribe(other, only(EventKind::Cr), Role::Decider, VcpuId{i});
  const HypervisorState before = guest.state;
  guest.forget();
  guest.refuse = refusing<ControlEvents>([](const ControlEvents& c) { return c.operation == Operation::Enable; });
  const Seq seq = guest.subscribe(agent, only(EventKind::Cr));
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
  REQUIRE(guest.sent<ControlEvents>() == kWishPartsOpenMax);
  REQUIRE(guest.state == before);
}

TEST_CASE("a refused wish in front of others does not touch their answers", "[wish][refused]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  guest.refuse = refusing<ControlCr>([](const auto&) { return true; });
  const Seq refused = guest.command(agent, ControlCr{kAllVcpus, true, 3});
  const Seq too_many = guest.set_pages(agent, {pages(0, 65536, kR)});
  const Seq good = guest.subscribe(agent, only(EventKind::Cr));
  guest.answer_all();
  REQUIRE(guest.answer_to(agent, refused)->text == "the model refuses");
  REQUIRE(guest.error_of(agent, too_many) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, good) == ErrorCode::None);
}

}  // namespace kvmid::core::testing
