// SPDX-License-Identifier: GPL-2.0-or-later
//
// Exceptions between their cause and their handler: TRAP events, injections and what displaces them, debug exceptions,
// and single steps.
//
// Every exception comes through begin_exception(), is told of if somebody listens, and is delivered by end_exception().
// What a delivery raises comes through begin_exception() again.

#include <array>
#include <string>
#include <utility>

#include "arch/x86/instruction.h"
#include "hypervisor/emulated/delivery.h"
#include "hypervisor/emulated/machine.h"

namespace kvmid::emulated {

namespace {

using Origin = PendingException::Origin;

constexpr std::uint8_t bit(Action action) { return static_cast<std::uint8_t>(1u << static_cast<unsigned>(action)); }
constexpr ActionSet kStepActions{static_cast<std::uint8_t>(bit(Action::Allow) | bit(Action::Crash))};

bool is_debug(const PendingException& pending) {
  return pending.exception.vector == x86::vector::kDb && pending.origin == Origin::Processor;
}

/// DR6 as the handler finds it: new conditions beside what was never cleared, but for the four breakpoints.
std::uint64_t dr6_with(std::uint64_t dr6, std::uint64_t causes) { return (dr6 & ~std::uint64_t{0xf}) | causes; }

bool retry_makes_sense(const PendingException& pending) {
  return pending.kind == x86::ExceptionKind::Fault && (pending.at_instruction || pending.origin == Origin::Injected);
}

}  // namespace

std::uint64_t Machine::visible_dr6(const Vcpu& vcpu) {
  const auto& pending = vcpu.exception;
  return pending && is_debug(*pending) ? dr6_with(vcpu.dr[6], pending->debug_causes) : vcpu.dr[6];
}

std::uint8_t Machine::length_at_rip(Vcpu& vcpu) {
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  const std::size_t have = mmu_.read_code(vcpu, code.data(), code.size());
  const auto length = x86::instruction_length(std::span(code).first(have), x86::Mode::Bits64);
  return length ? static_cast<std::uint8_t>(*length) : std::uint8_t{0};
}

void Machine::deliver_to(Vcpu& vcpu, const x86::Exception& exception) {
  PendingException pending;
  pending.exception = exception;
  if (exception.vector == x86::vector::kDb) pending.debug_causes = x86::dr6::kBd;  // the only one that comes this way
  pending.kind = x86::exception_kind(exception.vector, pending.debug_causes, vcpu.dr[7]);
  begin_exception(vcpu, pending);
}

void Machine::interrupt(Vcpu& vcpu, std::uint8_t vector, std::uint8_t insn_length, bool software) {
  PendingException pending;
  pending.exception = {vector, false, 0, 0};
  pending.origin = software ? Origin::Software : Origin::Processor;
  pending.kind = vector > 31 ? x86::ExceptionKind::Interrupt : x86::ExceptionKind::Trap;
  pending.at_instruction = false;
  pending.length = insn_length;
  begin_exception(vcpu, pending);
}

void Machine::inject_now(Vcpu& vcpu) {
  PendingException pending;
  pending.exception = *std::exchange(vcpu.injection, std::nullopt);
  pending.origin = Origin::Injected;
  pending.kind = x86::exception_kind(pending.exception.vector, vcpu.dr[6], vcpu.dr[7]);
  pending.at_instruction = false;
  begin_exception(vcpu, pending);
}

void Machine::debug_trap(Vcpu& vcpu) {
  PendingException pending;
  pending.exception = {x86::vector::kDb, false, 0, 0};
  pending.debug_causes = std::exchange(vcpu.debug_causes, 0);
  pending.kind = x86::ExceptionKind::Trap;
  pending.at_instruction = false;
  begin_exception(vcpu, pending);
}

void Machine::code_breakpoint(Vcpu& vcpu, std::uint8_t breakpoints) {
  PendingException pending;
  pending.exception = {x86::vector::kDb, false, 0, 0};
  pending.debug_causes = breakpoints;
  pending.kind = x86::ExceptionKind::Fault;
  begin_exception(vcpu, pending);
}

void Machine::begin_exception(Vcpu& vcpu, PendingException pending) {
  drop_access(vcpu);
  end_overrides(vcpu);
  vcpu.pass.reset();
  // What an agent wanted to inject loses against what happens by itself before it.
  if (vcpu.injection && pending.origin != Origin::Injected) {
    pending.displaced = vcpu.injection->vector;
    vcpu.injection.reset();
  }
  pending.rip = vcpu.regs.rip;
  vcpu.exception = pending;
  if (!hooks_.watches(vcpu.id, EventKind::Trap)) return end_exception(vcpu);

  const auto& exception = pending.exception;
  TrapData data;
  data.vector = exception.vector;
  data.kind = static_cast<std::uint8_t>(pending.kind);
  if (exception.has_error_code) data.flags |= KVMI_TRAP_F_ERROR_CODE;
  if (pending.origin == Origin::Injected) data.flags |= KVMI_TRAP_F_INJECTED;
  if (pending.displaced) data.flags |= KVMI_TRAP_F_DISPLACED;
  data.displaced_vector = pending.displaced.value_or(0);
  data.error_code = exception.has_error_code ? exception.error_code : 0;
  data.address = exception.vector == x86::vector::kPf ? exception.address : 0;

  // SKIP has to know where the instruction ends, if the exception left one undone; behind an abort nothing is known.
  const bool undone = pending.at_instruction;
  const bool fault = pending.kind == x86::ExceptionKind::Fault;
  const std::uint8_t length = undone && fault ? length_at_rip(vcpu) : std::uint8_t{0};
  std::uint8_t actions = bit(Action::Allow) | bit(Action::Crash);
  if (retry_makes_sense(pending)) actions |= bit(Action::Retry);
  if (undone ? length != 0 : (pending.kind != x86::ExceptionKind::Abort || pending.origin == Origin::Injected)) {
    actions |= bit(Action::Skip);
  }
  raise(vcpu, data, length, ActionSet{actions});
}

void Machine::finish_trap(Vcpu& vcpu, Action action) {
  if (action == Action::Allow) return end_exception(vcpu);
  const PendingException pending = *std::exchange(vcpu.exception, std::nullopt);
  if (action != Action::Skip) return;
  // An instruction that was left undone is stepped over, and INT n has been executed; a trap or an injected exception
  // is no instruction.
  if (pending.at_instruction || pending.origin == Origin::Software) move_on(vcpu);
}

void Machine::end_exception(Vcpu& vcpu) {
  const PendingException pending = *std::exchange(vcpu.exception, std::nullopt);
  const auto& exception = pending.exception;
  DeliveryKind kind;
  kind.software = pending.origin == Origin::Software;
  kind.resume_flag = pending.kind == x86::ExceptionKind::Fault;
  if (exception.vector == x86::vector::kDb) {
    if (is_debug(pending)) vcpu.dr[6] = dr6_with(vcpu.dr[6], pending.debug_causes);
    vcpu.dr[7] &= ~kDr7GeneralDetect;  // or the handler could not look
    // An instruction breakpoint leaves RF to the handler; the guarded registers do not.
    kind.resume_flag = (pending.debug_causes & x86::dr6::kBd) != 0;
  }
  const std::string where = "triple fault on vCPU " + std::to_string(vcpu.id.value) + " at RIP " + hex(vcpu.regs.rip) +
                            ", after " +
                            (kind.software ? "INT " + std::to_string(exception.vector)
                                           : std::string(x86::exception_info(exception.vector).name));
  const auto outcome = deliver(mmu_, vcpu, exception, kind);
  std::visit(Overloaded{
                 [&](const Delivered&) {
                   if (hooks_.singlesteps(vcpu.id)) vcpu.step = !kind.software;
                 },
                 [&](const x86::Exception& second) {
                   // INT n that cannot be made has not been executed.
                   if (kind.software && vcpu.regs.rip == pending.rip) vcpu.regs.rip -= pending.length;
                   PendingException next;
                   next.exception = second;
                   next.kind = x86::exception_kind(second.vector, 0, vcpu.dr[7]);
                   next.at_instruction = pending.at_instruction || kind.software;
                   if (pending.origin == Origin::Injected) next.displaced = exception.vector;
                   begin_exception(vcpu, next);
                 },
                 [&](const TripleFault&) { stop_guest(StopCause::GuestFault, where); },
             },
             outcome);
}

// ---- single steps, and the debug registers ----

bool Machine::finishes_instruction(const Vcpu& vcpu) const {
  const std::uint64_t rip = vcpu.regs.rip;
  return (!vcpu.overrides.empty() && vcpu.overrides_rip == rip) || (vcpu.access && vcpu.access->rip == rip) ||
         (vcpu.pass && vcpu.pass->lets(vcpu.pass->kind, vcpu));
}

void Machine::complete(Vcpu& vcpu) {
  if (vcpu.trap_flag) vcpu.debug_causes |= x86::dr6::kBs;
  vcpu.trap_flag = false;
  if (hooks_.singlesteps(vcpu.id)) vcpu.step = false;
}

bool Machine::raise_step(Vcpu& vcpu) {
  const bool failed = *std::exchange(vcpu.step, std::nullopt);
  if (!hooks_.singlesteps(vcpu.id)) return false;
  raise(vcpu, SinglestepData{failed}, 0, kStepActions);
  return true;
}

/// The engine comes once more to a string instruction whose last element is done; a processor does not.
void Machine::settle_repeat(Vcpu& vcpu, kvmi_x86_regs& regs) {
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  const std::size_t have = mmu_.read_code(vcpu, code.data(), code.size());
  const auto insn = x86::decode(std::span(code).first(have), x86::Mode::Bits64);
  if (insn && insn->repeated && repeat_count(*insn, regs) == 0) regs.rip += insn->length;
}

void Machine::prepare_engine(Vcpu& vcpu) {
  vcpu.engine.set_user_mode(x86::privilege_level(vcpu.regs, vcpu.sregs) != 0);
  std::uint8_t armed = 0;
  for (unsigned n = 0; n < 4; ++n) {
    const bool enabled = ((vcpu.dr[7] >> (2 * n)) & 3) != 0;
    const bool executes = ((vcpu.dr[7] >> (16 + 4 * n)) & 3) == 0;
    if (enabled && executes) armed |= static_cast<std::uint8_t>(1u << n);
  }
  vcpu.engine.set_breakpoints({vcpu.dr[0], vcpu.dr[1], vcpu.dr[2], vcpu.dr[3]}, armed);
}

}  // namespace kvmid::emulated
