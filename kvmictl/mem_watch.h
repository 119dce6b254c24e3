// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What two looks at the same memory differ in.

#include <cstddef>
#include <cstdint>
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

/// What the cookies of two looks say of a change between them.
std::string cookie_words(std::uint64_t before, std::uint64_t after);

}  // namespace kvmid::ctl
