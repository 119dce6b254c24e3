// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "bridge/hypervisor_link.h"
#include "protocol/handshake.h"

namespace kvmid::bridge {

/// The questions of a new link: what is spoken, what is allowed, what the guest has.
///
/// Purpose:  GET_VERSION and GET_GUEST_INFO of KVMI 2 are answered from one round of questions.
/// States:   Idle -> Version (one question) -> Facts (all others at once) -> Done.
/// Errors:   a hypervisor that is of no known dialect, does not say how many vCPUs there are, or has none. What it does
///           not say otherwise is left at its default: a vCPU that has not started cannot be asked.
class HypervisorStart {
 public:
  HypervisorStart(HypervisorLink& link, std::uint64_t max_gpa) : link_(link), max_gpa_(max_gpa) {}

  void begin(ByteBuffer& wire);
  /// The dialect is not known: this must be the answer to GET_VERSION, and says it.
  Kept find_dialect(const Frame& frame);
  Kept replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire);
  [[nodiscard]] bool is_idle() const { return state_ == State::Idle; }
  [[nodiscard]] bool is_done() const { return state_ == State::Done; }

 private:
  enum class State : std::uint8_t { Idle, Version, Facts, Done };
  Kept version_told(const Asked& asked, const kvmi1::GetVersionReply* version, ByteBuffer& wire);
  Kept fact_told(const Asked& asked, const kvmi1::Reply& reply);
  void ask(const kvmi1::Command& command, ByteBuffer& wire, std::uint32_t about = 0);
  void ask_what_is_allowed(ByteBuffer& wire);
  Kept finish();

  HypervisorLink& link_;
  std::uint64_t max_gpa_;  ///< of the handshake; 0: it says nothing
  State state_ = State::Idle;
  Seq version_seq_;  ///< of the GET_VERSION that finds the dialect
  unsigned open_ = 0;
};

}  // namespace kvmid::bridge
