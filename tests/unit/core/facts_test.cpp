// SPDX-License-Identifier: GPL-2.0-or-later
// What the machine reports for the audit log: commands that change the guest, and how events were decided.
#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

std::vector<Report> facts(const Guest& guest, Fact fact) {
  std::vector<Report> found;
  std::ranges::copy_if(guest.reports, std::back_inserter(found), [&](const Report& r) { return r.fact == fact; });
  return found;
}

Report granted(Guest& guest, AgentId agent, const Command& command) {
  guest.forget();
  const Seq seq = guest.command(agent, command);
  const auto found = facts(guest, Fact::CommandGranted);
  REQUIRE(found.size() == 1);
  REQUIRE(found[0].agent == agent);
  REQUIRE(found[0].seq == seq);
  REQUIRE(found[0].command == id_of(command));
  return found[0];
}

}  // namespace

TEST_CASE("each command that changes the guest is reported with what it touches", "[facts]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::array<std::byte, 3> data{};

  const Report write = granted(guest, agent, WritePhysical{.gpa = Gpa{0x1234}, .data = data, .expected = {}});
  REQUIRE(write.gpa == Gpa{0x1234});
  REQUIRE(write.amount == 3);
  REQUIRE(granted(guest, agent, InjectException{.vcpu = VcpuId{1}, .vector = 3}).detail == 3);
  REQUIRE(guest.reports.front().vcpu == VcpuId{1});
  granted(guest, agent, ShutdownGuest{});
  REQUIRE(granted(guest, agent, PauseVcpu{VcpuId{1}}).vcpu == VcpuId{1});

  guest.forget();
  guest.set_pages(agent, {pages(4, 2, kR | kW), pages(9, 1, kR | kX)});
  const auto protect = facts(guest, Fact::CommandGranted);
  REQUIRE(protect.size() == 1);
  REQUIRE(protect[0].gpa == Gpa{4 << kPageShift});
  REQUIRE(protect[0].amount == 3);
  REQUIRE(protect[0].detail == kR);

  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.event(0);
  granted(guest, agent, SetRegisters{});
}

TEST_CASE("commands that change nothing are not reported", "[facts]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.command(agent, GetCpuid{});
  guest.command(agent, GetRegisters{VcpuId{0}, {}});
  guest.subscribe(agent, only(EventKind::Cr));
  REQUIRE(facts(guest, Fact::CommandGranted).empty());
}

TEST_CASE("a command that is refused is not reported as granted", "[facts]") {
  Guest guest;
  Grant grant = full_grant();
  grant.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_WRITE_PHYSICAL);
  const AgentId agent = guest.attach(grant);
  guest.command(agent, WritePhysical{.gpa = Gpa{0x1000}, .data = {}, .expected = {}});
  REQUIRE(facts(guest, Fact::CommandGranted).empty());
  REQUIRE(facts(guest, Fact::CommandRefused).at(0).error == ErrorCode::NotPermitted);
  REQUIRE(facts(guest, Fact::CommandRefused).at(0).command == CommandId::WritePhysical);
}

TEST_CASE("a granted command that the hypervisor refuses is reported again, with its error", "[facts]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.refuse = [](const auto&) { return ErrorCode::NoMemory; };
  const std::array<std::byte, 1> data{};
  const Seq seq = guest.command(agent, WritePhysical{.gpa = Gpa{0x1000}, .data = data, .expected = {}});
  guest.command(agent, GetCpuid{});
  REQUIRE(facts(guest, Fact::CommandGranted).size() == 1);
  const auto failed = facts(guest, Fact::CommandFailed);
  REQUIRE(failed.size() == 1);
  REQUIRE(failed[0].seq == seq);
  REQUIRE(failed[0].error == ErrorCode::NoMemory);
}

TEST_CASE("a verdict that changes the guest names who decided, who gave the value, and every vote", "[facts]") {
  Guest guest;
  Grant strong = full_grant();
  strong.priority = 7;
  const AgentId weak = guest.attach();
  const AgentId boss = guest.attach(strong);
  const AgentId silent = guest.attach();
  for (const AgentId agent : {weak, boss, silent}) {
    guest.subscribe(agent, only(EventKind::Cr));
    guest.command(agent, ControlCr{kAllVcpus, true, 3});
  }
  guest.forget();
  guest.event(1, CrData{3, 0x1000, 0x2000});
  for (const auto& [agent, value] : {std::pair{weak, 0x3000U}, std::pair{boss, 0x4000U}}) {
    EventReply reply = guest.reply_to(agent, Action::Allow);
    reply.value = NewValue{value};
    guest.vote(agent, reply);
  }
  guest.pass(1s);

  const auto decided = facts(guest, Fact::Decided);
  REQUIRE(decided.size() == 1);
  const Report& verdict = decided[0];
  REQUIRE(verdict.agent == boss);
  REQUIRE(verdict.value_by == boss);
  REQUIRE(verdict.new_value == 0x4000U);
  REQUIRE(verdict.registers_by == AgentId{});
  REQUIRE(verdict.about != nullptr);
  REQUIRE(std::get<CrData>(verdict.about->data).new_value == 0x2000);
  REQUIRE(verdict.votes.size() == 3);
  REQUIRE(verdict.votes[0].agent == weak);
  REQUIRE_FALSE(verdict.votes[0].by_default);
  REQUIRE(verdict.votes[2].agent == silent);
  REQUIRE(verdict.votes[2].by_default);
}

TEST_CASE("a value that a stricter action made void is nobody's", "[facts]") {
  Guest guest;
  const AgentId giver = guest.attach();
  const AgentId skipper = guest.attach();
  for (const AgentId agent : {giver, skipper}) {
    guest.subscribe(agent, only(EventKind::Cr));
    guest.command(agent, ControlCr{kAllVcpus, true, 3});
  }
  guest.event(0, CrData{3, 0x1000, 0x2000});
  EventReply reply = guest.reply_to(giver, Action::Allow);
  reply.value = NewValue{5};
  guest.vote(giver, reply);
  guest.vote(skipper, Action::Skip);
  const auto decided = facts(guest, Fact::Decided);
  REQUIRE(decided.size() == 1);
  REQUIRE(decided[0].agent == skipper);
  REQUIRE(decided[0].value_by == AgentId{});
  REQUIRE_FALSE(decided[0].new_value);
}

TEST_CASE("an event that is allowed unchanged leaves no fact", "[facts]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.event(0);
  guest.vote(agent, Action::Allow);
  REQUIRE(facts(guest, Fact::Decided).empty());
}

TEST_CASE("agents that come and go during one pause cannot make the list of votes grow without end", "[facts]") {
  Guest guest;
  const AgentId first = guest.attach();
  guest.command(first, PauseVcpu{VcpuId{0}});
  guest.event(0, PauseData{});
  for (int i = 0; i < 200; ++i) {
    const AgentId passer = guest.attach();
    guest.command(passer, PauseVcpu{VcpuId{0}});
    guest.lose(passer);
  }
  guest.vote(first, Action::Crash);
  REQUIRE(facts(guest, Fact::Decided).at(0).votes.size() <= kAgentsPerGuestMax);
}

TEST_CASE("an agent that no rule knows any more is told and closed, and leaves nothing in the guest", "[facts]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.set_pages(agent, {pages(1, 1, kR)});
  const Seq seq = guest.event(0);
  guest.step([&](Effects& out) { guest.machine.on_grant_lost(agent, guest.now, out); });
  const ToAgent* revoked = guest.last_notice(agent, NoticeKind::Revoked);
  REQUIRE(revoked != nullptr);
  REQUIRE(revoked->notice.error == ErrorCode::NotPermitted);
  REQUIRE(revoked->text.find("no rule") != std::string::npos);
  REQUIRE(guest.got(agent, ToAgent::Kind::Close).size() == 1);
  guest.lose(agent);
  REQUIRE(guest.verdict(seq) != nullptr);
  REQUIRE(guest.state.pages.empty());
  REQUIRE(guest.state.vcpus[0].events == 0);
}

}  // namespace kvmid::core::testing
