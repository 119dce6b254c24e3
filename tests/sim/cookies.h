// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Cookies as agents see them, kept apart from the core's own generations, to compare the two.
///
/// Shapes:   time is an order: the number of the input that something happened in. Of a change it may only be known
/// that
///           it was between two inputs: when it was asked for, and when it was answered.
/// Errors:   Violation of I9 out of given(), where cookies of one address space do not grow, or a change left one
/// alone. Bounds:   the last kKept cookies of each address space. What is older is judged more mildly.

#include <array>
#include <cstdint>
#include <map>

#include "protocol/ids.h"
#include "tests/sim/shapes.h"

namespace kvmid::sim {

using Order = std::uint64_t;

class Cookies {
 public:
  /// The bytes were changed through kvmid, not before `from` and not after `to`.
  void changed(AddressSpace space, std::uint64_t gpa, std::size_t size, Order from, Order to);
  /// Everything may have changed.
  void map_changed(AddressSpace space, Order at);
  /// When in an input a cookie was current: before anything that the input did, or between.
  enum class Moment : std::uint8_t { First, Later };
  /// An agent got this cookie, of the state at that time. Later ones of one input are told in their order.
  void given(AddressSpace space, std::uint64_t cookie, Order at, Moment moment);
  /// Something of the range is known to have changed since the cookie was given, or it never was.
  [[nodiscard]] bool is_stale(AddressSpace space, std::uint64_t gpa, std::size_t size, std::uint64_t cookie) const;
  /// Something of the address space is.
  [[nodiscard]] bool is_stale(AddressSpace space, std::uint64_t cookie) const;

 private:
  static constexpr std::size_t kKept = 1024;
  struct Space {
    std::array<Order, kPages + 1> changed{};  ///< the last one's `from`; all that is above belongs to the last place
    Order map_changed = 0;
    Order any_from = 0;  ///< of the last change at all
    Order any_to = 0;
    std::multimap<Order, std::uint64_t> given;   ///< cookies by time
    std::map<std::uint64_t, Order> first_given;  ///< times by cookie
  };
  [[nodiscard]] Space& of(AddressSpace space) { return spaces_[static_cast<std::size_t>(space)]; }
  [[nodiscard]] const Space& of(AddressSpace space) const { return spaces_[static_cast<std::size_t>(space)]; }
  /// The latest time that the cookie can be of; 0: it was never given, and must not be taken.
  [[nodiscard]] static Order time_of(const Space& space, std::uint64_t cookie);
  template <class F>
  static void each_page(std::uint64_t gpa, std::size_t size, F&& f) {
    for (std::uint64_t page = gpa >> kPageShift; page <= (gpa + size - 1) >> kPageShift; ++page)
      f(page < kPages ? page : kPages);
  }

  std::array<Space, 2> spaces_;
};

}  // namespace kvmid::sim
