// SPDX-License-Identifier: GPL-2.0-or-later
//
// Every message of v7 and v6: there and back, and cut at every byte.

#include <catch2/catch.hpp>
#include <set>

#include "tests/unit/kvmi1/v7/equal.h"
#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

const Codec& both(DialectId dialect) { return dialect == DialectId::V6 ? codec_v6() : codec_v7(); }

template <class Message>
Written checked(const Codec& codec, const Message& message) {
  Written wire = written(codec, message);
  REQUIRE(wire.seq == kSeq);
  REQUIRE(wire.payload.size() <= codec.payload_max());
  return wire;
}

/// What a request that ends after `n` bytes is; by the kinds of command that do not just read zeros there.
void check_cut_command(const Codec& codec, const Command& command, const Written& wire, std::size_t n) {
  const Exact cut = wire.cut(n);
  const auto down = codec.decode_downward(cut.frame());

  const bool counted =
      std::holds_alternative<GetRegisters>(command) || std::holds_alternative<SetPageAccess>(command) ||
      std::holds_alternative<SetPageWriteBitmap>(command) || std::holds_alternative<GetPageAccess>(command) ||
      std::holds_alternative<GetPageWriteBitmap>(command);
  const bool header_only = std::holds_alternative<SetXsave>(command) && n < 8;
  const bool closing = std::holds_alternative<WritePhysical>(command);
  if (counted || header_only || closing) {
    REQUIRE(!down);
    CHECK(down.error().answer == (closing ? 0 : -kEinval));
    CHECK(down.error().error == DecodeError{DecodeErrc::Truncated, wire.id, static_cast<std::uint32_t>(n)});
    return;
  }

  REQUIRE(down);
  REQUIRE(std::holds_alternative<Command>(*down));
  std::vector<std::byte> there(wire.payload.begin(), wire.payload.begin() + static_cast<std::ptrdiff_t>(n));
  if (!std::holds_alternative<SetXsave>(command)) there.resize(wire.payload.size());
  // Less than the whole newer form is the older one, with what does not fit left over.
  if (const auto* change = std::get_if<ChangeGfn>(&command); change != nullptr && change->view) there.resize(24);
  CHECK(written(codec, *down).payload == there);
}

}  // namespace

TEST_CASE("every command comes back as it was", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  std::set<std::uint8_t> kinds;
  for (const Command& command : sample_commands(dialect)) {
    CAPTURE(command.index());
    kinds.insert(static_cast<std::uint8_t>(kind_of_command(command)));
    const Written wire = checked(codec, command);
    CHECK(wire.id == codec.number_of(kind_of_command(command)));
    const Exact exact = wire.exact();
    const auto back = codec.decode_downward(exact.frame());
    REQUIRE(back);
    CHECK(equal(*back, Downward{command}));
  }
  for (std::size_t kind = 0; kind < kCommandCount; ++kind) {
    CAPTURE(kind);
    const bool sampled = kinds.contains(static_cast<std::uint8_t>(kind));
    CHECK(codec.number_of(static_cast<CommandKind>(kind)).has_value() == sampled);
  }
}

TEST_CASE("every reply comes back as it was", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Reply& reply : sample_replies(dialect)) {
    CAPTURE(reply.id);
    const Exact exact = checked(codec, reply).exact();
    const auto back = codec.decode_upward(exact.frame());
    REQUIRE(back);
    CHECK(equal(*back, Upward{reply}));
  }
}

TEST_CASE("every event comes back as it was", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const EventMessage& event : sample_events(dialect)) {
    CAPTURE(static_cast<int>(event.event.kind()));
    const Exact exact = checked(codec, event).exact();
    const auto back = codec.decode_upward(exact.frame());
    REQUIRE(back);
    CHECK(equal(*back, Upward{event}));
    const auto& decoded = std::get<EventMessage>(*back).event;
    CHECK(decoded.decide);
    CHECK(decoded.actions == ActionSet{});
  }
}

TEST_CASE("a command error comes back as it was", "[kvmi1][v7]") {
  const CommandError error{-kEinval, Seq{0x99887766}, 21};
  const Exact exact = checked(codec_v7(), error).exact();
  const auto back = codec_v7().decode_upward(exact.frame());
  REQUIRE(back);
  CHECK(equal(*back, Upward{error}));
}

TEST_CASE("every event reply comes back as it was", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const EventReplyMessage& reply : sample_event_replies()) {
    CAPTURE(reply.event, reply.data.size());
    const Exact exact = checked(codec, reply).exact();
    const auto back = codec.decode_downward(exact.frame());
    REQUIRE(back);
    CHECK(equal(*back, Downward{reply}));
  }
}

TEST_CASE("a command cut at any byte reads as zeros, is refused, or closes", "[kvmi1][v7][cut]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Command& command : sample_commands(dialect)) {
    const Written wire = written(codec, command);
    for (std::size_t n = 0; n < wire.payload.size(); ++n) {
      CAPTURE(wire.id, n);
      check_cut_command(codec, command, wire, n);
    }
  }
}

TEST_CASE("an event reply cut within its first 16 bytes closes, later it has less data", "[kvmi1][v7][cut]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (const EventReplyMessage& reply : sample_event_replies()) {
    const Written wire = written(codec, reply);
    for (std::size_t n = 0; n < wire.payload.size(); ++n) {
      CAPTURE(reply.event, n);
      const Exact cut = wire.cut(n);
      const auto down = codec.decode_downward(cut.frame());
      REQUIRE(down.has_value() == (n >= 16));
      if (down) {
        EventReplyMessage expected = reply;
        expected.data = expected.data.first(n - 16);
        CHECK(equal(*down, Downward{expected}));
        // The part that depends on the event stays within what came, whatever it is taken for.
        for (unsigned event = 0; event < kEventCount; ++event) {
          const auto& cut_reply = std::get<EventReplyMessage>(*down);
          const auto data = codec.read_reply(static_cast<EventKind>(event), cut_reply);
          if (data) CHECK(data->context.size() <= kContextSize);
        }
      } else {
        CHECK(down.error().answer == 0);
        CHECK(down.error().error.code == DecodeErrc::Truncated);
      }
    }
  }
}

TEST_CASE("a reply cut at any byte is an error, but for those that are as long as they are", "[kvmi1][v7][cut]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Reply& reply : sample_replies(dialect)) {
    const Written wire = written(codec, reply);
    for (std::size_t n = 0; n < wire.payload.size(); ++n) {
      CAPTURE(reply.id, n);
      const Exact cut = wire.cut(n);
      const auto up = codec.decode_upward(cut.frame());
      if (n < 8 && reply.id == 999) {
        REQUIRE(up);
        CHECK(std::holds_alternative<UnknownMessage>(*up));
        continue;
      }
      const bool bytes = std::holds_alternative<ReadPhysicalReply>(reply.body) ||
                         std::holds_alternative<GetPageAccessReply>(reply.body);
      const bool words = std::holds_alternative<GetPageWriteBitmapReply>(reply.body);
      const bool whole = n >= 8 && (bytes || (words && n % 4 == 0));
      REQUIRE(up.has_value() == whole);
      if (!up) CHECK(up.error().code == DecodeErrc::Truncated);
    }
  }
}

TEST_CASE("an event cut at any byte is an error", "[kvmi1][v7][cut]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const EventMessage& event : sample_events(dialect)) {
    const Written wire = written(codec, event);
    for (std::size_t n = 0; n < wire.payload.size(); ++n) {
      CAPTURE(static_cast<int>(event.event.kind()), n);
      const Exact cut = wire.cut(n);
      const auto up = codec.decode_upward(cut.frame());
      if (dialect == DialectId::V7 && event.event.kind() == EventKind::Singlestep && n == 544) {
        REQUIRE(up);  // as kernels without its data send it
        CHECK(!std::get<SinglestepData>(std::get<EventMessage>(*up).event.data).failed);
        continue;
      }
      REQUIRE(!up);
      CHECK(up.error().code == DecodeErrc::Truncated);
    }
  }
}

}  // namespace kvmid::kvmi1::test
