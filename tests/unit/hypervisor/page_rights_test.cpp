// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

void finish(ScriptedGuest& guest, std::size_t mode) {
  const std::uint64_t done = guest.mailbox().done[mode];
  guest.set_mode(GuestMode::Idle);
  REQUIRE(guest.run_until([&] { return guest.mailbox().done[mode] == done + 1 || guest.open; }));
  REQUIRE_FALSE(guest.open);
}

}  // namespace

TEST_CASE("a store to a page without W", "[emulated][page_fault]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Store));  // the page was mapped with all rights before
  const auto before = guest.read<std::uint64_t>(kProtectedPage);
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  guest.set_mode(GuestMode::Store);
  const Event event = guest.next_event();
  const auto& data = std::get<PageFaultData>(event.data);
  CHECK(data.access == KVMI_PAGE_ACCESS_W);
  CHECK(data.gva_valid);
  CHECK(data.gva == Gva{kProtectedPage.value});
  CHECK(data.gpa == kProtectedPage);
  CHECK(event.actions == ActionSet{0xf});
  CHECK(guest.read<std::uint64_t>(kProtectedPage) == before);
  const std::uint64_t value = guest.mailbox().stored;

  SECTION("ALLOW does this one store; the next one is an event again") {
    guest.answer(Action::Allow);
    const Event next = guest.next_event();
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == value);
    CHECK(next.regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
  }
  SECTION("SKIP leaves the old bytes and goes on") {
    guest.answer(Action::Skip);
    finish(guest, KVMID_MODE_STORE);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == before);
  }
  SECTION("RETRY under the same rights is the same event") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == before);
  }
  SECTION("RETRY after the right was given back") {
    guest.restrict_page(kProtectedPage, x86::kRightsAll);
    guest.answer(Action::Retry);
    finish(guest, KVMID_MODE_STORE);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == value);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == before);
  }
}

TEST_CASE("a load from a page without R", "[emulated][page_fault]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Load));
  const std::uint64_t secret = 0x5ec2e7;
  guest.write(kProtectedPage, std::as_bytes(std::span(&secret, 1)));
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, x86::kRightsNone);
  guest.set_mode(GuestMode::Load);
  const Event event = guest.next_event();
  CHECK(std::get<PageFaultData>(event.data).access == KVMI_PAGE_ACCESS_R);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    guest.restrict_page(kProtectedPage, x86::kRightsAll);
    finish(guest, KVMID_MODE_LOAD);
    CHECK(guest.mailbox().loaded == secret);
  }
  SECTION("SKIP: the register keeps what it had") {
    guest.answer(Action::Skip);
    finish(guest, KVMID_MODE_LOAD);
    CHECK(guest.mailbox().loaded == 0);
  }
  SECTION("ALLOW is for one instruction") {
    guest.answer(Action::Allow);
    guest.next_event();
    CHECK(guest.raised == 2);
    CHECK(guest.mailbox().loaded == secret);
  }
}

TEST_CASE("a call into a page without X", "[emulated][page_fault]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Exec, 2));  // translated before
  const std::uint64_t calls = guest.mailbox().exec_calls;
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kExecPage, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W);
  guest.set_mode(GuestMode::Exec);
  const Event event = guest.next_event();
  const auto& data = std::get<PageFaultData>(event.data);
  CHECK(data.access == KVMI_PAGE_ACCESS_X);
  CHECK(data.gpa == kExecPage);
  CHECK(event.regs.rip == kExecPage.value);

  SECTION("ALLOW executes one instruction; each one is an event") {
    guest.answer(Action::Allow);
    CHECK(guest.next_event().regs.rip == kExecPage.value + 9);
    CHECK(guest.mailbox().exec_calls == calls + 1);
    guest.answer(Action::Allow);
    CHECK(guest.next_event().regs.rip == kExecPage.value + 14);
    guest.answer(Action::Allow);
    finish(guest, KVMID_MODE_EXEC);
    CHECK(guest.mailbox().exec_result == kExecValue);
  }
  SECTION("SKIP steps over one instruction") {
    guest.answer(Action::Skip);
    CHECK(guest.next_event().regs.rip == kExecPage.value + 9);
    CHECK(guest.mailbox().exec_calls == calls);
  }
  SECTION("RETRY after the right was given back") {
    guest.restrict_page(kExecPage, x86::kRightsAll);
    guest.answer(Action::Retry);
    finish(guest, KVMID_MODE_EXEC);
    CHECK(guest.mailbox().exec_calls == calls + 1);
  }
}

TEST_CASE("a page that was only read cannot be executed", "[emulated][page_fault]") {
  // Unicorn keeps in its own TLB that a page it has read may be executed too.
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kExecPage, KVMI_PAGE_ACCESS_R);
  guest.write_field(offsetof(Mailbox, arg_pf_address), kExecPage.value);
  REQUIRE(guest.run_action(GuestMode::Pf));  // a load that does not fault
  REQUIRE(guest.mailbox().exceptions[14] == 0);

  guest.set_mode(GuestMode::Exec);

  CHECK(std::get<PageFaultData>(guest.next_event().data).access == KVMI_PAGE_ACCESS_X);
}

TEST_CASE("rights hold for operands of what the machine executes itself", "[emulated][page_fault]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  const bool explicit_operand = GENERATE(true, false);
  if (explicit_operand) {
    guest.run_code({0x0f, 0x01, 0x0c, 0x25, 0, 0, 2, 0, 0xc3});  // sidt 0x20000; ret
  } else {
    // mov %rsp,%rdx; mov $0x20008,%esp; pushf; mov %rdx,%rsp; ret
    guest.run_code({0x48, 0x89, 0xe2, 0xbc, 0x08, 0, 2, 0, 0x9c, 0x48, 0x89, 0xd4, 0xc3});
  }
  const Event event = guest.next_event();
  REQUIRE(event.kind() == EventKind::PageFault);
  CHECK(std::get<PageFaultData>(event.data).access == KVMI_PAGE_ACCESS_W);
  CHECK(std::get<PageFaultData>(event.data).gpa == kProtectedPage);
  CHECK(guest.read<std::uint64_t>(kProtectedPage) == 0);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) != 0);
    CHECK(guest.raised == 1);
  }
  SECTION("SKIP") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 0);
  }
}

TEST_CASE("a DESCRIPTOR event comes before the page fault of its operand", "[emulated][page_fault][descriptor]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.watch(EventKind::Descriptor);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  guest.run_code({0x0f, 0x01, 0x0c, 0x25, 0, 0, 2, 0, 0xc3});  // sidt 0x20000; ret
  REQUIRE(guest.next_event().kind() == EventKind::Descriptor);
  guest.answer(Action::Allow);
  REQUIRE(guest.next_event().kind() == EventKind::PageFault);
  guest.answer(Action::Allow);
  REQUIRE(guest.finish_action(GuestMode::Exec));
  CHECK(guest.raised == 2);
  CHECK(guest.read<std::uint16_t>(kProtectedPage) == 511);
}

TEST_CASE("rights that nobody wants to hear of do not stop the guest", "[emulated][page_fault]") {
  ScriptedGuest guest;
  guest.restrict_page(kProtectedPage, x86::kRightsNone);
  guest.restrict_page(kExecPage, KVMI_PAGE_ACCESS_R);

  REQUIRE(guest.run_action(GuestMode::Store, 3));
  REQUIRE(guest.run_action(GuestMode::Load, 3));
  REQUIRE(guest.run_action(GuestMode::Exec, 3));

  CHECK(guest.raised == 0);
  CHECK(guest.mailbox().loaded == guest.mailbox().stored);
  CHECK(guest.mailbox().exec_result == kExecValue);
}

TEST_CASE("what the guest's own page tables forbid is the guest's own fault", "[emulated][page_fault]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  // Read-only in both roots; the CR3 action makes the guest forget what it had mapped.
  for (const std::uint64_t root : {kRootA, kRootB}) {
    const Gpa entry{root + 0x3000 + (KVMID_GUEST_PROTECTED_GPA >> 12) * 8};
    const std::uint64_t value = guest.read<std::uint64_t>(entry) & ~std::uint64_t{2};
    guest.write(entry, std::as_bytes(std::span(&value, 1)));
  }
  REQUIRE(guest.run_action(GuestMode::Cr3));

  guest.set_mode(GuestMode::Store);
  REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[14] > 0; }));

  CHECK(guest.raised == 0);
  CHECK(guest.mailbox().last_error == 3);  // present, write
  CHECK(guest.mailbox().last_cr2 == kProtectedPage.value);
}

TEST_CASE("rights hold on every vCPU", "[emulated][page_fault]") {
  ScriptedGuest guest(2);
  REQUIRE(guest.run_action(GuestMode::Store, 1, VcpuId{1}));
  guest.set_mode(GuestMode::Idle, VcpuId{1});
  guest.watch(EventKind::PageFault, VcpuId{1});
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);

  guest.set_mode(GuestMode::Store, VcpuId{1});

  CHECK(guest.next_event().vcpu == VcpuId{1});
  CHECK(std::get<PageFaultData>(guest.open->data).gpa == Gpa{kProtectedPage.value + 8});
}

}  // namespace kvmid::emulated
