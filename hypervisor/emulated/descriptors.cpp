// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/descriptors.h"

#include <algorithm>
#include <array>

#include "arch/x86/registers.h"

namespace kvmid::emulated {

namespace {

constexpr x86::Exception kUd{x86::vector::kUd, false, 0, 0};

x86::Exception with_selector(std::uint8_t vector, std::uint16_t selector) {
  return {vector, true, selector & 0xfffcu, 0};
}

kvmi_x86_segment unpack(std::uint16_t selector, std::uint64_t low, std::uint64_t high) {
  kvmi_x86_segment segment{};
  segment.selector = selector;
  segment.base = ((low >> 16) & 0xffffff) | ((low >> 32) & 0xff000000) | (high << 32);
  segment.limit = static_cast<std::uint32_t>((low & 0xffff) | ((low >> 32) & 0xf0000));
  segment.type = (low >> 40) & 0xf;
  segment.s = (low >> 44) & 1;
  segment.dpl = (low >> 45) & 3;
  segment.present = (low >> 47) & 1;
  segment.avl = (low >> 52) & 1;
  segment.l = (low >> 53) & 1;
  segment.db = (low >> 54) & 1;
  segment.g = (low >> 55) & 1;
  if (segment.g != 0) segment.limit = (segment.limit << 12) | 0xfff;
  return segment;
}

/// Reads `bytes` (8, or 16 for a system descriptor) of the descriptor that `selector` names.
std::optional<x86::Exception> read_descriptor(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector, std::size_t bytes,
                                              std::array<std::uint64_t, 2>& out) {
  const bool local = (selector & 4) != 0;
  if (local && vcpu.sregs.ldt.unusable != 0) return with_selector(x86::vector::kGp, selector);
  const std::uint64_t base = local ? vcpu.sregs.ldt.base : vcpu.sregs.gdt.base;
  const std::uint64_t limit = local ? vcpu.sregs.ldt.limit : vcpu.sregs.gdt.limit;
  const std::uint64_t offset = selector & 0xfff8u;
  if (offset + bytes - 1 > limit) return with_selector(x86::vector::kGp, selector);
  return mmu.read_system(vcpu, Gva{base + offset}, out.data(), bytes);
}

std::optional<x86::Exception> load_system(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector, std::uint8_t type,
                                          kvmi_x86_segment& segment) {
  if ((selector & 4) != 0) return with_selector(x86::vector::kGp, selector);
  std::array<std::uint64_t, 2> descriptor{};
  if (auto fault = read_descriptor(mmu, vcpu, selector, 16, descriptor)) return fault;
  const auto loaded = unpack(selector, descriptor[0], descriptor[1]);
  if (loaded.s != 0 || loaded.type != type) return with_selector(x86::vector::kGp, selector);
  if (loaded.present == 0) return with_selector(x86::vector::kNp, selector);
  segment = loaded;
  return std::nullopt;
}

/// FS and GS keep the base that the descriptor gives; the others have none in 64-bit mode.
std::optional<x86::Exception> load_data(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector, unsigned number) {
  auto& s = vcpu.sregs;
  kvmi_x86_segment* const segments[] = {&s.es, nullptr, &s.ss, &s.ds, &s.fs, &s.gs};
  kvmi_x86_segment& segment = *segments[number];
  const unsigned cpl = x86::privilege_level(vcpu.regs, s);
  if ((selector & 0xfffc) == 0) {
    // SS can be null inside the kernel only.
    if (number == 2 && (cpl == 3 || (selector & 3u) != cpl)) return with_selector(x86::vector::kGp, selector);
    segment.selector = selector;
    if (number >= 4) segment.base = 0;
  } else {
    std::array<std::uint64_t, 2> descriptor{};
    if (auto fault = read_descriptor(mmu, vcpu, selector, 8, descriptor)) return fault;
    const auto loaded = unpack(selector, descriptor[0], 0);
    const bool code = (loaded.type & 8) != 0;
    const bool usable = loaded.s != 0 && (!code || (loaded.type & 2) != 0);
    const bool stack = !code && (loaded.type & 2) != 0 && loaded.dpl == cpl && (selector & 3u) == cpl;
    const bool conforming = code && (loaded.type & 4) != 0;
    const bool reachable = conforming || loaded.dpl >= std::max<unsigned>(cpl, selector & 3u);
    if (!usable || !reachable || (number == 2 && !stack)) return with_selector(x86::vector::kGp, selector);
    if (loaded.present == 0) return with_selector(number == 2 ? x86::vector::kSs : x86::vector::kNp, selector);
    segment = loaded;
  }
  if (number >= 4) vcpu.engine.set_segment_bases(s.fs.base, s.gs.base);
  return std::nullopt;
}

}  // namespace

Result<kvmi_x86_segment, x86::Exception> read_segment(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector) {
  std::array<std::uint64_t, 2> descriptor{};
  if (auto fault = read_descriptor(mmu, vcpu, selector, 8, descriptor)) return *fault;
  return unpack(selector, descriptor[0], 0);
}

std::optional<x86::Exception> load_task_register(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector) {
  if ((selector & 0xfffc) == 0) return x86::Exception{x86::vector::kGp, true, 0, 0};
  if (auto fault = load_system(mmu, vcpu, selector, 0x9, vcpu.sregs.tr)) return fault;
  vcpu.sregs.tr.type = 0xb;  // busy, also in the table
  std::uint8_t access = 0x8b;
  return mmu.write_system(vcpu, Gva{vcpu.sregs.gdt.base + (selector & 0xfff8u) + 5}, &access, 1);
}

std::optional<x86::Exception> load_local_table(Mmu& mmu, Vcpu& vcpu, std::uint16_t selector) {
  if ((selector & 0xfffc) == 0) {
    vcpu.sregs.ldt = kvmi_x86_segment{};
    vcpu.sregs.ldt.selector = selector;
    vcpu.sregs.ldt.unusable = 1;
    return std::nullopt;
  }
  return load_system(mmu, vcpu, selector, 0x2, vcpu.sregs.ldt);
}

std::optional<std::optional<x86::Exception>> execute_segment_move(Mmu& mmu, Vcpu& vcpu, const x86::Instruction& insn,
                                                                  std::span<const std::byte> code) {
  std::size_t at = 0;
  std::uint8_t rex = 0;
  bool narrow = false;
  for (; at < code.size(); ++at) {
    const auto b = std::to_integer<std::uint8_t>(code[at]);
    if (b >= 0x40 && b < 0x50) rex = b;
    else if (b == 0x66) narrow = true;
    else if (b == 0x8c || b == 0x8e) break;
    else if ((b & 0xe7) != 0x26 && b != 0x64 && b != 0x65 && b != 0x67) return std::nullopt;  // no prefix
  }
  if (at + 1 >= code.size()) return std::nullopt;
  const bool load = code[at] == std::byte{0x8e};
  const auto modrm = std::to_integer<std::uint8_t>(code[at + 1]);
  const unsigned segment = (modrm >> 3) & 7;
  if (segment > 5 || (load && segment == 1)) return std::optional(kUd);
  const bool in_register = (modrm >> 6) == 3;
  std::uint64_t& gpr = x86::gpr_at(vcpu.regs, static_cast<x86::Gpr>((modrm & 7) | ((rex & 1) << 3)));
  const auto where = [&] { return x86::effective_address(insn, insn.memory[0], vcpu.regs, vcpu.sregs); };

  const auto& s = vcpu.sregs;
  if (load) {
    std::uint16_t selector = static_cast<std::uint16_t>(gpr);
    if (!in_register) {
      if (auto fault = mmu.read(vcpu, where(), &selector, sizeof selector)) return fault;
    }
    return load_data(mmu, vcpu, selector, segment);
  }
  const kvmi_x86_segment* const segments[] = {&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs};
  const std::uint16_t selector = segments[segment]->selector;
  if (!in_register) return mmu.write(vcpu, where(), &selector, sizeof selector);
  if (narrow && (rex & 8) == 0) gpr = (gpr & ~std::uint64_t{0xffff}) | selector;
  else gpr = selector;
  return std::optional<x86::Exception>();
}

}  // namespace kvmid::emulated
