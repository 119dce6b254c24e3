// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "protocol/message.h"

namespace kvmid::io {

/// Which guest, shared by all that is told of it.
struct GuestLabel {
  Uuid uuid;
  std::string name;
};

/// One thing that happened, for people who watch. Small and of fixed size.
struct TapRecord {
  enum class Type : std::uint8_t {
    Event,    ///< a vCPU was stopped
    Outcome,  ///< and goes on
    GuestOn,
    GuestOff,
  };
  Type type{};
  EventKind kind{};
  Action action{};  ///< Outcome
  OffReason reason{};  ///< GuestOff
  VcpuId vcpu;
  Seq seq;  ///< what agents know the event by
  AgentId decided_by;  ///< Outcome; 0: kvmid
  std::chrono::system_clock::time_point time;
  std::chrono::microseconds held{};  ///< Outcome: how long the vCPU waited
  std::uint64_t rip = 0;             ///< Event
  std::uint64_t cr3 = 0;             ///< Event
  EventData data;                    ///< Event
  std::shared_ptr<const GuestLabel> guest;
};

/// Where shards say what happens while somebody watches.
///
/// Purpose:  a live stream for people that costs one relaxed load per event where nobody watches.
/// Threads:  any; push() takes no longer than a copy and never waits for a reader.
/// Lifetime: outlives the broker that is given it.
class EventTap {
 public:
  [[nodiscard]] bool open() const { return open_.load(std::memory_order_relaxed); }
  virtual void push(const TapRecord& record) = 0;

 protected:
  ~EventTap() = default;
  /// Orders nothing: a watcher that comes may miss what happens in that moment.
  std::atomic<bool> open_{false};
};

}  // namespace kvmid::io
