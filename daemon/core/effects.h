// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string_view>
#include <variant>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

// What the shell shall do, in this order. The core appends; the shell performs and clears.

struct SendCommand {  ///< to the hypervisor
  Seq seq;
  Command command;
};
struct SendEventReply {  ///< to the hypervisor
  Seq seq;
  EventReply reply;
};
struct SendEvent {  ///< to an agent; `event` lives until the next input
  AgentId agent;
  Seq seq;
  const Event* event = nullptr;
  bool decide = false;
  std::uint32_t deadline_us = 0;
};
struct SendReply {  ///< to an agent
  AgentId agent;
  Seq seq;
  CommandReply reply;
};
struct SendNotice {  ///< to an agent
  AgentId agent;
  Notice notice;
};
struct SendGuestOn {  ///< to an attached agent: its guest's hypervisor is back
  AgentId agent;
};
struct SendGuestOff {  ///< to an attached agent: its guest's hypervisor is gone
  AgentId agent;
  OffReason reason{};
  std::string_view text;
};
struct CloseAgent {  ///< after what was sent to it is out
  AgentId agent;
  std::string_view reason;
};
struct CloseHypervisor {  ///< after what was sent to it is out
  OffReason reason{};
  std::string_view text;
};
struct GuestReady {};  ///< version and facts are known: agents may attach

/// Something that people want to read in the log; a peer's fault, or a turn in a guest's life.
enum class Fact : std::uint8_t {
  ProtocolError,    ///< the hypervisor broke the protocol
  CommandRefused,   ///< an agent's command was refused by policy, quota or sense
  CommandTimedOut,  ///< the hypervisor did not answer
  ReplyRefused,     ///< an agent's event reply was bad, late or not owed
  Expired,          ///< an agent's deadline passed
  Demoted,          ///< too many of them in a row
  Decided,          ///< an event ended with another action than allow, or with a changed value
  UnionRefused,     ///< the hypervisor refused to take a wish back
  Linked,           ///< the hypervisor is connected and known
  LinkLost,
};
struct Report {
  Fact fact{};
  AgentId agent{};
  VcpuId vcpu{};
  Seq seq{};
  EventKind event{};
  Action action{};
  CommandId command{};
  ErrorCode error = ErrorCode::None;
  std::string_view text{};  ///< a constant of the program
};

using Effect = std::variant<SendCommand, SendEventReply, SendEvent, SendReply, SendNotice, SendGuestOn, SendGuestOff,
                            CloseAgent, CloseHypervisor, GuestReady, Report>;

/// What one input asks the shell to do, in order. Owned by the shell and reused: warm, it allocates nothing.
/// Views inside live until the next input of the machine that made them.
using Effects = std::vector<Effect>;

}  // namespace kvmid::core
