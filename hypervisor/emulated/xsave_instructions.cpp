// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/xsave_instructions.h"

#include <cstring>

#include "arch/x86/registers.h"
#include "hypervisor/emulated/xsave.h"

namespace kvmid::emulated {

namespace {

constexpr x86::Exception kGp0{x86::vector::kGp, true, 0, 0};
constexpr x86::Exception kUd{x86::vector::kUd, false, 0, 0};
constexpr x86::Exception kNm{x86::vector::kNm, false, 0, 0};
constexpr std::size_t kMxcsr = 24, kX87Bytes = 24, kSt = 32, kXmm = 160, kXmmEnd = 416, kXstateBv = kXsaveLegacyBytes;

/// Writes into `area`, which holds what the guest has there, the parts that XSAVE writes.
void save(XsaveArea& area, const FpuState& fpu, std::uint64_t features) {
  const XsaveArea made = make_xsave_area(fpu, features);
  const auto copy = [&](std::size_t from, std::size_t to) {
    std::memcpy(area.data() + from, made.data() + from, to - from);
  };
  if ((features & kXfeatureX87) != 0) {
    copy(0, kX87Bytes);
    copy(kSt, kXmm);
  }
  if ((features & kXfeatureSse) != 0) {
    copy(kMxcsr, kSt);
    copy(kXmm, kXmmEnd);
  }
  std::uint64_t present = 0;
  std::memcpy(&present, area.data() + kXstateBv, sizeof present);
  present |= features;
  std::memcpy(area.data() + kXstateBv, &present, sizeof present);
}

std::optional<x86::Exception> restore(XsaveArea& area, Vcpu& vcpu, std::uint64_t features) {
  std::uint64_t present = 0;
  std::memcpy(&present, area.data() + kXstateBv, sizeof present);
  if ((present & ~vcpu.xcr0) != 0) return kGp0;
  // MXCSR counts only where SSE is asked for.
  if ((features & kXfeatureSse) == 0) std::memset(area.data() + kMxcsr, 0, 4);
  if (check_xsave_area(area)) return kGp0;
  FpuState fpu = vcpu.engine.fpu();
  load_xsave_area(area, features, fpu);
  vcpu.engine.set_fpu(fpu);
  return std::nullopt;
}

}  // namespace

std::optional<std::optional<x86::Exception>> execute_xsave(Mmu& mmu, Vcpu& vcpu, const x86::Instruction& insn,
                                                           std::span<const std::byte> code) {
  std::size_t at = 0;
  for (; at < code.size() && code[at] != std::byte{0x0f}; ++at) {
    const auto b = std::to_integer<unsigned>(code[at]);
    const bool segment_or_address = (b & 0xe7) == 0x26 || b == 0x64 || b == 0x65 || b == 0x67;
    if (!segment_or_address && (b & 0xf0) != 0x40) return std::nullopt;
  }
  if (at + 2 >= code.size() || code[at + 1] != std::byte{0xae}) return std::nullopt;
  const auto modrm = std::to_integer<unsigned>(code[at + 2]);
  const unsigned operation = (modrm >> 3) & 7;
  if ((modrm >> 6) == 3 || (operation != 4 && operation != 5) || insn.memory_count == 0) return std::nullopt;

  if ((vcpu.sregs.cr4 & x86::cr4::kOsxsave) == 0) return std::optional(kUd);
  if ((vcpu.sregs.cr0 & x86::cr0::kTs) != 0) return std::optional(kNm);
  const Gva where = x86::effective_address(insn, insn.memory[0], vcpu.regs, vcpu.sregs);
  if (where.value % 64 != 0 || !x86::is_canonical(where.value, mmu.cpu().linear_address_bits)) {
    return std::optional(kGp0);
  }
  const std::uint64_t features = ((vcpu.regs.rdx << 32) | (vcpu.regs.rax & 0xffffffff)) & vcpu.xcr0;
  XsaveArea area{};
  if (auto fault = mmu.read(vcpu, where, area.data(), area.size())) return fault;
  if (operation == 5) return restore(area, vcpu, features);
  save(area, vcpu.engine.fpu(), features);
  return mmu.write(vcpu, where, area.data(), kXstateBv + sizeof(std::uint64_t));
}

}  // namespace kvmid::emulated
