// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/sensitive.h"

#include <array>
#include <cstddef>
#include <cstring>
#include <span>

#include "arch/x86/control_registers.h"
#include "arch/x86/msrs.h"
#include "arch/x86/registers.h"
#include "hypervisor/emulated/cpuid.h"
#include "hypervisor/emulated/descriptors.h"
#include "hypervisor/emulated/privilege.h"
#include "hypervisor/emulated/xsave.h"
#include "hypervisor/emulated/xsave_instructions.h"

namespace kvmid::emulated {

namespace {

using x86::InsnKind;

constexpr x86::Exception kGp0{x86::vector::kGp, true, 0, 0};
constexpr x86::Exception kUd{x86::vector::kUd, false, 0, 0};
constexpr x86::Exception kDebug{x86::vector::kDb, false, 0, 0};

/// IOPL and CR4 have a say in these.
bool checks_privilege_itself(InsnKind kind) {
  switch (kind) {
    case InsnKind::Cli:
    case InsnKind::Sti:
    case InsnKind::In:
    case InsnKind::Out:
    case InsnKind::Ins:
    case InsnKind::Outs:
    case InsnKind::Popf:
    case InsnKind::Pushf:
    case InsnKind::Iret:
    case InsnKind::Rdtsc:
    case InsnKind::Rdpmc: return true;
    default: return false;
  }
}

/// Executes one instruction; `next()` moves on.
class Executor {
 public:
  Executor(Mmu& mmu, Vcpu& vcpu, const hypervisor::Hooks& hooks, const x86::Instruction& insn)
      : mmu_(mmu), vcpu_(vcpu), hooks_(hooks), insn_(insn) {}

  Effect run() {
    switch (insn_.kind) {
      case InsnKind::MovToCr: return mov_to_cr(insn_.number, gpr());
      case InsnKind::MovFromCr: return mov_from_cr();
      case InsnKind::MovToDr: return mov_to_dr();
      case InsnKind::MovFromDr: return mov_from_dr();
      case InsnKind::Clts: return mov_to_cr(0, vcpu_.sregs.cr0 & ~x86::cr0::kTs);
      case InsnKind::Lmsw: return lmsw();
      case InsnKind::Smsw: return smsw();
      case InsnKind::Rdmsr: return rdmsr();
      case InsnKind::Wrmsr: return wrmsr();
      case InsnKind::Xgetbv: return xgetbv();
      case InsnKind::Xsetbv: return xsetbv();
      case InsnKind::Hlt: next(); return HaltExecuted{};
      case InsnKind::Invlpg: vcpu_.engine.unmap(address()); return next();
      case InsnKind::Invd:
      case InsnKind::Wbinvd: return next();
      case InsnKind::Cpuid: return cpuid();
      case InsnKind::Sgdt: return descriptor(KVMI_DESC_GDTR, false);
      case InsnKind::Sidt: return descriptor(KVMI_DESC_IDTR, false);
      case InsnKind::Lgdt: return descriptor(KVMI_DESC_GDTR, true);
      case InsnKind::Lidt: return descriptor(KVMI_DESC_IDTR, true);
      case InsnKind::Sldt: return descriptor(KVMI_DESC_LDTR, false);
      case InsnKind::Str: return descriptor(KVMI_DESC_TR, false);
      case InsnKind::Lldt: return descriptor(KVMI_DESC_LDTR, true);
      case InsnKind::Ltr: return descriptor(KVMI_DESC_TR, true);
      case InsnKind::Swapgs: return swapgs();
      case InsnKind::Syscall: return syscall();
      case InsnKind::Sysret: return sysret();
      case InsnKind::Iret: return iret();
      case InsnKind::Int3: return int3();
      case InsnKind::IntN: next(); return Interrupted{insn_.number, insn_.length};
      case InsnKind::Int1: next(); return Interrupted{x86::vector::kDb, insn_.length, false};
      case InsnKind::Vmcall:
      case InsnKind::Vmmcall: return hypercall();
      case InsnKind::Rdtscp: return rdtscp();
      default: break;
    }
    if (const auto done = execute_flags_and_ports(mmu_, vcpu_, insn_)) return finish(*done);
    return Raised{kUd};  // UD2, SYSENTER, SYSEXIT, VMX and SVM instructions
  }

 private:
  Effect next() {
    vcpu_.regs.rip += insn_.length;
    return Executed{};
  }
  std::uint64_t& gpr() { return x86::gpr_at(vcpu_.regs, static_cast<x86::Gpr>(insn_.gpr)); }
  Gva address() { return x86::effective_address(insn_, insn_.memory[0], vcpu_.regs, vcpu_.sregs); }
  std::uint64_t edx_eax() const { return (vcpu_.regs.rdx << 32) | (vcpu_.regs.rax & 0xffffffff); }
  void set_edx_eax(std::uint64_t value) {
    vcpu_.regs.rax = value & 0xffffffff;
    vcpu_.regs.rdx = value >> 32;
  }
  Effect finish(const std::optional<x86::Exception>& exception) {
    if (exception) return Raised{*exception};
    return next();
  }

  Effect mov_to_cr(unsigned cr, std::uint64_t value) {
    if (const auto ok = x86::check_cr_write(vcpu_.sregs, cr, value, mmu_.cpu()); !ok) {
      return Raised{ok.error() == x86::CrError::NoSuchRegister ? kUd : kGp0};
    }
    if (hooks_.watches_cr(vcpu_.id, cr)) {
      const std::uint64_t old_value = x86::read_cr(vcpu_.sregs, cr).value();
      return Watched{CrData{static_cast<std::uint16_t>(cr), old_value, value}, insn_.length};
    }
    return finish(write_cr(mmu_, vcpu_, cr, value));
  }

  Effect mov_from_cr() {
    const auto value = x86::read_cr(vcpu_.sregs, insn_.number);
    if (!value) return Raised{kUd};
    gpr() = *value;
    return next();
  }

  Effect mov_to_dr() {
    const unsigned n = debug_register();
    if (n == 8) return Raised{kUd};
    if (guarded()) return Raised{kDebug};
    if (n >= 6 && (gpr() >> 32) != 0) return Raised{kGp0};
    if (n == 6) vcpu_.dr[6] = (gpr() & 0x1e00f) | 0xffff0ff0;
    else if (n == 7) vcpu_.dr[7] = (gpr() & 0xffff2fff) | 0x400;
    else vcpu_.dr[n] = gpr();
    return next();
  }
  Effect mov_from_dr() {
    const unsigned n = debug_register();
    if (n == 8) return Raised{kUd};
    if (guarded()) return Raised{kDebug};
    gpr() = vcpu_.dr[n];
    return next();
  }
  [[nodiscard]] bool guarded() const { return (vcpu_.dr[7] & kDr7GeneralDetect) != 0; }
  /// DR4 and DR5 are DR6 and DR7 unless CR4.DE is set; 8: there is no such register.
  [[nodiscard]] unsigned debug_register() const {
    if (insn_.number > 7) return 8;
    if (insn_.number != 4 && insn_.number != 5) return insn_.number;
    return (vcpu_.sregs.cr4 & x86::cr4::kDe) != 0 ? 8 : insn_.number + 2u;
  }

  Effect lmsw() {
    std::uint64_t word = 0;
    if (insn_.gpr != x86::kNoRegister) {
      word = gpr();
    } else if (auto fault = mmu_.read(vcpu_, address(), &word, 2)) {
      return Raised{*fault};
    }
    // The lowest four bits; PE can be set, not cleared.
    const std::uint64_t cr0 = vcpu_.sregs.cr0;
    return mov_to_cr(0, (cr0 & ~std::uint64_t{0xe}) | (word & 0xf));
  }

  Effect rdmsr() {
    const auto value = read_msr(vcpu_, static_cast<std::uint32_t>(vcpu_.regs.rcx));
    if (!value) return Raised{kGp0};
    set_edx_eax(*value);
    return next();
  }

  Effect wrmsr() {
    const auto msr = static_cast<std::uint32_t>(vcpu_.regs.rcx);
    const auto old_value = read_msr(vcpu_, msr);
    if (!old_value) return Raised{kGp0};
    if (!x86::check_msr_write(vcpu_.sregs, msr, edx_eax(), mmu_.cpu())) return Raised{kGp0};
    if (hooks_.watches_msr(vcpu_.id, msr)) return Watched{MsrData{msr, *old_value, edx_eax()}, insn_.length};
    return finish(write_msr(mmu_, vcpu_, msr, edx_eax()));
  }

  Effect xgetbv() {
    if ((vcpu_.sregs.cr4 & x86::cr4::kOsxsave) == 0) return Raised{kUd};
    if (static_cast<std::uint32_t>(vcpu_.regs.rcx) != 0) return Raised{kGp0};
    set_edx_eax(vcpu_.xcr0);
    return next();
  }
  Effect xsetbv() {
    if ((vcpu_.sregs.cr4 & x86::cr4::kOsxsave) == 0) return Raised{kUd};
    if (static_cast<std::uint32_t>(vcpu_.regs.rcx) != 0 || !is_valid_xcr0(edx_eax())) return Raised{kGp0};
    if (hooks_.watches(vcpu_.id, EventKind::Xsetbv)) {
      return Watched{XsetbvData{0, vcpu_.xcr0, edx_eax()}, insn_.length};
    }
    return finish(write_xcr0(vcpu_, edx_eax()));
  }

  /// Is this event wished for, and not answered with ALLOW just now?
  [[nodiscard]] bool asks(EventKind kind) const {
    return hooks_.watches(vcpu_.id, kind) && !(vcpu_.pass && vcpu_.pass->lets(kind, vcpu_));
  }

  Effect cpuid() {
    const auto function = static_cast<std::uint32_t>(vcpu_.regs.rax);
    const auto index = static_cast<std::uint32_t>(vcpu_.regs.rcx);
    if (asks(EventKind::Cpuid)) return Watched{CpuidData{function, index}, insn_.length};
    const auto leaf = cpuid_of(mmu_.cpu(), vcpu_, function, index).value_or(GetCpuidReply{});
    vcpu_.regs.rax = leaf.eax;
    vcpu_.regs.rbx = leaf.ebx;
    vcpu_.regs.rcx = leaf.ecx;
    vcpu_.regs.rdx = leaf.edx;
    return next();
  }

  [[nodiscard]] bool in_user_mode() const { return x86::privilege_level(vcpu_.regs, vcpu_.sregs) != 0; }
  [[nodiscard]] bool umip_forbids() const { return in_user_mode() && (vcpu_.sregs.cr4 & x86::cr4::kUmip) != 0; }

  Effect smsw() {
    if (umip_forbids()) return Raised{kGp0};
    return store_word(vcpu_.sregs.cr0, insn_.gpr != x86::kNoRegister ? insn_.operand_bytes : 2u);
  }

  /// The event comes before the operand is looked at, as a processor intercepts it.
  Effect descriptor(std::uint8_t which, bool write) {
    if (write ? in_user_mode() : umip_forbids()) return Raised{kGp0};
    if (asks(EventKind::Descriptor)) return Watched{DescriptorData{which, write}, insn_.length};
    auto& s = vcpu_.sregs;
    switch (which) {
      case KVMI_DESC_GDTR: return write ? load_table(s.gdt) : store_table(s.gdt);
      case KVMI_DESC_IDTR: return write ? load_table(s.idt) : store_table(s.idt);
      case KVMI_DESC_LDTR: return write ? load_system(false) : store_word(s.ldt.selector, 2);
      default: return write ? load_system(true) : store_word(s.tr.selector, 2);
    }
  }

  Effect store_word(std::uint64_t value, unsigned bytes) {
    if (insn_.gpr == x86::kNoRegister) return finish(mmu_.write(vcpu_, address(), &value, 2));
    const unsigned width = insn_.operand_bytes != 0 ? insn_.operand_bytes : bytes;
    if (width == 2) gpr() = (gpr() & ~std::uint64_t{0xffff}) | (value & 0xffff);
    else gpr() = width == 4 ? value & 0xffffffff : value;
    return next();
  }
  Effect store_table(const kvmi_x86_dtable& table) {
    std::array<std::byte, 10> bytes{};
    std::memcpy(bytes.data(), &table.limit, 2);
    std::memcpy(bytes.data() + 2, &table.base, 8);
    return finish(mmu_.write(vcpu_, address(), bytes.data(), bytes.size()));
  }
  Effect load_table(kvmi_x86_dtable& table) {
    std::array<std::byte, 10> bytes{};
    if (auto fault = mmu_.read(vcpu_, address(), bytes.data(), bytes.size())) return Raised{*fault};
    std::uint64_t base = 0;
    std::memcpy(&base, bytes.data() + 2, 8);
    if (!x86::is_canonical(base, mmu_.cpu().linear_address_bits)) return Raised{kGp0};
    table.base = base;
    std::memcpy(&table.limit, bytes.data(), 2);
    return next();
  }
  Effect load_system(bool task) {
    std::uint16_t selector = 0;
    if (insn_.gpr != x86::kNoRegister) {
      selector = static_cast<std::uint16_t>(gpr());
    } else if (auto fault = mmu_.read(vcpu_, address(), &selector, 2)) {
      return Raised{*fault};
    }
    return finish(task ? load_task_register(mmu_, vcpu_, selector) : load_local_table(mmu_, vcpu_, selector));
  }

  Effect swapgs() {
    const std::uint64_t kernel = vcpu_.msrs.get(x86::msr::kKernelGsBase).value();
    vcpu_.msrs.set(x86::msr::kKernelGsBase, vcpu_.sregs.gs.base);
    vcpu_.sregs.gs.base = kernel;
    vcpu_.engine.set_segment_bases(vcpu_.sregs.fs.base, vcpu_.sregs.gs.base);
    return next();
  }

  Effect syscall() {
    if (const auto exception = execute_syscall(mmu_, vcpu_, insn_.length)) return Raised{*exception};
    vcpu_.trap_flag = (vcpu_.regs.rflags & x86::rflags::kTf) != 0;  // a masked TF does not trap in the kernel
    return Executed{};
  }
  Effect sysret() {
    if (const auto exception = execute_sysret(mmu_, vcpu_, insn_.operand_bytes == 8)) return Raised{*exception};
    return Executed{};
  }

  Effect iret() {
    if (insn_.operand_bytes != 8) return Raised{kGp0};
    if (const auto exception = return_from_interrupt(mmu_, vcpu_)) return Raised{*exception};
    return Executed{true};
  }

  Effect int3() {
    if (hooks_.watches(vcpu_.id, EventKind::Breakpoint)) {
      const auto gpa = mmu_.locate(vcpu_, Gva{vcpu_.regs.rip});
      return Watched{BreakpointData{gpa.value_or(Gpa{}), insn_.length}, insn_.length};
    }
    next();
    return Interrupted{x86::vector::kBp, insn_.length};
  }

  Effect hypercall() {
    if (hooks_.watches(vcpu_.id, EventKind::Hypercall)) return Watched{HypercallData{}, insn_.length};
    next();
    return HypercallMade{};
  }

  Effect rdtscp() {
    set_edx_eax(vcpu_.instructions);
    vcpu_.regs.rcx = vcpu_.msrs.get(x86::msr::kTscAux).value() & 0xffffffff;
    return next();
  }

  Mmu& mmu_;
  Vcpu& vcpu_;
  const hypervisor::Hooks& hooks_;
  const x86::Instruction& insn_;
};

}  // namespace

Effect execute_sensitive(Mmu& mmu, Vcpu& vcpu, const hypervisor::Hooks& hooks) {
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  const std::size_t have = mmu.read_code(vcpu, code.data(), code.size());
  const auto insn = x86::decode(std::span(code).first(have), x86::Mode::Bits64);
  if (!insn) return Raised{kUd};
  if (insn->lock) return Raised{kUd};
  if (insn->privileged && !checks_privilege_itself(insn->kind) && x86::privilege_level(vcpu.regs, vcpu.sregs) != 0) {
    return Raised{kGp0};
  }
  if (insn->kind == InsnKind::Other) {
    auto effect = execute_segment_move(mmu, vcpu, *insn, std::span(code).first(insn->length));
    if (!effect) effect = execute_xsave(mmu, vcpu, *insn, std::span(code).first(insn->length));
    if (effect) {
      if (*effect) return Raised{**effect};
      vcpu.regs.rip += insn->length;
      return Executed{};
    }
  }
  return Executor(mmu, vcpu, hooks, *insn).run();
}

std::optional<x86::Exception> write_cr(Mmu& mmu, Vcpu& vcpu, unsigned cr, std::uint64_t value) {
  if (!x86::write_cr(vcpu.sregs, cr, value, mmu.cpu())) return kGp0;
  if (cr != 8) mmu.revalidate(vcpu);
  return std::nullopt;
}

std::optional<x86::Exception> write_xcr0(Vcpu& vcpu, std::uint64_t value) {
  if (!is_valid_xcr0(value)) return kGp0;
  vcpu.xcr0 = value;
  return std::nullopt;
}

std::optional<GetCpuidReply> cpuid_of(const x86::CpuFeatures& cpu, const Vcpu& vcpu, std::uint32_t function,
                                      std::uint32_t index) {
  return cpuid_leaf(CpuidState{cpu, vcpu.id, vcpu.vcpu_count, vcpu.sregs.cr4}, function, index);
}

std::optional<x86::Exception> write_msr(Mmu& mmu, Vcpu& vcpu, std::uint32_t msr, std::uint64_t value) {
  if (!x86::check_msr_write(vcpu.sregs, msr, value, mmu.cpu())) return kGp0;
  switch (msr) {
    case x86::msr::kEfer:
      vcpu.sregs.efer = x86::efer_after_write(vcpu.sregs.efer, value);
      mmu.revalidate(vcpu);  // NXE decides what bit 63 of a table entry means
      return std::nullopt;
    case x86::msr::kApicBase: vcpu.sregs.apic_base = value; return std::nullopt;
    case x86::msr::kFsBase: vcpu.sregs.fs.base = value; break;
    case x86::msr::kGsBase: vcpu.sregs.gs.base = value; break;
    default:
      if (!vcpu.msrs.set(msr, value)) return kGp0;
      return std::nullopt;
  }
  vcpu.engine.set_segment_bases(vcpu.sregs.fs.base, vcpu.sregs.gs.base);
  return std::nullopt;
}

std::optional<std::uint64_t> read_msr(const Vcpu& vcpu, std::uint32_t msr) {
  switch (msr) {
    case x86::msr::kEfer: return vcpu.sregs.efer;
    case x86::msr::kApicBase: return vcpu.sregs.apic_base;
    case x86::msr::kFsBase: return vcpu.sregs.fs.base;
    case x86::msr::kGsBase: return vcpu.sregs.gs.base;
    case x86::msr::kTsc: return vcpu.instructions;  // one tick an instruction: the same at every run
    default: return vcpu.msrs.get(msr);
  }
}

}  // namespace kvmid::emulated
