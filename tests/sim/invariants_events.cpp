// SPDX-License-Identifier: GPL-2.0-or-later
// What must hold of events: when and how they are answered, and who may see them.
#include <algorithm>

#include "protocol/result.h"
#include "tests/sim/invariants.h"

namespace kvmid::sim {

namespace {

constexpr std::string_view kI1 = "I1 events are answered once";
constexpr std::string_view kI5 = "I5 an agent sees only what is its own";
/// The shell's timer may be late by so much.
constexpr Duration kTimerSlack = microseconds(1000);

[[noreturn]] void violated(std::string_view invariant, const std::string& text) {
  throw Violation(std::string(invariant), text);
}
std::string agent_text(AgentId id) { return "agent " + std::to_string(id.value); }
std::string event_text(const Event& event) {
  return std::string(name_of(event.kind())) + " of vCPU " + std::to_string(event.vcpu.value);
}

}  // namespace

/// What the deciders said, as far as it can be known from outside; nullopt: nobody decided, or policy changed
/// meanwhile.
std::optional<Action> Watch::verdict_of(const OpenEvent& open, bool& step_over) const {
  step_over = false;
  if (open.uncertain || open.deciders.empty()) return std::nullopt;
  Action strictest = Action::Allow;
  for (const Decider& decider : open.deciders) {
    if (decider.voted != 0) strictest = std::max(strictest, decider.action);
    if (decider.voted < decider.owed || decider.defaulted) {
      // At a patch the default is that the guest goes on, whatever policy says, unless that is CRASH.
      const bool harsh = decider.default_action != Action::Allow && decider.default_action != Action::Crash;
      if (harsh && !open.through_patch && open.maybe_at_patch) return std::nullopt;
      strictest = std::max(strictest, harsh && open.through_patch ? Action::Allow : decider.default_action);
    }
    step_over = step_over || decider.step_over;
    if (decider.with_cookie) return std::nullopt;  // a stale one makes it RETRY
  }
  return strictest;
}

void Watch::i1_answer_is_due(const OpenEvent* open, const core::SendEventReply& e, TimePoint now) const {
  if (!link_up_) violated(kI1, "an event was answered while there is no link");
  if (open == nullptr || open->seq != e.seq)
    violated(kI1, "event " + std::to_string(e.seq.value) + " was answered, and does not wait");
  if (open->event.kind() != e.reply.event) violated(kI1, "an event was answered as one of another kind");
  if (!open->event.actions.has(e.reply.action))
    violated(kI1, event_text(open->event) + " was answered with " + std::string(name_of(e.reply.action)) +
                      ", which it does not take");
  if (e.reply.trap_access && (open->event.kind() != EventKind::PageFault || e.reply.action != Action::Allow))
    violated(kI1, "TRAP_ACCESS where it does not belong");
  if (e.reply.step_over) violated(kI1, "a hypervisor was asked to step over: that is done by kvmid");
  if (!open->seen_in_window && now > open->limit + kTimerSlack + kept_for(*open))
    violated(kI1, event_text(open->event) + " was answered after its deadline");
}

bool Watch::steps_over_own(const OpenEvent& open, Action verdict, bool step_over) {
  return open.event.kind() == EventKind::Breakpoint && !open.through_patch && verdict == Action::Retry && step_over;
}

void Watch::i1_answer_is_the_verdict(const OpenEvent& open, Action action) const {
  bool step_over = false;
  const auto verdict = verdict_of(open, step_over);
  if (!verdict || *verdict == action) return;
  // At a patch ALLOW means to execute what is under it, which the hypervisor is told as RETRY once the patch is lifted.
  const bool at_patch = open.event.kind() == EventKind::Breakpoint && windows_[open.event.vcpu.value].open;
  if (at_patch && *verdict == Action::Allow && action == Action::Retry) return;
  // Stepping over an INT3 of the guest's own, which a patch covers, is to let it happen.
  if (steps_over_own(open, *verdict, step_over) && action == Action::Allow) return;
  violate_or_go_on(std::string(kI1), event_text(open.event) + " was answered with " + std::string(name_of(action)) +
                                         ", but the strictest vote was " + std::string(name_of(*verdict)));
}

/// A vCPU that begins anew is kept until the hypervisor has been told again what agents wish of it: the change under
/// way (with what is undone of it), then that, each in two rounds of commands.
Duration Watch::kept_for(const OpenEvent& open) const {
  const bool anew = open.event.kind() == EventKind::CreateVcpu;
  return anew && (telling_ || !commands_.empty()) ? 6 * command_timeout_ : Duration{};
}

void Watch::i1_nobody_waits_too_long(TimePoint now) const {
  for (const auto& open : open_) {
    if (!open) continue;
    Duration longest = kTimerSlack + kept_for(*open);
    // Kept back while vCPUs step over patches one after another: each has a second to hold the others, and one to step;
    // commands that the hypervisor is slow with come on top.
    if (open->seen_in_window) longest += 2 * core::kStepOverMax * (kVcpus + 1) + 2 * command_timeout_;
    if (now > open->limit + longest)
      violated(kI1, event_text(open->event) + " has waited longer than any decider may hold it");
  }
}

void Watch::i8_hit_is_not_given_to_the_guest(const OpenEvent& open, Action action) const {
  if (open.through_patch && action == Action::Allow)
    violate_or_go_on("I8 no hit is lost",
                     event_text(open.event) + " was the INT3 of a patch, and is given to the guest");
}

void Watch::i5_may_see(const Agent& agent, const OpenEvent& open, bool decide) const {
  const unsigned index = open.event.vcpu.value;
  const EventKind kind = open.event.kind();
  const auto no = [&](const std::string& why) {
    violate_or_go_on(std::string(kI5), agent_text(agent.id) + " is told of a " + event_text(open.event) + " " + why);
  };
  if (stopping_ || unhook_) no("while everything is withdrawn");
  if (kind == EventKind::Pause && decide) {
    if (agent.pauses_told[index] >= agent.pauses_asked[index]) no("that it did not ask for");
    if (!agent.grant.commands.has(CommandId::PauseVcpu)) no("that policy does not give it");
    return;
  }
  if (kind == EventKind::Pause && open.deciders.empty()) no("that nobody asked for");
  if (!agent.grant.events.has(kind)) no("that policy does not give it");
  const auto subscribed = wishes(
      agent, [&](const Wishes& has) { return (has.vcpus[index].events & bit(kind)) != 0; },
      [&](const Wish& wish) {
        return wish.id == CommandId::ControlEvents && wish.names(index) && (wish.events & bit(kind)) != 0;
      });
  if (!subscribed) no("that it did not subscribe to");
  if (decide && agent.grant.role != Role::Decider) no("to decide it, and may only observe");
  if (decide && (agent.demoted & bit(kind)) != 0) no("to decide it, and is an observer of those");
  const auto deciding = wishes(
      agent, [&](const Wishes& has) { return (has.vcpus[index].deciding & bit(kind)) != 0; },
      [&](const Wish& wish) { return wish.id == CommandId::ControlEvents && wish.role == Role::Decider; });
  if (decide && !deciding) no("to decide it, and asked to observe");
  if (const auto* cr = std::get_if<CrData>(&open.event.data))
    if (!wishes(
            agent, [&](const Wishes& has) { return ((has.vcpus[index].crs >> cr->cr) & 1U) != 0; },
            [&](const Wish& wish) { return wish.id == CommandId::ControlCr && wish.number == cr->cr; }))
      no("for a CR that it does not track");
  if (const auto* msr = std::get_if<MsrData>(&open.event.data))
    if (!wishes(
            agent, [&](const Wishes& has) { return ((has.vcpus[index].msrs >> msr_index(msr->msr)) & 1U) != 0; },
            [&](const Wish& wish) { return wish.id == CommandId::ControlMsr && wish.number == msr->msr; }))
      no("for an MSR that it does not track");
  if (kind == EventKind::Singlestep)
    if (!wishes(
            agent, [&](const Wishes& has) { return has.vcpus[index].step; },
            [](const Wish& wish) { return wish.id == CommandId::ControlSinglestep; }))
      no("and does not step that vCPU");
  if (const auto* fault = std::get_if<PageFaultData>(&open.event.data)) {
    const std::uint64_t gfn = fault->gpa.value >> kPageShift;
    if (!wishes(
            agent, [&](const Wishes& has) { return (fault->access & ~has.pages[gfn]) != 0; },
            [](const Wish& wish) { return wish.id == CommandId::SetPageAccess; }))
      no("on a page that it does not restrict");
  }
  if (const auto* hit = std::get_if<BreakpointData>(&open.event.data); hit != nullptr && open.through_patch)
    if (!wishes(
            agent, [&](const Wishes& has) { return has.patch_at(hit->gpa.value) != nullptr; },
            [&](const Wish& wish) { return wish.flags != 0 && wish.patch.gpa == hit->gpa.value; }))
      no("at a patch that is not its own");
  const std::uint32_t number = agent.filters[index][static_cast<std::size_t>(kind)];
  for (const FilterCopy& filter : agent.filter_copies)
    if (filter.number == number && number != 0 && matches(filter, open.event) == false)
      no("that its filter keeps from it");
}

}  // namespace kvmid::sim
