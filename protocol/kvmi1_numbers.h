// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// Looking into a codec's table of kinds and their numbers. Included by the .cpp files of this folder only.

#include <cstdint>
#include <optional>

namespace kvmid::kvmi1 {

/// The number of the entry with this kind.
template <class Table, class Kind>
std::optional<std::uint16_t> number_in(const Table& table, Kind kind) {
  for (const auto& entry : table)
    if (entry.kind == kind) return entry.number;
  return std::nullopt;
}

/// The kind of the entry with this number.
template <class Table>
auto kind_in(const Table& table, std::uint16_t number) -> std::optional<decltype(table[0].kind)> {
  for (const auto& entry : table)
    if (entry.number == number) return entry.kind;
  return std::nullopt;
}

}  // namespace kvmid::kvmi1
