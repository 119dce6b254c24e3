// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The test guest's mailbox: what a vCPU did and saw, and what it shall do, read and written by READ_PHYSICAL and
/// WRITE_PHYSICAL (or in the RAM mapping).
///
/// Purpose:  tests, demonstrations and agents look at the guest's own state, not at what a hypervisor claims of it.
/// Shapes:   a struct that lies over a vCPU's mailbox page.
/// Units:    every field has 8 bytes, host byte order.
/// Threads:  a guest writes while it runs; each field is written by one instruction.
/// Source:   mailbox_layout.h, which the guest's assembler reads too; GUEST.md.

#include <array>
#include <cstddef>
#include <cstdint>

#include "hypervisor/emulated/mailbox_layout.h"
#include "protocol/ids.h"

namespace kvmid::emulated {

/// What a vCPU does in each round of its loop.
enum class GuestMode : std::uint64_t {
  All = KVMID_MODE_ALL,
  Idle = KVMID_MODE_IDLE,
  Spin = KVMID_MODE_SPIN,
  Cr3 = KVMID_MODE_CR3,
  Cr4 = KVMID_MODE_CR4,
  Cr0 = KVMID_MODE_CR0,
  Lstar = KVMID_MODE_LSTAR,
  Msr = KVMID_MODE_MSR,
  Int3 = KVMID_MODE_INT3,
  Vmcall = KVMID_MODE_VMCALL,
  Store = KVMID_MODE_STORE,
  Load = KVMID_MODE_LOAD,
  Exec = KVMID_MODE_EXEC,
  Ud = KVMID_MODE_UD,
  Gp = KVMID_MODE_GP,
  Pf = KVMID_MODE_PF,
  Triple = KVMID_MODE_TRIPLE,
  Xsetbv = KVMID_MODE_XSETBV,
  Gdt = KVMID_MODE_GDT,
  Idt = KVMID_MODE_IDT,
  Ldt = KVMID_MODE_LDT,
  Tr = KVMID_MODE_TR,
  Cpuid = KVMID_MODE_CPUID,
  Sse = KVMID_MODE_SSE,
  Rom = KVMID_MODE_ROM,
  User = KVMID_MODE_USER,
  Step = KVMID_MODE_STEP,
  Debug = KVMID_MODE_DEBUG,
  Copy = KVMID_MODE_COPY,
  Hammer = KVMID_MODE_HAMMER,
  Map = KVMID_MODE_MAP,
};
inline constexpr std::size_t kGuestModeCount = KVMID_MODE_COUNT;

struct Mailbox {
  std::uint64_t magic;
  std::uint64_t vcpu;
  std::uint64_t mode;  ///< GuestMode; to be written
  std::uint64_t rounds;
  std::uint64_t action;
  std::uint64_t cr0;
  std::uint64_t cr3;
  std::uint64_t cr4;
  std::uint64_t lstar;
  std::uint64_t msr;
  std::uint64_t loaded;
  std::uint64_t stored;
  std::uint64_t exec_result;
  std::uint64_t exec_calls;
  std::uint64_t hypercall_result;
  std::uint64_t window;
  std::uint64_t panic;
  std::uint64_t last_vector;
  std::uint64_t last_error;
  std::uint64_t last_cr2;
  std::uint64_t last_rip;
  std::uint64_t resume;
  std::uint64_t turn;
  std::uint64_t user_syscalls;
  std::uint64_t user_pf;
  std::uint64_t user_pf_error;
  std::uint64_t user_gp;
  std::uint64_t user_cs;
  std::uint64_t copied;
  std::uint64_t last_dr6;
  std::uint64_t kernel_rsp;
  std::uint64_t user_rsp;
  std::uint64_t arg_msr;         ///< to be written
  std::uint64_t arg_msr_value;   ///< to be written
  std::uint64_t arg_pf_address;  ///< to be written
  std::uint64_t arg_hammer_calls;  ///< to be written: what hammer_calls shall become
  std::uint64_t arg_map_change;  ///< to be written: MapChange, of the ROM page
  std::array<std::uint64_t, 3> unused2;
  std::uint64_t arg_xcr0;            ///< to be written; 0: 1 and 3 in turn
  std::uint64_t arg_cpuid_function;  ///< to be written
  std::uint64_t arg_cpuid_index;     ///< to be written
  std::uint64_t xcr0;
  std::uint64_t gdtr_limit;
  std::uint64_t gdtr_base;
  std::uint64_t idtr_limit;
  std::uint64_t idtr_base;
  std::uint64_t ldtr;
  std::uint64_t tr;
  std::array<std::uint64_t, 4> cpuid;  ///< EAX, EBX, ECX, EDX
  std::array<std::uint64_t, 2> sse;    ///< XMM5
  double x87;                          ///< ST(0)
  std::uint64_t rom;
  std::uint64_t hammer_gpa;    ///< of hammer_target's first instruction, kHammerInsnBytes long
  std::uint64_t hammer_gva;
  std::uint64_t hammer_calls;  ///< returned, as the caller counts
  std::uint64_t hammer_hits;   ///< executed, as that instruction counts
  std::uint64_t map_result;    ///< 0, or -22: there was nothing to change
  std::array<std::uint64_t, 1> unused3;
  std::array<std::uint64_t, 64> done;        ///< [GuestMode]
  std::array<std::uint64_t, 32> exceptions;  ///< [vector]
};
static_assert(offsetof(Mailbox, mode) == KVMID_MB_MODE && offsetof(Mailbox, lstar) == KVMID_MB_LSTAR);
static_assert(offsetof(Mailbox, exec_calls) == KVMID_MB_EXEC_CALLS && offsetof(Mailbox, panic) == KVMID_MB_PANIC);
static_assert(offsetof(Mailbox, turn) == KVMID_MB_TURN && offsetof(Mailbox, arg_msr) == KVMID_MB_ARG_MSR);
static_assert(offsetof(Mailbox, arg_xcr0) == KVMID_MB_ARG_XCR0 && offsetof(Mailbox, cpuid) == KVMID_MB_CPUID_EAX);
static_assert(offsetof(Mailbox, sse) == KVMID_MB_SSE && offsetof(Mailbox, rom) == KVMID_MB_ROM);
static_assert(offsetof(Mailbox, arg_hammer_calls) == KVMID_MB_ARG_HAMMER_CALLS);
static_assert(offsetof(Mailbox, hammer_gpa) == KVMID_MB_HAMMER_GPA);
static_assert(offsetof(Mailbox, hammer_hits) == KVMID_MB_HAMMER_HITS);
static_assert(offsetof(Mailbox, arg_map_change) == KVMID_MB_ARG_MAP_CHANGE);
static_assert(offsetof(Mailbox, map_result) == KVMID_MB_MAP_RESULT);
static_assert(offsetof(Mailbox, done) == KVMID_MB_DONE && offsetof(Mailbox, exceptions) == KVMID_MB_EXCEPTIONS);

static_assert(offsetof(Mailbox, user_syscalls) == KVMID_MB_USER_SYSCALLS);
static_assert(offsetof(Mailbox, copied) == KVMID_MB_COPIED && offsetof(Mailbox, user_rsp) == KVMID_MB_USER_RSP);

inline constexpr std::uint64_t kMailboxMagic = KVMID_MB_MAGIC_VALUE;
inline constexpr Gpa kProtectedPage{KVMID_GUEST_PROTECTED_GPA};
inline constexpr Gpa kExecPage{KVMID_GUEST_EXEC_GPA};
inline constexpr Gpa kRomPage{KVMID_GUEST_ROM_GPA};
inline constexpr Gpa kSmram{KVMID_GUEST_SMRAM_GPA};
inline constexpr std::uint64_t kRootA = KVMID_GUEST_ROOT_A_GPA;  ///< value of CR3
inline constexpr std::uint64_t kRootB = KVMID_GUEST_ROOT_B_GPA;  ///< value of CR3
inline constexpr std::uint64_t kHypercallNumber = KVMID_GUEST_HYPERCALL;
inline constexpr std::uint64_t kMapHypercallNumber = KVMID_GUEST_MAP_HYPERCALL;
inline constexpr std::size_t kHammerInsnBytes = KVMID_GUEST_HAMMER_INSN_BYTES;
inline constexpr std::uint64_t kExecValue = KVMID_GUEST_EXEC_VALUE;

/// Where a vCPU's mailbox is.
[[nodiscard]] constexpr Gpa mailbox_gpa(VcpuId vcpu) {
  return Gpa{KVMID_GUEST_MAILBOX_GPA + std::uint64_t{vcpu.value} * KVMID_GUEST_MAILBOX_STRIDE};
}
/// Where one of its fields is: mailbox_field(VcpuId{0}, offsetof(Mailbox, mode)).
[[nodiscard]] constexpr Gpa mailbox_field(VcpuId vcpu, std::size_t offset) {
  return Gpa{mailbox_gpa(vcpu).value + offset};
}

}  // namespace kvmid::emulated
