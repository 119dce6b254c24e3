// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

TEST_CASE("a pause asks the hypervisor, and its event holds the vCPU until it is replied to", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{1}})) == ErrorCode::None);
  REQUIRE(guest.sent<PauseVcpu>() == 1);
  const Seq seq = guest.event(1, PauseData{});
  REQUIRE(guest.last_event(agent)->decide);
  REQUIRE(guest.last_event(agent)->deadline_us == 10'000'000);
  REQUIRE(guest.verdict(seq) == nullptr);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
}

TEST_CASE("each PAUSE_VCPU is one PAUSE event, and each reply releases one", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  for (int i = 0; i < 3; ++i) guest.command(agent, PauseVcpu{VcpuId{0}});
  REQUIRE(guest.sent<PauseVcpu>() == 1);
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.events_told(agent) == 3);
  guest.command(agent, PauseVcpu{VcpuId{0}});
  REQUIRE(guest.events_told(agent) == 4);
  for (int i = 0; i < 4; ++i) {
    REQUIRE(guest.verdict(seq) == nullptr);
    guest.vote(agent, Action::Allow);
  }
  REQUIRE(guest.verdict(seq) != nullptr);
  REQUIRE(guest.sent<PauseVcpu>() == 1);
}

TEST_CASE("a second agent joins a pause that is pending, and both must release it", "[pause]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.command(a, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.error_of(b, guest.command(b, PauseVcpu{VcpuId{0}})) == ErrorCode::None);
  REQUIRE(guest.sent<PauseVcpu>() == 1);
  guest.vote(a, Action::Allow);
  REQUIRE(guest.verdict(seq) == nullptr);
  guest.vote(b, Action::Allow);
  REQUIRE(guest.verdict(seq) != nullptr);
}

TEST_CASE("two agents cannot hold a vCPU for ever by taking turns", "[pause][hostile]") {
  // Who replied joined the same event again, with a new deadline, as long as the other one held it.
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.command(a, PauseVcpu{VcpuId{0}});
  guest.command(b, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  guest.pass(9s);
  guest.vote(a, Action::Allow);
  guest.command(a, PauseVcpu{VcpuId{0}});
  guest.pass(1s);
  REQUIRE(guest.verdict(seq) != nullptr);
  REQUIRE(guest.sent<PauseVcpu>() == 2);
  const Seq next = guest.event(0, PauseData{});
  REQUIRE(guest.verdict(next) == nullptr);
  guest.vote(a, Action::Allow);
  REQUIRE(guest.verdict(next) != nullptr);
}

TEST_CASE("a pause while another event is pending comes as an event of its own afterwards", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  const Seq first = guest.event(0);
  guest.command(agent, PauseVcpu{VcpuId{0}});
  REQUIRE(guest.sent<PauseVcpu>() == 1);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(first) != nullptr);
  const Seq second = guest.event(0, PauseData{});
  REQUIRE(guest.verdict(second) == nullptr);
  REQUIRE(guest.last_event(agent)->event.kind() == EventKind::Pause);
}

TEST_CASE("PAUSE_VCPU of all pauses each vCPU", "[pause]") {
  Guest guest(3);
  const AgentId agent = guest.attach();
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{kAllVcpus})) == ErrorCode::None);
  REQUIRE(guest.sent<PauseVcpu>() == 3);
  for (std::uint16_t vcpu = 0; vcpu < 3; ++vcpu) REQUIRE(guest.verdict(guest.event(vcpu, PauseData{})) == nullptr);
}

TEST_CASE("a pause that the hypervisor refuses is not counted", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.refuse = [](const ToHypervisor& sent) {
    const auto* pause = std::get_if<PauseVcpu>(&sent.command);
    return pause != nullptr && pause->vcpu == VcpuId{1} ? ErrorCode::Busy : ErrorCode::None;
  };
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{kAllVcpus})) == ErrorCode::Busy);
  REQUIRE(guest.verdict(guest.event(0, PauseData{})) != nullptr);
  REQUIRE(guest.verdict(guest.event(1, PauseData{})) != nullptr);
  guest.refuse = [](const auto&) { return ErrorCode::None; };
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{1}})) == ErrorCode::None);
  REQUIRE(guest.sent<PauseVcpu>() == 3);
}

TEST_CASE("a refused pause of all releases only what it added itself", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.command(agent, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  guest.refuse = [](const auto& sent) {
    return std::holds_alternative<PauseVcpu>(sent.command) ? ErrorCode::Busy : ErrorCode::None;
  };
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{kAllVcpus})) == ErrorCode::Busy);
  REQUIRE(guest.verdict(seq) == nullptr);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(seq) != nullptr);
}

TEST_CASE("the PAUSE event may come before the answer to PAUSE_VCPU", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq command = guest.command(agent, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.events_told(agent) == 1);
  guest.answer_all();
  REQUIRE(guest.error_of(agent, command) == ErrorCode::None);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(seq) != nullptr);
}

TEST_CASE("a pause ends at pause_max with a notice and without a strike", "[pause]") {
  Guest guest;
  Grant grant = full_grant();
  grant.pause_max = 2s;
  grant.strikes_max = 1;
  const AgentId agent = guest.attach(grant);
  guest.command(agent, PauseVcpu{VcpuId{0}});
  guest.command(agent, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.machine.next_deadline() == guest.now + 2s);
  guest.pass(2s);
  REQUIRE(guest.verdict(seq)->action == Action::Allow);
  REQUIRE(guest.last_notice(agent, NoticeKind::Expired) != nullptr);
  REQUIRE(guest.last_notice(agent, NoticeKind::Demoted) == nullptr);
  REQUIRE(guest.machine.info().agents[0].strikes == 0);
}

TEST_CASE("who watches PAUSE events sees those of others and is not asked", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const AgentId watcher = guest.attach();
  guest.subscribe(watcher, only(EventKind::Pause));
  REQUIRE(guest.state.vcpus[0].events == 0);
  guest.command(agent, PauseVcpu{VcpuId{0}});
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE_FALSE(guest.last_event(watcher)->decide);
  guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(seq) != nullptr);
}

TEST_CASE("pauses that nobody replies to have a maximum", "[pause][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  for (unsigned i = 0; i < kPausesMax; ++i)
    REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{0}})) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{0}})) == ErrorCode::Busy);
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{kAllVcpus})) == ErrorCode::Busy);
  const Seq seq = guest.event(0, PauseData{});
  REQUIRE(guest.error_of(agent, guest.command(agent, PauseVcpu{VcpuId{0}})) == ErrorCode::Busy);
  REQUIRE(guest.events_told(agent) == kPausesMax);
  for (unsigned i = 0; i < kPausesMax; ++i) guest.vote(agent, Action::Allow);
  REQUIRE(guest.verdict(seq) != nullptr);
}

TEST_CASE("registers can be set while a vCPU is paused, and are loaded before it goes on", "[pause]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.command(agent, PauseVcpu{VcpuId{0}});
  guest.event(0, PauseData{});
  REQUIRE(guest.error_of(agent, guest.command(agent, SetRegisters{VcpuId{0}, {}})) == ErrorCode::None);
  guest.forget();
  guest.vote_as(agent, Seq{1}, EventReply{.vcpu = VcpuId{0}, .event = EventKind::Pause, .value = {}});
  REQUIRE(guest.to_hypervisor.size() == 2);
  REQUIRE(std::holds_alternative<SetRegisters>(guest.to_hypervisor[0].command));
}

}  // namespace kvmid::core::testing
