// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The table of events and actions: what each answer must have done to the guest.
///
/// Purpose:  a cell that nobody wrote is a failing test, not a gap that nobody sees.
/// Shapes:   one row for each thing that can be watched; in it one check for each action, and one for a replaced value.

#include <array>
#include <functional>
#include <initializer_list>
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
  bool voted = true;       ///< agents decide it; false: kvmid answers it itself
  bool ends = true;        ///< with the event the guest has done its thing; false: it interrupts something else
  std::vector<std::string> arguments{};  ///< of kvmi-emu

  /// What the guest shows afterwards, for people.
  struct Words {
    std::string allowed, skipped, replaced;
  };
  Words words;

  /// Prepares the guest, once.
  std::function<void(Stage&)> prepare;
  /// Asks for the event, for one agent.
  std::function<void(AgentClient&)> watch;
  /// Lets it begin, once every agent has asked for it.
  std::function<void(Stage&)> start;
  bool trap_access = false;  ///< the events before it are allowed with TRAP_ACCESS
  /// Is this the one? Events before it are allowed. Absent: the first one is.
  std::function<bool(const client::ReceivedEvent&)> is_it;
  /// What the event must say.
  std::function<void(Stage&, const client::ReceivedEvent&)> told;
  /// What the guest must look like once it got through, for ALLOW and SKIP.
  using After = std::function<void(Stage&, const client::ReceivedEvent&)>;
  After allowed;
  After skipped;
  /// The guest did not do it yet: for RETRY (between the two events) and for CRASH (for ever).
  After undone;
  /// With has_value: the value to give, and what the guest must look like.
  std::function<ReplacedValue(const client::ReceivedEvent&)> value;
  After replaced;
  /// With !voted: lets it happen and looks at everything.
  std::function<void(Stage&)> run;
};

const std::vector<EventRow>& event_rows();
/// The rows of the events that this hypervisor offers.
std::vector<EventRow> rows_of(EventSet offered);

// Parts of the table (event_table.cpp, processor_rows.cpp, trap_rows.cpp).
[[nodiscard]] constexpr ActionSet actions(std::initializer_list<Action> list) {
  ActionSet set;
  for (const Action action : list)
    set.bits = static_cast<std::uint8_t>(set.bits | KVMI_ACTION_BIT(static_cast<unsigned>(action)));
  return set;
}
inline constexpr std::array kActions{Action::Allow, Action::Retry, Action::Skip, Action::Crash};
inline constexpr ActionSet kAllActions = actions({Action::Allow, Action::Retry, Action::Skip, Action::Crash});
inline constexpr ActionSet kGoOnOrCrash = actions({Action::Allow, Action::Crash});
/// Lets the guest do that once, so that its mailbox says what is in effect, and nothing any more.
void settle_in(Stage& stage, GuestMode mode);
void add_processor_rows(std::vector<EventRow>& rows);
void add_trap_rows(std::vector<EventRow>& rows);

}  // namespace kvmid::test
