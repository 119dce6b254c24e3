// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A hypervisor of an older dialect, played by the codec's other side: what the bridge sends is decoded and kept, and
/// answered from a small guest, unless a test wants to answer itself.

#include <catch2/catch.hpp>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bridge/hypervisor_bridge.h"

namespace kvmid::bridge::test {

using ByteVector = std::vector<std::byte>;

ByteVector bytes(std::initializer_list<unsigned> values);
ByteVector bytes(std::size_t count, unsigned value);

/// A message of the bridge, with its bytes.
struct Sent {
  ByteVector frame;
  Seq seq;
  kvmi1::Downward message;
  unsigned order = 0;  ///< of everything that the bridge sent

  template <class T>
  [[nodiscard]] const T* get() const {
    const auto* command = std::get_if<kvmi1::Command>(&message);
    return command == nullptr ? nullptr : std::get_if<T>(command);
  }
  [[nodiscard]] const kvmi1::EventReplyMessage* reply() const {
    return std::get_if<kvmi1::EventReplyMessage>(&message);
  }
};

/// What the core got as an answer, with the bytes that its views need.
struct Answer {
  Passed<Upward> passed;
  ByteVector frame;  ///< the one that it may view

  [[nodiscard]] const CommandReply& reply() const { return std::get<CommandReply>(passed.message); }
  [[nodiscard]] ErrorCode error() const { return reply().error; }
  [[nodiscard]] std::string text() const { return std::string(reply().text); }
  template <class T>
  [[nodiscard]] const T& body() const {
    return std::get<T>(reply().body);
  }
};

class Hypervisor {
 public:
  static constexpr std::size_t kMemoryBytes = 16 * 4096;

  explicit Hypervisor(kvmi1::DialectId dialect, bool is_configured = true, std::uint16_t vcpus = 2);

  /// The core's side of the start. The link is up after it, and nothing is in the log.
  Hypervisor& come_up();

  // the core
  Seq send(const Command& command);
  /// Sends, lets the hypervisor answer all, and takes the one answer.
  Answer ask(const Command& command);
  void reply(const Event& event, Seq seq, Action action, ReplacedValue value = {});
  [[nodiscard]] bool has_answer() { return !bridge->up().empty(); }
  Answer take_answer();

  // the hypervisor
  /// The next message of the bridge that nobody has answered.
  Sent take();
  [[nodiscard]] bool is_asked() const { return !open.empty(); }
  /// Answers everything, and what follows from it. False: the bridge wants to close the link (see `broken`).
  bool serve_all();
  bool serve(const Sent& sent);
  bool answer(const Sent& sent, kvmi1::ReplyBody body = {}, std::int32_t error = 0);
  bool answer(std::uint16_t id, Seq seq, kvmi1::ReplyBody body = {}, std::int32_t error = 0);
  /// An event; its seq.
  Seq event(const Event& event);
  /// Takes the event from the bridge that event() made.
  Event take_event();
  bool receive(ByteVector frame);
  [[nodiscard]] Event make_event(EventData data, std::uint16_t vcpu = 0) const;

  /// Commands of this kind that the log has.
  template <class T>
  [[nodiscard]] std::vector<const T*> all() const {
    std::vector<const T*> found;
    for (const Sent& sent : log)
      if (const T* command = sent.template get<T>()) found.push_back(command);
    return found;
  }
  /// Replies to events that the log has.
  [[nodiscard]] std::vector<const kvmi1::EventReplyMessage*> replies() const;
  /// The last of them, and the last command of a kind. REQUIRES: there is one.
  [[nodiscard]] const Sent& last_reply() const;
  template <class T>
  [[nodiscard]] const Sent& last() const {
    const Sent* found = nullptr;
    for (const Sent& sent : log)
      if (sent.template get<T>() != nullptr) found = &sent;
    REQUIRE(found != nullptr);
    return *found;
  }
  [[nodiscard]] std::uint16_t number(EventKind kind) const { return *codec.number_of(kind); }
  [[nodiscard]] std::uint16_t number(kvmi1::CommandKind kind) const { return *codec.number_of(kind); }

  const kvmi1::Codec& codec;
  std::unique_ptr<HypervisorBridge> bridge;
  std::deque<Sent> open;  ///< not answered
  std::deque<Sent> log;   ///< answered or taken
  std::string broken;     ///< why the bridge wants to close the link
  // What the hypervisor is.
  std::uint16_t vcpus;
  ByteVector memory;
  std::set<std::uint16_t> denied_commands;
  std::set<std::uint16_t> denied_events;
  bool singlestep = true;
  std::map<std::uint64_t, std::uint64_t> pages;  ///< [GVA >> 12] = GPA of the page
  /// Its error for a command; 0: it is served.
  std::function<std::int32_t(const kvmi1::Command&)> refuse;

 private:
  void collect();
  kvmi1::ReplyBody body_for(const kvmi1::Command& command, std::int32_t& error);

  ByteBuffer wire_;
  ByteVector frame_;
  std::uint32_t core_seq_ = 0;
  std::uint32_t event_seq_ = 0;
  unsigned sent_ = 0;
  ByteVector reply_bytes_;
  std::vector<kvmi_x86_msr> reply_msrs_;
};

/// The three that a link finds by itself.
inline constexpr kvmi1::DialectId kFindable[] = {kvmi1::DialectId::V6, kvmi1::DialectId::V7, kvmi1::DialectId::V12};

}  // namespace kvmid::bridge::test
