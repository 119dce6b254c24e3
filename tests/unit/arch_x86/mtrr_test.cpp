// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/mtrr.h"

#include <catch2/catch.hpp>

#include <vector>

using namespace kvmid;
using namespace kvmid::x86;

namespace {

constexpr std::uint64_t kOn = 0x800, kFixedOn = 0x400;

/// A valid range of `size` bytes (a power of two) with 36 address bits.
VariableMtrr range(std::uint64_t base, std::uint64_t size, std::uint64_t type) {
  return {base | type, (~(size - 1) & 0xffffff000) | 0x800};
}

Mtrrs with(std::vector<VariableMtrr> ranges, std::uint64_t def_type = kOn | 6) {
  Mtrrs mtrrs;
  mtrrs.cap = 0x500 + ranges.size();
  mtrrs.def_type = def_type;
  mtrrs.variable = std::move(ranges);
  return mtrrs;
}

unsigned type_at(const Mtrrs& mtrrs, std::uint64_t address) {
  return static_cast<unsigned>(memory_type(mtrrs, Gpa{address}));
}

}  // namespace

TEST_CASE("MTRRs that are off make everything uncacheable", "[mtrr]") {
  CHECK(type_at(with({range(0, 0x1000000, 6)}, 6), 0x1000) == 0);
}

TEST_CASE("the default type holds where no range does", "[mtrr]") {
  const Mtrrs mtrrs = with({range(0xc0000000, 0x40000000, 0)}, kOn | 6);
  CHECK(type_at(mtrrs, 0xbfffffff) == 6);
  CHECK(type_at(mtrrs, 0xc0000000) == 0);
  CHECK(type_at(mtrrs, 0xffffffff) == 0);
  CHECK(type_at(mtrrs, 0x100000000) == 6);
  CHECK(type_at(with({}, kOn | 4), 0) == 4);
}

TEST_CASE("a range that is not valid does not count", "[mtrr]") {
  VariableMtrr off = range(0, 0x100000000, 0);
  off.mask &= ~std::uint64_t{0x800};
  CHECK(type_at(with({off}), 0x1000) == 6);
}

TEST_CASE("overlaps: uncacheable wins, write-through wins over write-back, the rest is undefined", "[mtrr]") {
  const auto overlap = [](std::uint64_t one, std::uint64_t other) {
    return type_at(with({range(0, 0x1000000, one), range(0, 0x2000000, other)}, kOn | 1), 0x800000);
  };
  for (const std::uint64_t type : {0U, 1U, 4U, 5U, 6U}) {
    CHECK(overlap(type, 0) == 0);
    CHECK(overlap(0, type) == 0);
    CHECK(overlap(type, type) == type);
  }
  CHECK(overlap(4, 6) == 4);
  CHECK(overlap(6, 4) == 4);
  CHECK(overlap(1, 5) == 6);
  // Three at once.
  const Mtrrs three = with({range(0, 0x1000000, 6), range(0, 0x1000000, 4), range(0, 0x1000000, 0)});
  CHECK(type_at(three, 0) == 0);
}

TEST_CASE("fixed ranges below 1 MiB: each begins and ends where the manual says", "[mtrr]") {
  // Every fixed range gets a number of its own, so that a wrong one is seen.
  Mtrrs mtrrs = with({range(0, 0x200000, 0)}, kOn | kFixedOn | 6);
  for (std::size_t i = 0; i < kFixedMtrrs; ++i) {
    for (unsigned byte = 0; byte < 8; ++byte) {
      mtrrs.fixed[i] |= std::uint64_t{i * 8 + byte + 1} << (8 * byte);
    }
  }
  std::uint64_t address = 0;
  for (unsigned number = 1; number <= 88; ++number) {
    const std::uint64_t size = number <= 8 ? 0x10000 : number <= 24 ? 0x4000 : 0x1000;
    INFO("range " << number << " at " << std::hex << address);
    CHECK(type_at(mtrrs, address) == number);
    CHECK(type_at(mtrrs, address + size - 1) == number);
    address += size;
  }
  CHECK(address == 0x100000);
  CHECK(type_at(mtrrs, 0x100000) == 0);  // the variable ones from here on
}

TEST_CASE("fixed ranges that are off, or not there, leave it to the others", "[mtrr]") {
  Mtrrs mtrrs = with({}, kOn | 6);
  mtrrs.fixed.fill(0x0101010101010101);
  CHECK(type_at(mtrrs, 0x1000) == 6);
  mtrrs.def_type |= kFixedOn;
  CHECK(type_at(mtrrs, 0x1000) == 1);
  mtrrs.cap &= ~std::uint64_t{0x100};
  CHECK(type_at(mtrrs, 0x1000) == 6);
}
