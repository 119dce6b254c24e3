// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// Events and notices in words for people, and as one JSON object a line for programs.
///
/// Shapes:   words: "cr4 0x20 -> 0x0"; JSON: facts of the event as flat fields, addresses and values as "0x..." strings
///           (JSON numbers lose bits above 2^53). Every JSON object has "schema": 1.
/// Threads:  pure functions.
/// Source:   kvmictl's and the shipped agents' output; docs name the fields.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "client/agent_client.h"

namespace kvmid::client {

inline constexpr int kJsonSchema = 1;

/// "0x1f".
std::string hex(std::uint64_t value);
/// "rw-" of KVMI_PAGE_ACCESS_*.
std::string rights_text(std::uint8_t access);
/// "LSTAR", or "0x1234" where the MSR has no name here.
std::string msr_text(std::uint32_t msr);
/// The text as a JSON string, quotes included. Bytes that are no UTF-8 become '?'.
std::string json_string(std::string_view text);
/// "page_fault" -> PageFault; the names are those of name_of(EventKind).
std::optional<EventKind> event_kind_by_name(std::string_view name);
/// "cr,msr" -> a set; "all" is every kind. The bad name is in the error.
Result<EventSet, ClientError> event_set_by_names(std::string_view names);

/// What happened, without vCPU and time: "wrmsr LSTAR 0xffffffff81000000 -> 0xdead".
std::string words(const Event& event);
/// "event 12 expired: our vote was allow (1 in a row)".
std::string words(const ReceivedNotice& notice);
std::string words(const GuestEntry& guest);
std::string words(const GuestGone& gone);

/// The fields of one JSON object, without its braces, so that callers can put their own beside them.
std::string json_fields(const ReceivedEvent& received);
std::string json_fields(const ReceivedNotice& notice);
std::string json_fields(const GuestEntry& guest);
std::string json_fields(const GuestGone& gone);

}  // namespace kvmid::client
