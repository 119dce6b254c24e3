// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// kvmid with a guest, and kvmictl run against it.
///
/// Threads:  as tests/support/process.h.

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "tests/integration/scenario.h"

namespace kvmid::test {

struct CtlScene {
  RuntimeFolder folder;
  Daemon daemon;
  Guest guest;

  explicit CtlScene(std::string config = config_text({}))
      : daemon(folder, {.config = std::move(config), .arguments = {}}), guest(folder, {.vcpus = 2, .arguments = {}}) {
    guest.wait_online();
  }

  [[nodiscard]] std::vector<std::string> with_sockets(std::vector<std::string> words) const {
    words.insert(words.begin(),
                 {"--admin-socket", folder.file("admin.sock"), "--agent-socket", folder.file("agent.sock")});
    return words;
  }
  [[nodiscard]] Finished ctl(std::vector<std::string> words) const {
    return run("kvmictl", with_sockets(std::move(words)));
  }
  /// With --json, and the exit code that is expected.
  [[nodiscard]] Json ctl_json(std::vector<std::string> words, int code = 0) const {
    words.emplace_back("--json");
    const Finished finished = ctl(std::move(words));
    INFO(finished.text());
    for (const auto& line : finished.errors) UNSCOPED_INFO(line);
    REQUIRE(finished.exit == Exit{code, 0});
    const Json json = Json::parse(finished.text());
    REQUIRE(json.at("schema") == 1);
    return json;
  }
};

[[nodiscard]] inline std::string errors_of(const Finished& finished) {
  std::string out;
  for (const auto& line : finished.errors) out += line + "\n";
  return out;
}
[[nodiscard]] inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace kvmid::test
