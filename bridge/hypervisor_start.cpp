// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_start.h"

#include <algorithm>
#include <bit>

namespace kvmid::bridge {

namespace {

constexpr std::uint16_t kGetVersionNumber = 2;  ///< of v6, v7 and v12
constexpr std::uint32_t kAddressWidthLeaf = 0x80000008;
constexpr unsigned kPhysicalBitsMax = 52;

/// What of KVMI 2 this hypervisor's commands and events are enough for.
void offer(HypervisorFacts& facts, bool is_2017) {
  using namespace kvmi1;
  CommandSet commands;
  const auto add = [&](CommandId id, bool can) {
    if (can) commands.add(id);
  };
  EventSet events;
  const auto tell = [&](EventKind kind, bool can) {
    if (can && facts.events.has(kind)) events.add(kind);
  };
  const bool controls = is_2017 ? facts.allows<SetEvents>() : facts.allows<kvmi1::ControlEvents>();
  const bool vm_events = facts.allows<ControlVmEvents>();
  const bool crs = is_2017 ? facts.allows<ControlGuestCr>() : facts.allows<kvmi1::ControlCr>();
  const bool msrs = is_2017 ? facts.allows<ControlGuestMsr>() : facts.allows<kvmi1::ControlMsr>();
  const bool pages = is_2017 ? facts.allows<SetVcpuPageAccess>() : facts.allows<kvmi1::SetPageAccess>();
  // A pause and an injection are always followed by their event: a hypervisor that may not send it refuses them, or
  // closes the connection.
  const bool pauses = facts.allows<kvmi1::PauseVcpu>() && facts.events.has(EventKind::Pause);
  const bool injects = is_2017 ? facts.allows<InjectPageFault, InjectBreakpoint>()
                               : facts.allows<kvmi1::InjectException>() && facts.events.has(EventKind::Trap);
  const bool steps =
      facts.singlestep && facts.allows<kvmi1::ControlSinglestep>() && facts.events.has(EventKind::Singlestep);

  commands.add(CommandId::GetVersion);
  commands.add(CommandId::GetGuestInfo);
  add(CommandId::PauseVcpu, pauses);
  add(CommandId::GetRegisters, facts.allows<kvmi1::GetRegisters>());
  add(CommandId::SetRegisters, facts.allows<kvmi1::SetRegisters>());
  add(CommandId::ShutdownGuest, facts.allows<kvmi1::ShutdownGuest>());
  add(CommandId::GetCpuid, facts.allows<kvmi1::GetCpuid>());
  add(CommandId::GetPageAccess, pages);  // the core answers it from what it has told
  add(CommandId::SetPageAccess, pages);
  add(CommandId::InjectException, injects);
  add(CommandId::ReadPhysical, facts.allows<kvmi1::ReadPhysical>());
  add(CommandId::WritePhysical, facts.allows<kvmi1::WritePhysical>());
  add(CommandId::ControlEvents, controls);
  add(CommandId::ControlCr, crs);
  add(CommandId::ControlMsr, msrs);
  add(CommandId::TranslateGva, facts.allows<kvmi1::TranslateGva>());
  add(CommandId::ControlSinglestep, steps);
  add(CommandId::GetXsave, facts.allows<kvmi1::GetXsave>());
  add(CommandId::SetXsave, facts.allows<kvmi1::SetXsave>());
  add(CommandId::GetXcr, facts.allows<kvmi1::GetXcr>());

  tell(EventKind::Unhook, vm_events);
  tell(EventKind::CreateVcpu, vm_events);
  tell(EventKind::Cr, controls && crs);
  tell(EventKind::Msr, controls && msrs);
  tell(EventKind::PageFault, controls && pages);
  tell(EventKind::Pause, pauses);
  tell(EventKind::Trap, injects && (!is_2017 || controls));
  tell(EventKind::Singlestep, steps);
  for (const EventKind kind :
       {EventKind::Xsetbv, EventKind::Breakpoint, EventKind::Hypercall, EventKind::Descriptor, EventKind::Cpuid}) {
    tell(kind, controls);
  }
  facts.offered_commands = commands;
  facts.offered_events = events;
}

}  // namespace

// Idle --the core asks--> Version
void HypervisorStart::begin(ByteBuffer& wire) {
  state_ = State::Version;
  if (link_.speaks()) return ask(kvmi1::GetVersion{}, wire);
  version_seq_ = link_.next_seq();
  ++open_;
  kvmi1::encode_get_version(version_seq_, wire);
}

Kept HypervisorStart::find_dialect(const Frame& frame) {
  if (state_ != State::Version || frame.id != kGetVersionNumber || frame.seq != version_seq_)
    return "sent a message (id " + std::to_string(frame.id) + ") that does not answer GET_VERSION";
  const auto dialect = kvmi1::dialect_of_version_reply(frame.payload);
  if (!dialect)
    return "answered GET_VERSION with " + std::to_string(frame.payload.size()) +
           " bytes, which is no dialect that is known: name it in the configuration";
  link_.speak(*dialect);
  link_.expect(kvmi1::kind_of<kvmi1::GetVersion>, version_seq_, AskedBy::Start, 0, 0);
  return {};
}

void HypervisorStart::ask(const kvmi1::Command& command, ByteBuffer& wire, std::uint32_t about) {
  link_.ask(command, AskedBy::Start, 0, about, wire);
  ++open_;
}

Kept HypervisorStart::replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire) {
  --open_;
  if (asked.kind == kvmi1::kind_of<kvmi1::GetVersion>) {
    if (reply.error != 0) return link_.failure_of(asked, reply.error).text;
    return version_told(asked, link_.body_of<kvmi1::GetVersionReply>(reply), wire);
  }
  if (auto kept = fact_told(asked, reply); !kept) return kept;
  return open_ == 0 ? finish() : Kept{};
}

// Version --told--> Facts
Kept HypervisorStart::version_told(const Asked& asked, const kvmi1::GetVersionReply* version, ByteBuffer& wire) {
  if (version == nullptr) return link_.broken(asked, "without its version");
  if (version->version == 0) return link_.broken(asked, "with version 0");
  state_ = State::Facts;
  HypervisorFacts& facts = link_.facts;
  // v7's library has no name for this feature, and its kernels may leave it out; CHECK_COMMAND says more there.
  facts.singlestep = version->singlestep || link_.dialect() == kvmi1::DialectId::V7;
  if (link_.dialect() == kvmi1::DialectId::Rfc2017) {
    // It has no questions about rights.
    for (std::size_t i = 0; i < kvmi1::kCommandCount; ++i)
      facts.commands.set(i, link_.codec().number_of(static_cast<kvmi1::CommandKind>(i)).has_value());
    for (unsigned i = 0; i < kEventCount; ++i)
      if (link_.codec().number_of(static_cast<EventKind>(i))) facts.events.add(static_cast<EventKind>(i));
  } else {
    ask_what_is_allowed(wire);
  }
  ask(kvmi1::GetGuestInfo{}, wire);
  if (link_.has<kvmi1::GetVcpuInfo>()) ask(kvmi1::GetVcpuInfo{VcpuId{0}}, wire);
  if (link_.has<kvmi1::GetMaxGfn>()) ask(kvmi1::GetMaxGfn{}, wire);
  if (link_.has<kvmi1::GetCpuid>()) ask(kvmi1::GetCpuid{VcpuId{0}, kAddressWidthLeaf, 0}, wire);
  return {};
}

void HypervisorStart::ask_what_is_allowed(ByteBuffer& wire) {
  for (std::size_t i = 0; i < kvmi1::kCommandCount; ++i) {
    const auto kind = static_cast<kvmi1::CommandKind>(i);
    const auto number = link_.codec().number_of(kind);
    if (!number) continue;
    const bool always = kind == kvmi1::kind_of<kvmi1::GetVersion> || kind == kvmi1::kind_of<kvmi1::CheckCommand> ||
                        kind == kvmi1::kind_of<kvmi1::CheckEvent>;
    if (always) {
      link_.facts.commands.set(i);
    } else {
      ask(kvmi1::CheckCommand{*number}, wire, static_cast<std::uint32_t>(i));
    }
  }
  for (std::uint32_t i = 0; i < kEventCount; ++i)
    if (const auto number = link_.codec().number_of(static_cast<EventKind>(i)))
      ask(kvmi1::CheckEvent{*number}, wire, i);
}

Kept HypervisorStart::fact_told(const Asked& asked, const kvmi1::Reply& reply) {
  HypervisorFacts& facts = link_.facts;
  const bool good = reply.error == 0;
  if (asked.kind == kvmi1::kind_of<kvmi1::CheckCommand>) {
    facts.commands.set(asked.part, good);
    return {};
  }
  if (asked.kind == kvmi1::kind_of<kvmi1::CheckEvent>) {
    if (good) facts.events.add(static_cast<EventKind>(asked.part));
    return {};
  }
  if (asked.kind == kvmi1::kind_of<kvmi1::GetGuestInfo>) {
    if (!good) return link_.failure_of(asked, reply.error).text;
    const auto* info = link_.body_of<kvmi1::GetGuestInfoReply>(reply);
    if (info == nullptr) return link_.broken(asked, "without the number of vCPUs");
    if (info->vcpu_count == 0 || info->vcpu_count >= kAllVcpus.value)
      return link_.broken(asked, "with " + std::to_string(info->vcpu_count) + " vCPUs");
    facts.vcpus = static_cast<std::uint16_t>(info->vcpu_count);
    if (info->tsc_hz != 0) facts.tsc_hz = info->tsc_hz;
    return {};
  }
  if (!good) return {};
  if (const auto* info = link_.body_of<kvmi1::GetVcpuInfoReply>(reply)) {
    facts.tsc_hz = info->tsc_hz;
  } else if (const auto* gfn = link_.body_of<kvmi1::GfnReply>(reply)) {
    // More than a processor can address is no reason to lose the guest.
    facts.max_gpa = std::min<std::uint64_t>(gfn->gfn.value, std::uint64_t{1} << (kPhysicalBitsMax - kPageShift))
                    << kPageShift;
  } else if (const auto* leaf = link_.body_of<kvmi1::GetCpuidReply>(reply)) {
    const unsigned physical = leaf->eax & 0xffU;
    const unsigned linear = (leaf->eax >> 8U) & 0xffU;
    if (physical >= 32 && physical <= kPhysicalBitsMax)
      facts.physical_address_bits = static_cast<std::uint8_t>(physical);
    if (linear >= 32 && linear <= 57) facts.linear_address_bits = static_cast<std::uint8_t>(linear);
  } else {
    return link_.broken(asked, "without what was asked for");
  }
  return {};
}

// Facts --all told--> Done
Kept HypervisorStart::finish() {
  HypervisorFacts& facts = link_.facts;
  if (facts.max_gpa == 0) facts.max_gpa = std::min(max_gpa_, std::uint64_t{1} << kPhysicalBitsMax);
  // Not known: whatever the processor can address may be memory.
  if (facts.max_gpa == 0) facts.max_gpa = std::uint64_t{1} << facts.physical_address_bits;
  const auto needed = static_cast<std::uint8_t>(std::bit_width(facts.max_gpa - 1));
  facts.physical_address_bits = std::max(facts.physical_address_bits, needed);
  offer(facts, link_.dialect() == kvmi1::DialectId::Rfc2017);
  state_ = State::Done;
  return {};
}

}  // namespace kvmid::bridge
