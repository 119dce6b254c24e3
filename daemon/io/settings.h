// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/policy.h"
#include "protocol/kvmi1.h"

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

/// The SHA-1 of a secret that a hypervisor and its tool share: all of it that travels, and all that is kept of it here.
using CookieHash = std::array<std::uint8_t, 20>;

/// What holds for the hypervisors of some guests. The first rule whose patterns match the guest decides.
struct GuestRule {
  std::vector<std::string> guests;           ///< patterns of names or UUIDs: * and ? as in file names
  std::optional<kvmi1::DialectId> dialect;   ///< of a hypervisor that does not name KVMI 2; none: it is found out
  std::optional<HypervisorPeers> bound_to;   ///< only these peers may bring such a guest; none: whoever may bring any
  std::optional<CookieHash> cookie;          ///< proves kvmid to the hypervisor; none: zeros, as for one without a key
};

/// A tool that listens and waits for QEMU: kvmid connects to it, once for each guest that matches.
struct DialedAgent {
  std::string name;                  ///< unique; what logs and lists call it
  std::string unix_path;             ///< or a vsock address
  std::uint32_t vsock_cid = 0;
  std::uint32_t vsock_port = 0;      ///< used where unix_path is empty
  kvmi1::DialectId dialect = kvmi1::DialectId::V7;
  std::vector<std::string> guests;   ///< patterns of names or UUIDs
  std::optional<Role> role;          ///< not more than policy gives; none: what policy gives
  std::optional<std::uint32_t> priority;
  std::optional<CookieHash> cookie;  ///< that the tool must prove to know; none: whatever it says
  std::chrono::milliseconds redial{1000};  ///< the first wait after a failure; doubled each time, up to 30 seconds
  friend bool operator==(const DialedAgent&, const DialedAgent&) = default;
};

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
  std::vector<GuestRule> guest_rules;
  std::vector<DialedAgent> dialed_agents;
  core::Policy policy;
};

}  // namespace kvmid::io
