// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

/// Runs code of the exec page until it stands at its first instruction, single-stepping.
Event step_to_code(ScriptedGuest& guest, std::initializer_list<std::uint8_t> code) {
  guest.watch(EventKind::Singlestep);
  guest.hooks().set_singlestep(VcpuId{0}, true);
  guest.run_code(code);
  for (int i = 0; i < 2000; ++i) {
    const Event event = guest.next_event();
    REQUIRE(event.kind() == EventKind::Singlestep);
    if (event.regs.rip == kExecPage.value) return event;
    guest.answer(Action::Allow);
  }
  FAIL("the code was never reached");
  return {};
}

Event step(ScriptedGuest& guest) {
  guest.answer(Action::Allow);
  return guest.next_event();
}

bool failed(const Event& event) { return std::get<SinglestepData>(event.data).failed; }

}  // namespace

TEST_CASE("one event behind each instruction", "[emulated][singlestep]") {
  ScriptedGuest guest;
  // nop; mov $7, %ebx; cpuid; pushf; pop %rcx; ret
  const Event first =
      step_to_code(guest, {0x90, 0xbb, 0x07, 0x00, 0x00, 0x00, 0x0f, 0x31, 0x9c, 0x59, 0xc3});
  CHECK(first.actions == ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)});

  for (const std::uint64_t offset : {1u, 6u, 8u, 9u, 10u}) {
    const Event event = step(guest);
    CHECK(event.regs.rip == kExecPage.value + offset);
    CHECK_FALSE(failed(event));
    if (offset == 6) CHECK(event.regs.rbx == 7);
    if (offset == 10) CHECK((event.regs.rcx & x86::rflags::kTf) == 0);  // what PUSHF stored
    CHECK((event.regs.rflags & x86::rflags::kTf) == 0);
  }
  CHECK(guest.machine().vcpu(VcpuId{0}).dr[6] == 0xffff0ff0);
  SECTION("until it is switched off") {
    guest.hooks().set_singlestep(VcpuId{0}, false);
    const unsigned raised = guest.raised;
    guest.answer(Action::Allow);
    REQUIRE(guest.run_action(GuestMode::Exec, 3));
    CHECK(guest.raised == raised);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
}

TEST_CASE("stepping needs the event and the command", "[emulated][singlestep]") {
  ScriptedGuest guest;
  SECTION("the event alone") { guest.watch(EventKind::Singlestep); }
  SECTION("the command alone") { guest.hooks().set_singlestep(VcpuId{0}, true); }
  REQUIRE(guest.run_action(GuestMode::Store, 2));
  CHECK(guest.raised == 0);
}

TEST_CASE("a step that ends in a handler failed", "[emulated][singlestep]") {
  ScriptedGuest guest;
  SECTION("a fault") {
    step_to_code(guest, {0x0f, 0x0b, 0xc3});  // ud2
    const Event event = step(guest);
    CHECK(failed(event));
    CHECK(event.regs.rip != kExecPage.value);
    const auto frame = guest.read<std::uint64_t>(Gpa{event.regs.rsp + 16});
    CHECK((frame & x86::rflags::kTf) == 0);  // RFLAGS in the frame
    CHECK(guest.read<std::uint64_t>(Gpa{event.regs.rsp}) == kExecPage.value);
  }
  SECTION("an injected exception") {
    step_to_code(guest, {0x90, 0xc3});
    REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0}));
    CHECK(failed(step(guest)));
    CHECK(guest.read<std::uint64_t>(Gpa{guest.open->regs.rsp}) == kExecPage.value);
  }
  SECTION("not INT n: going there is what it does") {
    step_to_code(guest, {0xcc, 0xc3});
    CHECK_FALSE(failed(step(guest)));
    CHECK(guest.read<std::uint64_t>(Gpa{guest.open->regs.rsp}) == kExecPage.value + 1);
  }
}

TEST_CASE("HLT is a step, and the vCPU rests behind it", "[emulated][singlestep]") {
  ScriptedGuest guest;
  step_to_code(guest, {0xf4, 0xc3});
  const Event event = step(guest);
  CHECK(event.regs.rip == kExecPage.value + 1);
  guest.answer(Action::Allow);
  CHECK(guest.machine().vcpu(VcpuId{0}).activity == Activity::Halted);
  CHECK(guest.next_event().kind() == EventKind::Singlestep);
}

TEST_CASE("a repeated string instruction is stepped through by elements", "[emulated][singlestep]") {
  ScriptedGuest guest;
  // mov $3, %ecx; mov $0x30000, %edi; rep stosb; ret
  step_to_code(guest, {0xb9, 0x03, 0, 0, 0, 0xbf, 0x00, 0x00, 0x03, 0x00, 0xf3, 0xaa, 0xc3});
  step(guest);
  step(guest);
  for (std::uint64_t left = 3; left-- > 1;) {
    const Event event = step(guest);
    CHECK(event.regs.rcx == left);
    CHECK(event.regs.rip == kExecPage.value + 10);
  }
  const Event event = step(guest);
  CHECK(event.regs.rcx == 0);
  CHECK(event.regs.rip == kExecPage.value + 12);
}

TEST_CASE("the guest's own trap flag and ours do not meet", "[emulated][singlestep]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Singlestep);
  guest.hooks().set_singlestep(VcpuId{0}, true);
  guest.set_mode(GuestMode::Step);
  const std::uint64_t done = guest.mailbox().done[KVMID_MODE_STEP];
  while (guest.mailbox().done[KVMID_MODE_STEP] == done) {
    guest.next_event();
    guest.answer(Action::Allow);
  }
  CHECK(guest.mailbox().exceptions[1] == 5);
  CHECK(guest.mailbox().last_dr6 == 0xffff4ff0);
}

TEST_CASE("other events come in a step, and the step behind them", "[emulated][singlestep]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Hypercall);
  const Event before = step_to_code(guest, {0x0f, 0x01, 0xc1, 0xc3});
  const Event hypercall = step(guest);
  REQUIRE(hypercall.kind() == EventKind::Hypercall);
  CHECK(hypercall.regs.rip == before.regs.rip);

  SECTION("ALLOW and SKIP end the instruction") {
    guest.answer(GENERATE(Action::Allow, Action::Skip));
    const Event event = guest.next_event();
    CHECK(event.kind() == EventKind::Singlestep);
    CHECK(event.regs.rip == before.regs.rip + 3);
    CHECK_FALSE(failed(event));
  }
  SECTION("RETRY does not") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().kind() == EventKind::Hypercall);
  }
}

TEST_CASE("an allowed page fault is one step", "[emulated][singlestep]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  // mov %rax, 0x20000
  step_to_code(guest, {0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, 0xc3});
  REQUIRE(step(guest).kind() == EventKind::PageFault);
  guest.answer(Action::Allow);
  const Event event = guest.next_event();
  REQUIRE(event.kind() == EventKind::Singlestep);
  CHECK_FALSE(failed(event));
  CHECK(event.regs.rip == kExecPage.value + 8);
}

TEST_CASE("unhooked, nobody steps any more", "[emulated][singlestep]") {
  ScriptedGuest guest;
  step_to_code(guest, {0x90, 0xc3});
  guest.machine().unhook();
  guest.open.reset();
  const unsigned raised = guest.raised;
  REQUIRE(guest.run_action(GuestMode::Exec, 2));
  CHECK(guest.raised == raised);
}

}  // namespace kvmid::emulated
