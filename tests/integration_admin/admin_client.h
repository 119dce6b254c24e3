// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The admin side as a test uses it: HTTP byte by byte, the live stream, the lines of the audit log.
///
/// Errors:   TestError, with what was there instead.
/// Threads:  one.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/integration/scenario.h"
#include "tests/integration_wire/wire_socket.h"

namespace kvmid::test {

struct HttpAnswer {
  unsigned status = 0;
  std::map<std::string, std::string> headers;  ///< names in small letters
  std::string body;
  /// The body as JSON; an error's has "error" with code and message.
  [[nodiscard]] Json json() const;
  /// "error"."message" of an error whose code is its status. TestError where the body is no such thing.
  [[nodiscard]] std::string message() const;
};

/// One request on a connection of its own.
HttpAnswer http(const std::string& socket, const std::string& method, const std::string& target,
                const std::string& body = {});
/// A request's bytes.
std::string http_request(const std::string& method, const std::string& target, const std::string& body = {},
                         const std::string& headers = {});
void send_text(WireSocket& socket, std::string_view text);
/// Reads one answer. Nothing: the connection closed before one began.
std::optional<HttpAnswer> read_answer(WireSocket& socket);

/// A client of /v1/events.
class StreamClient {
 public:
  /// `query`: "?kinds=cr" or nothing. TestError where the stream is refused.
  explicit StreamClient(const std::string& admin_socket, const std::string& query = {});
  /// The next line. Nothing: the stream ended.
  std::optional<Json> next();
  /// Reads until a line holds; what comes before it is dropped. TestError where the stream ends first.
  Json wait(const std::function<bool(const Json&)>& wanted);
  [[nodiscard]] WireSocket& socket() { return socket_; }

 private:
  bool read_chunk();
  WireSocket socket_;
  std::string lines_;
};

/// A kvmid with an audit log and one guest, and what a test changes about it.
struct AdminScene {
  explicit AdminScene(Json config_overrides = Json::object());

  /// Writes the configuration anew: the one of the constructor with these keys replaced.
  void rewrite(const Json& overrides);
  void rewrite_text(const std::string& text) { (void)folder.write("kvmid.json", text); }
  HttpAnswer reload() { return http(admin(), "POST", "/v1/reload"); }
  [[nodiscard]] std::string admin() const { return folder.file("admin.sock"); }
  [[nodiscard]] std::uint64_t counter(const std::string& name) const;
  void wait_counter(const std::string& name, std::uint64_t at_least) const;
  /// Waits for a line of kvmid's own log that has all of `parts`.
  void wait_log(const std::vector<std::string>& parts);
  /// The audit log's lines so far, each checked for version, time and kind.
  [[nodiscard]] std::vector<Json> audit() const;
  /// Waits for a line of that kind for which `wanted` holds.
  Json wait_audit(const std::string& kind, const std::function<bool(const Json&)>& wanted = {}) const;

  RuntimeFolder folder;
  Json config;
  std::string audit_file;
  Daemon daemon;
  Guest guest;
};

/// Rule that gives everything, with these keys replaced.
[[nodiscard]] Json rule(const Json& overrides = Json::object());

}  // namespace kvmid::test
