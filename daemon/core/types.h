// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Words that every machine of the core uses: time as an argument, places of agents, sets of them, stated maxima.

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "protocol/message.h"

namespace kvmid::core {

/// Time is an input. Only the type comes from the library: the core never asks for the time.
using TimePoint = std::chrono::steady_clock::time_point;
using Duration = std::chrono::steady_clock::duration;

// Stated maxima of one guest.
inline constexpr unsigned kAgentsPerGuestMax = 64;
inline constexpr unsigned kVcpusMax = 1024;
inline constexpr unsigned kOpenCommandsMax = 1024;  ///< in the ledger, power of two
inline constexpr unsigned kWishQueueMax = 1024;     ///< changes of wishes that wait for their turn
inline constexpr unsigned kWishPartsOpenMax = 64;   ///< commands of one change that are unanswered at once
inline constexpr unsigned kPausesMax = 64;          ///< of one agent on one vCPU
inline constexpr std::size_t kStagedBytesMax = std::size_t{1} << 20U;  ///< XSAVE areas of one agent, on all vCPUs
inline constexpr unsigned kGonePatchesMax = 64;     ///< places whose late hits are still expected
/// Stepping over a patch: the other vCPUs must stop within it, and then the one step must be made within it.
inline constexpr Duration kStepOverMax = std::chrono::seconds(1);
// The ledger keeps room for what must never be refused: the union before staged registers, those before agents'
// commands.
inline constexpr unsigned kOpenForRegistersMax = kOpenCommandsMax - kWishPartsOpenMax;
inline constexpr unsigned kOpenForAgentsMax = kOpenForRegistersMax - 192;

/// Place of an agent in its guest's table, 0 to kAgentsPerGuestMax - 1. Reused after a detach.
using AgentSlot = std::uint8_t;

/// ALLOW where the event takes it, else the mildest action that it does take. REQUIRES: the set is not empty.
constexpr Action mildest(ActionSet actions) {
  return static_cast<Action>(std::countr_zero(static_cast<unsigned>(actions.bits)));
}

/// What one agent said to an event.
struct Vote {
  AgentId agent;
  Action action{};
  bool by_default = false;  ///< it said nothing that counts: what its grant says in its place
};

/// A set of agents of one guest.
class AgentSet {
 public:
  constexpr AgentSet() = default;
  constexpr explicit AgentSet(std::uint64_t bits) : bits_(bits) {}

  [[nodiscard]] constexpr bool has(AgentSlot slot) const { return ((bits_ >> slot) & 1U) != 0; }
  constexpr void add(AgentSlot slot) { bits_ |= std::uint64_t{1} << slot; }
  constexpr void remove(AgentSlot slot) { bits_ &= ~(std::uint64_t{1} << slot); }
  [[nodiscard]] constexpr bool any() const { return bits_ != 0; }
  [[nodiscard]] constexpr unsigned count() const { return static_cast<unsigned>(std::popcount(bits_)); }
  [[nodiscard]] constexpr std::uint64_t bits() const { return bits_; }

  friend constexpr AgentSet operator&(AgentSet a, AgentSet b) { return AgentSet{a.bits_ & b.bits_}; }
  friend constexpr AgentSet operator|(AgentSet a, AgentSet b) { return AgentSet{a.bits_ | b.bits_}; }
  friend constexpr AgentSet operator-(AgentSet a, AgentSet b) { return AgentSet{a.bits_ & ~b.bits_}; }
  friend constexpr bool operator==(AgentSet, AgentSet) = default;

  /// Calls f(AgentSlot) for each member, lowest first. f may change the set it was called on.
  template <class F>
  constexpr void for_each(F&& f) const {
    for (std::uint64_t rest = bits_; rest != 0; rest &= rest - 1) f(static_cast<AgentSlot>(std::countr_zero(rest)));
  }

 private:
  std::uint64_t bits_ = 0;
};

}  // namespace kvmid::core
