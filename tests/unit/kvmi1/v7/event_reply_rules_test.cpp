// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the kernels of v7 and v6 do with event replies that are not as they should be: they close, or fill with zeros.

#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

const Codec& both(DialectId dialect) { return dialect == DialectId::V6 ? codec_v6() : codec_v7(); }

/// The data of a reply to a page fault: bytes 0 to 271 are bytes 16 to 287 of the payload.
std::vector<std::byte> page_fault_data() {
  std::vector<std::byte> data(272);
  data[1] = std::byte{0x70};  // ctx_addr 0x7000
  data[8] = std::byte{8};     // ctx_size
  data[13] = std::byte{1};    // rep_complete
  for (std::size_t i = 0; i < 256; ++i) data[16 + i] = static_cast<std::byte>(0x41 + i % 26);
  return data;
}

Result<ReplyData, DecodeError> read(const Codec& codec, EventKind event, Bytes data) {
  return codec.read_reply(event, EventReplyMessage{VcpuId{1}, kContinue, 0, {}, data});
}

void check_error(const Result<ReplyData, DecodeError>& data, DecodeErrc code, std::uint32_t offset) {
  REQUIRE(!data);
  CHECK(data.error() == DecodeError{code, 0, offset});
}

}  // namespace

TEST_CASE("an event reply with non-zero padding closes", "[kvmi1][v7][close]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const std::size_t at : {2U, 3U, 4U, 5U, 6U, 7U, 10U, 11U, 12U, 13U, 14U, 15U}) {
    CAPTURE(at);
    Written wire = written(codec, EventReplyMessage{VcpuId{1}, kRetry, 6, {}, {}});
    wire.set(at, 1);
    const Exact exact = wire.exact();
    const auto down = codec.decode_downward(exact.frame());
    REQUIRE(!down);
    CHECK(down.error().answer == 0);
    CHECK(down.error().error == DecodeError{DecodeErrc::PaddingNotZero, 0, static_cast<std::uint32_t>(at)});
  }
}

TEST_CASE("an event reply of less than 16 bytes closes", "[kvmi1][v7][close]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const std::size_t size : {0U, 8U, 15U}) {
    const std::vector<std::byte> payload(size);
    const Exact exact(0, payload);
    const auto down = codec.decode_downward(exact.frame());
    REQUIRE(!down);
    CHECK(down.error().answer == 0);
    CHECK(down.error().error == DecodeError{DecodeErrc::Truncated, 0, static_cast<std::uint32_t>(size)});
  }
}

TEST_CASE("any action and any event number of an event reply is handed on", "[kvmi1][v7]") {
  Written wire = written(codec_v7(), EventReplyMessage{VcpuId{0xfffe}, kContinue, 6, {}, {}});
  wire.set(8, 0xc8);
  wire.set(9, 0x63);
  const Exact exact = wire.exact();
  const auto down = codec_v7().decode_downward(exact.frame());
  REQUIRE(down);
  const auto& reply = std::get<EventReplyMessage>(*down);
  CHECK(reply.vcpu == VcpuId{0xfffe});
  CHECK(reply.action == 0xc8);
  CHECK(reply.event == 0x63);
}

TEST_CASE("the data of a reply is zero-filled: a CR or MSR left out gets 0", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const std::vector<std::byte> value(8, std::byte{0x11});
  for (const EventKind event : {EventKind::Cr, EventKind::Msr}) {
    for (std::size_t n = 0; n <= value.size(); ++n) {
      const std::vector<std::byte> cut(value.begin(), value.begin() + static_cast<std::ptrdiff_t>(n));
      const auto data = read(codec, event, cut);
      REQUIRE(data);
      CHECK(data->new_value == (n == 0 ? 0 : 0x1111111111111111ULL >> (64 - 8 * n)));
    }
  }
}

TEST_CASE("a reply longer than its event asks for closes", "[kvmi1][v7][close]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const std::vector<std::byte> bytes(8200);
  for (unsigned number = 0; number <= static_cast<unsigned>(EventKind::Cpuid); ++number) {
    const auto event = static_cast<EventKind>(number);
    CAPTURE(number);
    const std::size_t most = event == EventKind::Cr || event == EventKind::Msr ? 8
                             : event == EventKind::PageFault                   ? 272
                                                                               : 0;
    CHECK(read(codec, event, Bytes(bytes).first(most)).has_value());
    check_error(read(codec, event, Bytes(bytes).first(most + 1)), DecodeErrc::TooLong,
                static_cast<std::uint32_t>(16 + most));
    check_error(read(codec, event, Bytes(bytes).first(8168)), DecodeErrc::TooLong,
                static_cast<std::uint32_t>(16 + most));
  }
}

TEST_CASE("a page fault's reply gives context and rep_complete", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const auto bytes = page_fault_data();
  const auto data = read(codec, EventKind::PageFault, bytes);
  REQUIRE(data);
  CHECK(data->context_address == 0x7000);
  CHECK(data->rep_complete);
  REQUIRE(data->context.size() == 8);
  CHECK(data->context[7] == std::byte{0x48});

  const auto none = read(codec, EventKind::PageFault, {});
  REQUIRE(none);
  CHECK(none->context.empty());
  CHECK(none->context_address == 0);
  CHECK(!none->rep_complete);
}

TEST_CASE("a page fault's reply with non-zero padding closes; byte 28 only in v7", "[kvmi1][v7][close]") {
  for (const std::size_t at : {28U, 30U, 31U}) {
    CAPTURE(at);
    auto bytes = page_fault_data();
    bytes[at - 16] = std::byte{1};
    check_error(read(codec_v7(), EventKind::PageFault, bytes), DecodeErrc::PaddingNotZero,
                static_cast<std::uint32_t>(at));
    const auto v6 = read(codec_v6(), EventKind::PageFault, bytes);
    CHECK(v6.has_value() == (at == 28));
  }
}

TEST_CASE("a page fault's reply with more than 256 bytes of context closes", "[kvmi1][v7][close]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  auto bytes = page_fault_data();
  bytes[8] = std::byte{0};
  bytes[9] = std::byte{1};
  const auto most = read(codec, EventKind::PageFault, bytes);
  REQUIRE(most);
  CHECK(most->context.size() == 256);
  bytes[8] = std::byte{1};
  check_error(read(codec, EventKind::PageFault, bytes), DecodeErrc::BadValue, 24);
  bytes[11] = std::byte{0xff};
  check_error(read(codec, EventKind::PageFault, bytes), DecodeErrc::BadValue, 24);
}

TEST_CASE("a page fault's reply that ends before or within its context gives what came, or zeros", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const auto whole = page_fault_data();
  for (std::size_t n = 9; n <= 40; ++n) {
    CAPTURE(n);
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
    const auto data = read(codec, EventKind::PageFault, cut);
    REQUIRE(data);
    if (n <= 16) {
      CHECK(data->context.size() == 8);
      CHECK(std::ranges::count(data->context, std::byte{0}) == 8);
    } else {
      CHECK(data->context.size() == std::min<std::size_t>(8, n - 16));
      CHECK(data->context[0] == std::byte{0x41});
    }
  }
}

}  // namespace kvmid::kvmi1::test
