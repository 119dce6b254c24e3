// SPDX-License-Identifier: GPL-2.0-or-later
// The life of a guest: its agents, its time, and what is known of it. Everything else is in files of its own.
#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

#include <algorithm>

namespace kvmid::core {

GuestMachine::GuestMachine(HypervisorHello hello, GuestLimits limits, std::uint64_t cookie_seed)
    : hello_(std::move(hello)), limits_(limits), generations_{Generations{cookie_seed}, Generations{cookie_seed}} {
  agents_.resize(kAgentsPerGuestMax);
}

// ---- agents ----

std::optional<AgentSlot> GuestMachine::find(AgentId id) const {
  std::optional<AgentSlot> found;
  present_.for_each([&](AgentSlot slot) {
    if (agents_[slot].id == id) found = slot;
  });
  return found;
}

bool GuestMachine::is_present(AgentSlot slot, AgentId id) const {
  return id != AgentId{} && present_.has(slot) && agents_[slot].id == id;
}

Result<void, Refusal> GuestMachine::attach(AgentId id, std::string_view name, const Grant& grant, std::uint32_t flags) {
  if (stopping_) return Refusal{ErrorCode::NoDevice, "kvmid is stopping"};
  if (!known_) return Refusal{ErrorCode::NoEntry, "the guest is not known yet"};
  if (present_.count() == kAgentsPerGuestMax)
    return Refusal{ErrorCode::Busy, "the guest has as many agents as it can have"};
  const auto slot = static_cast<AgentSlot>(std::countr_one(present_.bits()));
  Agent& agent = agents_[slot];
  agent = Agent{};
  agent.id = id;
  agent.name = name;
  agent.grant = grant;
  agent.flags = flags;
  agent.requests = Account{grant.quota.requests_max};
  agent.told_off = link_ != Link::Up;
  present_.add(slot);
  return {};
}

void GuestMachine::on_agent_message(AgentId id, Seq seq, const Downward& message, TimePoint now, Effects& out) {
  const auto slot = find(id);
  if (!slot) return;
  std::visit(Overloaded{
                 [&](const Command& command) { command_arrived(*slot, seq, command, now, out); },
                 [&](const EventReply& reply) { agent_reply(*slot, seq, reply, now, out); },
                 [&](const UnknownMessage& unknown) {
                   ++counters_.commands;
                   refuse(*slot, seq, unknown.id, ErrorCode::NotServed, "no command has this id", out);
                 },
             },
             message);
  proceed(now, out);
}

void GuestMachine::on_agent_malformed(AgentId id, Seq seq, const DecodeError& error, std::string_view text,
                                      TimePoint now, Effects& out) {
  const auto slot = find(id);
  if (!slot) return;
  if (error.id != KVMI_MSG_EVENT_REPLY) {
    ++counters_.commands;
    return refuse(*slot, seq, error.id, ErrorCode::Invalid, text, out);
  }
  // Which vCPU the reply was meant for cannot be trusted; its seq can be looked for.
  VcpuMachine* machine = owing(*slot, seq);
  if (machine == nullptr) return refuse_reply(*slot, seq, VcpuId{}, EventKind{}, ErrorCode::Invalid, text, out);
  machine->default_vote(voter(*slot, *machine));
  refuse_reply(*slot, seq, machine->event().vcpu, machine->event().kind(), ErrorCode::Invalid, text, out);
  settle(*machine, now, out);
  proceed(now, out);
}

// Attached --gone--> nobody: votes first, then rights, wishes and pauses, before anything else is done for the guest.
void GuestMachine::on_agent_lost(AgentId id, TimePoint now, Effects& out) {
  const auto slot = find(id);
  if (!slot) return;
  bool owed = false;
  for_each_waiting([&](VcpuId, VcpuMachine& machine) {
    owed = owed || machine.owes(*slot);
    machine.default_vote(voter(*slot, machine));
    machine.forget(*slot);  // whoever gets its place has not seen this event
    settle(machine, now, out);
  });
  counters_.agents_lost_owing += owed ? 1 : 0;
  withdraw(*slot, now, out);
  proceed(now, out);
}

void GuestMachine::on_grant_changed(AgentId id, const Grant& grant, TimePoint now, Effects& out) {
  const auto slot = find(id);
  if (!slot) return;
  Agent& agent = agents_[*slot];
  agent.grant = grant;
  agent.requests.set_limit(grant.quota.requests_max);
  bool lost = enforce_grant(*slot);
  // What it may not decide any more it does not hold up any more.
  const EventSet allowed = events_for(grant);
  if (ram_granted_.has(*slot) && !commands_for(grant).has(CommandId::GrantMemory)) {
    ram_granted_.remove(*slot);
    out.emplace_back(RevokeRam{id});
    lost = true;
  }
  const bool may_pause = commands_for(grant).has(CommandId::PauseVcpu);
  for_each_waiting([&](VcpuId, VcpuMachine& machine) {
    const EventKind kind = machine.event().kind();
    const bool may = kind == EventKind::Pause ? may_pause : allowed.has(kind) && grant.role == Role::Decider;
    if (may || !machine.owes(*slot)) return;
    machine.default_vote(voter(*slot, machine));
    settle(machine, now, out);
  });
  if (lost) {
    send_revoked(*slot, ErrorCode::NotPermitted,
                 "policy changed: events, commands, page rights, patches or memory were withdrawn", out);
    tell_soon(now, out);
  }
  proceed(now, out);
}

void GuestMachine::on_grant_lost(AgentId id, TimePoint, Effects& out) {
  const auto slot = find(id);
  if (!slot) return;
  constexpr std::string_view kText = "policy changed: no rule lets this agent use this guest any more";
  send_revoked(*slot, ErrorCode::NotPermitted, kText, out);
  out.emplace_back(CloseAgent{id, kText});
}

/// Takes from the tables what policy and hypervisor do not give (any more). True: something was taken.
bool GuestMachine::enforce_grant(AgentSlot slot) {
  const Agent& agent = agents_[slot];
  const CommandSet commands = commands_for(agent.grant);
  const EventSet allowed = commands.has(CommandId::ControlEvents) ? events_for(agent.grant) : EventSet{};
  bool lost = false;
  for_each_vcpu(kAllVcpus, [&](VcpuId vcpu) {
    const std::uint64_t taken = subscriptions_.events_of(vcpu, slot).bits & ~allowed.bits;
    for (unsigned kind = 0; kind < kEventCount; ++kind)
      if (((taken >> kind) & 1U) != 0) subscriptions_.set_event(vcpu, slot, static_cast<EventKind>(kind), std::nullopt);
    lost = lost || taken != 0;
  });
  if (!commands.has(CommandId::ControlCr)) lost = subscriptions_.remove_crs(slot) || lost;
  if (!commands.has(CommandId::ControlMsr)) lost = subscriptions_.remove_msrs(slot) || lost;
  if (!commands.has(CommandId::ControlSinglestep)) lost = subscriptions_.remove_singlestep(slot) || lost;
  if (!commands.has(CommandId::SetPageAccess) && pages_.pages_of(slot) != 0) {
    withdraw_pages(slot);
    lost = true;
  }
  if (!commands.has(CommandId::SetFilter) && filters_.filters_of(slot) != 0) {
    filters_.remove(slot);
    lost = true;
  }
  if (!commands.has(CommandId::WritePhysical) || !version_.events.has(EventKind::Breakpoint))
    lost = forget_patches(slot) || lost;
  if (!commands.has(CommandId::PauseVcpu)) {
    for (PauseState& pause : pauses_) {
      lost = lost || pause.counts[slot] != 0;
      pause.counts[slot] = 0;
    }
  }
  const EventSet observed = agent.grant.role == Role::Observer ? kEveryEvent : agent.demoted;
  if (observed != EventSet{}) lost = subscriptions_.demote(slot, observed) || lost;
  return lost;
}

void GuestMachine::send_revoked(AgentSlot slot, ErrorCode error, std::string_view text, Effects& out) {
  out.emplace_back(SendNotice{agents_[slot].id, Notice{.kind = NoticeKind::Revoked, .error = error, .text = text}});
}

// ---- time ----

void GuestMachine::on_time(TimePoint now, Effects& out) {
  for_each_waiting([&](VcpuId, VcpuMachine& machine) {
    // Waiting --deadline--> a silent agent does not hold the guest: its default is its vote.
    if (planted(Planted::DeadlineIgnored)) return;
    machine.expired(now).for_each([&](AgentSlot slot) { missed(slot, machine, out); });
    settle(machine, now, out);
  });
  step_on_time(now, out);
  proceed(now, out);
  const OpenCommand* oldest = ledger_.oldest();
  if (oldest == nullptr || oldest->deadline > now) return;
  out.emplace_back(Report{.fact = Fact::CommandTimedOut,
                          .agent = oldest->agent,
                          .vcpu = oldest->vcpu,
                          .command = oldest->id,
                          .error = ErrorCode::TimedOut,
                          .text = "no answer in time"});
  break_link("did not answer a command in time", Seq{}, oldest->vcpu, out);
}

std::optional<TimePoint> GuestMachine::next_deadline() const {
  std::optional<TimePoint> earliest;
  const auto consider = [&](std::optional<TimePoint> time) {
    if (time && (!earliest || *time < *earliest)) earliest = time;
  };
  for (std::size_t word = 0; word < waiting_.size(); ++word)
    for (std::uint64_t rest = waiting_[word]; rest != 0; rest &= rest - 1)
      consider(vcpus_[word * 64 + static_cast<unsigned>(std::countr_zero(rest))].next_deadline());
  if (const OpenCommand* oldest = ledger_.oldest()) consider(oldest->deadline);
  consider(step_deadline());
  return earliest;
}

void GuestMachine::stop(TimePoint now, Effects& out) {
  if (stopping_) return;
  stopping_ = true;
  present_.for_each([&](AgentSlot slot) {
    agents_[slot].told_off = false;  // of a guest that is away it is worth knowing that it will not come back
    send_off(slot, OffReason::DaemonStopping, "kvmid is stopping", out);
  });
  if (link_ != Link::Up) return;
  give_up_votes(now, out);
  touch_all_pages();
  tell_soon(now, out);
  proceed(now, out);
}

bool GuestMachine::settled() const {
  if (link_ != Link::Up) return true;
  const bool none_waits = std::all_of(waiting_.begin(), waiting_.end(), [](std::uint64_t word) { return word == 0; });
  return none_waits && kept_count_ == 0 && step_.phase == StepOver::Phase::Idle && !busy_ && wishes_.empty() && ledger_.size() == 0;
}

// ---- what it knows ----

CommandSet GuestMachine::commands_for(const Grant& grant) const {
  // What kvmid serves of what this hypervisor has; the rest is not in the mask, so nobody is surprised.
  CommandSet served{version_.commands.bits & grant.commands.bits};
  for (const CommandId id : {CommandId::GetGuests, CommandId::GrantMemory})
    served.bits &= ~KVMI_COMMAND_BIT(static_cast<unsigned>(id));
  if (ram_bytes_ != 0 && grant.commands.has(CommandId::GrantMemory)) served.add(CommandId::GrantMemory);
  if (grant.commands.has(CommandId::SetFilter)) served.add(CommandId::SetFilter);
  served.add(CommandId::GetVersion);
  served.add(CommandId::GetGuestInfo);
  return served;
}

EventSet GuestMachine::events_for(const Grant& grant) const {
  return EventSet{version_.events.bits & grant.events.bits};
}

GuestInfo GuestMachine::info() const {
  GuestInfo info;
  info.online = online();
  info.version = version_;
  info.facts = facts_;
  info.counters = counters_;
  for (const VcpuMachine& vcpu : vcpus_) {
    VcpuInfo& entry = info.vcpus.emplace_back();
    entry.waiting = vcpu.waiting();
    entry.held = kept_[info.vcpus.size() - 1].has_value();
    if (!entry.waiting) continue;
    entry.event = vcpu.event().kind();
    entry.event_seq = vcpu.event_seq();
    entry.since = vcpu.since();
    vcpu.pending().for_each([&](AgentSlot slot) { entry.waits_for.push_back(agents_[slot].id); });
  }
  present_.for_each([&](AgentSlot slot) {
    const Agent& agent = agents_[slot];
    AgentInfo entry{.id = agent.id,
                    .name = agent.name,
                    .rule = agent.grant.rule,
                    .role = agent.grant.role,
                    .priority = agent.grant.priority,
                    .deadline = agent.grant.deadline,
                    .strikes = *std::max_element(agent.strikes.begin(), agent.strikes.end()),
                    .demoted = agent.demoted,
                    .requests_open = agent.requests.held(),
                    .expired = agent.expired,
                    .pages = pages_.pages_of(slot),
                    .patches = patches_.patches_of(slot),
                    .filters = filters_.filters_of(slot),
                    .filtered = agent.filtered};
    for_each_vcpu(kAllVcpus, [&](VcpuId vcpu) { entry.events.bits |= subscriptions_.events_of(vcpu, slot).bits; });
    info.agents.push_back(std::move(entry));
  });
  return info;
}

}  // namespace kvmid::core
