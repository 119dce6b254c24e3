// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The register sets of the protocol (kvmi_x86_regs, kvmi_x86_sregs): access by number and by name, and their bits.
///
/// Purpose:  two numberings meet here. The protocol numbers registers in the order of kvmi_x86_regs (rax rbx rcx rdx
///           rsi rdi rsp rbp r8..r15 rip rflags); machine code numbers them rax rcx rdx rbx rsp rbp rsi rdi r8..r15.
///           Functions named register_* take the first, functions named gpr_* the second.
/// Errors:   a number from outside is answered by a null pointer, an empty name or no value.
/// Threads:  pure functions.
/// Source:   Intel SDM volume 3, section 2.5 (control registers), volume 1, section 3.4 (RFLAGS).

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "protocol/kvmi.h"

namespace kvmid::x86 {

inline constexpr std::size_t kRegisterCount = 18;
inline constexpr unsigned kRegisterRip = 16;     ///< protocol number
inline constexpr unsigned kRegisterRflags = 17;  ///< protocol number
inline constexpr std::size_t kGprCount = 16;

/// Numbers of the general purpose registers in machine code.
enum class Gpr : std::uint8_t { Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15 };

namespace detail {
using RegisterMember = std::uint64_t kvmi_x86_regs::*;
inline constexpr std::array<RegisterMember, kRegisterCount> kRegisterMembers = {
    &kvmi_x86_regs::rax, &kvmi_x86_regs::rbx, &kvmi_x86_regs::rcx,    &kvmi_x86_regs::rdx, &kvmi_x86_regs::rsi,
    &kvmi_x86_regs::rdi, &kvmi_x86_regs::rsp, &kvmi_x86_regs::rbp,    &kvmi_x86_regs::r8,  &kvmi_x86_regs::r9,
    &kvmi_x86_regs::r10, &kvmi_x86_regs::r11, &kvmi_x86_regs::r12,    &kvmi_x86_regs::r13, &kvmi_x86_regs::r14,
    &kvmi_x86_regs::r15, &kvmi_x86_regs::rip, &kvmi_x86_regs::rflags,
};
/// [number in machine code] = protocol number
inline constexpr std::array<std::uint8_t, kGprCount> kProtocolNumber = {0, 2, 3,  1,  6,  7,  4,  5,
                                                                        8, 9, 10, 11, 12, 13, 14, 15};
}  // namespace detail

/// The register with a protocol number (0 rax ... 15 r15, 16 rip, 17 rflags), or null.
[[nodiscard]] constexpr const std::uint64_t* register_at(const kvmi_x86_regs& regs, unsigned number) {
  return number < kRegisterCount ? &(regs.*detail::kRegisterMembers[number]) : nullptr;
}
[[nodiscard]] constexpr std::uint64_t* register_at(kvmi_x86_regs& regs, unsigned number) {
  return number < kRegisterCount ? &(regs.*detail::kRegisterMembers[number]) : nullptr;
}

/// The register with a number of machine code; only the low four bits of the number count.
[[nodiscard]] constexpr const std::uint64_t& gpr_at(const kvmi_x86_regs& regs, Gpr gpr) {
  return regs.*detail::kRegisterMembers[detail::kProtocolNumber[static_cast<unsigned>(gpr) & 15u]];
}
[[nodiscard]] constexpr std::uint64_t& gpr_at(kvmi_x86_regs& regs, Gpr gpr) {
  return regs.*detail::kRegisterMembers[detail::kProtocolNumber[static_cast<unsigned>(gpr) & 15u]];
}

/// Protocol number of a register of machine code, and back (none for rip, rflags and unknown numbers).
[[nodiscard]] constexpr unsigned register_number(Gpr gpr) {
  return detail::kProtocolNumber[static_cast<unsigned>(gpr) & 15u];
}
[[nodiscard]] constexpr std::optional<Gpr> gpr_of_register(unsigned number) {
  for (unsigned i = 0; i < kGprCount; ++i) {
    if (detail::kProtocolNumber[i] == number) return static_cast<Gpr>(i);
  }
  return std::nullopt;
}

/// "rax" for 0 and so on by protocol number; empty for an unknown number.
[[nodiscard]] std::string_view register_name(unsigned number);
/// Protocol number of a lower-case 64-bit name ("rax", "r8", "rip", "rflags").
[[nodiscard]] std::optional<unsigned> register_by_name(std::string_view name);

namespace rflags {
inline constexpr std::uint64_t kCf = 1u << 0, kFixed = 1u << 1, kPf = 1u << 2, kAf = 1u << 4, kZf = 1u << 6,
                               kSf = 1u << 7, kTf = 1u << 8, kIf = 1u << 9, kDf = 1u << 10, kOf = 1u << 11,
                               kIopl = 3u << 12, kNt = 1u << 14, kRf = 1u << 16, kVm = 1u << 17, kAc = 1u << 18,
                               kVif = 1u << 19, kVip = 1u << 20, kId = 1u << 21;
inline constexpr std::uint64_t kDefined =
    kCf | kFixed | kPf | kAf | kZf | kSf | kTf | kIf | kDf | kOf | kIopl | kNt | kRf | kVm | kAc | kVif | kVip | kId;
}  // namespace rflags

namespace cr0 {
inline constexpr std::uint64_t kPe = 1u << 0, kMp = 1u << 1, kEm = 1u << 2, kTs = 1u << 3, kEt = 1u << 4, kNe = 1u << 5,
                               kWp = 1u << 16, kAm = 1u << 18, kNw = 1u << 29, kCd = 1u << 30,
                               kPg = std::uint64_t{1} << 31;
inline constexpr std::uint64_t kDefined = kPe | kMp | kEm | kTs | kEt | kNe | kWp | kAm | kNw | kCd | kPg;
}  // namespace cr0

namespace cr3 {
inline constexpr std::uint64_t kPcid = 0xfff;                      ///< with CR4.PCIDE
inline constexpr std::uint64_t kNoFlush = std::uint64_t{1} << 63;  ///< with CR4.PCIDE, in the written value only
}  // namespace cr3

namespace cr4 {
inline constexpr std::uint64_t kVme = 1u << 0, kPvi = 1u << 1, kTsd = 1u << 2, kDe = 1u << 3, kPse = 1u << 4,
                               kPae = 1u << 5, kMce = 1u << 6, kPge = 1u << 7, kPce = 1u << 8, kOsfxsr = 1u << 9,
                               kOsxmmexcpt = 1u << 10, kUmip = 1u << 11, kLa57 = 1u << 12, kVmxe = 1u << 13,
                               kSmxe = 1u << 14, kFsgsbase = 1u << 16, kPcide = 1u << 17, kOsxsave = 1u << 18,
                               kKl = 1u << 19, kSmep = 1u << 20, kSmap = 1u << 21, kPke = 1u << 22, kCet = 1u << 23,
                               kPks = 1u << 24;
}  // namespace cr4

namespace efer {
inline constexpr std::uint64_t kSce = 1u << 0, kLme = 1u << 8, kLma = 1u << 10, kNxe = 1u << 11, kSvme = 1u << 12,
                               kLmsle = 1u << 13, kFfxsr = 1u << 14, kTce = 1u << 15;
}  // namespace efer

namespace dr6 {
inline constexpr std::uint64_t kB0 = 1u << 0, kB1 = 1u << 1, kB2 = 1u << 2, kB3 = 1u << 3, kBd = 1u << 13,
                               kBs = 1u << 14, kBt = 1u << 15;
}  // namespace dr6

/// What the virtual processor can do, as far as the rules of this room depend on it.
/// The defaults are an ordinary 64-bit processor without five-level paging.
struct CpuFeatures {
  std::uint8_t physical_address_bits = 46;  ///< 32 to 52
  std::uint8_t linear_address_bits = 48;    ///< 48, or 57 where CR4.LA57 can be set
  bool pages_1g = true;
  bool execute_only = false;  ///< the second level of translation can make a page executable and not readable
  std::uint64_t cr4_allowed = cr4::kVme | cr4::kPvi | cr4::kTsd | cr4::kDe | cr4::kPse | cr4::kPae | cr4::kMce |
                              cr4::kPge | cr4::kPce | cr4::kOsfxsr | cr4::kOsxmmexcpt | cr4::kUmip | cr4::kFsgsbase |
                              cr4::kPcide | cr4::kOsxsave | cr4::kSmep | cr4::kSmap;
  std::uint64_t efer_allowed = efer::kSce | efer::kLme | efer::kLma | efer::kNxe;
};

/// Is every bit above the highest address bit a copy of it? `linear_address_bits` is 48 or 57.
[[nodiscard]] constexpr bool is_canonical(std::uint64_t address, unsigned linear_address_bits) {
  const std::uint64_t top = address >> (linear_address_bits - 1);
  return top == 0 || top == (~std::uint64_t{0} >> (linear_address_bits - 1));
}

/// Width of the instruction pointer and of addresses that the code segment gives.
enum class Mode : std::uint8_t { Bits16 = 2, Bits32 = 4, Bits64 = 8 };

[[nodiscard]] constexpr bool long_mode_active(const kvmi_x86_sregs& sregs) { return (sregs.efer & efer::kLma) != 0; }

/// Mode in which the code segment executes; its number is the `mode` of KVMI_MSG_GET_REGISTERS (bytes: 2, 4 or 8).
[[nodiscard]] constexpr Mode operating_mode(const kvmi_x86_sregs& sregs) {
  if ((sregs.cr0 & cr0::kPe) == 0) return Mode::Bits16;
  if (long_mode_active(sregs) && sregs.cs.l != 0) return Mode::Bits64;
  return sregs.cs.db != 0 ? Mode::Bits32 : Mode::Bits16;
}

/// Current privilege level, 0 to 3 (virtual 8086 mode is 3).
[[nodiscard]] constexpr unsigned privilege_level(const kvmi_x86_regs& regs, const kvmi_x86_sregs& sregs) {
  if ((sregs.cr0 & cr0::kPe) == 0) return 0;
  if ((regs.rflags & rflags::kVm) != 0) return 3;
  return sregs.ss.dpl & 3u;
}

}  // namespace kvmid::x86
