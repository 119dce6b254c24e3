// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The C++ values of the client as the structs of kvmi.h and kvmid.h. Texts and names are cut to fit.

#include "client/agent_client.h"
#include "client/kvmid.h"

namespace kvmid::client {

kvmi_welcome to_wire(const Welcome& welcome);
kvmi_guest_entry to_wire(const GuestEntry& guest);
kvmid_event to_wire(const ReceivedEvent& received);
kvmid_message to_wire(const AgentMessage& message);

}  // namespace kvmid::client
