// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C interface: filters as text.

#include <algorithm>

#include "client/c_support.h"
#include "client/filter.h"

using namespace kvmid;          // NOLINT(google-build-using-namespace): this file is the other side of one interface
using namespace kvmid::client;  // NOLINT(google-build-using-namespace)

namespace {

bool is_event(std::uint8_t event) { return event < kEventCount || event == KVMID_ANY_EVENT; }

std::optional<EventKind> event_of(std::uint8_t event) {
  return event < kEventCount ? std::optional(static_cast<EventKind>(event)) : std::nullopt;
}

}  // namespace

extern "C" {

int kvmid_parse_filter(const char* text, std::uint8_t event, kvmi_filter_term* terms, std::size_t max,
                       std::size_t* column) {
  return guarded([&] {
    store(column, std::size_t{0});
    if (text == nullptr) return bad("the text is NULL");
    if (!is_event(event)) return bad("there is no such event");
    const auto parsed = parse_filter(text, event_of(event));
    if (!parsed) {
      const FilterTextError& error = parsed.error();
      store(column, error.column);
      last_error = "column " + std::to_string(error.column) + ": " + error.text;
      return -KVMI_EINVAL;
    }
    if (terms != nullptr) std::copy_n(parsed->begin(), std::min(max, parsed->size()), terms);
    return count(parsed->size());
  });
}

int kvmid_format_filter(const kvmi_filter_term* terms, std::size_t n, std::uint8_t event, char* text,
                        std::size_t max) {
  return guarded([&] {
    if (terms == nullptr && n != 0) return bad("the terms are NULL");
    if (!is_event(event)) return bad("there is no such event");
    const std::string all = format_filter(items(terms, n), event_of(event));
    if (text != nullptr && max != 0) {
      const std::size_t fit = std::min(max - 1, all.size());
      std::copy_n(all.begin(), fit, text);
      text[fit] = '\0';
    }
    return count(all.size());
  });
}

}  // extern "C"
