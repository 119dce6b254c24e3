// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_events/event_table.h"

#include <catch2/catch.hpp>

namespace kvmid::test {
namespace {

using client::ReceivedEvent;

constexpr std::uint32_t kLstar = 0xc0000082;
constexpr std::uint8_t kBreakpointVector = 3;
constexpr std::uint64_t kHypercallUnknown = static_cast<std::uint64_t>(-1000);

// ---- control registers: the guest reads back what it wrote ----

struct CrCase {
  std::uint16_t number;
  GuestMode mode;
  std::uint64_t Mailbox::*seen;
  std::uint64_t flipped;   ///< bits that the guest writes the other way round
  std::uint64_t also_set;  ///< a bit that the replaced value has besides
};

EventRow cr_row(const CrCase& c) {
  EventRow row;
  row.name = "CR" + std::to_string(c.number);
  row.words = {"the register has the new value", "the register keeps its value", "the register has the agent's value"};
  row.kind = EventKind::Cr;
  row.mode = c.mode;
  row.takes = kAllActions;
  row.has_value = true;
  row.watch = [c](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::Cr);
    check(agent.control_cr(kAllVcpus, c.number, true));
  };
  row.told = [c](Stage&, const ReceivedEvent& event) {
    const auto& cr = std::get<CrData>(event.event.data);
    CHECK(cr.cr == c.number);
    CHECK((cr.old_value ^ cr.new_value) == c.flipped);
    const auto& sregs = event.event.sregs;
    CHECK(cr.old_value == (c.number == 0 ? sregs.cr0 : c.number == 3 ? sregs.cr3 : sregs.cr4));
  };
  row.allowed = [c](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().*c.seen == std::get<CrData>(event.event.data).new_value);
  };
  row.skipped = [c](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().*c.seen == std::get<CrData>(event.event.data).old_value);
  };
  row.undone = [c](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().*c.seen == stage.before().*c.seen); };
  row.value = [c](const ReceivedEvent& event) {
    return NewValue{std::get<CrData>(event.event.data).new_value | c.also_set};
  };
  row.replaced = [c](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().*c.seen == (std::get<CrData>(event.event.data).new_value | c.also_set));
  };
  return row;
}

/// CR3 shows in what an address means: the window's byte is another under each root.
EventRow cr3_row() {
  EventRow row = cr_row({3, GuestMode::Cr3, &Mailbox::cr3, emulated::kRootA ^ emulated::kRootB, 0});
  const auto window_of = [](std::uint64_t root) {
    return root == emulated::kRootA ? KVMID_GUEST_WINDOW_A_VALUE : KVMID_GUEST_WINDOW_B_VALUE;
  };
  const auto in_effect = [window_of](Stage& stage, std::uint64_t root) {
    CHECK(stage.now().cr3 == root);
    CHECK(stage.now().window == static_cast<std::uint64_t>(window_of(root)));
  };
  row.allowed = [in_effect](Stage& stage, const ReceivedEvent& event) {
    in_effect(stage, std::get<CrData>(event.event.data).new_value);
  };
  row.skipped = [in_effect](Stage& stage, const ReceivedEvent& event) {
    in_effect(stage, std::get<CrData>(event.event.data).old_value);
  };
  // The guest asks for the other root and is given the one it has: as SKIP in effect, but by a value.
  row.value = [](const ReceivedEvent& event) { return NewValue{std::get<CrData>(event.event.data).old_value}; };
  row.replaced = row.skipped;
  return row;
}

EventRow msr_row() {
  EventRow row;
  row.name = "MSR";
  row.words = {"LSTAR has the new value", "LSTAR keeps its value", "LSTAR has the agent's value"};
  row.kind = EventKind::Msr;
  row.mode = GuestMode::Lstar;
  row.takes = kAllActions;
  row.has_value = true;
  row.watch = [](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::Msr);
    check(agent.control_msr(kAllVcpus, kLstar, true));
  };
  row.told = [](Stage& stage, const ReceivedEvent& event) {
    const auto& msr = std::get<MsrData>(event.event.data);
    CHECK(msr.msr == kLstar);
    CHECK(msr.old_value == event.event.msrs.lstar);
    CHECK(msr.new_value == stage.now().arg_msr_value + stage.now().rounds);
    CHECK(msr.new_value != msr.old_value);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().lstar == std::get<MsrData>(event.event.data).new_value);
  };
  row.skipped = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().lstar == std::get<MsrData>(event.event.data).old_value);
  };
  row.undone = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().lstar == stage.before().lstar); };
  row.value = [](const ReceivedEvent&) { return NewValue{0x7fff'1234'5000}; };
  row.replaced = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().lstar == 0x7fff'1234'5000); };
  return row;
}

EventRow breakpoint_row() {
  EventRow row;
  row.name = "BREAKPOINT";
  row.words = {"#BP in the guest, RIP behind INT3", "no #BP", ""};
  row.kind = EventKind::Breakpoint;
  row.mode = GuestMode::Int3;
  row.takes = kAllActions;
  const auto handled = [](const Mailbox& mailbox) { return mailbox.exceptions[kBreakpointVector]; };
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Breakpoint); };
  row.told = [](Stage& stage, const ReceivedEvent& event) {
    const auto& breakpoint = std::get<BreakpointData>(event.event.data);
    CHECK(breakpoint.insn_length == 1);
    std::uint8_t opcode = 0;
    stage.guest.memory().read(breakpoint.gpa, &opcode, 1);
    CHECK(opcode == 0xcc);
    CHECK(event.event.regs.rip == breakpoint.gpa.value);  // the guest maps each page at its own address
  };
  row.allowed = [handled](Stage& stage, const ReceivedEvent& event) {
    CHECK(handled(stage.now()) == handled(stage.before()) + 1);
    CHECK(stage.now().last_rip == event.event.regs.rip + 1);  // a trap: RIP behind it
  };
  row.skipped = [handled](Stage& stage, const ReceivedEvent&) {
    CHECK(handled(stage.now()) == handled(stage.before()));
  };
  row.undone = row.skipped;
  return row;
}

EventRow hypercall_row() {
  EventRow row;
  row.name = "HYPERCALL";
  row.words = {"RAX = -1000: unknown call", "RAX as it was", ""};
  row.kind = EventKind::Hypercall;
  row.mode = GuestMode::Vmcall;
  row.takes = kAllActions;
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Hypercall); };
  row.told = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(event.event.regs.rax == emulated::kHypercallNumber);
    CHECK(event.event.regs.rdi == 0);
    CHECK(event.event.regs.rsi == stage.now().rounds);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().hypercall_result == kHypercallUnknown); };
  row.skipped = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().hypercall_result == emulated::kHypercallNumber);  // RAX as it was
  };
  row.undone = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().hypercall_result == stage.before().hypercall_result);
  };
  return row;
}

// ---- page faults ----

void told_fault(const ReceivedEvent& event, Gpa gpa, std::uint8_t access) {
  const auto& fault = std::get<PageFaultData>(event.event.data);
  CHECK(fault.gpa == gpa);
  CHECK(fault.gva_valid);
  CHECK(fault.gva == Gva{gpa.value});
  CHECK(fault.access == access);
}

constexpr std::uint64_t kMarker = 0x1122'3344'5566'7788;

void set_protected_word(Stage& stage) {
  stage.guest.memory().write(emulated::kProtectedPage, &kMarker, sizeof kMarker);
}

EventRow read_row() {
  EventRow row;
  row.name = "PAGE_FAULT r";
  row.words = {"the value is loaded", "nothing is loaded", ""};
  row.kind = EventKind::PageFault;
  row.mode = GuestMode::Load;
  row.takes = kAllActions;
  row.prepare = set_protected_word;
  row.watch = [](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::PageFault);
    check(agent.set_page_access(emulated::kProtectedPage, 1, 0));
  };
  row.told = [](Stage&, const ReceivedEvent& event) {
    told_fault(event, emulated::kProtectedPage, KVMI_PAGE_ACCESS_R);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == kMarker); };
  row.skipped = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == 0); };  // RAX as it was: 0
  row.undone = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == stage.before().loaded); };
  return row;
}

EventRow write_row() {
  EventRow row;
  row.name = "PAGE_FAULT w";
  row.words = {"the value is stored", "memory keeps its value", ""};
  row.kind = EventKind::PageFault;
  row.mode = GuestMode::Store;
  row.takes = kAllActions;
  row.prepare = set_protected_word;
  row.watch = [](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::PageFault);
    check(agent.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  };
  row.told = [](Stage& stage, const ReceivedEvent& event) {
    told_fault(event, emulated::kProtectedPage, KVMI_PAGE_ACCESS_W);
    CHECK(event.event.regs.rax == stage.now().stored);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.guest.memory().read_u64(emulated::kProtectedPage) == event.event.regs.rax);
  };
  row.skipped = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.guest.memory().read_u64(emulated::kProtectedPage) == kMarker);
  };
  row.undone = row.skipped;
  return row;
}

EventRow execute_row() {
  EventRow row;
  row.name = "PAGE_FAULT x";
  row.words = {"the function counts its call", "the skipped instruction does not count", ""};
  row.kind = EventKind::PageFault;
  row.mode = GuestMode::Exec;
  row.takes = kAllActions;
  row.watch = [](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::PageFault);
    check(agent.set_page_access(emulated::kExecPage, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W));
  };
  row.told = [](Stage&, const ReceivedEvent& event) {
    told_fault(event, emulated::kExecPage, KVMI_PAGE_ACCESS_X);
    CHECK(event.event.regs.rip == emulated::kExecPage.value);
  };
  // Its first instruction counts the call; every further one is an event of its own, which finish() allows.
  row.allowed = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().exec_calls == stage.before().exec_calls + 1);
    CHECK(stage.now().exec_result == emulated::kExecValue);
  };
  row.skipped = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().exec_calls == stage.before().exec_calls);
    CHECK(stage.now().exec_result == emulated::kExecValue);
  };
  row.undone = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().exec_calls == stage.before().exec_calls);
    CHECK(stage.now().exec_result == 0);
  };
  return row;
}

EventRow pause_row() {
  EventRow row;
  row.name = "PAUSE";
  row.words = {"the vCPU goes on", "", ""};
  row.kind = EventKind::Pause;
  row.mode = GuestMode::Spin;
  row.takes = kGoOnOrCrash;
  row.ends = false;
  row.watch = [](AgentClient& agent) { check(agent.pause_vcpu(VcpuId{0})); };
  // A spinning vCPU counts a round at every look of its hypervisor at the socket; a paused one does not.
  const auto stands_still = [](Stage& stage) {
    const std::uint64_t rounds = read_mailbox(stage.agent, 0, offsetof(Mailbox, rounds));
    for (int i = 0; i < 50; ++i) CHECK(read_mailbox(stage.agent, 0, offsetof(Mailbox, rounds)) == rounds);
  };
  row.told = [stands_still](Stage& stage, const ReceivedEvent&) { stands_still(stage); };
  row.allowed = [](Stage& stage, const ReceivedEvent&) { stage.guest.wait_rounds(2); };
  row.skipped = nullptr;  // not taken
  row.undone = [](Stage&, const ReceivedEvent&) {};
  return row;
}

std::vector<EventRow> make_rows() {
  constexpr std::uint64_t kWp = 0x10000, kAm = 0x40000, kPge = 0x80, kTsd = 0x4;
  std::vector<EventRow> rows{
      cr_row({0, GuestMode::Cr0, &Mailbox::cr0, kWp, kAm}),
      cr3_row(),
      cr_row({4, GuestMode::Cr4, &Mailbox::cr4, kPge, kTsd}),
      msr_row(),
      breakpoint_row(),
      hypercall_row(),
      read_row(),
      write_row(),
      execute_row(),
      pause_row(),
  };
  add_processor_rows(rows);
  add_trap_rows(rows);
  return rows;
}

}  // namespace

void settle_in(Stage& stage, GuestMode mode) {
  stage.guest.do_times(mode, 1);
  stage.guest.set_mode(GuestMode::Idle);
  stage.guest.wait_rounds(2);
}

const std::vector<EventRow>& event_rows() {
  static const std::vector<EventRow> rows = make_rows();
  return rows;
}

std::vector<EventRow> rows_of(EventSet offered) {
  std::vector<EventRow> rows;
  for (const auto& row : event_rows())
    if (offered.has(row.kind)) rows.push_back(row);
  return rows;
}

}  // namespace kvmid::test
