// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Guest virtual memory: walks the guest's page tables and fills the engines' software TLBs.
///
/// Purpose:  rights of a mapping = what the page tables give this vCPU AND what KVMI leaves of the page.
/// Errors:   an access that the guest may not make is an x86::Exception for it.
/// Threads:  none of its own.
/// Lifetime: `map` outlives it. `ram` only says how many frames there can be.
/// Leaves out: KVMI rights for the processor's own accesses to tables and frames.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "arch/x86/exceptions.h"
#include "arch/x86/page_access.h"
#include "arch/x86/page_walk.h"
#include "arch/x86/registers.h"
#include "hypervisor/emulated/memory_map.h"
#include "hypervisor/emulated/ram.h"
#include "hypervisor/emulated/vcpu.h"
#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::emulated {

/// The page is mapped now: execute the instruction again.
struct Mapped {};
/// KVMI rights forbid the access, the guest's own page tables do not.
struct Restricted {
  Gpa gpa;
  x86::PageRights access = 0;
};
/// The page tables point at what is no RAM.
struct NoRam {
  Gpa gpa;
};
using Resolution = std::variant<Mapped, Restricted, NoRam, x86::Exception>;

class Mmu {
 public:
  Mmu(const GuestRam& ram, const MemoryMap& map, const x86::CpuFeatures& cpu);

  /// Answers a MemoryFault of the engine.
  Resolution resolve(Vcpu& vcpu, Gva gva, x86::AccessKind access);

  /// After a load of a control register: drops the mappings that a new walk would not make just so. As good as a flush,
  /// and much cheaper where most of the address space stays.
  void revalidate(Vcpu& vcpu);

  /// May the instruction at RIP make this access? As resolve(), but nothing is mapped: Mapped only says that it may.
  /// `gpa` is where it goes then.
  Resolution probe(Vcpu& vcpu, Gva gva, x86::AccessKind access, Gpa& gpa);

  /// The guest's bytes at a virtual address, with the privilege of the code that the vCPU executes.
  [[nodiscard]] std::optional<x86::Exception> read(Vcpu& vcpu, Gva gva, void* out, std::size_t size) {
    return read_as(vcpu, gva, out, size, false);
  }
  [[nodiscard]] std::optional<x86::Exception> write(Vcpu& vcpu, Gva gva, const void* data, std::size_t size) {
    return write_as(vcpu, gva, data, size, false);
  }
  /// As the processor's own (implicit supervisor) access: descriptors, gates, task states, frames of handlers.
  [[nodiscard]] std::optional<x86::Exception> read_system(Vcpu& vcpu, Gva gva, void* out, std::size_t size) {
    return read_as(vcpu, gva, out, size, true);
  }
  [[nodiscard]] std::optional<x86::Exception> write_system(Vcpu& vcpu, Gva gva, const void* data, std::size_t size) {
    return write_as(vcpu, gva, data, size, true);
  }
  /// Bytes of code at RIP: as many as can be read, at most `size`.
  std::size_t read_code(Vcpu& vcpu, void* out, std::size_t size);
  /// Where a virtual address is now, rights not asked.
  [[nodiscard]] std::optional<Gpa> locate(const Vcpu& vcpu, Gva gva) const;

  /// Effective ones: what KVMI leaves AND what the memory slot gives.
  [[nodiscard]] x86::PageRights rights(Gfn gfn) const {
    return x86::combine_rights(rights_[gfn.value], slot_rights(gfn));
  }
  void set_rights(Gfn first, std::uint64_t pages, x86::PageRights rights);
  void allow_everything();
  [[nodiscard]] bool is_read_only(Gfn gfn) const { return map_.is_read_only(gfn); }

  [[nodiscard]] const x86::CpuFeatures& cpu() const { return cpu_; }

 private:
  Result<x86::Translation, x86::WalkFault> walk(const Vcpu& vcpu, Gva gva, x86::AccessKind access,
                                                bool system = false) const;
  std::optional<x86::Exception> read_as(Vcpu& vcpu, Gva gva, void* out, std::size_t size, bool system);
  std::optional<x86::Exception> write_as(Vcpu& vcpu, Gva gva, const void* data, std::size_t size, bool system);
  /// Rights that need no further look at the page tables: a write that would set the Dirty bit has to be walked first.
  /// What KVMI leaves of a page for the instruction at RIP.
  [[nodiscard]] x86::PageRights allowed_rights(const Vcpu& vcpu, Gfn gfn) const;
  [[nodiscard]] x86::PageRights settled_rights(const Vcpu& vcpu, Gva gva) const;
  template <class Copy>
  std::optional<x86::Exception> each_page(Vcpu& vcpu, Gva gva, std::size_t size, x86::AccessKind access, bool system,
                                          Copy copy);
  [[nodiscard]] x86::PageRights slot_rights(Gfn gfn) const {
    return map_.is_read_only(gfn) ? KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X : x86::kRightsAll;
  }
  /// Lets the instruction at RIP store to a read-only page, into a copy that is gone behind it.
  void map_shadow(Vcpu& vcpu, Gva gva, Gfn gfn, const std::byte* host, x86::PageRights rights);
  /// False where the bytes are not all memory of one slot.
  [[nodiscard]] bool read_memory(Gpa gpa, void* out, std::size_t bytes) const;
  [[nodiscard]] bool write_memory(Gpa gpa, const void* data, std::size_t bytes);
  void set_table_bits(const x86::Translation& translation);

  const MemoryMap& map_;
  x86::CpuFeatures cpu_;
  std::vector<x86::PageRights> rights_;  ///< [gfn]
};

}  // namespace kvmid::emulated
