// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The parts of the configuration that older dialects need. Inside of the config's sources only.

#include <string>
#include <vector>

#include "daemon/app/config_reader.h"

namespace kvmid::app {

/// "hypervisors": who may bring guests, and the rules for some of them. Without uid, gid and cid `peers` stays as it is
/// where there are rules.
void read_hypervisors(const Json& node, const std::string& path, CookieFiles cookies, io::HypervisorPeers& peers,
                      std::vector<io::GuestRule>& rules);
/// "dial": the tools that kvmid connects to.
void read_dialed_agents(const Json& node, const std::string& path, CookieFiles cookies,
                        std::vector<io::DialedAgent>& out);

}  // namespace kvmid::app
