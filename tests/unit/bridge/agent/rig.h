// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A tool and a core on either side of an AgentBridge, played by hand.
///
/// Purpose:  tests say what the tool sends and what the core answers, and look at what reaches the other side.
/// Shapes:   frames that the tool sent stay alive as long as the rig, like a core that has not finished with them.
/// Threads:  none.

#include <catch2/catch.hpp>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bridge/agent_bridge.h"
#include "bridge/errors.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

inline ToolRights every_right() {
  ToolRights rights;
  rights.commands.bits = ~std::uint64_t{0};
  rights.events = kEveryEvent;
  return rights;
}

/// A message that reached the tool.
struct Told {
  std::uint16_t id = 0;
  Seq seq;
  std::vector<std::byte> payload;

  [[nodiscard]] Frame frame() const { return Frame{id, seq, payload}; }
  [[nodiscard]] std::int32_t error() const {
    std::int32_t error = 0;
    REQUIRE(payload.size() >= sizeof error);
    std::memcpy(&error, payload.data(), sizeof error);
    return error;
  }
  template <class T>
  [[nodiscard]] T at(std::size_t offset) const {
    T value;
    REQUIRE(payload.size() >= offset + sizeof value);
    std::memcpy(&value, payload.data() + offset, sizeof value);
    return value;
  }
};

class Rig {
 public:
  static constexpr std::uint16_t kVcpus = 2;

  /// `of_a_hypervisor`: the bridge is one of a hypervisor process, not of kvmid.
  explicit Rig(DialectId dialect, const ToolRights& rights = every_right(), bool of_a_hypervisor = false)
      : bridge({dialect, !of_a_hypervisor, of_a_hypervisor}, rights), codec(kvmi1::codec(dialect)) {
    CHECK(next<GetGuestInfo>() != nullptr);
    GetGuestInfoReply facts;
    facts.vcpu_count = kVcpus;
    facts.tsc_hz = 3'000'000'000;
    facts.max_gpa = 0x10000000;
    answer(facts);
    CHECK(wire.empty());
  }

  // ---- the tool ----

  /// Why the connection is to be closed, or "".
  std::string send_raw(std::uint16_t id, std::uint32_t seq, std::vector<std::byte> payload) {
    frames_.push_back(std::move(payload));
    const auto result = bridge.received(Frame{id, Seq{seq}, frames_.back()}, wire);
    return result ? std::string{} : result.error();
  }
  template <class Message>
  std::string send_any(const Message& message, std::uint32_t seq) {
    ByteBuffer bytes;
    codec.encode(message, Seq{seq}, bytes);
    kvmi_msg_hdr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    return send_raw(header.id, seq, {bytes.begin() + sizeof header, bytes.end()});
  }
  /// Sends a command with the next number, and expects the connection to go on.
  std::uint32_t send(const kvmi1::Command& command) {
    CHECK(send_any(command, ++seq_) == "");
    return seq_;
  }
  std::string reply(std::uint32_t seq, VcpuId vcpu, std::uint32_t action, Bytes data = {}, std::uint8_t event = 0) {
    kvmi1::EventReplyMessage message;
    message.vcpu = vcpu;
    message.action = action;
    message.event = event;
    message.data = data;
    return send_any(message, seq);
  }

  /// What reached the tool since the last call. Everything must be whole frames.
  std::vector<Told> told() {
    std::vector<Told> all;
    Bytes rest(wire);
    while (!rest.empty()) {
      kvmi_msg_hdr header;
      REQUIRE(rest.size() >= sizeof header);
      std::memcpy(&header, rest.data(), sizeof header);
      REQUIRE(rest.size() >= sizeof header + header.size);
      const Bytes payload = rest.subspan(sizeof header, header.size);
      all.push_back({header.id, Seq{header.seq}, {payload.begin(), payload.end()}});
      rest = rest.subspan(sizeof header + header.size);
    }
    wire.clear();
    return all;
  }
  Told told_one() {
    auto all = told();
    REQUIRE(all.size() == 1);
    return all.front();
  }
  /// The error of the one reply that reached the tool, which must be that of command `seq`.
  std::int32_t error_of(std::uint32_t seq) {
    const Told reply = told_one();
    CHECK(reply.seq == Seq{seq});
    if (reply.error() != 0) CHECK(reply.payload.size() == 8);
    return reply.error();
  }
  /// The reply as the tool's own codec reads it.
  template <class Body>
  Body body_of(const Told& told) {
    bodies_.push_back(told.payload);
    const auto message = codec.decode_upward(Frame{told.id, told.seq, bodies_.back()});
    REQUIRE(message.has_value());
    const auto* reply = std::get_if<kvmi1::Reply>(&*message);
    REQUIRE(reply != nullptr);
    CHECK(reply->error == 0);
    const auto* body = std::get_if<Body>(&reply->body);
    REQUIRE(body != nullptr);
    return *body;
  }
  Event event_of(const Told& told) {
    const auto message = codec.decode_upward(told.frame());
    REQUIRE(message.has_value());
    const auto* event = std::get_if<kvmi1::EventMessage>(&*message);
    REQUIRE(event != nullptr);
    return event->event;
  }

  // ---- the core ----

  /// The next command for the core; a null pointer: it is another one, or there is none.
  template <class C>
  const C* next() {
    if (bridge.down().empty()) return nullptr;
    passed_.push_back(bridge.down().take());
    const auto* command = std::get_if<Command>(&passed_.back().message);
    if (command == nullptr) return nullptr;
    open_.push_back({passed_.back().seq, static_cast<std::uint16_t>(id_of(*command))});
    return std::get_if<C>(command);
  }
  /// The next event reply for the core, and the event's number there.
  std::optional<std::pair<Seq, EventReply>> next_reply() {
    if (bridge.down().empty()) return std::nullopt;
    passed_.push_back(bridge.down().take());
    const auto* reply = std::get_if<EventReply>(&passed_.back().message);
    if (reply == nullptr) return std::nullopt;
    return std::pair{passed_.back().seq, *reply};
  }
  [[nodiscard]] bool idle() { return bridge.down().empty(); }
  /// Answers the oldest command that was taken and not answered.
  void answer(const ReplyBody& body = {}) { answer_with(ErrorCode::None, body); }
  void refuse(ErrorCode error) { answer_with(error, {}); }
  void answer_with(ErrorCode error, const ReplyBody& body) {
    REQUIRE_FALSE(open_.empty());
    const auto [seq, id] = open_.front();
    open_.pop_front();
    bridge.deliver(CommandReply{id, error, error == ErrorCode::None ? "" : "why", body}, seq, wire);
  }
  /// Takes a C and answers it.
  template <class C>
  C serve(const ReplyBody& body = {}) {
    const C* command = next<C>();
    REQUIRE(command != nullptr);
    const C copy = *command;
    answer(body);
    return copy;
  }
  template <class C>
  C serve_refused(ErrorCode error) {
    const C* command = next<C>();
    REQUIRE(command != nullptr);
    const C copy = *command;
    refuse(error);
    return copy;
  }
  void raise(const Event& event, std::uint32_t seq) { bridge.deliver(event, Seq{seq}, wire); }
  void expire(VcpuId vcpu, EventKind kind, std::uint32_t seq) {
    bridge.deliver(Notice{.kind = NoticeKind::Expired, .event = kind, .vcpu = vcpu, .event_seq = Seq{seq}}, wire);
  }

  AgentBridge bridge;
  const kvmi1::Codec& codec;
  ByteBuffer wire;

 private:
  std::deque<std::vector<std::byte>> frames_;
  std::deque<std::vector<std::byte>> bodies_;
  std::deque<Passed<Downward>> passed_;
  std::deque<std::pair<Seq, std::uint16_t>> open_;
  std::uint32_t seq_ = 100;
};

inline Event event_with(EventData data, VcpuId vcpu = VcpuId{0}, std::initializer_list<Action> further = {}) {
  Event event;
  event.vcpu = vcpu;
  event.actions.bits = (1U << static_cast<unsigned>(Action::Allow)) | (1U << static_cast<unsigned>(Action::Crash));
  for (const Action action : further) {
    event.actions.bits = static_cast<std::uint8_t>(event.actions.bits | (1U << static_cast<unsigned>(action)));
  }
  event.data = data;
  return event;
}

inline std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

template <class T>
std::vector<std::byte> wire_bytes(const T& value) {
  std::vector<std::byte> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

constexpr VcpuId kVcpu0{0}, kVcpu1{1};
constexpr std::int32_t kEperm = -1, kEnoent = -2, kEbusy = -16, kEinval = -22, kEopnotsupp = -95, kEnosys = -1000;

}  // namespace kvmid::bridge::test
