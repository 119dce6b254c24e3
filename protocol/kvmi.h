/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef KVMI_H
#define KVMI_H

/*
 * KVMI version 2: the wire structs of the protocol that agents speak to kvmid, and that kvmid speaks to
 * hypervisors of its own kind. PROTOCOL.md, beside this file, has an entry for each message.
 *
 * Byte order: host native; KVMI stays on one host. Every struct is naturally aligned with its padding spelled
 * out; padding is 0 when sent, and a receiver that finds something else answers KVMI_EINVAL.
 * A message is a struct kvmi_msg_hdr and `size` bytes after it. Tails (arrays of bytes or structs) follow the fixed
 * part.
 * The file can be used from C and from C++.
 */

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVMI_VERSION 2u
#define KVMI_MAX_PAYLOAD 65528u /* the largest `size`: header and payload fill 64 KiB */
#define KVMI_NAME_MAX 64u       /* names of guests and agents, closing zero included */
#define KVMI_UUID_SIZE 16u
#define KVMI_PATCH_BYTES_MAX 256u /* of one patch; it lies within a page */
#define KVMI_FILTER_TERMS_MAX 32u /* of one filter */

struct kvmi_msg_hdr {
  uint16_t id;   /* KVMI_MSG_* */
  uint16_t size; /* bytes after this header, at most KVMI_MAX_PAYLOAD */
  uint32_t seq;  /* chosen by who sends a command or an event; its answer carries the same */
};

/* Message ids. Numbers of the 2017 RFC where the message survives; 5, 9, 10, 18 and 22 are not used again. */
enum {
  KVMI_MSG_GET_VERSION = 1,
  KVMI_MSG_GET_GUESTS = 2, /* control connection only */
  KVMI_MSG_GET_GUEST_INFO = 3,
  KVMI_MSG_PAUSE_VCPU = 4,
  KVMI_MSG_GET_REGISTERS = 6,
  KVMI_MSG_SET_REGISTERS = 7,
  KVMI_MSG_SHUTDOWN_GUEST = 8,
  KVMI_MSG_GET_CPUID = 11,
  KVMI_MSG_GET_PAGE_ACCESS = 12,
  KVMI_MSG_SET_PAGE_ACCESS = 13,
  KVMI_MSG_INJECT_EXCEPTION = 14,
  KVMI_MSG_READ_PHYSICAL = 15,
  KVMI_MSG_WRITE_PHYSICAL = 16,
  KVMI_MSG_GRANT_MEMORY = 17,
  KVMI_MSG_CONTROL_EVENTS = 19,
  KVMI_MSG_CONTROL_CR = 20,
  KVMI_MSG_CONTROL_MSR = 21,
  KVMI_MSG_GUEST_ON = 23,    /* kvmid to agent */
  KVMI_MSG_GUEST_OFF = 24,   /* kvmid to agent */
  KVMI_MSG_EVENT = 25,       /* towards the agent */
  KVMI_MSG_EVENT_REPLY = 26, /* towards the hypervisor */
  KVMI_MSG_TRANSLATE_GVA = 27,
  KVMI_MSG_CONTROL_SINGLESTEP = 28,
  KVMI_MSG_SET_FILTER = 29,
  KVMI_MSG_GET_XSAVE = 30,
  KVMI_MSG_SET_XSAVE = 31,
  KVMI_MSG_GET_XCR = 32,
  KVMI_MSG_NOTICE = 33, /* kvmid to agent */
  KVMI_MSG_GET_MEMORY_MAP = 34,
  KVMI_MSG_MEMORY_MAP_CHANGED = 35, /* hypervisor to kvmid */
};
#define KVMI_COMMAND_BIT(id) (UINT64_C(1) << (id)) /* for the sets of supported commands */

/* Error numbers; on the wire they are negative. Equal on every platform. */
enum {
  KVMI_EPERM = 1,       /* policy does not allow it */
  KVMI_ENOENT = 2,      /* no such guest, page, leaf, or event to reply to */
  KVMI_E2BIG = 7,       /* the answer would be larger than a message */
  KVMI_EAGAIN = 11,     /* the vCPU is not stopped for this agent: pause it, or do it during an event */
  KVMI_ENOMEM = 12,     /* the peer is out of memory */
  KVMI_EFAULT = 14,     /* not guest memory */
  KVMI_EBUSY = 16,      /* a quota or a queue is full, or another holds it */
  KVMI_ENODEV = 19,     /* the guest is away: its hypervisor is not connected */
  KVMI_EINVAL = 22,     /* a field has a value that is not allowed */
  KVMI_EOPNOTSUPP = 95, /* not supported by this hypervisor */
  KVMI_ETIMEDOUT = 110, /* the hypervisor did not answer in time */
  KVMI_ESTALE = 116,    /* too late, or based on something that has changed since */
  KVMI_ENOSYS = 1000,   /* unknown message id, or one that this end does not serve */
};

#define KVMI_ALL_VCPUS 0xffffu /* in commands that say so: every vCPU; in an UNHOOK event: none */

/* Address spaces of a guest */
enum { KVMI_ADDRESS_SPACE_NORMAL = 0, KVMI_ADDRESS_SPACE_SMM = 1 };

/* Architectures */
enum { KVMI_ARCH_X86 = 0 };

/* Rights to a page */
#define KVMI_PAGE_ACCESS_R 1u
#define KVMI_PAGE_ACCESS_W 2u
#define KVMI_PAGE_ACCESS_X 4u

/* Events. The number is the bit of an event in a set; the bits of the 2017 RFC are kept. */
enum {
  KVMI_EVENT_UNHOOK = 0, /* the guest is about to be let go: suspend, migration, snapshot, shutdown */
  KVMI_EVENT_CR = 1,
  KVMI_EVENT_MSR = 2,
  KVMI_EVENT_XSETBV = 3,
  KVMI_EVENT_BREAKPOINT = 4,
  KVMI_EVENT_HYPERCALL = 5,
  KVMI_EVENT_PAGE_FAULT = 6,
  KVMI_EVENT_TRAP = 7,
  KVMI_EVENT_DESCRIPTOR = 8,
  KVMI_EVENT_CREATE_VCPU = 9,
  KVMI_EVENT_PAUSE = 10,
  KVMI_EVENT_SINGLESTEP = 11,
  KVMI_EVENT_CPUID = 12,
  KVMI_EVENT_ACCESS = 13,
  KVMI_EVENT_COUNT = 14,
};
#define KVMI_EVENT_BIT(event) (UINT64_C(1) << (event))

/* Actions of an event reply. The larger number is the stricter action. */
enum {
  KVMI_ACTION_ALLOW = 0, /* let it happen */
  KVMI_ACTION_RETRY = 1, /* go back into the guest and execute the instruction again */
  KVMI_ACTION_SKIP = 2,  /* go on behind the instruction as if it had been done, without its effect */
  KVMI_ACTION_CRASH = 3, /* stop the guest for good */
};
#define KVMI_ACTION_BIT(action) (1u << (action))

/* ---- registers of x86: the same layout as the structs of the kernel's asm/kvm.h ---- */

struct kvmi_x86_regs {
  uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  uint64_t rip, rflags;
};

struct kvmi_x86_segment {
  uint64_t base;
  uint32_t limit;
  uint16_t selector;
  uint8_t type;
  uint8_t present, dpl, db, s, l, g, avl;
  uint8_t unusable;
  uint8_t padding;
};

struct kvmi_x86_dtable {
  uint64_t base;
  uint16_t limit;
  uint16_t padding[3];
};

struct kvmi_x86_sregs {
  struct kvmi_x86_segment cs, ds, es, fs, gs, ss;
  struct kvmi_x86_segment tr, ldt;
  struct kvmi_x86_dtable gdt, idt;
  uint64_t cr0, cr2, cr3, cr4, cr8;
  uint64_t efer;
  uint64_t apic_base;
  uint64_t interrupt_bitmap[4];
};

struct kvmi_x86_event_msrs {
  uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
  uint64_t efer, star, lstar, cstar;
  uint64_t pat, kernel_gs_base;
};

struct kvmi_x86_msr {
  uint32_t index;
  uint32_t padding;
  uint64_t value;
};

/* ---- replies ---- */

/*
 * Every command reply begins with this. On success (0) the data of the reply follow. After an error the payload ends
 * with `text_size` bytes of UTF-8 that say for people what was wrong (may be 0, no closing zero), and nothing but
 * WRITE_PHYSICAL (KVMI_ESTALE: the current cookie) has data.
 */
struct kvmi_error {
  int32_t error_code; /* 0 or -KVMI_E* */
  uint32_t text_size;
};

/* ---- commands: request, then reply data ---- */

struct kvmi_get_version_reply { /* request: no payload */
  uint32_t version;             /* KVMI_VERSION */
  uint32_t max_payload;         /* the largest `size` that the sender accepts */
  uint64_t commands;            /* KVMI_COMMAND_BIT: served on this connection */
  uint64_t events;              /* KVMI_EVENT_BIT: can be subscribed to on this connection */
};

struct kvmi_get_guests {
  uint32_t first; /* skip so many guests: the list can be longer than a message */
  uint32_t padding;
};
struct kvmi_guest_entry {
  uint8_t uuid[16];
  char name[64]; /* zero-terminated */
  uint32_t vcpu_count;
  uint32_t state; /* KVMI_GUEST_* */
};
enum { KVMI_GUEST_ONLINE = 0, KVMI_GUEST_AWAY = 1 /* hypervisor not connected, agents still are */ };
struct kvmi_get_guests_reply {
  uint32_t total; /* guests there are */
  uint32_t count; /* entries that follow */
  /* struct kvmi_guest_entry entries[count] */
};

struct kvmi_get_guest_info_reply { /* request: no payload */
  uint16_t vcpu_count;
  uint16_t arch;    /* KVMI_ARCH_*: says what follows */
  uint32_t padding;
  uint64_t tsc_hz;  /* 0: the host's */
  /* KVMI_ARCH_X86: */
  uint8_t physical_address_bits;
  uint8_t linear_address_bits;
  uint8_t execute_only; /* 1: a page can be executable and not readable */
  uint8_t padding2[5];
  uint64_t max_gpa; /* end of the highest range of guest RAM */
};

struct kvmi_pause_vcpu {
  uint16_t vcpu; /* or KVMI_ALL_VCPUS */
  uint16_t padding[3];
};

struct kvmi_get_registers {
  uint16_t vcpu;
  uint16_t msr_count;
  uint32_t padding;
  /* uint32_t msr_index[msr_count] */
};
struct kvmi_get_registers_reply {
  uint8_t mode; /* bytes of an address: 2, 4 or 8 */
  uint8_t padding[3];
  uint32_t msr_count;
  struct kvmi_x86_regs regs;
  struct kvmi_x86_sregs sregs;
  /* struct kvmi_x86_msr msrs[msr_count] */
};

struct kvmi_set_registers {
  uint16_t vcpu;
  uint16_t padding[3];
  struct kvmi_x86_regs regs;
};

/* KVMI_MSG_SHUTDOWN_GUEST: no payload, no reply data; asynchronous. */

struct kvmi_get_cpuid {
  uint16_t vcpu;
  uint16_t padding[3];
  uint32_t function;
  uint32_t index;
};
struct kvmi_get_cpuid_reply {
  uint32_t eax, ebx, ecx, edx;
};

struct kvmi_get_page_access {
  uint64_t gpa;   /* of the first page */
  uint32_t pages; /* 1 or more */
  uint16_t address_space;
  uint16_t padding;
};
struct kvmi_page_access_entry { /* `pages` pages in a row with the same rights */
  uint64_t gpa;
  uint32_t pages;
  uint8_t access; /* KVMI_PAGE_ACCESS_* */
  uint8_t padding[3];
};
struct kvmi_get_page_access_reply {
  uint32_t count;
  uint32_t padding;
  /* struct kvmi_page_access_entry entries[count], ascending, covering what was asked */
};

struct kvmi_set_page_access {
  uint16_t count; /* 1 or more */
  uint16_t address_space;
  uint32_t padding;
  /* struct kvmi_page_access_entry entries[count] */
};

struct kvmi_inject_exception {
  uint16_t vcpu;
  uint8_t vector;         /* 0 to 31; 3 is the breakpoint */
  uint8_t has_error_code; /* 0 or 1 */
  uint32_t error_code;    /* with has_error_code, else 0 */
  uint64_t address; /* CR2 of a page fault, else 0 */
};

struct kvmi_read_physical {
  uint16_t count; /* 1 or more */
  uint16_t address_space;
  uint32_t padding;
  /* struct kvmi_read_range ranges[count] */
};
struct kvmi_read_range {
  uint64_t gpa;
  uint32_t size; /* bytes, 1 or more */
  uint32_t padding;
};
struct kvmi_read_physical_reply {
  uint64_t cookie; /* generation of the address space at the time of the read; 0: none is kept */
  /* uint8_t data[]: the ranges one after another */
};

struct kvmi_write_physical {
  uint64_t gpa;
  uint32_t size; /* bytes, 1 or more */
  uint16_t address_space;
  uint16_t flags;  /* KVMI_WRITE_* */
  uint64_t cookie; /* with KVMI_WRITE_COOKIE, else 0 */
  /* uint8_t data[size]; with KVMI_WRITE_EXPECT then uint8_t expected[size] */
};
enum {
  KVMI_WRITE_COOKIE = 1,  /* refuse with KVMI_ESTALE if the range changed after `cookie` */
  KVMI_WRITE_EXPECT = 2,  /* refuse with KVMI_ESTALE unless the range holds `expected` */
  KVMI_WRITE_PATCH = 4,   /* the bytes are laid over the guest's: no read shows them, undone when their agent goes */
  KVMI_WRITE_UNPATCH = 8, /* give a patch of one's own back: the same gpa and size; data is ignored */
};
struct kvmi_write_physical_reply { /* also with KVMI_ESTALE */
  uint64_t cookie;                 /* the current one */
};

struct kvmi_grant_memory {
  uint32_t flags; /* 0 */
  uint32_t padding;
};
struct kvmi_grant_memory_reply { /* with fd_count descriptors by SCM_RIGHTS: guest RAM, then the generation page */
  uint64_t ram_bytes;
  uint64_t generation_bytes;
  uint32_t fd_count;
  uint32_t padding;
};

enum { KVMI_OP_SET = 0, KVMI_OP_ENABLE = 1, KVMI_OP_DISABLE = 2 };
enum {
  KVMI_ROLE_DECIDER = 0,  /* its reply is waited for */
  KVMI_ROLE_OBSERVER = 1, /* told, owes nothing */
};
struct kvmi_control_events {
  uint16_t vcpu;     /* or KVMI_ALL_VCPUS */
  uint8_t operation; /* KVMI_OP_*: the set becomes `events`, or these are added, or taken away */
  uint8_t role;      /* KVMI_ROLE_* for the events that this names */
  uint32_t padding;
  uint64_t events; /* KVMI_EVENT_BIT */
};
struct kvmi_control_events_reply {
  uint64_t events; /* now enabled for this agent on that vCPU (on every vCPU with KVMI_ALL_VCPUS) */
};

struct kvmi_control_cr { /* needed in addition to the CR event */
  uint16_t vcpu;         /* or KVMI_ALL_VCPUS */
  uint8_t enable;        /* 0 or 1 */
  uint8_t padding;
  uint32_t cr; /* 0, 3 or 4 */
};

struct kvmi_control_msr { /* needed in addition to the MSR event */
  uint16_t vcpu;          /* or KVMI_ALL_VCPUS */
  uint8_t enable;         /* 0 or 1 */
  uint8_t padding;
  uint32_t msr; /* 0-0x1fff, 0x40000000-0x40001fff, 0xc0000000-0xc0001fff, 0x4b564d00-0x4b564dff */
};

struct kvmi_translate_gva {
  uint16_t vcpu;
  uint16_t padding[3];
  uint64_t gva;
};
struct kvmi_translate_gva_reply {
  uint64_t gpa;
  uint64_t page_bytes; /* size of the page that maps it */
  uint8_t access;      /* KVMI_PAGE_ACCESS_* that the guest's page tables give */
  uint8_t user;        /* 1: user mode may use it */
  uint8_t padding[6];
};

struct kvmi_control_singlestep {
  uint16_t vcpu;
  uint8_t enable; /* 0 or 1 */
  uint8_t padding[5];
};

struct kvmi_set_filter {
  uint16_t vcpu; /* or KVMI_ALL_VCPUS */
  uint8_t event; /* KVMI_EVENT_* */
  uint8_t action; /* KVMI_ACTION_* that kvmid answers when the filter does not match */
  uint32_t count; /* of terms; 0 takes the filter away */
  /* struct kvmi_filter_term terms[count] */
};
struct kvmi_filter_term { /* groups of terms joined by "and"; the groups are joined by "or" */
  uint8_t field;          /* KVMI_FILTER_* */
  uint8_t compare;        /* KVMI_COMPARE_* */
  uint8_t new_group;      /* 1: begins a group; 0 in the first term */
  uint8_t reg;            /* KVMI_FILTER_REGISTER: 0 rax ... 15 r15, 16 rip, 17 rflags, in the order of kvmi_x86_regs */
  uint32_t padding;
  uint64_t value;
  uint64_t operand; /* KVMI_COMPARE_MASK_*: the mask; KVMI_COMPARE_RANGE: the last value of the range; else 0 */
};
enum {
  KVMI_FILTER_REGISTER = 0,
  KVMI_FILTER_NUMBER = 1,    /* number of the CR or MSR, vector, CPUID function, hypercall */
  KVMI_FILTER_OLD_VALUE = 2,
  KVMI_FILTER_NEW_VALUE = 3,
  KVMI_FILTER_CHANGED = 4, /* old value XOR new value */
  KVMI_FILTER_GPA = 5,
  KVMI_FILTER_GVA = 6,
  KVMI_FILTER_ACCESS = 7, /* KVMI_PAGE_ACCESS_* of a page fault */
  KVMI_FILTER_VCPU = 8,
};
enum {
  KVMI_COMPARE_EQ = 0,
  KVMI_COMPARE_NE = 1,
  KVMI_COMPARE_LT = 2, /* unsigned */
  KVMI_COMPARE_GT = 3,
  KVMI_COMPARE_RANGE = 4,   /* value to operand, both included */
  KVMI_COMPARE_MASK_EQ = 5, /* (field & operand) == value */
  KVMI_COMPARE_MASK_NE = 6,
};

struct kvmi_get_xsave { /* reply data: the XSAVE area */
  uint16_t vcpu;
  uint16_t padding[3];
};
struct kvmi_set_xsave {
  uint16_t vcpu;
  uint16_t padding;
  uint32_t size;
  /* uint8_t area[size] */
};

struct kvmi_get_xcr {
  uint16_t vcpu;
  uint16_t padding;
  uint32_t xcr; /* 0 */
};
struct kvmi_get_xcr_reply {
  uint64_t value;
};

struct kvmi_get_memory_map {
  uint16_t address_space;
  uint16_t padding[3];
};
enum { KVMI_SLOT_READ_ONLY = 1 /* a guest's write to it does not reach memory; page rights are ANDed with r-x */ };
struct kvmi_memory_slot {
  uint64_t gpa;   /* page-aligned */
  uint64_t bytes; /* a multiple of the page size, 1 page or more */
  uint16_t address_space;
  uint16_t flags; /* KVMI_SLOT_* */
  uint32_t padding;
};
struct kvmi_get_memory_map_reply {
  uint32_t count;
  uint32_t padding;
  /* struct kvmi_memory_slot slots[count], ascending, not overlapping */
};

/* ---- from a hypervisor to kvmid, without an answer ---- */

enum { KVMI_MAP_ADDED = 0, KVMI_MAP_REMOVED = 1, KVMI_MAP_MOVED = 2, KVMI_MAP_FLAGS = 3 /* read-only, or not any more */ };
struct kvmi_memory_map_changed { /* sent before the guest can use the new map */
  uint8_t change;                /* KVMI_MAP_* */
  uint8_t padding[7];
  uint64_t max_gpa; /* end of the highest range of guest RAM, from now on */
  uint64_t old_gpa; /* KVMI_MAP_MOVED: where the slot was; else 0 */
  struct kvmi_memory_slot slot;
};

/* ---- events: common part, then the part of the event ---- */

enum { KVMI_EVENT_F_DECIDE = 1 /* a reply is waited for */ };
struct kvmi_event {
  uint16_t vcpu;
  uint8_t event;   /* KVMI_EVENT_* */
  uint8_t mode;    /* bytes of an address: 2, 4 or 8 */
  uint8_t actions; /* KVMI_ACTION_BIT: what this event takes; RETRY is missing where it was a trap */
  uint8_t flags;   /* KVMI_EVENT_F_* */
  uint8_t address_space;
  uint8_t padding;
  uint32_t deadline_us; /* time for the reply; 0: no limit, or none is waited for */
  uint32_t padding2;
  uint64_t cookie; /* generation of the address space; 0: none is kept */
  struct kvmi_x86_regs regs;
  struct kvmi_x86_sregs sregs;
  struct kvmi_x86_event_msrs msrs;
  uint64_t dr6, dr7;
};

enum {
  KVMI_REPLY_F_VALUE = 1,       /* the value of the specific part replaces the guest's own */
  KVMI_REPLY_F_TRAP_ACCESS = 2, /* PAGE_FAULT with ALLOW: one ACCESS event per memory access of the instruction */
  KVMI_REPLY_F_STEP_OVER = 4,   /* BREAKPOINT with RETRY: execute what is under one's patch, then patch again */
  KVMI_REPLY_F_COOKIE = 8,      /* `cookie` is set: a stale one turns the reply into RETRY */
};
struct kvmi_event_reply {
  uint16_t vcpu;
  uint8_t event;  /* equals the event being answered */
  uint8_t action; /* KVMI_ACTION_* */
  uint8_t flags;  /* KVMI_REPLY_F_* */
  uint8_t padding[3];
  uint64_t cookie;
};

struct kvmi_event_unhook {
  uint8_t reason; /* KVMI_OFF_* */
  uint8_t padding[7];
};

struct kvmi_event_cr {
  uint16_t cr;
  uint16_t padding[3];
  uint64_t old_value;
  uint64_t new_value;
};
struct kvmi_event_msr {
  uint32_t msr;
  uint32_t padding;
  uint64_t old_value;
  uint64_t new_value;
};
struct kvmi_event_value_reply { /* specific part of the replies to CR, MSR and XSETBV; always present */
  uint64_t new_value;           /* with KVMI_REPLY_F_VALUE, else 0 */
};

struct kvmi_event_xsetbv {
  uint32_t xcr;
  uint32_t padding;
  uint64_t old_value;
  uint64_t new_value;
};

struct kvmi_event_breakpoint {
  uint64_t gpa; /* of the instruction; regs.rip points at it */
  uint8_t insn_length;
  uint8_t padding[7];
};

/* KVMI_EVENT_HYPERCALL, KVMI_EVENT_PAUSE, KVMI_EVENT_CREATE_VCPU: no specific part */

struct kvmi_event_page_fault {
  uint64_t gva; /* valid with gva_valid, else 0 */
  uint64_t gpa;
  uint8_t access; /* KVMI_PAGE_ACCESS_*: what was tried and is not allowed */
  uint8_t gva_valid;
  uint8_t padding[6];
};

enum { KVMI_EXCEPTION_FAULT = 0, KVMI_EXCEPTION_TRAP = 1, KVMI_EXCEPTION_ABORT = 2, KVMI_EXCEPTION_INTERRUPT = 3 };
enum {
  KVMI_TRAP_F_ERROR_CODE = 1, /* error_code is pushed */
  KVMI_TRAP_F_INJECTED = 2,   /* by an agent */
  KVMI_TRAP_F_DISPLACED = 4,  /* delivered in place of an injected exception, which is lost */
};
struct kvmi_event_trap {
  uint8_t vector;
  uint8_t kind;  /* KVMI_EXCEPTION_* */
  uint8_t flags; /* KVMI_TRAP_F_* */
  uint8_t displaced_vector; /* with KVMI_TRAP_F_DISPLACED, else 0 */
  uint32_t error_code; /* with KVMI_TRAP_F_ERROR_CODE, else 0 */
  uint64_t address;    /* CR2-to-be of a page fault, else 0 */
};

enum { KVMI_DESC_IDTR = 1, KVMI_DESC_GDTR = 2, KVMI_DESC_LDTR = 3, KVMI_DESC_TR = 4 };
struct kvmi_event_descriptor {
  uint8_t descriptor; /* KVMI_DESC_* */
  uint8_t write;      /* 1: it is loaded, 0: it is stored to memory or a register */
  uint8_t padding[6];
};

struct kvmi_event_singlestep {
  uint8_t failed; /* 1: the step could not be made */
  uint8_t padding[7];
};

struct kvmi_event_cpuid {
  uint32_t function;
  uint32_t index;
};

#define KVMI_ACCESS_DATA_MAX 64u
struct kvmi_event_access {
  uint64_t gva;
  uint64_t gpa;
  uint8_t access; /* KVMI_PAGE_ACCESS_R or KVMI_PAGE_ACCESS_W */
  uint8_t size;   /* bytes of data, 1 to KVMI_ACCESS_DATA_MAX */
  uint16_t index; /* which access of the instruction, from 0 (stops at 65535) */
  uint32_t padding;
  uint8_t data[64]; /* what memory holds, or what is about to be written; the rest is 0 */
};
struct kvmi_event_access_reply { /* always present */
  uint8_t data[64];              /* with KVMI_REPLY_F_VALUE: `size` bytes that the guest shall see, or write */
};

/* ---- from kvmid to an agent, without an answer ---- */

enum {
  KVMI_NOTICE_EXPIRED = 1,       /* the agent's deadline for event `seq` passed; `action` was taken as its vote */
  KVMI_NOTICE_REPLY_REFUSED = 2, /* its reply `seq` was not taken: error_code and text say why */
  KVMI_NOTICE_DEMOTED = 3,       /* too many deadlines of `event` missed in a row: from now on it only observes those */
  KVMI_NOTICE_OUTCOME = 4,       /* how event `seq` ended: `action`, decided by `agent` (0: kvmid) */
  KVMI_NOTICE_REVOKED = 5,       /* the text names what is withdrawn: policy changed, or the hypervisor cannot do it */
  KVMI_NOTICE_FRAME_REFUSED = 6, /* what was received is no message of this protocol; the text says why */
};
struct kvmi_notice {
  uint8_t kind;   /* KVMI_NOTICE_* */
  uint8_t event;  /* KVMI_EVENT_*, where `seq` names one, and in DEMOTED */
  uint8_t action; /* KVMI_ACTION_* */
  uint8_t padding;
  uint16_t vcpu;
  uint16_t text_size;
  int32_t error_code; /* 0 or -KVMI_E* */
  uint32_t agent;
  uint32_t seq; /* of the event */
  uint32_t count; /* EXPIRED and DEMOTED: deadlines missed in a row, of that kind of event */
  /* uint8_t text[text_size]: UTF-8 for people */
};

struct kvmi_guest_on {
  struct kvmi_guest_entry guest;
};
enum {
  KVMI_OFF_SHUTDOWN = 0,
  KVMI_OFF_SUSPEND = 1,
  KVMI_OFF_MIGRATION = 2,
  KVMI_OFF_SNAPSHOT = 3,
  KVMI_OFF_LINK_LOST = 4,       /* the hypervisor closed the connection */
  KVMI_OFF_PROTOCOL_ERROR = 5,  /* the hypervisor broke the protocol and was disconnected */
  KVMI_OFF_DAEMON_STOPPING = 6, /* kvmid is going down */
  KVMI_OFF_RESET = 7,           /* the guest was started anew: nothing of the old one carries over */
};
struct kvmi_guest_off {
  uint8_t uuid[16];
  uint8_t reason; /* KVMI_OFF_* */
  uint8_t padding[3];
  uint32_t text_size;
  /* uint8_t text[text_size] */
};

/* ---- connecting: these come before the first message and have no header ---- */

#define KVMI_HELLO_MAGIC 0x324d564bu /* the bytes "KVM2" on a little-endian host */

/* agent to kvmid */
enum { KVMI_HELLO_OUTCOMES = 1 /* send OUTCOME notices for events this agent saw */ };
struct kvmi_hello {
  uint32_t struct_size; /* of this struct; more bytes are read and ignored, up to KVMI_HELLO_SIZE_MAX */
  uint32_t magic;       /* KVMI_HELLO_MAGIC */
  uint32_t version;     /* KVMI_VERSION */
  uint32_t flags;       /* KVMI_HELLO_* */
  uint8_t uuid[16];     /* the guest to attach to; all zero: a control connection */
  char name[64];        /* of the agent: printable ASCII, zero-terminated, not empty */
};
#define KVMI_HELLO_SIZE_MAX 4096u

/* kvmid to agent; after a status other than 0 kvmid closes the connection */
struct kvmi_welcome {
  uint32_t struct_size;
  uint32_t magic;
  uint32_t version;
  int32_t status; /* 0 or -KVMI_E*; text says why */
  uint32_t agent; /* the number this agent has in notices, logs and kvmictl */
  uint32_t max_payload;
  uint32_t requests_max;    /* commands that may be open at once */
  uint32_t queue_bytes_max; /* unread bytes kvmid keeps for this agent before it disconnects it */
  uint32_t deadline_us;     /* time to reply to an event */
  uint32_t priority;        /* the larger number wins where agents change the same value */
  uint64_t commands;        /* KVMI_COMMAND_BIT: allowed by policy and served by this guest's hypervisor */
  uint64_t events;          /* KVMI_EVENT_BIT, likewise */
  uint16_t vcpu_count;
  uint8_t role; /* KVMI_ROLE_*: the most this agent may be */
  uint8_t default_action; /* KVMI_ACTION_*: its vote when it misses a deadline */
  uint32_t padding;
  uint8_t uuid[16];
  char guest_name[64];
  char text[128]; /* zero-terminated */
};

/* hypervisor to kvmid: QEMU's handshake (104 bytes), and the part that names KVMI 2 */
struct kvmi_handshake {
  uint32_t struct_size; /* of all that follows and itself; larger is read and ignored, up to KVMI_HELLO_SIZE_MAX */
  uint8_t uuid[16];
  uint32_t padding;
  int64_t start_time; /* of the guest, seconds since 1970: tells a restart from a redial */
  char name[64];
  uint64_t max_gpa; /* end of the highest RAM range */
};
enum {
  KVMI_HANDSHAKE_WRITE_IN_MAPPING = 1, /* a write in the RAM mapping is enough: no translated code is kept */
  KVMI_HANDSHAKE_RAM_SHARED = 2,       /* a memfd with guest RAM comes with this by SCM_RIGHTS */
};
struct kvmi_handshake_kvmi2 { /* follows at byte 104 */
  uint32_t magic;             /* KVMI_HELLO_MAGIC */
  uint32_t version;           /* KVMI_VERSION */
  uint32_t flags;             /* KVMI_HANDSHAKE_* */
  uint32_t padding;
  uint64_t ram_bytes; /* size of the memfd, else 0 */
};

/* kvmid to hypervisor */
struct kvmi_handshake_answer {
  uint32_t struct_size;
  uint8_t cookie_hash[20]; /* zero where no key is configured */
};
struct kvmi_handshake_answer_kvmi2 { /* follows at byte 24, only if the hypervisor sent its KVMI 2 part */
  uint32_t magic;
  int32_t status; /* 0 or -KVMI_E*; then kvmid closes the connection */
  char text[128];
};

#ifdef __cplusplus
}
#endif

#endif
