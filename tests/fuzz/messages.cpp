// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/messages.h"

#include <cstdlib>
#include <cstring>

namespace kvmid::fuzz {

namespace {

VcpuId some_vcpu(ByteSource& source) {
  const std::uint32_t pick = source.pick(8);
  return pick >= 6 ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(pick % (kVcpus + 1))};  // one too many, at times
}
Gpa some_page(ByteSource& source) { return Gpa{source.pick(kPages) * kPageSize}; }
/// Where patches and breakpoints meet.
Gpa some_place(ByteSource& source) { return Gpa{some_page(source).value + source.pick(4)}; }
std::vector<std::byte> some_bytes(ByteSource& source, std::size_t max) {
  const auto view = std::as_bytes(source.some(max));
  return {view.begin(), view.end()};
}
EventSet some_events(ByteSource& source) {
  if (source.coin()) return EventSet{std::uint64_t{1} << source.pick(kEventCount)};
  return EventSet{source.any<std::uint16_t>() & kEveryEvent.bits};
}

Command some_write(ByteSource& source, Tails& tails) {
  static constexpr std::uint16_t kFlags[] = {0, KVMI_WRITE_PATCH, KVMI_WRITE_UNPATCH, KVMI_WRITE_COOKIE,
                                             KVMI_WRITE_EXPECT, KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT};
  WritePhysical write;
  write.gpa = some_place(source);
  write.flags = source.pick(kFlags);
  std::vector<std::byte> data = some_bytes(source, 300);
  if (data.empty() || source.coin()) data = {std::byte{0xcc}};
  if ((write.flags & KVMI_WRITE_COOKIE) != 0) write.cookie = source.any<std::uint8_t>();
  if ((write.flags & KVMI_WRITE_EXPECT) != 0) write.expected = tails.keep(data);
  write.data = tails.keep(std::move(data));
  return write;
}

Command some_filter(ByteSource& source, Tails& tails) {
  SetFilter filter{some_vcpu(source), static_cast<EventKind>(source.pick(kEventCount)),
                   static_cast<Action>(source.pick(kActionCount)), {}};
  std::vector<kvmi_filter_term> terms;
  for (std::uint32_t i = 0, n = source.pick(5); i < n; ++i) {
    kvmi_filter_term term{};
    term.field = static_cast<std::uint8_t>(source.pick(9));
    term.compare = static_cast<std::uint8_t>(source.pick(7));
    term.new_group = i != 0 && source.coin();
    if (term.field == KVMI_FILTER_REGISTER) term.reg = static_cast<std::uint8_t>(source.pick(18));
    term.value = source.any<std::uint8_t>();
    if (term.compare >= KVMI_COMPARE_RANGE) term.operand = term.value + source.any<std::uint8_t>();
    terms.push_back(term);
  }
  filter.terms = tails.array(terms);
  return filter;
}

}  // namespace

WireFrame frame_of(const ByteBuffer& bytes) {
  kvmi_msg_hdr header;
  if (bytes.size() < sizeof header) std::abort();
  std::memcpy(&header, bytes.data(), sizeof header);
  if (bytes.size() != sizeof header + header.size) std::abort();
  return {header.id, Seq{header.seq}, {bytes.begin() + sizeof header, bytes.end()}};
}

void damage(WireFrame& frame, ByteSource& source) {
  if (!source.one_in(4)) return;
  if (source.one_in(8)) frame.payload.resize(source.pick(64));
  for (std::uint32_t i = 0, n = source.pick(4); i < n && !frame.payload.empty(); ++i)
    frame.payload[source.pick(static_cast<std::uint32_t>(frame.payload.size()))] ^=
        std::byte{source.any<std::uint8_t>()};
}

Command some_command(ByteSource& source, Tails& tails) {
  static constexpr std::uint32_t kMsrs[] = {0x10, 0x174, 0xc0000080, 0xc0000082, 0x4b564d00, 0x12345678};
  static constexpr std::uint32_t kCrs[] = {0, 3, 4, 8};
  static constexpr std::uint8_t kRights[] = {0, KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W,
                                             KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X, 7, 7};
  switch (source.pick(32)) {
    case 0: return GetVersion{};
    case 1: return GetGuests{source.any<std::uint8_t>()};
    case 2: return GetGuestInfo{};
    case 3: return PauseVcpu{some_vcpu(source)};
    case 4: {
      std::vector<std::uint32_t> msrs(source.any<std::uint8_t>() * (source.one_in(8) ? 40U : 1U), kMsrs[0]);
      return GetRegisters{some_vcpu(source), tails.array(msrs)};
    }
    case 5:
    case 6: {
      SetRegisters set{some_vcpu(source), {}};
      set.regs.rax = source.any<std::uint8_t>();
      return set;
    }
    case 7: return ShutdownGuest{};
    case 8: return GetCpuid{some_vcpu(source), source.any<std::uint8_t>(), source.any<std::uint8_t>()};
    case 9: return GetPageAccess{some_page(source), source.any<std::uint8_t>(), AddressSpace::Normal};
    case 10:
    case 11:
    case 12: {
      std::vector<kvmi_page_access_entry> entries;
      for (std::uint32_t i = 0, n = 1 + source.pick(4); i < n; ++i)
        entries.push_back({some_page(source).value, 1 + source.pick(5), source.pick(kRights), {}});
      return SetPageAccess{source.one_in(16) ? AddressSpace::Smm : AddressSpace::Normal, tails.array(entries)};
    }
    case 13: return InjectException{some_vcpu(source), source.any<std::uint8_t>(), source.coin(), 0, 0};
    case 14: {
      std::vector<kvmi_read_range> ranges;
      for (std::uint32_t i = 0, n = 1 + source.pick(3); i < n; ++i) {
        kvmi_read_range range{};
        range.gpa = some_place(source).value;
        range.size = source.one_in(8) ? 60000U : source.any<std::uint8_t>();
        ranges.push_back(range);
      }
      return ReadPhysical{AddressSpace::Normal, tails.array(ranges)};
    }
    case 15:
    case 16:
    case 17: return some_write(source, tails);
    case 18: return GrantMemory{source.pick(2)};
    case 19:
    case 20:
    case 21:
    case 22:
      return ControlEvents{some_vcpu(source), static_cast<Operation>(source.pick(3)),
                           source.one_in(3) ? Role::Observer : Role::Decider, some_events(source)};
    case 23: return ControlCr{some_vcpu(source), source.coin(), source.pick(kCrs)};
    case 24: return ControlMsr{some_vcpu(source), source.coin(), source.pick(kMsrs)};
    case 25: return TranslateGva{some_vcpu(source), Gva{source.any<std::uint64_t>()}};
    case 26: return ControlSinglestep{some_vcpu(source), source.coin()};
    case 27:
    case 28: return some_filter(source, tails);
    case 29: return GetXsave{some_vcpu(source)};
    case 30: return SetXsave{some_vcpu(source), tails.keep(some_bytes(source, 64))};
    default:
      if (source.coin()) return GetXcr{some_vcpu(source), 0};
      return GetMemoryMap{source.coin() ? AddressSpace::Smm : AddressSpace::Normal};
  }
}

Event some_event(ByteSource& source, VcpuId vcpu) {
  Event event;
  event.vcpu = vcpu;
  event.actions = ActionSet{static_cast<std::uint8_t>(source.one_in(4) ? 1 + source.pick(15) : 15)};
  event.cookie = source.one_in(4) ? source.any<std::uint8_t>() : 0;
  event.regs.rip = source.pick(kPages) * kPageSize;
  const std::uint64_t value = source.any<std::uint8_t>();
  static constexpr std::uint16_t kCrs[] = {0, 3, 4, 8};
  static constexpr std::uint32_t kMsrs[] = {0x10, 0x174, 0xc0000080, 0xc0000082, 0x4b564d00};
  switch (source.pick(32)) {
    case 0:
      event.vcpu = kAllVcpus;
      event.data = UnhookData{static_cast<OffReason>(source.pick(4))};
      break;
    case 1:
    case 2:
    case 3: event.data = CrData{source.pick(kCrs), value, value ^ 1U}; break;
    case 4:
    case 5:
    case 6: event.data = MsrData{source.pick(kMsrs), value, value ^ 2U}; break;
    case 7: event.data = XsetbvData{0, value, value ^ 4U}; break;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12: event.data = BreakpointData{some_place(source), 1}; break;
    case 13: event.data = HypercallData{}; break;
    case 14:
    case 15:
    case 16:
    case 17:
      event.data = PageFaultData{Gva{value}, some_place(source), static_cast<std::uint8_t>(1U << source.pick(3)), true};
      break;
    case 18: event.data = TrapData{.vector = static_cast<std::uint8_t>(source.pick(32))}; break;
    case 19: event.data = DescriptorData{static_cast<std::uint8_t>(source.pick(4)), source.coin()}; break;
    case 20: event.data = CreateVcpuData{}; break;
    case 21:
    case 22:
    case 23:
    case 24: event.data = PauseData{}; break;
    case 25:
    case 26:
    case 27: event.data = SinglestepData{source.one_in(4)}; break;
    case 28: event.data = CpuidData{static_cast<std::uint32_t>(value), 0}; break;
    case 29:
    case 30: {
      AccessData access{};
      access.gpa = some_place(source);
      access.access = static_cast<std::uint8_t>(1U << source.pick(2));
      access.size = 4;
      event.data = access;
      break;
    }
    default: event.data = HypercallData{}; break;
  }
  return event;
}

EventReply some_reply(ByteSource& source, VcpuId vcpu, EventKind kind) {
  EventReply reply{.vcpu = vcpu, .event = kind, .action = static_cast<Action>(source.pick(kActionCount))};
  const std::uint32_t extras = source.pick(32);
  reply.trap_access = kind == EventKind::PageFault && extras < 4;
  reply.step_over = kind == EventKind::Breakpoint && extras < 8;
  if (reply.trap_access) reply.action = Action::Allow;
  if (reply.step_over) reply.action = Action::Retry;
  if (extras == 8) {
    reply.has_cookie = true;
    reply.cookie = source.any<std::uint8_t>();
  }
  if (extras < 24) return reply;
  if (kind == EventKind::Cr || kind == EventKind::Msr || kind == EventKind::Xsetbv)
    reply.value = NewValue{source.any<std::uint8_t>()};
  if (kind == EventKind::Access) reply.value = NewData{};
  return reply;
}

CommandReply truthful_reply(const Command& command, Tails& tails) {
  CommandReply reply{.id = static_cast<std::uint16_t>(id_of(command))};
  std::visit(
      Overloaded{
          [&](const GetVersion&) {
            reply.body = GetVersionReply{KVMI_VERSION, KVMI_MAX_PAYLOAD, CommandSet{~std::uint64_t{0}}, kEveryEvent};
          },
          [&](const GetGuests&) { reply.body = GetGuestsReply{}; },
          [&](const GetGuestInfo&) {
            reply.body = GetGuestInfoReply{.vcpu_count = kVcpus,
                                           .physical_address_bits = 36,
                                           .linear_address_bits = 48,
                                           .max_gpa = kGuestRam};
          },
          [&](const GetRegisters& c) {
            GetRegistersReply body;
            body.msrs = tails.array(std::vector<kvmi_x86_msr>(c.msrs.size()));
            reply.body = body;
          },
          [&](const GetCpuid&) { reply.body = GetCpuidReply{}; },
          [&](const GetPageAccess&) { reply.body = GetPageAccessReply{}; },
          [&](const ReadPhysical& c) {
            std::size_t total = 0;
            for (std::size_t i = 0; i < c.ranges.size(); ++i) total += c.ranges[i].size;
            reply.body = ReadPhysicalReply{1, tails.keep(std::vector<std::byte>(total))};
          },
          [&](const WritePhysical&) { reply.body = WritePhysicalReply{2}; },
          [&](const GrantMemory&) { reply.body = GrantMemoryReply{}; },
          [&](const ControlEvents& c) { reply.body = ControlEventsReply{c.events}; },
          [&](const TranslateGva&) { reply.body = TranslateGvaReply{.gpa = {}, .page_bytes = kPageSize, .access = 7}; },
          [&](const GetXsave&) { reply.body = GetXsaveReply{tails.keep(std::vector<std::byte>(64))}; },
          [&](const GetXcr&) { reply.body = GetXcrReply{1}; },
          [&](const GetMemoryMap& c) {
            kvmi_memory_slot slot{};
            slot.bytes = kGuestRam;
            slot.address_space = static_cast<std::uint16_t>(c.space);
            reply.body = GetMemoryMapReply{tails.array(std::vector<kvmi_memory_slot>{slot})};
          },
          [](const auto&) {},
      },
      command);
  return reply;
}

}  // namespace kvmid::fuzz
