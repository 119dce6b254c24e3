// SPDX-License-Identifier: GPL-2.0-or-later
//
// Every message of KVMI 2 against bytes made by another program (tests/vectors/make_kvmi2.py): read, written, cut at
// every byte, one byte too long, and with each padding byte set.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <random>
#include <set>

#include "protocol/dialect_kvmi2.h"
#include "vector_values.h"

using namespace kvmid;
using namespace kvmid::test;
using nlohmann::json;

namespace {

struct Vector {
  const json& entry;
  std::vector<std::byte> bytes = bytes_of_hex(entry.at("hex").get<std::string>());

  [[nodiscard]] std::string what() const { return entry.at("what"); }
  [[nodiscard]] bool down() const { return entry.at("direction") == "down"; }
  [[nodiscard]] bool framed() const { return down() || entry.at("direction") == "up"; }
  [[nodiscard]] bool open_tail() const { return entry.at("open_tail"); }
  [[nodiscard]] Bytes payload() const { return Bytes(bytes).subspan(sizeof(kvmi_msg_hdr)); }
  [[nodiscard]] kvmi_msg_hdr header() const {
    kvmi_msg_hdr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    return header;
  }
};

std::vector<Vector> framed_vectors() {
  std::vector<Vector> vectors;
  for (const auto& entry : all_vectors()) {
    Vector vector{entry};
    if (vector.framed()) vectors.push_back(std::move(vector));
  }
  return vectors;
}

/// A payload in memory of just its size, and at an odd address: AddressSanitizer sees a read outside, and
/// UndefinedBehaviorSanitizer an unaligned one.
class ExactCopy {
 public:
  explicit ExactCopy(Bytes bytes) : size_(bytes.size()), memory_(new std::byte[bytes.size() + 1]) {
    std::copy(bytes.begin(), bytes.end(), memory_.get() + 1);
  }
  [[nodiscard]] Bytes bytes() const { return {memory_.get() + 1, size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> memory_;
};

/// What decoding gave: the values and the bytes they encode to again, or the error.
struct Outcome {
  std::optional<DecodeError> error;
  json values;
  ByteBuffer encoded;
};

void encode_again(const Downward& message, Seq seq, ByteBuffer& out) {
  DialectKvmi2 dialect;
  std::visit(Overloaded{
                 [&](const UnknownMessage&) { FAIL("an unknown message where a known one was expected"); },
                 [&](const auto& m) { dialect.encode(m, seq, out); },
             },
             message);
}

void encode_again(const Upward& message, Seq seq, ByteBuffer& out) {
  DialectKvmi2 dialect;
  std::visit(Overloaded{
                 [&](const UnknownMessage&) { FAIL("an unknown message where a known one was expected"); },
                 [&](const Event& m) { dialect.encode(m, seq, out); },
                 [&](const CommandReply& m) { dialect.encode(m, seq, out); },
                 [&](const auto& m) { dialect.encode(m, out); },
             },
             message);
}

template <class Message>
Outcome outcome_of(const Result<Message, DecodeError>& message, Seq seq) {
  Outcome outcome;
  if (!message) {
    outcome.error = message.error();
    return outcome;
  }
  outcome.values = values_of(*message);
  encode_again(*message, seq, outcome.encoded);
  return outcome;
}

Outcome decode(bool down, std::uint16_t id, Seq seq, Bytes payload) {
  DialectKvmi2 dialect;
  const ExactCopy copy(payload);
  const Frame frame{id, seq, copy.bytes()};
  return down ? outcome_of(dialect.decode_downward(frame), seq) : outcome_of(dialect.decode_upward(frame), seq);
}

Outcome decode(const Vector& vector, Bytes payload) {
  return decode(vector.down(), vector.header().id, Seq{vector.header().seq}, payload);
}

}  // namespace

TEST_CASE("every vector decodes to its values and encodes to its bytes", "[vectors]") {
  for (const auto& vector : framed_vectors()) {
    CAPTURE(vector.what());
    REQUIRE(vector.header().size == vector.payload().size());
    const auto outcome = decode(vector, vector.payload());
    if (outcome.error) FAIL(describe(*outcome.error));
    REQUIRE(outcome.values == vector.entry.at("fields"));
    REQUIRE(hex_of(outcome.encoded) == vector.entry.at("hex").get<std::string>());
  }
}

TEST_CASE("every message, event, reply, notice and reason has a vector", "[vectors]") {
  std::set<int> requests, successes, failures;
  std::set<std::string> events, event_replies, notices, reasons, opening, upward;
  for (const auto& entry : all_vectors()) {
    const Vector vector{entry};
    const auto& fields = entry.at("fields");
    if (!vector.framed()) {
      opening.insert(entry.at("direction"));
    } else if (entry.contains("event")) {
      (vector.down() ? event_replies : events).insert(entry.at("event"));
    } else if (entry.contains("notice")) {
      notices.insert(entry.at("notice"));
    } else if (!vector.down() && !fields.contains("error")) {
      upward.insert(entry.at("message"));
      if (fields.contains("reason")) reasons.insert(fields.at("reason"));
    } else if (vector.down()) {
      requests.insert(vector.header().id);
    } else {
      (fields.at("error") == "OK" ? successes : failures).insert(vector.header().id);
    }
  }

  std::set<int> commands;
  for (int id = 0; id < 64; ++id) {
    if (name_of(static_cast<CommandId>(id)) != "unknown") commands.insert(id);
  }
  REQUIRE(commands.size() == std::variant_size_v<Command>);
  REQUIRE(requests == commands);
  REQUIRE(successes == commands);
  REQUIRE(failures == commands);

  std::set<std::string> every_event;
  for (unsigned i = 0; i < kEventCount; ++i) every_event.emplace(name_of(static_cast<EventKind>(i)));
  REQUIRE(events == every_event);
  REQUIRE(event_replies == every_event);

  std::set<std::string> every_notice, every_reason;
  for (int i = KVMI_NOTICE_EXPIRED; i <= KVMI_NOTICE_FRAME_REFUSED; ++i) {
    every_notice.emplace(name_of(static_cast<NoticeKind>(i)));
  }
  for (int i = 0; i <= KVMI_OFF_RESET; ++i) every_reason.emplace(name_of(static_cast<OffReason>(i)));
  REQUIRE(notices == every_notice);
  REQUIRE(reasons == every_reason);
  REQUIRE(upward == std::set<std::string>{"GUEST_ON", "GUEST_OFF", "MEMORY_MAP_CHANGED"});
  REQUIRE(opening == std::set<std::string>{"hello", "welcome", "handshake", "answer"});
}

TEST_CASE("a payload cut anywhere is too short", "[vectors]") {
  for (const auto& vector : framed_vectors()) {
    CAPTURE(vector.what());
    for (std::size_t cut = 0; cut < vector.payload().size(); ++cut) {
      CAPTURE(cut);
      const auto outcome = decode(vector, vector.payload().first(cut));
      // What has no length of its own is shorter then, and no less a message.
      if (vector.open_tail() && !outcome.error) continue;
      REQUIRE(outcome.error);
      REQUIRE(outcome.error->code == DecodeErrc::Truncated);
      REQUIRE(outcome.error->offset == cut);
      REQUIRE(outcome.error->id == vector.header().id);
    }
  }
}

TEST_CASE("a payload with one byte too many is too long", "[vectors]") {
  for (const auto& vector : framed_vectors()) {
    if (vector.open_tail()) continue;
    CAPTURE(vector.what());
    std::vector<std::byte> longer(vector.payload().begin(), vector.payload().end());
    longer.push_back(std::byte{0});
    const auto outcome = decode(vector, longer);
    REQUIRE(outcome.error);
    REQUIRE(outcome.error->code == DecodeErrc::TooLong);
    REQUIRE(outcome.error->offset == vector.payload().size());
  }
}

TEST_CASE("each byte of padding must be zero", "[vectors]") {
  std::size_t tried = 0;
  for (const auto& vector : framed_vectors()) {
    CAPTURE(vector.what());
    for (const std::size_t offset : vector.entry.at("padding")) {
      CAPTURE(offset);
      std::vector<std::byte> changed(vector.payload().begin(), vector.payload().end());
      changed.at(offset) = std::byte{1};
      const auto outcome = decode(vector, changed);
      REQUIRE(outcome.error);
      REQUIRE(outcome.error->code == DecodeErrc::PaddingNotZero);
      REQUIRE(outcome.error->offset == offset);
      ++tried;
    }
  }
  REQUIRE(tried > 500);
}

TEST_CASE("changed bytes are refused, or mean something else that encodes to just them", "[vectors]") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto vectors = framed_vectors();
  std::size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto& vector = vectors[random() % vectors.size()];
    std::vector<std::byte> bytes = vector.bytes;
    if (vector.payload().empty()) continue;
    const auto changes = 1 + random() % 4;
    for (std::uint32_t i = 0; i < changes; ++i) {
      const auto offset = sizeof(kvmi_msg_hdr) + random() % vector.payload().size();
      bytes[offset] = static_cast<std::byte>(random() % 3 == 0 ? random() % 4 : random());
    }
    const auto outcome = decode(vector, Bytes(bytes).subspan(sizeof(kvmi_msg_hdr)));
    if (outcome.error) continue;
    ++accepted;
    CAPTURE(vector.what());
    REQUIRE(hex_of(outcome.encoded) == hex_of(bytes));
  }
  REQUIRE(accepted > 100);
}

TEST_CASE("random payloads of every id are read within their bounds", "[vectors]") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  DialectKvmi2 dialect;
  for (int round = 0; round < 20000; ++round) {
    const auto id = static_cast<std::uint16_t>(random() % 40);
    std::vector<std::byte> payload(random() % 700);
    for (auto& byte : payload) byte = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);
    const ExactCopy copy(payload);
    const Frame frame{id, Seq{1}, copy.bytes()};
    // Whatever comes out is one or the other; reads outside are the sanitizers' to find.
    const auto down = dialect.decode_downward(frame);
    const auto up = dialect.decode_upward(frame);
    if (!down) REQUIRE(down.error().offset <= payload.size());
    if (!up) REQUIRE(up.error().offset <= payload.size());
  }
}

TEST_CASE("encoding into a buffer with room does not allocate", "[vectors]") {
  ByteBuffer out;
  out.reserve(70000);
  const auto* before = out.data();
  DialectKvmi2 dialect;
  Event event;
  event.data = AccessData{};
  dialect.encode(event, Seq{1}, out);
  const std::vector<std::byte> data(KVMI_MAX_PAYLOAD - 24 - 4000);
  dialect.encode(Command{WritePhysical{.gpa = {}, .space = {}, .flags = 0, .cookie = 0, .data = data, .expected = {}}},
                 Seq{2}, out);
  REQUIRE(out.data() == before);
}

TEST_CASE("structs that open a connection decode to their values and encode to their bytes", "[vectors][handshake]") {
  for (const auto& entry : all_vectors()) {
    const Vector vector{entry};
    if (vector.framed()) continue;
    CAPTURE(vector.what());
    const auto check = [&](const auto& result) {
      if (!result) FAIL(describe(result.error()));
      REQUIRE(values_of(*result) == entry.at("fields"));
      ByteBuffer out;
      encode(*result, out);
      REQUIRE(hex_of(out) == entry.at("hex").get<std::string>());
    };
    const auto size = first_struct_size(Bytes(vector.bytes).first(4));
    REQUIRE(size);
    REQUIRE(**size == vector.bytes.size());
    const ExactCopy copy(vector.bytes);
    const auto kind = entry.at("direction").get<std::string>();
    if (kind == "hello") check(parse_agent_hello(copy.bytes()));
    else if (kind == "welcome") check(parse_welcome(copy.bytes()));
    else if (kind == "handshake") check(parse_hypervisor_hello(copy.bytes()));
    else if (kind == "answer") check(parse_hypervisor_answer(copy.bytes()));
    else FAIL("unknown kind");
  }
}

TEST_CASE("padding in structs that open a connection must be zero", "[vectors][handshake]") {
  for (const auto& entry : all_vectors()) {
    const Vector vector{entry};
    if (vector.framed()) continue;
    CAPTURE(vector.what());
    for (const std::size_t offset : entry.at("padding")) {
      CAPTURE(offset);
      auto changed = vector.bytes;
      changed.at(offset) = std::byte{1};
      const bool welcome = entry.at("direction") == "welcome";
      const bool refused = welcome ? !parse_welcome(changed) : !parse_hypervisor_hello(changed);
      REQUIRE(refused);
    }
  }
}
