// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Bytes that are laid over guest memory, and what is under them.
///
/// Purpose:  memory as the guest has it stays readable and writable while patches (breakpoints, mostly) lie over it,
///           and comes back whole when they go, whoever forgot to take them off.
/// Shapes:   a map of patches that do not overlap, over a backend's memory. read(), write() and expect() are about the
///           guest's own bytes: what is under a patch, or what the guest has stored over it since.
/// Errors:   Busy, NoEntry and Stale with a sentence, before anything is changed; the backend's own where it does not
///           read or write. A patch that cannot be taken off stays a patch.
/// Bounds:   kMax patches of at most KVMI_PATCH_BYTES_MAX bytes.
/// Threads:  none of its own. Every call is made between two instructions of the guest, so nothing comes between check
///           and write.
/// Lifetime: `memory` outlives it; the end of its life takes every patch off.
/// Leaves out: a guest that stores just the byte that the patch has there; it cannot be told from the patch.
/// Source:   docs/decisions/0006-patches.md.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "hypervisor/server/guest_backend.h"

namespace kvmid::hypervisor {

class Patches {
 public:
  static constexpr std::size_t kMax = 65536;

  explicit Patches(GuestBackend& memory) : memory_(memory) {}
  ~Patches();
  Patches(const Patches&) = delete;
  Patches& operator=(const Patches&) = delete;

  // The guest's own bytes. REQUIRES: the range is within is_memory() of its address space.

  Done read(AddressSpace space, Gpa gpa, std::span<std::byte> out) const;
  /// Under a patch, what is under it changes and the patch stays. Where the guest has stored over a patch, its bytes
  /// are overwritten as anywhere else; the patch does not come back there.
  Done write(AddressSpace space, Gpa gpa, Bytes data);
  /// Stale unless the range holds `expected`.
  Done expect(AddressSpace space, Gpa gpa, Bytes expected) const;

  // Patches. REQUIRES: 1 to KVMI_PATCH_BYTES_MAX bytes of memory within one page of address space 0.

  /// Busy where another range is patched that overlaps this one, or where there are kMax patches.
  [[nodiscard]] Done may_place(Gpa gpa, std::size_t size) const;
  /// The bytes that a patch of the same range had are replaced. Errors as may_place().
  Done place(Gpa gpa, Bytes bytes);
  /// NoEntry unless just this range is patched.
  [[nodiscard]] Done is_placed(Gpa gpa, std::size_t size) const;
  /// What is under it comes back; a byte that the guest has stored over it stays. Errors as is_placed().
  Done take_off(Gpa gpa, std::size_t size);
  /// How many could not be taken off.
  std::size_t take_off_all();
  /// Takes off those that lie in the range, or reach into it. How many that were.
  std::size_t take_off_within(Gpa gpa, std::uint64_t bytes);

  [[nodiscard]] std::size_t size() const { return patches_.size(); }

 private:
  struct Patch {
    std::vector<std::byte> bytes;
    std::vector<std::byte> under;  ///< as many
  };
  using Map = std::map<std::uint64_t, Patch>;  ///< [GPA]

  /// The first patch that ends behind `gpa`. `patches` is a Map, constant or not.
  template <class Of>
  static auto first_from(Of& patches, std::uint64_t gpa);
  /// Calls `each(patch, at, in_range, count)` for the part of each patch that lies in the range: `count` bytes from
  /// byte `at` of the patch and from byte `in_range` of the range.
  template <class Of, class Each>
  static void each_part(Of& patches, Gpa gpa, std::size_t size, Each each);
  [[nodiscard]] bool touches(AddressSpace space, Gpa gpa, std::size_t size) const;
  /// What memory holds becomes what the guest has.
  void uncover(Gpa gpa, std::span<std::byte> bytes) const;
  Done put_back(std::uint64_t gpa, const Patch& patch);

  GuestBackend& memory_;
  Map patches_;
};

}  // namespace kvmid::hypervisor
