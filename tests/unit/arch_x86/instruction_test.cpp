// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/instruction.h"

#include <catch2/catch.hpp>

#include <initializer_list>
#include <set>
#include <string>
#include <vector>

using namespace kvmid;
using namespace kvmid::x86;

namespace {

using Code = std::vector<std::byte>;

Code bytes(std::initializer_list<int> values) {
  Code code;
  for (const int value : values) code.push_back(static_cast<std::byte>(value));
  return code;
}

Instruction decoded(const Code& code, Mode mode = Mode::Bits64) {
  const auto result = decode(code, mode);
  REQUIRE(result.has_value());
  CHECK(result->length == code.size());
  return *result;
}

struct Known {
  Mode mode;
  InsnKind kind;
  Code code;
};

/// One of each kind that has a name, by the opcode tables of the manual.
const std::vector<Known>& known() {
  constexpr auto k64 = Mode::Bits64;
  static const std::vector<Known> list = {
      {k64, InsnKind::MovToCr, bytes({0x0f, 0x22, 0xd8})},
      {k64, InsnKind::MovFromCr, bytes({0x0f, 0x20, 0xd8})},
      {k64, InsnKind::MovToDr, bytes({0x0f, 0x23, 0xf8})},
      {k64, InsnKind::MovFromDr, bytes({0x0f, 0x21, 0xf8})},
      {k64, InsnKind::Clts, bytes({0x0f, 0x06})},
      {k64, InsnKind::Lmsw, bytes({0x0f, 0x01, 0xf0})},
      {k64, InsnKind::Smsw, bytes({0x0f, 0x01, 0xe0})},
      {k64, InsnKind::Rdmsr, bytes({0x0f, 0x32})},
      {k64, InsnKind::Wrmsr, bytes({0x0f, 0x30})},
      {k64, InsnKind::Xgetbv, bytes({0x0f, 0x01, 0xd0})},
      {k64, InsnKind::Xsetbv, bytes({0x0f, 0x01, 0xd1})},
      {k64, InsnKind::Rdtsc, bytes({0x0f, 0x31})},
      {k64, InsnKind::Rdtscp, bytes({0x0f, 0x01, 0xf9})},
      {k64, InsnKind::Rdpmc, bytes({0x0f, 0x33})},
      {k64, InsnKind::Cpuid, bytes({0x0f, 0xa2})},
      {k64, InsnKind::Hlt, bytes({0xf4})},
      {k64, InsnKind::Invlpg, bytes({0x0f, 0x01, 0x38})},
      {k64, InsnKind::Invpcid, bytes({0x66, 0x0f, 0x38, 0x82, 0x01})},
      {k64, InsnKind::Invd, bytes({0x0f, 0x08})},
      {k64, InsnKind::Wbinvd, bytes({0x0f, 0x09})},
      {k64, InsnKind::Sgdt, bytes({0x0f, 0x01, 0x00})},
      {k64, InsnKind::Sidt, bytes({0x0f, 0x01, 0x08})},
      {k64, InsnKind::Lgdt, bytes({0x0f, 0x01, 0x10})},
      {k64, InsnKind::Lidt, bytes({0x0f, 0x01, 0x18})},
      {k64, InsnKind::Sldt, bytes({0x0f, 0x00, 0xc0})},
      {k64, InsnKind::Str, bytes({0x0f, 0x00, 0xc8})},
      {k64, InsnKind::Lldt, bytes({0x0f, 0x00, 0xd0})},
      {k64, InsnKind::Ltr, bytes({0x0f, 0x00, 0xd8})},
      {k64, InsnKind::Swapgs, bytes({0x0f, 0x01, 0xf8})},
      {k64, InsnKind::Syscall, bytes({0x0f, 0x05})},
      {k64, InsnKind::Sysret, bytes({0x48, 0x0f, 0x07})},
      {k64, InsnKind::Sysenter, bytes({0x0f, 0x34})},
      {k64, InsnKind::Sysexit, bytes({0x0f, 0x35})},
      {k64, InsnKind::Iret, bytes({0x48, 0xcf})},
      {k64, InsnKind::Iret, bytes({0xcf})},
      {k64, InsnKind::IntN, bytes({0xcd, 0x80})},
      {k64, InsnKind::IntN, bytes({0xcd, 0x03})},
      {k64, InsnKind::Int3, bytes({0xcc})},
      {k64, InsnKind::Int1, bytes({0xf1})},
      {Mode::Bits32, InsnKind::Into, bytes({0xce})},
      {k64, InsnKind::Ud2, bytes({0x0f, 0x0b})},
      {k64, InsnKind::Vmcall, bytes({0x0f, 0x01, 0xc1})},
      {k64, InsnKind::Vmmcall, bytes({0x0f, 0x01, 0xd9})},
      {k64, InsnKind::Pushf, bytes({0x9c})},
      {Mode::Bits32, InsnKind::Pushf, bytes({0x9c})},
      {Mode::Bits16, InsnKind::Pushf, bytes({0x9c})},
      {k64, InsnKind::Popf, bytes({0x9d})},
      {k64, InsnKind::Cli, bytes({0xfa})},
      {k64, InsnKind::Sti, bytes({0xfb})},
      {k64, InsnKind::In, bytes({0xe4, 0x60})},
      {k64, InsnKind::Out, bytes({0xef})},
      {k64, InsnKind::Ins, bytes({0x6c})},
      {k64, InsnKind::Outs, bytes({0x6f})},
      {k64, InsnKind::Pause, bytes({0xf3, 0x90})},
      {k64, InsnKind::Other, bytes({0x90})},
  };
  return list;
}

/// A long-mode vCPU whose registers all differ.
kvmi_x86_regs marked_regs() {
  kvmi_x86_regs regs{};
  regs.rax = 0x1000;
  regs.rbx = 0x20000;
  regs.rcx = 0x300;
  regs.rsi = 0x4;
  regs.rdi = 0x50000;
  regs.rsp = 0x7ff000;
  regs.rbp = 0x7ff100;
  regs.r12 = 0xffff800000000000;
  regs.rip = 0x400000;
  return regs;
}
kvmi_x86_sregs long_sregs() {
  kvmi_x86_sregs sregs{};
  sregs.cr0 = cr0::kPe | cr0::kPg;
  sregs.efer = efer::kLme | efer::kLma;
  sregs.cs.l = 1;
  sregs.ds.base = 0x11110000;  // 64-bit mode must not add these
  sregs.ss.base = 0x22220000;
  sregs.fs.base = 0x7f0000000000;
  sregs.gs.base = 0xffff888000000000;
  return sregs;
}
kvmi_x86_sregs flat_sregs(bool big) {
  kvmi_x86_sregs sregs{};
  sregs.cr0 = cr0::kPe;
  sregs.cs.db = sregs.ss.db = big ? 1 : 0;
  return sregs;
}

/// Linear address of memory operand `i`.
std::uint64_t address_of(const Code& code, std::size_t i = 0, Mode mode = Mode::Bits64,
                         const kvmi_x86_sregs& sregs = long_sregs(), const kvmi_x86_regs& regs = marked_regs()) {
  const auto insn = decoded(code, mode);
  REQUIRE(i < insn.memory_count);
  return effective_address(insn, insn.memory[i], regs, sregs).value;
}

}  // namespace

TEST_CASE("every instruction with a name is known by its bytes", "[instruction]") {
  std::set<InsnKind> seen;
  for (const auto& item : known()) {
    INFO(name_of(item.kind));
    CHECK(decoded(item.code, item.mode).kind == item.kind);
    seen.insert(item.kind);
  }
  CHECK(seen.size() == static_cast<std::size_t>(InsnKind::Pause) + 1);
}

TEST_CASE("exactly the instructions that need CPL 0 are privileged", "[instruction]") {
  const std::set<InsnKind> privileged = {
      InsnKind::MovToCr, InsnKind::MovFromCr, InsnKind::MovToDr, InsnKind::MovFromDr, InsnKind::Clts,
      InsnKind::Lmsw,    InsnKind::Rdmsr,     InsnKind::Wrmsr,   InsnKind::Xsetbv,    InsnKind::Hlt,
      InsnKind::Invlpg,  InsnKind::Invpcid,   InsnKind::Invd,    InsnKind::Wbinvd,    InsnKind::Lgdt,
      InsnKind::Lidt,    InsnKind::Lldt,      InsnKind::Ltr,     InsnKind::Swapgs,    InsnKind::Sysret,
      InsnKind::Sysexit,
  };
  for (const auto& item : known()) {
    INFO(name_of(item.kind));
    CHECK(decoded(item.code, item.mode).privileged == (privileged.count(item.kind) == 1));
  }
}

TEST_CASE("every kind has a name of its own", "[instruction]") {
  std::set<std::string> names;
  for (int i = 0; i <= static_cast<int>(InsnKind::Pause); ++i) {
    names.insert(std::string{name_of(static_cast<InsnKind>(i))});
  }
  CHECK(names.size() == static_cast<std::size_t>(InsnKind::Pause) + 1);
  CHECK(names.count("unknown") == 0);
}

TEST_CASE("an instruction cut at any byte is truncated, and bytes behind it do not count", "[instruction]") {
  std::vector<Known> list = known();
  list.push_back({Mode::Bits64, InsnKind::Other, bytes({0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8})});  // mov rax, imm64
  list.push_back({Mode::Bits64, InsnKind::Other,  // mov [fs:rax*8+disp], imm
                  bytes({0x64, 0x48, 0xc7, 0x04, 0xc5, 1, 2, 3, 4, 5, 6, 7, 8})});
  list.push_back({Mode::Bits64, InsnKind::Other, bytes({0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b})});  // vpgatherdd
  for (const auto& item : list) {
    for (std::size_t cut = 0; cut < item.code.size(); ++cut) {
      const std::span<const std::byte> part(item.code.data(), cut);
      const auto length = instruction_length(part, item.mode);
      const auto insn = decode(part, item.mode);
      INFO(name_of(item.kind) << " cut at " << cut);
      REQUIRE_FALSE(length.has_value());
      CHECK(length.error() == DecodeError::Truncated);
      REQUIRE_FALSE(insn.has_value());
      CHECK(insn.error() == DecodeError::Truncated);
    }
    Code longer = item.code;
    longer.insert(longer.end(), 32, std::byte{0xff});
    const auto length = instruction_length(longer, item.mode);
    REQUIRE(length.has_value());
    CHECK(*length == item.code.size());
    const auto insn = decode(longer, item.mode);
    REQUIRE(insn.has_value());
    CHECK(insn->length == item.code.size());
  }
}

TEST_CASE("an instruction has at most 15 bytes", "[instruction]") {
  Code code(14, std::byte{0x66});
  CHECK(instruction_length(code, Mode::Bits64).error() == DecodeError::Truncated);
  code.push_back(std::byte{0x90});
  CHECK(*instruction_length(code, Mode::Bits64) == 15);
  code.insert(code.begin(), std::byte{0x66});
  CHECK(instruction_length(code, Mode::Bits64).error() == DecodeError::Invalid);
  const Code prefixes(15, std::byte{0x66});  // no sixteenth byte could make an instruction of these
  CHECK(instruction_length(prefixes, Mode::Bits64).error() == DecodeError::Invalid);
  CHECK(decode(prefixes, Mode::Bits64).error() == DecodeError::Invalid);
}

TEST_CASE("bytes that no instruction begins with are invalid", "[instruction]") {
  CHECK(instruction_length(bytes({0x06}), Mode::Bits64).error() == DecodeError::Invalid);  // push es
  CHECK(*instruction_length(bytes({0x06}), Mode::Bits32) == 1);
  CHECK(decode(bytes({0xce}), Mode::Bits64).error() == DecodeError::Invalid);        // into
  CHECK(decode(bytes({0xf0, 0x90}), Mode::Bits64).error() == DecodeError::Invalid);  // lock nop
  CHECK_FALSE(text_of(DecodeError::Invalid).empty());
  CHECK(text_of(DecodeError::Invalid) != text_of(DecodeError::Truncated));
}

TEST_CASE("the same bytes have the length of their mode", "[instruction]") {
  const auto code = bytes({0xb8, 1, 2, 3, 4, 5, 6, 7, 8});  // mov (e)ax, imm
  CHECK(*instruction_length(code, Mode::Bits16) == 3);
  CHECK(*instruction_length(code, Mode::Bits32) == 5);
  CHECK(*instruction_length(code, Mode::Bits64) == 5);
  CHECK(*instruction_length(bytes({0x48, 0x90}), Mode::Bits32) == 1);  // dec eax
  CHECK(*instruction_length(bytes({0x48, 0x90}), Mode::Bits64) == 2);  // a REX prefix
}

TEST_CASE("moves to and from control and debug registers name both registers", "[instruction]") {
  auto insn = decoded(bytes({0x0f, 0x22, 0xd9}));  // mov cr3, rcx
  CHECK(insn.number == 3);
  CHECK(insn.gpr == static_cast<int>(Gpr::Rcx));
  CHECK(insn.privileged);
  insn = decoded(bytes({0x41, 0x0f, 0x20, 0xe1}));  // mov r9, cr4
  CHECK(insn.kind == InsnKind::MovFromCr);
  CHECK(insn.number == 4);
  CHECK(insn.gpr == 9);
  insn = decoded(bytes({0x44, 0x0f, 0x22, 0xc7}));  // mov cr8, rdi
  CHECK(insn.number == 8);
  CHECK(insn.gpr == static_cast<int>(Gpr::Rdi));
  insn = decoded(bytes({0x0f, 0x23, 0xfb}));  // mov dr7, rbx
  CHECK(insn.kind == InsnKind::MovToDr);
  CHECK(insn.number == 7);
  CHECK(insn.gpr == static_cast<int>(Gpr::Rbx));
  insn = decoded(bytes({0x0f, 0x21, 0xf6}));  // mov rsi, dr6
  CHECK(insn.number == 6);
  CHECK(insn.gpr == static_cast<int>(Gpr::Rsi));
  CHECK(decoded(bytes({0x0f, 0x22, 0xc0}), Mode::Bits32).number == 0);
}

TEST_CASE("LMSW and the descriptor instructions name their register or their memory", "[instruction]") {
  auto insn = decoded(bytes({0x0f, 0x01, 0xf1}));  // lmsw cx
  CHECK(insn.gpr == static_cast<int>(Gpr::Rcx));
  CHECK(insn.memory_count == 0);
  insn = decoded(bytes({0x0f, 0x01, 0x33}));  // lmsw [rbx]
  CHECK(insn.gpr == kNoRegister);
  REQUIRE(insn.memory_count == 1);
  CHECK(insn.memory[0].bytes == 2);
  CHECK(insn.memory[0].read);
  insn = decoded(bytes({0x0f, 0x00, 0xc9}));  // str ecx
  CHECK(insn.gpr == static_cast<int>(Gpr::Rcx));
  insn = decoded(bytes({0x0f, 0x00, 0x0b}));  // str [rbx]
  REQUIRE(insn.memory_count == 1);
  CHECK(insn.memory[0].write);
  CHECK_FALSE(insn.memory[0].read);
  insn = decoded(bytes({0x0f, 0x01, 0x13}));  // lgdt [rbx]
  REQUIRE(insn.memory_count == 1);
  CHECK(insn.memory[0].bytes == 10);
  CHECK(insn.memory[0].read);
  CHECK(insn.privileged);
  CHECK(decoded(bytes({0x0f, 0x01, 0x13}), Mode::Bits32).memory[0].bytes == 6);
  insn = decoded(bytes({0x0f, 0x01, 0x0b}));  // sidt [rbx]
  CHECK(insn.memory[0].write);
  CHECK_FALSE(insn.privileged);
}

TEST_CASE("interrupts and ports carry their number and width", "[instruction]") {
  CHECK(decoded(bytes({0xcd, 0x80})).number == 0x80);
  CHECK(decoded(bytes({0xcd, 0xff})).number == 0xff);
  auto insn = decoded(bytes({0xe4, 0xf8}));  // in al, 0xf8
  CHECK(insn.number == 0xf8);
  CHECK_FALSE(insn.port_in_dx);
  CHECK(insn.operand_bytes == 1);
  insn = decoded(bytes({0xe7, 0x80}));  // out 0x80, eax
  CHECK(insn.number == 0x80);
  CHECK(insn.operand_bytes == 4);
  insn = decoded(bytes({0x66, 0xef}));  // out dx, ax
  CHECK(insn.port_in_dx);
  CHECK(insn.operand_bytes == 2);
  insn = decoded(bytes({0xec}));  // in al, dx
  CHECK(insn.port_in_dx);
  CHECK(insn.operand_bytes == 1);
  insn = decoded(bytes({0xed}), Mode::Bits16);  // in ax, dx
  CHECK(insn.operand_bytes == 2);
}

TEST_CASE("operand and address sizes follow mode and prefixes", "[instruction]") {
  CHECK(decoded(bytes({0x48, 0xcf})).operand_bytes == 8);
  CHECK(decoded(bytes({0xcf})).operand_bytes == 4);
  CHECK(decoded(bytes({0x66, 0xcf})).operand_bytes == 2);
  CHECK(decoded(bytes({0x9c})).operand_bytes == 8);
  CHECK(decoded(bytes({0x9c}), Mode::Bits16).operand_bytes == 2);
  CHECK(decoded(bytes({0x8b, 0x03})).address_bytes == 8);
  CHECK(decoded(bytes({0x67, 0x8b, 0x03})).address_bytes == 4);
  CHECK(decoded(bytes({0x8b, 0x03}), Mode::Bits16).address_bytes == 2);
}

TEST_CASE("prefixes that count are told", "[instruction]") {
  CHECK(decoded(bytes({0xf0, 0x48, 0x01, 0x03})).lock);  // lock add [rbx], rax
  CHECK_FALSE(decoded(bytes({0x48, 0x01, 0x03})).lock);
  CHECK(decoded(bytes({0xf3, 0xa4})).repeated);  // rep movsb
  CHECK(decoded(bytes({0xf2, 0xae})).repeated);  // repne scasb
  CHECK_FALSE(decoded(bytes({0xa4})).repeated);
  CHECK_FALSE(decoded(bytes({0xf3, 0xc3})).repeated);  // "rep ret": the prefix means nothing
}

TEST_CASE("a memory operand is told as read, written or both", "[instruction]") {
  const auto load = decoded(bytes({0x48, 0x8b, 0x03}));  // mov rax, [rbx]
  REQUIRE(load.memory_count == 1);
  CHECK(load.memory[0].read);
  CHECK_FALSE(load.memory[0].write);
  CHECK(load.memory[0].bytes == 8);
  const auto store = decoded(bytes({0x88, 0x03}));  // mov [rbx], al
  CHECK_FALSE(store.memory[0].read);
  CHECK(store.memory[0].write);
  CHECK(store.memory[0].bytes == 1);
  const auto both = decoded(bytes({0x66, 0x01, 0x03}));  // add [rbx], ax
  CHECK(both.memory[0].read);
  CHECK(both.memory[0].write);
  CHECK(both.memory[0].bytes == 2);
  const auto exchange = decoded(bytes({0x48, 0x0f, 0xc7, 0x0b}));  // cmpxchg16b [rbx]
  CHECK(exchange.memory[0].bytes == 16);
  for (const auto& code : {bytes({0x48, 0x8d, 0x04, 0x8b}), bytes({0x0f, 0x01, 0x3b}), bytes({0x0f, 0x1f, 0x03}),
                           bytes({0x0f, 0x18, 0x0b})}) {  // lea, invlpg, nop, prefetcht0
    const auto insn = decoded(code);
    REQUIRE(insn.memory_count == 1);
    CHECK(insn.memory[0].address_only);
    CHECK_FALSE(insn.memory[0].read);
    CHECK_FALSE(insn.memory[0].write);
  }
}

TEST_CASE("string instructions have both of their places", "[instruction]") {
  const auto insn = decoded(bytes({0x48, 0xa5}));  // movsq
  REQUIRE(insn.memory_count == 2);
  CHECK(insn.memory[0].base == static_cast<int>(Gpr::Rdi));
  CHECK(insn.memory[0].segment == Segment::Es);
  CHECK(insn.memory[0].write);
  CHECK(insn.memory[1].base == static_cast<int>(Gpr::Rsi));
  CHECK(insn.memory[1].read);
  CHECK(insn.memory[1].bytes == 8);
}

TEST_CASE("a gather is marked, for one address does not tell it all", "[instruction]") {
  const auto insn = decoded(bytes({0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b}));  // vpgatherdd ymm0, [rbx+ymm1*4], ymm2
  REQUIRE(insn.memory_count == 1);
  CHECK(insn.memory[0].vector_index);
  CHECK(insn.memory[0].index == kNoRegister);
  CHECK_FALSE(decoded(bytes({0x48, 0x8b, 0x04, 0x8b})).memory[0].vector_index);
}

TEST_CASE("base, index, scale and displacement make the address", "[instruction]") {
  CHECK(address_of(bytes({0x48, 0x8b, 0x03})) == 0x20000);                                     // [rbx]
  CHECK(address_of(bytes({0x48, 0x8b, 0x43, 0xf8})) == 0x20000 - 8);                           // [rbx-8]
  CHECK(address_of(bytes({0x48, 0x8b, 0x44, 0x8b, 0x10})) == 0x20000 + 0x300 * 4 + 0x10);      // [rbx+rcx*4+16]
  CHECK(address_of(bytes({0x8b, 0x04, 0xcd, 0x00, 0x10, 0x00, 0x00})) == 0x300 * 8 + 0x1000);  // [rcx*8+0x1000]
  CHECK(address_of(bytes({0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x80})) == 0xffffffff80000000);  // [disp32]
  CHECK(address_of(bytes({0x49, 0x8b, 0x04, 0x24})) == 0xffff800000000000);                    // [r12]
  CHECK(address_of(bytes({0x48, 0xa1, 8, 7, 6, 5, 4, 3, 2, 1})) == 0x0102030405060708);        // [moffs64]
}

TEST_CASE("RIP-relative addresses count from the next instruction", "[instruction]") {
  CHECK(address_of(bytes({0x48, 0x8b, 0x05, 0x10, 0, 0, 0})) == 0x400000 + 7 + 0x10);
  CHECK(address_of(bytes({0xc7, 0x05, 0xfc, 0xff, 0xff, 0xff, 1, 2, 3, 4})) == 0x400000 + 10 - 4);
}

TEST_CASE("64-bit mode adds the bases of FS and GS and of no other segment", "[instruction]") {
  CHECK(address_of(bytes({0x64, 0x48, 0x8b, 0x03})) == 0x7f0000020000);
  CHECK(address_of(bytes({0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0})) == 0xffff888000000028);
  CHECK(address_of(bytes({0x48, 0x8b, 0x45, 0x00})) == 0x7ff100);  // [rbp]: SS
}

TEST_CASE("the address size cuts the sum before the segment is added", "[instruction]") {
  auto regs = marked_regs();
  regs.rbx = 0xffffffff00000010;
  CHECK(address_of(bytes({0x67, 0x8b, 0x43, 0xe0}), 0, Mode::Bits64, long_sregs(), regs) == 0xfffffff0);
  CHECK(address_of(bytes({0x64, 0x67, 0x8b, 0x03}), 0, Mode::Bits64, long_sregs(), regs) == 0x7f0000000010);
}

TEST_CASE("outside 64-bit mode every segment has a base and sums wrap at 32 bits", "[instruction]") {
  auto sregs = flat_sregs(true);
  sregs.ds.base = 0xfffff000;
  CHECK(address_of(bytes({0x8b, 0x03}), 0, Mode::Bits32, sregs) == 0x1f000);
  auto real = kvmi_x86_sregs{};
  real.ds.base = 0x12340;
  auto regs = marked_regs();
  regs.rbx = 0xfff0;
  regs.rsi = 0x20;
  CHECK(address_of(bytes({0x8b, 0x40, 0x05}), 0, Mode::Bits16, real, regs) == 0x12340 + 0x15);  // [bx+si+5] wraps
}

TEST_CASE("what is pushed lies below the stack pointer and what is popped at it", "[instruction]") {
  CHECK(address_of(bytes({0x50})) == 0x7ff000 - 8);                                      // push rax
  CHECK(address_of(bytes({0x66, 0x50})) == 0x7ff000 - 2);                                // push ax
  CHECK(address_of(bytes({0xe8, 0, 0, 0, 0})) == 0x7ff000 - 8);                          // call
  CHECK(address_of(bytes({0xff, 0x33}), 1) == 0x7ff000 - 8);                             // push [rbx]
  CHECK(address_of(bytes({0xff, 0x74, 0x24, 0x08}), 0) == 0x7ff008);                     // push [rsp+8]
  CHECK(address_of(bytes({0x58})) == 0x7ff000);                                          // pop rax
  CHECK(address_of(bytes({0xc3})) == 0x7ff000);                                          // ret
  CHECK(address_of(bytes({0xc9})) == 0x7ff100);                                          // leave
  CHECK(address_of(bytes({0x60}), 0, Mode::Bits32, flat_sregs(true)) == 0x7ff000 - 32);  // pusha
  CHECK(address_of(bytes({0x50}), 0, Mode::Bits16, flat_sregs(false)) == 0xf000 - 2);    // push ax, 16-bit stack
  CHECK(address_of(bytes({0x50}), 0, Mode::Bits16, [] {
          auto sregs = flat_sregs(false);
          sregs.ss.db = 1;
          return sregs;
        }()) == 0x7ff000 - 2);  // push ax, 32-bit stack
}

TEST_CASE("POP computes its destination with the stack pointer of after", "[instruction]") {
  CHECK(address_of(bytes({0x8f, 0x44, 0x24, 0x08}), 0) == 0x7ff010);  // pop [rsp+8]
  CHECK(address_of(bytes({0x8f, 0x03}), 0) == 0x20000);               // pop [rbx]
}

TEST_CASE("XLAT indexes by the low byte of RAX alone", "[instruction]") {
  auto regs = marked_regs();
  regs.rax = 0x12345678;
  CHECK(address_of(bytes({0xd7}), 0, Mode::Bits64, long_sregs(), regs) == 0x20078);
}

TEST_CASE("the next RIP is cut to the width of the mode", "[instruction]") {
  CHECK(rip_after(0xffffffff80000000, 3, Mode::Bits64) == 0xffffffff80000003);
  CHECK(rip_after(0xffffffff, 3, Mode::Bits64) == 0x100000002);
  CHECK(rip_after(0xffffffff, 3, Mode::Bits32) == 2);
  CHECK(rip_after(0xfffe, 3, Mode::Bits16) == 1);
}
