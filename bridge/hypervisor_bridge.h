// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bridge/passed.h"
#include "protocol/dialect.h"
#include "protocol/handshake.h"
#include "protocol/kvmi1_codec.h"
#include "protocol/message.h"

namespace kvmid::bridge {

/// Makes a hypervisor of an older dialect look like one of KVMI 2.
///
/// Purpose:  kvmid as the tool of a v6, v7, v12 or rfc2017 hypervisor, with the core none the wiser: one command of KVMI 2
///           may be many of the hypervisor's (reads of many pages, sets of events, all vCPUs), or none.
/// Shapes:   send() takes what the core sends, received() what the hypervisor sends; both append whole frames for the
///           hypervisor to `wire`, and put messages for the core into up(). Every command that was sent is answered in
///           up() exactly once, in any order, unless the link ends before.
/// States:   Asking (version; then what is allowed, vCPUs, memory size) -> Up. Commands but GET_VERSION and
///           GET_GUEST_INFO are not sent before Up; the core does not.
/// Errors:   received() says why the hypervisor broke its dialect: the link is to be closed. What the hypervisor refuses
///           is answered with its error and a sentence that names the dialect's command.
/// Bounds:   commands that are open at the hypervisor are bounded by the core's own ledger; one memory command at a time
///           is in several steps (compare, patch), others wait behind it.
/// Patches:  these hypervisors know none. The bridge keeps the guest's own bytes under each patch, leaves them out of
///           reads and writes, and takes all off when the core asks: when kvmid is killed they stay in the guest.
/// Threads:  none. Time is no input.
/// Source:   docs/dialects.md, docs/decisions/0008-older-dialects.md.
class HypervisorBridge {
 public:
  struct Options {
    std::optional<kvmi1::DialectId> dialect;  ///< none: found by GET_VERSION (never rfc2017)
  };

  HypervisorBridge(const HypervisorHello& hello, Options options);
  ~HypervisorBridge();
  HypervisorBridge(const HypervisorBridge&) = delete;
  HypervisorBridge& operator=(const HypervisorBridge&) = delete;

  void send(const Command& command, Seq seq, ByteBuffer& wire);
  void send(const EventReply& reply, Seq seq, ByteBuffer& wire);
  Result<void, std::string> received(const Frame& frame, ByteBuffer& wire);

  /// Messages for the core. Events come with the actions that can be carried out on this hypervisor.
  [[nodiscard]] PassedQueue<Upward>& up();
  /// UNHOOK was answered: closing is how these dialects confirm it.
  [[nodiscard]] bool let_go() const;

  /// What is spoken; none before it is known.
  [[nodiscard]] std::optional<kvmi1::DialectId> dialect() const;
  /// The largest payload that the hypervisor may send.
  [[nodiscard]] std::size_t payload_max() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmid::bridge
