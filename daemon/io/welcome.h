// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string_view>

#include "daemon/core/policy.h"
#include "protocol/handshake.h"

namespace kvmid::io {

/// A welcome with all that follows from the grant; the caller adds commands, events and facts of the guest.
kvmi_welcome welcome_from(AgentId id, const core::Grant& grant);
/// The welcome that says no.
kvmi_welcome refusal(ErrorCode error, std::string_view text);

/// Sends one small message on a socket that has had none yet, where it always fits. False: the peer is gone.
bool send_first(int fd, Bytes bytes);
/// refusal() to the peer; closing the socket is the caller's.
void refuse_agent(int fd, ErrorCode error, std::string_view text);
/// The answer to a hypervisor's hello. Of older dialects there is only the one that takes it.
bool answer_hypervisor(int fd, const HypervisorAnswer& answer);

}  // namespace kvmid::io
