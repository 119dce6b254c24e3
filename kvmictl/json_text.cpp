// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/json_text.h"

#include <algorithm>

#include "kvmictl/table.h"

namespace kvmid::ctl {
namespace {

std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string field(const Json& object, std::string_view name) {
  const Json& found = child(object, name);
  if (found.is_null()) return "-";
  if (found.is_boolean()) return found.get<bool>() ? "yes" : "no";
  return text_of(found);
}

const Json& child(const Json& object, std::string_view name) {
  static const Json kNothing;
  if (!object.is_object()) return kNothing;
  const auto found = object.find(name);
  return found == object.end() ? kNothing : *found;
}

std::uint64_t number(const Json& object, std::string_view name) {
  const Json& found = child(object, name);
  if (found.is_number_unsigned()) return found.get<std::uint64_t>();
  // A literal in a test is signed, and a negative number is no count.
  if (found.is_number_integer())
    return static_cast<std::uint64_t>(std::max<std::int64_t>(0, found.get<std::int64_t>()));
  return 0;
}

bool is_true(const Json& object, std::string_view name) {
  const Json& found = child(object, name);
  return found.is_boolean() && found.get<bool>();
}

std::string joined(const Json& array, std::string_view separator) {
  std::string out;
  if (!array.is_array()) return "-";
  for (const auto& item : array) {
    if (!out.empty()) out += separator;
    out += text_of(item);
  }
  return out.empty() ? "-" : out;
}

std::string labelled(std::string_view label, const std::string& value, std::size_t width) {
  constexpr std::size_t kValuesAt = 14;
  std::string out(label);
  out.resize(std::max(kValuesAt, out.size() + 1), ' ');
  return wrapped(out, printable(value), width, kValuesAt);
}

std::string counters_text(const Json& counters, std::string_view indent) {
  std::string out;
  if (!counters.is_object()) return out;
  for (const auto& [name, value] : counters.items()) {
    out += std::string(indent) + printable(name) + " " + printable(text_of(value)) + "\n";
  }
  return out;
}

}  // namespace kvmid::ctl
