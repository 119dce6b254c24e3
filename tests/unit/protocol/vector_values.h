// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Decoded messages as JSON, in the words of tests/vectors/kvmi2.json.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "protocol/dialect.h"
#include "protocol/handshake.h"

namespace kvmid::test {

nlohmann::json values_of(const Downward& message);
nlohmann::json values_of(const Upward& message);
nlohmann::json values_of(const AgentHello& hello);
nlohmann::json values_of(const kvmi_welcome& welcome);
nlohmann::json values_of(const HypervisorHello& hello);
nlohmann::json values_of(const HypervisorAnswer& answer);

std::string hex_of(Bytes bytes);
std::vector<std::byte> bytes_of_hex(std::string_view hex);

/// kvmi2.json.
const nlohmann::json& all_vectors();

}  // namespace kvmid::test
