// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Model specific registers: which can be watched, their names, and which values the processor takes.
///
/// Purpose:  the answer to CONTROL_MSR, to a replaced value in an MSR event, and to WRMSR in an emulator.
/// Errors:   MsrError names the rule; to the guest every one is #GP(0).
/// Threads:  pure functions.
/// Source:   Intel SDM volume 4; protocol/kvmi.h (struct kvmi_control_msr) for the ranges.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "arch/x86/registers.h"
#include "protocol/result.h"

namespace kvmid::x86 {

struct MsrRange {
  std::uint32_t first;
  std::uint32_t last;  ///< included
};
inline constexpr std::array<MsrRange, 4> kTrackableMsrs = {{
    {0x00000000, 0x00001fff},
    {0x40000000, 0x40001fff},  // Hyper-V
    {0xc0000000, 0xc0001fff},
    {0x4b564d00, 0x4b564dff},  // KVM's own
}};
/// How many MSRs the ranges hold.
inline constexpr std::uint32_t kTrackableMsrCount = 3 * 0x2000 + 0x100;

/// Can writes of this MSR be an event?
[[nodiscard]] constexpr bool is_trackable_msr(std::uint32_t msr) {
  for (const auto& range : kTrackableMsrs) {
    if (msr >= range.first && msr <= range.last) return true;
  }
  return false;
}

/// Place of a trackable MSR in a table of kTrackableMsrCount elements (ranges one after another); none for others.
[[nodiscard]] constexpr std::optional<std::uint32_t> msr_table_index(std::uint32_t msr) {
  std::uint32_t base = 0;
  for (const auto& range : kTrackableMsrs) {
    if (msr >= range.first && msr <= range.last) return base + (msr - range.first);
    base += range.last - range.first + 1;
  }
  return std::nullopt;
}

namespace msr {
inline constexpr std::uint32_t kTsc = 0x10, kApicBase = 0x1b, kSysenterCs = 0x174, kSysenterEsp = 0x175,
                               kSysenterEip = 0x176, kMiscEnable = 0x1a0, kPat = 0x277, kEfer = 0xc0000080,
                               kStar = 0xc0000081, kLstar = 0xc0000082, kCstar = 0xc0000083, kFmask = 0xc0000084,
                               kFsBase = 0xc0000100, kGsBase = 0xc0000101, kKernelGsBase = 0xc0000102,
                               kTscAux = 0xc0000103;
}  // namespace msr

/// "LSTAR" for 0xc0000082 and so on for well-known MSRs; empty for others.
[[nodiscard]] std::string_view msr_name(std::uint32_t msr);
/// Number of a well-known MSR by its upper-case name.
[[nodiscard]] std::optional<std::uint32_t> msr_by_name(std::string_view name);

/// Why a value cannot be written to an MSR.
enum class MsrError : std::uint8_t {
  NotCanonical,         ///< an address that no page table can map
  ReservedBits,         ///< a bit is set that this processor does not have
  LongModeUnderPaging,  ///< EFER.LME changed while CR0.PG is set
  BadMemoryType,        ///< PAT with a type that does not exist
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(MsrError error);

/// Would the processor, in the state `sregs`, take `value`? MSRs that this room has no rule for take any value: whether
/// such an MSR exists is for the hypervisor to know.
[[nodiscard]] Result<void, MsrError> check_msr_write(const kvmi_x86_sregs& sregs, std::uint32_t msr,
                                                     std::uint64_t value, const CpuFeatures& cpu = {});

/// EFER after a write that check_msr_write() accepts: EFER.LMA cannot be written.
[[nodiscard]] constexpr std::uint64_t efer_after_write(std::uint64_t old_value, std::uint64_t value) {
  return (value & ~efer::kLma) | (old_value & efer::kLma);
}

}  // namespace kvmid::x86
