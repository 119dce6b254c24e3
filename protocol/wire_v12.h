// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The structs of dialect v12, as they lie on the wire. Used by the .cpp files of this folder and by tests.
///
/// Byte order: host native; KVMI stays on one host.
/// Source:     the last posted series, 6 October 2021, checked against tests/vectors/dialect_layouts.json.
///             Field names are theirs; struct names are theirs without "kvmi_".

#include <cstdint>
#include <type_traits>

#include "protocol/kvmi.h"

namespace kvmid::kvmi1::v12 {

#define KVMID_WIRE(type, bytes) \
  static_assert(sizeof(type) == (bytes) && std::has_unique_object_representations_v<type>)

inline constexpr std::size_t kPayloadMax = 8184;
inline constexpr std::uint16_t kVmEventId = 0;    ///< an UNHOOK; from a tool it is no message
inline constexpr std::uint16_t kVcpuEventId = 1;  ///< an event, its reply, and the error reply to that

struct Features {
  std::uint8_t singlestep;
  std::uint8_t padding[7];
};
KVMID_WIRE(Features, 8);

struct VcpuEventArch {
  std::uint8_t mode;
  std::uint8_t padding[7];
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  kvmi_x86_event_msrs msrs;
};
KVMID_WIRE(VcpuEventArch, 536);

/// The kernel's C layout: C++ compilers give the system header's kvm_msrs 16 bytes.
struct Msrs {
  std::uint32_t nmsrs;
  std::uint32_t pad;
  // kvmi_x86_msr entries[nmsrs]
};
KVMID_WIRE(Msrs, 8);

/// Every reply begins with it, and a refusal has nothing else.
struct ErrorCode {
  std::int32_t err;
  std::uint32_t padding;
};
KVMID_WIRE(ErrorCode, 8);

struct GetVersionReply {
  std::uint32_t version;
  std::uint32_t max_msg_size;
  Features features;
};
KVMID_WIRE(GetVersionReply, 16);

/// VM_CHECK_COMMAND and VM_CHECK_EVENT.
struct Check {
  std::uint16_t id;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(Check, 8);

struct VmGetInfoReply {
  std::uint32_t vcpu_count;
  std::uint32_t padding[3];
};
KVMID_WIRE(VmGetInfoReply, 16);

/// Begins every event: VM events (id 0) are this alone.
struct EventHdr {
  std::uint16_t event;
  std::uint16_t padding[3];
};
KVMID_WIRE(EventHdr, 8);

struct VmControlEvents {
  std::uint16_t event_id;
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VmControlEvents, 8);

struct VmReadPhysical {
  std::uint64_t gpa;
  std::uint16_t size;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VmReadPhysical, 16);

struct VmWritePhysical {
  std::uint64_t gpa;
  std::uint16_t size;
  std::uint16_t padding1;
  std::uint32_t padding2;
  // data[size]
};
KVMID_WIRE(VmWritePhysical, 16);

/// Begins every vCPU command (odd ids) and event reply.
struct VcpuHdr {
  std::uint16_t vcpu;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VcpuHdr, 8);

/// A VM command: no VcpuHdr before it.
struct VmPauseVcpu {
  std::uint16_t vcpu;
  std::uint8_t wait;
  std::uint8_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VmPauseVcpu, 8);

/// Follows EventHdr in vCPU events (id 1). `size` is this struct's own.
struct VcpuEvent {
  std::uint16_t size;
  std::uint16_t vcpu;
  std::uint32_t padding;
  VcpuEventArch arch;
};
KVMID_WIRE(VcpuEvent, 544);

/// Follows VcpuHdr in event replies, which have the event's id, 1.
struct VcpuEventReply {
  std::uint8_t action;
  std::uint8_t event;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VcpuEventReply, 8);

struct VcpuControlEvents {
  std::uint16_t event_id;
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VcpuControlEvents, 8);

struct VcpuEventBreakpoint {
  std::uint64_t gpa;
  std::uint8_t insn_len;
  std::uint8_t padding[7];
};
KVMID_WIRE(VcpuEventBreakpoint, 16);

struct VmControlCleanup {
  std::uint8_t enable;
  std::uint8_t padding[7];
};
KVMID_WIRE(VmControlCleanup, 8);

struct VmSetPageAccess {
  std::uint16_t count;
  std::uint16_t padding1;
  std::uint32_t padding2;
  // kvmi1::PageAccessEntry entries[count]
};
KVMID_WIRE(VmSetPageAccess, 8);

struct VcpuEventPf {
  std::uint64_t gva;
  std::uint64_t gpa;
  std::uint8_t access;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t padding3;
};
KVMID_WIRE(VcpuEventPf, 24);

struct VcpuControlSinglestep {
  std::uint8_t enable;
  std::uint8_t padding[7];
};
KVMID_WIRE(VcpuControlSinglestep, 8);

struct VcpuEventSinglestep {
  std::uint8_t failed;
  std::uint8_t padding[7];
};
KVMID_WIRE(VcpuEventSinglestep, 8);

struct VcpuTranslateGva {
  std::uint64_t gva;
};
KVMID_WIRE(VcpuTranslateGva, 8);

struct VcpuTranslateGvaReply {
  std::uint64_t gpa;
};
KVMID_WIRE(VcpuTranslateGvaReply, 8);

struct VcpuGetInfoReply {
  std::uint64_t tsc_speed;
};
KVMID_WIRE(VcpuGetInfoReply, 8);

struct VcpuGetRegisters {
  std::uint16_t nmsrs;
  std::uint16_t padding1;
  std::uint32_t padding2;
  // std::uint32_t msrs_idx[nmsrs]
};
KVMID_WIRE(VcpuGetRegisters, 8);

struct VcpuGetRegistersReply {
  std::uint32_t mode;
  std::uint32_t padding;
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  Msrs msrs;
};
KVMID_WIRE(VcpuGetRegistersReply, 472);

struct VcpuGetCpuid {
  std::uint32_t function;
  std::uint32_t index;
};
KVMID_WIRE(VcpuGetCpuid, 8);

struct VcpuGetCpuidReply {
  std::uint32_t eax;
  std::uint32_t ebx;
  std::uint32_t ecx;
  std::uint32_t edx;
};
KVMID_WIRE(VcpuGetCpuidReply, 16);

struct VcpuControlCr {
  std::uint8_t cr;
  std::uint8_t enable;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
KVMID_WIRE(VcpuControlCr, 8);

struct VcpuEventCr {
  std::uint8_t cr;
  std::uint8_t padding[7];
  std::uint64_t old_value;
  std::uint64_t new_value;
};
KVMID_WIRE(VcpuEventCr, 24);

struct VcpuEventCrReply {
  std::uint64_t new_val;
};
KVMID_WIRE(VcpuEventCrReply, 8);

struct VcpuEventTrap {
  std::uint8_t nr;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t error_code;
  std::uint64_t address;
};
KVMID_WIRE(VcpuEventTrap, 16);

struct VcpuInjectException {
  std::uint8_t nr;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t error_code;
  std::uint64_t address;
};
KVMID_WIRE(VcpuInjectException, 16);

struct VcpuEventXsetbv {
  std::uint8_t xcr;
  std::uint8_t padding[7];
  std::uint64_t old_value;
  std::uint64_t new_value;
};
KVMID_WIRE(VcpuEventXsetbv, 24);

struct VcpuGetXcr {
  std::uint8_t xcr;
  std::uint8_t padding[7];
};
KVMID_WIRE(VcpuGetXcr, 8);

struct VcpuGetXcrReply {
  std::uint64_t value;
};
KVMID_WIRE(VcpuGetXcrReply, 8);

struct VcpuGetMtrrType {
  std::uint64_t gpa;
};
KVMID_WIRE(VcpuGetMtrrType, 8);

struct VcpuGetMtrrTypeReply {
  std::uint8_t type;
  std::uint8_t padding[7];
};
KVMID_WIRE(VcpuGetMtrrTypeReply, 8);

struct VcpuEventDescriptor {
  std::uint8_t descriptor;
  std::uint8_t write;
  std::uint8_t padding[6];
};
KVMID_WIRE(VcpuEventDescriptor, 8);

struct VcpuControlMsr {
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t msr;
};
KVMID_WIRE(VcpuControlMsr, 8);

struct VcpuEventMsr {
  std::uint32_t msr;
  std::uint32_t padding;
  std::uint64_t old_value;
  std::uint64_t new_value;
};
KVMID_WIRE(VcpuEventMsr, 24);

struct VcpuEventMsrReply {
  std::uint64_t new_val;
};
KVMID_WIRE(VcpuEventMsrReply, 8);

#undef KVMID_WIRE

}  // namespace kvmid::kvmi1::v12
