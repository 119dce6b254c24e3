// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/patches.h"

#include <algorithm>
#include <iterator>

namespace kvmid::core {

bool Patches::is_well_formed(Gpa gpa, std::size_t size) {
  return size != 0 && size <= KVMI_PATCH_BYTES_MAX && gpa.value % kPageSize + size <= kPageSize;
}

bool Patches::conflict(AgentSlot slot, Gpa gpa, Bytes bytes) const {
  // The only patch that can begin before and reach here is the last one that begins before.
  const auto next = patches_.lower_bound(gpa.value);
  if (next != patches_.begin()) {
    const auto& [begin, before] = *std::prev(next);
    if (begin + before.bytes.size() > gpa.value) return true;
  }
  if (next == patches_.end() || next->first >= gpa.value + bytes.size()) return false;
  const Patch& there = next->second;
  if (next->first != gpa.value || there.bytes.size() != bytes.size()) return true;
  AgentSet me;
  me.add(slot);
  return there.owners != me && !std::equal(bytes.begin(), bytes.end(), there.bytes.begin());
}

bool Patches::owns(AgentSlot slot, Gpa gpa, std::size_t size) const {
  const Patch* patch = at(gpa);
  return patch != nullptr && patch->bytes.size() == size && patch->owners.has(slot);
}

Patches::Before Patches::add(AgentSlot slot, Gpa gpa, Bytes bytes) {
  ++changes_;
  Patch& patch = patches_[gpa.value];
  Before before{gpa, patch.owners.has(slot), std::move(patch.bytes)};
  patch.bytes.assign(bytes.begin(), bytes.end());
  patch.owners.add(slot);
  held_[slot] += before.owned ? 0 : 1;
  return before;
}

Patches::Before Patches::remove(AgentSlot slot, Gpa gpa) {
  const auto found = patches_.find(gpa.value);
  if (found == patches_.end() || !found->second.owners.has(slot)) return {gpa, false, {}};
  ++changes_;
  Before before{gpa, true, found->second.bytes};
  found->second.owners.remove(slot);
  --held_[slot];
  if (!found->second.owners.any()) patches_.erase(found);
  return before;
}

void Patches::restore(AgentSlot slot, const Before& before) {
  if (before.owned) {
    add(slot, before.gpa, before.bytes);
  } else {
    remove(slot, before.gpa);
  }
}

bool Patches::remove_all(AgentSlot slot) {
  if (held_[slot] == 0) return false;
  ++changes_;
  for (auto& [gpa, patch] : patches_) patch.owners.remove(slot);
  std::erase_if(patches_, [](const auto& entry) { return !entry.second.owners.any(); });
  held_[slot] = 0;
  return true;
}

AgentSet Patches::drop(Gpa gpa) {
  const auto found = patches_.find(gpa.value);
  if (found == patches_.end()) return {};
  ++changes_;
  const AgentSet owners = found->second.owners;
  owners.for_each([&](AgentSlot slot) { --held_[slot]; });
  patches_.erase(found);
  return owners;
}

const Patches::Patch* Patches::at(Gpa gpa) const {
  const auto found = patches_.find(gpa.value);
  return found == patches_.end() ? nullptr : &found->second;
}

}  // namespace kvmid::core
