// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a walk allows: rights of all levels together, CPL, CR0.WP, SMEP, SMAP and NX, with the exact error codes,
// and the Accessed and Dirty bits of accesses that succeed.
#include <catch2/catch.hpp>

#include <optional>

#include "arch/x86/page_walk.h"
#include "tests/unit/arch_x86/page_tables.h"

using namespace kvmid;
using namespace kvmid::x86;
using namespace kvmid::x86::test;

namespace {

constexpr auto kRead = AccessKind::Read;
constexpr auto kWrite = AccessKind::Write;
constexpr auto kExecute = AccessKind::Execute;

struct Outcome {
  std::optional<WalkFaultCause> cause;
  std::uint32_t error_code = 0;
};

Outcome tried(const PagingState& state, AccessKind kind, Tables& tables) {
  const auto result = access(state, Gva{kGva48}, kind, tables);
  if (result) return {};
  const auto& fault = result.error();
  REQUIRE(fault.exception.vector == vector::kPf);
  REQUIRE(fault.exception.has_error_code);
  REQUIRE(fault.exception.address == kGva48);
  return {fault.cause, fault.exception.error_code};
}

PagingState user() {
  auto state = strict(PagingMode::Level4);
  state.cpl = 3;
  return state;
}
PagingState supervisor() { return strict(PagingMode::Level4); }

}  // namespace

TEST_CASE("user mode may do with a page what every level allows", "[walk]") {
  auto tables = standard();
  for (const auto kind : {kRead, kWrite, kExecute}) CHECK_FALSE(tried(user(), kind, tables).cause.has_value());
}

TEST_CASE("one level without the user bit keeps user mode out", "[walk]") {
  for (unsigned level = 4; level >= 1; --level) {
    auto tables = standard();
    tables.set64(entry_at(level), (level == 1 ? kPage : table_at(level - 1)) | kP | kW);
    INFO("level " << level);
    CHECK(tried(user(), kRead, tables).cause == WalkFaultCause::UserToSupervisor);
    CHECK(tried(user(), kRead, tables).error_code == (pf::kPresent | pf::kUser));
    CHECK(tried(user(), kWrite, tables).error_code == (pf::kPresent | pf::kUser | pf::kWrite));
    CHECK(tried(user(), kExecute, tables).error_code == (pf::kPresent | pf::kUser | pf::kFetch));
    CHECK_FALSE(tried(supervisor(), kRead, tables).cause.has_value());
    CHECK_FALSE(tried(supervisor(), kExecute, tables).cause.has_value());
  }
}

TEST_CASE("one level without the write bit keeps writers out", "[walk]") {
  for (unsigned level = 4; level >= 1; --level) {
    auto tables = standard();
    tables.set64(entry_at(level), (level == 1 ? kPage : table_at(level - 1)) | kP | kU);
    INFO("level " << level);
    CHECK(tried(user(), kWrite, tables).cause == WalkFaultCause::WriteToReadOnly);
    CHECK(tried(user(), kWrite, tables).error_code == (pf::kPresent | pf::kUser | pf::kWrite));
    CHECK_FALSE(tried(user(), kRead, tables).cause.has_value());
  }
}

TEST_CASE("one level with the execute-disable bit keeps fetches out, of user and supervisor alike", "[walk]") {
  for (unsigned level = 4; level >= 1; --level) {
    auto tables = standard();
    tables.set64(entry_at(level), (level == 1 ? kPage : table_at(level - 1)) | kP | kU | kXd);
    INFO("level " << level);
    CHECK(tried(user(), kExecute, tables).cause == WalkFaultCause::ExecuteDisabled);
    CHECK(tried(user(), kExecute, tables).error_code == (pf::kPresent | pf::kUser | pf::kFetch));
    CHECK(tried(supervisor(), kExecute, tables).cause == WalkFaultCause::ExecuteDisabled);
    CHECK_FALSE(tried(user(), kRead, tables).cause.has_value());
  }
}

TEST_CASE("CR0.WP decides whether a supervisor may write a read-only page", "[walk]") {
  auto tables = standard(kP);
  auto state = supervisor();
  CHECK(tried(state, kWrite, tables).cause == WalkFaultCause::WriteToReadOnly);
  CHECK(tried(state, kWrite, tables).error_code == (pf::kPresent | pf::kWrite));
  state.cr0 &= ~cr0::kWp;
  CHECK_FALSE(tried(state, kWrite, tables).cause.has_value());
}

TEST_CASE("CR0.WP does not help user mode", "[walk]") {
  auto tables = standard(kP | kU);
  auto state = user();
  state.cr0 &= ~cr0::kWp;
  CHECK(tried(state, kWrite, tables).cause == WalkFaultCause::WriteToReadOnly);
}

TEST_CASE("SMEP keeps a supervisor from executing user pages", "[walk]") {
  auto tables = standard();
  auto state = supervisor();
  CHECK(tried(state, kExecute, tables).cause == WalkFaultCause::Smep);
  CHECK(tried(state, kExecute, tables).error_code == (pf::kPresent | pf::kFetch));
  state.rflags = rflags::kAc;  // AC lifts SMAP, not SMEP
  CHECK(tried(state, kExecute, tables).cause == WalkFaultCause::Smep);
  state.cr4 &= ~cr4::kSmep;
  CHECK_FALSE(tried(state, kExecute, tables).cause.has_value());
}

TEST_CASE("SMAP keeps a supervisor from the data of user pages unless AC is set", "[walk]") {
  auto tables = standard();
  auto state = supervisor();
  CHECK(tried(state, kRead, tables).cause == WalkFaultCause::Smap);
  CHECK(tried(state, kRead, tables).error_code == pf::kPresent);
  CHECK(tried(state, kWrite, tables).cause == WalkFaultCause::Smap);
  CHECK(tried(state, kWrite, tables).error_code == (pf::kPresent | pf::kWrite));
  state.cr0 &= ~cr0::kWp;  // does not switch SMAP off
  CHECK(tried(state, kWrite, tables).cause == WalkFaultCause::Smap);
  state.rflags = rflags::kAc;
  CHECK_FALSE(tried(state, kRead, tables).cause.has_value());
  CHECK_FALSE(tried(state, kWrite, tables).cause.has_value());
  state.rflags = 0;
  state.cr4 &= ~cr4::kSmap;
  CHECK_FALSE(tried(state, kRead, tables).cause.has_value());
}

TEST_CASE("an implicit access is a supervisor's whatever the CPL, and AC does not lift SMAP for it", "[walk]") {
  auto state = user();
  state.implicit_supervisor = true;
  state.rflags = rflags::kAc;
  auto user_page = standard();
  CHECK(tried(state, kRead, user_page).cause == WalkFaultCause::Smap);
  CHECK(tried(state, kRead, user_page).error_code == pf::kPresent);
  auto supervisor_page = standard(kP | kW);
  CHECK_FALSE(tried(state, kRead, supervisor_page).cause.has_value());
}

TEST_CASE("rings 1 and 2 are supervisors", "[walk]") {
  auto tables = standard(kP | kW);
  for (const std::uint8_t cpl : {std::uint8_t{1}, std::uint8_t{2}}) {
    auto state = supervisor();
    state.cpl = cpl;
    CHECK_FALSE(tried(state, kWrite, tables).cause.has_value());
  }
}

TEST_CASE("the fetch bit is in the error code only where NX or SMEP is on", "[walk]") {
  for (const bool nx : {false, true}) {
    for (const bool smep : {false, true}) {
      Tables tables;
      auto state = user();
      if (!nx) state.efer &= ~efer::kNxe;
      if (!smep) state.cr4 &= ~cr4::kSmep;
      const std::uint32_t expected = pf::kUser | (nx || smep ? pf::kFetch : 0u);
      CHECK(tried(state, kExecute, tables).error_code == expected);
    }
  }
  Tables tables;
  auto state = strict(PagingMode::Bits32);
  state.efer = efer::kNxe;  // 32-bit paging has no NX, whatever EFER says
  state.cr4 &= ~cr4::kSmep;
  const auto narrow = access(state, Gva{0x1000}, kExecute, tables);
  REQUIRE_FALSE(narrow.has_value());
  CHECK(narrow.error().exception == Exception{vector::kPf, true, 0, 0x1000});
}

TEST_CASE("entries that stop the walk give the error code of the access that met them", "[walk]") {
  struct Row {
    AccessKind kind;
    std::uint8_t cpl;
    std::uint32_t bits;
  };
  const Row rows[] = {
      {kRead, 0, 0},
      {kWrite, 0, pf::kWrite},
      {kExecute, 0, pf::kFetch},
      {kRead, 3, pf::kUser},
      {kWrite, 3, pf::kUser | pf::kWrite},
      {kExecute, 3, pf::kUser | pf::kFetch},
  };
  for (const auto& row : rows) {
    auto state = supervisor();
    state.cpl = row.cpl;
    auto absent = standard();
    absent.set64(entry_at(2), 0);
    CHECK(tried(state, row.kind, absent).cause == WalkFaultCause::NotPresent);
    CHECK(tried(state, row.kind, absent).error_code == row.bits);
    auto reserved = standard();
    reserved.set64(entry_at(2), table_at(1) | kP | (std::uint64_t{1} << 50));
    CHECK(tried(state, row.kind, reserved).cause == WalkFaultCause::ReservedBits);
    CHECK(tried(state, row.kind, reserved).error_code == (row.bits | pf::kPresent | pf::kReserved));
  }
}

TEST_CASE("an absent entry is reported before rights that levels above it lack", "[walk]") {
  auto tables = standard();
  tables.set64(entry_at(4), table_at(3) | kP);
  tables.set64(entry_at(1), 0);
  CHECK(tried(user(), kWrite, tables).cause == WalkFaultCause::NotPresent);
}

TEST_CASE("a fault over rights names the entry of the page", "[walk]") {
  auto tables = standard(kP);
  const auto result = access(user(), Gva{kGva48}, kRead, tables);
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().level == 1);
  CHECK(result.error().entry == Gpa{entry_at(1)});
}

TEST_CASE("a read sets Accessed at every level and Dirty nowhere", "[walk]") {
  auto tables = standard();
  const auto page = access(user(), Gva{kGva48}, kRead, tables);
  REQUIRE(page.has_value());
  REQUIRE(page->entry_count == 4);
  for (unsigned i = 0; i < 4; ++i) CHECK(page->entries[i].set_bits == kA);
}

TEST_CASE("a write sets Dirty at the page's own entry only", "[walk]") {
  auto tables = standard();
  auto page = access(user(), Gva{kGva48}, kWrite, tables);
  REQUIRE(page.has_value());
  for (unsigned i = 0; i < 3; ++i) CHECK(page->entries[i].set_bits == kA);
  CHECK(page->entries[3].set_bits == (kA | kD));

  tables.set64(entry_at(2), 0x200000 | kP | kW | kU | kPs);
  page = access(user(), Gva{kGva48}, kWrite, tables);
  REQUIRE(page.has_value());
  REQUIRE(page->entry_count == 3);
  CHECK(page->entries[1].set_bits == kA);
  CHECK(page->entries[2].set_bits == (kA | kD));
}

TEST_CASE("bits that are set already are not asked for again", "[walk]") {
  auto tables = standard(kP | kW | kU | kA | kD);
  auto page = access(user(), Gva{kGva48}, kWrite, tables);
  REQUIRE(page.has_value());
  for (unsigned i = 0; i < 4; ++i) CHECK(page->entries[i].set_bits == 0);
  tables = standard(kP | kW | kU | kA);
  page = access(user(), Gva{kGva48}, kWrite, tables);
  REQUIRE(page.has_value());
  for (unsigned i = 0; i < 3; ++i) CHECK(page->entries[i].set_bits == 0);
  CHECK(page->entries[3].set_bits == kD);
}

TEST_CASE("a PAE top entry has no Accessed bit and a 32-bit one has", "[walk]") {
  Tables pae;
  pae.set64(table_at(3), table_at(2) | kP);
  pae.set64(table_at(2), table_at(1) | kP | kW);
  pae.set64(table_at(1), 0x5000 | kP | kW);
  auto page = access(strict(PagingMode::Pae), Gva{0}, kWrite, pae);
  REQUIRE(page.has_value());
  CHECK(page->entries[0].set_bits == 0);
  CHECK(page->entries[1].set_bits == kA);
  CHECK(page->entries[2].set_bits == (kA | kD));

  Tables narrow;
  narrow.set32(0x1000, 0x2000 | kP | kW);
  narrow.set32(0x2000, 0x7000 | kP | kW);
  page = access(strict(PagingMode::Bits32), Gva{0}, kWrite, narrow);
  REQUIRE(page.has_value());
  CHECK(page->entries[0].set_bits == kA);
  CHECK(page->entries[1].set_bits == (kA | kD));
}

TEST_CASE("translate asks for no rights and sets no bits", "[walk]") {
  auto tables = standard(kP);
  auto state = user();
  const auto page = translate(state, Gva{kGva48}, tables);
  REQUIRE(page.has_value());
  CHECK(page->gpa == Gpa{kPage + 0x123});
  CHECK_FALSE(page->user);
  CHECK(page->rights() == (KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X));
  for (unsigned i = 0; i < 4; ++i) CHECK(page->entries[i].set_bits == 0);
}

TEST_CASE("without paging every access is allowed and addresses wrap at 32 bits", "[walk]") {
  Tables tables;
  auto state = strict(PagingMode::None);
  state.cpl = 3;
  for (const auto kind : {kRead, kWrite, kExecute}) {
    const auto page = access(state, Gva{0x100000ffe}, kind, tables);
    REQUIRE(page.has_value());
    CHECK(page->gpa == Gpa{0xffe});
  }
}

TEST_CASE("a reader can be a function, a lambda or a const object", "[walk]") {
  const auto nothing = [](Gpa, void*, std::size_t) { return false; };
  const auto result = translate(supervisor(), Gva{kGva48}, nothing);
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().cause == WalkFaultCause::TableOutsideRam);
  auto tables = standard();
  const MemoryReader reader = tables;
  const MemoryReader copy = reader;
  CHECK(translate(supervisor(), Gva{kGva48}, copy).has_value());
}
