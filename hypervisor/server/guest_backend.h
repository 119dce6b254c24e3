// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What a hypervisor implements so that the server can offer its guest to kvmid.
///
/// Purpose:  the seam between KVMI (Session, Link: bytes, sequence numbers, checks that hold for every hypervisor) and
///           a particular way to run a guest.
/// Shapes:   the server calls GuestBackend; the backend reports events to its EventSink.
/// Threads:  one: server and backend share a loop, so every call is made between two instructions of the guest.
/// Lifetime: the backend outlives the session; the sink is set before the guest runs.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "arch/x86/exceptions.h"
#include "arch/x86/page_access.h"
#include "hypervisor/server/hooks.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/message.h"
#include "protocol/result.h"
#include "protocol/wire_array.h"

namespace kvmid::hypervisor {

/// Why a command is not done, with a sentence for people.
struct Refusal {
  ErrorCode code{};
  std::string text;
};
using Done = Result<void, Refusal>;
template <class T>
using Answer = Result<T, Refusal>;

/// What a guest is. Only max_gpa changes while the process runs, with the memory map.
struct GuestFacts {
  Uuid uuid;
  std::int64_t start_time = 0;  ///< seconds since 1970
  std::string name;             ///< printable, shorter than KVMI_NAME_MAX
  std::uint16_t vcpu_count = 1;
  std::uint64_t tsc_hz = 0;
  std::uint8_t physical_address_bits = 0;
  std::uint8_t linear_address_bits = 0;
  bool execute_only = false;     ///< a page can be executable and not readable
  std::uint64_t max_gpa = 0;     ///< end of the highest range of guest RAM
  int ram_fd = -1;               ///< memfd with guest RAM, offset = GPA; -1: none is shared
  std::uint64_t ram_bytes = 0;   ///< size of that memfd
  bool write_in_mapping = false; ///< KVMI_HANDSHAKE_WRITE_IN_MAPPING
  EventSet events;               ///< that this hypervisor can make
  CommandSet commands;           ///< that it serves beyond those of kServedCommands
};

struct RegisterState {
  std::uint8_t mode = 8;  ///< bytes of an address
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
};

/// Takes what happens in a guest.
class EventSink {
 public:
  virtual ~EventSink() = default;
  /// A vCPU stopped; it stays until GuestBackend::answer() is called for it.
  virtual void raise(const Event& event) = 0;
  /// The memory map is about to change: called before a vCPU can use the new one, and before memory is moved or gone.
  /// It may call the backend: unhook(), and writes that take patches off.
  virtual void map_changing(const MemoryMapChanged& /*change*/) {}
};

class GuestBackend {
 public:
  virtual ~GuestBackend() = default;

  [[nodiscard]] virtual const GuestFacts& facts() const = 0;
  /// What is watched. The session changes it; the backend looks at it when something happens in the guest.
  [[nodiscard]] virtual Hooks& hooks() = 0;
  /// Called after the session changed hooks(); for hypervisors that have to tell somebody.
  virtual void hooks_changed() {}

  // REQUIRES of all below: vcpu < facts().vcpu_count.

  /// A PAUSE event at the next instruction boundary, once per call.
  virtual Done pause(VcpuId vcpu) = 0;
  virtual Answer<RegisterState> registers(VcpuId vcpu) = 0;
  virtual Answer<std::uint64_t> msr(VcpuId vcpu, std::uint32_t index) = 0;
  virtual Done set_registers(VcpuId vcpu, const kvmi_x86_regs& regs) = 0;
  /// REQUIRES: refuse_injection() finds nothing wrong.
  virtual Done inject(VcpuId vcpu, const x86::Exception& exception) = 0;

  /// Is every page of the range guest memory?
  [[nodiscard]] virtual bool is_memory(AddressSpace space, Gfn first, std::uint64_t pages) const = 0;
  /// What is in effect: rights that were set, AND what the memory slot gives.
  /// REQUIRES: is_memory(Normal, gfn, 1).
  [[nodiscard]] virtual x86::PageRights page_access(Gfn gfn) const = 0;
  /// REQUIRES: is_memory(Normal, first, pages), and rights that refuse_page_rights() lets pass.
  virtual void set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) = 0;
  /// REQUIRES of both: the bytes are within is_memory().
  virtual Done read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) = 0;
  virtual Done write_physical(AddressSpace space, Gpa gpa, Bytes data) = 0;

  // Only called where facts().commands has the command.

  /// Soon, not at once: the reply leaves first.
  virtual Done shutdown() { return unserved(); }
  /// NoEntry where there is no such leaf.
  virtual Answer<GetCpuidReply> cpuid(VcpuId, std::uint32_t /*function*/, std::uint32_t /*index*/) {
    return unserved();
  }
  virtual Answer<std::vector<std::byte>> xsave(VcpuId) { return unserved(); }
  /// Invalid where no processor would load the area.
  virtual Done set_xsave(VcpuId, Bytes /*area*/) { return unserved(); }
  /// Invalid where there is no such register.
  virtual Answer<std::uint64_t> xcr(VcpuId, std::uint32_t /*xcr*/) { return unserved(); }
  /// Ascending, not overlapping; empty for an address space that the guest does not have.
  virtual Answer<std::vector<kvmi_memory_slot>> memory_map(AddressSpace) { return unserved(); }

  /// The answer to the event that a vCPU raised. REQUIRES: it waits for just this kind, and takes this action.
  virtual void answer(const EventReply& reply) = 0;
  /// Nobody watches any more: hooks() cleared, page rights as the guest has them, pauses and injections that were asked
  /// for are forgotten, waiting vCPUs go on as by ALLOW. One that waits in a BREAKPOINT event goes on as by RETRY: its
  /// INT3 may have been a patch, which is off by now, and the guest's own comes again.
  virtual void unhook() = 0;

 protected:
  static Refusal unserved() { return {ErrorCode::NotServed, "this hypervisor does not serve the command"}; }
};

}  // namespace kvmid::hypervisor
