// SPDX-License-Identifier: GPL-2.0-or-later

#include "tests/unit/kvmi1/shared/support.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace kvmid::kvmi1::test {
namespace {

std::vector<std::byte> bytes_of_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

kvmi_msg_hdr header_of(Bytes message) {
  kvmi_msg_hdr header{};
  REQUIRE(message.size() >= sizeof header);
  std::memcpy(&header, message.data(), sizeof header);
  REQUIRE(header.size == message.size() - sizeof header);
  return header;
}

}  // namespace

void Written::set(std::size_t at, std::uint64_t value, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) payload.at(at + i) = static_cast<std::byte>(value >> (8 * i));
}

Written taken_apart(Bytes message) {
  const auto header = header_of(message);
  const Bytes payload = message.subspan(sizeof header);
  return {header.id, Seq{header.seq}, {payload.begin(), payload.end()}};
}

Written written(const Codec& codec, const Downward& message) {
  return std::visit(Overloaded{
                        [](const UnknownMessage&) -> Written { throw std::logic_error("has no bytes"); },
                        [&](const auto& m) { return written(codec, m); },
                    },
                    message);
}

Written written(const Codec& codec, const Upward& message) {
  return std::visit(Overloaded{
                        [](const UnknownMessage&) -> Written { throw std::logic_error("has no bytes"); },
                        [&](const auto& m) { return written(codec, m); },
                    },
                    message);
}

ExactFrame Recorded::frame() const {
  const auto header = header_of(bytes);
  return {header.id, Seq{header.seq}, Bytes(bytes).subspan(sizeof header)};
}

std::vector<Recorded> recorded(std::string_view prefix) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(KVMID_VECTORS_DIR "/captures")) {
    if (entry.path().filename().string().starts_with(prefix)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());

  std::vector<Recorded> messages;
  for (const auto& path : paths) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);  // about the run
    for (int connection = 0; std::getline(file, line);) {
      const auto entry = nlohmann::json::parse(line);
      const auto what = entry.at("what").get<std::string>();
      if (what == "CONNECT") ++connection;
      if (!entry.contains("id")) continue;
      messages.push_back({.file = path.stem().string(),
                          .n = entry.at("n").get<int>(),
                          .down = entry.at("dir") == "A>H",
                          .connection = connection,
                          .what = what,
                          .note = entry.value("note", ""),
                          .bytes = bytes_of_hex(entry.at("hex").get<std::string>())});
    }
  }
  return messages;
}

const nlohmann::json& layouts() {
  static const auto kLayouts = [] {
    std::ifstream file(KVMID_VECTORS_DIR "/dialect_layouts.json");
    return nlohmann::json::parse(file);
  }();
  return kLayouts;
}

void require_layout(const nlohmann::json& layout, std::size_t size, const std::vector<FieldLayout>& ours) {
  REQUIRE(layout.at("size") == size);
  std::size_t fields = 0;
  for (const auto& theirs : layout.at("fields")) {
    if (theirs.value("flexible", false)) continue;
    ++fields;
    const auto name = theirs.at("name").get<std::string>();
    CAPTURE(name);
    const auto found = std::find_if(ours.begin(), ours.end(), [&](const auto& field) { return field.name == name; });
    REQUIRE(found != ours.end());
    REQUIRE(theirs.at("offset") == found->offset);
    REQUIRE(theirs.at("size") == found->size);
  }
  REQUIRE(fields == ours.size());
}

}  // namespace kvmid::kvmi1::test
