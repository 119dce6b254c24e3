// SPDX-License-Identifier: GPL-2.0-or-later

#include "tests/unit/kvmi1/v7/samples.h"

#include <catch2/catch.hpp>

namespace kvmid::kvmi1::test {
namespace {

template <class T>
T numbered(std::uint8_t first) {
  static_assert(std::has_unique_object_representations_v<T>);
  T value;
  std::array<std::uint8_t, sizeof value> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(first + i % 251);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

kvmi_x86_sregs sregs() {
  auto value = numbered<kvmi_x86_sregs>(5);
  for (auto* segment : {&value.cs, &value.ds, &value.es, &value.fs, &value.gs, &value.ss, &value.tr, &value.ldt}) {
    segment->padding = 0;
  }
  for (auto* table : {&value.gdt, &value.idt}) {
    for (auto& word : table->padding) word = 0;
  }
  return value;
}

Bytes data(std::size_t size) {
  static const auto kBytes = [] {
    std::array<std::byte, kPageSize> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(1 + i % 255);
    return bytes;
  }();
  return Bytes(kBytes).first(size);
}

constexpr VcpuId kVcpu{0x0102};
constexpr std::array<std::uint32_t, 3> kMsrs{0x174, 0xc0000080, 0xc0000082};
constexpr std::array<std::uint64_t, 2> kGpas{0x1000, 0x123456789000};
constexpr std::array<PageAccessEntry, 2> kEntries{{{0x1000, 5, {}}, {0x123456789000, 7, {}}}};
constexpr std::array<WriteBitmapEntry, 2> kBitmapEntries{{{0x1000, 0xffff, 0}, {0x5000, 0x55555555, 0}}};
constexpr std::array<std::uint32_t, 2> kBitmaps{0xffff, 0x55555555};
constexpr std::array<kvmi_x86_msr, 3> kMsrValues{{{0x174, 0, 0x10}, {0xc0000080, 0, 0xd01}, {0xc0000082, 0, ~0ULL}}};

}  // namespace

std::vector<Command> sample_commands(DialectId dialect) {
  const bool v6 = dialect == DialectId::V6;
  std::vector<Command> commands{
      GetVersion{},
      CheckCommand{0x0203},
      CheckEvent{0x0405},
      GetGuestInfo{},
      GetVcpuInfo{kVcpu},
      PauseVcpu{kVcpu, true},
      ControlVmEvents{0x0709, true},
      ControlEvents{kVcpu, 0x0b0d, true},
      ControlCr{kVcpu, true, 0x01020304},
      ControlMsr{kVcpu, true, 0xc0000082},
      GetRegisters{kVcpu, std::span<const std::uint32_t>(kMsrs)},
      SetRegisters{kVcpu, numbered<kvmi_x86_regs>(3)},
      GetCpuid{kVcpu, 0x80000008, 0x01020304},
      GetXsave{kVcpu},
      ReadPhysical{Gpa{0x123456789abc}, 0x102},
      WritePhysical{Gpa{0x123456789abc}, data(21)},
      InjectException{kVcpu, 14, v6, 0x06070809, 0xffff800012345678},
      SetPageAccess{2, std::span<const PageAccessEntry>(kEntries)},
      GetMapToken{},
      GetMtrrType{kVcpu, Gpa{0xfee00000}},
      ControlSpp{true},
      SetPageWriteBitmap{v6 ? std::uint16_t{1} : std::uint16_t{0}, std::span<const WriteBitmapEntry>(kBitmapEntries)},
      ControlCmdResponse{true, true, !v6},
      GetMaxGfn{},
  };
  if (v6) {
    commands.emplace_back(GetPageAccess{2, std::span<const std::uint64_t>(kGpas)});
    commands.emplace_back(GetPageWriteBitmap{2, std::span<const std::uint64_t>(kGpas)});
    return commands;
  }
  const std::vector<Command> of_v7{
      SetVeInfoPage{kVcpu, Gpa{0x7000}, true},
      SetPageSve{2, true, Gpa{0x123456789000}},
      GetNextAvailableGfn{},
      SwitchEptView{kVcpu, 0x0102},
      DisableVe{kVcpu},
      GetEptView{kVcpu},
      TranslateGva{kVcpu, Gva{0xffff800012345678}},
      ControlEptView{kVcpu, 0x0102, true},
      GetXcr{kVcpu, 3},
      SetXsave{kVcpu, data(840)},
      QueryPhysical{Gfn{0x12345}},
      AllocGfn{kVcpu, Gfn{0x12345}},
      FreeGfn{kVcpu, Gfn{0x12346}},
      CreateEptView{},
      DestroyEptView{0x0102},
      ChangeGfn{kVcpu, 0x0102, Gfn{0x1234}, Gfn{0x5678}},
      ChangeGfn{kVcpu, std::nullopt, Gfn{0x1234}, Gfn{0x5678}},
      ControlSinglestep{kVcpu, true},
  };
  commands.insert(commands.end(), of_v7.begin(), of_v7.end());
  return commands;
}

std::vector<Reply> sample_replies(DialectId dialect) {
  const bool v6 = dialect == DialectId::V6;
  const Codec& codec = v6 ? codec_v6() : codec_v7();
  const auto body_of = [v6](CommandKind kind) -> ReplyBody {
    switch (kind) {
      case kind_of<GetVersion>:
        if (v6) return GetVersionReply{};
        return GetVersionReply{.spp = true, .vmfunc = false, .eptp = true, .ve = false, .singlestep = true};
      case kind_of<GetGuestInfo>: return GetGuestInfoReply{0x0102, 0};
      case kind_of<GetVcpuInfo>: return GetVcpuInfoReply{2500000000};
      case kind_of<GetRegisters>:
        return GetRegistersReply{4, numbered<kvmi_x86_regs>(9), sregs(), std::span<const kvmi_x86_msr>(kMsrValues)};
      case kind_of<GetCpuid>: return GetCpuidReply{1, 2, 3, 4};
      case kind_of<GetXsave>: return GetXsaveReply{data(kXsaveSize)};
      case kind_of<GetXcr>: return GetXcrReply{7};
      case kind_of<GetMtrrType>: return GetMtrrTypeReply{6};
      case kind_of<ReadPhysical>: return ReadPhysicalReply{data(0x102)};
      case kind_of<GetMaxGfn>: return GfnReply{Gfn{0x100000}};
      case kind_of<GetNextAvailableGfn>: return GfnReply{Gfn{0x140000}};
      case kind_of<GetMapToken>: return GetMapTokenReply{{1, 2, 3, 4}};
      case kind_of<QueryPhysical>: return QueryPhysicalReply{Gfn{0x100}, 0x200};
      case kind_of<GetPageAccess>: return GetPageAccessReply{data(2)};
      case kind_of<GetPageWriteBitmap>: return GetPageWriteBitmapReply{std::span<const std::uint32_t>(kBitmaps)};
      case kind_of<GetEptView>: return EptViewReply{2};
      case kind_of<CreateEptView>: return EptViewReply{3};
      case kind_of<TranslateGva>: return TranslateGvaReply{};
      default: return std::monostate{};
    }
  };

  std::vector<Reply> replies;
  for (const Command& command : sample_commands(dialect)) {
    const CommandKind kind = kind_of_command(command);
    replies.push_back({codec.number_of(kind).value(), 0, body_of(kind)});
  }
  replies.push_back({codec.number_of(kind_of<ReadPhysical>).value(), -kEnoent, {}});
  replies.push_back({codec.event_reply_id(), -kEinval, {}});
  replies.push_back({999, v6 ? -kEopnotsupp : -kEnosys, {}});
  return replies;
}

std::vector<EventMessage> sample_events(DialectId dialect) {
  const bool v6 = dialect == DialectId::V6;
  TrapData trap;
  trap.vector = 14;
  trap.flags = KVMI_TRAP_F_ERROR_CODE;
  trap.error_code = 6;
  trap.address = 0x7fff12345678;
  std::vector<EventData> all{
      UnhookData{OffReason::Suspend},
      CrData{3, 0x1000, 0x2000},
      MsrData{0xc0000082, 0x1111, 0xffffffff81060040},
      XsetbvData{},
      BreakpointData{Gpa{0x1000ce}, 1},
      HypercallData{},
      PageFaultData{Gva{0xffff800000007000}, Gpa{0x7000}, KVMI_PAGE_ACCESS_W, true},
      PageFaultData{Gva{0}, Gpa{0x7000}, KVMI_PAGE_ACCESS_X, false},
      trap,
      DescriptorData{KVMI_DESC_GDTR, true},
      CreateVcpuData{},
      PauseData{},
      SinglestepData{!v6},
  };
  if (!v6) all.emplace_back(CpuidData{13, 1});

  std::vector<EventMessage> events;
  for (const EventData& event_data : all) {
    EventMessage message;
    message.event.vcpu = std::holds_alternative<UnhookData>(event_data) ? kAllVcpus : kVcpu;
    message.event.mode = 4;
    message.event.regs = numbered<kvmi_x86_regs>(1);
    message.event.sregs = sregs();
    message.event.msrs = numbered<kvmi_x86_event_msrs>(7);
    message.event.data = event_data;
    // v6 tells the view of page faults only.
    if (!v6 || std::holds_alternative<PageFaultData>(event_data)) message.view = 2;
    events.push_back(message);
  }
  return events;
}

std::vector<EventReplyMessage> sample_event_replies() {
  return {
      {kVcpu, kContinue, 10, {}, {}},
      {kVcpu, kRetry, 4, {}, {}},
      {kVcpu, kCrash, 5, {}, {}},
      {kVcpu, 0xff, 0xff, {}, {}},
      {kVcpu, kContinue, 1, {}, data(8)},
      {kVcpu, kContinue, 6, {}, data(272)},
  };
}

Written taken_apart(Bytes message) {
  kvmi_msg_hdr header{};
  REQUIRE(message.size() >= sizeof header);
  std::memcpy(&header, message.data(), sizeof header);
  const Bytes payload = message.subspan(sizeof header);
  REQUIRE(header.size == payload.size());
  return {header.id, Seq{header.seq}, {payload.begin(), payload.end()}};
}

Written written(const Codec& codec, const Downward& message) {
  return std::visit(Overloaded{[&](const auto& known) { return written(codec, known); },
                               [](const UnknownMessage&) -> Written { throw std::logic_error("an unknown message"); }},
                    message);
}

Written written(const Codec& codec, const Upward& message) {
  return std::visit(Overloaded{[&](const auto& known) { return written(codec, known); },
                               [](const UnknownMessage&) -> Written { throw std::logic_error("an unknown message"); }},
                    message);
}

}  // namespace kvmid::kvmi1::test
