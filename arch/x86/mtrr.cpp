// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/mtrr.h"

#include <optional>

namespace kvmid::x86 {

namespace {

constexpr std::uint64_t kFixedEnd = 0x100000;
constexpr std::uint64_t kAddressMask = ~std::uint64_t{0xfff};
constexpr std::uint64_t kValid = 0x800;

MemoryType type_in(std::uint64_t value, unsigned byte) {
  return static_cast<MemoryType>((value >> (8 * byte)) & 0xffU);
}

/// The fixed range of an address below 1 MiB.
MemoryType fixed_type(const Mtrrs& mtrrs, std::uint64_t address) {
  if (address < 0x80000) return type_in(mtrrs.fixed[0], static_cast<unsigned>(address >> 16));
  if (address < 0xc0000) {
    const auto range = static_cast<unsigned>((address - 0x80000) >> 14);
    return type_in(mtrrs.fixed[1 + range / 8], range % 8);
  }
  const auto range = static_cast<unsigned>((address - 0xc0000) >> 12);
  return type_in(mtrrs.fixed[3 + range / 8], range % 8);
}

MemoryType overlap(MemoryType one, MemoryType other) {
  if (one == other) return one;
  if (one == MemoryType::Uncacheable || other == MemoryType::Uncacheable) return MemoryType::Uncacheable;
  const auto is = [&](MemoryType a, MemoryType b) { return one == a && other == b; };
  if (is(MemoryType::WriteThrough, MemoryType::WriteBack) || is(MemoryType::WriteBack, MemoryType::WriteThrough)) {
    return MemoryType::WriteThrough;
  }
  return MemoryType::WriteBack;
}

}  // namespace

MemoryType memory_type(const Mtrrs& mtrrs, Gpa gpa) {
  if (!mtrrs_enabled(mtrrs.def_type)) return MemoryType::Uncacheable;
  const bool fixed = has_fixed_mtrrs(mtrrs.cap) && fixed_mtrrs_enabled(mtrrs.def_type);
  if (fixed && gpa.value < kFixedEnd) return fixed_type(mtrrs, gpa.value);
  std::optional<MemoryType> found;
  for (const VariableMtrr& range : mtrrs.variable) {
    // Bits above the physical address are 0 in the mask of a range that is valid, so they are not compared.
    const std::uint64_t mask = range.mask & kAddressMask;
    if ((range.mask & kValid) == 0 || (gpa.value & mask) != (range.base & mask)) continue;
    const MemoryType type = type_in(range.base, 0);
    found = found ? overlap(*found, type) : type;
  }
  return found.value_or(type_in(mtrrs.def_type, 0));
}

}  // namespace kvmid::x86
