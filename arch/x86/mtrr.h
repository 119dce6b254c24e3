// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Memory types as the MTRRs of a processor give them.
///
/// Purpose:  what GET_MTRR_TYPE of older dialects answers, from MSRs that GET_REGISTERS reads.
/// Shapes:   Mtrrs holds the values; the functions say which MSRs they are and what comes out.
/// Errors:   none: every value means something. Reserved types are given as they stand.
/// Threads:  pure functions.
/// Source:   Intel SDM volume 3, section 12.11 (MTRRs; 12.11.4.1 for overlaps).

#include <array>
#include <cstdint>
#include <vector>

#include "protocol/ids.h"

namespace kvmid::x86 {

enum class MemoryType : std::uint8_t {
  Uncacheable = 0,
  WriteCombining = 1,
  WriteThrough = 4,
  WriteProtected = 5,
  WriteBack = 6,
};

namespace msr {
inline constexpr std::uint32_t kMtrrCap = 0xfe, kMtrrPhysBase0 = 0x200, kMtrrPhysMask0 = 0x201, kMtrrDefType = 0x2ff;
}  // namespace msr

inline constexpr std::size_t kFixedMtrrs = 11;
/// From address 0 on: one of 64 KiB ranges, two of 16 KiB ranges, eight of 4 KiB ranges; eight ranges each.
inline constexpr std::array<std::uint32_t, kFixedMtrrs> kFixedMtrrMsrs = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                                          0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

struct VariableMtrr {
  std::uint64_t base = 0;
  std::uint64_t mask = 0;
};

struct Mtrrs {
  std::uint64_t cap = 0;
  std::uint64_t def_type = 0;
  std::array<std::uint64_t, kFixedMtrrs> fixed{};
  std::vector<VariableMtrr> variable{};
};

/// How many pairs of variable-range MTRRs IA32_MTRRCAP announces.
[[nodiscard]] constexpr unsigned variable_mtrrs(std::uint64_t cap) { return static_cast<unsigned>(cap & 0xffU); }
/// Are there fixed-range MTRRs?
[[nodiscard]] constexpr bool has_fixed_mtrrs(std::uint64_t cap) { return (cap & 0x100U) != 0; }
/// IA32_MTRR_DEF_TYPE: are MTRRs in use, and the fixed ones among them?
[[nodiscard]] constexpr bool mtrrs_enabled(std::uint64_t def_type) { return (def_type & 0x800U) != 0; }
[[nodiscard]] constexpr bool fixed_mtrrs_enabled(std::uint64_t def_type) { return (def_type & 0x400U) != 0; }

/// The type of the memory at `gpa`. Where types overlap whose combination the manual leaves undefined: write-back, as
/// KVM takes it.
[[nodiscard]] MemoryType memory_type(const Mtrrs& mtrrs, Gpa gpa);

}  // namespace kvmid::x86
