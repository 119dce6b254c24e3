// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/guest_rules.h"

#include <algorithm>

#include "daemon/core/policy.h"
#include "protocol/handshake.h"

namespace kvmid::io {

bool names_guest(const std::vector<std::string>& patterns, std::string_view name, const Uuid& uuid) {
  const std::string written = to_string(uuid);
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    return core::matches_pattern(pattern, name) || core::matches_pattern(pattern, written);
  });
}

const GuestRule* rule_of(const std::vector<GuestRule>& rules, std::string_view name, const Uuid& uuid) {
  const auto it = std::find_if(rules.begin(), rules.end(),
                               [&](const GuestRule& rule) { return names_guest(rule.guests, name, uuid); });
  return it == rules.end() ? nullptr : &*it;
}

}  // namespace kvmid::io
