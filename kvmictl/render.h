// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What kvmid's admin side answers, as text for people. Missing fields print as "-": a newer or older kvmid is no
/// error.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/agent_client.h"
#include "client/guest_names.h"
#include "kvmictl/json_text.h"

namespace kvmid::ctl {

std::string render_guests(const Json& answer, std::size_t width);
std::string render_guest(const Json& guest, std::size_t width);
std::string render_agents(const Json& answer, std::size_t width);
/// `agent` is one entry of GET /v1/agents, `guests` the answer of GET /v1/guests/{uuid} of its guest (or null).
std::string render_agent(const Json& agent, const Json& guest, std::size_t width);
std::string render_status(const Json& status);

/// Names and uuids of GET /v1/guests.
std::vector<client::GuestName> guest_names(const Json& answer);

/// "00001000  48 8b 05 ..  |H...|", 16 bytes a line.
std::string hex_dump(std::uint64_t address, std::span<const std::byte> bytes);
/// "488b05", as mem write takes it.
std::string hex_digits(std::span<const std::byte> bytes);
std::string render_registers(const client::Registers& registers);
/// {"schema":1,"vcpu":0,"mode":8,"regs":{"rax":"0x0",...},"sregs":{...}}
Json registers_json(std::uint16_t vcpu, const client::Registers& registers);

/// "3d 4h", "12m 5s".
std::string duration_text(std::uint64_t seconds);

}  // namespace kvmid::ctl
