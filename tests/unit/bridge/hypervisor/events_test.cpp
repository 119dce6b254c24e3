// SPDX-License-Identifier: GPL-2.0-or-later
//
// Events up with what can be answered, replies down as the dialect has them, and SKIP where it has none.

#include <cstring>

#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

constexpr unsigned kAllow = 1, kRetry = 2, kSkip = 4, kCrash = 8;

std::uint64_t value_of(const kvmi1::EventReplyMessage& reply) {
  std::uint64_t value = 0;
  REQUIRE(reply.data.size() == sizeof value);
  std::memcpy(&value, reply.data.data(), sizeof value);
  return value;
}

/// The one reply that the hypervisor got, after whatever it was asked for.
const kvmi1::EventReplyMessage& only_reply(Hypervisor& host) {
  REQUIRE(host.serve_all());
  const auto replies = host.replies();
  REQUIRE(replies.size() == 1);
  return *replies[0];
}

/// The event comes, and the core answers it.
const kvmi1::EventReplyMessage& answer(Hypervisor& host, const EventData& data, Action action,
                                       ReplacedValue value = {}) {
  host.log.clear();
  const Seq seq = host.event(host.make_event(data));
  const Event event = host.take_event();
  host.reply(event, seq, action, value);
  const auto& reply = only_reply(host);
  CHECK(host.last_reply().seq == seq);
  return reply;
}

}  // namespace

TEST_CASE("bridge: an event says what can be answered", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const bool can_translate = dialect != DialectId::V6;
    const auto actions = [&](const EventData& data) {
      const Seq seq = host.event(host.make_event(data));
      const Event event = host.take_event();
      CHECK(event.decide);
      CHECK(event.regs.rip == 0x401000);
      CHECK(event.vcpu == VcpuId{0});
      host.reply(event, seq, Action::Allow);
      return unsigned{event.actions.bits};
    };
    CHECK(actions(CrData{3, 1, 2}) == (kAllow | kSkip | kCrash));
    CHECK(actions(MsrData{0x10, 1, 2}) == (kAllow | kSkip | kCrash));
    CHECK(actions(XsetbvData{}) == (kAllow | kCrash));
    CHECK(actions(BreakpointData{Gpa{0x1000}, 1}) == (kAllow | kRetry | kSkip | kCrash));
    CHECK(actions(HypercallData{}) == (kAllow | kCrash));
    const unsigned faults = kAllow | kRetry | kCrash | (can_translate ? kSkip : 0);
    CHECK(actions(PageFaultData{Gva{1}, Gpa{2}, 2, true}) == faults);
    CHECK(actions(DescriptorData{1, true}) == faults);
    CHECK(actions(TrapData{.vector = 6}) == (kAllow | kCrash));
    CHECK(actions(PauseData{}) == (kAllow | kCrash));
    if (dialect != DialectId::V6) CHECK(actions(SinglestepData{}) == (kAllow | kCrash));
    if (dialect == DialectId::V7) CHECK(actions(CpuidData{1, 0}) == (kAllow | kCrash));
    if (dialect != DialectId::V12) CHECK(actions(CreateVcpuData{}) == (kAllow | kCrash));
  }
}

TEST_CASE("bridge: what is not allowed is not offered as an action", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.denied_commands = {host.number(kvmi1::kind_of<kvmi1::SetRegisters>)};
  host.come_up();
  host.event(host.make_event(BreakpointData{Gpa{0x1000}, 1}, 0));
  CHECK(unsigned{host.take_event().actions.bits} == (kAllow | kRetry | kCrash));
  host.event(host.make_event(PageFaultData{Gva{1}, Gpa{2}, 2, true}, 1));
  CHECK(unsigned{host.take_event().actions.bits} == (kAllow | kRetry | kCrash));
}

TEST_CASE("bridge: replies to writes of registers", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    for (const EventData& data : {EventData{CrData{3, 0x11, 0x22}}, EventData{MsrData{0x10, 0x11, 0x22}}}) {
      const auto& allowed = answer(host, data, Action::Allow);
      CHECK(allowed.action == kvmi1::kContinue);
      CHECK(value_of(allowed) == 0x22);
      CHECK(value_of(answer(host, data, Action::Allow, NewValue{0x33})) == 0x33);
      const auto& skipped = answer(host, data, Action::Skip, NewValue{0x33});
      CHECK(skipped.action == kvmi1::kContinue);
      CHECK(value_of(skipped) == 0x11);
      CHECK(answer(host, data, Action::Crash).action == kvmi1::kCrash);
    }
  }
}

TEST_CASE("bridge: replies without a value", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const auto& allowed = answer(host, BreakpointData{Gpa{0x1000}, 1}, Action::Allow);
    CHECK(allowed.action == kvmi1::kContinue);
    CHECK(allowed.vcpu == VcpuId{0});
    CHECK(allowed.event == host.number(EventKind::Breakpoint));
    CHECK(allowed.data.empty());
    const auto& retried = answer(host, PageFaultData{Gva{1}, Gpa{2}, 2, true}, Action::Retry);
    CHECK(retried.action == kvmi1::kRetry);
    CHECK(retried.data.empty());
    CHECK(answer(host, PauseData{}, Action::Crash).action == kvmi1::kCrash);
    CHECK(host.log.size() == 1);  // nothing but the reply
  }
}

TEST_CASE("bridge: a breakpoint is skipped by its length", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const auto& reply = answer(host, BreakpointData{Gpa{0x1000}, 3}, Action::Skip);
  CHECK(reply.action == kvmi1::kRetry);
  const auto registers = host.all<kvmi1::SetRegisters>();
  REQUIRE(registers.size() == 1);
  CHECK(registers[0]->regs.rip == 0x401003);
  CHECK(registers[0]->regs.rax == 7);  // all else is as it was
  CHECK(host.last<kvmi1::SetRegisters>().order < host.last_reply().order);
}

TEST_CASE("bridge: registers of the core are under the skip", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const Seq seq = host.event(host.make_event(BreakpointData{Gpa{0x1000}, 1}));
  const Event event = host.take_event();
  kvmi_x86_regs regs = event.regs;
  regs.rax = 0x99;
  CHECK(host.ask(SetRegisters{VcpuId{0}, regs}).error() == ErrorCode::None);
  host.reply(event, seq, Action::Skip);
  CHECK(only_reply(host).action == kvmi1::kRetry);
  const auto registers = host.all<kvmi1::SetRegisters>();
  REQUIRE(registers.size() == 2);
  CHECK((registers[0]->regs.rax == 0x99 && registers[0]->regs.rip == 0x401000));
  CHECK((registers[1]->regs.rax == 0x99 && registers[1]->regs.rip == 0x401001));
}

TEST_CASE("bridge: the length of a skipped instruction is read", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  host.pages[0x401] = 0x3000;
  const ByteVector code = bytes({0x48, 0x8b, 0x05, 1, 0, 0, 0});  // mov rax, [rip + 1]: 7 bytes
  const EventData fault = PageFaultData{Gva{0x5000}, Gpa{0x5000}, 1, true};
  SECTION("within a page") {
    std::copy(code.begin(), code.end(), host.memory.begin() + 0x3000);
    CHECK(answer(host, fault, Action::Skip).action == kvmi1::kRetry);
    REQUIRE(host.all<kvmi1::SetRegisters>().size() == 1);
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x401007);
    CHECK(host.all<kvmi1::TranslateGva>().size() == 1);
    CHECK(host.all<kvmi1::ReadPhysical>().size() == 1);
    // DESCRIPTOR has no length either.
    answer(host, DescriptorData{2, true}, Action::Skip);
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x401007);
  }
  SECTION("under a patch") {
    std::copy(code.begin(), code.end(), host.memory.begin() + 0x3000);
    const ByteVector patch = bytes({0xcc});
    WritePhysical write{.gpa = Gpa{0x3000}, .flags = KVMI_WRITE_PATCH, .data = patch, .expected = {}};
    REQUIRE(host.ask(write).error() == ErrorCode::None);
    answer(host, fault, Action::Skip);
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x401007);
  }
  SECTION("across two pages that do not follow each other in memory") {
    host.pages[0x402] = 0x9000;
    std::copy(code.begin(), code.begin() + 3, host.memory.begin() + 0x3ffd);
    std::copy(code.begin() + 3, code.end(), host.memory.begin() + 0x9000);
    Event event = host.make_event(fault);
    event.regs.rip = 0x401ffd;
    const Seq seq = host.event(event);
    host.reply(host.take_event(), seq, Action::Skip);
    CHECK(host.open.size() == 2);  // both pages at once
    CHECK(only_reply(host).action == kvmi1::kRetry);
    REQUIRE(host.all<kvmi1::SetRegisters>().size() == 1);
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x402004);
  }
  SECTION("the second page is not there, and is not needed") {
    host.memory[0x3fff] = std::byte{0x90};
    Event event = host.make_event(fault);
    event.regs.rip = 0x401fff;
    const Seq seq = host.event(event);
    host.reply(host.take_event(), seq, Action::Skip);
    CHECK(only_reply(host).action == kvmi1::kRetry);
    REQUIRE(host.all<kvmi1::SetRegisters>().size() == 1);
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x402000);
  }
  SECTION("16-bit code, at its segment") {
    host.memory[0x3010] = std::byte{0xb8};  // mov ax, imm16: 3 bytes
    Event event = host.make_event(fault);
    event.mode = 2;
    event.regs.rip = 0x10;
    event.sregs.cs.base = 0x401000;
    const Seq seq = host.event(event);
    host.reply(host.take_event(), seq, Action::Skip);
    only_reply(host);
    CHECK(host.all<kvmi1::TranslateGva>()[0]->gva == Gva{0x401010});
    CHECK(host.all<kvmi1::SetRegisters>()[0]->regs.rip == 0x13);
  }
}

TEST_CASE("bridge: what cannot be skipped comes again", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const EventData fault = PageFaultData{Gva{0x5000}, Gpa{0x5000}, 1, true};
  SECTION("code that is not mapped") {}
  SECTION("code that is no memory") { host.pages[0x401] = Hypervisor::kMemoryBytes; }
  SECTION("bytes that are no instruction") {
    host.pages[0x401] = 0x3000;
    host.memory[0x3000] = std::byte{0x06};  // not in 64-bit mode
  }
  SECTION("translation refused") {
    host.pages[0x401] = 0x3000;
    host.refuse = [](const kvmi1::Command& command) -> std::int32_t {
      return std::holds_alternative<kvmi1::TranslateGva>(command) ? -kvmi1::kEagain : 0;
    };
  }
  CHECK(answer(host, fault, Action::Skip).action == kvmi1::kRetry);
  CHECK(host.all<kvmi1::SetRegisters>().empty());
}

TEST_CASE("bridge: injections are known again", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const auto trap = [&](std::uint8_t vector) {
    const Seq seq = host.event(host.make_event(TrapData{.vector = vector, .error_code = 5, .address = 0x1234}));
    const Event event = host.take_event();
    host.reply(event, seq, Action::Allow);
    return std::get<TrapData>(event.data);
  };
  const InjectException page_fault{VcpuId{0}, 14, true, 5, 0x1234};
  CHECK((trap(14).flags & (KVMI_TRAP_F_INJECTED | KVMI_TRAP_F_DISPLACED)) == 0);
  CHECK(host.ask(page_fault).error() == ErrorCode::None);
  const TrapData injected = trap(14);
  CHECK(injected.flags == (KVMI_TRAP_F_INJECTED | KVMI_TRAP_F_ERROR_CODE));
  CHECK((injected.error_code == 5 && injected.address == 0x1234));
  CHECK((trap(14).flags & KVMI_TRAP_F_INJECTED) == 0);  // it was told
  CHECK(host.ask(page_fault).error() == ErrorCode::None);
  const TrapData displaced = trap(6);
  CHECK(displaced.flags == KVMI_TRAP_F_DISPLACED);
  CHECK(displaced.displaced_vector == 14);
  CHECK((displaced.error_code == 0 && displaced.address == 0));
  host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEbusy; };
  CHECK(host.ask(page_fault).error() == ErrorCode::Busy);
  CHECK((trap(14).flags & KVMI_TRAP_F_INJECTED) == 0);
}

TEST_CASE("bridge: UNHOOK is answered by closing", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    Event unhook = host.make_event(UnhookData{});
    unhook.vcpu = kAllVcpus;
    const Seq seq = host.event(unhook);
    const Event event = host.take_event();
    CHECK(event.kind() == EventKind::Unhook);
    CHECK(event.vcpu == kAllVcpus);
    CHECK(unsigned{event.actions.bits} == kAllow);
    CHECK(host.ask(GetRegisters{VcpuId{0}, {}}).error() == ErrorCode::None);
    CHECK_FALSE(host.bridge->let_go());
    host.log.clear();
    host.reply(event, seq, Action::Allow);
    CHECK(host.bridge->let_go());
    CHECK(host.log.empty());
  }
}

TEST_CASE("bridge: a vCPU that was added later goes on, unwatched", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const Seq seq = host.event(host.make_event(CreateVcpuData{}, 2));
  CHECK(host.broken.empty());
  CHECK(host.bridge->up().empty());
  const auto& reply = only_reply(host);
  CHECK(host.last_reply().seq == seq);
  CHECK(reply.vcpu == VcpuId{2});
  CHECK(reply.action == kvmi1::kContinue);
}

TEST_CASE("bridge: events that no vCPU can have sent", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  SECTION("a vCPU that waits") {
    host.event(host.make_event(PauseData{}, 1));
    host.take_event();
    host.event(host.make_event(HypercallData{}, 0));
    host.take_event();
    host.event(host.make_event(HypercallData{}, 1));
    CHECK(host.broken == "sent an event (hypercall) of vCPU 1, which already waits for a reply");
  }
  SECTION("a vCPU whose instruction is measured") {
    host.pages[0x401] = 0x3000;
    const Seq seq = host.event(host.make_event(PageFaultData{Gva{1}, Gpa{2}, 1, true}));
    host.reply(host.take_event(), seq, Action::Skip);
    host.event(host.make_event(HypercallData{}));
    CHECK(host.broken.find("already waits") != std::string::npos);
  }
  SECTION("a vCPU that is not there") {
    host.event(host.make_event(PauseData{}, 2));
    CHECK(host.broken == "sent an event (pause) of vCPU 2, which it does not have");
  }
  SECTION("a failed command that was not silent") {
    ByteBuffer out;
    host.codec.encode(kvmi1::CommandError{-22, Seq{5}, 21}, Seq{1}, out);
    CHECK_FALSE(host.receive(out));
    CHECK(host.broken.find("without reply") != std::string::npos);
  }
}

TEST_CASE("bridge: a hypervisor that never answers SET_REGISTERS", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  unsigned skips = 0;
  for (; skips < 2000; ++skips) {
    const Seq seq = host.event(host.make_event(BreakpointData{Gpa{0x1000}, 1}));
    if (!host.broken.empty()) break;
    host.reply(host.take_event(), seq, Action::Skip);
  }
  CHECK(skips == 1025);
  CHECK(host.broken.find("leaves too many commands unanswered") != std::string::npos);
}

TEST_CASE("bridge: replies that answer nothing are not sent", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const Seq seq = host.event(host.make_event(PauseData{}));
  const Event event = host.take_event();
  host.reply(event, Seq{seq.value + 1}, Action::Allow);
  Event other = event;
  other.vcpu = VcpuId{9};
  host.reply(other, seq, Action::Allow);
  CHECK(host.log.empty());
  host.reply(event, seq, Action::Allow);
  host.reply(event, seq, Action::Allow);
  CHECK(host.log.size() == 1);
}

TEST_CASE("bridge: events of rfc2017", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  const auto actions = [&](const EventData& data) {
    const Seq seq = host.event(host.make_event(data));
    const Event event = host.take_event();
    host.reply(event, seq, Action::Allow);
    return unsigned{event.actions.bits};
  };
  CHECK(actions(CrData{3, 1, 2}) == (kAllow | kSkip | kCrash));
  CHECK(actions(BreakpointData{Gpa{0x1000}, 1}) == (kAllow | kCrash));
  CHECK(actions(PageFaultData{Gva{1}, Gpa{2}, 2, true}) == (kAllow | kRetry | kCrash));
  CHECK(actions(HypercallData{}) == (kAllow | kCrash));

  CHECK(answer(host, MsrData{0x10, 1, 2}, Action::Allow).action == kvmi1::kAllow2017);
  CHECK(value_of(answer(host, MsrData{0x10, 1, 2}, Action::Allow, NewValue{9})) == 9);
  CHECK(answer(host, CrData{3, 1, 2}, Action::Skip).action == 0);  // dropped, and the guest goes on
  CHECK(answer(host, PageFaultData{Gva{1}, Gpa{2}, 2, true}, Action::Allow).action == kvmi1::kAllow2017);
  const auto& retried = answer(host, PageFaultData{Gva{1}, Gpa{2}, 2, true}, Action::Retry);
  CHECK(retried.action == (kvmi1::kAllow2017 | kvmi1::kNoEmulation2017));
  CHECK(retried.data.size() == 260);
  CHECK(host.all<kvmi1::ShutdownGuest>().empty());
  answer(host, HypercallData{}, Action::Crash);
  CHECK(host.last<kvmi1::ShutdownGuest>().order < host.last_reply().order);
}

TEST_CASE("bridge: registers go with the reply in rfc2017", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  const Seq seq = host.event(host.make_event(CrData{3, 1, 2}));
  const Event event = host.take_event();
  kvmi_x86_regs regs = event.regs;
  regs.rbx = 0x77;
  CHECK(host.ask(SetRegisters{VcpuId{0}, regs}).error() == ErrorCode::None);
  CHECK(host.log.empty());
  host.reply(event, seq, Action::Allow);
  const auto& reply = only_reply(host);
  CHECK(reply.action == (kvmi1::kAllow2017 | kvmi1::kSetRegs2017));
  CHECK(reply.regs.rbx == 0x77);
  // Outside an event it is a command.
  CHECK(host.ask(SetRegisters{VcpuId{0}, regs}).error() == ErrorCode::None);
  CHECK(host.all<kvmi1::SetRegisters>().size() == 1);
  CHECK(answer(host, CrData{3, 1, 2}, Action::Allow).action == kvmi1::kAllow2017);  // they were of that event
}

}  // namespace kvmid::bridge::test
