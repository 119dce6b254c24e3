// SPDX-License-Identifier: GPL-2.0-or-later
//
// Each event with each action, judged by what the guest itself saw.

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr std::size_t kDoneCr4 = KVMID_MODE_CR4;

/// Watches CR4 and runs up to the first write of it.
Event watch_cr4(ScriptedGuest& guest) {
  guest.watch(EventKind::Cr);
  guest.hooks().set_cr(VcpuId{0}, 4, true);
  guest.set_mode(GuestMode::Cr4);
  return guest.next_event();
}

Event watch_lstar(ScriptedGuest& guest) {
  guest.watch(EventKind::Msr);
  guest.hooks().set_msr(VcpuId{0}, x86::msr::kLstar, true);
  guest.set_mode(GuestMode::Lstar);
  return guest.next_event();
}

/// Answers and lets the guest finish the action, which must not ask again.
void finish(ScriptedGuest& guest, std::size_t mode) {
  const std::uint64_t done = guest.mailbox().done[mode];
  guest.set_mode(GuestMode::Idle);
  REQUIRE(guest.run_until([&] { return guest.mailbox().done[mode] == done + 1 || guest.open; }));
  REQUIRE_FALSE(guest.open);
}

}  // namespace

TEST_CASE("a CR event tells old and new value before the write", "[emulated][cr]") {
  ScriptedGuest guest;
  const Event event = watch_cr4(guest);
  const auto& data = std::get<CrData>(event.data);

  CHECK(data.cr == 4);
  CHECK(data.old_value == event.sregs.cr4);
  CHECK((data.old_value ^ data.new_value) == 0x80);
  CHECK(event.mode == 8);
  CHECK(event.actions == ActionSet{0xf});
  CHECK(event.regs.rax == data.new_value);
  CHECK(event.msrs.efer == event.sregs.efer);
  CHECK(event.dr7 == 0x400);

  SECTION("ALLOW writes it") {
    guest.answer(Action::Allow);
    finish(guest, kDoneCr4);
    CHECK(guest.mailbox().cr4 == data.new_value);
  }
  SECTION("ALLOW with a value writes that") {
    guest.answer(Action::Allow, data.old_value | 0x4);
    finish(guest, kDoneCr4);
    CHECK(guest.mailbox().cr4 == (data.old_value | 0x4));
  }
  SECTION("ALLOW with a value that no processor takes is #GP for the guest") {
    guest.answer(Action::Allow, std::uint64_t{1} << 40);
    guest.set_mode(GuestMode::Idle);
    guest.round();
    CHECK(guest.mailbox().exceptions[13] >= 1);
    CHECK(guest.machine().registers(VcpuId{0})->sregs.cr4 == data.old_value);
  }
  SECTION("SKIP drops the write and goes on") {
    guest.answer(Action::Skip);
    finish(guest, kDoneCr4);
    CHECK(guest.mailbox().cr4 == data.old_value);
  }
  SECTION("RETRY executes it again") {
    guest.answer(Action::Retry);
    const Event again = guest.next_event();
    CHECK(again.regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
    guest.hooks().set_cr(VcpuId{0}, 4, false);
    guest.answer(Action::Retry);
    finish(guest, kDoneCr4);
    CHECK(guest.mailbox().cr4 == data.new_value);
  }
  SECTION("CRASH stops the guest for good") {
    guest.answer(Action::Crash);
    const std::uint64_t rounds = guest.mailbox().rounds;
    for (int i = 0; i < 10; ++i) guest.round();
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
    CHECK(guest.mailbox().rounds == rounds);
    CHECK_FALSE(guest.machine().runnable(Clock::time_point::max()));
  }
  SECTION("an agent that moves RIP is obeyed") {
    auto regs = event.regs;
    regs.rip = event.regs.rip + 3;  // behind mov %rax, %cr4
    regs.rax = 0;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer(Action::Skip);
    finish(guest, kDoneCr4);
    CHECK(guest.mailbox().cr4 == data.old_value);
  }
}

TEST_CASE("CR0 and CR3 are watched one by one", "[emulated][cr]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Cr);
  guest.hooks().set_cr(VcpuId{0}, 3, true);
  REQUIRE(guest.run_action(GuestMode::Cr4));
  REQUIRE(guest.run_action(GuestMode::Cr0));
  REQUIRE(guest.raised == 0);

  guest.set_mode(GuestMode::Cr3);
  const Event event = guest.next_event();

  CHECK(std::get<CrData>(event.data).cr == 3);
  const std::uint64_t old_value = std::get<CrData>(event.data).old_value;
  CHECK(std::get<CrData>(event.data).new_value == (old_value ^ kRootA ^ kRootB));
  guest.answer(Action::Skip);
  finish(guest, KVMID_MODE_CR3);
  CHECK(guest.mailbox().cr3 == old_value);
  CHECK(guest.mailbox().window == (old_value == kRootA ? KVMID_GUEST_WINDOW_A_VALUE : KVMID_GUEST_WINDOW_B_VALUE));
}

TEST_CASE("an MSR event with each action", "[emulated][msr]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_msr_value), 0xffffffff81000000);
  const Event event = watch_lstar(guest);
  const auto& data = std::get<MsrData>(event.data);
  REQUIRE(data.msr == x86::msr::kLstar);
  CHECK(data.old_value == 0);
  CHECK(data.new_value == 0xffffffff81000000 + guest.mailbox().rounds);
  CHECK(event.msrs.lstar == 0);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    finish(guest, KVMID_MODE_LSTAR);
    CHECK(guest.mailbox().lstar == data.new_value);
  }
  SECTION("ALLOW with a value") {
    guest.answer(Action::Allow, 0x4000);
    finish(guest, KVMID_MODE_LSTAR);
    CHECK(guest.mailbox().lstar == 0x4000);
  }
  SECTION("SKIP") {
    guest.answer(Action::Skip);
    finish(guest, KVMID_MODE_LSTAR);
    CHECK(guest.mailbox().lstar == 0);
  }
  SECTION("RETRY") {
    guest.answer(Action::Retry);
    CHECK(std::get<MsrData>(guest.next_event().data).new_value == data.new_value);
    guest.answer(Action::Allow);
    finish(guest, KVMID_MODE_LSTAR);
    CHECK(guest.mailbox().lstar == data.new_value);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_reason() == "event msr of vCPU 0 was answered with CRASH");
  }
}

TEST_CASE("an MSR that is not watched makes no event", "[emulated][msr]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Msr);
  guest.hooks().set_msr(VcpuId{0}, x86::msr::kStar, true);

  REQUIRE(guest.run_action(GuestMode::Lstar, 3));

  CHECK(guest.raised == 0);
}

TEST_CASE("a breakpoint event with each action", "[emulated][breakpoint]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Breakpoint);
  guest.set_mode(GuestMode::Int3);
  const Event event = guest.next_event();
  const auto& data = std::get<BreakpointData>(event.data);
  CHECK(data.gpa == Gpa{event.regs.rip});  // the guest's kernel is identity-mapped
  CHECK(data.insn_length == 1);
  CHECK(guest.read<std::uint8_t>(data.gpa) == 0xcc);

  SECTION("ALLOW gives it to the guest, behind the INT3") {
    guest.answer(Action::Allow);
    finish(guest, KVMID_MODE_INT3);
    CHECK(guest.mailbox().exceptions[3] == 1);
    CHECK(guest.mailbox().last_rip == event.regs.rip + 1);
  }
  SECTION("SKIP moves past it") {
    guest.answer(Action::Skip);
    finish(guest, KVMID_MODE_INT3);
    CHECK(guest.mailbox().exceptions[3] == 0);
  }
  SECTION("RETRY executes what is there now") {
    const std::byte nop{0x90};
    guest.write(data.gpa, Bytes(&nop, 1));
    guest.answer(Action::Retry);
    finish(guest, KVMID_MODE_INT3);
    CHECK(guest.mailbox().exceptions[3] == 0);
    CHECK(guest.raised == 1);
  }
  SECTION("RETRY without a change hits again") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
}

TEST_CASE("a hypercall event with each action", "[emulated][hypercall]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Hypercall);
  guest.set_mode(GuestMode::Vmcall);
  const Event event = guest.next_event();
  CHECK(event.kind() == EventKind::Hypercall);
  CHECK(event.regs.rax == kHypercallNumber);
  CHECK(event.regs.rsi == guest.mailbox().rounds);

  SECTION("ALLOW: the hypervisor's own answer") {
    guest.answer(Action::Allow);
    finish(guest, KVMID_MODE_VMCALL);
    CHECK(guest.mailbox().hypercall_result == kHypercallUnknown);
  }
  SECTION("SKIP: none, or what an agent put into RAX") {
    auto regs = event.regs;
    regs.rax = 42;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer(Action::Skip);
    finish(guest, KVMID_MODE_VMCALL);
    CHECK(guest.mailbox().hypercall_result == 42);
  }
  SECTION("RETRY") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
}

TEST_CASE("a pause can crash the guest", "[emulated]") {
  ScriptedGuest guest;
  REQUIRE(guest.machine().pause(VcpuId{0}));
  guest.next_event();
  guest.answer(Action::Crash);
  CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
}

}  // namespace kvmid::emulated
