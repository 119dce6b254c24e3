// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A tool that does anything, and a core that answers anything, on either side of an AgentBridge as kvmid has it.
///
/// Purpose:  promises that hold whatever both do: each command has one reply, with its id and number, in order, or none
///           where replies are off; replies of errors are 8 bytes; the core has no more commands open than it allows;
///           its events are answered once, in a way that they take.
/// Shapes:   a polite tool keeps to its dialect, so its connection stays; the other cuts frames and sends noise, and
///           starts anew when it is closed.
/// Errors:   throws std::runtime_error where a promise is broken.
/// Lifetime: what the bridge was given is overwritten as soon as it may be.

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bridge/agent_bridge.h"
#include "protocol/dialect_kvmi2.h"
#include "tests/sim/rng.h"

namespace kvmid::bridge::test {

class ToolWorld {
 public:
  ToolWorld(kvmi1::DialectId dialect, std::uint64_t seed, bool polite);

  void step();
  /// Both sides answer everything. A polite tool misses nothing then.
  void finish();
  struct Counts {
    unsigned commands = 0, replies = 0, unanswered = 0, events = 0, event_replies = 0, errors = 0, closed = 0;
  };
  [[nodiscard]] const Counts& counts() const { return counts_; }

 private:
  static constexpr std::uint16_t kVcpus = 3;
  /// A command that the tool sent.
  struct Sent {
    std::uint16_t id = 0;
    std::uint32_t seq = 0;
    enum class Reply : std::uint8_t { Due, None, Perhaps } reply{};
    bool told_error = false;
  };
  /// A command that the core has not answered.
  struct Open {
    Seq seq;
    CommandId id{};
    VcpuId vcpu{};
    std::size_t size = 0;  ///< bytes to read, MSRs, pages
  };
  /// A stop that the core waits for the tool with. PAUSE: for so many replies.
  struct Stop {
    Seq seq;
    Event event;
    unsigned replies = 0;
  };
  /// An event that the tool was told and has not answered.
  struct Told {
    std::uint32_t seq = 0;
    EventKind kind{};
  };

  // tool_world.cpp
  void begin();
  void received(std::uint16_t id, std::uint32_t seq, std::vector<std::byte> payload, Sent::Reply due);
  void look_at_wire();
  void look_at(const Frame& frame);
  void look_at_reply(const kvmi1::Reply& reply, const Frame& frame);
  void look_at_event(const kvmi1::EventMessage& message, Seq seq);
  void take_down();
  void close();

  // tool_core.cpp
  void answer_one();
  void event_somewhere();
  void pause_somewhere();
  void raise(VcpuId vcpu, const EventData& data);
  void notice();
  void guest_goes();
  [[nodiscard]] ReplyBody body_for(const Open& open, std::vector<std::byte>& bytes);
  [[nodiscard]] EventData any_data();

  // tool_commands.cpp
  void command();
  void send(const kvmi1::Command& command);
  void event_reply(VcpuId vcpu, const Told& told);
  void reply_somewhere();
  void noise();
  [[nodiscard]] std::optional<kvmi1::Command> any_command();
  template <class T>
  void fill(T& command);

  [[nodiscard]] bool is(kvmi1::DialectId dialect) const { return dialect_ == dialect; }
  [[nodiscard]] VcpuId any_vcpu() { return VcpuId{static_cast<std::uint16_t>(rng_.below(kVcpus))}; }
  void frame_of(const ByteBuffer& bytes, Sent::Reply due);

  const kvmi1::DialectId dialect_;
  const kvmi1::Codec& codec_;
  const bool polite_;
  sim::Rng rng_;
  std::unique_ptr<AgentBridge> bridge_;
  ByteBuffer wire_;
  ToolRights rights_;
  DialectKvmi2 kvmi2_;

  // the tool
  std::deque<Sent> sent_;
  std::map<std::uint16_t, std::deque<Told>> told_;  ///< [vCPU]
  std::vector<std::byte> one_, two_;                ///< what a command's views point into
  bool replies_on_ = true, error_events_ = false, wants_unhook_ = false;
  std::uint32_t last_seq_ = 0, last_event_ = 0;
  unsigned guest_pauses_ = 0;

  // the core
  std::vector<Open> open_;
  std::map<std::uint16_t, Stop> stops_;       ///< [vCPU]
  std::map<std::uint16_t, unsigned> pauses_;  ///< [vCPU] PAUSE events that follow
  std::map<std::uint16_t, unsigned> injections_;
  std::uint32_t last_stop_ = 0;
  bool off_ = false;
  bool finishing_ = false;
  Counts counts_;
};

}  // namespace kvmid::bridge::test
