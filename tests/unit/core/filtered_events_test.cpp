// SPDX-License-Identifier: GPL-2.0-or-later
// Filters at work: who is not asked, what is answered in its place, and what is counted.
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

kvmi_filter_term cr_is(std::uint64_t number) {
  return {KVMI_FILTER_NUMBER, KVMI_COMPARE_EQ, 0, 0, 0, number, 0};
}

Seq set_filter(Guest& guest, AgentId agent, const std::vector<kvmi_filter_term>& terms, Action action,
               VcpuId vcpu = kAllVcpus, EventKind kind = EventKind::Cr) {
  return guest.command(agent, SetFilter{vcpu, kind, action, std::span<const kvmi_filter_term>(terms)});
}

AgentId attach(Guest& guest, Role role = Role::Decider, const Grant& grant = full_grant()) {
  const AgentId agent = guest.attach(grant, KVMI_HELLO_OUTCOMES);
  guest.subscribe(agent, only(EventKind::Cr), role);
  for (const std::uint32_t cr : {3U, 4U}) guest.command(agent, ControlCr{kAllVcpus, true, cr});
  return agent;
}

}  // namespace

TEST_CASE("an event that does not match is answered without its agent", "[filter]") {
  Guest guest;
  const AgentId agent = attach(guest);
  REQUIRE(guest.error_of(agent, set_filter(guest, agent, {cr_is(3)}, Action::Skip)) == ErrorCode::None);
  const Seq other = guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.verdict(other)->action == Action::Skip);
  REQUIRE(guest.events_told(agent) == 0);
  REQUIRE(guest.last_notice(agent, NoticeKind::Outcome) == nullptr);
  const auto info = guest.machine.info();
  REQUIRE(info.agents[0].filtered == 1);
  REQUIRE(info.agents[0].filters == 1);
  REQUIRE(info.counters.filtered == 1);
  REQUIRE(info.counters.unattended == 0);

  const Seq match = guest.event(0, CrData{3, 0, 1});
  REQUIRE(guest.verdict(match) == nullptr);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(match)->action == Action::Allow);
}

TEST_CASE("a filter's word is merged like a vote", "[filter]") {
  Guest guest;
  const AgentId filters = attach(guest);
  const AgentId asks = attach(guest);
  set_filter(guest, filters, {cr_is(3)}, Action::Retry);
  Seq seq = guest.event(0, CrData{4, 0, 1});
  guest.vote(asks, Action::Allow);
  REQUIRE(guest.verdict(seq)->action == Action::Retry);
  seq = guest.event(0, CrData{4, 0, 1});
  guest.vote(asks, Action::Skip);
  REQUIRE(guest.verdict(seq)->action == Action::Skip);
}

TEST_CASE("an action that the event does not take becomes the mildest that it does", "[filter]") {
  Guest guest;
  const AgentId agent = attach(guest);
  set_filter(guest, agent, {cr_is(3)}, Action::Skip);
  const Seq seq = guest.event(0, CrData{4, 0, 1}, ActionSet{0x9});
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
}

TEST_CASE("an observer's filter keeps events from it and answers nothing", "[filter]") {
  Guest guest;
  const AgentId observer = attach(guest, Role::Observer);
  set_filter(guest, observer, {cr_is(3)}, Action::Crash);
  const Seq seq = guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
  REQUIRE(guest.events_told(observer) == 0);
  guest.event(0, CrData{3, 0, 1});
  REQUIRE(guest.events_told(observer) == 1);
  REQUIRE(guest.machine.info().agents[0].filtered == 1);
}

TEST_CASE("a filter is of one vCPU or of all, and no terms take it away", "[filter]") {
  Guest guest;
  const AgentId agent = attach(guest);
  set_filter(guest, agent, {cr_is(3)}, Action::Allow, VcpuId{1});
  guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 1);
  guest.vote(agent, Action::Allow);
  guest.event(1, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 1);
  set_filter(guest, agent, {}, Action::Allow);
  guest.event(1, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 2);
  REQUIRE(guest.machine.info().agents[0].filters == 0);
}

TEST_CASE("bad filters are refused with their place, and leave the one there was", "[filter][hostile]") {
  Guest guest;
  Grant grant = full_grant();
  grant.quota.filters_max = 1;
  grant.events = events({EventKind::Cr, EventKind::Msr});
  const AgentId agent = attach(guest, Role::Decider, grant);
  set_filter(guest, agent, {cr_is(3)}, Action::Allow);
  Seq seq = set_filter(guest, agent, {cr_is(3), {KVMI_FILTER_GVA, KVMI_COMPARE_EQ, 0, 0, 0, 1, 0}}, Action::Allow);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::Invalid);
  REQUIRE(guest.answer_to(agent, seq)->text.find("term 2") != std::string::npos);
  seq = set_filter(guest, agent, std::vector<kvmi_filter_term>(KVMI_FILTER_TERMS_MAX + 1, cr_is(3)), Action::Allow);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::Busy);
  seq = set_filter(guest, agent, {cr_is(1)}, Action::Allow, kAllVcpus, EventKind::Msr);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::Busy);
  seq = set_filter(guest, agent, {cr_is(1)}, Action::Allow, kAllVcpus, EventKind::Trap);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::NotPermitted);
  seq = set_filter(guest, agent, {cr_is(1)}, Action::Allow, VcpuId{9});
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::Invalid);
  guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 0);
}

TEST_CASE("filters go with their agent and with its right to them, and stay when the hypervisor goes", "[filter]") {
  Guest guest;
  const AgentId agent = attach(guest);
  set_filter(guest, agent, {cr_is(3)}, Action::Allow);
  guest.lose_hypervisor();
  guest.connect();
  guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 0);
  Grant grant = full_grant();
  grant.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_SET_FILTER);
  guest.step([&](Effects& out) { guest.machine.on_grant_changed(agent, grant, guest.now, out); });
  REQUIRE(guest.last_notice(agent, NoticeKind::Revoked) != nullptr);
  guest.event(0, CrData{4, 0, 1});
  REQUIRE(guest.events_told(agent) == 1);
  guest.lose(agent);
  const AgentId next = attach(guest);  // in the same place
  guest.event(1, CrData{4, 0, 1});
  REQUIRE(guest.events_told(next) == 1);
}

TEST_CASE("SET_FILTER is kvmid's own: offered where policy gives it, whatever the hypervisor has", "[filter]") {
  Guest guest;
  guest.version.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_SET_FILTER);
  guest.lose_hypervisor();
  guest.connect();
  const AgentId agent = attach(guest);
  REQUIRE(guest.machine.commands_for(full_grant()).has(CommandId::SetFilter));
  REQUIRE(guest.error_of(agent, set_filter(guest, agent, {cr_is(3)}, Action::Allow)) == ErrorCode::None);
  REQUIRE(guest.sent<SetFilter>() == 0);
}

}  // namespace kvmid::core::testing
