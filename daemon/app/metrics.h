// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <span>
#include <string>

#include "daemon/app/admin_json.h"

namespace kvmid::app {

/// The counters in Prometheus' text form, version 0.0.4. Pure.
/// Source: docs/admin-http.md, "Metrics".
std::string metrics_text(const StatusFacts& facts, const io::StatusSnapshot& status,
                         std::span<const io::GuestSnapshot> guests,
                         std::span<const io::ConnectionFailure> failures = {});

}  // namespace kvmid::app
