// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Fields of kvmid's answers as text. A field that is missing, null or of another type is "-" or nothing, never an
/// error: kvmid may be older or newer than kvmictl.

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace kvmid::ctl {

using Json = nlohmann::json;

/// A field as text, whatever its type; "-" where it is missing or null. Not yet printable().
std::string field(const Json& object, std::string_view name);
/// A field itself; null where it is missing.
const Json& child(const Json& object, std::string_view name);
/// A field as a number; 0 where it is none.
std::uint64_t number(const Json& object, std::string_view name);
/// A field that is true.
bool is_true(const Json& object, std::string_view name);
/// The items of an array; "-" where there are none.
std::string joined(const Json& array, std::string_view separator = ",");
/// "label         value\n", printable; in several lines where `width` is not 0 and not enough.
std::string labelled(std::string_view label, const std::string& value, std::size_t width = 0);
/// One line "name value" each, behind `indent`.
std::string counters_text(const Json& counters, std::string_view indent);

}  // namespace kvmid::ctl
