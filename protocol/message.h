// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The messages of KVM introspection as typed values, the same for every dialect.
///
/// Purpose:  what the floors above know of the wire. Only dialects turn bytes into these and back.
/// Shapes:   plain structs in variants; arrays of bytes or entries are views (span, WireArray, string_view).
/// Lifetime: views point into the frame they were decoded from, or into what their maker keeps for the step.
/// Threads:  values.
/// Source:   protocol/PROTOCOL.md, one entry per message.

#include <cstdint>
#include <string_view>
#include <variant>

#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/wire_array.h"

namespace kvmid {

/// What becomes of the thing an event tells of. Ordered: the larger is the stricter.
enum class Action : std::uint8_t {
  Allow = KVMI_ACTION_ALLOW,
  Retry = KVMI_ACTION_RETRY,
  Skip = KVMI_ACTION_SKIP,
  Crash = KVMI_ACTION_CRASH,
};
inline constexpr unsigned kActionCount = 4;

/// A set of actions: KVMI_ACTION_BIT.
struct ActionSet {
  std::uint8_t bits = 0;
  [[nodiscard]] constexpr bool has(Action a) const { return ((bits >> static_cast<unsigned>(a)) & 1U) != 0; }
  friend bool operator==(const ActionSet&, const ActionSet&) = default;
};

enum class EventKind : std::uint8_t {
  Unhook = KVMI_EVENT_UNHOOK,
  Cr = KVMI_EVENT_CR,
  Msr = KVMI_EVENT_MSR,
  Xsetbv = KVMI_EVENT_XSETBV,
  Breakpoint = KVMI_EVENT_BREAKPOINT,
  Hypercall = KVMI_EVENT_HYPERCALL,
  PageFault = KVMI_EVENT_PAGE_FAULT,
  Trap = KVMI_EVENT_TRAP,
  Descriptor = KVMI_EVENT_DESCRIPTOR,
  CreateVcpu = KVMI_EVENT_CREATE_VCPU,
  Pause = KVMI_EVENT_PAUSE,
  Singlestep = KVMI_EVENT_SINGLESTEP,
  Cpuid = KVMI_EVENT_CPUID,
  Access = KVMI_EVENT_ACCESS,
};
inline constexpr unsigned kEventCount = KVMI_EVENT_COUNT;

/// A set of event kinds: KVMI_EVENT_BIT.
struct EventSet {
  std::uint64_t bits = 0;
  [[nodiscard]] constexpr bool has(EventKind e) const { return ((bits >> static_cast<unsigned>(e)) & 1U) != 0; }
  constexpr void add(EventKind e) { bits |= std::uint64_t{1} << static_cast<unsigned>(e); }
  friend bool operator==(const EventSet&, const EventSet&) = default;
};
inline constexpr EventSet kEveryEvent{(std::uint64_t{1} << kEventCount) - 1};

enum class AddressSpace : std::uint8_t { Normal = KVMI_ADDRESS_SPACE_NORMAL, Smm = KVMI_ADDRESS_SPACE_SMM };

enum class Role : std::uint8_t { Decider = KVMI_ROLE_DECIDER, Observer = KVMI_ROLE_OBSERVER };

/// Portable error numbers, positive here; the wire carries them negative.
enum class ErrorCode : std::int32_t {
  None = 0,
  NotPermitted = KVMI_EPERM,
  NoEntry = KVMI_ENOENT,
  TooBig = KVMI_E2BIG,
  TryAgain = KVMI_EAGAIN,
  NoMemory = KVMI_ENOMEM,
  Fault = KVMI_EFAULT,
  Busy = KVMI_EBUSY,
  NoDevice = KVMI_ENODEV,
  Invalid = KVMI_EINVAL,
  NotSupported = KVMI_EOPNOTSUPP,
  TimedOut = KVMI_ETIMEDOUT,
  Stale = KVMI_ESTALE,
  NotServed = KVMI_ENOSYS,
};

/// Why a guest went: KVMI_OFF_*.
enum class OffReason : std::uint8_t {
  Shutdown = KVMI_OFF_SHUTDOWN,
  Suspend = KVMI_OFF_SUSPEND,
  Migration = KVMI_OFF_MIGRATION,
  Snapshot = KVMI_OFF_SNAPSHOT,
  LinkLost = KVMI_OFF_LINK_LOST,
  ProtocolError = KVMI_OFF_PROTOCOL_ERROR,
  DaemonStopping = KVMI_OFF_DAEMON_STOPPING,
  Reset = KVMI_OFF_RESET,
};

// ---- commands ----

struct GetVersion {};
struct GetGuests {
  std::uint32_t first = 0;
};
struct GetGuestInfo {};
struct PauseVcpu {
  VcpuId vcpu;
};
struct GetRegisters {
  VcpuId vcpu;
  WireArray<std::uint32_t> msrs;
};
struct SetRegisters {
  VcpuId vcpu;
  kvmi_x86_regs regs{};
};
struct ShutdownGuest {};
struct GetCpuid {
  VcpuId vcpu;
  std::uint32_t function = 0;
  std::uint32_t index = 0;
};
struct GetPageAccess {
  Gpa gpa;
  std::uint32_t pages = 0;
  AddressSpace space{};
};
struct SetPageAccess {
  AddressSpace space{};
  WireArray<kvmi_page_access_entry> entries;
};
struct InjectException {
  VcpuId vcpu;
  std::uint8_t vector = 0;
  bool has_error_code = false;
  std::uint32_t error_code = 0;
  std::uint64_t address = 0;
};
struct ReadPhysical {
  AddressSpace space{};
  WireArray<kvmi_read_range> ranges;
};
struct WritePhysical {
  Gpa gpa;
  AddressSpace space{};
  std::uint16_t flags = 0;  ///< KVMI_WRITE_*
  std::uint64_t cookie = 0;
  Bytes data;
  Bytes expected;  ///< empty without KVMI_WRITE_EXPECT
};
struct GrantMemory {
  std::uint32_t flags = 0;
};
enum class Operation : std::uint8_t { Set = KVMI_OP_SET, Enable = KVMI_OP_ENABLE, Disable = KVMI_OP_DISABLE };
struct ControlEvents {
  VcpuId vcpu;
  Operation operation{};
  Role role{};
  EventSet events;
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
struct TranslateGva {
  VcpuId vcpu;
  Gva gva;
};
struct ControlSinglestep {
  VcpuId vcpu;
  bool enable = false;
};
struct SetFilter {
  VcpuId vcpu;
  EventKind event{};
  Action action{};
  WireArray<kvmi_filter_term> terms;
};
struct GetXsave {
  VcpuId vcpu;
};
struct SetXsave {
  VcpuId vcpu;
  Bytes area;
};
struct GetXcr {
  VcpuId vcpu;
  std::uint32_t xcr = 0;
};
struct GetMemoryMap {
  AddressSpace space{};
};

using Command =
    std::variant<GetVersion, GetGuests, GetGuestInfo, PauseVcpu, GetRegisters, SetRegisters, ShutdownGuest, GetCpuid,
                 GetPageAccess, SetPageAccess, InjectException, ReadPhysical, WritePhysical, GrantMemory, ControlEvents,
                 ControlCr, ControlMsr, TranslateGva, ControlSinglestep, SetFilter, GetXsave, SetXsave, GetXcr,
                 GetMemoryMap>;

/// Ids of commands: KVMI_MSG_*, and so the bit of a command in a set.
enum class CommandId : std::uint16_t {
  GetVersion = KVMI_MSG_GET_VERSION,
  GetGuests = KVMI_MSG_GET_GUESTS,
  GetGuestInfo = KVMI_MSG_GET_GUEST_INFO,
  PauseVcpu = KVMI_MSG_PAUSE_VCPU,
  GetRegisters = KVMI_MSG_GET_REGISTERS,
  SetRegisters = KVMI_MSG_SET_REGISTERS,
  ShutdownGuest = KVMI_MSG_SHUTDOWN_GUEST,
  GetCpuid = KVMI_MSG_GET_CPUID,
  GetPageAccess = KVMI_MSG_GET_PAGE_ACCESS,
  SetPageAccess = KVMI_MSG_SET_PAGE_ACCESS,
  InjectException = KVMI_MSG_INJECT_EXCEPTION,
  ReadPhysical = KVMI_MSG_READ_PHYSICAL,
  WritePhysical = KVMI_MSG_WRITE_PHYSICAL,
  GrantMemory = KVMI_MSG_GRANT_MEMORY,
  ControlEvents = KVMI_MSG_CONTROL_EVENTS,
  ControlCr = KVMI_MSG_CONTROL_CR,
  ControlMsr = KVMI_MSG_CONTROL_MSR,
  TranslateGva = KVMI_MSG_TRANSLATE_GVA,
  ControlSinglestep = KVMI_MSG_CONTROL_SINGLESTEP,
  SetFilter = KVMI_MSG_SET_FILTER,
  GetXsave = KVMI_MSG_GET_XSAVE,
  SetXsave = KVMI_MSG_SET_XSAVE,
  GetXcr = KVMI_MSG_GET_XCR,
  GetMemoryMap = KVMI_MSG_GET_MEMORY_MAP,
};

/// A set of commands: KVMI_COMMAND_BIT.
struct CommandSet {
  std::uint64_t bits = 0;
  [[nodiscard]] constexpr bool has(CommandId c) const { return ((bits >> static_cast<unsigned>(c)) & 1U) != 0; }
  constexpr void add(CommandId c) { bits |= std::uint64_t{1} << static_cast<unsigned>(c); }
  friend bool operator==(const CommandSet&, const CommandSet&) = default;
};

// ---- replies ----

struct GetVersionReply {
  std::uint32_t version = KVMI_VERSION;
  std::uint32_t max_payload = KVMI_MAX_PAYLOAD;
  CommandSet commands;
  EventSet events;
};
struct GetGuestsReply {
  std::uint32_t total = 0;
  WireArray<kvmi_guest_entry> entries;
};
struct GetGuestInfoReply {
  std::uint16_t vcpu_count = 0;
  std::uint16_t arch = KVMI_ARCH_X86;
  std::uint64_t tsc_hz = 0;
  std::uint8_t physical_address_bits = 0;
  std::uint8_t linear_address_bits = 0;
  bool execute_only = false;
  std::uint64_t max_gpa = 0;
};
struct GetRegistersReply {
  std::uint8_t mode = 8;
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  WireArray<kvmi_x86_msr> msrs;
};
struct GetCpuidReply {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};
struct GetPageAccessReply {
  WireArray<kvmi_page_access_entry> entries;
};
struct ReadPhysicalReply {
  std::uint64_t cookie = 0;
  Bytes data;
};
struct WritePhysicalReply {
  std::uint64_t cookie = 0;
};
struct GrantMemoryReply {
  std::uint64_t ram_bytes = 0;
  std::uint64_t generation_bytes = 0;
  std::uint32_t fd_count = 0;
};
struct ControlEventsReply {
  EventSet events;
};
struct TranslateGvaReply {
  Gpa gpa;
  std::uint64_t page_bytes = 0;
  std::uint8_t access = 0;
  bool user = false;
};
struct GetXsaveReply {
  Bytes area;
};
struct GetXcrReply {
  std::uint64_t value = 0;
};
struct GetMemoryMapReply {
  WireArray<kvmi_memory_slot> slots;
};

/// monostate: the command has no reply data, or failed.
using ReplyBody = std::variant<std::monostate, GetVersionReply, GetGuestsReply, GetGuestInfoReply, GetRegistersReply,
                               GetCpuidReply, GetPageAccessReply, ReadPhysicalReply, WritePhysicalReply,
                               GrantMemoryReply, ControlEventsReply, TranslateGvaReply, GetXsaveReply, GetXcrReply,
                               GetMemoryMapReply>;

/// The answer to a command: its data, or an error and a sentence for people.
struct CommandReply {
  std::uint16_t id = 0;  ///< of the command, also where it is unknown
  ErrorCode error = ErrorCode::None;
  std::string_view text{};  ///< empty on success
  ReplyBody body{};         ///< on an error only WRITE_PHYSICAL's cookie (KVMI_ESTALE)
};

// ---- events ----

struct UnhookData {
  OffReason reason{};
};
struct CrData {
  std::uint16_t cr = 0;
  std::uint64_t old_value = 0;
  std::uint64_t new_value = 0;
};
struct MsrData {
  std::uint32_t msr = 0;
  std::uint64_t old_value = 0;
  std::uint64_t new_value = 0;
};
struct XsetbvData {
  std::uint32_t xcr = 0;
  std::uint64_t old_value = 0;
  std::uint64_t new_value = 0;
};
struct BreakpointData {
  Gpa gpa;
  std::uint8_t insn_length = 1;
};
struct HypercallData {};
struct PageFaultData {
  Gva gva;
  Gpa gpa;
  std::uint8_t access = 0;  ///< KVMI_PAGE_ACCESS_*
  bool gva_valid = false;
};
struct TrapData {
  std::uint8_t vector = 0;
  std::uint8_t kind = KVMI_EXCEPTION_FAULT;
  std::uint8_t flags = 0;  ///< KVMI_TRAP_F_*
  std::uint8_t displaced_vector = 0;
  std::uint32_t error_code = 0;
  std::uint64_t address = 0;
};
struct DescriptorData {
  std::uint8_t descriptor = 0;  ///< KVMI_DESC_*
  bool write = false;
};
struct CreateVcpuData {};
struct PauseData {};
struct SinglestepData {
  bool failed = false;
};
struct CpuidData {
  std::uint32_t function = 0;
  std::uint32_t index = 0;
};
struct AccessData {
  Gva gva;
  Gpa gpa;
  std::uint8_t access = 0;
  std::uint8_t size = 0;
  std::uint16_t index = 0;
  std::array<std::uint8_t, KVMI_ACCESS_DATA_MAX> data{};
};

/// In the order of EventKind: index() of the variant is the kind.
using EventData = std::variant<UnhookData, CrData, MsrData, XsetbvData, BreakpointData, HypercallData, PageFaultData,
                               TrapData, DescriptorData, CreateVcpuData, PauseData, SinglestepData, CpuidData,
                               AccessData>;
static_assert(std::variant_size_v<EventData> == kEventCount);

/// A stopped vCPU's notice. Fixed size: it can be kept and copied without allocation.
struct Event {
  VcpuId vcpu;
  std::uint8_t mode = 8;
  ActionSet actions;  ///< what may be answered
  bool decide = true;  ///< a reply is waited for
  AddressSpace space{};
  std::uint32_t deadline_us = 0;
  std::uint64_t cookie = 0;
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  kvmi_x86_event_msrs msrs{};
  std::uint64_t dr6 = 0;
  std::uint64_t dr7 = 0;
  EventData data;

  [[nodiscard]] EventKind kind() const { return static_cast<EventKind>(data.index()); }
};

/// New value of a CR, MSR or XCR.
struct NewValue {
  std::uint64_t value = 0;
};
/// Bytes that an ACCESS shall see or write.
struct NewData {
  std::array<std::uint8_t, KVMI_ACCESS_DATA_MAX> data{};
};
/// monostate: the guest's own value stands.
using ReplacedValue = std::variant<std::monostate, NewValue, NewData>;

/// The answer to an event.
struct EventReply {
  VcpuId vcpu;
  EventKind event{};
  Action action = Action::Allow;
  bool trap_access = false;
  bool step_over = false;
  bool has_cookie = false;
  std::uint64_t cookie = 0;
  ReplacedValue value{};
};

// ---- from kvmid to an agent ----

enum class NoticeKind : std::uint8_t {
  Expired = KVMI_NOTICE_EXPIRED,
  ReplyRefused = KVMI_NOTICE_REPLY_REFUSED,
  Demoted = KVMI_NOTICE_DEMOTED,
  Outcome = KVMI_NOTICE_OUTCOME,
  Revoked = KVMI_NOTICE_REVOKED,
  FrameRefused = KVMI_NOTICE_FRAME_REFUSED,
};
struct Notice {
  NoticeKind kind{};
  EventKind event{};
  Action action{};
  VcpuId vcpu{};
  ErrorCode error = ErrorCode::None;
  AgentId agent{};
  Seq event_seq{};
  std::uint32_t count = 0;
  std::string_view text{};
};
struct GuestOn {
  kvmi_guest_entry guest{};
};
struct GuestOff {
  Uuid uuid;
  OffReason reason{};
  std::string_view text;
};

// ---- from a hypervisor to kvmid ----

enum class MapChange : std::uint8_t {
  Added = KVMI_MAP_ADDED,
  Removed = KVMI_MAP_REMOVED,
  Moved = KVMI_MAP_MOVED,
  Flags = KVMI_MAP_FLAGS,
};
struct MemoryMapChanged {
  MapChange change{};
  std::uint64_t max_gpa = 0;
  Gpa old_gpa;  ///< Moved: where the slot was
  kvmi_memory_slot slot{};
};

/// A well-framed message whose id means nothing in this direction.
struct UnknownMessage {
  std::uint16_t id = 0;
};

/// Towards the hypervisor: what an agent sends.
using Downward = std::variant<Command, EventReply, UnknownMessage>;
/// Towards the agent: what a hypervisor (or kvmid in its place) sends.
using Upward = std::variant<Event, CommandReply, Notice, GuestOn, GuestOff, MemoryMapChanged, UnknownMessage>;

/// Id of a command, and names for people and logs ("GET_VERSION", "page_fault", "allow", "EBUSY").
CommandId id_of(const Command& command);
std::string_view name_of(CommandId id);
std::string_view name_of(EventKind kind);
std::string_view name_of(Action action);
std::string_view name_of(ErrorCode error);
std::string_view name_of(OffReason reason);
std::string_view name_of(Role role);
std::string_view name_of(NoticeKind kind);

}  // namespace kvmid
