// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v7 and v6: events.
//
// What is checked here is what message.h's events promise of every hypervisor: registers that exist, rights that exist.

#include "protocol/kvmi1_event_values.h"
#include "protocol/kvmi1_v7.h"

namespace kvmid::kvmi1::v7 {
namespace {

constexpr auto kBadValue = DecodeErrc::BadValue;
constexpr std::uint8_t kBreakpointVector = 3, kOverflowVector = 4;

CrData read_cr(PayloadReader& r) {
  const auto wire = r.take<EventCr>();
  r.check(is_tracked_cr(wire.cr), kBadValue, KVMID_FIELD(EventCr, cr));
  return {wire.cr, wire.old_value, wire.new_value};
}

MsrData read_msr(PayloadReader& r) {
  const auto wire = r.take<EventMsr>();
  return {wire.msr, wire.old_value, wire.new_value};
}

BreakpointData read_breakpoint(PayloadReader& r) {
  const auto wire = r.take<EventBreakpoint>();
  return {Gpa{wire.gpa}, insn_length_of(wire.insn_len)};
}

PageFaultData read_page_fault(PayloadReader& r, bool v6, std::uint16_t& view) {
  const auto wire = r.take<EventPageFault>();
  r.check(wire.access != 0 && (wire.access & ~kRightsAll) == 0, kBadValue, KVMID_FIELD(EventPageFault, access));
  if (v6) view = wire.view;
  const bool valid = wire.gva != kNoAddress;
  return {Gva{valid ? wire.gva : 0}, Gpa{wire.gpa}, wire.access, valid};
}

TrapData read_trap(PayloadReader& r, bool v6) {
  if (!v6) {
    const auto wire = r.take<EventTrap>();
    return trap_data(wire.vector, wire.error_code, wire.cr2);
  }
  const auto wire = r.take<EventTrapV6>();
  r.check(wire.vector <= 0xff, kBadValue, KVMID_FIELD(EventTrapV6, vector));
  return trap_data(static_cast<std::uint8_t>(wire.vector), wire.error_code, wire.cr2);
}

DescriptorData read_descriptor(PayloadReader& r) {
  const auto wire = r.take<EventDescriptor>();
  r.check(wire.descriptor >= KVMI_DESC_IDTR && wire.descriptor <= KVMI_DESC_TR, kBadValue,
          KVMID_FIELD(EventDescriptor, descriptor));
  return {wire.descriptor, wire.write != 0};
}

CpuidData read_cpuid(PayloadReader& r) {
  const auto wire = r.take<EventCpuid>();
  return {wire.function, wire.index};
}

}  // namespace

EventData CodecV7::read_event_data(PayloadReader& r, EventKind kind, std::uint16_t& view) const {
  switch (kind) {
    case EventKind::Unhook: return UnhookData{OffReason::Suspend};  // or migration, or snapshot: it is not said
    case EventKind::Cr: return read_cr(r);
    case EventKind::Msr: return read_msr(r);
    case EventKind::Xsetbv: return XsetbvData{};
    case EventKind::Breakpoint: return read_breakpoint(r);
    case EventKind::Hypercall: return HypercallData{};
    case EventKind::PageFault: return read_page_fault(r, v6_, view);
    case EventKind::Trap: return read_trap(r, v6_);
    case EventKind::Descriptor: return read_descriptor(r);
    case EventKind::CreateVcpu: return CreateVcpuData{};
    case EventKind::Pause: return PauseData{};
    case EventKind::Singlestep:
      if (v6_) return SinglestepData{};
      return SinglestepData{r.take<EventSinglestep>().failed != 0};
    case EventKind::Cpuid: return read_cpuid(r);
    case EventKind::Access: break;  // no such event in these dialects
  }
  std::abort();
}

Result<Upward, DecodeError> CodecV7::decode_event(const Frame& frame) const {
  PayloadReader r(frame.payload, frame.id);
  const auto head = r.take<EventHead>();
  if (r.failed()) return *r.finish();
  r.check(head.size == sizeof head, kBadValue, KVMID_FIELD(EventHead, size));

  if (head.event == kCommandErrorEvent && !v6_) {
    const auto wire = r.take<EventCommandError>();
    if (const auto error = r.finish()) return *error;
    return Upward{CommandError{wire.err, Seq{wire.msg_seq}, wire.msg_id}};
  }

  const auto kind = event_of(head.event);
  r.check(kind.has_value(), DecodeErrc::UnknownEvent, KVMID_FIELD(EventHead, event));
  // UNHOOK is the VM's: nothing of a vCPU is in it.
  const bool of_vm = kind == EventKind::Unhook;
  r.check(of_vm || is_mode(head.arch.mode), kBadValue,
          FieldAt{offsetof(EventHead, arch) + offsetof(EventArch, mode), sizeof head.arch.mode});
  if (r.failed()) return *r.finish();

  EventMessage message;
  message.view = v6_ ? std::uint16_t{0} : head.arch.view;
  Event& event = message.event;
  event.vcpu = of_vm ? kAllVcpus : VcpuId{head.vcpu};
  if (is_mode(head.arch.mode)) event.mode = head.arch.mode;
  event.regs = head.arch.regs;
  event.sregs = head.arch.sregs;
  clear_padding(event.sregs);
  event.msrs = head.arch.msrs;
  // Clients of the first v7 know no data of SINGLESTEP: a kernel of that time may send none.
  const bool no_data = *kind == EventKind::Singlestep && frame.payload.size() == sizeof head;
  event.data = no_data ? EventData{SinglestepData{}} : read_event_data(r, *kind, message.view);
  if (const auto error = r.finish()) return *error;
  return Upward{std::move(message)};
}

namespace {

EventHead head_of(std::uint8_t number, const Event& event, std::uint16_t view) {
  EventHead head{};
  head.size = sizeof head;
  head.vcpu = event.vcpu == kAllVcpus ? std::uint16_t{0} : event.vcpu.value;
  head.event = number;
  head.arch.mode = event.mode;
  head.arch.view = view;
  head.arch.regs = event.regs;
  head.arch.sregs = event.sregs;
  head.arch.msrs = event.msrs;
  return head;
}

struct EventPutter {
  Writer& w;
  bool v6;
  std::uint16_t view;

  void operator()(const UnhookData&) const {}
  void operator()(const XsetbvData&) const {}
  void operator()(const HypercallData&) const {}
  void operator()(const CreateVcpuData&) const {}
  void operator()(const PauseData&) const {}
  void operator()(const CrData& d) const { w.put(EventCr{d.cr, {}, d.old_value, d.new_value}); }
  void operator()(const MsrData& d) const { w.put(EventMsr{d.msr, 0, d.old_value, d.new_value}); }
  void operator()(const BreakpointData& d) const { w.put(EventBreakpoint{d.gpa.value, d.insn_length, {}}); }
  void operator()(const PageFaultData& d) const {
    const std::uint64_t gva = d.gva_valid ? d.gva.value : kNoAddress;
    w.put(EventPageFault{gva, d.gpa.value, d.access, 0, v6 ? view : std::uint16_t{0}, 0});
  }
  void operator()(const TrapData& d) const {
    if (!v6) return w.put(EventTrap{d.vector, 0, 0, d.error_code, d.address});
    const bool software = d.vector == kBreakpointVector || d.vector == kOverflowVector;
    w.put(EventTrapV6{d.vector, software ? kSoftwareException : kHardwareException, d.error_code, 0, d.address});
  }
  void operator()(const DescriptorData& d) const {
    w.put(EventDescriptor{d.descriptor, d.write ? std::uint8_t{1} : std::uint8_t{0}, {}});
  }
  void operator()(const SinglestepData& d) const {
    if (!v6) w.put(EventSinglestep{d.failed ? std::uint8_t{1} : std::uint8_t{0}, {}});
  }
  void operator()(const CpuidData& d) const { w.put(EventCpuid{d.function, d.index, kCpuidLength, {}, 0}); }
  void operator()(const AccessData&) const { std::abort(); }
};

}  // namespace

void CodecV7::encode(const EventMessage& message, Seq seq, ByteBuffer& out) const {
  const auto number = number_of(message.event.kind());
  if (!number) std::abort();
  Writer w(out, kEventId, seq);
  w.put(head_of(static_cast<std::uint8_t>(*number), message.event, v6_ ? std::uint16_t{0} : message.view));
  std::visit(EventPutter{w, v6_, message.view}, message.event.data);
}

void CodecV7::encode(const CommandError& error, Seq seq, ByteBuffer& out) const {
  if (v6_) std::abort();
  Event none;
  none.mode = 0;
  Writer w(out, kEventId, seq);
  w.put(head_of(kCommandErrorEvent, none, 0));
  w.put(EventCommandError{error.error, error.seq.value, error.id, {}});
}

}  // namespace kvmid::kvmi1::v7
