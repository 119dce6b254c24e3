// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/page_access.h"

#include <algorithm>
#include <iterator>

namespace kvmid::core {

// ---- runs of equal rights ----

RightsMap::Runs::const_iterator RightsMap::first_ending_after(const Runs& runs, std::uint64_t gfn) {
  const auto behind = runs.upper_bound(gfn);
  if (behind == runs.begin()) return behind;
  const auto before = std::prev(behind);
  return before->second.end > gfn ? before : behind;
}

std::pair<std::uint8_t, Gfn> RightsMap::Cursor::run(Gfn from, Gfn end) {
  // The next run is the usual case; after a leap over many the place is looked up.
  if (next_ != runs_->end() && next_->second.end <= from.value) ++next_;
  if (next_ != runs_->end() && next_->second.end <= from.value) next_ = first_ending_after(*runs_, from.value);
  if (next_ == runs_->end()) return {kRwx, end};
  if (next_->first > from.value) return {kRwx, std::min(end, Gfn{next_->first})};
  return {next_->second.access, std::min(end, Gfn{next_->second.end})};
}

/// A run that goes on across `at` becomes two.
void RightsMap::split(std::uint64_t at) {
  const auto behind = runs_.lower_bound(at);
  if (behind == runs_.begin()) return;
  Run& run = std::prev(behind)->second;
  if (run.end <= at) return;
  runs_.emplace_hint(behind, at, run);
  run.end = at;
}

void RightsMap::replace(std::uint64_t from, std::uint64_t end, std::uint8_t access) {
  split(from);
  split(end);
  auto place = runs_.lower_bound(from);
  while (place != runs_.end() && place->first < end) {
    restricted_ -= place->second.end - place->first;
    place = runs_.erase(place);
  }
  if (access == kRwx) return;
  restricted_ += end - from;
  // Joined with what it touches, so that runs stay as few as they can be.
  if (place != runs_.end() && place->first == end && place->second.access == access) {
    end = place->second.end;
    place = runs_.erase(place);
  }
  if (place != runs_.begin()) {
    Run& before = std::prev(place)->second;
    if (before.end == from && before.access == access) {
      before.end = end;
      return;
    }
  }
  runs_.emplace_hint(place, from, Run{end, access});
}

void RightsMap::clear() {
  runs_.clear();
  restricted_ = 0;
}

std::uint8_t RightsMap::at(Gfn gfn) const {
  const auto behind = runs_.upper_bound(gfn.value);
  if (behind == runs_.begin()) return kRwx;
  const Run& run = std::prev(behind)->second;
  return run.end > gfn.value ? run.access : kRwx;
}

std::uint64_t RightsMap::restricted_in(Gfn from, Gfn end) const {
  std::uint64_t pages = 0;
  for (auto next = first_ending_after(runs_, from.value); next != runs_.end() && next->first < end.value; ++next)
    pages += std::min(end.value, next->second.end) - std::max(from.value, next->first);
  return pages;
}

// ---- views of agents ----

PageAccess::Walk::Walk(const PageAccess& pages) {
  cursors_.reserve(pages.restricting_.count());
  pages.restricting_.for_each([&](AgentSlot slot) { cursors_.emplace_back(pages.views_[slot]); });
}

std::pair<std::uint8_t, Gfn> PageAccess::Walk::run(Gfn from, Gfn end) {
  std::uint8_t rights = kRwx;
  for (RightsMap::Cursor& cursor : cursors_) {
    const auto [access, run_end] = cursor.run(from, end);
    rights = static_cast<std::uint8_t>(rights & access);
    end = run_end;
  }
  return {rights, end};
}

RightsMap& PageAccess::view_of(AgentSlot slot) {
  if (views_.size() <= slot) views_.resize(std::size_t{slot} + 1);
  return views_[slot];
}

std::uint8_t PageAccess::view(AgentSlot slot, Gfn gfn) const {
  return restricting_.has(slot) ? views_[slot].at(gfn) : kRwx;
}

std::pair<std::uint8_t, Gfn> PageAccess::run(AgentSlot slot, Gfn from, Gfn end) const {
  if (!restricting_.has(slot)) return {kRwx, end};
  return RightsMap::Cursor(views_[slot]).run(from, end);
}

std::uint8_t PageAccess::effective(Gfn gfn) const {
  std::uint8_t rights = kRwx;
  restricting_.for_each([&](AgentSlot slot) { rights = static_cast<std::uint8_t>(rights & views_[slot].at(gfn)); });
  return rights;
}

AgentSet PageAccess::forbidding(Gfn gfn, std::uint8_t access) const {
  AgentSet agents;
  restricting_.for_each([&](AgentSlot slot) {
    if ((access & ~views_[slot].at(gfn)) != 0) agents.add(slot);
  });
  return agents;
}

std::uint64_t PageAccess::pages_of(AgentSlot slot) const {
  return restricting_.has(slot) ? views_[slot].restricted() : 0;
}

std::uint64_t PageAccess::restricted_in(AgentSlot slot, Gfn from, Gfn end) const {
  return restricting_.has(slot) ? views_[slot].restricted_in(from, end) : 0;
}

}  // namespace kvmid::core
