// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/vcpu.h"

#include "arch/x86/registers.h"
#include "hypervisor/emulated/boot.h"
#include "hypervisor/emulated/mailbox.h"

namespace kvmid::emulated {

namespace {

kvmi_x86_segment flat_segment(std::uint16_t selector, std::uint8_t type, bool code) {
  kvmi_x86_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = code ? 1 : 0;
  segment.db = code ? 0 : 1;
  return segment;
}

}  // namespace

Vcpu::Vcpu(VcpuId vcpu, std::uint16_t count) : id(vcpu), vcpu_count(count) {
  regs.rip = boot::kImage.value;
  regs.rflags = x86::rflags::kFixed;
  regs.rdi = vcpu.value;
  regs.rsi = mailbox_gpa(vcpu).value;
  regs.rdx = count;

  sregs.cs = flat_segment(boot::kCodeSelector, 0xb, true);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(boot::kDataSelector, 0x3, false);
  sregs.tr.type = 0xb;
  sregs.tr.present = 1;
  sregs.ldt.unusable = 1;
  sregs.gdt.base = boot::kGdt.value;
  sregs.gdt.limit = boot::kGdtBytes - 1;
  sregs.cr0 = x86::cr0::kPe | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp | x86::cr0::kPg;
  sregs.cr3 = boot::kPml4.value;
  sregs.cr4 = x86::cr4::kPae | x86::cr4::kOsfxsr | x86::cr4::kOsxmmexcpt;
  sregs.efer = x86::efer::kLme | x86::efer::kLma | x86::efer::kNxe | x86::efer::kSce;
  sregs.apic_base = 0xfee00800 | (vcpu.value == 0 ? 0x100u : 0u);
  dr[6] = 0xffff0ff0;
  dr[7] = 0x400;
}

}  // namespace kvmid::emulated
