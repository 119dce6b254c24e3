// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/vcpu_machine.h"

#include <algorithm>
#include <utility>

namespace kvmid::core {

// Running --event--> Waiting: it is kept, votes are empty.
void VcpuMachine::begin(const Event& event, Seq hypervisor_seq, Seq event_seq, std::uint64_t cookie, TimePoint now) {
  waiting_ = true;
  event_ = event;
  event_.cookie = cookie;
  hypervisor_seq_ = hypervisor_seq;
  event_seq_ = event_seq;
  since_ = now;
  pending_ = {};
  asked_ = {};
  seen_ = {};
  with_cookie_ = {};
  staged_.clear();
  said_.clear();
  merged_ = EventReply{};
  merged_.vcpu = event.vcpu;
  merged_.event = event.kind();
  action_from_ = value_from_ = regs_from_ = xsave_from_ = Source{};
  xsave_ = {};  // not kept for later: one event in a million has an area
  votes_ = defaults_ = filtered_ = 0;
}

void VcpuMachine::owe(AgentSlot slot, TimePoint deadline) {
  if (!pending_.has(slot)) {
    pending_.add(slot);
    asked_.add(slot);
    owed_[slot] = 0;
    deadlines_[slot] = deadline;
  }
  ++owed_[slot];
}

VcpuMachine::Staged& VcpuMachine::staged_of(AgentSlot slot) {
  const auto found = std::find_if(staged_.begin(), staged_.end(), [&](const Staged& s) { return s.slot == slot; });
  return found != staged_.end() ? *found : staged_.emplace_back(Staged{slot, {}, {}});
}

void VcpuMachine::stage_registers(AgentSlot slot, const kvmi_x86_regs& regs) { staged_of(slot).regs = regs; }

void VcpuMachine::stage_xsave(AgentSlot slot, Bytes area) {
  staged_of(slot).xsave.emplace(area.begin(), area.end());
}

std::size_t VcpuMachine::staged_bytes(AgentSlot slot) const {
  std::size_t bytes = 0;
  for (const Staged& staged : staged_)
    if (staged.slot == slot && staged.xsave) bytes += staged.xsave->size();
  return bytes;
}

/// Agents that come and go during one long pause cannot make the list grow without end.
void VcpuMachine::note(AgentId agent, Action action, bool by_default) {
  if (said_.size() < kAgentsPerGuestMax) said_.push_back(Vote{agent, action, by_default});
}

// The strictest action wins; of equal ones it is the voter of the highest priority who decided.
void VcpuMachine::merge_action(const Voter& voter, Action action) {
  if (!action_from_.given || action > merged_.action) {
    merged_.action = action;
    action_from_.take(voter);
  } else if (action == merged_.action && action_from_.loses_to(voter)) {
    action_from_.take(voter);
  }
}

// A stale cookie turns its reply into RETRY. Of several that ALLOW one is enough to make the merged reply stale, so the
// oldest cookie stands for all; a stricter action is stale only when each vote for it is, so the newest one does.
void VcpuMachine::merge_cookie(const EventReply& reply) {
  if (!action_from_.given || reply.action > merged_.action) {
    merged_.has_cookie = reply.has_cookie;
    merged_.cookie = reply.cookie;
  } else if (reply.action == merged_.action && reply.action == Action::Allow) {
    if (!reply.has_cookie) return;
    merged_.cookie = merged_.has_cookie ? std::min(merged_.cookie, reply.cookie) : reply.cookie;
    merged_.has_cookie = true;
  } else if (reply.action == merged_.action) {
    merged_.has_cookie = merged_.has_cookie && reply.has_cookie;
    merged_.cookie = merged_.has_cookie ? std::max(merged_.cookie, reply.cookie) : 0;
  }
}

// What the voter staged counts from its vote on, unless somebody of a higher priority staged the same.
void VcpuMachine::merge_staged(const Voter& voter) {
  const auto staged =
      std::find_if(staged_.begin(), staged_.end(), [&](const Staged& s) { return s.slot == voter.slot; });
  if (staged == staged_.end()) return;
  if (staged->regs && regs_from_.loses_to(voter)) {
    regs_ = *staged->regs;
    regs_from_.take(voter);
  }
  if (staged->xsave && xsave_from_.loses_to(voter)) {
    xsave_ = std::move(*staged->xsave);
    xsave_from_.take(voter);
  }
  staged_.erase(staged);
}

// Waiting --vote--> Waiting: one reply less is owed.
void VcpuMachine::vote(const Voter& voter, const EventReply& reply) {
  if (!pending_.has(voter.slot)) return;
  merge_cookie(reply);
  if (reply.has_cookie) with_cookie_.add(voter.slot);
  merge_action(voter, reply.action);
  merged_.trap_access = merged_.trap_access || reply.trap_access;
  merged_.step_over = merged_.step_over || reply.step_over;
  if (!std::holds_alternative<std::monostate>(reply.value) && value_from_.loses_to(voter)) {
    merged_.value = reply.value;
    value_from_.take(voter);
  }
  merge_staged(voter);
  if (--owed_[voter.slot] == 0) {
    pending_.remove(voter.slot);
    ++votes_;
    note(voter.id, reply.action, false);
  }
}

/// What was said without a look at the event may be something that it does not take.
Action VcpuMachine::allowed(Action action) const { return event_.actions.has(action) ? action : mildest(event_.actions); }

// Waiting --deadline, loss or bad reply--> Waiting: the default stands for what the agent would have said.
Action VcpuMachine::default_vote(const Voter& voter) {
  const Action action = allowed(voter.default_action);
  if (!pending_.has(voter.slot)) return action;
  EventReply silent;
  silent.action = action;
  merge_cookie(silent);
  merge_action(voter, action);
  std::erase_if(staged_, [&](const Staged& s) { return s.slot == voter.slot; });
  owed_[voter.slot] = 0;
  pending_.remove(voter.slot);
  ++defaults_;
  note(voter.id, action, true);
  return action;
}

// Waiting --not what the agent wants to be asked about--> Waiting: its filter's word is its vote.
void VcpuMachine::filter_vote(const Voter& voter, Action action) {
  EventReply reply;
  reply.action = allowed(action);
  merge_cookie(reply);
  merge_action(voter, reply.action);
  ++filtered_;
  note(voter.id, reply.action, false);
}

void VcpuMachine::release_one(const Voter& voter) {
  if (!pending_.has(voter.slot)) return;
  if (owed_[voter.slot] > 1) {
    --owed_[voter.slot];
  } else {
    default_vote(voter);
  }
}

void VcpuMachine::forget(AgentSlot slot) {
  seen_.remove(slot);
  with_cookie_.remove(slot);
  asked_.remove(slot);
}

AgentSet VcpuMachine::expired(TimePoint now) const {
  AgentSet late;
  pending_.for_each([&](AgentSlot slot) {
    if (deadlines_[slot] <= now) late.add(slot);
  });
  return late;
}

std::optional<TimePoint> VcpuMachine::next_deadline() const {
  std::optional<TimePoint> earliest;
  pending_.for_each([&](AgentSlot slot) {
    if (!earliest || deadlines_[slot] < *earliest) earliest = deadlines_[slot];
  });
  return earliest;
}

// Waiting --last vote--> Running.
Verdict VcpuMachine::finish() {
  Verdict verdict;
  verdict.reply = merged_;
  if (merged_.action != Action::Allow) {
    // A value or an access trap belongs to an action that is carried out; the stricter one has no use for it.
    verdict.reply.value = std::monostate{};
    verdict.reply.trap_access = false;
  }
  if (merged_.action != Action::Retry) verdict.reply.step_over = false;
  verdict.hypervisor_seq = hypervisor_seq_;
  verdict.event_seq = event_seq_;
  verdict.decided_by = action_from_.given ? action_from_.id : AgentId{};
  verdict.votes = votes_;
  verdict.defaults = defaults_;
  verdict.filtered = filtered_;
  verdict.seen = seen_;
  verdict.with_cookie = with_cookie_;
  if (!std::holds_alternative<std::monostate>(verdict.reply.value)) verdict.value_by = value_from_.id;
  if (regs_from_.given) verdict.registers_by = regs_from_.id;
  verdict.set_registers = regs_from_.given;
  if (regs_from_.given) verdict.regs = regs_;
  if (xsave_from_.given) {
    verdict.xsave_by = xsave_from_.id;
    verdict.xsave = xsave_;
  }
  waiting_ = false;
  return verdict;
}

bool VcpuMachine::turn_stale(Verdict& verdict) const {
  verdict.reply.action = allowed(Action::Retry);
  verdict.reply.value = std::monostate{};
  verdict.reply.trap_access = verdict.reply.step_over = false;
  verdict.set_registers = false;
  verdict.value_by = verdict.registers_by = verdict.xsave_by = AgentId{};
  return verdict.reply.action == Action::Retry;
}

void VcpuMachine::abandon() {
  waiting_ = false;
  pending_ = {};
  staged_.clear();
}

}  // namespace kvmid::core
