// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/message.h"

namespace kvmid::core {

/// Who is at the other end of a socket, as the kernel says.
struct Peer {
  std::optional<std::uint32_t> pid;
  std::optional<std::uint32_t> uid;  ///< unix sockets
  std::vector<std::uint32_t> gids;   ///< primary first, then the supplementary ones; unix sockets
  std::optional<std::uint32_t> cid;  ///< vsock: context id of the peer
};

/// What an agent may hold at once. Over it is an answer: KVMI_EBUSY, or a disconnect with its reason.
struct Quota {
  std::uint32_t requests_max = 64;            ///< commands without a reply yet
  std::uint32_t queue_bytes_max = 4U << 20U;  ///< sent to it and not yet taken by its socket
  std::uint32_t pages_max = 65536;            ///< pages with rights taken away
  std::uint32_t msrs_max = 512;               ///< tracked MSRs, summed over vCPUs
  std::uint32_t patches_max = 1024;           ///< patches in guest memory
  std::uint32_t filters_max = 64;             ///< filters of events
  std::uint32_t attachments_max = 64;         ///< connections of the same uid (or CID) at once
};

/// What policy gives to an agent on a guest.
struct Grant {
  std::string rule;  ///< name of the rule it comes from
  CommandSet commands;
  EventSet events;
  Role role = Role::Observer;  ///< the most it may be
  std::uint32_t priority = 0;  ///< the larger number wins where agents change the same value
  Action default_action = Action::Allow;
  std::chrono::milliseconds deadline{100};     ///< for each event it decides
  std::chrono::milliseconds pause_max{10000};  ///< how long it may hold a vCPU by PAUSE_VCPU
  std::uint32_t strikes_max = 3;               ///< deadlines missed in a row that make it an observer of that kind of event
  bool unconditional_writes = true;            ///< it may write without a cookie and without expected bytes
  Quota quota;
};

/// One line of the policy. An empty list of a criterion does not restrict; a rule without any criterion matches nobody.
struct Rule {
  std::vector<std::uint32_t> uids;
  std::vector<std::uint32_t> gids;
  std::vector<std::uint32_t> cids;
  bool any_peer = false;            ///< "match": "*"
  std::vector<std::string> guests;  ///< patterns of names or UUIDs: * and ? as in file names
  Grant grant;
};

/// Who may do what: the first rule that matches peer and guest decides; no rule, no access.
struct Policy {
  std::vector<Rule> rules;
};

/// All criteria that the rule names hold for the peer (each: one of its values does).
[[nodiscard]] bool matches(const Rule& rule, const Peer& peer);
/// `text` matches the pattern as a whole: * is any run of characters, ? is one. Linear in both lengths for each *.
[[nodiscard]] bool matches_pattern(std::string_view pattern, std::string_view text);
/// The grant for this peer on this guest, or null.
[[nodiscard]] const Grant* find_grant(const Policy& policy, const Peer& peer, std::string_view guest_name,
                                      const Uuid& guest);
/// The first rule that knows this peer, whatever the guest, or null.
[[nodiscard]] const Rule* find_rule(const Policy& policy, const Peer& peer);
/// Some rule knows this peer: it may hold a control connection.
[[nodiscard]] bool may_connect(const Policy& policy, const Peer& peer);

}  // namespace kvmid::core
