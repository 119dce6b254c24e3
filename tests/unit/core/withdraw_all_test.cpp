// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

struct Busy {
  Busy() : a(guest.attach()), b(guest.attach()) {
    for (const AgentId agent : {a, b}) {
      guest.subscribe(agent, events({EventKind::Cr, EventKind::Hypercall, EventKind::PageFault}));
      guest.command(agent, ControlMsr{VcpuId{1}, true, 0x10});
    }
    guest.set_pages(a, {pages(1, 4, kR)});
    guest.set_pages(b, {pages(3, 4, kR | kX)});
    guest.command(b, ControlSinglestep{VcpuId{0}, true});
    nothing.vcpus.resize(2);
  }
  void stop() {
    guest.step([&](Effects& out) { guest.machine.stop(guest.now, out); });
  }
  std::size_t unhook_replies(Seq seq) const {
    std::size_t count = 0;
    for (const auto& sent : guest.to_hypervisor) count += sent.is_event_reply && sent.seq == seq ? 1U : 0U;
    return count;
  }
  Guest guest;
  AgentId a;
  AgentId b;
  HypervisorState nothing;
};

}  // namespace

TEST_CASE("stop takes everything back, lets every vCPU go, and says when it is settled", "[stop]") {
  Busy t;
  const Seq seq = t.guest.event(0);
  t.guest.answering = false;
  REQUIRE_FALSE(t.guest.machine.settled());
  t.stop();
  REQUIRE(t.guest.verdict(seq) != nullptr);
  REQUIRE_FALSE(t.guest.machine.settled());
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOff).back()->reason == OffReason::DaemonStopping);
  t.guest.answer_all();
  REQUIRE(t.guest.machine.settled());
  REQUIRE(t.guest.state == t.nothing);
  REQUIRE(t.guest.error_of(t.a, t.guest.subscribe(t.a, only(EventKind::Cr))) == ErrorCode::NoDevice);
  REQUIRE_FALSE(t.guest.machine.attach(AgentId{99}, "late", full_grant(), 0));
  const Seq next = t.guest.event(0);
  REQUIRE(t.guest.verdict(next) != nullptr);
}

TEST_CASE("changes that wait when everything is withdrawn are refused, not told as done", "[stop]") {
  Busy t;
  t.guest.answering = false;
  t.guest.subscribe(t.a, only(EventKind::Trap));
  const Seq waiting = t.guest.subscribe(t.b, only(EventKind::Cpuid));
  SECTION("by stop") { t.stop(); }
  SECTION("by UNHOOK") { t.guest.event(0xffff, UnhookData{OffReason::Suspend}); }
  t.guest.answer_all();
  REQUIRE(t.guest.error_of(t.b, waiting) == ErrorCode::NoDevice);
  REQUIRE(t.guest.state == t.nothing);
  REQUIRE(t.guest.requests_open(t.b) == 0);
}

TEST_CASE("a guest that is away is settled, and its agents are told that kvmid stops", "[stop]") {
  Busy t;
  t.guest.lose_hypervisor();
  REQUIRE(t.guest.machine.settled());
  t.stop();
  REQUIRE(t.guest.machine.settled());
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOff).back()->reason == OffReason::DaemonStopping);
}

TEST_CASE("UNHOOK withdraws everything, and is then answered exactly once", "[unhook]") {
  Busy t;
  const Seq pending = t.guest.event(0);
  t.guest.answering = false;
  const Seq unhook = t.guest.event(0xffff, UnhookData{OffReason::Migration});
  REQUIRE(t.guest.verdict(pending) != nullptr);
  REQUIRE(t.unhook_replies(unhook) == 0);
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOff).back()->reason == OffReason::Migration);
  while (!t.guest.unanswered.empty()) {
    REQUIRE(t.unhook_replies(unhook) == 0);
    t.guest.answer_one();
  }
  REQUIRE(t.unhook_replies(unhook) == 1);
  REQUIRE(t.guest.verdict(unhook)->vcpu == kAllVcpus);
  REQUIRE(t.guest.verdict(unhook)->event == EventKind::Unhook);
  REQUIRE(t.guest.state == t.nothing);

  t.guest.lose(t.b);
  REQUIRE(t.unhook_replies(unhook) == 1);
  REQUIRE(t.guest.error_of(t.a, t.guest.command(t.a, GetCpuid{})) == ErrorCode::NoDevice);
}

TEST_CASE("UNHOOK waits for the change that is under way, refused or not", "[unhook]") {
  Busy t;
  t.guest.answering = false;
  const bool refused = GENERATE(true, false);
  const Seq under_way = t.guest.subscribe(t.a, only(EventKind::Trap));
  const Seq unhook = t.guest.event(0xffff, UnhookData{OffReason::Snapshot});
  if (refused) t.guest.refuse = [](const auto&) { return ErrorCode::NoMemory; };
  t.guest.answer_one();
  t.guest.refuse = [](const auto&) { return ErrorCode::None; };
  REQUIRE(t.guest.error_of(t.a, under_way) == (refused ? std::nullopt : std::optional(ErrorCode::None)));
  t.guest.answer_all();
  REQUIRE(t.guest.error_of(t.a, under_way) == (refused ? ErrorCode::NoMemory : ErrorCode::None));
  REQUIRE(t.unhook_replies(unhook) == 1);
  REQUIRE(t.guest.state == t.nothing);
}

TEST_CASE("UNHOOK of a guest without wishes is answered at once", "[unhook]") {
  Guest guest;
  guest.answering = false;
  const Seq unhook = guest.event(0xffff, UnhookData{OffReason::Shutdown});
  REQUIRE(guest.verdict(unhook) != nullptr);
}

TEST_CASE("after UNHOOK and a new link the union is there again, and agents were told of one going", "[unhook]") {
  Busy t;
  const HypervisorState before = t.guest.state;
  t.guest.event(0xffff, UnhookData{OffReason::Suspend});
  t.guest.lose_hypervisor();
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOff).size() == 1);
  t.guest.connect();
  REQUIRE(t.guest.state == before);
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOn).size() == 1);
  t.guest.lose_hypervisor();
  REQUIRE(t.guest.got(t.a, ToAgent::Kind::GuestOff).size() == 2);
}

TEST_CASE("a second UNHOOK breaks the protocol", "[unhook][hostile]") {
  Busy t;
  t.guest.event(0xffff, UnhookData{OffReason::Suspend});
  t.guest.event(0xffff, UnhookData{OffReason::Suspend});
  REQUIRE(t.guest.closed);
}

}  // namespace kvmid::core::testing
