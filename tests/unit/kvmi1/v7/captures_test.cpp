// SPDX-License-Identifier: GPL-2.0-or-later
//
// Recorded traffic of libkvmi: what it sends is decoded, and every message encodes again to the bytes that were seen.

#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

std::vector<std::byte> bytes_of(const std::string& hex) {
  REQUIRE(hex.size() % 2 == 0);
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

/// "CMD GET_XCR": "CMD", "GET_XCR". Newer commands have VCPU_ before the name.
std::pair<std::string, std::string> split(const std::string& what) {
  const auto space = what.find(' ');
  REQUIRE(space != std::string::npos);
  return {what.substr(0, space), what.substr(space + 1)};
}

const std::map<std::string, EventKind> kEventNames{
    {"UNHOOK", EventKind::Unhook},         {"CR", EventKind::Cr},
    {"MSR", EventKind::Msr},               {"XSETBV", EventKind::Xsetbv},
    {"BREAKPOINT", EventKind::Breakpoint}, {"HYPERCALL", EventKind::Hypercall},
    {"PF", EventKind::PageFault},          {"TRAP", EventKind::Trap},
    {"DESCRIPTOR", EventKind::Descriptor}, {"CREATE_VCPU", EventKind::CreateVcpu},
    {"PAUSE_VCPU", EventKind::Pause},      {"SINGLESTEP", EventKind::Singlestep},
    {"CPUID", EventKind::Cpuid},
};

Written check_down(const Codec& codec, const Frame& frame, const std::string& type, const std::string& name) {
  const auto down = codec.decode_downward(frame);
  REQUIRE(down);
  if (type == "CMD") {
    REQUIRE(std::holds_alternative<Command>(*down));
  } else {
    REQUIRE(type == "EVENT_REPLY");
    const auto* reply = std::get_if<EventReplyMessage>(&*down);
    REQUIRE(reply != nullptr);
    const EventKind event = kEventNames.at(name);
    CHECK(reply->event == codec.number_of(event));
    CHECK(codec.read_reply(event, *reply).has_value());
  }
  return written(codec, *down);
}

Written check_up(const Codec& codec, const Frame& frame, const std::string& type, const std::string& name) {
  const auto up = codec.decode_upward(frame);
  REQUIRE(up);
  if (type == "EVENT") {
    const auto* event = std::get_if<EventMessage>(&*up);
    REQUIRE(event != nullptr);
    CHECK(event->event.kind() == kEventNames.at(name));
    CHECK(event->event.regs.rip != 0);
  } else {
    REQUIRE(type == "REPLY");
    REQUIRE(std::holds_alternative<Reply>(*up));
    CHECK(std::get<Reply>(*up).id == frame.id);
  }
  return written(codec, *up);
}

struct Counts {
  std::size_t down = 0, up = 0;
};

Counts replay(const std::string& capture) {
  const Codec& codec = codec_v7();
  std::ifstream file(KVMID_VECTORS_DIR "/captures/" + capture + ".jsonl");
  REQUIRE(file);
  std::string line;
  REQUIRE(std::getline(file, line));
  REQUIRE(nlohmann::json::parse(line).at("dialect") == "v7");

  Counts counts;
  while (std::getline(file, line)) {
    const auto recorded = nlohmann::json::parse(line);
    const std::string what = recorded.at("what");
    CAPTURE(capture, recorded.at("n").get<int>(), what);
    // Not messages: no bytes, or bytes that the handshake reads (protocol/handshake.h).
    if (what == "CONNECT" || what == "CLOSE" || what.starts_with("HANDSHAKE")) continue;

    const auto bytes = bytes_of(recorded.at("hex"));
    const Written seen = taken_apart(bytes);
    REQUIRE(seen.id == recorded.at("id"));
    const Exact exact = seen.exact();
    const auto [type, name] = split(what);
    const bool down = recorded.at("dir") == "A>H";
    const Written again =
        down ? check_down(codec, exact.frame(), type, name) : check_up(codec, exact.frame(), type, name);
    CHECK(again.id == seen.id);
    CHECK(again.payload == seen.payload);
    ++(down ? counts.down : counts.up);
  }
  return counts;
}

}  // namespace

TEST_CASE("every message of libkvmi's recorded API calls comes back byte for byte", "[kvmi1][v7][captures]") {
  const Counts counts = replay("v7-libkvmi-api");
  CHECK(counts.down >= 100);
  CHECK(counts.up >= 80);
}

TEST_CASE("every message of libkvmi's recorded error replies comes back byte for byte", "[kvmi1][v7][captures]") {
  const Counts counts = replay("v7-libkvmi-errors");
  CHECK(counts.down >= 55);
  CHECK(counts.up >= 55);
}

TEST_CASE("every message of libkvmi's recorded example program comes back byte for byte", "[kvmi1][v7][captures]") {
  const Counts counts = replay("v7-libkvmi-hookguest");
  CHECK(counts.down >= 40);
  CHECK(counts.up >= 40);
}

}  // namespace kvmid::kvmi1::test
