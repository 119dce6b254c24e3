// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Whether the simulator finds the mistakes that daemon/core/planted.h can put into the core.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/core/planted.h"

namespace kvmid::sim {

/// "DeadlineIgnored", as in the enum.
std::optional<core::Planted> planted_of(std::string_view name);
/// All of them, for messages.
std::string planted_names();

/// Plants one bug after another and runs the seeds until the invariant that it belongs to is violated. Prints a line
/// for each. Returns 0 if each was found so, and without any the same runs hold; else 1.
int find_planted_bugs(const std::vector<std::uint64_t>& seeds, std::uint64_t steps);

}  // namespace kvmid::sim
