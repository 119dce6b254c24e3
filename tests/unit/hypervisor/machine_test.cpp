// SPDX-License-Identifier: GPL-2.0-or-later
#include <array>
#include <chrono>
#include <iostream>

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

TEST_CASE("the guest does everything in turn while nobody watches", "[emulated]") {
  ScriptedGuest guest(2);
  for (const VcpuId vcpu : {VcpuId{0}, VcpuId{1}}) guest.set_mode(GuestMode::All, vcpu);

  REQUIRE(guest.run_until([&] {
    constexpr std::size_t kLast = KVMID_MODE_ALL_END - 1;
    return guest.mailbox(VcpuId{0}).done[kLast] >= 2 && guest.mailbox(VcpuId{1}).done[kLast] >= 2;
  }));

  CHECK(guest.raised == 0);
  CHECK_FALSE(guest.machine().stopped());
  for (const VcpuId vcpu : {VcpuId{0}, VcpuId{1}}) {
    const Mailbox box = guest.mailbox(vcpu);
    CAPTURE(vcpu.value);
    for (std::size_t mode = KVMID_MODE_CR3; mode < KVMID_MODE_ALL_END; ++mode) {
      if (mode == KVMID_MODE_TRIPLE) continue;
      CAPTURE(mode);
      CHECK(box.done[mode] >= 2);
    }
    CHECK(box.vcpu == vcpu.value);
    CHECK(box.exceptions[3] == box.done[KVMID_MODE_INT3]);
    CHECK(box.exceptions[6] == box.done[KVMID_MODE_UD]);
    CHECK(box.exceptions[13] == box.done[KVMID_MODE_GP]);
    CHECK(box.exceptions[14] == box.done[KVMID_MODE_PF]);
    CHECK(box.exec_calls == box.done[KVMID_MODE_EXEC]);
    CHECK(box.exec_result == kExecValue);
    CHECK(box.hypercall_result == kHypercallUnknown);
    CHECK(box.loaded == box.stored);
    CHECK(box.msr == 0x1000);
    CHECK(box.panic == 0);
    CHECK(box.user_syscalls == 2 * box.done[KVMID_MODE_USER]);
    CHECK(box.user_pf == box.done[KVMID_MODE_USER]);
    CHECK(box.exceptions[1] == 5 * box.done[KVMID_MODE_STEP] + box.done[KVMID_MODE_DEBUG]);
    CHECK(box.copied == guest.read<std::uint64_t>(Gpa{kProtectedPage.value + 8u * vcpu.value}));
  }
}

TEST_CASE("another page table root shows another page", "[emulated]") {
  ScriptedGuest guest;

  REQUIRE(guest.run_action(GuestMode::Cr3));
  const Mailbox first = guest.mailbox();
  REQUIRE(guest.run_action(GuestMode::Cr3));
  const Mailbox second = guest.mailbox();

  CHECK(first.cr3 != second.cr3);
  for (const Mailbox& box : {first, second}) {
    if (box.cr3 == kRootA) CHECK(box.window == KVMID_GUEST_WINDOW_A_VALUE);
    else CHECK((box.cr3 == kRootB && box.window == KVMID_GUEST_WINDOW_B_VALUE));
  }
}

TEST_CASE("Accessed and Dirty bits appear in the guest's page tables", "[emulated]") {
  ScriptedGuest guest;
  constexpr std::uint64_t kAccessed = 0x20, kDirty = 0x40;
  const std::uint64_t root = guest.machine().registers(VcpuId{0})->sregs.cr3;
  const Gpa entry{root + 0x3000 + (KVMID_GUEST_PROTECTED_GPA >> 12) * 8};

  REQUIRE((guest.read<std::uint64_t>(entry) & (kAccessed | kDirty)) == 0);
  REQUIRE(guest.run_action(GuestMode::Load));
  CHECK((guest.read<std::uint64_t>(entry) & (kAccessed | kDirty)) == kAccessed);
  REQUIRE(guest.run_action(GuestMode::Store));
  CHECK((guest.read<std::uint64_t>(entry) & (kAccessed | kDirty)) == (kAccessed | kDirty));
}

TEST_CASE("a pause comes as an event, also on a halted vCPU, once per request", "[emulated]") {
  ScriptedGuest guest;
  REQUIRE(guest.machine().pause(VcpuId{0}));
  REQUIRE(guest.machine().pause(VcpuId{0}));

  const Event first = guest.next_event();
  CHECK(first.kind() == EventKind::Pause);
  CHECK_FALSE(first.actions.has(Action::Skip));
  const std::uint64_t rounds = guest.mailbox().rounds;
  for (int i = 0; i < 20; ++i) guest.round();
  CHECK(guest.mailbox().rounds == rounds);
  CHECK(guest.raised == 1);

  guest.answer(Action::Allow);
  CHECK(guest.next_event().kind() == EventKind::Pause);
  guest.answer(Action::Allow);
  REQUIRE(guest.run_until([&] { return guest.mailbox().rounds > rounds + 2; }));
  CHECK(guest.raised == 2);
}

TEST_CASE("pauses that a vCPU owes have a limit", "[emulated]") {
  ScriptedGuest guest;
  for (unsigned i = 0; i < Machine::kPausesMax; ++i) REQUIRE(guest.machine().pause(VcpuId{0}));

  const auto refused = guest.machine().pause(VcpuId{0});

  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::Busy);
}

TEST_CASE("a vCPU that waits does not hold the others", "[emulated]") {
  ScriptedGuest guest(3);
  REQUIRE(guest.machine().pause(VcpuId{1}));
  REQUIRE(guest.next_event().vcpu == VcpuId{1});
  const std::uint64_t waiting = guest.mailbox(VcpuId{1}).rounds;
  const std::uint64_t first = guest.mailbox(VcpuId{0}).rounds, last = guest.mailbox(VcpuId{2}).rounds;

  for (int i = 0; i < 50; ++i) guest.round();

  CHECK(guest.mailbox(VcpuId{1}).rounds == waiting);
  CHECK(guest.mailbox(VcpuId{0}).rounds >= first + 40);
  CHECK(guest.mailbox(VcpuId{2}).rounds >= last + 40);
}

TEST_CASE("registers can be read at any time and set", "[emulated]") {
  ScriptedGuest guest;
  const auto state = guest.machine().registers(VcpuId{0});
  REQUIRE(state);
  CHECK(state->mode == 8);
  CHECK((state->sregs.cr0 & 0x80000001) == 0x80000001);
  CHECK(state->sregs.gs.base == mailbox_gpa(VcpuId{0}).value);
  CHECK(state->sregs.idt.base == KVMID_GUEST_IDT_GPA);
  CHECK(state->sregs.gdt.base == KVMID_GUEST_GDT_GPA);
  CHECK(state->sregs.tr.base == KVMID_GUEST_TSS_GPA);

  auto regs = state->regs;
  regs.r14 = 0x1122334455667788;
  REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
  for (int i = 0; i < 5; ++i) guest.round();
  CHECK(guest.machine().registers(VcpuId{0})->regs.r14 == 0x1122334455667788);

  regs.rip = 0x8000000000000000;
  CHECK(guest.machine().set_registers(VcpuId{0}, regs).error().code == ErrorCode::Invalid);
  CHECK(guest.machine().msr(VcpuId{0}, x86::msr::kGsBase).value() == mailbox_gpa(VcpuId{0}).value);
  CHECK(guest.machine().msr(VcpuId{0}, 0x12345678).error().code == ErrorCode::Invalid);
}

TEST_CASE("code that is written from outside is what the guest executes next", "[emulated]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Exec, 3));
  REQUIRE(guest.mailbox().exec_result == kExecValue);
  const std::uint32_t other = 0x1234;
  // incq %gs:... has 9 bytes, then mov $imm32, %eax
  REQUIRE(guest.read<std::uint8_t>(Gpa{kExecPage.value + 9}) == 0xb8);

  guest.write(Gpa{kExecPage.value + 10}, std::as_bytes(std::span(&other, 1)));

  REQUIRE(guest.run_action(GuestMode::Exec, 2));
  CHECK(guest.mailbox().exec_result == other);
}

TEST_CASE("unhooked, a guest runs on: waiting vCPUs, rights, pauses and hooks", "[emulated]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  guest.watch(EventKind::Breakpoint);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  guest.set_mode(GuestMode::Store);
  REQUIRE(guest.next_event().kind() == EventKind::PageFault);
  REQUIRE(guest.machine().pause(VcpuId{0}));
  const unsigned raised = guest.raised;

  guest.machine().unhook();

  guest.open.reset();
  guest.set_mode(GuestMode::All);
  REQUIRE(guest.run_until([&] { return guest.mailbox().done[KVMID_MODE_PF] >= 2; }));
  CHECK(guest.raised == raised);
  CHECK(guest.machine().page_access(gfn_of(kProtectedPage)) == x86::kRightsAll);
  CHECK(guest.mailbox().done[KVMID_MODE_STORE] >= 2);
}

TEST_CASE("a configuration that makes no guest is refused by name", "[emulated]") {
  MachineConfig good;
  good.image = embedded_image();
  const auto refused = [](const MachineConfig& config) { return Machine::create(config).error().text; };

  MachineConfig bad = good;
  bad.vcpu_count = 9;
  CHECK(refused(bad).find("vCPUs") != std::string::npos);
  bad = good;
  bad.memory_bytes = 1 << 20;
  CHECK(refused(bad).find("memory") != std::string::npos);
  bad = good;
  bad.image = {};
  CHECK(refused(bad) == "the image is empty");
  bad = good;
  const std::vector<std::byte> large(4 << 20);
  bad.memory_bytes = 4 << 20;
  bad.image = large;
  CHECK(refused(bad).find("there is room for 3145728") != std::string::npos);
  bad = good;
  bad.name = "";
  CHECK(refused(bad).find("name") != std::string::npos);
}

// Not a test: run by name for figures.
TEST_CASE("measure instructions and events per second", "[.measure]") {
  using Seconds = std::chrono::duration<double>;
  ScriptedGuest guest;
  guest.set_mode(GuestMode::Spin);
  const auto start = Clock::now();
  const std::uint64_t before = guest.machine().vcpu(VcpuId{0}).instructions;
  for (int i = 0; i < 1000; ++i) guest.round();
  const double seconds = Seconds(Clock::now() - start).count();
  const auto executed = static_cast<double>(guest.machine().vcpu(VcpuId{0}).instructions - before);
  std::cout << "million instructions per second: " << executed / seconds / 1e6 << '\n';

  const auto rate = [&](const char* name, GuestMode mode) {
    guest.set_mode(mode);
    const auto from = Clock::now();
    constexpr int kEvents = 5000;
    for (int i = 0; i < kEvents; ++i) {
      while (!guest.open) guest.round();
      guest.answer(Action::Allow);
    }
    std::cout << name << ": " << Seconds(Clock::now() - from).count() / kEvents * 1e6 << " us per event and round\n";
  };
  guest.watch(EventKind::Msr);
  guest.hooks().set_msr(VcpuId{0}, x86::msr::kLstar, true);
  guest.watch(EventKind::Cr);
  guest.hooks().set_cr(VcpuId{0}, 3, true);
  guest.watch(EventKind::Hypercall);
  guest.watch(EventKind::PageFault);
  guest.restrict_page(kProtectedPage, KVMI_PAGE_ACCESS_R);
  rate("hypercall", GuestMode::Vmcall);
  rate("msr", GuestMode::Lstar);
  rate("cr3", GuestMode::Cr3);
  rate("page fault", GuestMode::Store);
}

}  // namespace kvmid::emulated
