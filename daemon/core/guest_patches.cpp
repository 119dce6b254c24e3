// SPDX-License-Identifier: GPL-2.0-or-later
// Patches of agents in guest memory, and how a vCPU gets past one without anybody missing it.
//
// A patch is a wish: agents' patches are the union, and the hypervisor is brought to it as to every other part of the union.
// Stepping over one lifts it out of the union for the time of one instruction, while every other vCPU is held.
#include <algorithm>

#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

namespace kvmid::core {

namespace {

constexpr unsigned kPlaceOrTakeOff = KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;

std::vector<std::byte> copy_of(Bytes bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

// ---- wishes ----

/// What can be said of a write before its turn.
std::optional<Refusal> GuestMachine::refusal_of_write(const Grant& grant, const WritePhysical& command) const {
  constexpr unsigned kConditions = KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT | KVMI_WRITE_UNPATCH;
  if (!grant.unconditional_writes && (command.flags & kConditions) == 0)
    return Refusal{ErrorCode::NotPermitted, "policy wants a cookie or the expected bytes with each write"};
  if ((command.flags & kPlaceOrTakeOff) == 0) return std::nullopt;
  if (command.space != AddressSpace::Normal)
    return Refusal{ErrorCode::NotSupported, "patches exist in the normal address space only"};
  if ((command.flags & KVMI_WRITE_PATCH) != 0 && !version_.events.has(EventKind::Breakpoint))
    return Refusal{ErrorCode::NotSupported, "this hypervisor makes no BREAKPOINT events: a patch could not be guarded"};
  if (!Patches::is_well_formed(command.gpa, command.data.size()))
    return Refusal{ErrorCode::Invalid, "a patch is 1 to 256 bytes within one page"};
  if (command.gpa.value >= facts_.max_gpa) return Refusal{ErrorCode::Fault, "not guest memory"};
  return std::nullopt;
}

/// What depends on the patches there are when the command's turn has come.
std::optional<Refusal> GuestMachine::refusal_of_patch(AgentSlot slot, const WritePhysical& command) const {
  if (const auto stale = refusal_of_cookie(command)) return stale;
  const bool owns = patches_.owns(slot, command.gpa, command.data.size());
  if ((command.flags & KVMI_WRITE_UNPATCH) != 0) {
    if (owns) return std::nullopt;
    return Refusal{ErrorCode::NoEntry, "this agent has no patch of that place and size"};
  }
  if (patches_.conflict(slot, command.gpa, command.data))
    return Refusal{ErrorCode::Busy, "a patch with other bytes, or of another place or size, is in the way"};
  if (!owns && patches_.patches_of(slot) >= agents_[slot].grant.quota.patches_max)
    return Refusal{ErrorCode::Busy, "quota of patches (patches) is used up"};
  return std::nullopt;
}

void GuestMachine::apply_patch(AgentSlot slot, const WishChange& change, const WritePhysical& command) {
  undo_.patch = (command.flags & KVMI_WRITE_UNPATCH) != 0 ? patches_.remove(slot, command.gpa)
                                                          : patches_.add(slot, command.gpa, change.bytes);
  generations(command.space).change(command.gpa, change.bytes.size());
}

/// What the hypervisor shall have at that place now: nothing while it is stepped over, or all is withdrawn.
const Patches::Patch* GuestMachine::wanted_patch(Gpa gpa) const {
  const bool lifted = step_.phase == StepOver::Phase::Lifting || step_.phase == StepOver::Phase::Stepping;
  if (withdrawing() || (lifted && gpa == step_.gpa)) return nullptr;
  return patches_.at(gpa);
}

/// Patches need their hits told here on every vCPU, and the means to step over them.
void GuestMachine::add_own_wishes(std::vector<Subscriptions::VcpuUnion>& wanted) const {
  if (patches_.empty()) return;
  EventSet needed;
  needed.add(EventKind::Breakpoint);
  if (!steps_refused_) needed.add(EventKind::Singlestep);
  for (auto& vcpu : wanted) vcpu.events.bits |= needed.bits & version_.events.bits;
  if (step_.steps) wanted[step_.vcpu.value].singlestep = true;
}

void GuestMachine::add_patch_part(Gpa gpa, Bytes data, Bytes expected, bool place) {
  WritePhysical write;
  write.gpa = gpa;
  write.flags = KVMI_WRITE_UNPATCH;
  write.data = patch_bytes_.emplace_back(copy_of(data));
  if (place) {
    write.flags = KVMI_WRITE_PATCH;
    if (!expected.empty()) {
      write.flags |= KVMI_WRITE_EXPECT;
      write.expected = patch_bytes_.emplace_back(copy_of(expected));
    }
  }
  add_part(write, VcpuId{}, !place);
}

void GuestMachine::tell_patches_removed() {
  for (const auto& [address, bytes] : told_patches_) {
    const Patches::Patch* wanted = wanted_patch(Gpa{address});
    if (wanted == nullptr || wanted->bytes.size() != bytes.size()) add_patch_part(Gpa{address}, bytes, {}, false);
  }
}

/// After everything else is confirmed: no patch may be met before its BREAKPOINT events come here.
void GuestMachine::tell_patches_placed(const WishChange& change) {
  const auto* asked = std::get_if<WritePhysical>(&change.command);
  bool first = true;
  patches_.for_each([&](Gpa gpa, const Patches::Patch& patch) {
    if (wanted_patch(gpa) == nullptr) return;
    // With expected bytes it is placed anew, also where it is shared: the hypervisor compares.
    const bool compares = asked != nullptr && asked->gpa == gpa && !change.expected.empty() && !undoing_;
    const auto told = told_patches_.find(gpa.value);
    const bool there = told != told_patches_.end() && told->second == patch.bytes;
    if (there && !compares) return;
    add_patch_part(gpa, patch.bytes, compares ? Bytes(change.expected) : Bytes{}, true);
    wish_parts_.back().alone = first;
    first = false;
  });
}

/// The hypervisor confirmed it, or does not have it.
void GuestMachine::note_patch(const WritePhysical& command) {
  ++told_patches_changes_;
  if ((command.flags & KVMI_WRITE_PATCH) != 0) {
    told_patches_[command.gpa.value] = copy_of(command.data);
    return;
  }
  if (told_patches_.erase(command.gpa.value) == 0) return;
  if (step_.phase != StepOver::Phase::Idle && step_.steps && step_.gpa == command.gpa) return;  // nobody runs
  GonePatch gone{command.gpa, std::vector<bool>(vcpus_.size())};
  for (std::size_t i = 0; i < vcpus_.size(); ++i) gone.vcpus[i] = !vcpus_[i].waiting() && !kept_[i];
  if (gone_patches_.size() == kGonePatchesMax) gone_patches_.pop_front();
  gone_patches_.push_back(std::move(gone));
}

/// Nobody's patch any more: it cannot be placed, or cannot be got past.
void GuestMachine::give_up_patch(Gpa gpa, ErrorCode error, std::string_view text, Effects& out) {
  generations(AddressSpace::Normal).change(gpa, KVMI_PATCH_BYTES_MAX);
  patches_.drop(gpa).for_each([&](AgentSlot slot) { send_revoked(slot, error, text, out); });
}

/// A patch is placed, or taken back by its owner, when nobody steps over that place.
bool GuestMachine::waits_for_step(const WishChange& change) const {
  const bool lifted = step_.phase == StepOver::Phase::Lifting || step_.phase == StepOver::Phase::Stepping;
  const auto* patch = std::get_if<WritePhysical>(&change.command);
  return lifted && change.agent != AgentId{} && patch != nullptr && patch->gpa == step_.gpa;
}

/// The hypervisor is about to be told of it, and it shall still have it. (One that is about to be lifted is placed first.)
bool GuestMachine::is_wanted(const WritePhysical& patch) const {
  const Patches::Patch* wanted = withdrawing() ? nullptr : patches_.at(patch.gpa);
  return wanted != nullptr && std::equal(patch.data.begin(), patch.data.end(), wanted->bytes.begin(), wanted->bytes.end());
}

/// The agent owns no patch any more. False: it owned none.
bool GuestMachine::forget_patches(AgentSlot slot) {
  patches_.for_each([&](Gpa gpa, const Patches::Patch& patch) {
    if (patch.owners.has(slot)) generations(AddressSpace::Normal).change(gpa, patch.bytes.size());
  });
  return patches_.remove_all(slot);
}

/// A hypervisor that is gone has no patches, and nobody steps.
void GuestMachine::forget_steps() {
  told_patches_.clear();
  sent_patches_.clear();
  own_hit_.assign(vcpus_.size(), false);
  met_patch_.assign(vcpus_.size(), false);
  keep_until_.assign(vcpus_.size(), 0);
  gone_patches_.clear();
  step_ = StepOver{};
  to_step_.clear();
  kept_.assign(vcpus_.size(), std::nullopt);
  kept_count_ = 0;
}

// ---- events ----

/// The hypervisor has a patch there, or may have.
bool GuestMachine::may_be_patched(Gpa gpa) const {
  return told_patches_.count(gpa.value) != 0 || sent_patches_.count(gpa.value) != 0;
}

void GuestMachine::patch_sent(const WritePhysical& patch) {
  sent_patches_[patch.gpa.value] = patch.data.size();
  ++told_patches_changes_;
}

void GuestMachine::patch_answered(const WritePhysical& patch) {
  sent_patches_.erase(patch.gpa.value);
  ++told_patches_changes_;
}

/// A patch is met there: of an agent, or one that is about to be taken off.
bool GuestMachine::on_patch(const Event& event) const {
  const auto* hit = std::get_if<BreakpointData>(&event.data);
  return hit != nullptr && !own_hit_[event.vcpu.value] && (patches_.at(hit->gpa) != nullptr || may_be_patched(hit->gpa));
}

/// The vCPU met a patch just before it was taken off: no agent's business any more, and not the guest's either.
bool GuestMachine::is_late_hit(const Event& event) const {
  const auto* hit = std::get_if<BreakpointData>(&event.data);
  if (hit == nullptr || gone_patches_.empty() || on_patch(event)) return false;
  return std::any_of(gone_patches_.begin(), gone_patches_.end(), [&](const GonePatch& gone) {
    return gone.gpa == hit->gpa && gone.vcpus[event.vcpu.value];
  });
}

/// The events of a vCPU come in order: after this one no older hit of it can come.
void GuestMachine::forget_late_hits(VcpuId vcpu) {
  for (GonePatch& gone : gone_patches_) gone.vcpus[vcpu.value] = false;
  while (!gone_patches_.empty() && std::none_of(gone_patches_.front().vcpus.begin(), gone_patches_.front().vcpus.end(),
                                                [](bool possible) { return possible; }))
    gone_patches_.pop_front();
}

/// The event that a vCPU stopped in may be the end of its step.
void GuestMachine::note_stop(const Event& event, TimePoint now, Effects& out) {
  own_hit_[event.vcpu.value] = false;
  if (step_.phase != StepOver::Phase::Stepping || event.vcpu != step_.vcpu) return;
  const EventKind kind = event.kind();
  if (kind != EventKind::Singlestep && kind != EventKind::Breakpoint && kind != EventKind::CreateVcpu) return;
  // What is met where the patch is lifted is under it: a breakpoint of the guest's own.
  const auto* hit = std::get_if<BreakpointData>(&event.data);
  own_hit_[event.vcpu.value] = hit != nullptr && hit->gpa == step_.gpa;
  place_again(now, out);
}

// ---- stepping over ----

bool GuestMachine::can_step() const {
  return !steps_refused_ && version_.events.has(EventKind::Singlestep) &&
         version_.commands.has(CommandId::ControlSinglestep) &&
         (vcpus_.size() == 1 || version_.commands.has(CommandId::PauseVcpu));
}

/// True: the reply waits, until this vCPU has been helped over a patch or until another one has.
bool GuestMachine::keep_back(const VcpuMachine& machine, Verdict& verdict) {
  const Event& event = machine.event();
  const bool goes_on =
      verdict.reply.action == Action::Allow || (verdict.reply.action == Action::Retry && verdict.reply.step_over);
  // Under the patch is a breakpoint of the guest's own, which looks the same to its agent: it is to happen.
  const bool own = own_hit_[event.vcpu.value] && verdict.reply.step_over && event.actions.has(Action::Allow);
  if (own) verdict.reply.action = Action::Allow;
  verdict.reply.step_over = false;
  bool steps = false;
  if (goes_on && (met_patch_[event.vcpu.value] || on_patch(event)) && event.actions.has(Action::Retry)) {
    verdict.reply.action = Action::Retry;
    // Who was sent somewhere else has no patch in its way.
    steps = on_patch(event) && (!verdict.set_registers || verdict.regs.rip == event.regs.rip);
  }
  if (steps) to_step_.push_back(event.vcpu);
  const bool is_stepping = step_.phase == StepOver::Phase::Stepping && event.vcpu == step_.vcpu;
  const bool is_new = keep_until_[event.vcpu.value] > told_done_;  // it would run without what agents wish of it
  if (!steps && !is_new && (step_.phase == StepOver::Phase::Idle || is_stepping)) return false;
  kept_[event.vcpu.value] = verdict;
  ++kept_count_;
  return true;
}

void GuestMachine::let_go_kept(VcpuId vcpu, TimePoint now, Effects& out) {
  std::optional<Verdict>& kept = kept_[vcpu.value];
  if (!kept) return;
  let_go(vcpu, *kept, now, out);
  kept.reset();
  --kept_count_;
}

bool GuestMachine::others_stopped() const {
  if (planted(Planted::OthersNotHeld)) return true;
  for (std::size_t i = 0; i < vcpus_.size(); ++i)
    if (i != step_.vcpu.value && !vcpus_[i].waiting() && !kept_[i]) return false;
  return true;
}

// Idle --a vCPU is to step--> Holding, or Lifting at once where the patch is to go anyway.
void GuestMachine::begin_step(TimePoint now, Effects& out) {
  const VcpuId vcpu = to_step_.front();
  to_step_.pop_front();
  const Gpa gpa = std::get<BreakpointData>(vcpus_[vcpu.value].event().data).gpa;
  if (wanted_patch(gpa) != nullptr && !can_step())
    give_up_patch(gpa, ErrorCode::NotSupported,
                  "a patch was met, and this hypervisor cannot step over it: it is taken off", out);
  if (wanted_patch(gpa) == nullptr && !may_be_patched(gpa)) return let_go_kept(vcpu, now, out);  // taken off meanwhile
  step_ = StepOver{.phase = StepOver::Phase::Holding, .vcpu = vcpu, .gpa = gpa, .until = now + kStepOverMax};
  if (wanted_patch(gpa) == nullptr) return lift(false, now, out);
  for (std::uint16_t i = 0; i < vcpus_.size(); ++i) {
    const VcpuId other{i};
    if (other == vcpu || vcpus_[i].waiting() || kept_[i] || pauses_[i].hold_asked) continue;
    const OpenCommand open{.id = CommandId::PauseVcpu, .purpose = Purpose::Hold, .vcpu = other};
    pauses_[i].hold_asked = send_command(PauseVcpu{other}, open, now, out).has_value();
  }
}

// Holding --the others stand still--> Lifting.
void GuestMachine::lift(bool steps, TimePoint now, Effects& out) {
  step_.phase = StepOver::Phase::Lifting;
  step_.steps = steps;
  step_.ticket = tell_soon(now, out);
}

// Stepping --the instruction is done, or takes too long--> Placing.
void GuestMachine::place_again(TimePoint now, Effects& out) {
  step_.phase = StepOver::Phase::Placing;
  step_.steps = false;
  step_.ticket = tell_soon(now, out);
}

/// Nobody has to step any more.
void GuestMachine::let_all_go(TimePoint now, Effects& out) {
  for (std::uint16_t i = 0; i < vcpus_.size() && kept_count_ != 0; ++i)
    if (keep_until_[i] <= told_done_) let_go_kept(VcpuId{i}, now, out);
}

/// The hypervisor refused to pause a vCPU for a step.
void GuestMachine::hold_refused(VcpuId vcpu, ErrorCode error, Effects& out) {
  pauses_[vcpu.value].hold_asked = false;
  if (step_.phase == StepOver::Phase::Holding)
    give_up_patch(step_.gpa, error, "a patch was met, and the hypervisor refused to pause the other vCPUs", out);
}

/// The hypervisor refused what a step or a patch needs; told by the union, so nobody asked for just this.
void GuestMachine::step_refused(const Command& command, ErrorCode error, Effects& out) {
  constexpr std::string_view kText = "the hypervisor refused what patches need: they are taken off";
  if (const auto* single = std::get_if<ControlSinglestep>(&command)) {
    if (!step_.steps || single->vcpu != step_.vcpu) return;
    step_.steps = false;
    give_up_patch(step_.gpa, error, kText, out);
  }
  const auto* events = std::get_if<ControlEvents>(&command);
  if (events == nullptr || patches_.empty()) return;
  if (events->events.has(EventKind::Singlestep)) steps_refused_ = true;
  if (!events->events.has(EventKind::Breakpoint)) return;
  std::vector<Gpa> all;
  patches_.for_each([&](Gpa gpa, const Patches::Patch&) { all.push_back(gpa); });
  for (const Gpa gpa : all) give_up_patch(gpa, error, kText, out);
  // None of them may be placed now: those that wait to be told are the last parts.
  while (wish_parts_.size() > wish_parts_sent_ && std::holds_alternative<WritePhysical>(wish_parts_.back().command))
    wish_parts_.pop_back();
}

void GuestMachine::advance_step(TimePoint now, Effects& out) {
  using Phase = StepOver::Phase;
  while (link_ == Link::Up) {
    switch (step_.phase) {
      case Phase::Idle:
        // All stay held until everybody who met a patch is past it: who stands still meets no other.
        if (to_step_.empty()) return let_all_go(now, out);
        begin_step(now, out);
        break;
      case Phase::Holding: {
        const bool wanted = wanted_patch(step_.gpa) != nullptr;
        if (wanted && !others_stopped()) return;
        lift(wanted, now, out);
        break;
      }
      case Phase::Lifting:
        if (told_done_ < step_.ticket) return;
        if (step_.steps) {
          ++counters_.stepped_over;
          step_.phase = Phase::Stepping;
          step_.until = now + kStepOverMax;
          let_go_kept(step_.vcpu, now, out);
          break;
        }
        let_go_kept(step_.vcpu, now, out);
        place_again(now, out);  // it may be wanted anew
        break;
      case Phase::Stepping:
        if (!withdrawing() && patches_.at(step_.gpa) != nullptr) return;
        place_again(now, out);
        break;
      case Phase::Placing:
        if (told_done_ < step_.ticket) return;
        step_ = StepOver{};  // Placing --the patch is there again--> Idle
        break;
    }
  }
}

/// A vCPU that does not stop, or an instruction that does not end.
void GuestMachine::step_on_time(TimePoint now, Effects& out) {
  const std::optional<TimePoint> until = step_deadline();
  if (!until || *until > now) return;
  if (step_.phase == StepOver::Phase::Holding) {
    give_up_patch(step_.gpa, ErrorCode::TimedOut, "a patch was met, and another vCPU did not stop in time", out);
  } else if (vcpus_[step_.vcpu.value].waiting()) {
    step_.until = now + kStepOverMax;  // an agent decides something that the instruction does
  } else {
    place_again(now, out);
  }
}

std::optional<TimePoint> GuestMachine::step_deadline() const {
  using Phase = StepOver::Phase;
  if (step_.phase != Phase::Holding && step_.phase != Phase::Stepping) return std::nullopt;
  return step_.until;
}

/// What waited for the hypervisor, or for a vCPU, goes on; the guest is let go when nothing of it is left.
void GuestMachine::proceed(TimePoint now, Effects& out) {
  advance_step(now, out);
  tell_guest_on(out);
  if (ram_bytes_ != 0) publish_patches(out);
  const bool idle = !busy_ && wishes_.empty() && step_.phase == StepOver::Phase::Idle && kept_count_ == 0;
  if (!unhook_ || unhook_answered_ || !idle) return;
  unhook_answered_ = true;
  out.emplace_back(SendEventReply{*unhook_, EventReply{.vcpu = kAllVcpus, .event = EventKind::Unhook, .value = {}}});
}

}  // namespace kvmid::core
