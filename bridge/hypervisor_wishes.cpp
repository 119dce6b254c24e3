// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_wishes.h"

#include <algorithm>

#include "arch/x86/control_registers.h"

namespace kvmid::bridge {

namespace {

/// Events that come without being asked for: they follow a command, or the bridge has enabled them itself.
bool needs_no_enabling(EventKind kind, kvmi1::DialectId dialect) {
  switch (kind) {
    case EventKind::Unhook:
      return true;
    case EventKind::Pause:
    case EventKind::Trap:
      return dialect != kvmi1::DialectId::Rfc2017;
    case EventKind::Singlestep:
      return dialect == kvmi1::DialectId::V12;
    default:
      return false;
  }
}

/// Events of rfc2017 have kept their bits.
std::uint32_t mask_of(EventSet events) { return static_cast<std::uint32_t>(events.bits); }

std::string names_of(EventSet events) {
  std::string names;
  for (unsigned i = 0; i < kEventCount; ++i) {
    if (!events.has(static_cast<EventKind>(i))) continue;
    if (!names.empty()) names += ", ";
    names += name_of(static_cast<EventKind>(i));
  }
  return names.empty() ? "an event that does not exist" : names;
}

}  // namespace

template <class F>
void HypervisorWishes::each_vcpu(VcpuId named, F f) const {
  if (named != kAllVcpus) return f(named);
  for (std::uint16_t i = 0; i < link_.facts.vcpus; ++i) f(VcpuId{i});
}

// ---- from the core ----

void HypervisorWishes::send(const Command& command, Seq seq, ByteBuffer& wire) {
  Job job{.seq = seq, .id = id_of(command)};
  const auto refuse = [&](ErrorCode error, std::string_view text) { link_.refuse(seq, job.id, error, text); };
  if (!link_.facts.offered_commands.has(job.id))
    return refuse(ErrorCode::NotSupported, "not supported by this hypervisor");
  const bool takes_all = std::holds_alternative<PauseVcpu>(command) || std::holds_alternative<ControlEvents>(command) ||
                         std::holds_alternative<ControlCr>(command) || std::holds_alternative<ControlMsr>(command);
  std::visit(
      [&](const auto& c) {
        if constexpr (requires { c.vcpu; }) job.vcpu = c.vcpu;
      },
      command);
  if (!is_vcpu(job.vcpu) && !(takes_all && job.vcpu == kAllVcpus)) {
    return refuse(ErrorCode::Invalid,
                  "no vCPU " + std::to_string(job.vcpu.value) + ": the guest has " + std::to_string(link_.facts.vcpus));
  }
  std::visit(Overloaded{
                 [&](const PauseVcpu& c) { run(c, std::move(job), wire); },
                 [&](const GetRegisters& c) { run(c, std::move(job), wire); },
                 [&](const SetRegisters& c) {
                   send_one(std::move(job), kvmi1::SetRegisters{c.vcpu, c.regs}, wire);
                 },
                 [&](const GetCpuid& c) {
                   send_one(std::move(job), kvmi1::GetCpuid{c.vcpu, c.function, c.index}, wire);
                 },
                 [&](const InjectException& c) { run(c, std::move(job), wire); },
                 [&](const ControlEvents& c) { run(c, std::move(job), wire); },
                 [&](const ControlCr& c) { run(c, std::move(job), wire); },
                 [&](const ControlMsr& c) { run(c, std::move(job), wire); },
                 [&](const TranslateGva& c) {
                   send_one(std::move(job), kvmi1::TranslateGva{c.vcpu, c.gva}, wire);
                 },
                 [&](const ControlSinglestep& c) { run(c, std::move(job), wire); },
                 [&](const GetXsave& c) { send_one(std::move(job), kvmi1::GetXsave{c.vcpu}, wire); },
                 [&](const SetXsave& c) { run(c, std::move(job), wire); },
                 [&](const GetXcr& c) { run(c, std::move(job), wire); },
                 [&](const ShutdownGuest&) {
                   if (!link_.has<kvmi1::ShutdownGuest>()) return refuse(ErrorCode::NotSupported, "not in its dialect");
                   send_one(std::move(job), kvmi1::ShutdownGuest{}, wire);
                 },
                 [&](const auto&) { refuse(ErrorCode::NotServed, "not served here"); },
             },
             command);
}

void HypervisorWishes::run(const PauseVcpu& command, Job job, ByteBuffer& wire) {
  const auto [id, added] = jobs_.add(std::move(job));
  each_vcpu(command.vcpu, [&, id = id, added = added](VcpuId vcpu) {
    part(id, *added, kvmi1::PauseVcpu{vcpu, false}, wire);
  });
}

/// A reply has room for so many.
std::size_t HypervisorWishes::msrs_max() const {
  constexpr std::size_t kFixed = 480;  // of v6, v7 and v12; less in rfc2017
  return (link_.codec().payload_max() - kFixed) / sizeof(kvmi_x86_msr);
}

void HypervisorWishes::run(const GetRegisters& command, Job job, ByteBuffer& wire) {
  constexpr std::size_t kMsrsMax =
      (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_registers_reply)) / sizeof(kvmi_x86_msr);
  if (command.msrs.size() > kMsrsMax) {
    return link_.refuse(job.seq, job.id, ErrorCode::TooBig,
                        std::to_string(command.msrs.size()) + " MSRs do not fit into a message");
  }
  const auto [id, added] = jobs_.add(std::move(job));
  added->body = GetRegistersReply{};
  added->msrs.resize(command.msrs.size());
  for (std::size_t i = 0; i < command.msrs.size(); ++i) added->msrs[i].index = command.msrs[i];
  for (std::size_t at = 0; at == 0 || at < command.msrs.size(); at += msrs_max()) {
    const std::size_t count = std::min(msrs_max(), command.msrs.size() - at);
    const Bytes indices = command.msrs.bytes().subspan(at * sizeof(std::uint32_t), count * sizeof(std::uint32_t));
    part(id, *added, kvmi1::GetRegisters{command.vcpu, WireArray<std::uint32_t>(indices)}, wire);
  }
}

void HypervisorWishes::run(const SetXsave& command, Job job, ByteBuffer& wire) {
  const bool exact = link_.dialect() == kvmi1::DialectId::V12;
  if (command.area.size() > kvmi1::kXsaveSize || (exact && command.area.size() != kvmi1::kXsaveSize)) {
    return link_.refuse(job.seq, job.id, ErrorCode::Invalid,
                        "the XSAVE area of this hypervisor has " + std::to_string(kvmi1::kXsaveSize) + " bytes, not " +
                            std::to_string(command.area.size()));
  }
  send_one(std::move(job), kvmi1::SetXsave{command.vcpu, command.area}, wire);
}

void HypervisorWishes::run(const GetXcr& command, Job job, ByteBuffer& wire) {
  if (command.xcr != 0) return link_.refuse(job.seq, job.id, ErrorCode::Invalid, "XCR0 is the only one");
  send_one(std::move(job), kvmi1::GetXcr{command.vcpu, 0}, wire);
}

void HypervisorWishes::run(const InjectException& c, Job job, ByteBuffer& wire) {
  constexpr std::uint8_t kBreakpointVector = 3, kPageFaultVector = 14;
  job.vector = c.vector;
  if (link_.dialect() != kvmi1::DialectId::Rfc2017) {
    return send_one(std::move(job), kvmi1::InjectException{c.vcpu, c.vector, c.has_error_code, c.error_code, c.address},
                    wire);
  }
  if (c.vector == kBreakpointVector) return send_one(std::move(job), kvmi1::InjectBreakpoint{c.vcpu}, wire);
  if (c.vector == kPageFaultVector)
    return send_one(std::move(job), kvmi1::InjectPageFault{c.vcpu, c.error_code, Gva{c.address}}, wire);
  link_.refuse(job.seq, job.id, ErrorCode::NotSupported,
               "in the dialect rfc2017 only vectors 3 and 14 can be injected");
}

void HypervisorWishes::run(const ControlEvents& command, Job job, ByteBuffer& wire) {
  if (command.role != Role::Decider) {
    return link_.refuse(job.seq, job.id, ErrorCode::NotSupported,
                        "a hypervisor waits for every reply; observers are kvmid's business");
  }
  const EventSet missing{command.events.bits & ~link_.facts.offered_events.bits};
  if (missing.bits != 0 && command.operation != Operation::Disable) {
    return link_.refuse(job.seq, job.id, ErrorCode::NotSupported,
                        "not offered by this hypervisor: " + names_of(missing));
  }
  const auto [id, added] = jobs_.add(std::move(job));
  each_vcpu(command.vcpu, [&, id = id, added = added](VcpuId vcpu) {
    const EventSet before = told_[vcpu.value];
    EventSet after = before;
    switch (command.operation) {
      case Operation::Set:
        after.bits = command.events.bits;
        break;
      case Operation::Enable:
        after.bits |= command.events.bits;
        break;
      case Operation::Disable:
        after.bits &= ~command.events.bits;
        break;
    }
    if (after == before) return;
    added->events.emplace_back(vcpu, before);
    tell_events(id, *added, vcpu, before, after, wire);
    told_[vcpu.value] = after;
  });
  added->body = ControlEventsReply{told_to_all(command.vcpu)};
  settle(id, *added, wire);  // nothing may have to be told
}

void HypervisorWishes::tell_events(std::uint32_t id, Job& job, VcpuId vcpu, EventSet before, EventSet after,
                                   ByteBuffer& wire) {
  if (link_.dialect() == kvmi1::DialectId::Rfc2017)
    return part(id, job, kvmi1::SetEvents{vcpu, mask_of(after)}, kvmi1::SetEvents{vcpu, mask_of(before)}, wire);
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    const bool enable = after.has(kind);
    const auto number = link_.codec().number_of(kind);
    if (enable == before.has(kind) || !number || needs_no_enabling(kind, link_.dialect())) continue;
    if (kind == EventKind::CreateVcpu) {
      // The guest's, not a vCPU's: told with the first that wants it, and with the last that does not any more.
      const auto wanting = std::count_if(told_.begin(), told_.end(), [kind](EventSet e) { return e.has(kind); });
      if (wanting != (enable ? 0 : 1)) continue;
      part(id, job, kvmi1::ControlVmEvents{*number, enable}, kvmi1::ControlVmEvents{*number, !enable}, wire);
    } else {
      part(id, job, kvmi1::ControlEvents{vcpu, *number, enable}, kvmi1::ControlEvents{vcpu, *number, !enable}, wire);
    }
  }
}

void HypervisorWishes::run(const ControlCr& command, Job job, ByteBuffer& wire) {
  if (!x86::is_trackable_cr(command.cr)) {
    return link_.refuse(job.seq, job.id, ErrorCode::Invalid,
                        "CR" + std::to_string(command.cr) + " cannot be watched: only CR0, CR3 and CR4");
  }
  const bool enable = command.enable;
  const auto [id, added] = jobs_.add(std::move(job));
  each_vcpu(command.vcpu, [&, id = id, added = added](VcpuId vcpu) {
    if (link_.dialect() != kvmi1::DialectId::Rfc2017) {
      part(id, *added, kvmi1::ControlCr{vcpu, enable, command.cr}, kvmi1::ControlCr{vcpu, !enable, command.cr}, wire);
    } else if (track(*added, {false, command.cr}, vcpu, enable)) {
      part(id, *added, kvmi1::ControlGuestCr{enable, command.cr}, kvmi1::ControlGuestCr{!enable, command.cr}, wire);
    }
  });
  settle(id, *added, wire);
}

void HypervisorWishes::run(const ControlMsr& command, Job job, ByteBuffer& wire) {
  const bool enable = command.enable;
  const auto [id, added] = jobs_.add(std::move(job));
  each_vcpu(command.vcpu, [&, id = id, added = added](VcpuId vcpu) {
    if (link_.dialect() != kvmi1::DialectId::Rfc2017) {
      part(id, *added, kvmi1::ControlMsr{vcpu, enable, command.msr}, kvmi1::ControlMsr{vcpu, !enable, command.msr},
           wire);
    } else if (track(*added, {true, command.msr}, vcpu, enable)) {
      part(id, *added, kvmi1::ControlGuestMsr{enable, command.msr}, kvmi1::ControlGuestMsr{!enable, command.msr}, wire);
    }
  });
  settle(id, *added, wire);
}

void HypervisorWishes::run(const ControlSinglestep& command, Job job, ByteBuffer& wire) {
  send_one(std::move(job), kvmi1::ControlSinglestep{command.vcpu, command.enable}, wire);
}

bool HypervisorWishes::track(Job& job, const TrackedRegister& which, VcpuId vcpu, bool enable) {
  auto& wanting = tracked_[which];
  wanting.resize(link_.facts.vcpus);
  const auto others = std::count(wanting.begin(), wanting.end(), true) - (wanting[vcpu.value] ? 1 : 0);
  const bool changed = wanting[vcpu.value] != enable;
  if (changed) job.tracked.push_back(vcpu);
  job.tracks = {which, enable};
  wanting[vcpu.value] = enable;
  if (others == 0 && !enable) tracked_.erase(which);
  return changed && others == 0;
}

EventSet HypervisorWishes::told_to_all(VcpuId named) const {
  EventSet all = link_.facts.offered_events;
  each_vcpu(named, [&](VcpuId vcpu) { all.bits &= told_[vcpu.value].bits; });
  return all;
}

void HypervisorWishes::forget(VcpuId vcpu) {
  // VM events are the guest's: they are not forgotten.
  told_[vcpu.value].bits &= KVMI_EVENT_BIT(KVMI_EVENT_UNHOOK) | KVMI_EVENT_BIT(KVMI_EVENT_CREATE_VCPU);
}

// ---- parts ----

void HypervisorWishes::send_one(Job job, const kvmi1::Command& command, ByteBuffer& wire) {
  const auto [id, added] = jobs_.add(std::move(job));
  part(id, *added, command, wire);
}

void HypervisorWishes::part(std::uint32_t id, Job& job, const kvmi1::Command& command, ByteBuffer& wire) {
  link_.ask(command, AskedBy::Wishes, id, job.parts++, wire);
  ++job.open;
}

void HypervisorWishes::part(std::uint32_t id, Job& job, const kvmi1::Command& command, const kvmi1::Command& opposite,
                            ByteBuffer& wire) {
  part(id, job, command, wire);
  job.opposites.push_back(opposite);
  job.taken.push_back(false);
}

// ---- from the hypervisor ----

Kept HypervisorWishes::replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire) {
  Job& job = jobs_.at(asked.job);
  --job.open;
  if (!job.undoing) {
    if (reply.error != 0) {
      if (job.failure.error == ErrorCode::None) job.failure = link_.failure_of(asked, reply.error);
      // v6 and v7 have changed the event's bit before they try what fails.
      const bool changed_nevertheless = asked.kind == kvmi1::kind_of<kvmi1::ControlEvents> &&
                                        reply.error == -kvmi1::kEopnotsupp && link_.dialect() != kvmi1::DialectId::V12;
      if (changed_nevertheless && asked.part < job.taken.size()) job.taken[asked.part] = true;
    } else {
      if (asked.part < job.taken.size()) job.taken[asked.part] = true;
      if (auto kept = take(asked, reply, job); !kept) return kept;
    }
  }
  settle(asked.job, job, wire);
  return {};
}

/// What the reply brings. Errors: it brings something else.
Kept HypervisorWishes::take(const Asked& asked, const kvmi1::Reply& reply, Job& job) {
  const auto missing = [&] { return link_.broken(asked, "without what was asked for"); };
  switch (job.id) {
    case CommandId::GetRegisters:
      return take_registers(asked, reply, job);
    case CommandId::GetCpuid: {
      const auto* leaf = link_.body_of<kvmi1::GetCpuidReply>(reply);
      if (leaf == nullptr) return missing();
      job.body = GetCpuidReply{leaf->eax, leaf->ebx, leaf->ecx, leaf->edx};
      return {};
    }
    case CommandId::TranslateGva: {
      const auto* translated = link_.body_of<kvmi1::TranslateGvaReply>(reply);
      if (translated == nullptr) return missing();
      if (translated->gpa == kvmi1::kNoAddress)
        job.failure = {ErrorCode::Fault, "the guest has not mapped this address"};
      job.body = TranslateGvaReply{.gpa = Gpa{translated->gpa}};
      return {};
    }
    case CommandId::GetXsave: {
      const auto* xsave = link_.body_of<kvmi1::GetXsaveReply>(reply);
      if (xsave == nullptr) return missing();
      job.body = GetXsaveReply{xsave->area};  // the frame's: it is answered with this message
      return {};
    }
    case CommandId::GetXcr: {
      const auto* xcr = link_.body_of<kvmi1::GetXcrReply>(reply);
      if (xcr == nullptr) return missing();
      job.body = GetXcrReply{xcr->value};
      return {};
    }
    case CommandId::InjectException:
      events_.injected(job.vcpu, job.vector);
      return {};
    default:
      return {};
  }
}

Kept HypervisorWishes::take_registers(const Asked& asked, const kvmi1::Reply& reply, Job& job) {
  const auto* registers = link_.body_of<kvmi1::GetRegistersReply>(reply);
  if (registers == nullptr) return link_.broken(asked, "without registers");
  const std::size_t at = asked.part * msrs_max();
  const std::size_t count = std::min(msrs_max(), job.msrs.size() - at);
  if (registers->msrs.size() != count) {
    return link_.broken(asked, "with " + std::to_string(registers->msrs.size()) + " MSRs where " +
                                   std::to_string(count) + " were asked for");
  }
  for (std::size_t i = 0; i < count; ++i) job.msrs[at + i].value = registers->msrs[i].value;
  if (asked.part != 0) return {};
  if (registers->mode != 2 && registers->mode != 4 && registers->mode != 8)
    return link_.broken(asked, "with the mode " + std::to_string(registers->mode));
  auto& body = std::get<GetRegistersReply>(job.body);
  body.mode = static_cast<std::uint8_t>(registers->mode);
  body.regs = registers->regs;
  body.sregs = registers->sregs;
  return {};
}

// Telling --refused--> Undoing --answered--> done; Telling --answered--> done
void HypervisorWishes::settle(std::uint32_t id, Job& job, ByteBuffer& wire) {
  if (job.open != 0) return;
  if (job.failure.error == ErrorCode::None || job.undoing) return finish(id, job);
  job.undoing = true;
  for (const auto& [vcpu, before] : job.events) told_[vcpu.value] = before;
  for (const VcpuId vcpu : job.tracked) {
    auto& wanting = tracked_[job.tracks.first];
    wanting.resize(link_.facts.vcpus);
    wanting[vcpu.value] = !job.tracks.second;
  }
  for (std::uint32_t i = 0; i < job.opposites.size(); ++i)
    if (job.taken[i]) part(id, job, job.opposites[i], wire);
  if (job.open == 0) finish(id, job);
}

void HypervisorWishes::finish(std::uint32_t id, Job& job) {
  if (job.failure.error != ErrorCode::None) {
    link_.refuse(job.seq, job.id, job.failure);
  } else if (auto* registers = std::get_if<GetRegistersReply>(&job.body); registers != nullptr && !job.msrs.empty()) {
    const auto bytes = std::as_bytes(std::span(job.msrs));
    std::vector<std::byte> kept(bytes.begin(), bytes.end());
    registers->msrs = WireArray<kvmi_x86_msr>(Bytes(kept));
    link_.answer(job.seq, job.id, job.body, std::move(kept));
  } else {
    link_.answer(job.seq, job.id, job.body);
  }
  jobs_.remove(id);
}

}  // namespace kvmid::bridge
