// SPDX-License-Identifier: GPL-2.0-or-later
// Every command through the real kvmid to the emulated guest: those of its mask do what they say, asked of the guest
// itself; the others are refused.
#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/integration_events/state_commands.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr std::uint32_t kLstar = 0xc0000082;
constexpr std::uint8_t kRwx = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
constexpr std::uint64_t kRamBytes = 16U << 20U;  // kvmi-emu's default

client::Registers registers_of(Stage& stage) { return check(stage.agent.get_registers(VcpuId{0})); }

void check_get_version(Stage& stage) {
  const auto version = check(stage.agent.get_version());
  CHECK(version.version == KVMI_VERSION);
  CHECK(version.max_payload == KVMI_MAX_PAYLOAD);
  CHECK(version.commands == stage.agent.welcome().commands);
  CHECK(version.events == stage.agent.welcome().events);
}

void check_get_guest_info(Stage& stage) {
  const auto info = check(stage.agent.guest_info());
  CHECK(info.vcpu_count == 2);
  CHECK(info.arch == KVMI_ARCH_X86);
  CHECK(info.physical_address_bits == 40);
  CHECK(info.linear_address_bits == 48);
  CHECK_FALSE(info.execute_only);
  CHECK(info.max_gpa == kRamBytes);
}

void check_pause_vcpu(Stage& stage) {
  check(stage.agent.pause_vcpu(kAllVcpus));
  for (int i = 0; i < 2; ++i) {
    const auto event = stage.next_event();
    CHECK(event.event.kind() == EventKind::Pause);
    check(stage.agent.reply(event, Action::Allow));
  }
  stage.guest.wait_rounds(2, 0);
  stage.guest.wait_rounds(2, 1);
  CHECK(code_of(stage.agent.pause_vcpu(VcpuId{2})) == ErrorCode::Invalid);
}

void check_get_registers(Stage& stage) {
  stage.guest.do_times(GuestMode::Lstar, 1);
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
  const std::array<std::uint32_t, 2> msrs{kLstar, 0x176};
  const auto registers = check(stage.agent.get_registers(VcpuId{0}, msrs));
  CHECK(registers.mode == 8);
  CHECK(registers.regs.rip >= KVMID_GUEST_IMAGE_GPA);
  CHECK(registers.regs.rip < KVMID_GUEST_IMAGE_GPA + kPageSize);
  CHECK((registers.sregs.cr3 == emulated::kRootA || registers.sregs.cr3 == emulated::kRootB));
  CHECK(registers.sregs.gs.base == emulated::mailbox_gpa(VcpuId{0}).value);
  CHECK(registers.sregs.idt.base == KVMID_GUEST_IDT_GPA);
  REQUIRE(registers.msrs.size() == 2);
  CHECK(registers.msrs[0].index == kLstar);
  CHECK(registers.msrs[0].value == stage.now().lstar);
  CHECK(check(stage.agent.get_registers(VcpuId{1})).sregs.gs.base == emulated::mailbox_gpa(VcpuId{1}).value);
  const std::array<std::uint32_t, 1> unknown{0x12345};
  CHECK(code_of(stage.agent.get_registers(VcpuId{0}, unknown)) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.get_registers(VcpuId{2})) == ErrorCode::Invalid);
}

/// During an event it is in values_test.cpp; while the vCPU runs for itself it is refused.
void check_set_registers(Stage& stage) {
  CHECK(code_of(stage.agent.set_registers(VcpuId{0}, registers_of(stage).regs)) == ErrorCode::TryAgain);
  check(stage.agent.pause_vcpu(VcpuId{0}));
  const auto event = stage.next_event();
  REQUIRE(event.event.kind() == EventKind::Pause);
  kvmi_x86_regs regs = event.event.regs;
  regs.r13 = 0x1313'1313'1313'1313;  // a register that the guest leaves alone
  check(stage.agent.set_registers(VcpuId{0}, regs));
  check(stage.agent.reply(event, Action::Allow));
  stage.guest.wait_rounds(1);
  CHECK(registers_of(stage).regs.r13 == regs.r13);
}

void check_get_page_access(Stage& stage) {
  auto entries = check(stage.agent.get_page_access(Gpa{0}, kRamBytes / kPageSize));
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].access == kRwx);
  CHECK(code_of(stage.agent.get_page_access(Gpa{1}, 1)) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.get_page_access(Gpa{kRamBytes}, 1)) == ErrorCode::Fault);
  CHECK(code_of(stage.agent.get_page_access(Gpa{0}, 1, AddressSpace::Smm)) == ErrorCode::NotSupported);
}

void check_set_page_access(Stage& stage) {
  const std::array<kvmi_page_access_entry, 2> wishes{{{0x20000, 1, KVMI_PAGE_ACCESS_R, {}}, {0x30000, 2, 0, {}}}};
  check(stage.agent.set_page_access(wishes));
  const auto entries = check(stage.agent.get_page_access(Gpa{0x1f000}, 20));
  REQUIRE(entries.size() == 5);  // rwx, r--, rwx, ---, rwx
  CHECK(entries[1].gpa == 0x20000);
  CHECK(entries[1].access == KVMI_PAGE_ACCESS_R);
  CHECK(entries[3].gpa == 0x30000);
  CHECK(entries[3].pages == 2);
  CHECK(entries[3].access == 0);
  // Each agent has its own view.
  AgentClient other = attach(stage.agent_socket(), stage.guest.uuid(), "other");
  CHECK(check(other.get_page_access(Gpa{0x1f000}, 20)).size() == 1);

  CHECK(code_of(stage.agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_W)) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X)) ==
        ErrorCode::Invalid);
  CHECK(code_of(stage.agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_X)) == ErrorCode::NotSupported);
  CHECK(code_of(stage.agent.set_page_access(Gpa{kRamBytes - kPageSize}, 2, kRwx)) == ErrorCode::Fault);
  check(stage.agent.set_page_access(Gpa{0x20000}, 17, kRwx));
  check(stage.agent.set_page_access(Gpa{0x31000}, 1, kRwx));
  CHECK(check(stage.agent.get_page_access(Gpa{0}, kRamBytes / kPageSize)).size() == 1);
}

void check_inject_exception(Stage& stage) {
  struct Injection {
    InjectException exception;
    std::uint64_t error, cr2;
  };
  const std::vector<Injection> injections{
      {{VcpuId{0}, 3, false, 0, 0}, 0, 0},
      {{VcpuId{0}, 6, false, 0, 0}, 0, 0},
      {{VcpuId{0}, 13, true, 0x18, 0}, 0x18, 0},
      {{VcpuId{0}, 14, true, 0x6, 0x7000'dead'b000}, 0x6, 0x7000'dead'b000},
  };
  for (const auto& [exception, error, cr2] : injections) {
    INFO("vector " << unsigned{exception.vector});
    const auto before = stage.now();
    check(stage.agent.inject_exception(exception));
    REQUIRE(wait_until(
        [&] { return stage.now().exceptions.at(exception.vector) > before.exceptions.at(exception.vector); }));
    // Back from the handler, the guest goes on.
    stage.guest.wait_rounds(2);
    const auto after = stage.now();
    CHECK(after.exceptions.at(exception.vector) == before.exceptions.at(exception.vector) + 1);
    CHECK(after.last_vector == exception.vector);
    CHECK(after.last_error == error);
    if (exception.vector == 14) CHECK(after.last_cr2 == cr2);
  }
  // One at a time: while the vCPU is paused the first cannot be delivered.
  check(stage.agent.pause_vcpu(VcpuId{0}));
  const auto event = stage.next_event();
  const auto before = stage.now();
  check(stage.agent.inject_exception({VcpuId{0}, 6, false, 0, 0}));
  CHECK(code_of(stage.agent.inject_exception({VcpuId{0}, 13, true, 0, 0})) == ErrorCode::Busy);
  CHECK(stage.now().exceptions[6] == before.exceptions[6]);
  check(stage.agent.reply(event, Action::Allow));
  stage.guest.wait_rounds(2);
  CHECK(stage.now().exceptions[6] == before.exceptions[6] + 1);
  CHECK(stage.now().exceptions[13] == before.exceptions[13]);

  CHECK(code_of(stage.agent.inject_exception({VcpuId{0}, 2, false, 0, 0})) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.inject_exception({VcpuId{0}, 14, false, 0, 0})) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.inject_exception({VcpuId{0}, 6, true, 1, 0})) == ErrorCode::Invalid);
  CHECK(code_of(stage.agent.inject_exception({VcpuId{0}, 13, true, 0, 0x1000})) == ErrorCode::Invalid);
}

void check_read_physical(Stage& stage) {
  const std::array<kvmi_read_range, 3> ranges{
      {{KVMID_GUEST_IDT_GPA + 5, 11, 0}, {KVMID_GUEST_IMAGE_GPA - 3, 4096, 0}, {kRamBytes - 8, 8, 0}}};
  const auto memory = check(stage.agent.read_ranges(ranges));
  std::vector<std::byte> expected(11 + 4096 + 8);
  stage.guest.memory().read(Gpa{ranges[0].gpa}, expected.data(), 11);
  stage.guest.memory().read(Gpa{ranges[1].gpa}, expected.data() + 11, 4096);
  stage.guest.memory().read(Gpa{ranges[2].gpa}, expected.data() + 11 + 4096, 8);
  CHECK(memory.data == expected);
  // More than one message holds.
  const auto large = check(stage.agent.read_physical(Gpa{0x100000}, 200'000));
  std::vector<std::byte> large_expected(200'000);
  stage.guest.memory().read(Gpa{0x100000}, large_expected.data(), large_expected.size());
  CHECK(large.data == large_expected);

  const std::array<kvmi_read_range, 2> outside{{{0x1000, 8, 0}, {kRamBytes - 4, 8, 0}}};
  CHECK(code_of(stage.agent.read_ranges(outside)) == ErrorCode::Fault);
  const std::array<kvmi_read_range, 1> wraps{{{~std::uint64_t{0} - 3, 8, 0}}};
  CHECK(code_of(stage.agent.read_ranges(wraps)) == ErrorCode::Invalid);
  const std::array<kvmi_read_range, 2> too_big{{{0x1000, 40'000, 0}, {0x1000, 40'000, 0}}};
  CHECK(code_of(stage.agent.read_ranges(too_big)) == ErrorCode::TooBig);
  const std::array<kvmi_read_range, 1> normal{{{0x1000, 8, 0}}};
  CHECK(code_of(stage.agent.read_ranges(normal, AddressSpace::Smm)) == ErrorCode::Fault);
}

/// The guest executes what an agent lays over the constant of its function, and nobody else sees it.
void check_patch(Stage& stage, Gpa gpa, const std::array<std::byte, 2>& own) {
  const auto result = [&] {
    stage.guest.do_times(GuestMode::Exec, 1);
    stage.guest.set_mode(GuestMode::Idle);
    return stage.now().exec_result;
  };
  const std::array over{std::byte{0xaa}, std::byte{0x55}};
  client::WriteOptions place, take_off;
  place.flags = KVMI_WRITE_PATCH;
  take_off.flags = KVMI_WRITE_UNPATCH;
  place.expected = own;
  const auto placed = check(stage.agent.write_physical(gpa, over, place));
  CHECK(result() == 0x55aa);
  const auto read = check(stage.agent.read_physical(gpa, own.size()));
  CHECK(std::equal(read.data.begin(), read.data.end(), own.begin(), own.end()));
  CHECK(read.cookie == placed);
  {
    AgentClient other = attach(stage.agent_socket(), stage.guest.uuid(), "other");
    CHECK(check(other.read_physical(gpa, own.size())).data == read.data);
    check(other.write_physical(gpa, over, place));  // the same bytes: shared
    check(stage.agent.write_physical(gpa, own, take_off));
    CHECK(result() == 0x55aa);
  }
  // The last owner has gone without a word.
  REQUIRE(wait_until([&] { return result() == 0xf00d; }));
}

/// This user runs the hypervisor, too, so it could write what it is given: that is the whole of the answer here. What
/// another user gets is in tests/integration_memory.
void check_grant_memory(Stage& stage) {
  const auto granted = stage.agent.grant_memory();
  REQUIRE_FALSE(granted);
  CHECK(granted.error().code == ErrorCode::NotPermitted);
}

void check_write_physical(Stage& stage) {
  // The guest itself says what it found: it writes it into an MSR and reads that back.
  write_mailbox(stage.agent, 0, offsetof(Mailbox, arg_msr_value), 0x5678'9abc);
  stage.guest.do_times(GuestMode::Msr, 1);
  CHECK(stage.now().msr == 0x5678'9abc);
  stage.guest.set_mode(GuestMode::Idle);
  // Code too: the function of the exec page returns another value now.
  stage.guest.do_times(GuestMode::Exec, 1);
  CHECK(stage.now().exec_result == emulated::kExecValue);
  stage.guest.set_mode(GuestMode::Idle);
  std::vector<std::byte> page(64);
  stage.guest.memory().read(emulated::kExecPage, page.data(), page.size());
  const std::array wanted{std::byte{0xed}, std::byte{0x5e}, std::byte{0}, std::byte{0}};
  const auto at = std::search(page.begin(), page.end(), wanted.begin(), wanted.end());
  REQUIRE(at != page.end());
  const std::array patched{std::byte{0x0d}, std::byte{0xf0}};
  check(stage.agent.write_physical(Gpa{emulated::kExecPage.value + static_cast<std::uint64_t>(at - page.begin())},
                                   patched));
  stage.guest.do_times(GuestMode::Exec, 1);
  CHECK(stage.now().exec_result == 0xf00d);
  stage.guest.set_mode(GuestMode::Idle);
  check_patch(stage, Gpa{emulated::kExecPage.value + static_cast<std::uint64_t>(at - page.begin())}, patched);

  CHECK(code_of(stage.agent.write_physical(Gpa{kRamBytes - 1}, patched)) == ErrorCode::Fault);
  CHECK(code_of(stage.agent.write_physical(Gpa{kRamBytes}, patched)) == ErrorCode::Fault);
}

void check_control_events(Stage& stage) {
  EventSet both = only(EventKind::Hypercall);
  both.add(EventKind::Breakpoint);
  const auto control = [&](Operation operation, EventSet events) {
    return check(stage.agent.control_events(kAllVcpus, operation, Role::Decider, events));
  };
  CHECK(control(Operation::Set, both) == both);
  CHECK(control(Operation::Disable, only(EventKind::Breakpoint)) == only(EventKind::Hypercall));
  CHECK(control(Operation::Enable, only(EventKind::Breakpoint)) == both);
  CHECK(control(Operation::Set, only(EventKind::Breakpoint)) == only(EventKind::Breakpoint));
  const auto event = stage.provoke(GuestMode::Int3);
  check(stage.agent.reply(event, Action::Skip));
  stage.finish(GuestMode::Int3);
  CHECK(control(Operation::Set, EventSet{}) == EventSet{});
  stage.guest.do_times(GuestMode::Int3, 2);
  stage.guest.do_times(GuestMode::Vmcall, 2);
  stage.guest.set_mode(GuestMode::Idle);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  CHECK(code_of(stage.agent.subscribe(only(EventKind::CreateVcpu), Role::Decider)) == ErrorCode::NotSupported);
  CHECK(code_of(stage.agent.control_events(VcpuId{2}, Operation::Set, Role::Decider, both)) == ErrorCode::Invalid);

  // One vCPU's wishes are not the other's.
  check(stage.agent.control_events(VcpuId{1}, Operation::Enable, Role::Decider, only(EventKind::Hypercall)));
  stage.guest.do_times(GuestMode::Vmcall, 2, 0);
  stage.guest.set_mode(GuestMode::Idle, 0);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  stage.guest.set_mode(GuestMode::Vmcall, 1);
  const auto other = stage.next_event();
  stage.guest.set_mode(GuestMode::Idle, 1);
  CHECK(other.event.vcpu == VcpuId{1});
  check(stage.agent.reply(other, Action::Allow));
}

/// The event alone is not enough, the register alone neither; and giving the register back ends it.
template <class Control>
void check_register_control(Stage& stage, EventKind kind, GuestMode mode, Control control) {
  const auto nothing_comes = [&] {
    stage.guest.do_times(mode, 2);
    stage.guest.set_mode(GuestMode::Idle);
    stage.guest.wait_rounds(2);
    CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  };
  stage.subscribe(kind);
  nothing_comes();
  control(true);
  const auto event = stage.provoke(mode);
  CHECK(event.event.kind() == kind);
  check(stage.agent.reply(event, Action::Allow));
  stage.finish(mode);
  control(false);
  nothing_comes();
  control(true);
  check(stage.agent.control_events(kAllVcpus, Operation::Disable, Role::Decider, only(kind)));
  nothing_comes();
}

void check_control_cr(Stage& stage) {
  check_register_control(stage, EventKind::Cr, GuestMode::Cr3,
                         [&](bool enable) { check(stage.agent.control_cr(kAllVcpus, 3, enable)); });
  CHECK(code_of(stage.agent.control_cr(kAllVcpus, 2, true)) == ErrorCode::Invalid);
}

void check_control_msr(Stage& stage) {
  check_register_control(stage, EventKind::Msr, GuestMode::Lstar,
                         [&](bool enable) { check(stage.agent.control_msr(kAllVcpus, kLstar, enable)); });
  CHECK(code_of(stage.agent.control_msr(kAllVcpus, 0x2000, true)) == ErrorCode::Invalid);
}

/// Only what matches is told; for the rest the agent's own action is taken.
void check_set_filter(Stage& stage) {
  stage.subscribe(EventKind::Hypercall);
  kvmi_filter_term second_vcpu{};
  second_vcpu.field = KVMI_FILTER_VCPU;
  second_vcpu.value = 1;
  const std::span<const kvmi_filter_term> terms(&second_vcpu, 1);
  check(stage.agent.set_filter(kAllVcpus, EventKind::Hypercall, Action::Skip, terms));
  stage.guest.do_times(GuestMode::Vmcall, 2, 0);
  stage.guest.set_mode(GuestMode::Idle, 0);
  CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  stage.guest.set_mode(GuestMode::Vmcall, 1);
  const auto told = stage.next_event();
  stage.guest.set_mode(GuestMode::Idle, 1);
  CHECK(told.event.vcpu == VcpuId{1});
  check(stage.agent.reply(told, Action::Allow));
  // Without terms there is none any more.
  check(stage.agent.set_filter(kAllVcpus, EventKind::Hypercall, Action::Allow, {}));
  const auto again = stage.provoke(GuestMode::Vmcall);
  CHECK(again.event.vcpu == VcpuId{0});
  check(stage.agent.reply(again, Action::Allow));
  CHECK(code_of(stage.agent.set_filter(kAllVcpus, EventKind::Pause, Action::Allow, terms)) == ErrorCode::Invalid);
}

const CommandChecks kServed{
    {CommandId::GetVersion, check_get_version},        {CommandId::GetGuestInfo, check_get_guest_info},
    {CommandId::PauseVcpu, check_pause_vcpu},          {CommandId::GetRegisters, check_get_registers},
    {CommandId::SetRegisters, check_set_registers},    {CommandId::GetPageAccess, check_get_page_access},
    {CommandId::SetPageAccess, check_set_page_access}, {CommandId::InjectException, check_inject_exception},
    {CommandId::ReadPhysical, check_read_physical},    {CommandId::WritePhysical, check_write_physical},
    {CommandId::ControlEvents, check_control_events},  {CommandId::ControlCr, check_control_cr},
    {CommandId::ControlMsr, check_control_msr},        {CommandId::SetFilter, check_set_filter},
    {CommandId::GrantMemory, check_grant_memory},
};

CommandChecks served() {
  CommandChecks checks = state_command_checks();
  checks.insert(kServed.begin(), kServed.end());
  return checks;
}

}  // namespace

TEST_CASE("each command of the mask has a check", "[events][commands]") {
  EventDaemon daemon;
  Stage stage(daemon);
  const auto commands = one_of_each();
  CHECK(commands.size() == std::variant_size_v<Command>);
  for (const auto& command : commands) {
    const CommandId id = id_of(command);
    INFO(name_of(id));
    CHECK(stage.agent.welcome().commands.has(id) == (served().count(id) == 1));
  }
}

TEST_CASE("each command of the mask does what it says", "[events][commands]") {
  EventDaemon daemon;
  for (const auto& [id, check_it] : served()) {
    INFO(name_of(id));
    Stage stage(daemon, 2);
    check_it(stage);
  }
}

TEST_CASE("each command outside the mask is refused, and the guest goes on", "[events][commands]") {
  EventDaemon daemon;
  Stage stage(daemon);
  for (const auto& command : one_of_each()) {
    const CommandId id = id_of(command);
    if (stage.agent.welcome().commands.has(id)) continue;
    INFO(name_of(id));
    auto reply = check(stage.agent.call(command));
    CHECK((reply.error() == ErrorCode::NotServed || reply.error() == ErrorCode::NotSupported));
    CHECK_FALSE(reply.text().empty());
  }
  stage.guest.wait_rounds(2);
}
