// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

Grant with_priority(std::uint32_t priority) {
  Grant grant = full_grant();
  grant.priority = priority;
  return grant;
}

kvmi_x86_regs regs_with_rax(std::uint64_t rax) {
  kvmi_x86_regs regs{};
  regs.rax = rax;
  return regs;
}

struct TwoDeciders {
  explicit TwoDeciders(std::uint32_t first_priority = 0, std::uint32_t second_priority = 0)
      : a(guest.attach(with_priority(first_priority))), b(guest.attach(with_priority(second_priority))) {
    for (const AgentId agent : {a, b}) {
      guest.subscribe(agent,
                      events({EventKind::Cr, EventKind::Hypercall, EventKind::PageFault, EventKind::Breakpoint}));
      guest.command(agent, ControlCr{kAllVcpus, true, 4});
    }
    guest.forget();
  }
  void vote_value(AgentId agent, Action action, std::uint64_t value) {
    EventReply reply = guest.reply_to(agent, action);
    reply.value = NewValue{value};
    guest.vote(agent, reply);
  }
  Guest guest;
  AgentId a;
  AgentId b;
};

}  // namespace

TEST_CASE("the strictest action of two deciders wins, in either order", "[merge]") {
  for (unsigned first = 0; first < kActionCount; ++first)
    for (unsigned second = 0; second < kActionCount; ++second) {
      CAPTURE(first, second);
      TwoDeciders t;
      const Seq seq = t.guest.event(0);
      t.guest.vote(t.a, static_cast<Action>(first));
      REQUIRE(t.guest.verdict(seq) == nullptr);

      t.guest.vote(t.b, static_cast<Action>(second));

      REQUIRE(t.guest.verdict(seq) != nullptr);
      REQUIRE(t.guest.verdict(seq)->action == static_cast<Action>(std::max(first, second)));
      REQUIRE(t.guest.verdict(seq)->event == EventKind::Hypercall);
      REQUIRE(t.guest.verdict(seq)->vcpu == VcpuId{0});
    }
}

TEST_CASE("all deciders get an event in the same step, with their own deadline", "[merge]") {
  Guest guest;
  std::vector<AgentId> agents;
  for (unsigned i = 0; i < kAgentsPerGuestMax; ++i) {
    Grant grant = full_grant();
    grant.deadline = std::chrono::milliseconds(10 + i);
    agents.push_back(guest.attach(grant));
    guest.subscribe(agents.back(), only(EventKind::Hypercall));
  }

  guest.event(1);

  for (unsigned i = 0; i < agents.size(); ++i) {
    REQUIRE(guest.events_told(agents[i]) == 1);
    REQUIRE(guest.last_event(agents[i])->decide);
    REQUIRE(guest.last_event(agents[i])->deadline_us == (10 + i) * 1000);
    REQUIRE(guest.last_event(agents[i])->event.vcpu == VcpuId{1});
  }
}

TEST_CASE("an observer is told and never delays the guest", "[merge]") {
  Guest guest;
  const AgentId observer = guest.attach();
  guest.subscribe(observer, only(EventKind::Hypercall), Role::Observer);

  const Seq seq = guest.event(0);

  REQUIRE(guest.last_event(observer)->decide == false);
  REQUIRE(guest.last_event(observer)->deadline_us == 0);
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
  REQUIRE(guest.machine.next_deadline() == std::nullopt);
}

TEST_CASE("an observer beside a decider is not waited for", "[merge]") {
  Guest guest;
  const AgentId decider = guest.attach();
  const AgentId observer = guest.attach();
  guest.subscribe(decider, only(EventKind::Hypercall));
  guest.subscribe(observer, only(EventKind::Hypercall), Role::Observer);
  const Seq seq = guest.event(0);

  guest.vote(decider, Action::Skip);

  REQUIRE(guest.verdict(seq)->action == Action::Skip);
}

TEST_CASE("a changed value comes from the voter of the highest priority that gave one", "[merge]") {
  TwoDeciders t(1, 9);
  const bool high_first = GENERATE(true, false);
  const Seq seq = t.guest.event(0, CrData{4, 0, 1});

  if (high_first) t.vote_value(t.b, Action::Allow, 22);
  t.vote_value(t.a, Action::Allow, 11);
  if (!high_first) t.vote_value(t.b, Action::Allow, 22);

  REQUIRE(std::get<NewValue>(t.guest.verdict(seq)->value).value == 22);
}

TEST_CASE("a voter of high priority without a value leaves that of a lower one", "[merge]") {
  TwoDeciders t(1, 9);
  const Seq seq = t.guest.event(0, CrData{4, 0, 1});
  t.vote_value(t.a, Action::Allow, 11);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(std::get<NewValue>(t.guest.verdict(seq)->value).value == 11);
}

TEST_CASE("of equal priorities the value of who attached first stands", "[merge]") {
  TwoDeciders t(5, 5);
  const bool first_votes_first = GENERATE(true, false);
  const Seq seq = t.guest.event(0, CrData{4, 0, 1});
  if (first_votes_first) t.vote_value(t.a, Action::Allow, 11);
  t.vote_value(t.b, Action::Allow, 22);
  if (!first_votes_first) t.vote_value(t.a, Action::Allow, 11);
  REQUIRE(std::get<NewValue>(t.guest.verdict(seq)->value).value == 11);
}

TEST_CASE("a changed value is dropped when the action is a stricter one", "[merge]") {
  const auto stricter = GENERATE(Action::Retry, Action::Skip, Action::Crash);
  TwoDeciders t(9, 1);
  const Seq seq = t.guest.event(0, CrData{4, 0, 1});
  t.vote_value(t.a, Action::Allow, 11);
  t.guest.vote(t.b, stricter);
  REQUIRE(t.guest.verdict(seq)->action == stricter);
  REQUIRE(std::holds_alternative<std::monostate>(t.guest.verdict(seq)->value));
}

TEST_CASE("an access trap is set by one voter and dropped by a stricter action", "[merge]") {
  TwoDeciders t;
  for (const AgentId agent : {t.a, t.b}) t.guest.set_pages(agent, {pages(5, 1, kR)});
  t.guest.subscribe(t.a, only(EventKind::Access));
  const Action other = GENERATE(Action::Allow, Action::Skip);
  const Seq seq = t.guest.event(0, PageFaultData{Gva{}, Gpa{5 * kPageSize}, KVMI_PAGE_ACCESS_W, false});
  EventReply trap = t.guest.reply_to(t.a, Action::Allow);
  trap.trap_access = true;
  t.guest.vote(t.a, trap);
  t.guest.vote(t.b, other);
  REQUIRE(t.guest.verdict(seq)->trap_access == (other == Action::Allow));
}

TEST_CASE("staged registers go out just before the reply, in the same effects", "[merge][registers]") {
  TwoDeciders t(1, 9);
  const Seq seq = t.guest.event(1);
  const Seq low = t.guest.command(t.a, SetRegisters{VcpuId{1}, regs_with_rax(1)});
  const Seq high = t.guest.command(t.b, SetRegisters{VcpuId{1}, regs_with_rax(2)});
  REQUIRE(t.guest.error_of(t.a, low) == ErrorCode::None);
  REQUIRE(t.guest.error_of(t.b, high) == ErrorCode::None);
  REQUIRE(t.guest.to_hypervisor.empty());
  t.guest.vote(t.b, Action::Allow);

  t.guest.answering = false;
  t.guest.vote(t.a, Action::Allow);

  REQUIRE(t.guest.to_hypervisor.size() == 2);
  REQUIRE(std::get<SetRegisters>(t.guest.to_hypervisor[0].command).regs.rax == 2);
  REQUIRE(std::get<SetRegisters>(t.guest.to_hypervisor[0].command).vcpu == VcpuId{1});
  REQUIRE(t.guest.to_hypervisor[1].is_event_reply);
  REQUIRE(t.guest.to_hypervisor[1].seq == seq);
}

TEST_CASE("later registers of the same agent replace what it staged before", "[merge][registers]") {
  TwoDeciders t;
  t.guest.event(0);
  t.guest.command(t.a, SetRegisters{VcpuId{0}, regs_with_rax(1)});
  t.guest.command(t.a, SetRegisters{VcpuId{0}, regs_with_rax(3)});
  t.guest.vote(t.a, Action::Allow);
  t.guest.vote(t.b, Action::Allow);
  REQUIRE(t.guest.sent<SetRegisters>() == 1);
  REQUIRE(std::get<SetRegisters>(t.guest.to_hypervisor[0].command).regs.rax == 3);
}

TEST_CASE("what an agent staged is dropped when it expires, dies or answers badly before its vote",
          "[merge][registers]") {
  TwoDeciders t(1, 9);
  const Seq seq = t.guest.event(0);
  t.guest.command(t.b, SetRegisters{VcpuId{0}, regs_with_rax(2)});
  t.guest.vote(t.a, Action::Allow);
  SECTION("expires") { t.guest.pass(100ms); }
  SECTION("dies") { t.guest.lose(t.b); }
  SECTION("answers badly") {
    EventReply bad = t.guest.reply_to(t.b, Action::Allow);
    bad.event = EventKind::Cr;
    t.guest.vote(t.b, bad);
  }
  REQUIRE(t.guest.verdict(seq) != nullptr);
  REQUIRE(t.guest.sent<SetRegisters>() == 0);
}

TEST_CASE("a refusal of staged registers is told to the agent whose they are", "[merge][registers]") {
  TwoDeciders t(1, 9);
  t.guest.refuse = [](const ToHypervisor& sent) {
    return std::holds_alternative<SetRegisters>(sent.command) ? ErrorCode::Busy : ErrorCode::None;
  };
  t.guest.event(1, CrData{4, 0, 1});
  const Seq told = t.guest.last_event(t.b)->seq;
  t.guest.command(t.b, SetRegisters{VcpuId{1}, regs_with_rax(2)});
  t.guest.vote(t.a, Action::Skip);
  t.guest.vote(t.b, Action::Allow);
  const auto* notice = t.guest.last_notice(t.b, NoticeKind::ReplyRefused);
  REQUIRE(notice != nullptr);
  REQUIRE(notice->notice.error == ErrorCode::Busy);
  REQUIRE(notice->notice.event == EventKind::Cr);
  REQUIRE(notice->notice.vcpu == VcpuId{1});
  REQUIRE(notice->notice.event_seq == told);
  REQUIRE(t.guest.last_notice(t.a, NoticeKind::ReplyRefused) == nullptr);
  REQUIRE(t.guest.reports.back().fact == Fact::CommandFailed);
}

TEST_CASE("SET_REGISTERS outside an event of the agent is answered EAGAIN", "[merge][registers]") {
  TwoDeciders t;
  const AgentId observer = t.guest.attach();
  t.guest.subscribe(observer, only(EventKind::Hypercall), Role::Observer);
  const SetRegisters command{VcpuId{0}, {}};
  REQUIRE(t.guest.error_of(t.a, t.guest.command(t.a, command)) == ErrorCode::TryAgain);
  t.guest.event(0);
  REQUIRE(t.guest.error_of(observer, t.guest.command(observer, command)) == ErrorCode::TryAgain);
  REQUIRE(t.guest.error_of(t.a, t.guest.command(t.a, SetRegisters{VcpuId{1}, {}})) == ErrorCode::TryAgain);
  t.guest.vote(t.a, Action::Allow);
  REQUIRE(t.guest.error_of(t.a, t.guest.command(t.a, command)) == ErrorCode::TryAgain);
}

TEST_CASE("who asked for OUTCOMES is told how an event it saw ended and who decided it", "[merge]") {
  Guest guest;
  const AgentId decider = guest.attach();
  const AgentId watcher = guest.attach(full_grant(), KVMI_HELLO_OUTCOMES);
  const AgentId stranger = guest.attach(full_grant(), KVMI_HELLO_OUTCOMES);
  guest.subscribe(decider, only(EventKind::Hypercall));
  guest.subscribe(watcher, only(EventKind::Hypercall), Role::Observer);
  guest.event(0);
  guest.vote(decider, Action::Crash);
  const auto* outcome = guest.last_notice(watcher, NoticeKind::Outcome);
  REQUIRE(outcome != nullptr);
  REQUIRE(outcome->notice.action == Action::Crash);
  REQUIRE(outcome->notice.agent == decider);
  REQUIRE(guest.last_notice(decider, NoticeKind::Outcome) == nullptr);
  REQUIRE(guest.last_notice(stranger, NoticeKind::Outcome) == nullptr);
}

}  // namespace kvmid::core::testing
