// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What holds for the codec of v12 and for that of rfc2017 alike.

#include "protocol/kvmi1_codec.h"
#include "tests/unit/kvmi1/shared/support.h"

namespace kvmid::kvmi1::test {

/// There is a sample of every command and event that the codec has a number for, and of no other.
void require_samples_complete(const Codec& codec);
/// decode(encode(m)) == m, for every sample.
void require_round_trips(const Codec& codec);
/// Every sample has the size that dialect_layouts.json gives, and every message there has a sample.
void require_sizes(const Codec& codec, const nlohmann::json& dialect);
/// Numbers of messages and events are those of dialect_layouts.json.
void require_numbers(const Codec& codec, const nlohmann::json& dialect);

}  // namespace kvmid::kvmi1::test
