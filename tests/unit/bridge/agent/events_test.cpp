// SPDX-License-Identifier: GPL-2.0-or-later
//
// Events: what the tool is told, what its replies become, and which of them close the connection.

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::ToolRights;

namespace {

Event cr_event(VcpuId vcpu = kVcpu0) { return event_with(CrData{4, 0x10, 0x30}, vcpu, {Action::Skip, Action::Retry}); }
Event fault_event(VcpuId vcpu = kVcpu0) {
  PageFaultData fault;
  fault.gpa = Gpa{0x5000};
  fault.access = KVMI_PAGE_ACCESS_W;
  return event_with(fault, vcpu, {Action::Skip, Action::Retry});
}
std::vector<std::byte> value(std::uint64_t number) { return wire_bytes(number); }

/// The one reply that the core got.
EventReply reply_of(Rig& rig, std::uint32_t core_seq) {
  const auto reply = rig.next_reply();
  REQUIRE(reply.has_value());
  CHECK(reply->first == Seq{core_seq});
  CHECK(rig.idle());
  return reply->second;
}

}  // namespace

TEST_CASE("events are numbered from 1, whatever the core calls them", "[agent]") {
  for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    rig.raise(cr_event(kVcpu0), 700);
    rig.raise(cr_event(kVcpu1), 701);
    const auto told = rig.told();
    REQUIRE(told.size() == 2);
    CHECK(told[0].id == 1);
    CHECK(told[0].seq == Seq{1});
    CHECK(told[1].seq == Seq{2});
    CHECK(rig.event_of(told[1]).vcpu == kVcpu1);
    CHECK(std::get<CrData>(rig.event_of(told[0]).data).new_value == 0x30);
  }
}

TEST_CASE("CONTINUE of a register write: the new value, the old one, another, and none", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    const auto answered = [&](const std::vector<std::byte>& data) {
      Rig rig(dialect);
      rig.raise(cr_event(), 9);
      rig.told();
      CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, data) == "");
      return reply_of(rig, 9);
    };
    EventReply reply = answered(value(0x30));
    CHECK(reply.action == Action::Allow);
    CHECK(std::holds_alternative<std::monostate>(reply.value));
    reply = answered(value(0x10));
    CHECK(reply.action == Action::Skip);
    reply = answered(value(0x20));
    CHECK(reply.action == Action::Allow);
    CHECK(std::get<NewValue>(reply.value).value == 0x20);
    reply = answered({});  // the kernel reads what is missing as 0, and loads it
    CHECK(reply.action == Action::Allow);
    CHECK(std::get<NewValue>(reply.value).value == 0);
  }
}

TEST_CASE("a register write whose SKIP the hypervisor does not take gets the old value", "[agent]") {
  Rig rig(DialectId::V7);
  rig.raise(event_with(MsrData{0x176, 5, 6}), 9);
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, value(5)) == "");
  const auto reply = reply_of(rig, 9);
  CHECK(reply.action == Action::Allow);
  CHECK(std::get<NewValue>(reply.value).value == 5);
}

TEST_CASE("RETRY and CRASH where the event takes them", "[agent]") {
  Rig rig(DialectId::V7);
  rig.raise(fault_event(), 1);
  CHECK(rig.reply(1, kVcpu0, kvmi1::kRetry) == "");
  CHECK(reply_of(rig, 1).action == Action::Retry);
  rig.raise(fault_event(), 2);
  CHECK(rig.reply(2, kVcpu0, kvmi1::kCrash) == "");
  CHECK(reply_of(rig, 2).action == Action::Crash);
  // The hypervisor offers no RETRY this time: the mildest that it does.
  rig.raise(event_with(BreakpointData{Gpa{0x1000}, 1}), 3);
  CHECK(rig.reply(3, kVcpu0, kvmi1::kRetry) == "");
  CHECK(reply_of(rig, 3).action == Action::Allow);
}

TEST_CASE("an action that the dialect's event does not take: v12 closes, v7 refuses the operation", "[agent]") {
  for (const std::uint32_t action : {1U, 3U, 200U}) {
    Rig v12(DialectId::V12);
    v12.raise(cr_event(), 4);
    CHECK(v12.reply(1, kVcpu0, action, value(0x30)) != "");

    Rig v7(DialectId::V7);
    v7.raise(cr_event(), 4);
    CHECK(v7.reply(1, kVcpu0, action, value(0x30)) == "");
    CHECK(reply_of(v7, 4).action == Action::Skip);
    v7.raise(event_with(HypercallData{}), 5);
    CHECK(v7.reply(2, kVcpu0, action) == "");
    CHECK(reply_of(v7, 5).action == Action::Allow);
  }
}

TEST_CASE("the data of a page fault's reply cannot be carried: v7 continues without, v12 refuses the length",
          "[agent]") {
  std::vector<std::byte> tail(272, std::byte{0});
  tail[0] = std::byte{0x40};  // ctx_addr
  tail[8] = std::byte{8};     // ctx_size
  Rig v7(DialectId::V7);
  v7.raise(fault_event(), 3);
  CHECK(v7.reply(1, kVcpu0, kvmi1::kContinue, tail) == "");
  CHECK(reply_of(v7, 3).action == Action::Allow);
  Rig v12(DialectId::V12);
  v12.raise(fault_event(), 3);
  CHECK(v12.reply(1, kVcpu0, kvmi1::kContinue, tail) != "");
}

TEST_CASE("a reply to nothing: v12 closes, v7 ignores it while the vCPU does not wait", "[agent]") {
  Rig v12(DialectId::V12);
  CHECK(v12.reply(1, kVcpu0, kvmi1::kContinue) != "");
  Rig v7(DialectId::V7);
  CHECK(v7.reply(1, kVcpu0, kvmi1::kContinue) == "");
  CHECK(v7.idle());
  v7.raise(cr_event(), 5);
  CHECK(v7.reply(8, kVcpu0, kvmi1::kContinue) != "");
}

TEST_CASE("a reply twice: v12 closes, v7 ignores the second", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    rig.raise(cr_event(), 5);
    CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
    CHECK((rig.reply(1, kVcpu0, kvmi1::kContinue, value(0x30)) == "") == (dialect == DialectId::V7));
  }
}

TEST_CASE("an event reply of a vCPU that does not exist is answered like a command", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    CHECK(rig.reply(4, VcpuId{9}, kvmi1::kContinue) == "");
    const Told answer = rig.told_one();
    CHECK(answer.id == rig.codec.event_reply_id());
    CHECK(answer.seq == Seq{4});
    CHECK(answer.payload.size() == 8);
    CHECK(answer.error() == kEinval);
  }
}

TEST_CASE("a late reply never closes: the tool cannot know", "[agent]") {
  for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    // The core answers when the time is up; the vCPU does not stop again.
    rig.raise(cr_event(), 5);
    rig.expire(kVcpu0, EventKind::Cr, 5);
    CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
    CHECK(rig.idle());
    // It stops again, and again, before the first reply comes.
    rig.raise(cr_event(), 6);
    rig.expire(kVcpu0, EventKind::Cr, 6);
    rig.raise(cr_event(), 7);
    rig.expire(kVcpu0, EventKind::Cr, 7);
    rig.raise(cr_event(), 8);
    CHECK(rig.reply(2, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
    CHECK(rig.idle());
    CHECK(rig.reply(4, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
    CHECK(reply_of(rig, 8).action == Action::Allow);
    CHECK(rig.reply(3, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
    CHECK(rig.idle());
  }
}

TEST_CASE("an observer's reply goes nowhere, and it may come late", "[agent]") {
  Rig rig(DialectId::V12);
  Event watched = cr_event();
  watched.decide = false;
  for (std::uint32_t i = 1; i <= 100; ++i) rig.raise(watched, i);
  CHECK(rig.told().size() == 100);
  for (std::uint32_t i = 1; i <= 100; ++i) CHECK(rig.reply(i, kVcpu0, kvmi1::kContinue, value(1)) == "");
  CHECK(rig.idle());
}

TEST_CASE("events that a dialect does not have are allowed in its place", "[agent]") {
  Rig v12(DialectId::V12);
  v12.raise(event_with(CpuidData{1, 0}, kVcpu1, {Action::Skip}), 5);
  CHECK(reply_of(v12, 5).action == Action::Allow);
  v12.raise(event_with(CreateVcpuData{}, kVcpu1), 6);
  CHECK(reply_of(v12, 6).vcpu == kVcpu1);
  CHECK(v12.told().empty());
  Rig v7(DialectId::V7);
  v7.raise(event_with(AccessData{}, kVcpu1), 5);
  CHECK(reply_of(v7, 5).action == Action::Allow);
  CHECK(v7.told().empty());
  Event watched = event_with(AccessData{}, kVcpu1);
  watched.decide = false;
  v7.raise(watched, 6);
  CHECK(v7.idle());
}

TEST_CASE("a page fault tells of one kind of access, the write first", "[agent]") {
  Rig rig(DialectId::V7);
  Event event = fault_event();
  std::get<PageFaultData>(event.data).access = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W;
  rig.raise(event, 1);
  CHECK(std::get<PageFaultData>(rig.event_of(rig.told_one()).data).access == KVMI_PAGE_ACCESS_W);
}

// ---- exceptions ----

TEST_CASE("INJECT_EXCEPTION subscribes to TRAP, tells it, and takes the subscription back", "[agent]") {
  Rig rig(DialectId::V7);
  const auto seq = rig.send(kvmi1::InjectException{kVcpu0, 14, false, 2, 0xdead});
  const auto trap = rig.serve<ControlEvents>(ControlEventsReply{});
  CHECK(trap.events == EventSet{KVMI_EVENT_BIT(KVMI_EVENT_TRAP)});
  CHECK(trap.vcpu == kVcpu0);
  const auto asked = rig.serve<InjectException>();
  CHECK(asked.vector == 14);
  CHECK(asked.has_error_code);
  CHECK(asked.error_code == 2);
  CHECK(asked.address == 0xdead);
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0})) == kEbusy);

  TrapData data;
  data.vector = 13;
  rig.raise(event_with(data), 40);  // the guest's own: nobody's business
  CHECK(rig.told().empty());
  CHECK(reply_of(rig, 40).action == Action::Allow);

  data.vector = 14;
  data.flags = KVMI_TRAP_F_INJECTED;
  rig.raise(event_with(data), 41);
  CHECK(rig.serve<ControlEvents>(ControlEventsReply{}).operation == Operation::Disable);
  CHECK(std::get<TrapData>(rig.event_of(rig.told_one()).data).vector == 14);
  CHECK(rig.error_of(rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0})) == kEbusy);  // v7: the TRAP is open
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue) == "");
  CHECK(reply_of(rig, 41).action == Action::Allow);
}

TEST_CASE("a tool that lost its TRAP by the deadline may inject again", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0});
  static_cast<void>(rig.serve<ControlEvents>(ControlEventsReply{}));
  static_cast<void>(rig.serve<InjectException>());
  TrapData data;
  data.vector = 3;
  data.flags = KVMI_TRAP_F_INJECTED;
  rig.raise(event_with(data), 41);
  static_cast<void>(rig.serve<ControlEvents>(ControlEventsReply{}));
  static_cast<void>(rig.told());
  CHECK(rig.error_of(rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0})) == kEbusy);
  rig.expire(kVcpu0, EventKind::Trap, 41);
  const auto seq = rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0});
  static_cast<void>(rig.serve<ControlEvents>(ControlEventsReply{}));
  static_cast<void>(rig.serve<InjectException>());
  CHECK(rig.error_of(seq) == 0);
}

TEST_CASE("an injection that fails leaves no TRAP to wait for", "[agent]") {
  Rig rig(DialectId::V12);
  auto seq = rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0});
  rig.serve<ControlEvents>(ControlEventsReply{});
  rig.serve_refused<InjectException>(ErrorCode::Busy);
  CHECK(rig.error_of(seq) == kEbusy);
  CHECK(rig.serve<ControlEvents>(ControlEventsReply{}).operation == Operation::Disable);
  seq = rig.send(kvmi1::InjectException{kVcpu0, 3, false, 7, 7});
  rig.serve_refused<ControlEvents>(ErrorCode::NotPermitted);
  CHECK(rig.error_of(seq) == kEperm);
  CHECK(rig.idle());
}

TEST_CASE("an injection whose TRAP cannot come any more is not waited for", "[agent]") {
  const auto injects = [](Rig& rig) {
    const auto seq = rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0});
    rig.serve<ControlEvents>(ControlEventsReply{});  // subscribes anew
    rig.serve<InjectException>();
    return rig.error_of(seq) == 0;
  };
  Rig rig(DialectId::V7);
  CHECK(injects(rig));
  rig.bridge.deliver(Notice{.kind = NoticeKind::Revoked, .text = "policy changed"}, rig.wire);
  CHECK(injects(rig));
  rig.raise(event_with(CreateVcpuData{}, kVcpu0), 5);
  rig.told();
  CHECK(injects(rig));
  CHECK(rig.error_of(rig.send(kvmi1::InjectException{kVcpu0, 3, false, 0, 0})) == kEbusy);
}

TEST_CASE("only vectors that have one get an error code, and only 14 an address; v6 says so itself", "[agent]") {
  const auto injected = [](DialectId dialect, kvmi1::InjectException command) {
    Rig rig(dialect);
    rig.send(command);
    rig.serve<ControlEvents>(ControlEventsReply{});
    return rig.serve<InjectException>();
  };
  auto asked = injected(DialectId::V7, {kVcpu0, 6, false, 9, 9});
  CHECK_FALSE(asked.has_error_code);
  CHECK(asked.error_code == 0);
  CHECK(asked.address == 0);
  asked = injected(DialectId::V12, {kVcpu0, 13, false, 9, 9});
  CHECK(asked.has_error_code);
  CHECK(asked.error_code == 9);
  asked = injected(DialectId::V6, {kVcpu0, 13, true, 9, 0});
  CHECK(asked.has_error_code);
}

// ---- pauses ----

TEST_CASE("pauses that the core tells at one stop are told one after another", "[agent]") {
  Rig rig(DialectId::V7);
  rig.raise(event_with(PauseData{}), 5);
  rig.raise(event_with(PauseData{}), 5);
  rig.raise(event_with(PauseData{}), 5);
  CHECK(rig.told_one().seq == Seq{1});
  for (std::uint32_t i = 1; i <= 3; ++i) {
    CHECK(rig.reply(i, kVcpu0, kvmi1::kContinue) == "");
    CHECK(reply_of(rig, 5).event == EventKind::Pause);
    const auto told = rig.told();
    CHECK(told.size() == (i < 3 ? 1 : 0));
  }
}

TEST_CASE("registers are set during an event only", "[agent]") {
  Rig rig(DialectId::V7);
  kvmi1::SetRegisters set{kVcpu0, {}};
  set.regs.rip = 0x1234;
  CHECK(rig.error_of(rig.send(set)) == kEopnotsupp);
  CHECK(rig.idle());
  rig.raise(cr_event(), 5);
  rig.told();
  const auto seq = rig.send(set);
  CHECK(rig.serve<SetRegisters>().regs.rip == 0x1234);
  CHECK(rig.error_of(seq) == 0);
  rig.expire(kVcpu0, EventKind::Cr, 5);
  const auto late = rig.send(set);
  rig.serve_refused<SetRegisters>(ErrorCode::TryAgain);
  CHECK(rig.error_of(late) == kEopnotsupp);
}

// ---- the end ----

TEST_CASE("the guest goes: UNHOOK where it was enabled, once, then everything is unsupported", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{0, true})) == 0);
    CHECK(rig.bridge.guest_off(OffReason::Suspend, rig.wire));
    const Told unhook = rig.told_one();
    CHECK(unhook.id == (dialect == DialectId::V12 ? 0 : 1));
    CHECK(unhook.payload.size() == (dialect == DialectId::V12 ? 8 : 544));
    CHECK(rig.bridge.guest_off(OffReason::Suspend, rig.wire));
    CHECK(rig.told().empty());
    CHECK(rig.error_of(rig.send(kvmi1::ControlCr{kVcpu0, false, 3})) == kEopnotsupp);
    CHECK(rig.error_of(rig.send(kvmi1::GetVcpuInfo{kVcpu0})) == kEopnotsupp);
    CHECK(rig.error_of(rig.send(kvmi1::GetVersion{})) == 0);
    CHECK(rig.error_of(rig.send(kvmi1::CheckEvent{0})) == 0);
    CHECK(rig.error_of(rig.send(kvmi1::CheckCommand{*rig.codec.number_of(kvmi1::kind_of<kvmi1::ControlCr>)})) == 0);
    CHECK(rig.idle());
  }
}

TEST_CASE("the guest goes without UNHOOK: the connection is to be closed", "[agent]") {
  Rig rig(DialectId::V7);
  CHECK_FALSE(rig.bridge.guest_off(OffReason::Shutdown, rig.wire));
  CHECK(rig.told().empty());
}

TEST_CASE("replies to events that were open when the guest went are swallowed", "[agent]") {
  Rig rig(DialectId::V12);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{0, true})) == 0);
  rig.raise(cr_event(), 5);
  CHECK(rig.bridge.guest_off(OffReason::Migration, rig.wire));
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
  CHECK(rig.idle());
}

TEST_CASE("a hypervisor process lets its guest go: its UNHOOK event is the tool's", "[agent]") {
  Event unhook = event_with(UnhookData{OffReason::Snapshot}, kAllVcpus);
  Rig wanted(DialectId::V7);
  CHECK(wanted.error_of(wanted.send(kvmi1::ControlVmEvents{0, true})) == 0);
  wanted.raise(unhook, 5);
  CHECK(wanted.told_one().payload.size() == 544);
  CHECK_FALSE(wanted.bridge.broken());
  Rig unwanted(DialectId::V7);
  unwanted.raise(unhook, 5);
  CHECK(unwanted.bridge.broken());
}

TEST_CASE("between UNHOOK and the tool's closing a hypervisor process serves on", "[agent]") {
  Rig rig(DialectId::V7, every_right(), true);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{0, true})) == 0);
  rig.raise(cr_event(), 5);
  rig.told();
  CHECK(rig.bridge.guest_off(OffReason::Suspend, rig.wire));
  CHECK(rig.told_one().payload.size() == 544);
  const auto data = bytes_of({0x90});
  const auto seq = rig.send(kvmi1::WritePhysical{Gpa{0x1000}, data});
  rig.serve<WritePhysical>(WritePhysicalReply{1});
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, value(0x30)) == "");
  CHECK(reply_of(rig, 5).action == Action::Allow);
  rig.raise(cr_event(kVcpu1), 6);
  CHECK(rig.reply(rig.told_one().seq.value, kVcpu1, kvmi1::kContinue, value(0x30)) == "");
  CHECK(reply_of(rig, 6).action == Action::Allow);
}

TEST_CASE("a vCPU that came later exists", "[agent]") {
  Rig rig(DialectId::V7);
  CHECK(rig.error_of(rig.send(kvmi1::GetXcr{VcpuId{2}, 0})) == kEinval);
  rig.raise(event_with(CreateVcpuData{}, VcpuId{2}), 5);
  rig.told();
  rig.send(kvmi1::GetXcr{VcpuId{2}, 0});
  CHECK(rig.serve<GetXcr>(GetXcrReply{1}).vcpu == VcpuId{2});
  CHECK(rig.reply(1, VcpuId{2}, kvmi1::kContinue) == "");
  CHECK(reply_of(rig, 5).vcpu == VcpuId{2});
}

TEST_CASE("a tool that was silent observes that kind of event from then on", "[agent]") {
  Rig rig(DialectId::V7);
  rig.bridge.deliver(Notice{.kind = NoticeKind::Demoted, .event = EventKind::Cr}, rig.wire);
  rig.send(kvmi1::ControlEvents{kVcpu0, 1, true});
  CHECK(rig.serve<ControlEvents>(ControlEventsReply{}).role == Role::Observer);
  rig.send(kvmi1::ControlEvents{kVcpu0, 2, true});
  CHECK(rig.serve<ControlEvents>(ControlEventsReply{}).role == Role::Decider);
}
