// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_events/voting.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <memory>

namespace kvmid::test {
namespace {

using client::ReceivedEvent;
using client::ReceivedNotice;

constexpr int kExitCrashAction = 3;  // kvmi-emu --help: an agent answered CRASH
constexpr int kAttempts = 5;

/// The machine was so slow that an answer on its way came behind the short deadline: the cell says nothing.
struct Disturbed {};

/// The agents of a stage, what each was told, and the event that they vote on.
class Play {
 public:
  Play(const EventRow& row, const Cell& cell, EventDaemon& daemon)
      : row_(row),
        cell_(cell),
        stage_(daemon, StageOptions{.guest = cell.deciders == Deciders::Silent ? silent_guest(cell.first) : "web1",
                                    .two_agents = cell.deciders == Deciders::Two,
                                    .outcomes = true,
                                    .arguments = row.arguments}) {
    for (AgentClient* agent : stage_.agents()) {
      auto list = std::make_shared<std::vector<ReceivedNotice>>();
      agent->on_notice([list](const ReceivedNotice& notice) { list->push_back(notice); });
      notices_.push_back(std::move(list));
    }
  }

  Action run() {
    if (!row_.voted) {
      row_.run(stage_);
      return Action::Allow;
    }
    try {
      return vote();
    } catch (const TestError&) {
      if (disturbed()) throw Disturbed{};
      throw;
    }
  }

 private:
  Action vote() {
    provoke();
    if (cell_.deciders == Deciders::Silent) {
      if (row_.ends && stage_.done(row_.mode) != stage_.done_before(row_.mode)) throw Disturbed{};
      const auto expired = wait_notice(0, NoticeKind::Expired);
      CHECK(expired.action == expected_of(row_, cell_));
      CHECK(expired.error == ErrorCode::TimedOut);
    } else {
      reply_all();
    }
    const Action merged = outcome();
    CHECK(merged == expected_of(row_, cell_));
    look_at_guest(merged);
    return merged;
  }

  void provoke() {
    if (row_.prepare) row_.prepare(stage_);
    for (AgentClient* agent : stage_.agents()) row_.watch(*agent);
    if (row_.start) row_.start(stage_);
    events_.clear();
    events_.push_back(stage_.provoke(row_.mode));
    take_others();
    while (row_.is_it && !row_.is_it(events_[0])) next_round();
    if (cell_.deciders == Deciders::Silent) return;  // no time to look around
    for (const auto& event : events_) {
      CHECK(event.event.kind() == row_.kind);
      CHECK(event.event.vcpu == VcpuId{0});
      CHECK(event.event.decide);
      CHECK(event.event.mode == 8);
      CHECK(event.event.actions == row_.takes);
      row_.told(stage_, event);
    }
  }

  /// Everybody is told of the same event.
  void take_others() {
    if (!stage_.second) return;
    events_.push_back(stage_.next_event(*stage_.second));
    REQUIRE(events_[1].seq == events_[0].seq);
  }

  /// Allows the event; the one behind it.
  void next_round() {
    const auto agents = stage_.agents();
    for (std::size_t i = 0; i < agents.size(); ++i) let_lead(row_, *agents[i], events_[i]);
    events_.clear();
    events_.push_back(stage_.next_event());
    take_others();
  }

  void allow() {
    const auto agents = stage_.agents();
    for (std::size_t i = 0; i < agents.size(); ++i) check(agents[i]->reply(events_[i], Action::Allow));
  }

  void reply_all() {
    const ReplacedValue value = cell_.value ? row_.value(events_[0]) : ReplacedValue{};
    if (!stage_.second) return check(stage_.agent.reply(events_[0], cell_.first, value));
    // Nothing happens before both have said what they want.
    check(stage_.agent.reply(events_[0].seq, client::make_reply(events_[0].event, cell_.first, value)));
    synchronise(0);
    CHECK_FALSE(find_notice(0, NoticeKind::Outcome));
    row_.undone(stage_, events_[0]);
    if (row_.ends) CHECK(stage_.done(row_.mode) == stage_.done_before(row_.mode));
    check(stage_.second->reply(events_[1], cell_.second));
  }

  /// Each agent is told the same, and that it was not kvmid who decided.
  Action outcome() {
    std::optional<Action> merged;
    for (std::size_t i = 0; i < notices_.size(); ++i) {
      const auto notice = wait_notice(i, NoticeKind::Outcome);
      CHECK(notice.event == row_.kind);
      CHECK(notice.action == merged.value_or(notice.action));
      merged = notice.action;
      if (cell_.deciders == Deciders::Two && cell_.first != cell_.second) {
        const AgentClient& strict = cell_.first > cell_.second ? stage_.agent : *stage_.second;
        CHECK(notice.agent == strict.welcome().agent);
      }
    }
    return *merged;
  }

  void look_at_guest(Action merged) {
    switch (merged) {
      case Action::Allow:
        finish();
        return cell_.value ? row_.replaced(stage_, events_[0]) : row_.allowed(stage_, events_[0]);
      case Action::Skip:
        finish();
        if (!row_.skipped) return;  // not an action of this event, which has been said
        return row_.skipped(stage_, events_[0]);
      case Action::Retry:
        return look_at_retry();
      case Action::Crash:
        return look_at_crash();
    }
  }

  void finish() {
    if (row_.ends) stage_.finish(row_.mode);
    if (disturbed()) throw Disturbed{};
  }

  /// The instruction executes again, so the event comes again, until ALLOW ends it.
  void look_at_retry() {
    const auto first = events_[0];
    for (int i = 0; i < 3; ++i) {
      const auto before = events_[0];
      events_.clear();
      events_.push_back(stage_.next_event());
      take_others();
      while (row_.is_it && !row_.is_it(events_[0])) next_round();
      CHECK(events_[0].seq != before.seq);
      CHECK(events_[0].event.kind() == row_.kind);
      CHECK(events_[0].event.regs.rip == first.event.regs.rip);
      row_.undone(stage_, events_[0]);
      if (row_.ends) CHECK(stage_.done(row_.mode) == stage_.done_before(row_.mode));
      if (cell_.deciders == Deciders::Silent) break;
      const auto agents = stage_.agents();
      if (i == 2) break;
      for (std::size_t a = 0; a < agents.size(); ++a) check(agents[a]->reply(events_[a], Action::Retry));
    }
    allow();
    finish();
    row_.allowed(stage_, events_[0]);
  }

  /// The guest ends there: its process says so by its exit code, its agents are told.
  void look_at_crash() {
    CHECK(stage_.guest.process().wait_exit() == Exit{kExitCrashAction, 0});
    stage_.guest.process().wait_errors("answered with CRASH");
    for (AgentClient* agent : stage_.agents()) {
      const auto change = check(agent->wait_guest(kBound));
      REQUIRE(change);
      const auto* gone = std::get_if<client::GuestGone>(&*change);
      REQUIRE(gone != nullptr);
      CHECK(gone->uuid == stage_.guest.uuid());
      CHECK(gone->reason == OffReason::LinkLost);
    }
    row_.undone(stage_, events_[0]);
    if (row_.ends) CHECK(stage_.done(row_.mode) == stage_.done_before(row_.mode));
  }

  // ---- notices ----

  /// What kvmid had to say to this agent until now has been read.
  void synchronise(std::size_t agent) { static_cast<void>(check(stage_.agents()[agent]->call(GetVersion{}))); }

  [[nodiscard]] std::optional<ReceivedNotice> find_notice(std::size_t agent, NoticeKind kind) const {
    for (const auto& notice : *notices_[agent])
      if (notice.kind == kind && notice.event_seq == events_[agent].seq) return notice;
    return std::nullopt;
  }

  ReceivedNotice wait_notice(std::size_t agent, NoticeKind kind) {
    std::optional<ReceivedNotice> found;
    const bool came = wait_until([&] {
      synchronise(agent);
      found = find_notice(agent, kind);
      return found.has_value();
    });
    if (!came) throw TestError("a notice does not come");
    return *found;
  }

  /// Did a default other than ALLOW or RETRY stand for an event that is not the one of the cell?
  bool disturbed() {
    if (cell_.deciders != Deciders::Silent) return false;
    return std::any_of(notices_[0]->begin(), notices_[0]->end(), [&](const ReceivedNotice& notice) {
      return notice.kind == NoticeKind::Expired && notice.action >= Action::Skip &&
             (events_.empty() || notice.event_seq != events_[0].seq);
    });
  }

  const EventRow& row_;
  const Cell& cell_;
  Stage stage_;
  std::vector<std::shared_ptr<std::vector<ReceivedNotice>>> notices_;
  std::vector<ReceivedEvent> events_;  ///< the one that is voted on, as each agent got it
};

}  // namespace

Action expected_of(const EventRow& row, const Cell& cell) {
  if (!row.voted) return Action::Allow;
  if (cell.deciders == Deciders::Two) return std::max(cell.first, cell.second);
  return row.takes.has(cell.first) ? cell.first : Action::Allow;  // a default that the event does not take is ALLOW
}

Action play(const EventRow& row, const Cell& cell, EventDaemon& daemon) {
  for (int attempt = 0;; ++attempt) {
    try {
      return Play(row, cell, daemon).run();
    } catch (const Disturbed&) {
      if (attempt + 1 == kAttempts) throw TestError("answers take longer than the short deadline, again and again");
    }
  }
}

void let_lead(const EventRow& row, AgentClient& agent, const client::ReceivedEvent& event) {
  EventReply reply = client::make_reply(event.event, Action::Allow);
  reply.trap_access = row.trap_access;
  check(agent.reply(event.seq, reply));
}

client::ReceivedEvent begin(const EventRow& row, Stage& stage) {
  if (row.prepare) row.prepare(stage);
  row.watch(stage.agent);
  if (row.start) row.start(stage);
  auto event = stage.provoke(row.mode);
  while (row.is_it && !row.is_it(event)) {
    let_lead(row, stage.agent, event);
    event = stage.next_event();
  }
  CHECK(event.event.kind() == row.kind);
  CHECK(event.event.deadline_us == 60'000'000);
  CHECK(event.event.actions == row.takes);
  row.told(stage, event);
  return event;
}

}  // namespace kvmid::test
