// SPDX-License-Identifier: GPL-2.0-or-later
// What must hold of guest memory: cookies, and patches that are lifted.
#include <algorithm>

#include "protocol/result.h"
#include "tests/sim/invariants.h"

namespace kvmid::sim {

/// Only the vCPU that steps over a patch may find the guest's own bytes there.
void Watch::vcpu_ran(unsigned index) const {
  const auto at = hypervisor_.executed_bare(index);
  if (!at || !told_all_ || !link_up_ || stopping_ || unhook_ || windows_[index].open) return;
  for (const Agent& agent : agents_) {
    if (agent.uncertain || agent.has.patch_at(*at) == nullptr) continue;
    const bool asks = std::any_of(agent.pending.begin(), agent.pending.end(), [&](const Pending& pending) {
      return pending.is_wish && pending.wish.flags != 0 && pending.wish.patch.gpa == *at;
    });
    if (!asks)
      violate_or_go_on("I8 no hit is lost", "vCPU " + std::to_string(index) + " executed what is under the patch at " +
                                                hex(*at) + ", and its agents do not hear of it");
  }
}

/// The write goes to the hypervisor, or the patch was placed.
void Watch::i9_cookie_is_new(const Pending& pending) const {
  if (!pending.has_cookie) return;
  counts_.add(Seen::CookiesTaken);
  if (pending.is_stale)
    violate_or_go_on("I9 a cookie is of the latest state",
                     "a write of " + std::to_string(pending.bytes) + " bytes at " + hex(pending.gpa) +
                         " was accepted, and something of it has changed since its cookie was given");
}

/// One agent decides, and names a cookie: what it saw has changed, so the guest tries again.
void Watch::i9_vote_is_of_the_latest_state(const OpenEvent& open, Action action) const {
  if (open.uncertain || open.deciders.size() != 1) return;
  const Decider& decider = open.deciders.front();
  if (!decider.cookie_stale || decider.defaulted || decider.owed != 1 || decider.voted != 1) return;
  counts_.add(Seen::StaleVotes);
  const ActionSet actions = open.event.actions;
  const Action expected = actions.has(Action::Retry) ? Action::Retry : core::mildest(actions);
  if (action != expected)
    violate_or_go_on("I9 a cookie is of the latest state", "a vote of agent " + std::to_string(decider.id.value) +
                                                               " was based on something that has changed, " +
                                                               "and the event was answered with " +
                                                               std::string(name_of(action)));
}

void Watch::i9_note_reply(const Pending& pending, const CommandReply& reply) {
  if (const auto* read = std::get_if<ReadPhysicalReply>(&reply.body)) {
    counts_.add(Seen::CookiesGiven);
    return cookies_.given(pending.space, read->cookie, pending.asked, Cookies::Moment::First);
  }
  if (pending.id != KVMI_MSG_WRITE_PHYSICAL) return;
  const bool granted = reply.error == ErrorCode::None;
  const bool patch = pending.is_wish;
  if (patch && granted) {
    i9_cookie_is_new(pending);
    cookies_.changed(pending.space, pending.gpa, pending.bytes, pending.asked, order_);
  }
  if (pending.has_cookie && reply.error == ErrorCode::Stale) counts_.add(Seen::CookiesRefused);
  // A write's own cookie is of the time at which it was sent; any other is the current one.
  if (const auto* write = std::get_if<WritePhysicalReply>(&reply.body)) {
    counts_.add(Seen::CookiesGiven);
    const bool then = granted && !patch;
    cookies_.given(pending.space, write->cookie, then ? pending.asked : order_,
                   then ? Cookies::Moment::First : Cookies::Moment::Later);
  }
}

}  // namespace kvmid::sim
