// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One cell of the matrix of dialects: an event of a guest whose hypervisor speaks one dialect, answered by a tool that
/// speaks another, beside an agent of KVMI 2 that votes ALLOW; what came of it, shown by the guest.
///
/// Purpose:  the rows of event_table.h hold whatever is spoken on either side.
/// Errors:   failed checks of Catch2, and TestError.
/// Threads:  one.

#include <optional>
#include <string>
#include <vector>

#include "protocol/kvmi1.h"
#include "tests/integration_events/voting.h"

namespace kvmid::test {

/// None: KVMI 2.
using Speaks = std::optional<kvmi1::DialectId>;
std::string name_of_dialect(Speaks dialect);

/// What of a row this hypervisor dialect has, with kvmi-emu told to speak it. No actions: it has no such event.
EventRow row_of(const EventRow& row, Speaks hypervisor);
/// What a tool of this dialect can answer to the event of a row of row_of(). None: it is not told of such events.
ActionSet answers_of(const EventRow& row, kvmi1::DialectId tool);
/// Ends of a guest that a KVMI 2 agent can cause here; rfc2017's hypervisors are asked to shut down instead.
bool crashes(Speaks hypervisor);
/// It can give a value.
bool gives_value(const EventRow& row, kvmi1::DialectId tool);

/// A kvmid whose guests are of that dialect; rfc2017 it must be told.
EventDaemon daemon_for(Speaks hypervisor);

/// A kvmid that dials a tool of that dialect for each guest, at tool_path().
class ToolDaemon {
 public:
  ToolDaemon(kvmi1::DialectId dialect, Speaks hypervisor);
  [[nodiscard]] EventDaemon& events() { return *daemon_; }
  [[nodiscard]] const std::string& tool_path() const { return path_; }
  [[nodiscard]] kvmi1::DialectId dialect() const { return dialect_; }

 private:
  kvmi1::DialectId dialect_;
  RuntimeFolder folder_;
  std::string path_;
  std::optional<EventDaemon> daemon_;
};

/// Plays it on a guest of its own. `value`: ALLOW, with the row's value.
void play_with_tool(const EventRow& row, Action action, bool value, ToolDaemon& daemon);

}  // namespace kvmid::test
