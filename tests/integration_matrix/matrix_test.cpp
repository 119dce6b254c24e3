// SPDX-License-Identifier: GPL-2.0-or-later
// Each event that kvmi-emu offers x each action it takes x who decides: one agent, two that agree or do not, one that
// lets its deadline pass. KVMID_MATRIX_TABLE names a file for what was measured (docs/matrix.md).
#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>

#include "tests/integration_matrix/report.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

std::vector<Cell> cells_of(const EventRow& row) {
  std::vector<Cell> cells;
  for (const Action first : kActions) {
    if (row.takes.has(first)) {
      cells.push_back({Deciders::One, first});
      for (const Action second : kActions)
        if (row.takes.has(second)) cells.push_back({Deciders::Two, first, second});
    }
    cells.push_back({Deciders::Silent, first});
  }
  if (row.has_value) {
    cells.push_back({Deciders::One, Action::Allow, Action::Allow, true});
    cells.push_back({Deciders::Two, Action::Allow, Action::Allow, true});
    if (row.takes.has(Action::Skip)) cells.push_back({Deciders::Two, Action::Allow, Action::Skip, true});
  }
  return cells;
}

std::string name_of_cell(const EventRow& row, const Cell& cell) {
  std::string text = row.name;
  if (cell.deciders == Deciders::Silent) text += ", silent, default";
  text += " " + std::string(name_of(cell.first));
  if (cell.value) text += " with a value";
  if (cell.deciders == Deciders::Two) text += " + " + std::string(name_of(cell.second));
  return text;
}

}  // namespace

TEST_CASE("each event, each action, each way to decide", "[matrix]") {
  EventDaemon daemon;
  EventSet offered;
  {
    Stage stage(daemon);
    offered = check(stage.agent.get_version()).events;
  }
  const auto rows = rows_of(offered);
  std::set<EventKind> in_table;
  Report report;
  for (const auto& row : rows) {
    in_table.insert(row.kind);
    for (const auto& cell : cells_of(row)) {
      INFO(name_of_cell(row, cell));
      try {
        report.add(row, cell, play(row, cell, daemon));
      } catch (const TestError& error) {
        FAIL_CHECK(error.what());
      }
    }
  }
  for (unsigned kind = 0; kind < kEventCount; ++kind) {
    INFO("no row for " << name_of(static_cast<EventKind>(kind)));
    CHECK(offered.has(static_cast<EventKind>(kind)) == (in_table.count(static_cast<EventKind>(kind)) == 1));
  }

  const std::string table = report.text(rows);
  CHECK(table.find('?') == std::string::npos);
  std::cout << table;
  if (const char* file = std::getenv("KVMID_MATRIX_TABLE")) {
    std::ofstream out(file);
    out << table;
    REQUIRE(out.flush());
  }
}
