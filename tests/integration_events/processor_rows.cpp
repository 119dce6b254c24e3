// SPDX-License-Identifier: GPL-2.0-or-later
// The part of the table about XSETBV, descriptor tables and CPUID; and UNHOOK, which no agent decides.
#include <catch2/catch.hpp>
#include <csignal>

#include "tests/integration_events/event_table.h"

namespace kvmid::test {
namespace {

using client::ReceivedEvent;

EventRow xsetbv_row() {
  EventRow row;
  row.name = "XSETBV";
  row.words = {"XCR0 has the new value", "XCR0 keeps its value", "XCR0 has the agent's value"};
  row.kind = EventKind::Xsetbv;
  row.mode = GuestMode::Xsetbv;
  row.takes = kAllActions;
  row.has_value = true;
  row.prepare = [](Stage& stage) { settle_in(stage, GuestMode::Xsetbv); };
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Xsetbv); };
  row.told = [](Stage& stage, const ReceivedEvent& event) {
    const auto& xsetbv = std::get<XsetbvData>(event.event.data);
    CHECK(xsetbv.xcr == 0);
    CHECK(xsetbv.old_value == stage.before().xcr0);
    CHECK((xsetbv.old_value ^ xsetbv.new_value) == 2);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().xcr0 == std::get<XsetbvData>(event.event.data).new_value);
  };
  row.skipped = [](Stage& stage, const ReceivedEvent& event) {
    CHECK(stage.now().xcr0 == std::get<XsetbvData>(event.event.data).old_value);
  };
  row.undone = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().xcr0 == stage.before().xcr0); };
  // There are only the two values that the guest writes in turn, so the agent gives the one that it has.
  row.value = [](const ReceivedEvent& event) { return NewValue{std::get<XsetbvData>(event.event.data).old_value}; };
  row.replaced = row.skipped;
  return row;
}

struct DescriptorCase {
  std::string table;
  std::uint8_t number;
  GuestMode mode;
  std::uint64_t Mailbox::*seen;  ///< what the guest's own read gave
};

/// The guest writes the register and then reads it; the row is about one of the two.
EventRow descriptor_row(const DescriptorCase& c, bool write) {
  EventRow row;
  row.name = "DESCRIPTOR " + c.table + (write ? " w" : " r");
  row.words = write ? EventRow::Words{"the register is loaded", "the register keeps its value", {}}
                    : EventRow::Words{"the register is stored", "nothing is stored", {}};
  row.kind = EventKind::Descriptor;
  row.mode = c.mode;
  row.takes = kAllActions;
  row.prepare = [c](Stage& stage) { settle_in(stage, c.mode); };
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Descriptor); };
  row.is_it = [write](const ReceivedEvent& event) {
    return std::get<DescriptorData>(event.event.data).write == write;
  };
  row.told = [c](Stage&, const ReceivedEvent& event) {
    CHECK(std::get<DescriptorData>(event.event.data).descriptor == c.number);
  };
  row.allowed = [c](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().*c.seen != stage.before().*c.seen);
    if (c.number == KVMI_DESC_GDTR) CHECK(stage.now().gdtr_base == KVMID_GUEST_GDT_GPA);
    if (c.number == KVMI_DESC_IDTR) CHECK(stage.now().idtr_base == KVMID_GUEST_IDT_GPA);
  };
  row.undone = [c](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().*c.seen == stage.before().*c.seen); };
  if (write) row.skipped = row.undone;
  else row.skipped = [c](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().*c.seen == 0); };
  return row;
}

constexpr std::uint32_t kFunction = 0, kIndex = 7;  // of CPUID

EventRow cpuid_row() {
  EventRow row;
  row.name = "CPUID";
  row.words = {"the leaf of this processor", "the registers as they were", {}};
  row.kind = EventKind::Cpuid;
  row.mode = GuestMode::Cpuid;
  row.takes = kAllActions;
  row.prepare = [](Stage& stage) {
    stage.guest.set_field(offsetof(Mailbox, arg_cpuid_function), kFunction);
    stage.guest.set_field(offsetof(Mailbox, arg_cpuid_index), kIndex);
    const std::array<std::uint64_t, 4> nothing{};
    stage.guest.memory().write(emulated::mailbox_field(VcpuId{0}, offsetof(Mailbox, cpuid)), nothing.data(),
                               sizeof nothing);
  };
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Cpuid); };
  row.told = [](Stage&, const ReceivedEvent& event) {
    CHECK(std::get<CpuidData>(event.event.data).function == kFunction);
    CHECK(std::get<CpuidData>(event.event.data).index == kIndex);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent&) {
    const auto leaf = check(stage.agent.get_cpuid(VcpuId{0}, kFunction, kIndex));
    CHECK(leaf.ebx != 0);
    CHECK(stage.now().cpuid == std::array<std::uint64_t, 4>{leaf.eax, leaf.ebx, leaf.ecx, leaf.edx});
  };
  row.skipped = [](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().cpuid == std::array<std::uint64_t, 4>{kFunction, 0, kIndex, 0});
  };
  row.undone = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().cpuid == std::array<std::uint64_t, 4>{}); };
  return row;
}

/// The guest is let go and comes back, whatever its agents would vote; they are told, and what they wish holds again.
void run_unhook(Stage& stage) {
  for (AgentClient* agent : stage.agents()) Stage::subscribe(*agent, EventKind::Hypercall);
  stage.guest.process().signal(SIGUSR2);
  for (AgentClient* agent : stage.agents()) {
    const auto gone = check(agent->wait_guest(kBound));
    REQUIRE(gone);
    const auto* off = std::get_if<client::GuestGone>(&*gone);
    REQUIRE(off != nullptr);
    CHECK(off->uuid == stage.guest.uuid());
    CHECK(off->reason == OffReason::Suspend);
  }
  for (AgentClient* agent : stage.agents()) {
    const auto back = check(agent->wait_guest(kBound));
    REQUIRE(back);
    CHECK(std::holds_alternative<client::GuestEntry>(*back));
  }
  stage.guest.wait_rounds(2);
  CHECK(stage.guest.process().running());
  stage.guest.set_mode(GuestMode::Vmcall);
  for (AgentClient* agent : stage.agents()) {
    const auto event = stage.next_event(*agent);
    CHECK(event.event.kind() == EventKind::Hypercall);
  }
}

EventRow unhook_row() {
  EventRow row;
  row.name = "UNHOOK";
  row.words = {"the guest goes, its agents get GUEST_OFF; it comes back", {}, {}};
  row.kind = EventKind::Unhook;
  row.takes = actions({Action::Allow});
  row.voted = false;
  row.arguments = {"--leave-ms", "20"};
  row.run = run_unhook;
  return row;
}

}  // namespace

void add_processor_rows(std::vector<EventRow>& rows) {
  rows.push_back(xsetbv_row());
  for (const auto& table : {DescriptorCase{"IDTR", KVMI_DESC_IDTR, GuestMode::Idt, &Mailbox::idtr_limit},
                            DescriptorCase{"GDTR", KVMI_DESC_GDTR, GuestMode::Gdt, &Mailbox::gdtr_limit},
                            DescriptorCase{"LDTR", KVMI_DESC_LDTR, GuestMode::Ldt, &Mailbox::ldtr},
                            DescriptorCase{"TR", KVMI_DESC_TR, GuestMode::Tr, &Mailbox::tr}}) {
    rows.push_back(descriptor_row(table, true));
    rows.push_back(descriptor_row(table, false));
  }
  rows.push_back(cpuid_row());
  rows.push_back(unhook_row());
}

}  // namespace kvmid::test
