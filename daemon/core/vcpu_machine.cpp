// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/vcpu_machine.h"

#include <algorithm>

namespace kvmid::core {

// Running --event--> Waiting: it is kept, votes are empty.
void VcpuMachine::begin(const Event& event, Seq hypervisor_seq, Seq event_seq, TimePoint now) {
  waiting_ = true;
  event_ = event;
  hypervisor_seq_ = hypervisor_seq;
  event_seq_ = event_seq;
  since_ = now;
  pending_ = {};
  asked_ = {};
  seen_ = {};
  staged_.clear();
  merged_ = EventReply{};
  merged_.vcpu = event.vcpu;
  merged_.event = event.kind();
  action_from_ = value_from_ = regs_from_ = Source{};
  votes_ = defaults_ = 0;
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

void VcpuMachine::stage_registers(AgentSlot slot, const kvmi_x86_regs& regs) {
  const auto found = std::find_if(staged_.begin(), staged_.end(), [&](const Staged& s) { return s.slot == slot; });
  if (found != staged_.end()) {
    found->regs = regs;
  } else {
    staged_.push_back(Staged{slot, regs});
  }
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

// Waiting --vote--> Waiting: one reply less is owed.
void VcpuMachine::vote(const Voter& voter, const EventReply& reply) {
  if (!pending_.has(voter.slot)) return;
  merge_action(voter, reply.action);
  merged_.trap_access = merged_.trap_access || reply.trap_access;
  merged_.step_over = merged_.step_over || reply.step_over;
  if (!std::holds_alternative<std::monostate>(reply.value) && value_from_.loses_to(voter)) {
    merged_.value = reply.value;
    value_from_.take(voter);
  }
  const auto staged = std::find_if(staged_.begin(), staged_.end(), [&](const Staged& s) { return s.slot == voter.slot; });
  if (staged != staged_.end()) {
    if (regs_from_.loses_to(voter)) {
      regs_ = staged->regs;
      regs_from_.take(voter);
    }
    staged_.erase(staged);
  }
  if (--owed_[voter.slot] == 0) {
    pending_.remove(voter.slot);
    ++votes_;
  }
}

Action VcpuMachine::allowed_default(const Voter& voter) const {
  if (event_.actions.has(voter.default_action)) return voter.default_action;
  return mildest(event_.actions);
}

// Waiting --deadline, loss or bad reply--> Waiting: the default stands for what the agent would have said.
Action VcpuMachine::default_vote(const Voter& voter) {
  const Action action = allowed_default(voter);
  if (!pending_.has(voter.slot)) return action;
  merge_action(voter, action);
  std::erase_if(staged_, [&](const Staged& s) { return s.slot == voter.slot; });
  owed_[voter.slot] = 0;
  pending_.remove(voter.slot);
  ++defaults_;
  return action;
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
  verdict.seen = seen_;
  verdict.set_registers = regs_from_.given;
  if (regs_from_.given) verdict.regs = regs_;
  waiting_ = false;
  return verdict;
}

void VcpuMachine::abandon() {
  waiting_ = false;
  pending_ = {};
  staged_.clear();
}

}  // namespace kvmid::core
