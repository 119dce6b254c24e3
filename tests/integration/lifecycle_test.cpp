// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmid and hypervisors come and go, with agents attached.

#include <catch2/catch.hpp>
#include <csignal>
#include <ctime>
#include <filesystem>

#include "tests/integration/scenario.h"

namespace kvmid::test {
namespace {

constexpr const char* kProtectedText = "0x20000";

std::uint64_t protected_word(const Guest& guest) { return guest.memory().read_u64(emulated::kProtectedPage); }

/// The guest's stores reach the protected page.
bool stores_arrive(const Guest& guest) {
  guest.do_times(GuestMode::Store, 2);
  to_idle(guest);
  return protected_word(guest) == guest.mailbox().stored;
}

std::size_t sockets_in(const RuntimeFolder& folder) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) count += entry.is_socket() ? 1 : 0;
  return count;
}

std::vector<std::string> start_time(std::int64_t seconds) { return {"--start-time", std::to_string(seconds)}; }

}  // namespace

TEST_CASE("kvmid killed: the guest runs on, and with the next kvmid its agents are back and decide", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  Guest guest(folder);
  guest.wait_online();
  REQUIRE(stores_arrive(guest));
  Process guard("kvmi-guard", {"--socket", daemon.agent_socket(), "--guest", guest.options().name, "--protect",
                               kProtectedText, "--wait"});
  Process trace("kvmi-trace", {"--socket", daemon.agent_socket(), "--guest", guest.options().name, "--kinds",
                               "page_fault,cr", "--crs", "4", "--wait", "--json"});
  guard.wait_errors("guarding");
  // The trace says nothing before the first event.
  guest.set_mode(GuestMode::Cr4);
  trace.wait_output("\"kind\":\"cr\"");
  REQUIRE_FALSE(stores_arrive(guest));

  daemon.kill();
  guest.wait_rounds(20);
  REQUIRE(wait_until([&] { return stores_arrive(guest); }));  // the hypervisor dropped every hook

  guard.wait_errors("connecting again");
  trace.wait_errors("connecting again");
  const std::size_t guarded_before = guard.errors().size();
  const std::size_t traced_before = trace.output().size();
  daemon.restart();
  guest.wait_online();
  guard.wait_errors("guarding", guarded_before);
  REQUIRE_FALSE(stores_arrive(guest));
  guest.set_mode(GuestMode::Cr4);
  trace.wait_output("\"kind\":\"cr\"", traced_before);
  guest.wait_rounds(20);
}

TEST_CASE("kvmid asked to stop takes everything back, tells agents and leaves no socket", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  Guest guest(folder);
  guest.wait_online();
  TestAgent denying(daemon, guest,
                    {"--events", "page_fault,cr", "--cr", "4", "--protect", std::string(kProtectedText) + ":r-x",
                     "--action", "skip"});
  TestAgent silent(daemon, guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  REQUIRE_FALSE(stores_arrive(guest));
  guest.set_mode(GuestMode::Cr4);
  silent.wait_owed();  // a vCPU waits for it, and would for a minute
  REQUIRE(sockets_in(folder) >= 2);

  daemon.process().signal(SIGTERM);

  REQUIRE(daemon.process().wait_exit() == Exit{0, 0});
  REQUIRE(sockets_in(folder) == 0);
  guest.wait_rounds(20);
  REQUIRE(stores_arrive(guest));
  for (auto* agent : {&denying, &silent}) {
    REQUIRE(agent->wait_lines("guest_off", 1).front().at("reason") == "daemon_stopping");
    REQUIRE(agent->wait_lines("closed", 1).size() == 1);
  }
}

TEST_CASE("a hypervisor that was away finds the agents' wishes again", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  const std::int64_t started = 1700000000;
  Guest guest(folder, {.arguments = start_time(started)});
  guest.wait_online();
  TestAgent agent(daemon, guest,
                  {"--events", "page_fault,cr", "--cr", "4", "--protect", std::string(kProtectedText) + ":r-x",
                   "--action", "skip"});
  REQUIRE_FALSE(stores_arrive(guest));

  guest.process().kill();
  const auto gone = agent.wait_lines("guest_off", 1);
  REQUIRE(gone.front().at("reason") == "link_lost");
  REQUIRE(gone.front().at("uuid") == guest.uuid_text());

  // The same guest again, as after a live update of its hypervisor: same uuid, same start.
  Guest again(folder, {.arguments = start_time(started)});
  again.wait_online();
  REQUIRE(agent.wait_lines("guest_on", 1).front().at("uuid") == guest.uuid_text());
  // GUEST_ON comes first and the wishes right behind it.
  REQUIRE(wait_until([&] { return !stores_arrive(again); }));
  const std::size_t events = agent.lines("event").size();
  again.do_times(GuestMode::Cr4, 3);
  REQUIRE(agent.wait_lines("event", events + 3).back().at("kind") == "cr");
  REQUIRE(agent.lines("closed").empty());
}

TEST_CASE("a guest that was started anew is not the one that agents were attached to", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  Guest guest(folder, {.arguments = start_time(1700000000)});
  guest.wait_online();
  TestAgent agent(daemon, guest,
                  {"--events", "page_fault", "--protect", std::string(kProtectedText) + ":r-x", "--action", "skip"});
  REQUIRE_FALSE(stores_arrive(guest));
  guest.process().kill();
  REQUIRE(agent.wait_lines("guest_off", 1).front().at("reason") == "link_lost");

  Guest anew(folder, {.arguments = start_time(1700000060)});
  anew.wait_online();

  REQUIRE(agent.wait_lines("guest_off", 2).back().at("reason") == "reset");
  REQUIRE(agent.wait_lines("closed", 1).size() == 1);
  REQUIRE(stores_arrive(anew));  // nothing of the old one carries over
  REQUIRE(agent.lines("guest_on").empty());
}

TEST_CASE("a guest whose hypervisor freezes is given up, and comes back when it thaws", "[integration]") {
  const RuntimeFolder folder;
  Json config = Json::parse(config_text({}));
  config["limits"] = {{"command_timeout_ms", 2000}};
  Daemon daemon(folder, {.config = config.dump(), .arguments = {}});
  Guest guest(folder);
  guest.wait_online();
  Guest other(folder, {.name = "web2", .uuid = uuid_of(2), .arguments = {}});
  other.wait_online();
  TestAgent agent(daemon, guest, {"--events", "cr", "--cr", "4"});
  AgentClient asking = attach(daemon.agent_socket(), guest.uuid());
  guest.process().stop();

  const auto regs = asking.get_registers(VcpuId{0});

  REQUIRE_FALSE(regs.has_value());
  REQUIRE(regs.error().kind == client::ClientErrc::Failed);
  REQUIRE(agent.wait_lines("guest_off", 1).back().at("reason") == "protocol_error");
  REQUIRE(is_online(daemon.agent_socket(), other.uuid()));
  REQUIRE_FALSE(is_online(daemon.agent_socket(), guest.uuid()));
  guest.process().cont();
  guest.wait_online();
  agent.wait_lines("guest_on", 1);
  guest.do_times(GuestMode::Cr4, 3);
  REQUIRE(agent.wait_lines("event", 3).back().at("decide") == true);
}

}  // namespace kvmid::test
