// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/series.h"

#include <algorithm>
#include <chrono>

namespace kvmid::bench {

void Series::run(HypervisorPeer& hypervisor, const Event& event, int count) {
  using Clock = std::chrono::steady_clock;
  us_.reserve(us_.size() + static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    const auto start = Clock::now();
    (void)hypervisor.round_trip(event);
    us_.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
}

double Series::quantile(double q) const {
  std::vector<double> sorted = us_;
  std::sort(sorted.begin(), sorted.end());
  return sorted.empty() ? 0 : sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

nlohmann::json Series::json() const {
  return {{"p50_us", quantile(0.5)}, {"p99_us", quantile(0.99)}, {"count", us_.size()}};
}

double paired_ratio(const Series& a, const Series& b) {
  std::vector<double> ratios;
  for (std::size_t at = 0; at + kBatch <= std::min(a.us().size(), b.us().size()); at += kBatch) {
    const auto median = [at](const Series& s) {
      const auto first = s.us().begin() + static_cast<std::ptrdiff_t>(at);
      std::vector<double> part(first, first + kBatch);
      std::nth_element(part.begin(), part.begin() + kBatch / 2, part.end());
      return part[kBatch / 2];
    };
    ratios.push_back(median(a) / median(b));
  }
  if (ratios.empty()) return 0;
  std::sort(ratios.begin(), ratios.end());
  return ratios[ratios.size() / 2];
}

}  // namespace kvmid::bench
