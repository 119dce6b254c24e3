// SPDX-License-Identifier: GPL-2.0-or-later
//
// rfc2017, message by message: there and back, cut at every byte, and the points that its text leaves open.

#include <catch2/catch.hpp>
#include <cstring>

#include "protocol/wire_rfc2017.h"
#include "tests/unit/kvmi1/shared/equal_rfc2017.h"
#include "tests/unit/kvmi1/shared/round_trip.h"
#include "tests/unit/kvmi1/shared/samples.h"

namespace kvmid::kvmi1::test {
namespace {

using Errc = DecodeErrc;

const Codec& rfc() { return codec(DialectId::Rfc2017); }

Result<Downward, Refused> down(const ExactFrame& frame) { return rfc().decode_downward(frame.frame()); }
Result<Upward, DecodeError> up(const ExactFrame& frame) { return rfc().decode_upward(frame.frame()); }

Command sample(CommandKind kind) {
  for (const auto& command : commands_of(DialectId::Rfc2017)) {
    if (kind_of_command(command) == kind) return command;
  }
  throw std::logic_error("no sample");
}

EventMessage sample(EventKind kind) {
  for (const auto& message : events_of(DialectId::Rfc2017)) {
    if (message.event.kind() == kind) return message;
  }
  throw std::logic_error("no sample");
}

/// The sample of T with its payload changed at a byte.
template <class T>
Result<Downward, Refused> changed(std::size_t at, std::uint64_t value, std::size_t size = 1) {
  auto bytes = written(rfc(), sample(kind_of<T>));
  bytes.set(at, value, size);
  return down(bytes.whole());
}

void require_refused(const Result<Downward, Refused>& decoded, Errc code, std::size_t offset, std::int32_t answer) {
  REQUIRE_FALSE(decoded);
  REQUIRE(decoded.error().error.code == code);
  REQUIRE(decoded.error().error.offset == offset);
  REQUIRE(decoded.error().answer == answer);
}

/// `size` bytes that begin with `err`; the rest is not valid.
ExactFrame reply_of(std::uint16_t id, std::int32_t err, std::size_t size) {
  std::vector<std::byte> payload(size, std::byte{0xaa});
  if (!payload.empty()) std::memcpy(payload.data(), &err, std::min(size, sizeof err));
  return {id, kSeq, payload};
}

}  // namespace

TEST_CASE("every message of rfc2017 comes back as it went", "[kvmi1][rfc2017]") {
  require_samples_complete(rfc());
  require_round_trips(rfc());
}

TEST_CASE("every message of rfc2017 has the posted size", "[kvmi1][rfc2017]") {
  auto dialect = layouts().at("dialects").at("rfc2017");
  // The header counts one guest in; the reply has any number of them.
  for (auto& message : dialect.at("messages")) {
    if (message.at("name") == "KVMI_GET_GUESTS") message["reply_fixed_size"] = sizeof(rfc2017::Guests);
  }
  require_sizes(rfc(), dialect);
}

TEST_CASE("a command of rfc2017 of another size closes", "[kvmi1][rfc2017]") {
  for (const auto& command : commands_of(DialectId::Rfc2017)) {
    auto bytes = written(rfc(), command);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(name_of(kind_of_command(command)), size);
      require_refused(down(bytes.cut(size)), Errc::Truncated, size, 0);
    }
    bytes.payload.push_back(std::byte{0});
    require_refused(down(bytes.whole()), Errc::TooLong, bytes.payload.size() - 1, 0);
  }
}

TEST_CASE("an event reply of rfc2017 cut anywhere closes, or has less data", "[kvmi1][rfc2017]") {
  for (const auto& reply : event_replies_of(DialectId::Rfc2017)) {
    const auto bytes = written(rfc(), reply);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(reply.data.size(), size);
      const auto frame = bytes.cut(size);
      const auto decoded = down(frame);
      if (size < 152) {
        require_refused(decoded, Errc::Truncated, size, 0);
      } else {
        REQUIRE(decoded);
        REQUIRE(std::get<EventReplyMessage>(*decoded).data.size() == size - 152);
      }
    }
  }
}

TEST_CASE("what an rfc2017 hypervisor sends is refused when cut, but where the text is open", "[kvmi1][rfc2017]") {
  for (const auto& reply : replies_of(DialectId::Rfc2017)) {
    const auto bytes = written(rfc(), reply);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(reply.id, size);
      const auto frame = bytes.cut(size);
      const auto decoded = up(frame);
      // Success without data may be 4 bytes; data of a read may have any size; a memory type also has a reply of 8.
      const bool open = std::holds_alternative<std::monostate>(reply.body) ||
                        std::holds_alternative<ReadPhysicalReply>(reply.body);
      const bool other_type = std::holds_alternative<GetMtrrTypeReply>(reply.body) && size == 8;
      if ((open && size >= 4) || other_type) {
        REQUIRE(decoded);
      } else {
        REQUIRE_FALSE(decoded);
        REQUIRE(decoded.error() == DecodeError{Errc::Truncated, reply.id, static_cast<std::uint32_t>(size)});
      }
    }
  }
  for (const auto& message : events_of(DialectId::Rfc2017)) {
    const auto bytes = written(rfc(), message);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(name_of(message.event.kind()), size);
      const auto decoded = up(bytes.cut(size));
      REQUIRE_FALSE(decoded);
      REQUIRE(decoded.error() == DecodeError{Errc::Truncated, 25, static_cast<std::uint32_t>(size)});
    }
  }
}

TEST_CASE("surplus bytes of an rfc2017 reply or event are not looked at", "[kvmi1][rfc2017]") {
  for (const auto& reply : replies_of(DialectId::Rfc2017)) {
    if (std::holds_alternative<ReadPhysicalReply>(reply.body)) continue;
    CAPTURE(reply.id);
    auto bytes = written(rfc(), reply);
    for (int i = 0; i < 5; ++i) bytes.payload.push_back(std::byte{0xff});
    const auto frame = bytes.whole();
    const auto decoded = up(frame);
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Upward{reply}));
  }
  for (const auto& message : events_of(DialectId::Rfc2017)) {
    CAPTURE(name_of(message.event.kind()));
    auto bytes = written(rfc(), message);
    for (int i = 0; i < 5; ++i) bytes.payload.push_back(std::byte{0xff});
    const auto decoded = up(bytes.whole());
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Upward{message}));
  }
}

TEST_CASE("a refusal of rfc2017 may have 4 bytes, 8, or all of the reply", "[kvmi1][rfc2017]") {
  for (const auto& reply : replies_of(DialectId::Rfc2017)) {
    const auto whole = written(rfc(), reply).payload.size();
    for (const std::size_t size : {std::size_t{4}, std::size_t{8}, std::max(whole, std::size_t{8})}) {
      CAPTURE(reply.id, size);
      const auto frame = reply_of(reply.id, -kEnosysOf2017, size);
      const auto decoded = up(frame);
      REQUIRE(decoded);
      REQUIRE(std::get<Reply>(*decoded).error == -kEnosysOf2017);
      REQUIRE(std::holds_alternative<std::monostate>(std::get<Reply>(*decoded).body));
    }
    REQUIRE(written(rfc(), Reply{.id = reply.id, .error = -kEinval}).payload.size() == sizeof(rfc2017::ErrorCode));
  }
}

TEST_CASE("the data of a read begin at byte 4, right behind the error", "[kvmi1][rfc2017]") {
  const std::byte data[3] = {std::byte{1}, std::byte{2}, std::byte{3}};
  const auto bytes = written(rfc(), Reply{.id = 15, .body = ReadPhysicalReply{data}});
  REQUIRE(bytes.payload.size() == 7);
  REQUIRE(bytes.payload[4] == std::byte{1});
}

TEST_CASE("a memory type comes in the 16 bytes of the header or the 8 of the document", "[kvmi1][rfc2017]") {
  auto bytes = written(rfc(), Reply{.id = 9, .body = GetMtrrTypeReply{0x0102030405060708}});
  REQUIRE(bytes.payload.size() == 16);
  const auto frame = bytes.whole();
  REQUIRE(std::get<GetMtrrTypeReply>(std::get<Reply>(*up(frame)).body).type == 0x0102030405060708);
  bytes.set(4, 6, 4);
  REQUIRE(std::get<GetMtrrTypeReply>(std::get<Reply>(*up(bytes.cut(8))).body).type == 6);
}

TEST_CASE("GET_GUESTS has its size where others have an error", "[kvmi1][rfc2017]") {
  for (const std::size_t guests : {0U, 1U, 2U, 100U}) {
    CAPTURE(guests);
    const std::vector<std::byte> uuids(16 * guests, std::byte{7});
    auto bytes = written(rfc(), Reply{.id = 2, .body = GetGuestsReply{uuids}});
    REQUIRE(bytes.payload.size() == 4 + uuids.size());
    const auto frame = bytes.whole();
    const auto decoded = up(frame);
    REQUIRE(decoded);
    REQUIRE(std::get<GetGuestsReply>(std::get<Reply>(*decoded).body).uuids.size() == uuids.size());
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{3}, bytes.payload.size() + 1}) {
      bytes.set(0, size, 4);
      REQUIRE(up(bytes.whole()).error() == DecodeError{Errc::BadValue, 2, 0});
    }
    bytes.set(0, bytes.payload.size() + 16, 4);
    REQUIRE(up(bytes.whole()).error().code == Errc::Truncated);
  }
}

TEST_CASE("an event and its reply have ids of their own", "[kvmi1][rfc2017]") {
  REQUIRE(rfc().event_reply_id() == 26);
  REQUIRE(written(rfc(), sample(EventKind::Cr)).id == 25);
  // Messages that have no layout.
  for (const std::uint16_t id : std::initializer_list<std::uint16_t>{23, 24}) {
    const auto frame = reply_of(id, -1, 16);
    REQUIRE(std::get<UnknownMessage>(*up(frame)).id == id);
    REQUIRE(std::get<UnknownMessage>(*down(frame)).id == id);
  }
  for (const std::uint16_t id : std::initializer_list<std::uint16_t>{0, 25, 27, 0xffff}) {
    REQUIRE(std::get<UnknownMessage>(*down(reply_of(id, 0, 8))).id == id);
  }
  const auto refused = up(reply_of(27, -kEnosysOf2017, 4));
  REQUIRE(refused);
  REQUIRE(std::get<Reply>(*refused).id == 27);
}

TEST_CASE("CONTROL_EVENTS takes a mask of the bits that rfc2017 has", "[kvmi1][rfc2017]") {
  REQUIRE(changed<SetEvents>(4, 0, 4));
  REQUIRE(changed<SetEvents>(4, 0xfe, 4));
  for (const std::uint32_t mask : {1U, 0x100U, 0x80000000U}) {
    CAPTURE(mask);
    require_refused(changed<SetEvents>(4, mask, 4), Errc::UnknownEvent, 4, -kEinval);
  }
}

TEST_CASE("CRs and MSRs that rfc2017 cannot track are answered with EINVAL", "[kvmi1][rfc2017]") {
  for (const std::uint32_t cr : {0U, 3U, 4U}) REQUIRE(changed<ControlGuestCr>(4, cr, 4));
  for (const std::uint32_t cr : {1U, 2U, 8U, 0x10000U}) {
    require_refused(changed<ControlGuestCr>(4, cr, 4), Errc::BadValue, 4, -kEinval);
  }
  for (const std::uint32_t msr : {0U, 0x1fffU, 0x40000000U, 0x40001fffU, 0xc0000000U, 0xc0001fffU}) {
    REQUIRE(changed<ControlGuestMsr>(4, msr, 4));
  }
  for (const std::uint32_t msr : {0x2000U, 0x40002000U, 0xbfffffffU, 0xc0002000U, 0xffffffffU}) {
    require_refused(changed<ControlGuestMsr>(4, msr, 4), Errc::BadValue, 4, -kEinval);
  }
}

TEST_CASE("padding in rfc2017 is not looked at", "[kvmi1][rfc2017]") {
  const auto decoded = changed<InjectBreakpoint>(2, ~0ULL, 6);
  REQUIRE(decoded);
  REQUIRE(std::get<InjectBreakpoint>(std::get<Command>(*decoded)).vcpu == VcpuId{0x0102});
  REQUIRE(std::get<ControlGuestCr>(std::get<Command>(*changed<ControlGuestCr>(1, ~0ULL, 3))).enable);
}

TEST_CASE("reads and registers of rfc2017 are as large as a reply can be", "[kvmi1][rfc2017]") {
  REQUIRE(changed<ReadPhysical>(8, rfc().payload_max() - 4, 8));
  for (const std::uint64_t size : {std::uint64_t{65525}, ~std::uint64_t{0}}) {
    require_refused(changed<ReadPhysical>(8, size, 8), Errc::BadValue, 8, -kEinval);
  }
  for (const std::uint64_t size : {0x72ULL, 0x70ULL, ~0ULL, ~0ULL - 0x70}) {
    const auto decoded = changed<WritePhysical>(8, size, 8);
    REQUIRE_FALSE(decoded);
    REQUIRE(decoded.error().answer == 0);
  }
  const std::vector<std::uint32_t> msrs(4067, 0x174);
  for (const std::size_t count : {4066U, 4067U}) {
    const GetRegisters command{VcpuId{1}, WireArray<std::uint32_t>(std::span(msrs).first(count))};
    REQUIRE(down(written(rfc(), Command{command}).whole()).has_value() == (count == 4066));
  }
}

TEST_CASE("the value of a CR or MSR is needed where the write is allowed", "[kvmi1][rfc2017]") {
  const std::byte bytes[9] = {std::byte{5}};
  for (const EventKind kind : {EventKind::Cr, EventKind::Msr}) {
    EventReplyMessage reply;
    reply.action = kAllow2017;
    reply.data = Bytes(bytes).first(8);
    REQUIRE(rfc().read_reply(kind, reply)->new_value == 5);
    reply.data = {};
    REQUIRE(rfc().read_reply(kind, reply).error() == DecodeError{Errc::Truncated, 26, 152});
    reply.data = Bytes(bytes).first(7);
    REQUIRE(rfc().read_reply(kind, reply).error() == DecodeError{Errc::Truncated, 26, 159});
    reply.data = bytes;
    REQUIRE(rfc().read_reply(kind, reply).error() == DecodeError{Errc::TooLong, 26, 160});
    reply.action = kSetRegs2017;
    reply.data = {};
    REQUIRE(rfc().read_reply(kind, reply)->new_value == 0);
  }
}

TEST_CASE("a page fault's reply has 412 bytes, or fewer", "[kvmi1][rfc2017]") {
  std::vector<std::byte> data(4 + kContextSize, std::byte{9});
  const auto set_size = [&](std::uint32_t size) { std::memcpy(data.data(), &size, sizeof size); };
  EventReplyMessage reply;
  reply.action = kAllow2017 | kSetContext2017;
  reply.data = data;
  for (const std::uint32_t size : {0U, 1U, 256U}) {
    set_size(size);
    REQUIRE(rfc().read_reply(EventKind::PageFault, reply)->context.size() == size);
  }
  REQUIRE(written(rfc(), reply).payload.size() == 412);
  set_size(257);
  REQUIRE(rfc().read_reply(EventKind::PageFault, reply).error() == DecodeError{Errc::BadValue, 26, 152});
  set_size(8);
  reply.data = Bytes(data).first(12);
  REQUIRE(rfc().read_reply(EventKind::PageFault, reply)->context.size() == 8);
  reply.data = Bytes(data).first(11);
  REQUIRE(rfc().read_reply(EventKind::PageFault, reply).error() == DecodeError{Errc::Truncated, 26, 163});
  reply.data = Bytes(data).first(3);
  REQUIRE(rfc().read_reply(EventKind::PageFault, reply).error() == DecodeError{Errc::Truncated, 26, 155});

  // Without SET_CTX it says nothing.
  reply.action = kAllow2017 | kNoEmulation2017;
  for (const std::size_t size : {0U, 3U, 260U}) {
    reply.data = Bytes(data).first(size);
    REQUIRE(rfc().read_reply(EventKind::PageFault, reply)->context.empty());
  }
  data.push_back(std::byte{0});
  reply.data = data;
  REQUIRE(rfc().read_reply(EventKind::PageFault, reply).error() == DecodeError{Errc::TooLong, 26, 412});
}

TEST_CASE("replies to other events have no data", "[kvmi1][rfc2017]") {
  const std::byte byte[1] = {};
  EventReplyMessage reply;
  for (const EventKind kind : {EventKind::Xsetbv, EventKind::Breakpoint, EventKind::Hypercall, EventKind::Trap}) {
    reply.data = {};
    REQUIRE(rfc().read_reply(kind, reply));
    reply.data = byte;
    REQUIRE(rfc().read_reply(kind, reply).error() == DecodeError{Errc::TooLong, 26, 152});
  }
}

TEST_CASE("a page fault's mode is the processor's exit qualification", "[kvmi1][rfc2017]") {
  for (std::uint32_t mode = 1; mode < 8; ++mode) {
    auto bytes = written(rfc(), sample(EventKind::PageFault));
    bytes.set(528, mode | 0x1f8, 4);  // what was allowed, and where the GVA came from
    const auto decoded = up(bytes.whole());
    REQUIRE(decoded);
    const auto& fault = std::get<PageFaultData>(std::get<EventMessage>(*decoded).event.data);
    REQUIRE(fault.access == mode);
    REQUIRE(fault.gva_valid);
  }
}

TEST_CASE("an interrupt is told from an exception by the trap's type", "[kvmi1][rfc2017]") {
  auto bytes = written(rfc(), sample(EventKind::Trap));
  bytes.set(512, 0x20, 4);
  bytes.set(516, 0, 4);
  auto decoded = up(bytes.whole());
  REQUIRE(decoded);
  REQUIRE(std::get<TrapData>(std::get<EventMessage>(*decoded).event.data).kind == KVMI_EXCEPTION_INTERRUPT);
  bytes.set(512, 14, 4);
  bytes.set(516, 3, 4);
  decoded = up(bytes.whole());
  REQUIRE(decoded);
  const auto& trap = std::get<TrapData>(std::get<EventMessage>(*decoded).event.data);
  REQUIRE(trap.kind == KVMI_EXCEPTION_FAULT);
  REQUIRE(trap.flags == KVMI_TRAP_F_ERROR_CODE);
}

TEST_CASE("an event of rfc2017 that makes no sense is an error", "[kvmi1][rfc2017]") {
  struct Bad {
    EventKind kind;
    std::size_t at;
    std::uint64_t value;
    std::size_t size;
    Errc code;
  };
  const Bad all[] = {
      {EventKind::Cr, 4, 0, 4, Errc::UnknownEvent},    {EventKind::Cr, 4, 1, 4, Errc::UnknownEvent},
      {EventKind::Cr, 4, 6, 4, Errc::UnknownEvent},  // two bits
      {EventKind::Cr, 4, 0x10002, 4, Errc::UnknownEvent}, {EventKind::Cr, 0, 0xffff, 2, Errc::BadValue},
      {EventKind::Cr, 2, 3, 1, Errc::BadValue},        {EventKind::Cr, 512, 2, 2, Errc::BadValue},
      {EventKind::PageFault, 528, 0x180, 4, Errc::BadValue}, {EventKind::Trap, 512, 256, 4, Errc::BadValue},
  };
  for (const auto& bad : all) {
    CAPTURE(name_of(bad.kind), bad.at, bad.value);
    auto bytes = written(rfc(), sample(bad.kind));
    REQUIRE(up(bytes.whole()));
    bytes.set(bad.at, bad.value, bad.size);
    const auto decoded = up(bytes.whole());
    REQUIRE_FALSE(decoded);
    REQUIRE(decoded.error() == DecodeError{bad.code, 25, static_cast<std::uint32_t>(bad.at)});
  }
}

TEST_CASE("a count in a reply never makes rfc2017's codec read further", "[kvmi1][rfc2017]") {
  auto bytes = written(rfc(), replies_of(DialectId::Rfc2017).at(5));
  REQUIRE(bytes.id == 6);
  for (const std::uint64_t count : {4ULL, 0xffffULL, 0x10000001ULL, 0xffffffffULL}) {
    CAPTURE(count);
    bytes.set(464, count, 4);
    REQUIRE(up(bytes.whole()).error().code == Errc::Truncated);
  }
}

}  // namespace kvmid::kvmi1::test
