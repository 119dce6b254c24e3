// SPDX-License-Identifier: GPL-2.0-or-later
// Events: what the tool is told, and what its replies become.
//
// Events have sequence numbers of this connection: several pauses share one stop of the core, and are events of their
// own to a tool. A tool cannot know that its time has run out: a reply to an event that was told is legal once, however
// late.
#include <algorithm>
#include <memory>
#include <utility>

#include "bridge/agent_impl.h"

namespace kvmid::bridge {

namespace {

Action mildest(ActionSet actions) {
  for (unsigned i = 0; i < kActionCount; ++i) {
    if (actions.has(static_cast<Action>(i))) return static_cast<Action>(i);
  }
  return Action::Allow;
}

/// v6, v7 and v12 tell of writes that change something.
bool changes_nothing(const Event& event) {
  if (const auto* cr = std::get_if<CrData>(&event.data)) return cr->old_value == cr->new_value;
  if (const auto* msr = std::get_if<MsrData>(&event.data)) return msr->old_value == msr->new_value;
  return false;
}

bool is_register_write(EventKind kind) { return kind == EventKind::Cr || kind == EventKind::Msr; }

/// Where the published kernels do something else for RETRY than for CONTINUE.
bool takes_retry(EventKind kind) {
  return kind == EventKind::Breakpoint || kind == EventKind::PageFault || kind == EventKind::Descriptor;
}

/// These dialects tell of one kind of access at a time; the one that changes most comes first.
std::uint8_t one_access(std::uint8_t access) {
  for (const int bit : {KVMI_PAGE_ACCESS_W, KVMI_PAGE_ACCESS_X, KVMI_PAGE_ACCESS_R}) {
    if ((access & bit) != 0) return static_cast<std::uint8_t>(bit);
  }
  return access;
}

}  // namespace

Seq AgentBridge::Impl::next_event_seq() {
  if (++last_event_ == 0) ++last_event_;
  return Seq{last_event_};
}

void AgentBridge::Impl::reply_to_core(VcpuId vcpu, Seq core_seq, EventKind kind, Action action, ReplacedValue value) {
  EventReply reply;
  reply.vcpu = vcpu;
  reply.event = kind;
  reply.action = action;
  reply.value = value;
  down.push(core_seq, Downward{reply});
}

// ---- what the core says ----

void AgentBridge::Impl::deliver(const Event& event, Seq seq, ByteBuffer& wire) {
  wire_ = &wire;
  if (broken) return;
  const EventKind kind = event.kind();
  if (const auto* unhook = std::get_if<UnhookData>(&event.data)) {
    if (!guest_off(unhook->reason, wire)) stop("the guest goes, and the tool does not want to be told before");
    return;
  }
  if (is(kvmi1::DialectId::Rfc2017) && kind == EventKind::Pause && event.decide) {
    // Where nobody pauses any more the vCPU goes on, but a PAUSE_GUEST before that is still to be answered.
    if (!keep_guest_pause(event, seq)) reply_to_core(event.vcpu, seq, kind, mildest(event.actions));
    stopped(event.vcpu);
    return pump();
  }
  if (kind == EventKind::CreateVcpu) forget_injection(at(event.vcpu));
  const bool untold = !is(kvmi1::DialectId::Rfc2017) && changes_nothing(event);
  if (untold || !codec.number_of(kind) || swallow_trap(event)) {
    if (event.decide) reply_to_core(event.vcpu, seq, kind, mildest(event.actions));
    if (kind == EventKind::Pause) stopped(event.vcpu);  // rfc2017: UNPAUSE_GUEST came before it
    return pump();
  }
  Vcpu& vcpu = at(event.vcpu);
  if (kind == EventKind::Pause && vcpu.open && vcpu.open->kind == kind && vcpu.open->core_seq == seq) {
    ++vcpu.pauses_behind;
    if (event.decide) ++vcpu.pauses_awaited;
    vcpu.pause_seq = seq;
    vcpu.pause = std::make_unique<Event>(event);
  } else {
    tell(event, seq);
  }
  if (event.decide) stopped(event.vcpu);
  pump();
}

void AgentBridge::Impl::tell(const Event& event, Seq core_seq) {
  if (vcpu_count_ != 0) vcpu_count_ = std::max<std::uint32_t>(vcpu_count_, event.vcpu.value + 1U);  // a new one
  Vcpu& vcpu = at(event.vcpu);
  if (vcpu.open) {
    ended_.emplace(vcpu.open->seq.value, event.vcpu);
    if (ended_.size() > kEndedMax) ended_.erase(ended_.begin());
  }
  OpenEvent open;
  open.seq = next_event_seq();
  open.core_seq = core_seq;
  open.kind = event.kind();
  open.actions = event.actions;
  open.awaited = event.decide && !off_;
  kvmi1::EventMessage message{event, 0};
  if (const auto* cr = std::get_if<CrData>(&event.data)) {
    open.old_value = cr->old_value;
    open.new_value = cr->new_value;
  }
  if (const auto* msr = std::get_if<MsrData>(&event.data)) {
    open.old_value = msr->old_value;
    open.new_value = msr->new_value;
  }
  if (auto* fault = std::get_if<PageFaultData>(&message.event.data)) fault->access = one_access(fault->access);
  vcpu.open = open;
  codec.encode(message, open.seq, *wire_);
}

/// Traps that no injection of this tool made are nobody's business: those dialects do not have them.
bool AgentBridge::Impl::swallow_trap(const Event& event) {
  const auto* trap = std::get_if<TrapData>(&event.data);
  if (trap == nullptr) return false;
  Vcpu& vcpu = at(event.vcpu);
  if (vcpu.traps_wanted) return false;
  const bool injected = (trap->flags & (KVMI_TRAP_F_INJECTED | KVMI_TRAP_F_DISPLACED)) != 0;
  if (!injected || vcpu.injections == 0) return true;
  --vcpu.injections;
  forget_trap(event.vcpu);
  return false;
}

/// Its TRAP may never come: a vCPU that begins anew has lost the exception, and subscriptions can be withdrawn. The
/// tool shall be able to inject again.
void AgentBridge::Impl::forget_injection(Vcpu& vcpu) {
  vcpu.injections = 0;
  vcpu.trap_on = false;
}

void AgentBridge::Impl::deliver(const Notice& notice, ByteBuffer& wire) {
  wire_ = &wire;
  if (notice.kind == NoticeKind::Demoted) {
    // Without a kind of event it is about all of them.
    if (notice.event == EventKind::Unhook) {
      observed_ = kEveryEvent;
    } else {
      observed_.add(notice.event);
    }
  }
  if (notice.kind == NoticeKind::Revoked) {
    for (Vcpu& vcpu : vcpus_) {
      forget_injection(vcpu);
      if (!can_singlestep()) vcpu.steps = false;
    }
    // It does not say what was withdrawn.
    doubted_ = patches_;
    if (!rights.commands.has(CommandId::PauseVcpu)) end_waits(ErrorCode::NotPermitted);
    return pump();
  }
  if (notice.kind != NoticeKind::Expired || notice.vcpu.value >= vcpus_.size()) return;
  Vcpu& vcpu = vcpus_[notice.vcpu.value];
  if (vcpu.open && vcpu.open->core_seq == notice.event_seq) vcpu.open->awaited = false;
  if (vcpu.pause_seq == notice.event_seq) vcpu.pauses_awaited = 0;
  if (vcpu.guest_pause_seq == notice.event_seq) vcpu.guest_pauses = 0;
}

// ---- what the tool answers ----

void AgentBridge::Impl::serve_event_reply(const Frame& frame) {
  const auto decoded = codec.decode_downward(frame);
  if (!decoded) {
    const kvmi1::Refused& refused = decoded.error();
    if (refused.answer == 0) return stop(kvmi1::describe(codec, refused.error));
    return finish(open_slot(frame, std::nullopt), refused.answer);
  }
  const auto* reply = std::get_if<kvmi1::EventReplyMessage>(&*decoded);
  if (reply == nullptr) return finish(open_slot(frame, std::nullopt), ErrorCode::NotServed);

  const std::string name = "event reply seq=" + std::to_string(frame.seq.value);
  if (is(kvmi1::DialectId::Rfc2017)) {
    if (const auto vcpu = vcpu_with(frame.seq)) return answer_event(*vcpu, *reply);
    if (ended_.erase(frame.seq.value) != 0) return;
    return stop(name + ": no event with this number waits for a reply");
  }
  if (no_such_vcpu(reply->vcpu)) return finish(open_slot(frame, std::nullopt), ErrorCode::Invalid);
  const OpenEvent* open = open_at(reply->vcpu);
  if (open != nullptr && open->seq == frame.seq) return answer_event(reply->vcpu, *reply);
  const auto ended = ended_.find(frame.seq.value);
  if (ended != ended_.end() && ended->second == reply->vcpu) {
    ended_.erase(ended);
    return;
  }
  const std::string vcpu = " vcpu=" + std::to_string(reply->vcpu.value);
  if (open != nullptr) {
    return stop(name + vcpu + ": the event that waits has seq=" + std::to_string(open->seq.value));
  }
  if (!is_v6_or_v7()) stop(name + vcpu + ": this vCPU waits for no reply");
}

/// REQUIRES: the vCPU has an open event, and it is the one that the reply names.
void AgentBridge::Impl::answer_event(VcpuId id, const kvmi1::EventReplyMessage& message) {
  Vcpu& vcpu = at(id);
  const OpenEvent open = *vcpu.open;
  const auto data = codec.read_reply(open.kind, message);
  if (!data) return stop(kvmi1::describe(codec, data.error()));
  if (is(kvmi1::DialectId::Rfc2017)) {
    vcpu.open.reset();
    return answer_2017(id, open, message, data->new_value);
  }
  const bool refused = message.action > kvmi1::kCrash || (message.action == kvmi1::kRetry && !takes_retry(open.kind));
  if (refused && is(kvmi1::DialectId::V12)) {
    return stop("event reply: action " + std::to_string(message.action) + " is not one of " +
                std::string(name_of(open.kind)));
  }
  vcpu.open.reset();
  if (open.awaited) {
    if (refused) {
      // v6 and v7 go on as if the write had been refused.
      answer_core(id, open, is_register_write(open.kind) ? Action::Skip : Action::Allow);
    } else if (message.action == kvmi1::kContinue) {
      continue_core(id, open, data->new_value);
    } else {
      answer_core(id, open, message.action == kvmi1::kRetry ? Action::Retry : Action::Crash);
    }
  }
  if (vcpu.pauses_behind == 0) return;
  --vcpu.pauses_behind;
  Event pause = *vcpu.pause;
  pause.decide = vcpu.pauses_awaited != 0;
  if (pause.decide) --vcpu.pauses_awaited;
  tell(pause, vcpu.pause_seq);
}

void AgentBridge::Impl::answer_core(VcpuId vcpu, const OpenEvent& open, Action action) {
  reply_to_core(vcpu, open.core_seq, open.kind, open.actions.has(action) ? action : mildest(open.actions));
}

/// The register gets what came with the reply, and that is 0 where nothing did.
void AgentBridge::Impl::continue_core(VcpuId vcpu, const OpenEvent& open, std::uint64_t value) {
  if (!is_register_write(open.kind) || value == open.new_value) return answer_core(vcpu, open, Action::Allow);
  if (value == open.old_value && open.actions.has(Action::Skip)) return answer_core(vcpu, open, Action::Skip);
  reply_to_core(vcpu, open.core_seq, open.kind, Action::Allow, NewValue{value});
}

}  // namespace kvmid::bridge
