// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One cell of the matrix: an event, who answers it and how; what came of it, told by kvmid and shown by the guest.
///
/// Purpose:  the checks of a row hold for every way in which its actions come about.
/// Errors:   failed checks of Catch2, and TestError.
/// Threads:  one.

#include "tests/integration_events/event_table.h"

namespace kvmid::test {

enum class Deciders : std::uint8_t {
  One,
  Two,
  Silent,  ///< one that lets its deadline pass: `first` is its default action
};

struct Cell {
  Deciders deciders{};
  Action first{};
  Action second{};     ///< with Deciders::Two
  bool value = false;  ///< the first gives a value
};

/// What the cell must merge to, by PROTOCOL.md.
[[nodiscard]] Action expected_of(const EventRow& row, const Cell& cell);

/// Plays it on a guest of its own. Returns the action that kvmid says was taken (notice OUTCOME); that the guest did
/// the same has been checked.
Action play(const EventRow& row, const Cell& cell, EventDaemon& daemon);

/// For tests about one decider: watched and provoked; the event is there and says what it must.
client::ReceivedEvent begin(const EventRow& row, Stage& stage);
/// Allows an event that comes before the one that the row is about.
void let_lead(const EventRow& row, AgentClient& agent, const client::ReceivedEvent& event);

}  // namespace kvmid::test
