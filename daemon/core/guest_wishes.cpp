// SPDX-License-Identifier: GPL-2.0-or-later
// What agents wish, and how the hypervisor comes to know the union of it.
//
// Changes are carried out one after another. A change is applied to the tables, the difference between the union and
// what the hypervisor has confirmed is told, and only when all of it is confirmed is the agent told yes. If the
// hypervisor refuses a part, the change is undone in the tables and the difference is told again.
#include <algorithm>

#include "daemon/core/guest_machine.h"

namespace kvmid::core {

namespace {

constexpr std::size_t kPageEntriesMax = 2048;  // in one SET_PAGE_ACCESS

/// A part that takes something away from the union; that the hypervisor refuses it is nobody's error.
bool takes_away(const Command& command) {
  return std::visit(Overloaded{
                        [](const ControlEvents& c) { return c.operation == Operation::Disable; },
                        [](const ControlCr& c) { return !c.enable; },
                        [](const ControlMsr& c) { return !c.enable; },
                        [](const ControlSinglestep& c) { return !c.enable; },
                        [](const auto&) { return false; },
                    },
                    command);
}

}  // namespace

void GuestMachine::queue_wish(AgentSlot slot, Seq seq, const Command& command, TimePoint now, Effects& out) {
  Agent& agent = agents_[slot];
  const auto id = static_cast<std::uint16_t>(id_of(command));
  if (wishes_.size() >= kWishQueueMax) return refuse(slot, seq, id, ErrorCode::Busy, "too many changes are waiting", out);
  if (!agent.requests.charge(1))
    return refuse(slot, seq, id, ErrorCode::Busy, "quota of open commands (requests) is used up", out);
  WishChange change{.slot = slot, .agent = agent.id, .seq = seq, .command = command, .entries = {}};
  if (const auto* pages = std::get_if<SetPageAccess>(&command)) {
    for (std::size_t i = 0; i < pages->entries.size(); ++i) change.entries.push_back(pages->entries[i]);
    change.command = SetPageAccess{pages->space, {}};
  }
  wishes_.push_back(std::move(change));
  next_wish(now, out);
}

/// Nothing of the agent is left in the tables; the hypervisor is told before any other change.
void GuestMachine::withdraw(AgentSlot slot, TimePoint now, Effects& out) {
  pages_.remove(slot, [&](Gfn gfn) { touched_pages_.push_back(gfn); });
  subscriptions_.remove(slot);
  for (PauseState& pause : pauses_) pause.counts[slot] = 0;
  const AgentId gone = agents_[slot].id;
  present_.remove(slot);
  const auto first_waiting = wishes_.begin() + (busy_ ? 1 : 0);
  wishes_.erase(std::remove_if(first_waiting, wishes_.end(), [&](const WishChange& change) { return change.agent == gone; }),
                wishes_.end());
  if (link_ != Link::Up) {
    touched_pages_.clear();
    return;
  }
  wishes_.insert(wishes_.begin() + (busy_ ? 1 : 0), WishChange{});
  next_wish(now, out);
}

void GuestMachine::touch_all_pages() {
  pages_.for_each_restricted([&](Gfn gfn) { touched_pages_.push_back(gfn); });
  for (const auto& [gfn, access] : told_pages_) touched_pages_.push_back(Gfn{gfn});
}

// Idle --change--> Telling, or done at once where the union does not change.
void GuestMachine::next_wish(TimePoint now, Effects& out) {
  while (!busy_ && !wishes_.empty() && link_ == Link::Up) {
    busy_ = true;
    undo_ = Undo{};
    wish_error_ = ErrorCode::None;
    wish_error_text_.clear();
    apply_wish(wishes_.front(), now, out);
    tell_differences(now, out);
    if (wish_parts_open_ == 0) finish_wish(now, out);
  }
  if (unhook_ && !unhook_answered_ && !busy_ && wishes_.empty()) {
    unhook_answered_ = true;
    out.emplace_back(SendEventReply{*unhook_, EventReply{.vcpu = kAllVcpus, .event = EventKind::Unhook, .value = {}}});
  }
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
                 [&](const SetPageAccess&) {
                   for (const auto& entry : change.entries)
                     for (std::uint64_t i = 0; i < entry.pages; ++i) {
                       const Gfn gfn{(entry.gpa >> kPageShift) + i};
                       const std::uint8_t before = pages_.set(slot, gfn, entry.access);
                       if (before == entry.access) continue;
                       undo_.pages.emplace_back(gfn, before);
                       touched_pages_.push_back(gfn);
                     }
                 },
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
        if (c.operation == Operation::Disable) after = std::nullopt;
        else after = kind == EventKind::Pause ? Role::Observer : c.role;
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
void GuestMachine::pause(AgentSlot slot, VcpuId vcpu, TimePoint now, Effects& out) {
  VcpuMachine& machine = vcpus_[vcpu.value];
  undo_.vcpus.push_back(vcpu);
  if (machine.waiting() && machine.event().kind() == EventKind::Pause) return tell(slot, machine, true, now, out);
  PauseState& state = pauses_[vcpu.value];
  if (state.counts[slot] == 0xffff) return;
  ++state.counts[slot];
  if (state.asked) return;
  state.asked = true;
  send_wish(PauseVcpu{vcpu}, vcpu, now, out);
}

/// The tables as they were before the change under way. Its agent may be gone: then nothing of it is left to undo.
void GuestMachine::undo_wish(TimePoint now, Effects& out) {
  const WishChange& change = wishes_.front();
  if (!is_present(change.slot, change.agent)) return;
  const AgentSlot slot = change.slot;
  for (const auto& [vcpu, kind, role] : undo_.roles) subscriptions_.set_event(vcpu, slot, kind, role);
  for (const auto& [gfn, access] : undo_.pages) {
    pages_.set(slot, gfn, access);
    touched_pages_.push_back(gfn);
  }
  for (const VcpuId vcpu : undo_.vcpus) {
    if (const auto* cr = std::get_if<ControlCr>(&change.command)) subscriptions_.set_cr(vcpu, slot, cr->cr, !cr->enable);
    if (const auto* msr = std::get_if<ControlMsr>(&change.command)) subscriptions_.set_msr(vcpu, slot, msr->msr, !msr->enable);
    if (const auto* step = std::get_if<ControlSinglestep>(&change.command)) subscriptions_.set_singlestep(vcpu, slot, !step->enable);
    if (!std::holds_alternative<PauseVcpu>(change.command)) continue;
    VcpuMachine& machine = vcpus_[vcpu.value];
    if (pauses_[vcpu.value].counts[slot] != 0) {
      --pauses_[vcpu.value].counts[slot];
    } else if (machine.waiting() && machine.event().kind() == EventKind::Pause && machine.owes(slot)) {
      machine.default_vote(agents_[slot].voter(slot));
      settle(machine, now, out);
    }
  }
  undo_ = Undo{};
}

// ---- telling the hypervisor ----

void GuestMachine::send_wish(const Command& command, VcpuId vcpu, TimePoint now, Effects& out) {
  const OpenCommand open{.id = id_of(command),
                         .purpose = Purpose::Wish,
                         .slot = 0,
                         .agent = wishes_.front().agent,
                         .agent_seq = wishes_.front().seq,
                         .vcpu = vcpu,
                         .tag = static_cast<std::uint32_t>(wish_parts_.size())};
  if (!send_command(command, open, now, out)) {
    // Full of agents' own commands: this part is not told, so the change fails (a withdrawal is told with the next one).
    if (!takes_away(command)) {
      wish_error_ = ErrorCode::Busy;
      wish_error_text_ = "the guest has too many open commands";
    }
    if (std::holds_alternative<PauseVcpu>(command)) pauses_[vcpu.value].asked = false;
    return;
  }
  wish_parts_.push_back(command);
  ++wish_parts_open_;
}

/// Sends every difference between the union and what the hypervisor has confirmed.
void GuestMachine::tell_differences(TimePoint now, Effects& out) {
  std::vector<Subscriptions::VcpuUnion> wanted(vcpus_.size());
  if (!withdrawing())
    for (std::uint16_t i = 0; i < vcpus_.size(); ++i) wanted[i] = subscriptions_.union_of(VcpuId{i});
  if (wanted != told_) {
    tell_event_differences(wanted, now, out);
    tell_register_differences(wanted, now, out);
  }
  tell_page_differences(now, out);
}

void GuestMachine::tell_event_differences(const std::vector<Subscriptions::VcpuUnion>& wanted, TimePoint now, Effects& out) {
  const auto added = [&](std::size_t i) { return wanted[i].events.bits & ~told_[i].events.bits; };
  const auto removed = [&](std::size_t i) { return told_[i].events.bits & ~wanted[i].events.bits; };
  const auto send = [&](VcpuId vcpu, Operation operation, std::uint64_t events) {
    if (events != 0) send_wish(ControlEvents{vcpu, operation, Role::Decider, EventSet{events}}, vcpu, now, out);
  };
  bool alike = true;  // on every vCPU: one message does for all
  for (std::size_t i = 1; i < wanted.size(); ++i) alike = alike && added(i) == added(0) && removed(i) == removed(0);
  for (std::size_t i = 0; i < (alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    send(vcpu, Operation::Disable, removed(i));
    send(vcpu, Operation::Enable, added(i));
  }
}

void GuestMachine::tell_register_differences(const std::vector<Subscriptions::VcpuUnion>& wanted, TimePoint now,
                                             Effects& out) {
  const auto same = [&](auto member) {
    for (std::size_t i = 1; i < wanted.size(); ++i)
      if (wanted[i].*member != wanted[0].*member || told_[i].*member != told_[0].*member) return false;
    return true;
  };
  using Union = Subscriptions::VcpuUnion;
  const bool crs_alike = same(&Union::crs);
  for (std::size_t i = 0; i < (crs_alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = crs_alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    for (const std::uint32_t cr : {0U, 3U, 4U}) {
      const bool want = ((wanted[i].crs >> cr) & 1U) != 0;
      if (want != (((told_[i].crs >> cr) & 1U) != 0)) send_wish(ControlCr{vcpu, want, cr}, vcpu, now, out);
    }
  }
  const bool msrs_alike = same(&Union::msrs);
  for (std::size_t i = 0; i < (msrs_alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = msrs_alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    const auto& want = wanted[i].msrs;
    const auto& told = told_[i].msrs;
    for (const std::uint32_t msr : told)
      if (!std::binary_search(want.begin(), want.end(), msr)) send_wish(ControlMsr{vcpu, false, msr}, vcpu, now, out);
    for (const std::uint32_t msr : want)
      if (!std::binary_search(told.begin(), told.end(), msr)) send_wish(ControlMsr{vcpu, true, msr}, vcpu, now, out);
  }
  for (std::uint16_t i = 0; i < wanted.size(); ++i)
    if (wanted[i].singlestep != told_[i].singlestep)
      send_wish(ControlSinglestep{VcpuId{i}, wanted[i].singlestep}, VcpuId{i}, now, out);
}

/// Pages in runs of equal rights; rights that are given back go in messages of their own, for they cannot fail a change.
void GuestMachine::tell_page_differences(TimePoint now, Effects& out) {
  if (touched_pages_.empty()) return;
  std::sort(touched_pages_.begin(), touched_pages_.end());
  touched_pages_.erase(std::unique(touched_pages_.begin(), touched_pages_.end()), touched_pages_.end());
  const auto told_of = [&](Gfn gfn) {
    const auto found = told_pages_.find(gfn.value);
    return found == told_pages_.end() ? kRwx : found->second;
  };
  for (const bool giving_back : {true, false}) {
    std::vector<kvmi_page_access_entry> batch;
    const auto flush = [&] {
      if (batch.empty()) return;
      batches_.push_back(std::move(batch));
      batch.clear();
      send_wish(SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(batches_.back())}, VcpuId{}, now, out);
    };
    for (const Gfn gfn : touched_pages_) {
      const std::uint8_t want = withdrawing() ? kRwx : pages_.effective(gfn);
      const std::uint8_t told = told_of(gfn);
      if (want == told || ((told & ~want) == 0) != giving_back) continue;
      const bool extends = !batch.empty() && batch.back().access == want && batch.back().pages != 0xffffffff &&
                           batch.back().gpa + std::uint64_t{batch.back().pages} * kPageSize == gpa_of(gfn).value;
      if (extends) {
        ++batch.back().pages;
      } else {
        if (batch.size() == kPageEntriesMax) flush();
        batch.push_back({gpa_of(gfn).value, 1, want, {}});
      }
    }
    flush();
  }
  touched_pages_.clear();
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
                 [&](const SetPageAccess& c) {
                   for (std::size_t i = 0; i < c.entries.size(); ++i) {
                     const kvmi_page_access_entry entry = c.entries[i];
                     for (std::uint64_t page = 0; page < entry.pages; ++page) {
                       const std::uint64_t gfn = (entry.gpa >> kPageShift) + page;
                       if (entry.access == kRwx) told_pages_.erase(gfn);
                       else told_pages_[gfn] = entry.access;
                     }
                   }
                 },
                 [&](const auto&) {},
             },
             command);
}

void GuestMachine::wish_confirmed(const OpenCommand& open, const CommandReply& reply, TimePoint now, Effects& out) {
  const Command& part = wish_parts_[open.tag];
  --wish_parts_open_;
  if (reply.error == ErrorCode::None) {
    note_told(part);
  } else {
    if (std::holds_alternative<PauseVcpu>(part)) pauses_[open.vcpu.value].asked = false;
    if (takes_away(part) || undoing_) {
      out.emplace_back(Report{.fact = Fact::UnionRefused, .vcpu = open.vcpu, .command = open.id, .error = reply.error,
                              .text = "the hypervisor refused to take a wish back"});
    } else if (wish_error_ == ErrorCode::None) {
      wish_error_ = reply.error;
      wish_error_text_ = reply.text;
    }
  }
  if (wish_parts_open_ != 0) return;
  // Telling --refused--> Undoing: the parts that were taken are taken back.
  if (wish_error_ != ErrorCode::None && !undoing_) {
    undoing_ = true;
    undo_wish(now, out);
    tell_differences(now, out);
    if (wish_parts_open_ != 0) return;
  }
  finish_wish(now, out);
  next_wish(now, out);
}

// Telling or Undoing --all answered--> Idle: only now is the agent told yes, or why not.
void GuestMachine::finish_wish(TimePoint now, Effects& out) {
  if (wish_error_ != ErrorCode::None && !undoing_) undo_wish(now, out);  // no part could even be sent
  const WishChange change = std::move(wishes_.front());
  wishes_.pop_front();
  busy_ = undoing_ = false;
  wish_parts_.clear();
  batches_.clear();
  if (!is_present(change.slot, change.agent)) return;
  agents_[change.slot].requests.release(1);
  const auto id = static_cast<std::uint16_t>(id_of(change.command));
  if (wish_error_ != ErrorCode::None) {
    reply_text_ = wish_error_text_;
    return refuse(change.slot, change.seq, id, wish_error_, reply_text_, out);
  }
  CommandReply reply{id, {}, {}, {}};
  if (const auto* events = std::get_if<ControlEvents>(&change.command)) {
    EventSet enabled = kEveryEvent;
    for_each_vcpu(events->vcpu, [&](VcpuId vcpu) { enabled.bits &= subscriptions_.events_of(vcpu, change.slot).bits; });
    reply.body = ControlEventsReply{enabled};
  }
  answer(change.slot, change.seq, reply, out);
}

}  // namespace kvmid::core
