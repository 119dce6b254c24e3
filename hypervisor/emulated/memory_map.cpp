// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/memory_map.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

namespace kvmid::emulated {

void MemoryMap::add(const MemorySlot& slot) {
  const auto before = [](const MemorySlot& a, const MemorySlot& b) {
    return std::tie(a.space, a.gpa) < std::tie(b.space, b.gpa);
  };
  slots_.insert(std::upper_bound(slots_.begin(), slots_.end(), slot, before), slot);
}

MemorySlot MemoryMap::remove(Gpa gpa) {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const MemorySlot& slot) {
    return slot.space == AddressSpace::Normal && slot.gpa == gpa;
  });
  if (found == slots_.end()) std::abort();
  const MemorySlot slot = *found;
  slots_.erase(found);
  return slot;
}

void MemoryMap::set_read_only(Gpa gpa, bool read_only) {
  MemorySlot slot = remove(gpa);
  slot.read_only = read_only;
  add(slot);
}

const MemorySlot* MemoryMap::find(AddressSpace space, Gpa gpa) const {
  for (const auto& slot : slots_) {
    if (slot.space == space && gpa >= slot.gpa && gpa.value - slot.gpa.value < slot.bytes) return &slot;
  }
  return nullptr;
}

bool MemoryMap::covers(AddressSpace space, Gfn first, std::uint64_t pages) const {
  constexpr std::uint64_t kFrames = std::uint64_t{1} << (64 - kPageShift);
  if (pages > kFrames || first.value > kFrames - pages) return false;
  while (pages > 0) {
    const auto* slot = find(space, gpa_of(first));
    if (slot == nullptr) return false;
    const std::uint64_t left = slot->bytes / kPageSize - (first.value - gfn_of(slot->gpa).value);
    if (left >= pages) return true;
    first.value += left;
    pages -= left;
  }
  return true;
}

template <class Copy>
bool MemoryMap::each_part(AddressSpace space, Gpa gpa, std::uint64_t bytes, Copy copy) const {
  if (bytes == 0) return true;
  const std::uint64_t last = gpa.value + (bytes - 1);
  if (last < gpa.value) return false;
  const Gfn first = gfn_of(gpa);
  if (!covers(space, first, gfn_of(Gpa{last}).value - first.value + 1)) return false;
  std::uint64_t done = 0;
  while (done < bytes) {
    const Gpa at{gpa.value + done};
    const auto* slot = find(space, at);
    const std::uint64_t offset = at.value - slot->gpa.value;
    const std::uint64_t part = std::min(bytes - done, slot->bytes - offset);
    copy(slot->host + offset, done, part);
    done += part;
  }
  return true;
}

bool MemoryMap::read(AddressSpace space, Gpa gpa, std::span<std::byte> out) const {
  return each_part(space, gpa, out.size(), [&](const std::byte* host, std::uint64_t done, std::uint64_t part) {
    std::memcpy(out.data() + done, host, part);
  });
}

bool MemoryMap::write(AddressSpace space, Gpa gpa, Bytes data) {
  return each_part(space, gpa, data.size(), [&](std::byte* host, std::uint64_t done, std::uint64_t part) {
    std::memcpy(host, data.data() + done, part);
  });
}

bool MemoryMap::is_read_only(Gfn gfn) const {
  const auto* slot = find(AddressSpace::Normal, gpa_of(gfn));
  return slot != nullptr && slot->read_only;
}

std::vector<kvmi_memory_slot> MemoryMap::slots(AddressSpace space) const {
  std::vector<kvmi_memory_slot> list;
  for (const auto& slot : slots_) {
    if (slot.space != space) continue;
    kvmi_memory_slot entry{};
    entry.gpa = slot.gpa.value;
    entry.bytes = slot.bytes;
    entry.address_space = static_cast<std::uint16_t>(slot.space);
    entry.flags = slot.read_only ? KVMI_SLOT_READ_ONLY : 0;
    list.push_back(entry);
  }
  return list;
}

}  // namespace kvmid::emulated
