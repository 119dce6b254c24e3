// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest's memory as the subcommands of `kvmictl mem` look at it: by physical or by virtual addresses.
///
/// Purpose:  what is asked for is checked against the guest's memory map before anything is read or printed.
/// Errors:   ClientError; Failed with ErrorCode::Fault where a range is not all memory, in words that name the place.
/// Threads:  none.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/agent_client.h"
#include "kvmictl/arguments.h"
#include "kvmictl/page_walker.h"

namespace kvmid::ctl {

/// Memory without a hole: slots that lie end to end.
struct MemoryRun {
  std::uint64_t gpa = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const MemoryRun&, const MemoryRun&) = default;
};
/// `slots`: ascending, not overlapping, as GET_MEMORY_MAP gives them.
std::vector<MemoryRun> runs_of(std::span<const kvmi_memory_slot> slots);
/// What keeps the range from being all memory; empty: nothing does. REQUIRES: bytes != 0, and no wrap.
std::string range_fault(std::span<const kvmi_memory_slot> slots, std::uint64_t gpa, std::uint64_t bytes);

/// Where a guest's memory is.
struct MemoryPlaces {
  std::vector<kvmi_memory_slot> slots;
  /// False: the hypervisor tells no map, and the only slot is all below max_gpa, holes included (PieceReader finds
  /// them).
  bool told = true;
};
/// Says on stderr that holes are found by reading, if the map is not told.
void warn_of_holes(const MemoryPlaces& places);

class GuestMemory {
 public:
  /// Attaches, and asks for guest RAM in place.
  static Result<GuestMemory, client::ClientError> open(const Arguments& arguments);

  [[nodiscard]] client::AgentClient& client() { return parts_->client; }
  /// Guest RAM in place, if it is granted; else null.
  [[nodiscard]] const client::MappedMemory* mapped() { return parts_->memory.mapped(); }
  [[nodiscard]] VcpuId vcpu() const { return vcpu_; }

  /// The memory map, or what there is in its place where GET_MEMORY_MAP is not served.
  /// NotServed where not even the end of memory is known.
  Result<MemoryPlaces, client::ClientError> places();
  /// Is all of it memory? Only physical addresses are looked at, and only where kvmid tells the memory map.
  Result<void, client::ClientError> check(std::uint64_t address, std::uint64_t bytes);
  /// The cookie. A virtual range is walked as translate() does it.
  Result<std::uint64_t, client::ClientError> read(std::uint64_t address, std::span<std::byte> out);
  /// By a walk over the guest's page tables where its RAM is granted, or the hypervisor translates nothing or tells no
  /// page size and rights; else by the hypervisor.
  Result<TranslateGvaReply, client::ClientError> translate(std::uint64_t gva);
  /// "TRANSLATE_GVA" or "page tables": how translate() did it.
  [[nodiscard]] std::string_view translated_by() const { return walks_ ? "page tables" : "TRANSLATE_GVA"; }

 private:
  /// They refer to each other, so they stay where they are.
  struct Parts {
    explicit Parts(client::AgentClient attached) : client(std::move(attached)) {}
    client::AgentClient client;
    PhysicalMemory memory{client};
    PageWalker walker{memory};
  };
  GuestMemory(client::AgentClient client, const Arguments& arguments)
      : parts_(std::make_unique<Parts>(std::move(client))),
        virtual_(arguments.memory.is_virtual),
        vcpu_{arguments.vcpu.value_or(0)},
        walks_in_place_(arguments.subcommand != Subcommand::MemWatch) {}
  [[nodiscard]] bool asks_hypervisor();
  Result<x86::PagingState, client::ClientError> paging();

  std::unique_ptr<Parts> parts_;
  bool virtual_;
  VcpuId vcpu_;
  bool walks_in_place_;
  bool walks_ = false;  ///< translations are our own
};

}  // namespace kvmid::ctl
