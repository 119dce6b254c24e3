// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Measured times and what is said of them.

#include <nlohmann/json.hpp>
#include <vector>

#include "bench/peers.h"

namespace kvmid::bench {

/// Round trips that are measured in one go, before it is another lane's turn.
inline constexpr int kBatch = 500;

/// The round trips of one lane, in the order they were made.
class Series {
 public:
  /// Sends `count` events and notes how long each took.
  void run(HypervisorPeer& hypervisor, const Event& event, int count);
  /// 0 of an empty series.
  [[nodiscard]] double quantile(double q) const;
  [[nodiscard]] const std::vector<double>& us() const { return us_; }
  [[nodiscard]] nlohmann::json json() const;

 private:
  std::vector<double> us_;
};

/// A median of the ratios of the medians of batches that ran one after the other; 0 without a whole batch.
double paired_ratio(const Series& a, const Series& b);

}  // namespace kvmid::bench
