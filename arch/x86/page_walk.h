// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A walk over a guest's page tables: 32-bit, PAE, 4-level and 5-level paging, with large pages.
///
/// Purpose:  translate() finds what maps an address, for tools; access() answers as the processor does for one
///           access, with the exact fault and with the Accessed and Dirty bits that it would set.
/// Shapes:   tables are read through a MemoryReader, so that a mapping, a socket or a test's map can be behind it.
/// Errors:   WalkFault: the rule that was broken, and the exception that a guest would get for it.
/// Bounds:   at most five table reads, whatever the tables hold; a table outside guest RAM ends the walk.
/// Threads:  pure functions; the reader is called on the caller's thread. Two reads of a walk are not one atomic step:
///           other vCPUs may change tables in between, as on a real machine.
/// Leaves out: protection keys, shadow stacks, and the cached PDPTE registers of PAE paging (memory is read instead; an
///           entry that a load of CR3 would refuse is a fault with the reserved bit).
/// Source:   Intel SDM volume 3, chapter 4 (4.3 to 4.7).

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>

#include "arch/x86/exceptions.h"
#include "arch/x86/page_access.h"
#include "arch/x86/registers.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"

namespace kvmid::x86 {

/// A reference to something callable as bool(Gpa, void* out, std::size_t bytes): true if all bytes were read.
/// Lifetime: the callable outlives the call that it is passed to. Never null.
class MemoryReader {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<F>, MemoryReader> &&
                                              std::is_invocable_r_v<bool, F&, Gpa, void*, std::size_t>>>
  MemoryReader(F&& callable)  // NOLINT(google-explicit-constructor)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Gpa gpa, void* out, std::size_t bytes) -> bool {
          return (*static_cast<std::remove_reference_t<F>*>(object))(gpa, out, bytes);
        }) {}
  bool operator()(Gpa gpa, void* out, std::size_t bytes) const { return call_(object_, gpa, out, bytes); }

 private:
  void* object_;
  bool (*call_)(void*, Gpa, void*, std::size_t);
};

enum class PagingMode : std::uint8_t { None, Bits32, Pae, Level4, Level5 };

/// The registers that a walk depends on.
struct PagingState {
  std::uint64_t cr0 = 0;
  std::uint64_t cr3 = 0;
  std::uint64_t cr4 = 0;
  std::uint64_t efer = 0;
  std::uint64_t rflags = 0;  ///< AC lets explicit supervisor accesses pass SMAP
  std::uint8_t cpl = 0;
  /// The processor's own access to a table (GDT, LDT, IDT, TSS): supervisor whatever the CPL, and AC does not count.
  bool implicit_supervisor = false;
};
[[nodiscard]] PagingState paging_state(const kvmi_x86_regs& regs, const kvmi_x86_sregs& sregs);
[[nodiscard]] PagingMode paging_mode(const PagingState& state);

enum class AccessKind : std::uint8_t { Read, Write, Execute };

/// One entry of a table that a walk used.
struct TableEntry {
  Gpa gpa;                  ///< of the entry
  std::uint64_t value = 0;  ///< as read
  std::uint64_t set_bits =
      0;                   ///< Accessed and Dirty bits that access() would have the processor set and that are clear
  std::uint8_t bytes = 0;  ///< 4 or 8
  std::uint8_t level = 0;  ///< 5 PML5 ... 1 page table
};

/// What maps an address. Rights are those of the page tables alone: all entries on the way together, before CPL,
/// CR0.WP, SMEP and SMAP are looked at.
struct Translation {
  Gpa gpa;                               ///< of the very byte
  std::uint64_t page_bytes = kPageSize;  ///< 4 KiB, 2 MiB, 4 MiB or 1 GiB
  bool writable = true;
  bool user = true;
  bool executable = true;
  bool global = false;
  std::uint8_t entry_count = 0;         ///< 0 without paging
  std::array<TableEntry, 5> entries{};  ///< top table first

  [[nodiscard]] PageRights rights() const {
    return static_cast<PageRights>(KVMI_PAGE_ACCESS_R | (writable ? KVMI_PAGE_ACCESS_W : 0u) |
                                   (executable ? KVMI_PAGE_ACCESS_X : 0u));
  }
};

enum class WalkFaultCause : std::uint8_t {
  NonCanonical,    ///< #GP(0) (#SS(0) if the access was through the stack segment)
  AddressTooWide,  ///< translate() only: more than 32 bits where addresses have 32
  NotPresent,
  ReservedBits,
  TableOutsideRam,  ///< the reader refused; to the guest as if the entry was not present
  WriteToReadOnly,
  UserToSupervisor,  ///< user mode, and the page is not for it
  ExecuteDisabled,
  Smep,  ///< supervisor executes a user page
  Smap,  ///< supervisor reads or writes a user page without AC
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(WalkFaultCause cause);

struct WalkFault {
  WalkFaultCause cause = WalkFaultCause::NotPresent;
  Exception exception;     ///< what the guest would get: #GP(0), or #PF with its error code and CR2
  std::uint8_t level = 0;  ///< of the entry at which it was seen (for rights: of the page); 0: no entry
  Gpa entry;               ///< where that entry is
};

/// What maps `gva`, rights not asked: fails only if nothing maps it. `set_bits` is 0 throughout, and the exception of a
/// fault is that of a supervisor's read.
[[nodiscard]] Result<Translation, WalkFault> translate(const PagingState& state, Gva gva, MemoryReader read,
                                                       const CpuFeatures& cpu = {});

/// One access of one byte (an access that crosses a page is two of these), as the processor does it. Where addresses
/// have 32 bits the upper half of `gva` does not count. The caller sets `set_bits` in the entries.
[[nodiscard]] Result<Translation, WalkFault> access(const PagingState& state, Gva gva, AccessKind kind,
                                                    MemoryReader read, const CpuFeatures& cpu = {});

/// Would a load of `cr3` with PAE paging be taken: are the reserved bits of its four entries clear where they are
/// present? (else #GP(0), also if they are outside RAM)
[[nodiscard]] bool pdptes_valid(std::uint64_t cr3, MemoryReader read, const CpuFeatures& cpu = {});

}  // namespace kvmid::x86
