// SPDX-License-Identifier: GPL-2.0-or-later
// The core: answers in any order and with any error, stops vCPUs, runs out of patience.
#include <algorithm>
#include <cstring>

#include "tests/unit/bridge/pair/older_link.h"
#include "tests/unit/bridge/pair/tool_world.h"

namespace kvmid::bridge::test {

namespace {

constexpr std::array<ErrorCode, 13> kErrors = {
    ErrorCode::NotPermitted, ErrorCode::NoEntry,   ErrorCode::TooBig,   ErrorCode::TryAgain, ErrorCode::NoMemory,
    ErrorCode::Fault,        ErrorCode::Busy,      ErrorCode::NoDevice, ErrorCode::Invalid,  ErrorCode::NotSupported,
    ErrorCode::TimedOut,     ErrorCode::NotServed, ErrorCode::Stale};

template <class T>
std::span<const T> items_in(std::vector<std::byte>& bytes, const std::vector<T>& items) {
  bytes.resize(items.size() * sizeof(T));
  if (!items.empty()) std::memcpy(bytes.data(), items.data(), bytes.size());
  return {reinterpret_cast<const T*>(bytes.data()), items.size()};
}

}  // namespace

ReplyBody ToolWorld::body_for(const Open& open, std::vector<std::byte>& bytes) {
  switch (open.id) {
    case CommandId::GetGuestInfo: {
      GetGuestInfoReply info;
      info.vcpu_count = kVcpus;
      info.tsc_hz = 1'000'000'000;
      info.max_gpa = 0x10000000;
      return info;
    }
    case CommandId::GetRegisters: {
      std::vector<kvmi_x86_msr> msrs(open.size);
      for (auto& msr : msrs) msr.value = rng_.next();
      GetRegistersReply reply;
      reply.msrs = items_in(bytes, msrs);
      return reply;
    }
    case CommandId::GetCpuid:
      return GetCpuidReply{1, 2, 3, 4};
    case CommandId::GetPageAccess: {
      const std::vector<kvmi_page_access_entry> entries{
          {0x1000, static_cast<std::uint32_t>(open.size), static_cast<std::uint8_t>(rng_.below(8)), {}}};
      return GetPageAccessReply{items_in(bytes, entries)};
    }
    case CommandId::ReadPhysical:
      bytes.assign(open.size, std::byte{0x90});
      return ReadPhysicalReply{0, bytes};
    case CommandId::WritePhysical:
      return WritePhysicalReply{};
    case CommandId::ControlEvents:
      return ControlEventsReply{};
    case CommandId::TranslateGva:
      return TranslateGvaReply{.gpa = Gpa{0x3000}};
    case CommandId::GetXsave:
      bytes.assign(rng_.below(6000), std::byte{7});
      return GetXsaveReply{bytes};
    case CommandId::GetXcr:
      return GetXcrReply{7};
    case CommandId::GetMemoryMap: {
      std::vector<kvmi_memory_slot> slots(rng_.below(3));
      for (auto& slot : slots) slot.bytes = 0x100000;
      return GetMemoryMapReply{items_in(bytes, slots)};
    }
    default:
      return {};
  }
}

void ToolWorld::answer_one() {
  if (open_.empty()) return;
  const std::size_t which = rng_.below(open_.size());
  const Open open = open_[which];
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(which));
  std::vector<std::byte> bytes;
  CommandReply reply;
  reply.id = static_cast<std::uint16_t>(open.id);
  if (off_) {
    reply.error = ErrorCode::NoDevice;
  } else if (open.id == CommandId::PauseVcpu && open.vcpu.value >= kVcpus && open.vcpu != kAllVcpus) {
    reply.error = ErrorCode::Invalid;
    reply.text = "no such vCPU";
  } else if (rng_.one_in(5)) {
    reply.error = rng_.of(kErrors);
    reply.text = "because";
    if (reply.error == ErrorCode::Stale && open.id == CommandId::WritePhysical) reply.body = WritePhysicalReply{5};
  } else {
    reply.body = body_for(open, bytes);
    if (open.id == CommandId::PauseVcpu) {
      for (std::uint16_t i = 0; i < kVcpus; ++i)
        if (open.vcpu == kAllVcpus || open.vcpu.value == i) ++pauses_[i];
    }
    if (open.id == CommandId::InjectException) injections_[open.vcpu.value] = 1;
  }
  bridge_->deliver(reply, open.seq, wire_);
  std::fill(bytes.begin(), bytes.end(), std::byte{0xa5});
  take_down();
  look_at_wire();
}

// ---- events ----

EventData ToolWorld::any_data() {
  const std::uint64_t value = rng_.next(), other = rng_.one_in(8) ? value : rng_.next();
  switch (static_cast<EventKind>(rng_.between(1, kEventCount - 1))) {
    case EventKind::Cr:
      return CrData{3, value, other};
    case EventKind::Msr:
      return MsrData{0xc0000082, value, other};
    case EventKind::Xsetbv:
      return XsetbvData{0, value, other};
    case EventKind::Breakpoint:
      return BreakpointData{Gpa{0x2000}, 1};
    case EventKind::Hypercall:
      return HypercallData{};
    case EventKind::PageFault:
      return PageFaultData{Gva{value}, Gpa{0x2000}, static_cast<std::uint8_t>(rng_.between(1, 7)), rng_.percent(80)};
    case EventKind::Trap: {
      TrapData trap;
      trap.vector = static_cast<std::uint8_t>(rng_.below(32));
      if (rng_.percent(30)) trap.flags = KVMI_TRAP_F_INJECTED;
      return trap;
    }
    case EventKind::Descriptor:
      return DescriptorData{1, true};
    case EventKind::CreateVcpu:
      return CreateVcpuData{};
    case EventKind::Singlestep:
      return SinglestepData{false};
    case EventKind::Cpuid:
      return CpuidData{1, 2};
    case EventKind::Access:
      return AccessData{};
    default:
      return HypercallData{};
  }
}

void ToolWorld::raise(VcpuId vcpu, const EventData& data) {
  Stop stop{Seq{++last_stop_}, {}, 1};
  stop.event.vcpu = vcpu;
  stop.event.mode = 8;
  stop.event.decide = !rng_.one_in(6);
  stop.event.actions.bits = static_cast<std::uint8_t>(1U | rng_.below(16));
  stop.event.data = data;
  // PAUSE tells more than once that a vCPU has stopped, with one number.
  const bool pause = stop.event.kind() == EventKind::Pause;
  if (pause) {
    stop.event.decide = true;
    stop.replies = std::min(pauses_[vcpu.value], static_cast<unsigned>(rng_.between(1, 3)));
    pauses_[vcpu.value] -= stop.replies;
    if (pauses_[vcpu.value] == 0) pauses_.erase(vcpu.value);
  }
  const Event event = stop.event;
  const Seq seq = stop.seq;
  const unsigned times = stop.replies;
  if (event.decide) stops_.insert_or_assign(vcpu.value, std::move(stop));
  for (unsigned i = 0; i < times && !bridge_->broken(); ++i) bridge_->deliver(event, seq, wire_);
  if (bridge_->broken()) return;
  take_down();
  look_at_wire();
}

void ToolWorld::event_somewhere() {
  const VcpuId vcpu = any_vcpu();
  if (off_ || stops_.contains(vcpu.value)) return;
  if (injections_[vcpu.value] != 0 && rng_.percent(50)) {
    injections_[vcpu.value] = 0;
    TrapData trap;
    trap.vector = 14;
    trap.flags = KVMI_TRAP_F_INJECTED;
    return raise(vcpu, trap);
  }
  raise(vcpu, any_data());
}

void ToolWorld::pause_somewhere() {
  if (off_) return pauses_.clear();
  for (std::uint16_t i = 0; i < kVcpus; ++i) {
    if (stops_.contains(i) || !pauses_.contains(i)) continue;
    return raise(VcpuId{i}, PauseData{});
  }
}

void ToolWorld::notice() {
  Notice notice;
  switch (rng_.below(5)) {
    case 0:
    case 1: {
      if (stops_.empty()) return;
      auto it = stops_.begin();
      std::advance(it, static_cast<std::ptrdiff_t>(rng_.below(stops_.size())));
      notice = Notice{.kind = NoticeKind::Expired,
                      .event = it->second.event.kind(),
                      .vcpu = VcpuId{it->first},
                      .event_seq = it->second.seq};
      stops_.erase(it);
      break;
    }
    case 2:
      notice = Notice{.kind = NoticeKind::ReplyRefused, .vcpu = any_vcpu(), .event_seq = Seq{last_stop_}};
      break;
    case 3:
      notice = Notice{.kind = NoticeKind::Demoted, .event = static_cast<EventKind>(rng_.below(kEventCount))};
      break;
    default:
      notice = Notice{.kind = NoticeKind::Revoked};
      break;
  }
  bridge_->deliver(notice, wire_);
  take_down();
  look_at_wire();
}

void ToolWorld::guest_goes() {
  if (off_) return;
  const bool told = bridge_->guest_off(OffReason::Suspend, wire_);
  off_ = true;
  stops_.clear();
  pauses_.clear();
  if (bridge_->broken()) return;
  take_down();
  look_at_wire();
  // What it asked for last may still wait in the bridge.
  if (polite_ && sent_.empty())
    check(told == wants_unhook_, "the tool is told of UNHOOK, and did not ask, or the other way round");
}

}  // namespace kvmid::bridge::test
