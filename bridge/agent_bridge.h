// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bridge/passed.h"
#include "protocol/dialect.h"
#include "protocol/kvmi1_codec.h"
#include "protocol/message.h"

namespace kvmid::bridge {

/// What a tool can use of the guest: policy and hypervisor together. It may change while the tool is connected.
struct ToolRights {
  CommandSet commands;
  EventSet events;
  /// What policy would allow and the hypervisor does not have: refused as unsupported, not as forbidden.
  CommandSet unserved_commands{};
  EventSet unserved_events{};
  Role role = Role::Decider;
  std::uint32_t requests_max = 64;  ///< commands of KVMI 2 that may be open at once, 1 or more
};

/// Makes a tool of an older dialect look like an agent of KVMI 2: towards the tool it is QEMU plus kernel.
///
/// Purpose:  tools that were written for a KVMI kernel work unchanged. Hypervisor processes of ours use it, too, to offer
///           their guests in an older dialect.
/// Shapes:   received() takes what the tool sends, the deliver()s and guest_*() what the core has for it; all append whole
///           frames for the tool to `wire`, one per message, and put messages for the core into down(). After a message
///           was taken from down() its effects may be delivered at once.
/// Errors:   received() says why the tool's connection is to be closed, where the dialect does so. All else is answered
///           with the dialect's own errors; what KVMI 2 cannot do gets the "unsupported" one.
/// Bounds:   at most requests_max commands are open at the core; frames behind them wait here, up to kBacklogMax bytes,
///           then the connection is to be closed.
/// Replies:  v7's CONTROL_CMD_RESPONSE is state of this connection alone. Replies come in the order of the commands of a
///           vCPU; a PAUSE with `wait` is answered when the vCPU has stopped, and holds back later replies until then.
/// Threads:  none. Time is no input.
/// Source:   docs/dialects.md, docs/decisions/0008-older-dialects.md.
class AgentBridge {
 public:
  static constexpr std::size_t kBacklogMax = 4U << 20U;

  struct Options {
    kvmi1::DialectId dialect = kvmi1::DialectId::V7;
    /// A write of one 0xCC byte is a patch (docs/decisions/0008): kvmid towards tools. Off: it is a write like any other,
    /// as a hypervisor process must take it.
    bool breakpoints_are_patches = true;
    /// The guest is there between UNHOOK and the tool's closing, as a hypervisor process has it: commands and event
    /// replies are served until then. Off: kvmid, which has taken everything back before it says so.
    bool serves_until_closed = false;
  };

  AgentBridge(Options options, const ToolRights& rights);
  ~AgentBridge();
  AgentBridge(const AgentBridge&) = delete;
  AgentBridge& operator=(const AgentBridge&) = delete;

  void set_rights(const ToolRights& rights);

  // the tool
  Result<void, std::string> received(const Frame& frame, ByteBuffer& wire);

  // the core
  void deliver(const Event& event, Seq seq, ByteBuffer& wire);
  void deliver(const CommandReply& reply, Seq seq, ByteBuffer& wire);
  void deliver(const Notice& notice, ByteBuffer& wire);
  /// The guest goes: UNHOOK where the tool enabled it. False: it did not, and its connection is to be closed, as QEMU
  /// does. Later commands are answered "unsupported", unless Options::serves_until_closed.
  [[nodiscard]] bool guest_off(OffReason reason, ByteBuffer& wire);

  /// Messages for the core.
  [[nodiscard]] PassedQueue<Downward>& down();
  /// A delivery (or a backlog that became ready by it) made the tool break its dialect: why it is to be closed.
  [[nodiscard]] const std::optional<std::string>& broken() const;

  [[nodiscard]] kvmi1::DialectId dialect() const;
  [[nodiscard]] std::size_t payload_max() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmid::bridge
