// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

/// What an agent's vote is worth.
struct Voter {
  AgentSlot slot = 0;
  AgentId id;
  std::uint32_t priority = 0;
  Action default_action = Action::Allow;
};

/// How an event ended.
struct Verdict {
  EventReply reply;            ///< for the hypervisor
  Seq hypervisor_seq;          ///< what it carries
  Seq event_seq;               ///< what agents know the event by
  AgentId decided_by;          ///< whose action it is; 0: no agent decided
  unsigned votes = 0;          ///< agents whose own reply counted
  unsigned defaults = 0;       ///< agents whose default was taken instead
  unsigned filtered = 0;       ///< agents whose filter answered for them
  AgentSet with_cookie;        ///< agents whose own reply carried one
  AgentSet seen;               ///< agents that were told of the event
  AgentId value_by;            ///< whose value the reply carries; 0: it carries none
  AgentId registers_by;        ///< whose registers are loaded; 0: none are
  bool set_registers = false;  ///< `regs` are to be loaded just before the reply
  kvmi_x86_regs regs{};
  AgentId xsave_by;  ///< whose `xsave` is loaded; 0: none is
  Bytes xsave;       ///< lives until the next begin()
};

/// One vCPU: Running -> Waiting -> Running. Merges the replies of several deciders into one.
///
/// Purpose:  the strictest action wins (CRASH > SKIP > RETRY > ALLOW); a changed value comes from the voter of the
/// highest
///           priority that gave one (of equals, from who attached first); a silent voter's default counts at its
///           deadline.
/// Shapes:   begin() -> vote()/default_vote()... -> verdict() once nobody owes -> finish().
/// Errors:   callers check owes() first; a vote of somebody who owes none is a broken invariant and is ignored.
/// Threads:  none of its own.
/// Lifetime: event() is valid from begin() to the next begin().
/// Source:   docs/architecture.md, "Merge"
class VcpuMachine {
 public:
  [[nodiscard]] bool waiting() const { return waiting_; }
  [[nodiscard]] const Event& event() const { return event_; }
  [[nodiscard]] Seq event_seq() const { return event_seq_; }
  [[nodiscard]] TimePoint since() const { return since_; }

  /// Running --event--> Waiting. Nobody owes a reply yet. REQUIRES: !waiting().
  /// `cookie` is what the event carries for agents: the generation of its address space.
  void begin(const Event& event, Seq hypervisor_seq, Seq event_seq, std::uint64_t cookie, TimePoint now);
  /// The agent was told of the event.
  void tell(AgentSlot slot) { seen_.add(slot); }
  /// The agent owes one (more) reply until `deadline`. REQUIRES: waiting().
  void owe(AgentSlot slot, TimePoint deadline);

  [[nodiscard]] bool owes(AgentSlot slot) const { return pending_.has(slot); }
  /// How many replies the agent owes: more than one only for a pause that it asked for several times.
  [[nodiscard]] unsigned owed(AgentSlot slot) const { return pending_.has(slot) ? owed_[slot] : 0U; }
  [[nodiscard]] AgentSet pending() const { return pending_; }
  /// The agent owed a reply to this event, now or before.
  [[nodiscard]] bool was_owed(AgentSlot slot) const { return asked_.has(slot); }

  /// Who said what to the event, in the order it came. Valid from begin() to the next begin().
  [[nodiscard]] std::span<const Vote> votes() const { return said_; }

  /// SET_REGISTERS of an agent that owes a reply: kept until its vote, replaced by a later one.
  void stage_registers(AgentSlot slot, const kvmi_x86_regs& regs);
  /// SET_XSAVE, likewise; the area is copied.
  void stage_xsave(AgentSlot slot, Bytes area);
  /// Bytes of XSAVE areas that are kept for the agent.
  [[nodiscard]] std::size_t staged_bytes(AgentSlot slot) const;
  /// One owed reply. With several owed (counted pauses) the action counts and the others stay owed.
  void vote(const Voter& voter, const EventReply& reply);
  /// The agent's default in place of all that it still owes; what it staged is dropped. Returns the action taken.
  Action default_vote(const Voter& voter);

  /// What the agent's filter answers for it; it was not told of the event and owes nothing. REQUIRES: !owes(slot).
  void filter_vote(const Voter& voter, Action action);

  /// One owed reply less, without a vote while others are owed; the last one ends in the default.
  void release_one(const Voter& voter);
  /// The agent is gone: the place that it had means somebody else from now on. REQUIRES: !owes(slot).
  void forget(AgentSlot slot);

  /// Agents whose deadline is not after `now`.
  [[nodiscard]] AgentSet expired(TimePoint now) const;
  /// The earliest deadline of those who owe; nullopt: nobody does.
  [[nodiscard]] std::optional<TimePoint> next_deadline() const;

  /// What was said and staged is based on memory that has changed since: it is tried again, and nothing is loaded. Of an
  /// event that takes no RETRY the mildest action is left. Returns whether RETRY it is. REQUIRES: waiting().
  bool turn_stale(Verdict& verdict) const;
  /// Waiting --last vote--> Running: what to answer. REQUIRES: waiting() and pending() is empty.
  [[nodiscard]] Verdict finish();
  /// Waiting --link lost--> Running: there is nobody to answer to.
  void abandon();

 private:
  struct Staged {
    AgentSlot slot = 0;
    std::optional<kvmi_x86_regs> regs;
    std::optional<std::vector<std::byte>> xsave;
  };
  /// Who gave a value, so that a later voter can be measured against it.
  struct Source {
    bool given = false;
    std::uint32_t priority = 0;
    AgentId id;
    [[nodiscard]] bool loses_to(const Voter& voter) const {
      return !given || voter.priority > priority || (voter.priority == priority && voter.id < id);
    }
    void take(const Voter& voter) { *this = Source{true, voter.priority, voter.id}; }
  };
  void note(AgentId agent, Action action, bool by_default);
  void merge_action(const Voter& voter, Action action);
  void merge_cookie(const EventReply& reply);
  void merge_staged(const Voter& voter);
  [[nodiscard]] Staged& staged_of(AgentSlot slot);
  [[nodiscard]] Action allowed(Action action) const;

  bool waiting_ = false;
  Event event_;
  Seq hypervisor_seq_;
  Seq event_seq_;
  TimePoint since_;
  AgentSet pending_;
  AgentSet asked_;
  AgentSet seen_;
  AgentSet with_cookie_;
  std::array<TimePoint, kAgentsPerGuestMax> deadlines_{};
  std::array<std::uint16_t, kAgentsPerGuestMax> owed_{};
  std::vector<Staged> staged_;

  EventReply merged_;
  Source action_from_;
  Source value_from_;
  Source regs_from_;
  kvmi_x86_regs regs_{};
  Source xsave_from_;
  std::vector<std::byte> xsave_;
  std::vector<Vote> said_;
  unsigned votes_ = 0;
  unsigned filtered_ = 0;
  unsigned defaults_ = 0;
};

}  // namespace kvmid::core
