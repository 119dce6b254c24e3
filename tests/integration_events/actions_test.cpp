// SPDX-License-Identifier: GPL-2.0-or-later
// Every event of the emulated guest, answered with every action through the real kvmid, and what the guest says of it.
#include <catch2/catch.hpp>
#include <set>

#include "tests/integration_events/event_table.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr int kExitCrashAction = 3;  // kvmi-emu --help: an agent answered CRASH

constexpr std::array kActions{Action::Allow, Action::Retry, Action::Skip, Action::Crash};

/// Watched and provoked: the event is there.
client::ReceivedEvent begin(const EventRow& row, Stage& stage) {
  row.watch(stage);
  const auto event = stage.provoke(row.mode);
  CHECK(event.event.kind() == row.kind);
  CHECK(event.event.vcpu == VcpuId{0});
  CHECK(event.event.decide);
  CHECK(event.event.mode == 8);
  CHECK(event.event.deadline_us == 60'000'000);
  CHECK(event.event.actions == row.takes);
  row.told(stage, event);
  return event;
}

/// PAUSE interrupts a vCPU that goes on counting; the others end one thing that the guest did.
void finish(const EventRow& row, Stage& stage) {
  if (row.kind != EventKind::Pause) stage.finish(row.mode);
}

void check_allow(const EventRow& row, Stage& stage) {
  const auto event = begin(row, stage);
  check(stage.agent.reply(event, Action::Allow));
  finish(row, stage);
  row.allowed(stage, event);
}

void check_value(const EventRow& row, Stage& stage) {
  const auto event = begin(row, stage);
  check(stage.agent.reply(event, Action::Allow, NewValue{row.value(event)}));
  finish(row, stage);
  row.replaced(stage, event);
}

void check_skip(const EventRow& row, Stage& stage) {
  const auto event = begin(row, stage);
  check(stage.agent.reply(event, Action::Skip));
  finish(row, stage);
  row.skipped(stage, event);
}

/// The instruction executes again, so the event comes again, until ALLOW ends it.
void check_retry(const EventRow& row, Stage& stage) {
  auto event = begin(row, stage);
  for (int i = 0; i < 3; ++i) {
    check(stage.agent.reply(event, Action::Retry));
    const auto again = stage.next_event();
    CHECK(again.seq != event.seq);
    CHECK(again.event.kind() == row.kind);
    CHECK(again.event.regs.rip == event.event.regs.rip);
    row.undone(stage, again);
    CHECK(stage.done(row.mode) == stage.done_before(row.mode));
    event = again;
  }
  check(stage.agent.reply(event, Action::Allow));
  finish(row, stage);
  row.allowed(stage, event);
}

/// The guest ends there: its process says so by its exit code, its agents are told.
void check_crash(const EventRow& row, Stage& stage) {
  const auto event = begin(row, stage);
  check(stage.agent.reply(event, Action::Crash));
  CHECK(stage.guest.process().wait_exit() == Exit{kExitCrashAction, 0});
  stage.guest.process().wait_errors("answered with CRASH");
  const auto change = check(stage.agent.wait_guest(kBound));
  REQUIRE(change);
  const auto* gone = std::get_if<client::GuestGone>(&*change);
  REQUIRE(gone != nullptr);
  CHECK(gone->uuid == stage.guest.uuid());
  CHECK(gone->reason == OffReason::LinkLost);
  row.undone(stage, event);
  if (row.kind != EventKind::Pause) CHECK(stage.done(row.mode) == stage.done_before(row.mode));
}

/// The agent is told that its reply was not taken; its default, ALLOW, counts.
void check_refused(const EventRow& row, Stage& stage, Action action) {
  const auto event = begin(row, stage);
  check(stage.agent.reply(event.seq, client::make_reply(event.event, action)));
  const auto notice = stage.next_notice();
  CHECK(notice.kind == NoticeKind::ReplyRefused);
  CHECK(notice.error == ErrorCode::Invalid);
  CHECK(notice.event_seq == event.seq);
  CHECK_FALSE(notice.text.empty());
  finish(row, stage);
  row.allowed(stage, event);
}

void check_cell(const EventRow& row, Stage& stage, Action action) {
  if (!row.takes.has(action)) return check_refused(row, stage, action);
  switch (action) {
    case Action::Allow:
      return check_allow(row, stage);
    case Action::Retry:
      return check_retry(row, stage);
    case Action::Skip:
      return check_skip(row, stage);
    case Action::Crash:
      return check_crash(row, stage);
  }
}

/// Why the cell cannot be checked, or nothing.
std::string missing_in(const EventRow& row, Action action) {
  if (!row.watch || !row.told) return "how to provoke it";
  if (!row.takes.has(action) || action == Action::Allow) return row.allowed ? "" : "what ALLOW does";
  if (action == Action::Skip) return row.skipped ? "" : "what SKIP does";
  return row.undone && row.allowed ? "" : "what RETRY or CRASH leaves undone";
}

}  // namespace

TEST_CASE("each event that the hypervisor offers is in the table, and each of its actions has a check", "[events]") {
  EventDaemon daemon;
  Stage stage(daemon);
  const auto version = check(stage.agent.get_version());
  std::set<EventKind> in_table;
  for (const auto& row : event_rows()) {
    in_table.insert(row.kind);
    for (const Action action : kActions) {
      INFO(row.name << " x " << name_of(action));
      CHECK(missing_in(row, action).empty());
    }
    if (row.has_value) CHECK((row.value && row.replaced));
    CHECK(row.has_value == (row.kind == EventKind::Cr || row.kind == EventKind::Msr));
    CHECK(version.events.has(row.kind));
  }
  for (unsigned kind = 0; kind < kEventCount; ++kind) {
    if (!version.events.has(static_cast<EventKind>(kind))) continue;
    INFO(name_of(static_cast<EventKind>(kind)));
    CHECK(in_table.count(static_cast<EventKind>(kind)) == 1);
  }
}

TEST_CASE("each event answered with each action", "[events]") {
  EventDaemon daemon;
  for (const auto& row : event_rows()) {
    for (const Action action : kActions) {
      INFO(row.name << " x " << name_of(action));
      Stage stage(daemon);
      check_cell(row, stage, action);
    }
  }
}

TEST_CASE("each event with a value, answered with another one", "[events]") {
  EventDaemon daemon;
  for (const auto& row : event_rows()) {
    if (!row.has_value) continue;
    INFO(row.name);
    Stage stage(daemon);
    check_value(row, stage);
  }
}

TEST_CASE("an event that nobody asked for does not come", "[events]") {
  EventDaemon daemon;
  for (const auto& row : event_rows()) {
    if (row.kind == EventKind::Pause) continue;
    INFO(row.name);
    Stage stage(daemon);
    stage.guest.do_times(row.mode, 3);
    stage.guest.set_mode(GuestMode::Idle);
    CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  }
}

TEST_CASE("an event comes each time, and no more once it is given back", "[events]") {
  EventDaemon daemon;
  for (const auto& row : event_rows()) {
    if (row.kind == EventKind::Pause) continue;
    INFO(row.name);
    Stage stage(daemon);
    begin(row, stage);
    stage.agent.close();  // all that it wished goes with it, and its vote is its default
    AgentClient second = attach(daemon.daemon().agent_socket(), stage.guest.uuid(), "second");
    stage.guest.do_times(row.mode, 3);
    CHECK_FALSE(check(second.next_message(Millis{0})));
  }
}
