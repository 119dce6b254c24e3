// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Which bytes are laid over guest memory, and what is under them.
///
/// Purpose:  hypervisors of older dialects know no patches. What is read and written is the guest's own all the same.
/// Shapes:   a map of patches that do not overlap; reading and writing is the caller's. A byte that memory has and that
///           is not the patch's own was stored by the guest over the patch, and is the guest's.
/// Errors:   Busy and NoEntry with a sentence, as a KVMI 2 hypervisor answers them.
/// Bounds:   kMax patches of at most KVMI_PATCH_BYTES_MAX bytes.
/// Leaves out: a guest that stores just the byte that the patch has there; it cannot be told from the patch.
/// Source:   docs/decisions/0006-patches.md.

#include <map>
#include <optional>

#include "bridge/hypervisor_link.h"

namespace kvmid::bridge {

/// Bytes [at, at + size) of a range.
struct Run {
  std::size_t at = 0;
  std::size_t size = 0;
  friend bool operator==(const Run&, const Run&) = default;
};

class HypervisorPatches {
 public:
  static constexpr std::size_t kMax = 65536;

  struct Patch {
    std::vector<std::byte> bytes;
    std::vector<std::byte> under;  ///< as many
  };

  [[nodiscard]] bool touches(Gpa gpa, std::size_t size) const;
  /// Busy where another range is patched that overlaps this one, or where there are kMax patches.
  [[nodiscard]] std::optional<Failure> may_place(Gpa gpa, std::size_t size) const;
  /// NoEntry unless just this range is patched.
  [[nodiscard]] std::optional<Failure> is_placed(Gpa gpa, std::size_t size) const;

  /// What memory holds becomes what the guest has.
  void uncover(Gpa gpa, std::span<std::byte> bytes) const;
  /// The runs of a range that patches do not cover, where memory holds `seen`.
  [[nodiscard]] std::vector<Run> uncovered(Gpa gpa, Bytes seen) const;
  /// What is under the patches of a range becomes `data`.
  void change_under(Gpa gpa, Bytes data);

  /// REQUIRES: may_place().
  void place(Gpa gpa, Patch patch) { patches_.insert_or_assign(gpa.value, std::move(patch)); }
  void remove(Gpa gpa) { patches_.erase(gpa.value); }
  [[nodiscard]] bool empty() const { return patches_.empty(); }

 private:
  using Map = std::map<std::uint64_t, Patch>;  ///< [GPA]

  template <class Of>
  static auto first_from(Of& patches, std::uint64_t gpa);
  template <class Of, class Each>
  static void each_part(Of& patches, Gpa gpa, std::size_t size, Each each);

  Map patches_;
};

}  // namespace kvmid::bridge
