// SPDX-License-Identifier: GPL-2.0-or-later
// Events of a guest: who is told, who owes a reply, and what the merged reply is.
#include <algorithm>

#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

namespace kvmid::core {

namespace {

/// What the wire can say: a configured time of more than an hour is told as the longest there is.
std::uint32_t to_us(std::chrono::milliseconds time) {
  const auto us = std::chrono::microseconds(time).count();
  return static_cast<std::uint32_t>(std::clamp<decltype(us)>(us, 0, 0xffffffff));
}

/// What a reply carries must fit the event and what the hypervisor has (`served`); "" if it does. One that the
/// hypervisor does not know would cost the guest its link. `hears_access`: the agent is told of ACCESS events;
/// `owns_patch`: it laid the patch that was met.
std::string_view fault_of(const EventReply& reply, const Event& event, EventSet served, bool hears_access,
                          bool owns_patch, bool can_step) {
  const EventKind kind = event.kind();
  if (reply.event != kind) return "the reply names another event";
  if (!event.actions.has(reply.action)) return "the event does not take this action";
  const bool takes_value = kind == EventKind::Cr || kind == EventKind::Msr || kind == EventKind::Xsetbv;
  if (std::holds_alternative<NewValue>(reply.value) && !takes_value) return "the event takes no new value";
  if (std::holds_alternative<NewData>(reply.value) && kind != EventKind::Access) return "the event takes no data";
  if (reply.trap_access && (kind != EventKind::PageFault || reply.action != Action::Allow))
    return "TRAP_ACCESS belongs to a page fault that is allowed";
  if (reply.step_over && (kind != EventKind::Breakpoint || reply.action != Action::Retry))
    return "STEP_OVER belongs to a breakpoint that is tried again";
  if (reply.trap_access && !served.has(EventKind::Access)) return "this hypervisor makes no ACCESS events";
  if (reply.trap_access && !hears_access) return "TRAP_ACCESS makes ACCESS events: subscribe to ACCESS first";
  if (reply.step_over && !owns_patch) return "there is no patch of this agent to step over";
  if (reply.step_over && !can_step) return "this hypervisor cannot step over a patch";
  return {};
}

}  // namespace

void GuestMachine::mark_waiting(VcpuId vcpu, bool waiting) {
  const std::uint64_t bit = std::uint64_t{1} << (vcpu.value % 64U);
  auto& word = waiting_[vcpu.value / 64U];
  word = waiting ? word | bit : word & ~bit;
}

// Running --event--> Waiting, and at once back to Running where no agent decides such events.
void GuestMachine::event_arrived(Seq seq, const Event& event, TimePoint now, Effects& out) {
  if (link_ != Link::Up) return break_link("sent an event before it said its version", seq, event.vcpu, out);
  ++counters_.events;
  if (event.kind() == EventKind::Unhook) return unhook(seq, event, now, out);
  if (event.vcpu.value >= vcpus_.size())
    return break_link("sent an event of a vCPU that it does not have", seq, event.vcpu, out);
  VcpuMachine& machine = vcpus_[event.vcpu.value];
  if (machine.waiting() || kept_[event.vcpu.value])
    return break_link("sent an event of a vCPU that already waits", seq, event.vcpu, out);
  if (event.actions.bits == 0 || event.actions.bits >= (1U << kActionCount))
    return break_link("sent an event that takes no action, or one that does not exist", seq, event.vcpu, out);

  if (event.kind() == EventKind::CreateVcpu) {
    // A vCPU that begins anew may have forgotten what it was told.
    anew_[event.vcpu.value] = true;
    keep_until_[event.vcpu.value] = tell_soon(now, out);
  }
  if (static_cast<std::uint32_t>(++event_counter_) == 0) ++event_counter_;
  machine.begin(event, seq, Seq{static_cast<std::uint32_t>(event_counter_)}, generations(event.space).current(), now);
  mark_waiting(event.vcpu, true);
  note_stop(event, now, out);
  met_patch_[event.vcpu.value] = on_patch(event);
  Audience told = audience(event);
  const auto& [deciders, observers, filtered] = told;
  if (filters_.filtering(event.vcpu, event.kind()).any()) apply_filters(event, told);
  filtered.for_each([&](AgentSlot slot) {
    machine.filter_vote(voter(slot, machine), filters_.find(event.vcpu, event.kind(), slot)->action());
  });
  if (event.kind() == EventKind::Pause) {
    PauseState& pause = pauses_[event.vcpu.value];
    (pause.asked ? pause.asked : pause.hold_asked) = false;
    deciders.for_each([&](AgentSlot slot) {
      for (; pause.counts[slot] != 0; --pause.counts[slot]) tell(slot, machine, true, now, out);
    });
  } else {
    deciders.for_each([&](AgentSlot slot) { tell(slot, machine, true, now, out); });
  }
  observers.for_each([&](AgentSlot slot) { tell(slot, machine, false, now, out); });
  settle(machine, now, out);
  if (!gone_patches_.empty()) forget_late_hits(event.vcpu);
}

/// Deciders and observers that wished for just this: this CR, this MSR, this page, this patch.
GuestMachine::Audience GuestMachine::audience(const Event& event) const {
  if (withdrawing()) return {};
  const EventKind kind = event.kind();
  AgentSet wishing{~std::uint64_t{0}};
  if (const auto* cr = std::get_if<CrData>(&event.data)) wishing = subscriptions_.wishing_cr(event.vcpu, cr->cr);
  if (const auto* msr = std::get_if<MsrData>(&event.data)) wishing = subscriptions_.wishing_msr(event.vcpu, msr->msr);
  if (const auto* fault = std::get_if<PageFaultData>(&event.data))
    wishing = pages_.forbidding(gfn_of(fault->gpa), fault->access);
  if (kind == EventKind::Singlestep) wishing = subscriptions_.stepping(event.vcpu);
  if (on_patch(event) && !planted(Planted::HitsToEverybody)) {
    const Patches::Patch* patch = patches_.at(std::get<BreakpointData>(event.data).gpa);
    wishing = patch != nullptr ? patch->owners : AgentSet{};
  } else if (is_late_hit(event)) {
    wishing = {};
  }
  AgentSet deciders = subscriptions_.deciders(event.vcpu, kind) & wishing;
  AgentSet observers = subscriptions_.observers(event.vcpu, kind) & wishing;
  if (kind == EventKind::Pause) {
    deciders = {};
    const PauseState& pause = pauses_[event.vcpu.value];
    present_.for_each([&](AgentSlot slot) {
      if (pause.counts[slot] != 0) deciders.add(slot);
    });
    // Nobody asked for it: kvmid holds the vCPU while another steps over a patch, which is nobody's business.
    observers = deciders.any() ? observers - deciders : AgentSet{};
  }
  return {deciders, observers, {}};
}

/// Whoever's filter does not match is not told; a decider's filter answers in its place.
void GuestMachine::apply_filters(const Event& event, Audience& audience) {
  const AgentSet filtering =
      filters_.filtering(event.vcpu, event.kind()) & (audience.deciders | audience.observers);
  filtering.for_each([&](AgentSlot slot) {
    if (filters_.find(event.vcpu, event.kind(), slot)->matches(event)) return;
    ++agents_[slot].filtered;
    if (audience.deciders.has(slot)) audience.filtered.add(slot);
    audience.deciders.remove(slot);
    audience.observers.remove(slot);
  });
  counters_.filtered += audience.filtered.count();
}

/// What kvmid answers where no agent decides.
Action GuestMachine::unattended_action(const Event& event) const {
  if (is_late_hit(event) && event.actions.has(Action::Retry)) return Action::Retry;
  if (const auto* fault = std::get_if<PageFaultData>(&event.data);
      fault != nullptr && event.actions.has(Action::Retry)) {
    const Gfn gfn = gfn_of(fault->gpa);
    const bool somebody_forbids = !withdrawing() && pages_.forbidding(gfn, fault->access).any();
    const bool told_so = (fault->access & ~told_pages_.at(gfn)) != 0;
    // No view forbids it any more and the hypervisor is about to know: the access will succeed when it is tried again.
    if (!somebody_forbids && (busy_ || !told_so)) return Action::Retry;
  }
  return mildest(event.actions);
}

void GuestMachine::tell(AgentSlot slot, VcpuMachine& machine, bool decide, TimePoint now, Effects& out) {
  const Agent& agent = agents_[slot];
  std::uint32_t deadline_us = 0;
  if (decide) {
    const auto time = machine.event().kind() == EventKind::Pause ? agent.grant.pause_max : agent.grant.deadline;
    machine.owe(slot, now + time);
    deadline_us = to_us(time);
  }
  machine.tell(slot);
  out.emplace_back(SendEvent{agent.id, machine.event_seq(), &machine.event(), decide, deadline_us});
}

// The hypervisor is about to let the guest go: everything is taken back, then the event is answered.
void GuestMachine::unhook(Seq seq, const Event& event, TimePoint now, Effects& out) {
  if (unhook_) return break_link("sent UNHOOK twice", seq, event.vcpu, out);
  unhook_ = seq;
  unhook_answered_ = false;
  const OffReason reason = std::get<UnhookData>(event.data).reason;
  present_.for_each([&](AgentSlot slot) { send_off(slot, reason, "the hypervisor lets the guest go", out); });
  give_up_votes(now, out);
  touch_all_pages();
  tell_soon(now, out);
}

/// Every vote that is owed becomes its agent's default.
void GuestMachine::give_up_votes(TimePoint now, Effects& out) {
  for_each_waiting([&](VcpuId, VcpuMachine& machine) {
    machine.pending().for_each([&](AgentSlot slot) { machine.default_vote(voter(slot, machine)); });
    settle(machine, now, out);
  });
}

// ---- votes ----

/// What the agent's word is worth, and its default: at a patch nothing that the guest could notice, or never get past.
Voter GuestMachine::voter(AgentSlot slot, const VcpuMachine& machine) const {
  const Agent& agent = agents_[slot];
  Voter voter{slot, agent.id, agent.grant.priority, agent.grant.default_action};
  const bool at_patch =
      machine.event().kind() == EventKind::Breakpoint && met_patch_[machine.event().vcpu.value];
  if (at_patch && voter.default_action != Action::Crash) voter.default_action = Action::Allow;
  return voter;
}

void GuestMachine::agent_reply(AgentSlot slot, Seq seq, const EventReply& reply, TimePoint now, Effects& out) {
  const bool exists = reply.vcpu.value < vcpus_.size();
  VcpuMachine& machine = vcpus_[exists ? reply.vcpu.value : 0];
  if (!exists || !machine.waiting() || machine.event_seq() != seq) {
    if (VcpuMachine* other = owing(slot, seq)) {
      other->default_vote(voter(slot, *other));
      refuse_reply(slot, seq, other->event().vcpu, other->event().kind(), ErrorCode::Invalid,
                   "the reply names another vCPU", out);
      return settle(*other, now, out);
    }
    if (!exists) return refuse_reply(slot, seq, reply.vcpu, reply.event, ErrorCode::Invalid, "no such vCPU", out);
    const std::uint32_t age = static_cast<std::uint32_t>(event_counter_) - seq.value;
    const bool was_sent = seq.value != 0 && age < 0x80000000U && age < event_counter_;
    if (was_sent)
      return refuse_reply(slot, seq, reply.vcpu, reply.event, ErrorCode::Stale, "too late: the event has ended", out);
    return refuse_reply(slot, seq, reply.vcpu, reply.event, ErrorCode::NoEntry, "no event has this seq", out);
  }
  if (!machine.owes(slot)) {
    if (machine.was_owed(slot))
      return refuse_reply(slot, seq, reply.vcpu, reply.event, ErrorCode::Stale,
                          "already answered, or its deadline has passed", out);
    return refuse_reply(slot, seq, reply.vcpu, reply.event, ErrorCode::NoEntry, "no reply is owed to this event", out);
  }
  const Event& event = machine.event();
  const bool hears_access = subscriptions_.role_of(event.vcpu, slot, EventKind::Access).has_value();
  const auto* hit = std::get_if<BreakpointData>(&event.data);
  const Patches::Patch* patch = hit != nullptr ? patches_.at(hit->gpa) : nullptr;
  const bool owns_patch = patch != nullptr && patch->owners.has(slot);
  const std::string_view fault = fault_of(reply, event, version_.events, hears_access, owns_patch, can_step());
  if (!fault.empty()) {
    machine.default_vote(voter(slot, machine));
    refuse_reply(slot, seq, reply.vcpu, event.kind(), ErrorCode::Invalid, fault, out);
  } else {
    agents_[slot].strikes[static_cast<std::size_t>(event.kind())] = 0;
    machine.vote(voter(slot, machine), reply);
  }
  settle(machine, now, out);
}

VcpuMachine* GuestMachine::owing(AgentSlot slot, Seq seq) {
  VcpuMachine* found = nullptr;
  for_each_waiting([&](VcpuId, VcpuMachine& machine) {
    if (machine.event_seq() == seq && machine.owes(slot)) found = &machine;
  });
  return found;
}

void GuestMachine::refuse_reply(AgentSlot slot, Seq seq, VcpuId vcpu, EventKind kind, ErrorCode error,
                                std::string_view text, Effects& out) {
  ++(error == ErrorCode::Stale ? counters_.late_replies : counters_.bad_replies);
  out.emplace_back(SendNotice{agents_[slot].id, Notice{.kind = NoticeKind::ReplyRefused,
                                                       .event = kind,
                                                       .vcpu = vcpu,
                                                       .error = error,
                                                       .event_seq = seq,
                                                       .text = text}});
  out.emplace_back(Report{.fact = Fact::ReplyRefused,
                          .agent = agents_[slot].id,
                          .vcpu = vcpu,
                          .seq = seq,
                          .event = kind,
                          .error = error,
                          .text = text});
}

/// The agent's deadline passed: its default is its vote; too many in a row make it an observer of that kind of event.
void GuestMachine::missed(AgentSlot slot, VcpuMachine& machine, Effects& out) {
  Agent& agent = agents_[slot];
  const EventKind kind = machine.event().kind();
  const Action action = machine.default_vote(voter(slot, machine));
  ++counters_.expired;
  ++agent.expired;
  const bool counts = kind != EventKind::Pause;  // a long pause is not a missed decision
  std::uint32_t& strikes = agent.strikes[static_cast<std::size_t>(kind)];
  if (counts) ++strikes;
  out.emplace_back(
      SendNotice{agent.id, Notice{.kind = NoticeKind::Expired,
                                  .event = kind,
                                  .action = action,
                                  .vcpu = machine.event().vcpu,
                                  .error = ErrorCode::TimedOut,
                                  .event_seq = machine.event_seq(),
                                  .count = strikes,
                                  .text = "the deadline passed; the default action was taken as the vote"}});
  out.emplace_back(Report{.fact = Fact::Expired,
                          .agent = agent.id,
                          .vcpu = machine.event().vcpu,
                          .seq = machine.event_seq(),
                          .event = kind,
                          .action = action,
                          .text = "deadline"});
  if (counts && !agent.demoted.has(kind) && strikes >= agent.grant.strikes_max) demote(slot, kind, out);
}

void GuestMachine::demote(AgentSlot slot, EventKind kind, Effects& out) {
  constexpr std::string_view kText =
      "too many deadlines missed in a row: an observer of this kind of event from now on";
  Agent& agent = agents_[slot];
  agent.demoted.add(kind);
  ++counters_.demoted;
  EventSet lost;
  lost.add(kind);
  subscriptions_.demote(slot, lost);
  out.emplace_back(SendNotice{agent.id, Notice{.kind = NoticeKind::Demoted,
                                               .event = kind,
                                               .error = ErrorCode::TimedOut,
                                               .count = agent.strikes[static_cast<std::size_t>(kind)],
                                               .text = kText}});
  out.emplace_back(
      Report{.fact = Fact::Demoted, .agent = agent.id, .event = kind, .text = "too many deadlines missed in a row"});
}

/// What was staged goes out before the reply; the area lives until the vCPU's next event.
void GuestMachine::load_staged(VcpuId vcpu, const Verdict& verdict, TimePoint now, Effects& out) {
  const auto load = [&](const Command& command, AgentId by) {
    const auto slot = find(by);
    const OpenCommand open{.id = id_of(command),
                           .purpose = Purpose::Registers,
                           .slot = slot.value_or(AgentSlot{0}),
                           .agent = by,
                           .agent_seq = verdict.event_seq,
                           .vcpu = vcpu,
                           .tag = static_cast<std::uint32_t>(verdict.reply.event)};
    if (ledger_.size() < kOpenForRegistersMax && send_command(command, open, now, out)) return;
    staged_refused(open, ErrorCode::Busy,
                   "what was staged was not loaded: the hypervisor leaves too many commands unanswered", out);
  };
  if (verdict.set_registers) load(SetRegisters{vcpu, verdict.regs}, verdict.registers_by);
  if (verdict.xsave_by != AgentId{}) load(SetXsave{vcpu, verdict.xsave}, verdict.xsave_by);
}

/// The command was answered when it was staged, so its agent learns by a notice that it failed after all.
void GuestMachine::staged_refused(const OpenCommand& open, ErrorCode error, std::string_view text, Effects& out) {
  out.emplace_back(Report{.fact = Fact::CommandFailed,
                          .agent = open.agent,
                          .vcpu = open.vcpu,
                          .seq = open.agent_seq,
                          .command = open.id,
                          .error = error,
                          .text = text});
  if (!is_present(open.slot, open.agent)) return;
  out.emplace_back(SendNotice{open.agent, Notice{.kind = NoticeKind::ReplyRefused,
                                                 .event = static_cast<EventKind>(open.tag),
                                                 .vcpu = open.vcpu,
                                                 .error = error,
                                                 .event_seq = open.agent_seq,
                                                 .text = text}});
}

/// What was decided in view of memory that has changed since is not done; its agents are told.
void GuestMachine::check_cookie(const VcpuMachine& machine, Verdict& verdict, Effects& out) {
  const std::uint64_t cookie = verdict.reply.cookie;
  verdict.reply.has_cookie = false;
  verdict.reply.cookie = 0;
  const Event& event = machine.event();
  if (generations(event.space).is_current(cookie)) return;
  const bool retried = machine.turn_stale(verdict);
  (verdict.with_cookie & present_).for_each([&](AgentSlot slot) {
    refuse_reply(slot, verdict.event_seq, event.vcpu, event.kind(), ErrorCode::Stale,
                 retried ? "memory has changed since the cookie of the reply: RETRY in its place"
                         : "memory has changed since the cookie of the reply, and the event takes no RETRY",
                 out);
  });
}

/// Registers that were staged, then the one reply.
void GuestMachine::let_go(VcpuId vcpu, const Verdict& verdict, TimePoint now, Effects& out) {
  load_staged(vcpu, verdict, now, out);
  out.emplace_back(SendEventReply{verdict.hypervisor_seq, verdict.reply, verdict.event_seq, verdict.decided_by,
                                  vcpus_[vcpu.value].since()});
}

// Waiting --last vote--> Running, or held until a patch has been stepped over.
void GuestMachine::settle(VcpuMachine& machine, TimePoint now, Effects& out) {
  if (!machine.waiting() || machine.pending().any()) return;
  const Event& event = machine.event();
  const VcpuId vcpu = event.vcpu;
  Verdict verdict = machine.finish();
  mark_waiting(vcpu, false);
  const bool attended = verdict.votes + verdict.defaults + verdict.filtered != 0;
  if (!attended) verdict.reply.action = unattended_action(event);
  if (verdict.reply.has_cookie) check_cookie(machine, verdict, out);
  if (!keep_back(machine, verdict)) let_go(vcpu, verdict, now, out);

  if (!attended) ++counters_.unattended;
  if (verdict.votes != 0) ++counters_.decided;
  if (verdict.votes > 1) ++counters_.merged;
  if (verdict.reply.action == Action::Skip) ++counters_.skipped;
  if (verdict.reply.action == Action::Retry) ++counters_.retried;
  if (verdict.reply.action == Action::Crash) ++counters_.crashed;
  const Action outcome = planted(Planted::OutcomeWrong) ? Action::Crash : verdict.reply.action;
  verdict.seen.for_each([&](AgentSlot slot) {
    if (!present_.has(slot) || (agents_[slot].flags & KVMI_HELLO_OUTCOMES) == 0) return;
    out.emplace_back(SendNotice{agents_[slot].id, Notice{.kind = NoticeKind::Outcome,
                                                         .event = event.kind(),
                                                         .action = outcome,
                                                         .vcpu = vcpu,
                                                         .agent = verdict.decided_by,
                                                         .event_seq = verdict.event_seq}});
  });
  const bool changed =
      verdict.value_by != AgentId{} || verdict.registers_by != AgentId{} || verdict.xsave_by != AgentId{};
  if (!attended || (verdict.reply.action == Action::Allow && !changed)) return;
  Report report{.fact = Fact::Decided,
                .agent = verdict.decided_by,
                .vcpu = vcpu,
                .seq = verdict.event_seq,
                .event = event.kind(),
                .action = verdict.reply.action,
                .text = changed ? "with changed values" : ""};
  report.votes = machine.votes();
  report.about = &event;
  if (const auto* value = std::get_if<NewValue>(&verdict.reply.value)) report.new_value = value->value;
  report.value_by = verdict.value_by;
  report.registers_by = verdict.registers_by;
  report.xsave_by = verdict.xsave_by;
  out.emplace_back(report);
}

}  // namespace kvmid::core
