// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Decoding of single instructions: their length, the few that introspection and an emulator care about by name, and
/// where their memory operands are.
///
/// Purpose:  events carry instruction lengths; SKIP has to step over an instruction; an emulator must know which
///           instruction made its engine stop.
/// Errors:   DecodeError: Truncated where more bytes could make an instruction of it, else Invalid.
/// Threads:  pure functions.
/// Source:   Zydis decodes; Intel SDM volume 2 for the names.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "arch/x86/registers.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"

namespace kvmid::x86 {

inline constexpr std::size_t kInstructionBytesMax = 15;

enum class DecodeError : std::uint8_t {
  Truncated,  ///< the bytes end inside an instruction
  Invalid,    ///< no instruction begins so (#UD), or it would have more than 15 bytes (#GP)
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(DecodeError error);

enum class InsnKind : std::uint8_t {
  Other,
  MovToCr,    ///< number: the CR; gpr: the source
  MovFromCr,  ///< number: the CR; gpr: the destination
  MovToDr,
  MovFromDr,
  Clts,
  Lmsw,  ///< gpr, or memory[0]
  Smsw,  ///< gpr, or memory[0]
  Rdmsr,
  Wrmsr,
  Xgetbv,
  Xsetbv,
  Rdtsc,
  Rdtscp,
  Rdpmc,
  Cpuid,
  Hlt,
  Invlpg,  ///< memory[0], of which only the address counts
  Invpcid,
  Invd,
  Wbinvd,
  Sgdt,
  Sidt,
  Sldt,
  Str,  ///< store: memory[0], or gpr for Sldt and Str
  Lgdt,
  Lidt,
  Lldt,
  Ltr,  ///< load
  Swapgs,
  Syscall,
  Sysret,
  Sysenter,
  Sysexit,
  Iret,  ///< every width; operand_bytes tells which
  IntN,  ///< number: the vector
  Int3,  ///< the one-byte form (0xcc)
  Int1,  ///< 0xf1
  Into,
  Ud2,
  Vmcall,
  Vmmcall,
  Pushf,
  Popf,
  Cli,
  Sti,
  In,  ///< number: the port if port_in_dx is false; operand_bytes: its width
  Out,
  Ins,
  Outs,
  Pause,
};
/// "mov to cr", "wrmsr" and so on, for logs.
[[nodiscard]] std::string_view name_of(InsnKind kind);

enum class Segment : std::uint8_t { Es, Cs, Ss, Ds, Fs, Gs };  // numbered as in machine code

inline constexpr std::uint8_t kNoRegister = 0xff;

/// A place in memory that an instruction uses.
struct MemoryOperand {
  std::uint8_t base = kNoRegister;   ///< number of a GPR in machine code (Gpr), 16 for RIP, or kNoRegister
  std::uint8_t index = kNoRegister;  ///< likewise, never RIP
  std::uint8_t scale = 1;            ///< 1, 2, 4 or 8
  Segment segment = Segment::Ds;
  /// Relative to what the registers hold before the instruction; a push's place is below RSP, and this says how far.
  std::int64_t displacement = 0;
  std::uint32_t bytes = 0;  ///< of one access (of one element for string instructions)
  bool read = false;
  bool write = false;
  bool address_only = false;  ///< LEA, INVLPG, NOP, prefetch: memory is not touched
  bool implicit = false;      ///< not in the assembly text: the stack of PUSH, CALL, RET…
  bool index_is_al = false;   ///< XLAT: only the low byte of the index register counts
  bool vector_index = false;  ///< gather and scatter: many addresses, this one is only their base
};

struct Instruction {
  InsnKind kind = InsnKind::Other;
  std::uint8_t length = 0;         ///< bytes, 1 to 15
  std::uint8_t operand_bytes = 0;  ///< effective operand size: 1, 2, 4 or 8; for In and Out the width of the port
  std::uint8_t address_bytes = 0;  ///< effective address size: 2, 4 or 8
  std::uint8_t gpr = kNoRegister;  ///< register operand of the kinds that say so, number in machine code
  std::uint8_t number = 0;         ///< of the CR or DR, the vector or the port
  bool port_in_dx = false;
  bool lock = false;
  bool repeated = false;    ///< a REP, REPE or REPNE that counts
  bool privileged = false;  ///< #GP(0) unless CPL is 0
  std::uint8_t memory_count = 0;
  std::array<MemoryOperand, 4> memory{};  ///< in the order of the operands, implicit ones last
};

/// Length of the instruction that `code` begins with, in bytes.
[[nodiscard]] Result<std::size_t, DecodeError> instruction_length(std::span<const std::byte> code, Mode mode);

/// The instruction that `code` begins with. Bytes behind it are not looked at.
[[nodiscard]] Result<Instruction, DecodeError> decode(std::span<const std::byte> code, Mode mode);

/// Linear address of a memory operand of `insn` with these registers: the base of the segment is in, sums are cut to
/// the address size before it is added and to 32 bits after it outside 64-bit mode. `regs.rip` is the address of
/// the instruction. Segment limits are not checked, nor is an address canonical by this.
[[nodiscard]] Gva effective_address(const Instruction& insn, const MemoryOperand& operand, const kvmi_x86_regs& regs,
                                    const kvmi_x86_sregs& sregs);

/// RIP behind an instruction of `length` bytes at `rip`, cut to the width of the mode.
[[nodiscard]] constexpr std::uint64_t rip_after(std::uint64_t rip, std::size_t length, Mode mode) {
  const std::uint64_t next = rip + length;
  if (mode == Mode::Bits64) return next;
  return next & (mode == Mode::Bits32 ? 0xffffffffu : 0xffffu);
}

}  // namespace kvmid::x86
