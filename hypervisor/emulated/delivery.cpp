// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/delivery.h"

#include <array>
#include <cstring>

#include "arch/x86/registers.h"

namespace kvmid::emulated {

namespace {

struct Gate {
  std::uint16_t offset_low;
  std::uint16_t selector;
  std::uint8_t ist;
  std::uint8_t attributes;
  std::uint16_t offset_middle;
  std::uint32_t offset_high;
  std::uint32_t reserved;
};
static_assert(sizeof(Gate) == 16);

constexpr std::uint8_t kInterruptGate = 0xe, kTrapGate = 0xf;

x86::Exception with_code(std::uint8_t vector, std::uint32_t code) { return {vector, true, code, 0}; }

/// Error code that names an IDT entry; `external` where the program did not ask for it.
std::uint32_t idt_code(std::uint8_t vector, bool external) {
  return std::uint32_t{vector} * 8 + 2 + (external ? 1u : 0u);
}

/// Pushes the frame and goes to the handler; or the exception that this itself raised.
std::optional<x86::Exception> enter_handler(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception, bool software) {
  const auto& idt = vcpu.sregs.idt;
  const std::uint32_t offset = std::uint32_t{exception.vector} * 16;
  if (offset + 15 > idt.limit) return with_code(x86::vector::kGp, idt_code(exception.vector, !software));
  Gate gate;
  if (auto fault = mmu.read(vcpu, Gva{idt.base + offset}, &gate, sizeof gate)) return fault;
  const std::uint8_t type = gate.attributes & 0x1f;
  if (type != kInterruptGate && type != kTrapGate) {
    return with_code(x86::vector::kGp, idt_code(exception.vector, !software));
  }
  if ((gate.attributes & 0x80) == 0) return with_code(x86::vector::kNp, idt_code(exception.vector, !software));
  const std::uint32_t external = software ? 0 : 1;
  if ((gate.selector & ~3u) == 0) return with_code(x86::vector::kGp, external);
  if ((gate.selector | 7u) > vcpu.sregs.gdt.limit) {
    return with_code(x86::vector::kGp, (gate.selector & ~7u) | external);
  }

  std::uint64_t stack = vcpu.regs.rsp;
  if ((gate.ist & 7) != 0) {
    const std::uint32_t slot = 0x1c + (gate.ist & 7u) * 8;  // IST1 is at 0x24
    if (slot + 7 > vcpu.sregs.tr.limit) return with_code(x86::vector::kTs, (vcpu.sregs.tr.selector & ~7u) | external);
    if (auto fault = mmu.read(vcpu, Gva{vcpu.sregs.tr.base + slot}, &stack, sizeof stack)) return fault;
  }
  stack &= ~std::uint64_t{15};

  // A fault's saved image has RF set, so that a breakpoint on the instruction does not hit again.
  const bool fault_kind = !software && x86::exception_info(exception.vector).kind == x86::ExceptionKind::Fault;
  const std::uint64_t flags = vcpu.regs.rflags | (fault_kind ? x86::rflags::kRf : 0);
  const std::array<std::uint64_t, 6> frame = {exception.error_code, vcpu.regs.rip,  vcpu.sregs.cs.selector,
                                              flags,                vcpu.regs.rsp, vcpu.sregs.ss.selector};
  const std::size_t skip = exception.has_error_code ? 0 : 1;
  const std::size_t bytes = (frame.size() - skip) * 8;
  if (auto fault = mmu.write(vcpu, Gva{stack - bytes}, frame.data() + skip, bytes)) return fault;

  if (exception.vector == x86::vector::kPf) vcpu.sregs.cr2 = exception.address;
  vcpu.regs.rsp = stack - bytes;
  vcpu.regs.rip = gate.offset_low | (std::uint64_t{gate.offset_middle} << 16) | (std::uint64_t{gate.offset_high} << 32);
  vcpu.regs.rflags &= ~(x86::rflags::kTf | x86::rflags::kNt | x86::rflags::kRf | x86::rflags::kVm);
  if (type == kInterruptGate) vcpu.regs.rflags &= ~x86::rflags::kIf;
  vcpu.sregs.cs.selector = static_cast<std::uint16_t>(gate.selector & ~3u);
  return std::nullopt;
}

Delivery deliver_any(Mmu& mmu, Vcpu& vcpu, x86::Exception exception, bool software) {
  for (;;) {
    const auto second = enter_handler(mmu, vcpu, exception, software);
    if (!second) return Delivery::Delivered;
    if (second->vector == x86::vector::kPf) vcpu.sregs.cr2 = second->address;
    // INT n itself is not an exception that another could meet: what it raises is delivered in its place.
    const auto meeting = software ? x86::Meeting::Serial : x86::meeting_of(exception.vector, second->vector);
    software = false;
    switch (meeting) {
      case x86::Meeting::Serial: exception = *second; break;
      case x86::Meeting::DoubleFault: exception = with_code(x86::vector::kDf, 0); break;
      case x86::Meeting::TripleFault: return Delivery::TripleFault;
    }
  }
}

}  // namespace

Delivery deliver(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception) {
  return deliver_any(mmu, vcpu, exception, false);
}

Delivery deliver_interrupt(Mmu& mmu, Vcpu& vcpu, std::uint8_t vector) {
  return deliver_any(mmu, vcpu, x86::Exception{vector, false, 0, 0}, true);
}

std::optional<x86::Exception> return_from_interrupt(Mmu& mmu, Vcpu& vcpu) {
  std::array<std::uint64_t, 5> frame{};
  if (auto fault = mmu.read(vcpu, Gva{vcpu.regs.rsp}, frame.data(), sizeof frame)) return fault;
  const auto& [rip, cs, flags, rsp, ss] = frame;
  const bool ring0 = (cs & 3) == 0 && (ss & 3) == 0;
  if (!ring0 || (cs & 0xfff8) == 0) return with_code(x86::vector::kGp, static_cast<std::uint32_t>(cs & 0xfffc));
  if (!x86::is_canonical(rip, mmu.cpu().linear_address_bits)) return with_code(x86::vector::kGp, 0);
  vcpu.regs.rip = rip;
  vcpu.regs.rsp = rsp;
  vcpu.regs.rflags = (flags & x86::rflags::kDefined & ~x86::rflags::kVm) | x86::rflags::kFixed;
  vcpu.sregs.cs.selector = static_cast<std::uint16_t>(cs);
  vcpu.sregs.ss.selector = static_cast<std::uint16_t>(ss);
  return std::nullopt;
}

}  // namespace kvmid::emulated
