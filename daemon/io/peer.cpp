// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/peer.h"

#include <sys/socket.h>
// <sys/socket.h> comes first: the next one needs sa_family_t.
#include <linux/vm_sockets.h>

#include <cerrno>
#include <cstring>

#include "daemon/io/settings.h"

namespace kvmid::io {
namespace {

std::string failed(const char* call) { return std::string(call) + ": " + std::strerror(errno); }

Result<core::Peer, std::string> unix_peer(int fd) {
  ucred cred{};
  socklen_t size = sizeof cred;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) != 0) return failed("getsockopt(SO_PEERCRED)");
  core::Peer peer;
  if (cred.pid > 0) peer.pid = static_cast<std::uint32_t>(cred.pid);
  peer.uid = cred.uid;
  peer.gids.push_back(cred.gid);

  std::vector<gid_t> groups(32);
  for (;;) {
    size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) == 0) break;
    if (errno != ERANGE || size <= groups.size() * sizeof(gid_t)) return failed("getsockopt(SO_PEERGROUPS)");
    groups.resize(size / sizeof(gid_t));  // the kernel said how much it needs
  }
  groups.resize(size / sizeof(gid_t));
  for (const auto gid : groups) {
    if (gid != cred.gid) peer.gids.push_back(gid);
  }
  return peer;
}

Result<core::Peer, std::string> vsock_peer(int fd) {
  sockaddr_vm address{};
  socklen_t size = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return failed("getpeername");
  core::Peer peer;
  peer.cid = address.svm_cid;
  return peer;
}

bool any_of(const std::vector<std::uint32_t>& list, const std::optional<std::uint32_t>& value) {
  if (!value) return false;
  for (const auto item : list) {
    if (item == *value) return true;
  }
  return false;
}

}  // namespace

Result<core::Peer, std::string> peer_of(int fd) {
  int domain = 0;
  socklen_t size = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0) return failed("getsockopt(SO_DOMAIN)");
  if (domain == AF_UNIX) return unix_peer(fd);
  if (domain == AF_VSOCK) return vsock_peer(fd);
  return std::string("a socket of a family that has no peer credentials");
}

std::string to_string(const core::Peer& peer) {
  std::string text;
  const auto add = [&](const char* key, std::uint32_t value) {
    if (!text.empty()) text += ' ';
    text += key;
    text += std::to_string(value);
  };
  if (peer.pid) add("pid=", *peer.pid);
  if (peer.uid) add("uid=", *peer.uid);
  if (!peer.gids.empty()) add("gid=", peer.gids.front());
  if (peer.cid) add("cid=", *peer.cid);
  return text;
}

bool allows(const HypervisorPeers& peers, const core::Peer& peer) {
  if (any_of(peers.uids, peer.uid) || any_of(peers.cids, peer.cid)) return true;
  for (const auto gid : peer.gids) {
    if (any_of(peers.gids, gid)) return true;
  }
  return false;
}

}  // namespace kvmid::io
