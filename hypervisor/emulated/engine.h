// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Executes 64-bit code of one vCPU until something happens that the machine has to look at.
///
/// Purpose:  the only file that knows Unicorn. It is used as an ALU with a software TLB: paging is off inside, its
///           memory regions are single pages at their virtual addresses, and every instruction that touches system
///           state makes it stop.
/// Shapes:   map() what may be touched, run() until a Stop, look, run() again. Registers go in and out with run().
/// Errors:   a Stop of kind Failed has Unicorn's words; nothing else is thrown or returned.
/// Bounds:   at most kMappingsMax pages are mapped; map() throws all others out when it is full (mapping gets slower
///           with their number).
/// Threads:  none of its own; all calls from one thread.
/// Source:   Unicorn 2.0.1 ignores the guest's page tables (it maps addresses to themselves), delivers no exception
///           through the guest's IDT, and keeps a stale "old exception": hence all this.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "arch/x86/page_access.h"
#include "arch/x86/page_walk.h"
#include "hypervisor/emulated/xsave.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"

namespace kvmid::emulated {

enum class StopKind : std::uint8_t {
  Budget,       ///< as many instructions as were allowed
  Sensitive,    ///< RIP is at an instruction that the machine executes itself
  MemoryFault,  ///< RIP is at an instruction that needs memory that is not mapped so: gva, access
  Invalid,      ///< RIP is at an instruction that Unicorn does not know
  CodeBreakpoint,  ///< RIP is at an instruction that a breakpoint of set_breakpoints() is on: breakpoints
  Exception,    ///< RIP is at an instruction that raised `vector` (never #PF)
  Failed,       ///< Unicorn gave up: text
};

struct Stop {
  StopKind kind = StopKind::Budget;
  Gva gva;
  x86::AccessKind access{};
  std::uint8_t vector = 0;
  unsigned bytes = 0;            ///< of the access that faulted, as the engine makes it; fetches: 1 or more
  std::uint8_t breakpoints = 0;  ///< bit n: the n-th was hit
  std::uint64_t completed = 0;  ///< instructions that were executed to their end (string instructions: one element)
  std::uint64_t executed = 0;  ///< instructions begun, the one at RIP included where it faulted
  std::string text;
};

class Engine {
 public:
  static constexpr std::size_t kMappingsMax = 96;

  Engine();
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Executes at most `budget` instructions (1 or more).
  Stop run(kvmi_x86_regs& regs, std::uint64_t budget);

  /// Lets the page of `gva` be used with `rights` (R at least). A mapping that is there is replaced.
  void map(Gva gva, std::byte* host, Gfn gfn, x86::PageRights rights);
  void unmap(Gva gva);
  /// Forgets every mapping of these frames, and what was translated from them.
  void unmap_frames(Gfn first, std::uint64_t count);
  void flush();
  /// Keeps the mappings for which `keep` is true.
  void retain(const std::function<bool(Gva page, Gfn gfn, x86::PageRights rights)>& keep);
  /// Rights with which the page of `gva` is mapped; kRightsNone if it is not.
  [[nodiscard]] x86::PageRights mapped_rights(Gva gva) const;

  /// x87 and SSE registers. Between two runs.
  [[nodiscard]] FpuState fpu() const;
  void set_fpu(const FpuState& fpu);

  /// Instructions that only the kernel may execute make it stop, too.
  void set_user_mode(bool user);
  /// Stops at armed addresses (bit n of `armed`: addresses[n]), but not at the first instruction of a run with RF.
  void set_breakpoints(const std::array<std::uint64_t, 4>& addresses, std::uint8_t armed);
  /// Would run() stop at this instruction with Sensitive?
  [[nodiscard]] static bool is_sensitive(std::span<const std::byte> code, bool user);

  /// Keeps x87, SSE and flags as they are now; roll_back() makes them so again. Between two runs.
  void save();
  void roll_back();
  /// Makes sure that so many more pages can be mapped without one of them being thrown out for another.
  void make_room(std::size_t pages);

  void set_segment_bases(std::uint64_t fs, std::uint64_t gs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvmid::emulated
