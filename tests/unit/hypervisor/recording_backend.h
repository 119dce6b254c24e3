// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest of four pages that does nothing by itself and remembers what it was asked.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "hypervisor/server/guest_backend.h"

namespace kvmid::hypervisor {

class RecordingBackend : public GuestBackend {
 public:
  static constexpr std::uint64_t kPages = 4;
  static constexpr std::uint64_t kSmmFrame = 2;

  RecordingBackend() {
    facts_.uuid.bytes[0] = 7;
    facts_.name = "recorded";
    facts_.start_time = 1234;
    facts_.vcpu_count = 2;
    facts_.physical_address_bits = 40;
    facts_.linear_address_bits = 48;
    facts_.max_gpa = kPages * kPageSize;
    facts_.events.add(EventKind::Cr);
    facts_.events.add(EventKind::Hypercall);
    facts_.events.add(EventKind::Pause);
    rights_.fill(x86::kRightsAll);
  }

  const GuestFacts& facts() const override { return facts_; }
  GuestFacts& change_facts() { return facts_; }
  Hooks& hooks() override { return hooks_; }
  void hooks_changed() override { ++hook_changes; }
  Done pause(VcpuId vcpu) override {
    paused.push_back(vcpu.value);
    return {};
  }
  Answer<RegisterState> registers(VcpuId vcpu) override {
    RegisterState state;
    state.regs.rip = 0x1000u + vcpu.value;
    return state;
  }
  Answer<std::uint64_t> msr(VcpuId, std::uint32_t index) override {
    if (index == 0xdead) return Refusal{ErrorCode::Invalid, "no such MSR"};
    return std::uint64_t{index} * 2;
  }
  Done set_registers(VcpuId, const kvmi_x86_regs& regs) override {
    set_rip = regs.rip;
    return {};
  }
  Done inject(VcpuId, const x86::Exception& exception) override {
    if (injected) return Refusal{ErrorCode::Busy, "one waits already"};
    injected = exception;
    return {};
  }
  bool is_memory(AddressSpace space, Gfn first, std::uint64_t pages) const override {
    if (space == AddressSpace::Smm) return pages == 1 && first.value == kSmmFrame;
    return pages <= kPages && first.value <= kPages - pages;
  }
  x86::PageRights page_access(Gfn gfn) const override { return rights_[gfn.value]; }
  void set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) override {
    std::fill_n(rights_.begin() + static_cast<std::ptrdiff_t>(first.value), pages, rights);
  }
  Done read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) override {
    if (space == AddressSpace::Smm) {
      std::memcpy(out.data(), smm.data() + gpa.value % kPageSize, out.size());
      return {};
    }
    std::memcpy(out.data(), memory.data() + gpa.value, out.size());
    return {};
  }
  Done write_physical(AddressSpace space, Gpa gpa, Bytes data) override {
    if (space == AddressSpace::Smm) {
      std::memcpy(smm.data() + gpa.value % kPageSize, data.data(), data.size());
      return {};
    }
    std::memcpy(memory.data() + gpa.value, data.data(), data.size());
    return {};
  }
  void answer(const EventReply& reply) override { answers.push_back(reply); }
  void unhook() override {
    ++unhooked;
    hooks_.clear();
  }

  std::array<std::byte, kPages * kPageSize> memory{};
  std::array<std::byte, kPageSize> smm{};  ///< the one page of address space 1
  std::vector<std::uint16_t> paused;
  std::vector<EventReply> answers;
  std::optional<x86::Exception> injected;
  std::uint64_t set_rip = 0;
  unsigned hook_changes = 0;
  unsigned unhooked = 0;

 private:
  GuestFacts facts_;
  Hooks hooks_{2};
  std::array<x86::PageRights, kPages> rights_{};
};

}  // namespace kvmid::hypervisor
