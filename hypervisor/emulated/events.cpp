// SPDX-License-Identifier: GPL-2.0-or-later
//
// How a machine's events are raised and what their answers do.
//
// An agent may have set registers meanwhile. If it moved RIP, that is where the vCPU goes on: the effect of the action
// still happens, the step behind the instruction does not.

#include <utility>

#include "hypervisor/emulated/machine.h"

namespace kvmid::emulated {

void Machine::raise(Vcpu& vcpu, EventData data, std::uint8_t insn_length, ActionSet actions) {
  Event event;
  event.vcpu = vcpu.id;
  event.mode = static_cast<std::uint8_t>(x86::operating_mode(vcpu.sregs));
  event.actions = actions;
  event.regs = vcpu.regs;
  event.sregs = vcpu.sregs;
  event.msrs.sysenter_cs = vcpu.msrs.get(x86::msr::kSysenterCs).value();
  event.msrs.sysenter_esp = vcpu.msrs.get(x86::msr::kSysenterEsp).value();
  event.msrs.sysenter_eip = vcpu.msrs.get(x86::msr::kSysenterEip).value();
  event.msrs.efer = vcpu.sregs.efer;
  event.msrs.star = vcpu.msrs.get(x86::msr::kStar).value();
  event.msrs.lstar = vcpu.msrs.get(x86::msr::kLstar).value();
  event.msrs.cstar = vcpu.msrs.get(x86::msr::kCstar).value();
  event.msrs.pat = vcpu.msrs.get(x86::msr::kPat).value();
  event.msrs.kernel_gs_base = vcpu.msrs.get(x86::msr::kKernelGsBase).value();
  event.dr6 = visible_dr6(vcpu);
  event.dr7 = vcpu.dr[7];
  event.data = std::move(data);

  vcpu.event = event;
  vcpu.insn_length = insn_length;
  vcpu.before_wait = vcpu.activity;
  vcpu.activity = Activity::Waiting;
  ++vcpu.events;
  if (sink_ != nullptr) {
    sink_->raise(vcpu.event);
    return;
  }
  EventReply reply;
  reply.vcpu = vcpu.id;
  reply.event = vcpu.event.kind();
  answer(reply);
}

void Machine::answer(const EventReply& reply) {
  Vcpu& vcpu = *vcpus_[reply.vcpu.value];
  if (vcpu.activity != Activity::Waiting) return;
  vcpu.activity = vcpu.before_wait;
  vcpu.before_wait = Activity::Running;
  if (reply.action == Action::Crash) {
    return stop_guest(StopCause::CrashAction, "event " + std::string(name_of(reply.event)) + " of vCPU " +
                                                  std::to_string(vcpu.id.value) + " was answered with CRASH");
  }
  finish(vcpu, reply);
}

void Machine::move_on(Vcpu& vcpu) {
  if (vcpu.regs.rip == vcpu.event.regs.rip) vcpu.regs.rip += vcpu.insn_length;
  vcpu.regs.rflags &= ~x86::rflags::kRf;
  complete(vcpu);
}

void Machine::let_pass(Vcpu& vcpu) {
  if (vcpu.regs.rip == vcpu.event.regs.rip) {
    vcpu.pass = Pass{vcpu.event.kind(), vcpu.regs.rip, vcpu.instructions};
  }
}

void Machine::finish(Vcpu& vcpu, const EventReply& reply) {
  if (vcpu.event.kind() == EventKind::Trap) return finish_trap(vcpu, reply.action);
  if (vcpu.event.kind() == EventKind::Access) return finish_access(vcpu, reply);
  if (reply.action == Action::Skip || reply.action == Action::Retry) {
    drop_access(vcpu);
    end_overrides(vcpu);  // what was allowed of this instruction holds no more
    if (reply.action == Action::Skip) move_on(vcpu);
    return;
  }
  const auto* replaced = std::get_if<NewValue>(&reply.value);
  // A replaced value that the processor does not take is #GP(0) for the guest, as if it had written it.
  const auto written = [&](const std::optional<x86::Exception>& exception) {
    if (exception) deliver_to(vcpu, *exception);
    else move_on(vcpu);
  };
  std::visit(Overloaded{
                 [&](const CrData& data) {
                   written(write_cr(mmu_, vcpu, data.cr, replaced != nullptr ? replaced->value : data.new_value));
                 },
                 [&](const MsrData& data) {
                   written(write_msr(mmu_, vcpu, data.msr, replaced != nullptr ? replaced->value : data.new_value));
                 },
                 [&](const XsetbvData& data) {
                   written(write_xcr0(vcpu, replaced != nullptr ? replaced->value : data.new_value));
                 },
                 // The instruction is executed as it stands there, with the registers as they are then.
                 [&](const DescriptorData&) { let_pass(vcpu); },
                 [&](const CpuidData&) { let_pass(vcpu); },
                 [&](const BreakpointData&) {  // the guest's own
                   if (vcpu.regs.rip == vcpu.event.regs.rip) vcpu.regs.rip += vcpu.insn_length;
                   interrupt(vcpu, x86::vector::kBp, vcpu.insn_length, true);
                 },
                 [&](const HypercallData&) {
                   serve_hypercall(vcpu);
                   move_on(vcpu);
                 },
                 [&](const PageFaultData& data) {
                   if (vcpu.regs.rip != vcpu.event.regs.rip) return;  // another instruction executes now
                   vcpu.overrides.push_back({gfn_of(data.gpa), data.access});
                   vcpu.overrides_rip = vcpu.regs.rip;
                   if (!reply.trap_access || vcpu.access || !hooks_.watches(vcpu.id, EventKind::Access)) return;
                   vcpu.access = std::make_unique<AccessRun>();
                   vcpu.access->rip = vcpu.regs.rip;
                 },
                 [](const auto&) {},  // PAUSE: nothing but going on
             },
             vcpu.event.data);
}

void Machine::unhook() {
  hooks_.clear();
  mmu_.allow_everything();
  for (auto& vcpu : vcpus_) {
    vcpu->pauses = 0;
    vcpu->injection.reset();
    vcpu->pass.reset();
    vcpu->engine.flush();
    if (vcpu->activity != Activity::Waiting) continue;
    EventReply reply;
    reply.vcpu = vcpu->id;
    reply.event = vcpu->event.kind();
    // The INT3 may have been a patch. It is off; if it was the guest's own, it comes again.
    if (reply.event == EventKind::Breakpoint) reply.action = Action::Retry;
    answer(reply);
  }
}

}  // namespace kvmid::emulated
