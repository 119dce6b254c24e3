// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/mmu.h"

#include <algorithm>
#include <cstring>

namespace kvmid::emulated {

namespace {

x86::PageRights right_of(x86::AccessKind access) {
  switch (access) {
    case x86::AccessKind::Read: return KVMI_PAGE_ACCESS_R;
    case x86::AccessKind::Write: return KVMI_PAGE_ACCESS_W;
    case x86::AccessKind::Execute: return KVMI_PAGE_ACCESS_X;
  }
  return 0;
}

}  // namespace

Mmu::Mmu(const GuestRam& ram, const MemoryMap& map, const x86::CpuFeatures& cpu)
    : map_(map), cpu_(cpu), rights_(ram.bytes() / kPageSize, x86::kRightsAll) {}

bool Mmu::read_memory(Gpa gpa, void* out, std::size_t bytes) const {
  const std::byte* from = map_.at(gpa, bytes);
  if (from == nullptr) return false;
  std::memcpy(out, from, bytes);
  return true;
}

bool Mmu::write_memory(Gpa gpa, const void* data, std::size_t bytes) {
  std::byte* to = map_.at(gpa, bytes);
  if (to == nullptr) return false;
  std::memcpy(to, data, bytes);
  return true;
}

Result<x86::Translation, x86::WalkFault> Mmu::walk(const Vcpu& vcpu, Gva gva, x86::AccessKind access,
                                                   bool system) const {
  const auto read = [this](Gpa gpa, void* out, std::size_t bytes) { return read_memory(gpa, out, bytes); };
  auto state = x86::paging_state(vcpu.regs, vcpu.sregs);
  state.implicit_supervisor = system;
  return x86::access(state, gva, access, read, cpu_);
}

void Mmu::set_table_bits(const x86::Translation& translation) {
  for (std::size_t i = 0; i < translation.entry_count; ++i) {
    const auto& entry = translation.entries[i];
    if (entry.set_bits == 0 || map_.is_read_only(gfn_of(entry.gpa))) continue;
    const std::uint64_t value = entry.value | entry.set_bits;
    (void)write_memory(entry.gpa, &value, entry.bytes);  // it was read just now, so it is RAM
  }
}

x86::PageRights Mmu::settled_rights(const Vcpu& vcpu, Gva gva) const {
  x86::PageRights rights = 0;
  for (const auto kind : {x86::AccessKind::Read, x86::AccessKind::Write, x86::AccessKind::Execute}) {
    const auto translation = walk(vcpu, gva, kind);
    if (!translation) continue;
    const bool settled =
        std::all_of(translation->entries.begin(), translation->entries.begin() + translation->entry_count,
                    [](const x86::TableEntry& entry) { return entry.set_bits == 0; });
    if (settled) rights |= right_of(kind);
  }
  return rights;
}

void Mmu::revalidate(Vcpu& vcpu) {
  vcpu.engine.retain([&](Gva page, Gfn gfn, x86::PageRights rights) {
    const auto translation = walk(vcpu, page, x86::AccessKind::Read);
    if (!translation || gfn_of(translation->gpa) != gfn) return false;
    return x86::combine_rights(settled_rights(vcpu, page), this->rights(gfn)) == rights;
  });
}

x86::PageRights Mmu::allowed_rights(const Vcpu& vcpu, Gfn gfn) const {
  x86::PageRights allowed = rights_[gfn.value];
  for (const auto& item : vcpu.overrides) {
    if (item.gfn == gfn) allowed |= item.rights;
  }
  return allowed;
}

Resolution Mmu::probe(Vcpu& vcpu, Gva gva, x86::AccessKind access, Gpa& gpa) {
  const auto translation = walk(vcpu, gva, access);
  if (!translation) return translation.error().exception;
  set_table_bits(*translation);
  gpa = translation->gpa;
  if (map_.at(gpa_of(gfn_of(gpa)), kPageSize) == nullptr) return NoRam{gpa};
  if (x86::forbids(allowed_rights(vcpu, gfn_of(gpa)), right_of(access))) return Restricted{gpa, right_of(access)};
  return Mapped{};
}

Resolution Mmu::resolve(Vcpu& vcpu, Gva gva, x86::AccessKind access) {
  Gpa gpa;
  const auto seen = probe(vcpu, gva, access, gpa);
  if (!std::holds_alternative<Mapped>(seen)) return seen;
  const Gfn gfn = gfn_of(gpa);
  std::byte* host = map_.at(gpa_of(gfn), kPageSize);
  const x86::PageRights tables = settled_rights(vcpu, gva) | KVMI_PAGE_ACCESS_R;
  x86::PageRights allowed = allowed_rights(vcpu, gfn);
  if (right_of(access) == KVMI_PAGE_ACCESS_W && map_.is_read_only(gfn)) {
    map_shadow(vcpu, gva, gfn, host, x86::combine_rights(tables, allowed));
    return Mapped{};
  }
  allowed = x86::combine_rights(allowed, slot_rights(gfn));
  // A page without R: only an override of W or X can have come here. Unicorn needs R for it; it is gone after one
  // instruction.
  vcpu.engine.map(gva, host, gfn, x86::combine_rights(tables, allowed) | KVMI_PAGE_ACCESS_R);
  return Mapped{};
}

void Mmu::map_shadow(Vcpu& vcpu, Gva gva, Gfn gfn, const std::byte* host, x86::PageRights rights) {
  if (!vcpu.shadow) vcpu.shadow = std::make_unique<ShadowPage>();
  std::copy_n(host, kPageSize, vcpu.shadow->bytes.begin());
  vcpu.engine.map(gva, vcpu.shadow->bytes.data(), gfn, rights | KVMI_PAGE_ACCESS_R);
  // An override of no right: the mapping ends with the instruction.
  vcpu.overrides.push_back({gfn, x86::kRightsNone});
  vcpu.overrides_rip = vcpu.regs.rip;
}

template <class Copy>
std::optional<x86::Exception> Mmu::each_page(Vcpu& vcpu, Gva gva, std::size_t size, x86::AccessKind access, bool system,
                                             Copy copy) {
  std::size_t done = 0;
  while (done < size) {
    const Gva at{gva.value + done};
    const std::size_t part = std::min<std::size_t>(size - done, kPageSize - at.value % kPageSize);
    const auto translation = walk(vcpu, at, access, system);
    if (!translation) return translation.error().exception;
    set_table_bits(*translation);
    // Physical memory that is not there reads as zero and swallows writes.
    if (map_.at(translation->gpa, part) != nullptr) copy(translation->gpa, done, part);
    done += part;
  }
  return std::nullopt;
}

std::optional<x86::Exception> Mmu::read_as(Vcpu& vcpu, Gva gva, void* out, std::size_t size, bool system) {
  std::fill_n(static_cast<std::byte*>(out), size, std::byte{0});
  return each_page(vcpu, gva, size, x86::AccessKind::Read, system, [&](Gpa gpa, std::size_t done, std::size_t part) {
    (void)read_memory(gpa, static_cast<std::byte*>(out) + done, part);
  });
}

std::optional<x86::Exception> Mmu::write_as(Vcpu& vcpu, Gva gva, const void* data, std::size_t size, bool system) {
  // Both pages are looked at before the first byte: a frame is pushed whole or not at all.
  for (const std::uint64_t at : {gva.value, gva.value + size - 1}) {
    if (const auto seen = walk(vcpu, Gva{at}, x86::AccessKind::Write, system); !seen) return seen.error().exception;
  }
  return each_page(vcpu, gva, size, x86::AccessKind::Write, system, [&](Gpa gpa, std::size_t done, std::size_t part) {
    // A store to ROM goes nowhere.
    if (!map_.is_read_only(gfn_of(gpa))) (void)write_memory(gpa, static_cast<const std::byte*>(data) + done, part);
  });
}

std::size_t Mmu::read_code(Vcpu& vcpu, void* out, std::size_t size) {
  std::size_t have = 0;
  (void)each_page(vcpu, Gva{vcpu.regs.rip}, size, x86::AccessKind::Execute, false,
                  [&](Gpa gpa, std::size_t done, std::size_t part) {
                    if (read_memory(gpa, static_cast<std::byte*>(out) + done, part)) have = done + part;
                  });
  return have;
}

std::optional<Gpa> Mmu::locate(const Vcpu& vcpu, Gva gva) const {
  const auto read = [this](Gpa gpa, void* out, std::size_t bytes) { return read_memory(gpa, out, bytes); };
  const auto translation = x86::translate(x86::paging_state(vcpu.regs, vcpu.sregs), gva, read, cpu_);
  if (!translation) return std::nullopt;
  return translation->gpa;
}

void Mmu::set_rights(Gfn first, std::uint64_t pages, x86::PageRights rights) {
  std::fill_n(rights_.begin() + static_cast<std::ptrdiff_t>(first.value), pages, rights);
}

void Mmu::allow_everything() { std::fill(rights_.begin(), rights_.end(), x86::kRightsAll); }

}  // namespace kvmid::emulated
