// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The control registers: which can be watched, and which values the processor takes.
///
/// Purpose:  an agent may replace the value of a CR event, and an emulator executes MOV to CR; both must refuse what
///           a processor answers with #GP(0) instead of making a guest state that cannot be.
/// Errors:   CrError names the rule; to the guest every one is #GP(0).
/// Threads:  pure functions.
/// Source:   Intel SDM volume 3, sections 2.5, 4.1.1, 4.10.1, 10.8.5; volume 2, MOV to/from control registers.

#include <cstdint>
#include <string_view>

#include "arch/x86/registers.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"

namespace kvmid::x86 {

/// Can writes of this control register be an event?
[[nodiscard]] constexpr bool is_trackable_cr(std::uint32_t cr) { return cr == 0 || cr == 3 || cr == 4; }

/// Why a value cannot be loaded into a control register.
enum class CrError : std::uint8_t {
  NoSuchRegister,                   ///< not CR0, CR3, CR4 or CR8
  ReservedBits,                     ///< a bit is set that this processor does not have
  PagingWithoutProtection,          ///< CR0.PG without CR0.PE
  WriteThroughWithoutCacheDisable,  ///< CR0.NW without CR0.CD
  LongModeWithoutPae,               ///< paging switched on with EFER.LME and without CR4.PAE
  LongModeFromLongCode,             ///< paging switched on with EFER.LME while CS.L is set
  PagingOffInLongCode,              ///< paging switched off while 64-bit code executes
  PagingOffWithPcid,                ///< paging switched off while CR4.PCIDE is set
  CetWithoutWriteProtect,           ///< CR4.CET together with a clear CR0.WP
  PaeOffInLongMode,                 ///< CR4.PAE cleared in long mode
  La57ChangedInLongMode,            ///< CR4.LA57 changed in long mode
  PcidOutsideLongMode,              ///< CR4.PCIDE set outside long mode
  PcidWithDirtyCr3,                 ///< CR4.PCIDE set while CR3 bits 11:0 are not 0
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(CrError error);

/// Would the processor, in the state `sregs`, take `value` for control register `cr` (0, 3, 4 or 8)?
/// PAE paging also checks the four entries that CR3 points at: see pdptes_valid() in page_walk.h.
[[nodiscard]] Result<void, CrError> check_cr_write(const kvmi_x86_sregs& sregs, unsigned cr, std::uint64_t value,
                                                   const CpuFeatures& cpu = {});

/// Loads a value that check_cr_write() accepts: stores what the register then reads as (CR0.ET is always 1, bits that
/// CR0 does not have read 0, bit 63 of CR3 is not kept) and follows EFER.LMA = EFER.LME & CR0.PG. On an error `sregs`
/// is as it was.
[[nodiscard]] Result<void, CrError> write_cr(kvmi_x86_sregs& sregs, unsigned cr, std::uint64_t value,
                                             const CpuFeatures& cpu = {});

/// Value of CR0, 2, 3, 4 or 8; `NoSuchRegister` for others.
[[nodiscard]] Result<std::uint64_t, CrError> read_cr(const kvmi_x86_sregs& sregs, unsigned cr);

/// CR0 after LMSW with `source` (low four bits; it can set PE and cannot clear it), and after CLTS.
[[nodiscard]] constexpr std::uint64_t cr0_after_lmsw(std::uint64_t cr0_value, std::uint16_t source) {
  const std::uint64_t changed = cr0::kMp | cr0::kEm | cr0::kTs;
  return (cr0_value & ~changed) | (source & (changed | cr0::kPe));
}
[[nodiscard]] constexpr std::uint64_t cr0_after_clts(std::uint64_t cr0_value) { return cr0_value & ~cr0::kTs; }

/// Can a write that turns `old_value` into `new_value` change how addresses are translated (so that a TLB has to
/// forget)? Every write of CR3 can, unless it carries the no-flush bit.
[[nodiscard]] bool cr_write_changes_translation(unsigned cr, std::uint64_t old_value, std::uint64_t new_value);

}  // namespace kvmid::x86
