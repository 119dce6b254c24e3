// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The hypervisor's side of one connection, without its socket: frames in, frames out.
///
/// Purpose:  what every hypervisor process must do alike: decode, check, keep sequence numbers, match replies to
///           events. An older dialect is spoken through the bridge that kvmid itself has towards tools.
/// Shapes:   writable()/received() take bytes, outbox() has what is to be sent; raise() is called by the backend.
/// Errors:   a well-formed command that cannot be done is answered with an error and a sentence. Anything malformed, or
///           a reply to nothing, is a broken peer: received() gives the reason and the connection is to be closed.
/// Bounds:   one event per vCPU is open at a time; wants_input() is false while more than kOutboxHigh bytes wait, so
///           commands are taken no faster than their replies are read.
/// Older:    writes of breakpoints are plain writes, as in the kernels of those dialects; there are no patches, and no
///           MEMORY_MAP_CHANGED. What raise() makes the bridge refuse is told by the next received() or resume().
/// Threads:  none of its own.
/// Lifetime: `backend` outlives the session. The end of a session takes its patches off; whoever drops it calls
///           backend.unhook() then, which lets the vCPUs go on.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bridge/agent_bridge.h"
#include "hypervisor/server/guest_backend.h"
#include "hypervisor/server/patches.h"
#include "protocol/dialect_kvmi2.h"
#include "protocol/frame_parser.h"

namespace kvmid::hypervisor {

/// The commands that this server serves (KVMI_COMMAND_BIT) with any backend; GuestFacts::commands has the others.
inline constexpr std::uint64_t kServedCommands =
    KVMI_COMMAND_BIT(KVMI_MSG_GET_VERSION) | KVMI_COMMAND_BIT(KVMI_MSG_GET_GUEST_INFO) |
    KVMI_COMMAND_BIT(KVMI_MSG_PAUSE_VCPU) | KVMI_COMMAND_BIT(KVMI_MSG_GET_REGISTERS) |
    KVMI_COMMAND_BIT(KVMI_MSG_SET_REGISTERS) | KVMI_COMMAND_BIT(KVMI_MSG_GET_PAGE_ACCESS) |
    KVMI_COMMAND_BIT(KVMI_MSG_SET_PAGE_ACCESS) | KVMI_COMMAND_BIT(KVMI_MSG_INJECT_EXCEPTION) |
    KVMI_COMMAND_BIT(KVMI_MSG_READ_PHYSICAL) | KVMI_COMMAND_BIT(KVMI_MSG_WRITE_PHYSICAL) |
    KVMI_COMMAND_BIT(KVMI_MSG_CONTROL_EVENTS) | KVMI_COMMAND_BIT(KVMI_MSG_CONTROL_CR) |
    KVMI_COMMAND_BIT(KVMI_MSG_CONTROL_MSR) | KVMI_COMMAND_BIT(KVMI_MSG_TRANSLATE_GVA);

class Session final : public EventSink {
 public:
  static constexpr std::size_t kOutboxHigh = 256 * 1024;

  /// `older`: the dialect that is spoken in place of KVMI 2.
  explicit Session(GuestBackend& backend, std::optional<kvmi1::DialectId> older = std::nullopt);

  /// Space for received bytes; never empty.
  [[nodiscard]] std::span<std::byte> writable() { return parser_.writable(); }
  /// `n` bytes of writable() were filled; serves what they complete. A text: close the connection, this is why.
  [[nodiscard]] std::optional<std::string> received(std::size_t n);
  /// Serves frames that were left because the outbox was full. Call it when the outbox has drained.
  [[nodiscard]] std::optional<std::string> resume();

  void raise(const Event& event) override;
  /// Sends MEMORY_MAP_CHANGED. Patches on memory that goes or moves are taken off first, so that what moves is the
  /// guest's own; kvmid's UNPATCH finds none there.
  void map_changing(const MemoryMapChanged& change) override;
  /// Sends UNHOOK: the guest is about to be let go. Once in a session. In an older dialect that is for those who enabled
  /// it, and they answer by closing; the others are let go at once.
  void unhook(OffReason reason);
  /// kvmid has taken everything back and let the guest go, or does not wish to be told: the connection is to be closed.
  [[nodiscard]] bool unhooked() const { return unhooked_; }

  /// Bytes to send; take them from the front with sent().
  [[nodiscard]] Bytes outbox() const { return Bytes(outbox_).subspan(sent_); }
  void sent(std::size_t n);
  [[nodiscard]] bool wants_input() const { return outbox_.size() - sent_ < kOutboxHigh; }

 private:
  struct OpenEvent {
    Seq seq;
    EventKind kind{};
    ActionSet actions;
  };

  std::optional<std::string> serve(const Frame& frame);
  std::optional<std::string> serve_older(const Frame& frame);
  void serve_bridge();
  void serve_command(const Command& command, Seq seq);
  std::optional<std::string> serve_reply(const EventReply& reply, Seq seq);

  GuestBackend& backend_;
  Patches patches_;
  DialectKvmi2 dialect_;
  std::unique_ptr<bridge::AgentBridge> bridge_;  ///< an older dialect is spoken
  std::optional<std::string> broken_;            ///< by the peer, seen in raise()
  bool in_bridge_ = false;                       ///< what the bridge passed down is being served
  FrameParser parser_;
  ByteBuffer outbox_;
  std::size_t sent_ = 0;
  std::uint32_t next_seq_ = 1;
  std::vector<std::optional<OpenEvent>> open_events_;  ///< [vCPU]
  std::optional<Seq> unhook_;                          ///< the open UNHOOK event
  bool unhooked_ = false;
};

}  // namespace kvmid::hypervisor
