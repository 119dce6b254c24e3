// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <optional>
#include <span>
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
  Seq event_seq{};       ///< what agents know the event by; 0: UNHOOK
  AgentId decided_by{};  ///< 0: kvmid
  TimePoint since{};     ///< when the event came
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
/// READ_PHYSICAL answered from the mapping of guest RAM, which has all of it. The ranges live until the next input.
struct ReadRam {
  AgentId agent;
  Seq seq;
  WireArray<kvmi_read_range> ranges;
  std::uint64_t bytes = 0;  ///< of all ranges
  std::uint64_t cookie = 0;
};
/// The agent gets descriptors of guest RAM and of what is published about it.
struct GrantRam {
  AgentId agent;
  Seq seq;
};
struct RevokeRam {
  AgentId agent;
};

// What readers of guest RAM are told. Only where RAM is shared; of the normal address space.
struct RamChanging {  ///< before the command that does it is sent
  Gpa gpa;
  std::uint64_t bytes = 0;
  std::uint64_t generation = 0;  ///< the one that it makes
};
struct RamChanged {  ///< the command is answered
  Gpa gpa;
  std::uint64_t bytes = 0;
};
struct RamPatched {  ///< RAM does not hold the guest's own bytes there, or does again
  Gpa gpa;
  std::uint64_t bytes = 0;
  bool on = false;
  std::uint64_t generation = 0;
};
struct RamMapChanged {
  std::uint64_t generation = 0;
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
  Demoted,          ///< too many of them in a row, of that kind of event
  Decided,          ///< an event ended with another action than allow, or with a changed value
  UnionRefused,     ///< the hypervisor refused to take a wish back
  CommandGranted,   ///< a command of kGuestChanging was let through
  CommandFailed,    ///< and the hypervisor answered it with an error
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

  // CommandGranted: what of the guest is touched
  Gpa gpa{};                 ///< WRITE_PHYSICAL, SET_PAGE_ACCESS (its first page)
  std::uint64_t amount = 0;  ///< bytes of WRITE_PHYSICAL, pages of SET_PAGE_ACCESS
  std::uint8_t detail = 0;   ///< vector of INJECT_EXCEPTION; rights of SET_PAGE_ACCESS, ANDed over its pages; flags of
                             ///< WRITE_PHYSICAL

  // Decided: who said what
  std::span<const Vote> votes{};
  const Event* about = nullptr;  ///< the event that has ended
  std::optional<std::uint64_t> new_value{};
  AgentId value_by{};      ///< 0: no value was changed
  AgentId registers_by{};  ///< 0: no registers were changed
  AgentId xsave_by{};      ///< 0: no XSAVE area was changed
};

/// The commands that change a guest: each is told as a fact when it is let through, and when it fails.
inline constexpr CommandSet kGuestChanging{
    KVMI_COMMAND_BIT(KVMI_MSG_WRITE_PHYSICAL) | KVMI_COMMAND_BIT(KVMI_MSG_INJECT_EXCEPTION) |
    KVMI_COMMAND_BIT(KVMI_MSG_SET_REGISTERS) | KVMI_COMMAND_BIT(KVMI_MSG_SET_XSAVE) |
    KVMI_COMMAND_BIT(KVMI_MSG_SET_PAGE_ACCESS) | KVMI_COMMAND_BIT(KVMI_MSG_SHUTDOWN_GUEST) |
    KVMI_COMMAND_BIT(KVMI_MSG_PAUSE_VCPU)};

using Effect = std::variant<SendCommand, SendEventReply, SendEvent, SendReply, SendNotice, SendGuestOn, SendGuestOff,
                            CloseAgent, CloseHypervisor, GuestReady, Report, ReadRam, GrantRam, RevokeRam, RamChanging,
                            RamChanged, RamPatched, RamMapChanged>;

/// What one input asks the shell to do, in order. Owned by the shell and reused: warm, it allocates nothing.
/// Views inside live until the next input of the machine that made them.
using Effects = std::vector<Effect>;

}  // namespace kvmid::core
