// SPDX-License-Identifier: GPL-2.0-or-later
// Commands of agents: what is refused, what kvmid answers itself, what becomes a wish, what goes to the hypervisor.
#include <algorithm>

#include "arch/x86/control_registers.h"
#include "arch/x86/exceptions.h"
#include "arch/x86/msrs.h"
#include "daemon/core/guest_machine.h"

namespace kvmid::core {

namespace {

/// The vCPU that a command names, if it names one; `all`: it may name all of them.
struct NamedVcpu {
  VcpuId vcpu;
  bool all = false;
};
std::optional<NamedVcpu> vcpu_of(const Command& command) {
  return std::visit(
      [](const auto& c) -> std::optional<NamedVcpu> {
        using C = std::decay_t<decltype(c)>;
        if constexpr (requires { c.vcpu; }) {
          constexpr bool kAll = std::is_same_v<C, PauseVcpu> || std::is_same_v<C, ControlEvents> ||
                                std::is_same_v<C, ControlCr> || std::is_same_v<C, ControlMsr> ||
                                std::is_same_v<C, SetFilter>;
          return NamedVcpu{c.vcpu, kAll};
        } else {
          return std::nullopt;
        }
      },
      command);
}

constexpr std::string_view kNotSupported = "not supported by this hypervisor";

}  // namespace

/// Refusals that need no hypervisor, in this order: link, policy, support, sense, quota.
std::optional<Refusal> GuestMachine::refusal_of(AgentSlot slot, const Command& command) const {
  const Agent& agent = agents_[slot];
  const CommandId id = id_of(command);
  if (id == CommandId::GetVersion || id == CommandId::GetGuestInfo) return std::nullopt;
  if (id == CommandId::GetGuests)
    return Refusal{ErrorCode::NotServed, "the list of guests is on a control connection (hello without a uuid)"};
  if (!agent.grant.commands.has(id)) return Refusal{ErrorCode::NotPermitted, "policy does not allow this command"};
  if (link_ != Link::Up || stopping_ || unhook_)
    return Refusal{ErrorCode::NoDevice, "the hypervisor of this guest is not connected"};
  if (id == CommandId::GrantMemory && ram_bytes_ == 0)
    return Refusal{ErrorCode::NotSupported, "the hypervisor of this guest shares no RAM"};
  const bool own = id == CommandId::SetFilter || id == CommandId::GrantMemory;  // served here
  if (!own && !version_.commands.has(id)) return Refusal{ErrorCode::NotSupported, kNotSupported};
  if (const auto named = vcpu_of(command))
    if (named->vcpu.value >= vcpus_.size() && !(named->all && named->vcpu == kAllVcpus))
      return Refusal{ErrorCode::Invalid, "no such vCPU"};

  std::optional<Refusal> refusal;
  if (const auto* events = std::get_if<ControlEvents>(&command)) refusal = refusal_of_events(agent, *events);
  if (const auto* pages = std::get_if<SetPageAccess>(&command)) refusal = refusal_of_pages(slot, *pages);
  if (const auto* get = std::get_if<GetPageAccess>(&command)) refusal = refusal_of_pages(*get);
  if (const auto* cr = std::get_if<ControlCr>(&command); cr && !x86::is_trackable_cr(cr->cr))
    refusal = Refusal{ErrorCode::Invalid, "CR 0, 3 and 4 can be tracked"};
  if (const auto* msr = std::get_if<ControlMsr>(&command)) {
    if (!x86::is_trackable_msr(msr->msr))
      refusal = Refusal{ErrorCode::Invalid, "this MSR is outside the ranges that can be tracked"};
    else if (msr->enable && subscriptions_.msrs_of(slot) + untracked(slot, *msr) > agent.grant.quota.msrs_max)
      refusal = Refusal{ErrorCode::Busy, "quota of tracked MSRs (msrs) is used up"};
  }
  if (const auto* pause = std::get_if<PauseVcpu>(&command))
    for_each_vcpu(pause->vcpu, [&](VcpuId vcpu) {
      const VcpuMachine& machine = vcpus_[vcpu.value];
      if (pauses_[vcpu.value].counts[slot] + machine.owed(slot) >= kPausesMax)
        refusal = Refusal{ErrorCode::Busy, "too many pauses of this vCPU are not replied to"};
    });
  if (const auto* write = std::get_if<WritePhysical>(&command)) refusal = refusal_of_write(agent.grant, *write);
  if (const auto* inject = std::get_if<InjectException>(&command)) {
    const kvmi_inject_exception request{inject->vcpu.value, inject->vector, std::uint8_t{inject->has_error_code},
                                        inject->error_code, inject->address};
    if (const auto error = x86::refuse_injection(request)) refusal = Refusal{ErrorCode::Invalid, x86::text_of(*error)};
  }
  return refusal;
}

std::optional<Refusal> GuestMachine::refusal_of_events(const Agent& agent, const ControlEvents& command) const {
  if ((command.events.bits & ~kEveryEvent.bits) != 0)
    return Refusal{ErrorCode::Invalid, "the set names an event that does not exist"};
  if (command.operation == Operation::Disable) return std::nullopt;
  if ((command.events.bits & ~version_.events.bits) != 0) return Refusal{ErrorCode::NotSupported, kNotSupported};
  if ((command.events.bits & ~agent.grant.events.bits) != 0)
    return Refusal{ErrorCode::NotPermitted, "policy does not allow one of these events"};
  if (command.role == Role::Decider && command.events.bits != 0) {
    if ((command.events.bits & agent.demoted.bits) != 0)
      return Refusal{ErrorCode::NotPermitted,
                     "too many deadlines of one of these events were missed: an observer of it until it attaches again"};
    if (agent.grant.role == Role::Observer) return Refusal{ErrorCode::NotPermitted, "policy allows observing only"};
  }
  return std::nullopt;
}

/// On how many vCPUs the command would begin to track its MSR.
std::size_t GuestMachine::untracked(AgentSlot slot, const ControlMsr& command) const {
  std::size_t count = 0;
  for_each_vcpu(command.vcpu, [&](VcpuId vcpu) { count += subscriptions_.has_msr(vcpu, slot, command.msr) ? 0 : 1; });
  return count;
}

void GuestMachine::command_arrived(AgentSlot slot, Seq seq, const Command& command, TimePoint now, Effects& out) {
  ++counters_.commands;
  const auto id = static_cast<std::uint16_t>(id_of(command));
  if (const auto refusal = refusal_of(slot, command)) return refuse(slot, seq, id, refusal->error, refusal->text, out);

  std::visit(
      Overloaded{
          [&](const GetVersion&) {
            const Grant& grant = agents_[slot].grant;
            answer(
                slot, seq,
                {id, {}, {}, GetVersionReply{KVMI_VERSION, KVMI_MAX_PAYLOAD, commands_for(grant), events_for(grant)}},
                out);
          },
          [&](const GetGuestInfo&) {
            answer(slot, seq, {id, {}, {}, facts_}, out);
          },
          [&](const GetPageAccess& c) { answer_page_access(slot, seq, c, out); },
          [&](const SetFilter& c) { set_filter(slot, seq, c, out); },
          [&](const GrantMemory&) { grant_ram(slot, seq, out); },
          [&](const SetRegisters& c) { stage_registers(slot, seq, c, out); },
          [&](const SetXsave& c) { stage_xsave(slot, seq, c, out); },
          [&](const GetRegisters& c) { forward_registers(slot, seq, c, now, out); },
          [&](const ReadPhysical& c) { read_physical(slot, seq, c, now, out); },
          [&](const WritePhysical& c) { write_physical(slot, seq, c, now, out); },
          [&](const GetMemoryMap& c) {
            forward({.slot = slot, .agent_seq = seq, .tag = static_cast<std::uint32_t>(c.space)}, command, now, out);
          },
          [&](const PauseVcpu&) { queue_wish(slot, seq, command, now, out); },
          [&](const SetPageAccess&) { queue_wish(slot, seq, command, now, out); },
          [&](const ControlEvents&) { queue_wish(slot, seq, command, now, out); },
          [&](const ControlCr&) { queue_wish(slot, seq, command, now, out); },
          [&](const ControlMsr&) { queue_wish(slot, seq, command, now, out); },
          [&](const ControlSinglestep&) { queue_wish(slot, seq, command, now, out); },
          [&](const auto& other) {
            VcpuId vcpu;
            if constexpr (requires { other.vcpu; }) vcpu = other.vcpu;
            forward({.slot = slot, .agent_seq = seq, .vcpu = vcpu}, command, now, out);
          },
      },
      command);
}

void GuestMachine::answer(AgentSlot slot, Seq seq, CommandReply reply, Effects& out) {
  out.emplace_back(SendReply{agents_[slot].id, seq, reply});
}

void GuestMachine::refuse(AgentSlot slot, Seq seq, std::uint16_t id, ErrorCode error, std::string_view text,
                          Effects& out, const ReplyBody& body) {
  ++counters_.commands_refused;
  answer(slot, seq, CommandReply{id, error, text, body}, out);
  out.emplace_back(Report{.fact = Fact::CommandRefused,
                          .agent = agents_[slot].id,
                          .seq = seq,
                          .command = static_cast<CommandId>(id),
                          .error = error,
                          .text = text});
}

/// `open` says who asked, and in its tag what the size of the answer is checked against. False: it was refused.
bool GuestMachine::forward(OpenCommand open, const Command& command, TimePoint now, Effects& out) {
  const AgentSlot slot = open.slot;
  const Seq seq = open.agent_seq;
  open.id = id_of(command);
  const auto id = static_cast<std::uint16_t>(open.id);
  Agent& agent = agents_[slot];
  open.purpose = Purpose::Agent;
  open.agent = agent.id;
  if (!agent.requests.charge(1)) {
    refuse(slot, seq, id, ErrorCode::Busy, "quota of open commands (requests) is used up", out);
    return false;
  }
  if (ledger_.size() >= kOpenForAgentsMax || !send_command(command, open, now, out)) {
    agent.requests.release(1);
    refuse(slot, seq, id, ErrorCode::Busy, "the guest has too many open commands", out);
    return false;
  }
  ++counters_.commands_forwarded;
  report_granted(slot, seq, command, out);
  return true;
}

/// Commands that do not change the guest are nobody's business.
void GuestMachine::report_granted(AgentSlot slot, Seq seq, const Command& command, Effects& out) {
  if (!kGuestChanging.has(id_of(command))) return;
  Report report{.fact = Fact::CommandGranted, .agent = agents_[slot].id, .seq = seq, .command = id_of(command)};
  std::visit(
      [&](const auto& c) {
        using C = std::decay_t<decltype(c)>;
        if constexpr (requires { c.vcpu; }) report.vcpu = c.vcpu;
        if constexpr (std::is_same_v<C, InjectException>) report.detail = c.vector;
        if constexpr (std::is_same_v<C, WritePhysical>) {
          report.gpa = c.gpa;
          report.amount = c.data.size();
          report.detail = static_cast<std::uint8_t>(c.flags);
        }
        if constexpr (std::is_same_v<C, SetPageAccess>) {
          report.detail = kRwx;
          for (std::size_t i = 0; i < c.entries.size(); ++i) {
            const kvmi_page_access_entry entry = c.entries[i];
            if (i == 0) report.gpa = Gpa{entry.gpa};
            report.amount += entry.pages;
            report.detail &= entry.access;
          }
        }
      },
      command);
  out.emplace_back(report);
}

void GuestMachine::forward_registers(AgentSlot slot, Seq seq, const GetRegisters& command, TimePoint now,
                                     Effects& out) {
  constexpr std::size_t kMsrsMax =
      (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_registers_reply)) / sizeof(kvmi_x86_msr);
  if (command.msrs.size() > kMsrsMax)
    return refuse(slot, seq, KVMI_MSG_GET_REGISTERS, ErrorCode::TooBig,
                  "the values of so many MSRs are larger than one message", out);
  const auto count = static_cast<std::uint32_t>(command.msrs.size());
  forward({.slot = slot, .agent_seq = seq, .vcpu = command.vcpu, .tag = count}, command, now, out);
}

/// Events that do not match are answered here from now on, and the agent is not told of them.
void GuestMachine::set_filter(AgentSlot slot, Seq seq, const SetFilter& command, Effects& out) {
  const auto refused = [&](ErrorCode error, std::string_view text) {
    refuse(slot, seq, KVMI_MSG_SET_FILTER, error, text, out);
  };
  std::shared_ptr<const Filter> filter;
  if (!command.terms.empty()) {
    const Quota& quota = agents_[slot].grant.quota;
    auto made = Filter::make(command.event, command.action, command.terms);
    if (!made) {
      reply_text_ = describe(made.error());
      return refused(made.error().error, reply_text_);
    }
    if (!agents_[slot].grant.events.has(command.event))
      return refused(ErrorCode::NotPermitted, "policy does not allow this event");
    if (filters_.filters_kept(command.vcpu, slot, command.event) >= quota.filters_max)
      return refused(ErrorCode::Busy, "quota of filters (filters) is used up");
    filter = std::make_shared<const Filter>(std::move(*made));
  }
  filters_.set(command.vcpu, slot, command.event, filter);
  answer(slot, seq, {KVMI_MSG_SET_FILTER, {}, {}, {}}, out);
}

/// A vCPU is changed during an event that the agent decides: kept, and loaded just before the merged reply if its word
/// counts.
std::optional<Refusal> GuestMachine::refusal_to_stage(AgentSlot slot, VcpuId vcpu) const {
  const VcpuMachine& machine = vcpus_[vcpu.value];
  if (machine.waiting() && machine.owes(slot)) return std::nullopt;
  return Refusal{ErrorCode::TryAgain, "the vCPU does not wait for this agent: pause it, or set them during an event"};
}

void GuestMachine::stage_xsave(AgentSlot slot, Seq seq, const SetXsave& command, Effects& out) {
  if (const auto refusal = refusal_to_stage(slot, command.vcpu))
    return refuse(slot, seq, KVMI_MSG_SET_XSAVE, refusal->error, refusal->text, out);
  VcpuMachine& machine = vcpus_[command.vcpu.value];
  std::size_t kept = command.area.size();
  for (const VcpuMachine& other : vcpus_)
    if (&other != &machine && other.waiting()) kept += other.staged_bytes(slot);
  if (kept > kStagedBytesMax)
    return refuse(slot, seq, KVMI_MSG_SET_XSAVE, ErrorCode::Busy,
                  "too many bytes are kept for this agent: reply to the events that they are for", out);
  machine.stage_xsave(slot, command.area);
  report_granted(slot, seq, command, out);
  answer(slot, seq, {KVMI_MSG_SET_XSAVE, {}, {}, {}}, out);
}

void GuestMachine::stage_registers(AgentSlot slot, Seq seq, const SetRegisters& command, Effects& out) {
  if (const auto refusal = refusal_to_stage(slot, command.vcpu))
    return refuse(slot, seq, KVMI_MSG_SET_REGISTERS, refusal->error, refusal->text, out);
  vcpus_[command.vcpu.value].stage_registers(slot, command.regs);
  report_granted(slot, seq, command, out);
  answer(slot, seq, {KVMI_MSG_SET_REGISTERS, {}, {}, {}}, out);
}

}  // namespace kvmid::core
