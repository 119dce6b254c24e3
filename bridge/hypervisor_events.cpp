// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_events.h"

#include <algorithm>

namespace kvmid::bridge {

namespace {

constexpr std::size_t kContextOf2017 = 260;  ///< of a page fault's reply: a size and its bytes
constexpr std::uint32_t kCodeRead = 2;       ///< parts 0 and 1 are the translations of two pages

std::string name_of_event(const Event& event) { return std::string(name_of(event.kind())); }

}  // namespace

void HypervisorEvents::begin() {
  vcpus_.assign(link_.facts.vcpus, {});
  for (unsigned i = 0; i < kEventCount; ++i) actions_[i] = actions_of(static_cast<EventKind>(i));
}

ActionSet HypervisorEvents::actions_of(EventKind kind) const {
  constexpr unsigned kAllow = KVMI_ACTION_BIT(KVMI_ACTION_ALLOW), kRetry = KVMI_ACTION_BIT(KVMI_ACTION_RETRY),
                     kSkip = KVMI_ACTION_BIT(KVMI_ACTION_SKIP), kCrash = KVMI_ACTION_BIT(KVMI_ACTION_CRASH);
  const HypervisorFacts& facts = link_.facts;
  const bool is_2017 = link_.dialect() == kvmi1::DialectId::Rfc2017;
  unsigned bits = kAllow;
  if (kind == EventKind::Unhook) return ActionSet{static_cast<std::uint8_t>(bits)};
  // rfc2017 has no such action; stopping the guest is a command there.
  if (!is_2017 || facts.allows<kvmi1::ShutdownGuest>()) bits |= kCrash;
  switch (kind) {
    case EventKind::Cr:
    case EventKind::Msr:
      bits |= kSkip;
      break;
    case EventKind::Breakpoint:
      if (!is_2017) bits |= kRetry;
      if (!is_2017 && facts.allows<kvmi1::SetRegisters>()) bits |= kSkip;
      break;
    case EventKind::PageFault:
    case EventKind::Descriptor:
      bits |= kRetry;
      if (!is_2017 && facts.allows<kvmi1::SetRegisters, kvmi1::TranslateGva, kvmi1::ReadPhysical>()) bits |= kSkip;
      break;
    default:
      break;
  }
  return ActionSet{static_cast<std::uint8_t>(bits)};
}

// ---- up ----

// Running --event--> Waiting
Kept HypervisorEvents::arrived(Event& event, Seq seq) {
  const EventKind kind = event.kind();
  event.actions = actions_[static_cast<std::size_t>(kind)];
  event.decide = true;
  if (kind == EventKind::Unhook) {
    unhook_ = seq;
    link_.up.push(seq, std::move(event));
    return {};
  }
  const auto broken = [&](std::string_view why) {
    return "sent an event (" + name_of_event(event) + ") of vCPU " + std::to_string(event.vcpu.value) + ", " +
           std::string(why);
  };
  if (event.vcpu.value >= vcpus_.size()) return broken("which it does not have");
  Vcpu& vcpu = vcpus_[event.vcpu.value];
  if (vcpu.state != State::Running) return broken("which already waits for a reply");
  vcpu.state = State::Waiting;
  vcpu.seq = seq;
  vcpu.kind = kind;
  vcpu.mode = static_cast<x86::Mode>(event.mode);
  vcpu.regs = event.regs;
  vcpu.code_base = event.sregs.cs.base;
  vcpu.staged = false;
  vcpu.insn_length = 0;
  if (const auto* cr = std::get_if<CrData>(&event.data)) {
    vcpu.old_value = cr->old_value;
    vcpu.new_value = cr->new_value;
  } else if (const auto* msr = std::get_if<MsrData>(&event.data)) {
    vcpu.old_value = msr->old_value;
    vcpu.new_value = msr->new_value;
  } else if (const auto* hit = std::get_if<BreakpointData>(&event.data)) {
    vcpu.insn_length = std::max<std::uint8_t>(hit->insn_length, 1);
  } else if (auto* trap = std::get_if<TrapData>(&event.data)) {
    mark_injection(vcpu, *trap);
  }
  link_.up.push(seq, std::move(event));
  return {};
}

Kept HypervisorEvents::let_new_vcpu_go(VcpuId vcpu, Seq seq, ByteBuffer& wire) {
  kvmi1::EventReplyMessage message;
  message.vcpu = vcpu;
  message.action = kvmi1::kContinue;
  message.event = static_cast<std::uint8_t>(link_.codec().number_of(EventKind::CreateVcpu).value_or(0));
  link_.codec().encode(message, seq, wire);
  return {};
}

/// It follows an injection, and may be something else that went first.
void HypervisorEvents::mark_injection(Vcpu& vcpu, TrapData& trap) const {
  if (!vcpu.injected) return;
  if (*vcpu.injected == trap.vector) {
    trap.flags |= KVMI_TRAP_F_INJECTED;
  } else {
    trap.flags |= KVMI_TRAP_F_DISPLACED;
    trap.displaced_vector = *vcpu.injected;
  }
  vcpu.injected.reset();
}

void HypervisorEvents::injected(VcpuId vcpu, std::uint8_t vector) { vcpus_[vcpu.value].injected = vector; }

// ---- down ----

bool HypervisorEvents::stage(VcpuId id, const kvmi_x86_regs& regs) {
  if (id.value >= vcpus_.size() || vcpus_[id.value].state != State::Waiting) return false;
  vcpus_[id.value].regs = regs;
  vcpus_[id.value].staged = true;
  return link_.dialect() == kvmi1::DialectId::Rfc2017;
}

void HypervisorEvents::send(const EventReply& reply, Seq seq, ByteBuffer& wire) {
  if (reply.event == EventKind::Unhook) {
    if (unhook_ == seq) let_go_ = true;
    return;
  }
  if (reply.vcpu.value >= vcpus_.size()) return;
  Vcpu& vcpu = vcpus_[reply.vcpu.value];
  if (vcpu.state != State::Waiting || vcpu.seq != seq) return;  // the core answers what is open, once
  const bool has_value = vcpu.kind == EventKind::Cr || vcpu.kind == EventKind::Msr;
  if (reply.action == Action::Skip && !has_value) {
    if (vcpu.insn_length != 0) return go_behind(reply.vcpu, vcpu, vcpu.insn_length, wire);
    return measure(reply.vcpu, vcpu, wire);
  }
  std::uint64_t value = reply.action == Action::Skip ? vcpu.old_value : vcpu.new_value;
  if (const auto* replaced = std::get_if<NewValue>(&reply.value); replaced != nullptr && reply.action == Action::Allow)
    value = replaced->value;
  answer(reply.vcpu, vcpu, reply.action, value, wire);
}

// Waiting, Measuring --> Running
void HypervisorEvents::answer(VcpuId id, Vcpu& vcpu, Action action, std::uint64_t value, ByteBuffer& wire) {
  vcpu.state = State::Running;
  const bool has_value = vcpu.kind == EventKind::Cr || vcpu.kind == EventKind::Msr;
  const Bytes data = has_value ? std::as_bytes(std::span(&value, 1)) : Bytes{};
  if (link_.dialect() == kvmi1::DialectId::Rfc2017) return answer_2017(id, vcpu, action, data, wire);
  std::uint32_t number = kvmi1::kContinue;  // ALLOW; SKIP of a register, which gets its old value
  if (action == Action::Retry) number = kvmi1::kRetry;
  if (action == Action::Crash) number = kvmi1::kCrash;
  const kvmi1::EventReplyMessage message{
      .vcpu = id,
      .action = number,
      .event = static_cast<std::uint8_t>(link_.codec().number_of(vcpu.kind).value_or(0)),
      .data = data,
  };
  link_.codec().encode(message, vcpu.seq, wire);
}

void HypervisorEvents::answer_2017(VcpuId id, Vcpu& vcpu, Action action, Bytes data, ByteBuffer& wire) {
  static constexpr std::array<std::byte, kContextOf2017> kNoContext{};
  if (action == Action::Crash) link_.ask(kvmi1::ShutdownGuest{}, AskedBy::Nobody, 0, 0, wire);
  kvmi1::EventReplyMessage message{.vcpu = id, .action = kvmi1::kAllow2017, .data = data};
  const bool has_value = vcpu.kind == EventKind::Cr || vcpu.kind == EventKind::Msr;
  if (has_value && action != Action::Allow) message.action = 0;
  if (vcpu.kind == EventKind::PageFault) {
    message.data = kNoContext;
    if (action != Action::Allow) message.action |= kvmi1::kNoEmulation2017;
  }
  if (vcpu.staged) {
    message.action |= kvmi1::kSetRegs2017;
    message.regs = vcpu.regs;
  }
  link_.codec().encode(message, vcpu.seq, wire);
}

// ---- SKIP ----

/// With registers that the core set, it is the instruction at their RIP that is not executed.
void HypervisorEvents::go_behind(VcpuId id, Vcpu& vcpu, std::size_t length, ByteBuffer& wire) {
  vcpu.regs.rip = x86::rip_after(vcpu.regs.rip, length, vcpu.mode);
  link_.ask(kvmi1::SetRegisters{id, vcpu.regs}, AskedBy::Nobody, 0, 0, wire);
  answer(id, vcpu, Action::Retry, 0, wire);
}

// Waiting --SKIP--> Measuring
void HypervisorEvents::measure(VcpuId id, Vcpu& vcpu, ByteBuffer& wire) {
  vcpu.state = State::Measuring;
  vcpu.there = {};
  std::uint64_t linear = vcpu.regs.rip;
  if (vcpu.mode != x86::Mode::Bits64) linear = (linear + vcpu.code_base) & 0xffffffffU;
  vcpu.first_size = std::min<std::size_t>(vcpu.code.size(), kPageSize - linear % kPageSize);
  const std::uint32_t pages = vcpu.first_size < vcpu.code.size() ? 2 : 1;
  vcpu.open = pages;
  for (std::uint32_t i = 0; i < pages; ++i)
    link_.ask(kvmi1::TranslateGva{id, Gva{linear + i * vcpu.first_size}}, AskedBy::Events, id.value, i, wire);
}

Kept HypervisorEvents::replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire) {
  const VcpuId id{static_cast<std::uint16_t>(asked.job)};
  Vcpu& vcpu = vcpus_[id.value];
  --vcpu.open;
  const std::uint32_t page = asked.part % kCodeRead;
  const std::size_t at = page == 0 ? 0 : vcpu.first_size;
  const std::size_t size = page == 0 ? vcpu.first_size : vcpu.code.size() - vcpu.first_size;
  if (asked.part < kCodeRead) {
    const auto* translated = link_.body_of<kvmi1::TranslateGvaReply>(reply);
    if (reply.error == 0 && translated == nullptr) return link_.broken(asked, "without an address");
    if (reply.error == 0 && translated->gpa != kvmi1::kNoAddress) {
      link_.ask(kvmi1::ReadPhysical{Gpa{translated->gpa}, size}, AskedBy::Events, asked.job, kCodeRead + page, wire);
      vcpu.code_gpa[page] = Gpa{translated->gpa};
      ++vcpu.open;
    }
  } else if (reply.error == 0) {
    const auto* read = link_.body_of<kvmi1::ReadPhysicalReply>(reply);
    if (read == nullptr || read->data.size() != size) return link_.broken(asked, "with another size than asked");
    std::copy(read->data.begin(), read->data.end(), vcpu.code.begin() + static_cast<std::ptrdiff_t>(at));
    memory_.patches().uncover(vcpu.code_gpa[page], std::span(vcpu.code).subspan(at, size));
    vcpu.there[page] = true;
  }
  if (vcpu.open == 0) measured(id, vcpu, wire);
  return {};
}

// Measuring --the bytes are there--> Running
void HypervisorEvents::measured(VcpuId id, Vcpu& vcpu, ByteBuffer& wire) {
  std::size_t size = vcpu.there[0] ? vcpu.first_size : 0;
  if (size != 0 && vcpu.there[1]) size = vcpu.code.size();
  const auto length = x86::instruction_length(std::span<const std::byte>(vcpu.code).first(size), vcpu.mode);
  if (length) return go_behind(id, vcpu, *length, wire);
  answer(id, vcpu, Action::Retry, 0, wire);  // it comes again
}

}  // namespace kvmid::bridge
