// SPDX-License-Identifier: GPL-2.0-or-later
//
// Ring 3: the way there and back, and what is forbidden in it.

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

/// Runs user code until it stands at its first instruction, under a single step.
Event at_user_code(ScriptedGuest& guest) {
  guest.watch(EventKind::Singlestep);
  guest.hooks().set_singlestep(VcpuId{0}, true);
  guest.set_mode(GuestMode::User);
  for (int i = 0; i < 2000; ++i) {
    const Event event = guest.next_event();
    if (event.regs.rip == KVMID_GUEST_USER_CODE_GPA) return event;
    guest.answer(Action::Allow);
  }
  FAIL("user code was never reached");
  return {};
}

/// Puts code in place of the user's, and runs it there until it raises an exception, which is told.
TrapData trap_of(ScriptedGuest& guest, const std::vector<std::uint8_t>& code) {
  at_user_code(guest);
  guest.write(Gpa{KVMID_GUEST_USER_CODE_GPA}, std::as_bytes(std::span(code)));
  guest.hooks().set_singlestep(VcpuId{0}, false);
  guest.watch(EventKind::Trap);
  guest.answer(Action::Allow);
  const Event event = guest.next_event();
  CHECK(event.sregs.ss.dpl == 3);
  return std::get<TrapData>(event.data);
}

}  // namespace

TEST_CASE("user code is entered by IRETQ and SYSRET, calls the kernel and comes back", "[emulated][user]") {
  ScriptedGuest guest;

  REQUIRE(guest.run_action(GuestMode::User, 4));

  const Mailbox box = guest.mailbox();
  const std::uint64_t done = box.done[KVMID_MODE_USER];
  CHECK(box.user_syscalls == 2 * done);
  CHECK(box.user_pf == done);
  CHECK(box.user_pf_error == 5);  // present, user
  CHECK(box.user_gp == done);
  CHECK(box.user_cs == KVMID_GUEST_USER_CODE_SELECTOR);
  CHECK(box.exceptions[13] == 0);
  CHECK(box.exceptions[14] == 0);
  CHECK(guest.machine().registers(VcpuId{0})->sregs.gs.base == mailbox_gpa(VcpuId{0}).value);
  CHECK(guest.machine().vcpu(VcpuId{0}).sregs.ss.dpl == 0);
}

TEST_CASE("user code comes back by #GP where an agent does not let LSTAR be written", "[emulated][user]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Msr);
  guest.hooks().set_msr(VcpuId{0}, x86::msr::kLstar, true);
  guest.set_mode(GuestMode::User);
  REQUIRE(guest.next_event().kind() == EventKind::Msr);
  guest.answer(Action::Skip);
  REQUIRE(guest.finish_action(GuestMode::User));

  CHECK(guest.mailbox().user_syscalls == 0);
  CHECK(guest.mailbox().user_gp == 2);
}

TEST_CASE("in ring 3 the segments say so", "[emulated][user]") {
  ScriptedGuest guest;
  const Event event = at_user_code(guest);

  CHECK(event.sregs.cs.selector == KVMID_GUEST_USER_CODE_SELECTOR);
  CHECK(event.sregs.cs.dpl == 3);
  CHECK(event.sregs.ss.selector == KVMID_GUEST_USER_DATA_SELECTOR);
  CHECK(event.sregs.ss.dpl == 3);
  CHECK(event.mode == 8);
  CHECK(event.regs.rsp == KVMID_GUEST_USER_STACKS_GPA + 0x1000);
}

TEST_CASE("what only the kernel may do is #GP(0) in ring 3", "[emulated][user]") {
  const auto [name, code] = GENERATE(table<const char*, std::vector<std::uint8_t>>({
      {"hlt", {0xf4}},
      {"cli", {0xfa}},
      {"sti", {0xfb}},
      {"in", {0xec}},
      {"out", {0xe6, 0x80}},
      {"mov cr0, rax", {0x0f, 0x20, 0xc0}},
      {"mov rax, dr7", {0x0f, 0x21, 0xf8}},
      {"rdmsr", {0x0f, 0x32}},
      {"wrmsr", {0x0f, 0x30}},
      {"swapgs", {0x0f, 0x01, 0xf8}},
      {"sysret", {0x48, 0x0f, 0x07}},
      {"lgdt", {0x0f, 0x01, 0x14, 0x24}},
      {"ltr", {0x0f, 0x00, 0xd8}},
      {"clts", {0x0f, 0x06}},
      {"invlpg", {0x0f, 0x01, 0x38}},
      {"wbinvd", {0x0f, 0x09}},
  }));
  INFO(name);
  ScriptedGuest guest;
  const TrapData trap = trap_of(guest, code);
  CHECK(trap.vector == 13);
  CHECK(trap.error_code == 0);
  CHECK(trap.flags == KVMI_TRAP_F_ERROR_CODE);
}

TEST_CASE("in ring 3 a gate of the kernel cannot be called, one that INT3 meets neither", "[emulated][user]") {
  ScriptedGuest guest;
  SECTION("INT 0x0d") {
    const TrapData trap = trap_of(guest, {0xcd, 0x0d});
    // First the interrupt is told, then what its delivery raised.
    CHECK(trap.vector == 13);
    CHECK(trap.kind == KVMI_EXCEPTION_TRAP);
    guest.answer(Action::Allow);
    const auto second = std::get<TrapData>(guest.next_event().data);
    CHECK(second.vector == 13);
    CHECK(second.error_code == 13 * 8 + 2);  // IDT entry 13, not external
    CHECK(guest.open->regs.rip == KVMID_GUEST_USER_CODE_GPA);
  }
  SECTION("INT3") {
    CHECK(trap_of(guest, {0xcc}).vector == 3);
    guest.answer(Action::Allow);
    CHECK(std::get<TrapData>(guest.next_event().data).error_code == 3 * 8 + 2);
  }
}

TEST_CASE("user pages: error codes of user accesses", "[emulated][user]") {
  ScriptedGuest guest;
  SECTION("a write to a kernel page") {
    // mov %rax, 0x10000
    const TrapData trap = trap_of(guest, {0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x01, 0x00});
    CHECK(trap.vector == 14);
    CHECK(trap.error_code == 7);  // present, write, user
    CHECK(trap.address == 0x10000);
  }
  SECTION("a jump into the kernel") {
    // mov $0x100000, %eax; jmp *%rax
    const TrapData trap = trap_of(guest, {0xb8, 0x00, 0x00, 0x10, 0x00, 0xff, 0xe0});
    CHECK(trap.vector == 14);
    CHECK(trap.error_code == 0x15);  // present, user, fetch
    CHECK(trap.address == 0x100000);
  }
}

TEST_CASE("POPF in ring 3 leaves IF and IOPL alone", "[emulated][user]") {
  ScriptedGuest guest;
  // push $0x3202; popf; pushf; pop %rbx; hlt
  trap_of(guest, {0x68, 0x02, 0x32, 0x00, 0x00, 0x9d, 0x9c, 0x5b, 0xf4});
  CHECK(guest.open->regs.rbx == 2);
}

TEST_CASE("a #PF of user code arrives on the kernel's stack", "[emulated][user]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Trap);
  guest.set_mode(GuestMode::User);
  const Event event = guest.next_event();
  REQUIRE(std::get<TrapData>(event.data).vector == 14);
  CHECK(event.regs.rsp == KVMID_GUEST_USER_STACKS_GPA + 0x1000);
  guest.watch(EventKind::Singlestep);
  guest.hooks().set_singlestep(VcpuId{0}, true);

  guest.answer(Action::Allow);

  const Event handler = guest.next_event();
  REQUIRE(handler.kind() == EventKind::Singlestep);
  CHECK(std::get<SinglestepData>(handler.data).failed);
  CHECK(handler.sregs.ss.dpl == 0);
  CHECK(handler.sregs.ss.selector == 0);
  CHECK(handler.sregs.cs.selector == 0x08);
  const std::uint64_t rsp0 = KVMID_GUEST_IST_STACKS_GPA + 0x800;
  CHECK(handler.regs.rsp == rsp0 - 48);
  CHECK(guest.read<std::uint64_t>(Gpa{rsp0 - 48}) == 5);
  CHECK(guest.read<std::uint64_t>(Gpa{rsp0 - 40}) == event.regs.rip);
  CHECK(guest.read<std::uint64_t>(Gpa{rsp0 - 32}) == KVMID_GUEST_USER_CODE_SELECTOR);
  CHECK(guest.read<std::uint64_t>(Gpa{rsp0 - 16}) == event.regs.rsp);
  CHECK(guest.read<std::uint64_t>(Gpa{rsp0 - 8}) == KVMID_GUEST_USER_DATA_SELECTOR);
}

}  // namespace kvmid::emulated
