// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The table of events and actions: what each answer must have done to the guest.
///
/// Purpose:  a cell that nobody wrote is a failing test, not a gap that nobody sees.
/// Shapes:   one row for each thing that can be watched; in it one check for each action, and one for a replaced value.

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "tests/integration_events/stage.h"

namespace kvmid::test {

struct EventRow {
  std::string name;
  EventKind kind{};
  GuestMode mode{};        ///< what provokes it
  ActionSet takes;         ///< the actions that this event must offer
  bool has_value = false;  ///< ALLOW can replace a value
  /// Asks for the event.
  std::function<void(Stage&)> watch;
  /// What the event must say.
  std::function<void(Stage&, const client::ReceivedEvent&)> told;
  /// What the guest must look like once it got through, for ALLOW and SKIP.
  using After = std::function<void(Stage&, const client::ReceivedEvent&)>;
  After allowed;
  After skipped;
  /// The guest did not do it yet: for RETRY (between the two events) and for CRASH (for ever).
  After undone;
  /// With has_value: the value to give, and what the guest must look like.
  std::function<std::uint64_t(const client::ReceivedEvent&)> value;
  After replaced;
};

const std::vector<EventRow>& event_rows();

}  // namespace kvmid::test
