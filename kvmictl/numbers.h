// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Numbers and bytes as people type them.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace kvmid::ctl {

/// "4096", "0x1000"; with `suffixes` also "4k", "2M", "1g". Nothing where it is no number or too large.
std::optional<std::uint64_t> parse_number(std::string_view text, bool suffixes);

/// "9090cc", "90 90 cc": bytes in the order they go to memory. Nothing where it is not that.
std::optional<std::vector<std::byte>> parse_bytes(std::string_view text);

}  // namespace kvmid::ctl
