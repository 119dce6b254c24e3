// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/patches.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "hypervisor/server/hex.h"
#include "hypervisor/server/log.h"

namespace kvmid::hypervisor {

Patches::~Patches() {
  if (const std::size_t left = take_off_all(); left != 0) {
    log("patches could not be taken off", {{"guest", memory_.facts().name}, {"patches", std::to_string(left)}});
  }
}

template <class Of>
auto Patches::first_from(Of& patches, std::uint64_t gpa) {
  const auto behind = patches.upper_bound(gpa);
  if (behind == patches.begin()) return behind;
  const auto before = std::prev(behind);
  return gpa - before->first < before->second.bytes.size() ? before : behind;
}

template <class Of, class Each>
void Patches::each_part(Of& patches, Gpa gpa, std::size_t size, Each each) {
  const std::uint64_t last = gpa.value + (size - 1);
  for (auto it = first_from(patches, gpa.value); it != patches.end() && it->first <= last; ++it) {
    const std::uint64_t begin = std::max(it->first, gpa.value);
    const std::uint64_t end = std::min(it->first + (it->second.bytes.size() - 1), last);
    each(it->second, static_cast<std::size_t>(begin - it->first), static_cast<std::size_t>(begin - gpa.value),
         static_cast<std::size_t>(end - begin + 1));
  }
}

bool Patches::touches(AddressSpace space, Gpa gpa, std::size_t size) const {
  if (patches_.empty() || space != AddressSpace::Normal || size == 0) return false;
  const auto it = first_from(patches_, gpa.value);
  return it != patches_.end() && it->first <= gpa.value + (size - 1);
}

void Patches::uncover(Gpa gpa, std::span<std::byte> bytes) const {
  each_part(patches_, gpa, bytes.size(),
            [&](const Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
              for (std::size_t i = 0; i < count; ++i) {
                std::byte& byte = bytes[in_range + i];
                if (byte == patch.bytes[at + i]) byte = patch.under[at + i];
              }
            });
}

Done Patches::read(AddressSpace space, Gpa gpa, std::span<std::byte> out) const {
  if (auto done = memory_.read_physical(space, gpa, out); !done) return done;
  if (touches(space, gpa, out.size())) uncover(gpa, out);
  return {};
}

Done Patches::write(AddressSpace space, Gpa gpa, Bytes data) {
  if (!touches(space, gpa, data.size())) return memory_.write_physical(space, gpa, data);
  std::vector<std::byte> seen(data.size());
  if (auto done = memory_.read_physical(space, gpa, seen); !done) return done;
  std::vector<std::byte> bytes(data.begin(), data.end());
  each_part(patches_, gpa, data.size(),
            [&](const Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
              for (std::size_t i = 0; i < count; ++i) {
                if (seen[in_range + i] == patch.bytes[at + i]) bytes[in_range + i] = patch.bytes[at + i];
              }
            });
  if (auto done = memory_.write_physical(space, gpa, bytes); !done) return done;
  // Also where the guest has stored over the patch: the new byte may be the one that the patch has.
  each_part(patches_, gpa, data.size(), [&](Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
    std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(in_range), count,
                patch.under.begin() + static_cast<std::ptrdiff_t>(at));
  });
  return {};
}

Done Patches::expect(AddressSpace space, Gpa gpa, Bytes expected) const {
  std::vector<std::byte> own(expected.size());
  if (auto done = read(space, gpa, own); !done) return done;
  const auto [there, wanted] = std::mismatch(own.begin(), own.end(), expected.begin());
  if (there == own.end()) return {};
  return Refusal{ErrorCode::Stale, "the byte at GPA " +
                                       hex(gpa.value + static_cast<std::uint64_t>(there - own.begin())) + " is " +
                                       hex(std::to_integer<unsigned>(*there)) + ", not " +
                                       hex(std::to_integer<unsigned>(*wanted)) + " as expected"};
}

Done Patches::may_place(Gpa gpa, std::size_t size) const {
  if (is_placed(gpa, size)) return {};
  if (touches(AddressSpace::Normal, gpa, size)) {
    const auto it = first_from(patches_, gpa.value);
    return Refusal{ErrorCode::Busy, "the patch at GPA " + hex(it->first) + " of " +
                                        std::to_string(it->second.bytes.size()) + " bytes overlaps"};
  }
  if (patches_.size() >= kMax) {
    return Refusal{ErrorCode::Busy, "there are " + std::to_string(patches_.size()) + " patches already"};
  }
  return {};
}

Done Patches::place(Gpa gpa, Bytes bytes) {
  if (auto may = may_place(gpa, bytes.size()); !may) return may;
  Patch patch;
  patch.bytes.assign(bytes.begin(), bytes.end());
  patch.under.resize(bytes.size());
  if (auto done = read(AddressSpace::Normal, gpa, patch.under); !done) return done;
  if (auto done = memory_.write_physical(AddressSpace::Normal, gpa, bytes); !done) return done;
  patches_.insert_or_assign(gpa.value, std::move(patch));
  return {};
}

Done Patches::is_placed(Gpa gpa, std::size_t size) const {
  const auto it = patches_.find(gpa.value);
  if (it != patches_.end() && it->second.bytes.size() == size) return {};
  return Refusal{ErrorCode::NoEntry, "no patch of " + std::to_string(size) + " bytes at GPA " + hex(gpa.value)};
}

Done Patches::put_back(std::uint64_t gpa, const Patch& patch) {
  std::vector<std::byte> own(patch.bytes.size());
  if (auto done = read(AddressSpace::Normal, Gpa{gpa}, own); !done) return done;
  return memory_.write_physical(AddressSpace::Normal, Gpa{gpa}, own);
}

Done Patches::take_off(Gpa gpa, std::size_t size) {
  if (auto placed = is_placed(gpa, size); !placed) return placed;
  const auto it = patches_.find(gpa.value);
  if (auto done = put_back(it->first, it->second); !done) return done;
  patches_.erase(it);
  return {};
}

std::size_t Patches::take_off_all() {
  std::erase_if(patches_, [this](const auto& item) { return put_back(item.first, item.second).has_value(); });
  return patches_.size();
}

std::size_t Patches::take_off_within(Gpa gpa, std::uint64_t bytes) {
  std::size_t count = 0;
  for (auto it = first_from(patches_, gpa.value);
       it != patches_.end() && (it->first < gpa.value || it->first - gpa.value < bytes);) {
    if (!put_back(it->first, it->second)) {
      ++it;
      continue;
    }
    it = patches_.erase(it);
    ++count;
  }
  return count;
}

}  // namespace kvmid::hypervisor
