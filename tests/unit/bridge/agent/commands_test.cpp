// SPDX-License-Identifier: GPL-2.0-or-later
//
// What commands of v6, v7 and v12 become, and what a tool is told.

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::ToolRights;

namespace {

ToolRights without(CommandId id) {
  ToolRights rights = every_right();
  rights.commands.bits &= ~(std::uint64_t{1} << static_cast<unsigned>(id));
  return rights;
}
ToolRights without(EventKind kind) {
  ToolRights rights = every_right();
  rights.events.bits &= ~(std::uint64_t{1} << static_cast<unsigned>(kind));
  return rights;
}

std::uint16_t number(const Rig& rig, EventKind kind) { return *rig.codec.number_of(kind); }

}  // namespace

TEST_CASE("GET_VERSION: version 1, the features that rights give, and what only v12 announces", "[agent]") {
  struct Row {
    DialectId dialect;
    bool steps;
    std::size_t size;
    std::uint32_t second;
  };
  for (const Row& row : {Row{DialectId::V6, true, 16, 0}, Row{DialectId::V7, true, 24, 0},
                         Row{DialectId::V12, true, 24, 8184}, Row{DialectId::V12, false, 24, 8184}}) {
    Rig rig(row.dialect, row.steps ? every_right() : without(CommandId::ControlSinglestep));
    rig.send(kvmi1::GetVersion{});
    const Told reply = rig.told_one();
    CHECK(reply.payload.size() == row.size);
    CHECK(reply.at<std::uint32_t>(8) == 1);
    CHECK(reply.at<std::uint32_t>(12) == row.second);
    if (row.dialect == DialectId::V12) CHECK(reply.at<std::uint8_t>(16) == (row.steps ? 1 : 0));
    CHECK(rig.idle());
  }
}

TEST_CASE("an unknown id is answered in the dialect's own way, with 8 bytes", "[agent]") {
  const auto answer_to = [](DialectId dialect, std::uint16_t id) {
    Rig rig(dialect);
    CHECK(rig.send_raw(id, 7, {}) == "");
    const Told reply = rig.told_one();
    CHECK(reply.id == id);
    CHECK(reply.payload.size() == 8);
    return reply.error();
  };
  CHECK(answer_to(DialectId::V6, 60) == kEopnotsupp);
  CHECK(answer_to(DialectId::V7, 61) == kEnosys);
  CHECK(answer_to(DialectId::V12, 22) == kEnosys);
  CHECK(answer_to(DialectId::V12, 0) == kEnosys);
  CHECK(answer_to(DialectId::Rfc2017, 200) == -38);
}

TEST_CASE("what rights do not give is EPERM, before the payload is looked at", "[agent]") {
  Rig rig(DialectId::V12, without(CommandId::ControlCr));
  CHECK(rig.send_raw(*rig.codec.number_of(kvmi1::kind_of<kvmi1::ControlCr>), 5, bytes_of({9, 9, 9, 9})) == "");
  CHECK(rig.error_of(5) == kEperm);
  CHECK(rig.idle());
}

TEST_CASE("what KVMI 2 has nothing for is unsupported", "[agent]") {
  Rig rig(DialectId::V7);
  const std::vector<kvmi1::Command> none = {kvmi1::GetMapToken{},
                                            kvmi1::ControlSpp{true},
                                            kvmi1::CreateEptView{},
                                            kvmi1::DestroyEptView{1},
                                            kvmi1::SetVeInfoPage{kVcpu0, Gpa{}, false},
                                            kvmi1::DisableVe{kVcpu0},
                                            kvmi1::ControlEptView{kVcpu0, 1, true},
                                            kvmi1::AllocGfn{kVcpu0, Gfn{5}},
                                            kvmi1::FreeGfn{kVcpu0, Gfn{5}},
                                            kvmi1::ChangeGfn{kVcpu0, std::uint16_t{0}, Gfn{1}, Gfn{2}}};
  for (const auto& command : none) {
    INFO(kvmi1::name_of(kvmi1::kind_of_command(command)));
    const auto seq = rig.send(command);
    CHECK(rig.error_of(seq) == kEopnotsupp);
    const auto checked = rig.send(kvmi1::CheckCommand{*rig.codec.number_of(kvmi1::kind_of_command(command))});
    CHECK(rig.error_of(checked) == kEperm);
  }
  CHECK(rig.idle());
}

TEST_CASE("CHECK_COMMAND and CHECK_EVENT answer as each dialect does", "[agent]") {
  const auto command = [](DialectId dialect, std::uint16_t id, const ToolRights& rights = every_right()) {
    Rig rig(dialect, rights);
    const auto seq = rig.send(kvmi1::CheckCommand{id});
    return rig.error_of(seq);
  };
  CHECK(command(DialectId::V7, 13) == 0);
  CHECK(command(DialectId::V7, 0) == 0);       // event replies are always allowed
  CHECK(command(DialectId::V7, 1) == kEperm);  // unknown, and below the limit
  CHECK(command(DialectId::V7, 63) == 0);
  CHECK(command(DialectId::V7, 64) == kEinval);
  CHECK(command(DialectId::V7, 10, without(CommandId::ControlCr)) == kEperm);
  CHECK(command(DialectId::V12, 7) == 0);
  CHECK(command(DialectId::V12, 0) == kEnoent);
  CHECK(command(DialectId::V12, 1) == kEnoent);
  CHECK(command(DialectId::V12, 22) == kEnoent);
  CHECK(command(DialectId::V12, 13, without(CommandId::ControlCr)) == kEperm);

  const auto event = [](DialectId dialect, std::uint16_t id, const ToolRights& rights = every_right()) {
    Rig rig(dialect, rights);
    const auto seq = rig.send(kvmi1::CheckEvent{id});
    return rig.error_of(seq);
  };
  CHECK(event(DialectId::V7, 0) == 0);
  CHECK(event(DialectId::V7, 1) == 0);
  CHECK(event(DialectId::V7, 12) == 0);
  CHECK(event(DialectId::V7, 14) == kEinval);
  CHECK(event(DialectId::V7, 6, without(EventKind::PageFault)) == kEperm);
  CHECK(event(DialectId::V12, 7) == 0);
  CHECK(event(DialectId::V12, 21) == kEnoent);
  CHECK(event(DialectId::V12, 17, without(EventKind::PageFault)) == kEperm);
  CHECK(event(DialectId::V12, 1, without(EventKind::Pause)) == 0);  // pauses need no subscription
}

TEST_CASE("facts of the guest come from GET_GUEST_INFO", "[agent]") {
  GetGuestInfoReply facts;
  facts.vcpu_count = 3;
  facts.tsc_hz = 5000;
  facts.max_gpa = 0x12345000;
  Rig rig(DialectId::V7);
  rig.send(kvmi1::GetGuestInfo{});
  rig.serve<GetGuestInfo>(facts);
  CHECK(rig.body_of<kvmi1::GetGuestInfoReply>(rig.told_one()).vcpu_count == 3);
  rig.send(kvmi1::GetVcpuInfo{VcpuId{2}});
  rig.serve<GetGuestInfo>(facts);
  CHECK(rig.body_of<kvmi1::GetVcpuInfoReply>(rig.told_one()).tsc_hz == 5000);
  rig.send(kvmi1::GetMaxGfn{});
  rig.serve<GetGuestInfo>(facts);
  CHECK(rig.body_of<kvmi1::GfnReply>(rig.told_one()).gfn == Gfn{0x12345});  // the first after the last
}

TEST_CASE("a vCPU that the guest does not have is EINVAL, whatever else is wrong", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    for (const kvmi1::Command& command :
         {kvmi1::Command{kvmi1::GetVcpuInfo{VcpuId{99}}}, kvmi1::Command{kvmi1::SetRegisters{VcpuId{2}, {}}},
          kvmi1::Command{kvmi1::PauseVcpu{VcpuId{2}, true}}, kvmi1::Command{kvmi1::GetXcr{VcpuId{2}, 1}}}) {
      const auto seq = rig.send(command);
      CHECK(rig.error_of(seq) == kEinval);
    }
    CHECK(rig.idle());
  }
}

TEST_CASE("CONTROL_EVENTS enables and disables one event, in the role that rights give", "[agent]") {
  ToolRights rights = every_right();
  rights.role = Role::Observer;
  Rig rig(DialectId::V7, rights);
  const auto on = rig.send(kvmi1::ControlEvents{kVcpu1, number(rig, EventKind::Cr), true});
  auto asked = rig.serve<ControlEvents>(ControlEventsReply{});
  CHECK(asked.vcpu == kVcpu1);
  CHECK(asked.operation == Operation::Enable);
  CHECK(asked.role == Role::Observer);
  CHECK(asked.events == EventSet{KVMI_EVENT_BIT(KVMI_EVENT_CR)});
  CHECK(rig.error_of(on) == 0);
  const auto off = rig.send(kvmi1::ControlEvents{kVcpu1, number(rig, EventKind::Cr), false});
  CHECK(rig.serve_refused<ControlEvents>(ErrorCode::Busy).operation == Operation::Disable);
  CHECK(rig.error_of(off) == kEbusy);
}

TEST_CASE("CONTROL_EVENTS: what is accepted without effect, and what is no vCPU event", "[agent]") {
  const auto answer = [](DialectId dialect, int event, const ToolRights& rights = every_right()) {
    Rig rig(dialect, rights);
    const auto seq = rig.send(kvmi1::ControlEvents{kVcpu0, static_cast<std::uint16_t>(event), true});
    CHECK(rig.idle());
    return rig.error_of(seq);
  };
  for (const int accepted : {7, 10, 12}) CHECK(answer(DialectId::V7, accepted) == 0);
  for (const int wrong : {0, 9, 14, 200}) CHECK(answer(DialectId::V7, wrong) == kEinval);
  for (const int accepted : {1, 9, 19}) CHECK(answer(DialectId::V12, accepted) == 0);
  for (const int wrong : {0, 2, 21}) CHECK(answer(DialectId::V12, wrong) == kEinval);
  CHECK(answer(DialectId::V12, 7, without(EventKind::Cr)) == kEperm);
}

TEST_CASE("VM events: UNHOOK is kept here, CREATE_VCPU is of every vCPU", "[agent]") {
  Rig rig(DialectId::V7);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{0, true})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{12, true})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{1, true})) == kEinval);
  CHECK(rig.idle());
  const auto seq = rig.send(kvmi1::ControlVmEvents{9, true});
  const auto asked = rig.serve<ControlEvents>(ControlEventsReply{});
  CHECK(asked.vcpu == kAllVcpus);
  CHECK(asked.events == EventSet{KVMI_EVENT_BIT(KVMI_EVENT_CREATE_VCPU)});
  CHECK(rig.error_of(seq) == 0);
}

TEST_CASE("CONTROL_MSR: the bounds of v7's code and those of v12", "[agent]") {
  const auto asked = [](DialectId dialect, std::uint32_t msr) {
    Rig rig(dialect);
    const auto seq = rig.send(kvmi1::ControlMsr{kVcpu0, true, msr});
    if (rig.idle()) {
      CHECK(rig.error_of(seq) == kEinval);
      return false;
    }
    CHECK(rig.serve<ControlMsr>().msr == msr);
    CHECK(rig.error_of(seq) == 0);
    return true;
  };
  for (const std::uint32_t msr : {0U, 0x1ffeU, 0xc0000001U, 0xc0001ffeU}) {
    CHECK(asked(DialectId::V7, msr));
    CHECK(asked(DialectId::V12, msr));
  }
  for (const std::uint32_t msr : {0x1fffU, 0xc0000000U, 0xc0001fffU}) {
    CHECK_FALSE(asked(DialectId::V7, msr));
    CHECK(asked(DialectId::V12, msr));
  }
  for (const std::uint32_t msr : {0x2000U, 0x40000000U, 0xc0002000U, 0x4b564d00U}) {
    CHECK_FALSE(asked(DialectId::V7, msr));
    CHECK_FALSE(asked(DialectId::V12, msr));
  }
}

TEST_CASE("CONTROL_CLEANUP: what a tool leaves is always taken back", "[agent]") {
  Rig rig(DialectId::V12);
  CHECK(rig.error_of(rig.send(kvmi1::ControlCleanup{true})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::ControlCleanup{false})) == kEopnotsupp);
}

TEST_CASE("TRANSLATE_GVA: unmapped is success with all ones", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::TranslateGva{kVcpu0, Gva{0x1000}});
  CHECK(rig.serve<TranslateGva>(TranslateGvaReply{Gpa{0x5000}, 4096, 7, false}).gva == Gva{0x1000});
  CHECK(rig.body_of<kvmi1::TranslateGvaReply>(rig.told_one()).gpa == 0x5000);
  rig.send(kvmi1::TranslateGva{kVcpu0, Gva{0x2000}});
  rig.serve_refused<TranslateGva>(ErrorCode::Fault);
  CHECK(rig.body_of<kvmi1::TranslateGvaReply>(rig.told_one()).gpa == ~std::uint64_t{0});
}

TEST_CASE("single-step: v12 is told of every step, v7 subscribes itself", "[agent]") {
  Rig v12(DialectId::V12);
  auto seq = v12.send(kvmi1::ControlSinglestep{kVcpu1, true});
  const auto events = v12.serve<ControlEvents>(ControlEventsReply{});
  CHECK(events.events == EventSet{KVMI_EVENT_BIT(KVMI_EVENT_SINGLESTEP)});
  CHECK(events.operation == Operation::Enable);
  CHECK(v12.serve<ControlSinglestep>().enable);
  CHECK(v12.error_of(seq) == 0);
  // An exception and a step do not go together there.
  CHECK(v12.error_of(v12.send(kvmi1::InjectException{kVcpu1, 3, false, 0, 0})) == kEbusy);
  seq = v12.send(kvmi1::ControlSinglestep{kVcpu1, false});
  CHECK_FALSE(v12.serve<ControlSinglestep>().enable);
  CHECK(v12.serve<ControlEvents>(ControlEventsReply{}).operation == Operation::Disable);
  CHECK(v12.error_of(seq) == 0);

  Rig v7(DialectId::V7);
  seq = v7.send(kvmi1::ControlSinglestep{kVcpu1, true});
  CHECK(v7.serve<ControlSinglestep>().enable);
  CHECK(v7.error_of(seq) == 0);

  Rig denied(DialectId::V12, without(EventKind::Singlestep));
  CHECK(denied.error_of(denied.send(kvmi1::ControlSinglestep{kVcpu1, true})) == kEperm);
}

TEST_CASE("views: there is one, and its number is 0", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::GetEptView{kVcpu0});
  CHECK(rig.body_of<kvmi1::EptViewReply>(rig.told_one()).view == 0);
  CHECK(rig.error_of(rig.send(kvmi1::SwitchEptView{kVcpu0, 0})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::SwitchEptView{kVcpu0, 2})) == kEopnotsupp);
  CHECK(rig.error_of(rig.send(kvmi1::SwitchEptView{kVcpu0, 3})) == kEinval);
}

TEST_CASE("errors of the core become the dialect's, in exactly 8 bytes", "[agent]") {
  struct Row {
    ErrorCode error;
    std::int32_t told;
  };
  for (const Row& row : {Row{ErrorCode::Busy, -16}, Row{ErrorCode::NoDevice, -95}, Row{ErrorCode::NotPermitted, -1},
                         Row{ErrorCode::NoMemory, -12}, Row{ErrorCode::NoEntry, -2}, Row{ErrorCode::Stale, -95}}) {
    for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
      Rig rig(dialect);
      const auto seq = rig.send(kvmi1::GetCpuid{kVcpu0, 1, 0});
      rig.serve_refused<GetCpuid>(row.error);
      CHECK(rig.error_of(seq) == row.told);
    }
  }
}
