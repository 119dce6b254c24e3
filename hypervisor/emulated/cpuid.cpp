// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/cpuid.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "hypervisor/emulated/xsave.h"

namespace kvmid::emulated {

namespace {

constexpr std::uint32_t bit(unsigned n) { return std::uint32_t{1} << n; }

constexpr std::uint32_t kBasicLast = 0xd, kExtendedLast = 0x80000008, kHypervisor = 0x40000000;
constexpr std::string_view kVendor = "KvmidEmulate";
constexpr std::string_view kBrand = "kvmid emulated processor";

std::uint32_t word(std::string_view text, std::size_t number) {
  std::uint32_t value = 0;
  if (number * 4 < text.size()) {
    std::memcpy(&value, text.data() + number * 4, std::min<std::size_t>(4, text.size() - number * 4));
  }
  return value;
}

/// FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, PGE, CMOV, PAT, CLFSH, MMX, FXSR, SSE, SSE2
constexpr std::uint32_t kFeaturesEdx = bit(0) | bit(2) | bit(3) | bit(4) | bit(5) | bit(6) | bit(7) | bit(8) | bit(9) |
                                       bit(11) | bit(13) | bit(15) | bit(16) | bit(19) | bit(23) | bit(24) | bit(25) |
                                       bit(26);

GetCpuidReply features(const CpuidState& s) {
  GetCpuidReply r;
  r.eax = 0x000006f1;  // family 6
  r.ebx = (std::uint32_t{s.vcpu.value} << 24) | (std::uint32_t{s.vcpu_count} << 16) | (8u << 8);
  r.ecx = bit(0) | bit(13) | bit(26) | bit(31);  // SSE3, CX16, XSAVE, "runs under a hypervisor"
  if ((s.cr4 & x86::cr4::kOsxsave) != 0) r.ecx |= bit(27);
  if ((s.cpu.cr4_allowed & x86::cr4::kPcide) != 0) r.ecx |= bit(17);
  r.edx = kFeaturesEdx;
  return r;
}

GetCpuidReply structured(const CpuidState& s) {
  const auto has = [&](std::uint64_t cr4_bit) { return (s.cpu.cr4_allowed & cr4_bit) != 0; };
  GetCpuidReply r;
  if (has(x86::cr4::kFsgsbase)) r.ebx |= bit(0);
  if (has(x86::cr4::kSmep)) r.ebx |= bit(7);
  if (has(x86::cr4::kSmap)) r.ebx |= bit(20);
  if (has(x86::cr4::kUmip)) r.ecx |= bit(2);
  return r;
}

GetCpuidReply extended_features(const CpuidState& s) {
  GetCpuidReply r;
  r.ecx = bit(0);                                // LAHF in 64-bit mode
  r.edx = bit(11) | bit(20) | bit(27) | bit(29);  // SYSCALL, NX, RDTSCP, long mode
  if (s.cpu.pages_1g) r.edx |= bit(26);
  return r;
}

}  // namespace

std::optional<GetCpuidReply> cpuid_leaf(const CpuidState& s, std::uint32_t function, std::uint32_t index) {
  switch (function) {
    case 0: return GetCpuidReply{kBasicLast, word(kVendor, 0), word(kVendor, 2), word(kVendor, 1)};
    case 1: return features(s);
    case 7: return index == 0 ? std::optional(structured(s)) : std::nullopt;
    case 0xd:
      // The area has room for x87 and SSE whatever XCR0 enables: their part of it has a fixed size.
      if (index == 0) return GetCpuidReply{static_cast<std::uint32_t>(kXcr0Supported), kXsaveBytes, kXsaveBytes, 0};
      if (index == 1) return GetCpuidReply{};  // no XSAVEOPT, XSAVEC or XSAVES
      return std::nullopt;
    case kHypervisor: return GetCpuidReply{kHypervisor, word(kVendor, 0), word(kVendor, 1), word(kVendor, 2)};
    case 0x80000000: return GetCpuidReply{kExtendedLast, word(kVendor, 0), word(kVendor, 2), word(kVendor, 1)};
    case 0x80000001: return extended_features(s);
    case 0x80000002:
    case 0x80000003:
    case 0x80000004: {
      const std::size_t first = (function - 0x80000002) * 4;
      return GetCpuidReply{word(kBrand, first), word(kBrand, first + 1), word(kBrand, first + 2),
                           word(kBrand, first + 3)};
    }
    case kExtendedLast:
      return GetCpuidReply{
          s.cpu.physical_address_bits | (std::uint32_t{s.cpu.linear_address_bits} << 8), 0, 0, 0};
    default: return std::nullopt;
  }
}

}  // namespace kvmid::emulated
