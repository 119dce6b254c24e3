// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/msrs.h"

#include <catch2/catch.hpp>

#include <optional>
#include <vector>

using namespace kvmid::x86;

namespace {

std::optional<MsrError> broken(const kvmi_x86_sregs& sregs, std::uint32_t msr, std::uint64_t value,
                               const CpuFeatures& cpu = {}) {
  const auto result = check_msr_write(sregs, msr, value, cpu);
  if (result) return std::nullopt;
  return result.error();
}

constexpr std::nullopt_t fine = std::nullopt;

}  // namespace

TEST_CASE("the trackable MSRs begin and end exactly where the protocol says", "[msr]") {
  struct Edge {
    std::uint32_t msr;
    bool trackable;
  };
  const std::vector<Edge> edges = {
      {0x00000000, true}, {0x00001fff, true}, {0x00002000, false}, {0x3fffffff, false},
      {0x40000000, true}, {0x40001fff, true}, {0x40002000, false}, {0x4b564cff, false},
      {0x4b564d00, true}, {0x4b564dff, true}, {0x4b564e00, false}, {0xbfffffff, false},
      {0xc0000000, true}, {0xc0001fff, true}, {0xc0002000, false}, {0xffffffff, false},
  };
  for (const auto& edge : edges) {
    INFO("msr " << std::hex << edge.msr);
    CHECK(is_trackable_msr(edge.msr) == edge.trackable);
    CHECK(msr_table_index(edge.msr).has_value() == edge.trackable);
  }
}

TEST_CASE("trackable MSRs fill a table without gaps or doubles", "[msr]") {
  std::vector<bool> seen(kTrackableMsrCount, false);
  for (const auto& range : kTrackableMsrs) {
    for (std::uint32_t msr = range.first; msr <= range.last; ++msr) {
      const auto index = msr_table_index(msr);
      REQUIRE(index.has_value());
      REQUIRE(*index < kTrackableMsrCount);
      REQUIRE_FALSE(seen[*index]);
      seen[*index] = true;
    }
  }
  for (const bool filled : seen) REQUIRE(filled);
}

TEST_CASE("well-known MSRs are found by name and number", "[msr]") {
  for (const auto number : {0x10u, 0x1bu, 0x174u, 0x175u, 0x176u, 0x1a0u, 0x277u, 0xc0000080u, 0xc0000081u, 0xc0000082u,
                            0xc0000083u, 0xc0000084u, 0xc0000100u, 0xc0000101u, 0xc0000102u, 0xc0000103u}) {
    REQUIRE_FALSE(msr_name(number).empty());
    CHECK(msr_by_name(msr_name(number)) == number);
    CHECK(is_trackable_msr(number));
  }
  CHECK(msr_name(0xc0000082) == "LSTAR");
  CHECK(msr_name(0xc0000102) == "KERNEL_GS_BASE");
  CHECK(msr_name(0x12345).empty());
  CHECK_FALSE(msr_by_name("lstar").has_value());
}

TEST_CASE("MSRs that hold an address take canonical ones only", "[msr]") {
  const kvmi_x86_sregs sregs{};
  CpuFeatures five;
  five.linear_address_bits = 57;
  for (const auto msr : {msr::kSysenterEsp, msr::kSysenterEip, msr::kLstar, msr::kCstar, msr::kFsBase, msr::kGsBase,
                         msr::kKernelGsBase}) {
    CHECK(broken(sregs, msr, 0x00007fffffffffff) == fine);
    CHECK(broken(sregs, msr, 0xffffffff81000000) == fine);
    CHECK(broken(sregs, msr, 0x0000800000000000) == MsrError::NotCanonical);
    CHECK(broken(sregs, msr, 0x0000800000000000, five) == fine);
    CHECK(broken(sregs, msr, 0x0100000000000000, five) == MsrError::NotCanonical);
  }
}

TEST_CASE("EFER refuses unknown bits and a change of LME under paging", "[msr]") {
  kvmi_x86_sregs sregs{};
  const CpuFeatures cpu;
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t mask = std::uint64_t{1} << bit;
    const bool known = (cpu.efer_allowed & mask) != 0;
    CHECK(broken(sregs, msr::kEfer, mask) == (known ? std::optional<MsrError>{} : MsrError::ReservedBits));
  }
  CHECK(broken(sregs, msr::kEfer, efer::kLme) == fine);
  sregs.cr0 = cr0::kPe | cr0::kPg;
  CHECK(broken(sregs, msr::kEfer, efer::kLme) == MsrError::LongModeUnderPaging);
  CHECK(broken(sregs, msr::kEfer, efer::kSce) == fine);
  sregs.efer = efer::kLme | efer::kLma;
  CHECK(broken(sregs, msr::kEfer, efer::kSce) == MsrError::LongModeUnderPaging);
  CHECK(broken(sregs, msr::kEfer, efer::kLme | efer::kNxe) == fine);
}

TEST_CASE("a write to EFER does not reach LMA", "[msr]") {
  CHECK(efer_after_write(efer::kLme | efer::kLma, efer::kLme) == (efer::kLme | efer::kLma));
  CHECK(efer_after_write(efer::kLme, efer::kLme | efer::kLma | efer::kSce) == (efer::kLme | efer::kSce));
}

TEST_CASE("every field of PAT takes the six memory types and no other", "[msr]") {
  const kvmi_x86_sregs sregs{};
  CHECK(broken(sregs, msr::kPat, 0x0007040600070406) == fine);  // the value after reset
  for (unsigned field = 0; field < 8; ++field) {
    for (std::uint64_t type = 0; type < 256; ++type) {
      const bool exists = type == 0 || type == 1 || (type >= 4 && type <= 7);
      const auto expected = exists ? std::optional<MsrError>{} : MsrError::BadMemoryType;
      REQUIRE(broken(sregs, msr::kPat, type << (8 * field)) == expected);
    }
  }
}

TEST_CASE("TSC_AUX has 32 bits and APIC_BASE an address that the processor has", "[msr]") {
  const kvmi_x86_sregs sregs{};
  CHECK(broken(sregs, msr::kTscAux, 0xffffffff) == fine);
  CHECK(broken(sregs, msr::kTscAux, 0x100000000) == MsrError::ReservedBits);
  CHECK(broken(sregs, msr::kApicBase, 0xfee00900) == fine);
  CHECK(broken(sregs, msr::kApicBase, 0xfee00901) == MsrError::ReservedBits);
  CHECK(broken(sregs, msr::kApicBase, 0xfee00b00) == MsrError::ReservedBits);
  CHECK(broken(sregs, msr::kApicBase, std::uint64_t{1} << 45) == fine);
  CHECK(broken(sregs, msr::kApicBase, std::uint64_t{1} << 46) == MsrError::ReservedBits);
}

TEST_CASE("MSRs without a rule take any value", "[msr]") {
  CHECK(broken({}, msr::kStar, ~std::uint64_t{0}) == fine);
  CHECK(broken({}, 0x40000000, ~std::uint64_t{0}) == fine);
}

TEST_CASE("every rule of the MSRs has a sentence", "[msr]") {
  for (int i = 0; i <= static_cast<int>(MsrError::BadMemoryType); ++i) {
    CHECK(text_of(static_cast<MsrError>(i)) != "unknown error");
  }
}
