// SPDX-License-Identifier: GPL-2.0-or-later
//
// v12, message by message: there and back, cut at every byte, one rule broken at a time.

#include <catch2/catch.hpp>
#include <cstring>

#include "protocol/wire_v12.h"
#include "tests/unit/kvmi1/shared/equal_rfc2017.h"
#include "tests/unit/kvmi1/shared/round_trip.h"
#include "tests/unit/kvmi1/shared/samples.h"

namespace kvmid::kvmi1::test {
namespace {

using Errc = DecodeErrc;

const Codec& of_v12() { return codec(DialectId::V12); }

Result<Downward, Refused> down(const ExactFrame& frame) { return of_v12().decode_downward(frame.frame()); }
Result<Upward, DecodeError> up(const ExactFrame& frame) { return of_v12().decode_upward(frame.frame()); }

Command sample(CommandKind kind) {
  for (const auto& command : commands_of(DialectId::V12)) {
    if (kind_of_command(command) == kind) return command;
  }
  throw std::logic_error("no sample");
}

EventMessage sample(EventKind kind) {
  for (const auto& message : events_of(DialectId::V12)) {
    if (message.event.kind() == kind) return message;
  }
  throw std::logic_error("no sample");
}

/// The sample of T with its payload changed at a byte.
template <class T>
Result<Downward, Refused> changed(std::size_t at, std::uint64_t value, std::size_t size = 1) {
  auto bytes = written(of_v12(), sample(kind_of<T>));
  bytes.set(at, value, size);
  return down(bytes.whole());
}

void require_refused(const Result<Downward, Refused>& decoded, Errc code, std::uint32_t offset, std::int32_t answer) {
  REQUIRE_FALSE(decoded);
  REQUIRE(decoded.error().error.code == code);
  REQUIRE(decoded.error().error.offset == offset);
  REQUIRE(decoded.error().answer == answer);
}

ExactFrame refusal(std::uint16_t id, std::int32_t error) {
  return written(of_v12(), Reply{.id = id, .error = error}).whole();
}

}  // namespace

TEST_CASE("every message of v12 comes back as it went", "[kvmi1][v12]") {
  require_samples_complete(of_v12());
  require_round_trips(of_v12());
}

TEST_CASE("every message of v12 has the published size", "[kvmi1][v12]") {
  require_sizes(of_v12(), layouts().at("dialects").at("v12"));
}

TEST_CASE("a command of v12 cut anywhere reads as if zeros followed, but for five", "[kvmi1][v12]") {
  for (const auto& command : commands_of(DialectId::V12)) {
    const auto bytes = written(of_v12(), command);
    const CommandKind kind = kind_of_command(command);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(name_of(kind), size);
      const auto frame = bytes.cut(size);
      const auto decoded = down(frame);
      if (kind == kind_of<WritePhysical> || kind == kind_of<SetPageAccess>) {
        require_refused(decoded, Errc::Truncated, static_cast<std::uint32_t>(size), 0);
      } else if (kind == kind_of<GetRegisters> || kind == kind_of<SetRegisters> || kind == kind_of<SetXsave>) {
        require_refused(decoded, Errc::Truncated, static_cast<std::uint32_t>(size), -kEinval);
      } else {
        Written filled = bytes;
        std::fill(filled.payload.begin() + static_cast<std::ptrdiff_t>(size), filled.payload.end(), std::byte{0});
        const auto whole = filled.whole();
        const auto expected = down(whole);
        REQUIRE(decoded.has_value() == expected.has_value());
        if (expected) {
          REQUIRE(equal(*decoded, *expected));
        } else {
          REQUIRE(decoded.error().error == expected.error().error);
          REQUIRE(decoded.error().answer == expected.error().answer);
        }
      }
    }
  }
}

TEST_CASE("surplus bytes of a v12 command are not looked at", "[kvmi1][v12]") {
  for (const auto& command : commands_of(DialectId::V12)) {
    CAPTURE(name_of(kind_of_command(command)));
    auto bytes = written(of_v12(), command);
    for (int i = 0; i < 5; ++i) bytes.payload.push_back(std::byte{0xff});
    const auto frame = bytes.whole();
    const auto decoded = down(frame);
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Downward{command}));
  }
}

TEST_CASE("an event reply of v12 cut anywhere closes, or has a shorter value", "[kvmi1][v12]") {
  for (const auto& reply : event_replies_of(DialectId::V12)) {
    const auto bytes = written(of_v12(), reply);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(reply.event, size);
      const auto frame = bytes.cut(size);
      const auto decoded = down(frame);
      if (size < 16) {
        require_refused(decoded, Errc::Truncated, static_cast<std::uint32_t>(size), 0);
      } else {
        REQUIRE(decoded);
        REQUIRE(std::get<EventReplyMessage>(*decoded).data.size() == size - 16);
      }
    }
  }
}

TEST_CASE("what a v12 hypervisor sends is refused when cut, but for a read's data", "[kvmi1][v12]") {
  for (const auto& reply : replies_of(DialectId::V12)) {
    const auto bytes = written(of_v12(), reply);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(reply.id, size);
      const auto frame = bytes.cut(size);
      const auto decoded = up(frame);
      if (std::holds_alternative<ReadPhysicalReply>(reply.body) && size >= sizeof(v12::ErrorCode)) {
        REQUIRE(decoded);
        REQUIRE(std::get<ReadPhysicalReply>(std::get<Reply>(*decoded).body).data.size() == size - 8);
      } else {
        REQUIRE_FALSE(decoded);
        REQUIRE(decoded.error() == DecodeError{Errc::Truncated, reply.id, static_cast<std::uint32_t>(size)});
      }
    }
  }
  for (const auto& message : events_of(DialectId::V12)) {
    const auto bytes = written(of_v12(), message);
    for (std::size_t size = 0; size < bytes.payload.size(); ++size) {
      CAPTURE(name_of(message.event.kind()), size);
      const auto decoded = up(bytes.cut(size));
      REQUIRE_FALSE(decoded);
      // Eight bytes would be the refusal of an event reply, with a positive error.
      const bool as_refusal = bytes.id == v12::kVcpuEventId && size == sizeof(v12::ErrorCode);
      REQUIRE(decoded.error().code == (as_refusal ? Errc::BadValue : Errc::Truncated));
    }
  }
}

TEST_CASE("surplus bytes of a v12 reply or event are not looked at", "[kvmi1][v12]") {
  for (const auto& reply : replies_of(DialectId::V12)) {
    if (std::holds_alternative<ReadPhysicalReply>(reply.body)) continue;
    CAPTURE(reply.id);
    auto bytes = written(of_v12(), reply);
    for (int i = 0; i < 5; ++i) bytes.payload.push_back(std::byte{0xff});
    const auto frame = bytes.whole();
    const auto decoded = up(frame);
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Upward{reply}));
  }
  for (const auto& message : events_of(DialectId::V12)) {
    CAPTURE(name_of(message.event.kind()));
    auto bytes = written(of_v12(), message);
    for (int i = 0; i < 5; ++i) bytes.payload.push_back(std::byte{0xff});
    const auto decoded = up(bytes.whole());
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Upward{message}));
  }
}

TEST_CASE("an event reply without its value gives 0", "[kvmi1][v12]") {
  EventReplyMessage reply;
  for (const EventKind kind : {EventKind::Cr, EventKind::Msr}) {
    reply.data = {};
    REQUIRE(of_v12().read_reply(kind, reply)->new_value == 0);
    const std::byte value[9] = {std::byte{0x78}, std::byte{0x56}, std::byte{0x34}, std::byte{0x12}, std::byte{0xff}};
    reply.data = Bytes(value).first(4);
    REQUIRE(of_v12().read_reply(kind, reply)->new_value == 0x12345678);
    reply.data = Bytes(value).first(8);
    REQUIRE(of_v12().read_reply(kind, reply)->new_value == 0xff12345678);
    reply.data = value;
    REQUIRE(of_v12().read_reply(kind, reply).error() == DecodeError{Errc::TooLong, 1, 24});
  }
}

TEST_CASE("an event reply that is longer than expected is an error", "[kvmi1][v12]") {
  const std::byte byte[1] = {};
  EventReplyMessage reply;
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    if (kind == EventKind::Cr || kind == EventKind::Msr) continue;
    CAPTURE(name_of(kind));
    reply.data = {};
    REQUIRE(of_v12().read_reply(kind, reply));
    reply.data = byte;
    REQUIRE(of_v12().read_reply(kind, reply).error() == DecodeError{Errc::TooLong, 1, 16});
  }
}

TEST_CASE("padding of the vCPU header of an event reply is answered, other padding closes", "[kvmi1][v12]") {
  const auto bytes = written(of_v12(), event_replies_of(DialectId::V12).front());
  for (std::size_t at = 2; at < 16; ++at) {
    if (at == 8 || at == 9) continue;  // action and event
    CAPTURE(at);
    auto bad = bytes;
    bad.set(at, 1);
    require_refused(down(bad.whole()), Errc::PaddingNotZero, static_cast<std::uint32_t>(at), at < 8 ? -kEinval : 0);
  }
  // Both wrong: the header is looked at first.
  auto bad = bytes;
  bad.set(2, 1);
  require_refused(down(bad.cut(10)), Errc::PaddingNotZero, 2, -kEinval);
}

TEST_CASE("an action that does not exist is passed on", "[kvmi1][v12]") {
  auto bytes = written(of_v12(), event_replies_of(DialectId::V12).front());
  bytes.set(8, 0xff);
  const auto frame = bytes.whole();
  const auto decoded = down(frame);
  REQUIRE(decoded);
  REQUIRE(std::get<EventReplyMessage>(*decoded).action == 0xff);
}

TEST_CASE("a write that is shorter than it says closes, whatever else is wrong with it", "[kvmi1][v12]") {
  auto write = written(of_v12(), sample(kind_of<WritePhysical>));
  write.set(10, 1);  // padding
  require_refused(down(write.whole()), Errc::PaddingNotZero, 10, -kEinval);
  write.payload.pop_back();
  require_refused(down(write.whole()), Errc::Truncated, static_cast<std::uint32_t>(write.payload.size()), 0);

  auto access = written(of_v12(), sample(kind_of<SetPageAccess>));
  access.set(2, 1);
  require_refused(down(access.whole()), Errc::PaddingNotZero, 2, -kEinval);
  access.payload.pop_back();
  require_refused(down(access.whole()), Errc::Truncated, static_cast<std::uint32_t>(access.payload.size()), 0);
}

TEST_CASE("entries of SET_PAGE_ACCESS are passed on with their mistakes", "[kvmi1][v12]") {
  // Each is tried by itself: a bad one does not keep the others from being applied.
  auto bytes = written(of_v12(), sample(kind_of<SetPageAccess>));
  bytes.set(8 + 8, 0x80);
  bytes.set(8 + 9, 1);
  const auto frame = bytes.whole();
  const auto decoded = down(frame);
  REQUIRE(decoded);
  const auto& entries = std::get<SetPageAccess>(std::get<Command>(*decoded)).entries;
  REQUIRE(entries.size() == 2);
  REQUIRE(entries[0].access == 0x80);
  REQUIRE(entries[0].padding[0] == 1);
}

TEST_CASE("booleans of v12 are 0 or 1", "[kvmi1][v12]") {
  require_refused(changed<ControlVmEvents>(2, 2), Errc::BadFlag, 2, -kEinval);
  require_refused(changed<PauseVcpu>(2, 2), Errc::BadFlag, 2, -kEinval);
  require_refused(changed<ControlCleanup>(0, 2), Errc::BadFlag, 0, -kEinval);
  require_refused(changed<ControlEvents>(10, 2), Errc::BadFlag, 10, -kEinval);
  require_refused(changed<ControlCr>(9, 2), Errc::BadFlag, 9, -kEinval);
  require_refused(changed<ControlMsr>(8, 2), Errc::BadFlag, 8, -kEinval);
  require_refused(changed<ControlSinglestep>(8, 2), Errc::BadFlag, 8, -kEinval);
}

TEST_CASE("each byte of padding in a command of v12 is answered with EINVAL", "[kvmi1][v12]") {
  const auto& dialect = layouts().at("dialects").at("v12");
  std::size_t seen = 0;
  for (const auto& message : dialect.at("messages")) {
    if (message.at("scope") != "vm" && message.at("scope") != "vcpu") continue;
    const auto kind = of_v12().command_of(message.at("id").get<std::uint16_t>());
    std::size_t base = 0;
    for (const auto& name : message.at("request")) {
      const auto& all = name == "kvm_regs" ? layouts().at("kvm_uapi").at("structs") : dialect.at("structs");
      const auto& layout = all.at(name.get<std::string>());
      for (const auto& field : layout.at("fields")) {
        if (!field.at("name").is_string() || !field.at("name").get<std::string>().starts_with("padding")) continue;
        const auto start = base + field.at("offset").get<std::size_t>();
        for (std::size_t at = start; at < start + field.at("size").get<std::size_t>(); ++at) {
          CAPTURE(message.at("name").get<std::string>(), at);
          auto bytes = written(of_v12(), sample(kind.value()));
          bytes.set(at, 0x80);
          require_refused(down(bytes.whole()), Errc::PaddingNotZero, static_cast<std::uint32_t>(at), -kEinval);
          ++seen;
        }
      }
      base += layout.at("size").get<std::size_t>();
    }
  }
  REQUIRE(seen > 150);
}

TEST_CASE("values that v12 does not know are answered with EINVAL", "[kvmi1][v12]") {
  require_refused(changed<ControlVmEvents>(0, 1, 2), Errc::UnknownEvent, 0, -kEinval);   // of a vCPU
  require_refused(changed<ControlEvents>(8, 0, 2), Errc::UnknownEvent, 8, -kEinval);     // of the guest
  require_refused(changed<ControlEvents>(8, 21, 2), Errc::UnknownEvent, 8, -kEinval);
  REQUIRE(changed<ControlEvents>(8, 19, 2));  // SINGLESTEP needs no enabling, and can be
  require_refused(changed<ControlCr>(8, 8), Errc::BadValue, 8, -kEinval);
  require_refused(changed<GetXcr>(8, 1), Errc::BadValue, 8, -kEinval);
  for (const std::uint32_t msr : {0x2000U, 0x40000000U, 0xbfffffffU, 0xc0002000U, 0xffffffffU}) {
    CAPTURE(msr);
    require_refused(changed<ControlMsr>(12, msr, 4), Errc::BadValue, 12, -kEinval);
  }
  for (const std::uint32_t msr : {0U, 0x1fffU, 0xc0000000U, 0xc0001fffU}) REQUIRE(changed<ControlMsr>(12, msr, 4));

  require_refused(changed<ReadPhysical>(8, 0, 2), Errc::BadValue, 8, -kEinval);
  require_refused(changed<ReadPhysical>(8, 4097, 2), Errc::BadValue, 8, -kEinval);
  require_refused(changed<ReadPhysical>(8, 4096 - 0x127, 2), Errc::BadValue, 8, -kEinval);  // crosses its page
  REQUIRE(changed<ReadPhysical>(8, 4096 - 0x128, 2));
  require_refused(changed<ReadPhysical>(0, ~0ULL, 8), Errc::BadValue, 8, -kEinval);
}

TEST_CASE("GET_REGISTERS takes 481 MSRs, as many as its reply has room for", "[kvmi1][v12]") {
  const std::vector<std::uint32_t> msrs(482, 0x174);
  for (const std::size_t count : {481U, 482U}) {
    const GetRegisters command{VcpuId{1}, WireArray<std::uint32_t>(std::span(msrs).first(count))};
    const auto frame = written(of_v12(), Command{command}).whole();
    const auto decoded = down(frame);
    if (count == 482) {
      require_refused(decoded, Errc::BadValue, 8, -kEinval);
    } else {
      REQUIRE(decoded);
      REQUIRE(std::get<GetRegisters>(std::get<Command>(*decoded)).msrs.size() == count);
    }
  }
  const std::vector<kvmi_x86_msr> values(481);
  GetRegistersReply reply;
  reply.msrs = std::span(values);
  REQUIRE(written(of_v12(), Reply{.id = 7, .body = reply}).payload.size() == 480 + 481 * 16);
}

TEST_CASE("a count in a reply never makes v12's codec read further", "[kvmi1][v12]") {
  auto bytes = written(of_v12(), replies_of(DialectId::V12).at(12));
  REQUIRE(bytes.id == 7);
  for (const std::uint64_t count : {4ULL, 0xffffULL, 0x10000001ULL, 0xffffffffULL}) {
    CAPTURE(count);
    bytes.set(472, count, 4);
    const auto frame = bytes.whole();
    const auto decoded = up(frame);
    REQUIRE_FALSE(decoded);
    REQUIRE(decoded.error().code == Errc::Truncated);
  }
}

TEST_CASE("id 1 is an event or the refusal of an event reply, by its size", "[kvmi1][v12]") {
  const auto frame = refusal(1, -kEinval);
  const auto decoded = up(frame);
  REQUIRE(decoded);
  REQUIRE(std::get<Reply>(*decoded).id == 1);
  REQUIRE(std::get<Reply>(*decoded).error == -kEinval);
  REQUIRE(std::get<EventMessage>(*up(written(of_v12(), sample(EventKind::Pause)).whole())).event.kind() ==
          EventKind::Pause);
}

TEST_CASE("id 0 is UNHOOK or the refusal of a message of id 0", "[kvmi1][v12]") {
  const auto unhook = written(of_v12(), sample(EventKind::Unhook));
  REQUIRE(unhook.id == 0);
  REQUIRE(unhook.payload.size() == 8);
  auto padded = unhook;
  padded.set(2, ~0ULL, 6);
  for (const auto& bytes : {unhook, padded}) {
    const auto decoded = up(bytes.whole());
    REQUIRE(decoded);
    const auto& event = std::get<EventMessage>(*decoded).event;
    REQUIRE(event.kind() == EventKind::Unhook);
    REQUIRE(event.vcpu == kAllVcpus);
  }
  const auto refused = up(refusal(0, -kEnosys));
  REQUIRE(refused);
  REQUIRE(std::get<Reply>(*refused).error == -kEnosys);
  // Any other VM event is not known.
  auto other = unhook;
  other.set(0, 2, 2);
  REQUIRE(up(other.whole()).error() == DecodeError{Errc::UnknownEvent, 0, 0});
}

TEST_CASE("ids that v12 does not have are unknown, in both directions", "[kvmi1][v12]") {
  for (const std::uint16_t id : std::initializer_list<std::uint16_t>{0, 22, 24, 28, 31, 60, 0xffff}) {
    CAPTURE(id);
    const ExactFrame frame(id, kSeq, {});
    const auto decoded = down(frame);
    REQUIRE(decoded);
    REQUIRE(std::get<UnknownMessage>(*decoded).id == id);
    if (id == 0) continue;
    // A refusal says what was asked for; without an error it makes no sense.
    const auto refused = up(refusal(id, -kEnosys));
    REQUIRE(refused);
    REQUIRE(std::get<Reply>(*refused).id == id);
    REQUIRE(std::holds_alternative<UnknownMessage>(*up(refusal(id, 0))));
  }
}

TEST_CASE("a page fault's GVA of all ones is none", "[kvmi1][v12]") {
  auto bytes = written(of_v12(), sample(EventKind::PageFault));
  bytes.set(552, kNoAddress, 8);
  const auto decoded = up(bytes.whole());
  REQUIRE(decoded);
  const auto& fault = std::get<PageFaultData>(std::get<EventMessage>(*decoded).event.data);
  REQUIRE_FALSE(fault.gva_valid);
  REQUIRE(fault.gva == Gva{0});
  REQUIRE(written(of_v12(), *decoded).payload == bytes.payload);
}

TEST_CASE("a trap's address is CR2 whatever the vector, and KVMI 2's only for a page fault", "[kvmi1][v12]") {
  auto message = sample(EventKind::Trap);
  auto& trap = std::get<TrapData>(message.event.data);
  trap = TrapData{};
  trap.vector = 6;
  message.event.sregs.cr2 = 0x1234;
  const auto bytes = written(of_v12(), message);
  std::uint64_t address = 0;
  std::memcpy(&address, bytes.payload.data() + 560, sizeof address);
  REQUIRE(address == 0x1234);
  const auto decoded = up(bytes.whole());
  REQUIRE(decoded);
  const auto& read = std::get<TrapData>(std::get<EventMessage>(*decoded).event.data);
  REQUIRE(read.vector == 6);
  REQUIRE(read.address == 0);
  REQUIRE(read.flags == 0);
}

TEST_CASE("padding in v12 events is not looked at, and not passed on", "[kvmi1][v12]") {
  const auto message = sample(EventKind::Cr);
  auto bytes = written(of_v12(), message);
  for (const auto& leaf : layouts().at("dialects").at("v12").at("structs").at("kvmi_vcpu_event").at("leaves")) {
    if (leaf.at("path").get<std::string>().find("padding") == std::string::npos) continue;
    bytes.set(8 + leaf.at("offset").get<std::size_t>(), ~0ULL, leaf.at("size").get<std::size_t>());
  }
  bytes.set(2, ~0ULL, 6);
  bytes.set(553, ~0ULL, 7);
  const auto decoded = up(bytes.whole());
  REQUIRE(decoded);
  REQUIRE(equal(*decoded, Upward{message}));
}

TEST_CASE("an event of v12 that makes no sense is an error", "[kvmi1][v12]") {
  struct Bad {
    EventKind kind;
    std::size_t at;
    std::uint64_t value;
    std::size_t size;
    Errc code;
  };
  const Bad all[] = {
      {EventKind::Pause, 0, 0, 2, Errc::UnknownEvent},  // UNHOOK is no event of a vCPU
      {EventKind::Pause, 0, 21, 2, Errc::UnknownEvent},
      {EventKind::Pause, 8, 543, 2, Errc::BadValue},    // shorter than it is
      {EventKind::Pause, 10, 0xffff, 2, Errc::BadValue},
      {EventKind::Pause, 16, 3, 1, Errc::BadValue},
      {EventKind::Cr, 552, 2, 1, Errc::BadValue},
      {EventKind::Descriptor, 552, 0, 1, Errc::BadValue},
      {EventKind::Descriptor, 552, 5, 1, Errc::BadValue},
      {EventKind::PageFault, 568, 0, 1, Errc::BadValue},
      {EventKind::PageFault, 568, 8, 1, Errc::BadValue},
  };
  for (const auto& bad : all) {
    CAPTURE(name_of(bad.kind), bad.at, bad.value);
    auto bytes = written(of_v12(), sample(bad.kind));
    REQUIRE(up(bytes.whole()));
    bytes.set(bad.at, bad.value, bad.size);
    const auto decoded = up(bytes.whole());
    REQUIRE_FALSE(decoded);
    REQUIRE(decoded.error() == DecodeError{bad.code, 1, static_cast<std::uint32_t>(bad.at)});
  }
}

TEST_CASE("a longer common part of a v12 event is skipped", "[kvmi1][v12]") {
  const auto message = sample(EventKind::Msr);
  auto bytes = written(of_v12(), message);
  bytes.payload.insert(bytes.payload.begin() + 552, 16, std::byte{0xff});
  bytes.set(8, 544 + 16, 2);
  const auto decoded = up(bytes.whole());
  REQUIRE(decoded);
  REQUIRE(equal(*decoded, Upward{message}));
}

TEST_CASE("an XCR that v12 has no room for is told as the highest", "[kvmi1][v12]") {
  auto message = sample(EventKind::Xsetbv);
  std::get<XsetbvData>(message.event.data).xcr = 0x12345;
  const auto decoded = up(written(of_v12(), message).whole());
  REQUIRE(decoded);
  REQUIRE(std::get<XsetbvData>(std::get<EventMessage>(*decoded).event.data).xcr == 0xff);
}

TEST_CASE("v12 announces its largest message even where the reply leaves it open", "[kvmi1][v12]") {
  const auto frame = written(of_v12(), Reply{.id = 2, .body = GetVersionReply{}}).whole();
  REQUIRE(std::get<GetVersionReply>(std::get<Reply>(*up(frame)).body).max_message == 8184);
  REQUIRE(dialect_of_version_reply(frame.frame().payload) == DialectId::V12);
}

}  // namespace kvmid::kvmi1::test
