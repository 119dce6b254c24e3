// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_routes.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "daemon/app/config.h"
#include "protocol/handshake.h"

namespace kvmid::app {
namespace {

constexpr std::string_view kGuestPrefix = "/v1/guests/";

struct Known {
  std::string_view path;
  std::string_view method;
  Resource resource;
};
constexpr std::array kKnown{
    Known{"/v1/status", "GET", Resource::Status},       Known{"/v1/health", "GET", Resource::Health},
    Known{"/v1/guests", "GET", Resource::Guests},       Known{"/v1/agents", "GET", Resource::Agents},
    Known{"/metrics", "GET", Resource::Metrics},        Known{"/v1/events", "GET", Resource::Events},
    Known{"/v1/reload", "POST", Resource::Reload},      Known{"/v1/log-level", "GET", Resource::LogLevel},
    Known{"/v1/log-level", "PUT", Resource::SetLogLevel}, Known{"/v1/failures", "GET", Resource::Failures},
};

/// A request's own bytes in an answer: short, and printable whatever they are.
std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMax = 100;
  std::string out = "\"" + std::string(text.substr(0, kMax));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out + (text.size() > kMax ? "...\"" : "\"");
}

RouteError bad(std::string message) { return {400, std::move(message), {}}; }

Result<std::string, RouteError> percent_decoded(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i] == '+' ? ' ' : text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? digit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? digit(text[i + 2]) : -1;
    if (high < 0 || low < 0) return bad("% in a query is followed by two hexadecimal digits: " + in_quotes(text));
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

std::optional<EventKind> kind_named(std::string_view name) {
  for (unsigned i = 0; i < kEventCount; ++i)
    if (name_of(static_cast<EventKind>(i)) == name) return static_cast<EventKind>(i);
  return std::nullopt;
}

std::optional<RouteError> read_kinds(const std::string& value, EventSet& out) {
  out = {};
  for (std::size_t at = 0; at <= value.size();) {
    const std::size_t end = std::min(value.find(',', at), value.size());
    const std::string name = value.substr(at, end - at);
    const auto kind = kind_named(name);
    if (!kind) {
      std::string list;
      for (unsigned i = 0; i < kEventCount; ++i)
        list += (i == 0 ? "" : ", ") + std::string(name_of(static_cast<EventKind>(i)));
      return bad("there is no event kind " + in_quotes(name) + "; there are: " + list);
    }
    out.add(*kind);
    at = end + 1;
  }
  return std::nullopt;
}

/// A filter that is misspelt must not be no filter.
std::optional<RouteError> read_filter(std::string_view query, EventFilter& out) {
  while (!query.empty()) {
    const std::size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const std::size_t equals = pair.find('=');
    const std::string_view key = pair.substr(0, equals);
    const auto value = percent_decoded(equals == std::string_view::npos ? std::string_view{} : pair.substr(equals + 1));
    if (!value) return value.error();
    if (key == "guest") {
      if (value->empty()) return bad("guest= needs a UUID or a name");
      out.guest = parse_uuid(*value);
      out.guest_name = out.guest ? std::string() : *value;
    } else if (key == "kinds") {
      if (auto error = read_kinds(*value, out.kinds)) return error;
    } else {
      return bad("there is no parameter " + in_quotes(key) + " here; there are: guest, kinds");
    }
  }
  return std::nullopt;
}

std::optional<RouteError> read_level(std::string_view body, std::string& out) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  if (json.is_discarded()) return bad("the body is not JSON; wanted: {\"level\":\"debug\"}");
  if (!json.is_object() || json.size() != 1 || !json.contains("level") || !json["level"].is_string())
    return bad("the body must be an object with the key \"level\" and nothing else, such as {\"level\":\"debug\"}");
  out = json["level"].get<std::string>();
  if (!is_log_level(out)) return bad("there is no log level " + in_quotes(out) + "; there are: " + log_level_names());
  return std::nullopt;
}

}  // namespace

Result<Route, RouteError> find_route(std::string_view method, std::string_view target, std::string_view body) {
  const std::size_t mark = target.find('?');
  const std::string_view path = target.substr(0, mark);
  const std::string_view query = mark == std::string_view::npos ? std::string_view{} : target.substr(mark + 1);
  Route route;
  std::string allow;
  bool found = false;
  for (const Known& known : kKnown) {
    if (known.path != path) continue;
    allow += (allow.empty() ? "" : ", ") + std::string(known.method);
    if (known.method != method) continue;
    route.resource = known.resource;
    found = true;
  }
  if (path.starts_with(kGuestPrefix)) {
    allow = "GET";
    route.resource = Resource::Guest;
    found = method == "GET";
  }
  if (allow.empty()) return RouteError{404, "no such resource: " + in_quotes(path), {}};
  if (!found) return RouteError{405, in_quotes(method) + " is not served here, but " + allow, allow};

  if (route.resource == Resource::Guest) {
    const auto name = path.substr(kGuestPrefix.size());
    const auto uuid = parse_uuid(name);
    if (!uuid) return bad("not a UUID: " + in_quotes(name));
    route.guest = *uuid;
  }
  if (route.resource == Resource::Events) {
    if (auto error = read_filter(query, route.filter)) return *error;
  } else if (!query.empty()) {
    return bad("this resource takes no parameters");
  }
  if (route.resource == Resource::SetLogLevel) {
    if (auto error = read_level(body, route.level)) return *error;
  } else if (!body.empty()) {
    return bad("this request takes no body");
  }
  return route;
}

}  // namespace kvmid::app
