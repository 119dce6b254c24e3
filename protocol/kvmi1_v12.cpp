// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v12: its numbers, and what a tool sends, written.

#include "protocol/kvmi1_v12.h"

#include <cstdlib>

#include "protocol/kvmi1_dialects.h"
#include "protocol/kvmi1_numbers.h"
#include "protocol/payload_io.h"
#include "protocol/wire_v12.h"

namespace kvmid::kvmi1 {
namespace {

struct CommandNumber {
  std::uint16_t number;
  CommandKind kind;
};
constexpr CommandNumber kCommands[] = {
    {2, kind_of<GetVersion>},     {4, kind_of<CheckCommand>},       {6, kind_of<CheckEvent>},
    {8, kind_of<GetGuestInfo>},   {10, kind_of<ControlVmEvents>},   {12, kind_of<ReadPhysical>},
    {14, kind_of<WritePhysical>}, {16, kind_of<PauseVcpu>},         {18, kind_of<ControlCleanup>},
    {20, kind_of<SetPageAccess>}, {3, kind_of<GetVcpuInfo>},        {5, kind_of<ControlEvents>},
    {7, kind_of<GetRegisters>},   {9, kind_of<SetRegisters>},       {11, kind_of<GetCpuid>},
    {13, kind_of<ControlCr>},     {15, kind_of<InjectException>},   {17, kind_of<GetXcr>},
    {19, kind_of<GetXsave>},      {21, kind_of<SetXsave>},          {23, kind_of<GetMtrrType>},
    {25, kind_of<ControlMsr>},    {27, kind_of<ControlSinglestep>}, {29, kind_of<TranslateGva>},
};

struct EventNumber {
  std::uint16_t number;
  EventKind kind;
};
constexpr EventNumber kEvents[] = {
    {0, EventKind::Unhook}, {1, EventKind::Pause},      {3, EventKind::Hypercall}, {5, EventKind::Breakpoint},
    {7, EventKind::Cr},     {9, EventKind::Trap},       {11, EventKind::Xsetbv},   {13, EventKind::Descriptor},
    {15, EventKind::Msr},   {17, EventKind::PageFault}, {19, EventKind::Singlestep},
};

v12::VcpuHdr header(VcpuId vcpu) { return {.vcpu = vcpu.value, .padding1 = 0, .padding2 = 0}; }

/// What follows the message header. One overload for each command of v12.
class PayloadWriter {
 public:
  explicit PayloadWriter(FrameWriter& frame) : w_(frame) {}

  void operator()(const GetVersion&) {}
  void operator()(const GetGuestInfo&) {}
  void operator()(const CheckCommand& c) { w_.put(v12::Check{.id = c.id, .padding1 = 0, .padding2 = 0}); }
  void operator()(const CheckEvent& c) { w_.put(v12::Check{.id = c.id, .padding1 = 0, .padding2 = 0}); }
  void operator()(const ControlVmEvents& c) {
    w_.put(v12::VmControlEvents{.event_id = c.event, .enable = c.enable, .padding1 = 0, .padding2 = 0});
  }
  void operator()(const ReadPhysical& c) {
    w_.put(v12::VmReadPhysical{
        .gpa = c.gpa.value, .size = wire_count<std::uint16_t>(c.size), .padding1 = 0, .padding2 = 0});
  }
  void operator()(const WritePhysical& c) {
    w_.put(v12::VmWritePhysical{
        .gpa = c.gpa.value, .size = wire_count<std::uint16_t>(c.data.size()), .padding1 = 0, .padding2 = 0});
    w_.put(c.data);
  }
  void operator()(const PauseVcpu& c) {
    w_.put(v12::VmPauseVcpu{.vcpu = c.vcpu.value, .wait = c.wait, .padding1 = 0, .padding2 = 0});
  }
  void operator()(const ControlCleanup& c) { w_.put(v12::VmControlCleanup{.enable = c.enable, .padding = {}}); }
  void operator()(const SetPageAccess& c) {
    w_.put(v12::VmSetPageAccess{.count = wire_count<std::uint16_t>(c.entries.size()), .padding1 = 0, .padding2 = 0});
    w_.put(c.entries.bytes());
  }

  void operator()(const GetVcpuInfo& c) { w_.put(header(c.vcpu)); }
  void operator()(const ControlEvents& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuControlEvents{.event_id = c.event, .enable = c.enable, .padding1 = 0, .padding2 = 0});
  }
  void operator()(const GetRegisters& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuGetRegisters{.nmsrs = wire_count<std::uint16_t>(c.msrs.size()), .padding1 = 0, .padding2 = 0});
    w_.put(c.msrs.bytes());
  }
  void operator()(const SetRegisters& c) {
    w_.put(header(c.vcpu));
    w_.put(c.regs);
  }
  void operator()(const GetCpuid& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuGetCpuid{.function = c.function, .index = c.index});
  }
  void operator()(const ControlCr& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuControlCr{
        .cr = wire_count<std::uint8_t>(c.cr), .enable = c.enable, .padding1 = 0, .padding2 = 0});
  }
  void operator()(const InjectException& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuInjectException{
        .nr = c.vector, .padding1 = 0, .padding2 = 0, .error_code = c.error_code, .address = c.address});
  }
  void operator()(const GetXcr& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuGetXcr{.xcr = c.xcr, .padding = {}});
  }
  void operator()(const GetXsave& c) { w_.put(header(c.vcpu)); }
  void operator()(const SetXsave& c) {
    static constexpr std::byte kZeros[kXsaveSize] = {};
    if (c.area.size() > kXsaveSize) std::abort();  // checked before
    w_.put(header(c.vcpu));
    w_.put(c.area);
    w_.put(Bytes(kZeros).first(kXsaveSize - c.area.size()));  // the kernel refuses a shorter one
  }
  void operator()(const GetMtrrType& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuGetMtrrType{.gpa = c.gpa.value});
  }
  void operator()(const ControlMsr& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuControlMsr{.enable = c.enable, .padding1 = 0, .padding2 = 0, .msr = c.msr});
  }
  void operator()(const ControlSinglestep& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuControlSinglestep{.enable = c.enable, .padding = {}});
  }
  void operator()(const TranslateGva& c) {
    w_.put(header(c.vcpu));
    w_.put(v12::VcpuTranslateGva{.gva = c.gva.value});
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

std::size_t CodecV12::payload_max() const { return v12::kPayloadMax; }
std::uint16_t CodecV12::event_reply_id() const { return v12::kVcpuEventId; }

std::optional<std::uint16_t> CodecV12::number_of(CommandKind kind) const { return number_in(kCommands, kind); }
std::optional<CommandKind> CodecV12::command_of(std::uint16_t number) const { return kind_in(kCommands, number); }
std::optional<std::uint16_t> CodecV12::number_of(EventKind kind) const { return number_in(kEvents, kind); }
std::optional<EventKind> CodecV12::event_of(std::uint16_t number) const { return kind_in(kEvents, number); }

void CodecV12::encode(const Command& command, Seq seq, ByteBuffer& out) const {
  const auto number = number_of(kind_of_command(command));
  if (!number) std::abort();  // checked before
  const std::size_t start = out.size();
  {
    FrameWriter frame(out, *number, seq);
    std::visit(PayloadWriter(frame), command);
  }
  if (out.size() - start > sizeof(kvmi_msg_hdr) + v12::kPayloadMax) std::abort();  // checked before
}

void CodecV12::encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const {
  FrameWriter frame(out, v12::kVcpuEventId, seq);
  frame.put(header(reply.vcpu));
  frame.put(v12::VcpuEventReply{
      .action = wire_count<std::uint8_t>(reply.action), .event = reply.event, .padding1 = 0, .padding2 = 0});
  frame.put(reply.data);
}

const Codec& codec_v12() {
  static const CodecV12 codec;
  return codec;
}

}  // namespace kvmid::kvmi1
