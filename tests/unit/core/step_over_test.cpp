// SPDX-License-Identifier: GPL-2.0-or-later
// Getting past a patch: the guest's own instruction is executed once, nobody else moves meanwhile, no hit is lost.
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

constexpr std::uint64_t kPlace = 0x5000;

BreakpointData hit(std::uint64_t gpa = kPlace) { return {Gpa{gpa}, 1}; }

struct Patched : Guest {
  explicit Patched(std::uint16_t vcpu_count = 3) : Guest(vcpu_count) {
    owner = attach();
    subscribe(owner, only(EventKind::Breakpoint));
    patch(owner, kPlace);
    forget();
  }
  void step_over() {
    EventReply reply = reply_to(owner, Action::Retry);
    reply.step_over = true;
    vote(owner, reply);
  }
  [[nodiscard]] bool lifted() const { return state.patches.empty(); }
  AgentId owner;
};

}  // namespace

TEST_CASE("others stand still, the patch is off, one step is made, and it is there again before anybody moves",
          "[step_over]") {
  Patched guest;
  const Seq met = guest.event(0, hit());
  SECTION("asked for") { guest.step_over(); }
  SECTION("ALLOW lets the guest do what it was about to do") { guest.vote(guest.owner, Action::Allow); }
  SECTION("silence") { guest.pass(200ms); }
  // vCPU 1 and 2 are asked to stop; until both have, the patch stays.
  REQUIRE(guest.sent<PauseVcpu>() == 2);
  const Seq first = guest.event(1, PauseData{});
  REQUIRE_FALSE(guest.lifted());
  REQUIRE(guest.verdict(met) == nullptr);
  const Seq second = guest.event(2, HypercallData{});  // whatever it stops in will do
  REQUIRE(guest.lifted());
  REQUIRE(guest.state.vcpus[0].singlestep);
  REQUIRE_FALSE(guest.state.vcpus[1].singlestep);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE_FALSE(guest.verdict(met)->step_over);
  REQUIRE(guest.verdict(first) == nullptr);
  REQUIRE(guest.verdict(second) == nullptr);

  const Seq stepped = guest.event(0, SinglestepData{});
  REQUIRE_FALSE(guest.lifted());
  REQUIRE_FALSE(guest.state.vcpus[0].singlestep);
  for (const Seq seq : {first, second, stepped}) REQUIRE(guest.verdict(seq)->action == Action::Allow);
  REQUIRE(guest.machine.settled());
  REQUIRE(guest.machine.counters().stepped_over == 1);
  REQUIRE(guest.events_told(guest.owner) == 1);  // the steps are kvmid's own
  // The pause of vCPU 2 comes when it is not needed any more.
  REQUIRE(guest.verdict(guest.event(2, PauseData{}))->action == Action::Allow);
}

TEST_CASE("the patch is placed again before anybody is let go", "[step_over]") {
  Patched guest(2);
  guest.event(0, hit());
  guest.step_over();
  const Seq held = guest.event(1, PauseData{});
  guest.answering = false;
  const Seq stepped = guest.event(0, SinglestepData{});
  while (guest.lifted()) {
    REQUIRE(guest.verdict(held) == nullptr);
    REQUIRE(guest.verdict(stepped) == nullptr);
    guest.answer_one();
  }
  guest.answer_all();
  REQUIRE(guest.verdict(held) != nullptr);
  REQUIRE(guest.verdict(stepped) != nullptr);
}

TEST_CASE("hits of several vCPUs are stepped one after another, and each is told", "[step_over]") {
  Patched guest;
  Seq met[3];
  for (std::uint16_t i = 0; i < 3; ++i) met[i] = guest.event(i, hit());
  REQUIRE(guest.events_told(guest.owner) == 3);
  const auto told = guest.got(guest.owner, ToAgent::Kind::Event);
  std::vector<std::pair<Seq, EventReply>> replies;
  for (const auto* event : told) {
    EventReply reply;
    reply.vcpu = event->event.vcpu;
    reply.event = EventKind::Breakpoint;
    reply.action = Action::Retry;
    reply.step_over = true;
    replies.emplace_back(event->seq, reply);
  }
  for (const auto& [seq, reply] : replies) guest.vote_as(guest.owner, seq, reply);
  REQUIRE(guest.sent<PauseVcpu>() == 0);  // all of them stand still
  for (std::uint16_t i = 0; i < 3; ++i) {
    REQUIRE(guest.verdict(met[i]) != nullptr);
    if (i < 2) REQUIRE(guest.verdict(met[i + 1]) == nullptr);
    guest.event(i, SinglestepData{});
  }
  REQUIRE_FALSE(guest.lifted());
  REQUIRE(guest.machine.settled());
  REQUIRE(guest.machine.counters().stepped_over == 3);
}

TEST_CASE("RETRY alone executes the patch again", "[step_over]") {
  Patched guest;
  const Seq met = guest.event(0, hit());
  guest.vote(guest.owner, Action::Retry);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.sent<PauseVcpu>() == 0);
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("a vCPU that was sent elsewhere has no patch in its way", "[step_over]") {
  Patched guest;
  const Seq met = guest.event(0, hit());
  kvmi_x86_regs regs{};
  regs.rip = 0x1234;
  guest.command(guest.owner, SetRegisters{VcpuId{0}, regs});
  guest.vote(guest.owner, Action::Allow);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.sent<SetRegisters>() == 1);
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("without a subscription the guest does not notice a patch", "[step_over]") {
  Patched guest(1);
  guest.subscribe(guest.owner, only(EventKind::Breakpoint), Role::Decider, kAllVcpus, Operation::Disable);
  const Seq met = guest.event(0, hit());
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.lifted());
  guest.event(0, SinglestepData{});
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("what the instruction does meanwhile is an event like any other", "[step_over]") {
  Patched guest(2);
  const AgentId other = guest.attach();
  guest.subscribe(other, events({EventKind::Cr}));
  guest.command(other, ControlCr{kAllVcpus, true, 3});
  guest.event(0, hit());
  guest.step_over();
  const Seq held = guest.event(1, PauseData{});
  const Seq cr = guest.event(0, CrData{3, 0, 1});
  guest.vote(other, Action::Allow);
  REQUIRE(guest.verdict(cr)->action == Action::Allow);
  REQUIRE(guest.lifted());
  REQUIRE(guest.verdict(held) == nullptr);
  guest.event(0, SinglestepData{});
  REQUIRE(guest.verdict(held) != nullptr);
}

TEST_CASE("an agent that steps that vCPU hears of the step as well", "[step_over]") {
  Patched guest(1);
  const AgentId stepper = guest.attach();
  guest.subscribe(stepper, only(EventKind::Singlestep));
  guest.command(stepper, ControlSinglestep{VcpuId{0}, true});
  guest.event(0, hit());
  guest.step_over();
  const Seq stepped = guest.event(0, SinglestepData{});
  REQUIRE(guest.events_told(stepper) == 1);
  guest.vote(stepper, Action::Allow);
  REQUIRE(guest.verdict(stepped) != nullptr);
  REQUIRE(guest.state.vcpus[0].singlestep);
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("an owner that dies meanwhile leaves nothing, and nobody is held", "[step_over][withdraw]") {
  Patched guest(2);
  const Seq met = guest.event(0, hit());
  Seq held{};
  SECTION("before its vote") { guest.lose(guest.owner); }
  SECTION("while others are asked to stop") {
    guest.step_over();
    guest.lose(guest.owner);
  }
  SECTION("while the instruction runs") {
    guest.step_over();
    held = guest.event(1, PauseData{});
    guest.lose(guest.owner);
  }
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.lifted());
  REQUIRE(guest.state.vcpus[0] == HypervisorState::Vcpu{});
  if (held != Seq{}) REQUIRE(guest.verdict(held) != nullptr);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("another owner's patch stays when one of them dies on it", "[step_over][withdraw]") {
  Patched guest(1);
  const AgentId other = guest.attach();
  guest.subscribe(other, only(EventKind::Breakpoint));
  guest.patch(other, kPlace);
  const Seq met = guest.event(0, hit());
  guest.lose(guest.owner);
  REQUIRE(guest.verdict(met) == nullptr);
  guest.vote(other, Action::Allow);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  guest.event(0, SinglestepData{});
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("a step that does not come does not hold the others for good", "[step_over]") {
  Patched guest(2);
  guest.event(0, hit());
  guest.step_over();
  const Seq held = guest.event(1, PauseData{});
  REQUIRE(guest.lifted());
  guest.pass(kStepOverMax);
  REQUIRE_FALSE(guest.lifted());
  REQUIRE(guest.verdict(held) != nullptr);
  REQUIRE_FALSE(guest.state.vcpus[0].singlestep);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("a vCPU that does not stop, or may not be stopped, costs the patch and not the guest", "[step_over]") {
  Patched guest(2);
  SECTION("silent") {
    guest.event(0, hit());
    guest.step_over();
    guest.pass(kStepOverMax);
  }
  SECTION("refused") {
    guest.refuse = [](const ToHypervisor& sent) {
      return std::holds_alternative<PauseVcpu>(sent.command) ? ErrorCode::NoMemory : ErrorCode::None;
    };
    guest.event(0, hit());
    guest.step_over();
  }
  SECTION("single step refused") {
    guest.refuse = [](const ToHypervisor& sent) {
      return std::holds_alternative<ControlSinglestep>(sent.command) ? ErrorCode::NoMemory : ErrorCode::None;
    };
    guest.event(0, hit());
    guest.step_over();
    guest.event(1, PauseData{});
  }
  REQUIRE(guest.last_notice(guest.owner, NoticeKind::Revoked) != nullptr);
  REQUIRE(guest.lifted());
  REQUIRE(guest.machine.settled());
  REQUIRE(guest.to_hypervisor.size() >= 2);
}

TEST_CASE("where the hypervisor cannot step, STEP_OVER is refused and a patch that is in the way is given up",
          "[step_over]") {
  Guest guest(2);
  guest.version.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_CONTROL_SINGLESTEP);
  guest.lose_hypervisor();
  guest.connect();
  const AgentId owner = guest.attach();
  guest.subscribe(owner, only(EventKind::Breakpoint));
  guest.patch(owner, kPlace);
  const Seq met = guest.event(0, hit());
  EventReply reply = guest.reply_to(owner, Action::Retry);
  reply.step_over = true;
  guest.vote(owner, reply);
  REQUIRE(guest.last_notice(owner, NoticeKind::ReplyRefused) != nullptr);
  REQUIRE(guest.last_notice(owner, NoticeKind::Revoked) != nullptr);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.state.patches.empty());
  REQUIRE(guest.machine.settled());
}

TEST_CASE("STEP_OVER without a patch of one's own is refused", "[step_over][hostile]") {
  Patched guest(1);
  const AgentId other = guest.attach();
  guest.subscribe(other, only(EventKind::Breakpoint));
  guest.event(0, hit(0x7000));
  EventReply reply = guest.reply_to(other, Action::Retry);
  reply.step_over = true;
  guest.vote(other, reply);
  REQUIRE(guest.last_notice(other, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Invalid);
}

TEST_CASE("a held vCPU that sends another event breaks the protocol", "[step_over][hostile]") {
  Patched guest(2);
  guest.event(0, hit());
  guest.step_over();
  guest.event(1, PauseData{});
  guest.event(1, HypercallData{});
  REQUIRE(guest.closed);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("a breakpoint of the guest's own under the patch is given to the guest", "[step_over]") {
  Patched guest(1);
  const AgentId watcher = guest.attach();
  guest.subscribe(watcher, only(EventKind::Breakpoint));
  guest.event(0, hit());
  guest.step_over();
  const Seq own = guest.event(0, hit());
  REQUIRE_FALSE(guest.lifted());
  REQUIRE(guest.events_told(guest.owner) == 2);
  REQUIRE(guest.events_told(watcher) == 1);  // it is nobody's patch that was met
  guest.vote(guest.owner, Action::Allow);
  guest.vote(watcher, Action::Allow);
  REQUIRE(guest.verdict(own)->action == Action::Allow);
  const Seq next = guest.event(0, hit());  // and the next one is a hit again
  REQUIRE(guest.events_told(watcher) == 1);
  guest.step_over();
  REQUIRE(guest.verdict(next)->action == Action::Retry);
}

TEST_CASE("an owner that steps over everything does not keep the guest from its own breakpoint", "[step_over]") {
  Patched guest(1);
  guest.event(0, hit());
  guest.step_over();
  const Seq own = guest.event(0, hit());
  guest.step_over();
  REQUIRE(guest.verdict(own)->action == Action::Allow);
}

TEST_CASE("that kvmid holds a vCPU is nobody's business", "[step_over]") {
  Patched guest(2);
  const AgentId observer = guest.attach();
  guest.subscribe(observer, only(EventKind::Pause), Role::Observer);
  guest.event(0, hit());
  guest.vote(guest.owner, Action::Allow);
  guest.event(1, PauseData{});
  REQUIRE(guest.events_told(observer) == 0);
}

TEST_CASE("whatever policy says of silence, at a patch it lets the guest go on", "[step_over]") {
  Guest guest(1);
  Grant grant = full_grant();
  grant.default_action = GENERATE(Action::Skip, Action::Retry);
  const AgentId owner = guest.attach(grant);
  guest.subscribe(owner, only(EventKind::Breakpoint));
  guest.patch(owner, kPlace);
  const Seq met = guest.event(0, hit());
  guest.pass(200ms);
  REQUIRE(guest.verdict(met)->action == Action::Retry);
  REQUIRE(guest.state.patches.empty());  // lifted
  guest.event(0, SinglestepData{});
  REQUIRE(guest.state.patches.size() == 1);
  REQUIRE(guest.machine.counters().stepped_over == 1);
}

TEST_CASE("who patches a place that is stepped over waits until it is placed", "[step_over]") {
  Patched guest(1);
  const AgentId other = guest.attach();
  guest.event(0, hit());
  guest.step_over();
  REQUIRE(guest.lifted());
  const Seq seq = guest.patch(other, kPlace);
  REQUIRE_FALSE(guest.error_of(other, seq));
  guest.event(0, SinglestepData{});
  REQUIRE(guest.error_of(other, seq) == ErrorCode::None);
  REQUIRE_FALSE(guest.lifted());
}

TEST_CASE("the link is lost in the middle of a step", "[step_over]") {
  Patched guest(2);
  guest.event(0, hit());
  guest.step_over();
  guest.event(1, PauseData{});
  guest.lose_hypervisor();
  guest.connect();
  REQUIRE_FALSE(guest.lifted());
  REQUIRE_FALSE(guest.state.vcpus[0].singlestep);
  REQUIRE(guest.machine.settled());
}

}  // namespace kvmid::core::testing
