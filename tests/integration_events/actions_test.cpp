// SPDX-License-Identifier: GPL-2.0-or-later
// What holds for every event beside the votes (tests/integration_matrix): the table is complete, actions that an event
// does not take are refused, and events come to those who asked and to nobody else.
#include <catch2/catch.hpp>
#include <set>

#include "tests/integration_events/voting.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

EventSet offered_by(EventDaemon& daemon) {
  Stage stage(daemon);
  return check(stage.agent.get_version()).events;
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
  if (row.ends) stage.finish(row.mode);
  row.allowed(stage, event);
}

/// Why the cell cannot be checked, or nothing.
std::string missing_in(const EventRow& row, Action action) {
  if (!row.voted) return row.run ? "" : "what happens";
  if (!row.watch || !row.told) return "how to provoke it";
  if (!row.takes.has(action) || action == Action::Allow) return row.allowed ? "" : "what ALLOW does";
  if (action == Action::Skip) return row.skipped ? "" : "what SKIP does";
  return row.undone && row.allowed ? "" : "what RETRY or CRASH leaves undone";
}

}  // namespace

TEST_CASE("each event that the hypervisor offers is in the table, and each of its actions has a check", "[events]") {
  EventDaemon daemon;
  const EventSet offered = offered_by(daemon);
  std::set<EventKind> in_table;
  for (const auto& row : event_rows()) {
    in_table.insert(row.kind);
    for (const Action action : kActions) {
      INFO(row.name << " x " << name_of(action));
      CHECK(missing_in(row, action).empty());
    }
    if (row.has_value) CHECK((row.value && row.replaced));
    INFO(row.name);
    CHECK(row.has_value == (row.kind == EventKind::Cr || row.kind == EventKind::Msr ||
                            row.kind == EventKind::Xsetbv || row.kind == EventKind::Access));
  }
  for (unsigned kind = 0; kind < kEventCount; ++kind) {
    if (!offered.has(static_cast<EventKind>(kind))) continue;
    INFO(name_of(static_cast<EventKind>(kind)));
    CHECK(in_table.count(static_cast<EventKind>(kind)) == 1);
  }
}

TEST_CASE("an action that the event does not take is refused", "[events]") {
  EventDaemon daemon;
  for (const auto& row : rows_of(offered_by(daemon))) {
    if (!row.voted) continue;
    for (const Action action : kActions) {
      if (row.takes.has(action)) continue;
      INFO(row.name << " x " << name_of(action));
      Stage stage(daemon);
      check_refused(row, stage, action);
    }
  }
}

TEST_CASE("an event that nobody asked for does not come", "[events]") {
  EventDaemon daemon;
  for (const auto& row : rows_of(offered_by(daemon))) {
    if (!row.voted || row.kind == EventKind::Pause) continue;
    INFO(row.name);
    Stage stage(daemon);
    stage.guest.do_times(row.mode, 3);
    stage.guest.set_mode(GuestMode::Idle);
    CHECK_FALSE(check(stage.agent.next_message(Millis{0})));
  }
}

TEST_CASE("an event comes each time, and no more once it is given back", "[events]") {
  EventDaemon daemon;
  for (const auto& row : rows_of(offered_by(daemon))) {
    if (!row.voted || row.kind == EventKind::Pause) continue;
    INFO(row.name);
    Stage stage(daemon);
    begin(row, stage);
    stage.agent.close();  // all that it wished goes with it, and its vote is its default
    AgentClient second = attach(daemon.daemon().agent_socket(), stage.guest.uuid(), "second");
    stage.guest.do_times(row.mode, 3);
    CHECK_FALSE(check(second.next_message(Millis{0})));
  }
}
