// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Rights to a page of guest physical memory: which combinations exist, and how they combine.
///
/// Purpose:  one place for the rules of SET_PAGE_ACCESS.
/// Shapes:   rights are KVMI_PAGE_ACCESS_R, _W and _X in a byte.
/// Errors:   PageAccessError, one sentence each.
/// Threads:  pure functions.
/// Source:   protocol/PROTOCOL.md; Intel SDM volume 3, section 29.3.3.1 (EPT misconfigurations).

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "protocol/kvmi.h"

namespace kvmid::x86 {

using PageRights = std::uint8_t;
inline constexpr PageRights kRightsNone = 0;
inline constexpr PageRights kRightsAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

/// Why rights are refused.
enum class PageAccessError : std::uint8_t {
  UnknownBits,              ///< a bit other than R, W and X
  WriteWithoutRead,         ///< -w- exists on no processor
  WriteExecuteWithoutRead,  ///< -wx exists on no processor
  ExecuteOnlyUnsupported,   ///< --x, and this processor has no execute-only pages
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(PageAccessError error);

/// Nothing where a page can have these rights, else the reason. `execute_only`: the processor has execute-only pages.
[[nodiscard]] constexpr std::optional<PageAccessError> refuse_page_rights(unsigned rights, bool execute_only) {
  if ((rights & ~unsigned{kRightsAll}) != 0) return PageAccessError::UnknownBits;
  if ((rights & KVMI_PAGE_ACCESS_R) != 0) return std::nullopt;
  if (rights == KVMI_PAGE_ACCESS_W) return PageAccessError::WriteWithoutRead;
  if (rights == (KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X)) return PageAccessError::WriteExecuteWithoutRead;
  if (rights == KVMI_PAGE_ACCESS_X && !execute_only) return PageAccessError::ExecuteOnlyUnsupported;
  return std::nullopt;
}

/// Rights that two views (or a view and a memory slot) leave together. Rights that exist stay so: the set of rights
/// that refuse_page_rights() lets pass is closed under this.
[[nodiscard]] constexpr PageRights combine_rights(PageRights a, PageRights b) { return a & b; }

/// Does a page with `rights` stop an access that needs `wanted` (one or more KVMI_PAGE_ACCESS_*)?
[[nodiscard]] constexpr bool forbids(PageRights rights, PageRights wanted) { return (wanted & ~rights) != 0; }

/// "rwx", "r--" and so on; "???" for unknown bits.
[[nodiscard]] std::string_view rights_text(PageRights rights);
/// The opposite of rights_text(): exactly three characters.
[[nodiscard]] std::optional<PageRights> rights_from_text(std::string_view text);

}  // namespace kvmid::x86
