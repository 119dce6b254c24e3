// SPDX-License-Identifier: GPL-2.0-or-later
// The life of a guest: its link, its agents, its time. Events, commands and wishes are in files of their own.
#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

#include <algorithm>

namespace kvmid::core {

namespace {
constexpr std::string_view kGone = "the hypervisor is gone";
}

GuestMachine::GuestMachine(HypervisorHello hello, GuestLimits limits) : hello_(std::move(hello)), limits_(limits) {
  agents_.resize(kAgentsPerGuestMax);
}

// ---- link ----

// Down --connected--> AskingVersion
void GuestMachine::on_hypervisor_connected(const HypervisorHello& hello, TimePoint now, Effects& out) {
  if (link_ != Link::Down) return;  // the shell refuses a second hypervisor before it comes here
  if (known_ && hello.start_time != hello_.start_time) {
    // The guest was started anew: pages and MSRs that agents named belong to the one that is gone.
    drop_agents("the guest was started anew", out);
    known_ = false;
  }
  hello_ = hello;
  link_ = Link::AskingVersion;
  send_command(GetVersion{}, OpenCommand{.id = CommandId::GetVersion, .purpose = Purpose::LinkUp}, now, out);
}

void GuestMachine::drop_agents(std::string_view text, Effects& out) {
  present_.for_each([&](AgentSlot slot) {
    const AgentId id = agents_[slot].id;
    out.emplace_back(SendGuestOff{id, OffReason::Reset, text});
    out.emplace_back(CloseAgent{id, text});
    subscriptions_.remove(slot);
    pages_.remove(slot, [](PageRange) {});
    forget_patches(slot);
    filters_.remove(slot);
  });
  present_ = {};
}

/// Each going is told once, whatever follows it.
void GuestMachine::send_off(AgentSlot slot, OffReason reason, std::string_view text, Effects& out) {
  if (agents_[slot].told_off) return;
  agents_[slot].told_off = true;
  out.emplace_back(SendGuestOff{agents_[slot].id, reason, text});
}

void GuestMachine::link_reply(const CommandReply& reply, const OpenCommand& open, TimePoint now, Effects& out) {
  if (reply.error != ErrorCode::None) return break_link("refused to say its version or facts", Seq{}, VcpuId{}, out);
  // AskingVersion --version--> AskingInfo
  if (open.id == CommandId::GetVersion) {
    const auto* version = std::get_if<GetVersionReply>(&reply.body);
    if (version == nullptr) return break_link("answered GET_VERSION without its version", Seq{}, VcpuId{}, out);
    version_ = *version;
    version_.events.bits &= kEveryEvent.bits;
    if (version_.version != KVMI_VERSION) return break_link("speaks another version", Seq{}, VcpuId{}, out);
    link_ = Link::AskingInfo;
    send_command(GetGuestInfo{}, OpenCommand{.id = CommandId::GetGuestInfo, .purpose = Purpose::LinkUp}, now, out);
    return;
  }
  // AskingInfo --info--> Up: what agents still wish is told again.
  const auto* info = std::get_if<GetGuestInfoReply>(&reply.body);
  if (info == nullptr) return break_link("answered GET_GUEST_INFO without its facts", Seq{}, VcpuId{}, out);
  const GetGuestInfoReply facts = *info;
  if (facts.vcpu_count == 0 || facts.vcpu_count > kVcpusMax)
    return break_link("has no vCPU, or more than can be served", Seq{}, VcpuId{}, out);
  if (facts.arch != KVMI_ARCH_X86) return break_link("has an architecture that is not known", Seq{}, VcpuId{}, out);
  if (known_ && facts.vcpu_count != facts_.vcpu_count)
    drop_agents("the guest came back with another number of vCPUs", out);
  if (!known_ || facts.vcpu_count != facts_.vcpu_count) {
    subscriptions_ = Subscriptions(facts.vcpu_count);
    filters_ = FilterTable(facts.vcpu_count);
    vcpus_.assign(facts.vcpu_count, VcpuMachine{});
    waiting_.assign((facts.vcpu_count + 63U) / 64U, 0);
  }
  facts_ = facts;
  known_ = true;
  told_.assign(facts.vcpu_count, {});
  anew_.assign(facts.vcpu_count, false);
  told_pages_.clear();
  touched_pages_.clear();
  pauses_.assign(facts.vcpu_count, PauseState{false, false, std::vector<std::uint16_t>(kAgentsPerGuestMax, 0)});
  forget_steps();
  steps_refused_ = false;
  unhook_.reset();
  link_ = Link::Up;
  if (ram_bytes_ != 0) ask_for_map(now, out);
  out.emplace_back(GuestReady{});
  out.emplace_back(Report{.fact = Fact::Linked, .text = "hypervisor is connected"});
  present_.for_each([&](AgentSlot slot) {
    // It may have come back with less than it had.
    if (enforce_grant(slot))
      send_revoked(slot, ErrorCode::NotSupported, "the hypervisor came back without some of the events or commands",
                   out);
  });
  if (!present_.any()) return;
  touch_all_pages();
  guest_on_ = tell_soon(now, out);
}

/// Agents whose guest was away learn that it is back when it has all that they wish of it.
void GuestMachine::tell_guest_on(Effects& out) {
  if (guest_on_ == 0 || told_done_ < guest_on_ || link_ != Link::Up) return;
  guest_on_ = 0;
  present_.for_each([&](AgentSlot slot) {
    if (agents_[slot].told_off) out.emplace_back(SendGuestOn{agents_[slot].id});
    agents_[slot].told_off = false;
  });
}

void GuestMachine::on_hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out) {
  hypervisor_message(seq, message, now, out);
  proceed(now, out);
}

void GuestMachine::hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out) {
  if (link_ == Link::Down) return;
  if (const auto* event = std::get_if<Event>(&message)) return event_arrived(seq, *event, now, out);
  if (const auto* change = std::get_if<MemoryMapChanged>(&message)) return map_changed(*change, now, out);
  const auto* reply = std::get_if<CommandReply>(&message);
  if (reply == nullptr) return break_link("sent a message that hypervisors do not send", seq, VcpuId{}, out);

  const auto open = ledger_.close(seq);
  if (!open) return break_link("answered a command that is not open", seq, VcpuId{}, out);
  const auto broken = [&](std::string_view text) {
    // Out of the ledger already, so it is not among those that the loss of the link answers.
    if (open->purpose == Purpose::Agent && is_present(open->slot, open->agent)) {
      agents_[open->slot].requests.release(1);
      refuse(open->slot, open->agent_seq, static_cast<std::uint16_t>(open->id), ErrorCode::NoDevice, kGone, out);
    }
    break_link(text, seq, VcpuId{}, out);
  };
  if (reply->id != static_cast<std::uint16_t>(open->id)) return broken("answered with the id of another command");

  switch (open->purpose) {
    case Purpose::LinkUp:
      return link_reply(*reply, *open, now, out);
    case Purpose::Wish:
      return wish_confirmed(*open, *reply, now, out);
    case Purpose::Registers:
      if (reply->error != ErrorCode::None) staged_refused(*open, reply->error, "what was staged was not loaded", out);
      return;
    case Purpose::Map:
      if (seq == map_asked_) map_known(*reply);
      return;
    case Purpose::Hold:
      if (reply->error != ErrorCode::None) hold_refused(open->vcpu, reply->error, out);
      return;
    case Purpose::Agent:
      break;
  }
  if (open->bytes != 0) write_answered(*open, out);
  // The size of an answer is the hypervisor's word; the agent must get what it asked for.
  if (const auto* read = std::get_if<ReadPhysicalReply>(&reply->body); read && read->data.size() != open->tag)
    return broken("answered READ_PHYSICAL with another size than asked");
  if (const auto* regs = std::get_if<GetRegistersReply>(&reply->body); regs && regs->msrs.size() != open->tag)
    return broken("answered GET_REGISTERS with other MSRs than asked");
  if (const auto* map = std::get_if<GetMemoryMapReply>(&reply->body))
    for (std::size_t i = 0; i < map->slots.size(); ++i)
      if (map->slots[i].address_space != open->tag)
        return broken("answered GET_MEMORY_MAP with a slot of another address space than asked");
  if (!is_present(open->slot, open->agent)) return;  // asked by an agent that is gone
  agents_[open->slot].requests.release(1);
  if (reply->error != ErrorCode::None && kGuestChanging.has(open->id))
    out.emplace_back(Report{.fact = Fact::CommandFailed,
                            .agent = open->agent,
                            .vcpu = open->vcpu,
                            .seq = open->agent_seq,
                            .command = open->id,
                            .error = reply->error,
                            .text = "the hypervisor refused it"});
  CommandReply passed_on = *reply;
  // Generations are kvmid's own.
  if (auto* read = std::get_if<ReadPhysicalReply>(&passed_on.body)) read->cookie = open->cookie;
  if (open->id == CommandId::WritePhysical && reply->error == ErrorCode::None)
    passed_on.body = WritePhysicalReply{open->cookie};
  if (open->id == CommandId::WritePhysical && reply->error == ErrorCode::Stale)
    passed_on.body = WritePhysicalReply{generations(static_cast<AddressSpace>(open->tag)).current()};
  answer(open->slot, open->agent_seq, passed_on, out);
}

/// Whatever was read before may be somewhere else now, or gone.
void GuestMachine::map_changed(const MemoryMapChanged& change, TimePoint now, Effects& out) {
  if (link_ != Link::Up) return break_link("told of a change of its memory map before its facts", Seq{}, VcpuId{}, out);
  const auto space = static_cast<AddressSpace>(change.slot.address_space);
  generations(space).change_map();
  facts_.max_gpa = change.max_gpa;
  ++counters_.map_changes;
  if (ram_bytes_ == 0 || space != AddressSpace::Normal) return;
  out.emplace_back(RamMapChanged{generations(space).current()});
  ask_for_map(now, out);
}

void GuestMachine::on_hypervisor_malformed(const DecodeError&, TimePoint, Effects& out) {
  if (link_ == Link::Down) return;
  break_link("sent a message that cannot be decoded", Seq{}, VcpuId{}, out);
}

void GuestMachine::break_link(std::string_view text, Seq seq, VcpuId vcpu, Effects& out) {
  ++counters_.protocol_errors;
  out.emplace_back(Report{.fact = Fact::ProtocolError, .vcpu = vcpu, .seq = seq, .text = text});
  out.emplace_back(CloseHypervisor{OffReason::ProtocolError, text});
  on_hypervisor_lost(OffReason::ProtocolError, TimePoint{}, out);
}

// Any --lost--> Down: nothing that the hypervisor was told holds any more, and nobody waits for it.
void GuestMachine::on_hypervisor_lost(OffReason reason, TimePoint, Effects& out) {
  if (link_ == Link::Down) return;
  link_ = Link::Down;
  guest_on_ = 0;
  unhook_.reset();
  for (VcpuMachine& vcpu : vcpus_) vcpu.abandon();
  std::fill(waiting_.begin(), waiting_.end(), 0);
  for (PauseState& pause : pauses_) {
    pause.asked = pause.hold_asked = false;
    std::fill(pause.counts.begin(), pause.counts.end(), std::uint16_t{0});
  }
  // A wish that was under way was not confirmed: its agent is told so, and it does not hold.
  if (busy_ && !undoing_) undo_wish(TimePoint{}, out);
  fail_open_commands(ErrorCode::NoDevice, kGone, out);
  told_.assign(vcpus_.size(), {});
  told_pages_.clear();
  forget_steps();
  forget_ram();
  for (Generations& generations : generations_) generations.change_map();  // what happens meanwhile is not seen
  touched_pages_.clear();  // all are told anew when the link is up
  out.emplace_back(Report{.fact = Fact::LinkLost, .text = "hypervisor is gone"});
  present_.for_each(
      [&](AgentSlot slot) { send_off(slot, reason, "the hypervisor is gone; wishes are kept until it is back", out); });
}

void GuestMachine::fail_open_commands(ErrorCode error, std::string_view text, Effects& out) {
  ledger_.drain([&](const OpenCommand& open) {
    if (open.purpose != Purpose::Agent || !is_present(open.slot, open.agent)) return;
    agents_[open.slot].requests.release(1);
    refuse(open.slot, open.agent_seq, static_cast<std::uint16_t>(open.id), error, text, out);
  });
  for (const WishChange& change : wishes_) {
    if (!is_present(change.slot, change.agent)) continue;
    agents_[change.slot].requests.release(1);
    refuse(change.slot, change.seq, static_cast<std::uint16_t>(id_of(change.command)), error, text, out);
  }
  wishes_.clear();
  busy_ = undoing_ = false;
  wish_parts_open_ = 0;
  wish_parts_.clear();
  wish_parts_sent_ = 0;
}

std::optional<Seq> GuestMachine::send_command(const Command& command, const OpenCommand& open, TimePoint now,
                                              Effects& out) {
  OpenCommand entry = open;
  entry.deadline = now + limits_.command_timeout;
  const auto seq = ledger_.open(entry);
  if (seq) out.emplace_back(SendCommand{*seq, command});
  return seq;
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
  const bool lost = enforce_grant(*slot);
  // What it may not decide any more it does not hold up any more.
  const EventSet allowed = events_for(grant);
  if (ram_granted_.has(*slot) && !commands_for(grant).has(CommandId::GrantMemory)) {
    ram_granted_.remove(*slot);
    out.emplace_back(RevokeRam{id});
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
                 "policy changed: events, commands, page rights or patches were withdrawn", out);
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
  if (agent.grant.role == Role::Observer || agent.demoted) lost = subscriptions_.demote(slot) || lost;
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
                    .role = agent.demoted ? Role::Observer : agent.grant.role,
                    .priority = agent.grant.priority,
                    .deadline = agent.grant.deadline,
                    .strikes = agent.strikes,
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
