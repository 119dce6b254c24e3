// SPDX-License-Identifier: GPL-2.0-or-later
//
// XSETBV, DESCRIPTOR and CPUID events with each action, judged by what the guest itself saw.

#include <tuple>

#include "hypervisor/emulated/boot.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

/// Answers, and lets the guest finish the action, answering what else it asks with ALLOW.
void finish_allowing(ScriptedGuest& guest, GuestMode mode) {
  const auto index = static_cast<std::size_t>(mode);
  const std::uint64_t done = guest.mailbox().done[index];
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 8; ++i) {
    REQUIRE(guest.run_until([&] { return guest.mailbox().done[index] == done + 1 || guest.open; }));
    if (!guest.open) return;
    guest.answer(Action::Allow);
  }
  FAIL("the guest asks without end");
}

/// Sets CR4 of vCPU 0 by the answer to an event of its own.
void write_cr4(ScriptedGuest& guest, std::uint64_t set, std::uint64_t clear) {
  guest.watch(EventKind::Cr);
  guest.hooks().set_cr(VcpuId{0}, 4, true);
  guest.set_mode(GuestMode::Cr4);
  const auto data = std::get<CrData>(guest.next_event().data);
  guest.set_mode(GuestMode::Idle);
  guest.hooks().set_cr(VcpuId{0}, 4, false);
  guest.answer(Action::Allow, (data.new_value | set) & ~clear);
  for (int i = 0; i < 3; ++i) guest.round();
  REQUIRE((guest.machine().registers(VcpuId{0})->sregs.cr4 & (set | clear)) == set);
}

struct Table {
  GuestMode mode;
  std::uint8_t descriptor;
  std::size_t field;            ///< what the guest read back
  std::uint64_t first, second;  ///< what it writes in turn
};
constexpr std::array<Table, 4> kTables = {{
    {GuestMode::Gdt, KVMI_DESC_GDTR, offsetof(Mailbox, gdtr_limit), 111, 127},
    {GuestMode::Idt, KVMI_DESC_IDTR, offsetof(Mailbox, idtr_limit), 511, 1023},
    {GuestMode::Ldt, KVMI_DESC_LDTR, offsetof(Mailbox, ldtr), 0x50, 0},
    {GuestMode::Tr, KVMI_DESC_TR, offsetof(Mailbox, tr), 0x18, 0x60},
}};

std::uint64_t seen(ScriptedGuest& guest, const Table& table) {
  return guest.read<std::uint64_t>(mailbox_field(VcpuId{0}, table.field));
}

}  // namespace

TEST_CASE("an XSETBV event with each action", "[emulated][xsetbv]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Xsetbv);
  guest.set_mode(GuestMode::Xsetbv);
  const Event event = guest.next_event();
  const auto data = std::get<XsetbvData>(event.data);
  CHECK(data.xcr == 0);
  CHECK(data.old_value == 1);
  CHECK(data.new_value == 3);
  CHECK(event.actions == ActionSet{0xf});
  CHECK(guest.machine().xcr(VcpuId{0}, 0).value() == 1);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    finish_allowing(guest, GuestMode::Xsetbv);
    CHECK(guest.mailbox().xcr0 == 3);
    CHECK(guest.machine().xcr(VcpuId{0}, 0).value() == 3);
  }
  SECTION("ALLOW with a value") {
    guest.answer(Action::Allow, 1);
    finish_allowing(guest, GuestMode::Xsetbv);
    CHECK(guest.mailbox().xcr0 == 1);
  }
  SECTION("ALLOW with a value that the processor does not take is #GP for the guest") {
    guest.answer(Action::Allow, 4);
    finish_allowing(guest, GuestMode::Xsetbv);
    CHECK(guest.mailbox().exceptions[13] == 1);
    CHECK(guest.mailbox().last_rip == event.regs.rip);
    CHECK(guest.mailbox().xcr0 == 1);
  }
  SECTION("SKIP") {
    guest.answer(Action::Skip);
    finish_allowing(guest, GuestMode::Xsetbv);
    CHECK(guest.mailbox().xcr0 == 1);
    CHECK(guest.mailbox().exceptions[13] == 0);
  }
  SECTION("RETRY") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
    guest.answer(Action::Allow);
    finish_allowing(guest, GuestMode::Xsetbv);
    CHECK(guest.mailbox().xcr0 == 3);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_reason() == "event xsetbv of vCPU 0 was answered with CRASH");
  }
}

TEST_CASE("what XSETBV does not take is #GP and no event", "[emulated][xsetbv]") {
  const std::uint64_t value = GENERATE(as<std::uint64_t>{}, 2, 4, 6, 7, 0x8000000000000001);
  CAPTURE(value);
  ScriptedGuest guest;
  guest.watch(EventKind::Xsetbv);
  guest.write_field(offsetof(Mailbox, arg_xcr0), value);
  REQUIRE(guest.run_action(GuestMode::Xsetbv));
  CHECK(guest.raised == 0);
  CHECK(guest.mailbox().exceptions[13] >= 1);
  CHECK(guest.mailbox().last_error == 0);
  CHECK(guest.mailbox().xcr0 == 1);
}

TEST_CASE("XSETBV without CR4.OSXSAVE is #UD and no event", "[emulated][xsetbv]") {
  ScriptedGuest guest;
  write_cr4(guest, 0, x86::cr4::kOsxsave);
  guest.watch(EventKind::Xsetbv);
  const unsigned raised = guest.raised;
  guest.write_field(offsetof(Mailbox, arg_xcr0), 3);
  REQUIRE(guest.run_action(GuestMode::Xsetbv));
  CHECK(guest.raised == raised);
  CHECK(guest.mailbox().exceptions[6] >= 2);  // XSETBV and XGETBV
  CHECK(guest.machine().xcr(VcpuId{0}, 0).value() == 1);
}

TEST_CASE("a DESCRIPTOR event for each table, written and read", "[emulated][descriptor]") {
  const Table table = GENERATE(from_range(kTables));
  CAPTURE(static_cast<unsigned>(table.descriptor));
  ScriptedGuest guest;
  guest.watch(EventKind::Descriptor);
  guest.set_mode(table.mode);
  const Event event = guest.next_event();
  const auto write = std::get<DescriptorData>(event.data);
  CHECK(write.descriptor == table.descriptor);
  CHECK(write.write);
  CHECK(event.actions == ActionSet{0xf});

  SECTION("ALLOW of both: one write, one read, and the guest sees what it wrote") {
    guest.answer(Action::Allow);
    const auto read = std::get<DescriptorData>(guest.next_event().data);
    CHECK(read.descriptor == table.descriptor);
    CHECK_FALSE(read.write);
    guest.answer(Action::Allow);
    finish_allowing(guest, table.mode);
    CHECK(guest.raised == 2);
    CHECK(seen(guest, table) == table.first);
    guest.set_mode(table.mode);
    guest.next_event();
    guest.answer(Action::Allow);
    finish_allowing(guest, table.mode);
    CHECK(seen(guest, table) == table.second);
  }
  SECTION("SKIP of the write leaves the register as it was") {
    const auto before = guest.machine().registers(VcpuId{0})->sregs;
    guest.answer(Action::Skip);
    finish_allowing(guest, table.mode);
    const auto after = guest.machine().registers(VcpuId{0})->sregs;
    CHECK(after.gdt.limit == before.gdt.limit);
    CHECK(after.idt.limit == before.idt.limit);
    CHECK(after.ldt.selector == before.ldt.selector);
    CHECK(after.tr.selector == before.tr.selector);
    CHECK(guest.mailbox().exceptions[13] == 0);
  }
  SECTION("SKIP of the read stores nothing") {
    guest.answer(Action::Allow);
    guest.next_event();
    guest.answer(Action::Skip);
    finish_allowing(guest, table.mode);
    CHECK(seen(guest, table) == 0);
  }
  SECTION("RETRY is the same event again") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
    CHECK(std::get<DescriptorData>(guest.open->data).write);
    guest.answer(Action::Allow);
    finish_allowing(guest, table.mode);
    CHECK(seen(guest, table) == table.first);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
}

TEST_CASE("an ALLOW lets one descriptor instruction pass, not the next one", "[emulated][descriptor]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Descriptor);
  guest.set_mode(GuestMode::Gdt);
  for (int i = 0; i < 6; ++i) {
    CHECK(std::get<DescriptorData>(guest.next_event().data).write == (i % 2 == 0));
    guest.answer(Action::Allow);
  }
  CHECK(guest.raised == 6);
}

TEST_CASE("an ALLOW with RIP moved executes nothing there", "[emulated][descriptor]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Descriptor);
  guest.set_mode(GuestMode::Ldt);
  const Event event = guest.next_event();
  auto regs = event.regs;
  regs.rip += 3;  // behind lldt %ax
  REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
  guest.answer(Action::Allow);
  finish_allowing(guest, GuestMode::Ldt);
  CHECK(guest.mailbox().ldtr == 0);
}

TEST_CASE("an allowed descriptor load that is wrong faults in the guest", "[emulated][descriptor]") {
  ScriptedGuest guest;
  guest.watch(EventKind::Descriptor);
  guest.set_mode(GuestMode::Ldt);
  auto regs = guest.next_event().regs;
  regs.rax = 0x1000;  // behind the end of the GDT
  REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
  guest.answer(Action::Allow);
  REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[13] > 0; }));
  CHECK(guest.mailbox().last_error == 0x1000);
}

TEST_CASE("a CPUID event with each action", "[emulated][cpuid]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_cpuid_function), 0xd);
  guest.write_field(offsetof(Mailbox, arg_cpuid_index), 1);
  REQUIRE(guest.run_action(GuestMode::Cpuid));
  guest.write_field(offsetof(Mailbox, arg_cpuid_function), 0x80000008);
  guest.write_field(offsetof(Mailbox, arg_cpuid_index), 7);
  guest.watch(EventKind::Cpuid);
  guest.set_mode(GuestMode::Cpuid);
  const Event event = guest.next_event();
  const auto data = std::get<CpuidData>(event.data);
  CHECK(data.function == 0x80000008);
  CHECK(data.index == 7);
  CHECK(event.actions == ActionSet{0xf});
  const auto leaf = guest.machine().cpuid(VcpuId{0}, 0x80000008, 7).value();
  CHECK(leaf.eax == 0x3028);

  SECTION("ALLOW gives the table's answer, which GET_CPUID gives too") {
    guest.answer(Action::Allow);
    finish_allowing(guest, GuestMode::Cpuid);
    CHECK(guest.mailbox().cpuid == std::array<std::uint64_t, 4>{leaf.eax, leaf.ebx, leaf.ecx, leaf.edx});
    CHECK(guest.raised == 1);
  }
  SECTION("SKIP gives what an agent has put into the registers") {
    auto regs = event.regs;
    regs.rax = 0x11;
    regs.rbx = 0x22;
    regs.rcx = 0x33;
    regs.rdx = 0x44;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer(Action::Skip);
    finish_allowing(guest, GuestMode::Cpuid);
    CHECK(guest.mailbox().cpuid == std::array<std::uint64_t, 4>{0x11, 0x22, 0x33, 0x44});
  }
  SECTION("SKIP without that leaves them") {
    guest.answer(Action::Skip);
    finish_allowing(guest, GuestMode::Cpuid);
    CHECK(guest.mailbox().cpuid == std::array<std::uint64_t, 4>{0x80000008, 0, 7, 0});
  }
  SECTION("ALLOW executes with the registers as they are") {
    auto regs = event.regs;
    regs.rax = 0;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer(Action::Allow);
    finish_allowing(guest, GuestMode::Cpuid);
    CHECK(guest.mailbox().cpuid[0] == 0xd);
  }
  SECTION("RETRY") {
    guest.answer(Action::Retry);
    CHECK(guest.next_event().regs.rip == event.regs.rip);
    CHECK(guest.raised == 2);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_reason() == "event cpuid of vCPU 0 was answered with CRASH");
  }
}

TEST_CASE("CPUID of an unknown leaf is zeros", "[emulated][cpuid]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_cpuid_function), 0x12345);
  REQUIRE(guest.run_action(GuestMode::Cpuid));
  CHECK(guest.mailbox().cpuid == std::array<std::uint64_t, 4>{0, 0, 0, 0});
}

TEST_CASE("user mode reads tables unless CR4.UMIP, and never writes them", "[emulated][descriptor]") {
  constexpr std::uint64_t kCode = 0x8000, kData = 0x9000;
  auto ram = GuestRam::create(kMemoryMinBytes);
  REQUIRE(ram);
  MemoryMap map;
  map.add({AddressSpace::Normal, Gpa{0}, kMemoryMinBytes, false, ram->at(Gpa{0}, kMemoryMinBytes)});
  x86::CpuFeatures cpu;
  Mmu mmu(*ram, map, cpu);
  Vcpu vcpu(VcpuId{0}, 1);
  const std::array<std::uint64_t, 3> entries = {0x2007, 0x3007, 0x87};  // user pages: 2 MiB at 0
  for (std::size_t i = 0; i < entries.size(); ++i) {
    REQUIRE(ram->write(Gpa{boot::kPml4.value + i * kPageSize}, &entries[i], 8));
  }
  vcpu.regs.rbx = kData;
  vcpu.regs.rip = kCode;
  const unsigned ring = GENERATE(0u, 3u);
  const bool umip = GENERATE(false, true);
  vcpu.sregs.cs.dpl = vcpu.sregs.ss.dpl = static_cast<std::uint8_t>(ring);
  if (umip) vcpu.sregs.cr4 |= x86::cr4::kUmip;
  struct Case {
    std::array<std::uint8_t, 3> code;
    bool writes;       ///< the table register, or LDTR, TR
    bool descriptor;
  };
  const Case test = GENERATE(values<Case>({{{0x0f, 0x01, 0x03}, false, true},     // sgdt (%rbx)
                                           {{0x0f, 0x01, 0x0b}, false, true},     // sidt
                                           {{0x0f, 0x00, 0x03}, false, true},     // sldt
                                           {{0x0f, 0x00, 0x0b}, false, true},     // str
                                           {{0x0f, 0x01, 0x23}, false, false},    // smsw
                                           {{0x0f, 0x01, 0x13}, true, true},      // lgdt
                                           {{0x0f, 0x01, 0x1b}, true, true},      // lidt
                                           {{0x0f, 0x00, 0x13}, true, true}}));  // lldt
  CAPTURE(ring, umip, unsigned{test.code[1]}, unsigned{test.code[2]});
  REQUIRE(ram->write(Gpa{kCode}, test.code.data(), test.code.size()));
  hypervisor::Hooks hooks(1);
  EventSet events;
  events.add(EventKind::Descriptor);
  const bool watched = GENERATE(false, true);
  if (watched) hooks.set_events(VcpuId{0}, events);

  const Effect effect = execute_sensitive(mmu, vcpu, hooks);

  if (ring == 3 && (test.writes || umip)) {
    REQUIRE(std::holds_alternative<Raised>(effect));  // before any event
    CHECK(std::get<Raised>(effect).exception.vector == 13);
    CHECK(std::get<Raised>(effect).exception.error_code == 0);
    CHECK(vcpu.regs.rip == kCode);
  } else if (watched && test.descriptor) {
    REQUIRE(std::holds_alternative<Watched>(effect));
    CHECK(std::get<DescriptorData>(std::get<Watched>(effect).data).write == test.writes);
  } else {
    CHECK(std::holds_alternative<Executed>(effect));
    CHECK(vcpu.regs.rip == kCode + 3);
  }
}

TEST_CASE("unhooking lets a guest that waits in one of these events go on", "[emulated]") {
  const auto [mode, kind] = GENERATE(table<GuestMode, EventKind>({{GuestMode::Xsetbv, EventKind::Xsetbv},
                                                                  {GuestMode::Gdt, EventKind::Descriptor},
                                                                  {GuestMode::Cpuid, EventKind::Cpuid}}));
  ScriptedGuest guest;
  guest.watch(kind);
  guest.set_mode(mode);
  guest.next_event();
  guest.machine().unhook();
  guest.open.reset();
  const auto index = static_cast<std::size_t>(mode);
  CHECK(guest.run_until([&] { return guest.mailbox().done[index] >= 2; }));
  CHECK(guest.raised == 1);
}

}  // namespace kvmid::emulated
