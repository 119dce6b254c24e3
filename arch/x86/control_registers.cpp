// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/control_registers.h"

namespace kvmid::x86 {

namespace {

using CrResult = Result<void, CrError>;

CrResult check_cr0(const kvmi_x86_sregs& sregs, std::uint64_t value) {
  // Undefined bits of the low half are ignored by the processor, those of the high half are not.
  if ((value >> 32) != 0) return CrError::ReservedBits;
  if ((value & cr0::kPg) != 0 && (value & cr0::kPe) == 0) return CrError::PagingWithoutProtection;
  if ((value & cr0::kNw) != 0 && (value & cr0::kCd) == 0) return CrError::WriteThroughWithoutCacheDisable;
  const bool was_paging = (sregs.cr0 & cr0::kPg) != 0;
  const bool paging = (value & cr0::kPg) != 0;
  if (!was_paging && paging && (sregs.efer & efer::kLme) != 0) {
    if ((sregs.cr4 & cr4::kPae) == 0) return CrError::LongModeWithoutPae;
    if (sregs.cs.l != 0) return CrError::LongModeFromLongCode;
  }
  if (was_paging && !paging) {
    if (operating_mode(sregs) == Mode::Bits64) return CrError::PagingOffInLongCode;
    if ((sregs.cr4 & cr4::kPcide) != 0) return CrError::PagingOffWithPcid;
  }
  if ((value & cr0::kWp) == 0 && (sregs.cr4 & cr4::kCet) != 0) return CrError::CetWithoutWriteProtect;
  return {};
}

CrResult check_cr3(const kvmi_x86_sregs& sregs, std::uint64_t value, const CpuFeatures& cpu) {
  if (!long_mode_active(sregs)) {
    // The register has 32 bits there, and those are ignored that do not address the table.
    if ((value >> 32) != 0) return CrError::ReservedBits;
    return {};
  }
  if ((sregs.cr4 & cr4::kPcide) != 0) value &= ~cr3::kNoFlush;
  if ((value >> cpu.physical_address_bits) != 0) return CrError::ReservedBits;
  return {};
}

CrResult check_cr4(const kvmi_x86_sregs& sregs, std::uint64_t value, const CpuFeatures& cpu) {
  if ((value & ~cpu.cr4_allowed) != 0) return CrError::ReservedBits;
  const std::uint64_t changed = value ^ sregs.cr4;
  const bool long_mode = long_mode_active(sregs);
  if (long_mode && (value & cr4::kPae) == 0) return CrError::PaeOffInLongMode;
  if (long_mode && (changed & cr4::kLa57) != 0) return CrError::La57ChangedInLongMode;
  if ((value & cr4::kPcide) != 0) {
    if (!long_mode) return CrError::PcidOutsideLongMode;
    if ((changed & cr4::kPcide) != 0 && (sregs.cr3 & cr3::kPcid) != 0) return CrError::PcidWithDirtyCr3;
  }
  if ((value & cr4::kCet) != 0 && (sregs.cr0 & cr0::kWp) == 0) return CrError::CetWithoutWriteProtect;
  return {};
}

}  // namespace

std::string_view text_of(CrError error) {
  switch (error) {
    case CrError::NoSuchRegister:
      return "there is no such control register";
    case CrError::ReservedBits:
      return "a bit is set that this processor does not have";
    case CrError::PagingWithoutProtection:
      return "CR0.PG is set without CR0.PE";
    case CrError::WriteThroughWithoutCacheDisable:
      return "CR0.NW is set without CR0.CD";
    case CrError::LongModeWithoutPae:
      return "paging is switched on with EFER.LME set and CR4.PAE clear";
    case CrError::LongModeFromLongCode:
      return "paging is switched on with EFER.LME set while CS.L is set";
    case CrError::PagingOffInLongCode:
      return "paging is switched off while 64-bit code executes";
    case CrError::PagingOffWithPcid:
      return "paging is switched off while CR4.PCIDE is set";
    case CrError::CetWithoutWriteProtect:
      return "CR4.CET is set together with a clear CR0.WP";
    case CrError::PaeOffInLongMode:
      return "CR4.PAE is cleared in long mode";
    case CrError::La57ChangedInLongMode:
      return "CR4.LA57 is changed in long mode";
    case CrError::PcidOutsideLongMode:
      return "CR4.PCIDE is set outside long mode";
    case CrError::PcidWithDirtyCr3:
      return "CR4.PCIDE is set while the low 12 bits of CR3 are not 0";
  }
  return "unknown error";
}

CrResult check_cr_write(const kvmi_x86_sregs& sregs, unsigned cr, std::uint64_t value, const CpuFeatures& cpu) {
  switch (cr) {
    case 0:
      return check_cr0(sregs, value);
    case 3:
      return check_cr3(sregs, value, cpu);
    case 4:
      return check_cr4(sregs, value, cpu);
    case 8:
      if (value > 15) return CrError::ReservedBits;
      return {};
    default:
      return CrError::NoSuchRegister;
  }
}

CrResult write_cr(kvmi_x86_sregs& sregs, unsigned cr, std::uint64_t value, const CpuFeatures& cpu) {
  auto checked = check_cr_write(sregs, cr, value, cpu);
  if (!checked) return checked;
  switch (cr) {
    case 0:
      sregs.cr0 = (value & cr0::kDefined) | cr0::kEt;
      if ((sregs.cr0 & cr0::kPg) == 0) {
        sregs.efer &= ~efer::kLma;
      } else if ((sregs.efer & efer::kLme) != 0) {
        sregs.efer |= efer::kLma;
      }
      break;
    case 3:
      sregs.cr3 = (sregs.cr4 & cr4::kPcide) != 0 ? value & ~cr3::kNoFlush : value;
      break;
    case 4:
      sregs.cr4 = value;
      break;
    default:
      sregs.cr8 = value;
      break;
  }
  return checked;
}

Result<std::uint64_t, CrError> read_cr(const kvmi_x86_sregs& sregs, unsigned cr) {
  switch (cr) {
    case 0:
      return sregs.cr0;
    case 2:
      return sregs.cr2;
    case 3:
      return sregs.cr3;
    case 4:
      return sregs.cr4;
    case 8:
      return sregs.cr8;
    default:
      return CrError::NoSuchRegister;
  }
}

bool cr_write_changes_translation(unsigned cr, std::uint64_t old_value, std::uint64_t new_value) {
  const std::uint64_t changed = old_value ^ new_value;
  switch (cr) {
    case 0:
      return (changed & (cr0::kPe | cr0::kPg | cr0::kWp)) != 0;
    case 3:
      return (new_value & cr3::kNoFlush) == 0;
    case 4:
      return (changed & (cr4::kPse | cr4::kPae | cr4::kPge | cr4::kLa57 | cr4::kPcide | cr4::kSmep | cr4::kSmap |
                         cr4::kPke | cr4::kCet | cr4::kPks)) != 0;
    default:
      return false;
  }
}

}  // namespace kvmid::x86
