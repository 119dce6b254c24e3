// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmid is killed with -9 and started again, over and over, while guests make events and agents decide them.

#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/integration_systemd/manager.h"

namespace kvmid::test {
namespace {

constexpr unsigned kKills = 20;
constexpr unsigned kVcpus = 2;
constexpr const char* kProtectedText = "0x20000";

/// Each vCPU does something that agents are told of or decide: changes CR4, stores to the protected page.
void make_load(const Guest& guest) {
  guest.set_mode(GuestMode::Cr4, 0);
  guest.set_mode(GuestMode::Store, 1);
}

void require_goes_on(const Guest& guest) {
  for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) guest.wait_rounds(5, vcpu);
}

/// A guard that decides on stores to the page, and skips them; a trace that observes CR4.
struct Agents {
  Process guard;
  Process trace;
  Agents(const std::string& socket, const std::string& guest)
      : guard("kvmi-guard", {"--socket", socket, "--guest", guest, "--protect", kProtectedText, "--wait"}),
        trace("kvmi-trace",
              {"--socket", socket, "--guest", guest, "--kinds", "cr", "--crs", "4", "--wait", "--json"}) {}
};

/// vCPU 1's store reaches the protected page.
bool stores_arrive(const Guest& guest) {
  guest.do_times(GuestMode::Store, 2, 1);
  guest.do_times(GuestMode::Idle, 2, 1);
  const Gpa word{emulated::kProtectedPage.value + sizeof(std::uint64_t)};
  return guest.memory().read_u64(word) == guest.mailbox(1).stored;
}

/// How many events each vCPU made so far, as its hypervisor counts.
std::vector<std::uint64_t> events_made(Guest& guest) {
  const std::size_t before = guest.process().errors().size();
  guest.process().signal(SIGUSR1);
  std::vector<std::uint64_t> events;
  const auto status = nlohmann::json::parse(guest.process().wait_errors("\"connected\"", before));
  for (const auto& vcpu : status.at("vcpus")) events.push_back(vcpu.at("events"));
  return events;
}

/// Nothing of any agent is in the guest, while kvmid serves it: what the guest does has its effect and makes no event,
/// no vCPU waits, every page has all rights.
void require_untouched(Guest& guest, const Manager& manager) {
  const auto state = nlohmann::json::parse(admin_get(manager.admin(), "/v1/guests/" + guest.uuid_text()));
  INFO(state.dump(2));
  REQUIRE(state.at("state") == "online");
  REQUIRE(state.at("agent_list").empty());
  for (const auto& vcpu : state.at("vcpu")) REQUIRE(vcpu.at("state") == "running");
  {
    AgentClient agent = attach(manager.agents(), guest.uuid(), "inspector");
    for (const auto& entry : check(agent.get_page_access(emulated::kProtectedPage, 1)))
      REQUIRE(entry.access == (KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));
  }
  const auto before = events_made(guest);
  REQUIRE(stores_arrive(guest));
  guest.do_times(GuestMode::Cr4, 3, 0);
  guest.do_times(GuestMode::Idle, 2, 0);
  REQUIRE(events_made(guest) == before);
}

}  // namespace

TEST_CASE("kvmid killed 20 times under load: no guest hangs, and nothing stays behind", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config()});
  Guest one(folder, {.name = "web1", .uuid = uuid_of(1), .vcpus = kVcpus, .arguments = {}});
  Guest two(folder, {.name = "web2", .uuid = uuid_of(2), .vcpus = kVcpus, .arguments = {}});
  const std::array<Guest*, 2> guests{&one, &two};
  {
    std::array agents{Agents(manager.agents(), "web1"), Agents(manager.agents(), "web2")};
    for (auto& each : agents) each.guard.wait_errors("guarding");
    for (const Guest* guest : guests) make_load(*guest);
    std::mt19937 random(20);  // NOLINT(cert-msc51-cpp): the same moments in every run, as far as a machine allows it

    for (unsigned kill = 0; kill < kKills; ++kill) {
      INFO("kill " << kill);
      std::array<std::size_t, 2> guarded{};
      for (std::size_t i = 0; i < agents.size(); ++i) guarded[i] = agents[i].guard.errors().size();
      manager.process().kill();
      // Without kvmid: whatever a vCPU waited for, it goes on.
      if (kill % 2 == 0) {
        for (const Guest* guest : guests) require_goes_on(*guest);
      }
      const std::size_t said = manager.said().size();
      manager.start({.config = open_config()});
      // The next kill comes before it is ready, while hypervisors and agents come back, or when all are at work again.
      switch (kill % 4) {
        case 0: break;
        case 1: manager.wait_said("READY=1", said); break;
        case 2: (random() % 2 == 0 ? one : two).wait_online(); break;
        default:
          for (std::size_t i = 0; i < agents.size(); ++i) agents[i].guard.wait_errors("guarding", guarded[i]);
          for (const Guest* guest : guests) require_goes_on(*guest);
      }
      for (const Guest* guest : guests) require_goes_on(*guest);
    }

    // All are back and at work: the guard holds off the stores, and the trace is told.
    for (std::size_t i = 0; i < agents.size(); ++i) {
      REQUIRE(agents[i].guard.running());
      REQUIRE(agents[i].trace.running());
      guests[i]->wait_rounds(1, 0);
    }
    for (Guest* guest : guests) guest->wait_online();
    REQUIRE(wait_until([&] { return !stores_arrive(one) && !stores_arrive(two); }));
    for (std::size_t i = 0; i < agents.size(); ++i) {
      const std::size_t traced = agents[i].trace.output().size();
      make_load(*guests[i]);
      agents[i].trace.wait_output("\"kind\":\"cr\"", traced);
    }
  }
  // The agents are killed in the middle of it: kvmid takes back what they had set up.
  for (Guest* guest : guests) {
    REQUIRE(wait_until([&] { return stores_arrive(*guest); }));
    require_untouched(*guest, manager);
  }
  manager.process().signal(SIGTERM);
  REQUIRE(manager.process().wait_exit() == Exit{0, 0});
  for (const Guest* guest : guests) {
    make_load(*guest);
    require_goes_on(*guest);
    REQUIRE(stores_arrive(*guest));
  }
}

}  // namespace kvmid::test
