/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef KVMID_HYPERVISOR_EMULATED_MAILBOX_LAYOUT_H
#define KVMID_HYPERVISOR_EMULATED_MAILBOX_LAYOUT_H

/*
 * Where the test guest keeps what it sees, as plain numbers that assembler, C and C++ can read. mailbox.h gives them
 * names and types for C++. GUEST.md tells the story.
 * Every field is 8 bytes; offsets are from the vCPU's own mailbox page.
 */

/* ---- guest physical addresses; the test guest maps each at the same virtual address ---- */
#define KVMID_GUEST_MAILBOX_GPA 0x10000   /* one page per vCPU, 8 of them */
#define KVMID_GUEST_MAILBOX_STRIDE 0x1000
#define KVMID_GUEST_VCPUS_MAX 8
#define KVMID_GUEST_PROTECTED_GPA 0x20000 /* data page for page rights: vCPU n uses the 8 bytes at 8*n */
#define KVMID_GUEST_EXEC_GPA 0x21000      /* code page for page rights */
#define KVMID_GUEST_WINDOW_A_GPA 0x22000  /* what the window shows under the first page table root */
#define KVMID_GUEST_WINDOW_B_GPA 0x23000  /* and under the second */
#define KVMID_GUEST_WINDOW_GVA 0x1ff000
#define KVMID_GUEST_USER_CODE_GPA 0x24000   /* what user mode executes; the kernel's pages are not for it */
#define KVMID_GUEST_USER_STACKS_GPA 0x30000 /* one page per vCPU */
#define KVMID_GUEST_USER_CODE_SELECTOR 0x33
#define KVMID_GUEST_USER_DATA_SELECTOR 0x2b
#define KVMID_GUEST_STACKS_GPA 0x40000    /* one page per vCPU */
#define KVMID_GUEST_IST_STACKS_GPA 0x48000
#define KVMID_GUEST_ROOT_A_GPA 0x50000    /* values of CR3 */
#define KVMID_GUEST_ROOT_B_GPA 0x54000
#define KVMID_GUEST_IDT_GPA 0x58000
#define KVMID_GUEST_TSS_GPA 0x59000       /* 128 bytes per vCPU */
#define KVMID_GUEST_GDT_GPA 0x5a000       /* 128 bytes per vCPU; from 0x50 on: LDT, second TSS */
#define KVMID_GUEST_LDT_GPA 0x5b000       /* an empty LDT */
#define KVMID_GUEST_ROM_GPA 0xf0000       /* a page of ROM: "KVMIROM1", then each byte is the low byte of its offset */
#define KVMID_GUEST_ROM_BYTES 0x1000
#define KVMID_GUEST_IMAGE_GPA 0x100000    /* where the loader puts the image, and where vCPUs begin */

/* Only in address space 1 (SMM); address space 0 has other RAM there. Begins with "KVMISMRM", then zeros. */
#define KVMID_GUEST_SMRAM_GPA 0xa0000
#define KVMID_GUEST_SMRAM_BYTES 0x10000

#define KVMID_GUEST_WINDOW_A_VALUE 0xa1
#define KVMID_GUEST_WINDOW_B_VALUE 0xb2
#define KVMID_GUEST_EXEC_VALUE 0x5eed     /* what the function on the exec page returns */
#define KVMID_GUEST_HAMMER_INSN_BYTES 9
#define KVMID_GUEST_HYPERCALL 0x4b560001  /* number in RAX of the guest's hypercall */
#define KVMID_GUEST_MAP_HYPERCALL 0x4b560002 /* and of the one that kvmi-emu knows: RDI = KVMI_MAP_*, of the ROM page */

/* ---- what a vCPU does in a round: the word at KVMID_MB_MODE ---- */
#define KVMID_MODE_ALL 0    /* 3 to ALL_END in turn, one a round, but for TRIPLE */
#define KVMID_MODE_IDLE 1   /* nothing but HLT */
#define KVMID_MODE_SPIN 2   /* count without HLT */
#define KVMID_MODE_CR3 3    /* the other page table root, then the byte in the window */
#define KVMID_MODE_CR4 4    /* CR4.PGE the other way round */
#define KVMID_MODE_CR0 5    /* CR0.WP the other way round */
#define KVMID_MODE_LSTAR 6  /* WRMSR LSTAR: arg_msr_value + round */
#define KVMID_MODE_MSR 7    /* WRMSR arg_msr: arg_msr_value */
#define KVMID_MODE_INT3 8
#define KVMID_MODE_VMCALL 9
#define KVMID_MODE_STORE 10 /* store the round's number into the protected page */
#define KVMID_MODE_LOAD 11  /* load from the protected page */
#define KVMID_MODE_EXEC 12  /* call the function on the exec page */
#define KVMID_MODE_UD 13    /* UD2 */
#define KVMID_MODE_GP 14    /* load from an address that is not canonical */
#define KVMID_MODE_PF 15    /* load from arg_pf_address */
#define KVMID_MODE_TRIPLE 16 /* not one of "all": IDT of no length, then UD2 */
#define KVMID_MODE_XSETBV 17 /* XSETBV of arg_xcr0, or of the other of 1 and 3 where that is 0; XGETBV */
#define KVMID_MODE_GDT 18    /* LGDT with the other of two limits, then SGDT */
#define KVMID_MODE_IDT 19    /* likewise */
#define KVMID_MODE_LDT 20    /* LLDT with the other of two selectors, then SLDT */
#define KVMID_MODE_TR 21     /* LTR with the other of two selectors, then STR */
#define KVMID_MODE_CPUID 22  /* CPUID of arg_cpuid_function, arg_cpuid_index */
#define KVMID_MODE_SSE 23    /* XMM5 and ST(0) plus one, then stored */
#define KVMID_MODE_ROM 24    /* store into the ROM page, then load from there */
#define KVMID_MODE_USER 25   /* to ring 3 and back: system calls, #PF at a kernel page, #GP of HLT */
#define KVMID_MODE_STEP 26   /* five instructions with RFLAGS.TF */
#define KVMID_MODE_DEBUG 27  /* one instruction with a breakpoint of DR0 on it */
#define KVMID_MODE_COPY 28   /* REP MOVSB of 8 bytes, from the protected page to `copied` */
#define KVMID_MODE_HAMMER 29 /* hammer_target() until hammer_calls is arg_hammer_calls, without HLT */
#define KVMID_MODE_ALL_END 30
#define KVMID_MODE_MAP 30    /* hypercall MAP_HYPERCALL with arg_map_change */
#define KVMID_MODE_COUNT 31

/* ---- fields ---- */
#define KVMID_MB_MAGIC 0x00         /* KVMID_MB_MAGIC_VALUE once the vCPU is in its loop */
#define KVMID_MB_VCPU 0x08
#define KVMID_MB_MODE 0x10          /* written by tests: KVMID_MODE_* */
#define KVMID_MB_ROUNDS 0x18        /* rounds begun */
#define KVMID_MB_ACTION 0x20        /* KVMID_MODE_* under way or done last */
#define KVMID_MB_CR0 0x28           /* read back after the write */
#define KVMID_MB_CR3 0x30
#define KVMID_MB_CR4 0x38
#define KVMID_MB_LSTAR 0x40         /* read back by RDMSR */
#define KVMID_MB_MSR 0x48           /* read back by RDMSR: arg_msr */
#define KVMID_MB_LOADED 0x50        /* loaded from the protected page */
#define KVMID_MB_STORED 0x58        /* value the last store was given */
#define KVMID_MB_EXEC_RESULT 0x60   /* RAX after the call; set to 0 before it */
#define KVMID_MB_EXEC_CALLS 0x68    /* counted by the function itself */
#define KVMID_MB_HYPERCALL_RESULT 0x70 /* RAX after VMCALL */
#define KVMID_MB_WINDOW 0x78        /* byte seen in the window */
#define KVMID_MB_PANIC 0x80         /* 1: #DF handler ran; the vCPU does nothing any more */
#define KVMID_MB_LAST_VECTOR 0x88   /* of the last exception handled */
#define KVMID_MB_LAST_ERROR 0x90    /* its error code, 0 without one */
#define KVMID_MB_LAST_CR2 0x98      /* CR2 in that handler */
#define KVMID_MB_LAST_RIP 0xa0      /* RIP in that frame */
#define KVMID_MB_RESUME 0xa8        /* the guest's own: where a fault made on purpose goes on */
#define KVMID_MB_TURN 0xb0          /* the guest's own: next action of "all" */
#define KVMID_MB_USER_SYSCALLS 0xb8 /* from ring 3 */
#define KVMID_MB_USER_PF 0xc0       /* #PF in ring 3; not in `exceptions`, nor are the #GP */
#define KVMID_MB_USER_PF_ERROR 0xc8 /* error code of the last one */
#define KVMID_MB_USER_GP 0xd0       /* #GP in ring 3 */
#define KVMID_MB_USER_CS 0xd8       /* CS in the last frame from ring 3 */
#define KVMID_MB_COPIED 0xe0        /* what REP MOVSB copied */
#define KVMID_MB_LAST_DR6 0xe8      /* DR6 in the last #DB handler, which resets it */
#define KVMID_MB_KERNEL_RSP 0xf0    /* the guest's own: where a return from ring 3 goes on */
#define KVMID_MB_USER_RSP 0xf8      /* the guest's own */
#define KVMID_MB_ARG_MSR 0x100      /* written by tests: number of MODE_MSR; at first 0x176 */
#define KVMID_MB_ARG_MSR_VALUE 0x108 /* written by tests */
#define KVMID_MB_ARG_PF_ADDRESS 0x110 /* written by tests; at first 0x7fff0000dead */
#define KVMID_MB_ARG_HAMMER_CALLS 0x118 /* written by tests: calls there shall have been, in all; at first 0 */
#define KVMID_MB_ARG_MAP_CHANGE 0x120 /* written by tests: KVMI_MAP_*; at first 0 */
#define KVMID_MB_ARG_XCR0 0x140     /* written by tests; 0: 1 and 3 in turn */
#define KVMID_MB_ARG_CPUID_FUNCTION 0x148 /* written by tests */
#define KVMID_MB_ARG_CPUID_INDEX 0x150    /* written by tests */
#define KVMID_MB_XCR0 0x158         /* read back by XGETBV */
#define KVMID_MB_GDTR_LIMIT 0x160   /* what SGDT stored, 0 if it stored nothing */
#define KVMID_MB_GDTR_BASE 0x168
#define KVMID_MB_IDTR_LIMIT 0x170   /* what SIDT stored */
#define KVMID_MB_IDTR_BASE 0x178
#define KVMID_MB_LDTR 0x180         /* what SLDT stored */
#define KVMID_MB_TR 0x188           /* what STR stored */
#define KVMID_MB_CPUID_EAX 0x190    /* and EBX, ECX, EDX behind it */
#define KVMID_MB_SSE 0x1b0          /* XMM5, 16 bytes */
#define KVMID_MB_X87 0x1c0          /* ST(0) as a double */
#define KVMID_MB_ROM 0x1c8          /* loaded from the ROM page after the store */
#define KVMID_MB_HAMMER_GPA 0x1d0   /* of hammer_target's first instruction, KVMID_GUEST_HAMMER_INSN_BYTES long */
#define KVMID_MB_HAMMER_GVA 0x1d8
#define KVMID_MB_HAMMER_CALLS 0x1e0 /* that have returned, counted by the caller in a register */
#define KVMID_MB_HAMMER_HITS 0x1e8  /* counted in memory by that instruction */
#define KVMID_MB_MAP_RESULT 0x1f0   /* RAX after that hypercall: 0, -22 (EINVAL) where there was nothing to change */
#define KVMID_MB_DONE 0x200         /* [KVMID_MODE_*]: actions finished */
#define KVMID_MB_EXCEPTIONS 0x400   /* [vector], 32 of them: times that handler ran */

#define KVMID_MB_MAGIC_VALUE 0x54534547494d564b /* the bytes "KVMIGEST" */

#endif
