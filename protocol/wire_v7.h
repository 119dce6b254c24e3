// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What lies on the wire of v7 and v6. Used by the codec of both and its tests only.
///
/// Shapes:   structs as the C compiler lays out the published ones, with their field names; those that differ in v6
///           have V6 in their name. Tails follow the struct: they are named in comments.
/// Units:    addresses in bytes, gfns in pages.
/// Source:   docs/dialects.md; the layouts in tests/vectors/dialect_layouts.json.

#include <cstddef>
#include <cstdint>

#include "protocol/kvmi.h"

namespace kvmid::kvmi1::v7 {

inline constexpr std::size_t kPayloadMax = 8184;

/// Message ids. The same in both, but for what one of them does not have.
enum Id : std::uint16_t {
  kEventReplyId = 0,
  kEventId = 1,
  kGetVersionId = 2,
  kCheckCommandId = 3,
  kCheckEventId = 4,
  kGetGuestInfoId = 5,
  kGetVcpuInfoId = 6,
  kPauseVcpuId = 7,
  kControlVmEventsId = 8,
  kControlEventsId = 9,
  kControlCrId = 10,
  kControlMsrId = 11,
  kGetRegistersId = 13,
  kSetRegistersId = 14,
  kGetCpuidId = 15,
  kGetXsaveId = 16,
  kReadPhysicalId = 17,
  kWritePhysicalId = 18,
  kInjectExceptionId = 19,
  kGetPageAccessId = 20,  // v6
  kSetPageAccessId = 21,
  kGetMapTokenId = 22,
  kGetMtrrTypeId = 23,
  kControlSppId = 24,
  kGetPageWriteBitmapId = 25,  // v6
  kSetPageWriteBitmapId = 26,
  kControlCmdResponseId = 27,
  kSetVeInfoPageId = 28,  // v7, like all below but GET_MAX_GFN
  kGetMaxGfnId = 29,
  kSetPageSveId = 30,
  kGetNextAvailableGfnId = 31,
  kSwitchEptViewId = 32,
  kDisableVeId = 33,
  kGetEptViewId = 34,
  kTranslateGvaId = 35,
  kControlEptViewId = 36,
  kGetXcrId = 37,
  kSetXsaveId = 38,
  kQueryPhysicalId = 39,
  kAllocGfnId = 41,
  kFreeGfnId = 42,
  kCreateEptViewId = 43,
  kDestroyEptViewId = 44,
  kChangeGfnId = 60,
  kControlSinglestepId = 63,
};

/// Event numbers. 0 to 11 are those of both, and as in message.h; CPUID is not.
inline constexpr std::uint8_t kLastCommonEvent = 11;
inline constexpr std::uint8_t kCommandErrorEvent = 12;  // v7
inline constexpr std::uint8_t kCpuidEvent = 13;         // v7

// ---- both directions ----

struct VcpuHeader {
  std::uint16_t vcpu;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(VcpuHeader) == 8);
struct ErrorCode {
  std::int32_t err;
  std::uint32_t padding;
};
static_assert(sizeof(ErrorCode) == 8);

// ---- requests; those of vCPU commands follow a VcpuHeader ----

struct CheckRequest {  // command or event
  std::uint16_t id;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(CheckRequest) == 8);
struct PauseRequest {
  std::uint8_t wait;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t padding3;
};
static_assert(sizeof(PauseRequest) == 8);
struct ControlEventsRequest {  // of the VM or of a vCPU
  std::uint16_t event_id;
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(ControlEventsRequest) == 8);
struct ControlCrRequest {
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t cr;
};
static_assert(sizeof(ControlCrRequest) == 8 && offsetof(ControlCrRequest, cr) == 4);
struct ControlMsrRequest {
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t msr;
};
static_assert(sizeof(ControlMsrRequest) == 8 && offsetof(ControlMsrRequest, msr) == 4);
struct GetRegistersRequest {  // then u32 msrs_idx[nmsrs]
  std::uint16_t nmsrs;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(GetRegistersRequest) == 8);
struct GetCpuidRequest {
  std::uint32_t function;
  std::uint32_t index;
};
static_assert(sizeof(GetCpuidRequest) == 8);
struct InjectExceptionRequest {
  std::uint8_t nr;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t error_code;
  std::uint64_t address;
};
static_assert(sizeof(InjectExceptionRequest) == 16 && offsetof(InjectExceptionRequest, address) == 8);
struct InjectExceptionRequestV6 {
  std::uint8_t nr;
  std::uint8_t has_error;
  std::uint16_t padding;
  std::uint32_t error_code;
  std::uint64_t address;
};
static_assert(sizeof(InjectExceptionRequestV6) == 16 && offsetof(InjectExceptionRequestV6, address) == 8);
struct GpaRequest {  // GET_MTRR_TYPE
  std::uint64_t gpa;
};
struct ReadPhysicalRequest {
  std::uint64_t gpa;
  std::uint64_t size;
};
struct WritePhysicalRequest {  // then data[size]
  std::uint64_t gpa;
  std::uint64_t size;
};
static_assert(sizeof(WritePhysicalRequest) == 16);
struct PagesRequest {  // page access, write bitmaps: then count gpas (get) or entries (set)
  std::uint16_t view;
  std::uint16_t count;
  std::uint32_t padding;
};
static_assert(sizeof(PagesRequest) == 8);
struct ControlSppRequest {
  std::uint8_t enable;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t padding3;
};
static_assert(sizeof(ControlSppRequest) == 8);
struct ControlCmdResponseRequest {
  std::uint8_t enable;
  std::uint8_t now;
  std::uint8_t flags;  // v7: kErrorEvents; v6: padding
  std::uint8_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(ControlCmdResponseRequest) == 8 && offsetof(ControlCmdResponseRequest, padding2) == 4);
inline constexpr std::uint8_t kErrorEvents = 1;
struct SetVeInfoPageRequest {
  std::uint64_t gpa;
  std::uint8_t trigger_vmexit;
  std::uint8_t padding[7];
};
static_assert(sizeof(SetVeInfoPageRequest) == 16);
struct SetPageSveRequest {
  std::uint16_t view;
  std::uint8_t suppress;
  std::uint8_t padding1;
  std::uint32_t padding2;
  std::uint64_t gpa;
};
static_assert(sizeof(SetPageSveRequest) == 16 && offsetof(SetPageSveRequest, gpa) == 8);
struct ViewRequest {  // SWITCH_EPT_VIEW, DESTROY_EPT_VIEW
  std::uint16_t view;
  std::uint16_t padding[3];
};
static_assert(sizeof(ViewRequest) == 8);
struct ControlEptViewRequest {
  std::uint16_t view;
  std::uint8_t visible;
  std::uint8_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(ControlEptViewRequest) == 8);
struct TranslateGvaRequest {
  std::uint64_t gva;
};
struct GetXcrRequest {
  std::uint8_t xcr;
  std::uint8_t padding[7];
};
static_assert(sizeof(GetXcrRequest) == 8);
struct GfnRequest {  // QUERY_PHYSICAL, ALLOC_GFN, FREE_GFN
  std::uint64_t gfn;
};
struct ChangeGfnRequest {
  std::uint16_t view;
  std::uint16_t padding1;
  std::uint32_t padding2;
  std::uint64_t old_gfn;
  std::uint64_t new_gfn;
};
static_assert(sizeof(ChangeGfnRequest) == 24 && offsetof(ChangeGfnRequest, new_gfn) == 16);
struct OldChangeGfnRequest {  // before late 2023: the vCPU's current view
  std::uint64_t old_gfn;
  std::uint64_t new_gfn;
};
static_assert(sizeof(OldChangeGfnRequest) == 16);
struct ControlSinglestepRequest {
  std::uint8_t enable;
  std::uint8_t padding[7];
};
static_assert(sizeof(ControlSinglestepRequest) == 8);

// ---- replies; all follow an ErrorCode ----

struct VersionReplyV6 {
  std::uint32_t version;
  std::uint32_t padding;
};
struct Features {
  std::uint8_t spp, vmfunc, eptp, ve;
  std::uint8_t singlestep;  // padding in some headers
  std::uint8_t padding[3];
};
struct VersionReply {
  std::uint32_t version;
  std::uint32_t padding;
  Features features;
};
static_assert(sizeof(VersionReply) == 16 && sizeof(VersionReplyV6) == 8);
struct GuestInfoReply {
  std::uint32_t vcpu_count;
  std::uint32_t padding[3];
};
static_assert(sizeof(GuestInfoReply) == 16);
struct VcpuInfoReply {
  std::uint64_t tsc_speed;
};
struct RegistersReply {  // then kvmi_x86_msr[nmsrs]
  std::uint32_t mode;
  std::uint32_t padding;
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  std::uint32_t nmsrs;
  std::uint32_t msrs_padding;
};
static_assert(sizeof(RegistersReply) == 472 && offsetof(RegistersReply, nmsrs) == 464);
struct CpuidReply {
  std::uint32_t eax, ebx, ecx, edx;
};
static_assert(sizeof(CpuidReply) == 16);
struct MtrrTypeReply {
  std::uint8_t type;
  std::uint8_t padding[7];
};
static_assert(sizeof(MtrrTypeReply) == 8);
struct MapTokenReply {
  std::uint64_t token[4];
};
static_assert(sizeof(MapTokenReply) == 32);
struct GfnReply {  // GET_MAX_GFN, GET_NEXT_AVAILABLE_GFN
  std::uint64_t gfn;
};
struct QueryPhysicalReply {
  std::uint64_t gfn;
  std::uint64_t size;  // pages
};
static_assert(sizeof(QueryPhysicalReply) == 16);
struct ViewReply {  // GET_EPT_VIEW, CREATE_EPT_VIEW
  std::uint16_t view;
  std::uint16_t padding[3];
};
static_assert(sizeof(ViewReply) == 8);
struct GpaReply {  // TRANSLATE_GVA
  std::uint64_t gpa;
};
struct XcrReply {
  std::uint64_t value;
};

// ---- events ----

struct EventArch {
  std::uint8_t mode;
  std::uint8_t padding1;
  std::uint16_t view;  // v6: padding
  std::uint8_t padding2[4];
  kvmi_x86_regs regs;
  kvmi_x86_sregs sregs;
  kvmi_x86_event_msrs msrs;
};
static_assert(sizeof(EventArch) == 536 && offsetof(EventArch, regs) == 8 && offsetof(EventArch, sregs) == 152 &&
              offsetof(EventArch, msrs) == 464);
struct EventHead {
  std::uint16_t size;  // of this struct
  std::uint16_t vcpu;
  std::uint8_t event;
  std::uint8_t padding[3];
  EventArch arch;
};
static_assert(sizeof(EventHead) == 544 && offsetof(EventHead, arch) == 8);
struct EventCr {
  std::uint16_t cr;
  std::uint16_t padding[3];
  std::uint64_t old_value;
  std::uint64_t new_value;
};
static_assert(sizeof(EventCr) == 24);
struct EventMsr {
  std::uint32_t msr;
  std::uint32_t padding;
  std::uint64_t old_value;
  std::uint64_t new_value;
};
static_assert(sizeof(EventMsr) == 24);
struct EventBreakpoint {
  std::uint64_t gpa;
  std::uint8_t insn_len;
  std::uint8_t padding[7];
};
static_assert(sizeof(EventBreakpoint) == 16);
struct EventPageFault {
  std::uint64_t gva;
  std::uint64_t gpa;
  std::uint8_t access;
  std::uint8_t padding1;
  std::uint16_t view;  // v7: not filled in
  std::uint32_t padding2;
};
static_assert(sizeof(EventPageFault) == 24);
struct EventTrap {
  std::uint8_t vector;
  std::uint8_t padding1;
  std::uint16_t padding2;
  std::uint32_t error_code;
  std::uint64_t cr2;
};
static_assert(sizeof(EventTrap) == 16);
struct EventTrapV6 {
  std::uint32_t vector;
  std::uint32_t type;  // as in VMX's interruption information: kHardwareException, kSoftwareException
  std::uint32_t error_code;
  std::uint32_t padding;
  std::uint64_t cr2;
};
static_assert(sizeof(EventTrapV6) == 24);
inline constexpr std::uint32_t kHardwareException = 3, kSoftwareException = 6;
struct EventDescriptor {
  std::uint8_t descriptor;
  std::uint8_t write;
  std::uint8_t padding[6];
};
static_assert(sizeof(EventDescriptor) == 8);
struct EventSinglestep {
  std::uint8_t failed;
  std::uint8_t padding[7];
};
static_assert(sizeof(EventSinglestep) == 8);
struct EventCommandError {
  std::int32_t err;
  std::uint32_t msg_seq;
  std::uint16_t msg_id;
  std::uint16_t padding[3];
};
static_assert(sizeof(EventCommandError) == 16);
struct EventCpuid {
  std::uint32_t function;
  std::uint32_t index;
  std::uint8_t insn_length;
  std::uint8_t padding1[3];
  std::uint32_t padding2;
};
static_assert(sizeof(EventCpuid) == 16);
inline constexpr std::uint8_t kCpuidLength = 2;

// ---- event replies: a VcpuHeader, this, and what the event asks for ----

struct EventReplyHead {
  std::uint8_t action;
  std::uint8_t event;
  std::uint16_t padding1;
  std::uint32_t padding2;
};
static_assert(sizeof(EventReplyHead) == 8);
struct NewValueReply {  // CR, MSR
  std::uint64_t new_val;
};
struct PageFaultReply {
  std::uint64_t ctx_addr;
  std::uint32_t ctx_size;
  std::uint8_t singlestep;  // v6; v7: padding
  std::uint8_t rep_complete;
  std::uint16_t padding;
  std::uint8_t ctx_data[256];
};
static_assert(sizeof(PageFaultReply) == 272 && offsetof(PageFaultReply, ctx_data) == 16);

}  // namespace kvmid::kvmi1::v7
