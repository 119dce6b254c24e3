// SPDX-License-Identifier: GPL-2.0-or-later
// Commands of a tool about the guest, its vCPUs and its events.
#include <algorithm>
#include <memory>
#include <utility>

#include "arch/x86/exceptions.h"
#include "bridge/agent_impl.h"

namespace kvmid::bridge {

namespace {

constexpr std::uint16_t kCommandErrorEvent7 = 12, kViews7 = 3;

/// MSRs whose writes a dialect tracks. The bounds of v6 and v7 are those of the published code, not of its documents.
bool tracks_msr(kvmi1::DialectId dialect, std::uint32_t msr) {
  switch (dialect) {
    case kvmi1::DialectId::V6:
    case kvmi1::DialectId::V7:
      return msr < 0x1fff || (msr > 0xc0000000 && msr < 0xc0001fff);
    case kvmi1::DialectId::Rfc2017:
      if (msr >= 0x40000000 && msr <= 0x40001fff) return true;
      [[fallthrough]];
    case kvmi1::DialectId::V12:
      break;
  }
  return msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff);
}

/// Accepted without effect: these events follow their command, whoever subscribed.
bool needs_no_subscription(kvmi1::DialectId dialect, EventKind kind) {
  return kind == EventKind::Pause || kind == EventKind::Trap ||
         (dialect == kvmi1::DialectId::V12 && kind == EventKind::Singlestep);
}

}  // namespace

AgentBridge::Impl::Vcpu& AgentBridge::Impl::at(VcpuId vcpu) {
  if (vcpu.value >= vcpus_.size()) vcpus_.resize(std::size_t{vcpu.value} + 1);
  return vcpus_[vcpu.value];
}

const AgentBridge::Impl::OpenEvent* AgentBridge::Impl::open_at(VcpuId vcpu) const {
  if (vcpu.value >= vcpus_.size() || !vcpus_[vcpu.value].open) return nullptr;
  return &*vcpus_[vcpu.value].open;
}

// ---- the guest ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetGuestInfo&) {
  ask(GetGuestInfo{}, [this, &slot](const CommandReply& reply) {
    const auto* facts = std::get_if<GetGuestInfoReply>(&reply.body);
    if (facts == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GetGuestInfoReply{facts->vcpu_count, facts->tsc_hz});
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetVcpuInfo&) {
  ask(GetGuestInfo{}, [this, &slot](const CommandReply& reply) {
    const auto* facts = std::get_if<GetGuestInfoReply>(&reply.body);
    if (facts == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GetVcpuInfoReply{facts->tsc_hz});
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetMaxGfn&) {
  ask(GetGuestInfo{}, [this, &slot](const CommandReply& reply) {
    const auto* facts = std::get_if<GetGuestInfoReply>(&reply.body);
    if (facts == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GfnReply{gfn_of(Gpa{facts->max_gpa})});
  });
}

// ---- pauses ----

/// The PAUSE event may come before the core's answer, or after it: both have to be there.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::PauseVcpu& command) {
  const OpenEvent* open = open_at(command.vcpu);
  if (command.wait && (open == nullptr || !open->awaited)) slot.waits.push_back(command.vcpu);
  ask(PauseVcpu{command.vcpu}, [this, &slot](const CommandReply& reply) {
    if (reply.error != ErrorCode::None) return finish(slot, reply.error);
    if (off_) return finish(slot, ErrorCode::NotSupported);
    slot.confirmed = true;
    if (slot.waits.empty()) return finish(slot, 0);
    if (!rights.commands.has(CommandId::PauseVcpu)) return finish(slot, ErrorCode::NotPermitted);  // not any more
    probe(slot);
  });
}

/// A vCPU that the guest has not started stops when it starts, which may be never. The kernel does not wait for it, and
/// neither is anything waited for here that such a vCPU has to do: it says so when it is asked for its registers.
void AgentBridge::Impl::probe(Slot& slot) {
  if (!rights.commands.has(CommandId::GetRegisters)) return;
  slot.ticket = ++last_ticket_;
  probe_next(slot.ticket, {slot.waits.rbegin(), slot.waits.rend()});
}

/// One vCPU after another, the last of the list first.
void AgentBridge::Impl::probe_next(std::uint32_t ticket, std::vector<VcpuId> vcpus) {
  const VcpuId vcpu = vcpus.back();
  vcpus.pop_back();
  ask(GetRegisters{vcpu, {}}, [this, ticket, vcpu, rest = std::move(vcpus)](const CommandReply& reply) {
    const auto waiting = std::find_if(slots_.begin(), slots_.end(),
                                      [&](const Slot& other) { return other.ticket == ticket && !other.done; });
    if (waiting == slots_.end()) return;
    if (reply.error != ErrorCode::None) std::erase(waiting->waits, vcpu);
    if (waiting->waits.empty()) return finish(*waiting, 0);
    if (!rest.empty()) probe_next(ticket, rest);
  });
}

/// What is waited for will not come.
void AgentBridge::Impl::end_waits(ErrorCode error) {
  std::vector<Slot*> waiting;
  for (Slot& slot : slots_) {
    if (!slot.done && slot.confirmed) waiting.push_back(&slot);
  }
  for (Slot* slot : waiting) finish(*slot, error);
}

/// The vCPU stands still for this tool: pauses that waited for it are answered.
void AgentBridge::Impl::stopped(VcpuId vcpu) {
  std::vector<Slot*> ready;
  for (Slot& slot : slots_) {
    if (slot.done || std::erase(slot.waits, vcpu) == 0) continue;
    if (slot.confirmed && slot.waits.empty()) ready.push_back(&slot);
  }
  for (Slot* slot : ready) finish(*slot, 0);
}

// ---- events ----

void AgentBridge::Impl::subscribe(Slot& slot, VcpuId vcpu, EventKind kind, bool enable) {
  EventSet events;
  events.add(kind);
  ask_and_finish(slot, ControlEvents{vcpu, enable ? Operation::Enable : Operation::Disable, role_for(kind), events});
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlVmEvents& command) {
  if (is(kvmi1::DialectId::V7) && command.event == kCommandErrorEvent7) return finish(slot, 0);
  const auto kind = codec.event_of(command.event);
  if (kind == EventKind::Unhook) {
    unhook_wanted_ = command.enable;
    return finish(slot, 0);
  }
  if (kind != EventKind::CreateVcpu) return finish(slot, ErrorCode::Invalid);
  if (!rights.commands.has(CommandId::ControlEvents)) return finish(slot, ErrorCode::NotPermitted);
  if (!may_see(*kind)) return finish(slot, cannot_see(*kind));
  subscribe(slot, kAllVcpus, *kind, command.enable);
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlEvents& command) {
  if (is(kvmi1::DialectId::V7) && command.event == kCommandErrorEvent7) return finish(slot, 0);
  const auto kind = codec.event_of(command.event);
  if (!kind || kind == EventKind::Unhook || kind == EventKind::CreateVcpu) return finish(slot, ErrorCode::Invalid);
  if (!may_see(*kind)) return finish(slot, cannot_see(*kind));
  if (needs_no_subscription(codec.dialect(), *kind)) return finish(slot, 0);
  subscribe(slot, command.vcpu, *kind, command.enable);
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlCr& command) {
  ask_and_finish(slot, ControlCr{command.vcpu, command.enable, command.cr});
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlMsr& command) {
  if (!tracks_msr(codec.dialect(), command.msr)) return finish(slot, ErrorCode::Invalid);
  ask_and_finish(slot, ControlMsr{command.vcpu, command.enable, command.msr});
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlGuestCr& command) {
  ask_and_finish(slot, ControlCr{kAllVcpus, command.enable, command.cr});
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlGuestMsr& command) {
  if (!tracks_msr(codec.dialect(), command.msr)) return finish(slot, ErrorCode::Invalid);
  ask_and_finish(slot, ControlMsr{kAllVcpus, command.enable, command.msr});
}

/// What a tool leaves behind is taken back when it goes; leaving it is not on offer.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlCleanup& command) {
  finish(slot, command.enable ? ErrorCode::None : ErrorCode::NotSupported);
}

/// v12 tells of every step, whoever subscribed; v7 tells those who did.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlSinglestep& command) {
  const VcpuId vcpu = command.vcpu;
  if (!is(kvmi1::DialectId::V12)) {
    return ask_and_finish(slot, ControlSinglestep{vcpu, command.enable});
  }
  EventSet events;
  events.add(EventKind::Singlestep);
  const Command subscription = ControlEvents{vcpu, command.enable ? Operation::Enable : Operation::Disable,
                                             role_for(EventKind::Singlestep), events};
  const Command step = ControlSinglestep{vcpu, command.enable};
  const bool enable = command.enable;
  auto held = std::make_shared<Step>(*this);
  const Command& first = enable ? subscription : step;
  ask(first,
      [this, &slot, vcpu, enable, held, second = enable ? step : subscription](const CommandReply& reply) mutable {
        if (reply.error != ErrorCode::None) return finish(slot, reply.error);
        held.reset();
        ask(second, [this, &slot, vcpu, enable](const CommandReply& last) {
          if (last.error == ErrorCode::None) at(vcpu).steps = enable;
          finish(slot, last.error);
        });
      });
}

// ---- exceptions ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::InjectException& command) {
  Vcpu& vcpu = at(command.vcpu);
  // A tool that never answers TRAP has lost it by its deadline, and may inject again.
  const bool holds_trap = vcpu.open && vcpu.open->kind == EventKind::Trap && vcpu.open->awaited;
  if (vcpu.injections != 0 || (is_v6_or_v7() && holds_trap) || (is(kvmi1::DialectId::V12) && vcpu.steps)) {
    return finish(slot, ErrorCode::Busy);
  }
  InjectException exception;
  exception.vcpu = command.vcpu;
  exception.vector = command.vector;
  exception.has_error_code =
      is(kvmi1::DialectId::V6) ? command.has_error_code : x86::exception_info(command.vector).has_error_code;
  exception.error_code = exception.has_error_code ? command.error_code : 0;
  exception.address = command.vector == x86::vector::kPf ? command.address : 0;

  ++vcpu.injections;
  if (vcpu.trap_on) return inject(slot, exception, nullptr);
  auto held = std::make_shared<Step>(*this);
  EventSet trap;
  trap.add(EventKind::Trap);
  ask(ControlEvents{command.vcpu, Operation::Enable, role_for(EventKind::Trap), trap},
      [this, &slot, exception, held](const CommandReply& reply) {
        // It may have been forgotten meanwhile, by a vCPU that began anew: it is made all the same.
        Vcpu& state = at(exception.vcpu);
        state.injections = reply.error == ErrorCode::None ? 1 : 0;
        if (reply.error != ErrorCode::None) return finish(slot, reply.error);
        state.trap_on = true;
        inject(slot, exception, held);
      });
}

/// `step` ends when this is on its way: what is behind it in order may go.
void AgentBridge::Impl::inject(Slot& slot, const InjectException& exception, std::shared_ptr<Step>) {
  ask(exception, [this, &slot, vcpu = exception.vcpu](const CommandReply& reply) {
    if (reply.error != ErrorCode::None && at(vcpu).injections != 0) {
      --at(vcpu).injections;
      forget_trap(vcpu);
    }
    finish(slot, reply.error);
  });
}

/// No own injection is under way any more: the guest shall not stop at every exception.
void AgentBridge::Impl::forget_trap(VcpuId vcpu) {
  Vcpu& state = at(vcpu);
  if (state.injections != 0 || !state.trap_on) return;
  state.trap_on = false;
  EventSet trap;
  trap.add(EventKind::Trap);
  chores_.emplace_back(ControlEvents{vcpu, Operation::Disable, role_for(EventKind::Trap), trap});
}

// ---- addresses and views ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::TranslateGva& command) {
  ask(TranslateGva{command.vcpu, command.gva}, [this, &slot](const CommandReply& reply) {
    if (reply.error == ErrorCode::Fault) return finish(slot, 0, kvmi1::TranslateGvaReply{kvmi1::kNoAddress});
    const auto* found = std::get_if<TranslateGvaReply>(&reply.body);
    if (found == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::TranslateGvaReply{found->gpa.value});
  });
}

/// There is one view, the guest's own, and its number is 0.
std::int32_t AgentBridge::Impl::refusal_of_view(std::uint16_t view) const {
  if (view == 0) return 0;
  return view >= kViews7 ? -kvmi1::kEinval : -kvmi1::kEopnotsupp;
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetEptView&) { finish(slot, 0, kvmi1::EptViewReply{0}); }

void AgentBridge::Impl::run(Slot& slot, const kvmi1::SwitchEptView& command) {
  finish(slot, refusal_of_view(command.view));
}

}  // namespace kvmid::bridge
