// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v12: what a hypervisor sends. Padding in its events is what lay on the kernel's stack, and is not looked at.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "protocol/kvmi1_event_values.h"
#include "protocol/kvmi1_v12.h"
#include "protocol/payload_io.h"
#include "protocol/wire_v12.h"

namespace kvmid::kvmi1 {
namespace {

constexpr auto kBadValue = DecodeErrc::BadValue;

// ---- replies ----

ReplyBody read_version(PayloadReader& r) {
  const auto wire = r.take<v12::GetVersionReply>();
  GetVersionReply reply;
  reply.version = wire.version;
  reply.max_message = wire.max_msg_size;
  reply.singlestep = wire.features.singlestep != 0;
  return reply;
}

ReplyBody read_registers(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuGetRegistersReply>();
  r.check(is_mode(wire.mode), kBadValue, KVMID_FIELD(v12::VcpuGetRegistersReply, mode));
  GetRegistersReply reply{
      .mode = wire.mode, .regs = wire.regs, .sregs = wire.sregs, .msrs = r.take_array<kvmi_x86_msr>(wire.msrs.nmsrs)};
  clear_padding(reply.sregs);
  return reply;
}

ReplyBody read_cpuid(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuGetCpuidReply>();
  return GetCpuidReply{wire.eax, wire.ebx, wire.ecx, wire.edx};
}

ReplyBody read_body(PayloadReader& r, CommandKind kind) {
  switch (kind) {
    case kind_of<GetVersion>: return read_version(r);
    case kind_of<GetGuestInfo>: return GetGuestInfoReply{r.take<v12::VmGetInfoReply>().vcpu_count, 0};
    case kind_of<GetVcpuInfo>: return GetVcpuInfoReply{r.take<v12::VcpuGetInfoReply>().tsc_speed};
    case kind_of<GetRegisters>: return read_registers(r);
    case kind_of<GetCpuid>: return read_cpuid(r);
    case kind_of<GetXsave>: return GetXsaveReply{r.take_bytes(kXsaveSize)};
    case kind_of<GetXcr>: return GetXcrReply{r.take<v12::VcpuGetXcrReply>().value};
    case kind_of<GetMtrrType>: return GetMtrrTypeReply{r.take<v12::VcpuGetMtrrTypeReply>().type};
    case kind_of<ReadPhysical>: return ReadPhysicalReply{r.take_rest()};
    case kind_of<TranslateGva>: return TranslateGvaReply{r.take<v12::VcpuTranslateGvaReply>().gpa};
    default: return std::monostate{};
  }
}

/// `kind`: none where the id is no command's. Then only a refusal makes sense.
Result<Upward, DecodeError> read_reply_message(const Frame& frame, std::optional<CommandKind> kind) {
  PayloadReader r(frame.payload, frame.id);
  const auto prefix = r.take<v12::ErrorCode>();
  r.check(prefix.err <= 0, kBadValue, KVMID_FIELD(v12::ErrorCode, err));
  Reply reply{.id = frame.id, .error = prefix.err};
  if (!r.failed() && prefix.err == 0 && kind) reply.body = read_body(r, *kind);
  r.take_rest();
  if (const auto error = r.finish()) return *error;
  if (prefix.err == 0 && !kind && frame.id != v12::kVcpuEventId) return Upward{UnknownMessage{frame.id}};
  return Upward{reply};
}

/// What follows a successful reply's error code.
class BodyWriter {
 public:
  explicit BodyWriter(FrameWriter& frame) : w_(frame) {}

  void operator()(const std::monostate&) {}
  void operator()(const GetVersionReply& b) {
    const std::size_t max_message = b.max_message != 0 ? b.max_message : v12::kPayloadMax;
    w_.put(v12::GetVersionReply{.version = b.version,
                                .max_msg_size = wire_count<std::uint32_t>(max_message),
                                .features = {.singlestep = b.singlestep, .padding = {}}});
  }
  void operator()(const GetGuestInfoReply& b) {
    w_.put(v12::VmGetInfoReply{.vcpu_count = b.vcpu_count, .padding = {}});
  }
  void operator()(const GetVcpuInfoReply& b) { w_.put(v12::VcpuGetInfoReply{.tsc_speed = b.tsc_hz}); }
  void operator()(const GetRegistersReply& b) {
    w_.put(v12::VcpuGetRegistersReply{.mode = b.mode,
                                      .padding = 0,
                                      .regs = b.regs,
                                      .sregs = b.sregs,
                                      .msrs = {.nmsrs = wire_count<std::uint32_t>(b.msrs.size()), .pad = 0}});
    w_.put(b.msrs.bytes());
  }
  void operator()(const GetCpuidReply& b) {
    w_.put(v12::VcpuGetCpuidReply{.eax = b.eax, .ebx = b.ebx, .ecx = b.ecx, .edx = b.edx});
  }
  void operator()(const GetXsaveReply& b) {
    static constexpr std::byte kZeros[kXsaveSize] = {};
    if (b.area.size() > kXsaveSize) std::abort();  // checked before
    w_.put(b.area);
    w_.put(Bytes(kZeros).first(kXsaveSize - b.area.size()));
  }
  void operator()(const GetXcrReply& b) { w_.put(v12::VcpuGetXcrReply{.value = b.value}); }
  void operator()(const GetMtrrTypeReply& b) {
    w_.put(v12::VcpuGetMtrrTypeReply{.type = wire_count<std::uint8_t>(b.type), .padding = {}});
  }
  void operator()(const ReadPhysicalReply& b) { w_.put(b.data); }
  void operator()(const TranslateGvaReply& b) { w_.put(v12::VcpuTranslateGvaReply{.gpa = b.gpa}); }
  /// Replies of commands that v12 does not have.
  template <class Other>
  void operator()(const Other&) {
    std::abort();
  }

 private:
  FrameWriter& w_;
};

// ---- events ----

EventData read_breakpoint(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventBreakpoint>();
  return BreakpointData{Gpa{wire.gpa}, insn_length_of(wire.insn_len)};
}

EventData read_cr(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventCr>();
  r.check(is_tracked_cr(wire.cr), kBadValue, KVMID_FIELD(v12::VcpuEventCr, cr));
  return CrData{wire.cr, wire.old_value, wire.new_value};
}

/// `address` is CR2, whatever the vector.
EventData read_trap(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventTrap>();
  return trap_data(wire.nr, wire.error_code, wire.address);
}

EventData read_xsetbv(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventXsetbv>();
  return XsetbvData{wire.xcr, wire.old_value, wire.new_value};
}

EventData read_descriptor(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventDescriptor>();
  r.check(wire.descriptor >= KVMI_DESC_IDTR && wire.descriptor <= KVMI_DESC_TR, kBadValue,
          KVMID_FIELD(v12::VcpuEventDescriptor, descriptor));
  return DescriptorData{wire.descriptor, wire.write != 0};
}

EventData read_msr(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventMsr>();
  return MsrData{wire.msr, wire.old_value, wire.new_value};
}

EventData read_page_fault(PayloadReader& r) {
  const auto wire = r.take<v12::VcpuEventPf>();
  r.check(wire.access != 0 && (wire.access & ~kRightsAll) == 0, kBadValue, KVMID_FIELD(v12::VcpuEventPf, access));
  const bool gva_valid = wire.gva != kNoAddress;
  return PageFaultData{Gva{gva_valid ? wire.gva : 0}, Gpa{wire.gpa}, wire.access, gva_valid};
}

EventData read_event_data(PayloadReader& r, EventKind kind) {
  switch (kind) {
    case EventKind::Pause: return PauseData{};
    case EventKind::Hypercall: return HypercallData{};
    case EventKind::Breakpoint: return read_breakpoint(r);
    case EventKind::Cr: return read_cr(r);
    case EventKind::Trap: return read_trap(r);
    case EventKind::Xsetbv: return read_xsetbv(r);
    case EventKind::Descriptor: return read_descriptor(r);
    case EventKind::Msr: return read_msr(r);
    case EventKind::PageFault: return read_page_fault(r);
    case EventKind::Singlestep: return SinglestepData{r.take<v12::VcpuEventSinglestep>().failed != 0};
    default: std::abort();  // event_of() knows no others
  }
}

Result<Upward, DecodeError> read_vcpu_event(const Frame& frame, const Codec& codec) {
  PayloadReader r(frame.payload, frame.id);
  const auto hdr = r.take<v12::EventHdr>();
  const auto kind = codec.event_of(hdr.event);
  r.check(kind && *kind != EventKind::Unhook, DecodeErrc::UnknownEvent, KVMID_FIELD(v12::EventHdr, event));

  const auto wire = r.take<v12::VcpuEvent>();
  r.check(wire.size >= sizeof wire, kBadValue, KVMID_FIELD(v12::VcpuEvent, size));
  r.check(VcpuId{wire.vcpu} != kAllVcpus, kBadValue, KVMID_FIELD(v12::VcpuEvent, vcpu));
  r.check(is_mode(wire.arch.mode), kBadValue, KVMID_FIELD(v12::VcpuEvent, arch));
  if (!r.failed()) r.take_bytes(wire.size - sizeof wire);  // a longer common part is a later kernel's

  EventMessage message;
  message.event.vcpu = VcpuId{wire.vcpu};
  message.event.mode = wire.arch.mode;
  message.event.regs = wire.arch.regs;
  message.event.sregs = wire.arch.sregs;
  clear_padding(message.event.sregs);
  message.event.msrs = wire.arch.msrs;
  if (!r.failed()) message.event.data = read_event_data(r, *kind);
  r.take_rest();
  if (const auto error = r.finish()) return *error;
  return Upward{message};
}

/// UNHOOK, or the refusal of a message of id 0: both have 8 bytes, but no error number ends in 16 zero bits.
Result<Upward, DecodeError> read_vm_event(const Frame& frame) {
  PayloadReader r(frame.payload, frame.id);
  const auto hdr = r.take<v12::EventHdr>();
  if (!r.failed() && hdr.event == 0) {
    EventMessage message;
    message.event.vcpu = kAllVcpus;
    message.event.data = UnhookData{OffReason::Suspend};  // or migration, or snapshot: it is not said
    return Upward{message};
  }
  if (frame.payload.size() == sizeof(v12::ErrorCode)) {
    v12::ErrorCode refusal{};
    std::memcpy(&refusal, frame.payload.data(), sizeof refusal);
    if (refusal.err < 0) return Upward{Reply{.id = frame.id, .error = refusal.err}};
  }
  r.check(false, DecodeErrc::UnknownEvent, KVMID_FIELD(v12::EventHdr, event));
  return *r.finish();
}

class EventWriter {
 public:
  EventWriter(FrameWriter& frame, const Event& event) : w_(frame), event_(event) {}

  void operator()(const HypercallData&) {}
  void operator()(const PauseData&) {}
  void operator()(const BreakpointData& d) {
    w_.put(v12::VcpuEventBreakpoint{.gpa = d.gpa.value, .insn_len = d.insn_length, .padding = {}});
  }
  void operator()(const CrData& d) {
    w_.put(v12::VcpuEventCr{
        .cr = wire_count<std::uint8_t>(d.cr), .padding = {}, .old_value = d.old_value, .new_value = d.new_value});
  }
  void operator()(const TrapData& d) {
    w_.put(v12::VcpuEventTrap{.nr = d.vector,
                              .padding1 = 0,
                              .padding2 = 0,
                              .error_code = d.error_code,
                              .address = d.vector == kPageFaultVector ? d.address : event_.sregs.cr2});
  }
  void operator()(const XsetbvData& d) {
    // Whatever a hypervisor says: no register there is has so high a number.
    const auto xcr = static_cast<std::uint8_t>(std::min<std::uint32_t>(d.xcr, 0xff));
    w_.put(v12::VcpuEventXsetbv{.xcr = xcr, .padding = {}, .old_value = d.old_value, .new_value = d.new_value});
  }
  void operator()(const DescriptorData& d) {
    w_.put(v12::VcpuEventDescriptor{.descriptor = d.descriptor, .write = d.write, .padding = {}});
  }
  void operator()(const MsrData& d) {
    w_.put(v12::VcpuEventMsr{.msr = d.msr, .padding = 0, .old_value = d.old_value, .new_value = d.new_value});
  }
  void operator()(const PageFaultData& d) {
    w_.put(v12::VcpuEventPf{.gva = d.gva_valid ? d.gva.value : kNoAddress,
                            .gpa = d.gpa.value,
                            .access = d.access,
                            .padding1 = 0,
                            .padding2 = 0,
                            .padding3 = 0});
  }
  void operator()(const SinglestepData& d) {
    w_.put(v12::VcpuEventSinglestep{.failed = d.failed, .padding = {}});
  }
  /// Events that v12 does not have, and UNHOOK, which is written elsewhere.
  template <class Other>
  void operator()(const Other&) {
    std::abort();
  }

 private:
  FrameWriter& w_;
  const Event& event_;
};

}  // namespace

void CodecV12::encode(const EventMessage& message, Seq seq, ByteBuffer& out) const {
  const Event& event = message.event;
  const auto number = number_of(event.kind());
  if (!number) std::abort();  // checked before
  const bool of_guest = event.kind() == EventKind::Unhook;
  FrameWriter frame(out, of_guest ? v12::kVmEventId : v12::kVcpuEventId, seq);
  frame.put(v12::EventHdr{.event = *number, .padding = {}});
  if (of_guest) return;
  frame.put(v12::VcpuEvent{
      .size = sizeof(v12::VcpuEvent),
      .vcpu = event.vcpu.value,
      .padding = 0,
      .arch = {.mode = event.mode, .padding = {}, .regs = event.regs, .sregs = event.sregs, .msrs = event.msrs}});
  std::visit(EventWriter(frame, event), event.data);
}

void CodecV12::encode(const CommandError&, Seq, ByteBuffer&) const {
  std::abort();  // replies of v12 cannot be turned off
}

void CodecV12::encode(const Reply& reply, Seq seq, ByteBuffer& out) const {
  const std::size_t start = out.size();
  {
    FrameWriter frame(out, reply.id, seq);
    frame.put(v12::ErrorCode{.err = reply.error, .padding = 0});
    if (reply.error == 0) std::visit(BodyWriter(frame), reply.body);
  }
  if (out.size() - start > sizeof(kvmi_msg_hdr) + v12::kPayloadMax) std::abort();  // checked before
}

Result<Upward, DecodeError> CodecV12::decode_upward(const Frame& frame) const {
  if (frame.id == v12::kVmEventId) return read_vm_event(frame);
  // An event and the refusal of an event reply have the same id; the smallest event is far larger.
  if (frame.id == v12::kVcpuEventId && frame.payload.size() > sizeof(v12::ErrorCode)) {
    return read_vcpu_event(frame, *this);
  }
  return read_reply_message(frame, command_of(frame.id));
}

}  // namespace kvmid::kvmi1
