// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/instruction.h"

#include <Zydis/Zydis.h>

#include <optional>

namespace kvmid::x86 {

namespace {

struct Decoders {
  Decoders() {
    ZydisDecoderInit(&bits64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&bits32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&bits16, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16);
  }
  ZydisDecoder bits64{};
  ZydisDecoder bits32{};
  ZydisDecoder bits16{};
};

const ZydisDecoder& decoder_of(Mode mode) {
  static const Decoders decoders;
  switch (mode) {
    case Mode::Bits64:
      return decoders.bits64;
    case Mode::Bits32:
      return decoders.bits32;
    case Mode::Bits16:
      return decoders.bits16;
  }
  return decoders.bits64;
}

DecodeError error_of(ZyanStatus status, std::size_t available) {
  // With 15 bytes in hand, wanting more is not a cut instruction but one that is too long.
  if (status == ZYDIS_STATUS_NO_MORE_DATA && available < kInstructionBytesMax) return DecodeError::Truncated;
  return DecodeError::Invalid;
}

InsnKind kind_of(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_CLTS:
      return InsnKind::Clts;
    case ZYDIS_MNEMONIC_LMSW:
      return InsnKind::Lmsw;
    case ZYDIS_MNEMONIC_SMSW:
      return InsnKind::Smsw;
    case ZYDIS_MNEMONIC_RDMSR:
      return InsnKind::Rdmsr;
    case ZYDIS_MNEMONIC_WRMSR:
      return InsnKind::Wrmsr;
    case ZYDIS_MNEMONIC_XGETBV:
      return InsnKind::Xgetbv;
    case ZYDIS_MNEMONIC_XSETBV:
      return InsnKind::Xsetbv;
    case ZYDIS_MNEMONIC_RDTSC:
      return InsnKind::Rdtsc;
    case ZYDIS_MNEMONIC_RDTSCP:
      return InsnKind::Rdtscp;
    case ZYDIS_MNEMONIC_RDPMC:
      return InsnKind::Rdpmc;
    case ZYDIS_MNEMONIC_CPUID:
      return InsnKind::Cpuid;
    case ZYDIS_MNEMONIC_HLT:
      return InsnKind::Hlt;
    case ZYDIS_MNEMONIC_INVLPG:
      return InsnKind::Invlpg;
    case ZYDIS_MNEMONIC_INVPCID:
      return InsnKind::Invpcid;
    case ZYDIS_MNEMONIC_INVD:
      return InsnKind::Invd;
    case ZYDIS_MNEMONIC_WBINVD:
      return InsnKind::Wbinvd;
    case ZYDIS_MNEMONIC_SGDT:
      return InsnKind::Sgdt;
    case ZYDIS_MNEMONIC_SIDT:
      return InsnKind::Sidt;
    case ZYDIS_MNEMONIC_SLDT:
      return InsnKind::Sldt;
    case ZYDIS_MNEMONIC_STR:
      return InsnKind::Str;
    case ZYDIS_MNEMONIC_LGDT:
      return InsnKind::Lgdt;
    case ZYDIS_MNEMONIC_LIDT:
      return InsnKind::Lidt;
    case ZYDIS_MNEMONIC_LLDT:
      return InsnKind::Lldt;
    case ZYDIS_MNEMONIC_LTR:
      return InsnKind::Ltr;
    case ZYDIS_MNEMONIC_SWAPGS:
      return InsnKind::Swapgs;
    case ZYDIS_MNEMONIC_SYSCALL:
      return InsnKind::Syscall;
    case ZYDIS_MNEMONIC_SYSRET:
      return InsnKind::Sysret;
    case ZYDIS_MNEMONIC_SYSENTER:
      return InsnKind::Sysenter;
    case ZYDIS_MNEMONIC_SYSEXIT:
      return InsnKind::Sysexit;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
      return InsnKind::Iret;
    case ZYDIS_MNEMONIC_INT:
      return InsnKind::IntN;
    case ZYDIS_MNEMONIC_INT3:
      return InsnKind::Int3;
    case ZYDIS_MNEMONIC_INT1:
      return InsnKind::Int1;
    case ZYDIS_MNEMONIC_INTO:
      return InsnKind::Into;
    case ZYDIS_MNEMONIC_UD2:
      return InsnKind::Ud2;
    case ZYDIS_MNEMONIC_VMCALL:
      return InsnKind::Vmcall;
    case ZYDIS_MNEMONIC_VMMCALL:
      return InsnKind::Vmmcall;
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
      return InsnKind::Pushf;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
      return InsnKind::Popf;
    case ZYDIS_MNEMONIC_CLI:
      return InsnKind::Cli;
    case ZYDIS_MNEMONIC_STI:
      return InsnKind::Sti;
    case ZYDIS_MNEMONIC_IN:
      return InsnKind::In;
    case ZYDIS_MNEMONIC_OUT:
      return InsnKind::Out;
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
      return InsnKind::Ins;
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
      return InsnKind::Outs;
    case ZYDIS_MNEMONIC_PAUSE:
      return InsnKind::Pause;
    default:
      return InsnKind::Other;
  }
}

/// Zydis 4.0 does not mark all of these as privileged (LGDT is missing there).
bool is_privileged(InsnKind kind) {
  switch (kind) {
    case InsnKind::MovToCr:
    case InsnKind::MovFromCr:
    case InsnKind::MovToDr:
    case InsnKind::MovFromDr:
    case InsnKind::Clts:
    case InsnKind::Lmsw:
    case InsnKind::Rdmsr:
    case InsnKind::Wrmsr:
    case InsnKind::Xsetbv:
    case InsnKind::Hlt:
    case InsnKind::Invlpg:
    case InsnKind::Invpcid:
    case InsnKind::Invd:
    case InsnKind::Wbinvd:
    case InsnKind::Lgdt:
    case InsnKind::Lidt:
    case InsnKind::Lldt:
    case InsnKind::Ltr:
    case InsnKind::Swapgs:
    case InsnKind::Sysret:
    case InsnKind::Sysexit:
      return true;
    default:
      return false;
  }
}

bool touches_no_memory(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1:
      return true;
    default:
      return false;
  }
}

std::uint8_t id_of(ZydisRegister reg) { return static_cast<std::uint8_t>(ZydisRegisterGetId(reg)); }

/// Number in machine code; none for what is no general purpose register of 16, 32 or 64 bits.
std::uint8_t gpr_of(ZydisRegister reg) {
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
      return id_of(reg);
    default:
      return kNoRegister;
  }
}

constexpr std::uint8_t kStackPointer = static_cast<std::uint8_t>(Gpr::Rsp);
constexpr std::uint8_t kFramePointer = static_cast<std::uint8_t>(Gpr::Rbp);  // LEAVE pops through it

MemoryOperand memory_of(const ZydisDecodedInstruction& insn, const ZydisDecodedOperand& operand) {
  MemoryOperand result;
  const auto& mem = operand.mem;
  const bool rip_relative = mem.base == ZYDIS_REGISTER_RIP || mem.base == ZYDIS_REGISTER_EIP;
  result.base = rip_relative ? static_cast<std::uint8_t>(kRegisterRip) : gpr_of(mem.base);
  result.index = gpr_of(mem.index);
  result.index_is_al = insn.mnemonic == ZYDIS_MNEMONIC_XLAT;  // Zydis has AL as a hidden operand of its own
  if (result.index_is_al) result.index = static_cast<std::uint8_t>(Gpr::Rax);
  result.vector_index = mem.index != ZYDIS_REGISTER_NONE && result.index == kNoRegister;
  result.scale = mem.scale == 0 ? std::uint8_t{1} : mem.scale;
  if (ZydisRegisterGetClass(mem.segment) == ZYDIS_REGCLASS_SEGMENT) {
    result.segment = static_cast<Segment>(id_of(mem.segment));
  }
  if (mem.disp.has_displacement) result.displacement = mem.disp.value;
  result.bytes = operand.size / 8u;
  result.address_only =
      mem.type == ZYDIS_MEMOP_TYPE_AGEN || mem.type == ZYDIS_MEMOP_TYPE_MIB || touches_no_memory(insn.mnemonic);
  result.read = !result.address_only && (operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
  result.write = !result.address_only && (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
  result.implicit = operand.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
  if (result.base == kStackPointer) {
    // What is pushed lies below the stack pointer of before; the destination of POP is computed with that of after.
    if (result.implicit && result.write && !result.read) result.displacement -= result.bytes;
    if (!result.implicit && insn.mnemonic == ZYDIS_MNEMONIC_POP) result.displacement += result.bytes;
  }
  return result;
}

void note_register_operand(ZydisRegister reg, std::size_t position, Instruction& result) {
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_CONTROL:
      if (result.kind == InsnKind::Other) result.kind = position == 0 ? InsnKind::MovToCr : InsnKind::MovFromCr;
      result.number = id_of(reg);
      return;
    case ZYDIS_REGCLASS_DEBUG:
      result.kind = position == 0 ? InsnKind::MovToDr : InsnKind::MovFromDr;
      result.number = id_of(reg);
      return;
    default:
      break;
  }
  if (result.kind == InsnKind::In || result.kind == InsnKind::Out) {
    const auto width = static_cast<std::uint8_t>(ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, reg) / 8u);
    if (reg == ZYDIS_REGISTER_DX) {
      result.port_in_dx = true;
    } else {
      result.operand_bytes = width;
    }
    return;
  }
  if (const auto gpr = gpr_of(reg); gpr != kNoRegister && result.gpr == kNoRegister) result.gpr = gpr;
}

std::uint64_t cut(std::uint64_t value, unsigned bytes) {
  if (bytes >= 8) return value;
  return value & ((std::uint64_t{1} << (8 * bytes)) - 1);
}

const kvmi_x86_segment& segment_of(const kvmi_x86_sregs& sregs, Segment segment) {
  switch (segment) {
    case Segment::Es:
      return sregs.es;
    case Segment::Cs:
      return sregs.cs;
    case Segment::Ss:
      return sregs.ss;
    case Segment::Ds:
      return sregs.ds;
    case Segment::Fs:
      return sregs.fs;
    case Segment::Gs:
      return sregs.gs;
  }
  return sregs.ds;
}

}  // namespace

std::string_view text_of(DecodeError error) {
  switch (error) {
    case DecodeError::Truncated:
      return "the bytes end inside an instruction";
    case DecodeError::Invalid:
      return "the bytes are no instruction";
  }
  return "unknown error";
}

std::string_view name_of(InsnKind kind) {
  switch (kind) {
    case InsnKind::Other:
      return "other";
    case InsnKind::MovToCr:
      return "mov to cr";
    case InsnKind::MovFromCr:
      return "mov from cr";
    case InsnKind::MovToDr:
      return "mov to dr";
    case InsnKind::MovFromDr:
      return "mov from dr";
    case InsnKind::Clts:
      return "clts";
    case InsnKind::Lmsw:
      return "lmsw";
    case InsnKind::Smsw:
      return "smsw";
    case InsnKind::Rdmsr:
      return "rdmsr";
    case InsnKind::Wrmsr:
      return "wrmsr";
    case InsnKind::Xgetbv:
      return "xgetbv";
    case InsnKind::Xsetbv:
      return "xsetbv";
    case InsnKind::Rdtsc:
      return "rdtsc";
    case InsnKind::Rdtscp:
      return "rdtscp";
    case InsnKind::Rdpmc:
      return "rdpmc";
    case InsnKind::Cpuid:
      return "cpuid";
    case InsnKind::Hlt:
      return "hlt";
    case InsnKind::Invlpg:
      return "invlpg";
    case InsnKind::Invpcid:
      return "invpcid";
    case InsnKind::Invd:
      return "invd";
    case InsnKind::Wbinvd:
      return "wbinvd";
    case InsnKind::Sgdt:
      return "sgdt";
    case InsnKind::Sidt:
      return "sidt";
    case InsnKind::Sldt:
      return "sldt";
    case InsnKind::Str:
      return "str";
    case InsnKind::Lgdt:
      return "lgdt";
    case InsnKind::Lidt:
      return "lidt";
    case InsnKind::Lldt:
      return "lldt";
    case InsnKind::Ltr:
      return "ltr";
    case InsnKind::Swapgs:
      return "swapgs";
    case InsnKind::Syscall:
      return "syscall";
    case InsnKind::Sysret:
      return "sysret";
    case InsnKind::Sysenter:
      return "sysenter";
    case InsnKind::Sysexit:
      return "sysexit";
    case InsnKind::Iret:
      return "iret";
    case InsnKind::IntN:
      return "int n";
    case InsnKind::Int3:
      return "int3";
    case InsnKind::Int1:
      return "int1";
    case InsnKind::Into:
      return "into";
    case InsnKind::Ud2:
      return "ud2";
    case InsnKind::Vmcall:
      return "vmcall";
    case InsnKind::Vmmcall:
      return "vmmcall";
    case InsnKind::Pushf:
      return "pushf";
    case InsnKind::Popf:
      return "popf";
    case InsnKind::Cli:
      return "cli";
    case InsnKind::Sti:
      return "sti";
    case InsnKind::In:
      return "in";
    case InsnKind::Out:
      return "out";
    case InsnKind::Ins:
      return "ins";
    case InsnKind::Outs:
      return "outs";
    case InsnKind::Pause:
      return "pause";
  }
  return "unknown";
}

Result<std::size_t, DecodeError> instruction_length(std::span<const std::byte> code, Mode mode) {
  if (code.empty()) return DecodeError::Truncated;
  ZydisDecodedInstruction insn;
  const auto status = ZydisDecoderDecodeInstruction(&decoder_of(mode), nullptr, code.data(), code.size(), &insn);
  if (!ZYAN_SUCCESS(status)) return error_of(status, code.size());
  return std::size_t{insn.length};
}

Result<Instruction, DecodeError> decode(std::span<const std::byte> code, Mode mode) {
  if (code.empty()) return DecodeError::Truncated;
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
  const auto status = ZydisDecoderDecodeFull(&decoder_of(mode), code.data(), code.size(), &insn, operands.data());
  if (!ZYAN_SUCCESS(status)) return error_of(status, code.size());

  Instruction result;
  result.kind = kind_of(insn.mnemonic);
  result.length = insn.length;
  result.operand_bytes = static_cast<std::uint8_t>(insn.operand_width / 8u);
  result.address_bytes = static_cast<std::uint8_t>(insn.address_width / 8u);
  result.lock = (insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
  result.repeated = (insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
  result.privileged = (insn.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) != 0;

  for (std::size_t i = 0; i < insn.operand_count; ++i) {
    const auto& operand = operands[i];
    if (operand.type == ZYDIS_OPERAND_TYPE_MEMORY) {
      if (result.memory_count < result.memory.size()) result.memory[result.memory_count++] = memory_of(insn, operand);
    } else if (operand.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
      continue;
    } else if (operand.type == ZYDIS_OPERAND_TYPE_REGISTER) {
      note_register_operand(operand.reg.value, i, result);
    } else if (operand.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && result.kind != InsnKind::Other) {
      result.number = static_cast<std::uint8_t>(operand.imm.value.u);
    }
  }
  result.privileged = result.privileged || is_privileged(result.kind);
  return result;
}

Gva effective_address(const Instruction& insn, const MemoryOperand& operand, const kvmi_x86_regs& regs,
                      const kvmi_x86_sregs& sregs) {
  const Mode mode = operating_mode(sregs);
  unsigned width = insn.address_bytes;
  if (operand.implicit && operand.segment == Segment::Ss &&
      (operand.base == kStackPointer || operand.base == kFramePointer)) {
    // The stack pointer has the width of the stack, whatever the address size is.
    width = mode == Mode::Bits64 ? 8u : (sregs.ss.db != 0 ? 4u : 2u);
  }
  std::uint64_t offset = static_cast<std::uint64_t>(operand.displacement);
  if (operand.base == kRegisterRip) {
    offset += regs.rip + insn.length;
  } else if (operand.base != kNoRegister) {
    offset += gpr_at(regs, static_cast<Gpr>(operand.base));
  }
  if (operand.index != kNoRegister) {
    std::uint64_t index = gpr_at(regs, static_cast<Gpr>(operand.index));
    if (operand.index_is_al) index &= 0xff;
    offset += index * operand.scale;
  }
  offset = cut(offset, width);

  if (mode == Mode::Bits64) {
    const bool has_base = operand.segment == Segment::Fs || operand.segment == Segment::Gs;
    return Gva{offset + (has_base ? segment_of(sregs, operand.segment).base : 0)};
  }
  return Gva{cut(offset + segment_of(sregs, operand.segment).base, 4)};
}

}  // namespace kvmid::x86
