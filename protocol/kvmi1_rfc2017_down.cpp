// SPDX-License-Identifier: LGPL-2.1-or-later
//
// rfc2017: what a tool sends. The text says that a size mismatch closes the connection, and nothing of padding: a
// message has exactly the size of its struct and tail, and padding is not looked at.

#include <cstdlib>
#include <cstring>

#include "protocol/kvmi1_event_values.h"
#include "protocol/kvmi1_rfc2017.h"
#include "protocol/payload_io.h"
#include "protocol/wire_rfc2017.h"

namespace kvmid::kvmi1 {
namespace {

constexpr auto kBadValue = DecodeErrc::BadValue;

/// GET_REGISTERS: as many as its reply has room for.
constexpr std::size_t kMsrsMax =
    (rfc2017::kPayloadMax - sizeof(rfc2017::GetRegistersX86Reply)) / sizeof(kvmi_x86_msr);
constexpr std::size_t kReadMax = rfc2017::kPayloadMax - sizeof(rfc2017::ReadPhysicalReply);

bool is_tracked_msr(std::uint32_t msr) {
  constexpr std::uint32_t kRange = 0x1fff;
  return msr <= kRange || (msr >= 0x40000000 && msr <= 0x40000000 + kRange) ||
         (msr >= 0xc0000000 && msr <= 0xc0000000 + kRange);
}

Command read_get_registers(PayloadReader& r) {
  const auto wire = r.take<rfc2017::GetRegistersX86>();
  r.check(wire.nmsrs <= kMsrsMax, kBadValue, KVMID_FIELD(rfc2017::GetRegistersX86, nmsrs));
  return GetRegisters{VcpuId{wire.vcpu}, r.take_array<std::uint32_t>(wire.nmsrs)};
}

Command read_set_registers(PayloadReader& r) {
  const auto wire = r.take<rfc2017::SetRegistersX86>();
  return SetRegisters{VcpuId{wire.vcpu}, wire.regs};
}

Command read_get_page_access(PayloadReader& r) {
  const auto wire = r.take<rfc2017::GetPageAccess>();
  return GetVcpuPageAccess{VcpuId{wire.vcpu}, Gpa{wire.gpa}};
}

Command read_set_page_access(PayloadReader& r) {
  const auto wire = r.take<rfc2017::SetPageAccess>();
  return SetVcpuPageAccess{VcpuId{wire.vcpu}, Gpa{wire.gpa}, wire.access};
}

Command read_inject_page_fault(PayloadReader& r) {
  const auto wire = r.take<rfc2017::PageFault>();
  return InjectPageFault{VcpuId{wire.vcpu}, wire.error, Gva{wire.gva}};
}

Command read_read_physical(PayloadReader& r) {
  const auto wire = r.take<rfc2017::ReadPhysical>();
  r.check(wire.size <= kReadMax, kBadValue, KVMID_FIELD(rfc2017::ReadPhysical, size));
  return ReadPhysical{Gpa{wire.gpa}, wire.size};
}

Command read_write_physical(PayloadReader& r) {
  const auto wire = r.take<rfc2017::WritePhysical>();
  return WritePhysical{Gpa{wire.gpa}, r.take_bytes(wire.size)};
}

Command read_map_page(PayloadReader& r) {
  const auto wire = r.take<rfc2017::MapPhysicalPageToGuest>();
  return MapPage{Gpa{wire.gpa_src}, Gfn{wire.gfn_dest}};
}

Command read_set_events(PayloadReader& r) {
  const auto wire = r.take<rfc2017::ControlEvents>();
  r.check((wire.events & ~rfc2017::kKnownEvents) == 0, DecodeErrc::UnknownEvent,
          KVMID_FIELD(rfc2017::ControlEvents, events));
  return SetEvents{VcpuId{wire.vcpu}, wire.events};
}

Command read_control_cr(PayloadReader& r) {
  const auto wire = r.take<rfc2017::CrControl>();
  r.check(is_tracked_cr(wire.cr), kBadValue, KVMID_FIELD(rfc2017::CrControl, cr));
  return ControlGuestCr{wire.enable != 0, wire.cr};
}

Command read_control_msr(PayloadReader& r) {
  const auto wire = r.take<rfc2017::MsrControl>();
  r.check(is_tracked_msr(wire.msr), kBadValue, KVMID_FIELD(rfc2017::MsrControl, msr));
  return ControlGuestMsr{wire.enable != 0, wire.msr};
}

Command read_command(PayloadReader& r, CommandKind kind) {
  switch (kind) {
    case kind_of<GetVersion>: return GetVersion{};
    case kind_of<GetGuests>: return GetGuests{};
    case kind_of<GetGuestInfo>: return GetGuestInfo{};
    case kind_of<PauseGuest>: return PauseGuest{};
    case kind_of<UnpauseGuest>: return UnpauseGuest{};
    case kind_of<ShutdownGuest>: return ShutdownGuest{};
    case kind_of<GetRegisters>: return read_get_registers(r);
    case kind_of<SetRegisters>: return read_set_registers(r);
    case kind_of<GetMtrrType>: return GetMtrrType{VcpuId{}, Gpa{r.take<rfc2017::MtrrType>().gpa}};
    case kind_of<GetMtrrs>: return GetMtrrs{VcpuId{r.take<rfc2017::Mtrrs>().vcpu}};
    case kind_of<GetXsaveInfo>: return GetXsaveInfo{VcpuId{r.take<rfc2017::XsaveInfo>().vcpu}};
    case kind_of<GetVcpuPageAccess>: return read_get_page_access(r);
    case kind_of<SetVcpuPageAccess>: return read_set_page_access(r);
    case kind_of<InjectPageFault>: return read_inject_page_fault(r);
    case kind_of<ReadPhysical>: return read_read_physical(r);
    case kind_of<WritePhysical>: return read_write_physical(r);
    case kind_of<MapPage>: return read_map_page(r);
    case kind_of<UnmapPage>: return UnmapPage{Gfn{r.take<rfc2017::UnmapPhysicalPageFromGuest>().gfn_dest}};
    case kind_of<SetEvents>: return read_set_events(r);
    case kind_of<ControlGuestCr>: return read_control_cr(r);
    case kind_of<ControlGuestMsr>: return read_control_msr(r);
    case kind_of<InjectBreakpoint>: return InjectBreakpoint{VcpuId{r.take<rfc2017::InjectBreakpoint>().vcpu}};
    default: std::abort();  // command_of() knows no others
  }
}

EventReplyMessage read_event_reply(PayloadReader& r) {
  const auto wire = r.take<rfc2017::EventX86Reply>();
  EventReplyMessage reply;
  reply.action = wire.actions;
  reply.regs = wire.regs;
  reply.data = r.take_rest();  // its size is the event's matter: read_reply()
  return reply;
}

/// A mismatch of sizes closes; a value that is not allowed is answered.
Refused refused(const DecodeError& error) {
  const bool size = error.code == DecodeErrc::Truncated || error.code == DecodeErrc::TooLong;
  return {error, size ? 0 : -kEinval};
}

DecodeError reply_error(DecodeErrc code, std::size_t at_in_data) {
  return {code, rfc2017::kEventReplyId, static_cast<std::uint32_t>(sizeof(rfc2017::EventX86Reply) + at_in_data)};
}

/// CR and MSR: a reply that does not ALLOW needs no value.
Result<ReplyData, DecodeError> read_new_value(const EventReplyMessage& reply) {
  ReplyData data;
  static_assert(sizeof(rfc2017::EventCrReply) == sizeof(rfc2017::EventMsrReply));
  if (reply.data.size() > sizeof data.new_value) return reply_error(DecodeErrc::TooLong, sizeof data.new_value);
  if (reply.data.size() == sizeof data.new_value) {
    std::memcpy(&data.new_value, reply.data.data(), sizeof data.new_value);
  } else if ((reply.action & kAllow2017) != 0 || !reply.data.empty()) {
    return reply_error(DecodeErrc::Truncated, reply.data.size());
  }
  return data;
}

/// PAGE_FAULT: the array may end behind what `ctx_size` says; without SET_CTX it means nothing and may be left out.
Result<ReplyData, DecodeError> read_context(const EventReplyMessage& reply) {
  ReplyData data;
  if (reply.data.size() > sizeof(rfc2017::EventPageFaultReply)) {
    return reply_error(DecodeErrc::TooLong, sizeof(rfc2017::EventPageFaultReply));
  }
  if ((reply.action & kSetContext2017) == 0) return data;
  std::uint32_t size = 0;
  if (reply.data.size() < sizeof size) return reply_error(DecodeErrc::Truncated, reply.data.size());
  std::memcpy(&size, reply.data.data(), sizeof size);
  if (size > kContextSize) return reply_error(kBadValue, offsetof(rfc2017::EventPageFaultReply, ctx_size));
  const Bytes context = reply.data.subspan(sizeof size);
  if (size > context.size()) return reply_error(DecodeErrc::Truncated, reply.data.size());
  data.context = context.first(size);
  return data;
}

}  // namespace

Result<Downward, Refused> CodecRfc2017::decode_downward(const Frame& frame) const {
  const auto kind = command_of(frame.id);
  if (!kind && frame.id != rfc2017::kEventReplyId) return Downward{UnknownMessage{frame.id}};

  PayloadReader r(frame.payload, frame.id);
  const Downward message = kind ? Downward{read_command(r, *kind)} : Downward{read_event_reply(r)};
  if (const auto error = r.finish()) return refused(*error);
  return message;
}

Result<ReplyData, DecodeError> CodecRfc2017::read_reply(EventKind event, const EventReplyMessage& reply) const {
  switch (event) {
    case EventKind::Cr:
    case EventKind::Msr: return read_new_value(reply);
    case EventKind::PageFault: return read_context(reply);
    default: break;
  }
  if (!reply.data.empty()) return reply_error(DecodeErrc::TooLong, 0);
  return ReplyData{};
}

}  // namespace kvmid::kvmi1
