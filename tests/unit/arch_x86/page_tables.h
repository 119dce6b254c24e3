// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Guest memory for page-walk tests: 64 KiB that hold hand-made tables, and nothing above.
///
/// Each table sits at a fixed place, top table at kTop. The places of the standard walk are named by level.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arch/x86/page_walk.h"

namespace kvmid::x86::test {

inline constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100;
inline constexpr std::uint64_t kXd = std::uint64_t{1} << 63;

/// Where the table of a level is, 5 to 1.
constexpr std::uint64_t table_at(unsigned level) { return 0x1000u * (6 - level); }

class Tables {
 public:
  static constexpr std::size_t kRamBytes = 0x10000;

  void set64(std::uint64_t gpa, std::uint64_t value) { std::memcpy(&ram_.at(gpa), &value, sizeof value); }
  void set32(std::uint64_t gpa, std::uint32_t value) { std::memcpy(&ram_.at(gpa), &value, sizeof value); }

  bool operator()(Gpa gpa, void* out, std::size_t bytes) {
    reads.push_back(gpa);
    if (gpa.value > kRamBytes || bytes > kRamBytes - gpa.value) return false;
    std::memcpy(out, ram_.data() + gpa.value, bytes);
    return true;
  }

  std::vector<Gpa> reads;

 private:
  std::vector<std::byte> ram_ = std::vector<std::byte>(kRamBytes);
};

/// An address whose index is the level's number times 3 at every level (15, 12, 9, 6, 3), and offset 0x123.
inline constexpr std::uint64_t kGva48 =
    (std::uint64_t{12} << 39) | (std::uint64_t{9} << 30) | (std::uint64_t{6} << 21) | (std::uint64_t{3} << 12) | 0x123;
inline constexpr std::uint64_t kGva57 = (std::uint64_t{15} << 48) | kGva48;

constexpr std::uint64_t entry_at(unsigned level) { return table_at(level) + 8 * 3 * level; }

/// Registers of a supervisor with the given paging mode and everything that can forbid an access switched on.
inline PagingState strict(PagingMode mode) {
  PagingState state;
  state.cr0 = cr0::kPe | cr0::kWp | cr0::kPg;
  state.cr4 = cr4::kSmep | cr4::kSmap | cr4::kPge;
  switch (mode) {
    case PagingMode::None:
      state.cr0 = cr0::kPe;
      break;
    case PagingMode::Bits32:
      state.cr4 |= cr4::kPse;
      state.cr3 = 0x1000;
      break;
    case PagingMode::Pae:
      state.cr4 |= cr4::kPae;
      state.efer = efer::kNxe;
      state.cr3 = table_at(3);
      break;
    case PagingMode::Level4:
      state.cr4 |= cr4::kPae;
      state.efer = efer::kNxe | efer::kLme | efer::kLma;
      state.cr3 = table_at(4);
      break;
    case PagingMode::Level5:
      state.cr4 |= cr4::kPae | cr4::kLa57;
      state.efer = efer::kNxe | efer::kLme | efer::kLma;
      state.cr3 = table_at(5);
      break;
  }
  return state;
}

/// Tables for kGva48 and kGva57: every level points at the next with all rights; the page is at 0x7654321000.
inline constexpr std::uint64_t kPage = 0x7654321000;
inline Tables standard(std::uint64_t flags = kP | kW | kU) {
  Tables tables;
  for (unsigned level = 5; level >= 2; --level) tables.set64(entry_at(level), table_at(level - 1) | flags);
  tables.set64(entry_at(1), kPage | flags);
  return tables;
}

}  // namespace kvmid::x86::test
