// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "daemon/app/event_streams.h"
#include "protocol/result.h"

namespace kvmid::app {

/// What can be asked for at the admin socket.
enum class Resource : std::uint8_t {
  Status, Health, Guests, Guest, Agents, Failures, Metrics, Events, Reload, LogLevel, SetLogLevel
};

/// A request that makes sense.
struct Route {
  Resource resource{};
  Uuid guest;          ///< Guest
  EventFilter filter;  ///< Events
  std::string level;   ///< SetLogLevel: a name that is_log_level() takes
};

/// Why a request makes none: an HTTP status, and a sentence that names what was wrong.
struct RouteError {
  unsigned status = 400;
  std::string message;
  std::string allow;  ///< with 405: the methods that are served
};

/// From method, target and body of a request to what is asked for. Pure: nothing is looked up.
/// Source: docs/admin-http.md.
Result<Route, RouteError> find_route(std::string_view method, std::string_view target, std::string_view body);

}  // namespace kvmid::app
