// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/registers.h"

#include <catch2/catch.hpp>

#include <set>
#include <string>

using namespace kvmid::x86;

namespace {

kvmi_x86_regs numbered() {
  return {.rax = 0,
          .rbx = 1,
          .rcx = 2,
          .rdx = 3,
          .rsi = 4,
          .rdi = 5,
          .rsp = 6,
          .rbp = 7,
          .r8 = 8,
          .r9 = 9,
          .r10 = 10,
          .r11 = 11,
          .r12 = 12,
          .r13 = 13,
          .r14 = 14,
          .r15 = 15,
          .rip = 16,
          .rflags = 17};
}

}  // namespace

TEST_CASE("a protocol number names the register at that place of the struct", "[registers]") {
  const auto regs = numbered();
  for (unsigned i = 0; i < kRegisterCount; ++i) {
    REQUIRE(register_at(regs, i) != nullptr);
    CHECK(*register_at(regs, i) == i);
    // The struct is on the wire: the number is also the offset.
    CHECK(register_at(regs, i) == &regs.rax + i);
  }
}

TEST_CASE("a protocol number above 17 is answered by a null pointer", "[registers]") {
  auto regs = numbered();
  CHECK(register_at(regs, 18) == nullptr);
  CHECK(register_at(regs, 0xffffffffu) == nullptr);
  CHECK(register_name(18).empty());
}

TEST_CASE("a number of machine code names the register that the processor means", "[registers]") {
  auto regs = numbered();
  CHECK(&gpr_at(regs, Gpr::Rax) == &regs.rax);
  CHECK(&gpr_at(regs, static_cast<Gpr>(1)) == &regs.rcx);
  CHECK(&gpr_at(regs, static_cast<Gpr>(2)) == &regs.rdx);
  CHECK(&gpr_at(regs, static_cast<Gpr>(3)) == &regs.rbx);
  CHECK(&gpr_at(regs, static_cast<Gpr>(4)) == &regs.rsp);
  CHECK(&gpr_at(regs, static_cast<Gpr>(5)) == &regs.rbp);
  CHECK(&gpr_at(regs, static_cast<Gpr>(6)) == &regs.rsi);
  CHECK(&gpr_at(regs, static_cast<Gpr>(7)) == &regs.rdi);
  for (unsigned i = 8; i < 16; ++i) CHECK(gpr_at(regs, static_cast<Gpr>(i)) == i);
}

TEST_CASE("the two numberings lead to each other and back", "[registers]") {
  std::set<unsigned> seen;
  for (unsigned i = 0; i < kGprCount; ++i) {
    const unsigned number = register_number(static_cast<Gpr>(i));
    seen.insert(number);
    REQUIRE(gpr_of_register(number) == static_cast<Gpr>(i));
  }
  CHECK(seen.size() == kGprCount);
  CHECK_FALSE(gpr_of_register(kRegisterRip).has_value());
  CHECK_FALSE(gpr_of_register(kRegisterRflags).has_value());
  CHECK_FALSE(gpr_of_register(99).has_value());
}

TEST_CASE("every register is found by its name", "[registers]") {
  for (unsigned i = 0; i < kRegisterCount; ++i) CHECK(register_by_name(register_name(i)) == i);
  CHECK(register_by_name("rsp") == 6u);
  CHECK(register_by_name("rip") == 16u);
  CHECK_FALSE(register_by_name("RAX").has_value());
  CHECK_FALSE(register_by_name("").has_value());
}

TEST_CASE("the mode follows PE, LMA, CS.L and CS.D", "[registers]") {
  kvmi_x86_sregs sregs{};
  sregs.cs.db = 1;
  CHECK(operating_mode(sregs) == Mode::Bits16);  // real mode, whatever CS.D says
  sregs.cr0 = cr0::kPe;
  CHECK(operating_mode(sregs) == Mode::Bits32);
  sregs.cs.db = 0;
  CHECK(operating_mode(sregs) == Mode::Bits16);
  sregs.cs.l = 1;
  CHECK(operating_mode(sregs) == Mode::Bits16);  // CS.L counts in long mode only
  sregs.cr0 |= cr0::kPg;
  sregs.efer = efer::kLme | efer::kLma;
  CHECK(operating_mode(sregs) == Mode::Bits64);
  sregs.cs.l = 0;
  sregs.cs.db = 1;
  CHECK(operating_mode(sregs) == Mode::Bits32);
  CHECK(static_cast<int>(Mode::Bits64) == 8);
}

TEST_CASE("the privilege level is that of SS, 0 in real mode and 3 in virtual 8086 mode", "[registers]") {
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  sregs.ss.dpl = 3;
  CHECK(privilege_level(regs, sregs) == 0);
  sregs.cr0 = cr0::kPe;
  CHECK(privilege_level(regs, sregs) == 3);
  sregs.ss.dpl = 1;
  CHECK(privilege_level(regs, sregs) == 1);
  regs.rflags = rflags::kVm;
  CHECK(privilege_level(regs, sregs) == 3);
}

TEST_CASE("an address is canonical up to the edges of both halves", "[registers]") {
  CHECK(is_canonical(0, 48));
  CHECK(is_canonical(0x00007fffffffffff, 48));
  CHECK_FALSE(is_canonical(0x0000800000000000, 48));
  CHECK_FALSE(is_canonical(0xffff7fffffffffff, 48));
  CHECK(is_canonical(0xffff800000000000, 48));
  CHECK(is_canonical(~std::uint64_t{0}, 48));
  CHECK(is_canonical(0x0000800000000000, 57));
  CHECK(is_canonical(0x00ffffffffffffff, 57));
  CHECK_FALSE(is_canonical(0x0100000000000000, 57));
  CHECK_FALSE(is_canonical(0xfeffffffffffffff, 57));
  CHECK(is_canonical(0xff00000000000000, 57));
}
