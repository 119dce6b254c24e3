// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The subcommands that work on a guest as an ordinary agent, through libkvmid. Each returns an exit code and has
/// printed what there was to say.

#include "client/agent_client.h"
#include "kvmictl/arguments.h"

namespace kvmid::ctl {

int events(const Arguments& arguments);
int regs(const Arguments& arguments);
int mem_read(const Arguments& arguments);       // mem_read.cpp
int mem_translate(const Arguments& arguments);  // mem_read.cpp
int mem_dump(const Arguments& arguments);       // mem_dump.cpp
int mem_search(const Arguments& arguments);     // mem_search.cpp
int mem_watch(const Arguments& arguments);      // mem_watch.cpp
int mem_write(const Arguments& arguments);  // guest_changes.cpp
int crash(const Arguments& arguments);      // guest_changes.cpp
int disas(const Arguments& arguments);      // disas.cpp
int pause(const Arguments& arguments);      // pause.cpp
int resume(const Arguments& arguments);     // pause.cpp

/// Says on stderr what went wrong and what to do about it; returns the exit code.
int explain(const client::ClientError& error);
/// Registers of a vCPU; one that the hypervisor cannot read while it runs is stopped for the moment.
Result<client::Registers, client::ClientError> stopped_registers(client::AgentClient& client, VcpuId vcpu);
/// How kvmictl introduces itself.
client::ConnectOptions connect_options(const Arguments& arguments);

}  // namespace kvmid::ctl
