// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

struct OneDecider {
  explicit OneDecider(Action default_action = Action::Allow) {
    Grant grant = full_grant();
    grant.default_action = default_action;
    agent = guest.attach(grant);
    guest.subscribe(agent, events({EventKind::Hypercall, EventKind::Breakpoint, EventKind::Trap}));
    guest.forget();
  }
  Guest guest{4};
  AgentId agent;
};

}  // namespace

TEST_CASE("an agent that stays silent past its deadline does not freeze the guest: its default is its vote",
          "[deadline]") {
  const auto action = GENERATE(Action::Allow, Action::Retry, Action::Skip, Action::Crash);
  OneDecider t(action);
  const Seq seq = t.guest.event(0);

  t.guest.pass(100ms - 1ns);
  REQUIRE(t.guest.verdict(seq) == nullptr);
  t.guest.pass(1ns);

  REQUIRE(t.guest.verdict(seq)->action == action);
  const auto* notice = t.guest.last_notice(t.agent, NoticeKind::Expired);
  REQUIRE(notice != nullptr);
  REQUIRE(notice->notice.action == action);
  REQUIRE(notice->notice.count == 1);
  REQUIRE(notice->notice.error == ErrorCode::TimedOut);
  REQUIRE(notice->seq == t.guest.last_event(t.agent)->seq);
}

TEST_CASE("a default that the event does not take becomes the mildest action that it takes", "[deadline]") {
  OneDecider t(Action::Retry);
  const Seq seq = t.guest.event(0, HypercallData{}, ActionSet{KVMI_ACTION_BIT(2U) | KVMI_ACTION_BIT(3U)});
  t.guest.pass(100ms);
  REQUIRE(t.guest.verdict(seq)->action == Action::Skip);
}

TEST_CASE("the next deadline is exactly that of who owes for longest", "[deadline]") {
  Guest guest;
  Grant quick = full_grant();
  quick.deadline = 5ms;
  const AgentId slow = guest.attach();
  const AgentId fast = guest.attach(quick);
  guest.subscribe(slow, only(EventKind::Hypercall));
  guest.subscribe(fast, only(EventKind::Hypercall));
  REQUIRE(guest.machine.next_deadline() == std::nullopt);

  guest.event(0);
  const TimePoint first = guest.now;
  REQUIRE(guest.machine.next_deadline() == first + 5ms);
  guest.pass(3ms);
  guest.event(1);
  REQUIRE(guest.machine.next_deadline() == first + 5ms);
  guest.pass(2ms);
  REQUIRE(guest.machine.next_deadline() == first + 8ms);
  guest.pass(3ms);
  REQUIRE(guest.machine.next_deadline() == first + 100ms);
}

TEST_CASE("several vCPUs wait independently of each other", "[deadline]") {
  OneDecider t;
  std::vector<Seq> seqs;
  std::vector<Seq> told;
  for (std::uint16_t vcpu = 0; vcpu < 4; ++vcpu) {
    seqs.push_back(t.guest.event(vcpu));
    told.push_back(t.guest.last_event(t.agent)->seq);
    t.guest.pass(10ms);
  }
  t.guest.vote_as(t.agent, told[2],
                  EventReply{.vcpu = VcpuId{2}, .event = EventKind::Hypercall, .action = Action::Skip, .value = {}});
  REQUIRE(t.guest.verdict(seqs[2])->action == Action::Skip);
  t.guest.pass(60ms);
  REQUIRE(t.guest.verdict(seqs[0]) != nullptr);
  REQUIRE(t.guest.verdict(seqs[1]) == nullptr);
  t.guest.pass(30ms);
  REQUIRE(t.guest.verdict(seqs[1]) != nullptr);
  REQUIRE(t.guest.verdict(seqs[3]) != nullptr);
}

TEST_CASE("a good reply sets the count of missed deadlines back", "[deadline]") {
  OneDecider t;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 2; ++i) {
      t.guest.event(0);
      t.guest.pass(100ms);
    }
    t.guest.event(0);
    t.guest.vote(t.agent, Action::Allow);
  }
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Demoted) == nullptr);
  REQUIRE(t.guest.machine.counters().expired == 10);
}

TEST_CASE("too many deadlines missed in a row make an observer of that kind, which cannot decide it again",
          "[deadline]") {
  OneDecider t;
  for (int i = 0; i < 3; ++i) {
    t.guest.event(0);
    t.guest.pass(100ms);
  }
  const auto* notice = t.guest.last_notice(t.agent, NoticeKind::Demoted);
  REQUIRE(notice->notice.count == 3);
  REQUIRE(notice->notice.event == EventKind::Hypercall);
  REQUIRE(notice->notice.error == ErrorCode::TimedOut);

  const Seq seq = t.guest.event(0);

  REQUIRE(t.guest.events_told(t.agent) == 4);
  REQUIRE_FALSE(t.guest.last_event(t.agent)->decide);
  REQUIRE(t.guest.verdict(seq) != nullptr);
  const AgentInfo info = t.guest.machine.info().agents.at(0);
  REQUIRE(info.demoted == only(EventKind::Hypercall));
  REQUIRE(info.role == Role::Decider);
  REQUIRE(info.strikes == 3);
  REQUIRE(t.guest.machine.counters().demoted == 1);
}

TEST_CASE("who is an observer of one kind decides the others as before", "[deadline]") {
  OneDecider t;
  for (int i = 0; i < 3; ++i) {
    t.guest.event(0);
    t.guest.pass(100ms);
  }
  const Seq seq = t.guest.event(1, BreakpointData{}, ActionSet{0b1101});
  REQUIRE(t.guest.last_event(t.agent)->decide);
  REQUIRE(t.guest.verdict(seq) == nullptr);
  t.guest.vote(t.agent, Action::Skip);
  REQUIRE(t.guest.verdict(seq)->action == Action::Skip);

  const auto asked = [&](EventSet set, Role role) {
    return t.guest.error_of(t.agent, t.guest.subscribe(t.agent, set, role));
  };
  REQUIRE(asked(only(EventKind::Cr), Role::Decider) == ErrorCode::None);
  REQUIRE(asked(only(EventKind::Hypercall), Role::Decider) == ErrorCode::NotPermitted);
  REQUIRE(asked(events({EventKind::Hypercall, EventKind::Cr}), Role::Decider) == ErrorCode::NotPermitted);
  REQUIRE(asked(only(EventKind::Hypercall), Role::Observer) == ErrorCode::None);

  // A new attachment begins anew.
  t.guest.lose(t.agent);
  const AgentId again = t.guest.attach();
  const Seq subscribed = t.guest.subscribe(again, only(EventKind::Hypercall));
  REQUIRE(t.guest.error_of(again, subscribed) == ErrorCode::None);
  REQUIRE(t.guest.machine.info().agents.at(0).demoted == EventSet{});
  REQUIRE(t.guest.machine.info().agents.at(0).strikes == 0);
}

TEST_CASE("good replies to one kind of event do not excuse silence about another", "[deadline]") {
  OneDecider t;
  for (std::uint32_t i = 1; i <= 3; ++i) {
    t.guest.event(0, BreakpointData{}, ActionSet{0b1101});
    t.guest.vote(t.agent, Action::Allow);
    t.guest.event(0);
    t.guest.pass(100ms);
    REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Expired)->notice.count == i);
  }
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Demoted)->notice.event == EventKind::Hypercall);

  // The second kind has a count of its own.
  for (int i = 0; i < 3; ++i) {
    REQUIRE(t.guest.machine.counters().demoted == 1);
    t.guest.event(0, BreakpointData{}, ActionSet{0b1101});
    t.guest.pass(100ms);
  }
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Demoted)->notice.event == EventKind::Breakpoint);
  REQUIRE(t.guest.machine.info().agents.at(0).demoted == events({EventKind::Hypercall, EventKind::Breakpoint}));
}

TEST_CASE("a refused change does not bring back the decider that was demoted while it was under way", "[deadline]") {
  // Once the roles of before the change came back as they were, although the agent had lost the right to decide.
  OneDecider t;
  for (int i = 0; i < 2; ++i) {
    t.guest.event(0);
    t.guest.pass(100ms);
  }
  t.guest.event(0);
  t.guest.answering = false;
  t.guest.refuse = [](const ToHypervisor& sent) {
    const auto* control = std::get_if<ControlEvents>(&sent.command);
    return control != nullptr && control->operation == Operation::Enable && control->events.has(EventKind::Cr)
               ? ErrorCode::NoMemory
               : ErrorCode::None;
  };
  t.guest.subscribe(t.agent, only(EventKind::Cr), Role::Decider, kAllVcpus, Operation::Set);
  t.guest.pass(100ms);
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::Demoted) != nullptr);
  t.guest.answer_all();

  const Seq seq = t.guest.event(1);

  REQUIRE(t.guest.verdict(seq) != nullptr);
  REQUIRE_FALSE(t.guest.last_event(t.agent)->decide);
}

TEST_CASE("a late reply is answered ESTALE, one that is not owed ENOENT", "[deadline]") {
  OneDecider t;
  const AgentId observer = t.guest.attach();
  t.guest.subscribe(observer, only(EventKind::Hypercall), Role::Observer);
  const auto refused = [&](AgentId agent) {
    return t.guest.last_notice(agent, NoticeKind::ReplyRefused)->notice.error;
  };

  t.guest.event(0);
  t.guest.vote(observer, Action::Crash);
  REQUIRE(refused(observer) == ErrorCode::NoEntry);
  t.guest.pass(100ms);
  t.guest.vote(t.agent, Action::Crash);
  REQUIRE(refused(t.agent) == ErrorCode::Stale);
  t.guest.vote_as(t.agent, Seq{77}, EventReply{});
  REQUIRE(refused(t.agent) == ErrorCode::NoEntry);
  t.guest.vote_as(t.agent, Seq{0}, EventReply{});
  REQUIRE(refused(t.agent) == ErrorCode::NoEntry);
  t.guest.vote_as(t.agent, Seq{0xfffffff0}, EventReply{});
  REQUIRE(refused(t.agent) == ErrorCode::NoEntry);
  REQUIRE(t.guest.machine.counters().late_replies == 1);
  REQUIRE(t.guest.machine.counters().bad_replies == 4);
}

TEST_CASE("a second reply to the same event changes nothing", "[deadline]") {
  OneDecider t;
  const AgentId other = t.guest.attach();
  t.guest.subscribe(other, only(EventKind::Hypercall));
  const Seq seq = t.guest.event(0);
  t.guest.vote(t.agent, Action::Allow);
  t.guest.vote(t.agent, Action::Crash);
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Stale);
  t.guest.vote(other, Action::Allow);
  REQUIRE(t.guest.verdict(seq)->action == Action::Allow);
}

TEST_CASE("a bad reply gets a notice and counts as the default", "[deadline]") {
  OneDecider t(Action::Skip);
  const Seq seq = t.guest.event(0, BreakpointData{}, ActionSet{0b1101});
  EventReply bad = t.guest.reply_to(t.agent, Action::Allow);
  SECTION("an action that the event does not take") { bad.action = Action::Retry; }
  SECTION("another event") { bad.event = EventKind::Hypercall; }
  SECTION("another vCPU") { bad.vcpu = VcpuId{3}; }
  SECTION("a vCPU that there is not") { bad.vcpu = VcpuId{99}; }
  SECTION("a value where none is taken") { bad.value = NewValue{1}; }
  SECTION("data where none are taken") { bad.value = NewData{}; }
  SECTION("an access trap of no page fault") { bad.trap_access = true; }
  SECTION("a step over that is no retry") { bad.step_over = true; }
  t.guest.vote(t.agent, bad);
  REQUIRE(t.guest.verdict(seq)->action == Action::Skip);
  REQUIRE(t.guest.verdict(seq)->vcpu == VcpuId{0});
  const auto* notice = t.guest.last_notice(t.agent, NoticeKind::ReplyRefused);
  REQUIRE(notice->notice.error == ErrorCode::Invalid);
  REQUIRE(notice->notice.event == EventKind::Breakpoint);
  REQUIRE_FALSE(notice->text.empty());
}

TEST_CASE("a malformed reply counts as the default of the event whose seq it carries", "[deadline]") {
  OneDecider t(Action::Skip);
  const Seq seq = t.guest.event(2);
  const Seq told = t.guest.last_event(t.agent)->seq;
  t.guest.step([&](Effects& out) {
    t.guest.machine.on_agent_malformed(t.agent, told, DecodeError{DecodeErrc::Truncated, KVMI_MSG_EVENT_REPLY, 3},
                                       "too short", t.guest.now, out);
  });
  REQUIRE(t.guest.verdict(seq)->action == Action::Skip);
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::ReplyRefused)->text == "too short");
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::ReplyRefused)->notice.vcpu == VcpuId{2});
}

TEST_CASE("a reply for a vCPU that does not exist is refused", "[deadline]") {
  OneDecider t;
  t.guest.vote_as(t.agent, Seq{9}, EventReply{.vcpu = VcpuId{4}, .value = {}});
  REQUIRE(t.guest.last_notice(t.agent, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Invalid);
}

TEST_CASE("a deadline of more than an hour is told as the longest that the wire has", "[deadline]") {
  Guest guest;
  Grant grant = full_grant();
  grant.deadline = 5h;
  const AgentId agent = guest.attach(grant);
  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.event(0);
  REQUIRE(guest.last_event(agent)->deadline_us == 0xffffffff);
}

}  // namespace kvmid::core::testing
