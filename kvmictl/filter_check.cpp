// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/filter_check.h"

#include <array>
#include <cstdio>
#include <limits>

#include "client/event_text.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

using client::filter_field_name;
using client::format_filter;
using client::format_filter_term;

namespace {

constexpr std::array<std::string_view, 7> kCompareNames{"eq", "ne", "lt", "gt", "range", "mask_eq", "mask_ne"};
static_assert(kCompareNames.size() == KVMI_COMPARE_MASK_NE + 1);

bool has_operand(const kvmi_filter_term& term) { return term.compare >= KVMI_COMPARE_RANGE; }

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace

std::string_view constant_term(const kvmi_filter_term& term) {
  constexpr auto kMax = std::numeric_limits<std::uint64_t>::max();
  const bool lacking = (term.value & ~term.operand) != 0;
  switch (term.compare) {
    case KVMI_COMPARE_LT: return term.value == 0 ? "never holds: nothing is below 0" : "";
    case KVMI_COMPARE_GT: return term.value == kMax ? "never holds: nothing is larger" : "";
    case KVMI_COMPARE_RANGE:
      return term.value == 0 && term.operand == kMax ? "always holds: the range is all there is" : "";
    case KVMI_COMPARE_MASK_EQ:
      if (lacking) return "never holds: the value has bits that the mask has not";
      return term.operand == 0 ? "always holds: the mask is 0" : "";
    case KVMI_COMPARE_MASK_NE:
      if (lacking) return "always holds: the value has bits that the mask has not";
      return term.operand == 0 ? "never holds: the mask is 0" : "";
    default: return "";
  }
}

std::string render_filter(const client::EventFilter& filter, std::size_t width) {
  std::string notes;
  using Align = Table::Align;
  Table table({{"TERM", Align::Right}, {"GROUP", Align::Right}, {""}, {"COMPARISON", Align::Left, 12}});
  unsigned group = 1;
  for (std::size_t i = 0; i < filter.terms.size(); ++i) {
    const kvmi_filter_term& term = filter.terms[i];
    if (term.new_group != 0) ++group;
    const char* joined = i == 0 ? "" : term.new_group != 0 ? "or" : "and";
    table.add({std::to_string(i + 1), std::to_string(group), joined, format_filter_term(term, filter.event)});
    if (const auto note = constant_term(term); !note.empty())
      notes += "note: term " + std::to_string(i + 1) + " " + std::string(note) + "\n";
  }
  return "event " + std::string(name_of(filter.event)) + ": the agent is asked when all terms of a group hold\n\n" +
         table.text(width) + (notes.empty() ? "" : "\n" + notes);
}

Json filter_json(const client::EventFilter& filter) {
  Json terms = Json::array();
  unsigned group = 1;
  for (const kvmi_filter_term& term : filter.terms) {
    if (term.new_group != 0) ++group;
    Json out{{"group", group},
             {"field", std::string(filter_field_name(term, filter.event))},
             {"compare", std::string(kCompareNames.at(term.compare))},
             {"value", client::hex(term.value)},
             {"text", format_filter_term(term, filter.event)}};
    if (has_operand(term)) out["operand"] = client::hex(term.operand);
    if (const auto note = constant_term(term); !note.empty()) out["note"] = std::string(note);
    terms.push_back(std::move(out));
  }
  return Json{{"schema", 1},
              {"ok", true},
              {"event", std::string(name_of(filter.event))},
              {"text", format_filter(filter.terms, filter.event)},
              {"terms", std::move(terms)}};
}

Json filter_json(const client::FilterTextError& error) {
  return Json{{"schema", 1}, {"ok", false}, {"column", error.column}, {"error", error.text}};
}

int filter_check(const Arguments& arguments) {
  const auto filter = client::parse_event_filter(arguments.filter);
  if (arguments.json) {
    const Json out = filter ? filter_json(*filter) : filter_json(filter.error());
    print(out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else if (filter) {
    print(render_filter(*filter, terminal_width()));
  } else {
    std::fprintf(stderr, "kvmictl: %s\n", describe(filter.error(), arguments.filter).c_str());
  }
  return filter ? kOk : kFailed;
}

}  // namespace kvmid::ctl
