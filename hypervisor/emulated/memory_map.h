// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What is where in a guest's physical address spaces: slots of memory, and holes between them.
///
/// Purpose:  GET_MEMORY_MAP, READ_PHYSICAL and WRITE_PHYSICAL of every address space, and which frames are read-only.
/// Shapes:   a slot is a range of pages in one address space, with the host memory behind it.
/// Errors:   a range that is not all memory is answered by false, and nothing of it is read or written.
/// Threads:  none of its own.
/// Lifetime: the host memory of the slots outlives the map.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/message.h"
#include "protocol/wire_array.h"

namespace kvmid::emulated {

struct MemorySlot {
  AddressSpace space{};
  Gpa gpa;                  ///< start of a page
  std::uint64_t bytes = 0;  ///< whole pages, 1 or more
  bool read_only = false;   ///< for the guest: its stores do not reach the memory
  std::byte* host = nullptr;
};

class MemoryMap {
 public:
  /// REQUIRES: it overlaps no slot of its address space.
  void add(const MemorySlot& slot);
  /// The slot of the normal address space that begins there. REQUIRES of both: there is one.
  MemorySlot remove(Gpa gpa);
  void set_read_only(Gpa gpa, bool read_only);

  /// Is every page of the range memory? Slots may lie end to end.
  [[nodiscard]] bool covers(AddressSpace space, Gfn first, std::uint64_t pages) const;
  [[nodiscard]] bool read(AddressSpace space, Gpa gpa, std::span<std::byte> out) const;
  /// Writes what is behind a read-only slot too: that is a rule for the guest, not for who looks after it.
  [[nodiscard]] bool write(AddressSpace space, Gpa gpa, Bytes data);
  /// Host address of bytes of the normal address space, or null if they are not all in one slot.
  [[nodiscard]] std::byte* at(Gpa gpa, std::uint64_t bytes) const {
    const auto* slot = find(AddressSpace::Normal, gpa);
    if (slot == nullptr || bytes > slot->bytes - (gpa.value - slot->gpa.value)) return nullptr;
    return slot->host + (gpa.value - slot->gpa.value);
  }
  /// Of the normal address space.
  [[nodiscard]] bool is_read_only(Gfn gfn) const;

  /// As GET_MEMORY_MAP tells it: ascending.
  [[nodiscard]] std::vector<kvmi_memory_slot> slots(AddressSpace space) const;

 private:
  [[nodiscard]] const MemorySlot* find(AddressSpace space, Gpa gpa) const;
  /// Calls `copy(host, done, bytes)` for each part of the range; false, and not called, if a part is a hole.
  template <class Copy>
  [[nodiscard]] bool each_part(AddressSpace space, Gpa gpa, std::uint64_t bytes, Copy copy) const;

  std::vector<MemorySlot> slots_;  ///< ascending by address space and GPA
};

}  // namespace kvmid::emulated
