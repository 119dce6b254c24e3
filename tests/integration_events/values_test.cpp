// SPDX-License-Identifier: GPL-2.0-or-later
// Answers that change more than an action says: registers, bytes and rights set while the vCPU waits, values that no
// processor takes, and flags that the agent may not use.
#include <catch2/catch.hpp>

#include "tests/integration_events/stage.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr std::uint8_t kGp = 13;
constexpr std::uint32_t kLstar = 0xc0000082;

void refused(Stage& stage, const client::ReceivedEvent& event) {
  const auto notice = stage.next_notice();
  CHECK(notice.kind == NoticeKind::ReplyRefused);
  CHECK(notice.error == ErrorCode::Invalid);
  CHECK(notice.event_seq == event.seq);
}

}  // namespace

TEST_CASE("registers set during an event are loaded just before its answer", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::Hypercall);
  const auto event = stage.provoke(GuestMode::Vmcall);
  kvmi_x86_regs regs = event.event.regs;
  regs.rax = 0x1234;
  check(stage.agent.set_registers(VcpuId{0}, regs));
  // Staged, not loaded: whoever asks sees what the vCPU has.
  CHECK(check(stage.agent.get_registers(VcpuId{0})).regs.rax == emulated::kHypercallNumber);
  check(stage.agent.reply(event, Action::Skip));
  stage.finish(GuestMode::Vmcall);
  CHECK(stage.now().hypercall_result == 0x1234);
}

TEST_CASE("a command and the reply behind it may leave in one write", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::Hypercall);
  const auto event = stage.provoke(GuestMode::Vmcall);
  kvmi_x86_regs regs = event.event.regs;
  regs.rax = 0x4321;
  auto batch = stage.agent.batch();
  const auto ticket = check(batch.add(SetRegisters{VcpuId{0}, regs}));
  batch.reply(event, Action::Skip);
  check(batch.send());
  CHECK(check(stage.agent.collect(ticket)).ok());
  stage.finish(GuestMode::Vmcall);
  CHECK(stage.now().hypercall_result == 0x4321);
}

TEST_CASE("a store skipped by moving RIP goes on where the agent said", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::PageFault);
  check(stage.agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  const auto before = stage.guest.memory().read_u64(emulated::kProtectedPage);
  const auto event = stage.provoke(GuestMode::Store);
  // To the RET behind the 8-byte store.
  kvmi_x86_regs regs = event.event.regs;
  std::uint8_t opcode = 0;
  regs.rip += 8;
  stage.guest.memory().read(Gpa{regs.rip}, &opcode, 1);
  REQUIRE(opcode == 0xc3);
  check(stage.agent.set_registers(VcpuId{0}, regs));
  check(stage.agent.reply(event, Action::Allow));
  CHECK(stage.finish(GuestMode::Store) == 0);
  CHECK(stage.guest.memory().read_u64(emulated::kProtectedPage) == before);
}

TEST_CASE("registers that no processor takes are not loaded, and the guest goes on as it was", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::Hypercall);
  const auto event = stage.provoke(GuestMode::Vmcall);
  kvmi_x86_regs regs = event.event.regs;
  regs.rip = std::uint64_t{1} << 63U;
  const auto staged = stage.agent.set_registers(VcpuId{0}, regs);
  if (!staged) CHECK(staged.error().code == ErrorCode::Invalid);
  check(stage.agent.reply(event, Action::Skip));
  stage.finish(GuestMode::Vmcall);
  CHECK(stage.now().hypercall_result == emulated::kHypercallNumber);
  CHECK(stage.guest.process().running());
}

TEST_CASE("RETRY after the right was given back does not fault again", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::PageFault);
  check(stage.agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  const auto event = stage.provoke(GuestMode::Store);
  check(stage.agent.set_page_access(emulated::kProtectedPage, 1,
                                    KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));
  check(stage.agent.reply(event, Action::Retry));
  CHECK(stage.finish(GuestMode::Store) == 0);
  CHECK(stage.guest.memory().read_u64(emulated::kProtectedPage) == event.event.regs.rax);
}

TEST_CASE("ALLOW of a page fault is for one access: the next one faults again", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::PageFault);
  check(stage.agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  for (int i = 0; i < 3; ++i) {
    const auto event = stage.provoke(GuestMode::Store);
    check(stage.agent.reply(event, Action::Allow));
    CHECK(stage.finish(GuestMode::Store) == 0);
  }
  // SKIP leaves no right behind either.
  const auto event = stage.provoke(GuestMode::Store);
  check(stage.agent.reply(event, Action::Skip));
  stage.finish(GuestMode::Store);
  const auto again = stage.provoke(GuestMode::Store);
  check(stage.agent.reply(again, Action::Allow));
  stage.finish(GuestMode::Store);
}

TEST_CASE("what was allowed of an instruction is taken back when the rest of it is not done", "[events][values]") {
  // The first instruction of the exec page is fetched from one restricted page and writes into another.
  EventDaemon daemon;
  const Action action = GENERATE(Action::Skip, Action::Retry);
  INFO(name_of(action));
  Stage stage(daemon);
  const Gpa mailbox = emulated::mailbox_gpa(VcpuId{0});
  stage.subscribe(EventKind::PageFault);
  check(stage.agent.set_page_access(emulated::kExecPage, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W));
  const auto fetch = stage.provoke(GuestMode::Exec);
  check(stage.agent.set_page_access(mailbox, 1, KVMI_PAGE_ACCESS_R));
  check(stage.agent.reply(fetch, Action::Allow));
  const auto write = stage.next_event();
  REQUIRE(std::get<PageFaultData>(write.event.data).access == KVMI_PAGE_ACCESS_W);
  REQUIRE(write.event.regs.rip == fetch.event.regs.rip);
  check(stage.agent.set_page_access(mailbox, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));
  check(stage.agent.reply(write, action));

  std::optional<client::ReceivedEvent> next;
  REQUIRE(wait_until([&] {
    next = check(stage.agent.wait_event(Millis{5}));
    return next || stage.done(GuestMode::Exec) > stage.done_before(GuestMode::Exec);
  }));
  REQUIRE(next);
  CHECK(std::get<PageFaultData>(next->event.data).access == KVMI_PAGE_ACCESS_X);
  CHECK((next->event.regs.rip == fetch.event.regs.rip) == (action == Action::Retry));
  check(stage.agent.reply(*next, Action::Allow));
  stage.finish(GuestMode::Exec);
  CHECK(stage.now().exec_calls == stage.before().exec_calls + (action == Action::Retry ? 1 : 0));
}

TEST_CASE("a page keeps its other rights", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::PageFault);
  check(stage.agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X));
  stage.guest.do_times(GuestMode::Load, 3);
  check(stage.agent.set_page_access(emulated::kExecPage, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X));
  stage.guest.do_times(GuestMode::Exec, 3);
  stage.guest.set_mode(GuestMode::Idle);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
}

TEST_CASE("RETRY of a breakpoint executes what is there now", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::Breakpoint);
  const auto event = stage.provoke(GuestMode::Int3);
  const std::array nop{std::byte{0x90}};
  check(stage.agent.write_physical(std::get<BreakpointData>(event.event.data).gpa, nop));
  check(stage.agent.reply(event, Action::Retry));
  CHECK(stage.finish(GuestMode::Int3) == 0);
  CHECK(stage.now().exceptions[3] == stage.before().exceptions[3]);
}

TEST_CASE("a replaced value that no processor takes is #GP for the guest", "[events][values]") {
  EventDaemon daemon;
  SECTION("CR4 with a reserved bit") {
    Stage stage(daemon);
    stage.subscribe(EventKind::Cr);
    check(stage.agent.control_cr(kAllVcpus, 4, true));
    const auto event = stage.provoke(GuestMode::Cr4);
    check(stage.agent.reply(event, Action::Allow, NewValue{std::get<CrData>(event.event.data).new_value | 1U << 31U}));
    // The handler returns to the instruction, so the event comes again.
    CHECK(stage.finish(GuestMode::Cr4) >= 1);
    CHECK(stage.now().exceptions[kGp] == stage.before().exceptions[kGp] + 1);
    CHECK(stage.now().last_error == 0);
    CHECK(stage.now().cr4 == std::get<CrData>(event.event.data).new_value);
  }
  SECTION("LSTAR that is not canonical") {
    Stage stage(daemon);
    stage.subscribe(EventKind::Msr);
    check(stage.agent.control_msr(kAllVcpus, kLstar, true));
    const auto event = stage.provoke(GuestMode::Lstar);
    check(stage.agent.reply(event, Action::Allow, NewValue{std::uint64_t{1} << 63U}));
    CHECK(stage.finish(GuestMode::Lstar) >= 1);
    CHECK(stage.now().exceptions[kGp] == stage.before().exceptions[kGp] + 1);
    CHECK(stage.now().lstar == std::get<MsrData>(event.event.data).new_value);
  }
}

TEST_CASE("a value belongs to ALLOW: with SKIP it is not written", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon);
  stage.subscribe(EventKind::Msr);
  check(stage.agent.control_msr(kAllVcpus, kLstar, true));
  const auto event = stage.provoke(GuestMode::Lstar);
  EventReply reply = client::make_reply(event.event, Action::Skip, NewValue{0x7777000});
  check(stage.agent.reply(event.seq, reply));
  stage.finish(GuestMode::Lstar);
  CHECK(stage.now().lstar == std::get<MsrData>(event.event.data).old_value);
}

TEST_CASE("flags that the agent may not use are refused and do not cost the guest its link",
          "[events][values]") {
  EventDaemon daemon;
  SECTION("TRAP_ACCESS of an agent that did not subscribe to ACCESS") {
    Stage stage(daemon);
    stage.subscribe(EventKind::PageFault);
    check(stage.agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
    const auto event = stage.provoke(GuestMode::Store);
    EventReply reply = client::make_reply(event.event, Action::Allow);
    reply.trap_access = true;
    check(stage.agent.reply(event.seq, reply));
    refused(stage, event);
    stage.finish(GuestMode::Store);
    CHECK(check(stage.agent.get_registers(VcpuId{0})).mode == 8);
  }
  SECTION("STEP_OVER where the agent has no patch") {
    Stage stage(daemon);
    stage.subscribe(EventKind::Breakpoint);
    const auto event = stage.provoke(GuestMode::Int3);
    EventReply reply = client::make_reply(event.event, Action::Retry);
    reply.step_over = true;
    check(stage.agent.reply(event.seq, reply));
    refused(stage, event);
    stage.finish(GuestMode::Int3);
    CHECK(check(stage.agent.get_registers(VcpuId{0})).mode == 8);
  }
}

TEST_CASE("two vCPUs wait and are answered on their own", "[events][values]") {
  EventDaemon daemon;
  Stage stage(daemon, 2);
  stage.subscribe(EventKind::Hypercall);
  stage.guest.set_mode(GuestMode::Vmcall, 0);
  stage.guest.set_mode(GuestMode::Vmcall, 1);
  std::array<std::optional<client::ReceivedEvent>, 2> events;
  for (int i = 0; i < 2; ++i) {
    const auto event = stage.next_event();
    events.at(event.event.vcpu.value) = event;
  }
  REQUIRE(events[0]);
  REQUIRE(events[1]);
  for (unsigned vcpu : {0U, 1U}) {
    stage.guest.set_mode(GuestMode::Idle, vcpu);
    CHECK(events.at(vcpu)->event.regs.rdi == vcpu);
  }
  const auto second_rounds = stage.guest.rounds(1);
  check(stage.agent.reply(*events[0], Action::Skip));
  stage.guest.wait_rounds(3, 0);
  CHECK(stage.guest.rounds(1) == second_rounds);  // it waits on
  CHECK(stage.guest.mailbox(0).hypercall_result == emulated::kHypercallNumber);
  check(stage.agent.reply(*events[1], Action::Allow));
  stage.guest.wait_rounds(1, 1);
  CHECK(stage.guest.mailbox(1).hypercall_result == static_cast<std::uint64_t>(-1000));
}
