// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/msrs.h"

namespace kvmid::x86 {

namespace {

struct NamedMsr {
  std::uint32_t number;
  std::string_view name;
};
constexpr std::array<NamedMsr, 16> kNamed = {{
    {msr::kTsc, "TSC"},
    {msr::kApicBase, "APIC_BASE"},
    {msr::kSysenterCs, "SYSENTER_CS"},
    {msr::kSysenterEsp, "SYSENTER_ESP"},
    {msr::kSysenterEip, "SYSENTER_EIP"},
    {msr::kMiscEnable, "MISC_ENABLE"},
    {msr::kPat, "PAT"},
    {msr::kEfer, "EFER"},
    {msr::kStar, "STAR"},
    {msr::kLstar, "LSTAR"},
    {msr::kCstar, "CSTAR"},
    {msr::kFmask, "FMASK"},
    {msr::kFsBase, "FS_BASE"},
    {msr::kGsBase, "GS_BASE"},
    {msr::kKernelGsBase, "KERNEL_GS_BASE"},
    {msr::kTscAux, "TSC_AUX"},
}};

bool pat_valid(std::uint64_t value) {
  for (unsigned i = 0; i < 8; ++i, value >>= 8) {
    const std::uint64_t type = value & 0xff;
    if (type > 7 || type == 2 || type == 3) return false;
  }
  return true;
}

constexpr std::uint64_t kApicBaseReservedLow = 0xff | (1u << 9);  // bit 8 BSP, 10 x2APIC, 11 enable, 12 and up address

}  // namespace

std::string_view msr_name(std::uint32_t msr) {
  for (const auto& named : kNamed) {
    if (named.number == msr) return named.name;
  }
  return {};
}

std::optional<std::uint32_t> msr_by_name(std::string_view name) {
  for (const auto& named : kNamed) {
    if (named.name == name) return named.number;
  }
  return std::nullopt;
}

std::string_view text_of(MsrError error) {
  switch (error) {
    case MsrError::NotCanonical:
      return "the address is not canonical";
    case MsrError::ReservedBits:
      return "a bit is set that this processor does not have";
    case MsrError::LongModeUnderPaging:
      return "EFER.LME is changed while CR0.PG is set";
    case MsrError::BadMemoryType:
      return "a field of PAT has a memory type that does not exist";
  }
  return "unknown error";
}

Result<void, MsrError> check_msr_write(const kvmi_x86_sregs& sregs, std::uint32_t msr, std::uint64_t value,
                                       const CpuFeatures& cpu) {
  switch (msr) {
    case msr::kSysenterEsp:
    case msr::kSysenterEip:
    case msr::kLstar:
    case msr::kCstar:
    case msr::kFsBase:
    case msr::kGsBase:
    case msr::kKernelGsBase:
      if (!is_canonical(value, cpu.linear_address_bits)) return MsrError::NotCanonical;
      return {};
    case msr::kEfer:
      // LMA may be written either way: it is left as it is.
      if ((value & ~(cpu.efer_allowed | efer::kLma)) != 0) return MsrError::ReservedBits;
      if ((sregs.cr0 & cr0::kPg) != 0 && ((value ^ sregs.efer) & efer::kLme) != 0) return MsrError::LongModeUnderPaging;
      return {};
    case msr::kTscAux:
      if ((value >> 32) != 0) return MsrError::ReservedBits;
      return {};
    case msr::kPat:
      if (!pat_valid(value)) return MsrError::BadMemoryType;
      return {};
    case msr::kApicBase:
      if ((value & kApicBaseReservedLow) != 0 || (value >> cpu.physical_address_bits) != 0) {
        return MsrError::ReservedBits;
      }
      return {};
    default:
      return {};
  }
}

}  // namespace kvmid::x86
