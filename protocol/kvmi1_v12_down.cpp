// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v12: what a tool sends, read as the kernel reads it.

#include <cstdlib>
#include <cstring>

#include "protocol/kvmi1_dialects.h"
#include "protocol/kvmi1_payload.h"
#include "protocol/kvmi1_v12.h"
#include "protocol/wire_v12.h"

namespace kvmid::kvmi1 {
namespace {

/// GET_REGISTERS: as many as its reply has room for.
constexpr std::size_t kMsrsMax =
    (v12::kPayloadMax - sizeof(v12::ErrorCode) - sizeof(v12::VcpuGetRegistersReply)) / sizeof(kvmi_x86_msr);
static_assert(kMsrsMax == 481);
constexpr std::size_t kEventReplySize = sizeof(v12::VcpuHdr) + sizeof(v12::VcpuEventReply);

void zero(LenientReader& r, FieldAt field) { r.check_zero(field, kAnswerEinval); }
bool flag(LenientReader& r, std::uint8_t value, FieldAt field) {
  r.check(value <= 1, DecodeErrc::BadFlag, field, kAnswerEinval);
  return value != 0;
}
void valid(LenientReader& r, bool ok, FieldAt field) { r.check(ok, DecodeErrc::BadValue, field, kAnswerEinval); }

VcpuId take_vcpu(LenientReader& r) {
  const auto wire = r.take<v12::VcpuHdr>();
  zero(r, KVMID_FIELD(v12::VcpuHdr, padding1));
  zero(r, KVMID_FIELD(v12::VcpuHdr, padding2));
  return VcpuId{wire.vcpu};
}

std::uint16_t take_checked_id(LenientReader& r) {
  const auto wire = r.take<v12::Check>();
  zero(r, KVMID_FIELD(v12::Check, padding1));
  zero(r, KVMID_FIELD(v12::Check, padding2));
  return wire.id;
}

/// 1 to 4096 bytes within one page.
bool is_within_page(std::uint64_t gpa, std::uint64_t size) {
  return size >= 1 && size <= kPageSize && gpa % kPageSize + size <= kPageSize;
}

bool is_tracked_msr(std::uint32_t msr) { return msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff); }

Command read_control_vm_events(LenientReader& r) {
  const auto wire = r.take<v12::VmControlEvents>();
  zero(r, KVMID_FIELD(v12::VmControlEvents, padding1));
  zero(r, KVMID_FIELD(v12::VmControlEvents, padding2));
  const bool enable = flag(r, wire.enable, KVMID_FIELD(v12::VmControlEvents, enable));
  const bool known = wire.event_id % 2 == 0 && codec_v12().event_of(wire.event_id).has_value();
  r.check(known, DecodeErrc::UnknownEvent, KVMID_FIELD(v12::VmControlEvents, event_id), kAnswerEinval);
  return ControlVmEvents{wire.event_id, enable};
}

Command read_read_physical(LenientReader& r) {
  const auto wire = r.take<v12::VmReadPhysical>();
  zero(r, KVMID_FIELD(v12::VmReadPhysical, padding1));
  zero(r, KVMID_FIELD(v12::VmReadPhysical, padding2));
  valid(r, is_within_page(wire.gpa, wire.size), KVMID_FIELD(v12::VmReadPhysical, size));
  return ReadPhysical{Gpa{wire.gpa}, wire.size};
}

Command read_write_physical(LenientReader& r) {
  const auto wire = r.take<v12::VmWritePhysical>();
  const Bytes data = r.take_bytes(wire.size, kAnswerClose);  // before all else
  zero(r, KVMID_FIELD(v12::VmWritePhysical, padding1));
  zero(r, KVMID_FIELD(v12::VmWritePhysical, padding2));
  valid(r, is_within_page(wire.gpa, wire.size), KVMID_FIELD(v12::VmWritePhysical, size));
  return WritePhysical{Gpa{wire.gpa}, data};
}

Command read_pause(LenientReader& r) {
  const auto wire = r.take<v12::VmPauseVcpu>();
  zero(r, KVMID_FIELD(v12::VmPauseVcpu, padding1));
  zero(r, KVMID_FIELD(v12::VmPauseVcpu, padding2));
  return PauseVcpu{VcpuId{wire.vcpu}, flag(r, wire.wait, KVMID_FIELD(v12::VmPauseVcpu, wait))};
}

Command read_control_cleanup(LenientReader& r) {
  const auto wire = r.take<v12::VmControlCleanup>();
  zero(r, KVMID_FIELD(v12::VmControlCleanup, padding));
  return ControlCleanup{flag(r, wire.enable, KVMID_FIELD(v12::VmControlCleanup, enable))};
}

/// Entries are tried one by one, bad ones too: they are passed on as they are.
Command read_set_page_access(LenientReader& r) {
  const auto wire = r.take<v12::VmSetPageAccess>();
  const auto entries = r.take_array<PageAccessEntry>(wire.count, kAnswerClose);  // before all else
  zero(r, KVMID_FIELD(v12::VmSetPageAccess, padding1));
  zero(r, KVMID_FIELD(v12::VmSetPageAccess, padding2));
  return SetPageAccess{0, entries};
}

Command read_control_events(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuControlEvents>();
  zero(r, KVMID_FIELD(v12::VcpuControlEvents, padding1));
  zero(r, KVMID_FIELD(v12::VcpuControlEvents, padding2));
  const bool enable = flag(r, wire.enable, KVMID_FIELD(v12::VcpuControlEvents, enable));
  const bool known = wire.event_id % 2 == 1 && codec_v12().event_of(wire.event_id).has_value();
  r.check(known, DecodeErrc::UnknownEvent, KVMID_FIELD(v12::VcpuControlEvents, event_id), kAnswerEinval);
  return ControlEvents{vcpu, wire.event_id, enable};
}

Command read_get_registers(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuGetRegisters>();
  zero(r, KVMID_FIELD(v12::VcpuGetRegisters, padding1));
  zero(r, KVMID_FIELD(v12::VcpuGetRegisters, padding2));
  valid(r, wire.nmsrs <= kMsrsMax, KVMID_FIELD(v12::VcpuGetRegisters, nmsrs));
  return GetRegisters{vcpu, r.take_array<std::uint32_t>(wire.nmsrs, kAnswerEinval)};
}

Command read_set_registers(LenientReader& r) {
  SetRegisters command{.vcpu = take_vcpu(r)};
  const Bytes regs = r.take_bytes(sizeof command.regs, kAnswerEinval);
  if (!regs.empty()) std::memcpy(&command.regs, regs.data(), regs.size());
  return command;
}

Command read_get_cpuid(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuGetCpuid>();
  return GetCpuid{vcpu, wire.function, wire.index};
}

Command read_control_cr(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuControlCr>();
  zero(r, KVMID_FIELD(v12::VcpuControlCr, padding1));
  zero(r, KVMID_FIELD(v12::VcpuControlCr, padding2));
  const bool enable = flag(r, wire.enable, KVMID_FIELD(v12::VcpuControlCr, enable));
  valid(r, wire.cr == 0 || wire.cr == 3 || wire.cr == 4, KVMID_FIELD(v12::VcpuControlCr, cr));
  return ControlCr{vcpu, enable, wire.cr};
}

Command read_inject_exception(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuInjectException>();
  zero(r, KVMID_FIELD(v12::VcpuInjectException, padding1));
  zero(r, KVMID_FIELD(v12::VcpuInjectException, padding2));
  return InjectException{vcpu, wire.nr, false, wire.error_code, wire.address};
}

Command read_get_xcr(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuGetXcr>();
  zero(r, KVMID_FIELD(v12::VcpuGetXcr, padding));
  valid(r, wire.xcr == 0, KVMID_FIELD(v12::VcpuGetXcr, xcr));
  return GetXcr{vcpu, wire.xcr};
}

Command read_set_xsave(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  return SetXsave{vcpu, r.take_bytes(kXsaveSize, kAnswerEinval)};
}

Command read_get_mtrr_type(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  return GetMtrrType{vcpu, Gpa{r.take<v12::VcpuGetMtrrType>().gpa}};
}

Command read_control_msr(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuControlMsr>();
  zero(r, KVMID_FIELD(v12::VcpuControlMsr, padding1));
  zero(r, KVMID_FIELD(v12::VcpuControlMsr, padding2));
  const bool enable = flag(r, wire.enable, KVMID_FIELD(v12::VcpuControlMsr, enable));
  valid(r, is_tracked_msr(wire.msr), KVMID_FIELD(v12::VcpuControlMsr, msr));
  return ControlMsr{vcpu, enable, wire.msr};
}

Command read_control_singlestep(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuControlSinglestep>();
  zero(r, KVMID_FIELD(v12::VcpuControlSinglestep, padding));
  return ControlSinglestep{vcpu, flag(r, wire.enable, KVMID_FIELD(v12::VcpuControlSinglestep, enable))};
}

Command read_translate_gva(LenientReader& r) {
  const VcpuId vcpu = take_vcpu(r);
  return TranslateGva{vcpu, Gva{r.take<v12::VcpuTranslateGva>().gva}};
}

Command read_command(LenientReader& r, CommandKind kind) {
  switch (kind) {
    case kind_of<GetVersion>: return GetVersion{};
    case kind_of<CheckCommand>: return CheckCommand{take_checked_id(r)};
    case kind_of<CheckEvent>: return CheckEvent{take_checked_id(r)};
    case kind_of<GetGuestInfo>: return GetGuestInfo{};
    case kind_of<ControlVmEvents>: return read_control_vm_events(r);
    case kind_of<ReadPhysical>: return read_read_physical(r);
    case kind_of<WritePhysical>: return read_write_physical(r);
    case kind_of<PauseVcpu>: return read_pause(r);
    case kind_of<ControlCleanup>: return read_control_cleanup(r);
    case kind_of<SetPageAccess>: return read_set_page_access(r);
    case kind_of<GetVcpuInfo>: return GetVcpuInfo{take_vcpu(r)};
    case kind_of<ControlEvents>: return read_control_events(r);
    case kind_of<GetRegisters>: return read_get_registers(r);
    case kind_of<SetRegisters>: return read_set_registers(r);
    case kind_of<GetCpuid>: return read_get_cpuid(r);
    case kind_of<ControlCr>: return read_control_cr(r);
    case kind_of<InjectException>: return read_inject_exception(r);
    case kind_of<GetXcr>: return read_get_xcr(r);
    case kind_of<GetXsave>: return GetXsave{take_vcpu(r)};
    case kind_of<SetXsave>: return read_set_xsave(r);
    case kind_of<GetMtrrType>: return read_get_mtrr_type(r);
    case kind_of<ControlMsr>: return read_control_msr(r);
    case kind_of<ControlSinglestep>: return read_control_singlestep(r);
    case kind_of<TranslateGva>: return read_translate_gva(r);
    default: std::abort();  // command_of() knows no others
  }
}

/// Only the vCPU header is answered; everything else that is wrong with an event reply ends the connection.
EventReplyMessage read_event_reply(LenientReader& r, std::size_t size) {
  EventReplyMessage reply;
  reply.vcpu = take_vcpu(r);
  const auto wire = r.take<v12::VcpuEventReply>();
  if (size < kEventReplySize) r.refuse(DecodeErrc::Truncated, size, kAnswerClose);
  r.check_zero(KVMID_FIELD(v12::VcpuEventReply, padding1), kAnswerClose);
  r.check_zero(KVMID_FIELD(v12::VcpuEventReply, padding2), kAnswerClose);
  reply.action = wire.action;
  reply.event = wire.event;
  reply.data = r.rest();
  return reply;
}

}  // namespace

Result<Downward, Refused> CodecV12::decode_downward(const Frame& frame) const {
  const auto kind = command_of(frame.id);
  if (!kind && frame.id != v12::kVcpuEventId) return Downward{UnknownMessage{frame.id}};

  LenientReader r(frame.payload, frame.id);
  const Downward message =
      kind ? Downward{read_command(r, *kind)} : Downward{read_event_reply(r, frame.payload.size())};
  if (r.refused()) return *r.refused();
  return message;
}

Result<ReplyData, DecodeError> CodecV12::read_reply(EventKind event, const EventReplyMessage& reply) const {
  const bool has_value = event == EventKind::Cr || event == EventKind::Msr;
  const std::size_t expected = has_value ? sizeof(v12::VcpuEventCrReply) : 0;
  static_assert(sizeof(v12::VcpuEventCrReply) == sizeof(v12::VcpuEventMsrReply));
  if (reply.data.size() > expected) {
    return DecodeError{DecodeErrc::TooLong, v12::kVcpuEventId, static_cast<std::uint32_t>(kEventReplySize + expected)};
  }
  ReplyData data;
  // What is missing is zero, and that is what the register gets.
  if (!reply.data.empty()) std::memcpy(&data.new_value, reply.data.data(), reply.data.size());
  return data;
}

}  // namespace kvmid::kvmi1
