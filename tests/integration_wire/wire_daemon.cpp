// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_wire/wire_daemon.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/integration_wire/wire_socket.h"

namespace kvmid::test {
namespace {

using Json = nlohmann::json;

std::vector<std::string> arguments_of(const RuntimeFolder& folder, const std::string& config,
                                      std::vector<std::string> launcher) {
  std::vector<std::string> arguments;
  if (!launcher.empty()) {
    arguments.assign(launcher.begin() + 1, launcher.end());
    arguments.push_back(program_path("kvmid"));
  }
  for (const auto& argument : {std::string("--runtime-dir"), folder.path().string(), std::string("--config"),
                               folder.write("kvmid.json", config)})
    arguments.push_back(argument);
  return arguments;
}

}  // namespace

std::string wire_config(std::string_view overrides) {
  Json config = Json::parse(R"({
    "shards": 2,
    "log": {"level": "debug"},
    "limits": {"hello_timeout_ms": 5000, "command_timeout_ms": 60000},
    "policy": [{"name": "everything", "match": "*", "commands": ["*"], "events": ["*"], "role": "decider",
                "deadline_ms": 60000, "pause_max_ms": 60000}]
  })");
  config["hypervisors"]["uid"] = Json::array({::getuid()});
  config.update(Json::parse(overrides));
  return config.dump(2);
}

WireDaemon::WireDaemon(const std::string& config, std::vector<std::string> launcher)
    : process_(launcher.empty() ? "kvmid" : launcher.front(), arguments_of(folder_, config, launcher)) {
  const bool ready = wait_until([&] {
    if (!process_.running()) throw TestError("kvmid ended while it was started\n" + process_.tail());
    std::error_code ignored;
    return std::filesystem::is_socket(agents(), ignored) && std::filesystem::is_socket(hypervisors(), ignored) &&
           std::filesystem::is_socket(admin(), ignored);
  });
  if (!ready) throw TestError("kvmid does not come up\n" + process_.tail());
}

void WireDaemon::wait_log(const std::vector<std::string>& parts) {
  std::size_t seen = 0;
  const bool found = wait_until([&] {
    const auto lines = process_.errors();
    for (; seen < lines.size(); ++seen) {
      if (std::all_of(parts.begin(), parts.end(),
                      [&](const auto& part) { return lines[seen].find(part) != std::string::npos; }))
        return true;
    }
    return false;
  });
  if (found) return;
  std::string wanted;
  for (const auto& part : parts) wanted += " [" + part + "]";
  throw TestError("no line of the log has" + wanted + "\n" + process_.tail());
}

std::uint64_t WireDaemon::counter(const std::string& name) const {
  const auto status = Json::parse(http_get(admin(), "/v1/status"));
  const auto counters = status.find("counters");
  if (counters == status.end() || !counters->contains(name))
    throw TestError("/v1/status has no counter " + name + ": " + status.dump());
  return counters->at(name).get<std::uint64_t>();
}

std::uint64_t WireDaemon::wait_counter(const std::string& name, std::uint64_t value) {
  if (!wait_until([&] { return counter(name) >= value; }))
    throw TestError("counter " + name + " stays at " + std::to_string(counter(name)) + ", wanted " +
                    std::to_string(value));
  return counter(name);
}

std::uint64_t WireDaemon::resident_bytes() const {
  std::ifstream in("/proc/" + std::to_string(process_.pid()) + "/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  if (!(in >> size >> resident)) throw TestError("cannot read statm of kvmid");
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::size_t WireDaemon::open_descriptors() const {
  const std::filesystem::directory_iterator fds("/proc/" + std::to_string(process_.pid()) + "/fd");
  return static_cast<std::size_t>(std::distance(begin(fds), end(fds)));
}

std::string http_get(const std::string& socket_path, const std::string& target) {
  WireSocket socket(socket_path);
  const std::string request = "GET " + target + " HTTP/1.1\r\nHost: kvmid\r\nConnection: close\r\n\r\n";
  socket.send(std::as_bytes(std::span(request)));
  std::string answer;
  while (const auto byte = socket.read_exact(1)) answer.push_back(static_cast<char>(byte->front()));
  const auto body = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.1 200") || body == std::string::npos)
    throw TestError("GET " + target + " was answered: " + answer);
  return answer.substr(body + 4);
}

}  // namespace kvmid::test
