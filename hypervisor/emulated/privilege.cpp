// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/privilege.h"

#include <array>

#include "arch/x86/msrs.h"
#include "arch/x86/registers.h"
#include "hypervisor/emulated/descriptors.h"
#include "hypervisor/emulated/sensitive.h"

namespace kvmid::emulated {

namespace {

namespace rf = x86::rflags;

constexpr x86::Exception kGp0{x86::vector::kGp, true, 0, 0};
constexpr x86::Exception kUd{x86::vector::kUd, false, 0, 0};

x86::Exception with_code(std::uint8_t vector, std::uint64_t code) {
  return {vector, true, static_cast<std::uint32_t>(code & 0xfffc), 0};
}

kvmi_x86_segment flat(std::uint16_t selector, bool code, unsigned ring) {
  kvmi_x86_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = code ? 0xb : 0x3;
  segment.present = 1;
  segment.s = 1;
  segment.dpl = static_cast<std::uint8_t>(ring);
  segment.l = code ? 1 : 0;
  segment.db = code ? 0 : 1;
  segment.g = 1;
  return segment;
}

unsigned ring_of(const Vcpu& vcpu) { return x86::privilege_level(vcpu.regs, vcpu.sregs); }

/// A data segment that the outer ring could not have loaded is null behind a return to it.
void close_segments(Vcpu& vcpu, unsigned cpl) {
  auto& s = vcpu.sregs;
  for (auto* segment : {&s.ds, &s.es, &s.fs, &s.gs}) {
    const bool conforming = (segment->type & 0xc) == 0xc;
    if (segment->s == 0 || conforming || segment->dpl >= cpl) continue;
    const std::uint64_t base = segment->base;  // FS and GS keep their bases
    *segment = kvmi_x86_segment{};
    segment->base = base;
    segment->unusable = 1;
  }
}

std::optional<x86::Exception> check_return_stack(Mmu& mmu, Vcpu& vcpu, std::uint64_t selector, unsigned rpl,
                                                 kvmi_x86_segment& stack) {
  if ((selector & 0xfffc) == 0) {
    if (rpl == 3 || (selector & 3) != rpl) return kGp0;
    stack = null_stack(rpl);
    return std::nullopt;
  }
  const auto loaded = read_segment(mmu, vcpu, static_cast<std::uint16_t>(selector));
  if (!loaded) return loaded.error();
  const bool writable = loaded->s != 0 && (loaded->type & 0xa) == 0x2;
  if ((selector & 3) != rpl || !writable || loaded->dpl != rpl) return with_code(x86::vector::kGp, selector);
  if (loaded->present == 0) return with_code(x86::vector::kSs, selector);
  stack = *loaded;
  return std::nullopt;
}

}  // namespace

kvmi_x86_segment with_ring(kvmi_x86_segment code, std::uint16_t selector, unsigned cpl) {
  code.selector = static_cast<std::uint16_t>((selector & ~3u) | cpl);
  return code;
}

kvmi_x86_segment null_stack(unsigned cpl) {
  kvmi_x86_segment segment{};
  segment.selector = static_cast<std::uint16_t>(cpl);
  segment.dpl = static_cast<std::uint8_t>(cpl);
  segment.unusable = 1;
  return segment;
}

void enter_ring(Mmu& mmu, Vcpu& vcpu, const kvmi_x86_segment& code, const kvmi_x86_segment& stack) {
  const unsigned before = ring_of(vcpu);
  vcpu.sregs.cs = code;
  vcpu.sregs.ss = stack;
  vcpu.sregs.ss.dpl = static_cast<std::uint8_t>(code.selector & 3u);
  if (ring_of(vcpu) != before) mmu.revalidate(vcpu);
}

std::optional<x86::Exception> execute_syscall(Mmu& mmu, Vcpu& vcpu, std::uint8_t length) {
  if ((vcpu.sregs.efer & x86::efer::kSce) == 0) return kUd;
  vcpu.regs.rcx = vcpu.regs.rip + length;
  vcpu.regs.r11 = vcpu.regs.rflags & ~rf::kRf;
  vcpu.regs.rip = vcpu.msrs.get(x86::msr::kLstar).value();
  vcpu.regs.rflags &= ~(vcpu.msrs.get(x86::msr::kFmask).value() | rf::kRf);
  vcpu.regs.rflags |= rf::kFixed;
  const auto selector = static_cast<std::uint16_t>((vcpu.msrs.get(x86::msr::kStar).value() >> 32) & 0xfffc);
  // The processor loads fixed segments, whatever the tables say.
  enter_ring(mmu, vcpu, flat(selector, true, 0), flat(static_cast<std::uint16_t>(selector + 8), false, 0));
  return std::nullopt;
}

std::optional<x86::Exception> execute_sysret(Mmu& mmu, Vcpu& vcpu, bool to_64_bit) {
  if ((vcpu.sregs.efer & x86::efer::kSce) == 0) return kUd;
  if (!to_64_bit || !x86::is_canonical(vcpu.regs.rcx, mmu.cpu().linear_address_bits)) return kGp0;
  vcpu.regs.rip = vcpu.regs.rcx;
  vcpu.regs.rflags = (vcpu.regs.r11 & rf::kDefined & ~(rf::kRf | rf::kVm)) | rf::kFixed;
  const auto base = static_cast<unsigned>(vcpu.msrs.get(x86::msr::kStar).value() >> 48);
  enter_ring(mmu, vcpu, flat(static_cast<std::uint16_t>((base + 16) | 3u), true, 3),
             flat(static_cast<std::uint16_t>((base + 8) | 3u), false, 3));
  return std::nullopt;
}

std::uint64_t loaded_flags(const Vcpu& vcpu, std::uint64_t value, std::uint64_t loadable) {
  const unsigned cpl = ring_of(vcpu);
  const std::uint64_t iopl = (vcpu.regs.rflags & rf::kIopl) >> 12;
  if (cpl != 0) loadable &= ~(rf::kIopl | rf::kVif | rf::kVip);
  if (cpl > iopl) loadable &= ~rf::kIf;
  return (vcpu.regs.rflags & ~loadable) | (value & loadable) | rf::kFixed;
}

std::optional<x86::Exception> return_from_interrupt(Mmu& mmu, Vcpu& vcpu) {
  std::array<std::uint64_t, 5> frame{};
  if (auto fault = mmu.read(vcpu, Gva{vcpu.regs.rsp}, frame.data(), sizeof frame)) return fault;
  const auto& [rip, cs, flags, rsp, ss] = frame;
  const unsigned cpl = ring_of(vcpu);
  const auto rpl = static_cast<unsigned>(cs & 3);
  if ((cs & 0xfffc) == 0) return kGp0;
  if (rpl < cpl) return with_code(x86::vector::kGp, cs);
  const auto code = read_segment(mmu, vcpu, static_cast<std::uint16_t>(cs));
  if (!code) return code.error();
  const bool reachable = is_conforming(*code) ? code->dpl <= rpl : code->dpl == rpl;
  if (!is_code64(*code) || !reachable) return with_code(x86::vector::kGp, cs);
  if (code->present == 0) return with_code(x86::vector::kNp, cs);
  kvmi_x86_segment stack{};
  if (auto fault = check_return_stack(mmu, vcpu, ss, rpl, stack)) return fault;
  if (!x86::is_canonical(rip, mmu.cpu().linear_address_bits)) return kGp0;

  vcpu.regs.rflags = loaded_flags(vcpu, flags, rf::kDefined & ~rf::kVm);
  vcpu.regs.rip = rip;
  vcpu.regs.rsp = rsp;
  if (rpl > cpl) close_segments(vcpu, rpl);
  enter_ring(mmu, vcpu, with_ring(*code, static_cast<std::uint16_t>(cs), rpl), stack);
  return std::nullopt;
}

namespace {

std::optional<x86::Exception> push_flags(Mmu& mmu, Vcpu& vcpu, unsigned bytes) {
  const std::uint64_t value = vcpu.regs.rflags & ~(rf::kRf | rf::kVm);
  if (auto fault = mmu.write(vcpu, Gva{vcpu.regs.rsp - bytes}, &value, bytes)) return fault;
  vcpu.regs.rsp -= bytes;
  return std::nullopt;
}

std::optional<x86::Exception> pop_flags(Mmu& mmu, Vcpu& vcpu, unsigned bytes) {
  std::uint64_t value = 0;
  if (auto fault = mmu.read(vcpu, Gva{vcpu.regs.rsp}, &value, bytes)) return fault;
  std::uint64_t loadable = rf::kDefined & ~(rf::kRf | rf::kVm | rf::kVif | rf::kVip);
  if (bytes == 2) loadable &= 0xffff;
  vcpu.regs.rflags = loaded_flags(vcpu, value, loadable) & ~rf::kRf;
  vcpu.regs.rsp += bytes;
  return std::nullopt;
}

std::optional<x86::Exception> port_access(Vcpu& vcpu, const x86::Instruction& insn) {
  // The I/O bitmap of the task state is taken to forbid every port.
  if (ring_of(vcpu) > ((vcpu.regs.rflags & rf::kIopl) >> 12)) return kGp0;
  // No device answers: IN reads ones, and OUT goes nowhere. The string forms would need one to make sense.
  if (insn.kind == x86::InsnKind::Ins || insn.kind == x86::InsnKind::Outs) return kUd;
  if (insn.kind != x86::InsnKind::In) return std::nullopt;
  const unsigned bytes = insn.operand_bytes;
  if (bytes >= 4) vcpu.regs.rax = 0xffffffff;
  else vcpu.regs.rax |= (std::uint64_t{1} << (8 * bytes)) - 1;
  return std::nullopt;
}

}  // namespace

std::optional<std::optional<x86::Exception>> execute_flags_and_ports(Mmu& mmu, Vcpu& vcpu,
                                                                     const x86::Instruction& insn) {
  using x86::InsnKind;
  using Done = std::optional<x86::Exception>;
  const unsigned cpl = ring_of(vcpu);
  const unsigned bytes = insn.operand_bytes == 2 ? 2 : 8;  // 64-bit code has no 4-byte form
  switch (insn.kind) {
    case InsnKind::Pushf: return push_flags(mmu, vcpu, bytes);
    case InsnKind::Popf: return pop_flags(mmu, vcpu, bytes);
    case InsnKind::Cli:
    case InsnKind::Sti:
      if (cpl > ((vcpu.regs.rflags & rf::kIopl) >> 12)) return Done(kGp0);
      vcpu.regs.rflags &= ~rf::kIf;
      if (insn.kind == InsnKind::Sti) vcpu.regs.rflags |= rf::kIf;
      return Done();
    case InsnKind::In:
    case InsnKind::Out:
    case InsnKind::Ins:
    case InsnKind::Outs: return port_access(vcpu, insn);
    case InsnKind::Rdtsc:
      if (cpl != 0 && (vcpu.sregs.cr4 & x86::cr4::kTsd) != 0) return Done(kGp0);
      vcpu.regs.rax = vcpu.instructions & 0xffffffff;
      vcpu.regs.rdx = vcpu.instructions >> 32;
      return Done();
    case InsnKind::Rdpmc: return Done(kGp0);  // there is no counter
    default: return std::nullopt;
  }
}

}  // namespace kvmid::emulated
