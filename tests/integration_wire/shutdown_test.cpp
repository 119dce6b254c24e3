// SPDX-License-Identifier: GPL-2.0-or-later
// An orderly end: kvmid takes everything back from the guest, and waits for the word of the hypervisor, before it goes.
#include <algorithm>
#include <catch2/catch.hpp>
#include <csignal>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

TEST_CASE("kvmid takes back what agents set up and answers waiting vCPUs before it goes", "[shutdown]") {
  WireDaemon daemon;
  ScriptedHypervisor hypervisor{daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"}};
  client::AgentClient agent = attach_agent(daemon.agents(), uuid_of(1), "decider");
  EventSet events;
  events.add(EventKind::Cr);
  events.add(EventKind::Hypercall);
  REQUIRE(agent.subscribe(events, Role::Decider));
  REQUIRE(agent.control_cr(kAllVcpus, 4, true));
  REQUIRE(agent.control_msr(kAllVcpus, 0xc0000082, true));
  REQUIRE(agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_R));
  const Seq waiting = hypervisor.raise(make_event(EventKind::Hypercall, VcpuId{0}));
  const auto seen = agent.wait_event(kBound);
  REQUIRE(seen);
  REQUIRE(*seen);
  for (const CommandId id : {CommandId::ControlEvents, CommandId::ControlCr, CommandId::ControlMsr, CommandId::SetPageAccess})
    hypervisor.hold(id);

  daemon.process().signal(SIGTERM);

  // The vCPU is let go with the agent's default, then every wish is taken back.
  REQUIRE(hypervisor.wait_reply(waiting));
  const auto held = hypervisor.wait_held(4);
  for (const CommandId id : {CommandId::ControlEvents, CommandId::ControlCr, CommandId::ControlMsr, CommandId::SetPageAccess})
    CHECK(std::count_if(held.begin(), held.end(), [&](const ReceivedCommand& c) { return c.id == id; }) == 1);
  CHECK(hypervisor.is_open());  // it waits for the answers that this hypervisor keeps to itself
  const auto gone = agent.wait_guest(kBound);
  REQUIRE(gone);
  REQUIRE(*gone);
  CHECK(std::get<client::GuestGone>(**gone).reason == OffReason::DaemonStopping);
  // But not for ever.
  CHECK(hypervisor.wait_closed());
  const Exit exit = daemon.process().wait_exit();
  CHECK(exit.code == 0);
  CHECK(exit.signal == 0);
}
