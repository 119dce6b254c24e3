// SPDX-License-Identifier: LGPL-2.1-or-later
//
// KVMI 2 towards the agent: replies to commands, notices, arrivals; events are in dialect_kvmi2_events.cpp.

#include <algorithm>

#include "protocol/dialect_kvmi2.h"
#include "protocol/payload_io.h"

namespace kvmid {
namespace {

constexpr auto kBadFlag = DecodeErrc::BadFlag;
constexpr auto kBadValue = DecodeErrc::BadValue;
constexpr std::uint8_t kRightsAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

GetVersionReply read_version(PayloadReader& r) {
  // Unknown bits are fine: the sets are how a newer peer says what else it serves.
  const auto wire = r.take<kvmi_get_version_reply>();
  return {wire.version, wire.max_payload, CommandSet{wire.commands}, EventSet{wire.events}};
}

GetGuestsReply read_guests(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_guests_reply>();
  r.check(wire.count <= wire.total, kBadValue, KVMID_FIELD(kvmi_get_guests_reply, count));
  std::size_t at = r.position();
  const auto entries = r.take_array<kvmi_guest_entry>(wire.count);
  for (std::size_t i = 0; i < entries.size(); ++i, at += sizeof(kvmi_guest_entry)) check_guest_entry(r, entries[i], at);
  return {wire.total, entries};
}

GetGuestInfoReply read_guest_info(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_guest_info_reply>();
  r.check(wire.vcpu_count >= 1, kBadValue, KVMID_FIELD(kvmi_get_guest_info_reply, vcpu_count));
  r.check(wire.arch == KVMI_ARCH_X86, kBadValue, KVMID_FIELD(kvmi_get_guest_info_reply, arch));
  r.check_zero(KVMID_FIELD(kvmi_get_guest_info_reply, padding));
  r.check_bool(wire.execute_only, KVMID_FIELD(kvmi_get_guest_info_reply, execute_only));
  r.check_zero(KVMID_FIELD(kvmi_get_guest_info_reply, padding2));
  return {wire.vcpu_count,          wire.arch,
          wire.tsc_hz,              wire.physical_address_bits,
          wire.linear_address_bits, wire.execute_only != 0,
          wire.max_gpa};
}

GetRegistersReply read_registers(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_registers_reply>();
  r.check(wire.mode == 2 || wire.mode == 4 || wire.mode == 8, kBadValue, KVMID_FIELD(kvmi_get_registers_reply, mode));
  r.check_zero(KVMID_FIELD(kvmi_get_registers_reply, padding));
  check_sregs_padding(r, offsetof(kvmi_get_registers_reply, sregs));
  std::size_t at = r.position();
  const auto msrs = r.take_array<kvmi_x86_msr>(wire.msr_count);
  for (std::size_t i = 0; i < msrs.size(); ++i, at += sizeof(kvmi_x86_msr)) {
    r.set_base(at);
    r.check_zero(KVMID_FIELD(kvmi_x86_msr, padding));
  }
  return {wire.mode, wire.regs, wire.sregs, msrs};
}

GetCpuidReply read_cpuid(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_cpuid_reply>();
  return {wire.eax, wire.ebx, wire.ecx, wire.edx};
}

GetPageAccessReply read_page_access(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_page_access_reply>();
  r.check_zero(KVMID_FIELD(kvmi_get_page_access_reply, padding));
  const std::size_t first_at = r.position();
  const auto entries = r.take_array<kvmi_page_access_entry>(wire.count);
  check_page_access_entries(r, entries, first_at);
  return {entries};
}

ReadPhysicalReply read_read_physical(PayloadReader& r) {
  const auto wire = r.take<kvmi_read_physical_reply>();
  return {wire.cookie, r.take_rest()};
}

WritePhysicalReply read_write_physical(PayloadReader& r) { return {r.take<kvmi_write_physical_reply>().cookie}; }

GrantMemoryReply read_grant_memory(PayloadReader& r) {
  const auto wire = r.take<kvmi_grant_memory_reply>();
  r.check_zero(KVMID_FIELD(kvmi_grant_memory_reply, padding));
  return {wire.ram_bytes, wire.generation_bytes, wire.fd_count};
}

ControlEventsReply read_control_events(PayloadReader& r) {
  const auto wire = r.take<kvmi_control_events_reply>();
  r.check((wire.events & ~kEveryEvent.bits) == 0, DecodeErrc::UnknownEvent,
          KVMID_FIELD(kvmi_control_events_reply, events));
  return {EventSet{wire.events}};
}

TranslateGvaReply read_translate_gva(PayloadReader& r) {
  const auto wire = r.take<kvmi_translate_gva_reply>();
  r.check((wire.access & ~kRightsAll) == 0, kBadFlag, KVMID_FIELD(kvmi_translate_gva_reply, access));
  r.check_bool(wire.user, KVMID_FIELD(kvmi_translate_gva_reply, user));
  r.check_zero(KVMID_FIELD(kvmi_translate_gva_reply, padding));
  return {Gpa{wire.gpa}, wire.page_bytes, wire.access, wire.user != 0};
}

/// `free_from`: where the slot before ends.
void check_slot(PayloadReader& r, const kvmi_memory_slot& slot, std::uint64_t free_from, std::size_t at) {
  r.set_base(at);
  r.check(slot.gpa % kPageSize == 0 && slot.gpa >= free_from, kBadValue, KVMID_FIELD(kvmi_memory_slot, gpa));
  r.check(slot.bytes != 0 && slot.bytes % kPageSize == 0 && !wraps(slot.gpa, slot.bytes), kBadValue,
          KVMID_FIELD(kvmi_memory_slot, bytes));
  r.check(slot.address_space <= KVMI_ADDRESS_SPACE_SMM, kBadValue, KVMID_FIELD(kvmi_memory_slot, address_space));
  r.check((slot.flags & ~KVMI_SLOT_READ_ONLY) == 0, kBadFlag, KVMID_FIELD(kvmi_memory_slot, flags));
  r.check_zero(KVMID_FIELD(kvmi_memory_slot, padding));
}

GetMemoryMapReply read_memory_map(PayloadReader& r) {
  const auto wire = r.take<kvmi_get_memory_map_reply>();
  r.check_zero(KVMID_FIELD(kvmi_get_memory_map_reply, padding));
  std::size_t at = r.position();
  const auto slots = r.take_array<kvmi_memory_slot>(wire.count);
  std::uint64_t free_from = 0;
  for (std::size_t i = 0; i < slots.size(); ++i, at += sizeof(kvmi_memory_slot)) {
    const kvmi_memory_slot slot = slots[i];
    check_slot(r, slot, free_from, at);
    free_from = slot.gpa + slot.bytes;
  }
  return {slots};
}

constexpr bool is_command(std::uint16_t id) {
  switch (static_cast<CommandId>(id)) {
    case CommandId::GetVersion:
    case CommandId::GetGuests:
    case CommandId::GetGuestInfo:
    case CommandId::PauseVcpu:
    case CommandId::GetRegisters:
    case CommandId::SetRegisters:
    case CommandId::ShutdownGuest:
    case CommandId::GetCpuid:
    case CommandId::GetPageAccess:
    case CommandId::SetPageAccess:
    case CommandId::InjectException:
    case CommandId::ReadPhysical:
    case CommandId::WritePhysical:
    case CommandId::GrantMemory:
    case CommandId::ControlEvents:
    case CommandId::ControlCr:
    case CommandId::ControlMsr:
    case CommandId::TranslateGva:
    case CommandId::ControlSinglestep:
    case CommandId::SetFilter:
    case CommandId::GetXsave:
    case CommandId::SetXsave:
    case CommandId::GetXcr:
    case CommandId::GetMemoryMap: return true;
  }
  return false;
}

ReplyBody read_body(PayloadReader& r, CommandId id) {
  switch (id) {
    case CommandId::GetVersion: return read_version(r);
    case CommandId::GetGuests: return read_guests(r);
    case CommandId::GetGuestInfo: return read_guest_info(r);
    case CommandId::GetRegisters: return read_registers(r);
    case CommandId::GetCpuid: return read_cpuid(r);
    case CommandId::GetPageAccess: return read_page_access(r);
    case CommandId::ReadPhysical: return read_read_physical(r);
    case CommandId::WritePhysical: return read_write_physical(r);
    case CommandId::GrantMemory: return read_grant_memory(r);
    case CommandId::ControlEvents: return read_control_events(r);
    case CommandId::TranslateGva: return read_translate_gva(r);
    case CommandId::GetXsave: return GetXsaveReply{r.take_rest()};
    case CommandId::GetXcr: return GetXcrReply{r.take<kvmi_get_xcr_reply>().value};
    case CommandId::GetMemoryMap: return read_memory_map(r);
    case CommandId::PauseVcpu:
    case CommandId::SetRegisters:
    case CommandId::ShutdownGuest:
    case CommandId::SetPageAccess:
    case CommandId::InjectException:
    case CommandId::ControlCr:
    case CommandId::ControlMsr:
    case CommandId::ControlSinglestep:
    case CommandId::SetFilter:
    case CommandId::SetXsave: return std::monostate{};
  }
  return std::monostate{};
}

/// index() of the reply body of a command.
std::size_t body_index(CommandId id) {
  PayloadReader empty({}, 0);
  return read_body(empty, id).index();
}

CommandReply read_reply(PayloadReader& r, std::uint16_t id) {
  CommandReply reply{.id = id, .error = ErrorCode::None, .text = {}, .body = {}};
  const auto head = r.take<kvmi_error>();
  // Widened: -INT32_MIN is no int32_t.
  const std::int64_t number = -std::int64_t{head.error_code};
  r.check(is_error_number(number), kBadValue, KVMID_FIELD(kvmi_error, error_code));
  r.check(number != 0 || head.text_size == 0, kBadValue, KVMID_FIELD(kvmi_error, text_size));
  if (r.failed()) return reply;

  reply.error = static_cast<ErrorCode>(number);
  const auto command = static_cast<CommandId>(id);
  const bool stale_write = command == CommandId::WritePhysical && reply.error == ErrorCode::Stale;
  if (reply.error == ErrorCode::None || stale_write) reply.body = read_body(r, command);
  reply.text = r.take_text(head.text_size);
  return reply;
}

Notice read_notice(PayloadReader& r) {
  const auto wire = r.take<kvmi_notice>();
  const std::int64_t number = -std::int64_t{wire.error_code};
  r.check(wire.kind >= KVMI_NOTICE_EXPIRED && wire.kind <= KVMI_NOTICE_FRAME_REFUSED, kBadValue,
          KVMID_FIELD(kvmi_notice, kind));
  r.check(wire.event < KVMI_EVENT_COUNT, DecodeErrc::UnknownEvent, KVMID_FIELD(kvmi_notice, event));
  r.check(wire.action < kActionCount, DecodeErrc::UnknownAction, KVMID_FIELD(kvmi_notice, action));
  r.check_zero(KVMID_FIELD(kvmi_notice, padding));
  r.check(is_error_number(number), kBadValue, KVMID_FIELD(kvmi_notice, error_code));
  const std::string_view text = r.take_text(wire.text_size);
  Notice notice{.kind = static_cast<NoticeKind>(wire.kind),
                .event = static_cast<EventKind>(wire.event),
                .action = static_cast<Action>(wire.action),
                .vcpu = VcpuId{wire.vcpu},
                .error = ErrorCode::None,
                .agent = AgentId{wire.agent},
                .event_seq = Seq{wire.seq},
                .count = wire.count,
                .text = text};
  if (!r.failed()) notice.error = static_cast<ErrorCode>(number);
  return notice;
}

GuestOn read_guest_on(PayloadReader& r) {
  const auto wire = r.take<kvmi_guest_on>();
  check_guest_entry(r, wire.guest, 0);
  return {wire.guest};
}

GuestOff read_guest_off(PayloadReader& r) {
  const auto wire = r.take<kvmi_guest_off>();
  r.check(wire.reason <= KVMI_OFF_RESET, kBadValue, KVMID_FIELD(kvmi_guest_off, reason));
  r.check_zero(KVMID_FIELD(kvmi_guest_off, padding));
  GuestOff message;
  std::copy(std::begin(wire.uuid), std::end(wire.uuid), message.uuid.bytes.begin());
  message.reason = static_cast<OffReason>(wire.reason);
  message.text = r.take_text(wire.text_size);
  return message;
}

MemoryMapChanged read_memory_map_changed(PayloadReader& r) {
  const auto wire = r.take<kvmi_memory_map_changed>();
  r.check(wire.change <= KVMI_MAP_FLAGS, kBadValue, KVMID_FIELD(kvmi_memory_map_changed, change));
  r.check_zero(KVMID_FIELD(kvmi_memory_map_changed, padding));
  const bool moved = wire.change == KVMI_MAP_MOVED;
  r.check(wire.old_gpa % kPageSize == 0 && (moved || wire.old_gpa == 0), kBadValue,
          KVMID_FIELD(kvmi_memory_map_changed, old_gpa));
  check_slot(r, wire.slot, 0, offsetof(kvmi_memory_map_changed, slot));
  return {static_cast<MapChange>(wire.change), wire.max_gpa, Gpa{wire.old_gpa}, wire.slot};
}

/// `message` was read from `r`: the reading comes first, for it is an argument.
template <class T>
Result<Upward, DecodeError> finish(PayloadReader& r, const T& message) {
  if (const auto error = r.finish()) return *error;
  return Upward{message};
}

}  // namespace

void check_page_access_entries(PayloadReader& r, const WireArray<kvmi_page_access_entry>& entries,
                               std::size_t first_at) {
  std::size_t at = first_at;
  for (std::size_t i = 0; i < entries.size(); ++i, at += sizeof(kvmi_page_access_entry)) {
    const kvmi_page_access_entry entry = entries[i];
    r.set_base(at);
    r.check(entry.gpa % kPageSize == 0, kBadValue, KVMID_FIELD(kvmi_page_access_entry, gpa));
    r.check(entry.pages >= 1 && !wraps(entry.gpa, entry.pages * kPageSize), kBadValue,
            KVMID_FIELD(kvmi_page_access_entry, pages));
    r.check((entry.access & ~kRightsAll) == 0, kBadFlag, KVMID_FIELD(kvmi_page_access_entry, access));
    r.check_zero(KVMID_FIELD(kvmi_page_access_entry, padding));
  }
}

void check_guest_entry(PayloadReader& r, const kvmi_guest_entry& entry, std::size_t at) {
  if (r.failed()) return;
  r.set_base(at);
  const std::string_view field(entry.name, sizeof entry.name);
  const auto end = std::min(field.find('\0'), field.size());
  r.check(end < field.size() && is_printable_name(field.substr(0, end)), kBadValue,
          KVMID_FIELD(kvmi_guest_entry, name));
  r.check_zero(FieldAt{offsetof(kvmi_guest_entry, name) + end, field.size() - end});
  r.check(entry.state <= KVMI_GUEST_AWAY, kBadValue, KVMID_FIELD(kvmi_guest_entry, state));
}

void check_sregs_padding(PayloadReader& r, std::size_t sregs_offset) {
  constexpr std::size_t kSegments = offsetof(kvmi_x86_sregs, gdt) / sizeof(kvmi_x86_segment);
  static_assert(kSegments == 8);
  for (std::size_t i = 0; i < kSegments; ++i) {
    r.check_zero(KVMID_FIELD(kvmi_x86_segment, padding), sregs_offset + i * sizeof(kvmi_x86_segment));
  }
  r.check_zero(KVMID_FIELD(kvmi_x86_dtable, padding), sregs_offset + offsetof(kvmi_x86_sregs, gdt));
  r.check_zero(KVMID_FIELD(kvmi_x86_dtable, padding), sregs_offset + offsetof(kvmi_x86_sregs, idt));
}

bool is_error_number(std::int64_t number) {
  if (number < 0 || number > KVMI_ENOSYS) return false;
  return name_of(static_cast<ErrorCode>(number)) != "unknown";
}

Result<Upward, DecodeError> DialectKvmi2::decode_upward(const Frame& frame) {
  PayloadReader r(frame.payload, frame.id);
  switch (frame.id) {
    case KVMI_MSG_EVENT: return finish(r, read_event(r));
    case KVMI_MSG_NOTICE: return finish(r, read_notice(r));
    case KVMI_MSG_GUEST_ON: return finish(r, read_guest_on(r));
    case KVMI_MSG_GUEST_OFF: return finish(r, read_guest_off(r));
    case KVMI_MSG_MEMORY_MAP_CHANGED: return finish(r, read_memory_map_changed(r));
    default: break;
  }
  if (!is_command(frame.id)) return Upward{UnknownMessage{frame.id}};
  return finish(r, read_reply(r, frame.id));
}

void DialectKvmi2::encode(const CommandReply& reply, Seq seq, ByteBuffer& out) {
  FrameWriter w(out, reply.id, seq);
  if (reply.error != ErrorCode::None) {
    w.put(kvmi_error{.error_code = -static_cast<std::int32_t>(reply.error),
                     .text_size = wire_count<std::uint32_t>(reply.text.size())});
    if (reply.id == KVMI_MSG_WRITE_PHYSICAL && reply.error == ErrorCode::Stale) {
      const auto* current = std::get_if<WritePhysicalReply>(&reply.body);
      w.put(kvmi_write_physical_reply{.cookie = current != nullptr ? current->cookie : 0});
    }
    w.put(reply.text);
    return;
  }

  // Success with the body of another command, or of none that exists: the caller's mistake.
  if (!is_command(reply.id) || reply.body.index() != body_index(static_cast<CommandId>(reply.id))) std::abort();
  w.put(kvmi_error{.error_code = 0, .text_size = 0});
  std::visit(
      Overloaded{
          [](std::monostate) {},
          [&](const GetVersionReply& b) {
            w.put(kvmi_get_version_reply{.version = b.version,
                                         .max_payload = b.max_payload,
                                         .commands = b.commands.bits,
                                         .events = b.events.bits});
          },
          [&](const GetGuestsReply& b) {
            w.put(kvmi_get_guests_reply{.total = b.total, .count = wire_count<std::uint32_t>(b.entries.size())});
            w.put(b.entries.bytes());
          },
          [&](const GetGuestInfoReply& b) {
            w.put(kvmi_get_guest_info_reply{.vcpu_count = b.vcpu_count,
                                            .arch = b.arch,
                                            .padding = 0,
                                            .tsc_hz = b.tsc_hz,
                                            .physical_address_bits = b.physical_address_bits,
                                            .linear_address_bits = b.linear_address_bits,
                                            .execute_only = b.execute_only,
                                            .padding2 = {},
                                            .max_gpa = b.max_gpa});
          },
          [&](const GetRegistersReply& b) {
            w.put(kvmi_get_registers_reply{.mode = b.mode,
                                           .padding = {},
                                           .msr_count = wire_count<std::uint32_t>(b.msrs.size()),
                                           .regs = b.regs,
                                           .sregs = b.sregs});
            w.put(b.msrs.bytes());
          },
          [&](const GetCpuidReply& b) {
            w.put(kvmi_get_cpuid_reply{.eax = b.eax, .ebx = b.ebx, .ecx = b.ecx, .edx = b.edx});
          },
          [&](const GetPageAccessReply& b) {
            w.put(
                kvmi_get_page_access_reply{.count = wire_count<std::uint32_t>(b.entries.size()), .padding = 0});
            w.put(b.entries.bytes());
          },
          [&](const ReadPhysicalReply& b) {
            w.put(kvmi_read_physical_reply{.cookie = b.cookie});
            w.put(b.data);
          },
          [&](const WritePhysicalReply& b) { w.put(kvmi_write_physical_reply{.cookie = b.cookie}); },
          [&](const GrantMemoryReply& b) {
            w.put(kvmi_grant_memory_reply{.ram_bytes = b.ram_bytes,
                                          .generation_bytes = b.generation_bytes,
                                          .fd_count = b.fd_count,
                                          .padding = 0});
          },
          [&](const ControlEventsReply& b) { w.put(kvmi_control_events_reply{.events = b.events.bits}); },
          [&](const TranslateGvaReply& b) {
            w.put(kvmi_translate_gva_reply{.gpa = b.gpa.value,
                                           .page_bytes = b.page_bytes,
                                           .access = b.access,
                                           .user = b.user,
                                           .padding = {}});
          },
          [&](const GetXsaveReply& b) { w.put(b.area); },
          [&](const GetXcrReply& b) { w.put(kvmi_get_xcr_reply{.value = b.value}); },
          [&](const GetMemoryMapReply& b) {
            w.put(kvmi_get_memory_map_reply{.count = wire_count<std::uint32_t>(b.slots.size()), .padding = 0});
            w.put(b.slots.bytes());
          },
      },
      reply.body);
}

void DialectKvmi2::encode(const Notice& notice, ByteBuffer& out) {
  FrameWriter w(out, KVMI_MSG_NOTICE, Seq{0});
  w.put(kvmi_notice{.kind = static_cast<std::uint8_t>(notice.kind),
                    .event = static_cast<std::uint8_t>(notice.event),
                    .action = static_cast<std::uint8_t>(notice.action),
                    .padding = 0,
                    .vcpu = notice.vcpu.value,
                    .text_size = wire_count<std::uint16_t>(notice.text.size()),
                    .error_code = -static_cast<std::int32_t>(notice.error),
                    .agent = notice.agent.value,
                    .seq = notice.event_seq.value,
                    .count = notice.count});
  w.put(notice.text);
}

void DialectKvmi2::encode(const GuestOn& message, ByteBuffer& out) {
  FrameWriter w(out, KVMI_MSG_GUEST_ON, Seq{0});
  w.put(kvmi_guest_on{.guest = message.guest});
}

void DialectKvmi2::encode(const GuestOff& message, ByteBuffer& out) {
  FrameWriter w(out, KVMI_MSG_GUEST_OFF, Seq{0});
  kvmi_guest_off wire{};
  std::copy(message.uuid.bytes.begin(), message.uuid.bytes.end(), wire.uuid);
  wire.reason = static_cast<std::uint8_t>(message.reason);
  wire.text_size = wire_count<std::uint32_t>(message.text.size());
  w.put(wire);
  w.put(message.text);
}

void DialectKvmi2::encode(const MemoryMapChanged& message, ByteBuffer& out) {
  FrameWriter w(out, KVMI_MSG_MEMORY_MAP_CHANGED, Seq{0});
  w.put(kvmi_memory_map_changed{.change = static_cast<std::uint8_t>(message.change),
                                .padding = {},
                                .max_gpa = message.max_gpa,
                                .old_gpa = message.old_gpa.value,
                                .slot = message.slot});
}

}  // namespace kvmid
