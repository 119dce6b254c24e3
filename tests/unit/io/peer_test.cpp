// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/peer.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "daemon/io/settings.h"
#include "daemon/io/unique_fd.h"

using namespace kvmid::io;

TEST_CASE("the peer of a unix socket is who the kernel says", "[peer]") {
  int fds[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  const UniqueFd a{fds[0]};
  const UniqueFd b{fds[1]};

  const auto peer = peer_of(a.get());

  REQUIRE(peer.has_value());
  REQUIRE(peer->pid == static_cast<std::uint32_t>(::getpid()));
  REQUIRE(peer->uid == ::geteuid());
  REQUIRE(peer->gids.at(0) == ::getegid());
  REQUIRE_FALSE(peer->cid);
  // Every supplementary group is there, and none twice.
  std::vector<gid_t> groups(static_cast<std::size_t>(::getgroups(0, nullptr)));
  REQUIRE(::getgroups(static_cast<int>(groups.size()), groups.data()) >= 0);
  for (const auto gid : groups) REQUIRE(std::count(peer->gids.begin(), peer->gids.end(), gid) == 1);
}

TEST_CASE("what is no socket has no peer, and the error names the call", "[peer]") {
  const UniqueFd null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  REQUIRE(peer_of(null.get()).error().find("SO_DOMAIN") != std::string::npos);
  const UniqueFd inet{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  REQUIRE(peer_of(inet.get()).error().find("no peer credentials") != std::string::npos);
}

TEST_CASE("a hypervisor is allowed by any of its values that is listed", "[peer]") {
  kvmid::core::Peer local;
  local.uid = 1000;
  local.gids = {100, 36};
  kvmid::core::Peer remote;
  remote.cid = 3;

  REQUIRE_FALSE(allows({}, local));
  REQUIRE(allows({.uids = {0, 1000}, .gids = {}, .cids = {}}, local));
  REQUIRE(allows({.uids = {}, .gids = {36}, .cids = {}}, local));
  REQUIRE_FALSE(allows({.uids = {0}, .gids = {37}, .cids = {3}}, local));
  REQUIRE(allows({.uids = {}, .gids = {}, .cids = {3}}, remote));
  REQUIRE_FALSE(allows({.uids = {0, 3}, .gids = {0}, .cids = {}}, remote));
}

TEST_CASE("a peer is written as fields of a log line", "[peer]") {
  kvmid::core::Peer peer;
  peer.pid = 10;
  peer.uid = 0;
  peer.gids = {5, 6};
  REQUIRE(to_string(peer) == "pid=10 uid=0 gid=5");
  peer = {};
  peer.cid = 3;
  REQUIRE(to_string(peer) == "cid=3");
}
