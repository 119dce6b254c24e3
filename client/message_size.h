// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>

#include "protocol/message.h"

namespace kvmid::client {

/// Bytes of payload that a command has in KVMI 2. Encoders take a message that fits for granted, so it is asked first.
std::size_t payload_size(const Command& command);

}  // namespace kvmid::client
