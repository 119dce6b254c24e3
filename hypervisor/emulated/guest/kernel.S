# SPDX-License-Identifier: GPL-2.0-or-later
#
# The test guest: a kernel of one page that does what introspection looks at, and writes into its mailbox what it saw.
# Boot protocol, addresses and mailbox: GUEST.md and mailbox_layout.h. 64-bit code, in ring 0 but for user_code.
#
# Entry, on every vCPU at once: RDI = vCPU, RSI = its mailbox, RDX = number of vCPUs, no stack, identity-mapped memory.

#include "hypervisor/emulated/mailbox_layout.h"

#define PTE_PRESENT_WRITABLE 0x3
#define PTE_LARGE 0x83
#define PTE_USER 0x4
#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define TSS_SELECTOR 0x18
#define STAR_USER_BASE 0x20             /* SYSRET loads SS from 8 behind it, CS from 16 behind it */
#define LDT_SELECTOR 0x50
#define SECOND_TSS_SELECTOR 0x60
#define GDT_LIMIT 111
#define OTHER_GDT_LIMIT 127
#define IDT_LIMIT 511
#define OTHER_IDT_LIMIT 1023
#define CR4_OSXSAVE 0x40000
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define RFLAGS_TF 0x100
#define RFLAGS_RF 0x10000
#define DR6_RESET 0xffff0ff0
#define DR7_RESET 0x400
#define MSR_GS_BASE 0xc0000101

.code64
.section .text
.globl start
start:
    # Stack; then GS = mailbox, so that handlers find it on every vCPU.
    lea 1(%rdi), %rax
    shl $12, %rax
    lea KVMID_GUEST_STACKS_GPA(%rax), %rsp
    mov %rdi, %r12
    mov %rdx, %r15
    mov %rsi, %rax
    xor %edx, %edx
    mov $MSR_GS_BASE, %ecx
    wrmsr

    test %r12, %r12
    jnz wait_for_tables
    call build_tables
    movq $1, tables_ready(%rip)
wait_for_tables:
    cmpq $0, tables_ready(%rip)
    jne tables_are_ready
    hlt
    jmp wait_for_tables
tables_are_ready:
    mov $KVMID_GUEST_ROOT_A_GPA, %eax
    mov %rax, %cr3
    call load_descriptors

    mov %cr4, %rax                      # for XSETBV and XGETBV
    or $CR4_OSXSAVE, %rax
    mov %rax, %cr4
    pxor %xmm5, %xmm5
    fninit
    fldz

    mov %r12, %gs:KVMID_MB_VCPU
    movq $0x176, %gs:KVMID_MB_ARG_MSR
    movq $0x1000, %gs:KVMID_MB_ARG_MSR_VALUE
    movabs $0x7fff0000dead, %rax
    mov %rax, %gs:KVMID_MB_ARG_PF_ADDRESS
    movq $KVMID_MODE_CR3, %gs:KVMID_MB_TURN
    lea hammer_target(%rip), %rax
    mov %rax, %gs:KVMID_MB_HAMMER_GPA
    mov %rax, %gs:KVMID_MB_HAMMER_GVA
    movabs $KVMID_MB_MAGIC_VALUE, %rax
    mov %rax, %gs:KVMID_MB_MAGIC

main_loop:
    incq %gs:KVMID_MB_ROUNDS
    mov %gs:KVMID_MB_MODE, %rax
    cmp $KVMID_MODE_COUNT, %rax
    jae to_sleep
    test %rax, %rax
    jnz act
    mov %gs:KVMID_MB_TURN, %rax         # all in turn: CR3 to ALL_END without TRIPLE, and again
    lea 1(%rax), %rcx
    cmp $KVMID_MODE_TRIPLE, %rcx
    jne 1f
    inc %ecx
1:  cmp $KVMID_MODE_ALL_END, %rcx
    jb 2f
    mov $KVMID_MODE_CR3, %ecx
2:  mov %rcx, %gs:KVMID_MB_TURN
act:
    mov %rax, %gs:KVMID_MB_ACTION
    lea actions(%rip), %rcx
    mov (%rcx,%rax,8), %rcx
    call *%rcx
    mov %gs:KVMID_MB_ACTION, %rax
    incq %gs:KVMID_MB_DONE(,%rax,8)
    cmp $KVMID_MODE_SPIN, %rax
    je main_loop
to_sleep:
    hlt
    jmp main_loop

# ---- the actions: each may use every register but R12 and RSP ----
do_nothing:
    ret

do_spin:
    mov $1000, %ecx
1:  lea 3(%rax,%rcx), %rax
    dec %ecx
    jnz 1b
    ret

do_cr3:
    mov %cr3, %rax
    xor $(KVMID_GUEST_ROOT_A_GPA ^ KVMID_GUEST_ROOT_B_GPA), %rax
    mov %rax, %cr3
    mov %cr3, %rax
    mov %rax, %gs:KVMID_MB_CR3
    movzbl KVMID_GUEST_WINDOW_GVA, %eax
    mov %rax, %gs:KVMID_MB_WINDOW
    ret

do_cr4:
    mov %cr4, %rax
    xor $0x80, %rax
    mov %rax, %cr4
    mov %cr4, %rax
    mov %rax, %gs:KVMID_MB_CR4
    ret

do_cr0:
    mov %cr0, %rax
    xor $0x10000, %rax
    mov %rax, %cr0
    mov %cr0, %rax
    mov %rax, %gs:KVMID_MB_CR0
    ret

do_lstar:
    mov %gs:KVMID_MB_ARG_MSR_VALUE, %rax
    add %gs:KVMID_MB_ROUNDS, %rax
    mov %rax, %rdx
    shr $32, %rdx
    mov $MSR_LSTAR, %ecx
    wrmsr
    rdmsr
    shl $32, %rdx
    mov %eax, %eax
    or %rdx, %rax
    mov %rax, %gs:KVMID_MB_LSTAR
    ret

do_msr:
    lea 1f(%rip), %rax                  # an MSR that does not exist is #GP
    mov %rax, %gs:KVMID_MB_RESUME
    mov %gs:KVMID_MB_ARG_MSR, %ecx
    mov %gs:KVMID_MB_ARG_MSR_VALUE, %rax
    mov %rax, %rdx
    shr $32, %rdx
    wrmsr
    rdmsr
    shl $32, %rdx
    mov %eax, %eax
    or %rdx, %rax
    mov %rax, %gs:KVMID_MB_MSR
1:  movq $0, %gs:KVMID_MB_RESUME
    ret

do_int3:
    int3
    ret

do_vmcall:
    mov $KVMID_GUEST_HYPERCALL, %eax
    mov %r12, %rdi
    mov %gs:KVMID_MB_ROUNDS, %rsi
    vmcall
    mov %rax, %gs:KVMID_MB_HYPERCALL_RESULT
    ret

do_store:
    mov %gs:KVMID_MB_ROUNDS, %rax
    mov %rax, %gs:KVMID_MB_STORED
    mov %rax, KVMID_GUEST_PROTECTED_GPA(,%r12,8)
    ret

do_load:
    xor %eax, %eax
    mov KVMID_GUEST_PROTECTED_GPA(,%r12,8), %rax
    mov %rax, %gs:KVMID_MB_LOADED
    ret

do_exec:
    movq $0, %gs:KVMID_MB_EXEC_RESULT
    xor %eax, %eax
    mov $KVMID_GUEST_EXEC_GPA, %ecx
    call *%rcx
    mov %rax, %gs:KVMID_MB_EXEC_RESULT
    ret

do_ud:
    lea 1f(%rip), %rax
    mov %rax, %gs:KVMID_MB_RESUME
    ud2
1:  movq $0, %gs:KVMID_MB_RESUME
    ret

do_gp:
    lea 1f(%rip), %rax
    mov %rax, %gs:KVMID_MB_RESUME
    movabs $0x8000000000000000, %rax
    mov (%rax), %rax
1:  movq $0, %gs:KVMID_MB_RESUME
    ret

do_pf:
    lea 1f(%rip), %rax
    mov %rax, %gs:KVMID_MB_RESUME
    mov %gs:KVMID_MB_ARG_PF_ADDRESS, %rax
    mov (%rax), %rax
1:  movq $0, %gs:KVMID_MB_RESUME
    ret

do_triple:
    lidt no_idt(%rip)
    ud2
    ret

do_xsetbv:
    lea 1f(%rip), %rax                  # a value that the processor does not take is #GP
    mov %rax, %gs:KVMID_MB_RESUME
    xor %ecx, %ecx
    mov %gs:KVMID_MB_ARG_XCR0, %rax
    mov %rax, %rdx
    shr $32, %rdx
    test %rax, %rax
    jnz 2f
    xgetbv
    xor $2, %eax
2:  xsetbv
1:  movq $0, %gs:KVMID_MB_RESUME
    lea 3f(%rip), %rax
    mov %rax, %gs:KVMID_MB_RESUME
    movq $0, %gs:KVMID_MB_XCR0
    xgetbv
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %gs:KVMID_MB_XCR0
3:  movq $0, %gs:KVMID_MB_RESUME
    ret

# Which limit a table has is kept in the mailbox, not asked: each of these is one write and one read.
do_gdt:
    mov $GDT_LIMIT, %eax
    cmp %rax, %gs:KVMID_MB_GDTR_LIMIT
    jne 1f
    mov $OTHER_GDT_LIMIT, %eax
1:  mov %r12, %rcx
    shl $7, %rcx
    add $KVMID_GUEST_GDT_GPA, %rcx
    sub $16, %rsp
    mov %ax, 6(%rsp)
    mov %rcx, 8(%rsp)
    lgdt 6(%rsp)
    movq $0, (%rsp)
    movq $0, 8(%rsp)
    sgdt 6(%rsp)
    movzwl 6(%rsp), %eax
    mov %rax, %gs:KVMID_MB_GDTR_LIMIT
    mov 8(%rsp), %rax
    mov %rax, %gs:KVMID_MB_GDTR_BASE
    add $16, %rsp
    ret

do_idt:
    mov $IDT_LIMIT, %eax
    cmp %rax, %gs:KVMID_MB_IDTR_LIMIT
    jne 1f
    mov $OTHER_IDT_LIMIT, %eax
1:  sub $16, %rsp
    mov %ax, 6(%rsp)
    movq $KVMID_GUEST_IDT_GPA, 8(%rsp)
    lidt 6(%rsp)
    movq $0, (%rsp)
    movq $0, 8(%rsp)
    sidt 6(%rsp)
    movzwl 6(%rsp), %eax
    mov %rax, %gs:KVMID_MB_IDTR_LIMIT
    mov 8(%rsp), %rax
    mov %rax, %gs:KVMID_MB_IDTR_BASE
    add $16, %rsp
    ret

do_ldt:
    mov %gs:KVMID_MB_LDTR, %rax
    xor $LDT_SELECTOR, %eax
    lldt %ax
    xor %eax, %eax
    sldt %eax
    mov %rax, %gs:KVMID_MB_LDTR
    ret

do_tr:
    mov $TSS_SELECTOR, %eax
    cmp %rax, %gs:KVMID_MB_TR
    jne 1f
    mov $SECOND_TSS_SELECTOR, %eax
1:  mov %r12, %rcx                      # not busy, or LTR is #GP
    shl $7, %rcx
    movb $0x89, (KVMID_GUEST_GDT_GPA + 5)(%rcx,%rax)
    ltr %ax
    xor %eax, %eax
    str %eax
    mov %rax, %gs:KVMID_MB_TR
    ret

do_cpuid:
    mov %gs:KVMID_MB_ARG_CPUID_FUNCTION, %eax
    mov %gs:KVMID_MB_ARG_CPUID_INDEX, %ecx
    xor %ebx, %ebx
    xor %edx, %edx
    cpuid
    mov %rax, %gs:KVMID_MB_CPUID_EAX
    mov %rbx, %gs:KVMID_MB_CPUID_EAX + 8
    mov %rcx, %gs:KVMID_MB_CPUID_EAX + 16
    mov %rdx, %gs:KVMID_MB_CPUID_EAX + 24
    ret

# XMM5 and ST(0) hold their values from round to round: what SET_XSAVE changed is seen in the next.
do_sse:
    movdqu sse_one(%rip), %xmm4
    paddq %xmm4, %xmm5
    movdqu %xmm5, %gs:KVMID_MB_SSE
    fld1
    faddp
    fstl %gs:KVMID_MB_X87
    ret

do_rom:
    mov %gs:KVMID_MB_ROUNDS, %rax
    mov %rax, KVMID_GUEST_ROM_GPA + 8
    lock incq KVMID_GUEST_ROM_GPA + 8
    mov KVMID_GUEST_ROM_GPA + 8, %rax
    mov %rax, %gs:KVMID_MB_ROM
    ret

# To ring 3, by IRETQ and SYSRET in turn. R8 tells user code whether SYSCALL leads back here: an agent may have kept
# LSTAR from being written.
do_user:
    mov %rsp, %gs:KVMID_MB_KERNEL_RSP
    lea syscall_entry(%rip), %rbx
    mov $MSR_LSTAR, %ecx
    xor %r8d, %r8d
    call read_msr
    cmp %rbx, %rax
    je 1f
    mov %rbx, %rax
    mov %rbx, %rdx
    shr $32, %rdx
    wrmsr
    call read_msr
    cmp %rbx, %rax
    jne 2f
1:  inc %r8d
2:  xor %r9d, %r9d
    lea 1(%r12), %rbx                   # the user's stack
    shl $12, %rbx
    add $KVMID_GUEST_USER_STACKS_GPA, %rbx
    testb $1, %gs:KVMID_MB_DONE + 8 * KVMID_MODE_USER
    jnz 3f
    push $KVMID_GUEST_USER_DATA_SELECTOR
    push %rbx
    push $2
    push $KVMID_GUEST_USER_CODE_SELECTOR
    push $KVMID_GUEST_USER_CODE_GPA
    swapgs
    iretq
3:  mov %rbx, %rsp
    mov $KVMID_GUEST_USER_CODE_GPA, %ecx
    mov $2, %r11d
    swapgs
    sysretq

read_msr:
    rdmsr
    shl $32, %rdx
    mov %eax, %eax
    or %rdx, %rax
    ret

syscall_entry:                          # RAX: 1 counts, 2 ends user mode
    swapgs
    mov %rsp, %gs:KVMID_MB_USER_RSP
    mov %gs:KVMID_MB_KERNEL_RSP, %rsp
    cmp $2, %eax
    je user_exit
    incq %gs:KVMID_MB_USER_SYSCALLS
    mov %gs:KVMID_MB_USER_RSP, %rsp
    swapgs
    sysretq

user_exit:                              # returns from do_user
    mov %gs:KVMID_MB_KERNEL_RSP, %rsp
    xor %r9d, %r9d
    ret

do_step:
    pushf
    orl $RFLAGS_TF, (%rsp)
    popf
    nop
    nop
    pushf
    andl $~RFLAGS_TF, (%rsp)
    popf
    ret

do_debug:
    lea 1f(%rip), %rax
    mov %rax, %dr0
    mov $(DR7_RESET | 1), %eax
    mov %rax, %dr7
1:  nop
    mov $DR7_RESET, %eax
    mov %rax, %dr7
    ret

do_copy:
    lea KVMID_GUEST_PROTECTED_GPA(,%r12,8), %rsi
    mov %r12, %rdi
    shl $12, %rdi
    add $(KVMID_GUEST_MAILBOX_GPA + KVMID_MB_COPIED), %rdi
    movq $0, (%rdi)
    mov $8, %ecx
    rep movsb
    ret

do_map:
    mov $KVMID_GUEST_MAP_HYPERCALL, %eax
    mov %gs:KVMID_MB_ARG_MAP_CHANGE, %rdi
    vmcall
    mov %rax, %gs:KVMID_MB_MAP_RESULT
    ret

# One round makes all the calls that are missing, so that vCPUs meet in there. R13 counts.
do_hammer:
    mov %gs:KVMID_MB_HAMMER_CALLS, %r13
1:  cmp %gs:KVMID_MB_ARG_HAMMER_CALLS, %r13
    jae 2f
    call hammer_target
    inc %r13
    mov %r13, %gs:KVMID_MB_HAMMER_CALLS
    jmp 1b
2:  ret

# An instruction that is lost, or executed twice, shows in its count. Aligned: it does not cross a page.
.balign 16
hammer_target:
    incq %gs:KVMID_MB_HAMMER_HITS
.if . - hammer_target != KVMID_GUEST_HAMMER_INSN_BYTES
.error "the first instruction of hammer_target has another length"
.endif
    ret

.balign 8
sse_one:
    .quad 1, 1
actions:
    .quad do_nothing, do_nothing, do_spin, do_cr3, do_cr4, do_cr0, do_lstar, do_msr, do_int3, do_vmcall
    .quad do_store, do_load, do_exec, do_ud, do_gp, do_pf, do_triple
    .quad do_xsetbv, do_gdt, do_idt, do_ldt, do_tr, do_cpuid, do_sse, do_rom
    .quad do_user, do_step, do_debug, do_copy, do_hammer, do_map
tables_ready:
    .quad 0
no_idt:
    .word 0
    .quad 0

# ---- exceptions ----
#define ERROR_CODE_VECTORS 0x60227d00 /* 8, 10 to 14, 17, 21, 29, 30 */
.balign 16
stubs:
.set number, 0
.rept 32
    .balign 16
    .if ((ERROR_CODE_VECTORS >> number) & 1) == 0
    push $0
    .endif
    push $number
    jmp handle
    .set number, number + 1
.endr

# On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
handle:
    testb $3, 24(%rsp)
    jz 1f
    swapgs
1:  push %rax
    push %rcx
    mov 16(%rsp), %rax
    testb $3, 40(%rsp)
    jnz from_user
    incq %gs:KVMID_MB_EXCEPTIONS(,%rax,8)
    mov %rax, %gs:KVMID_MB_LAST_VECTOR
    mov 24(%rsp), %rcx
    mov %rcx, %gs:KVMID_MB_LAST_ERROR
    mov %cr2, %rcx
    mov %rcx, %gs:KVMID_MB_LAST_CR2
    mov 32(%rsp), %rcx
    mov %rcx, %gs:KVMID_MB_LAST_RIP
    cmp $8, %rax
    je panic
    cmp $3, %rax                        # a trap: RIP is behind the INT3 already
    je 1f
    cmp $1, %rax
    je debug
    mov %gs:KVMID_MB_RESUME, %rcx
    test %rcx, %rcx
    jz 1f
    movq $0, %gs:KVMID_MB_RESUME
    mov %rcx, 32(%rsp)
1:  pop %rcx
    pop %rax
    add $16, %rsp
    iretq
debug:                                  # RF: the instruction's own breakpoint does not hit again
    mov %dr6, %rcx
    mov %rcx, %gs:KVMID_MB_LAST_DR6
    mov $DR6_RESET, %ecx
    mov %rcx, %dr6
    orl $RFLAGS_RF, 48(%rsp)
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
from_user:                              # R9: 0 goes on there, 1 ends user mode, else where user code goes on
    mov 40(%rsp), %rcx
    mov %rcx, %gs:KVMID_MB_USER_CS
    cmp $8, %rax
    je panic
    cmp $14, %rax
    je 1f
    cmp $13, %rax
    je 2f
    incq %gs:KVMID_MB_EXCEPTIONS(,%rax,8)
    jmp 4f
1:  incq %gs:KVMID_MB_USER_PF
    mov 24(%rsp), %rcx
    mov %rcx, %gs:KVMID_MB_USER_PF_ERROR
    jmp 3f
2:  incq %gs:KVMID_MB_USER_GP
3:  cmp $1, %r9
    je user_exit
    test %r9, %r9
    jz 4f
    mov %r9, 32(%rsp)
    xor %r9d, %r9d
4:  pop %rcx
    pop %rax
    add $16, %rsp
    swapgs
    iretq
panic:
    movq $1, %gs:KVMID_MB_PANIC
1:  hlt
    jmp 1b

# ---- building: runs on vCPU 0 ----

# One page table root: EDI = the first of its four pages, ESI = what the window shows.
build_root:
    lea 0x1000(%rdi), %eax
    or $(PTE_PRESENT_WRITABLE | PTE_USER), %eax
    mov %rax, (%rdi)                    # PML4[0] -> PDPT
    lea 0x2000(%rdi), %eax
    or $(PTE_PRESENT_WRITABLE | PTE_USER), %eax
    mov %rax, 0x1000(%rdi)              # PDPT[0] -> PD
    lea 0x3000(%rdi), %eax
    or $(PTE_PRESENT_WRITABLE | PTE_USER), %eax
    mov %rax, 0x2000(%rdi)              # PD[0] -> PT
    mov $1, %ecx                        # PD[1...511]: large pages, up to 1 GiB
1:  mov %rcx, %rax
    shl $21, %rax
    or $PTE_LARGE, %rax
    mov %rax, 0x2000(%rdi,%rcx,8)
    inc %ecx
    cmp $512, %ecx
    jne 1b
    xor %ecx, %ecx                      # PT: 2 MiB in small pages
1:  mov %rcx, %rax
    shl $12, %rax
    or $PTE_PRESENT_WRITABLE, %rax
    mov %rax, 0x3000(%rdi,%rcx,8)
    inc %ecx
    cmp $512, %ecx
    jne 1b
    orb $PTE_USER, 0x3000 + (KVMID_GUEST_USER_CODE_GPA >> 12) * 8(%rdi)
    xor %ecx, %ecx
1:  orb $PTE_USER, 0x3000 + (KVMID_GUEST_USER_STACKS_GPA >> 12) * 8(%rdi,%rcx,8)
    inc %ecx
    cmp $KVMID_GUEST_VCPUS_MAX, %ecx
    jne 1b
    or $PTE_PRESENT_WRITABLE, %esi
    mov %rsi, (0x3000 + (KVMID_GUEST_WINDOW_GVA >> 12) * 8)(%rdi)
    btsq $63, 0x3000 + (KVMID_GUEST_PROTECTED_GPA >> 12) * 8(%rdi)   # data is not executed
    ret

build_tables:
    movb $KVMID_GUEST_WINDOW_A_VALUE, KVMID_GUEST_WINDOW_A_GPA
    movb $KVMID_GUEST_WINDOW_B_VALUE, KVMID_GUEST_WINDOW_B_GPA
    mov $KVMID_GUEST_ROOT_A_GPA, %edi
    mov $KVMID_GUEST_WINDOW_A_GPA, %esi
    call build_root
    mov $KVMID_GUEST_ROOT_B_GPA, %edi
    mov $KVMID_GUEST_WINDOW_B_GPA, %esi
    call build_root

    lea exec_function(%rip), %rsi       # the function that lives on the exec page
    mov $KVMID_GUEST_EXEC_GPA, %edi
    mov $(exec_function_end - exec_function), %ecx
    rep movsb

    lea user_code(%rip), %rsi
    mov $KVMID_GUEST_USER_CODE_GPA, %edi
    mov $(user_code_end - user_code), %ecx
    rep movsb

    lea stubs(%rip), %rax               # IDT: 32 interrupt gates
    mov $KVMID_GUEST_IDT_GPA, %edi
    mov $32, %ecx
1:  mov %ax, (%rdi)
    movw $CODE_SELECTOR, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    mov %rax, %rdx
    shr $16, %rdx
    mov %dx, 6(%rdi)
    shr $16, %rdx
    mov %rdx, 8(%rdi)
    add $16, %rdi
    add $16, %rax
    dec %ecx
    jnz 1b
    movb $1, (KVMID_GUEST_IDT_GPA + 8 * 16 + 4) # #DF has a stack of its own
    ret

exec_function:
    incq %gs:KVMID_MB_EXEC_CALLS
    mov $KVMID_GUEST_EXEC_VALUE, %eax
    ret
exec_function_end:

# Lives on a page of its own. The kernel's R12 is left alone; R9 tells the kernel's handlers where to go on.
user_code:
    push %rdi
    pop %rdi
    test %r8, %r8
    jz 1f
    mov $1, %eax
    syscall
    mov $1, %eax
    syscall
1:  lea 2f(%rip), %r9                   # a page of the kernel
    mov KVMID_GUEST_MAILBOX_GPA, %rax
2:  lea 3f(%rip), %r9                   # an instruction of the kernel
    hlt
3:  test %r8, %r8
    jz 4f
    mov $2, %eax
    syscall
4:  mov $1, %r9d                        # the way back without SYSCALL
    hlt
    jmp 4b
user_code_end:

# ---- GDT and TSS of this vCPU (R12), and the shared IDT ----
load_descriptors:
    mov %r12, %rdi                      # TSS
    shl $7, %rdi
    add $KVMID_GUEST_TSS_GPA, %rdi
    lea 1(%r12), %rax
    shl $12, %rax
    add $KVMID_GUEST_IST_STACKS_GPA, %rax
    mov %rax, 0x24(%rdi)                # IST1
    sub $0x800, %rax
    mov %rax, 4(%rdi)                   # RSP0: the lower half of that page
    movw $104, 0x66(%rdi)

    mov %r12, %rsi                      # GDT
    shl $7, %rsi
    add $KVMID_GUEST_GDT_GPA, %rsi
    movabs $0x00af9b000000ffff, %rax
    mov %rax, CODE_SELECTOR(%rsi)
    movabs $0x00cf93000000ffff, %rax
    mov %rax, DATA_SELECTOR(%rsi)
    movabs $0x00cff3000000ffff, %rax
    mov %rax, STAR_USER_BASE+8(%rsi)
    movabs $0x00affb000000ffff, %rax
    mov %rax, STAR_USER_BASE+16(%rsi)
    mov %rdi, %rax                      # TSS descriptor; its address is below 16 MiB
    shl $16, %rax
    movabs $0x0000890000000067, %rdx
    or %rdx, %rax
    mov %rax, TSS_SELECTOR(%rsi)
    movq $0, TSS_SELECTOR+8(%rsi)
    mov %rax, SECOND_TSS_SELECTOR(%rsi) # the same TSS by another name
    movq $0, SECOND_TSS_SELECTOR+8(%rsi)
    movabs $(0x000082000000000f | ((KVMID_GUEST_LDT_GPA & 0xffffff) << 16)), %rdx
    mov %rdx, LDT_SELECTOR(%rsi)
    movq $0, LDT_SELECTOR+8(%rsi)

    sub $16, %rsp
    movw $GDT_LIMIT, (%rsp)
    mov %rsi, 2(%rsp)
    lgdt (%rsp)
    movw $IDT_LIMIT, (%rsp)
    movq $KVMID_GUEST_IDT_GPA, 2(%rsp)
    lidt (%rsp)
    add $16, %rsp
    mov $TSS_SELECTOR, %eax
    ltr %ax

    mov $MSR_STAR, %ecx                 # SYSCALL and SYSRET
    xor %eax, %eax
    mov $(((STAR_USER_BASE | 3) << 16) | CODE_SELECTOR), %edx
    wrmsr
    mov $MSR_FMASK, %ecx                # TF, IF, DF
    mov $0x700, %eax
    xor %edx, %edx
    wrmsr
    ret
