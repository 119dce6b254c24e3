// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

TEST_CASE("a lost hypervisor answers every open command and waiting change with ENODEV", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq forwarded = guest.command(agent, GetCpuid{});
  const Seq under_way = guest.subscribe(agent, only(EventKind::Cr));
  const Seq waiting = guest.set_pages(agent, {pages(1, 1, kR)});
  REQUIRE(guest.requests_open(agent) == 3);

  guest.lose_hypervisor();

  for (const Seq seq : {forwarded, under_way, waiting}) REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoDevice);
  REQUIRE(guest.requests_open(agent) == 0);
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOff).size() == 1);
  REQUIRE(guest.machine.next_deadline() == std::nullopt);
  REQUIRE(guest.error_of(agent, guest.command(agent, GetCpuid{})) == ErrorCode::NoDevice);
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Cr))) == ErrorCode::NoDevice);
}

TEST_CASE("a wish that a lost hypervisor had not confirmed does not hold when it is back", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Msr));
  guest.answering = false;
  guest.subscribe(agent, only(EventKind::Cr));
  guest.command(agent, ControlCr{kAllVcpus, true, 3});
  guest.lose_hypervisor();
  guest.answering = true;
  guest.connect();
  REQUIRE(guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_MSR));
  REQUIRE(guest.state.vcpus[0].crs.empty());
}

TEST_CASE("the union is told again when the hypervisor is back", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, events({EventKind::Cr, EventKind::PageFault}));
  guest.subscribe(agent, only(EventKind::Cpuid), Role::Observer, VcpuId{1});
  guest.command(agent, ControlCr{kAllVcpus, true, 4});
  guest.command(agent, ControlMsr{VcpuId{1}, true, 0x10});
  guest.command(agent, ControlSinglestep{VcpuId{1}, true});
  guest.set_pages(agent, {pages(7, 9, kR | kX)});
  const HypervisorState before = guest.state;

  guest.lose_hypervisor();
  guest.connect();

  REQUIRE(guest.state == before);
  REQUIRE(guest.ready == 2);
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOn).size() == 1);
  REQUIRE(guest.machine.settled());
}

TEST_CASE("pauses do not outlive the link", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.command(agent, PauseVcpu{VcpuId{0}});
  guest.lose_hypervisor();
  guest.connect();
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.verdict(seq) != nullptr);
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{0}})) == ErrorCode::None);
  guest.event(0, PauseData{});
  REQUIRE(guest.last_event(agent)->decide);
}

TEST_CASE("events that waited end with the link, and replies to them are late", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  const Seq seq = guest.event(0);
  guest.lose_hypervisor();
  guest.vote(agent, Action::Crash);
  REQUIRE(guest.verdict(seq) == nullptr);
  REQUIRE(guest.last_notice(agent, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Stale);
  guest.connect();
  guest.vote(agent, Action::Crash);
  REQUIRE(guest.last_notice(agent, NoticeKind::ReplyRefused)->notice.error == ErrorCode::Stale);
}

TEST_CASE("a guest that was started anew drops its agents: what they named is of another one", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Cr));
  guest.set_pages(agent, {pages(7, 1, kR)});
  guest.lose_hypervisor();

  guest.facts.vcpu_count = 4;
  guest.connect(2);

  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOff).back()->reason == OffReason::Reset);
  REQUIRE(guest.got(agent, ToAgent::Kind::Close).size() == 1);
  REQUIRE_FALSE(guest.machine.has_agents());
  REQUIRE_FALSE(guest.closed);
  HypervisorState nothing;
  nothing.vcpus.resize(4);
  REQUIRE(guest.state == nothing);
  const AgentId next = guest.attach();
  REQUIRE(guest.error_of(next, guest.subscribe(next, only(EventKind::Cr), Role::Decider, VcpuId{3})) ==
          ErrorCode::None);
}

TEST_CASE("no agent attaches to a guest that was started anew before its facts are known", "[link]") {
  // Its number of vCPUs would be that of the guest before, and could not be made true any more.
  Guest guest;
  guest.lose_hypervisor();
  guest.answering = false;
  guest.connect(2);
  const auto refused = guest.machine.attach(AgentId{77}, "early", full_grant(), 0);
  REQUIRE_FALSE(refused);
  REQUIRE(refused.error().error == ErrorCode::NoEntry);
}

TEST_CASE("a guest that comes back with another number of vCPUs drops its agents and goes on", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Cr));
  guest.lose_hypervisor();
  guest.facts.vcpu_count = 3;
  guest.connect();
  REQUIRE(guest.got(agent, ToAgent::Kind::Close).size() == 1);
  REQUIRE_FALSE(guest.closed);
  REQUIRE(guest.machine.online());
  REQUIRE(guest.machine.facts().vcpu_count == 3);
}

TEST_CASE("an agent that attached while the guest was away is told when it is back", "[link]") {
  Guest guest;
  guest.lose_hypervisor();
  const AgentId agent = guest.attach();
  guest.connect();
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOn).size() == 1);
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOff).empty());
}

TEST_CASE("a hypervisor that comes back with less than it had makes its agents lose just that", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, events({EventKind::Cr, EventKind::Cpuid}));
  guest.lose_hypervisor();
  guest.version.events = events({EventKind::Cr});
  guest.connect();
  REQUIRE(guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_CR));
  REQUIRE(guest.last_notice(agent, NoticeKind::Revoked)->notice.error == ErrorCode::NotSupported);
}

TEST_CASE("what a hypervisor refuses to take again is lost to its agents, and hurts no change of others", "[link]") {
  // It stayed in the tables once, was told with every later change, and made each of them fail.
  Guest guest;
  const AgentId agent = guest.attach();
  const AgentId other = guest.attach();
  guest.subscribe(agent, events({EventKind::Cr, EventKind::PageFault}));
  guest.command(agent, ControlCr{kAllVcpus, true, 3});
  guest.command(agent, ControlMsr{kAllVcpus, true, 0x10});
  guest.command(agent, ControlSinglestep{VcpuId{0}, true});
  guest.set_pages(agent, {pages(7, 2, kR)});
  guest.lose_hypervisor();
  guest.refuse = [](const ToHypervisor& sent) {
    return std::holds_alternative<GetVersion>(sent.command) || std::holds_alternative<GetGuestInfo>(sent.command)
               ? ErrorCode::None
               : ErrorCode::NoMemory;
  };
  guest.connect();
  guest.refuse = [](const auto&) { return ErrorCode::None; };
  REQUIRE(guest.last_notice(agent, NoticeKind::Revoked) != nullptr);
  REQUIRE(guest.last_notice(other, NoticeKind::Revoked) == nullptr);
  REQUIRE(guest.machine.settled());
  guest.forget();

  const Seq seq = guest.subscribe(other, only(EventKind::Cpuid));

  REQUIRE(guest.error_of(other, seq) == ErrorCode::None);
  REQUIRE(guest.to_hypervisor.size() == 1);
  REQUIRE(guest.state.vcpus[0].events == KVMI_EVENT_BIT(KVMI_EVENT_CPUID));
  REQUIRE(guest.state.pages.empty());
  REQUIRE(guest.machine.info().agents.at(0).pages == 0);
}

TEST_CASE("a hypervisor that breaks the protocol is disconnected, and its agents are told", "[link][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.answering = false;
  guest.command(agent, GetCpuid{});
  const Seq open = guest.unanswered.back().seq;

  SECTION("a seq that is not open") {
    guest.reply(Seq{open.value + 1024}, CommandReply{KVMI_MSG_GET_CPUID, {}, {}, {}});
  }
  SECTION("the id of another command") { guest.reply(open, CommandReply{KVMI_MSG_GET_XCR, {}, {}, {}}); }
  SECTION("the same answer twice") {
    guest.reply(open, CommandReply{KVMI_MSG_GET_CPUID, {}, {}, GetCpuidReply{}});
    REQUIRE_FALSE(guest.closed);
    guest.reply(open, CommandReply{KVMI_MSG_GET_CPUID, {}, {}, GetCpuidReply{}});
  }
  SECTION("an event of a vCPU that waits") {
    guest.event(0);
    guest.event(0);
  }
  SECTION("an event of a vCPU that does not exist") { guest.event(2); }
  SECTION("an event of no vCPU") { guest.event(0xffff); }
  SECTION("an event that takes no action") { guest.event(0, HypercallData{}, ActionSet{0}); }
  SECTION("an event that takes an action that does not exist") { guest.event(0, HypercallData{}, ActionSet{0x10}); }
  SECTION("a notice") {
    guest.step([&](Effects& out) { guest.machine.on_hypervisor_message(Seq{1}, Upward{Notice{}}, guest.now, out); });
  }
  SECTION("a message with an unknown id") {
    guest.step(
        [&](Effects& out) { guest.machine.on_hypervisor_message(Seq{1}, Upward{UnknownMessage{99}}, guest.now, out); });
  }
  SECTION("a message that cannot be decoded") {
    guest.step([&](Effects& out) { guest.machine.on_hypervisor_malformed(DecodeError{}, guest.now, out); });
  }

  REQUIRE(guest.closed);
  REQUIRE_FALSE(guest.machine.online());
  REQUIRE(guest.got(agent, ToAgent::Kind::GuestOff).back()->reason == OffReason::ProtocolError);
  REQUIRE(guest.machine.counters().protocol_errors == 1);
  REQUIRE(guest.requests_open(agent) == 0);
}

TEST_CASE("answers of another size than asked for break the protocol", "[link][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const std::vector<kvmi_read_range> ranges{{0, 4, 0}, {4096, 8, 0}};
  const std::vector<std::byte> data(11);
  const std::vector<std::uint32_t> wanted{1, 2};
  const std::vector<kvmi_x86_msr> msrs(3);
  SECTION("READ_PHYSICAL") {
    guest.command(agent, ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)});
    guest.reply(guest.unanswered.back().seq, CommandReply{KVMI_MSG_READ_PHYSICAL, {}, {}, ReadPhysicalReply{0, data}});
  }
  SECTION("GET_REGISTERS") {
    guest.command(agent, GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(wanted)});
    GetRegistersReply body;
    body.msrs = std::span<const kvmi_x86_msr>(msrs);
    guest.reply(guest.unanswered.back().seq, CommandReply{KVMI_MSG_GET_REGISTERS, {}, {}, body});
  }
  REQUIRE(guest.closed);
}

TEST_CASE("a hypervisor must say version and facts, in this order and with sense", "[link][hostile]") {
  Guest guest;
  guest.lose_hypervisor();
  guest.answering = false;
  SECTION("an event before the version") {
    guest.connect();
    guest.event(0);
  }
  SECTION("another version") {
    guest.version.version = 1;
    guest.connect();
    guest.answer_all();
  }
  SECTION("no vCPU") {
    guest.facts.vcpu_count = 0;
    guest.connect();
    guest.answer_all();
  }
  SECTION("too many vCPUs") {
    guest.facts.vcpu_count = kVcpusMax + 1;
    guest.connect();
    guest.answer_all();
  }
  SECTION("another architecture") {
    guest.facts.arch = 1;
    guest.connect();
    guest.answer_all();
  }
  SECTION("a refusal") {
    guest.refuse = [](const auto&) { return ErrorCode::NotPermitted; };
    guest.connect();
    guest.answer_all();
  }
  SECTION("an answer without a body") {
    guest.connect();
    guest.reply(guest.unanswered.back().seq, CommandReply{KVMI_MSG_GET_VERSION, {}, {}, {}});
  }
  REQUIRE(guest.closed);
  REQUIRE_FALSE(guest.machine.online());
}

TEST_CASE("a command that is not answered in time closes the link, at exactly its deadline", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq seq = guest.command(agent, GetCpuid{});
  REQUIRE(guest.machine.next_deadline() == guest.now + 30s);
  guest.pass(30s - 1ns);
  REQUIRE_FALSE(guest.closed);
  guest.pass(1ns);
  REQUIRE(guest.closed);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoDevice);
}

TEST_CASE("a vCPU that is created anew is told its union again before its event is answered", "[link]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, events({EventKind::CreateVcpu, EventKind::Cr}));
  guest.command(agent, ControlCr{kAllVcpus, true, 3});
  guest.command(agent, ControlMsr{kAllVcpus, true, 0x10});
  const HypervisorState before = guest.state;
  guest.state.vcpus[1] = {};
  guest.event(1, CreateVcpuData{});
  REQUIRE(guest.state == before);
  guest.forget();
  guest.vote(agent, Action::Allow);
  guest.subscribe(agent, events({EventKind::Cr}));
  REQUIRE(guest.sent<ControlEvents>() == 0);
}

}  // namespace kvmid::core::testing
