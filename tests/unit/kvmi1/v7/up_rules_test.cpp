// SPDX-License-Identifier: GPL-2.0-or-later
//
// What is taken from a hypervisor of v7 or v6, and what is not.

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>

#include "protocol/wire_v7.h"
#include "tests/unit/kvmi1/v7/equal.h"
#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

const Codec& both(DialectId dialect) { return dialect == DialectId::V6 ? codec_v6() : codec_v7(); }

Written sample(const Codec& codec, EventKind kind) {
  for (const EventMessage& event : sample_events(codec.dialect())) {
    if (event.event.kind() == kind) return written(codec, event);
  }
  throw std::logic_error("no sample");
}

Event accepted(const Codec& codec, const Written& wire) {
  const Exact exact = wire.exact();
  const auto up = codec.decode_upward(exact.frame());
  REQUIRE(up);
  REQUIRE(std::holds_alternative<EventMessage>(*up));
  return std::get<EventMessage>(*up).event;
}

void check_error(const Codec& codec, const Written& wire, DecodeErrc code, std::size_t offset) {
  CAPTURE(wire.id, offset);
  const Exact exact = wire.exact();
  const auto up = codec.decode_upward(exact.frame());
  REQUIRE(!up);
  CHECK(up.error() == DecodeError{code, wire.id, static_cast<std::uint32_t>(offset)});
}

Written reply(std::uint16_t id, std::int32_t error, std::size_t size) {
  Written wire{id, kSeq, std::vector<std::byte>(size)};
  std::memcpy(wire.payload.data(), &error, sizeof error);
  return wire;
}

Upward decoded_reply(const Codec& codec, const Written& wire) {
  const Exact exact = wire.exact();
  auto up = codec.decode_upward(exact.frame());
  REQUIRE(up);
  return *up;
}

}  // namespace

TEST_CASE("an event's common part has 544 bytes, whatever comes after it", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const unsigned size : {0U, 543U, 545U, 568U, 0xffffU}) {
    Written wire = sample(codec, EventKind::Cr);
    wire.set(0, size & 0xff);
    wire.set(1, size >> 8);
    check_error(codec, wire, DecodeErrc::BadValue, 0);
  }
}

TEST_CASE("padding of events and replies is not looked at", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const EventMessage& event : sample_events(dialect)) {
    CAPTURE(static_cast<int>(event.event.kind()));
    Written wire = written(codec, event);
    for (const std::size_t at : {5U, 6U, 7U, 9U, 12U, 15U, 183U, 351U, 362U, 383U}) wire.set(at, 0xee);
    if (dialect == DialectId::V6) wire.set(10, 0xee);
    CHECK(equal(accepted(codec, wire), event.event));
  }
  Written registers = written(codec, Reply{13, 0, GetRegistersReply{}});
  for (const std::size_t at : {4U, 12U, 183U, 362U, 476U}) registers.set(at, 0xee);
  CHECK(equal(decoded_reply(codec, registers), Upward{Reply{13, 0, GetRegistersReply{}}}));
}

TEST_CASE("events longer than their kind are refused", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const EventMessage& event : sample_events(dialect)) {
    Written wire = written(codec, event);
    const std::size_t whole = wire.payload.size();
    wire.payload.push_back(std::byte{0});
    check_error(codec, wire, DecodeErrc::TooLong, whole);
  }
}

TEST_CASE("event numbers that a dialect does not have are refused", "[kvmi1][v7]") {
  Written wire = sample(codec_v7(), EventKind::Pause);
  for (const unsigned number : {14U, 255U}) {
    wire.set(4, number);
    check_error(codec_v7(), wire, DecodeErrc::UnknownEvent, 4);
  }
  for (const unsigned number : {12U, 13U, 14U}) {
    wire.set(4, number);
    check_error(codec_v6(), wire, DecodeErrc::UnknownEvent, 4);
  }
}

TEST_CASE("values that no event has are refused", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const unsigned mode : {0U, 1U, 3U, 16U}) {
    Written wire = sample(codec, EventKind::Cr);
    wire.set(8, mode);
    check_error(codec, wire, DecodeErrc::BadValue, 8);
  }
  for (const unsigned cr : {1U, 2U, 8U}) {
    Written wire = sample(codec, EventKind::Cr);
    wire.set(544, cr);
    check_error(codec, wire, DecodeErrc::BadValue, 544);
  }
  for (const unsigned access : {0U, 8U, 0x84U}) {
    Written wire = sample(codec, EventKind::PageFault);
    wire.set(560, access);
    check_error(codec, wire, DecodeErrc::BadValue, 560);
  }
  for (const unsigned descriptor : {0U, 5U}) {
    Written wire = sample(codec, EventKind::Descriptor);
    wire.set(544, descriptor);
    check_error(codec, wire, DecodeErrc::BadValue, 544);
  }
  if (dialect == DialectId::V6) {
    Written wire = sample(codec, EventKind::Trap);
    wire.set(545, 1);
    check_error(codec, wire, DecodeErrc::BadValue, 544);
  }
}

TEST_CASE("UNHOOK is of every vCPU, and its registers may be zero", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = sample(codec, EventKind::Unhook);
  CHECK(wire.payload[2] == std::byte{0});
  CHECK(wire.payload[3] == std::byte{0});
  for (std::size_t at = 8; at < wire.payload.size(); ++at) wire.set(at, 0);
  const Event event = accepted(codec, wire);
  CHECK(event.vcpu == kAllVcpus);
  CHECK(event.kind() == EventKind::Unhook);
  CHECK(event.mode == 8);
}

TEST_CASE("PAGE_FAULT without a GVA has all ones on the wire", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = sample(codec, EventKind::PageFault);
  for (std::size_t at = 544; at < 552; ++at) wire.set(at, 0xff);
  const auto data = std::get<PageFaultData>(accepted(codec, wire).data);
  CHECK(!data.gva_valid);
  CHECK(data.gva == Gva{0});
  EventMessage unknown;
  unknown.event.data = data;
  const Written again = written(codec, unknown);
  CHECK(std::ranges::count(Bytes(again.payload).subspan(544, 8), std::byte{0xff}) == 8);
}

TEST_CASE("TRAP is 16 bytes in v7 and 24 with a type in v6", "[kvmi1][v7]") {
  const Written v7 = sample(codec_v7(), EventKind::Trap);
  CHECK(v7.payload.size() == 560);
  CHECK(v7.payload[544] == std::byte{14});
  CHECK(v7.payload[548] == std::byte{6});
  const Written v6 = sample(codec_v6(), EventKind::Trap);
  CHECK(v6.payload.size() == 568);
  CHECK(v6.payload[548] == std::byte{3});
  CHECK(v6.payload[552] == std::byte{6});
  CHECK(equal(accepted(codec_v6(), v6).data, accepted(codec_v7(), v7).data));

  EventMessage breakpoint;
  TrapData trap;
  trap.vector = 3;
  breakpoint.event.data = trap;
  CHECK(written(codec_v6(), breakpoint).payload[548] == std::byte{6});
}

TEST_CASE("a trap's error code and address are those of vectors that have them", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = sample(codec, EventKind::Trap);
  wire.set(544, 6);
  const auto undefined = std::get<TrapData>(accepted(codec, wire).data);
  CHECK(undefined.vector == 6);
  CHECK(undefined.flags == 0);
  CHECK(undefined.error_code == 0);
  CHECK(undefined.address == 0);
  wire.set(544, 13);
  const auto protection = std::get<TrapData>(accepted(codec, wire).data);
  CHECK(protection.flags == KVMI_TRAP_F_ERROR_CODE);
  CHECK(protection.error_code == 6);
  CHECK(protection.address == 0);
}

TEST_CASE("BREAKPOINT: a length that no instruction has is an INT3's", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const unsigned length : {0U, 16U, 255U}) {
    Written wire = sample(codec, EventKind::Breakpoint);
    wire.set(552, length);
    CHECK(std::get<BreakpointData>(accepted(codec, wire).data).insn_length == 1);
  }
}

TEST_CASE("the view is in the common part of v7, and in page faults of v6", "[kvmi1][v7]") {
  EventMessage event;
  event.event.data = PageFaultData{Gva{1}, Gpa{2}, KVMI_PAGE_ACCESS_R, true};
  event.view = 2;
  const Written v7 = written(codec_v7(), event);
  CHECK(v7.payload[10] == std::byte{2});
  CHECK(v7.payload[562] == std::byte{0});
  const Written v6 = written(codec_v6(), event);
  CHECK(v6.payload[10] == std::byte{0});
  CHECK(v6.payload[562] == std::byte{2});
}

TEST_CASE("CPUID tells the length that the instruction has", "[kvmi1][v7]") {
  CHECK(sample(codec_v7(), EventKind::Cpuid).payload[552] == std::byte{2});
}

TEST_CASE("SINGLESTEP has no data in v6", "[kvmi1][v7]") {
  CHECK(sample(codec_v6(), EventKind::Singlestep).payload.size() == 544);
  CHECK(!std::get<SinglestepData>(accepted(codec_v6(), sample(codec_v6(), EventKind::Singlestep)).data).failed);
}

TEST_CASE("a command error is of any length but its own refused", "[kvmi1][v7]") {
  Written wire = written(codec_v7(), CommandError{-kEperm, Seq{7}, 9});
  CHECK(wire.payload.size() == 560);
  wire.payload.push_back(std::byte{0});
  check_error(codec_v7(), wire, DecodeErrc::TooLong, 560);
  wire.payload.resize(559);
  check_error(codec_v7(), wire, DecodeErrc::Truncated, 559);
}

TEST_CASE("an error reply is 8 bytes, of any command", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Reply& sampled : sample_replies(dialect)) {
    CAPTURE(sampled.id);
    const auto up = decoded_reply(codec, reply(sampled.id, -kEagain, 8));
    CHECK(equal(up, Upward{Reply{sampled.id, -kEagain, {}}}));
    if (codec.command_of(sampled.id)) {
      check_error(codec, reply(sampled.id, -kEagain, 9), DecodeErrc::TooLong, 8);
      check_error(codec, reply(sampled.id, -kEagain, 24), DecodeErrc::TooLong, 8);
    }
  }
}

TEST_CASE("a reply of id 0 says why an event reply was not taken", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  CHECK(equal(decoded_reply(codec, reply(0, -kEinval, 8)), Upward{Reply{0, -kEinval, {}}}));
  check_error(codec, reply(0, -kEinval, 16), DecodeErrc::TooLong, 8);
  check_error(codec, reply(0, 0, 7), DecodeErrc::Truncated, 7);
}

TEST_CASE("a reply of an unknown command is an error alone", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const std::uint16_t id : std::to_array<std::uint16_t>({12, 40, 64, 0xffff})) {
    CAPTURE(id);
    CHECK(equal(decoded_reply(codec, reply(id, -kEnosys, 8)), Upward{Reply{id, -kEnosys, {}}}));
    CHECK(equal(decoded_reply(codec, reply(id, -kEnosys, 16)), Upward{UnknownMessage{id}}));
  }
}

TEST_CASE("errors are negative, also those of the host", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  CHECK(equal(decoded_reply(codec, reply(21, -512, 8)), Upward{Reply{21, -512, {}}}));
  check_error(codec, reply(21, 22, 8), DecodeErrc::BadValue, 0);
}

TEST_CASE("a reply with success has the size of its command", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Reply& sampled : sample_replies(dialect)) {
    if (sampled.error != 0) continue;
    Written wire = written(codec, sampled);
    const std::size_t whole = wire.payload.size();
    wire.payload.push_back(std::byte{1});
    if (std::holds_alternative<ReadPhysicalReply>(sampled.body) ||
        std::holds_alternative<GetPageAccessReply>(sampled.body)) {
      CHECK(std::holds_alternative<Reply>(decoded_reply(codec, wire)));
    } else if (std::holds_alternative<GetPageWriteBitmapReply>(sampled.body)) {
      check_error(codec, wire, DecodeErrc::Truncated, whole + 1);
    } else {
      check_error(codec, wire, DecodeErrc::TooLong, whole);
    }
  }
}

TEST_CASE("GET_VERSION is 16 bytes in v6 and 24 with features in v7", "[kvmi1][v7]") {
  const GetVersionReply version{.spp = true, .vmfunc = true, .eptp = true, .ve = true, .singlestep = true};
  const Written v6 = written(codec_v6(), Reply{2, 0, version});
  CHECK(v6.payload.size() == 16);
  const Written v7 = written(codec_v7(), Reply{2, 0, version});
  CHECK(v7.payload.size() == 24);
  for (std::size_t at = 16; at < 21; ++at) CHECK(v7.payload[at] == std::byte{1});
  check_error(codec_v7(), v6, DecodeErrc::Truncated, 16);
  check_error(codec_v6(), v7, DecodeErrc::TooLong, 16);
}

TEST_CASE("GET_REGISTERS: the number of MSRs in the reply is that of its bytes", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const std::array<kvmi_x86_msr, 2> msrs{};
  Written wire = written(codec, Reply{13, 0, GetRegistersReply{8, {}, {}, std::span<const kvmi_x86_msr>(msrs)}});
  REQUIRE(wire.payload.size() == 480 + 2 * 16);
  wire.set(472, 1);
  check_error(codec, wire, DecodeErrc::TooLong, 496);
  wire.set(472, 3);
  check_error(codec, wire, DecodeErrc::Truncated, 512);
  for (std::size_t at = 472; at < 476; ++at) wire.set(at, 0xff);
  check_error(codec, wire, DecodeErrc::Truncated, 512);
  wire.set(8, 5);
  check_error(codec, wire, DecodeErrc::BadValue, 8);
}

TEST_CASE("GET_XSAVE answers 4096 bytes, of a larger or smaller area too", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const std::size_t size : {0U, 832U, 4096U, 8000U}) {
    const std::vector<std::byte> area(size, std::byte{0x5a});
    const Written wire = written(codec, Reply{16, 0, GetXsaveReply{area}});
    REQUIRE(wire.payload.size() == 4104);
    CHECK(static_cast<std::size_t>(std::ranges::count(Bytes(wire.payload), std::byte{0x5a})) ==
          std::min<std::size_t>(size, 4096));
  }
}

}  // namespace kvmid::kvmi1::test
