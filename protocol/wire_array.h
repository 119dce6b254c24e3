// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

namespace kvmid {

using Bytes = std::span<const std::byte>;

/// A view of T's laid out in a message, which may be unaligned.
///
/// Purpose:  tails of messages are read where they lie: no copy, no allocation.
/// Lifetime: as the bytes it was made from; a view kept past the step that received it is a bug.
template <class T>
class WireArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  WireArray() = default;
  /// REQUIRES: bytes.size() is a multiple of sizeof(T).
  explicit WireArray(Bytes bytes) : bytes_(bytes) {}
  WireArray(std::span<const T> items) : bytes_(std::as_bytes(items)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] std::size_t size() const { return bytes_.size() / sizeof(T); }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  /// REQUIRES: i < size().
  T operator[](std::size_t i) const {
    T item;
    std::memcpy(&item, bytes_.data() + i * sizeof(T), sizeof(T));
    return item;
  }
  [[nodiscard]] Bytes bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

}  // namespace kvmid
