// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/msr_table.h"

namespace kvmid::emulated {

std::optional<std::uint64_t> MsrTable::get(std::uint32_t index) const {
  for (const auto& entry : entries_) {
    if (entry.index == index) return entry.value;
  }
  return std::nullopt;
}

bool MsrTable::set(std::uint32_t index, std::uint64_t value) {
  for (auto& entry : entries_) {
    if (entry.index != index) continue;
    entry.value = value;
    return true;
  }
  return false;
}

}  // namespace kvmid::emulated
