// SPDX-License-Identifier: GPL-2.0-or-later
// What the commands of kvmid do to the guest of the model.
#include <cstring>

#include "protocol/result.h"
#include "tests/sim/model_hypervisor.h"

namespace kvmid::sim {

ErrorCode ModelHypervisor::carry_out(const Command& command, ReplyBody& body) {
  Wish wish;
  if (Wish::read(command, wish) && wish.id != CommandId::WritePhysical && wish.id != CommandId::PauseVcpu) {
    apply(wish, vcpu_count(), told_);
    if (wish.id == CommandId::ControlEvents) body = ControlEventsReply{};
    return ErrorCode::None;
  }
  return std::visit(
      Overloaded{
          [&](const GetVersion&) {
            body = version_;
            return ErrorCode::None;
          },
          [&](const GetGuestInfo&) {
            GetGuestInfoReply facts;
            facts.vcpu_count = static_cast<std::uint16_t>(vcpus_.size());
            facts.physical_address_bits = 36;
            facts.linear_address_bits = 48;
            facts.max_gpa = kMemoryBytes;
            body = facts;
            return ErrorCode::None;
          },
          [&](const PauseVcpu& c) {
            ++vcpus_.at(c.vcpu.value).pauses;
            return ErrorCode::None;
          },
          [&](const SetRegisters& c) {
            Vcpu& vcpu = vcpus_.at(c.vcpu.value);
            vcpu.rax = c.regs.rax;
            if (c.regs.rip != vcpu.address) {  // it is sent somewhere else: no patch is in its way any more
              vcpu.promised.reset();
              vcpu.must_step = vcpu.passes_once = false;
              vcpu.doing = Doing::Nothing;
            }
            counts_.add(Seen::RegistersStaged);
            return ErrorCode::None;
          },
          [&](const GetRegisters& c) {
            msrs_.assign(c.msrs.size(), kvmi_x86_msr{});
            GetRegistersReply registers;
            registers.msrs = std::span<const kvmi_x86_msr>(msrs_);
            body = registers;
            return ErrorCode::None;
          },
          [&](const ReadPhysical& c) { return read(c, body); },
          [&](const WritePhysical& c) {
            body = WritePhysicalReply{};
            const ErrorCode error = write(c);
            if (error != ErrorCode::None && error != ErrorCode::Stale) body = std::monostate{};
            return error;
          },
          [&](const GetCpuid&) {
            body = GetCpuidReply{};
            return ErrorCode::None;
          },
          [&](const TranslateGva&) {
            body = TranslateGvaReply{Gpa{0}, kPageSize, kAllRights, false};
            return ErrorCode::None;
          },
          [&](const GetXsave&) {
            scratch_.assign(64, std::byte{1});
            body = GetXsaveReply{scratch_};
            return ErrorCode::None;
          },
          [&](const GetXcr&) {
            body = GetXcrReply{1};
            return ErrorCode::None;
          },
          [&](const GetMemoryMap& c) {
            slot_ = {0, kMemoryBytes, static_cast<std::uint16_t>(c.space), 0, 0};
            body = GetMemoryMapReply{std::span<const kvmi_memory_slot>(&slot_, 1)};
            return ErrorCode::None;
          },
          [&](const auto&) { return ErrorCode::None; },
      },
      command);
}

/// The guest's own bytes, whatever lies over them.
ErrorCode ModelHypervisor::read(const ReadPhysical& command, ReplyBody& body) {
  scratch_.clear();
  for (std::size_t i = 0; i < command.ranges.size(); ++i) {
    const kvmi_read_range range = command.ranges[i];
    if (range.gpa >= kMemoryBytes || range.size > kMemoryBytes - range.gpa) return ErrorCode::Fault;
    for (std::uint64_t at = range.gpa; at < range.gpa + range.size; ++at) scratch_.push_back(std::byte{memory_[at]});
  }
  body = ReadPhysicalReply{0, scratch_};
  return ErrorCode::None;
}

ErrorCode ModelHypervisor::write(const WritePhysical& command) {
  const std::uint64_t gpa = command.gpa.value;
  if (gpa >= kMemoryBytes || command.data.size() > kMemoryBytes - gpa) return ErrorCode::Fault;
  if ((command.flags & KVMI_WRITE_UNPATCH) != 0) {
    const Patch* there = told_.patch_at(gpa);
    if (there == nullptr || there->bytes.size() != command.data.size()) return ErrorCode::NoEntry;
    told_.take(gpa);
    return ErrorCode::None;
  }
  if ((command.flags & KVMI_WRITE_EXPECT) != 0)
    for (std::size_t i = 0; i < command.expected.size(); ++i)
      if (std::byte{memory_[gpa + i]} != command.expected[i]) return ErrorCode::Stale;
  if ((command.flags & KVMI_WRITE_PATCH) == 0) {
    std::memcpy(memory_.data() + gpa, command.data.data(), command.data.size());
    return ErrorCode::None;
  }
  const Patch patch{gpa, {command.data.begin(), command.data.end()}};
  for (const Patch& other : told_.patches) {
    const bool same_range = other.gpa == gpa && other.bytes.size() == patch.bytes.size();
    if (!same_range && other.overlaps(patch))
      throw Violation("I2 the hypervisor has the union",
                      "kvmid laid the patch at " + hex(gpa) + " over the one at " + hex(other.gpa));
  }
  told_.put(patch);
  return ErrorCode::None;
}

}  // namespace kvmid::sim
