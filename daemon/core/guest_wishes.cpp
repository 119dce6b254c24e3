// SPDX-License-Identifier: GPL-2.0-or-later
// What agents wish, and how the hypervisor comes to know the union of it.
//
// Changes are carried out one after another. A change is applied to the tables, the difference between the union and
// what the hypervisor has confirmed is told, and only when all of it is confirmed is the agent told yes. If the
// hypervisor refuses a part, the change is undone in the tables and the difference is told again.
#include <algorithm>

#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

namespace kvmid::core {

void GuestMachine::queue_wish(AgentSlot slot, Seq seq, const Command& command, TimePoint now, Effects& out) {
  Agent& agent = agents_[slot];
  const auto id = static_cast<std::uint16_t>(id_of(command));
  if (wishes_.size() >= kWishQueueMax)
    return refuse(slot, seq, id, ErrorCode::Busy, "too many changes are waiting", out);
  if (!agent.requests.charge(1))
    return refuse(slot, seq, id, ErrorCode::Busy, "quota of open commands (requests) is used up", out);
  WishChange change{.slot = slot, .agent = agent.id, .seq = seq, .command = command, .entries = {}};
  if (const auto* pages = std::get_if<SetPageAccess>(&command)) {
    for (std::size_t i = 0; i < pages->entries.size(); ++i) change.entries.push_back(pages->entries[i]);
    change.command = SetPageAccess{pages->space, {}};
  }
  if (const auto* write = std::get_if<WritePhysical>(&command)) {
    change.bytes.assign(write->data.begin(), write->data.end());
    change.expected.assign(write->expected.begin(), write->expected.end());
    WritePhysical own = *write;
    own.data = own.expected = {};
    change.command = own;
  }
  wishes_.push_back(std::move(change));
  next_wish(now, out);
}

/// Nothing of the agent is left in the tables; the hypervisor is told before any other change.
void GuestMachine::withdraw(AgentSlot slot, TimePoint now, Effects& out) {
  ram_granted_.remove(slot);
  if (!planted(Planted::PatchesLeft)) forget_patches(slot);
  withdraw_pages(slot);
  subscriptions_.remove(slot);
  filters_.remove(slot);
  for (PauseState& pause : pauses_) pause.counts[slot] = 0;
  const AgentId gone = agents_[slot].id;
  present_.remove(slot);
  const auto first_waiting = wishes_.begin() + (busy_ ? 1 : 0);
  wishes_.erase(
      std::remove_if(first_waiting, wishes_.end(), [&](const WishChange& change) { return change.agent == gone; }),
      wishes_.end());
  tell_soon(now, out);
}

/// The hypervisor is brought to the union before any change that waits. One that waits for just that does for all.
/// Returns what told_done_ has come to when it is done.
std::uint64_t GuestMachine::tell_soon(TimePoint now, Effects& out) {
  if (link_ != Link::Up) {
    touched_pages_.clear();
    return told_done_;
  }
  auto first_waiting = wishes_.begin() + (busy_ ? 1 : 0);
  if (first_waiting == wishes_.end() || first_waiting->agent != AgentId{})
    first_waiting = wishes_.insert(first_waiting, WishChange{});
  const std::uint64_t ticket = first_waiting->ticket = ++told_asked_;
  next_wish(now, out);
  return ticket;
}

// Idle --change--> Telling, or done at once where the union does not change.
void GuestMachine::next_wish(TimePoint now, Effects& out) {
  while (!busy_ && !wishes_.empty() && link_ == Link::Up) {
    if (waits_for_step(wishes_.front())) return;
    if (refuse_wish(now, out)) continue;
    busy_ = true;
    undo_ = Undo{};
    wish_error_ = ErrorCode::None;
    wish_error_text_.clear();
    apply_wish(wishes_.front(), now, out);
    const bool changes = !undo_.roles.empty() || !undo_.vcpus.empty() || !undo_.pages.empty() || undo_.patch;
    if (changes || wishes_.front().agent == AgentId{}) tell_differences();
    send_parts(now, out);
    if (wish_parts_open_ == 0) finish_wish(now, out);
  }
}

/// A patch's reply carries the current cookie, also where it was based on something stale.
ReplyBody GuestMachine::body_of(const WishChange& change, ErrorCode error) const {
  const auto* write = std::get_if<WritePhysical>(&change.command);
  if (write == nullptr || (error != ErrorCode::None && error != ErrorCode::Stale)) return {};
  return WritePhysicalReply{generations(write->space).current()};
}

/// As the agent asked for it: the views are of the change's own copies.
Command GuestMachine::command_of(const WishChange& change) {
  if (std::holds_alternative<SetPageAccess>(change.command))
    return SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(change.entries)};
  if (const auto* write = std::get_if<WritePhysical>(&change.command)) {
    WritePhysical whole = *write;
    whole.data = change.bytes;
    whole.expected = change.expected;
    return whole;
  }
  return change.command;
}

/// Policy, quota or the link may have changed while the change waited. True: it is answered, and out of the queue.
bool GuestMachine::refuse_wish(TimePoint, Effects& out) {
  const WishChange& change = wishes_.front();
  if (!is_present(change.slot, change.agent)) return false;
  const Command command = command_of(change);
  auto refusal = refusal_of(change.slot, command);
  const auto* patch = std::get_if<WritePhysical>(&command);
  if (!refusal && patch != nullptr) refusal = refusal_of_patch(change.slot, *patch);
  if (!refusal) return false;
  agents_[change.slot].requests.release(1);
  const auto id = static_cast<std::uint16_t>(id_of(change.command));
  refuse(change.slot, change.seq, id, refusal->error, refusal->text, out, body_of(change, refusal->error));
  wishes_.pop_front();
  return true;
}

void GuestMachine::apply_wish(const WishChange& change, TimePoint now, Effects& out) {
  const AgentSlot slot = change.slot;
  std::visit(Overloaded{
                 [&](const ControlEvents& c) { apply_events(slot, c); },
                 [&](const ControlCr& c) {
                   for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
                     if (subscriptions_.has_cr(vcpu, slot, c.cr) != c.enable) undo_.vcpus.push_back(vcpu);
                     subscriptions_.set_cr(vcpu, slot, c.cr, c.enable);
                   });
                 },
                 [&](const ControlMsr& c) {
                   for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
                     if (subscriptions_.has_msr(vcpu, slot, c.msr) != c.enable) undo_.vcpus.push_back(vcpu);
                     subscriptions_.set_msr(vcpu, slot, c.msr, c.enable);
                   });
                 },
                 [&](const ControlSinglestep& c) {
                   if (subscriptions_.has_singlestep(c.vcpu, slot) != c.enable) undo_.vcpus.push_back(c.vcpu);
                   subscriptions_.set_singlestep(c.vcpu, slot, c.enable);
                 },
                 [&](const PauseVcpu& c) { for_each_vcpu(c.vcpu, [&](VcpuId vcpu) { pause(slot, vcpu, now, out); }); },
                 [&](const SetPageAccess&) { apply_pages(slot, change.entries); },
                 [&](const WritePhysical& c) { apply_patch(slot, change, c); },
                 [&](const auto&) {},  // a withdrawal: the tables are changed already
             },
             change.command);
}

void GuestMachine::apply_events(AgentSlot slot, const ControlEvents& c) {
  for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
    for (unsigned i = 0; i < kEventCount; ++i) {
      const auto kind = static_cast<EventKind>(i);
      const auto before = subscriptions_.role_of(vcpu, slot, kind);
      auto after = before;
      if (c.events.has(kind)) {
        // Who asked for a pause decides it; everybody else can only watch.
        if (c.operation == Operation::Disable)
          after = std::nullopt;
        else
          after = kind == EventKind::Pause ? Role::Observer : c.role;
      } else if (c.operation == Operation::Set) {
        after = std::nullopt;
      }
      if (after == before) continue;
      subscriptions_.set_event(vcpu, slot, kind, after);
      undo_.roles.push_back({vcpu, kind, before});
    }
  });
}

/// One more pause: joins the PAUSE event that is pending, or the one that is on its way, or asks for one.
/// Who has answered the pending one does not join it again: nobody holds a vCPU for longer than its pause_max by that.
void GuestMachine::pause(AgentSlot slot, VcpuId vcpu, TimePoint now, Effects& out) {
  VcpuMachine& machine = vcpus_[vcpu.value];
  undo_.vcpus.push_back(vcpu);
  const bool pending = machine.waiting() && machine.event().kind() == EventKind::Pause;
  if (pending && (machine.owes(slot) || !machine.was_owed(slot))) return tell(slot, machine, true, now, out);
  PauseState& state = pauses_[vcpu.value];
  ++state.counts[slot];
  if (state.asked) return;
  state.asked = true;
  add_part(PauseVcpu{vcpu}, vcpu, false);
}

/// The tables as they were before the change under way. Its agent may be gone: then nothing of it is left to undo.
void GuestMachine::undo_wish(TimePoint now, Effects& out) {
  const WishChange& change = wishes_.front();
  if (!is_present(change.slot, change.agent)) return;
  const AgentSlot slot = change.slot;
  for (const auto& [vcpu, kind, role] : undo_.roles) subscriptions_.set_event(vcpu, slot, kind, role);
  undo_pages(slot);
  if (undo_.patch) {
    patches_.restore(slot, *undo_.patch);
    generations(AddressSpace::Normal).change(undo_.patch->gpa, KVMI_PATCH_BYTES_MAX);
  }
  for (const VcpuId vcpu : undo_.vcpus) {
    if (const auto* cr = std::get_if<ControlCr>(&change.command))
      subscriptions_.set_cr(vcpu, slot, cr->cr, !cr->enable);
    if (const auto* msr = std::get_if<ControlMsr>(&change.command))
      subscriptions_.set_msr(vcpu, slot, msr->msr, !msr->enable);
    if (const auto* step = std::get_if<ControlSinglestep>(&change.command))
      subscriptions_.set_singlestep(vcpu, slot, !step->enable);
    if (!std::holds_alternative<PauseVcpu>(change.command)) continue;
    VcpuMachine& machine = vcpus_[vcpu.value];
    if (pauses_[vcpu.value].counts[slot] != 0) {
      --pauses_[vcpu.value].counts[slot];
    } else if (machine.waiting() && machine.event().kind() == EventKind::Pause && machine.owes(slot)) {
      machine.release_one(voter(slot, machine));
      settle(machine, now, out);
    }
  }
  undo_ = Undo{};
  enforce_grant(slot);  // what was before may not be allowed any more
}

// ---- what the hypervisor said ----

/// The part is confirmed: the hypervisor knows it.
void GuestMachine::note_told(const Command& command) {
  std::visit(Overloaded{
                 [&](const ControlEvents& c) {
                   for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
                     auto& bits = told_[vcpu.value].events.bits;
                     bits = c.operation == Operation::Enable ? bits | c.events.bits : bits & ~c.events.bits;
                   });
                 },
                 [&](const ControlCr& c) {
                   for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
                     auto& crs = told_[vcpu.value].crs;
                     crs = static_cast<std::uint8_t>(c.enable ? crs | (1U << c.cr) : crs & ~(1U << c.cr));
                   });
                 },
                 [&](const ControlMsr& c) {
                   for_each_vcpu(c.vcpu, [&](VcpuId vcpu) {
                     auto& msrs = told_[vcpu.value].msrs;
                     const auto place = std::lower_bound(msrs.begin(), msrs.end(), c.msr);
                     const bool found = place != msrs.end() && *place == c.msr;
                     if (c.enable && !found) msrs.insert(place, c.msr);
                     if (!c.enable && found) msrs.erase(place);
                   });
                 },
                 [&](const ControlSinglestep& c) { told_[c.vcpu.value].singlestep = c.enable; },
                 [&](const SetPageAccess& c) { note_pages_told(c); },
                 [&](const WritePhysical& c) { note_patch(c); },
                 [&](const auto&) {},
             },
             command);
}

void GuestMachine::wish_confirmed(const OpenCommand& open, const CommandReply& reply, TimePoint now, Effects& out) {
  const WishPart part = wish_parts_[open.tag];
  --wish_parts_open_;
  const auto* placed = std::get_if<WritePhysical>(&part.command);
  if (placed != nullptr && !part.takes_away) patch_answered(*placed);
  if (reply.error == ErrorCode::None) {
    note_told(part.command);
  } else {
    if (std::holds_alternative<PauseVcpu>(part.command)) pauses_[open.vcpu.value].asked = false;
    const bool nobody_asks = undoing_ || wishes_.front().agent == AgentId{};
    if (part.takes_away || nobody_asks) {
      out.emplace_back(Report{.fact = Fact::UnionRefused,
                              .vcpu = open.vcpu,
                              .command = open.id,
                              .error = reply.error,
                              .text = part.takes_away ? "the hypervisor refused to take a wish back"
                                                      : "the hypervisor refused what it had taken before"});
      // A patch that the hypervisor does not take off is one that it does not have.
      if (const auto* patch = std::get_if<WritePhysical>(&part.command); patch != nullptr && part.takes_away)
        note_patch(*patch);
      if (!part.takes_away) drop_refused(part, reply.error, out);
    } else if (wish_error_ == ErrorCode::None) {
      wish_error_ = reply.error;
      wish_error_text_ = reply.text;
      drop_unsent_parts();
    }
  }
  send_parts(now, out);
  if (wish_parts_open_ != 0) return;
  // Telling --refused--> Undoing: the parts that were taken are taken back.
  if (wish_error_ != ErrorCode::None && !undoing_) {
    undoing_ = true;
    undo_wish(now, out);
    tell_differences();
    send_parts(now, out);
    if (wish_parts_open_ != 0) return;
  }
  finish_wish(now, out);
  next_wish(now, out);
}

/// The hypervisor does not take again what agents were told to have: they lose it, and are told so. Left in the tables
/// it would be told with every later change, and make other agents' changes fail.
void GuestMachine::drop_refused(const WishPart& part, ErrorCode error, Effects& out) {
  AgentSet losers;
  const auto each = [&](VcpuId named, auto&& has, auto&& take) {
    for_each_vcpu(named, [&](VcpuId vcpu) {
      present_.for_each([&](AgentSlot slot) {
        if (!has(vcpu, slot)) return;
        take(vcpu, slot);
        losers.add(slot);
      });
    });
  };
  std::visit(
      Overloaded{
          [&](const ControlEvents& c) {
            for (unsigned i = 0; i < kEventCount; ++i) {
              const auto kind = static_cast<EventKind>(i);
              if (!c.events.has(kind)) continue;
              each(
                  c.vcpu,
                  [&](VcpuId vcpu, AgentSlot slot) { return subscriptions_.role_of(vcpu, slot, kind).has_value(); },
                  [&](VcpuId vcpu, AgentSlot slot) { subscriptions_.set_event(vcpu, slot, kind, std::nullopt); });
            }
          },
          [&](const ControlCr& c) {
            each(
                c.vcpu, [&](VcpuId vcpu, AgentSlot slot) { return subscriptions_.has_cr(vcpu, slot, c.cr); },
                [&](VcpuId vcpu, AgentSlot slot) { subscriptions_.set_cr(vcpu, slot, c.cr, false); });
          },
          [&](const ControlMsr& c) {
            each(
                c.vcpu, [&](VcpuId vcpu, AgentSlot slot) { return subscriptions_.has_msr(vcpu, slot, c.msr); },
                [&](VcpuId vcpu, AgentSlot slot) { subscriptions_.set_msr(vcpu, slot, c.msr, false); });
          },
          [&](const ControlSinglestep& c) {
            each(
                c.vcpu, [&](VcpuId vcpu, AgentSlot slot) { return subscriptions_.has_singlestep(vcpu, slot); },
                [&](VcpuId vcpu, AgentSlot slot) { subscriptions_.set_singlestep(vcpu, slot, false); });
          },
          [&](const SetPageAccess& c) { losers = losers | drop_pages(c); },
          [&](const WritePhysical& c) {
            give_up_patch(c.gpa, error, "the hypervisor did not take the patch again: it is withdrawn", out);
          },
          [&](const auto&) {},
      },
      part.command);
  losers.for_each([&](AgentSlot slot) {
    send_revoked(slot, error, "the hypervisor did not take it again: events, registers or page rights were withdrawn",
                 out);
  });
  step_refused(part.command, error, out);
  // Some of it may be there from before: that is taken back, as a change of its own behind this one.
  wishes_.insert(wishes_.begin() + 1, WishChange{});
}

// Telling or Undoing --all answered--> Idle: only now is the agent told yes, or why not.
void GuestMachine::finish_wish(TimePoint, Effects& out) {
  const WishChange change = std::move(wishes_.front());
  wishes_.pop_front();
  busy_ = undoing_ = false;
  wish_parts_.clear();
  wish_parts_sent_ = 0;
  batches_.clear();  // no effect of this step views them: the last part was answered
  patch_bytes_.clear();
  told_done_ = std::max(told_done_, change.ticket);
  if (!is_present(change.slot, change.agent)) return;
  if (!planted(Planted::RequestNotReleased)) agents_[change.slot].requests.release(1);
  const auto id = static_cast<std::uint16_t>(id_of(change.command));
  if (wish_error_ != ErrorCode::None) {
    reply_text_ = wish_error_text_;
    return refuse(change.slot, change.seq, id, wish_error_, reply_text_, out, body_of(change, wish_error_));
  }
  report_granted(change.slot, change.seq, command_of(change), out);
  CommandReply reply{id, {}, {}, body_of(change, ErrorCode::None)};
  if (const auto* events = std::get_if<ControlEvents>(&change.command)) {
    EventSet enabled = kEveryEvent;
    for_each_vcpu(events->vcpu, [&](VcpuId vcpu) { enabled.bits &= subscriptions_.events_of(vcpu, change.slot).bits; });
    reply.body = ControlEventsReply{enabled};
  }
  answer(change.slot, change.seq, reply, out);
}

}  // namespace kvmid::core
