// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace kvmid::io {

/// How many log lines a peer can cause: a hostile one must not fill the disk, nor push the lines of others out of the queue.
///
/// Shapes:   allow() before each line; suppressed() then says how many were left out before it.
/// Units:    a burst of lines, then so many per second.
/// Threads:  none of its own.
class LogBudget {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr std::uint32_t kBurst = 20;
  static constexpr std::uint32_t kPerSecond = 2;

  [[nodiscard]] bool allow(TimePoint now) {
    const auto since = std::chrono::duration_cast<std::chrono::milliseconds>(now - refilled_).count();
    const std::int64_t earned = since * kPerSecond / 1000;
    if (earned > 0) {
      left_ = static_cast<std::uint32_t>(std::min<std::int64_t>(kBurst, left_ + earned));
      refilled_ = now;
    }
    if (left_ == 0) {
      ++waiting_;
      return false;
    }
    --left_;
    suppressed_ = waiting_;
    waiting_ = 0;
    return true;
  }
  /// Lines left out between the last two that were allowed.
  [[nodiscard]] std::uint64_t suppressed() const { return suppressed_; }

 private:
  TimePoint refilled_{};
  std::uint32_t left_ = kBurst;
  std::uint64_t waiting_ = 0;
  std::uint64_t suppressed_ = 0;
};

}  // namespace kvmid::io
