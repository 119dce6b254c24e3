// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "daemon/io/services.h"
#include "daemon/io/shared_ram.h"
#include "daemon/io/snapshot.h"

namespace kvmid::bridge {
struct ToolRights;
}

namespace kvmid::io {

class Connection;
class Shard;

/// One guest on its shard: the machine that decides, and the sockets of its hypervisor and its agents.
///
/// Purpose:  carries what arrives to the machine and performs the effects, in order; decides nothing itself.
/// Shapes:   each wakeup of a socket or of the timer is a step: inputs, effects, then one write per peer concerned.
/// Errors:   a peer whose socket fails, or who does not read, is lost to the machine at the end of the step.
/// Threads:  made anywhere; every other call on the shard's thread.
/// Lifetime: shared by the shard and the registry; `shard` and `services` outlive it. A guest without hypervisor and
///           agents is dropped by its shard.
class GuestSession : public std::enable_shared_from_this<GuestSession> {
 public:
  GuestSession(Shard& shard, unsigned shard_number, const HypervisorHello& hello, const Services& services);
  ~GuestSession();
  GuestSession(const GuestSession&) = delete;
  GuestSession& operator=(const GuestSession&) = delete;

  [[nodiscard]] Shard& shard() { return shard_; }

  void link(HypervisorArrival arrival);
  /// Sends the welcome, or the refusal. A tool that was dialed gets neither: it is served, or closed.
  void attach(AgentArrival arrival);
  /// That agent is let go, if it is still there.
  void dismiss(AgentId id, std::string_view reason);
  void on_time(core::TimePoint now);
  /// Every agent's grant is found anew: rights are withdrawn, quotas changed, and who has no grant is closed.
  PolicyEffect apply(const core::Policy& policy, const core::GuestLimits& limits);
  [[nodiscard]] std::optional<core::TimePoint> next_deadline() const;
  /// Everything is withdrawn from the guest, then every connection closed and the session dropped.
  void stop();
  /// No hypervisor and no agent: it can be dropped.
  [[nodiscard]] bool idle() const { return !hypervisor_ && agents_.empty(); }
  /// The shard let go of it: nothing can attach any more.
  void mark_dropped() { dropped_ = true; }

  [[nodiscard]] const Uuid& uuid() const { return machine_.uuid(); }
  [[nodiscard]] const core::GuestCounters& counters() const { return machine_.counters(); }
  [[nodiscard]] GuestSnapshot snapshot() const;

 private:
  class AgentLink;
  class HypervisorLink;

  void perform();
  void perform_effects();
  void finish_step();
  void flush_dirty();
  void drop_lost_agents();
  void drop_lost_hypervisor();
  void close_everything();

  [[nodiscard]] AgentLink* find(AgentId id);
  [[nodiscard]] AgentLink* writable(AgentId id);
  void queued(AgentLink& agent);
  void lose(AgentLink& agent, std::string_view reason, bool flush_first);
  void lose_hypervisor(OffReason reason, std::string_view text, bool flush_first);

  template <class Message>
  void send_to_hypervisor(const Message& message, Seq seq);
  void hypervisor_queued();
  template <class Message>
  void deliver(AgentLink& agent, const Message& message, Seq seq);
  void deliver(AgentLink& agent, const Notice& notice);
  // guest_bridges.cpp: peers of older dialects
  bool feed_from_bridges();
  void serve_upward(Seq seq, const Upward& message);
  void serve_downward(AgentLink& agent, Seq seq, const Downward& message);
  void older_hypervisor_sent(const Frame& frame);
  void tool_sent(AgentLink& agent, const Frame& frame);
  void bridge_wrote(AgentLink& agent, std::size_t size_before);
  void tool_broke(AgentLink& agent, const std::string& text);
  void tool_guest_off(AgentLink& agent, OffReason reason);
  void tell_dialect();
  void close_late_tools(core::TimePoint now);
  void refuse_dialed(const AgentArrival& arrival, std::string_view step, std::string_view text);
  [[nodiscard]] bool tools_leaving() const;
  [[nodiscard]] bridge::ToolRights rights_of(const core::Grant& grant) const;
  void send_event(const core::SendEvent& effect);
  void send_guest_on(AgentId id);
  void send_guest_off(const core::SendGuestOff& effect);
  // guest_ram.cpp
  void map_ram(const HypervisorHello& hello, UniqueFd fd);
  void answer_read(const core::ReadRam& effect);
  void answer_tool_read(AgentLink& agent, const core::ReadRam& effect, CommandReply& reply);
  void answer_grant(const core::GrantRam& effect);
  void revoke_ram(AgentId id);
  void refuse_for_backlog(AgentLink& agent, Seq seq, const Command& command);
  void report(const core::Report& report);
  void log_fact(const core::Report& report);
  // guest_witness.cpp
  void audit_fact(const core::Report& report);
  void audit_agent(AuditKind kind, const AgentLink& agent, std::string_view reason);
  void audit_refusal(const AgentArrival& arrival, const core::Refusal& refusal);
  void audit_hypervisor(AuditKind kind, std::string_view reason);
  [[nodiscard]] AuditRecord audit_record(AuditKind kind) const;
  void tap_event(const Event& event);
  void tap_outcome(const core::SendEventReply& effect);
  void tap_guest(bool on, OffReason reason);
  [[nodiscard]] kvmi_welcome welcome_for(const AgentArrival& arrival) const;

  Shard& shard_;
  const unsigned shard_number_;
  const Services& services_;
  core::GuestMachine machine_;
  core::Effects effects_;   ///< reused: warm, a step allocates nothing
  Event event_scratch_;     ///< an event as one agent gets it
  std::shared_ptr<const GuestLabel> label_;  ///< made when somebody watches
  std::unique_ptr<HypervisorLink> hypervisor_;
  core::Peer last_hypervisor_;
  std::string_view last_dialect_ = "kvmi2";
  std::int64_t start_time_ = 0;
  std::unique_ptr<SharedRam> ram_;  ///< of that hypervisor; null: it shares none
  std::vector<std::unique_ptr<AgentLink>> agents_;
  std::size_t tools_ = 0;  ///< agents of older dialects
  std::vector<Connection*> dirty_;  ///< have something to write since the step began
  bool agents_lost_ = false;
  bool stopping_ = false;
  bool dropped_ = false;
};

}  // namespace kvmid::io
