// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_admin/admin_client.h"

#include <algorithm>
#include <cctype>
#include <fstream>

namespace kvmid::test {
namespace {

/// A line without its end, or nothing where the connection closed.
std::optional<std::string> read_line(WireSocket& socket) {
  std::string line;
  for (;;) {
    const auto byte = socket.read_exact(1);
    if (!byte) return std::nullopt;
    const char c = static_cast<char>(byte->front());
    if (c == '\n') break;
    line += c;
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

std::string read_text(WireSocket& socket, std::size_t size) {
  const auto bytes = socket.read_exact(size);
  if (!bytes) throw TestError("the connection closed inside of a body");
  return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
}

/// Status line and headers.
std::optional<HttpAnswer> read_head(WireSocket& socket) {
  const auto status = read_line(socket);
  if (!status) return std::nullopt;
  if (!status->starts_with("HTTP/1.") || status->size() < 12) throw TestError("no status line: " + *status);
  HttpAnswer answer;
  answer.status = static_cast<unsigned>(std::stoul(status->substr(9, 3)));
  for (;;) {
    const auto line = read_line(socket);
    if (!line) throw TestError("the connection closed inside of a header");
    if (line->empty()) return answer;
    const auto colon = line->find(':');
    if (colon == std::string::npos) throw TestError("no header: " + *line);
    std::string name = line->substr(0, colon);
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    answer.headers[name] = line->substr(line->find_first_not_of(' ', colon + 1));
  }
}

Json with_audit(const RuntimeFolder& folder, Json overrides) {
  Json config{{"log", {{"level", "debug"}}},
              {"audit", {{"file", folder.file("audit.log")}}},
              {"policy", {rule()}}};
  config.update(overrides);
  return config;
}

}  // namespace

Json HttpAnswer::json() const {
  auto parsed = Json::parse(body, nullptr, false);
  if (!parsed.is_object()) throw TestError("the body is no JSON object: " + body);
  return parsed;
}

std::string HttpAnswer::message() const {
  const Json parsed = json();
  if (!parsed.contains("error") || parsed["error"].value("code", 0U) != status || status < 400)
    throw TestError("status " + std::to_string(status) + " is no error with a body for it: " + body);
  if (headers.count("content-type") == 0 || headers.at("content-type") != "application/json")
    throw TestError("an error that does not say that it is JSON: " + body);
  return parsed["error"].at("message").get<std::string>();
}

std::string http_request(const std::string& method, const std::string& target, const std::string& body,
                         const std::string& headers) {
  return method + " " + target + " HTTP/1.1\r\nHost: kvmid\r\n" + headers +
         (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body;
}

void send_text(WireSocket& socket, std::string_view text) { (void)socket.send(std::as_bytes(std::span(text))); }

std::optional<HttpAnswer> read_answer(WireSocket& socket) {
  auto answer = read_head(socket);
  if (!answer) return std::nullopt;
  const auto length = answer->headers.find("content-length");
  if (length == answer->headers.end()) throw TestError("an answer without Content-Length");
  answer->body = read_text(socket, std::stoul(length->second));
  return answer;
}

HttpAnswer http(const std::string& path, const std::string& method, const std::string& target, const std::string& body) {
  WireSocket socket(path);
  send_text(socket, http_request(method, target, body, "Connection: close\r\n"));
  auto answer = read_answer(socket);
  if (!answer) throw TestError(method + " " + target + " was not answered");
  return *answer;
}

StreamClient::StreamClient(const std::string& admin_socket, const std::string& query) : socket_(admin_socket) {
  send_text(socket_, http_request("GET", "/v1/events" + query));
  const auto head = read_head(socket_);
  if (!head || head->status != 200 || head->headers.at("transfer-encoding") != "chunked")
    throw TestError("no stream of events, but status " + std::to_string(head ? head->status : 0));
}

bool StreamClient::read_chunk() {
  const auto size = read_line(socket_);
  if (!size) return false;
  const std::size_t bytes = std::stoul(*size, nullptr, 16);
  lines_ += read_text(socket_, bytes);
  if (read_text(socket_, 2) != "\r\n") throw TestError("a chunk that does not end where it should");
  return bytes != 0;
}

std::optional<Json> StreamClient::next() {
  while (lines_.find('\n') == std::string::npos)
    if (!read_chunk()) return std::nullopt;
  const auto end = lines_.find('\n');
  Json line = Json::parse(lines_.substr(0, end));
  lines_.erase(0, end + 1);
  return line;
}

Json StreamClient::wait(const std::function<bool(const Json&)>& wanted) {
  while (auto line = next())
    if (wanted(*line)) return *line;
  throw TestError("the stream ended before the line that is waited for");
}

Json rule(const Json& overrides) {
  Json rule{{"name", "tests"},   {"match", "*"},       {"commands", {"*"}},     {"events", {"*"}},
            {"role", "decider"}, {"strikes", 1000000}, {"deadline_ms", 60000}, {"pause_max_ms", 60000}};
  rule.update(overrides);
  return rule;
}

AdminScene::AdminScene(Json overrides)
    : config(with_audit(folder, std::move(overrides))),
      audit_file(folder.file("audit.log")),
      daemon(folder, {.config = config.dump(2), .arguments = {}}),
      guest(folder) {
  guest.wait_online();
}

void AdminScene::rewrite(const Json& overrides) {
  Json changed = config;
  changed.update(overrides);
  rewrite_text(changed.dump(2));
}

std::uint64_t AdminScene::counter(const std::string& name) const {
  const Json status = http(admin(), "GET", "/v1/status").json();
  if (!status.at("counters").contains(name)) throw TestError("there is no counter " + name);
  return status["counters"][name].get<std::uint64_t>();
}

void AdminScene::wait_counter(const std::string& name, std::uint64_t at_least) const {
  if (!wait_until([&] { return counter(name) >= at_least; }))
    throw TestError("counter " + name + " stays at " + std::to_string(counter(name)));
}

void AdminScene::wait_log(const std::vector<std::string>& parts) {
  const bool found = wait_until([&] {
    return std::ranges::any_of(daemon.process().errors(), [&](const std::string& line) {
      return std::ranges::all_of(parts, [&](const auto& part) { return line.find(part) != std::string::npos; });
    });
  });
  if (!found) throw TestError("no line of the log has " + Json(parts).dump() + "\n" + daemon.process().tail());
}

std::vector<Json> AdminScene::audit() const {
  std::ifstream in(audit_file);
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line) && !in.eof();) {  // without its end it is still being written
    Json json = Json::parse(line);
    if (json.at("v") != 1 || !json.at("time").is_string() || !json.at("kind").is_string())
      throw TestError("not an audit line: " + line);
    lines.push_back(std::move(json));
  }
  return lines;
}

Json AdminScene::wait_audit(const std::string& kind, const std::function<bool(const Json&)>& wanted) const {
  Json found;
  const bool held = wait_until([&] {
    for (const auto& line : audit()) {
      if (line["kind"] != kind || (wanted && !wanted(line))) continue;
      found = line;
      return true;
    }
    return false;
  });
  if (held) return found;
  std::string all;
  for (const auto& line : audit()) all += line.dump() + "\n";
  throw TestError("no audit line of kind " + kind + " that is wanted; there are:\n" + all);
}

}  // namespace kvmid::test
