// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

/// Whose the bytes are that agents have laid over the guest's.
///
/// Purpose:  who owns a patch, who may lay one, and what of it the hypervisor must have.
/// Shapes:   patches by the GPA of their first byte. They do not overlap; equal ones are shared and counted by owner.
/// Units:    bytes of the normal address space; a patch has 1 to KVMI_PATCH_BYTES_MAX within one page.
/// Errors:   conflict() first; add() and remove() REQUIRE that it found nothing.
/// Threads:  none of its own.
/// Source:   docs/decisions/0006-patches.md
class Patches {
 public:
  struct Patch {
    std::vector<std::byte> bytes;
    AgentSet owners;
  };
  /// What a place was before a change of one agent.
  struct Before {
    Gpa gpa;
    bool owned = false;            ///< by that agent
    std::vector<std::byte> bytes;  ///< empty: there was no patch
  };

  /// The patch has the size of its bytes and lies within one page.
  [[nodiscard]] static bool is_well_formed(Gpa gpa, std::size_t size);
  /// Another agent's patch, or one of the agent's own at another place, is in the way.
  [[nodiscard]] bool conflict(AgentSlot slot, Gpa gpa, Bytes bytes) const;
  /// The agent owns a patch of that place and size.
  [[nodiscard]] bool owns(AgentSlot slot, Gpa gpa, std::size_t size) const;

  Before add(AgentSlot slot, Gpa gpa, Bytes bytes);
  Before remove(AgentSlot slot, Gpa gpa);
  /// The place as it was for that agent.
  void restore(AgentSlot slot, const Before& before);
  /// The agent owns no patch any more. False: it owned none.
  bool remove_all(AgentSlot slot);
  /// Nobody's patch any more. Returns who owned it.
  AgentSet drop(Gpa gpa);

  /// The patch whose first byte is there, or null.
  [[nodiscard]] const Patch* at(Gpa gpa) const;
  [[nodiscard]] std::size_t patches_of(AgentSlot slot) const { return held_[slot]; }
  /// Grows with every change.
  [[nodiscard]] std::uint64_t changes() const { return changes_; }
  [[nodiscard]] bool empty() const { return patches_.empty(); }
  /// Calls f(Gpa, const Patch&) in the order of addresses.
  template <class F>
  void for_each(F&& f) const {
    for (const auto& [gpa, patch] : patches_) f(Gpa{gpa}, patch);
  }

 private:
  std::map<std::uint64_t, Patch> patches_;
  std::uint64_t changes_ = 0;
  std::array<std::size_t, kAgentsPerGuestMax> held_{};  ///< patches by owner
};

}  // namespace kvmid::core
