// SPDX-License-Identifier: GPL-2.0-or-later
//
// What only the dialect of 2017 has.

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;

namespace {

Rig rig_2017() { return Rig(DialectId::Rfc2017); }

std::string reply(Rig& rig, std::uint32_t seq, std::uint32_t bits, Bytes data = {}, std::uint64_t rip = 0) {
  kvmi1::EventReplyMessage message;
  message.action = bits;
  message.regs.rip = rip;
  message.data = data;
  return rig.send_any(message, seq);
}

Event cr_event(VcpuId vcpu = kVcpu0) { return event_with(CrData{4, 0x10, 0x30}, vcpu, {Action::Skip, Action::Retry}); }

}  // namespace

TEST_CASE("2017: a mask of events replaces the set of a vCPU", "[agent]") {
  auto rig = rig_2017();
  const auto seq = rig.send(kvmi1::SetEvents{kVcpu1, 0x02 | 0x40});
  const auto asked = rig.serve<ControlEvents>(ControlEventsReply{});
  CHECK(asked.vcpu == kVcpu1);
  CHECK(asked.operation == Operation::Set);
  CHECK(asked.events == EventSet{KVMI_EVENT_BIT(KVMI_EVENT_CR) | KVMI_EVENT_BIT(KVMI_EVENT_PAGE_FAULT)});
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::SetEvents{kVcpu1, 0x100})) == kEinval);
  CHECK(rig.error_of(rig.send(kvmi1::SetEvents{kVcpu1, 0x01})) == kEinval);
  auto rights = every_right();
  rights.events.bits = 0;
  Rig denied(DialectId::Rfc2017, rights);
  CHECK(denied.error_of(denied.send(kvmi1::SetEvents{kVcpu1, 0x02})) == kEperm);
}

TEST_CASE("2017: CRs and MSRs are of the whole guest", "[agent]") {
  auto rig = rig_2017();
  rig.send(kvmi1::ControlGuestCr{true, 3});
  CHECK(rig.serve<ControlCr>().vcpu == kAllVcpus);
  rig.send(kvmi1::ControlGuestMsr{true, 0x40000000});
  CHECK(rig.serve<ControlMsr>().vcpu == kAllVcpus);
  rig.told();
  CHECK(rig.error_of(rig.send(kvmi1::ControlGuestMsr{true, 0x4b564d00})) == kEinval);
}

TEST_CASE("2017: PAUSE_GUEST stops every vCPU without events, UNPAUSE_GUEST lets them go", "[agent]") {
  auto rig = rig_2017();
  const auto seq = rig.send(kvmi1::PauseGuest{});
  CHECK(rig.serve<PauseVcpu>().vcpu == kAllVcpus);
  rig.raise(event_with(PauseData{}, kVcpu0), 7);
  CHECK(rig.told().empty());
  rig.serve<GetRegisters>(GetRegistersReply{});  // have they been started?
  rig.serve<GetRegisters>(GetRegistersReply{});
  rig.raise(event_with(PauseData{}, kVcpu1), 8);
  CHECK(rig.error_of(seq) == 0);
  // Paused vCPUs take registers.
  const auto set = rig.send(kvmi1::SetRegisters{kVcpu1, {}});
  rig.serve<SetRegisters>();
  CHECK(rig.error_of(set) == 0);
  // Pauses nest.
  CHECK(rig.error_of(rig.send(kvmi1::PauseGuest{})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::UnpauseGuest{})) == 0);
  CHECK(rig.idle());
  CHECK(rig.error_of(rig.send(kvmi1::UnpauseGuest{})) == 0);
  for (const std::uint32_t core_seq : {7U, 8U}) {
    const auto released = rig.next_reply();
    REQUIRE(released.has_value());
    CHECK(released->first == Seq{core_seq});
    CHECK(released->second.event == EventKind::Pause);
    CHECK(released->second.action == Action::Allow);
  }
  CHECK(rig.error_of(rig.send(kvmi1::UnpauseGuest{})) == kEinval);
}

TEST_CASE("2017: a PAUSE event that comes when nobody pauses any more is let go", "[agent]") {
  auto rig = rig_2017();
  rig.send(kvmi1::PauseGuest{});
  rig.serve<PauseVcpu>();
  rig.raise(event_with(PauseData{}, kVcpu0), 7);
  rig.serve<GetRegisters>(GetRegistersReply{});
  rig.serve<GetRegisters>(GetRegistersReply{});
  rig.send(kvmi1::UnpauseGuest{});
  CHECK(rig.next_reply()->first == Seq{7});
  CHECK(rig.told().empty());
  rig.raise(event_with(PauseData{}, kVcpu1), 8);
  CHECK(rig.next_reply()->first == Seq{8});
  // Both commands are answered then: PAUSE_GUEST does not wait for a vCPU that nobody pauses any more.
  CHECK(rig.told().size() == 2);
}

TEST_CASE("2017: PAUSE_GUEST does not wait for vCPUs that have not been started", "[agent]") {
  auto rig = rig_2017();
  const auto seq = rig.send(kvmi1::PauseGuest{});
  rig.serve<PauseVcpu>();
  CHECK(rig.serve_refused<GetRegisters>(ErrorCode::TryAgain).vcpu == kVcpu0);
  CHECK(rig.told().empty());
  CHECK(rig.serve_refused<GetRegisters>(ErrorCode::TryAgain).vcpu == kVcpu1);
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.idle());
}

TEST_CASE("2017: a PAUSE_GUEST that fails leaves nothing paused", "[agent]") {
  auto rig = rig_2017();
  const auto seq = rig.send(kvmi1::PauseGuest{});
  REQUIRE(rig.next<PauseVcpu>() != nullptr);
  rig.raise(event_with(PauseData{}, kVcpu0), 7);  // the core takes it back with the command
  rig.refuse(ErrorCode::Busy);
  CHECK(rig.error_of(seq) == kEbusy);
  const auto again = rig.send(kvmi1::PauseGuest{});
  rig.serve<PauseVcpu>();
  rig.raise(event_with(PauseData{}, kVcpu0), 9);
  rig.raise(event_with(PauseData{}, kVcpu1), 10);
  CHECK(rig.error_of(again) == 0);
  rig.serve<GetRegisters>(GetRegistersReply{});
  rig.send(kvmi1::UnpauseGuest{});
  CHECK(rig.next_reply()->first == Seq{9});
  CHECK(rig.next_reply()->first == Seq{10});
  CHECK(rig.idle());
}

TEST_CASE("2017: replies are bits: ALLOW, registers, no emulation", "[agent]") {
  auto rig = rig_2017();
  const auto value = wire_bytes(std::uint64_t{0x20});
  rig.raise(cr_event(), 5);
  CHECK(rig.told_one().id == 25);
  CHECK(reply(rig, 1, kvmi1::kAllow2017, value) == "");
  auto got = rig.next_reply();
  REQUIRE(got.has_value());
  CHECK(got->second.action == Action::Allow);
  CHECK(std::get<NewValue>(got->second.value).value == 0x20);

  rig.raise(cr_event(), 6);
  CHECK(reply(rig, 2, 0, value) == "");
  CHECK(rig.next_reply()->second.action == Action::Skip);

  rig.raise(cr_event(kVcpu1), 7);
  CHECK(reply(rig, 3, kvmi1::kAllow2017 | kvmi1::kSetRegs2017, wire_bytes(std::uint64_t{0x30}), 0x777) == "");
  const auto* set = rig.next<SetRegisters>();
  REQUIRE(set != nullptr);
  CHECK(set->vcpu == kVcpu1);
  CHECK(set->regs.rip == 0x777);
  CHECK(rig.next_reply()->second.action == Action::Allow);
  rig.answer();

  PageFaultData fault;
  fault.access = KVMI_PAGE_ACCESS_W;
  const Event event = event_with(fault, kVcpu0, {Action::Retry, Action::Skip});
  struct Row {
    std::uint32_t bits;
    Action action;
  };
  std::uint32_t seq = 3;
  for (const Row& row : {Row{kvmi1::kAllow2017 | kvmi1::kNoEmulation2017, Action::Retry},
                         Row{kvmi1::kAllow2017 | kvmi1::kSetContext2017, Action::Allow},
                         Row{kvmi1::kAllow2017, Action::Allow}, Row{0, Action::Retry}}) {
    rig.raise(event, 10);
    const std::vector<std::byte> context(4 + kvmi1::kContextSize);
    CHECK(reply(rig, ++seq, row.bits, context) == "");
    CHECK(rig.next_reply()->second.action == row.action);
  }
  rig.raise(event_with(BreakpointData{Gpa{0x1000}, 1}, kVcpu0, {Action::Retry}), 11);
  CHECK(reply(rig, ++seq, 0) == "");
  CHECK(rig.next_reply()->second.action == Action::Allow);
  CHECK(reply(rig, 999, 0) != "");
}

TEST_CASE("2017: every TRAP is told where its bit was set; injections tell none", "[agent]") {
  auto rig = rig_2017();
  TrapData data;
  data.vector = 13;
  rig.raise(event_with(data), 3);
  CHECK(rig.told().empty());
  CHECK(rig.next_reply()->second.action == Action::Allow);
  rig.send(kvmi1::SetEvents{kVcpu0, 0x80});
  rig.serve<ControlEvents>(ControlEventsReply{});
  rig.told();
  rig.raise(event_with(data), 4);
  CHECK(rig.told_one().id == 25);
  CHECK(reply(rig, 1, kvmi1::kAllow2017) == "");
  CHECK(rig.next_reply().has_value());
  auto seq = rig.send(kvmi1::InjectPageFault{kVcpu1, 2, Gva{0xdead}});
  auto asked = rig.serve<InjectException>();
  CHECK(asked.vector == 14);
  CHECK(asked.has_error_code);
  CHECK(asked.address == 0xdead);
  CHECK(rig.error_of(seq) == 0);
  seq = rig.send(kvmi1::InjectBreakpoint{kVcpu1});
  asked = rig.serve<InjectException>();
  CHECK(asked.vector == 3);
  CHECK_FALSE(asked.has_error_code);
  CHECK(rig.error_of(seq) == 0);
}

TEST_CASE("2017: MTRRs, the size of XSAVE, rights of a page, shutdown", "[agent]") {
  auto rig = rig_2017();
  rig.send(kvmi1::GetMtrrs{kVcpu0});
  GetRegistersReply registers;
  const std::vector<kvmi_x86_msr> msrs = {{0x277, 0, 7}, {0xfe, 0, 8}, {0x2ff, 0, 9}};
  registers.msrs = std::span<const kvmi_x86_msr>(msrs);
  rig.serve<GetRegisters>(registers);
  const auto mtrrs = rig.body_of<kvmi1::GetMtrrsReply>(rig.told_one());
  CHECK(mtrrs.pat == 7);
  CHECK(mtrrs.cap == 8);
  CHECK(mtrrs.type == 9);

  rig.send(kvmi1::GetXsaveInfo{kVcpu0});
  CHECK(rig.serve<GetCpuid>(GetCpuidReply{7, 832, 900, 0}).function == 0xd);
  CHECK(rig.body_of<kvmi1::GetXsaveInfoReply>(rig.told_one()).size == 832);

  rig.send(kvmi1::GetVcpuPageAccess{kVcpu0, Gpa{0x1234}});
  const std::vector<kvmi_page_access_entry> found = {{0x1000, 1, 5, {}}};
  CHECK(rig.serve<GetPageAccess>(GetPageAccessReply{std::span<const kvmi_page_access_entry>(found)}).gpa ==
        Gpa{0x1000});
  CHECK(rig.body_of<kvmi1::GetVcpuPageAccessReply>(rig.told_one()).access == 5);
  auto seq = rig.send(kvmi1::SetVcpuPageAccess{kVcpu1, Gpa{0x1234}, 5});
  const auto* set = rig.next<SetPageAccess>();
  REQUIRE(set != nullptr);
  CHECK(set->entries[0].gpa == 0x1000);
  rig.answer();
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::SetVcpuPageAccess{kVcpu1, Gpa{0x1000}, 8})) == kEinval);

  seq = rig.send(kvmi1::ShutdownGuest{});
  rig.serve<ShutdownGuest>();
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::MapPage{Gpa{0}, Gfn{0}})) == kEopnotsupp);
}
