// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "protocol/ids.h"

namespace kvmid::core {

/// What has changed in one address space of a guest since when.
///
/// Purpose:  tells whether a write is based on something that has changed: a cookie is the generation at the time of a read.
/// Shapes:   one counter; the generation of the last change of each page, in a table of kPlaces places that pages share
///           (gfn modulo kPlaces); a floor under all of them, raised when the memory map changes.
/// Bounds:   a false conflict is possible, where two pages share a place; a missed one is not.
/// Units:    cookies begin at `seed` and only grow. Seeds that grow from one life of a guest to the next (a clock) keep
///           cookies of a former life stale. The top bit of the seed is not used: 2^63 changes fit before a wrap.
/// Errors:   a cookie that was never given (0, below the seed, or above current()) is stale.
/// Threads:  none of its own.
/// Source:   docs/architecture.md, "Cookies". It does not see the guest's own stores.
class Generations {
 public:
  static constexpr std::size_t kPlaces = 4096;

  explicit Generations(std::uint64_t seed = 1)
      : current_(std::max<std::uint64_t>(seed & ~(std::uint64_t{1} << 63U), 1)), floor_(current_) {}

  /// The cookie of a read that is made now. Never 0.
  [[nodiscard]] std::uint64_t current() const { return current_; }
  /// Nothing of [gpa, gpa + size) has changed since that cookie was given. REQUIRES: the range does not wrap.
  [[nodiscard]] bool is_unchanged(Gpa gpa, std::uint64_t size, std::uint64_t cookie) const;
  /// Nothing at all has.
  [[nodiscard]] bool is_current(std::uint64_t cookie) const { return cookie == current_; }

  /// The bytes change. REQUIRES: the range does not wrap.
  void change(Gpa gpa, std::uint64_t size);
  /// Slots came, went, moved, or nobody knows.
  void change_map();

 private:
  /// Calls f(place) for each place of the range, none twice.
  template <class F>
  static void each_place(Gpa gpa, std::uint64_t size, F&& f) {
    const std::uint64_t first = gfn_of(gpa).value;
    const std::uint64_t pages = size == 0 ? 0 : gfn_of(Gpa{gpa.value + size - 1}).value - first + 1;
    for (std::uint64_t i = 0; i < pages && i < kPlaces; ++i) f(static_cast<std::size_t>((first + i) % kPlaces));
  }

  std::uint64_t current_;
  std::uint64_t floor_;                ///< what is older is stale
  std::vector<std::uint64_t> places_;  ///< empty until something changes
};

}  // namespace kvmid::core
