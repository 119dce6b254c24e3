// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One message of every kind that v12 or rfc2017 has, no field of which is zero where the dialect carries it.

#include <vector>

#include "protocol/kvmi1_codec.h"

namespace kvmid::kvmi1::test {

std::vector<Command> commands_of(DialectId dialect);
/// A reply with success for each of commands_of(), in the same order.
std::vector<Reply> replies_of(DialectId dialect);
std::vector<EventMessage> events_of(DialectId dialect);
/// A reply to each of events_of(), in the same order: of the full size, every value set.
std::vector<EventReplyMessage> event_replies_of(DialectId dialect);

}  // namespace kvmid::kvmi1::test
