// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/io/audit.h"
#include "daemon/io/event_tap.h"

namespace kvmid::app {

/// Lines of the audit log and of the live stream of events. Pure: a record in, one JSON object and a newline out.
/// Units:    addresses and register values are texts such as "0x1000": JSON numbers lose the low bits of 64.
/// Source:   docs/admin-http.md, "Events" and "Audit log".

/// Version of an audit line, its "v". Within a version keys are only ever added.
inline constexpr int kAuditVersion = 1;

std::string audit_line(const io::AuditRecord& record);
/// So many lines were dropped before the next one.
std::string audit_dropped_line(std::uint64_t count, std::chrono::system_clock::time_point time);

std::string stream_line(const io::TapRecord& record);
std::string stream_dropped_line(std::uint64_t count);

/// "2024-05-01T12:00:00.000123Z"
std::string utc_text(std::chrono::system_clock::time_point time);
std::string hex_text(std::uint64_t value);
std::string_view name_of(io::AuditKind kind);

}  // namespace kvmid::app
