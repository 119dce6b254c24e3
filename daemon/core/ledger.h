// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

/// For whom a command to the hypervisor was sent.
enum class Purpose : std::uint8_t {
  Agent,      ///< forwarded: the reply goes back to the agent
  Wish,       ///< part of a change of the union (also a pause): counted by the change under way
  LinkUp,     ///< GET_VERSION and GET_GUEST_INFO of a new link
  Map,        ///< GET_MEMORY_MAP of kvmid's own, where guest RAM is mapped
  Registers,  ///< what was staged, just before an event reply; the tag is the kind of the event
  Hold,       ///< a pause of kvmid's own, while another vCPU steps over a patch
};

struct OpenCommand {
  CommandId id{};
  Purpose purpose{};
  AgentSlot slot = 0;
  AgentId agent{};  ///< who asked; gone if its id does not stand in that slot any more
  Seq agent_seq{};
  VcpuId vcpu{};
  std::uint32_t tag = 0;     ///< the owner's: which part of a wish
  std::uint64_t cookie = 0;  ///< READ_PHYSICAL, WRITE_PHYSICAL: what its reply carries
  Gpa gpa{};                 ///< WRITE_PHYSICAL: what readers of RAM were told to be changing
  std::uint32_t bytes = 0;   ///< likewise
  TimePoint deadline{};
};

/// The commands that the hypervisor has not answered, under seqs of our own.
///
/// Purpose:  several agents use the same seq; the hypervisor must see different ones, and a reply must find its asker.
/// Units:    at most kOpenCommandsMax at once. A seq is used again only after a million others.
/// Errors:   open() answers nullopt when full; close() of an unknown seq answers nullopt: the hypervisor made it up.
/// Threads:  none of its own.
class Ledger {
 public:
  Ledger();
  [[nodiscard]] std::optional<Seq> open(const OpenCommand& command);
  /// Takes the entry out; nullopt when no such seq is open.
  [[nodiscard]] std::optional<OpenCommand> close(Seq seq);
  /// The oldest entry, the one with the earliest deadline; null when empty. (All have the same time to live.)
  [[nodiscard]] const OpenCommand* oldest() const;
  [[nodiscard]] std::size_t size() const { return size_; }

  /// Takes every entry out, oldest first, calling f(OpenCommand).
  template <class F>
  void drain(F&& f) {
    while (size_ != 0) f(take(head_));
  }

 private:
  static constexpr std::uint32_t kNone = 0xffffffff;
  struct Slot {
    OpenCommand command;
    Seq seq;
    bool used = false;
    std::uint32_t prev = kNone;
    std::uint32_t next = kNone;
  };
  OpenCommand take(std::uint32_t index);

  std::unique_ptr<std::array<Slot, kOpenCommandsMax>> slots_;
  std::uint32_t free_ = 0;  ///< head of the free list, through next
  std::uint32_t head_ = kNone;
  std::uint32_t tail_ = kNone;
  std::uint32_t counter_ = 0;
  std::size_t size_ = 0;
};

}  // namespace kvmid::core
