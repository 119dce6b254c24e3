// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What two looks at the same memory differ in.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvmid::ctl {

struct ChangedBytes {
  std::size_t at = 0;  ///< in the range
  std::vector<std::byte> before, after;
};
/// Neighbours that changed are one, also over gaps of up to 7 bytes that did not: a number is shown as a whole.
/// REQUIRES: both of one size.
std::vector<ChangedBytes> changed_bytes(std::span<const std::byte> before, std::span<const std::byte> after);

/// Who changed what two looks differ in, as far as it can be told.
enum class ChangedBy {
  Guest,    ///< its own store: kvmid changed nothing there
  Kvmid,    ///< kvmid changed something of those pages; the guest may have, too
  Unknown,  ///< kvmid changed something, there or elsewhere
};
[[nodiscard]] const char* name_of(ChangedBy by);

/// What one look knows of changes through kvmid.
struct ChangeMarks {
  std::uint64_t cookie = 0;
  std::optional<std::uint64_t> in_place;  ///< MappedMemory::changes_of() the range
};
[[nodiscard]] ChangedBy changed_by(const ChangeMarks& before, const ChangeMarks& after);
/// The same for people, with the cookies.
std::string cookie_words(const ChangeMarks& before, const ChangeMarks& after);

}  // namespace kvmid::ctl
