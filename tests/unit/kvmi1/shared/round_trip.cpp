// SPDX-License-Identifier: GPL-2.0-or-later

#include "tests/unit/kvmi1/shared/round_trip.h"

#include <catch2/catch.hpp>
#include <set>

#include "tests/unit/kvmi1/shared/equal_rfc2017.h"
#include "tests/unit/kvmi1/shared/samples.h"

namespace kvmid::kvmi1::test {
namespace {

/// How many bytes of the payload are behind what `fixed` counts.
std::size_t tail_of(const nlohmann::json& message, const char* fixed, const Written& bytes) {
  const auto size = message.at(fixed).get<std::size_t>();
  REQUIRE(bytes.payload.size() >= size);
  return bytes.payload.size() - size;
}

void require_tail(const nlohmann::json& message, const char* tail, std::size_t size) {
  const bool has_tail = message.contains(tail);
  REQUIRE((has_tail || size == 0));
  if (has_tail) REQUIRE(size % message.at(tail).at("element_size").get<std::size_t>() == 0);
}

}  // namespace

void require_samples_complete(const Codec& codec) {
  std::set<CommandKind> commands;
  for (const auto& command : commands_of(codec.dialect())) commands.insert(kind_of_command(command));
  for (std::size_t i = 0; i < kCommandCount; ++i) {
    const auto kind = static_cast<CommandKind>(i);
    CAPTURE(name_of(kind));
    REQUIRE(codec.number_of(kind).has_value() == commands.contains(kind));
  }
  std::set<EventKind> events;
  for (const auto& message : events_of(codec.dialect())) events.insert(message.event.kind());
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    CAPTURE(name_of(kind));
    REQUIRE(codec.number_of(kind).has_value() == events.contains(kind));
  }
}

void require_round_trips(const Codec& codec) {
  for (const auto& command : commands_of(codec.dialect())) {
    CAPTURE(name_of(kind_of_command(command)));
    const auto bytes = written(codec, command);
    const auto frame = bytes.whole();
    const auto decoded = codec.decode_downward(frame.frame());
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Downward{command}));
    REQUIRE(frame.frame().seq == kSeq);
    REQUIRE(codec.command_of(bytes.id) == kind_of_command(command));
  }
  for (const auto& reply : event_replies_of(codec.dialect())) {
    const auto bytes = written(codec, reply);
    REQUIRE(bytes.id == codec.event_reply_id());
    const auto frame = bytes.whole();
    const auto decoded = codec.decode_downward(frame.frame());
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Downward{reply}));
  }
  for (const auto& message : events_of(codec.dialect())) {
    CAPTURE(name_of(message.event.kind()));
    const auto frame = written(codec, message).whole();
    const auto decoded = codec.decode_upward(frame.frame());
    REQUIRE(decoded);
    REQUIRE(equal(*decoded, Upward{message}));
  }
  for (const auto& success : replies_of(codec.dialect())) {
    const Reply failure{.id = success.id, .error = -kEinval};
    for (const auto& reply : {success, failure}) {
      CAPTURE(reply.id, reply.error);
      const auto frame = written(codec, reply).whole();
      REQUIRE((reply.error == 0 || frame.frame().payload.size() == 8));
      const auto decoded = codec.decode_upward(frame.frame());
      REQUIRE(decoded);
      REQUIRE(equal(*decoded, Upward{reply}));
    }
  }
}

void require_sizes(const Codec& codec, const nlohmann::json& dialect) {
  const auto commands = commands_of(codec.dialect());
  const auto replies = replies_of(codec.dialect());
  std::size_t seen = 0;
  for (const auto& message : dialect.at("messages")) {
    if (message.at("scope") != "vm" && message.at("scope") != "vcpu") continue;
    const auto name = message.at("name").get<std::string>();
    CAPTURE(name);
    for (std::size_t i = 0; i < commands.size(); ++i) {
      if (replies[i].id != message.at("id")) continue;
      ++seen;
      const auto request = written(codec, commands[i]);
      require_tail(message, "request_tail", tail_of(message, "request_fixed_size", request));
      const auto reply = written(codec, replies[i]);
      require_tail(message, "reply_tail", tail_of(message, "reply_fixed_size", reply));
    }
  }
  REQUIRE(seen == commands.size());

  const auto events = events_of(codec.dialect());
  const auto event_replies = event_replies_of(codec.dialect());
  std::set<EventKind> kinds;
  for (const auto& entry : dialect.at("event_messages")) {
    const auto name = entry.at("name").get<std::string>();
    CAPTURE(name);
    const auto kind = codec.event_of(entry.at("id").get<std::uint16_t>());
    REQUIRE(kind);
    for (std::size_t i = 0; i < events.size(); ++i) {
      if (events[i].event.kind() != *kind) continue;
      kinds.insert(*kind);
      REQUIRE(written(codec, events[i]).payload.size() == entry.at("payload_size"));
      if (entry.at("reply_payload").is_null()) continue;
      REQUIRE(written(codec, event_replies[i]).payload.size() == entry.at("reply_payload_size"));
      REQUIRE(codec.read_reply(*kind, event_replies[i]));
    }
  }
  REQUIRE(kinds.size() == dialect.at("event_messages").size());
}

void require_numbers(const Codec& codec, const nlohmann::json& dialect) {
  std::set<std::uint16_t> numbers;
  for (const auto& message : dialect.at("messages")) {
    if (message.at("scope") != "vm" && message.at("scope") != "vcpu") continue;
    auto name = message.at("name").get<std::string>();
    const auto number = message.at("id").get<std::uint16_t>();
    CAPTURE(name, number);
    REQUIRE(dialect.at("constants").at("messages").at(name) == number);
    numbers.insert(number);
    const auto kind = codec.command_of(number);
    REQUIRE(kind);
    REQUIRE(codec.number_of(*kind) == number);
  }
  std::set<std::uint16_t> events;
  for (const auto& [name, number] : dialect.at("constants").at("events").items()) {
    CAPTURE(name);
    events.insert(number.get<std::uint16_t>());
    const auto kind = codec.event_of(number.get<std::uint16_t>());
    REQUIRE(kind);
    REQUIRE(codec.number_of(*kind) == number.get<std::uint16_t>());
  }
  for (unsigned i = 0; i <= 0xffff; ++i) {
    const auto number = static_cast<std::uint16_t>(i);
    if (codec.command_of(number).has_value() != numbers.contains(number)) FAIL("command " << number);
    if (codec.event_of(number).has_value() != events.contains(number)) FAIL("event " << number);
  }
}

}  // namespace kvmid::kvmi1::test
