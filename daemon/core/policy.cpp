// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/policy.h"

#include <algorithm>

#include "protocol/handshake.h"

namespace kvmid::core {

namespace {

bool lists(const std::vector<std::uint32_t>& values, const std::optional<std::uint32_t>& value) {
  return value.has_value() && std::find(values.begin(), values.end(), *value) != values.end();
}

}  // namespace

bool matches(const Rule& rule, const Peer& peer) {
  if (rule.any_peer) return true;
  if (rule.uids.empty() && rule.gids.empty() && rule.cids.empty()) return false;
  if (!rule.uids.empty() && !lists(rule.uids, peer.uid)) return false;
  if (!rule.cids.empty() && !lists(rule.cids, peer.cid)) return false;
  if (!rule.gids.empty() &&
      std::none_of(peer.gids.begin(), peer.gids.end(), [&](auto gid) { return lists(rule.gids, gid); }))
    return false;
  return true;
}

bool matches_pattern(std::string_view pattern, std::string_view text) {
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star = std::string_view::npos;  // the last * seen, and how much of the text it has taken
  std::size_t taken = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++taken;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

const Grant* find_grant(const Policy& policy, const Peer& peer, std::string_view guest_name, const Uuid& guest) {
  const std::string uuid = to_string(guest);
  for (const Rule& rule : policy.rules) {
    if (!matches(rule, peer)) continue;
    const bool guest_listed = std::any_of(rule.guests.begin(), rule.guests.end(), [&](const std::string& pattern) {
      return matches_pattern(pattern, guest_name) || matches_pattern(pattern, uuid);
    });
    if (rule.guests.empty() || guest_listed) return &rule.grant;
  }
  return nullptr;
}

const Rule* find_rule(const Policy& policy, const Peer& peer) {
  const auto found =
      std::find_if(policy.rules.begin(), policy.rules.end(), [&](const Rule& rule) { return matches(rule, peer); });
  return found == policy.rules.end() ? nullptr : &*found;
}

bool may_connect(const Policy& policy, const Peer& peer) { return find_rule(policy, peer) != nullptr; }

}  // namespace kvmid::core
