// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

#include "protocol/kvmi1.h"
#include "protocol/message.h"

namespace kvmid::bridge {

/// What a hypervisor's error (negative, as the wire has it) is called in KVMI 2. Numbers that no dialect defines come from
/// failures inside its kernel: Invalid.
[[nodiscard]] ErrorCode error_from(std::int32_t wire, kvmi1::DialectId dialect);

/// What a tool is told (negative). Errors that the older dialects do not have become the nearest that they do: a guest that
/// is away, a stale cookie and a missed deadline are "the state does not allow it".
[[nodiscard]] std::int32_t error_for(ErrorCode error, kvmi1::DialectId dialect);

}  // namespace kvmid::bridge
