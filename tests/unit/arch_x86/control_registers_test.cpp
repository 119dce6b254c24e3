// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/control_registers.h"

#include <catch2/catch.hpp>

#include <optional>
#include <set>
#include <string>

using namespace kvmid::x86;

namespace {

kvmi_x86_sregs real_mode() {
  kvmi_x86_sregs sregs{};
  sregs.cr0 = cr0::kEt;
  return sregs;
}

kvmi_x86_sregs protected_mode() {
  auto sregs = real_mode();
  sregs.cr0 |= cr0::kPe;
  sregs.cs.db = 1;
  return sregs;
}

kvmi_x86_sregs long_mode() {
  kvmi_x86_sregs sregs{};
  sregs.cr0 = cr0::kPe | cr0::kEt | cr0::kWp | cr0::kPg;
  sregs.cr4 = cr4::kPae;
  sregs.efer = efer::kLme | efer::kLma;
  sregs.cs.l = 1;
  return sregs;
}

/// The rule that a write breaks, or nothing.
std::optional<CrError> broken(const kvmi_x86_sregs& sregs, unsigned cr, std::uint64_t value,
                              const CpuFeatures& cpu = {}) {
  const auto result = check_cr_write(sregs, cr, value, cpu);
  if (result) return std::nullopt;
  return result.error();
}

constexpr std::nullopt_t fine = std::nullopt;

}  // namespace

TEST_CASE("CR0, CR3 and CR4 can be tracked and no other", "[cr]") {
  for (std::uint32_t cr = 0; cr < 20; ++cr) CHECK(is_trackable_cr(cr) == (cr == 0 || cr == 3 || cr == 4));
  CHECK_FALSE(is_trackable_cr(0xffffffffu));
}

TEST_CASE("a write to a control register that does not exist is refused", "[cr]") {
  for (unsigned cr : {1u, 2u, 5u, 7u, 9u, 15u, 255u}) CHECK(broken(long_mode(), cr, 0) == CrError::NoSuchRegister);
  CHECK(read_cr(long_mode(), 1).error() == CrError::NoSuchRegister);
}

TEST_CASE("CR0 refuses a set bit of its upper half and ignores unknown ones of its lower", "[cr]") {
  const auto sregs = long_mode();
  for (unsigned bit = 32; bit < 64; ++bit) {
    CHECK(broken(sregs, 0, sregs.cr0 | (std::uint64_t{1} << bit)) == CrError::ReservedBits);
  }
  auto written = sregs;
  REQUIRE(write_cr(written, 0, (sregs.cr0 & ~cr0::kEt) | (1u << 6) | (1u << 17) | (1u << 28)));
  CHECK(written.cr0 == sregs.cr0);
}

TEST_CASE("CR0 refuses paging without protection and write-through without cache disable", "[cr]") {
  CHECK(broken(real_mode(), 0, cr0::kPg) == CrError::PagingWithoutProtection);
  CHECK(broken(real_mode(), 0, cr0::kPg | cr0::kPe) == fine);
  CHECK(broken(real_mode(), 0, cr0::kNw) == CrError::WriteThroughWithoutCacheDisable);
  CHECK(broken(real_mode(), 0, cr0::kNw | cr0::kCd) == fine);
  CHECK(broken(real_mode(), 0, cr0::kCd) == fine);
}

TEST_CASE("paging with EFER.LME needs CR4.PAE and a code segment that is not long", "[cr]") {
  auto sregs = protected_mode();
  sregs.efer = efer::kLme;
  CHECK(broken(sregs, 0, sregs.cr0 | cr0::kPg) == CrError::LongModeWithoutPae);
  sregs.cr4 = cr4::kPae;
  CHECK(broken(sregs, 0, sregs.cr0 | cr0::kPg) == fine);
  sregs.cs.l = 1;
  CHECK(broken(sregs, 0, sregs.cr0 | cr0::kPg) == CrError::LongModeFromLongCode);
}

TEST_CASE("paging cannot be switched off by 64-bit code or with PCIDE", "[cr]") {
  auto sregs = long_mode();
  CHECK(broken(sregs, 0, sregs.cr0 & ~cr0::kPg) == CrError::PagingOffInLongCode);
  sregs.cs.l = 0;  // compatibility mode may leave long mode
  CHECK(broken(sregs, 0, sregs.cr0 & ~cr0::kPg) == fine);
  sregs.cr4 |= cr4::kPcide;
  CHECK(broken(sregs, 0, sregs.cr0 & ~cr0::kPg) == CrError::PagingOffWithPcid);
}

TEST_CASE("LMA follows LME and paging", "[cr]") {
  auto sregs = protected_mode();
  sregs.cr4 = cr4::kPae;
  sregs.efer = efer::kLme;
  REQUIRE(write_cr(sregs, 0, sregs.cr0 | cr0::kPg));
  CHECK(sregs.efer == (efer::kLme | efer::kLma));
  REQUIRE(write_cr(sregs, 0, sregs.cr0 & ~cr0::kPg));
  CHECK(sregs.efer == efer::kLme);

  auto legacy = protected_mode();
  REQUIRE(write_cr(legacy, 0, legacy.cr0 | cr0::kPg));
  CHECK(legacy.efer == 0);
}

TEST_CASE("CET and a clear WP exclude each other from both sides", "[cr]") {
  CpuFeatures cpu;
  cpu.cr4_allowed |= cr4::kCet;
  auto sregs = long_mode();
  CHECK(broken(sregs, 4, sregs.cr4 | cr4::kCet, cpu) == fine);
  sregs.cr0 &= ~cr0::kWp;
  CHECK(broken(sregs, 4, sregs.cr4 | cr4::kCet, cpu) == CrError::CetWithoutWriteProtect);
  sregs = long_mode();
  sregs.cr4 |= cr4::kCet;
  CHECK(broken(sregs, 0, sregs.cr0 & ~cr0::kWp, cpu) == CrError::CetWithoutWriteProtect);
}

TEST_CASE("CR3 refuses address bits that the processor does not have", "[cr]") {
  for (const std::uint8_t width : {std::uint8_t{36}, std::uint8_t{46}, std::uint8_t{52}}) {
    CpuFeatures cpu;
    cpu.physical_address_bits = width;
    for (unsigned bit = 12; bit < 64; ++bit) {
      const auto expected = bit < width ? std::optional<CrError>{} : CrError::ReservedBits;
      CHECK(broken(long_mode(), 3, std::uint64_t{1} << bit, cpu) == expected);
    }
  }
  CHECK(broken(protected_mode(), 3, 0xffffffff) == fine);
  CHECK(broken(protected_mode(), 3, 0x100000000) == CrError::ReservedBits);
}

TEST_CASE("bit 63 of CR3 is taken with PCIDE and not kept", "[cr]") {
  auto sregs = long_mode();
  CHECK(broken(sregs, 3, cr3::kNoFlush | 0x1000) == CrError::ReservedBits);
  sregs.cr4 |= cr4::kPcide;
  REQUIRE(write_cr(sregs, 3, cr3::kNoFlush | 0x1005));
  CHECK(sregs.cr3 == 0x1005);
}

TEST_CASE("CR4 refuses every bit that the processor does not have", "[cr]") {
  const CpuFeatures cpu;
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t mask = std::uint64_t{1} << bit;
    if ((cpu.cr4_allowed & mask) != 0) continue;
    CHECK(broken(long_mode(), 4, cr4::kPae | mask) == CrError::ReservedBits);
  }
}

TEST_CASE("PAE and LA57 stay as they are in long mode", "[cr]") {
  CpuFeatures cpu;
  cpu.cr4_allowed |= cr4::kLa57;
  CHECK(broken(long_mode(), 4, 0, cpu) == CrError::PaeOffInLongMode);
  CHECK(broken(long_mode(), 4, cr4::kPae | cr4::kLa57, cpu) == CrError::La57ChangedInLongMode);
  auto five = long_mode();
  five.cr4 |= cr4::kLa57;
  CHECK(broken(five, 4, cr4::kPae, cpu) == CrError::La57ChangedInLongMode);
  CHECK(broken(protected_mode(), 4, cr4::kLa57, cpu) == fine);
  CHECK(broken(protected_mode(), 4, 0, cpu) == fine);
}

TEST_CASE("PCIDE needs long mode and a CR3 with a clear PCID", "[cr]") {
  CHECK(broken(protected_mode(), 4, cr4::kPcide) == CrError::PcidOutsideLongMode);
  auto sregs = long_mode();
  CHECK(broken(sregs, 4, cr4::kPae | cr4::kPcide) == fine);
  sregs.cr3 = 0x1018;
  CHECK(broken(sregs, 4, cr4::kPae | cr4::kPcide) == CrError::PcidWithDirtyCr3);
  sregs.cr4 |= cr4::kPcide;  // it is set already: CR3 may hold a PCID
  CHECK(broken(sregs, 4, cr4::kPae | cr4::kPcide | cr4::kSmep) == fine);
  CHECK(broken(sregs, 4, cr4::kPae) == fine);
}

TEST_CASE("CR8 takes 0 to 15", "[cr]") {
  CHECK(broken(long_mode(), 8, 15) == fine);
  CHECK(broken(long_mode(), 8, 16) == CrError::ReservedBits);
  auto sregs = long_mode();
  REQUIRE(write_cr(sregs, 8, 9));
  CHECK(sregs.cr8 == 9);
}

TEST_CASE("a refused write leaves all registers as they were", "[cr]") {
  auto sregs = long_mode();
  CHECK_FALSE(write_cr(sregs, 0, 0).has_value());
  CHECK_FALSE(write_cr(sregs, 4, 0).has_value());
  CHECK_FALSE(write_cr(sregs, 3, ~std::uint64_t{0}).has_value());
  CHECK_FALSE(write_cr(sregs, 2, 1).has_value());
  CHECK(sregs.cr0 == long_mode().cr0);
  CHECK(sregs.cr4 == long_mode().cr4);
  CHECK(sregs.cr3 == 0);
  CHECK(sregs.cr2 == 0);
  CHECK(sregs.efer == long_mode().efer);
}

TEST_CASE("each control register reads back what it holds", "[cr]") {
  kvmi_x86_sregs sregs{};
  sregs.cr0 = 10;
  sregs.cr2 = 12;
  sregs.cr3 = 13;
  sregs.cr4 = 14;
  sregs.cr8 = 8;
  CHECK(*read_cr(sregs, 0) == 10);
  CHECK(*read_cr(sregs, 2) == 12);
  CHECK(*read_cr(sregs, 3) == 13);
  CHECK(*read_cr(sregs, 4) == 14);
  CHECK(*read_cr(sregs, 8) == 8);
}

TEST_CASE("LMSW can set PE and cannot clear it, and reaches only the low four bits", "[cr]") {
  CHECK(cr0_after_lmsw(cr0::kEt, 0x1) == (cr0::kEt | cr0::kPe));
  CHECK(cr0_after_lmsw(cr0::kPe | cr0::kTs | cr0::kWp, 0x0) == (cr0::kPe | cr0::kWp));
  CHECK(cr0_after_lmsw(0, 0xffff) == 0xf);
  CHECK(cr0_after_clts(cr0::kTs | cr0::kPe) == cr0::kPe);
}

TEST_CASE("the writes that change translation are told apart", "[cr]") {
  CHECK(cr_write_changes_translation(0, cr0::kPe, cr0::kPe | cr0::kPg));
  CHECK(cr_write_changes_translation(0, 0, cr0::kWp));
  CHECK_FALSE(cr_write_changes_translation(0, 0, cr0::kTs));
  CHECK(cr_write_changes_translation(3, 0x1000, 0x1000));
  CHECK_FALSE(cr_write_changes_translation(3, 0x1000, 0x2001 | cr3::kNoFlush));
  CHECK(cr_write_changes_translation(4, 0, cr4::kSmep));
  CHECK_FALSE(cr_write_changes_translation(4, 0, cr4::kOsfxsr));
  CHECK_FALSE(cr_write_changes_translation(8, 0, 1));
}

TEST_CASE("every rule of the control registers has a sentence of its own", "[cr]") {
  std::set<std::string> texts;
  for (int i = 0; i <= static_cast<int>(CrError::PcidWithDirtyCr3); ++i) {
    texts.insert(std::string{text_of(static_cast<CrError>(i))});
  }
  CHECK(texts.size() == static_cast<std::size_t>(CrError::PcidWithDirtyCr3) + 1);
  CHECK(texts.count("unknown error") == 0);
}
