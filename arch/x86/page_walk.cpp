// SPDX-License-Identifier: GPL-2.0-or-later
//
// One loop serves every paging mode: a Layout says how many levels there are, how the address is cut into indices and
// how wide an entry is; what differs besides (reserved bits, which entries can be leaves) is asked per entry.
// The loop counts levels down, so tables that point at each other end like any others.
#include "arch/x86/page_walk.h"

#include <cstring>
#include <optional>

namespace kvmid::x86 {

namespace {

constexpr std::uint64_t kEntryPresent = 1u << 0;
constexpr std::uint64_t kEntryWritable = 1u << 1;
constexpr std::uint64_t kEntryUser = 1u << 2;
constexpr std::uint64_t kEntryAccessed = 1u << 5;
constexpr std::uint64_t kEntryDirty = 1u << 6;
constexpr std::uint64_t kEntryLarge = 1u << 7;
constexpr std::uint64_t kEntryGlobal = 1u << 8;
constexpr std::uint64_t kEntryExecuteDisable = std::uint64_t{1} << 63;

/// Bits `low` to `high`, both included; empty if low > high.
constexpr std::uint64_t bits(unsigned low, unsigned high) {
  if (low > high || low > 63) return 0;
  const std::uint64_t up_to_high = high >= 63 ? ~std::uint64_t{0} : (std::uint64_t{1} << (high + 1)) - 1;
  return up_to_high & ~((std::uint64_t{1} << low) - 1);
}

struct Layout {
  PagingMode mode;
  unsigned levels;
  unsigned index_bits;
  unsigned entry_bytes;
};

constexpr Layout layout_of(PagingMode mode) {
  switch (mode) {
    case PagingMode::None:
      return {mode, 0, 0, 0};
    case PagingMode::Bits32:
      return {mode, 2, 10, 4};
    case PagingMode::Pae:
      return {mode, 3, 9, 8};
    case PagingMode::Level4:
      return {mode, 4, 9, 8};
    case PagingMode::Level5:
      return {mode, 5, 9, 8};
  }
  return {PagingMode::None, 0, 0, 0};
}

bool is_wide(PagingMode mode) { return mode == PagingMode::Level4 || mode == PagingMode::Level5; }

bool nx_enabled(const PagingState& state, PagingMode mode) {
  return (state.efer & efer::kNxe) != 0 && mode != PagingMode::Bits32 && mode != PagingMode::None;
}

std::uint64_t top_table(std::uint64_t cr3, PagingMode mode, const CpuFeatures& cpu) {
  if (mode == PagingMode::Bits32) return cr3 & bits(12, 31);
  if (mode == PagingMode::Pae) return cr3 & bits(5, 31);
  return cr3 & bits(12, cpu.physical_address_bits - 1u);
}

/// Does an entry of this level map a page instead of pointing at a table?
bool is_leaf(const PagingState& state, PagingMode mode, unsigned level, std::uint64_t entry, const CpuFeatures& cpu) {
  if (level == 1) return true;
  if ((entry & kEntryLarge) == 0) return false;
  if (level == 2) return mode != PagingMode::Bits32 || (state.cr4 & cr4::kPse) != 0;
  return level == 3 && is_wide(mode) && cpu.pages_1g;
}

/// Bits that must be clear in a present entry.
std::uint64_t reserved_bits(const PagingState& state, PagingMode mode, unsigned level, bool leaf,
                            const CpuFeatures& cpu) {
  const unsigned physical = cpu.physical_address_bits;
  if (mode == PagingMode::Bits32) {
    // A 4 MiB page keeps bits 39:32 of its address in 20:13 of its entry; 21 and those that the processor lacks stay 0.
    if (level != 2 || !leaf) return 0;
    const unsigned address_bits = physical < 40 ? physical : 40;
    return bits(address_bits - 19, 21);
  }
  if (mode == PagingMode::Pae && level == 3) return bits(1, 2) | bits(5, 8) | bits(physical, 63);
  std::uint64_t reserved = bits(physical, mode == PagingMode::Pae ? 62 : 51);
  if (!nx_enabled(state, mode)) reserved |= kEntryExecuteDisable;
  if (leaf) {
    if (level == 2) reserved |= bits(13, 20);
    if (level == 3) reserved |= bits(13, 29);
  } else if (level >= 3) {
    reserved |= kEntryLarge;  // PML5E and PML4E; a PDPTE where the processor has no 1 GiB pages
  }
  return reserved;
}

std::uint64_t page_base(PagingMode mode, unsigned level, std::uint64_t entry, std::uint64_t page_bytes,
                        const CpuFeatures& cpu) {
  if (mode == PagingMode::Bits32) {
    if (level == 1) return entry & bits(12, 31);
    return (entry & bits(22, 31)) | ((entry & bits(13, 20)) << (32 - 13));
  }
  return entry & bits(12, cpu.physical_address_bits - 1u) & ~(page_bytes - 1);
}

bool is_user_access(const PagingState& state) { return state.cpl == 3 && !state.implicit_supervisor; }

std::uint32_t error_code_of(const PagingState& state, PagingMode mode, AccessKind kind) {
  std::uint32_t code = 0;
  if (kind == AccessKind::Write) code |= pf::kWrite;
  if (is_user_access(state)) code |= pf::kUser;
  // The fetch bit exists only where something can forbid a fetch.
  if (kind == AccessKind::Execute && (nx_enabled(state, mode) || (state.cr4 & cr4::kSmep) != 0)) code |= pf::kFetch;
  return code;
}

Exception page_fault(Gva gva, std::uint32_t error_code) { return {vector::kPf, true, error_code, gva.value}; }

std::optional<WalkFaultCause> refuse(const PagingState& state, const Translation& page, AccessKind kind) {
  if (is_user_access(state)) {
    if (!page.user) return WalkFaultCause::UserToSupervisor;
    if (kind == AccessKind::Write && !page.writable) return WalkFaultCause::WriteToReadOnly;
    if (kind == AccessKind::Execute && !page.executable) return WalkFaultCause::ExecuteDisabled;
    return std::nullopt;
  }
  if (kind == AccessKind::Execute) {
    if (!page.executable) return WalkFaultCause::ExecuteDisabled;
    if (page.user && (state.cr4 & cr4::kSmep) != 0) return WalkFaultCause::Smep;
    return std::nullopt;
  }
  if (page.user && (state.cr4 & cr4::kSmap) != 0) {
    const bool lifted = !state.implicit_supervisor && (state.rflags & rflags::kAc) != 0;
    if (!lifted) return WalkFaultCause::Smap;
  }
  if (kind == AccessKind::Write && !page.writable && (state.cr0 & cr0::kWp) != 0) {
    return WalkFaultCause::WriteToReadOnly;
  }
  return std::nullopt;
}

/// The walk without the rights of the page. `kind` is there for the error code.
Result<Translation, WalkFault> walk(const PagingState& state, Gva gva, AccessKind kind, MemoryReader read,
                                    const CpuFeatures& cpu) {
  const PagingMode mode = paging_mode(state);
  Translation result;
  if (mode == PagingMode::None) {
    result.gpa = Gpa{gva.value};
    return result;
  }
  if (is_wide(mode) && !is_canonical(gva.value, mode == PagingMode::Level5 ? 57 : 48)) {
    return WalkFault{WalkFaultCause::NonCanonical, {vector::kGp, true, 0, 0}, 0, Gpa{}};
  }

  const Layout layout = layout_of(mode);
  const bool nx = nx_enabled(state, mode);
  const std::uint32_t error_code = error_code_of(state, mode, kind);
  std::uint64_t table = top_table(state.cr3, mode, cpu);

  for (unsigned level = layout.levels; level >= 1; --level) {
    const unsigned shift = kPageShift + (level - 1) * layout.index_bits;
    const std::uint64_t index = (gva.value >> shift) & bits(0, layout.index_bits - 1);
    // In PAE paging only two bits are left for the top index: the address has 32.
    const Gpa entry_gpa{table + index * layout.entry_bytes};

    std::uint64_t entry = 0;
    bool was_read = false;
    if (layout.entry_bytes == 4) {
      std::uint32_t narrow = 0;
      was_read = read(entry_gpa, &narrow, sizeof narrow);
      entry = narrow;
    } else {
      was_read = read(entry_gpa, &entry, sizeof entry);
    }
    const auto fault = [&](WalkFaultCause cause, std::uint32_t more) {
      return WalkFault{cause, page_fault(gva, error_code | more), static_cast<std::uint8_t>(level), entry_gpa};
    };
    if (!was_read) return fault(WalkFaultCause::TableOutsideRam, 0);
    if ((entry & kEntryPresent) == 0) return fault(WalkFaultCause::NotPresent, 0);

    const bool leaf = is_leaf(state, mode, level, entry, cpu);
    if ((entry & reserved_bits(state, mode, level, leaf, cpu)) != 0) {
      return fault(WalkFaultCause::ReservedBits, pf::kPresent | pf::kReserved);
    }

    result.entries[result.entry_count++] = {entry_gpa, entry, 0, static_cast<std::uint8_t>(layout.entry_bytes),
                                            static_cast<std::uint8_t>(level)};
    const bool has_rights = !(mode == PagingMode::Pae && level == 3);
    if (has_rights) {
      result.writable = result.writable && (entry & kEntryWritable) != 0;
      result.user = result.user && (entry & kEntryUser) != 0;
      if (nx && (entry & kEntryExecuteDisable) != 0) result.executable = false;
    }
    if (leaf) {
      result.page_bytes = std::uint64_t{1} << shift;
      result.global = (entry & kEntryGlobal) != 0 && (state.cr4 & cr4::kPge) != 0;
      result.gpa = Gpa{page_base(mode, level, entry, result.page_bytes, cpu) | (gva.value & (result.page_bytes - 1))};
      return result;
    }
    table = mode == PagingMode::Bits32 ? entry & bits(12, 31) : entry & bits(12, cpu.physical_address_bits - 1u);
  }
  // Level 1 is always a leaf, so the loop does not end without one.
  return WalkFault{};
}

void note_accessed_and_dirty(PagingMode mode, AccessKind kind, Translation& page) {
  for (std::size_t i = 0; i < page.entry_count; ++i) {
    auto& entry = page.entries[i];
    if (mode == PagingMode::Pae && entry.level == 3) continue;  // a PDPTE of PAE paging has no such bits
    std::uint64_t wanted = kEntryAccessed;
    if (kind == AccessKind::Write && i + 1 == page.entry_count) wanted |= kEntryDirty;
    entry.set_bits = wanted & ~entry.value;
  }
}

}  // namespace

PagingState paging_state(const kvmi_x86_regs& regs, const kvmi_x86_sregs& sregs) {
  PagingState state;
  state.cr0 = sregs.cr0;
  state.cr3 = sregs.cr3;
  state.cr4 = sregs.cr4;
  state.efer = sregs.efer;
  state.rflags = regs.rflags;
  state.cpl = static_cast<std::uint8_t>(privilege_level(regs, sregs));
  return state;
}

PagingMode paging_mode(const PagingState& state) {
  if ((state.cr0 & cr0::kPg) == 0) return PagingMode::None;
  if ((state.efer & efer::kLma) != 0) return (state.cr4 & cr4::kLa57) != 0 ? PagingMode::Level5 : PagingMode::Level4;
  return (state.cr4 & cr4::kPae) != 0 ? PagingMode::Pae : PagingMode::Bits32;
}

std::string_view text_of(WalkFaultCause cause) {
  switch (cause) {
    case WalkFaultCause::NonCanonical:
      return "the address is not canonical";
    case WalkFaultCause::AddressTooWide:
      return "the address has more than 32 bits and the paging mode has not";
    case WalkFaultCause::NotPresent:
      return "an entry on the way is not present";
    case WalkFaultCause::ReservedBits:
      return "an entry on the way has a reserved bit set";
    case WalkFaultCause::TableOutsideRam:
      return "a table on the way is outside guest RAM";
    case WalkFaultCause::WriteToReadOnly:
      return "the page is read-only";
    case WalkFaultCause::UserToSupervisor:
      return "the page is not for user mode";
    case WalkFaultCause::ExecuteDisabled:
      return "the page is not executable";
    case WalkFaultCause::Smep:
      return "SMEP: supervisor code cannot execute a user page";
    case WalkFaultCause::Smap:
      return "SMAP: supervisor code cannot use the data of a user page";
  }
  return "unknown cause";
}

Result<Translation, WalkFault> translate(const PagingState& state, Gva gva, MemoryReader read, const CpuFeatures& cpu) {
  const PagingMode mode = paging_mode(state);
  if (!is_wide(mode) && (gva.value >> 32) != 0) {
    return WalkFault{WalkFaultCause::AddressTooWide, {vector::kGp, true, 0, 0}, 0, Gpa{}};
  }
  PagingState supervisor = state;
  supervisor.cpl = 0;
  return walk(supervisor, gva, AccessKind::Read, read, cpu);
}

Result<Translation, WalkFault> access(const PagingState& state, Gva gva, AccessKind kind, MemoryReader read,
                                      const CpuFeatures& cpu) {
  const PagingMode mode = paging_mode(state);
  if (!is_wide(mode)) gva.value &= 0xffffffffu;
  auto walked = walk(state, gva, kind, read, cpu);
  if (!walked || mode == PagingMode::None) return walked;
  Translation& page = *walked;
  if (const auto cause = refuse(state, page, kind)) {
    const TableEntry& last = page.entries[page.entry_count - 1u];
    return WalkFault{*cause, page_fault(gva, error_code_of(state, mode, kind) | pf::kPresent), last.level, last.gpa};
  }
  note_accessed_and_dirty(mode, kind, page);
  return walked;
}

bool pdptes_valid(std::uint64_t cr3, MemoryReader read, const CpuFeatures& cpu) {
  std::array<std::uint64_t, 4> entries{};
  if (!read(Gpa{cr3 & bits(5, 31)}, entries.data(), sizeof entries)) return false;
  const std::uint64_t reserved = reserved_bits(PagingState{}, PagingMode::Pae, 3, false, cpu);
  for (const auto entry : entries) {
    if ((entry & kEntryPresent) != 0 && (entry & reserved) != 0) return false;
  }
  return true;
}

}  // namespace kvmid::x86
