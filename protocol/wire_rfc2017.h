// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The structs of dialect rfc2017, as they lie on the wire. Used by the .cpp files of this folder and by tests.
///
/// Byte order: host native; KVMI stays on one host.
/// Source:     the RFC of 7 July 2017, checked against tests/vectors/dialect_layouts.json.
///             Field names are theirs; struct names are theirs without "kvmi_".

#include <cstdint>
#include <type_traits>

#include "protocol/kvmi.h"

namespace kvmid::kvmi1::rfc2017 {

#define KVMID_WIRE(type, bytes) \
  static_assert(sizeof(type) == (bytes) && std::has_unique_object_representations_v<type>)

/// The size field has 16 bits and the text no limit: header and payload together fill 64 KiB at most here.
inline constexpr std::size_t kPayloadMax = KVMI_MAX_PAYLOAD;
inline constexpr std::uint16_t kGuestOnId = 23;   ///< no layout, and marked for removal
inline constexpr std::uint16_t kGuestOffId = 24;  ///< the same
inline constexpr std::uint16_t kEventId = 25;
inline constexpr std::uint16_t kEventReplyId = 26;
inline constexpr std::uint32_t kKnownEvents = 0xfe;  ///< bits of CONTROL_EVENTS

/// The kernel's C layout: C++ compilers give the system header's kvm_msrs 16 bytes.
struct Msrs {
  std::uint32_t nmsrs;
  std::uint32_t pad;
  // kvmi_x86_msr entries[nmsrs]
};
KVMID_WIRE(Msrs, 8);

/// Registers of an event that are MSRs: three fewer than in later dialects.
struct EventMsrs {
  std::uint64_t sysenter_cs;
  std::uint64_t sysenter_esp;
  std::uint64_t sysenter_eip;
  std::uint64_t efer;
  std::uint64_t star;
  std::uint64_t lstar;
};
KVMID_WIRE(EventMsrs, 48);

struct Guest {
  std::uint8_t uuid[16];
};
KVMID_WIRE(Guest, 16);

/// The only reply without `err`: how many bytes there are, these four included. The header counts one guest in.
struct Guests {
  std::uint32_t size;
  // Guest guests[]
};
KVMID_WIRE(Guests, 4);

struct ReadPhysical {
  std::uint64_t gpa;
  std::uint64_t size;
};
KVMID_WIRE(ReadPhysical, 16);

/// The data begin right behind `err`.
struct ReadPhysicalReply {
  std::int32_t err;
  // bytes[size]
};
KVMID_WIRE(ReadPhysicalReply, 4);

struct WritePhysical {
  std::uint64_t gpa;
  std::uint64_t size;
  // bytes[size]
};
KVMID_WIRE(WritePhysical, 16);

/// The reply of commands without data, and of all that fail.
struct ErrorCode {
  std::int32_t err;
  std::uint32_t padding;
};
KVMID_WIRE(ErrorCode, 8);

struct GetVersionReply {
  std::int32_t err;
  std::uint32_t version;
};
KVMID_WIRE(GetVersionReply, 8);

struct GetGuestInfoReply {
  std::int32_t err;
  std::uint16_t vcpu_count;
  std::uint16_t padding;
  std::uint64_t tsc_speed;
};
KVMID_WIRE(GetGuestInfoReply, 16);

struct GetRegistersX86 {
  std::uint16_t vcpu;
  std::uint16_t nmsrs;
  // std::uint32_t msrs_idx[nmsrs]
};
KVMID_WIRE(GetRegistersX86, 4);

struct GetRegistersX86Reply {
  std::int32_t err;
  std::uint32_t mode;
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  Msrs msrs;
};
KVMID_WIRE(GetRegistersX86Reply, 472);

struct SetRegistersX86 {
  std::uint16_t vcpu;
  std::uint16_t padding[3];
  kvmi_x86_regs regs;
};
KVMID_WIRE(SetRegistersX86, 152);

struct MtrrType {
  std::uint64_t gpa;
};
KVMID_WIRE(MtrrType, 8);

/// The document has {err, u32 type} instead; the header has this.
struct MtrrTypeReply {
  std::int32_t err;
  std::uint32_t padding;
  std::uint64_t type;
};
KVMID_WIRE(MtrrTypeReply, 16);

struct Mtrrs {
  std::uint16_t vcpu;
  std::uint16_t padding[3];
};
KVMID_WIRE(Mtrrs, 8);

struct MtrrsReply {
  std::int32_t err;
  std::uint32_t padding;
  std::uint64_t pat;
  std::uint64_t cap;
  std::uint64_t type;
};
KVMID_WIRE(MtrrsReply, 32);

struct XsaveInfo {
  std::uint16_t vcpu;
  std::uint16_t padding[3];
};
KVMID_WIRE(XsaveInfo, 8);

struct XsaveInfoReply {
  std::int32_t err;
  std::uint32_t size;
};
KVMID_WIRE(XsaveInfoReply, 8);

struct GetPageAccess {
  std::uint16_t vcpu;
  std::uint16_t padding[3];
  std::uint64_t gpa;
};
KVMID_WIRE(GetPageAccess, 16);

struct GetPageAccessReply {
  std::int32_t err;
  std::uint32_t access;
};
KVMID_WIRE(GetPageAccessReply, 8);

struct SetPageAccess {
  std::uint16_t vcpu;
  std::uint16_t padding;
  std::uint32_t access;
  std::uint64_t gpa;
};
KVMID_WIRE(SetPageAccess, 16);

struct PageFault {
  std::uint16_t vcpu;
  std::uint16_t padding;
  std::uint32_t error;
  std::uint64_t gva;
};
KVMID_WIRE(PageFault, 16);

struct InjectBreakpoint {
  std::uint16_t vcpu;
  std::uint16_t padding[3];
};
KVMID_WIRE(InjectBreakpoint, 8);

struct MapPhysicalPageToGuest {
  std::uint64_t gpa_src;
  std::uint64_t gfn_dest;
};
KVMID_WIRE(MapPhysicalPageToGuest, 16);

struct UnmapPhysicalPageFromGuest {
  std::uint64_t gfn_dest;
};
KVMID_WIRE(UnmapPhysicalPageFromGuest, 8);

struct ControlEvents {
  std::uint16_t vcpu;
  std::uint16_t padding;
  std::uint32_t events;
};
KVMID_WIRE(ControlEvents, 8);

struct CrControl {
  std::uint8_t enable;
  std::uint8_t padding[3];
  std::uint32_t cr;
};
KVMID_WIRE(CrControl, 8);

struct MsrControl {
  std::uint8_t enable;
  std::uint8_t padding[3];
  std::uint32_t msr;
};
KVMID_WIRE(MsrControl, 8);

struct EventX86 {
  std::uint16_t vcpu;
  std::uint8_t mode;
  std::uint8_t padding1;
  std::uint32_t event;
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  EventMsrs msrs;
};
KVMID_WIRE(EventX86, 512);

struct EventX86Reply {
  kvmi_x86_regs regs;
  std::uint32_t actions;
  std::uint32_t padding;
};
KVMID_WIRE(EventX86Reply, 152);

struct EventCr {
  std::uint16_t cr;
  std::uint16_t padding[3];
  std::uint64_t old_value;
  std::uint64_t new_value;
};
KVMID_WIRE(EventCr, 24);

struct EventCrReply {
  std::uint64_t new_val;
};
KVMID_WIRE(EventCrReply, 8);

struct EventMsr {
  std::uint32_t msr;
  std::uint32_t padding;
  std::uint64_t old_value;
  std::uint64_t new_value;
};
KVMID_WIRE(EventMsr, 24);

struct EventMsrReply {
  std::uint64_t new_val;
};
KVMID_WIRE(EventMsrReply, 8);

struct EventXsetbv {
  std::uint64_t xcr0;
};
KVMID_WIRE(EventXsetbv, 8);

struct EventBreakpoint {
  std::uint64_t gpa;
};
KVMID_WIRE(EventBreakpoint, 8);

struct EventPageFault {
  std::uint64_t gva;
  std::uint64_t gpa;
  std::uint32_t mode;
  std::uint32_t padding;
};
KVMID_WIRE(EventPageFault, 24);

/// No padding at its end: the whole payload has 412 bytes.
struct EventPageFaultReply {
  std::uint32_t ctx_size;
  std::uint8_t ctx_data[256];
};
KVMID_WIRE(EventPageFaultReply, 260);

struct EventTrap {
  std::uint32_t vector;
  std::uint32_t type;
  std::uint32_t err;
  std::uint32_t padding;
  std::uint64_t cr2;
};
KVMID_WIRE(EventTrap, 24);

#undef KVMID_WIRE

}  // namespace kvmid::kvmi1::rfc2017
