// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A hypervisor without a guest: it answers every command as an agreeable one would, and makes whatever events a test
/// wants, right or wrong.
///
/// Shapes:   the constructor connects and greets; answer() says what kvmid thought of it; then a thread serves.
/// Threads:  one of its own reads and answers. The test's thread sends, and waits for replies.
/// Lifetime: the destructor closes the connection and joins.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration_wire/wire_socket.h"

namespace kvmid::test {

struct ScriptedGuest {
  Uuid uuid;
  std::string name;
  std::uint16_t vcpus = 2;
  std::uint64_t max_gpa = 64U << 20U;
  EventSet events = kEveryEvent;
  CommandSet commands{(std::uint64_t{1} << 34U) - 1};
  std::uint64_t ram_bytes = 0;     ///< not 0: its hello says RAM_SHARED; with GET_MEMORY_MAP that is its one slot
  std::vector<int> descriptors{};  ///< sent with the hello; the caller keeps them
};

/// A command as a hypervisor got it.
struct ReceivedCommand {
  Seq seq;
  CommandId id{};
};

class ScriptedHypervisor {
 public:
  /// Answers GET_VERSION and GET_GUEST_INFO only with `serve`; without it nothing is ever answered or read.
  ScriptedHypervisor(const std::string& socket_path, ScriptedGuest guest, bool serve = true);
  ~ScriptedHypervisor();
  ScriptedHypervisor(const ScriptedHypervisor&) = delete;
  ScriptedHypervisor& operator=(const ScriptedHypervisor&) = delete;

  /// kvmid's word; nothing where it closed without one.
  [[nodiscard]] const std::optional<HypervisorAnswer>& answer() const { return answer_; }
  [[nodiscard]] bool accepted() const { return answer_ && answer_->status == ErrorCode::None; }
  [[nodiscard]] const ScriptedGuest& guest() const { return guest_; }

  bool send(Bytes bytes) { return socket_.send(bytes); }
  /// Sends the event with a number of its own, which is returned.
  Seq raise(const Event& event);
  /// The reply to that event. Nothing: the connection closed first. Throws when kPatience is over.
  std::optional<EventReply> wait_reply(Seq seq);
  /// Event replies that came so far.
  [[nodiscard]] std::size_t replies() const;
  /// Reads one command and answers it with `reply`. REQUIRES: constructed without `serve`.
  void answer_next(const CommandReply& reply);

  /// From now on commands with this id are kept, not answered.
  void hold(CommandId id);
  /// Waits until `count` commands are held, and gives them.
  std::vector<ReceivedCommand> wait_held(std::size_t count);
  /// kvmid closed the connection. False: it did not within kPatience.
  bool wait_closed();
  [[nodiscard]] bool is_open() const;

 private:
  void run();
  void serve(const OwnedFrame& frame);
  CommandReply reply_to(const Command& command);

  ScriptedGuest guest_;
  WireSocket socket_;
  std::optional<HypervisorAnswer> answer_;
  DialectKvmi2 dialect_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, EventReply> replies_;
  std::vector<CommandId> held_ids_;
  std::vector<ReceivedCommand> held_;
  std::uint32_t last_seq_ = 1000;
  bool closed_ = false;
  ByteBuffer data_;                 // of the reply being made
  std::vector<kvmi_x86_msr> msrs_;  // likewise
  kvmi_memory_slot slot_{};         // likewise
  std::thread thread_;
};

/// An event of that kind that takes every action its kind can take.
Event make_event(EventKind kind, VcpuId vcpu = VcpuId{0});

}  // namespace kvmid::test
