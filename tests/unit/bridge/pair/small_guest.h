// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest in memory that does nothing by itself: the test says when something happens in it.
///
/// Purpose:  two of them, one behind KVMI 2 and one behind the bridges, must end up alike.
/// Shapes:   memory is sparse, with a hole; vCPU 1 is in 32-bit mode without paging, the others are in 64-bit mode with
///           tables at the start of memory. Every processor state is a function of what was told, so two guests that
///           were told the same are the same.
/// Threads:  none.

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "hypervisor/server/guest_backend.h"

namespace kvmid::bridge::test {

/// What an event's reply came to, whichever way it was said.
struct Outcome {
  VcpuId vcpu;
  EventKind event{};
  Action action{};          ///< SKIP of CR and MSR is ALLOW with the old value; other SKIPs are RETRY with RIP moved
  std::uint64_t value = 0;  ///< what a CR or MSR gets
  std::uint64_t rip = 0;    ///< where the vCPU goes on
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

class SmallGuest final : public hypervisor::GuestBackend {
 public:
  static constexpr std::uint16_t kVcpus = 3;
  static constexpr std::uint64_t kFrames = 20000;
  static constexpr std::uint64_t kHole = 600, kHoleFrames = 10;
  static constexpr std::uint64_t kScratch = 16, kScratchFrames = 24;  ///< what the test reads and writes
  static constexpr std::uint64_t kCode = 20;                          ///< RIPs are here, within kScratch
  static constexpr std::uint32_t kNoMsr = 0xad;                       ///< low byte of MSRs that do not exist

  /// MSRs whose writes the test watches, also where a dialect's ranges end.
  static constexpr std::array<std::uint32_t, 12> kMsrs = {0,          0x174,      0x1ffe,     0x1fff,
                                                          0x2000,     0x40000000, 0x40001fff, 0x4b564d00,
                                                          0xc0000000, 0xc0000082, 0xc0001fff, 0xc0002000};

  SmallGuest();

  const hypervisor::GuestFacts& facts() const override { return facts_; }
  hypervisor::GuestFacts& change_facts() { return facts_; }
  hypervisor::Hooks& hooks() override { return hooks_; }
  hypervisor::Done pause(VcpuId vcpu) override;
  hypervisor::Answer<hypervisor::RegisterState> registers(VcpuId vcpu) override;
  hypervisor::Answer<std::uint64_t> msr(VcpuId vcpu, std::uint32_t index) override;
  hypervisor::Done set_registers(VcpuId vcpu, const kvmi_x86_regs& regs) override;
  hypervisor::Done inject(VcpuId vcpu, const x86::Exception& exception) override;
  bool is_memory(AddressSpace space, Gfn first, std::uint64_t pages) const override;
  x86::PageRights page_access(Gfn gfn) const override { return rights_[gfn.value]; }
  void set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) override;
  hypervisor::Done read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) override;
  hypervisor::Done write_physical(AddressSpace space, Gpa gpa, Bytes data) override;
  hypervisor::Answer<GetCpuidReply> cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index) override;
  hypervisor::Answer<std::vector<std::byte>> xsave(VcpuId vcpu) override;
  hypervisor::Done set_xsave(VcpuId vcpu, Bytes area) override;
  hypervisor::Answer<std::uint64_t> xcr(VcpuId vcpu, std::uint32_t xcr) override;
  void answer(const EventReply& reply) override;
  void unhook() override {}

  // for the test

  /// A stop of this vCPU with that data, in its state. It waits for answer() from now on.
  Event stop(VcpuId vcpu, const EventData& data);
  [[nodiscard]] bool waits(VcpuId vcpu) const { return vcpus_[vcpu.value].stopped.has_value(); }
  [[nodiscard]] const std::optional<x86::Exception>& injected(VcpuId vcpu) const { return vcpus_[vcpu.value].injected; }
  [[nodiscard]] unsigned pauses(VcpuId vcpu) const { return vcpus_[vcpu.value].pauses; }
  /// A vCPU that begins anew: its events are no longer watched, and what was injected is lost.
  void begin_anew(VcpuId vcpu);
  /// Why the other is not in the same state; empty: it is. `by_vcpu`: MSRs and CRs are watched of each vCPU.
  [[nodiscard]] std::string difference(const SmallGuest& other, EventSet compared, bool by_vcpu) const;

  /// Reads guest memory as the guest has it (patches are kept elsewhere); plain memory where it is not set.
  std::function<void(Gpa, std::span<std::byte>)> own_bytes;
  std::function<void(const Outcome&)> answered;

 private:
  using Page = std::array<std::byte, kPageSize>;
  struct Vcpu {
    kvmi_x86_regs regs{};
    kvmi_x86_sregs sregs{};
    std::optional<Event> stopped;
    std::optional<x86::Exception> injected;
    unsigned pauses = 0;
    std::vector<std::byte> xsave = std::vector<std::byte>(4096);
  };
  void go_behind(Vcpu& vcpu, const Event& event);
  void set_word(std::uint64_t gpa, std::uint64_t value);

  hypervisor::GuestFacts facts_;
  hypervisor::Hooks hooks_{kVcpus};
  std::map<std::uint64_t, Page> pages_;  ///< [gfn]; zeros elsewhere
  std::vector<x86::PageRights> rights_;
  std::array<Vcpu, kVcpus> vcpus_;
};

}  // namespace kvmid::bridge::test
