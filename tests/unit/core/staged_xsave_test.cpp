// SPDX-License-Identifier: GPL-2.0-or-later
//
// SET_XSAVE: kept during an event of the agent, loaded just before the merged reply.

#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

std::vector<std::byte> area(unsigned fill, std::size_t size = 576) {
  return std::vector<std::byte>(size, static_cast<std::byte>(fill));
}

struct TwoDeciders {
  explicit TwoDeciders(std::uint32_t first = 0, std::uint32_t second = 0) : a(attach(first)), b(attach(second)) {
    for (const AgentId agent : {a, b}) guest.subscribe(agent, events({EventKind::Hypercall, EventKind::Cpuid}));
    guest.forget();
  }
  AgentId attach(std::uint32_t priority) {
    Grant grant = full_grant();
    grant.priority = priority;
    return guest.attach(grant);
  }
  /// The bytes die before the event ends, as those of a message do.
  ErrorCode stage(AgentId agent, std::uint16_t vcpu, unsigned fill, std::size_t size = 576) {
    const auto bytes = area(fill, size);
    return *guest.error_of(agent, guest.command(agent, SetXsave{VcpuId{vcpu}, bytes}));
  }
  [[nodiscard]] std::vector<std::byte> loaded(std::size_t index) const {
    const Bytes bytes = std::get<SetXsave>(guest.to_hypervisor.at(index).command).area;
    return {bytes.begin(), bytes.end()};
  }
  Guest guest;
  AgentId a;
  AgentId b;
};

}  // namespace

TEST_CASE("a staged XSAVE area goes out behind staged registers and before the reply", "[xsave]") {
  TwoDeciders t(1, 9);
  const Seq seq = t.guest.event(1);
  REQUIRE(t.stage(t.a, 1, 1) == ErrorCode::None);
  REQUIRE(t.stage(t.b, 1, 2) == ErrorCode::None);
  t.guest.command(t.a, SetRegisters{VcpuId{1}, {}});
  REQUIRE(t.guest.to_hypervisor.empty());
  t.guest.vote(t.b, Action::Allow);
  t.guest.answering = false;
  t.guest.vote(t.a, Action::Allow);

  REQUIRE(t.guest.to_hypervisor.size() == 3);
  REQUIRE(std::holds_alternative<SetRegisters>(t.guest.to_hypervisor[0].command));
  REQUIRE(std::get<SetXsave>(t.guest.to_hypervisor[1].command).vcpu == VcpuId{1});
  REQUIRE(t.loaded(1) == area(2));  // that of the higher priority, though it voted first
  REQUIRE(t.guest.to_hypervisor[2].is_event_reply);
  REQUIRE(t.guest.to_hypervisor[2].seq == seq);
  REQUIRE(t.guest.reports.back().fact == Fact::Decided);
}

TEST_CASE("of equal priorities the area of who attached first is loaded", "[xsave]") {
  TwoDeciders t(4, 4);
  t.guest.event(0);
  t.stage(t.b, 0, 2);
  t.stage(t.a, 0, 1);
  t.guest.vote(t.b, Action::Allow);
  t.guest.vote(t.a, Action::Allow);
  REQUIRE(t.guest.sent<SetXsave>() == 1);
  REQUIRE(t.loaded(0) == area(1));
}

TEST_CASE("registers of one agent and the area of another are both loaded", "[xsave]") {
  TwoDeciders t(1, 9);
  t.guest.event(0);
  t.stage(t.a, 0, 5);
  t.guest.command(t.b, SetRegisters{VcpuId{0}, {}});
  t.guest.vote(t.a, Action::Allow);
  t.guest.vote(t.b, Action::Skip);
  REQUIRE(t.guest.sent<SetRegisters>() == 1);
  REQUIRE(t.guest.sent<SetXsave>() == 1);
  REQUIRE(t.loaded(1) == area(5));
}

TEST_CASE("a later area replaces what the agent staged before, whatever its size", "[xsave]") {
  TwoDeciders t;
  t.guest.event(0);
  t.stage(t.a, 0, 1, 4096);
  t.stage(t.a, 0, 3, 600);
  t.guest.vote(t.a, Action::Allow);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(t.guest.sent<SetXsave>() == 1);
  REQUIRE(t.loaded(0) == area(3, 600));

  const Seq next = t.guest.event(0);  // nothing of it is left for the next event
  t.guest.vote(t.a, Action::Allow);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(t.guest.verdict(next) != nullptr);
  REQUIRE(t.guest.sent<SetXsave>() == 1);
}

TEST_CASE("a staged area is dropped when its agent expires, dies or answers badly before its vote", "[xsave]") {
  TwoDeciders t(1, 9);
  const Seq seq = t.guest.event(0);
  t.stage(t.b, 0, 2);
  t.guest.vote(t.a, Action::Allow);
  SECTION("expires") { t.guest.pass(100ms); }
  SECTION("dies") { t.guest.lose(t.b); }
  SECTION("answers badly") {
    EventReply bad = t.guest.reply_to(t.b, Action::Allow);
    bad.event = EventKind::Cr;
    t.guest.vote(t.b, bad);
  }
  REQUIRE(t.guest.verdict(seq) != nullptr);
  REQUIRE(t.guest.sent<SetXsave>() == 0);
}

TEST_CASE("SET_XSAVE outside an event that the agent decides is answered EAGAIN", "[xsave]") {
  TwoDeciders t;
  const AgentId observer = t.guest.attach();
  t.guest.subscribe(observer, only(EventKind::Hypercall), Role::Observer);
  t.guest.forget();
  REQUIRE(t.stage(t.a, 0, 1) == ErrorCode::TryAgain);
  t.guest.event(0);
  REQUIRE(t.stage(observer, 0, 1) == ErrorCode::TryAgain);
  REQUIRE(t.stage(t.a, 1, 1) == ErrorCode::TryAgain);
  t.guest.vote(t.a, Action::Allow);
  REQUIRE(t.stage(t.a, 0, 1) == ErrorCode::TryAgain);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(t.guest.sent<SetXsave>() == 0);
}

TEST_CASE("a pause of the agent's own takes an area too", "[xsave]") {
  TwoDeciders t;
  t.guest.command(t.a, PauseVcpu{VcpuId{0}});
  t.guest.event(0, PauseData{});
  t.guest.forget();
  REQUIRE(t.stage(t.a, 0, 1) == ErrorCode::None);
  REQUIRE(t.stage(t.b, 0, 2) == ErrorCode::TryAgain);
  EventReply reply;
  reply.vcpu = VcpuId{0};
  reply.event = EventKind::Pause;
  t.guest.vote_as(t.a, t.guest.machine.event_seq_of(VcpuId{0}), reply);
  REQUIRE(t.guest.sent<SetXsave>() == 1);
  REQUIRE(t.loaded(0) == area(1));
}

TEST_CASE("an area that the hypervisor refuses is told to its agent, the event is answered all the same", "[xsave]") {
  TwoDeciders t;
  t.guest.refuse = [](const ToHypervisor& sent) {
    return std::holds_alternative<SetXsave>(sent.command) ? ErrorCode::Invalid : ErrorCode::None;
  };
  const Seq seq = t.guest.event(0, CpuidData{});
  const Seq told = t.guest.last_event(t.a)->seq;
  REQUIRE(t.stage(t.a, 0, 1, 7) == ErrorCode::None);
  t.guest.vote(t.a, Action::Allow);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(t.guest.verdict(seq) != nullptr);
  const auto* notice = t.guest.last_notice(t.a, NoticeKind::ReplyRefused);
  REQUIRE(notice != nullptr);
  REQUIRE(notice->notice.error == ErrorCode::Invalid);
  REQUIRE(notice->notice.event == EventKind::Cpuid);
  REQUIRE(notice->notice.event_seq == told);
  REQUIRE(t.guest.last_notice(t.b, NoticeKind::ReplyRefused) == nullptr);
}

TEST_CASE("an agent cannot make kvmid keep more bytes than stated", "[xsave][hostile]") {
  constexpr std::size_t kLargest = KVMI_MAX_PAYLOAD - sizeof(kvmi_set_xsave);
  constexpr auto kFit = static_cast<std::uint16_t>(kStagedBytesMax / kLargest);
  Guest guest(kFit + 1);
  const AgentId agent = guest.attach();
  const AgentId other = guest.attach();
  for (const AgentId each : {agent, other}) guest.subscribe(each, only(EventKind::Hypercall));
  const auto bytes = area(1, kLargest);
  const auto stage = [&](AgentId by, std::uint16_t vcpu) {
    return *guest.error_of(by, guest.command(by, SetXsave{VcpuId{vcpu}, bytes}));
  };
  for (std::uint16_t vcpu = 0; vcpu <= kFit; ++vcpu) guest.event(vcpu);
  for (std::uint16_t vcpu = 0; vcpu < kFit; ++vcpu) REQUIRE(stage(agent, vcpu) == ErrorCode::None);
  REQUIRE(stage(agent, kFit) == ErrorCode::Busy);
  REQUIRE(stage(agent, 0) == ErrorCode::None);   // takes the place of its own
  REQUIRE(stage(other, kFit) == ErrorCode::None);  // another agent's are its own

  EventReply reply;
  reply.vcpu = VcpuId{3};
  reply.event = EventKind::Hypercall;
  guest.vote_as(agent, guest.machine.event_seq_of(VcpuId{3}), reply);
  REQUIRE(stage(agent, kFit) == ErrorCode::None);
}

}  // namespace kvmid::core::testing
