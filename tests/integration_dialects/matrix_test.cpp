// SPDX-License-Identifier: GPL-2.0-or-later
// Each dialect of a hypervisor x each dialect of an agent x each event and action that both have. The agent of an older
// dialect is a tool that kvmid dials; beside it an agent of KVMI 2 votes ALLOW, so each cell has two that share the guest.
// KVMID_DIALECT_TABLE names a file for what passed (docs/dialects.md).
#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>

#include "tests/integration_dialects/dialect_play.h"

using namespace kvmid;
using namespace kvmid::test;
using kvmi1::DialectId;

namespace {

constexpr std::array<Speaks, 5> kDialects{Speaks{}, DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017};

std::string word_of(Action action, bool value) {
  if (value) return "value";
  std::string word(name_of(action));
  return word;
}

/// What passed, for each agent's dialect: by event and hypervisor's dialect.
using Passed = std::map<std::string, std::map<std::string, std::map<std::string, std::string>>>;
Passed& passed() {
  static Passed all;
  return all;
}
std::vector<std::string>& event_names() {
  static std::vector<std::string> names;
  return names;
}

void note(Speaks agent, const std::string& event, Speaks hypervisor, const std::string& word) {
  if (std::find(event_names().begin(), event_names().end(), event) == event_names().end())
    event_names().push_back(event);
  std::string& cell = passed()[name_of_dialect(agent)][event][name_of_dialect(hypervisor)];
  cell += (cell.empty() ? "" : ", ") + word;
}

/// TRAP and ACCESS are events of KVMI 2's own kind; UNHOOK and PAUSE are not answered by everybody.
bool is_shared(const EventRow& row) {
  return row.voted && row.kind != EventKind::Trap && row.kind != EventKind::Access && row.kind != EventKind::Pause;
}

void play_all(Speaks hypervisor, Speaks agent, EventDaemon& daemon, ToolDaemon* tool) {
  for (const EventRow& general : event_rows()) {
    if (!is_shared(general)) continue;
    const EventRow row = row_of(general, hypervisor);
    const ActionSet answers = agent ? answers_of(row, *agent) : row.takes;
    std::vector<std::pair<Action, bool>> cells;
    for (const Action action : kActions)
      if (answers.has(action) && (action != Action::Crash || crashes(hypervisor))) cells.emplace_back(action, false);
    const bool value = agent ? gives_value(row, *agent) : row.has_value && row.takes.bits != 0;
    if (value) cells.emplace_back(Action::Allow, true);
    for (const auto& [action, with_value] : cells) {
      INFO("hypervisor " << name_of_dialect(hypervisor) << ", agent " << name_of_dialect(agent) << ", " << row.name << ", "
                         << word_of(action, with_value));
      try {
        if (tool != nullptr) play_with_tool(row, action, with_value, *tool);
        else CHECK(play(row, Cell{Deciders::One, action, Action::Allow, with_value}, daemon) == action);
        note(agent, row.name, hypervisor, word_of(action, with_value));
      } catch (const std::exception& error) {
        FAIL_CHECK(error.what());
      }
    }
  }
}

std::string table() {
  std::string out;
  for (const Speaks agent : kDialects) {
    out += (out.empty() ? "" : "\n") + ("An agent that speaks " + name_of_dialect(agent)) + ", by what its guest's hypervisor speaks:\n\n| event |";
    std::string rule = "|---|";
    for (const Speaks hypervisor : kDialects) {
      out += " " + name_of_dialect(hypervisor) + " |";
      rule += "---|";
    }
    out += "\n" + rule + "\n";
    for (const std::string& event : event_names()) {
      out += "| " + event + " |";
      for (const Speaks hypervisor : kDialects) {
        const std::string& cell = passed()[name_of_dialect(agent)][event][name_of_dialect(hypervisor)];
        out += " " + (cell.empty() ? "-" : cell) + " |";
      }
      out += "\n";
    }
  }
  return out;
}

}  // namespace

TEST_CASE("each dialect of a hypervisor with agents of KVMI 2", "[matrix]") {
  for (const Speaks hypervisor : kDialects) {
    EventDaemon daemon = daemon_for(hypervisor);
    play_all(hypervisor, {}, daemon, nullptr);
  }
}

TEST_CASE("each dialect of a hypervisor with tools of each older dialect", "[matrix]") {
  for (const DialectId tool : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    for (const Speaks hypervisor : kDialects) {
      ToolDaemon daemon(tool, hypervisor);
      play_all(hypervisor, tool, daemon.events(), &daemon);
    }
  }
}

TEST_CASE("what passed is printed", "[matrix]") {
  const std::string text = table();
  std::cout << text;
  if (const char* file = std::getenv("KVMID_DIALECT_TABLE")) std::ofstream(file) << text;
  CHECK(passed().size() == kDialects.size());
}
