// SPDX-License-Identifier: LGPL-2.1-or-later
//
// rfc2017: what a hypervisor sends. The text does not say how long a refusal is: 4 bytes, 8 and a whole reply with
// nothing valid behind `err` are all taken; 8 are sent.

#include <cstdlib>
#include <cstring>

#include "protocol/kvmi1_event_values.h"
#include "protocol/kvmi1_rfc2017.h"
#include "protocol/payload_io.h"
#include "protocol/wire_rfc2017.h"

namespace kvmid::kvmi1 {
namespace {

constexpr auto kBadValue = DecodeErrc::BadValue;

/// PAGE_FAULT's mode is the processor's exit qualification: what the access was in bits 0 to 2, here the same as
/// KVMI_PAGE_ACCESS_*, and whether the GVA is known.
constexpr std::uint32_t kGvaKnown = 0x80;
static_assert(kRightsAll == 0x7);

/// TRAP's type is the processor's interruption type.
enum : std::uint32_t { kExternalInterrupt = 0, kNmi = 2, kHardwareException = 3, kSoftwareInterrupt = 4,
                       kSoftwareException = 6 };
constexpr std::uint32_t kVectorMax = 255;

// ---- replies ----

ReplyBody read_guests(PayloadReader& r) {
  const auto wire = r.take<rfc2017::Guests>();
  const bool whole = wire.size >= sizeof wire && (wire.size - sizeof wire) % sizeof(rfc2017::Guest) == 0;
  r.check(whole, kBadValue, KVMID_FIELD(rfc2017::Guests, size));
  return GetGuestsReply{r.failed() ? Bytes{} : r.take_bytes(wire.size - sizeof wire)};
}

ReplyBody read_guest_info(PayloadReader& r) {
  const auto wire = r.take<rfc2017::GetGuestInfoReply>();
  return GetGuestInfoReply{wire.vcpu_count, wire.tsc_speed};
}

ReplyBody read_registers(PayloadReader& r) {
  const auto wire = r.take<rfc2017::GetRegistersX86Reply>();
  r.check(is_mode(wire.mode), kBadValue, KVMID_FIELD(rfc2017::GetRegistersX86Reply, mode));
  GetRegistersReply reply{
      .mode = wire.mode, .regs = wire.regs, .sregs = wire.sregs, .msrs = r.take_array<kvmi_x86_msr>(wire.msrs.nmsrs)};
  clear_padding(reply.sregs);
  return reply;
}

/// The header has a type of 64 bits in 16 bytes, the document one of 32 in 8.
ReplyBody read_mtrr_type(PayloadReader& r, std::size_t size) {
  if (size != sizeof(rfc2017::MtrrTypeReply::err) + sizeof(std::uint32_t)) {
    return GetMtrrTypeReply{r.take<rfc2017::MtrrTypeReply>().type};
  }
  return GetMtrrTypeReply{r.take<rfc2017::ErrorCode>().padding};
}

ReplyBody read_mtrrs(PayloadReader& r) {
  const auto wire = r.take<rfc2017::MtrrsReply>();
  return GetMtrrsReply{wire.pat, wire.cap, wire.type};
}

ReplyBody read_physical(PayloadReader& r) {
  r.take<rfc2017::ReadPhysicalReply>();
  return ReadPhysicalReply{r.take_rest()};
}

ReplyBody read_body(PayloadReader& r, CommandKind kind, std::size_t size) {
  switch (kind) {
    case kind_of<GetVersion>: {
      GetVersionReply reply;
      reply.version = r.take<rfc2017::GetVersionReply>().version;
      return reply;
    }
    case kind_of<GetGuests>: return read_guests(r);
    case kind_of<GetGuestInfo>: return read_guest_info(r);
    case kind_of<GetRegisters>: return read_registers(r);
    case kind_of<GetMtrrType>: return read_mtrr_type(r, size);
    case kind_of<GetMtrrs>: return read_mtrrs(r);
    case kind_of<GetXsaveInfo>: return GetXsaveInfoReply{r.take<rfc2017::XsaveInfoReply>().size};
    case kind_of<GetVcpuPageAccess>: return GetVcpuPageAccessReply{r.take<rfc2017::GetPageAccessReply>().access};
    case kind_of<ReadPhysical>: return read_physical(r);
    default: return std::monostate{};
  }
}

/// `kind`: none where the id is no command's. Then only a refusal makes sense.
Result<Upward, DecodeError> read_reply_message(const Frame& frame, std::optional<CommandKind> kind) {
  std::int32_t err = 0;
  if (frame.payload.size() < sizeof err) {
    return DecodeError{DecodeErrc::Truncated, frame.id, static_cast<std::uint32_t>(frame.payload.size())};
  }
  std::memcpy(&err, frame.payload.data(), sizeof err);
  if (err < 0) return Upward{Reply{.id = frame.id, .error = err}};
  if (!kind) return Upward{UnknownMessage{frame.id}};
  if (err > 0 && *kind != kind_of<GetGuests>) return DecodeError{kBadValue, frame.id, 0};

  PayloadReader r(frame.payload, frame.id);
  Reply reply{.id = frame.id};
  reply.body = read_body(r, *kind, frame.payload.size());
  r.take_rest();
  if (const auto error = r.finish()) return *error;
  return Upward{reply};
}

/// A whole reply: those with data have `err` within.
class ReplyWriter {
 public:
  explicit ReplyWriter(FrameWriter& frame) : w_(frame) {}

  void operator()(const std::monostate&) { w_.put(rfc2017::ErrorCode{.err = 0, .padding = 0}); }
  void operator()(const GetVersionReply& b) { w_.put(rfc2017::GetVersionReply{.err = 0, .version = b.version}); }
  void operator()(const GetGuestsReply& b) {
    w_.put(rfc2017::Guests{.size = wire_count<std::uint32_t>(sizeof(rfc2017::Guests) + b.uuids.size())});
    w_.put(b.uuids);
  }
  void operator()(const GetGuestInfoReply& b) {
    w_.put(rfc2017::GetGuestInfoReply{
        .err = 0, .vcpu_count = wire_count<std::uint16_t>(b.vcpu_count), .padding = 0, .tsc_speed = b.tsc_hz});
  }
  void operator()(const GetRegistersReply& b) {
    w_.put(rfc2017::GetRegistersX86Reply{.err = 0,
                                         .mode = b.mode,
                                         .regs = b.regs,
                                         .sregs = b.sregs,
                                         .msrs = {.nmsrs = wire_count<std::uint32_t>(b.msrs.size()), .pad = 0}});
    w_.put(b.msrs.bytes());
  }
  void operator()(const GetMtrrTypeReply& b) {
    w_.put(rfc2017::MtrrTypeReply{.err = 0, .padding = 0, .type = b.type});
  }
  void operator()(const GetMtrrsReply& b) {
    w_.put(rfc2017::MtrrsReply{.err = 0, .padding = 0, .pat = b.pat, .cap = b.cap, .type = b.type});
  }
  void operator()(const GetXsaveInfoReply& b) { w_.put(rfc2017::XsaveInfoReply{.err = 0, .size = b.size}); }
  void operator()(const GetVcpuPageAccessReply& b) {
    w_.put(rfc2017::GetPageAccessReply{.err = 0, .access = b.access});
  }
  void operator()(const ReadPhysicalReply& b) {
    w_.put(rfc2017::ReadPhysicalReply{.err = 0});
    w_.put(b.data);
  }
  /// Replies of commands that rfc2017 does not have.
  template <class Other>
  void operator()(const Other&) {
    std::abort();
  }

 private:
  FrameWriter& w_;
};

// ---- events ----

EventData read_cr(PayloadReader& r) {
  const auto wire = r.take<rfc2017::EventCr>();
  r.check(is_tracked_cr(wire.cr), kBadValue, KVMID_FIELD(rfc2017::EventCr, cr));
  return CrData{wire.cr, wire.old_value, wire.new_value};
}

EventData read_msr(PayloadReader& r) {
  const auto wire = r.take<rfc2017::EventMsr>();
  return MsrData{wire.msr, wire.old_value, wire.new_value};
}

EventData read_page_fault(PayloadReader& r) {
  const auto wire = r.take<rfc2017::EventPageFault>();
  const auto access = static_cast<std::uint8_t>(wire.mode & kRightsAll);
  r.check(access != 0, kBadValue, KVMID_FIELD(rfc2017::EventPageFault, mode));
  const bool gva_valid = wire.gva != kNoAddress;
  return PageFaultData{Gva{gva_valid ? wire.gva : 0}, Gpa{wire.gpa}, access, gva_valid};
}

EventData read_trap(PayloadReader& r) {
  const auto wire = r.take<rfc2017::EventTrap>();
  r.check(wire.vector <= kVectorMax, kBadValue, KVMID_FIELD(rfc2017::EventTrap, vector));
  TrapData trap = trap_data(static_cast<std::uint8_t>(wire.vector), wire.err, wire.cr2);
  if (wire.type == kExternalInterrupt || wire.type == kSoftwareInterrupt) trap.kind = KVMI_EXCEPTION_INTERRUPT;
  return trap;
}

EventData read_event_data(PayloadReader& r, EventKind kind) {
  switch (kind) {
    case EventKind::Cr: return read_cr(r);
    case EventKind::Msr: return read_msr(r);
    case EventKind::Xsetbv: return XsetbvData{0, 0, r.take<rfc2017::EventXsetbv>().xcr0};
    case EventKind::Breakpoint: return BreakpointData{Gpa{r.take<rfc2017::EventBreakpoint>().gpa}, 1};
    case EventKind::Hypercall: return HypercallData{};
    case EventKind::PageFault: return read_page_fault(r);
    case EventKind::Trap: return read_trap(r);
    default: std::abort();  // event_of() knows no others
  }
}

Result<Upward, DecodeError> read_event_message(const Frame& frame, const Codec& codec) {
  PayloadReader r(frame.payload, frame.id);
  const auto wire = r.take<rfc2017::EventX86>();
  const auto kind = wire.event <= rfc2017::kKnownEvents ? codec.event_of(static_cast<std::uint16_t>(wire.event))
                                                        : std::nullopt;
  r.check(kind.has_value(), DecodeErrc::UnknownEvent, KVMID_FIELD(rfc2017::EventX86, event));
  r.check(VcpuId{wire.vcpu} != kAllVcpus, kBadValue, KVMID_FIELD(rfc2017::EventX86, vcpu));
  r.check(is_mode(wire.mode), kBadValue, KVMID_FIELD(rfc2017::EventX86, mode));

  EventMessage message;
  Event& event = message.event;
  event.vcpu = VcpuId{wire.vcpu};
  event.mode = wire.mode;
  event.regs = wire.regs;
  event.sregs = wire.sregs;
  clear_padding(event.sregs);
  event.msrs.sysenter_cs = wire.msrs.sysenter_cs;
  event.msrs.sysenter_esp = wire.msrs.sysenter_esp;
  event.msrs.sysenter_eip = wire.msrs.sysenter_eip;
  event.msrs.efer = wire.msrs.efer;
  event.msrs.star = wire.msrs.star;
  event.msrs.lstar = wire.msrs.lstar;
  if (!r.failed()) event.data = read_event_data(r, *kind);
  r.take_rest();
  if (const auto error = r.finish()) return *error;
  return Upward{message};
}

std::uint32_t interruption_type(const TrapData& trap) {
  if (trap.vector == 2) return kNmi;
  if (trap.kind == KVMI_EXCEPTION_INTERRUPT) return kExternalInterrupt;
  return trap.vector == 3 || trap.vector == 4 ? kSoftwareException : kHardwareException;
}

class EventWriter {
 public:
  EventWriter(FrameWriter& frame, const Event& event) : w_(frame), event_(event) {}

  void operator()(const CrData& d) {
    w_.put(rfc2017::EventCr{.cr = d.cr, .padding = {}, .old_value = d.old_value, .new_value = d.new_value});
  }
  void operator()(const MsrData& d) {
    w_.put(rfc2017::EventMsr{.msr = d.msr, .padding = 0, .old_value = d.old_value, .new_value = d.new_value});
  }
  void operator()(const XsetbvData& d) { w_.put(rfc2017::EventXsetbv{.xcr0 = d.new_value}); }
  void operator()(const BreakpointData& d) { w_.put(rfc2017::EventBreakpoint{.gpa = d.gpa.value}); }
  void operator()(const HypercallData&) {}
  void operator()(const PageFaultData& d) {
    w_.put(rfc2017::EventPageFault{.gva = d.gva_valid ? d.gva.value : kNoAddress,
                                   .gpa = d.gpa.value,
                                   .mode = d.access | (d.gva_valid ? kGvaKnown : 0),
                                   .padding = 0});
  }
  void operator()(const TrapData& d) {
    w_.put(rfc2017::EventTrap{.vector = d.vector,
                              .type = interruption_type(d),
                              .err = d.error_code,
                              .padding = 0,
                              .cr2 = d.vector == kPageFaultVector ? d.address : event_.sregs.cr2});
  }
  /// Events that rfc2017 does not have.
  template <class Other>
  void operator()(const Other&) {
    std::abort();
  }

 private:
  FrameWriter& w_;
  const Event& event_;
};

}  // namespace

void CodecRfc2017::encode(const EventMessage& message, Seq seq, ByteBuffer& out) const {
  const Event& event = message.event;
  const auto number = number_of(event.kind());
  if (!number) std::abort();  // checked before
  FrameWriter frame(out, rfc2017::kEventId, seq);
  frame.put(rfc2017::EventX86{.vcpu = event.vcpu.value,
                              .mode = event.mode,
                              .padding1 = 0,
                              .event = *number,
                              .regs = event.regs,
                              .sregs = event.sregs,
                              .msrs = {.sysenter_cs = event.msrs.sysenter_cs,
                                       .sysenter_esp = event.msrs.sysenter_esp,
                                       .sysenter_eip = event.msrs.sysenter_eip,
                                       .efer = event.msrs.efer,
                                       .star = event.msrs.star,
                                       .lstar = event.msrs.lstar}});
  std::visit(EventWriter(frame, event), event.data);
}

void CodecRfc2017::encode(const CommandError&, Seq, ByteBuffer&) const {
  std::abort();  // replies of rfc2017 cannot be turned off
}

void CodecRfc2017::encode(const Reply& reply, Seq seq, ByteBuffer& out) const {
  FrameWriter frame(out, reply.id, seq);
  if (reply.error != 0) {
    frame.put(rfc2017::ErrorCode{.err = reply.error, .padding = 0});
  } else {
    std::visit(ReplyWriter(frame), reply.body);
  }
}

Result<Upward, DecodeError> CodecRfc2017::decode_upward(const Frame& frame) const {
  if (frame.id == rfc2017::kEventId) return read_event_message(frame, *this);
  if (frame.id == rfc2017::kGuestOnId || frame.id == rfc2017::kGuestOffId) return Upward{UnknownMessage{frame.id}};
  return read_reply_message(frame, command_of(frame.id));
}

}  // namespace kvmid::kvmi1
