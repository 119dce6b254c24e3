// SPDX-License-Identifier: GPL-2.0-or-later
//
// The only file that includes the kernel's KVM headers: it proves that the register structs of kvmi.h are the kernel's.
// kvm_msrs and kvm_xsave are left out on purpose: in C++ the headers of Linux 6.1 give them another layout than in C
// (an empty struct inside their flexible array), and nothing of ours is made after them.

#include <asm/kvm.h>

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstring>

#include "protocol/kvmi.h"

#define SAME_FIELD(ours, theirs, field)                        \
  static_assert(offsetof(ours, field) == offsetof(theirs, field) && \
                sizeof(ours::field) == sizeof(theirs::field))

static_assert(sizeof(kvmi_x86_regs) == sizeof(kvm_regs));
SAME_FIELD(kvmi_x86_regs, kvm_regs, rax);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rbx);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rcx);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rdx);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rsi);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rdi);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rsp);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rbp);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r8);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r9);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r10);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r11);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r12);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r13);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r14);
SAME_FIELD(kvmi_x86_regs, kvm_regs, r15);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rip);
SAME_FIELD(kvmi_x86_regs, kvm_regs, rflags);

static_assert(sizeof(kvmi_x86_segment) == sizeof(kvm_segment));
SAME_FIELD(kvmi_x86_segment, kvm_segment, base);
SAME_FIELD(kvmi_x86_segment, kvm_segment, limit);
SAME_FIELD(kvmi_x86_segment, kvm_segment, selector);
SAME_FIELD(kvmi_x86_segment, kvm_segment, type);
SAME_FIELD(kvmi_x86_segment, kvm_segment, present);
SAME_FIELD(kvmi_x86_segment, kvm_segment, dpl);
SAME_FIELD(kvmi_x86_segment, kvm_segment, db);
SAME_FIELD(kvmi_x86_segment, kvm_segment, s);
SAME_FIELD(kvmi_x86_segment, kvm_segment, l);
SAME_FIELD(kvmi_x86_segment, kvm_segment, g);
SAME_FIELD(kvmi_x86_segment, kvm_segment, avl);
SAME_FIELD(kvmi_x86_segment, kvm_segment, unusable);
SAME_FIELD(kvmi_x86_segment, kvm_segment, padding);

static_assert(sizeof(kvmi_x86_dtable) == sizeof(kvm_dtable));
SAME_FIELD(kvmi_x86_dtable, kvm_dtable, base);
SAME_FIELD(kvmi_x86_dtable, kvm_dtable, limit);
SAME_FIELD(kvmi_x86_dtable, kvm_dtable, padding);

static_assert(sizeof(kvmi_x86_sregs) == sizeof(kvm_sregs));
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cs);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, ds);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, es);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, fs);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, gs);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, ss);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, tr);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, ldt);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, gdt);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, idt);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cr0);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cr2);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cr3);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cr4);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, cr8);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, efer);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, apic_base);
SAME_FIELD(kvmi_x86_sregs, kvm_sregs, interrupt_bitmap);

static_assert(sizeof(kvmi_x86_msr) == sizeof(kvm_msr_entry));
static_assert(offsetof(kvmi_x86_msr, index) == offsetof(kvm_msr_entry, index));
static_assert(offsetof(kvmi_x86_msr, value) == offsetof(kvm_msr_entry, data));

TEST_CASE("registers of the kernel can be copied as they are", "[kvmi]") {
  kvm_sregs theirs{};
  theirs.ss.unusable = 1;
  theirs.idt.limit = 0xfff;
  theirs.efer = 0xd01;
  kvmi_x86_sregs ours;
  std::memcpy(&ours, &theirs, sizeof ours);
  REQUIRE(ours.ss.unusable == 1);
  REQUIRE(ours.idt.limit == 0xfff);
  REQUIRE(ours.efer == 0xd01);
}
