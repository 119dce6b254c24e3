// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// KVMI 2 in, KVMI 2 out, and bytes of an older dialect in between: HypervisorBridge, AgentBridge, and a server behind.
///
/// Purpose:  what the two bridges make of each other, with every queue moved on in an order that chance chooses.
/// Shapes:   send() and stop() put something in, step() moves one thing, `told` gets what comes out for the core. The
///           server does commands in their order and tells what came of them in any.
/// Errors:   throws std::runtime_error where one of the bridges breaks a promise.
/// Lifetime: frames are overwritten as soon as the promise of passed.h ends.

#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bridge/agent_bridge.h"
#include "bridge/hypervisor_bridge.h"
#include "hypervisor/server/commands.h"
#include "protocol/dialect_kvmi2.h"
#include "tests/sim/rng.h"
#include "tests/unit/bridge/pair/small_guest.h"

namespace kvmid::bridge::test {

inline void check(bool good, const std::string& what) {
  if (!good) throw std::runtime_error(what);
}

/// A message of KVMI 2 as bytes, so that no view of it dangles.
struct Kept2 {
  Seq seq;
  ByteBuffer bytes;
  [[nodiscard]] Frame frame() const;
};

class OlderLink {
 public:
  OlderLink(kvmi1::DialectId dialect, SmallGuest& guest, sim::Rng& rng);

  // the core
  void send(const Command& command, Seq seq);
  void send(const EventReply& reply, Seq seq);
  std::function<void(const Passed<Upward>&)> told;

  // the guest
  void stop(const Event& event);
  void leave(OffReason reason);

  /// One move; false: there is nothing to move.
  bool step();
  /// Until nothing moves. Throws where something is left over.
  void settle();
  [[nodiscard]] bool let_go() const { return hypervisor_->let_go(); }
  [[nodiscard]] bool answers_waited_for(VcpuId vcpu) const { return open_[vcpu.value].has_value(); }

 private:
  struct Pipe {
    ByteBuffer bytes;
    std::unique_ptr<FrameParser> parser;
  };
  struct OpenEvent {
    Seq seq;
    EventKind kind{};
  };
  template <class Take>
  void move_bytes(Pipe& pipe, Take take);
  void take_down();
  void take_up();
  void serve_one();
  void tell_one();

  sim::Rng& rng_;
  SmallGuest& guest_;
  hypervisor::Patches patches_;
  std::unique_ptr<HypervisorBridge> hypervisor_;
  std::unique_ptr<AgentBridge> agent_;
  Pipe down_, up_;
  std::vector<std::byte> scratch_;  ///< of the frame under way
  std::deque<Kept2> to_serve_;
  std::vector<Kept2> to_tell_;
  std::array<std::optional<OpenEvent>, SmallGuest::kVcpus> open_{};
  std::uint32_t last_event_ = 1000;
  DialectKvmi2 kvmi2_;
};

}  // namespace kvmid::bridge::test
