// SPDX-License-Identifier: GPL-2.0-or-later
//
// Recorded traffic of the v12 kernel code: everything it sent and accepted decodes and encodes back to the same bytes;
// what it refused is refused in the same way.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "protocol/wire_v12.h"
#include "tests/unit/kvmi1/shared/support.h"

namespace kvmid::kvmi1::test {
namespace {

using Errc = DecodeErrc;

const Codec& of_v12() { return codec(DialectId::V12); }

struct Refusal {
  const char* file;
  int n;
  Errc code;
  std::uint32_t offset;
  std::int32_t answer;
};
constexpr std::int32_t kEinvalAnswer = -kEinval, kCloses = 0;

/// Messages of tools that the codec refuses. For those with EINVAL the reply that was recorded says the same.
constexpr Refusal kRefusals[] = {
    {"v12-closes", 12, Errc::Truncated, 19, kCloses},
    {"v12-closes", 19, Errc::Truncated, 24, kCloses},
    {"v12-closes", 46, Errc::Truncated, 8, kCloses},
    {"v12-closes", 66, Errc::PaddingNotZero, 10, kCloses},
    {"v12-closes", 76, Errc::PaddingNotZero, 12, kCloses},
    {"v12-commands", 65, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 67, Errc::PaddingNotZero, 4, kEinvalAnswer},
    {"v12-commands", 99, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 101, Errc::PaddingNotZero, 7, kEinvalAnswer},
    {"v12-commands", 107, Errc::BadFlag, 2, kEinvalAnswer},
    {"v12-commands", 109, Errc::PaddingNotZero, 3, kEinvalAnswer},
    {"v12-commands", 111, Errc::PaddingNotZero, 4, kEinvalAnswer},
    {"v12-commands", 113, Errc::UnknownEvent, 0, kEinvalAnswer},
    {"v12-commands", 121, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 123, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 125, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 127, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-commands", 129, Errc::PaddingNotZero, 12, kEinvalAnswer},
    {"v12-commands", 141, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 143, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 145, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-commands", 147, Errc::PaddingNotZero, 12, kEinvalAnswer},
    {"v12-commands", 153, Errc::BadFlag, 0, kEinvalAnswer},
    {"v12-commands", 155, Errc::PaddingNotZero, 7, kEinvalAnswer},
    {"v12-commands", 177, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 179, Errc::PaddingNotZero, 4, kEinvalAnswer},
    {"v12-commands", 187, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 189, Errc::PaddingNotZero, 4, kEinvalAnswer},
    {"v12-commands", 229, Errc::BadFlag, 10, kEinvalAnswer},
    {"v12-commands", 231, Errc::PaddingNotZero, 11, kEinvalAnswer},
    {"v12-commands", 233, Errc::PaddingNotZero, 12, kEinvalAnswer},
    {"v12-commands", 235, Errc::UnknownEvent, 8, kEinvalAnswer},
    {"v12-commands", 237, Errc::UnknownEvent, 8, kEinvalAnswer},
    {"v12-commands", 239, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 245, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-commands", 247, Errc::PaddingNotZero, 12, kEinvalAnswer},
    {"v12-commands", 249, Errc::Truncated, 20, kEinvalAnswer},
    {"v12-commands", 255, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 259, Errc::Truncated, 12, kEinvalAnswer},
    {"v12-commands", 283, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 285, Errc::BadFlag, 9, kEinvalAnswer},
    {"v12-commands", 287, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-commands", 289, Errc::PaddingNotZero, 12, kEinvalAnswer},
    {"v12-commands", 293, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-commands", 295, Errc::PaddingNotZero, 9, kEinvalAnswer},
    {"v12-commands", 301, Errc::Truncated, 4103, kEinvalAnswer},
    {"v12-commands", 335, Errc::BadValue, 12, kEinvalAnswer},
    {"v12-commands", 337, Errc::BadValue, 12, kEinvalAnswer},
    {"v12-commands", 339, Errc::BadFlag, 8, kEinvalAnswer},
    {"v12-commands", 341, Errc::PaddingNotZero, 9, kEinvalAnswer},
    {"v12-commands", 343, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-commands", 347, Errc::BadFlag, 8, kEinvalAnswer},
    {"v12-commands", 349, Errc::PaddingNotZero, 9, kEinvalAnswer},
    {"v12-commands", 357, Errc::BadFlag, 2, kEinvalAnswer},
    {"v12-commands", 359, Errc::PaddingNotZero, 3, kEinvalAnswer},
    {"v12-commands", 361, Errc::PaddingNotZero, 4, kEinvalAnswer},
    {"v12-commands", 378, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-commands", 380, Errc::PaddingNotZero, 9, kEinvalAnswer},
    {"v12-commands", 382, Errc::PaddingNotZero, 10, kEinvalAnswer},
    {"v12-denied", 25, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-denied", 29, Errc::PaddingNotZero, 2, kEinvalAnswer},
    {"v12-denied", 63, Errc::BadFlag, 8, kEinvalAnswer},
    {"v12-denied", 65, Errc::BadFlag, 2, kEinvalAnswer},
    {"v12-selftest-a", 12, Errc::BadFlag, 10, kEinvalAnswer},
    {"v12-selftest-a", 14, Errc::UnknownEvent, 8, kEinvalAnswer},
    {"v12-selftest-a", 48, Errc::BadFlag, 9, kEinvalAnswer},
    {"v12-selftest-a", 50, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-selftest-a", 54, Errc::BadValue, 8, kEinvalAnswer},
    {"v12-selftest-a", 72, Errc::BadFlag, 8, kEinvalAnswer},
    {"v12-selftest-a", 74, Errc::BadValue, 12, kEinvalAnswer},
    {"v12-singlestep", 71, Errc::BadFlag, 8, kEinvalAnswer},
    {"v12-singlestep", 73, Errc::PaddingNotZero, 15, kEinvalAnswer},
    {"v12-uninit", 13, Errc::PaddingNotZero, 2, kEinvalAnswer},
};

/// Messages of tools that decode and are not encoded in the same way.
struct Odd {
  const char* file;
  int n;
  const char* why;
};
constexpr Odd kOdd[] = {
    {"v12-commands", 5, "4 bytes too many, ignored"},
    {"v12-commands", 69, "CHECK_COMMAND of 2 bytes, filled with zeros"},
    {"v12-commands", 139, "WRITE_PHYSICAL with 2 bytes too many, ignored"},
    {"v12-commands", 191, "GET_VCPU_INFO without payload: vCPU 0"},
    {"v12-commands", 303, "SET_XSAVE with 4 bytes too many, ignored"},
};

const Refusal* refusal_of(const Recorded& message) {
  for (const auto& refusal : kRefusals) {
    if (refusal.file == message.file && refusal.n == message.n) return &refusal;
  }
  return nullptr;
}

bool is_odd(const Recorded& message) {
  return std::any_of(std::begin(kOdd), std::end(kOdd),
                     [&](const Odd& odd) { return odd.file == message.file && odd.n == message.n; });
}

/// A payload that the connection refuses before a codec sees it.
bool is_too_large(const Recorded& message) {
  return message.bytes.size() > sizeof(kvmi_msg_hdr) + of_v12().payload_max();
}

/// "CMD VCPU_GET_INFO" -> GET_VCPU_INFO's kind, by the number that dialect_layouts.json has for the name.
std::optional<CommandKind> kind_named(const std::string& what) {
  const auto& numbers = layouts().at("dialects").at("v12").at("constants").at("messages");
  const auto entry = numbers.find("KVMI_" + what.substr(what.find(' ') + 1));
  if (entry == numbers.end()) return std::nullopt;
  return of_v12().command_of(entry->get<std::uint16_t>());
}

std::optional<EventKind> event_named(const std::string& what) {
  const auto& numbers = layouts().at("dialects").at("v12").at("constants").at("events");
  for (const char* prefix : {"KVMI_VCPU_EVENT_", "KVMI_VM_EVENT_"}) {
    const auto entry = numbers.find(prefix + what.substr(what.find(' ') + 1));
    if (entry != numbers.end()) return of_v12().event_of(entry->get<std::uint16_t>());
  }
  return std::nullopt;
}

/// Everything in an event that is padding, set to zero.
void clear_event_padding(std::vector<std::byte>& message) {
  const auto clear = [&](std::size_t at, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) message.at(sizeof(kvmi_msg_hdr) + at + i) = std::byte{0};
  };
  for (const auto& leaf : layouts().at("dialects").at("v12").at("structs").at("kvmi_vcpu_event").at("leaves")) {
    const auto path = leaf.at("path").get<std::string>();
    if (path.find("padding") == std::string::npos) continue;
    clear(sizeof(v12::EventHdr) + leaf.at("offset").get<std::size_t>(), leaf.at("size").get<std::size_t>());
  }
}

/// Events and commands are counted apart. v12 gives an event and the answer to it the same id.
using Key = std::tuple<std::string, int, std::uint16_t, std::uint32_t>;  // file, connection, id, seq

}  // namespace

TEST_CASE("what tools sent to v12 kernels is read, and refused, as these did", "[kvmi1][v12][captures]") {
  const auto messages = recorded("v12-");
  REQUIRE(messages.size() > 1000);
  std::size_t refused = 0;
  std::size_t odd = 0;
  for (const auto& message : messages) {
    if (!message.down || is_too_large(message)) continue;
    CAPTURE(message.file, message.n, message.what, message.note);
    const auto frame = message.frame();
    const auto decoded = of_v12().decode_downward(frame.frame());
    const Refusal* refusal = refusal_of(message);
    REQUIRE(decoded.has_value() == (refusal == nullptr));
    if (refusal != nullptr) {
      ++refused;
      REQUIRE(decoded.error().error.id == frame.frame().id);
      REQUIRE(decoded.error().error.code == refusal->code);
      REQUIRE(decoded.error().error.offset == refusal->offset);
      REQUIRE(decoded.error().answer == refusal->answer);
      continue;
    }
    if (message.what.starts_with("CMD unknown")) {
      REQUIRE(std::get<UnknownMessage>(*decoded).id == frame.frame().id);
      continue;
    }
    if (const auto* command = std::get_if<Command>(&*decoded)) {
      REQUIRE(kind_of_command(*command) == kind_named(message.what));
    }
    ByteBuffer out;
    std::visit(Overloaded{
                   [](const UnknownMessage& m) { FAIL("unknown id " << m.id); },
                   [&](const auto& m) { of_v12().encode(m, frame.frame().seq, out); },
               },
               *decoded);
    odd += is_odd(message) ? 1 : 0;
    REQUIRE((out == message.bytes) == !is_odd(message));
  }
  REQUIRE(refused == std::size(kRefusals));
  REQUIRE(odd == std::size(kOdd));
}

TEST_CASE("a recorded refusal with EINVAL was answered so by the kernel", "[kvmi1][v12][captures]") {
  using Place = std::pair<std::string, int>;  // file, message
  std::map<Key, Place> asked;                 // an event can be answered again, after a refusal
  std::map<Place, std::int32_t> answers;
  for (const auto& message : recorded("v12-")) {
    const auto frame = message.frame();
    const Key key{message.file, message.connection, frame.frame().id, frame.frame().seq.value};
    if (message.down) {
      asked[key] = {message.file, message.n};
    } else if (message.what.starts_with("REPLY")) {
      const auto decoded = of_v12().decode_upward(frame.frame());
      REQUIRE(decoded);
      answers[asked.at(key)] = std::get<Reply>(*decoded).error;
    }
  }
  // Answered with EINVAL for what only the hypervisor knows: which vCPUs, pages and MSRs there are, what the processor
  // takes; and entries of SET_PAGE_ACCESS, of which the good ones are applied.
  const std::set<Place> of_state{
      {"v12-2vcpus", 15},    {"v12-commands", 171}, {"v12-commands", 173},   {"v12-commands", 175},
      {"v12-commands", 181}, {"v12-commands", 185}, {"v12-commands", 251},   {"v12-commands", 305},
      {"v12-commands", 363}, {"v12-commands", 376}, {"v12-selftest-a", 6},   {"v12-selftest-a", 20},
      {"v12-selftest-a", 24}};
  for (const auto& message : recorded("v12-")) {
    if (!message.down || refusal_of(message) != nullptr) continue;
    const auto answer = answers.find({message.file, message.n});
    CAPTURE(message.file, message.n, message.what);
    REQUIRE((answer != answers.end() && answer->second == -kEinval) == of_state.contains({message.file, message.n}));
  }
  // Commands that user space had disallowed: nobody looked at their payload.
  const std::set<int> denied{25, 29, 63};
  for (const auto& refusal : kRefusals) {
    CAPTURE(refusal.file, refusal.n);
    const Place place{refusal.file, refusal.n};
    if (refusal.answer == kCloses) {
      REQUIRE_FALSE(answers.contains(place));
    } else if (std::string_view(refusal.file) == "v12-denied" && denied.contains(refusal.n)) {
      REQUIRE(answers.at(place) == -kEperm);
    } else {
      REQUIRE(answers.at(place) == refusal.answer);
    }
  }
}

TEST_CASE("what v12 kernels sent decodes, and encodes back to the same bytes", "[kvmi1][v12][captures]") {
  std::set<EventKind> events;
  std::set<CommandKind> replies;
  std::size_t padded = 0;
  for (const auto& message : recorded("v12-")) {
    if (message.down) continue;
    CAPTURE(message.file, message.n, message.what, message.note);
    const auto frame = message.frame();
    const auto decoded = of_v12().decode_upward(frame.frame());
    REQUIRE(decoded);
    ByteBuffer out;
    std::visit(Overloaded{
                   [](const UnknownMessage& m) { FAIL("unknown id " << m.id); },
                   [&](const EventMessage& m) {
                     events.insert(m.event.kind());
                     REQUIRE(m.event.kind() == event_named(message.what));
                     of_v12().encode(m, frame.frame().seq, out);
                   },
                   [&](const Reply& m) {
                     REQUIRE(message.what.starts_with("REPLY"));
                     if (const auto kind = kind_named(message.what); kind && m.error == 0) replies.insert(*kind);
                     of_v12().encode(m, frame.frame().seq, out);
                   },
                   [&](const auto& m) { of_v12().encode(m, frame.frame().seq, out); },
               },
               *decoded);
    auto expected = message.bytes;
    if (message.what.starts_with("EVENT") && frame.frame().id == v12::kVcpuEventId) clear_event_padding(expected);
    // Padding that is not zero is the one thing that is not sent back.
    if (expected != message.bytes) {
      ++padded;
      REQUIRE(message.file == "v12-event-padding");
    }
    REQUIRE(out == expected);
  }
  REQUIRE(padded > 0);
  for (unsigned i = 0; i < kEventCount; ++i) {
    CAPTURE(name_of(static_cast<EventKind>(i)));
    REQUIRE(events.contains(static_cast<EventKind>(i)) == of_v12().number_of(static_cast<EventKind>(i)).has_value());
  }
  for (std::size_t i = 0; i < kCommandCount; ++i) {
    const auto kind = static_cast<CommandKind>(i);
    CAPTURE(name_of(kind));
    REQUIRE(replies.contains(kind) == of_v12().number_of(kind).has_value());
  }
}

TEST_CASE("replies to recorded events are read, and refused, as v12 kernels did", "[kvmi1][v12][captures]") {
  std::map<Key, EventKind> open;
  std::set<std::pair<std::string, int>> too_long;
  std::size_t values = 0;
  for (const auto& message : recorded("v12-")) {
    const auto frame = message.frame();
    const Key key{message.file, message.connection, frame.frame().id, frame.frame().seq.value};
    CAPTURE(message.file, message.n, message.what);
    if (!message.down) {
      const auto decoded = of_v12().decode_upward(frame.frame());
      REQUIRE(decoded);
      if (const auto* event = std::get_if<EventMessage>(&*decoded)) open[key] = event->event.kind();
      continue;
    }
    if (frame.frame().id != of_v12().event_reply_id() || refusal_of(message) != nullptr) continue;
    if (!open.contains(key)) continue;
    const auto decoded = of_v12().decode_downward(frame.frame());
    REQUIRE(decoded);
    const auto& reply = std::get<EventReplyMessage>(*decoded);
    const auto data = of_v12().read_reply(open.at(key), reply);
    if (!data) {
      REQUIRE(data.error().code == Errc::TooLong);
      too_long.insert({message.file, message.n});
      continue;
    }
    std::uint64_t value = 0;
    if (!reply.data.empty()) std::memcpy(&value, reply.data.data(), reply.data.size());
    values += value != 0 ? 1 : 0;
    REQUIRE(data->new_value == value);
  }
  REQUIRE(values > 10);
  REQUIRE(too_long == std::set<std::pair<std::string, int>>{
                          {"v12-closes", 56}, {"v12-closes", 126}, {"v12-closes", 142}});
}

TEST_CASE("a payload of 8185 bytes never reaches the codec", "[kvmi1][v12][captures]") {
  std::size_t seen = 0;
  for (const auto& message : recorded("v12-closes")) {
    if (!is_too_large(message)) continue;
    ++seen;
    FrameParser parser(of_v12().payload_max());
    const auto room = parser.writable();
    std::memcpy(room.data(), message.bytes.data(), sizeof(kvmi_msg_hdr));
    parser.commit(sizeof(kvmi_msg_hdr));
    const auto next = parser.next();
    REQUIRE_FALSE(next);
    REQUIRE(next.error().code == FrameErrc::PayloadTooLarge);
    REQUIRE(next.error().size == 8185);
  }
  REQUIRE(seen == 1);
}

}  // namespace kvmid::kvmi1::test
