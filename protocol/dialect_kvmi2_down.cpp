// SPDX-License-Identifier: LGPL-2.1-or-later
//
// KVMI 2 towards the hypervisor: commands and event replies.
// The rules are those of kvmi.h; PROTOCOL.md has them as text.

#include "protocol/dialect_kvmi2.h"
#include "protocol/payload_io.h"

namespace kvmid {
namespace {

constexpr auto kBadFlag = DecodeErrc::BadFlag;
constexpr auto kBadValue = DecodeErrc::BadValue;

constexpr std::uint16_t kWriteFlags =
    KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT | KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
constexpr std::uint8_t kReplyFlags =
    KVMI_REPLY_F_VALUE | KVMI_REPLY_F_TRAP_ACCESS | KVMI_REPLY_F_STEP_OVER | KVMI_REPLY_F_COOKIE;
constexpr std::uint8_t kPageFaultVector = 14;

/// The most MSRs whose values fit in one reply.
constexpr std::size_t kMsrsMax =
    (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_registers_reply)) / sizeof(kvmi_x86_msr);

AddressSpace take_space(PayloadReader& r, std::uint16_t space, FieldAt field) {
  r.check(space <= KVMI_ADDRESS_SPACE_SMM, kBadValue, field);
  return static_cast<AddressSpace>(space);
}

/// A vCPU of commands that do not take "every vCPU".
VcpuId take_one_vcpu(PayloadReader& r, std::uint16_t vcpu, FieldAt field) {
  r.check(vcpu != KVMI_ALL_VCPUS, kBadValue, field);
  return VcpuId{vcpu};
}

GetGuests read_get_guests(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_guests>();
  r.check_zero(KVMID_FIELD(kvmi_get_guests, padding));
  return {wire.first};
}

PauseVcpu read_pause_vcpu(PayloadReader& r) {
  const auto wire = r.take<kvmi_pause_vcpu>();
  r.check_zero(KVMID_FIELD(kvmi_pause_vcpu, padding));
  return {VcpuId{wire.vcpu}};
}

GetRegisters read_get_registers(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_registers>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_get_registers, vcpu));
  r.check(wire.msr_count <= kMsrsMax, kBadValue, KVMID_FIELD(kvmi_get_registers, msr_count));
  r.check_zero(KVMID_FIELD(kvmi_get_registers, padding));
  return {vcpu, r.take_array<std::uint32_t>(wire.msr_count)};
}

SetRegisters read_set_registers(PayloadReader& r) {
  const auto wire = r.take<kvmi_set_registers>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_set_registers, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_set_registers, padding));
  return {vcpu, wire.regs};
}

GetCpuid read_get_cpuid(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_cpuid>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_get_cpuid, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_get_cpuid, padding));
  return {vcpu, wire.function, wire.index};
}

GetPageAccess read_get_page_access(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_page_access>();
  r.check(wire.gpa % kPageSize == 0, kBadValue, KVMID_FIELD(kvmi_get_page_access, gpa));
  r.check(wire.pages >= 1 && !wraps(wire.gpa, wire.pages * kPageSize), kBadValue,
          KVMID_FIELD(kvmi_get_page_access, pages));
  const AddressSpace space = take_space(r, wire.address_space, KVMID_FIELD(kvmi_get_page_access, address_space));
  r.check_zero(KVMID_FIELD(kvmi_get_page_access, padding));
  return {Gpa{wire.gpa}, wire.pages, space};
}

SetPageAccess read_set_page_access(PayloadReader& r) {
  const auto wire = r.take<kvmi_set_page_access>();
  r.check(wire.count >= 1, kBadValue, KVMID_FIELD(kvmi_set_page_access, count));
  const AddressSpace space = take_space(r, wire.address_space, KVMID_FIELD(kvmi_set_page_access, address_space));
  r.check_zero(KVMID_FIELD(kvmi_set_page_access, padding));
  const std::size_t first_at = r.position();
  const auto entries = r.take_array<kvmi_page_access_entry>(wire.count);
  check_page_access_entries(r, entries, first_at);
  return {space, entries};
}

InjectException read_inject_exception(PayloadReader& r) {
  const auto wire = r.take<kvmi_inject_exception>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_inject_exception, vcpu));
  r.check(wire.vector <= 31, kBadValue, KVMID_FIELD(kvmi_inject_exception, vector));
  r.check_bool(wire.has_error_code, KVMID_FIELD(kvmi_inject_exception, has_error_code));
  r.check(wire.has_error_code != 0 || wire.error_code == 0, kBadValue,
          KVMID_FIELD(kvmi_inject_exception, error_code));
  r.check(wire.vector == kPageFaultVector || wire.address == 0, kBadValue,
          KVMID_FIELD(kvmi_inject_exception, address));
  return {vcpu, wire.vector, wire.has_error_code != 0, wire.error_code, wire.address};
}

ReadPhysical read_read_physical(PayloadReader& r) {
  const auto wire = r.take<kvmi_read_physical>();
  r.check(wire.count >= 1, kBadValue, KVMID_FIELD(kvmi_read_physical, count));
  const AddressSpace space = take_space(r, wire.address_space, KVMID_FIELD(kvmi_read_physical, address_space));
  r.check_zero(KVMID_FIELD(kvmi_read_physical, padding));
  std::size_t at = r.position();
  const auto ranges = r.take_array<kvmi_read_range>(wire.count);
  for (std::size_t i = 0; i < ranges.size(); ++i, at += sizeof(kvmi_read_range)) {
    const kvmi_read_range range = ranges[i];
    r.set_base(at);
    r.check(range.size >= 1 && !wraps(range.gpa, range.size), kBadValue, KVMID_FIELD(kvmi_read_range, size));
    r.check_zero(KVMID_FIELD(kvmi_read_range, padding));
  }
  return {space, ranges};
}

WritePhysical read_write_physical(PayloadReader& r) {
  const auto wire = r.take<kvmi_write_physical>();
  r.check(wire.size >= 1 && !wraps(wire.gpa, wire.size), kBadValue, KVMID_FIELD(kvmi_write_physical, size));
  const AddressSpace space = take_space(r, wire.address_space, KVMID_FIELD(kvmi_write_physical, address_space));
  const bool patch_and_unpatch =
      (wire.flags & (KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) == (KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH);
  r.check((wire.flags & ~kWriteFlags) == 0 && !patch_and_unpatch, kBadFlag, KVMID_FIELD(kvmi_write_physical, flags));
  r.check((wire.flags & KVMI_WRITE_COOKIE) != 0 || wire.cookie == 0, kBadValue,
          KVMID_FIELD(kvmi_write_physical, cookie));
  const Bytes data = r.take_bytes(wire.size);
  const Bytes expected = (wire.flags & KVMI_WRITE_EXPECT) != 0 ? r.take_bytes(wire.size) : Bytes{};
  return {Gpa{wire.gpa}, space, wire.flags, wire.cookie, data, expected};
}

GrantMemory read_grant_memory(PayloadReader& r) {
  const auto wire = r.take<kvmi_grant_memory>();
  r.check(wire.flags == 0, kBadFlag, KVMID_FIELD(kvmi_grant_memory, flags));
  r.check_zero(KVMID_FIELD(kvmi_grant_memory, padding));
  return {wire.flags};
}

ControlEvents read_control_events(PayloadReader& r) {
  const auto wire = r.take<kvmi_control_events>();
  r.check(wire.operation <= KVMI_OP_DISABLE, kBadValue, KVMID_FIELD(kvmi_control_events, operation));
  r.check(wire.role <= KVMI_ROLE_OBSERVER, kBadValue, KVMID_FIELD(kvmi_control_events, role));
  r.check_zero(KVMID_FIELD(kvmi_control_events, padding));
  r.check((wire.events & ~kEveryEvent.bits) == 0, DecodeErrc::UnknownEvent, KVMID_FIELD(kvmi_control_events, events));
  return {VcpuId{wire.vcpu}, static_cast<Operation>(wire.operation), static_cast<Role>(wire.role),
          EventSet{wire.events}};
}

ControlCr read_control_cr(PayloadReader& r) {
  const auto wire = r.take<kvmi_control_cr>();
  r.check_bool(wire.enable, KVMID_FIELD(kvmi_control_cr, enable));
  r.check_zero(KVMID_FIELD(kvmi_control_cr, padding));
  r.check(wire.cr == 0 || wire.cr == 3 || wire.cr == 4, kBadValue, KVMID_FIELD(kvmi_control_cr, cr));
  return {VcpuId{wire.vcpu}, wire.enable != 0, wire.cr};
}

constexpr bool is_msr_of_the_ranges(std::uint32_t msr) {
  return msr <= 0x1fff || (msr >= 0x40000000 && msr <= 0x40001fff) || (msr >= 0xc0000000 && msr <= 0xc0001fff) ||
         (msr >= 0x4b564d00 && msr <= 0x4b564dff);
}

ControlMsr read_control_msr(PayloadReader& r) {
  const auto wire = r.take<kvmi_control_msr>();
  r.check_bool(wire.enable, KVMID_FIELD(kvmi_control_msr, enable));
  r.check_zero(KVMID_FIELD(kvmi_control_msr, padding));
  r.check(is_msr_of_the_ranges(wire.msr), kBadValue, KVMID_FIELD(kvmi_control_msr, msr));
  return {VcpuId{wire.vcpu}, wire.enable != 0, wire.msr};
}

TranslateGva read_translate_gva(PayloadReader& r) {
  const auto wire = r.take<kvmi_translate_gva>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_translate_gva, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_translate_gva, padding));
  return {vcpu, Gva{wire.gva}};
}

ControlSinglestep read_control_singlestep(PayloadReader& r) {
  const auto wire = r.take<kvmi_control_singlestep>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_control_singlestep, vcpu));
  r.check_bool(wire.enable, KVMID_FIELD(kvmi_control_singlestep, enable));
  r.check_zero(KVMID_FIELD(kvmi_control_singlestep, padding));
  return {vcpu, wire.enable != 0};
}

void check_filter_term(PayloadReader& r, const kvmi_filter_term& term, bool first) {
  r.check(term.field <= KVMI_FILTER_VCPU, kBadValue, KVMID_FIELD(kvmi_filter_term, field));
  r.check(term.compare <= KVMI_COMPARE_MASK_NE, kBadValue, KVMID_FIELD(kvmi_filter_term, compare));
  r.check(term.new_group <= (first ? 0 : 1), kBadFlag, KVMID_FIELD(kvmi_filter_term, new_group));
  r.check(term.reg <= (term.field == KVMI_FILTER_REGISTER ? 17 : 0), kBadValue, KVMID_FIELD(kvmi_filter_term, reg));
  r.check_zero(KVMID_FIELD(kvmi_filter_term, padding));
  const bool mask = term.compare == KVMI_COMPARE_MASK_EQ || term.compare == KVMI_COMPARE_MASK_NE;
  const bool range = term.compare == KVMI_COMPARE_RANGE;
  const bool operand_ok = range ? term.operand >= term.value : mask || term.operand == 0;
  r.check(operand_ok, kBadValue, KVMID_FIELD(kvmi_filter_term, operand));
}

SetFilter read_set_filter(PayloadReader& r) {
  const auto wire = r.take<kvmi_set_filter>();
  r.check(wire.event < KVMI_EVENT_COUNT, DecodeErrc::UnknownEvent, KVMID_FIELD(kvmi_set_filter, event));
  r.check(wire.action < kActionCount, DecodeErrc::UnknownAction, KVMID_FIELD(kvmi_set_filter, action));
  std::size_t at = r.position();
  const auto terms = r.take_array<kvmi_filter_term>(wire.count);
  for (std::size_t i = 0; i < terms.size(); ++i, at += sizeof(kvmi_filter_term)) {
    r.set_base(at);
    check_filter_term(r, terms[i], i == 0);
  }
  return {VcpuId{wire.vcpu}, static_cast<EventKind>(wire.event), static_cast<Action>(wire.action), terms};
}

GetXsave read_get_xsave(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_xsave>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_get_xsave, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_get_xsave, padding));
  return {vcpu};
}

SetXsave read_set_xsave(PayloadReader& r) {
  const auto wire = r.take<kvmi_set_xsave>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_set_xsave, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_set_xsave, padding));
  return {vcpu, r.take_bytes(wire.size)};
}

GetXcr read_get_xcr(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_xcr>();
  const VcpuId vcpu = take_one_vcpu(r, wire.vcpu, KVMID_FIELD(kvmi_get_xcr, vcpu));
  r.check_zero(KVMID_FIELD(kvmi_get_xcr, padding));
  r.check(wire.xcr == 0, kBadValue, KVMID_FIELD(kvmi_get_xcr, xcr));
  return {vcpu, wire.xcr};
}

GetMemoryMap read_get_memory_map(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_memory_map>();
  const AddressSpace space = take_space(r, wire.address_space, KVMID_FIELD(kvmi_get_memory_map, address_space));
  r.check_zero(KVMID_FIELD(kvmi_get_memory_map, padding));
  return {space};
}

constexpr bool has_new_value(EventKind event) {
  return event == EventKind::Cr || event == EventKind::Msr || event == EventKind::Xsetbv;
}

EventReply read_event_reply(PayloadReader& r) {
  const auto wire = r.take<kvmi_event_reply>();
  const auto flag = [&](unsigned bit) { return (wire.flags & bit) != 0; };
  const auto event = static_cast<EventKind>(wire.event);
  const auto action = static_cast<Action>(wire.action);
  const bool takes_value = has_new_value(event) || event == EventKind::Access;
  constexpr FieldAt kFlagsAt = KVMID_FIELD(kvmi_event_reply, flags);

  r.check(wire.event < KVMI_EVENT_COUNT, DecodeErrc::UnknownEvent, KVMID_FIELD(kvmi_event_reply, event));
  r.check(wire.action < kActionCount, DecodeErrc::UnknownAction, KVMID_FIELD(kvmi_event_reply, action));
  r.check((wire.flags & ~kReplyFlags) == 0, kBadFlag, kFlagsAt);
  r.check(!flag(KVMI_REPLY_F_VALUE) || takes_value, kBadFlag, kFlagsAt);
  r.check(!flag(KVMI_REPLY_F_TRAP_ACCESS) || (event == EventKind::PageFault && action == Action::Allow), kBadFlag,
          kFlagsAt);
  r.check(!flag(KVMI_REPLY_F_STEP_OVER) || (event == EventKind::Breakpoint && action == Action::Retry), kBadFlag,
          kFlagsAt);
  r.check_zero(KVMID_FIELD(kvmi_event_reply, padding));
  r.check(flag(KVMI_REPLY_F_COOKIE) || wire.cookie == 0, kBadValue, KVMID_FIELD(kvmi_event_reply, cookie));

  EventReply reply{.vcpu = VcpuId{wire.vcpu},
                   .event = event,
                   .action = action,
                   .trap_access = flag(KVMI_REPLY_F_TRAP_ACCESS),
                   .step_over = flag(KVMI_REPLY_F_STEP_OVER),
                   .has_cookie = flag(KVMI_REPLY_F_COOKIE),
                   .cookie = wire.cookie,
                   .value = {}};
  if (r.failed()) return reply;
  if (has_new_value(event)) {
    const auto specific = r.take<kvmi_event_value_reply>();
    if (flag(KVMI_REPLY_F_VALUE)) {
      reply.value = NewValue{specific.new_value};
    } else {
      r.check(specific.new_value == 0, kBadValue, KVMID_FIELD(kvmi_event_value_reply, new_value));
    }
  } else if (event == EventKind::Access) {
    const auto specific = r.take<kvmi_event_access_reply>();
    if (flag(KVMI_REPLY_F_VALUE)) {
      NewData data;
      std::memcpy(data.data.data(), specific.data, sizeof specific.data);
      reply.value = data;
    } else {
      r.check_zero(KVMID_FIELD(kvmi_event_access_reply, data));
    }
  }
  return reply;
}

/// `command` was read from `r`: the reading comes first, for it is an argument.
template <class T>
Result<Downward, DecodeError> finish(PayloadReader& r, const T& command) {
  if (const auto error = r.finish()) return *error;
  return Downward{Command{command}};
}

}  // namespace

Result<Downward, DecodeError> DialectKvmi2::decode_downward(const Frame& frame) {
  PayloadReader r(frame.payload, frame.id);
  switch (frame.id) {
    case KVMI_MSG_GET_VERSION: return finish(r, GetVersion{});
    case KVMI_MSG_GET_GUESTS: return finish(r, read_get_guests(r));
    case KVMI_MSG_GET_GUEST_INFO: return finish(r, GetGuestInfo{});
    case KVMI_MSG_PAUSE_VCPU: return finish(r, read_pause_vcpu(r));
    case KVMI_MSG_GET_REGISTERS: return finish(r, read_get_registers(r));
    case KVMI_MSG_SET_REGISTERS: return finish(r, read_set_registers(r));
    case KVMI_MSG_SHUTDOWN_GUEST: return finish(r, ShutdownGuest{});
    case KVMI_MSG_GET_CPUID: return finish(r, read_get_cpuid(r));
    case KVMI_MSG_GET_PAGE_ACCESS: return finish(r, read_get_page_access(r));
    case KVMI_MSG_SET_PAGE_ACCESS: return finish(r, read_set_page_access(r));
    case KVMI_MSG_INJECT_EXCEPTION: return finish(r, read_inject_exception(r));
    case KVMI_MSG_READ_PHYSICAL: return finish(r, read_read_physical(r));
    case KVMI_MSG_WRITE_PHYSICAL: return finish(r, read_write_physical(r));
    case KVMI_MSG_GRANT_MEMORY: return finish(r, read_grant_memory(r));
    case KVMI_MSG_CONTROL_EVENTS: return finish(r, read_control_events(r));
    case KVMI_MSG_CONTROL_CR: return finish(r, read_control_cr(r));
    case KVMI_MSG_CONTROL_MSR: return finish(r, read_control_msr(r));
    case KVMI_MSG_TRANSLATE_GVA: return finish(r, read_translate_gva(r));
    case KVMI_MSG_CONTROL_SINGLESTEP: return finish(r, read_control_singlestep(r));
    case KVMI_MSG_SET_FILTER: return finish(r, read_set_filter(r));
    case KVMI_MSG_GET_XSAVE: return finish(r, read_get_xsave(r));
    case KVMI_MSG_SET_XSAVE: return finish(r, read_set_xsave(r));
    case KVMI_MSG_GET_XCR: return finish(r, read_get_xcr(r));
    case KVMI_MSG_GET_MEMORY_MAP: return finish(r, read_get_memory_map(r));
    case KVMI_MSG_EVENT_REPLY: {
      const EventReply reply = read_event_reply(r);
      if (const auto error = r.finish()) return *error;
      return Downward{reply};
    }
    default: return Downward{UnknownMessage{frame.id}};
  }
}

void DialectKvmi2::encode(const Command& command, Seq seq, ByteBuffer& out) {
  FrameWriter w(out, static_cast<std::uint16_t>(id_of(command)), seq);
  std::visit(
      Overloaded{
          [](const GetVersion&) {},
          [&](const GetGuests& c) { w.put(kvmi_get_guests{.first = c.first, .padding = 0}); },
          [](const GetGuestInfo&) {},
          [&](const PauseVcpu& c) { w.put(kvmi_pause_vcpu{.vcpu = c.vcpu.value, .padding = {}}); },
          [&](const GetRegisters& c) {
            w.put(kvmi_get_registers{
                .vcpu = c.vcpu.value, .msr_count = wire_count<std::uint16_t>(c.msrs.size()), .padding = 0});
            w.put(c.msrs.bytes());
          },
          [&](const SetRegisters& c) {
            w.put(kvmi_set_registers{.vcpu = c.vcpu.value, .padding = {}, .regs = c.regs});
          },
          [](const ShutdownGuest&) {},
          [&](const GetCpuid& c) {
            w.put(kvmi_get_cpuid{.vcpu = c.vcpu.value, .padding = {}, .function = c.function, .index = c.index});
          },
          [&](const GetPageAccess& c) {
            w.put(kvmi_get_page_access{.gpa = c.gpa.value,
                                       .pages = c.pages,
                                       .address_space = static_cast<std::uint16_t>(c.space),
                                       .padding = 0});
          },
          [&](const SetPageAccess& c) {
            w.put(kvmi_set_page_access{.count = wire_count<std::uint16_t>(c.entries.size()),
                                       .address_space = static_cast<std::uint16_t>(c.space),
                                       .padding = 0});
            w.put(c.entries.bytes());
          },
          [&](const InjectException& c) {
            w.put(kvmi_inject_exception{.vcpu = c.vcpu.value,
                                        .vector = c.vector,
                                        .has_error_code = c.has_error_code,
                                        .error_code = c.error_code,
                                        .address = c.address});
          },
          [&](const ReadPhysical& c) {
            w.put(kvmi_read_physical{.count = wire_count<std::uint16_t>(c.ranges.size()),
                                     .address_space = static_cast<std::uint16_t>(c.space),
                                     .padding = 0});
            w.put(c.ranges.bytes());
          },
          [&](const WritePhysical& c) {
            const bool expect = (c.flags & KVMI_WRITE_EXPECT) != 0;
            if (c.expected.size() != (expect ? c.data.size() : 0)) std::abort();
            w.put(kvmi_write_physical{.gpa = c.gpa.value,
                                      .size = wire_count<std::uint32_t>(c.data.size()),
                                      .address_space = static_cast<std::uint16_t>(c.space),
                                      .flags = c.flags,
                                      .cookie = c.cookie});
            w.put(c.data);
            w.put(c.expected);
          },
          [&](const GrantMemory& c) { w.put(kvmi_grant_memory{.flags = c.flags, .padding = 0}); },
          [&](const ControlEvents& c) {
            w.put(kvmi_control_events{.vcpu = c.vcpu.value,
                                      .operation = static_cast<std::uint8_t>(c.operation),
                                      .role = static_cast<std::uint8_t>(c.role),
                                      .padding = 0,
                                      .events = c.events.bits});
          },
          [&](const ControlCr& c) {
            w.put(kvmi_control_cr{.vcpu = c.vcpu.value, .enable = c.enable, .padding = 0, .cr = c.cr});
          },
          [&](const ControlMsr& c) {
            w.put(kvmi_control_msr{.vcpu = c.vcpu.value, .enable = c.enable, .padding = 0, .msr = c.msr});
          },
          [&](const TranslateGva& c) {
            w.put(kvmi_translate_gva{.vcpu = c.vcpu.value, .padding = {}, .gva = c.gva.value});
          },
          [&](const ControlSinglestep& c) {
            w.put(kvmi_control_singlestep{.vcpu = c.vcpu.value, .enable = c.enable, .padding = {}});
          },
          [&](const SetFilter& c) {
            w.put(kvmi_set_filter{.vcpu = c.vcpu.value,
                                  .event = static_cast<std::uint8_t>(c.event),
                                  .action = static_cast<std::uint8_t>(c.action),
                                  .count = wire_count<std::uint32_t>(c.terms.size())});
            w.put(c.terms.bytes());
          },
          [&](const GetXsave& c) { w.put(kvmi_get_xsave{.vcpu = c.vcpu.value, .padding = {}}); },
          [&](const SetXsave& c) {
            w.put(kvmi_set_xsave{
                .vcpu = c.vcpu.value, .padding = 0, .size = wire_count<std::uint32_t>(c.area.size())});
            w.put(c.area);
          },
          [&](const GetXcr& c) { w.put(kvmi_get_xcr{.vcpu = c.vcpu.value, .padding = 0, .xcr = c.xcr}); },
          [&](const GetMemoryMap& c) {
            w.put(kvmi_get_memory_map{.address_space = static_cast<std::uint16_t>(c.space), .padding = {}});
          },
      },
      command);
}

void DialectKvmi2::encode(const EventReply& reply, Seq seq, ByteBuffer& out) {
  const auto flag = [](bool set, unsigned bit) { return set ? bit : 0U; };
  const auto* value = std::get_if<NewValue>(&reply.value);
  const auto* data = std::get_if<NewData>(&reply.value);
  // A replaced value that the event does not have: the caller's mistake, not the peer's.
  if (value != nullptr && !has_new_value(reply.event)) std::abort();
  if (data != nullptr && reply.event != EventKind::Access) std::abort();

  FrameWriter w(out, KVMI_MSG_EVENT_REPLY, seq);
  const unsigned flags = flag(value != nullptr || data != nullptr, KVMI_REPLY_F_VALUE) |
                         flag(reply.trap_access, KVMI_REPLY_F_TRAP_ACCESS) |
                         flag(reply.step_over, KVMI_REPLY_F_STEP_OVER) | flag(reply.has_cookie, KVMI_REPLY_F_COOKIE);
  w.put(kvmi_event_reply{.vcpu = reply.vcpu.value,
                         .event = static_cast<std::uint8_t>(reply.event),
                         .action = static_cast<std::uint8_t>(reply.action),
                         .flags = static_cast<std::uint8_t>(flags),
                         .padding = {},
                         .cookie = reply.has_cookie ? reply.cookie : 0});
  if (has_new_value(reply.event)) {
    w.put(kvmi_event_value_reply{.new_value = value != nullptr ? value->value : 0});
  } else if (reply.event == EventKind::Access) {
    kvmi_event_access_reply specific{};
    if (data != nullptr) std::memcpy(specific.data, data->data.data(), sizeof specific.data);
    w.put(specific);
  }
}

}  // namespace kvmid
