// SPDX-License-Identifier: GPL-2.0-or-later
//
// Structs and numbers of v7 and v6 against what a C compiler made of the published headers (tests/vectors).

#include "protocol/wire_v7.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

const nlohmann::json& layouts_of(DialectId dialect) {
  static const auto kAll = [] {
    std::ifstream file(KVMID_VECTORS_DIR "/dialect_layouts.json");
    REQUIRE(file);
    return nlohmann::json::parse(file);
  }();
  return kAll.at("dialects").at(dialect == DialectId::V6 ? "v6" : "v7");
}

struct Field {
  const char* name;
  std::size_t offset;
  std::size_t size;
};
struct Struct {
  const char* name;
  std::size_t size;
  std::vector<Field> fields;
};
#define F(type, field) Field{#field, offsetof(v7::type, field), sizeof(v7::type::field)}
#define AS(type, field, theirs) Field{theirs, offsetof(v7::type, field), sizeof(v7::type::field)}
#define TAIL(type, theirs) Field{theirs, sizeof(v7::type), 0}

const std::vector<Struct> kBoth{
    {"kvmi_msg_hdr", sizeof(kvmi_msg_hdr),
     {{"id", offsetof(kvmi_msg_hdr, id), 2},
      {"size", offsetof(kvmi_msg_hdr, size), 2},
      {"seq", offsetof(kvmi_msg_hdr, seq), 4}}},
    {"kvmi_error_code", sizeof(v7::ErrorCode), {F(ErrorCode, err), F(ErrorCode, padding)}},
    {"kvmi_vcpu_hdr", sizeof(v7::VcpuHeader), {F(VcpuHeader, vcpu), F(VcpuHeader, padding1), F(VcpuHeader, padding2)}},
    {"kvmi_check_command", sizeof(v7::CheckRequest),
     {F(CheckRequest, id), F(CheckRequest, padding1), F(CheckRequest, padding2)}},
    {"kvmi_check_event", sizeof(v7::CheckRequest),
     {F(CheckRequest, id), F(CheckRequest, padding1), F(CheckRequest, padding2)}},
    {"kvmi_get_guest_info_reply", sizeof(v7::GuestInfoReply),
     {F(GuestInfoReply, vcpu_count), F(GuestInfoReply, padding)}},
    {"kvmi_get_vcpu_info_reply", sizeof(v7::VcpuInfoReply), {F(VcpuInfoReply, tsc_speed)}},
    {"kvmi_pause_vcpu", sizeof(v7::PauseRequest),
     {F(PauseRequest, wait), F(PauseRequest, padding1), F(PauseRequest, padding2), F(PauseRequest, padding3)}},
    {"kvmi_control_events", sizeof(v7::ControlEventsRequest),
     {F(ControlEventsRequest, event_id), F(ControlEventsRequest, enable), F(ControlEventsRequest, padding1),
      F(ControlEventsRequest, padding2)}},
    {"kvmi_control_vm_events", sizeof(v7::ControlEventsRequest),
     {F(ControlEventsRequest, event_id), F(ControlEventsRequest, enable), F(ControlEventsRequest, padding1),
      F(ControlEventsRequest, padding2)}},
    {"kvmi_control_cr", sizeof(v7::ControlCrRequest),
     {F(ControlCrRequest, enable), F(ControlCrRequest, padding1), F(ControlCrRequest, padding2),
      F(ControlCrRequest, cr)}},
    {"kvmi_control_msr", sizeof(v7::ControlMsrRequest),
     {F(ControlMsrRequest, enable), F(ControlMsrRequest, padding1), F(ControlMsrRequest, padding2),
      F(ControlMsrRequest, msr)}},
    {"kvmi_get_registers", sizeof(v7::GetRegistersRequest),
     {F(GetRegistersRequest, nmsrs), F(GetRegistersRequest, padding1), F(GetRegistersRequest, padding2),
      TAIL(GetRegistersRequest, "msrs_idx")}},
    {"kvmi_get_registers_reply", sizeof(v7::RegistersReply),
     {F(RegistersReply, mode), F(RegistersReply, padding), F(RegistersReply, regs), F(RegistersReply, sregs),
      Field{"msrs", offsetof(v7::RegistersReply, nmsrs), 8}}},
    {"kvmi_get_cpuid", sizeof(v7::GetCpuidRequest), {F(GetCpuidRequest, function), F(GetCpuidRequest, index)}},
    {"kvmi_get_cpuid_reply", sizeof(v7::CpuidReply),
     {F(CpuidReply, eax), F(CpuidReply, ebx), F(CpuidReply, ecx), F(CpuidReply, edx)}},
    {"kvmi_get_mtrr_type", sizeof(v7::GpaRequest), {F(GpaRequest, gpa)}},
    {"kvmi_get_mtrr_type_reply", sizeof(v7::MtrrTypeReply), {F(MtrrTypeReply, type), F(MtrrTypeReply, padding)}},
    {"kvmi_read_physical", sizeof(v7::ReadPhysicalRequest),
     {F(ReadPhysicalRequest, gpa), F(ReadPhysicalRequest, size)}},
    {"kvmi_write_physical", sizeof(v7::WritePhysicalRequest),
     {F(WritePhysicalRequest, gpa), F(WritePhysicalRequest, size), TAIL(WritePhysicalRequest, "data")}},
    {"kvmi_set_page_access", sizeof(v7::PagesRequest),
     {F(PagesRequest, view), F(PagesRequest, count), F(PagesRequest, padding), TAIL(PagesRequest, "entries")}},
    {"kvmi_set_page_write_bitmap", sizeof(v7::PagesRequest),
     {F(PagesRequest, view), F(PagesRequest, count), F(PagesRequest, padding), TAIL(PagesRequest, "entries")}},
    {"kvmi_page_access_entry", sizeof(PageAccessEntry),
     {{"gpa", offsetof(PageAccessEntry, gpa), 8},
      {"access", offsetof(PageAccessEntry, access), 1},
      {"padding1", offsetof(PageAccessEntry, padding), 1},
      {"padding2", offsetof(PageAccessEntry, padding) + 1, 2},
      {"padding3", offsetof(PageAccessEntry, padding) + 3, 4}}},
    {"kvmi_page_write_bitmap_entry", sizeof(WriteBitmapEntry),
     {{"gpa", offsetof(WriteBitmapEntry, gpa), 8},
      {"bitmap", offsetof(WriteBitmapEntry, bitmap), 4},
      {"padding", offsetof(WriteBitmapEntry, padding), 4}}},
    {"kvmi_control_spp", sizeof(v7::ControlSppRequest),
     {F(ControlSppRequest, enable), F(ControlSppRequest, padding1), F(ControlSppRequest, padding2),
      F(ControlSppRequest, padding3)}},
    // The kernel splits padding1 of this one.
    {"kvmi_control_cmd_response", sizeof(v7::ControlCmdResponseRequest),
     {F(ControlCmdResponseRequest, enable), F(ControlCmdResponseRequest, now),
      Field{"padding1", offsetof(v7::ControlCmdResponseRequest, flags), 2}, F(ControlCmdResponseRequest, padding2)}},
    {"kvmi_get_max_gfn_reply", sizeof(v7::GfnReply), {F(GfnReply, gfn)}},
    {"kvmi_event", sizeof(v7::EventHead),
     {F(EventHead, size), F(EventHead, vcpu), F(EventHead, event), F(EventHead, padding), F(EventHead, arch)}},
    {"kvmi_event_reply", sizeof(v7::EventReplyHead),
     {F(EventReplyHead, action), F(EventReplyHead, event), F(EventReplyHead, padding1), F(EventReplyHead, padding2)}},
    {"kvmi_event_cr", sizeof(v7::EventCr),
     {F(EventCr, cr), F(EventCr, padding), F(EventCr, old_value), F(EventCr, new_value)}},
    {"kvmi_event_cr_reply", sizeof(v7::NewValueReply), {F(NewValueReply, new_val)}},
    {"kvmi_event_msr", sizeof(v7::EventMsr),
     {F(EventMsr, msr), F(EventMsr, padding), F(EventMsr, old_value), F(EventMsr, new_value)}},
    {"kvmi_event_msr_reply", sizeof(v7::NewValueReply), {F(NewValueReply, new_val)}},
    {"kvmi_event_breakpoint", sizeof(v7::EventBreakpoint),
     {F(EventBreakpoint, gpa), F(EventBreakpoint, insn_len), F(EventBreakpoint, padding)}},
    {"kvmi_event_pf", sizeof(v7::EventPageFault),
     {F(EventPageFault, gva), F(EventPageFault, gpa), F(EventPageFault, access), F(EventPageFault, padding1),
      F(EventPageFault, view), F(EventPageFault, padding2)}},
    {"kvmi_event_pf_reply", sizeof(v7::PageFaultReply),
     {F(PageFaultReply, ctx_addr), F(PageFaultReply, ctx_size), F(PageFaultReply, singlestep),
      F(PageFaultReply, rep_complete), F(PageFaultReply, padding), F(PageFaultReply, ctx_data)}},
    {"kvmi_event_descriptor", sizeof(v7::EventDescriptor),
     {F(EventDescriptor, descriptor), F(EventDescriptor, write), F(EventDescriptor, padding)}},
    {"kvmi_get_xsave_reply", 0, {{"region", 0, 0}}},
};

const std::vector<Struct> kV6{
    {"kvmi_get_version_reply", sizeof(v7::VersionReplyV6), {F(VersionReplyV6, version), F(VersionReplyV6, padding)}},
    {"kvmi_inject_exception", sizeof(v7::InjectExceptionRequestV6),
     {F(InjectExceptionRequestV6, nr), F(InjectExceptionRequestV6, has_error), F(InjectExceptionRequestV6, padding),
      F(InjectExceptionRequestV6, error_code), F(InjectExceptionRequestV6, address)}},
    {"kvmi_get_page_access", sizeof(v7::PagesRequest),
     {F(PagesRequest, view), F(PagesRequest, count), F(PagesRequest, padding), TAIL(PagesRequest, "gpa")}},
    {"kvmi_get_page_write_bitmap", sizeof(v7::PagesRequest),
     {F(PagesRequest, view), F(PagesRequest, count), F(PagesRequest, padding), TAIL(PagesRequest, "gpa")}},
    {"kvmi_get_page_access_reply", 0, {{"access", 0, 0}}},
    {"kvmi_get_page_write_bitmap_reply", 0, {{"bitmap", 0, 0}}},
    {"kvmi_get_map_token_reply", sizeof(v7::MapTokenReply), {F(MapTokenReply, token)}},
    {"kvmi_event_arch", sizeof(v7::EventArch),
     {F(EventArch, mode), Field{"padding", offsetof(v7::EventArch, padding1), 7}, F(EventArch, regs),
      F(EventArch, sregs), F(EventArch, msrs)}},
    {"kvmi_event_trap", sizeof(v7::EventTrapV6),
     {F(EventTrapV6, vector), F(EventTrapV6, type), F(EventTrapV6, error_code), F(EventTrapV6, padding),
      F(EventTrapV6, cr2)}},
};

const std::vector<Struct> kV7{
    {"kvmi_get_version_reply", sizeof(v7::VersionReply),
     {F(VersionReply, version), F(VersionReply, padding), F(VersionReply, features)}},
    // Of the padding, the kernel's header makes the first byte a feature.
    {"kvmi_features", sizeof(v7::Features),
     {F(Features, spp), F(Features, vmfunc), F(Features, eptp), F(Features, ve),
      Field{"padding", offsetof(v7::Features, singlestep), 4}}},
    {"kvmi_inject_exception", sizeof(v7::InjectExceptionRequest),
     {F(InjectExceptionRequest, nr), F(InjectExceptionRequest, padding1), F(InjectExceptionRequest, padding2),
      F(InjectExceptionRequest, error_code), F(InjectExceptionRequest, address)}},
    {"kvmi_query_physical", sizeof(v7::GfnRequest), {F(GfnRequest, gfn)}},
    {"kvmi_query_physical_reply", sizeof(v7::QueryPhysicalReply),
     {F(QueryPhysicalReply, gfn), F(QueryPhysicalReply, size)}},
    {"kvmi_mem_token", sizeof(v7::MapTokenReply), {F(MapTokenReply, token)}},
    {"kvmi_get_next_available_gfn_reply", sizeof(v7::GfnReply), {F(GfnReply, gfn)}},
    {"kvmi_set_ve_info_page", sizeof(v7::SetVeInfoPageRequest),
     {F(SetVeInfoPageRequest, gpa), F(SetVeInfoPageRequest, trigger_vmexit), F(SetVeInfoPageRequest, padding)}},
    // Id 30 under the name that old clients have for it.
    {"kvmi_set_ept_page_conv_req", sizeof(v7::SetPageSveRequest),
     {F(SetPageSveRequest, view), AS(SetPageSveRequest, suppress, "sve"),
      Field{"padding", offsetof(v7::SetPageSveRequest, padding1), 5}, F(SetPageSveRequest, gpa)}},
    {"kvmi_switch_ept_view_req", sizeof(v7::ViewRequest), {F(ViewRequest, view), F(ViewRequest, padding)}},
    {"kvmi_destroy_ept_view", sizeof(v7::ViewRequest), {F(ViewRequest, view), AS(ViewRequest, padding, "pad")}},
    {"kvmi_get_ept_view_reply", sizeof(v7::ViewReply), {F(ViewReply, view), F(ViewReply, padding)}},
    {"kvmi_create_ept_view_reply", sizeof(v7::ViewReply), {F(ViewReply, view), AS(ViewReply, padding, "pad")}},
    {"kvmi_control_ept_view_req", sizeof(v7::ControlEptViewRequest),
     {F(ControlEptViewRequest, view), F(ControlEptViewRequest, visible), F(ControlEptViewRequest, padding1),
      F(ControlEptViewRequest, padding2)}},
    {"kvmi_vcpu_get_xcr", sizeof(v7::GetXcrRequest), {F(GetXcrRequest, xcr), F(GetXcrRequest, padding)}},
    {"kvmi_vcpu_get_xcr_reply", sizeof(v7::XcrReply), {F(XcrReply, value)}},
    {"kvmi_vcpu_set_xsave", 0, {{"region", 0, 0}}},
    {"kvmi_vcpu_control_singlestep", sizeof(v7::ControlSinglestepRequest),
     {F(ControlSinglestepRequest, enable), F(ControlSinglestepRequest, padding)}},
    {"kvmi_vcpu_translate_gva", sizeof(v7::TranslateGvaRequest), {F(TranslateGvaRequest, gva)}},
    {"kvmi_vcpu_translate_gva_reply", sizeof(v7::GpaReply), {F(GpaReply, gpa)}},
    {"kvmi_vcpu_change_gfn", sizeof(v7::ChangeGfnRequest),
     {F(ChangeGfnRequest, view), F(ChangeGfnRequest, padding1), F(ChangeGfnRequest, padding2),
      F(ChangeGfnRequest, old_gfn), F(ChangeGfnRequest, new_gfn)}},
    {"kvmi_vcpu_alloc_gfn", sizeof(v7::GfnRequest), {F(GfnRequest, gfn)}},
    {"kvmi_vcpu_free_gfn", sizeof(v7::GfnRequest), {F(GfnRequest, gfn)}},
    {"kvmi_event_arch", sizeof(v7::EventArch),
     {F(EventArch, mode), F(EventArch, padding1), F(EventArch, view), F(EventArch, padding2), F(EventArch, regs),
      F(EventArch, sregs), F(EventArch, msrs)}},
    {"kvmi_event_trap", sizeof(v7::EventTrap),
     {F(EventTrap, vector), F(EventTrap, padding1), F(EventTrap, padding2), F(EventTrap, error_code),
      F(EventTrap, cr2)}},
    {"kvmi_event_singlestep", sizeof(v7::EventSinglestep),
     {F(EventSinglestep, failed), F(EventSinglestep, padding)}},
    {"kvmi_event_cpuid", sizeof(v7::EventCpuid),
     {F(EventCpuid, function), F(EventCpuid, index), F(EventCpuid, insn_length), F(EventCpuid, padding1),
      F(EventCpuid, padding2)}},
};

/// Published structs that no message of a codec has: mappings of memory on the same host, and what id 31 was.
const std::set<std::string> kNotOnTheSocket{"kvmi_mem_map",       "kvmi_map_mem_token",
                                            "kvmi_guest_mem_map", "kvmi_get_ept_page_conv_req",
                                            "kvmi_get_ept_page_conv_reply"};

void require_layout(const nlohmann::json& structs, const Struct& ours) {
  CAPTURE(ours.name);
  REQUIRE(structs.contains(ours.name));
  const auto& theirs = structs.at(ours.name);
  CHECK(theirs.at("size") == ours.size);
  REQUIRE(theirs.at("fields").size() == ours.fields.size());
  for (std::size_t i = 0; i < ours.fields.size(); ++i) {
    const auto& field = theirs.at("fields")[i];
    CAPTURE(ours.fields[i].name);
    CHECK(field.at("name") == ours.fields[i].name);
    CHECK(field.at("offset") == ours.fields[i].offset);
    CHECK(field.at("size") == ours.fields[i].size);
  }
}

const std::map<std::string, std::uint16_t> kNames{
    {"KVMI_EVENT_REPLY", v7::kEventReplyId},
    {"KVMI_EVENT", v7::kEventId},
    {"KVMI_GET_VERSION", v7::kGetVersionId},
    {"KVMI_CHECK_COMMAND", v7::kCheckCommandId},
    {"KVMI_CHECK_EVENT", v7::kCheckEventId},
    {"KVMI_GET_GUEST_INFO", v7::kGetGuestInfoId},
    {"KVMI_GET_VCPU_INFO", v7::kGetVcpuInfoId},
    {"KVMI_PAUSE_VCPU", v7::kPauseVcpuId},
    {"KVMI_CONTROL_VM_EVENTS", v7::kControlVmEventsId},
    {"KVMI_CONTROL_EVENTS", v7::kControlEventsId},
    {"KVMI_CONTROL_CR", v7::kControlCrId},
    {"KVMI_CONTROL_MSR", v7::kControlMsrId},
    {"KVMI_GET_REGISTERS", v7::kGetRegistersId},
    {"KVMI_SET_REGISTERS", v7::kSetRegistersId},
    {"KVMI_GET_CPUID", v7::kGetCpuidId},
    {"KVMI_GET_XSAVE", v7::kGetXsaveId},
    {"KVMI_READ_PHYSICAL", v7::kReadPhysicalId},
    {"KVMI_WRITE_PHYSICAL", v7::kWritePhysicalId},
    {"KVMI_INJECT_EXCEPTION", v7::kInjectExceptionId},
    {"KVMI_GET_PAGE_ACCESS", v7::kGetPageAccessId},
    {"KVMI_SET_PAGE_ACCESS", v7::kSetPageAccessId},
    {"KVMI_GET_MAP_TOKEN", v7::kGetMapTokenId},
    {"KVMI_GET_MTRR_TYPE", v7::kGetMtrrTypeId},
    {"KVMI_CONTROL_SPP", v7::kControlSppId},
    {"KVMI_GET_PAGE_WRITE_BITMAP", v7::kGetPageWriteBitmapId},
    {"KVMI_SET_PAGE_WRITE_BITMAP", v7::kSetPageWriteBitmapId},
    {"KVMI_CONTROL_CMD_RESPONSE", v7::kControlCmdResponseId},
    {"KVMI_SET_VE_INFO_PAGE", v7::kSetVeInfoPageId},
    {"KVMI_GET_MAX_GFN", v7::kGetMaxGfnId},
    {"KVMI_GET_NEXT_AVAILABLE_GFN", v7::kGetNextAvailableGfnId},
    {"KVMI_SWITCH_EPT_VIEW", v7::kSwitchEptViewId},
    {"KVMI_DISABLE_VE", v7::kDisableVeId},
    {"KVMI_GET_EPT_VIEW", v7::kGetEptViewId},
    {"KVMI_VCPU_TRANSLATE_GVA", v7::kTranslateGvaId},
    {"KVMI_CONTROL_EPT_VIEW", v7::kControlEptViewId},
    {"KVMI_VCPU_GET_XCR", v7::kGetXcrId},
    {"KVMI_VCPU_SET_XSAVE", v7::kSetXsaveId},
    {"KVMI_QUERY_PHYSICAL", v7::kQueryPhysicalId},
    {"KVMI_VCPU_ALLOC_GFN", v7::kAllocGfnId},
    {"KVMI_VCPU_FREE_GFN", v7::kFreeGfnId},
    {"KVMI_CREATE_EPT_VIEW", v7::kCreateEptViewId},
    {"KVMI_DESTROY_EPT_VIEW", v7::kDestroyEptViewId},
    {"KVMI_VCPU_CHANGE_GFN", v7::kChangeGfnId},
    {"KVMI_VCPU_CONTROL_SINGLESTEP", v7::kControlSinglestepId},
};

const std::map<std::string, EventKind> kEventNames{
    {"KVMI_EVENT_UNHOOK", EventKind::Unhook},         {"KVMI_EVENT_CR", EventKind::Cr},
    {"KVMI_EVENT_MSR", EventKind::Msr},               {"KVMI_EVENT_XSETBV", EventKind::Xsetbv},
    {"KVMI_EVENT_BREAKPOINT", EventKind::Breakpoint}, {"KVMI_EVENT_HYPERCALL", EventKind::Hypercall},
    {"KVMI_EVENT_PF", EventKind::PageFault},          {"KVMI_EVENT_TRAP", EventKind::Trap},
    {"KVMI_EVENT_DESCRIPTOR", EventKind::Descriptor}, {"KVMI_EVENT_CREATE_VCPU", EventKind::CreateVcpu},
    {"KVMI_EVENT_PAUSE_VCPU", EventKind::Pause},      {"KVMI_EVENT_SINGLESTEP", EventKind::Singlestep},
    {"KVMI_EVENT_CPUID", EventKind::Cpuid},
};

const Codec& both(DialectId dialect) { return dialect == DialectId::V6 ? codec_v6() : codec_v7(); }

}  // namespace

TEST_CASE("the structs of v7 and v6 have the published C layouts", "[kvmi1][v7][layouts]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const auto& structs = layouts_of(dialect).at("structs");
  std::set<std::string> seen = kNotOnTheSocket;
  for (const auto& group : {kBoth, dialect == DialectId::V6 ? kV6 : kV7}) {
    for (const Struct& ours : group) {
      require_layout(structs, ours);
      seen.insert(ours.name);
    }
  }
  for (const auto& [name, layout] : structs.items()) {
    CAPTURE(name);
    CHECK(seen.contains(name));
  }
}

TEST_CASE("the numbers of v7 and v6 are the published ones", "[kvmi1][v7][layouts]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  const auto& layouts = layouts_of(dialect);
  CHECK(codec.dialect() == dialect);
  CHECK(codec.payload_max() == layouts.at("constants").at("limits").at("KVMI_MSG_SIZE"));

  std::set<std::string> without_layout;
  for (const auto& [name, id] : layouts.at("ids_without_layout").items()) without_layout.insert(name);
  std::set<std::uint16_t> numbers;
  for (const auto& [name, id] : layouts.at("constants").at("messages").items()) {
    CAPTURE(name);
    const std::uint16_t number = id;
    if (without_layout.contains(name)) {
      CHECK(!codec.command_of(number));
      continue;
    }
    CHECK(kNames.at(name) == number);
    if (number == v7::kEventReplyId || number == v7::kEventId) continue;
    REQUIRE(codec.command_of(number));
    CHECK(codec.number_of(*codec.command_of(number)) == number);
    numbers.insert(number);
  }
  if (dialect == DialectId::V7) numbers.insert(v7::kSetPageSveId);  // in kernels' headers only
  for (unsigned number = 0; number <= 0xffff; ++number) {
    if (codec.command_of(static_cast<std::uint16_t>(number)).has_value() !=
        numbers.contains(static_cast<std::uint16_t>(number))) {
      FAIL("command " << number);
    }
  }

  std::set<EventKind> kinds;
  for (const auto& [name, id] : layouts.at("constants").at("events").items()) {
    CAPTURE(name);
    const EventKind kind = kEventNames.at(name);
    kinds.insert(kind);
    CHECK(codec.number_of(kind) == id.get<std::uint16_t>());
    CHECK(codec.event_of(id) == kind);
  }
  for (unsigned kind = 0; kind < kEventCount; ++kind) {
    CHECK(codec.number_of(static_cast<EventKind>(kind)).has_value() == kinds.contains(static_cast<EventKind>(kind)));
  }
  CHECK(!codec.event_of(12));
  CHECK(!codec.event_of(14));
  CHECK(!codec.event_of(0xffff));
}

TEST_CASE("requests and replies have the published sizes", "[kvmi1][v7][layouts]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  std::map<std::uint16_t, nlohmann::json> messages;
  for (const auto& message : layouts_of(dialect).at("messages")) messages[message.at("id")] = message;

  const auto commands = sample_commands(dialect);
  const auto replies = sample_replies(dialect);
  std::size_t compared = 0;
  for (std::size_t i = 0; i < commands.size(); ++i) {
    const Written request = written(codec, commands[i]);
    const Written reply = written(codec, replies[i]);
    CAPTURE(request.id);
    REQUIRE(reply.id == request.id);
    const auto found = messages.find(request.id);
    if (found == messages.end()) {
      CHECK(request.id == v7::kSetPageSveId);  // in kernels' headers only
      continue;
    }
    const auto& message = found->second;
    const auto* change = std::get_if<ChangeGfn>(&commands[i]);
    if (change != nullptr && !change->view) continue;  // the older form
    const auto check = [](const Written& wire, const nlohmann::json& fixed, bool tail) {
      CHECK((tail ? wire.payload.size() > fixed : wire.payload.size() == fixed));
    };
    check(request, message.at("request_fixed_size"), message.contains("request_tail"));
    check(reply, message.at("reply_fixed_size"), message.contains("reply_tail"));
    ++compared;
  }
  CHECK(compared == messages.size() - 2);  // the event and its reply are no commands

  std::map<std::uint16_t, nlohmann::json> events;
  for (const auto& event : layouts_of(dialect).at("event_messages")) events[event.at("id")] = event;
  for (const EventMessage& event : sample_events(dialect)) {
    const auto number = codec.number_of(event.event.kind()).value();
    CAPTURE(number);
    CHECK(written(codec, event).payload.size() == events.at(number).at("payload_size"));
  }
}

TEST_CASE("actions and page access bits of v7 and v6 are the published ones", "[kvmi1][v7][layouts]") {
  const auto& constants = layouts_of(GENERATE(DialectId::V6, DialectId::V7)).at("constants");
  CHECK(constants.at("event_actions").at("KVMI_EVENT_ACTION_CONTINUE") == kContinue);
  CHECK(constants.at("event_actions").at("KVMI_EVENT_ACTION_RETRY") == kRetry);
  CHECK(constants.at("event_actions").at("KVMI_EVENT_ACTION_CRASH") == kCrash);
  CHECK(constants.at("page_access").at("KVMI_PAGE_ACCESS_R") == KVMI_PAGE_ACCESS_R);
  CHECK(constants.at("page_access").at("KVMI_PAGE_ACCESS_W") == KVMI_PAGE_ACCESS_W);
  CHECK(constants.at("page_access").at("KVMI_PAGE_ACCESS_X") == KVMI_PAGE_ACCESS_X);
  CHECK(constants.at("descriptors").at("KVMI_DESC_IDTR") == KVMI_DESC_IDTR);
  CHECK(constants.at("descriptors").at("KVMI_DESC_TR") == KVMI_DESC_TR);
}

}  // namespace kvmid::kvmi1::test
