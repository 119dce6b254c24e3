// SPDX-License-Identifier: GPL-2.0-or-later

#include "tests/unit/kvmi1/shared/samples.h"

#include <cstring>

namespace kvmid::kvmi1::test {
namespace {

constexpr VcpuId kVcpu{0x0102};
constexpr Gpa kGpa{0x0000123456789128};
constexpr Gva kGva{0xffff800012345678};

template <class T>
T numbered(std::uint8_t first) {
  static_assert(std::has_unique_object_representations_v<T>);
  T value;
  std::array<std::uint8_t, sizeof value> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(first + i % 251);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

kvmi_x86_sregs sregs() {
  auto value = numbered<kvmi_x86_sregs>(5);
  for (auto* segment : {&value.cs, &value.ds, &value.es, &value.fs, &value.gs, &value.ss, &value.tr, &value.ldt}) {
    segment->padding = 0;
  }
  for (auto* table : {&value.gdt, &value.idt}) std::memset(table->padding, 0, sizeof table->padding);
  return value;
}

Bytes data(std::size_t size) {
  static const auto kBytes = [] {
    std::array<std::byte, kPageSize> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(1 + i % 255);
    return bytes;
  }();
  return Bytes(kBytes).first(size);
}

template <class T, std::size_t N>
WireArray<T> view(const std::array<T, N>& items) {
  return WireArray<T>(std::span<const T>(items));
}

constexpr std::array<std::uint32_t, 3> kMsrs{0x174, 0xc0000080, 0xc0000082};
constexpr std::array<PageAccessEntry, 2> kEntries{{{0x1000, 5, {}}, {0x123456789000, 7, {}}}};
constexpr std::array<kvmi_x86_msr, 3> kMsrValues{{{0x174, 0, 0x10}, {0xc0000080, 0, 0xd01}, {0xc0000082, 0, ~0ULL}}};

std::vector<Command> commands_of_v12() {
  return {
      GetVersion{},
      CheckCommand{0x0203},
      CheckEvent{0x0405},
      GetGuestInfo{},
      ControlVmEvents{0, true},
      ReadPhysical{kGpa, 0x123},
      WritePhysical{kGpa, data(0x71)},
      PauseVcpu{kVcpu, true},
      ControlCleanup{true},
      SetPageAccess{0, view(kEntries)},
      GetVcpuInfo{kVcpu},
      ControlEvents{kVcpu, 17, true},
      GetRegisters{kVcpu, view(kMsrs)},
      SetRegisters{kVcpu, numbered<kvmi_x86_regs>(9)},
      GetCpuid{kVcpu, 0x8000001d, 0x01020304},
      ControlCr{kVcpu, true, 4},
      InjectException{kVcpu, 14, false, 0x1234, 0xffff800012345678},
      GetXcr{kVcpu, 0},
      GetXsave{kVcpu},
      SetXsave{kVcpu, data(kXsaveSize)},
      GetMtrrType{kVcpu, kGpa},
      ControlMsr{kVcpu, true, 0xc0000082},
      ControlSinglestep{kVcpu, true},
      TranslateGva{kVcpu, kGva},
  };
}

std::vector<Command> commands_of_rfc2017() {
  return {
      GetVersion{},
      GetGuests{},
      GetGuestInfo{},
      PauseGuest{},
      UnpauseGuest{},
      GetRegisters{kVcpu, view(kMsrs)},
      SetRegisters{kVcpu, numbered<kvmi_x86_regs>(9)},
      ShutdownGuest{},
      GetMtrrType{VcpuId{}, kGpa},
      GetMtrrs{kVcpu},
      GetXsaveInfo{kVcpu},
      GetVcpuPageAccess{kVcpu, kGpa},
      SetVcpuPageAccess{kVcpu, kGpa, 5},
      InjectPageFault{kVcpu, 0x1234, kGva},
      ReadPhysical{kGpa, 0x1234},
      WritePhysical{kGpa, data(0x71)},
      MapPage{kGpa, Gfn{0x1234567}},
      UnmapPage{Gfn{0x1234567}},
      SetEvents{kVcpu, 0xfe},
      ControlGuestCr{true, 4},
      ControlGuestMsr{true, 0x40001fff},
      InjectBreakpoint{kVcpu},
  };
}

/// What a reply to each command says; monostate where there is nothing to say.
ReplyBody body_for(const Command& command, DialectId dialect) {
  const bool v12 = dialect == DialectId::V12;
  return std::visit(
      Overloaded{
          [&](const GetVersion&) -> ReplyBody {
            GetVersionReply reply;
            reply.version = 0x01020304;
            reply.max_message = v12 ? 8184 : 0;
            reply.singlestep = v12;
            return reply;
          },
          [&](const GetGuestInfo&) -> ReplyBody { return GetGuestInfoReply{0x0102, v12 ? 0 : 0x123456789aULL}; },
          [](const GetVcpuInfo&) -> ReplyBody { return GetVcpuInfoReply{0x123456789a}; },
          [](const GetRegisters&) -> ReplyBody {
            return GetRegistersReply{8, numbered<kvmi_x86_regs>(3), sregs(), view(kMsrValues)};
          },
          [](const GetCpuid&) -> ReplyBody { return GetCpuidReply{0x01020304, 0x05060708, 0x090a0b0c, 0x0d0e0f10}; },
          [](const GetXsave&) -> ReplyBody { return GetXsaveReply{data(kXsaveSize)}; },
          [](const GetXcr&) -> ReplyBody { return GetXcrReply{0x0102030405060708}; },
          [](const GetMtrrType&) -> ReplyBody { return GetMtrrTypeReply{6}; },
          [](const ReadPhysical&) -> ReplyBody { return ReadPhysicalReply{data(0x123)}; },
          [](const TranslateGva&) -> ReplyBody { return TranslateGvaReply{0x123456789abc}; },
          [](const GetGuests&) -> ReplyBody { return GetGuestsReply{data(32)}; },
          [](const GetMtrrs&) -> ReplyBody { return GetMtrrsReply{0x0102030405060708, 0x508, 0xc06}; },
          [](const GetXsaveInfo&) -> ReplyBody { return GetXsaveInfoReply{0x340}; },
          [](const GetVcpuPageAccess&) -> ReplyBody { return GetVcpuPageAccessReply{5}; },
          [](const auto&) -> ReplyBody { return std::monostate{}; },
      },
      command);
}

EventMessage event(EventData event_data, DialectId dialect) {
  EventMessage message;
  Event& event = message.event;
  event.data = event_data;
  if (event.kind() == EventKind::Unhook) {
    event.vcpu = kAllVcpus;
    return message;
  }
  event.vcpu = kVcpu;
  event.mode = 4;
  event.regs = numbered<kvmi_x86_regs>(3);
  event.sregs = sregs();
  event.msrs = numbered<kvmi_x86_event_msrs>(7);
  if (dialect == DialectId::Rfc2017) event.msrs.cstar = event.msrs.pat = event.msrs.kernel_gs_base = 0;
  return message;
}

TrapData trap() {
  TrapData trap;
  trap.vector = 14;
  trap.flags = KVMI_TRAP_F_ERROR_CODE;
  trap.error_code = 0x1234;
  trap.address = kGva.value;
  return trap;
}

TrapData trap_without_code(std::uint8_t vector, std::uint8_t kind) {
  TrapData trap;
  trap.vector = vector;
  trap.kind = kind;
  return trap;
}

}  // namespace

std::vector<Command> commands_of(DialectId dialect) {
  return dialect == DialectId::V12 ? commands_of_v12() : commands_of_rfc2017();
}

std::vector<Reply> replies_of(DialectId dialect) {
  std::vector<Reply> replies;
  for (const auto& command : commands_of(dialect)) {
    const auto number = codec(dialect).number_of(kind_of_command(command));
    replies.push_back({.id = number.value(), .error = 0, .body = body_for(command, dialect)});
  }
  return replies;
}

std::vector<EventMessage> events_of(DialectId dialect) {
  const bool v12 = dialect == DialectId::V12;
  std::vector<EventMessage> events;
  const auto add = [&](EventData event_data) { events.push_back(event(event_data, dialect)); };
  add(CrData{4, 0x0102030405060708, 0x1112131415161718});
  add(MsrData{0xc0000082, 0x0102030405060708, 0x1112131415161718});
  add(v12 ? XsetbvData{0x21, 0x0102030405060708, 0x1112131415161718} : XsetbvData{0, 0, 0x1112131415161718});
  add(BreakpointData{kGpa, static_cast<std::uint8_t>(v12 ? 3 : 1)});
  add(HypercallData{});
  add(PageFaultData{kGva, kGpa, 2, true});
  add(PageFaultData{Gva{0}, kGpa, 5, false});
  add(trap());
  add(trap_without_code(3, KVMI_EXCEPTION_TRAP));
  add(trap_without_code(2, KVMI_EXCEPTION_INTERRUPT));
  add(trap_without_code(18, KVMI_EXCEPTION_ABORT));
  if (!v12) return events;
  add(UnhookData{OffReason::Suspend});
  add(PauseData{});
  add(DescriptorData{4, true});
  add(SinglestepData{true});
  return events;
}

std::vector<EventReplyMessage> event_replies_of(DialectId dialect) {
  const bool v12 = dialect == DialectId::V12;
  std::vector<EventReplyMessage> replies;
  for (const auto& message : events_of(dialect)) {
    const EventKind kind = message.event.kind();
    EventReplyMessage reply;
    if (v12) {
      reply.vcpu = kVcpu;
      reply.action = kRetry;
      reply.event = static_cast<std::uint8_t>(codec(dialect).number_of(kind).value());
    } else {
      reply.action = kAllow2017 | kSetRegs2017;
      reply.regs = numbered<kvmi_x86_regs>(9);
    }
    if (kind == EventKind::Cr || kind == EventKind::Msr) reply.data = data(8);
    if (kind == EventKind::PageFault && !v12) {
      static const auto kContext = [] {
        std::array<std::byte, 4 + kContextSize> context{};
        context[0] = std::byte{7};  // ctx_size
        for (std::size_t i = 4; i < context.size(); ++i) context[i] = static_cast<std::byte>(i);
        return context;
      }();
      reply.action |= kSetContext2017;
      reply.data = kContext;
    }
    replies.push_back(reply);
  }
  return replies;
}

}  // namespace kvmid::kvmi1::test
