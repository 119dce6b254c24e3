// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/page_access.h"

namespace kvmid::x86 {

namespace {
// Indexed by the bits: R is 1, W is 2, X is 4.
constexpr std::array<std::string_view, 8> kTexts = {"---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx"};
}  // namespace

std::string_view text_of(PageAccessError error) {
  switch (error) {
    case PageAccessError::UnknownBits:
      return "page rights have only the bits read, write and execute";
    case PageAccessError::WriteWithoutRead:
      return "a page cannot be writable and not readable";
    case PageAccessError::WriteExecuteWithoutRead:
      return "a page cannot be writable and executable and not readable";
    case PageAccessError::ExecuteOnlyUnsupported:
      return "a page cannot be executable and not readable on this processor";
  }
  return "unknown error";
}

std::string_view rights_text(PageRights rights) {
  return rights < kTexts.size() ? kTexts[rights] : std::string_view{"???"};
}

std::optional<PageRights> rights_from_text(std::string_view text) {
  for (std::size_t i = 0; i < kTexts.size(); ++i) {
    if (kTexts[i] == text) return static_cast<PageRights>(i);
  }
  return std::nullopt;
}

}  // namespace kvmid::x86
