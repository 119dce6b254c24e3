// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the matrix measured, as the tables of docs/matrix.md.
///
/// Shapes:   a result for each cell that was played; a cell without one shows as "?".
/// Threads:  a plain value.

#include <map>
#include <string>
#include <tuple>

#include "tests/integration_events/voting.h"

namespace kvmid::test {

class Report {
 public:
  void add(const EventRow& row, const Cell& cell, Action merged);
  /// Markdown, ready to stand between the markers.
  [[nodiscard]] std::string text(const std::vector<EventRow>& rows) const;

 private:
  using Key = std::tuple<std::string, Deciders, Action, Action, bool>;
  [[nodiscard]] std::string result(const EventRow& row, const Cell& cell) const;
  std::map<Key, Action> results_;
};

}  // namespace kvmid::test
