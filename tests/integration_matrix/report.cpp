// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_matrix/report.h"

#include <cctype>

namespace kvmid::test {
namespace {

std::string upper(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

std::string line(const std::vector<std::string>& cells) {
  std::string out = "|";
  for (const auto& cell : cells) out += " " + (cell.empty() ? "-" : cell) + " |";
  return out + "\n";
}

std::string head(const std::vector<std::string>& cells) {
  std::string out = line(cells) + "|";
  for (std::size_t i = 0; i < cells.size(); ++i) out += "---|";
  return out + "\n";
}

std::string with_actions(const std::string& first, std::string_view prefix, std::string (*text)(Action)) {
  std::vector<std::string> cells{first};
  if (!prefix.empty()) cells.emplace_back(prefix);
  for (const Action action : kActions) cells.push_back(text(action));
  return head(cells);
}

}  // namespace

void Report::add(const EventRow& row, const Cell& cell, Action merged) {
  results_[{row.name, cell.deciders, cell.first, cell.second, cell.value}] = merged;
}

std::string Report::result(const EventRow& row, const Cell& cell) const {
  const auto found = results_.find({row.name, cell.deciders, cell.first, cell.second, cell.value});
  return found == results_.end() ? "?" : upper(name_of(found->second));
}

std::string Report::text(const std::vector<EventRow>& rows) const {
  std::string out = "What the guest shows after each result:\n\n" +
                    head({"event", "ALLOW", "ALLOW with a value", "SKIP", "RETRY", "CRASH"});
  for (const auto& row : rows) {
    out += line({row.name, row.words.allowed, row.has_value ? row.words.replaced : "",
                 row.takes.has(Action::Skip) ? row.words.skipped : "",
                 row.takes.has(Action::Retry) ? "nothing yet: the event comes again" : "",
                 row.takes.has(Action::Crash) ? "nothing any more: the guest has ended" : ""});
  }

  out += "\nWho votes what, and what becomes of it:\n\n" +
         with_actions("event", "deciders", [](Action action) { return upper(name_of(action)); });
  for (const auto& row : rows) {
    const auto add_line = [&](const std::string& who, Deciders deciders, bool every) {
      std::vector<std::string> cells{row.name, who};
      for (const Action action : kActions) {
        const Cell cell{deciders, action, deciders == Deciders::Two ? action : Action::Allow};
        cells.push_back(every || row.takes.has(action) ? result(row, cell) : "");
      }
      out += line(cells);
    };
    add_line("one", Deciders::One, false);
    add_line("two that agree", Deciders::Two, false);
    add_line("one, silent, with that default", Deciders::Silent, true);
  }

  std::vector<std::string> titles{"event"};
  for (const Action first : kActions)
    for (const Action second : kActions)
      if (first < second) titles.push_back(upper(name_of(first)) + " + " + upper(name_of(second)));
  titles.insert(titles.end(), {"value", "value + ALLOW", "value + SKIP"});
  out += "\nTwo deciders that do not agree, whoever is first; and one that gives a value:\n\n" + head(titles);
  for (const auto& row : rows) {
    if (!row.voted) continue;
    std::vector<std::string> cells{row.name};
    for (const Action first : kActions) {
      for (const Action second : kActions) {
        if (first >= second) continue;
        if (!row.takes.has(first) || !row.takes.has(second)) {
          cells.emplace_back();
          continue;
        }
        const auto one = result(row, {Deciders::Two, first, second});
        const auto other = result(row, {Deciders::Two, second, first});
        cells.push_back(one == other ? one : one + " or " + other);
      }
    }
    const auto value = [&](const Cell& cell, const char* kept) {
      if (!row.has_value || !row.takes.has(cell.second)) return std::string();
      const auto text = result(row, cell);
      return text == "ALLOW" ? text + kept : text;
    };
    cells.push_back(value({Deciders::One, Action::Allow, Action::Allow, true}, " with it"));
    cells.push_back(value({Deciders::Two, Action::Allow, Action::Allow, true}, " with it"));
    cells.push_back(value({Deciders::Two, Action::Allow, Action::Skip, true}, " with it"));
    out += line(cells);
  }
  return out;
}

}  // namespace kvmid::test
