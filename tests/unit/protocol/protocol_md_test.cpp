// SPDX-License-Identifier: GPL-2.0-or-later
//
// protocol/PROTOCOL.md names every message, event and error, under the number that the code uses.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cctype>
#include <fstream>
#include <sstream>

#include "protocol/message.h"

using namespace kvmid;

namespace {

std::string document() {
  std::ifstream file(KVMID_PROTOCOL_MD);
  REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("PROTOCOL.md has one entry for each message", "[protocol_md]") {
  const std::string text = document();
  for (int id = 0; id < 64; ++id) {
    const auto name = name_of(static_cast<CommandId>(id));
    if (name == "unknown") continue;
    CAPTURE(name);
    REQUIRE(count_of(text, "\n### " + std::to_string(id) + " " + std::string(name) + "\n") == 1);
  }
  for (const char* entry : {"\n### 23 GUEST_ON\n", "\n### 24 GUEST_OFF\n", "\n### 25 EVENT\n", "\n### 26 EVENT_REPLY\n",
                            "\n### 33 NOTICE\n", "\n### 35 MEMORY_MAP_CHANGED\n"}) {
    CAPTURE(entry);
    REQUIRE(count_of(text, entry) == 1);
  }
}

TEST_CASE("PROTOCOL.md has a row for each event and error", "[protocol_md]") {
  const std::string text = document();
  for (unsigned i = 0; i < kEventCount; ++i) {
    std::string name(name_of(static_cast<EventKind>(i)));
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return static_cast<char>(std::toupper(c)); });
    CAPTURE(name);
    REQUIRE(count_of(text, "\n| " + std::to_string(i) + " | " + name + " | ") == 1);
  }
  for (int i = 1; i <= KVMI_ENOSYS; ++i) {
    const auto name = name_of(static_cast<ErrorCode>(i));
    if (name == "unknown") continue;
    CAPTURE(name);
    REQUIRE(count_of(text, "\n| KVMI_" + std::string(name) + " | " + std::to_string(i) + " | ") == 1);
  }
}

TEST_CASE("PROTOCOL.md answers each request of the review", "[protocol_md]") {
  const std::string text = document();
  const auto table = text.substr(text.find("\n## 8."));
  for (int i = 1; i <= 44; ++i) {
    CAPTURE(i);
    REQUIRE(count_of(table, "\n| " + std::to_string(i) + " | ") == 1);
  }
}
