// SPDX-License-Identifier: LGPL-2.1-or-later
//
// rfc2017: its numbers, and what a tool sends, written.

#include "protocol/kvmi1_rfc2017.h"

#include <cstdlib>

#include "protocol/kvmi1_dialects.h"
#include "protocol/kvmi1_numbers.h"
#include "protocol/payload_io.h"
#include "protocol/wire_rfc2017.h"

namespace kvmid::kvmi1 {
namespace {

struct CommandNumber {
  std::uint16_t number;
  CommandKind kind;
};
constexpr CommandNumber kCommands[] = {
    {1, kind_of<GetVersion>},         {2, kind_of<GetGuests>},         {3, kind_of<GetGuestInfo>},
    {4, kind_of<PauseGuest>},         {5, kind_of<UnpauseGuest>},      {6, kind_of<GetRegisters>},
    {7, kind_of<SetRegisters>},       {8, kind_of<ShutdownGuest>},     {9, kind_of<GetMtrrType>},
    {10, kind_of<GetMtrrs>},          {11, kind_of<GetXsaveInfo>},     {12, kind_of<GetVcpuPageAccess>},
    {13, kind_of<SetVcpuPageAccess>}, {14, kind_of<InjectPageFault>},  {15, kind_of<ReadPhysical>},
    {16, kind_of<WritePhysical>},     {17, kind_of<MapPage>},          {18, kind_of<UnmapPage>},
    {19, kind_of<SetEvents>},         {20, kind_of<ControlGuestCr>},   {21, kind_of<ControlGuestMsr>},
    {22, kind_of<InjectBreakpoint>},
};

struct EventNumber {
  std::uint16_t number;
  EventKind kind;
};
constexpr EventNumber kEvents[] = {
    {0x02, EventKind::Cr},         {0x04, EventKind::Msr},       {0x08, EventKind::Xsetbv},
    {0x10, EventKind::Breakpoint}, {0x20, EventKind::Hypercall}, {0x40, EventKind::PageFault},
    {0x80, EventKind::Trap},
};

/// What follows the message header. One overload for each command of rfc2017.
class PayloadWriter {
 public:
  explicit PayloadWriter(FrameWriter& frame) : w_(frame) {}

  void operator()(const GetVersion&) {}
  void operator()(const GetGuests&) {}
  void operator()(const GetGuestInfo&) {}
  void operator()(const PauseGuest&) {}
  void operator()(const UnpauseGuest&) {}
  void operator()(const ShutdownGuest&) {}
  void operator()(const GetRegisters& c) {
    w_.put(rfc2017::GetRegistersX86{.vcpu = c.vcpu.value, .nmsrs = wire_count<std::uint16_t>(c.msrs.size())});
    w_.put(c.msrs.bytes());
  }
  void operator()(const SetRegisters& c) {
    w_.put(rfc2017::SetRegistersX86{.vcpu = c.vcpu.value, .padding = {}, .regs = c.regs});
  }
  void operator()(const GetMtrrType& c) { w_.put(rfc2017::MtrrType{.gpa = c.gpa.value}); }
  void operator()(const GetMtrrs& c) { w_.put(rfc2017::Mtrrs{.vcpu = c.vcpu.value, .padding = {}}); }
  void operator()(const GetXsaveInfo& c) { w_.put(rfc2017::XsaveInfo{.vcpu = c.vcpu.value, .padding = {}}); }
  void operator()(const GetVcpuPageAccess& c) {
    w_.put(rfc2017::GetPageAccess{.vcpu = c.vcpu.value, .padding = {}, .gpa = c.gpa.value});
  }
  void operator()(const SetVcpuPageAccess& c) {
    w_.put(rfc2017::SetPageAccess{.vcpu = c.vcpu.value, .padding = 0, .access = c.access, .gpa = c.gpa.value});
  }
  void operator()(const InjectPageFault& c) {
    w_.put(rfc2017::PageFault{.vcpu = c.vcpu.value, .padding = 0, .error = c.error_code, .gva = c.gva.value});
  }
  void operator()(const ReadPhysical& c) { w_.put(rfc2017::ReadPhysical{.gpa = c.gpa.value, .size = c.size}); }
  void operator()(const WritePhysical& c) {
    w_.put(rfc2017::WritePhysical{.gpa = c.gpa.value, .size = c.data.size()});
    w_.put(c.data);
  }
  void operator()(const MapPage& c) {
    w_.put(rfc2017::MapPhysicalPageToGuest{.gpa_src = c.source.value, .gfn_dest = c.destination.value});
  }
  void operator()(const UnmapPage& c) {
    w_.put(rfc2017::UnmapPhysicalPageFromGuest{.gfn_dest = c.destination.value});
  }
  void operator()(const SetEvents& c) {
    w_.put(rfc2017::ControlEvents{.vcpu = c.vcpu.value, .padding = 0, .events = c.mask});
  }
  void operator()(const ControlGuestCr& c) {
    w_.put(rfc2017::CrControl{.enable = c.enable, .padding = {}, .cr = c.cr});
  }
  void operator()(const ControlGuestMsr& c) {
    w_.put(rfc2017::MsrControl{.enable = c.enable, .padding = {}, .msr = c.msr});
  }
  void operator()(const InjectBreakpoint& c) {
    w_.put(rfc2017::InjectBreakpoint{.vcpu = c.vcpu.value, .padding = {}});
  }
  /// number_of() has none for the others, and encode() has asked it.
  template <class Other>
  void operator()(const Other&) {
    std::abort();
  }

 private:
  FrameWriter& w_;
};

}  // namespace

std::size_t CodecRfc2017::payload_max() const { return rfc2017::kPayloadMax; }
std::uint16_t CodecRfc2017::event_reply_id() const { return rfc2017::kEventReplyId; }

std::optional<std::uint16_t> CodecRfc2017::number_of(CommandKind kind) const { return number_in(kCommands, kind); }
std::optional<CommandKind> CodecRfc2017::command_of(std::uint16_t number) const { return kind_in(kCommands, number); }
std::optional<std::uint16_t> CodecRfc2017::number_of(EventKind kind) const { return number_in(kEvents, kind); }
std::optional<EventKind> CodecRfc2017::event_of(std::uint16_t number) const { return kind_in(kEvents, number); }

void CodecRfc2017::encode(const Command& command, Seq seq, ByteBuffer& out) const {
  const auto number = number_of(kind_of_command(command));
  if (!number) std::abort();  // checked before
  FrameWriter frame(out, *number, seq);
  std::visit(PayloadWriter(frame), command);
}

void CodecRfc2017::encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const {
  FrameWriter frame(out, rfc2017::kEventReplyId, seq);
  frame.put(rfc2017::EventX86Reply{.regs = reply.regs, .actions = reply.action, .padding = 0});
  frame.put(reply.data);
}

const Codec& codec_rfc2017() {
  static const CodecRfc2017 codec;
  return codec;
}

}  // namespace kvmid::kvmi1
