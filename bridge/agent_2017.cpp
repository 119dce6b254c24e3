// SPDX-License-Identifier: GPL-2.0-or-later
// What only the dialect of 2017 has: masks of events, the guest paused as a whole, replies of bits and registers.
#include <algorithm>
#include <utility>

#include "arch/x86/exceptions.h"
#include "bridge/agent_impl.h"

namespace kvmid::bridge {

namespace {

constexpr std::uint32_t kKnownEvents = 0xfe;

}  // namespace

// ---- pauses: no events to this tool; counted, as nothing says that they nest otherwise ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::PauseGuest&) {
  if (guest_pauses_++ != 0) return finish(slot, 0);
  for (std::uint32_t i = 0; i < vcpu_count_; ++i) {
    const VcpuId vcpu{static_cast<std::uint16_t>(i)};
    const OpenEvent* open = open_at(vcpu);
    if (open == nullptr || !open->awaited) slot.waits.push_back(vcpu);
  }
  ask(PauseVcpu{kAllVcpus}, [this, &slot, asked = ++guest_pauses_asked_](const CommandReply& reply) {
    if (reply.error != ErrorCode::None || off_) {
      if (asked == guest_pauses_asked_) {  // else it was unpaused meanwhile, and paused again
        guest_pauses_ = 0;
        for (Vcpu& vcpu : vcpus_) vcpu.guest_pauses = 0;  // the core takes them back
      }
      return finish(slot, reply.error != ErrorCode::None ? reply.error : ErrorCode::NotSupported);
    }
    slot.confirmed = true;
    if (slot.waits.empty()) return finish(slot, 0);
    if (!rights.commands.has(CommandId::PauseVcpu)) return finish(slot, ErrorCode::NotPermitted);  // not any more
    probe(slot);
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::UnpauseGuest&) {
  if (guest_pauses_ == 0) return finish(slot, ErrorCode::Invalid);
  if (--guest_pauses_ == 0) {
    for (std::size_t i = 0; i < vcpus_.size(); ++i) {
      Vcpu& vcpu = vcpus_[i];
      for (; vcpu.guest_pauses != 0; --vcpu.guest_pauses) {
        reply_to_core(VcpuId{static_cast<std::uint16_t>(i)}, vcpu.guest_pause_seq, EventKind::Pause, Action::Allow);
      }
    }
  }
  finish(slot, 0);
}

/// A PAUSE event that this tool asked for with PAUSE_GUEST is answered when it says UNPAUSE_GUEST.
bool AgentBridge::Impl::keep_guest_pause(const Event& event, Seq seq) {
  if (event.kind() != EventKind::Pause || !event.decide || guest_pauses_ == 0) return false;
  Vcpu& vcpu = at(event.vcpu);
  ++vcpu.guest_pauses;
  vcpu.guest_pause_seq = seq;
  return true;
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ShutdownGuest&) { ask_and_finish(slot, ShutdownGuest{}); }

// ---- events ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::SetEvents& command) {
  if ((command.mask & ~kKnownEvents) != 0) return finish(slot, ErrorCode::Invalid);
  EventSet events;
  for (unsigned bit = 0; bit < 8; ++bit) {
    const auto number = static_cast<std::uint16_t>(1U << bit);
    if ((command.mask & number) == 0) continue;
    const auto kind = codec.event_of(number);
    if (!kind) return finish(slot, ErrorCode::Invalid);
    if (!may_see(*kind)) return finish(slot, cannot_see(*kind));
    events.add(*kind);
  }
  const bool silenced = (events.bits & observed_.bits) != 0;
  const bool traps = events.has(EventKind::Trap);
  const VcpuId vcpu = command.vcpu;
  ask(ControlEvents{vcpu, Operation::Set, silenced ? Role::Observer : rights.role, events},
      [this, &slot, vcpu, traps](const CommandReply& reply) {
        if (reply.error == ErrorCode::None) at(vcpu).traps_wanted = traps;
        finish(slot, reply.error);
      });
}

std::optional<VcpuId> AgentBridge::Impl::vcpu_with(Seq event_seq) const {
  const auto found = std::find_if(vcpus_.begin(), vcpus_.end(),
                                  [&](const Vcpu& vcpu) { return vcpu.open && vcpu.open->seq == event_seq; });
  if (found == vcpus_.end()) return std::nullopt;
  return VcpuId{static_cast<std::uint16_t>(found - vcpus_.begin())};
}

/// Registers, if any, then the reply: the core loads them just before it lets the vCPU go.
void AgentBridge::Impl::answer_2017(VcpuId vcpu, const OpenEvent& open, const kvmi1::EventReplyMessage& message,
                                    std::uint64_t new_value) {
  if (!open.awaited) return;
  const bool allow = (message.action & kvmi1::kAllow2017) != 0;
  const bool no_emulation = (message.action & kvmi1::kNoEmulation2017) != 0;
  if ((message.action & kvmi1::kSetRegs2017) != 0) {
    ask(SetRegisters{vcpu, message.regs}, [](const CommandReply&) {});
  }
  switch (open.kind) {
    case EventKind::Cr:
    case EventKind::Msr:
      if (allow) return continue_core(vcpu, open, new_value);
      return answer_core(vcpu, open, Action::Skip);
    case EventKind::PageFault:
      // Without ALLOW the RFC hands the fault to the host's own handler, after which the access is tried again.
      return answer_core(vcpu, open, allow && !no_emulation ? Action::Allow : Action::Retry);
    default:
      return answer_core(vcpu, open, Action::Allow);
  }
}

// ---- exceptions: no TRAP follows unless its bit was set ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::InjectPageFault& command) {
  ask_and_finish(slot, InjectException{command.vcpu, x86::vector::kPf, true, command.error_code, command.gva.value});
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::InjectBreakpoint& command) {
  ask_and_finish(slot, InjectException{command.vcpu, x86::vector::kBp, false, 0, 0});
}

}  // namespace kvmid::bridge
