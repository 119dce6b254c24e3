// SPDX-License-Identifier: GPL-2.0-or-later
// The part of the table about exceptions, single steps and the accesses of one instruction.
#include <catch2/catch.hpp>
#include <cstring>

#include "tests/integration_events/event_table.h"

namespace kvmid::test {
namespace {

using client::ReceivedEvent;

struct TrapCase {
  std::string name;
  GuestMode mode;
  std::uint8_t vector;
  std::uint8_t kind;
  std::uint8_t flags;
  ActionSet takes;
};

EventRow trap_row(const TrapCase& c) {
  EventRow row;
  row.name = "TRAP " + c.name;
  row.words = {"the guest's handler runs", "no handler; behind the instruction", {}};
  row.kind = EventKind::Trap;
  row.mode = c.mode;
  row.takes = c.takes;
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Trap); };
  row.told = [c](Stage& stage, const ReceivedEvent& event) {
    const auto& trap = std::get<TrapData>(event.event.data);
    CHECK(trap.vector == c.vector);
    CHECK(trap.kind == c.kind);
    CHECK(trap.flags == c.flags);
    CHECK(trap.error_code == 0);
    CHECK(trap.address == (c.vector == 14 ? stage.now().arg_pf_address : 0));
  };
  row.allowed = [c](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().exceptions.at(c.vector) == stage.before().exceptions.at(c.vector) + 1);
    CHECK(stage.now().last_vector == c.vector);
  };
  row.skipped = [c](Stage& stage, const ReceivedEvent&) {
    CHECK(stage.now().exceptions.at(c.vector) == stage.before().exceptions.at(c.vector));
  };
  row.undone = row.skipped;
  return row;
}

/// Every agent steps from the same instruction on: they ask for it while the vCPU is paused.
void start_stepping(Stage& stage) {
  check(stage.agent.pause_vcpu(VcpuId{0}));
  const auto pause = stage.next_event();
  REQUIRE(pause.event.kind() == EventKind::Pause);
  for (AgentClient* agent : stage.agents()) check(agent->control_singlestep(VcpuId{0}, true));
  check(stage.agent.reply(pause, Action::Allow));
}

EventRow singlestep_row() {
  EventRow row;
  row.name = "SINGLESTEP";
  row.words = {"the next instruction is executed", {}, {}};
  row.kind = EventKind::Singlestep;
  row.mode = GuestMode::Idle;
  row.takes = kGoOnOrCrash;
  row.ends = false;
  row.watch = [](AgentClient& agent) { Stage::subscribe(agent, EventKind::Singlestep); };
  row.start = start_stepping;
  row.told = [](Stage&, const ReceivedEvent& event) {
    CHECK_FALSE(std::get<SinglestepData>(event.event.data).failed);
  };
  row.allowed = [](Stage& stage, const ReceivedEvent& event) {
    const auto next = stage.next_event();
    CHECK(next.event.kind() == EventKind::Singlestep);
    CHECK(next.event.regs.rip != event.event.regs.rip);
  };
  row.undone = [](Stage&, const ReceivedEvent&) {};
  return row;
}

constexpr std::uint64_t kMarker = 0x1122'3344'5566'7788;
constexpr std::uint64_t kOther = 0x0102'0304'0506'0708;

ReplacedValue other_data() {
  NewData data;
  std::memcpy(data.data.data(), &kOther, sizeof kOther);
  return data;
}

EventRow access_row(bool write) {
  EventRow row;
  row.name = write ? "ACCESS w" : "ACCESS r";
  row.words = write ? EventRow::Words{"the value is stored", "memory keeps its value", "the agent's value is stored"}
                    : EventRow::Words{"the value is loaded", "nothing is loaded", "the agent's value is loaded"};
  row.kind = EventKind::Access;
  row.mode = write ? GuestMode::Store : GuestMode::Load;
  row.takes = kAllActions;
  row.has_value = true;
  row.prepare = [](Stage& stage) {
    stage.guest.memory().write(emulated::kProtectedPage, &kMarker, sizeof kMarker);
  };
  row.watch = [write](AgentClient& agent) {
    Stage::subscribe(agent, EventKind::Access);
    Stage::subscribe(agent, EventKind::PageFault);
    check(agent.set_page_access(emulated::kProtectedPage, 1, write ? KVMI_PAGE_ACCESS_R : 0));
  };
  row.is_it = [](const ReceivedEvent& event) { return event.event.kind() == EventKind::Access; };
  row.trap_access = true;
  row.told = [write](Stage&, const ReceivedEvent& event) {
    const auto& access = std::get<AccessData>(event.event.data);
    CHECK(access.gpa == emulated::kProtectedPage);
    CHECK(access.gva == Gva{emulated::kProtectedPage.value});
    CHECK(access.access == (write ? KVMI_PAGE_ACCESS_W : KVMI_PAGE_ACCESS_R));
    CHECK(access.size == 8);
    CHECK(access.index == 0);
    std::uint64_t data = 0;
    std::memcpy(&data, access.data.data(), sizeof data);
    CHECK(data == (write ? event.event.regs.rax : kMarker));
  };
  const auto in_memory = [](Stage& stage) { return stage.guest.memory().read_u64(emulated::kProtectedPage); };
  row.value = [](const ReceivedEvent&) { return other_data(); };
  if (write) {
    row.allowed = [in_memory](Stage& stage, const ReceivedEvent& event) {
      CHECK(in_memory(stage) == event.event.regs.rax);
    };
    row.skipped = row.undone = [in_memory](Stage& stage, const ReceivedEvent&) { CHECK(in_memory(stage) == kMarker); };
    row.replaced = [in_memory](Stage& stage, const ReceivedEvent&) { CHECK(in_memory(stage) == kOther); };
  } else {
    row.allowed = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == kMarker); };
    row.skipped = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == 0); };
    row.undone = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == stage.before().loaded); };
    row.replaced = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().loaded == kOther); };
  }
  return row;
}

}  // namespace

void add_trap_rows(std::vector<EventRow>& rows) {
  constexpr std::uint8_t kFault = KVMI_EXCEPTION_FAULT, kTrap = KVMI_EXCEPTION_TRAP, kError = KVMI_TRAP_F_ERROR_CODE;
  constexpr ActionSet kNoRetry = actions({Action::Allow, Action::Skip, Action::Crash});
  rows.push_back(trap_row({"#UD", GuestMode::Ud, 6, kFault, 0, kAllActions}));
  rows.push_back(trap_row({"#GP", GuestMode::Gp, 13, kFault, kError, kAllActions}));
  rows.push_back(trap_row({"#PF", GuestMode::Pf, 14, kFault, kError, kAllActions}));
  rows.push_back(trap_row({"#BP", GuestMode::Int3, 3, kTrap, 0, kNoRetry}));
  rows.push_back(singlestep_row());
  rows.push_back(access_row(false));
  rows.push_back(access_row(true));
}

}  // namespace kvmid::test
