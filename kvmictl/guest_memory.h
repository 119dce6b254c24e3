// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest's memory as the subcommands of `kvmictl mem` look at it: by physical or by virtual addresses.
///
/// Purpose:  what is asked for is checked against the guest's memory map before anything is read or printed.
/// Errors:   ClientError; Failed with ErrorCode::Fault where a range is not all memory, in words that name the place.
/// Threads:  none.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/agent_client.h"
#include "kvmictl/arguments.h"

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

class GuestMemory {
 public:
  /// Attaches.
  static Result<GuestMemory, client::ClientError> open(const Arguments& arguments);

  [[nodiscard]] client::AgentClient& client() { return client_; }
  [[nodiscard]] VcpuId vcpu() const { return vcpu_; }

  /// Is all of it memory? Only physical addresses are looked at, and only where kvmid tells the memory map.
  Result<void, client::ClientError> check(std::uint64_t address, std::uint64_t bytes);
  /// The cookie.
  Result<std::uint64_t, client::ClientError> read(std::uint64_t address, std::span<std::byte> out);
  /// By the hypervisor; where it does not serve that, by a walk over the guest's page tables.
  Result<TranslateGvaReply, client::ClientError> translate(std::uint64_t gva);
  /// "TRANSLATE_GVA" or "page tables": how translate() did it.
  [[nodiscard]] std::string_view translated_by() const { return walks_ ? "page tables" : "TRANSLATE_GVA"; }

 private:
  GuestMemory(client::AgentClient client, const Arguments& arguments)
      : client_(std::move(client)), virtual_(arguments.memory.is_virtual), vcpu_{arguments.vcpu.value_or(0)} {}
  Result<TranslateGvaReply, client::ClientError> walk(std::uint64_t gva);

  client::AgentClient client_;
  bool virtual_;
  VcpuId vcpu_;
  bool walks_ = false;  ///< translations are our own
};

}  // namespace kvmid::ctl
