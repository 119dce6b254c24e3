// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace kvmid::fuzz {

/// Decisions read from the fuzzer's bytes, front to back.
///
/// Purpose:  the same bytes are the same run; where they end, every decision is 0 and the run comes to its end.
/// Lifetime: as the bytes it was made from.
class ByteSource {
 public:
  explicit ByteSource(std::span<const std::uint8_t> bytes) : rest_(bytes) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  /// Any value of an unsigned type; missing bytes are 0.
  template <class T>
  T any() {
    static_assert(std::is_unsigned_v<T>);
    T value = 0;
    const auto bytes = take(sizeof value);
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  /// 0 to below - 1, from one byte if that is enough. REQUIRES: below != 0.
  std::uint32_t pick(std::uint32_t below) {
    return (below <= 256 ? any<std::uint8_t>() : any<std::uint32_t>()) % below;
  }
  template <class T, std::size_t N>
  T pick(const T (&items)[N]) {
    return items[pick(static_cast<std::uint32_t>(N))];
  }
  /// True in about one of `n`.
  bool one_in(std::uint32_t n) { return pick(n) == n - 1; }
  bool coin() { return (any<std::uint8_t>() & 1U) != 0; }
  /// At most `max` bytes, how many from a byte.
  std::span<const std::uint8_t> some(std::size_t max) { return take(std::min<std::size_t>(any<std::uint8_t>(), max)); }

 private:
  std::span<const std::uint8_t> take(std::size_t n) {
    const auto bytes = rest_.first(std::min(n, rest_.size()));
    rest_ = rest_.subspan(bytes.size());
    return bytes;
  }
  std::span<const std::uint8_t> rest_;
};

}  // namespace kvmid::fuzz
