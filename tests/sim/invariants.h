// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What must hold of a guest, whatever happens.
///
/// Purpose:  stands where the shell stands: sees every input of the core and every effect, in order, keeps by itself
/// what
///           follows from them (who wishes what, who owes what), and compares that with the core and with the
///           hypervisor.
/// Shapes:   *_in() before an input, effects() with what it made, check() after every step.
/// Errors:   Violation with the name of the invariant:
///             I1 each event is answered once, in time, with an action that it takes, as its deciders said
///             I2 the hypervisor has the union of confirmed wishes, and is never told what nobody wishes
///             I3 page rights are the AND of all views
///             I4 nothing of a departed agent remains
///             I5 an agent sees only what it has a right to, and what is meant for it
///             I6 accounts say what is held
///             I7 each command is answered once
///             I8 no hit of a patch is lost, or given to the guest
///             I9 a cookie is of the latest state: a write that is based on it is accepted only if nothing changed
///             since
/// Bounds:   everything is kept per vCPU, agent and open command; nothing grows with the length of the run.

#include <optional>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "tests/sim/cookies.h"
#include "tests/sim/counts.h"
#include "tests/sim/model_hypervisor.h"
#include "tests/sim/shapes.h"

namespace kvmid::sim {

class Watch {
 public:
  Watch(ModelHypervisor& hypervisor, Counts& counts, Duration command_timeout)
      : hypervisor_(hypervisor), counts_(counts), command_timeout_(command_timeout) {}

  // ---- inputs ----
  void connect_in(bool another_guest);
  void link_lost_in();
  void event_in(Seq seq, const Event& event, TimePoint now);
  void reply_in(Seq seq, const CommandReply& reply);
  void map_in(AddressSpace space);
  void garbage_in() { garbage_ = true; }
  void attached(AgentId id, const core::Grant& grant, std::uint32_t flags);
  void lost_in(AgentId id);
  void message_in(AgentId id, Seq seq, const Downward& message);
  void malformed_in(AgentId id, Seq seq, std::uint16_t command);
  void grant_in(AgentId id, const core::Grant& grant, const core::GuestMachine& machine);
  void grant_lost_in(AgentId id);
  void stop_in();

  /// Not an input of the core: the guest itself has done something.
  void vcpu_ran(unsigned index) const;

  // ---- effects, and the state after them ----
  void effects(const core::Effects& effects, const core::GuestMachine& machine, TimePoint now);
  void check(const core::GuestMachine& machine, TimePoint now);

  /// Its wishes are not known any more (something was revoked without saying what): it is to be let go.
  [[nodiscard]] bool is_uncertain(AgentId id) const;
  [[nodiscard]] bool link_up() const { return link_up_; }
  [[nodiscard]] bool unhooking() const { return unhook_.has_value(); }
  /// The core has closed the link since the last connect.
  [[nodiscard]] bool link_closed() const { return link_closed_; }

 private:
  struct Pending {
    Seq seq;
    std::uint16_t id = 0;
    bool is_wish = false;
    Wish wish;
    std::size_t read_bytes = 0;
    Order asked{};
    AddressSpace space{};  ///< of a read or a write
    std::uint64_t gpa = 0;
    std::size_t bytes = 0;
    bool has_cookie = false;
    bool is_stale = false;  ///< its cookie was, when it came
  };
  struct Agent {
    AgentId id;
    core::Grant grant;
    std::uint32_t flags = 0;
    bool closing = false;
    bool uncertain = false;
    Wishes has;
    std::array<std::array<std::uint32_t, kEventCount>, kVcpus> filters{};  ///< numbers of filter_copies; 0: none
    std::vector<FilterCopy> filter_copies;
    std::vector<Pending> pending;
    std::array<std::uint32_t, kEventCount> missed{};  ///< in a row, by kind, as EXPIRED said
    std::uint64_t demoted = 0;                        ///< bits of kinds
    std::array<unsigned, kVcpus> pauses_asked{};
    std::array<unsigned, kVcpus> pauses_told{};
  };
  struct Decider {
    AgentId id;
    unsigned owed = 0;
    unsigned voted = 0;
    bool defaulted = false;
    bool tentative = false;  ///< the vote of this input, unless it is refused
    bool step_over = false;
    bool with_cookie = false;
    bool cookie_stale = false;  ///< something had changed when the vote came
    Action action{};            ///< the strictest it said
    Action action_before{};     ///< without the vote of this input
    Action default_action{};
  };
  struct OpenEvent {
    Seq seq;
    Seq agents_seq;
    Event event;
    Order came{};
    TimePoint arrived{};
    TimePoint limit{};
    bool through_patch = false;
    bool maybe_at_patch = false;  ///< another place that is patched, or may be by now
    bool uncertain = false;       ///< filters or a changed policy have a say in it
    bool seen_in_window = false;
    Duration hypervisor_busy{};
    std::optional<Action> outcome;
    std::vector<Decider> deciders;
    std::vector<AgentId> told;
    std::vector<AgentId> outcomes_told;
    std::vector<AgentId> owners;  ///< of the patch that was hit, at that time
  };
  /// From a hit of a patch until its step is over: patches may be lifted, and replies kept back.
  struct Window {
    bool open = false;
    bool replied = false;
    bool closing = false;  ///< the step is over; what was lifted is placed again
    TimePoint since{};
  };
  struct OpenCommand {
    Seq seq;
    TimePoint since{};
  };
  enum class Input : std::uint8_t { Other, Hypervisor, Agent, GrantChanged, GrantLost };

  Agent* find(AgentId id);
  Agent& must_find(AgentId id, std::string_view what);
  void enforce(Agent& agent, const core::GuestMachine& machine);
  /// The agent has it, or has asked for it and was not answered yet. `has(Wishes)`, `asks(Wish)`.
  template <class Has, class Asks>
  static bool wishes(const Agent& agent, Has&& has, Asks&& asks) {
    if (has(agent.has)) return true;
    for (const Pending& pending : agent.pending)
      if (pending.is_wish && asks(pending.wish)) return true;
    return false;
  }
  [[nodiscard]] bool anybody_patches(std::uint64_t gpa) const;
  [[nodiscard]] bool one_still_owns(const std::vector<AgentId>& owners, std::uint64_t gpa) const;

  void on_command(const core::SendCommand& e, TimePoint now);
  void on_event_reply(const core::SendEventReply& e, TimePoint now);
  void on_event(const core::SendEvent& e, TimePoint now);
  void on_reply(const core::SendReply& e);
  void on_notice(const core::SendNotice& e);
  void on_close_agent(const core::CloseAgent& e);
  void on_link_closed();
  void give_up_votes();
  void granted(Agent& agent, const Pending& pending, const CommandReply& reply);

  // invariants_events.cpp, invariants_wishes.cpp: one function for each thing that must hold
  void i1_answer_is_due(const OpenEvent* open, const core::SendEventReply& e, TimePoint now) const;
  void i1_answer_is_the_verdict(const OpenEvent& open, Action action) const;
  void i1_nobody_waits_too_long(TimePoint now) const;
  [[nodiscard]] Duration kept_for(const OpenEvent& open) const;
  void i2_granted_patch_is_placed(const Agent& agent, const Wish& wish) const;
  void i2_somebody_wishes(const Command& command) const;
  void i2_union_is_told(const Wishes& expected) const;
  void i3_rights_are_the_and(const Wishes& expected) const;
  void i4_the_gone_are_not_waited_for(const core::GuestInfo& info);
  void i4_no_patch_of_the_gone_remains();
  void i4_nothing_remains(std::string_view when) const;
  void i5_may_see(const Agent& agent, const OpenEvent& open, bool decide) const;
  void i5_read_is_what_was_read(const Pending& pending, const CommandReply& reply) const;
  void i6_accounts(const core::GuestInfo& info);
  void i7_all_are_answered() const;
  void i9_cookie_is_new(const Pending& pending) const;
  void i9_vote_is_of_the_latest_state(const OpenEvent& open, Action action) const;
  void i9_note_reply(const Pending& pending, const CommandReply& reply);
  void i8_hit_is_not_given_to_the_guest(const OpenEvent& open, Action action) const;
  [[nodiscard]] static bool steps_over_own(const OpenEvent& open, Action verdict, bool step_over);
  [[nodiscard]] std::optional<Action> verdict_of(const OpenEvent& open, bool& step_over) const;
  [[nodiscard]] bool in_window(TimePoint now);
  [[nodiscard]] Wishes union_of_agents() const;

  ModelHypervisor& hypervisor_;
  Counts& counts_;
  Duration command_timeout_;
  std::vector<Agent> agents_;
  std::array<std::optional<OpenEvent>, kVcpus> open_;
  std::array<std::optional<OpenEvent>, kVcpus> ended_;  ///< the last one, for OUTCOME
  std::array<Window, kVcpus> windows_{};
  std::array<std::vector<AgentId>, kVcpus> step_owners_;  ///< of the patch that the vCPU is to step over
  std::vector<OpenCommand> commands_;
  std::vector<std::uint64_t> gone_patches_;  ///< places where agents that are gone had patches, until all is quiet
  Cookies cookies_;
  Order order_ = 1;               ///< of the input under way
  std::vector<Agent> departing_;  ///< went while a change was under way: the rest of it is told, and taken back
  std::optional<Seq> unhook_;
  bool link_up_ = false;
  bool link_closed_ = false;
  bool asking_ = false;
  bool stopping_ = false;
  bool garbage_ = false;  ///< what was just delivered must cost the link
  bool another_guest_ = false;
  bool told_back_refused_ = false;
  TimePoint busy_since_{};
  bool told_all_ = false;  ///< it was quiet since the link is up: the hypervisor has the union
  bool telling_ = false;   ///< commands were open before the input under way
  std::uint32_t filter_numbers_ = 0;

  // of the input under way
  Input input_{};
  AgentId input_agent_{};
  Seq input_seq_{};
  bool input_error_ = false;
  std::vector<std::byte> read_data_;
  bool has_read_data_ = false;
};

}  // namespace kvmid::sim
