// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/failures.h"

#include <algorithm>
#include <utility>

namespace kvmid::io {

std::string_view name_of(FailureSide side) {
  switch (side) {
    case FailureSide::Hypervisor: return "hypervisor";
    case FailureSide::Agent: return "agent";
    case FailureSide::Dial: return "dial";
  }
  return "";
}

void FailureRing::add(ConnectionFailure failure) {
  if (failure.time == std::chrono::system_clock::time_point{}) failure.time = std::chrono::system_clock::now();
  const auto same_origin = [&](const ConnectionFailure& other) {
    return other.side == failure.side && other.peer == failure.peer && other.guest == failure.guest;
  };
  const std::lock_guard lock(mutex_);
  // A peer that fails again and again must not push out what happened to others.
  const auto last = std::find_if(ring_.rbegin(), ring_.rend(), same_origin);
  if (last != ring_.rend() && last->step == failure.step && last->text == failure.text) {
    failure.times = last->times + 1;
    ring_.erase(std::next(last).base());
  } else {
    // Nor may one that fails differently each time: it pushes out its own.
    const auto same_peer = [&](const ConnectionFailure& other) {
      return other.side == failure.side && other.peer == failure.peer;
    };
    if (std::count_if(ring_.begin(), ring_.end(), same_peer) >= static_cast<std::ptrdiff_t>(kMaxOfPeer))
      ring_.erase(std::find_if(ring_.begin(), ring_.end(), same_peer));
  }
  ring_.push_back(std::move(failure));
  if (ring_.size() > kMax) ring_.pop_front();
}

std::vector<ConnectionFailure> FailureRing::list() const {
  const std::lock_guard lock(mutex_);
  return {ring_.begin(), ring_.end()};
}

}  // namespace kvmid::io
