// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/delivery.h"

#include <array>

#include "arch/x86/registers.h"
#include "hypervisor/emulated/descriptors.h"
#include "hypervisor/emulated/privilege.h"

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

/// A stack pointer of the task state, at `slot`; or the exception that reading it raised.
std::optional<x86::Exception> read_stack(Mmu& mmu, Vcpu& vcpu, std::uint32_t slot, std::uint32_t external,
                                         std::uint64_t& stack) {
  if (slot + 7 > vcpu.sregs.tr.limit) return with_code(x86::vector::kTs, (vcpu.sregs.tr.selector & ~7u) | external);
  return mmu.read_system(vcpu, Gva{vcpu.sregs.tr.base + slot}, &stack, sizeof stack);
}

/// Pushes the frame and goes to the handler; or the exception that this itself raised.
std::optional<x86::Exception> enter_handler(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception, DeliveryKind kind) {
  const auto& idt = vcpu.sregs.idt;
  const unsigned cpl = x86::privilege_level(vcpu.regs, vcpu.sregs);
  const std::uint32_t offset = std::uint32_t{exception.vector} * 16;
  const std::uint32_t gate_code = idt_code(exception.vector, !kind.software);
  if (offset + 15 > idt.limit) return with_code(x86::vector::kGp, gate_code);
  Gate gate;
  if (auto fault = mmu.read_system(vcpu, Gva{idt.base + offset}, &gate, sizeof gate)) return fault;
  const std::uint8_t type = gate.attributes & 0x1f;
  if (type != kInterruptGate && type != kTrapGate) return with_code(x86::vector::kGp, gate_code);
  if (kind.software && ((gate.attributes >> 5) & 3u) < cpl) return with_code(x86::vector::kGp, gate_code);
  if ((gate.attributes & 0x80) == 0) return with_code(x86::vector::kNp, gate_code);

  const std::uint32_t external = kind.software ? 0 : 1;
  if ((gate.selector & ~3u) == 0) return with_code(x86::vector::kGp, external);
  const auto code = read_segment(mmu, vcpu, gate.selector);
  if (!code) {
    auto fault = code.error();
    if (fault.vector != x86::vector::kPf) fault.error_code |= external;
    return fault;
  }
  const std::uint32_t code_error = (gate.selector & ~3u) | external;
  if (!is_code64(*code) || code->dpl > cpl) return with_code(x86::vector::kGp, code_error);
  if (code->present == 0) return with_code(x86::vector::kNp, code_error);
  const unsigned new_cpl = is_conforming(*code) ? cpl : code->dpl;

  std::uint64_t stack = vcpu.regs.rsp;
  if ((gate.ist & 7) != 0) {
    const std::uint32_t slot = 0x1c + (gate.ist & 7u) * 8;  // IST1 is at 0x24
    if (auto fault = read_stack(mmu, vcpu, slot, external, stack)) return fault;
  } else if (new_cpl < cpl) {
    if (auto fault = read_stack(mmu, vcpu, 4 + new_cpl * 8, external, stack)) return fault;
  }
  if (!x86::is_canonical(stack, mmu.cpu().linear_address_bits)) return with_code(x86::vector::kSs, external);
  stack &= ~std::uint64_t{15};

  const std::uint64_t flags = vcpu.regs.rflags | (kind.resume_flag ? x86::rflags::kRf : 0);
  const std::array<std::uint64_t, 6> frame = {exception.error_code, vcpu.regs.rip,  vcpu.sregs.cs.selector,
                                              flags,                vcpu.regs.rsp, vcpu.sregs.ss.selector};
  const std::size_t skip = exception.has_error_code ? 0 : 1;
  const std::size_t bytes = (frame.size() - skip) * 8;
  const auto pushed = new_cpl < 3 ? mmu.write_system(vcpu, Gva{stack - bytes}, frame.data() + skip, bytes)
                                  : mmu.write(vcpu, Gva{stack - bytes}, frame.data() + skip, bytes);
  if (pushed) return pushed;

  if (exception.vector == x86::vector::kPf) vcpu.sregs.cr2 = exception.address;
  vcpu.regs.rsp = stack - bytes;
  vcpu.regs.rip = gate.offset_low | (std::uint64_t{gate.offset_middle} << 16) | (std::uint64_t{gate.offset_high} << 32);
  vcpu.regs.rflags &= ~(x86::rflags::kTf | x86::rflags::kNt | x86::rflags::kRf | x86::rflags::kVm);
  if (type == kInterruptGate) vcpu.regs.rflags &= ~x86::rflags::kIf;
  auto stack_segment = vcpu.sregs.ss;
  if (new_cpl != cpl) stack_segment = null_stack(new_cpl);
  enter_ring(mmu, vcpu, with_ring(*code, gate.selector, new_cpl), stack_segment);
  return std::nullopt;
}

}  // namespace

Delivery deliver(Mmu& mmu, Vcpu& vcpu, const x86::Exception& exception, DeliveryKind kind) {
  const auto second = enter_handler(mmu, vcpu, exception, kind);
  if (!second) return Delivered{};
  // INT n itself is not an exception that another could meet: what it raises is delivered in its place.
  const auto meeting = kind.software ? x86::Meeting::Serial : x86::meeting_of(exception.vector, second->vector);
  switch (meeting) {
    case x86::Meeting::Serial: return *second;
    case x86::Meeting::DoubleFault:
      if (second->vector == x86::vector::kPf) vcpu.sregs.cr2 = second->address;  // else its own delivery does that
      return with_code(x86::vector::kDf, 0);
    case x86::Meeting::TripleFault: break;
  }
  return TripleFault{};
}

}  // namespace kvmid::emulated
