// SPDX-License-Identifier: LGPL-2.1-or-later
//
// KVMI 2: the EVENT message.

#include "protocol/dialect_kvmi2.h"
#include "protocol/payload_io.h"

namespace kvmid {
namespace {

constexpr auto kBadFlag = DecodeErrc::BadFlag;
constexpr auto kBadValue = DecodeErrc::BadValue;

constexpr std::uint8_t kRightsAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
constexpr std::uint8_t kTrapFlags = KVMI_TRAP_F_ERROR_CODE | KVMI_TRAP_F_INJECTED | KVMI_TRAP_F_DISPLACED;
constexpr std::uint8_t kEveryAction = (1U << kActionCount) - 1;
constexpr std::uint8_t kPageFaultVector = 14;
constexpr std::uint8_t kInsnLengthMax = 15;

UnhookData read_unhook(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_unhook>();
  r.check(wire.reason <= KVMI_OFF_RESET, kBadValue, KVMID_FIELD(kvmi_event_unhook, reason));
  r.check_zero(KVMID_FIELD(kvmi_event_unhook, padding));
  return {static_cast<OffReason>(wire.reason)};
}

CrData read_cr(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_cr>();
  r.check(wire.cr == 0 || wire.cr == 3 || wire.cr == 4, kBadValue, KVMID_FIELD(kvmi_event_cr, cr));
  r.check_zero(KVMID_FIELD(kvmi_event_cr, padding));
  return {wire.cr, wire.old_value, wire.new_value};
}

MsrData read_msr(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_msr>();
  r.check_zero(KVMID_FIELD(kvmi_event_msr, padding));
  return {wire.msr, wire.old_value, wire.new_value};
}

XsetbvData read_xsetbv(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_xsetbv>();
  r.check_zero(KVMID_FIELD(kvmi_event_xsetbv, padding));
  return {wire.xcr, wire.old_value, wire.new_value};
}

BreakpointData read_breakpoint(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_breakpoint>();
  r.check(wire.insn_length >= 1 && wire.insn_length <= kInsnLengthMax, kBadValue,
          KVMID_FIELD(kvmi_event_breakpoint, insn_length));
  r.check_zero(KVMID_FIELD(kvmi_event_breakpoint, padding));
  return {Gpa{wire.gpa}, wire.insn_length};
}

PageFaultData read_page_fault(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_page_fault>();
  r.check(wire.gva_valid != 0 || wire.gva == 0, kBadValue, KVMID_FIELD(kvmi_event_page_fault, gva));
  r.check((wire.access & ~kRightsAll) == 0, kBadFlag, KVMID_FIELD(kvmi_event_page_fault, access));
  r.check(wire.access != 0, kBadValue, KVMID_FIELD(kvmi_event_page_fault, access));
  r.check_bool(wire.gva_valid, KVMID_FIELD(kvmi_event_page_fault, gva_valid));
  r.check_zero(KVMID_FIELD(kvmi_event_page_fault, padding));
  return {Gva{wire.gva}, Gpa{wire.gpa}, wire.access, wire.gva_valid != 0};
}

TrapData read_trap(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_trap>();
  r.check(wire.kind <= KVMI_EXCEPTION_INTERRUPT, kBadValue, KVMID_FIELD(kvmi_event_trap, kind));
  // Only interrupts have vectors over 31.
  r.check(wire.vector <= 31 || wire.kind == KVMI_EXCEPTION_INTERRUPT, kBadValue, KVMID_FIELD(kvmi_event_trap, vector));
  r.check((wire.flags & ~kTrapFlags) == 0, kBadFlag, KVMID_FIELD(kvmi_event_trap, flags));
  r.check(wire.displaced_vector <= ((wire.flags & KVMI_TRAP_F_DISPLACED) != 0 ? 31 : 0), kBadValue,
          KVMID_FIELD(kvmi_event_trap, displaced_vector));
  r.check((wire.flags & KVMI_TRAP_F_ERROR_CODE) != 0 || wire.error_code == 0, kBadValue,
          KVMID_FIELD(kvmi_event_trap, error_code));
  r.check(wire.vector == kPageFaultVector || wire.address == 0, kBadValue, KVMID_FIELD(kvmi_event_trap, address));
  return {wire.vector, wire.kind, wire.flags, wire.displaced_vector, wire.error_code, wire.address};
}

DescriptorData read_descriptor(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_descriptor>();
  r.check(wire.descriptor >= KVMI_DESC_IDTR && wire.descriptor <= KVMI_DESC_TR, kBadValue,
          KVMID_FIELD(kvmi_event_descriptor, descriptor));
  r.check_bool(wire.write, KVMID_FIELD(kvmi_event_descriptor, write));
  r.check_zero(KVMID_FIELD(kvmi_event_descriptor, padding));
  return {wire.descriptor, wire.write != 0};
}

SinglestepData read_singlestep(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_singlestep>();
  r.check_bool(wire.failed, KVMID_FIELD(kvmi_event_singlestep, failed));
  r.check_zero(KVMID_FIELD(kvmi_event_singlestep, padding));
  return {wire.failed != 0};
}

CpuidData read_cpuid(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_cpuid>();
  return {wire.function, wire.index};
}

AccessData read_access(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_access>();
  r.check(wire.access == KVMI_PAGE_ACCESS_R || wire.access == KVMI_PAGE_ACCESS_W, kBadValue,
          KVMID_FIELD(kvmi_event_access, access));
  r.check(wire.size >= 1 && wire.size <= KVMI_ACCESS_DATA_MAX, kBadValue, KVMID_FIELD(kvmi_event_access, size));
  r.check_zero(KVMID_FIELD(kvmi_event_access, padding));
  AccessData data{Gva{wire.gva}, Gpa{wire.gpa}, wire.access, wire.size, wire.index, {}};
  if (r.failed()) return data;
  std::memcpy(data.data.data(), wire.data, sizeof wire.data);
  r.check_zero(FieldAt{offsetof(kvmi_event_access, data) + wire.size, sizeof wire.data - wire.size});
  return data;
}

EventData read_event_data(PayloadReader& r, EventKind kind) {
  switch (kind) {
    case EventKind::Unhook: return read_unhook(r);
    case EventKind::Cr: return read_cr(r);
    case EventKind::Msr: return read_msr(r);
    case EventKind::Xsetbv: return read_xsetbv(r);
    case EventKind::Breakpoint: return read_breakpoint(r);
    case EventKind::Hypercall: return HypercallData{};
    case EventKind::PageFault: return read_page_fault(r);
    case EventKind::Trap: return read_trap(r);
    case EventKind::Descriptor: return read_descriptor(r);
    case EventKind::CreateVcpu: return CreateVcpuData{};
    case EventKind::Pause: return PauseData{};
    case EventKind::Singlestep: return read_singlestep(r);
    case EventKind::Cpuid: return read_cpuid(r);
    case EventKind::Access: return read_access(r);
  }
  std::abort();  // read_event has checked the number
}

}  // namespace

Event read_event(PayloadReader& r) {
  const auto wire = r.take<kvmi_event>();
  const bool decide = (wire.flags & KVMI_EVENT_F_DECIDE) != 0;
  Event event{.vcpu = VcpuId{wire.vcpu},
              .mode = wire.mode,
              .actions = ActionSet{wire.actions},
              .decide = decide,
              .space = static_cast<AddressSpace>(wire.address_space),
              .deadline_us = wire.deadline_us,
              .cookie = wire.cookie,
              .regs = wire.regs,
              .sregs = wire.sregs,
              .msrs = wire.msrs,
              .dr6 = wire.dr6,
              .dr7 = wire.dr7,
              .data = {}};

  r.check(wire.event < KVMI_EVENT_COUNT, DecodeErrc::UnknownEvent, KVMID_FIELD(kvmi_event, event));
  // UNHOOK is of the guest, everything else of one vCPU.
  r.check((wire.event == KVMI_EVENT_UNHOOK) == (wire.vcpu == KVMI_ALL_VCPUS), kBadValue,
          KVMID_FIELD(kvmi_event, vcpu));
  r.check(wire.mode == 2 || wire.mode == 4 || wire.mode == 8, kBadValue, KVMID_FIELD(kvmi_event, mode));
  r.check((wire.actions & ~kEveryAction) == 0, DecodeErrc::UnknownAction, KVMID_FIELD(kvmi_event, actions));
  r.check(wire.actions != 0, kBadValue, KVMID_FIELD(kvmi_event, actions));
  r.check((wire.flags & ~KVMI_EVENT_F_DECIDE) == 0, kBadFlag, KVMID_FIELD(kvmi_event, flags));
  r.check(wire.address_space <= KVMI_ADDRESS_SPACE_SMM, kBadValue, KVMID_FIELD(kvmi_event, address_space));
  r.check_zero(KVMID_FIELD(kvmi_event, padding));
  r.check(decide || wire.deadline_us == 0, kBadValue, KVMID_FIELD(kvmi_event, deadline_us));
  r.check_zero(KVMID_FIELD(kvmi_event, padding2));
  check_sregs_padding(r, offsetof(kvmi_event, sregs));
  if (!r.failed()) event.data = read_event_data(r, static_cast<EventKind>(wire.event));
  return event;
}

void DialectKvmi2::encode(const Event& event, Seq seq, ByteBuffer& out) {
  FrameWriter w(out, KVMI_MSG_EVENT, seq);
  w.put(kvmi_event{.vcpu = event.vcpu.value,
                   .event = static_cast<std::uint8_t>(event.kind()),
                   .mode = event.mode,
                   .actions = event.actions.bits,
                   .flags = static_cast<std::uint8_t>(event.decide ? KVMI_EVENT_F_DECIDE : 0),
                   .address_space = static_cast<std::uint8_t>(event.space),
                   .padding = 0,
                   .deadline_us = event.decide ? event.deadline_us : 0,
                   .padding2 = 0,
                   .cookie = event.cookie,
                   .regs = event.regs,
                   .sregs = event.sregs,
                   .msrs = event.msrs,
                   .dr6 = event.dr6,
                   .dr7 = event.dr7});
  std::visit(
      Overloaded{
          [&](const UnhookData& d) {
            w.put(kvmi_event_unhook{.reason = static_cast<std::uint8_t>(d.reason), .padding = {}});
          },
          [&](const CrData& d) {
            w.put(kvmi_event_cr{.cr = d.cr, .padding = {}, .old_value = d.old_value, .new_value = d.new_value});
          },
          [&](const MsrData& d) {
            w.put(kvmi_event_msr{.msr = d.msr, .padding = 0, .old_value = d.old_value, .new_value = d.new_value});
          },
          [&](const XsetbvData& d) {
            w.put(kvmi_event_xsetbv{.xcr = d.xcr, .padding = 0, .old_value = d.old_value, .new_value = d.new_value});
          },
          [&](const BreakpointData& d) {
            w.put(kvmi_event_breakpoint{.gpa = d.gpa.value, .insn_length = d.insn_length, .padding = {}});
          },
          [](const HypercallData&) {},
          [&](const PageFaultData& d) {
            w.put(kvmi_event_page_fault{.gva = d.gva_valid ? d.gva.value : 0,
                                        .gpa = d.gpa.value,
                                        .access = d.access,
                                        .gva_valid = d.gva_valid,
                                        .padding = {}});
          },
          [&](const TrapData& d) {
            w.put(kvmi_event_trap{.vector = d.vector,
                                  .kind = d.kind,
                                  .flags = d.flags,
                                  .displaced_vector = d.displaced_vector,
                                  .error_code = d.error_code,
                                  .address = d.address});
          },
          [&](const DescriptorData& d) {
            w.put(kvmi_event_descriptor{.descriptor = d.descriptor, .write = d.write, .padding = {}});
          },
          [](const CreateVcpuData&) {},
          [](const PauseData&) {},
          [&](const SinglestepData& d) { w.put(kvmi_event_singlestep{.failed = d.failed, .padding = {}}); },
          [&](const CpuidData& d) { w.put(kvmi_event_cpuid{.function = d.function, .index = d.index}); },
          [&](const AccessData& d) {
            kvmi_event_access wire{.gva = d.gva.value,
                                   .gpa = d.gpa.value,
                                   .access = d.access,
                                   .size = d.size,
                                   .index = d.index,
                                   .padding = 0,
                                   .data = {}};
            static_assert(sizeof wire.data == sizeof d.data);
            std::memcpy(wire.data, d.data.data(), sizeof wire.data);
            w.put(wire);
          },
      },
      event.data);
}

}  // namespace kvmid
