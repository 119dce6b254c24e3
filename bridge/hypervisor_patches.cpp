// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_patches.h"

#include <algorithm>
#include <iterator>

namespace kvmid::bridge {

/// The first patch that ends behind `gpa`.
template <class Of>
auto HypervisorPatches::first_from(Of& patches, std::uint64_t gpa) {
  const auto behind = patches.upper_bound(gpa);
  if (behind == patches.begin()) return behind;
  const auto before = std::prev(behind);
  return gpa - before->first < before->second.bytes.size() ? before : behind;
}

/// Calls `each(patch, at, in_range, count)` for the part of each patch that lies in the range: `count` bytes from byte
/// `at` of the patch and from byte `in_range` of the range.
template <class Of, class Each>
void HypervisorPatches::each_part(Of& patches, Gpa gpa, std::size_t size, Each each) {
  if (patches.empty() || size == 0) return;
  const std::uint64_t last = gpa.value + (size - 1);
  for (auto it = first_from(patches, gpa.value); it != patches.end() && it->first <= last; ++it) {
    const std::uint64_t begin = std::max(it->first, gpa.value);
    const std::uint64_t end = std::min(it->first + (it->second.bytes.size() - 1), last);
    each(it->second, static_cast<std::size_t>(begin - it->first), static_cast<std::size_t>(begin - gpa.value),
         static_cast<std::size_t>(end - begin + 1));
  }
}

bool HypervisorPatches::touches(Gpa gpa, std::size_t size) const {
  if (patches_.empty() || size == 0) return false;
  const auto it = first_from(patches_, gpa.value);
  return it != patches_.end() && it->first <= gpa.value + (size - 1);
}

std::optional<Failure> HypervisorPatches::may_place(Gpa gpa, std::size_t size) const {
  if (!is_placed(gpa, size)) return std::nullopt;
  if (touches(gpa, size)) {
    const auto it = first_from(patches_, gpa.value);
    return Failure{ErrorCode::Busy, "the patch at GPA " + hex_text(it->first) + " of " +
                                        std::to_string(it->second.bytes.size()) + " bytes overlaps"};
  }
  if (patches_.size() >= kMax)
    return Failure{ErrorCode::Busy, "there are " + std::to_string(patches_.size()) + " patches already"};
  return std::nullopt;
}

std::optional<Failure> HypervisorPatches::is_placed(Gpa gpa, std::size_t size) const {
  const auto it = patches_.find(gpa.value);
  if (it != patches_.end() && it->second.bytes.size() == size) return std::nullopt;
  return Failure{ErrorCode::NoEntry, "no patch of " + std::to_string(size) + " bytes at GPA " + hex_text(gpa.value)};
}

void HypervisorPatches::uncover(Gpa gpa, std::span<std::byte> bytes) const {
  each_part(patches_, gpa, bytes.size(),
            [&](const Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
              for (std::size_t i = 0; i < count; ++i) {
                std::byte& byte = bytes[in_range + i];
                if (byte == patch.bytes[at + i]) byte = patch.under[at + i];
              }
            });
}

std::vector<Run> HypervisorPatches::uncovered(Gpa gpa, Bytes seen) const {
  std::vector<Run> runs;
  std::size_t begin = 0;  // of the run that is not closed
  const auto leave_out = [&](std::size_t at) {
    if (at != begin) runs.push_back({begin, at - begin});
    begin = at + 1;
  };
  each_part(patches_, gpa, seen.size(),
            [&](const Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
              for (std::size_t i = 0; i < count; ++i)
                if (seen[in_range + i] == patch.bytes[at + i]) leave_out(in_range + i);
            });
  leave_out(seen.size());
  return runs;
}

void HypervisorPatches::change_under(Gpa gpa, Bytes data) {
  // Also where the guest has stored over the patch: the new byte may be the one that the patch has.
  each_part(patches_, gpa, data.size(), [&](Patch& patch, std::size_t at, std::size_t in_range, std::size_t count) {
    std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(in_range), count,
                patch.under.begin() + static_cast<std::ptrdiff_t>(at));
  });
}

}  // namespace kvmid::bridge
