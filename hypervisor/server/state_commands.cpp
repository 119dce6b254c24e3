// SPDX-License-Identifier: GPL-2.0-or-later
//
// Commands about the state of a processor beyond its registers, about the memory map, and about the guest as a whole.

#include <span>
#include <string>

#include "arch/x86/page_walk.h"
#include "arch/x86/registers.h"
#include "hypervisor/server/commands.h"
#include "hypervisor/server/hex.h"

namespace kvmid::hypervisor {

CommandServer::Outcome CommandServer::run(const ShutdownGuest&) {
  if (!serves(CommandId::ShutdownGuest)) return not_served();
  if (const auto done = backend_.shutdown(); !done) return done.error();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const GetCpuid& command) {
  if (!serves(CommandId::GetCpuid)) return not_served();
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  const auto leaf = backend_.cpuid(command.vcpu, command.function, command.index);
  if (!leaf) return leaf.error();
  return ReplyBody{*leaf};
}

// Any backend can do it: its registers say where the tables are, and its memory holds them - with the patches over it,
// as the processor finds them.
CommandServer::Outcome CommandServer::run(const TranslateGva& command) {
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  const auto state = backend_.registers(command.vcpu);
  if (!state) return state.error();
  const auto& facts = backend_.facts();
  x86::CpuFeatures cpu;
  cpu.physical_address_bits = facts.physical_address_bits;
  cpu.linear_address_bits = facts.linear_address_bits;
  cpu.execute_only = facts.execute_only;
  const auto read = [this](Gpa gpa, void* out, std::size_t bytes) {
    if (!check_memory(AddressSpace::Normal, gpa, bytes)) return false;
    return static_cast<bool>(
        backend_.read_physical(AddressSpace::Normal, gpa, std::span(static_cast<std::byte*>(out), bytes)));
  };
  const auto found = x86::translate(x86::paging_state(state->regs, state->sregs), command.gva, read, cpu);
  if (!found) {
    return Refusal{ErrorCode::Fault, "GVA " + hex(command.gva.value) + " is not mapped: " +
                                         std::string(x86::text_of(found.error().cause))};
  }
  return ReplyBody{TranslateGvaReply{found->gpa, found->page_bytes, found->rights(), found->user}};
}

CommandServer::Outcome CommandServer::run(const GetXsave& command) {
  if (!serves(CommandId::GetXsave)) return not_served();
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  auto area = backend_.xsave(command.vcpu);
  if (!area) return area.error();
  if (area->size() > KVMI_MAX_PAYLOAD - sizeof(kvmi_error)) {
    return Refusal{ErrorCode::TooBig, "an XSAVE area of " + std::to_string(area->size()) +
                                          " bytes does not fit into a message"};
  }
  data_ = std::move(*area);
  return ReplyBody{GetXsaveReply{data_}};
}

CommandServer::Outcome CommandServer::run(const SetXsave& command) {
  if (!serves(CommandId::SetXsave)) return not_served();
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  if (const auto done = backend_.set_xsave(command.vcpu, command.area); !done) return done.error();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const GetXcr& command) {
  if (!serves(CommandId::GetXcr)) return not_served();
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  const auto value = backend_.xcr(command.vcpu, command.xcr);
  if (!value) return value.error();
  return ReplyBody{GetXcrReply{*value}};
}

CommandServer::Outcome CommandServer::run(const GetMemoryMap& command) {
  if (!serves(CommandId::GetMemoryMap)) return not_served();
  auto slots = backend_.memory_map(command.space);
  if (!slots) return slots.error();
  constexpr std::size_t kSlotsMax =
      (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_memory_map_reply)) / sizeof(kvmi_memory_slot);
  if (slots->size() > kSlotsMax) {
    return Refusal{ErrorCode::TooBig, std::to_string(slots->size()) + " slots do not fit into a message: at most " +
                                          std::to_string(kSlotsMax)};
  }
  slots_ = std::move(*slots);
  return ReplyBody{GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots_)}};
}

}  // namespace kvmid::hypervisor
