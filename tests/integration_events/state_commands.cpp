// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_events/state_commands.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>

namespace kvmid::test {
namespace {

constexpr std::size_t kXmm5 = 160 + 16 * 5;  // in the legacy part of an XSAVE area
constexpr std::size_t kStateBits = 512;      // XSTATE_BV

void check_get_cpuid(Stage& stage) {
  stage.guest.set_field(offsetof(Mailbox, arg_cpuid_function), 0);
  stage.guest.set_field(offsetof(Mailbox, arg_cpuid_index), 0);
  stage.guest.do_times(GuestMode::Cpuid, 2);
  const auto leaf = check(stage.agent.get_cpuid(VcpuId{0}, 0));
  CHECK(stage.now().cpuid == std::array<std::uint64_t, 4>{leaf.eax, leaf.ebx, leaf.ecx, leaf.edx});
  CHECK(leaf.eax >= 0xd);
}

void check_get_xcr(Stage& stage) {
  stage.guest.do_times(GuestMode::Xsetbv, 1);
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
  CHECK(check(stage.agent.get_xcr(VcpuId{0})) == stage.now().xcr0);
}

/// A vCPU that stands still for this agent.
client::ReceivedEvent pause(Stage& stage) {
  check(stage.agent.pause_vcpu(VcpuId{0}));
  auto event = stage.next_event();
  REQUIRE(event.event.kind() == EventKind::Pause);
  return event;
}

void check_get_xsave(Stage& stage) {
  stage.guest.do_times(GuestMode::Sse, 3);
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
  const auto area = check(stage.agent.get_xsave(VcpuId{0}));
  REQUIRE(area.size() == check(stage.agent.get_cpuid(VcpuId{0}, 0xd)).ebx);
  const auto seen = stage.now().sse;
  CHECK(std::memcmp(area.data() + kXmm5, seen.data(), sizeof seen) == 0);
}

/// The guest adds one to each half of what it finds.
void check_set_xsave(Stage& stage) {
  stage.guest.do_times(GuestMode::Sse, 1);
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
  const auto event = pause(stage);
  auto area = check(stage.agent.get_xsave(VcpuId{0}));
  const std::array<std::uint64_t, 2> wanted{0x1000, 0x2000};
  std::memcpy(area.data() + kXmm5, wanted.data(), sizeof wanted);
  area.at(kStateBits) |= std::byte{3};
  check(stage.agent.set_xsave(VcpuId{0}, area));
  const auto rounds = stage.done(GuestMode::Sse);
  stage.guest.set_mode(GuestMode::Sse);
  check(stage.agent.reply(event, Action::Allow));
  REQUIRE(wait_until([&] { return stage.done(GuestMode::Sse) > rounds; }));
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
  const auto seen = stage.now().sse;
  CHECK(seen[0] == wanted[0] + stage.done(GuestMode::Sse) - rounds);
  CHECK(seen[1] == wanted[1] + stage.done(GuestMode::Sse) - rounds);
}

void check_translate_gva(Stage& stage) {
  const auto code = check(stage.agent.translate_gva(VcpuId{0}, Gva{KVMID_GUEST_IMAGE_GPA + 0x123}));
  CHECK(code.gpa == Gpa{KVMID_GUEST_IMAGE_GPA + 0x123});
  CHECK(code.page_bytes == kPageSize);
  CHECK(code.access == (KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));
  const auto data = check(stage.agent.translate_gva(VcpuId{0}, Gva{emulated::kProtectedPage.value}));
  CHECK(data.access == (KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W));
  // The window shows another page under each root.
  const auto root = check(stage.agent.get_registers(VcpuId{0})).sregs.cr3;
  const auto window = check(stage.agent.translate_gva(VcpuId{0}, Gva{KVMID_GUEST_WINDOW_GVA}));
  const bool first_root = root == emulated::kRootA;
  CHECK(window.gpa == (first_root ? Gpa{KVMID_GUEST_WINDOW_A_GPA} : Gpa{KVMID_GUEST_WINDOW_B_GPA}));
}

/// The event alone is not enough; with the command each instruction comes; giving it back ends it.
void check_control_singlestep(Stage& stage) {
  stage.subscribe(EventKind::Singlestep);
  stage.guest.wait_rounds(2);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  check(stage.agent.control_singlestep(VcpuId{0}, true));
  for (int i = 0; i < 10; ++i) {
    const auto event = stage.next_event();
    CHECK(event.event.kind() == EventKind::Singlestep);
    CHECK(event.event.vcpu == VcpuId{0});
    check(stage.agent.reply(event, Action::Allow));
  }
  const auto last = stage.next_event();
  check(stage.agent.control_singlestep(VcpuId{0}, false));
  check(stage.agent.reply(last, Action::Allow));
  stage.guest.wait_rounds(2);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
}

void check_get_memory_map(Stage& stage) {
  const auto slots = check(stage.agent.get_memory_map());
  REQUIRE_FALSE(slots.empty());
  bool rom = false;
  std::uint64_t end = 0;
  for (const auto& slot : slots) {
    CHECK(slot.gpa >= end);
    CHECK(slot.bytes % kPageSize == 0);
    CHECK(slot.address_space == KVMI_ADDRESS_SPACE_NORMAL);
    end = slot.gpa + slot.bytes;
    if (slot.gpa == KVMID_GUEST_ROM_GPA) rom = slot.bytes == KVMID_GUEST_ROM_BYTES && slot.flags == KVMI_SLOT_READ_ONLY;
  }
  CHECK(rom);
  CHECK(end == check(stage.agent.guest_info()).max_gpa);
  const auto smm = check(stage.agent.get_memory_map(AddressSpace::Smm));
  CHECK(std::any_of(smm.begin(), smm.end(), [](const auto& slot) { return slot.gpa == KVMID_GUEST_SMRAM_GPA; }));
  // It is not the memory that the normal address space has there.
  const auto word = check(stage.agent.read_physical(emulated::kSmram, 8, AddressSpace::Smm));
  CHECK(std::memcmp(word.data.data(), "KVMISMRM", 8) == 0);
  CHECK(check(stage.agent.read_physical(emulated::kSmram, 8)).data != word.data);
}

/// The guest is let go first, as UNHOOK says, and then ends by itself.
void check_shutdown_guest(Stage& stage) {
  check(stage.agent.shutdown_guest());
  const auto change = check(stage.agent.wait_guest(kBound));
  REQUIRE(change);
  const auto* gone = std::get_if<client::GuestGone>(&*change);
  REQUIRE(gone != nullptr);
  CHECK(gone->reason == OffReason::Shutdown);
  CHECK(stage.guest.process().wait_exit() == Exit{0, 0});
}

}  // namespace

CommandChecks state_command_checks() {
  return {{CommandId::GetCpuid, check_get_cpuid},
          {CommandId::GetXcr, check_get_xcr},
          {CommandId::GetXsave, check_get_xsave},
          {CommandId::SetXsave, check_set_xsave},
          {CommandId::TranslateGva, check_translate_gva},
          {CommandId::ControlSinglestep, check_control_singlestep},
          {CommandId::GetMemoryMap, check_get_memory_map},
          {CommandId::ShutdownGuest, check_shutdown_guest}};
}

std::vector<Command> one_of_each() {
  static const std::array<std::byte, 1> byte{};
  static const kvmi_read_range range{0x1000, 8, 0};
  static const kvmi_page_access_entry entry{0x1000, 1, 7, {}};
  return {GetVersion{},
          GetGuests{},
          GetGuestInfo{},
          PauseVcpu{},
          GetRegisters{},
          SetRegisters{},
          ShutdownGuest{},
          GetCpuid{},
          GetPageAccess{.gpa = {}, .pages = 1},
          SetPageAccess{AddressSpace::Normal, std::span(&entry, 1)},
          InjectException{.vcpu = {}, .vector = 3},
          ReadPhysical{AddressSpace::Normal, std::span(&range, 1)},
          WritePhysical{.gpa = Gpa{0x1000}, .data = byte, .expected = {}},
          GrantMemory{},
          ControlEvents{},
          ControlCr{},
          ControlMsr{},
          TranslateGva{},
          ControlSinglestep{},
          SetFilter{},
          GetXsave{},
          SetXsave{VcpuId{}, byte},
          GetXcr{},
          GetMemoryMap{}};
}

}  // namespace kvmid::test
