// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/account.h"
#include "daemon/core/effects.h"
#include "daemon/core/filter.h"
#include "daemon/core/generations.h"
#include "daemon/core/ledger.h"
#include "daemon/core/page_access.h"
#include "daemon/core/patches.h"
#include "daemon/core/policy.h"
#include "daemon/core/subscriptions.h"
#include "daemon/core/types.h"
#include "daemon/core/vcpu_machine.h"
#include "protocol/dialect.h"
#include "protocol/handshake.h"

namespace kvmid::core {

struct GuestLimits {
  Duration command_timeout = std::chrono::seconds(30);  ///< a hypervisor that is silent for longer is disconnected
};

/// What happened in a guest so far. Counts only grow.
struct GuestCounters {
  std::uint64_t events = 0;      ///< received from the hypervisor
  std::uint64_t decided = 0;     ///< ended with at least one agent's own vote
  std::uint64_t merged = 0;      ///< of those: two votes or more
  std::uint64_t unattended = 0;  ///< answered by kvmid alone: nobody decides such events
  std::uint64_t expired = 0;     ///< deadlines that agents missed
  std::uint64_t demoted = 0;     ///< times that one made an agent an observer of a kind of event
  std::uint64_t late_replies = 0;
  std::uint64_t bad_replies = 0;        ///< not owed, not allowed, malformed
  std::uint64_t agents_lost_owing = 0;  ///< agents that went while they owed a reply
  std::uint64_t skipped = 0;            ///< verdicts by action
  std::uint64_t retried = 0;
  std::uint64_t crashed = 0;
  std::uint64_t filtered = 0;          ///< answers that agents' filters gave in their place
  std::uint64_t stepped_over = 0;      ///< patches
  std::uint64_t map_changes = 0;       ///< that the hypervisor told of
  std::uint64_t commands = 0;          ///< of agents
  std::uint64_t commands_refused = 0;  ///< answered with an error by kvmid itself
  std::uint64_t commands_forwarded = 0;
  std::uint64_t protocol_errors = 0;  ///< of hypervisors
};

/// What an agent is, for people.
struct AgentInfo {
  AgentId id;
  std::string name;
  std::string rule;
  Role role{};
  std::uint32_t priority = 0;
  std::chrono::milliseconds deadline{};
  EventSet events{};          ///< on any vCPU
  std::uint32_t strikes = 0;  ///< missed in a row, of the kind of event where they are most
  EventSet demoted{};         ///< what it only observes for it
  std::uint64_t requests_open = 0;
  std::uint64_t expired = 0;
  std::uint64_t pages = 0;
  std::size_t patches = 0;
  std::size_t filters = 0;
  std::uint64_t filtered = 0;  ///< events that its filters answered, or kept from it
};
struct VcpuInfo {
  bool waiting = false;
  bool held = false;  ///< its event is decided; the answer is kept back while a vCPU steps over a patch
  EventKind event{};
  Seq event_seq;
  TimePoint since;
  std::vector<AgentId> waits_for;
};
struct GuestInfo {
  bool online = false;
  GetVersionReply version;
  GetGuestInfoReply facts;
  GuestCounters counters;
  std::vector<VcpuInfo> vcpus;
  std::vector<AgentInfo> agents;
};

/// Why something asked for is not done: an attach or a command.
struct Refusal {
  ErrorCode error{};
  std::string_view text;  ///< a constant
};

/// One guest: its link, its vCPUs, its agents, and every decision about them.
///
/// Purpose:  takes what happened (a message, an attach, a loss, time) and appends what is to be done about it.
/// Shapes:   inputs are the on_*() calls and attach(); outputs are Effects, to be performed in order.
/// Units:    time is an argument of every input; next_deadline() says when on_time() is wanted.
/// Errors:   a hypervisor's fault ends in CloseHypervisor, an agent's in an error reply, a notice or CloseAgent.
/// Threads:  none of its own; all calls on the guest's shard.
/// Lifetime: effects hold views into the machine and into the input: perform them before the next call.
/// Source:   docs/architecture.md; PROTOCOL.md for what each command answers.
class GuestMachine {
 public:
  /// Cookies begin at `cookie_seed` (core::Generations): give what is larger than in any former life of the guest.
  GuestMachine(HypervisorHello hello, GuestLimits limits, std::uint64_t cookie_seed = 1);

  // ---- the hypervisor's side ----
  /// Unlinked --connected--> Asking: GET_VERSION goes out; GuestReady follows when the answers are in.
  void on_hypervisor_connected(const HypervisorHello& hello, TimePoint now, Effects& out);
  void on_hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out);
  void on_hypervisor_malformed(const DecodeError& error, TimePoint now, Effects& out);
  /// Any --lost--> Unlinked: open commands get KVMI_ENODEV, waits end, agents are told GUEST_OFF and stay attached.
  void on_hypervisor_lost(OffReason reason, TimePoint now, Effects& out);

  // ---- the agents' side ----
  /// A place for the agent; `flags` are KVMI_HELLO_*. The welcome's facts follow from grant and info.
  Result<void, Refusal> attach(AgentId id, std::string_view name, const Grant& grant, std::uint32_t flags);
  void on_agent_message(AgentId id, Seq seq, const Downward& message, TimePoint now, Effects& out);
  /// A well-framed message that could not be decoded; `text` is describe(error), alive until the effects are performed.
  void on_agent_malformed(AgentId id, Seq seq, const DecodeError& error, std::string_view text, TimePoint now,
                          Effects& out);
  /// The agent is gone: its votes, rights, wishes and pauses are withdrawn before anything else.
  void on_agent_lost(AgentId id, TimePoint now, Effects& out);
  /// Policy changed. Rights that are lost are withdrawn and the agent is told.
  void on_grant_changed(AgentId id, const Grant& grant, TimePoint now, Effects& out);

  /// Policy changed, and no rule knows the agent any more: it is told and closed; on_agent_lost() follows as for every
  /// agent that goes.
  void on_grant_lost(AgentId id, TimePoint now, Effects& out);
  /// The shell has mapped that many bytes of guest RAM (offset = GPA), or none: before on_hypervisor_connected().
  void set_ram(std::uint64_t bytes) { ram_bytes_ = bytes; }
  /// What a cookie of the normal address space is now.
  [[nodiscard]] std::uint64_t generation() const { return generations(AddressSpace::Normal).current(); }
  /// Limits changed; what is under way keeps its old ones.
  void set_limits(GuestLimits limits) { limits_ = limits; }

  void on_time(TimePoint now, Effects& out);
  [[nodiscard]] std::optional<TimePoint> next_deadline() const;

  /// Everything is withdrawn from the guest; agents are told. settled() says when the hypervisor confirmed it all.
  void stop(TimePoint now, Effects& out);
  /// Nothing is told to the hypervisor, no vCPU waits, no command is open.
  [[nodiscard]] bool settled() const;

  // ---- what it knows ----
  [[nodiscard]] const Uuid& uuid() const { return hello_.uuid; }
  [[nodiscard]] const std::string& name() const { return hello_.name; }
  [[nodiscard]] bool online() const { return link_ == Link::Up; }
  [[nodiscard]] bool has_agents() const { return present_.any(); }
  [[nodiscard]] const GetGuestInfoReply& facts() const { return facts_; }
  /// Commands and events that an agent with this grant can use on this guest.
  [[nodiscard]] CommandSet commands_for(const Grant& grant) const;
  [[nodiscard]] EventSet events_for(const Grant& grant) const;
  [[nodiscard]] const GuestCounters& counters() const { return counters_; }
  [[nodiscard]] GuestInfo info() const;
  /// What agents know the last event of that vCPU by; 0: there was none.
  [[nodiscard]] Seq event_seq_of(VcpuId vcpu) const {
    return vcpu.value < vcpus_.size() ? vcpus_[vcpu.value].event_seq() : Seq{};
  }

 private:
  enum class Link : std::uint8_t { Down, AskingVersion, AskingInfo, Up };

  struct Agent {
    AgentId id;
    std::string name;
    Grant grant;
    std::uint32_t flags = 0;
    std::array<std::uint32_t, kEventCount> strikes{};  ///< deadlines missed in a row, by kind of event
    std::uint64_t expired = 0;
    std::uint64_t filtered = 0;
    EventSet demoted{};     ///< kinds that it may not decide any more
    bool told_off = false;  ///< knows that its guest is away
    Account requests;       ///< commands without an answer yet
  };

  /// One command of the change under way.
  struct WishPart {
    Command command;
    VcpuId vcpu;
    bool takes_away = false;  ///< from the union: that the hypervisor refuses it is nobody's error
    bool alone = false;       ///< is sent when all before it are confirmed
  };
  /// A change of wishes; they are carried out one after another, so the union is never guessed.
  struct WishChange {
    AgentSlot slot = 0;
    AgentId agent{};           ///< 0: nobody waits for an answer (a withdrawal)
    std::uint64_t ticket = 0;  ///< of such a one: told_done_ when it is done
    Seq seq{};
    Command command{};                              ///< with agent 0: only bring the hypervisor to the union
    std::vector<kvmi_page_access_entry> entries{};  ///< SET_PAGE_ACCESS: its own copy
    std::vector<std::byte> bytes{};                 ///< WRITE_PHYSICAL of a patch: data, likewise
    std::vector<std::byte> expected{};
  };
  /// What a change did, to be undone if the hypervisor refuses.
  struct Undo {
    struct EventRole {
      VcpuId vcpu;
      EventKind kind{};
      std::optional<Role> before;
    };
    std::vector<EventRole> roles;
    std::vector<VcpuId> vcpus;  ///< where a CR, MSR, single step or pause was changed
    std::optional<Patches::Before> patch;
    struct PageRights {
      PageRange range;
      std::uint8_t before = kRwx;
    };
    std::vector<PageRights> pages;
  };

  // guest_machine.cpp: link, agents, time
  void hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out);
  [[nodiscard]] std::optional<AgentSlot> find(AgentId id) const;
  void link_reply(const CommandReply& reply, const OpenCommand& open, TimePoint now, Effects& out);
  void map_changed(const MemoryMapChanged& change, TimePoint now, Effects& out);
  void tell_guest_on(Effects& out);
  void break_link(std::string_view text, Seq seq, VcpuId vcpu, Effects& out);
  void drop_agents(std::string_view text, Effects& out);
  void send_off(AgentSlot slot, OffReason reason, std::string_view text, Effects& out);
  bool enforce_grant(AgentSlot slot);
  void send_revoked(AgentSlot slot, ErrorCode error, std::string_view text, Effects& out);
  void fail_open_commands(ErrorCode error, std::string_view text, Effects& out);
  std::optional<Seq> send_command(const Command& command, const OpenCommand& open, TimePoint now, Effects& out);

  // guest_events.cpp: events, votes, verdicts
  void event_arrived(Seq seq, const Event& event, TimePoint now, Effects& out);
  struct Audience {
    AgentSet deciders;
    AgentSet observers;
    AgentSet filtered;  ///< would decide; their filters answer for them
  };
  [[nodiscard]] Audience audience(const Event& event) const;
  void apply_filters(const Event& event, Audience& audience);
  [[nodiscard]] Action unattended_action(const Event& event) const;
  void unhook(Seq seq, const Event& event, TimePoint now, Effects& out);
  void tell(AgentSlot slot, VcpuMachine& vcpu, bool decide, TimePoint now, Effects& out);
  void agent_reply(AgentSlot slot, Seq seq, const EventReply& reply, TimePoint now, Effects& out);
  [[nodiscard]] Voter voter(AgentSlot slot, const VcpuMachine& machine) const;
  [[nodiscard]] VcpuMachine* owing(AgentSlot slot, Seq seq);
  void refuse_reply(AgentSlot slot, Seq seq, VcpuId vcpu, EventKind kind, ErrorCode error, std::string_view text,
                    Effects& out);
  void missed(AgentSlot slot, VcpuMachine& vcpu, Effects& out);
  void demote(AgentSlot slot, EventKind kind, Effects& out);
  void give_up_votes(TimePoint now, Effects& out);
  /// f(VcpuId, VcpuMachine&) may end the wait of the vCPU it is called for.
  template <class F>
  void for_each_waiting(F&& f) {
    for (std::size_t word = 0; word < waiting_.size(); ++word)
      for (std::uint64_t rest = waiting_[word]; rest != 0; rest &= rest - 1) {
        const auto index = word * 64 + static_cast<unsigned>(std::countr_zero(rest));
        f(VcpuId{static_cast<std::uint16_t>(index)}, vcpus_[index]);
      }
  }
  void load_staged(VcpuId vcpu, const Verdict& verdict, TimePoint now, Effects& out);
  void staged_refused(const OpenCommand& open, ErrorCode error, std::string_view text, Effects& out);
  void settle(VcpuMachine& vcpu, TimePoint now, Effects& out);
  void let_go(VcpuId vcpu, const Verdict& verdict, TimePoint now, Effects& out);
  void mark_waiting(VcpuId vcpu, bool waiting);

  // guest_patches.cpp: patches, and stepping over them
  [[nodiscard]] std::optional<Refusal> refusal_of_write(const Grant& grant, const WritePhysical& command) const;
  [[nodiscard]] std::optional<Refusal> refusal_of_patch(AgentSlot slot, const WritePhysical& command) const;
  void apply_patch(AgentSlot slot, const WishChange& change, const WritePhysical& command);
  void add_own_wishes(std::vector<Subscriptions::VcpuUnion>& wanted) const;
  void tell_patches_removed();
  void tell_patches_placed(const WishChange& change);
  void add_patch_part(Gpa gpa, Bytes data, Bytes expected, bool place);
  void note_patch(const WritePhysical& command);
  [[nodiscard]] const Patches::Patch* wanted_patch(Gpa gpa) const;
  void forget_steps();
  bool forget_patches(AgentSlot slot);
  void give_up_patch(Gpa gpa, ErrorCode error, std::string_view text, Effects& out);
  void patch_sent(const WritePhysical& patch);
  void patch_answered(const WritePhysical& patch);
  [[nodiscard]] bool may_be_patched(Gpa gpa) const;
  [[nodiscard]] bool is_wanted(const WritePhysical& patch) const;
  [[nodiscard]] bool waits_for_step(const WishChange& change) const;
  [[nodiscard]] bool on_patch(const Event& event) const;
  [[nodiscard]] bool is_late_hit(const Event& event) const;
  void forget_late_hits(VcpuId vcpu);
  void note_stop(const Event& event, TimePoint now, Effects& out);
  [[nodiscard]] bool can_step() const;
  [[nodiscard]] bool keep_back(const VcpuMachine& machine, Verdict& verdict);
  void let_go_kept(VcpuId vcpu, TimePoint now, Effects& out);
  [[nodiscard]] bool others_stopped() const;
  void begin_step(TimePoint now, Effects& out);
  void lift(bool steps, TimePoint now, Effects& out);
  void place_again(TimePoint now, Effects& out);
  void let_all_go(TimePoint now, Effects& out);
  void hold_refused(VcpuId vcpu, ErrorCode error, Effects& out);
  void step_refused(const Command& command, ErrorCode error, Effects& out);
  void advance_step(TimePoint now, Effects& out);
  void step_on_time(TimePoint now, Effects& out);
  [[nodiscard]] std::optional<TimePoint> step_deadline() const;
  void proceed(TimePoint now, Effects& out);

  // guest_commands.cpp: commands of agents
  void command_arrived(AgentSlot slot, Seq seq, const Command& command, TimePoint now, Effects& out);
  void answer(AgentSlot slot, Seq seq, CommandReply reply, Effects& out);
  void refuse(AgentSlot slot, Seq seq, std::uint16_t id, ErrorCode error, std::string_view text, Effects& out,
              const ReplyBody& body = {});
  bool forward(OpenCommand open, const Command& command, TimePoint now, Effects& out);
  void forward_registers(AgentSlot slot, Seq seq, const GetRegisters& command, TimePoint now, Effects& out);
  // guest_memory.cpp: reads, writes, cookies, and what readers of guest RAM are told
  void read_physical(AgentSlot slot, Seq seq, const ReadPhysical& command, TimePoint now, Effects& out);
  void write_physical(AgentSlot slot, Seq seq, const WritePhysical& command, TimePoint now, Effects& out);
  [[nodiscard]] std::optional<Refusal> refusal_of_cookie(const WritePhysical& command) const;
  [[nodiscard]] bool is_ram(const ReadPhysical& command) const;
  void write_answered(const OpenCommand& open, Effects& out);
  void ask_for_map(TimePoint now, Effects& out);
  void map_known(const CommandReply& reply);
  void grant_ram(AgentSlot slot, Seq seq, Effects& out);
  void publish_patches(Effects& out);
  void forget_ram();
  [[nodiscard]] Generations& generations(AddressSpace space) { return generations_[static_cast<std::size_t>(space)]; }
  [[nodiscard]] const Generations& generations(AddressSpace space) const {
    return generations_[static_cast<std::size_t>(space)];
  }
  void check_cookie(const VcpuMachine& machine, Verdict& verdict, Effects& out);
  void report_granted(AgentSlot slot, Seq seq, const Command& command, Effects& out);
  void set_filter(AgentSlot slot, Seq seq, const SetFilter& command, Effects& out);
  void stage_registers(AgentSlot slot, Seq seq, const SetRegisters& command, Effects& out);
  void stage_xsave(AgentSlot slot, Seq seq, const SetXsave& command, Effects& out);
  [[nodiscard]] std::optional<Refusal> refusal_to_stage(AgentSlot slot, VcpuId vcpu) const;
  [[nodiscard]] std::optional<Refusal> refusal_of(AgentSlot slot, const Command& command) const;
  [[nodiscard]] std::optional<Refusal> refusal_of_events(const Agent& agent, const ControlEvents& command) const;
  [[nodiscard]] std::size_t untracked(AgentSlot slot, const ControlMsr& command) const;

  // guest_wishes.cpp: the union
  void queue_wish(AgentSlot slot, Seq seq, const Command& command, TimePoint now, Effects& out);
  void withdraw(AgentSlot slot, TimePoint now, Effects& out);
  void next_wish(TimePoint now, Effects& out);
  std::uint64_t tell_soon(TimePoint now, Effects& out);
  bool refuse_wish(TimePoint now, Effects& out);
  [[nodiscard]] static Command command_of(const WishChange& change);
  [[nodiscard]] ReplyBody body_of(const WishChange& change, ErrorCode error) const;
  void apply_wish(const WishChange& change, TimePoint now, Effects& out);
  void apply_events(AgentSlot slot, const ControlEvents& command);
  void undo_wish(TimePoint now, Effects& out);
  [[nodiscard]] bool is_present(AgentSlot slot, AgentId id) const;
  [[nodiscard]] bool withdrawing() const { return stopping_ || unhook_.has_value(); }

  // guest_pages.cpp: page rights
  [[nodiscard]] std::optional<Refusal> refusal_of_pages(const GetPageAccess& command) const;
  [[nodiscard]] std::optional<Refusal> refusal_of_pages(AgentSlot slot, const SetPageAccess& command) const;
  void answer_page_access(AgentSlot slot, Seq seq, const GetPageAccess& command, Effects& out);
  void apply_pages(AgentSlot slot, const std::vector<kvmi_page_access_entry>& entries);
  void undo_pages(AgentSlot slot);
  void withdraw_pages(AgentSlot slot);
  AgentSet drop_pages(const SetPageAccess& command);
  void touch_pages(const SetPageAccess& command);
  void touch_all_pages();
  void note_pages_told(const SetPageAccess& command);
  [[nodiscard]] std::vector<kvmi_page_access_entry> tell_pages_given_back();
  void tell_pages(std::vector<kvmi_page_access_entry> entries, bool given_back);

  // guest_union.cpp: what the hypervisor must be told
  void tell_differences();
  void tell_event_differences(const std::vector<Subscriptions::VcpuUnion>& wanted);
  void tell_register_differences(const std::vector<Subscriptions::VcpuUnion>& wanted);
  void add_part(const Command& command, VcpuId vcpu, bool takes_away);
  void send_parts(TimePoint now, Effects& out);
  void drop_unsent_parts();

  // guest_wishes.cpp: what it said to that
  void drop_refused(const WishPart& part, ErrorCode error, Effects& out);
  void wish_confirmed(const OpenCommand& open, const CommandReply& reply, TimePoint now, Effects& out);
  void finish_wish(TimePoint now, Effects& out);
  void pause(AgentSlot slot, VcpuId vcpu, TimePoint now, Effects& out);
  void note_told(const Command& command);
  template <class F>
  void for_each_vcpu(VcpuId vcpu, F&& f) const {
    if (vcpu != kAllVcpus) return f(vcpu);
    for (std::uint16_t i = 0; i < vcpus_.size(); ++i) f(VcpuId{i});
  }

  HypervisorHello hello_;
  GuestLimits limits_;
  Link link_ = Link::Down;
  bool stopping_ = false;
  bool known_ = false;         ///< facts_ and version_ are from a hypervisor, not empty
  std::optional<Seq> unhook_;  ///< the UNHOOK event, to be answered when all is withdrawn
  bool unhook_answered_ = false;
  GetVersionReply version_;
  GetGuestInfoReply facts_;
  GuestCounters counters_;

  std::vector<VcpuMachine> vcpus_;
  std::vector<std::uint64_t> waiting_;  ///< bit set of vCPUs
  std::uint64_t event_counter_ = 0;     ///< its lower half is the seq that agents know an event by

  std::vector<Agent> agents_;  ///< by slot
  AgentSet present_;

  Ledger ledger_;
  Subscriptions subscriptions_{0};
  PageAccess pages_;
  FilterTable filters_{0};
  std::array<Generations, 2> generations_;  ///< by address space

  // Guest RAM that the shell has mapped
  std::uint64_t ram_bytes_ = 0;          ///< 0: none
  std::vector<kvmi_memory_slot> slots_;  ///< of the normal address space; empty: not known
  Seq map_asked_{};                      ///< the last GET_MEMORY_MAP of our own; an older answer is out of date
  struct RamRange {
    Gpa gpa;
    std::uint64_t bytes = 0;
  };
  std::vector<RamRange> changing_;                       ///< writes that are not answered
  std::map<std::uint64_t, std::uint64_t> ram_patches_;   ///< GPA and bytes of what readers were told to be patched
  static constexpr std::uint64_t kNeverPublished = ~std::uint64_t{0};
  std::uint64_t told_patches_changes_ = 0;
  std::uint64_t published_changes_ = kNeverPublished;  ///< of patches: what readers of RAM were told last
  AgentSet ram_granted_;

  // What the hypervisor has confirmed
  std::vector<Subscriptions::VcpuUnion> told_;
  std::vector<bool> anew_;  ///< vCPUs that were created since: they may have forgotten what they were told
  RightsMap told_pages_;
  std::map<std::uint64_t, std::vector<std::byte>> told_patches_;  ///< by GPA
  std::map<std::uint64_t, std::uint64_t> sent_patches_;  ///< GPA and bytes: told, not confirmed: they may be there
  struct PauseState {
    bool asked = false;                 ///< PAUSE_VCPU is out, its event has not come
    bool hold_asked = false;            ///< likewise, for a step of another vCPU
    std::vector<std::uint16_t> counts;  ///< by slot: pauses asked for and not yet owed
  };
  std::vector<PauseState> pauses_;

  Patches patches_;
  /// Places that were patched: a vCPU may have met the patch just before it was taken off.
  struct GonePatch {
    Gpa gpa;
    std::vector<bool> vcpus;  ///< whose late hit is still possible
  };
  std::deque<GonePatch> gone_patches_;
  std::vector<bool> met_patch_;  ///< by vCPU: its breakpoint was a patch, which may be gone when it is decided
  std::vector<bool> own_hit_;    ///< by vCPU: its breakpoint is the guest's own, which a patch covers
  /// Idle -> Holding -> Lifting -> Stepping -> Placing -> Idle; without a step from Lifting to Placing.
  struct StepOver {
    enum class Phase : std::uint8_t { Idle, Holding, Lifting, Stepping, Placing };
    Phase phase = Phase::Idle;
    VcpuId vcpu;
    Gpa gpa;
    bool steps = false;        ///< single step is wanted on `vcpu`
    std::uint64_t ticket = 0;  ///< Lifting, Placing: go on when told_done_ has come so far
    TimePoint until{};         ///< Holding, Stepping
  };
  StepOver step_;
  bool steps_refused_ = false;                ///< the hypervisor does not give SINGLESTEP events
  std::deque<VcpuId> to_step_;                ///< vCPUs whose reply waits until they have stepped over a patch
  std::vector<std::optional<Verdict>> kept_;  ///< by vCPU: replies that are kept back
  std::vector<std::uint64_t> keep_until_;     ///< by vCPU: not before told_done_ has come so far
  unsigned kept_count_ = 0;

  std::deque<WishChange> wishes_;  ///< front() is under way if busy_
  bool busy_ = false;
  std::uint64_t told_asked_ = 0;  ///< tickets given by tell_soon()
  std::uint64_t told_done_ = 0;   ///< the last one that is done
  std::uint64_t guest_on_ = 0;    ///< with this ticket agents are told that the guest is back; 0: they know
  bool undoing_ = false;
  unsigned wish_parts_open_ = 0;
  ErrorCode wish_error_ = ErrorCode::None;
  std::string wish_error_text_;
  Undo undo_;
  std::vector<PageRange> touched_pages_;  ///< where the hypervisor may have to be told of other rights
  std::vector<WishPart> wish_parts_;  ///< by tag: what is told, to note it as told when confirmed
  std::size_t wish_parts_sent_ = 0;
  std::deque<std::vector<kvmi_page_access_entry>> batches_;
  std::deque<std::vector<std::byte>> patch_bytes_;

  std::vector<kvmi_page_access_entry> reply_entries_;
  std::string reply_text_;
};

}  // namespace kvmid::core
