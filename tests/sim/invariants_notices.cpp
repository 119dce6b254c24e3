// SPDX-License-Identifier: GPL-2.0-or-later
// Notices, and agents that are let go.
#include <algorithm>

#include "protocol/result.h"
#include "tests/sim/invariants.h"

namespace kvmid::sim {

namespace {

constexpr std::string_view kI5 = "I5 an agent sees only what is its own";
constexpr std::string_view kI7 = "I7 commands are answered once";

[[noreturn]] void violated(std::string_view invariant, const std::string& text) {
  throw Violation(std::string(invariant), text);
}
std::string agent_text(AgentId id) { return "agent " + std::to_string(id.value); }
std::string event_text(const Event& event) {
  return std::string(name_of(event.kind())) + " of vCPU " + std::to_string(event.vcpu.value);
}

}  // namespace

void Watch::on_notice(const core::SendNotice& e) {
  must_find(e.agent, "a notice");
  const Notice& notice = e.notice;
  const auto about = [&]() -> OpenEvent* {
    if (notice.vcpu.value >= kVcpus) return nullptr;
    for (auto* events : {&open_, &ended_}) {
      auto& open = (*events)[notice.vcpu.value];
      if (open && open->agents_seq == notice.event_seq) return &*open;
    }
    return nullptr;
  };
  const auto decider_of = [&](OpenEvent* open) -> Decider* {
    if (open == nullptr) return nullptr;
    for (Decider& decider : open->deciders)
      if (decider.id == e.agent) return &decider;
    return nullptr;
  };
  switch (notice.kind) {
    case NoticeKind::Expired: {
      counts_.add(Seen::Expired);
      std::uint32_t& missed = find(e.agent)->missed[static_cast<std::size_t>(notice.event)];
      const bool pause = notice.event == EventKind::Pause;
      if (pause ? notice.count != 0 : notice.count != 1 && notice.count != missed + 1)
        violated(kI5, agent_text(e.agent) + " is told that it missed " + std::to_string(notice.count) + " " +
                          std::string(name_of(notice.event)) + " events in a row, after " + std::to_string(missed));
      missed = notice.count;
      Decider* decider = decider_of(about());
      if (decider == nullptr || decider->voted >= decider->owed || decider->defaulted)
        violate_or_go_on(std::string(kI5),
                         agent_text(e.agent) + " is told that it missed a deadline that it did not have");
      if (decider != nullptr) decider->defaulted = true;
      return;
    }
    case NoticeKind::ReplyRefused: {
      counts_.add(Seen::RepliesRefused);
      // What was said in view of something stale is told to all who did when the last one has voted.
      if (const Decider* decider = decider_of(about());
          notice.error == ErrorCode::Stale && decider != nullptr && decider->with_cookie)
        return;
      if (input_ == Input::Agent && input_agent_ != e.agent && notice.error != ErrorCode::Busy)
        violated(kI5, agent_text(e.agent) + " is told of a reply that another agent sent");
      if (input_ != Input::Agent || input_agent_ != e.agent) return;
      // Its vote of this input does not count; where it was owed, its default does.
      for (auto* events : {&open_, &ended_})
        for (auto& open : *events)
          if (Decider* decider = decider_of(open ? &*open : nullptr)) {
            if (open->agents_seq != notice.event_seq) continue;
            if (decider->tentative)
              --decider->voted, decider->action = decider->action_before, decider->step_over = false;
            decider->tentative = false;
            if (decider->voted < decider->owed && notice.error == ErrorCode::Invalid) decider->defaulted = true;
          }
      return;
    }
    case NoticeKind::Demoted: {
      counts_.add(Seen::Demoted);
      Agent& agent = *find(e.agent);
      const std::uint32_t missed = agent.missed[static_cast<std::size_t>(notice.event)];
      if (missed < agent.grant.strikes_max || notice.count != missed || (agent.demoted & bit(notice.event)) != 0)
        violated(kI5, agent_text(e.agent) + " is made an observer of " + std::string(name_of(notice.event)) +
                          " after " + std::to_string(missed) + " deadlines");
      agent.demoted |= bit(notice.event);
      for (VcpuWish& vcpu : agent.has.vcpus) vcpu.deciding &= ~bit(notice.event);
      return;
    }
    case NoticeKind::Outcome: {
      counts_.add(Seen::Outcomes);
      OpenEvent* open = about();
      if (open == nullptr) violated(kI5, agent_text(e.agent) + " is told how an event ended that is not known");
      if (std::find(open->told.begin(), open->told.end(), e.agent) == open->told.end())
        violated(kI5, agent_text(e.agent) + " is told how an event ended that it was not told of");
      if (std::find(open->outcomes_told.begin(), open->outcomes_told.end(), e.agent) != open->outcomes_told.end())
        violated(kI7, agent_text(e.agent) + " got two OUTCOME notices of one event");
      open->outcomes_told.push_back(e.agent);
      bool step_over = false;
      const auto verdict = verdict_of(*open, step_over);
      if (verdict && *verdict != notice.action &&
          !(open->event.kind() == EventKind::Breakpoint && notice.action == Action::Retry) &&
          !(steps_over_own(*open, *verdict, step_over) && notice.action == Action::Allow))
        violated(kI7, "OUTCOME of " + event_text(open->event) + " says " + std::string(name_of(notice.action)) +
                          ", but the agents' verdict is " + std::string(name_of(*verdict)));
      return;
    }
    case NoticeKind::Revoked: {
      counts_.add(Seen::Revoked);
      if (notice.error == ErrorCode::NotPermitted && input_agent_ == e.agent &&
          (input_ == Input::GrantLost || input_ == Input::GrantChanged))
        return;
      if (asking_ && link_up_ && !input_error_) {  // the first moment of a link: what it has less is known
        return;
      }
      // What the hypervisor refused, or a patch that cannot be got past, is given up; the notice does not say which.
      Agent& agent = *find(e.agent);
      const bool patches = wishes(
          agent, [](const Wishes& has) { return !has.patches.empty(); },
          [](const Wish& wish) { return wish.flags != 0; });
      if (!input_error_ && !patches)
        violated("I2 the hypervisor has the union", agent_text(e.agent) + " lost something, and nothing happened");
      agent.uncertain = true;
      return;
    }
    case NoticeKind::FrameRefused:
      return;
  }
}

void Watch::on_close_agent(const core::CloseAgent& e) {
  Agent& agent = must_find(e.agent, "a close");
  if (input_ == Input::GrantLost && input_agent_ == e.agent) {
    agent.closing = true;
    return;
  }
  if (!another_guest_) violated(kI5, agent_text(e.agent) + " was closed for nothing");
  counts_.add(Seen::AgentsReset);
  if (!agent.pending.empty()) violated(kI7, agent_text(e.agent) + " was let go with open commands");
  std::erase_if(agents_, [&](const Agent& a) { return a.id == e.agent; });
}

}  // namespace kvmid::sim
