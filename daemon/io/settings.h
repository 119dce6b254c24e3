// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/policy.h"

namespace kvmid::io {

/// Where a listener waits. An empty path and no port: it does not.
struct ListenAt {
  std::string unix_path;
  std::uint32_t mode = 0660;   ///< of the socket file
  std::string group;           ///< of the socket file; empty: the daemon's
  std::optional<std::uint32_t> vsock_port;
  friend bool operator==(const ListenAt&, const ListenAt&) = default;
};

/// Who may bring a guest. A peer is allowed when one of its values is in one of the lists.
struct HypervisorPeers {
  std::vector<std::uint32_t> uids;
  std::vector<std::uint32_t> gids;
  std::vector<std::uint32_t> cids;
};
[[nodiscard]] bool allows(const HypervisorPeers& peers, const core::Peer& peer);

struct Limits {
  std::uint32_t guests_max = 1024;
  std::uint32_t connections_max = 4096;  ///< of hypervisors and agents together, those saying hello included
  std::chrono::milliseconds hello_timeout{5000};
  std::chrono::milliseconds command_timeout{30000};
};

/// Everything that the broker is told from outside. Checked by whoever made it.
struct Settings {
  ListenAt hypervisors;
  ListenAt agents;
  unsigned shards = 1;  ///< 1 or more
  Limits limits;
  HypervisorPeers hypervisor_peers;
  core::Policy policy;
};

}  // namespace kvmid::io
