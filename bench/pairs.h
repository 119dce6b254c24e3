// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Every dialect of a hypervisor with every dialect of an agent.

#include <nlohmann/json.hpp>
#include <string>

namespace kvmid::bench {

/// One decider on one guest for each pair, measured in turn, batch by batch; ratios are to KVMI 2 on both sides.
nlohmann::json measure_pairs(const std::string& kvmid, int rounds);
/// For people.
void print_pairs(const nlohmann::json& pairs);

}  // namespace kvmid::bench
