// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The messages of the dialects that hypervisors and tools of the field speak: rfc2017, v6, v7 and v12.
///
/// Purpose:  one vocabulary for them, as all call themselves version 1: they differ in numbers, layouts and in what they
///           have, hardly in meaning. Codecs (kvmi1_codec.h) turn bytes into these; bridges turn these into the messages
///           of message.h.
/// Shapes:   plain structs in variants; arrays of bytes or entries are views. Events are message.h's own Event.
/// Lifetime: views point into the frame they were decoded from, or into what their maker keeps for the step.
/// Threads:  values.
/// Source:   docs/dialects.md. Comments name the dialects that have a message where not all of v6, v7 and v12 do.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>

#include "protocol/ids.h"
#include "protocol/message.h"
#include "protocol/wire_array.h"

namespace kvmid::kvmi1 {

enum class DialectId : std::uint8_t { Rfc2017, V6, V7, V12 };
inline constexpr unsigned kDialectCount = 4;

/// "rfc2017", "v6", "v7", "v12": what configuration and people call them.
std::string_view name_of(DialectId dialect);
std::optional<DialectId> dialect_named(std::string_view name);

/// Error numbers of v6, v7 and v12, positive here. rfc2017 has those of x86 Linux: the same but for ENOSYS, 38.
inline constexpr std::int32_t kEperm = 1, kEnoent = 2, kE2big = 7, kEagain = 11, kEnomem = 12, kEfault = 14,
                              kEbusy = 16, kEinval = 22, kEopnotsupp = 95, kEnosys = 1000, kEnosysOf2017 = 38;

inline constexpr std::size_t kPageSize = 4096;
inline constexpr std::size_t kXsaveSize = 4096;
inline constexpr std::size_t kContextSize = 256;   ///< of a page fault's reply (v6, v7, rfc2017)
inline constexpr std::size_t kPausesMax = 1002;    ///< pause requests of a vCPU that v7 and v12 keep
inline constexpr std::uint64_t kNoAddress = ~std::uint64_t{0};  ///< an unmapped GVA's GPA; an unknown GVA

// ---- commands ----

struct GetVersion {};
struct CheckCommand {
  std::uint16_t id = 0;  ///< as the dialect numbers them
};
struct CheckEvent {
  std::uint16_t id = 0;
};
struct GetGuestInfo {};
struct GetVcpuInfo {
  VcpuId vcpu;
};
struct PauseVcpu {
  VcpuId vcpu;
  bool wait = false;  ///< answer when the vCPU has left the guest
};
struct ControlVmEvents {
  std::uint16_t event = 0;  ///< as the dialect numbers them
  bool enable = false;
};
struct ControlEvents {
  VcpuId vcpu;
  std::uint16_t event = 0;
  bool enable = false;
};
struct ControlCr {
  VcpuId vcpu;
  bool enable = false;
  std::uint32_t cr = 0;
};
struct ControlMsr {
  VcpuId vcpu;
  bool enable = false;
  std::uint32_t msr = 0;
};
struct ControlCleanup {  ///< v12
  bool enable = false;
};
struct GetRegisters {
  VcpuId vcpu;
  WireArray<std::uint32_t> msrs;
};
struct SetRegisters {
  VcpuId vcpu;
  kvmi_x86_regs regs{};
};
struct GetCpuid {
  VcpuId vcpu;
  std::uint32_t function = 0;
  std::uint32_t index = 0;
};
struct GetXsave {
  VcpuId vcpu;
};
struct SetXsave {  ///< v7, v12
  VcpuId vcpu;
  Bytes area;  ///< at most kXsaveSize; v12: exactly
};
struct GetXcr {  ///< v7, v12
  VcpuId vcpu;
  std::uint8_t xcr = 0;
};
struct GetMtrrType {
  VcpuId vcpu;  ///< rfc2017 has none: 0
  Gpa gpa;
};
struct ReadPhysical {
  Gpa gpa;
  std::uint64_t size = 0;
};
struct WritePhysical {
  Gpa gpa;
  Bytes data;  ///< its size is the command's
};
struct GetMaxGfn {};            ///< v6, v7
struct GetMapToken {};          ///< v6, v7
struct QueryPhysical {          ///< v7 since 2023
  Gfn gfn;
};
struct GetNextAvailableGfn {};  ///< v7 since 2023
struct InjectException {
  VcpuId vcpu;
  std::uint8_t vector = 0;
  bool has_error_code = false;  ///< v6 only: elsewhere the vector says so
  std::uint32_t error_code = 0;
  std::uint64_t address = 0;
};
/// One page of SET_PAGE_ACCESS, as it lies on the wire of v6, v7 and v12.
struct PageAccessEntry {
  std::uint64_t gpa = 0;
  std::uint8_t access = 0;
  std::uint8_t padding[7] = {};
};
static_assert(sizeof(PageAccessEntry) == 16);
struct GetPageAccess {  ///< v6
  std::uint16_t view = 0;
  WireArray<std::uint64_t> gpas;
};
struct SetPageAccess {
  std::uint16_t view = 0;  ///< v12: 0
  WireArray<PageAccessEntry> entries;
};
struct ControlSpp {  ///< v6, v7
  bool enable = false;
};
struct WriteBitmapEntry {
  std::uint64_t gpa = 0;
  std::uint32_t bitmap = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(WriteBitmapEntry) == 16);
struct GetPageWriteBitmap {  ///< v6
  std::uint16_t view = 0;
  WireArray<std::uint64_t> gpas;
};
struct SetPageWriteBitmap {  ///< v6, v7
  std::uint16_t view = 0;
  WireArray<WriteBitmapEntry> entries;
};
struct ControlCmdResponse {  ///< v6, v7
  bool enable = false;
  bool now = false;
  bool error_events = false;  ///< v7
};
struct SetVeInfoPage {  ///< v7, like all down to ChangeGfn
  VcpuId vcpu;
  Gpa gpa;
  bool trigger_vmexit = false;
};
struct DisableVe {
  VcpuId vcpu;
};
struct SetPageSve {
  std::uint16_t view = 0;
  bool suppress = false;
  Gpa gpa;
};
struct GetEptView {
  VcpuId vcpu;
};
struct SwitchEptView {
  VcpuId vcpu;
  std::uint16_t view = 0;
};
struct ControlEptView {
  VcpuId vcpu;
  std::uint16_t view = 0;
  bool visible = false;
};
struct CreateEptView {};
struct DestroyEptView {
  std::uint16_t view = 0;
};
struct AllocGfn {
  VcpuId vcpu;
  Gfn gfn;
};
struct FreeGfn {
  VcpuId vcpu;
  Gfn gfn;
};
struct ChangeGfn {
  VcpuId vcpu;
  std::optional<std::uint16_t> view;  ///< not in the body of before late 2023
  Gfn old_gfn;
  Gfn new_gfn;
};
struct TranslateGva {  ///< v7, v12
  VcpuId vcpu;
  Gva gva;
};
struct ControlSinglestep {  ///< v7, v12
  VcpuId vcpu;
  bool enable = false;
};

// rfc2017 only. Its GET_REGISTERS, SET_REGISTERS, GET_MTRR_TYPE, READ_PHYSICAL and WRITE_PHYSICAL are those above.
struct GetGuests {};
struct PauseGuest {};
struct UnpauseGuest {};
struct ShutdownGuest {};
struct GetMtrrs {
  VcpuId vcpu;
};
struct GetXsaveInfo {
  VcpuId vcpu;
};
struct GetVcpuPageAccess {
  VcpuId vcpu;
  Gpa gpa;
};
struct SetVcpuPageAccess {
  VcpuId vcpu;
  Gpa gpa;
  std::uint32_t access = 0;
};
struct InjectPageFault {
  VcpuId vcpu;
  std::uint32_t error_code = 0;
  Gva gva;
};
struct InjectBreakpoint {
  VcpuId vcpu;
};
struct MapPage {
  Gpa source;
  Gfn destination;
};
struct UnmapPage {
  Gfn destination;
};
struct SetEvents {
  VcpuId vcpu;
  std::uint32_t mask = 0;  ///< KVMI_EVENT_* bits of that dialect; replaces the whole set
};
struct ControlGuestCr {
  bool enable = false;
  std::uint32_t cr = 0;
};
struct ControlGuestMsr {
  bool enable = false;
  std::uint32_t msr = 0;
};

using Command = std::variant<
    GetVersion, CheckCommand, CheckEvent, GetGuestInfo, GetVcpuInfo, PauseVcpu, ControlVmEvents, ControlEvents,
    ControlCr, ControlMsr, ControlCleanup, GetRegisters, SetRegisters, GetCpuid, GetXsave, SetXsave, GetXcr,
    GetMtrrType, ReadPhysical, WritePhysical, GetMaxGfn, GetMapToken, QueryPhysical, GetNextAvailableGfn,
    InjectException, GetPageAccess, SetPageAccess, ControlSpp, GetPageWriteBitmap, SetPageWriteBitmap,
    ControlCmdResponse, SetVeInfoPage, DisableVe, SetPageSve, GetEptView, SwitchEptView, ControlEptView, CreateEptView,
    DestroyEptView, AllocGfn, FreeGfn, ChangeGfn, TranslateGva, ControlSinglestep, GetGuests, PauseGuest, UnpauseGuest,
    ShutdownGuest, GetMtrrs, GetXsaveInfo, GetVcpuPageAccess, SetVcpuPageAccess, InjectPageFault, InjectBreakpoint,
    MapPage, UnmapPage, SetEvents, ControlGuestCr, ControlGuestMsr>;
inline constexpr std::size_t kCommandCount = std::variant_size_v<Command>;

/// Which command: its place in the variant. kind_of<GetXcr> is a constant.
enum class CommandKind : std::uint8_t {};
namespace detail {
template <class T, class... Ts>
constexpr std::size_t place_in(const std::variant<Ts...>*) {
  std::size_t at = 0;
  static_cast<void>(((std::is_same_v<T, Ts> ? true : (++at, false)) || ...));
  return at;
}
}  // namespace detail
template <class T>
inline constexpr CommandKind kind_of{static_cast<std::uint8_t>(detail::place_in<T>(static_cast<const Command*>(nullptr)))};
inline CommandKind kind_of_command(const Command& command) { return static_cast<CommandKind>(command.index()); }
/// "READ_PHYSICAL": the name that libkvmi (rfc2017: the RFC) uses.
std::string_view name_of(CommandKind kind);

// ---- replies ----

struct GetVersionReply {
  std::uint32_t version = 1;
  std::uint32_t max_message = 0;  ///< v12; 0 elsewhere
  // v7; v12 has single step only; v6 and rfc2017 have none
  bool spp = false, vmfunc = false, eptp = false, ve = false, singlestep = false;
};
struct GetGuestInfoReply {
  std::uint32_t vcpu_count = 0;
  std::uint64_t tsc_hz = 0;  ///< rfc2017
};
struct GetVcpuInfoReply {
  std::uint64_t tsc_hz = 0;
};
struct GetRegistersReply {
  std::uint32_t mode = 8;
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  WireArray<kvmi_x86_msr> msrs;
};
struct GetCpuidReply {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};
struct GetXsaveReply {
  Bytes area;
};
struct GetXcrReply {
  std::uint64_t value = 0;
};
struct GetMtrrTypeReply {
  std::uint64_t type = 0;
};
struct ReadPhysicalReply {
  Bytes data;
};
/// GET_MAX_GFN and GET_NEXT_AVAILABLE_GFN.
struct GfnReply {
  Gfn gfn;
};
struct GetMapTokenReply {
  std::array<std::uint64_t, 4> token{};
};
struct QueryPhysicalReply {
  Gfn gfn;
  std::uint64_t pages = 0;
};
struct GetPageAccessReply {
  Bytes access;  ///< one byte a page
};
struct GetPageWriteBitmapReply {
  WireArray<std::uint32_t> bitmaps;
};
/// GET_EPT_VIEW and CREATE_EPT_VIEW.
struct EptViewReply {
  std::uint16_t view = 0;
};
struct TranslateGvaReply {
  std::uint64_t gpa = kNoAddress;
};
// rfc2017
struct GetGuestsReply {
  Bytes uuids;  ///< 16 bytes each
};
struct GetMtrrsReply {
  std::uint64_t pat = 0, cap = 0, type = 0;
};
struct GetXsaveInfoReply {
  std::uint32_t size = 0;
};
struct GetVcpuPageAccessReply {
  std::uint32_t access = 0;
};

/// monostate: the command has no reply data, or failed.
using ReplyBody =
    std::variant<std::monostate, GetVersionReply, GetGuestInfoReply, GetVcpuInfoReply, GetRegistersReply, GetCpuidReply,
                 GetXsaveReply, GetXcrReply, GetMtrrTypeReply, ReadPhysicalReply, GfnReply, GetMapTokenReply,
                 QueryPhysicalReply, GetPageAccessReply, GetPageWriteBitmapReply, EptViewReply, TranslateGvaReply,
                 GetGuestsReply, GetMtrrsReply, GetXsaveInfoReply, GetVcpuPageAccessReply>;

struct Reply {
  std::uint16_t id = 0;    ///< of the command, as the dialect numbers it; also one that it does not have
  std::int32_t error = 0;  ///< 0, or a negative number: what the wire carries
  ReplyBody body{};
};

// ---- events ----

/// An event: message.h's own, where `actions`, `decide`, `cookie`, `deadline_us`, `dr6` and `dr7` are not on these wires.
/// UNHOOK has vcpu kAllVcpus. A PAGE_FAULT without a GVA has gva_valid false.
struct EventMessage {
  Event event;
  std::uint16_t view = 0;  ///< v7: of the vCPU
};
/// v7: a command failed whose replies are off.
struct CommandError {
  std::int32_t error = 0;
  Seq seq;
  std::uint16_t id = 0;
};

/// The answer to an event, as it came: what `data` means depends on the event that it answers (Codec::read_reply).
struct EventReplyMessage {
  VcpuId vcpu;              ///< rfc2017 has none: 0
  std::uint32_t action = 0; ///< v6, v7, v12: kContinue, kRetry or kCrash, or any other number; rfc2017: bits
  std::uint8_t event = 0;   ///< as the dialect numbers them; receivers do not look at it. rfc2017 has none: 0
  kvmi_x86_regs regs{};     ///< rfc2017
  Bytes data;               ///< the part that depends on the event
};
inline constexpr std::uint32_t kContinue = 0, kRetry = 1, kCrash = 2;
inline constexpr std::uint32_t kAllow2017 = 1, kSetRegs2017 = 2, kSetContext2017 = 4, kNoEmulation2017 = 8;

/// What the part of a reply that depends on the event says.
struct ReplyData {
  std::uint64_t new_value = 0;  ///< CR, MSR; 0 where the reply left it out, and that is what the register gets
  // PAGE_FAULT of v6, v7 and rfc2017: what the read shall give
  std::uint64_t context_address = 0;
  Bytes context;                ///< at most kContextSize
  bool rep_complete = false;
};

/// A well-framed message whose id the dialect does not have in this direction.
struct UnknownMessage {
  std::uint16_t id = 0;
};

using Downward = std::variant<Command, EventReplyMessage, UnknownMessage>;
using Upward = std::variant<EventMessage, CommandError, Reply, UnknownMessage>;

}  // namespace kvmid::kvmi1
