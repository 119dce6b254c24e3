// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// How a guest leaves kvmid in good order: for good (SHUTDOWN_GUEST), or for a while (suspend, migration, snapshot).
///
/// Purpose:  kvmid is told first (UNHOOK) and takes everything back; only then the guest stops.
/// Shapes:   the owner's loop calls step() again and again, and runs the guest while guest_runs().
/// States:   Staying -> Leaving -> Gone (shut down), or -> Held -> Staying (let go for a while, then dialled again).
/// Threads:  none of its own.
/// Lifetime: machine and link outlive it.

#include <chrono>
#include <cstdint>
#include <optional>

#include "hypervisor/emulated/machine.h"
#include "hypervisor/server/link.h"

namespace kvmid::emulated {

class Departure {
 public:
  enum class State : std::uint8_t {
    Staying,
    Leaving,  ///< kvmid was told; the guest runs on meanwhile
    Held,     ///< unhooked and unconnected, and does not run
    Gone,     ///< shut down
  };

  Departure(Machine& machine, hypervisor::Link& link) : machine_(machine), link_(link) {}

  /// Unhooks, holds the guest for `time`, and connects again. Ignored unless state() is Staying.
  void leave_for(OffReason reason, std::chrono::milliseconds time, Clock::time_point now);
  /// Looks whether there is something to be done: a shutdown that was asked for, an unhooking that is through, the end
  /// of a hold.
  void step(Clock::time_point now);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool guest_runs() const { return state_ == State::Staying || state_ == State::Leaving; }
  /// When step() has to be called at the latest.
  [[nodiscard]] std::optional<Clock::time_point> until() const {
    return state_ == State::Held ? std::optional(held_until_) : std::nullopt;
  }

 private:
  void leave(OffReason reason, Clock::time_point now);

  Machine& machine_;
  hypervisor::Link& link_;
  State state_ = State::Staying;
  OffReason reason_{};
  std::chrono::milliseconds hold_{0};
  Clock::time_point held_until_{};
};

}  // namespace kvmid::emulated
