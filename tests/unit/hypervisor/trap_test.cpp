// SPDX-License-Identifier: GPL-2.0-or-later
//
// TRAP events: what is told before an exception is delivered, what each answer does, and displaced injections.

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr ActionSet kAll{0xf};
constexpr ActionSet kNoRetry{0xf & ~KVMI_ACTION_BIT(KVMI_ACTION_RETRY)};
constexpr ActionSet kNoSkip{0xf & ~KVMI_ACTION_BIT(KVMI_ACTION_SKIP)};

const TrapData& next_trap(ScriptedGuest& guest) {
  REQUIRE(guest.next_event().kind() == EventKind::Trap);
  return std::get<TrapData>(guest.open->data);
}

}  // namespace

TEST_CASE("a #PF is told before it is delivered", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::Pf);
  const TrapData trap = next_trap(guest);
  const Event event = *guest.open;
  CHECK(trap.vector == 14);
  CHECK(trap.kind == KVMI_EXCEPTION_FAULT);
  CHECK(trap.flags == KVMI_TRAP_F_ERROR_CODE);
  CHECK(trap.error_code == 0);
  CHECK(trap.displaced_vector == 0);
  CHECK(trap.address == 0x7fff0000dead);
  CHECK(event.sregs.cr2 != 0x7fff0000dead);
  CHECK(event.actions == kAll);
  CHECK(guest.mailbox().exceptions[14] == 0);

  SECTION("ALLOW delivers it") {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Pf));
    CHECK(guest.mailbox().exceptions[14] == 1);
    CHECK(guest.mailbox().last_rip == event.regs.rip);
    CHECK(guest.mailbox().last_cr2 == 0x7fff0000dead);
  }
  SECTION("SKIP drops it and goes on behind the instruction") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Pf));
    CHECK(guest.mailbox().exceptions[14] == 0);
    CHECK(guest.machine().registers(VcpuId{0})->sregs.cr2 != 0x7fff0000dead);
  }
  SECTION("RETRY executes the instruction again, with registers that were set") {
    auto regs = event.regs;
    regs.rax = kProtectedPage.value;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer(Action::Retry);
    REQUIRE(guest.finish_action(GuestMode::Pf));
    CHECK(guest.mailbox().exceptions[14] == 0);
    CHECK(guest.raised == 1);
  }
  SECTION("RETRY without a change is the same event") {
    guest.answer(Action::Retry);
    CHECK(next_trap(guest).address == 0x7fff0000dead);
    CHECK(guest.open->regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
    CHECK(guest.mailbox().exceptions[14] == 0);
  }
}

TEST_CASE("faults tell their vector, their error code and no address", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  SECTION("#UD") {
    guest.set_mode(GuestMode::Ud);
    const TrapData trap = next_trap(guest);
    CHECK(trap.vector == 6);
    CHECK(trap.flags == 0);
    CHECK(trap.kind == KVMI_EXCEPTION_FAULT);
    CHECK(guest.open->actions == kAll);
    guest.answer(Action::Skip);  // UD2 has 2 bytes
    REQUIRE(guest.finish_action(GuestMode::Ud));
    CHECK(guest.mailbox().exceptions[6] == 0);
  }
  SECTION("#GP") {
    guest.set_mode(GuestMode::Gp);
    const TrapData trap = next_trap(guest);
    CHECK(trap.vector == 13);
    CHECK(trap.flags == KVMI_TRAP_F_ERROR_CODE);
    CHECK(trap.address == 0);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Gp));
    CHECK(guest.mailbox().exceptions[13] == 1);
  }
  SECTION("#DE of an instruction that the engine executes") {
    guest.run_code({0x31, 0xc9, 0xf7, 0xf1, 0xc3});  // xor %ecx,%ecx; div %ecx; ret
    CHECK(next_trap(guest).vector == 0);
    CHECK(guest.open->regs.rip == kExecPage.value + 2);
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Exec));
  }
  SECTION("#UD of bytes that are no instruction cannot be skipped") {
    guest.run_code({0x06, 0xc3});
    CHECK(next_trap(guest).vector == 6);
    CHECK(guest.open->actions == kNoSkip);
  }
}

TEST_CASE("INT3 and INT n are traps: no RETRY, RIP is behind them", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::Int3);
  const TrapData trap = next_trap(guest);
  const Event event = *guest.open;
  CHECK(trap.vector == 3);
  CHECK(trap.kind == KVMI_EXCEPTION_TRAP);
  CHECK(event.actions == kNoRetry);
  CHECK(guest.read<std::uint8_t>(Gpa{event.regs.rip - 1}) == 0xcc);
  CHECK(event.dr6 == 0xffff0ff0);  // INT3 is no debug exception

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Int3));
    CHECK(guest.mailbox().exceptions[3] == 1);
    CHECK(guest.mailbox().last_rip == event.regs.rip);
    CHECK(guest.machine().vcpu(VcpuId{0}).dr[6] == 0xffff0ff0);
  }
  SECTION("SKIP just goes on") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Int3));
    CHECK(guest.mailbox().exceptions[3] == 0);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
}

TEST_CASE("INT n above 31 is told as an interrupt", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.run_code({0xcd, 0x41, 0xc3});
  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 0x41);
  CHECK(trap.kind == KVMI_EXCEPTION_INTERRUPT);
  CHECK(guest.open->actions == kNoRetry);
  guest.answer(Action::Skip);
  REQUIRE(guest.finish_action(GuestMode::Exec));
}

TEST_CASE("the breakpoint event comes first, TRAP when the guest gets it", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.watch(EventKind::Breakpoint);
  guest.set_mode(GuestMode::Int3);
  const Event first = guest.next_event();
  REQUIRE(first.kind() == EventKind::Breakpoint);
  guest.answer(Action::Allow);
  CHECK(next_trap(guest).vector == 3);
  CHECK(guest.open->regs.rip == first.regs.rip + 1);
  guest.answer(Action::Allow);
  REQUIRE(guest.finish_action(GuestMode::Int3));
  CHECK(guest.mailbox().exceptions[3] == 1);
}

TEST_CASE("a double fault is an abort, told after the fault that became one", "[emulated][trap]") {
  ScriptedGuest guest;
  const std::uint8_t not_present = 0x0e;
  guest.write(Gpa{KVMID_GUEST_IDT_GPA + 13 * 16 + 5}, std::as_bytes(std::span(&not_present, 1)));
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::Gp);
  REQUIRE(next_trap(guest).vector == 13);
  guest.answer(Action::Allow);

  const TrapData abort = next_trap(guest);
  CHECK(abort.vector == 8);
  CHECK(abort.kind == KVMI_EXCEPTION_ABORT);
  CHECK(abort.flags == KVMI_TRAP_F_ERROR_CODE);
  CHECK(guest.open->actions == ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)});
  guest.answer(Action::Allow);
  REQUIRE(guest.run_until([&] { return guest.mailbox().panic == 1; }));
}

TEST_CASE("an injected exception is told as such", "[emulated][trap][inject]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  REQUIRE(guest.machine().pause(VcpuId{0}));
  guest.next_event();
  REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kPf, true, 6, 0x123456}));
  guest.answer(Action::Allow);
  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 14);
  CHECK(trap.flags == (KVMI_TRAP_F_ERROR_CODE | KVMI_TRAP_F_INJECTED));
  CHECK(trap.error_code == 6);
  CHECK(trap.address == 0x123456);
  CHECK(guest.open->actions == kAll);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[14] == 1; }));
    CHECK(guest.mailbox().last_cr2 == 0x123456);
  }
  SECTION("SKIP and RETRY drop it, and no instruction is lost") {
    const auto rip = guest.open->regs.rip;
    guest.watch(EventKind::Singlestep);
    guest.hooks().set_singlestep(VcpuId{0}, true);
    guest.answer(GENERATE(Action::Skip, Action::Retry));
    CHECK(guest.machine().vcpu(VcpuId{0}).regs.rip == rip);
    REQUIRE(guest.next_event().kind() == EventKind::Singlestep);
    CHECK_FALSE(std::get<SinglestepData>(guest.open->data).failed);
    CHECK(guest.mailbox().exceptions[14] == 0);
  }
}

TEST_CASE("an injection is displaced by what the answered event makes of its instruction", "[emulated][trap][inject]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  const auto displaced_by = [&](std::uint8_t vector) {
    const TrapData trap = next_trap(guest);
    CHECK(trap.vector == vector);
    CHECK((trap.flags & KVMI_TRAP_F_DISPLACED) != 0);
    CHECK((trap.flags & KVMI_TRAP_F_INJECTED) == 0);
    CHECK(trap.displaced_vector == 6);
  };
  const auto inject_ud = [&] { REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0})); };
  const auto never_delivered = [&](GuestMode mode) {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(mode));
    CHECK(guest.mailbox().exceptions[6] == 0);
    // Another can be injected now.
    inject_ud();
    CHECK(next_trap(guest).flags == KVMI_TRAP_F_INJECTED);
    guest.answer(Action::Allow);
    REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[6] == 1; }));
  };

  SECTION("INT3 that goes to the guest") {
    guest.watch(EventKind::Breakpoint);
    guest.set_mode(GuestMode::Int3);
    REQUIRE(guest.next_event().kind() == EventKind::Breakpoint);
    inject_ud();
    guest.answer(Action::Allow);
    displaced_by(3);
    never_delivered(GuestMode::Int3);
    CHECK(guest.mailbox().exceptions[3] == 1);
  }
  SECTION("a replaced value that no processor takes") {
    guest.watch(EventKind::Cr);
    guest.hooks().set_cr(VcpuId{0}, 4, true);
    guest.set_mode(GuestMode::Cr4);
    REQUIRE(guest.next_event().kind() == EventKind::Cr);
    inject_ud();
    guest.answer(Action::Allow, std::uint64_t{1} << 40);
    displaced_by(13);
  }
  SECTION("the instruction at RIP faults in spite of an allowed page fault") {
    // push (%rax) with RAX on the protected page, RSP where nothing is mapped
    guest.watch(EventKind::PageFault);
    guest.restrict_page(kProtectedPage, x86::kRightsNone);
    guest.run_code({0x48, 0x89, 0xe2,                                // mov %rsp, %rdx
                    0xb8, 0x00, 0x00, 0x02, 0x00,                    // mov $0x20000, %eax
                    0x48, 0xbc, 0, 0, 0, 0, 0, 0x70, 0, 0,           // movabs $0x700000000000, %rsp
                    0xff, 0x30,                                      // push (%rax)
                    0x48, 0x89, 0xd4, 0xc3});                        // mov %rdx, %rsp; ret
    REQUIRE(guest.next_event().kind() == EventKind::PageFault);
    inject_ud();
    guest.answer(Action::Allow);
    displaced_by(14);
    CHECK(std::get<TrapData>(guest.open->data).error_code == 2);
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.mailbox().exceptions[6] == 0);
  }
}

TEST_CASE("an injection is displaced by what its own delivery raises", "[emulated][trap][inject]") {
  ScriptedGuest guest;
  const std::uint8_t not_present = 0x0e;
  guest.write(Gpa{KVMID_GUEST_IDT_GPA + 6 * 16 + 5}, std::as_bytes(std::span(&not_present, 1)));
  guest.watch(EventKind::Trap);
  REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0}));
  CHECK(next_trap(guest).flags == KVMI_TRAP_F_INJECTED);
  guest.answer(Action::Allow);

  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 11);
  CHECK(trap.error_code == 6 * 8 + 3);
  CHECK(trap.flags == (KVMI_TRAP_F_ERROR_CODE | KVMI_TRAP_F_DISPLACED));
  CHECK(trap.displaced_vector == 6);
  guest.answer(Action::Allow);
  REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[11] == 1; }));
}

TEST_CASE("what is injected while a TRAP event waits comes after it, or instead of it", "[emulated][trap][inject]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::Ud);
  REQUIRE(next_trap(guest).vector == 6);
  const Event first = *guest.open;
  REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kGp, true, 0x18, 0}));
  const bool keep = GENERATE(true, false);
  guest.answer(keep ? Action::Allow : Action::Skip);
  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 13);
  CHECK(trap.flags == (KVMI_TRAP_F_ERROR_CODE | KVMI_TRAP_F_INJECTED));
  CHECK(trap.error_code == 0x18);
  if (keep) {  // at the first instruction of the other's handler
    CHECK(guest.open->regs.rsp < first.regs.rsp);
    CHECK(guest.read<std::uint64_t>(Gpa{guest.open->regs.rsp}) == first.regs.rip);
  } else {
    CHECK(guest.open->regs.rsp == first.regs.rsp);
    CHECK(guest.open->regs.rip == first.regs.rip + 2);
  }
  guest.answer(Action::Allow);
  REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[13] == 1; }));
}

TEST_CASE("unhooked while TRAP waits, the exception is delivered", "[emulated][trap]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::Ud);
  next_trap(guest);
  guest.machine().unhook();
  guest.open.reset();
  REQUIRE(guest.finish_action(GuestMode::Ud));
  CHECK(guest.mailbox().exceptions[6] == 1);
}

// ---- debug exceptions ----

TEST_CASE("the guest's own single steps are #DB traps with BS", "[emulated][trap][debug]") {
  ScriptedGuest guest;

  SECTION("delivered") {
    REQUIRE(guest.run_action(GuestMode::Step));
    CHECK(guest.mailbox().exceptions[1] == 5);  // nop, nop, pushf, and, popf
    CHECK(guest.mailbox().last_dr6 == 0xffff4ff0);
  }
  SECTION("told") {
    guest.watch(EventKind::Trap);
    guest.set_mode(GuestMode::Step);
    const TrapData trap = next_trap(guest);
    CHECK(trap.vector == 1);
    CHECK(trap.kind == KVMI_EXCEPTION_TRAP);
    CHECK(guest.open->actions == kNoRetry);
    CHECK(guest.open->dr6 == 0xffff4ff0);
    CHECK(guest.machine().vcpu(VcpuId{0}).dr[6] == 0xffff0ff0);
    CHECK(guest.read<std::uint8_t>(Gpa{guest.open->regs.rip - 1}) == 0x90);
    guest.answer(Action::Skip);
    CHECK(guest.machine().vcpu(VcpuId{0}).dr[6] == 0xffff0ff0);
    for (int i = 0; i < 4; ++i) {
      next_trap(guest);
      guest.answer(Action::Allow);
    }
    REQUIRE(guest.finish_action(GuestMode::Step));
    CHECK(guest.mailbox().exceptions[1] == 4);
  }
}

TEST_CASE("the guest's own execution breakpoint is a #DB fault with B0, once", "[emulated][trap][debug]") {
  ScriptedGuest guest;

  SECTION("delivered; RF lets the instruction go on") {
    REQUIRE(guest.run_action(GuestMode::Debug));
    CHECK(guest.mailbox().exceptions[1] == 1);
    CHECK(guest.mailbox().last_dr6 == 0xffff0ff1);
    CHECK(guest.mailbox().last_rip == guest.machine().vcpu(VcpuId{0}).dr[0]);
  }
  SECTION("told") {
    guest.watch(EventKind::Trap);
    guest.set_mode(GuestMode::Debug);
    const TrapData trap = next_trap(guest);
    CHECK(trap.vector == 1);
    CHECK(trap.kind == KVMI_EXCEPTION_FAULT);
    CHECK(guest.open->actions == kAll);
    CHECK(guest.open->dr6 == 0xffff0ff1);
    CHECK(guest.open->dr7 == 0x401);
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Debug));
    CHECK(guest.mailbox().exceptions[1] == 0);
    CHECK(guest.machine().vcpu(VcpuId{0}).dr[6] == 0xffff0ff0);
  }
}

TEST_CASE("DR7.GD guards the debug registers, and is off in the handler", "[emulated][trap][debug]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  // mov $0x2400, %eax; mov %rax, %dr7; mov %dr0, %rax; ret
  guest.run_code({0xb8, 0x00, 0x24, 0x00, 0x00, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xc0, 0xc3});
  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 1);
  CHECK(trap.kind == KVMI_EXCEPTION_FAULT);
  CHECK(guest.open->dr6 == 0xffff2ff0);
  CHECK(guest.open->dr7 == 0x2400);
  guest.answer(Action::Allow);
  REQUIRE(guest.finish_action(GuestMode::Exec));
  CHECK(guest.mailbox().exceptions[1] == 1);
  CHECK(guest.mailbox().last_dr6 == 0xffff2ff0);
  CHECK(guest.machine().vcpu(VcpuId{0}).dr[7] == 0x400);
}

TEST_CASE("a #DB trap displaces an injection that waits behind it", "[emulated][trap][debug][inject]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.watch(EventKind::Hypercall);
  // pushf; orl $0x100, (%rsp); popf; vmcall; pushf; andl $~0x100, (%rsp); popf; ret
  guest.run_code({0x9c, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d, 0x0f, 0x01, 0xc1, 0x9c, 0x81, 0x24, 0x24, 0xff,
                  0xfe, 0xff, 0xff, 0x9d, 0xc3});
  REQUIRE(guest.next_event().kind() == EventKind::Hypercall);
  REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0}));
  guest.answer(Action::Allow);
  const TrapData trap = next_trap(guest);
  CHECK(trap.vector == 1);
  CHECK(trap.flags == KVMI_TRAP_F_DISPLACED);
  CHECK(trap.displaced_vector == 6);
}

}  // namespace kvmid::emulated
