// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "daemon/io/failures.h"
#include "daemon/io/snapshot.h"

namespace kvmid::app {

/// The bodies of the admin side's answers. Pure: snapshots in, JSON out.
/// Source: docs/admin-http.md. Every body has "schema": 1; keys are only ever added within a schema.

struct StatusFacts {
  std::string version;
  std::string config_file;
  std::uint32_t pid = 0;
  std::chrono::seconds uptime{};
};

nlohmann::ordered_json status_json(const StatusFacts& facts, const io::StatusSnapshot& status);
nlohmann::ordered_json guests_json(std::span<const io::GuestSnapshot> guests);
nlohmann::ordered_json guest_json(const io::GuestSnapshot& guest);
nlohmann::ordered_json agents_json(std::span<const io::GuestSnapshot> guests,
                                   std::span<const io::AgentSnapshot> controls);
/// Newest first.
nlohmann::ordered_json failures_json(std::span<const io::ConnectionFailure> oldest_first);
nlohmann::ordered_json error_json(unsigned code, const std::string& message);

}  // namespace kvmid::app
