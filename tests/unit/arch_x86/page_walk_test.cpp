// SPDX-License-Identifier: GPL-2.0-or-later
//
// Where a walk leads: every level of every mode, large pages, and every entry that stops it.
#include "arch/x86/page_walk.h"

#include <catch2/catch.hpp>

#include "tests/unit/arch_x86/page_tables.h"

using namespace kvmid;
using namespace kvmid::x86;
using namespace kvmid::x86::test;

namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }

/// The fault of a walk that must fail.
WalkFault fault_of(const PagingState& state, std::uint64_t gva, Tables& tables, const CpuFeatures& cpu = {}) {
  const auto result = translate(state, Gva{gva}, tables, cpu);
  REQUIRE_FALSE(result.has_value());
  return result.error();
}

Translation found(const PagingState& state, std::uint64_t gva, Tables& tables, const CpuFeatures& cpu = {}) {
  const auto result = translate(state, Gva{gva}, tables, cpu);
  REQUIRE(result.has_value());
  return *result;
}

}  // namespace

TEST_CASE("the paging mode follows PG, LMA, PAE and LA57", "[walk]") {
  for (const auto mode :
       {PagingMode::None, PagingMode::Bits32, PagingMode::Pae, PagingMode::Level4, PagingMode::Level5}) {
    CHECK(paging_mode(strict(mode)) == mode);
  }
  PagingState state;
  state.cr4 = cr4::kPae | cr4::kLa57;
  CHECK(paging_mode(state) == PagingMode::None);
  state.cr0 = cr0::kPe | cr0::kPg;
  CHECK(paging_mode(state) == PagingMode::Pae);  // LA57 counts in long mode only
}

TEST_CASE("the state of a walk is taken from the registers of an event", "[walk]") {
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  regs.rflags = rflags::kAc;
  sregs.cr0 = cr0::kPe | cr0::kPg;
  sregs.cr3 = 0x5000;
  sregs.cr4 = cr4::kPae;
  sregs.efer = efer::kLma;
  sregs.ss.dpl = 3;
  const auto state = paging_state(regs, sregs);
  CHECK(state.cr0 == sregs.cr0);
  CHECK(state.cr3 == sregs.cr3);
  CHECK(state.cr4 == sregs.cr4);
  CHECK(state.efer == sregs.efer);
  CHECK(state.rflags == regs.rflags);
  CHECK(state.cpl == 3);
  CHECK_FALSE(state.implicit_supervisor);
}

TEST_CASE("without paging an address is its own translation and no table is read", "[walk]") {
  Tables tables;
  const auto page = found(strict(PagingMode::None), 0xfee00123, tables);
  CHECK(page.gpa == Gpa{0xfee00123});
  CHECK(page.entry_count == 0);
  CHECK(page.rights() == kRightsAll);
  CHECK(tables.reads.empty());
}

TEST_CASE("a 4 KiB page is found through four and five levels", "[walk]") {
  for (const unsigned levels : {4u, 5u}) {
    auto tables = standard();
    const auto mode = levels == 4 ? PagingMode::Level4 : PagingMode::Level5;
    const auto page = found(strict(mode), levels == 4 ? kGva48 : kGva57, tables);
    CHECK(page.gpa == Gpa{kPage + 0x123});
    CHECK(page.page_bytes == 4096);
    CHECK(page.rights() == kRightsAll);
    CHECK(page.user);
    CHECK_FALSE(page.global);
    REQUIRE(page.entry_count == levels);
    for (unsigned i = 0; i < levels; ++i) {
      CHECK(page.entries[i].level == levels - i);
      CHECK(page.entries[i].gpa == Gpa{entry_at(levels - i)});
      CHECK(page.entries[i].bytes == 8);
      CHECK(page.entries[i].set_bits == 0);
      CHECK(tables.reads.at(i) == page.entries[i].gpa);
    }
    CHECK(tables.reads.size() == levels);
  }
}

TEST_CASE("the upper half of the address space uses the upper half of the top table", "[walk]") {
  Tables tables;
  tables.set64(table_at(4) + 511 * 8, table_at(3) | kP);
  tables.set64(table_at(3) + 511 * 8, table_at(2) | kP);
  tables.set64(table_at(2) + 511 * 8, table_at(1) | kP);
  tables.set64(table_at(1) + 511 * 8, 0x9000 | kP);
  CHECK(found(strict(PagingMode::Level4), 0xffffffffffffffff, tables).gpa == Gpa{0x9fff});
}

TEST_CASE("large pages end the walk at their level", "[walk]") {
  auto tables = standard();
  tables.set64(entry_at(2), 0x7654200000 | kPs | kP | kW | kG);
  auto page = found(strict(PagingMode::Level4), kGva48, tables);
  CHECK(page.page_bytes == 0x200000);
  CHECK(page.gpa == Gpa{0x7654200000 + (kGva48 & 0x1fffff)});
  CHECK(page.entry_count == 3);
  CHECK(page.global);
  CHECK_FALSE(page.user);

  tables.set64(entry_at(3), 0x7640000000 | kPs | kP);
  page = found(strict(PagingMode::Level5), kGva57, tables);
  CHECK(page.page_bytes == 0x40000000);
  CHECK(page.gpa == Gpa{0x7640000000 + (kGva48 & 0x3fffffff)});
  CHECK(page.entry_count == 3);
  CHECK_FALSE(page.writable);
}

TEST_CASE("the PAT bit of a large page is no part of its address", "[walk]") {
  auto tables = standard();
  tables.set64(entry_at(2), 0x200000 | bit(12) | kPs | kP);
  CHECK(found(strict(PagingMode::Level4), kGva48, tables).gpa == Gpa{0x200000 + (kGva48 & 0x1fffff)});
}

TEST_CASE("the global bit counts only with CR4.PGE", "[walk]") {
  auto tables = standard();
  tables.set64(entry_at(1), kPage | kP | kG);
  auto state = strict(PagingMode::Level4);
  CHECK(found(state, kGva48, tables).global);
  state.cr4 &= ~cr4::kPge;
  CHECK_FALSE(found(state, kGva48, tables).global);
}

TEST_CASE("PAE paging finds 4 KiB and 2 MiB pages through three levels", "[walk]") {
  // PDPT index 2, directory index 6, table index 3
  const std::uint64_t gva = (std::uint64_t{2} << 30) | (std::uint64_t{6} << 21) | (std::uint64_t{3} << 12) | 0x123;
  Tables tables;
  auto state = strict(PagingMode::Pae);
  state.cr3 = table_at(3) + 0x60;  // aligned to 32 bytes, not to a page
  tables.set64(state.cr3 + 2 * 8, table_at(2) | kP);
  tables.set64(entry_at(2), table_at(1) | kP | kW | kU);
  tables.set64(entry_at(1), 0x123456000 | kP | kW | kU);
  auto page = found(state, gva, tables);
  CHECK(page.gpa == Gpa{0x123456123});
  REQUIRE(page.entry_count == 3);
  CHECK(page.entries[0].gpa == Gpa{state.cr3 + 16});
  CHECK(page.rights() == kRightsAll);  // the PDPTE has no W and U bits: it takes nothing away
  CHECK(page.user);

  tables.set64(entry_at(2), 0x123400000 | kP | kPs | kXd);
  page = found(state, gva, tables);
  CHECK(page.gpa == Gpa{0x123400000 + (gva & 0x1fffff)});
  CHECK(page.page_bytes == 0x200000);
  CHECK_FALSE(page.executable);
}

TEST_CASE("32-bit paging finds 4 KiB and 4 MiB pages through two levels", "[walk]") {
  const std::uint64_t gva = 0xc0804123;  // directory index 0x302, table index 4
  Tables tables;
  auto state = strict(PagingMode::Bits32);
  tables.set32(0x1000 + 0x302 * 4, 0x2000 | kP | kW | kU);
  tables.set32(0x2000 + 4 * 4, 0xabcde000 | kP | kU);
  auto page = found(state, gva, tables);
  CHECK(page.gpa == Gpa{0xabcde123});
  CHECK(page.entry_count == 2);
  CHECK(page.entries[0].bytes == 4);
  CHECK(page.entries[1].gpa == Gpa{0x2010});
  CHECK_FALSE(page.writable);
  CHECK(page.user);
  CHECK(page.executable);

  tables.set32(0x1000 + 0x302 * 4, 0x40000000 | kPs | kP | kW);
  page = found(state, gva, tables);
  CHECK(page.page_bytes == 0x400000);
  CHECK(page.gpa == Gpa{0x40000000 + (gva & 0x3fffff)});
}

TEST_CASE("a 4 MiB page keeps its upper address bits in its entry", "[walk]") {
  Tables tables;
  tables.set32(0x1000, (0xabu << 13) | 0x00400000 | kPs | kP);
  CHECK(found(strict(PagingMode::Bits32), 0x111, tables).gpa == Gpa{0xab00400111});
  CpuFeatures narrow;
  narrow.physical_address_bits = 36;  // 0xab needs 40
  CHECK(fault_of(strict(PagingMode::Bits32), 0x111, tables, narrow).cause == WalkFaultCause::ReservedBits);
  tables.set32(0x1000, (0xbu << 13) | 0x00400000 | kPs | kP);
  CHECK(found(strict(PagingMode::Bits32), 0x111, tables, narrow).gpa == Gpa{0xb00400111});
  tables.set32(0x1000, bit(21) | kPs | kP);
  CHECK(fault_of(strict(PagingMode::Bits32), 0x111, tables).cause == WalkFaultCause::ReservedBits);
}

TEST_CASE("without CR4.PSE the large bit of a 32-bit directory entry does not count", "[walk]") {
  Tables tables;
  auto state = strict(PagingMode::Bits32);
  state.cr4 &= ~cr4::kPse;
  tables.set32(0x1000, 0x2000 | kPs | kP);
  tables.set32(0x2000, 0x7000 | kP);
  CHECK(found(state, 0x10, tables).gpa == Gpa{0x7010});
}

TEST_CASE("an entry that is not present stops the walk at its level", "[walk]") {
  for (unsigned level = 5; level >= 1; --level) {
    auto tables = standard();
    tables.set64(entry_at(level), ~kP);  // everything else set: only the present bit counts
    const auto fault = fault_of(strict(PagingMode::Level5), kGva57, tables);
    INFO("level " << level);
    CHECK(fault.cause == WalkFaultCause::NotPresent);
    CHECK(fault.level == level);
    CHECK(fault.entry == Gpa{entry_at(level)});
    CHECK(fault.exception == Exception{vector::kPf, true, 0, kGva57});
    CHECK(tables.reads.size() == 6 - level);
  }
}

TEST_CASE("an entry that is not present stops 32-bit and PAE walks too", "[walk]") {
  Tables tables;
  CHECK(fault_of(strict(PagingMode::Bits32), 0x1234, tables).level == 2);
  tables.set32(0x1000, 0x2000 | kP);
  CHECK(fault_of(strict(PagingMode::Bits32), 0x1234, tables).level == 1);

  Tables pae;
  CHECK(fault_of(strict(PagingMode::Pae), 0x1234, pae).level == 3);
  pae.set64(table_at(3), table_at(2) | kP);
  CHECK(fault_of(strict(PagingMode::Pae), 0x1234, pae).level == 2);
  pae.set64(table_at(2), table_at(1) | kP);
  CHECK(fault_of(strict(PagingMode::Pae), 0x1234, pae).level == 1);
}

TEST_CASE("a table outside guest RAM ends the walk at its level", "[walk]") {
  for (unsigned level = 4; level >= 1; --level) {
    auto tables = standard();
    tables.set64(entry_at(level + 1), 0x20000 | kP);  // one page behind the last of RAM, and more
    const auto fault = fault_of(strict(PagingMode::Level5), kGva57, tables);
    CHECK(fault.cause == WalkFaultCause::TableOutsideRam);
    CHECK(fault.level == level);
    CHECK(fault.exception.vector == vector::kPf);
    CHECK((fault.exception.error_code & pf::kPresent) == 0);
  }
  auto tables = standard();
  auto state = strict(PagingMode::Level4);
  state.cr3 = 0x10000;
  CHECK(fault_of(state, kGva48, tables).cause == WalkFaultCause::TableOutsideRam);
}

TEST_CASE("tables that point at themselves end like any others", "[walk]") {
  Tables tables;
  tables.set64(table_at(5), table_at(5) | kP | kW);
  const auto page = found(strict(PagingMode::Level5), 0x77, tables);
  CHECK(page.gpa == Gpa{table_at(5) + 0x77});
  CHECK(tables.reads.size() == 5);
}

TEST_CASE("each reserved bit of a four- or five-level entry is a fault and each ignored one is not", "[walk]") {
  CpuFeatures cpu;
  cpu.physical_address_bits = 40;
  for (unsigned level = 5; level >= 1; --level) {
    for (unsigned n = 40; n < 64; ++n) {
      auto tables = standard();
      const std::uint64_t target = level == 1 ? kPage : table_at(level - 1);
      tables.set64(entry_at(level), target | kP | kW | kU | bit(n));
      const auto result = translate(strict(PagingMode::Level5), Gva{kGva57}, tables, cpu);
      INFO("level " << level << " bit " << n);
      if (n < 52) {
        REQUIRE_FALSE(result.has_value());
        CHECK(result.error().cause == WalkFaultCause::ReservedBits);
        CHECK(result.error().level == level);
        CHECK(result.error().exception.error_code == (pf::kPresent | pf::kReserved));
      } else {
        REQUIRE(result.has_value());
        CHECK(result->gpa == Gpa{kPage + 0x123});
        CHECK(result->executable == (n != 63));
      }
    }
  }
}

TEST_CASE("the execute-disable bit is reserved without EFER.NXE", "[walk]") {
  for (unsigned level = 4; level >= 1; --level) {
    auto tables = standard();
    const std::uint64_t target = level == 1 ? kPage : table_at(level - 1);
    tables.set64(entry_at(level), target | kP | kXd);
    auto state = strict(PagingMode::Level4);
    state.efer &= ~efer::kNxe;
    const auto fault = fault_of(state, kGva48, tables);
    CHECK(fault.cause == WalkFaultCause::ReservedBits);
    CHECK(fault.level == level);
  }
}

TEST_CASE("the large bit is reserved where no page of that size exists", "[walk]") {
  for (const unsigned level : {5u, 4u}) {
    auto tables = standard();
    tables.set64(entry_at(level), table_at(level - 1) | kP | kPs);
    CHECK(fault_of(strict(PagingMode::Level5), kGva57, tables).level == level);
  }
  auto tables = standard();
  tables.set64(entry_at(3), 0x40000000 | kP | kPs);
  CpuFeatures cpu;
  cpu.pages_1g = false;
  const auto fault = fault_of(strict(PagingMode::Level4), kGva48, tables, cpu);
  CHECK(fault.cause == WalkFaultCause::ReservedBits);
  CHECK(fault.level == 3);
}

TEST_CASE("address bits below the size of a large page are reserved", "[walk]") {
  for (unsigned n = 13; n < 21; ++n) {
    auto tables = standard();
    tables.set64(entry_at(2), 0x200000 | kP | kPs | bit(n));
    CHECK(fault_of(strict(PagingMode::Level4), kGva48, tables).cause == WalkFaultCause::ReservedBits);
  }
  for (unsigned n = 13; n < 30; ++n) {
    auto tables = standard();
    tables.set64(entry_at(3), 0x40000000 | kP | kPs | bit(n));
    CHECK(fault_of(strict(PagingMode::Level4), kGva48, tables).cause == WalkFaultCause::ReservedBits);
  }
}

TEST_CASE("PAE entries reserve what four-level entries ignore", "[walk]") {
  const auto state = strict(PagingMode::Pae);
  for (unsigned n = 46; n < 63; ++n) {
    Tables tables;
    tables.set64(table_at(3), table_at(2) | kP);
    tables.set64(table_at(2), table_at(1) | kP);
    tables.set64(table_at(1), 0x5000 | kP | bit(n));
    CHECK(fault_of(state, 0, tables).level == 1);
    tables.set64(table_at(2), table_at(1) | kP | bit(n));
    CHECK(fault_of(state, 0, tables).level == 2);
  }
  for (const unsigned n : {1u, 2u, 5u, 6u, 7u, 8u, 46u, 51u, 52u, 62u, 63u}) {
    Tables tables;
    tables.set64(table_at(3), table_at(2) | kP | bit(n));
    const auto fault = fault_of(state, 0, tables);
    CHECK(fault.cause == WalkFaultCause::ReservedBits);
    CHECK(fault.level == 3);
    CHECK_FALSE(pdptes_valid(state.cr3, tables));
  }
}

TEST_CASE("the four PAE entries are valid if reserved bits are clear where they are present", "[walk]") {
  Tables tables;
  CHECK(pdptes_valid(table_at(3), tables));
  tables.set64(table_at(3) + 24, kXd);  // not present
  CHECK(pdptes_valid(table_at(3), tables));
  tables.set64(table_at(3) + 24, table_at(2) | kP | 0x18 | 0xe00);  // PWT, PCD and ignored bits
  CHECK(pdptes_valid(table_at(3), tables));
  tables.set64(table_at(3) + 24, table_at(2) | kP | kW);
  CHECK_FALSE(pdptes_valid(table_at(3), tables));
  CHECK_FALSE(pdptes_valid(0x20000, tables));
}

TEST_CASE("a non-canonical address is a general protection fault and reads no table", "[walk]") {
  auto tables = standard();
  for (const std::uint64_t gva : {0x0000800000000000u, 0xffff7fffffffffffu, 0x1000000000000000u}) {
    const auto fault = fault_of(strict(PagingMode::Level4), gva, tables);
    CHECK(fault.cause == WalkFaultCause::NonCanonical);
    CHECK(fault.exception == Exception{vector::kGp, true, 0, 0});
    CHECK(access(strict(PagingMode::Level4), Gva{gva}, AccessKind::Read, tables).error().exception.vector ==
          vector::kGp);
  }
  CHECK(fault_of(strict(PagingMode::Level5), 0x0100000000000000, tables).cause == WalkFaultCause::NonCanonical);
  CHECK(tables.reads.empty());
  CHECK(fault_of(strict(PagingMode::Level5), 0x0000800000000000, tables).cause == WalkFaultCause::NotPresent);
}

TEST_CASE("an address of more than 32 bits is refused for tools and wraps for the processor", "[walk]") {
  Tables tables;
  tables.set32(0x1000, 0x2000 | kP);
  tables.set32(0x2000, 0x7000 | kP);
  CHECK(fault_of(strict(PagingMode::Bits32), 0x100000010, tables).cause == WalkFaultCause::AddressTooWide);
  CHECK(fault_of(strict(PagingMode::None), 0x100000010, tables).cause == WalkFaultCause::AddressTooWide);
  const auto wrapped = access(strict(PagingMode::Bits32), Gva{0x100000010}, AccessKind::Read, tables);
  REQUIRE(wrapped.has_value());
  CHECK(wrapped->gpa == Gpa{0x7010});
}

TEST_CASE("the low and the high bits of CR3 are no part of the address of the top table", "[walk]") {
  auto tables = standard();
  auto state = strict(PagingMode::Level4);
  state.cr3 |= 0xfff | kXd;
  CHECK(found(state, kGva48, tables).gpa == Gpa{kPage + 0x123});
}

TEST_CASE("every cause of a fault has a sentence", "[walk]") {
  for (int i = 0; i <= static_cast<int>(WalkFaultCause::Smap); ++i) {
    CHECK(text_of(static_cast<WalkFaultCause>(i)) != "unknown cause");
  }
}
