// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v7 and v6: numbers, and event replies.

#include "protocol/kvmi1_v7.h"

#include <array>

#include "protocol/kvmi1_dialects.h"
#include "protocol/kvmi1_payload.h"

namespace kvmid::kvmi1 {
namespace v7 {
namespace {

enum class In : std::uint8_t { Both, V6, V7 };
struct CommandNumber {
  std::uint16_t number;
  CommandKind kind;
  In in = In::Both;
};
constexpr auto kCommands = std::to_array<CommandNumber>({
    {kGetVersionId, kind_of<GetVersion>},
    {kCheckCommandId, kind_of<CheckCommand>},
    {kCheckEventId, kind_of<CheckEvent>},
    {kGetGuestInfoId, kind_of<GetGuestInfo>},
    {kGetVcpuInfoId, kind_of<GetVcpuInfo>},
    {kPauseVcpuId, kind_of<PauseVcpu>},
    {kControlVmEventsId, kind_of<ControlVmEvents>},
    {kControlEventsId, kind_of<ControlEvents>},
    {kControlCrId, kind_of<ControlCr>},
    {kControlMsrId, kind_of<ControlMsr>},
    {kGetRegistersId, kind_of<GetRegisters>},
    {kSetRegistersId, kind_of<SetRegisters>},
    {kGetCpuidId, kind_of<GetCpuid>},
    {kGetXsaveId, kind_of<GetXsave>},
    {kReadPhysicalId, kind_of<ReadPhysical>},
    {kWritePhysicalId, kind_of<WritePhysical>},
    {kInjectExceptionId, kind_of<InjectException>},
    {kGetPageAccessId, kind_of<GetPageAccess>, In::V6},
    {kSetPageAccessId, kind_of<SetPageAccess>},
    {kGetMapTokenId, kind_of<GetMapToken>},
    {kGetMtrrTypeId, kind_of<GetMtrrType>},
    {kControlSppId, kind_of<ControlSpp>},
    {kGetPageWriteBitmapId, kind_of<GetPageWriteBitmap>, In::V6},
    {kSetPageWriteBitmapId, kind_of<SetPageWriteBitmap>},
    {kControlCmdResponseId, kind_of<ControlCmdResponse>},
    {kSetVeInfoPageId, kind_of<SetVeInfoPage>, In::V7},
    {kGetMaxGfnId, kind_of<GetMaxGfn>},
    {kSetPageSveId, kind_of<SetPageSve>, In::V7},
    {kGetNextAvailableGfnId, kind_of<GetNextAvailableGfn>, In::V7},
    {kSwitchEptViewId, kind_of<SwitchEptView>, In::V7},
    {kDisableVeId, kind_of<DisableVe>, In::V7},
    {kGetEptViewId, kind_of<GetEptView>, In::V7},
    {kTranslateGvaId, kind_of<TranslateGva>, In::V7},
    {kControlEptViewId, kind_of<ControlEptView>, In::V7},
    {kGetXcrId, kind_of<GetXcr>, In::V7},
    {kSetXsaveId, kind_of<SetXsave>, In::V7},
    {kQueryPhysicalId, kind_of<QueryPhysical>, In::V7},
    {kAllocGfnId, kind_of<AllocGfn>, In::V7},
    {kFreeGfnId, kind_of<FreeGfn>, In::V7},
    {kCreateEptViewId, kind_of<CreateEptView>, In::V7},
    {kDestroyEptViewId, kind_of<DestroyEptView>, In::V7},
    {kChangeGfnId, kind_of<ChangeGfn>, In::V7},
    {kControlSinglestepId, kind_of<ControlSinglestep>, In::V7},
});

bool has(const CommandNumber& command, bool v6) { return command.in != (v6 ? In::V7 : In::V6); }

// What a page fault's context is where a reply ends before it.
constexpr std::array<std::byte, kContextSize> kNoContext{};

}  // namespace

std::optional<std::uint16_t> CodecV7::number_of(CommandKind kind) const {
  for (const auto& command : kCommands) {
    if (command.kind == kind && has(command, v6_)) return command.number;
  }
  return std::nullopt;
}

std::optional<CommandKind> CodecV7::command_of(std::uint16_t number) const {
  for (const auto& command : kCommands) {
    if (command.number == number && has(command, v6_)) return command.kind;
  }
  return std::nullopt;
}

static_assert(KVMI_EVENT_UNHOOK == 0 && KVMI_EVENT_PAGE_FAULT == 6 && KVMI_EVENT_SINGLESTEP == kLastCommonEvent,
              "the events up to single step have message.h's numbers");

std::optional<std::uint16_t> CodecV7::number_of(EventKind kind) const {
  const auto number = static_cast<std::uint16_t>(kind);
  if (number <= kLastCommonEvent) return number;
  if (kind == EventKind::Cpuid && !v6_) return kCpuidEvent;
  return std::nullopt;
}

std::optional<EventKind> CodecV7::event_of(std::uint16_t number) const {
  if (number <= kLastCommonEvent) return static_cast<EventKind>(number);
  if (number == kCpuidEvent && !v6_) return EventKind::Cpuid;
  return std::nullopt;
}

void CodecV7::encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const {
  Writer w(out, kEventReplyId, seq);
  w.put(VcpuHeader{.vcpu = reply.vcpu.value, .padding1 = 0, .padding2 = 0});
  w.put(EventReplyHead{
      .action = wire_count<std::uint8_t>(reply.action), .event = reply.event, .padding1 = 0, .padding2 = 0});
  w.put(reply.data);
}

Result<ReplyData, DecodeError> CodecV7::read_reply(EventKind event, const EventReplyMessage& reply) const {
  constexpr std::size_t kDataAt = sizeof(VcpuHeader) + sizeof(EventReplyHead);
  const std::size_t expected = event == EventKind::Cr || event == EventKind::Msr ? sizeof(NewValueReply)
                               : event == EventKind::PageFault                   ? sizeof(PageFaultReply)
                                                                                 : 0;
  if (reply.data.size() > expected) {
    return DecodeError{DecodeErrc::TooLong, kEventReplyId, static_cast<std::uint32_t>(kDataAt + expected)};
  }

  LenientReader r(reply.data, kEventReplyId);
  ReplyData data;
  if (event == EventKind::Cr || event == EventKind::Msr) {
    data.new_value = r.take<NewValueReply>().new_val;
  } else if (event == EventKind::PageFault) {
    const auto wire = r.take<PageFaultReply>();
    r.check(wire.ctx_size <= kContextSize, DecodeErrc::BadValue, KVMID_FIELD(PageFaultReply, ctx_size), kAnswerClose);
    if (!v6_) r.check_zero(KVMID_FIELD(PageFaultReply, singlestep), kAnswerClose);
    r.check_zero(KVMID_FIELD(PageFaultReply, padding), kAnswerClose);
    if (r.refused()) {
      DecodeError error = r.refused()->error;
      error.offset += static_cast<std::uint32_t>(kDataAt);
      return error;
    }
    data.context_address = wire.ctx_addr;
    data.rep_complete = wire.rep_complete != 0;
    constexpr std::size_t kContextAt = offsetof(PageFaultReply, ctx_data);
    // A reply can end within its context: the bytes that came are given. One that ends before has zeros.
    data.context = reply.data.size() > kContextAt
                       ? reply.data.subspan(kContextAt, std::min<std::size_t>(wire.ctx_size,
                                                                              reply.data.size() - kContextAt))
                       : Bytes(kNoContext).first(wire.ctx_size);
  }
  return data;
}

}  // namespace v7

const Codec& codec_v7() {
  static const v7::CodecV7 codec(v7::CodecV7::Variant::V7);
  return codec;
}

const Codec& codec_v6() {
  static const v7::CodecV7 codec(v7::CodecV7::Variant::V6);
  return codec;
}

}  // namespace kvmid::kvmi1
