// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

namespace kvmid::core {

/// How much of one thing somebody holds, and how much it may.
///
/// Purpose:  everything that a peer can make kvmid hold is charged here first; over quota is an answer.
/// Units:    the owner's: bytes, requests, pages.
/// Errors:   charge() refuses and changes nothing; release() of more than is held stops at zero (and is a bug).
/// Threads:  none of its own; used on the guest's shard.
class Account {
 public:
  Account() = default;
  explicit Account(std::uint64_t limit) : limit_(limit) {}

  [[nodiscard]] bool charge(std::uint64_t amount) {
    if (amount > limit_ || held_ > limit_ - amount) return false;
    held_ += amount;
    return true;
  }
  void release(std::uint64_t amount) { held_ = amount > held_ ? 0 : held_ - amount; }
  /// A new limit from a reloaded policy; what is held stays, further charges are measured against it.
  void set_limit(std::uint64_t limit) { limit_ = limit; }

  [[nodiscard]] std::uint64_t held() const { return held_; }
  [[nodiscard]] std::uint64_t limit() const { return limit_; }

 private:
  std::uint64_t held_ = 0;
  std::uint64_t limit_ = 0;
};

}  // namespace kvmid::core
