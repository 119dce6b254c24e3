// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the older dialects share: names, and how a hypervisor's dialect is found out.

#include <catch2/catch.hpp>
#include <cstring>
#include <map>

#include "protocol/handshake.h"
#include "tests/unit/kvmi1/shared/support.h"

namespace kvmid::kvmi1::test {
namespace {

constexpr DialectId kDialects[] = {DialectId::Rfc2017, DialectId::V6, DialectId::V7, DialectId::V12};

std::vector<std::byte> version_reply(DialectId dialect) {
  Reply reply{.id = codec(dialect).number_of(kind_of<GetVersion>).value()};
  GetVersionReply body;
  body.max_message = dialect == DialectId::V12 ? 8184 : 0;
  body.singlestep = dialect != DialectId::V6;
  reply.body = body;
  return written(codec(dialect), reply).payload;
}

/// The name that libkvmi's header has for a number; its newer ones have VCPU_ in them.
std::map<std::uint16_t, std::string> libkvmi_names(const char* dialect) {
  std::map<std::uint16_t, std::string> names;
  for (const auto& [name, number] : layouts().at("dialects").at(dialect).at("constants").at("messages").items()) {
    auto text = name.substr(std::strlen("KVMI_"));
    if (text.starts_with("VCPU_")) text = text.substr(std::strlen("VCPU_"));
    names[number.get<std::uint16_t>()] = text;
  }
  return names;
}

}  // namespace

TEST_CASE("dialects have the names that people use", "[kvmi1]") {
  for (const DialectId dialect : kDialects) {
    REQUIRE(codec(dialect).dialect() == dialect);
    REQUIRE(dialect_named(name_of(dialect)) == dialect);
  }
  REQUIRE(name_of(DialectId::Rfc2017) == "rfc2017");
  REQUIRE(name_of(DialectId::V12) == "v12");
  for (const char* name : {"", "v", "v8", "V12", "v12 ", "kvmi2"}) REQUIRE_FALSE(dialect_named(name));
}

TEST_CASE("commands have libkvmi's names, those of 2017 the posting's", "[kvmi1]") {
  for (const auto& [dialect, id] : {std::pair{"rfc2017", DialectId::Rfc2017}, {"v6", DialectId::V6},
                                    {"v7", DialectId::V7}}) {
    const auto names = libkvmi_names(dialect);
    std::size_t seen = 0;
    for (unsigned number = 0; number < 100; ++number) {
      const auto kind = codec(id).command_of(static_cast<std::uint16_t>(number));
      // SET_PAGE_SVE is the kernel's alone: libkvmi has no name for it.
      if (!kind || *kind == kind_of<SetPageSve>) continue;
      CAPTURE(dialect, number);
      ++seen;
      REQUIRE(names.at(static_cast<std::uint16_t>(number)) == name_of(*kind));
    }
    REQUIRE(seen > 20);
  }
  REQUIRE(name_of(kind_of<ControlCleanup>) == "CONTROL_CLEANUP");
  REQUIRE(name_of(kind_of<GetXcr>) == "GET_XCR");
  REQUIRE(name_of(static_cast<CommandKind>(0xff)) == "unknown");
}

TEST_CASE("every dialect numbers each of its commands and events once", "[kvmi1]") {
  for (const DialectId id : kDialects) {
    const Codec& dialect = codec(id);
    CAPTURE(name_of(id));
    std::map<std::uint16_t, CommandKind> commands;
    for (std::size_t i = 0; i < kCommandCount; ++i) {
      const auto kind = static_cast<CommandKind>(i);
      const auto number = dialect.number_of(kind);
      if (!number) continue;
      REQUIRE(commands.emplace(*number, kind).second);
      REQUIRE(dialect.command_of(*number) == kind);
      REQUIRE(*number != dialect.event_reply_id());
    }
    REQUIRE_FALSE(dialect.command_of(0xffff));
    REQUIRE_FALSE(dialect.event_of(0xffff));
    REQUIRE_FALSE(dialect.number_of(EventKind::Access));
  }
}

TEST_CASE("GET_VERSION tells v6, v7 and v12 apart", "[kvmi1]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    CAPTURE(name_of(dialect));
    REQUIRE(dialect_of_version_reply(version_reply(dialect)) == dialect);
  }
  // As they were recorded.
  for (const auto& [prefix, dialect] : {std::pair{"v7-", DialectId::V7}, {"v12-", DialectId::V12}}) {
    std::size_t seen = 0;
    for (const auto& message : recorded(prefix)) {
      if (message.what != "REPLY GET_VERSION") continue;
      const auto frame = message.frame();
      const auto& payload = frame.frame().payload;
      std::int32_t error = 0;
      std::memcpy(&error, payload.data(), sizeof error);
      if (error != 0) continue;
      CAPTURE(message.file, message.n);
      ++seen;
      REQUIRE(dialect_of_version_reply(payload) == dialect);
    }
    REQUIRE(seen > 0);
  }
}

TEST_CASE("no other answer to GET_VERSION is any dialect's", "[kvmi1]") {
  const auto v12 = version_reply(DialectId::V12);
  for (std::size_t size = 0; size <= 64; ++size) {
    if (size == 16 || size == 24) continue;
    CAPTURE(size);
    const ExactFrame frame(2, kSeq, std::vector<std::byte>(size));
    REQUIRE_FALSE(dialect_of_version_reply(frame.frame().payload));
  }
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    auto refused = version_reply(dialect);
    refused[0] = std::byte{0xff};
    REQUIRE_FALSE(dialect_of_version_reply(refused));
  }
  for (const std::uint32_t max_message : {1U, 8183U, 8185U, 65528U}) {
    auto other = v12;
    std::memcpy(other.data() + 12, &max_message, sizeof max_message);
    REQUIRE_FALSE(dialect_of_version_reply(other));
  }
}

TEST_CASE("GET_VERSION is the same request in v6, v7 and v12", "[kvmi1]") {
  ByteBuffer out;
  encode_get_version(kSeq, out);
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    ByteBuffer own;
    codec(dialect).encode(Command{GetVersion{}}, kSeq, own);
    REQUIRE(own == out);
  }
}

TEST_CASE("a 104-byte handshake is not proof of v12", "[kvmi1]") {
  // QEMU 2.11.93 of v7 with an empty memory map sends 104 bytes as well. All that it has where v12 has an address is 0.
  const auto& handshake = layouts().at("handshake");
  const auto v12 = handshake.at("qemu_v12").at("structs").at("qemu_vmi_to_introspector").at("size");
  REQUIRE(v12 == 104);
  REQUIRE(handshake.at("qemu_v7_2_11_93").at("structs").at("qemu_vmi_to_introspector").at("size") == v12);

  std::vector<std::byte> bytes(104);
  bytes[0] = std::byte{104};
  bytes[32] = std::byte{'g'};
  const auto hello = parse_hypervisor_hello(bytes);
  REQUIRE(hello);
  REQUIRE(hello->max_gpa == 0);
  bytes[96 + 4] = std::byte{1};
  REQUIRE(parse_hypervisor_hello(bytes)->max_gpa == 0x100000000);
}

TEST_CASE("an error is described with the dialect's own names", "[kvmi1]") {
  const Codec& v12 = codec(DialectId::V12);
  REQUIRE(describe(v12, {DecodeErrc::PaddingNotZero, 17, 9}) == "GET_XCR at byte 9: padding is not zero");
  REQUIRE(describe(codec(DialectId::V7), {DecodeErrc::BadFlag, 9, 10}) ==
          "CONTROL_EVENTS at byte 10: flag not known or not allowed here");
  REQUIRE(describe(v12, {DecodeErrc::Truncated, 1, 8}) == "VCPU_EVENT at byte 8: payload too short");
  REQUIRE(describe(v12, {DecodeErrc::UnknownEvent, 0, 0}) == "VM_EVENT at byte 0: unknown event");
  REQUIRE(describe(v12, {DecodeErrc::TooLong, 22, 3}) == "message 22 at byte 3: payload too long");
  REQUIRE(describe(codec(DialectId::V6), {DecodeErrc::BadValue, 0, 3}) == "EVENT_REPLY at byte 3: value not allowed");
  REQUIRE(describe(codec(DialectId::Rfc2017), {DecodeErrc::UnknownAction, 26, 144}) ==
          "EVENT_VCPU_REPLY at byte 144: unknown action");
  REQUIRE(describe(codec(DialectId::Rfc2017), {DecodeErrc::BadValue, 20, 4}) ==
          "CR_CONTROL at byte 4: value not allowed");
}

}  // namespace kvmid::kvmi1::test
