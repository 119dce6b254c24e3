// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmid on sockets that somebody else opened, and what it says of itself meanwhile.

#include <catch2/catch.hpp>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <set>

#include "tests/integration_systemd/manager.h"

namespace kvmid::test {
namespace {

std::uint64_t monotonic_usec() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec * 1'000'000 + now.tv_nsec / 1000);
}

std::set<std::string> files_in(const RuntimeFolder& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) names.insert(entry.path().filename());
  return names;
}

}  // namespace

TEST_CASE("hypervisors, agents and the admin reach kvmid by sockets that were passed", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config()});

  REQUIRE(manager.said().front().value("STATUS").value_or("").find("Serving") == 0);
  Guest guest(folder);
  guest.wait_online();
  AgentClient agent = attach(manager.agents(), guest.uuid());
  REQUIRE(read_mailbox(agent, 0, offsetof(Mailbox, magic)) == emulated::kMailboxMagic);
  REQUIRE(admin_get(manager.admin(), "/v1/status").find("\"shards\"") != std::string::npos);
}

TEST_CASE("who connected before kvmid was there is served when it is", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  Guest guest(folder);  // has dialled, and waits in the socket
  UniqueFd early = connected_socket(manager.agents());

  manager.start_ready({.config = open_config()});

  client::ConnectOptions options;
  options.name = "early";
  options.timeout = kBound;
  AgentClient control = check(AgentClient::adopt(std::move(early), options));
  REQUIRE(wait_until([&] { return !check(control.list_guests()).empty(); }));
  REQUIRE(check(control.list_guests()).front().uuid == guest.uuid());
  REQUIRE(guest.process().running());
}

TEST_CASE("kvmid says that it stops, and its sockets stay for the next one", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config()});
  Guest guest(folder);
  guest.wait_online();
  const auto files = files_in(folder);

  manager.process().signal(SIGTERM);

  REQUIRE(manager.process().wait_exit() == Exit{0, 0});
  REQUIRE(manager.count("STOPPING=1") == 1);
  REQUIRE(manager.said().back().says("STOPPING=1"));  // nothing after it
  REQUIRE(files_in(folder) == files);

  UniqueFd between = connected_socket(manager.agents());
  manager.start_ready({.config = open_config()});
  client::ConnectOptions options;
  options.timeout = kBound;
  AgentClient control = check(AgentClient::adopt(std::move(between), options));
  REQUIRE(wait_until([&] { return !check(control.list_guests()).empty(); }));  // the hypervisor is back, too
}

TEST_CASE("a reload is announced with its time, and ended", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config()});
  for (const bool good : {true, false, true}) {
    const std::size_t before = manager.said().size();
    static_cast<void>(folder.write("kvmid.json", good ? open_config() : "{\"policy\": 3}"));
    const std::uint64_t from = monotonic_usec();

    manager.process().signal(SIGHUP);

    const std::size_t begun = manager.wait_said("RELOADING=1", before);
    const std::size_t ended = manager.wait_said("READY=1", begun);
    const std::uint64_t to = monotonic_usec();
    REQUIRE(ended == begun + 1);
    const std::uint64_t at = std::stoull(manager.said().at(begun).value("MONOTONIC_USEC").value());
    REQUIRE(at >= from);
    REQUIRE(at <= to);
    // A refused file is said where `systemctl status` shows it, and what is served stays.
    const std::string status = manager.said().at(ended).value("STATUS").value_or("");
    INFO(status);
    REQUIRE((status.find("/policy") != std::string::npos) == !good);
    REQUIRE(guests_at(manager.agents()) == 0);
  }
}

TEST_CASE("sockets that are meant for another process are left alone", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder own;
  Manager manager(folder);
  manager.start({.config = open_config(), .pid = "1", .arguments = {"--runtime-dir", own.path().string()}});
  manager.wait_said("READY=1");

  REQUIRE(guests_at(own.file("agent.sock")) == 0);
  manager.process().signal(SIGTERM);
  REQUIRE(manager.process().wait_exit() == Exit{0, 0});
  REQUIRE(files_in(own).empty());  // those were its own
}

TEST_CASE("a side without a passed socket is opened by kvmid itself", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder own;
  Manager manager(folder);
  manager.start_ready({.config = open_config(),
                       .fds = std::vector<Passed>{manager.sockets()[1]},
                       .arguments = {"--runtime-dir", own.path().string()}});

  REQUIRE(files_in(own) == std::set<std::string>{"hypervisor.sock", "admin.sock"});
  REQUIRE(guests_at(manager.agents()) == 0);
  REQUIRE(admin_get(own.file("admin.sock"), "/v1/status").find("\"shards\"") != std::string::npos);
}

}  // namespace kvmid::test
