// SPDX-License-Identifier: GPL-2.0-or-later
//
// Every kind of event: who is told, who decides, what a reply may carry.

#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

/// One event of each kind that needs no wish beside the subscription.
const std::vector<EventData> kPlain{XsetbvData{0, 1, 3},        BreakpointData{Gpa{0x1000}, 1}, HypercallData{},
                                    TrapData{14, 0, 0, 0, 0, 0}, DescriptorData{1, true},         CreateVcpuData{},
                                    CpuidData{1, 0},             AccessData{}};

struct Watched {
  Watched() : decider(guest.attach()), observer(guest.attach()), stranger(guest.attach()) {}
  Guest guest;
  AgentId decider;
  AgentId observer;
  AgentId stranger;
};

EventReply trap_access(const Guest& guest, AgentId agent) {
  EventReply reply = guest.reply_to(agent, Action::Allow);
  reply.trap_access = true;
  return reply;
}

const PageFaultData kFault{Gva{}, Gpa{5 * kPageSize}, KVMI_PAGE_ACCESS_W, false};

}  // namespace

TEST_CASE("a subscription is all that most events need", "[audience]") {
  for (const EventData& data : kPlain) {
    Event named;
    named.data = data;
    const EventKind kind = named.kind();
    CAPTURE(std::string(name_of(kind)));
    Watched t;
    t.guest.subscribe(t.decider, only(kind));
    t.guest.subscribe(t.observer, only(kind), Role::Observer, VcpuId{1});
    t.guest.subscribe(t.stranger, EventSet{kEveryEvent.bits & ~only(kind).bits});
    t.guest.forget();

    const Seq there = t.guest.event(1, data);
    REQUIRE(t.guest.events_told(t.decider) == 1);
    REQUIRE(t.guest.last_event(t.decider)->decide);
    REQUIRE(t.guest.last_event(t.decider)->event.kind() == kind);
    REQUIRE(t.guest.events_told(t.observer) == 1);
    REQUIRE_FALSE(t.guest.last_event(t.observer)->decide);
    REQUIRE(t.guest.events_told(t.stranger) == 0);
    REQUIRE(t.guest.verdict(there) == nullptr);
    t.guest.vote(t.decider, Action::Crash);
    REQUIRE(t.guest.verdict(there)->action == Action::Crash);
    REQUIRE(t.guest.verdict(there)->event == kind);

    const Seq elsewhere = t.guest.event(0, data);  // the observer watches vCPU 1 only
    REQUIRE(t.guest.events_told(t.decider) == 2);
    REQUIRE(t.guest.events_told(t.observer) == 1);
    t.guest.vote(t.decider, Action::Allow);
    REQUIRE(t.guest.verdict(elsewhere)->action == Action::Allow);
  }
}

TEST_CASE("an event that nobody decides is allowed at once, of every kind", "[audience]") {
  for (const EventData& data : kPlain) {
    Watched t;
    Event named;
    named.data = data;
    CAPTURE(std::string(name_of(named.kind())));
    t.guest.subscribe(t.observer, only(named.kind()), Role::Observer);
    const Seq seq = t.guest.event(0, data);
    REQUIRE(t.guest.events_told(t.observer) == 1);
    REQUIRE(t.guest.verdict(seq)->action == Action::Allow);
  }
}

TEST_CASE("a single step is told to who steps that vCPU and subscribed, in its role", "[audience]") {
  Watched t;
  t.guest.subscribe(t.decider, only(EventKind::Singlestep));
  t.guest.subscribe(t.observer, only(EventKind::Singlestep), Role::Observer);
  for (const AgentId agent : {t.decider, t.observer, t.stranger})
    t.guest.command(agent, ControlSinglestep{VcpuId{0}, true});
  const Seq seq = t.guest.event(0, SinglestepData{});
  REQUIRE(t.guest.last_event(t.decider)->decide);
  REQUIRE_FALSE(t.guest.last_event(t.observer)->decide);
  REQUIRE(t.guest.events_told(t.stranger) == 0);
  t.guest.vote(t.decider, Action::Allow);
  REQUIRE(t.guest.verdict(seq)->action == Action::Allow);

  t.guest.command(t.decider, ControlSinglestep{VcpuId{0}, false});
  REQUIRE(t.guest.verdict(t.guest.event(0, SinglestepData{})) != nullptr);
  REQUIRE(t.guest.events_told(t.decider) == 1);
  REQUIRE(t.guest.events_told(t.observer) == 2);
  REQUIRE(t.guest.state.vcpus[0].singlestep);  // others still step
}

TEST_CASE("a trap is not tried again, whatever its agent says", "[audience]") {
  Watched t;
  Grant grant = full_grant();
  grant.default_action = Action::Retry;
  const AgentId agent = t.guest.attach(grant);
  t.guest.subscribe(agent, only(EventKind::Trap));
  const ActionSet no_retry{0x9};
  const Seq seq = t.guest.event(0, TrapData{1, 1, 0, 0, 0, 0}, no_retry);
  t.guest.vote(agent, Action::Retry);
  REQUIRE(t.guest.last_notice(agent, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Invalid);
  REQUIRE(t.guest.verdict(seq)->action == Action::Allow);
}

TEST_CASE("XSETBV takes a new value, ACCESS new data, the others neither", "[audience]") {
  for (const EventData& data : kPlain) {
    Watched t;
    Event named;
    named.data = data;
    const EventKind kind = named.kind();
    CAPTURE(std::string(name_of(kind)));
    t.guest.subscribe(t.decider, only(kind));
    const bool with_data = GENERATE(false, true);
    const Seq seq = t.guest.event(0, data);
    EventReply reply = t.guest.reply_to(t.decider, Action::Allow);
    if (with_data) {
      reply.value = NewData{};
    } else {
      reply.value = NewValue{7};
    }
    t.guest.vote(t.decider, reply);
    const bool fits = kind == (with_data ? EventKind::Access : EventKind::Xsetbv);
    REQUIRE(std::holds_alternative<std::monostate>(t.guest.verdict(seq)->value) == !fits);
    REQUIRE((t.guest.last_notice(t.decider, NoticeKind::ReplyRefused) == nullptr) == fits);
  }
}

TEST_CASE("TRAP_ACCESS is for agents that hear ACCESS events on that vCPU", "[audience][access]") {
  Watched t;
  t.guest.subscribe(t.decider, only(EventKind::PageFault));
  t.guest.set_pages(t.decider, {pages(5, 1, kR)});
  const auto trapped = [&] {
    const Seq seq = t.guest.event(0, kFault);
    t.guest.vote(t.decider, trap_access(t.guest, t.decider));
    return t.guest.verdict(seq)->trap_access;
  };
  const auto refused = [&] { return t.guest.got(t.decider, ToAgent::Kind::Notice).size(); };
  REQUIRE_FALSE(trapped());
  REQUIRE(refused() == 1);
  const auto* notice = t.guest.last_notice(t.decider, NoticeKind::ReplyRefused);
  REQUIRE(notice->notice.error == ErrorCode::Invalid);
  REQUIRE(notice->text == "TRAP_ACCESS makes ACCESS events: subscribe to ACCESS first");

  t.guest.subscribe(t.decider, only(EventKind::Access), Role::Decider, VcpuId{1});
  REQUIRE_FALSE(trapped());
  REQUIRE(refused() == 2);

  const Role role = GENERATE(Role::Decider, Role::Observer);
  t.guest.subscribe(t.decider, only(EventKind::Access), role, VcpuId{0});
  REQUIRE(trapped());
  REQUIRE(refused() == 2);
}

TEST_CASE("a hypervisor without ACCESS events is not asked for them", "[audience][access]") {
  Watched t;
  t.guest.lose_hypervisor();
  t.guest.version.events.bits &= ~only(EventKind::Access).bits;
  t.guest.connect();
  REQUIRE(t.guest.error_of(t.decider, t.guest.subscribe(t.decider, only(EventKind::Access))) ==
          ErrorCode::NotSupported);
  t.guest.subscribe(t.decider, only(EventKind::PageFault));
  t.guest.set_pages(t.decider, {pages(5, 1, kR)});
  const Seq seq = t.guest.event(0, kFault);
  t.guest.vote(t.decider, trap_access(t.guest, t.decider));
  REQUIRE_FALSE(t.guest.verdict(seq)->trap_access);
  REQUIRE(t.guest.last_notice(t.decider, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Invalid);
}

TEST_CASE("the accesses of a trapped instruction go to all who subscribed to ACCESS", "[audience][access]") {
  Watched t;
  for (const AgentId agent : {t.decider, t.stranger}) t.guest.subscribe(agent, only(EventKind::PageFault));
  t.guest.set_pages(t.decider, {pages(5, 1, kR)});
  t.guest.set_pages(t.stranger, {pages(5, 1, kR)});
  t.guest.subscribe(t.decider, only(EventKind::Access));
  t.guest.subscribe(t.observer, only(EventKind::Access), Role::Observer);
  const Seq fault = t.guest.event(0, kFault);
  t.guest.vote(t.decider, trap_access(t.guest, t.decider));
  t.guest.vote(t.stranger, Action::Allow);
  REQUIRE(t.guest.verdict(fault)->trap_access);

  for (std::uint16_t index = 0; index < 3; ++index) {
    AccessData access{};
    access.index = index;
    const Seq seq = t.guest.event(0, access);
    REQUIRE(std::get<AccessData>(t.guest.last_event(t.decider)->event.data).index == index);
    REQUIRE(std::get<AccessData>(t.guest.last_event(t.observer)->event.data).index == index);
    REQUIRE(t.guest.last_event(t.stranger)->event.kind() == EventKind::PageFault);
    REQUIRE(t.guest.verdict(seq) == nullptr);
    t.guest.vote(t.decider, Action::Allow);
    REQUIRE(t.guest.verdict(seq) != nullptr);
  }
}

}  // namespace kvmid::core::testing
