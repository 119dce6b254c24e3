// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v7 and v6: what a tool sends. What of an event reply depends on the event is in kvmi1_v7.cpp.

#include "protocol/kvmi1_payload.h"
#include "protocol/kvmi1_v7.h"

namespace kvmid::kvmi1::v7 {
namespace {

using In = LenientReader;

/// The most MSRs whose values fit in one reply.
constexpr std::size_t kMsrsMax = (kPayloadMax - sizeof(ErrorCode) - sizeof(RegistersReply)) / sizeof(kvmi_x86_msr);
static_assert(kMsrsMax == 481);

// ---- decoding ----

#define KVMID_REFUSE_SET(type, field) in.check_zero(KVMID_FIELD(type, field), kAnswerEinval)

VcpuId take_vcpu(In& in) {
  const auto wire = in.take<VcpuHeader>();
  in.check_zero(KVMID_FIELD(VcpuHeader, padding1), kAnswerClose);
  in.check_zero(KVMID_FIELD(VcpuHeader, padding2), kAnswerClose);
  return VcpuId{wire.vcpu};
}

std::uint16_t read_check(In& in) {
  const auto wire = in.take<CheckRequest>();
  KVMID_REFUSE_SET(CheckRequest, padding1);
  KVMID_REFUSE_SET(CheckRequest, padding2);
  return wire.id;
}

/// PAUSE is not handled where other vCPU commands are: its own padding is seen first, and the header's is answered.
PauseVcpu read_pause(In& in, bool v6) {
  const auto header = in.take<VcpuHeader>();
  const auto wire = in.take<PauseRequest>();
  const std::int32_t answer = v6 ? kAnswerEinval : kAnswerClose;
  in.check_zero(KVMID_FIELD(PauseRequest, padding1), answer);
  in.check_zero(KVMID_FIELD(PauseRequest, padding2), answer);
  in.check_zero(KVMID_FIELD(PauseRequest, padding3), answer);
  in.set_base(0);
  KVMID_REFUSE_SET(VcpuHeader, padding1);
  KVMID_REFUSE_SET(VcpuHeader, padding2);
  return {VcpuId{header.vcpu}, wire.wait == 1};
}

ControlEventsRequest take_control_events(In& in) {
  const auto wire = in.take<ControlEventsRequest>();
  KVMID_REFUSE_SET(ControlEventsRequest, padding1);
  KVMID_REFUSE_SET(ControlEventsRequest, padding2);
  return wire;
}

ControlVmEvents read_control_vm_events(In& in) {
  const auto wire = take_control_events(in);
  return {wire.event_id, wire.enable != 0};
}

ControlEvents read_control_events(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = take_control_events(in);
  return {vcpu, wire.event_id, wire.enable != 0};
}

ControlCr read_control_cr(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<ControlCrRequest>();
  KVMID_REFUSE_SET(ControlCrRequest, padding1);
  KVMID_REFUSE_SET(ControlCrRequest, padding2);
  return {vcpu, wire.enable != 0, wire.cr};
}

ControlMsr read_control_msr(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<ControlMsrRequest>();
  KVMID_REFUSE_SET(ControlMsrRequest, padding1);
  KVMID_REFUSE_SET(ControlMsrRequest, padding2);
  return {vcpu, wire.enable != 0, wire.msr};
}

GetRegisters read_get_registers(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<GetRegistersRequest>();
  KVMID_REFUSE_SET(GetRegistersRequest, padding1);
  KVMID_REFUSE_SET(GetRegistersRequest, padding2);
  const auto msrs = in.take_array<std::uint32_t>(wire.nmsrs, kAnswerEinval);
  // The kernel has room for one more in its reply, but not in a message.
  in.check(wire.nmsrs <= kMsrsMax, DecodeErrc::BadValue, KVMID_FIELD(GetRegistersRequest, nmsrs), -kEnomem);
  return {vcpu, msrs};
}

SetRegisters read_set_registers(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, in.take<kvmi_x86_regs>()};
}

GetCpuid read_get_cpuid(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<GetCpuidRequest>();
  return {vcpu, wire.function, wire.index};
}

SetXsave read_set_xsave(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const Bytes area = in.rest();
  if (area.size() > kXsaveSize) in.refuse(DecodeErrc::TooLong, sizeof(VcpuHeader) + kXsaveSize, kAnswerEinval);
  return {vcpu, in.take_bytes(area.size(), kAnswerEinval)};  // refuses a header that is not whole
}

GetXcr read_get_xcr(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, in.take<GetXcrRequest>().xcr};
}

GetMtrrType read_get_mtrr_type(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, Gpa{in.take<GpaRequest>().gpa}};
}

ReadPhysical read_read_physical(In& in) {
  const auto wire = in.take<ReadPhysicalRequest>();
  return {Gpa{wire.gpa}, wire.size};
}

WritePhysical read_write_physical(In& in) {
  const auto wire = in.take<WritePhysicalRequest>();
  return {Gpa{wire.gpa}, in.take_bytes(wire.size, kAnswerClose)};
}

InjectException read_inject_exception(In& in, bool v6) {
  const VcpuId vcpu = take_vcpu(in);
  if (v6) {
    const auto wire = in.take<InjectExceptionRequestV6>();
    KVMID_REFUSE_SET(InjectExceptionRequestV6, padding);
    return {vcpu, wire.nr, wire.has_error != 0, wire.error_code, wire.address};
  }
  const auto wire = in.take<InjectExceptionRequest>();
  KVMID_REFUSE_SET(InjectExceptionRequest, padding1);
  KVMID_REFUSE_SET(InjectExceptionRequest, padding2);
  return {vcpu, wire.nr, false, wire.error_code, wire.address};
}

/// The head of a command about pages and its tail of T.
template <class T>
WireArray<T> take_pages(In& in, std::uint16_t& view) {
  const auto wire = in.take<PagesRequest>();
  KVMID_REFUSE_SET(PagesRequest, padding);
  view = wire.view;
  return in.take_array<T>(wire.count, kAnswerEinval);
}

GetPageAccess read_get_page_access(In& in) {
  GetPageAccess command;
  command.gpas = take_pages<std::uint64_t>(in, command.view);
  return command;
}

/// Entries are tried one by one, also behind one with padding set: they are handed on as they are.
SetPageAccess read_set_page_access(In& in) {
  SetPageAccess command;
  command.entries = take_pages<PageAccessEntry>(in, command.view);
  return command;
}

GetPageWriteBitmap read_get_page_write_bitmap(In& in) {
  GetPageWriteBitmap command;
  command.gpas = take_pages<std::uint64_t>(in, command.view);
  return command;
}

SetPageWriteBitmap read_set_page_write_bitmap(In& in, bool v6) {
  SetPageWriteBitmap command;
  command.entries = take_pages<WriteBitmapEntry>(in, command.view);
  in.set_base(0);
  if (!v6) KVMID_REFUSE_SET(PagesRequest, view);  // the kernel's struct has padding there
  return command;
}

ControlSpp read_control_spp(In& in) {
  const auto wire = in.take<ControlSppRequest>();
  KVMID_REFUSE_SET(ControlSppRequest, padding1);
  KVMID_REFUSE_SET(ControlSppRequest, padding2);
  KVMID_REFUSE_SET(ControlSppRequest, padding3);
  return {wire.enable != 0};
}

ControlCmdResponse read_control_cmd_response(In& in, bool v6) {
  const auto wire = in.take<ControlCmdResponseRequest>();
  if (v6) in.check_zero(KVMID_FIELD(ControlCmdResponseRequest, flags), kAnswerClose);
  in.check_zero(KVMID_FIELD(ControlCmdResponseRequest, padding1), kAnswerClose);
  in.check_zero(KVMID_FIELD(ControlCmdResponseRequest, padding2), kAnswerClose);
  return {wire.enable != 0, wire.now == 1, (wire.flags & kErrorEvents) != 0};
}

SetVeInfoPage read_set_ve_info_page(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<SetVeInfoPageRequest>();
  KVMID_REFUSE_SET(SetVeInfoPageRequest, padding);
  return {vcpu, Gpa{wire.gpa}, wire.trigger_vmexit != 0};
}

SetPageSve read_set_page_sve(In& in) {
  const auto wire = in.take<SetPageSveRequest>();
  KVMID_REFUSE_SET(SetPageSveRequest, padding1);
  KVMID_REFUSE_SET(SetPageSveRequest, padding2);
  in.check(wire.suppress <= 1, DecodeErrc::BadFlag, KVMID_FIELD(SetPageSveRequest, suppress), kAnswerEinval);
  return {wire.view, wire.suppress != 0, Gpa{wire.gpa}};
}

std::uint16_t take_view(In& in) {
  const auto wire = in.take<ViewRequest>();
  KVMID_REFUSE_SET(ViewRequest, padding);
  return wire.view;
}

SwitchEptView read_switch_ept_view(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, take_view(in)};
}

ControlEptView read_control_ept_view(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<ControlEptViewRequest>();
  KVMID_REFUSE_SET(ControlEptViewRequest, padding1);
  KVMID_REFUSE_SET(ControlEptViewRequest, padding2);
  return {vcpu, wire.view, wire.visible != 0};
}

TranslateGva read_translate_gva(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, Gva{in.take<TranslateGvaRequest>().gva}};
}

ChangeGfn read_change_gfn(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  if (in.rest().size() < sizeof(ChangeGfnRequest)) {
    const auto wire = in.take<OldChangeGfnRequest>();
    return {vcpu, std::nullopt, Gfn{wire.old_gfn}, Gfn{wire.new_gfn}};
  }
  const auto wire = in.take<ChangeGfnRequest>();
  KVMID_REFUSE_SET(ChangeGfnRequest, padding1);
  KVMID_REFUSE_SET(ChangeGfnRequest, padding2);
  return {vcpu, wire.view, Gfn{wire.old_gfn}, Gfn{wire.new_gfn}};
}

template <class Command>
Command read_gfn(In& in) {  // ALLOC_GFN, FREE_GFN
  const VcpuId vcpu = take_vcpu(in);
  return {vcpu, Gfn{in.take<GfnRequest>().gfn}};
}

ControlSinglestep read_control_singlestep(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<ControlSinglestepRequest>();
  KVMID_REFUSE_SET(ControlSinglestepRequest, padding);
  return {vcpu, wire.enable != 0};
}

#undef KVMID_REFUSE_SET

/// REQUIRES: `id` is of a command of the dialect.
Command read_command(In& in, std::uint16_t id, bool v6) {
  switch (id) {
    case kGetVersionId: return GetVersion{};
    case kCheckCommandId: return CheckCommand{read_check(in)};
    case kCheckEventId: return CheckEvent{read_check(in)};
    case kGetGuestInfoId: return GetGuestInfo{};
    case kGetVcpuInfoId: return GetVcpuInfo{take_vcpu(in)};
    case kPauseVcpuId: return read_pause(in, v6);
    case kControlVmEventsId: return read_control_vm_events(in);
    case kControlEventsId: return read_control_events(in);
    case kControlCrId: return read_control_cr(in);
    case kControlMsrId: return read_control_msr(in);
    case kGetRegistersId: return read_get_registers(in);
    case kSetRegistersId: return read_set_registers(in);
    case kGetCpuidId: return read_get_cpuid(in);
    case kGetXsaveId: return GetXsave{take_vcpu(in)};
    case kReadPhysicalId: return read_read_physical(in);
    case kWritePhysicalId: return read_write_physical(in);
    case kInjectExceptionId: return read_inject_exception(in, v6);
    case kGetPageAccessId: return read_get_page_access(in);
    case kSetPageAccessId: return read_set_page_access(in);
    case kGetMapTokenId: return GetMapToken{};
    case kGetMtrrTypeId: return read_get_mtrr_type(in);
    case kControlSppId: return read_control_spp(in);
    case kGetPageWriteBitmapId: return read_get_page_write_bitmap(in);
    case kSetPageWriteBitmapId: return read_set_page_write_bitmap(in, v6);
    case kControlCmdResponseId: return read_control_cmd_response(in, v6);
    case kSetVeInfoPageId: return read_set_ve_info_page(in);
    case kGetMaxGfnId: return GetMaxGfn{};
    case kSetPageSveId: return read_set_page_sve(in);
    case kGetNextAvailableGfnId: return GetNextAvailableGfn{};
    case kSwitchEptViewId: return read_switch_ept_view(in);
    case kDisableVeId: return DisableVe{take_vcpu(in)};
    case kGetEptViewId: return GetEptView{take_vcpu(in)};
    case kTranslateGvaId: return read_translate_gva(in);
    case kControlEptViewId: return read_control_ept_view(in);
    case kGetXcrId: return read_get_xcr(in);
    case kSetXsaveId: return read_set_xsave(in);
    case kQueryPhysicalId: return QueryPhysical{Gfn{in.take<GfnRequest>().gfn}};
    case kAllocGfnId: return read_gfn<AllocGfn>(in);
    case kFreeGfnId: return read_gfn<FreeGfn>(in);
    case kCreateEptViewId: return CreateEptView{};
    case kDestroyEptViewId: return DestroyEptView{take_view(in)};
    case kChangeGfnId: return read_change_gfn(in);
    case kControlSinglestepId: return read_control_singlestep(in);
    default: std::abort();
  }
}

EventReplyMessage read_event_reply(In& in) {
  const VcpuId vcpu = take_vcpu(in);
  const auto wire = in.take<EventReplyHead>();
  in.check_zero(KVMID_FIELD(EventReplyHead, padding1), kAnswerClose);
  in.check_zero(KVMID_FIELD(EventReplyHead, padding2), kAnswerClose);
  const Bytes data = in.take_bytes(in.rest().size(), kAnswerClose);  // refuses a head that is not whole
  return {vcpu, wire.action, wire.event, {}, data};
}

/// Until 2023 id 31 was GET_EPT_PAGE_CONV, which servers do not have: only its size tells.
bool is_get_ept_page_conv(const Frame& frame) {
  constexpr std::size_t kSize = 16;
  return frame.id == kGetNextAvailableGfnId && frame.payload.size() == kSize;
}

}  // namespace

Result<Downward, Refused> CodecV7::decode_downward(const Frame& frame) const {
  LenientReader in(frame.payload, frame.id);
  if (frame.id == kEventReplyId) {
    const EventReplyMessage reply = read_event_reply(in);
    if (in.refused()) return *in.refused();
    return Downward{reply};
  }
  if (!command_of(frame.id) || is_get_ept_page_conv(frame)) return Downward{UnknownMessage{frame.id}};
  Command command = read_command(in, frame.id, v6_);
  if (in.refused()) return *in.refused();
  return Downward{std::move(command)};
}

// ---- encoding ----

namespace {

VcpuHeader header(VcpuId vcpu) { return {.vcpu = vcpu.value, .padding1 = 0, .padding2 = 0}; }
std::uint8_t byte(bool value) { return value ? 1 : 0; }

template <class T>
void put_pages(Writer& w, std::uint16_t view, const WireArray<T>& items) {
  w.put(PagesRequest{.view = view, .count = wire_count<std::uint16_t>(items.size()), .padding = 0});
  w.put(items.bytes());
}

/// The payload of each command. Commands of other dialects have no number, and do not come here.
struct CommandPutter {
  Writer& w;
  bool v6;

  void operator()(const GetVersion&) const {}
  void operator()(const GetGuestInfo&) const {}
  void operator()(const GetMaxGfn&) const {}
  void operator()(const GetMapToken&) const {}
  void operator()(const GetNextAvailableGfn&) const {}
  void operator()(const CreateEptView&) const {}
  void operator()(const CheckCommand& c) const { w.put(CheckRequest{c.id, 0, 0}); }
  void operator()(const CheckEvent& c) const { w.put(CheckRequest{c.id, 0, 0}); }
  void operator()(const GetVcpuInfo& c) const { w.put(header(c.vcpu)); }
  void operator()(const GetXsave& c) const { w.put(header(c.vcpu)); }
  void operator()(const DisableVe& c) const { w.put(header(c.vcpu)); }
  void operator()(const GetEptView& c) const { w.put(header(c.vcpu)); }
  void operator()(const PauseVcpu& c) const {
    w.put(header(c.vcpu));
    w.put(PauseRequest{byte(c.wait), 0, 0, 0});
  }
  void operator()(const ControlVmEvents& c) const { w.put(ControlEventsRequest{c.event, byte(c.enable), 0, 0}); }
  void operator()(const ControlEvents& c) const {
    w.put(header(c.vcpu));
    w.put(ControlEventsRequest{c.event, byte(c.enable), 0, 0});
  }
  void operator()(const ControlCr& c) const {
    w.put(header(c.vcpu));
    w.put(ControlCrRequest{byte(c.enable), 0, 0, c.cr});
  }
  void operator()(const ControlMsr& c) const {
    w.put(header(c.vcpu));
    w.put(ControlMsrRequest{byte(c.enable), 0, 0, c.msr});
  }
  void operator()(const GetRegisters& c) const {
    w.put(header(c.vcpu));
    w.put(GetRegistersRequest{wire_count<std::uint16_t>(c.msrs.size()), 0, 0});
    w.put(c.msrs.bytes());
  }
  void operator()(const SetRegisters& c) const {
    w.put(header(c.vcpu));
    w.put(c.regs);
  }
  void operator()(const GetCpuid& c) const {
    w.put(header(c.vcpu));
    w.put(GetCpuidRequest{c.function, c.index});
  }
  void operator()(const SetXsave& c) const {
    w.put(header(c.vcpu));
    w.put(c.area);
  }
  void operator()(const GetXcr& c) const {
    w.put(header(c.vcpu));
    w.put(GetXcrRequest{c.xcr, {}});
  }
  void operator()(const GetMtrrType& c) const {
    w.put(header(c.vcpu));
    w.put(GpaRequest{c.gpa.value});
  }
  void operator()(const ReadPhysical& c) const { w.put(ReadPhysicalRequest{c.gpa.value, c.size}); }
  void operator()(const WritePhysical& c) const {
    w.put(WritePhysicalRequest{c.gpa.value, c.data.size()});
    w.put(c.data);
  }
  void operator()(const QueryPhysical& c) const { w.put(GfnRequest{c.gfn.value}); }
  void operator()(const InjectException& c) const {
    w.put(header(c.vcpu));
    if (v6) return w.put(InjectExceptionRequestV6{c.vector, byte(c.has_error_code), 0, c.error_code, c.address});
    w.put(InjectExceptionRequest{c.vector, 0, 0, c.error_code, c.address});
  }
  void operator()(const GetPageAccess& c) const { put_pages(w, c.view, c.gpas); }
  void operator()(const SetPageAccess& c) const { put_pages(w, c.view, c.entries); }
  void operator()(const GetPageWriteBitmap& c) const { put_pages(w, c.view, c.gpas); }
  void operator()(const SetPageWriteBitmap& c) const { put_pages(w, c.view, c.entries); }
  void operator()(const ControlSpp& c) const { w.put(ControlSppRequest{byte(c.enable), 0, 0, 0}); }
  void operator()(const ControlCmdResponse& c) const {
    const std::uint8_t flags = c.error_events && !v6 ? kErrorEvents : 0;
    w.put(ControlCmdResponseRequest{byte(c.enable), byte(c.now), flags, 0, 0});
  }
  void operator()(const SetVeInfoPage& c) const {
    w.put(header(c.vcpu));
    w.put(SetVeInfoPageRequest{c.gpa.value, byte(c.trigger_vmexit), {}});
  }
  void operator()(const SetPageSve& c) const { w.put(SetPageSveRequest{c.view, byte(c.suppress), 0, 0, c.gpa.value}); }
  void operator()(const SwitchEptView& c) const {
    w.put(header(c.vcpu));
    w.put(ViewRequest{c.view, {}});
  }
  void operator()(const ControlEptView& c) const {
    w.put(header(c.vcpu));
    w.put(ControlEptViewRequest{c.view, byte(c.visible), 0, 0});
  }
  void operator()(const DestroyEptView& c) const { w.put(ViewRequest{c.view, {}}); }
  void operator()(const AllocGfn& c) const {
    w.put(header(c.vcpu));
    w.put(GfnRequest{c.gfn.value});
  }
  void operator()(const FreeGfn& c) const {
    w.put(header(c.vcpu));
    w.put(GfnRequest{c.gfn.value});
  }
  void operator()(const ChangeGfn& c) const {
    w.put(header(c.vcpu));
    if (!c.view) return w.put(OldChangeGfnRequest{c.old_gfn.value, c.new_gfn.value});
    w.put(ChangeGfnRequest{*c.view, 0, 0, c.old_gfn.value, c.new_gfn.value});
  }
  void operator()(const TranslateGva& c) const {
    w.put(header(c.vcpu));
    w.put(TranslateGvaRequest{c.gva.value});
  }
  void operator()(const ControlSinglestep& c) const {
    w.put(header(c.vcpu));
    w.put(ControlSinglestepRequest{byte(c.enable), {}});
  }
  template <class OfAnotherDialect>
  void operator()(const OfAnotherDialect&) const {
    std::abort();
  }
};

}  // namespace

void CodecV7::encode(const Command& command, Seq seq, ByteBuffer& out) const {
  const auto number = number_of(kind_of_command(command));
  if (!number) std::abort();
  Writer w(out, *number, seq);
  std::visit(CommandPutter{w, v6_}, command);
}

}  // namespace kvmid::kvmi1::v7
