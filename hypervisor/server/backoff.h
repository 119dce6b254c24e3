// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>

namespace kvmid::hypervisor {

/// How long to wait before dialling again: 100 ms, doubled each time, at most 2 s.
///
/// Purpose:  a kvmid that is restarted is found soon; one that is gone costs nothing.
/// Threads:  a value.
class Backoff {
 public:
  static constexpr std::chrono::milliseconds kFirst{100};
  static constexpr std::chrono::milliseconds kMax{2000};

  /// The wait before the next attempt.
  std::chrono::milliseconds next();
  /// A connection was accepted: begin at kFirst again.
  void reset() { wait_ = kFirst; }

 private:
  std::chrono::milliseconds wait_ = kFirst;
};

}  // namespace kvmid::hypervisor
