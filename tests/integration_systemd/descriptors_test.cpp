// SPDX-License-Identifier: GPL-2.0-or-later
//
// What is passed and is not a listening socket for somebody: kvmid says which descriptor it is and what is wrong with
// it, exits 1, and does not say that it is ready.

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstring>

#include "tests/integration_systemd/manager.h"

namespace kvmid::test {
namespace {

struct Refusal {
  Exit exit;
  std::string text;  ///< the line for people
  std::size_t ready = 0;
};

Refusal start_with(const RuntimeFolder& folder, std::vector<Passed> fds, std::string names = {}) {
  Manager manager(folder);
  Process& process = manager.start({.config = open_config(), .fds = std::move(fds), .names = std::move(names)});
  Refusal refusal{process.wait_exit(), {}, manager.count("READY=1")};
  for (const auto& line : process.errors()) {
    if (line.starts_with("kvmid: ")) refusal.text = line;
  }
  return refusal;
}

void require_refused(const Refusal& refusal, const std::string& text) {
  INFO(refusal.text);
  REQUIRE(refusal.exit == Exit{1, 0});
  REQUIRE(refusal.ready == 0);
  REQUIRE(refusal.text.find(text) != std::string::npos);
}

}  // namespace

TEST_CASE("a descriptor of a wrong kind is refused by its number, name and kind", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  UniqueFd fd;
  std::string text;
  SECTION("a file") {
    fd.reset(::open(other.write("file", "x").c_str(), O_RDWR | O_CLOEXEC));
    text = "it is not a socket";
  }
  SECTION("a datagram socket") {
    fd = bound_socket(other.file("s"), SOCK_DGRAM, false);
    text = "it is not a stream socket";
  }
  SECTION("a sequenced packet socket") {
    fd = bound_socket(other.file("s"), SOCK_SEQPACKET, true);
    text = "it is not a stream socket";
  }
  SECTION("a socket that does not listen") {
    fd = bound_socket(other.file("s"), SOCK_STREAM, false);
    text = "it does not listen";
  }
  SECTION("a connected socket") {
    std::array<int, 2> pair{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) == 0);
    fd.reset(pair[0]);
    ::close(pair[1]);
    text = "it does not listen";
  }
  SECTION("a TCP socket") {
    fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd.get(), 1) == 0);
    text = "it is neither a unix nor a vsock socket";
  }
  REQUIRE(fd);

  require_refused(start_with(folder, {{fd.get(), "agent"}}), "descriptor 3 as \"agent\": " + text);
}

TEST_CASE("the one wrong descriptor among good ones is named", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  const UniqueFd good = bound_socket(other.file("good"), SOCK_STREAM, true);
  const UniqueFd bad = bound_socket(other.file("bad"), SOCK_STREAM, false);

  require_refused(start_with(folder, {{good.get(), "hypervisor"}, {bad.get(), "agent"}}),
                  "descriptor 4 as \"agent\": it does not listen");
}

TEST_CASE("a socket under a name that kvmid does not know is refused", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  const UniqueFd fd = bound_socket(other.file("s"), SOCK_STREAM, true);

  require_refused(start_with(folder, {{fd.get(), "kvmid-agent.socket"}}),
                  "descriptor 3 as \"kvmid-agent.socket\": FileDescriptorName= must be hypervisor, agent or admin");
  // systemd calls descriptors without a name so.
  require_refused(start_with(other, {{fd.get(), ""}}), "descriptor 3 as \"unknown\": FileDescriptorName= must be");
}

TEST_CASE("names that do not fit the number of sockets are refused", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  const UniqueFd fd = bound_socket(other.file("s"), SOCK_STREAM, true);

  require_refused(start_with(folder, {{fd.get(), "agent"}}, "agent:admin"), "LISTEN_FDNAMES");
}

TEST_CASE("a second admin socket is refused", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  const UniqueFd one = bound_socket(other.file("1"), SOCK_STREAM, true);
  const UniqueFd two = bound_socket(other.file("2"), SOCK_STREAM, true);

  require_refused(start_with(folder, {{one.get(), "admin"}, {two.get(), "admin"}}),
                  "descriptor 4 as \"admin\": there is one already");
}

TEST_CASE("several sockets can serve the same side", "[integration][systemd]") {
  const RuntimeFolder folder;
  const RuntimeFolder other;
  Manager manager(folder);
  const UniqueFd second = bound_socket(other.file("s"), SOCK_STREAM, true);
  auto fds = manager.sockets();
  fds.push_back({second.get(), "agent"});
  manager.start_ready({.config = open_config(), .fds = fds});

  for (const auto& path : {manager.agents(), other.file("s")}) {
    REQUIRE(guests_at(path) == 0);
  }
}

}  // namespace kvmid::test
