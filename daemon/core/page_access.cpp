// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/page_access.h"

#include <algorithm>

namespace kvmid::core {

PageAccess::View& PageAccess::view_of(AgentSlot slot) {
  if (views_.size() <= slot) views_.resize(std::size_t{slot} + 1);
  return views_[slot];
}

std::uint8_t PageAccess::set(AgentSlot slot, Gfn gfn, std::uint8_t access) {
  const std::uint8_t before = view(slot, gfn);
  View& view = view_of(slot);
  if (access == kRwx) {
    view.erase(gfn.value);
  } else {
    view[gfn.value] = access;
  }
  if (view.empty()) {
    restricting_.remove(slot);
  } else {
    restricting_.add(slot);
  }
  return before;
}

std::uint8_t PageAccess::view(AgentSlot slot, Gfn gfn) const {
  if (!restricting_.has(slot)) return kRwx;
  const View& view = views_[slot];
  const auto found = view.find(gfn.value);
  return found == view.end() ? kRwx : found->second;
}

std::pair<std::uint8_t, Gfn> PageAccess::run(AgentSlot slot, Gfn from, Gfn end) const {
  if (!restricting_.has(slot)) return {kRwx, end};
  const View& view = views_[slot];
  auto next = view.lower_bound(from.value);
  if (next == view.end() || next->first != from.value)
    return {kRwx, next == view.end() ? end : std::min(end, Gfn{next->first})};
  const std::uint8_t access = next->second;
  std::uint64_t gfn = from.value;
  while (next != view.end() && next->first == gfn && next->second == access && gfn < end.value) {
    ++gfn;
    ++next;
  }
  return {access, Gfn{gfn}};
}

std::uint8_t PageAccess::effective(Gfn gfn) const {
  std::uint8_t rights = kRwx;
  restricting_.for_each([&](AgentSlot slot) { rights = static_cast<std::uint8_t>(rights & view(slot, gfn)); });
  return rights;
}

AgentSet PageAccess::forbidding(Gfn gfn, std::uint8_t access) const {
  AgentSet agents;
  restricting_.for_each([&](AgentSlot slot) {
    if ((access & ~view(slot, gfn)) != 0) agents.add(slot);
  });
  return agents;
}

std::size_t PageAccess::restricted_in(AgentSlot slot, Gfn from, Gfn end) const {
  if (!restricting_.has(slot)) return 0;
  const View& view = views_[slot];
  std::size_t count = 0;
  for (auto next = view.lower_bound(from.value); next != view.end() && next->first < end.value; ++next) ++count;
  return count;
}

std::size_t PageAccess::pages_of(AgentSlot slot) const { return restricting_.has(slot) ? views_[slot].size() : 0; }

}  // namespace kvmid::core
