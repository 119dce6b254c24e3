// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/backoff.h"

#include <algorithm>

namespace kvmid::hypervisor {

std::chrono::milliseconds Backoff::next() {
  const auto wait = wait_;
  wait_ = std::min(wait_ * 2, kMax);
  return wait;
}

}  // namespace kvmid::hypervisor
