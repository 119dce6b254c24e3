// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What is behind AgentBridge. Included by the agent_*.cpp files of this folder only.
///
/// Purpose:  one tool's connection as a machine: frames in order, commands of KVMI 2 out, replies in order.
/// Shapes:   a command of the tool has a Slot from when it is served until its reply has left. What it asks of the core
///           goes through ask(); the continuation finishes the slot, or asks the next thing. A command that asks
///           several things, one after another, holds the frames behind it back until its last one is on its way (a
///           Step does).
/// Order:    replies leave in the order of the commands. An event reply waits until the changes that were asked for
/// before
///           it are answered: a tool that lifts a restriction and lets the vCPU go in one write means that order.
/// Threads:  none.
/// Source:   docs/decisions/0008-older-dialects.md

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "bridge/agent_bridge.h"
#include "protocol/kvmi1_codec.h"

namespace kvmid::bridge {

class AgentBridge::Impl {
 public:
  Impl(Options options, const ToolRights& rights);

  Result<void, std::string> received(const Frame& frame, ByteBuffer& wire);
  void deliver(const Event& event, Seq seq, ByteBuffer& wire);
  void deliver(const CommandReply& reply, Seq seq, ByteBuffer& wire);
  void deliver(const Notice& notice, ByteBuffer& wire);
  bool guest_off(OffReason reason, ByteBuffer& wire);

  ToolRights rights;
  PassedQueue<Downward> down;
  std::optional<std::string> broken;
  const kvmi1::Codec& codec;

 private:
  using Then = std::function<void(const CommandReply&)>;

  static constexpr std::size_t kSlotsMax = 1024;           ///< commands whose replies wait for those before them
  static constexpr std::size_t kHeldBytesMax = 1U << 20U;  ///< and bytes of such replies
  static constexpr std::size_t kEndedMax = 16384;          ///< events that ended without the tool's reply, remembered
  static constexpr std::size_t kFrameOverhead = 64;        ///< what keeping a frame costs besides its payload

  /// A frame that waits for room, or for what is before it.
  struct Kept {
    std::uint16_t id = 0;
    Seq seq;
    std::vector<std::byte> payload;
  };
  /// A command of the tool, until its reply has left.
  struct Slot {
    std::uint16_t id = 0;
    Seq seq;
    std::optional<kvmi1::CommandKind> kind;
    bool answers = true;        ///< replies were on when it came
    bool tells_errors = false;  ///< v7: errors become CMD_ERROR events
    bool done = false;
    bool confirmed = false;     ///< a pause: the core has said yes
    std::vector<VcpuId> waits;  ///< a pause: vCPUs that have not stopped yet
    std::uint32_t ticket = 0;   ///< a pause: finds the slot again, if it is still there
    ByteBuffer bytes{};         ///< the reply, while those before it have not left
  };
  /// A command that was given to the core.
  struct Ask {
    Then then;
    bool changes = false;  ///< the guest, or what is told of it
  };
  /// An event that the tool was told of and has not answered.
  struct OpenEvent {
    Seq seq;  ///< as the tool knows it
    Seq core_seq;
    EventKind kind{};
    ActionSet actions;
    bool awaited = false;  ///< the core still waits for the reply
    std::uint64_t old_value = 0, new_value = 0;
  };
  struct Vcpu {
    std::optional<OpenEvent> open;
    std::uint32_t pauses_behind = 0;  ///< more PAUSE events of the same stop: told one after another
    std::unique_ptr<Event> pause;     ///< what they say
    Seq pause_seq;                    ///< of the core
    std::uint32_t pauses_awaited = 0;    ///< of them; the others are of a stop that has expired
    std::uint32_t injections = 0;    ///< own ones whose TRAP has not been told
    bool trap_on = false;            ///< subscribed to TRAP for them
    bool traps_wanted = false;       ///< rfc2017: the tool subscribed to every TRAP
    bool steps = false;              ///< single-stepped by the tool
    std::uint32_t guest_pauses = 0;  ///< rfc2017: PAUSE events that UNPAUSE_GUEST answers
    Seq guest_pause_seq;
  };
  /// A command of several asks: as long as it lives the frames behind it wait.
  class Step {
   public:
    explicit Step(Impl& impl) : impl_(impl) { ++impl_.steps_; }
    ~Step() { --impl_.steps_; }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    Impl& impl_;
  };

  // agent_bridge.cpp: frames, slots, the core
  bool may_serve(std::uint16_t id) const;
  void pump();
  void serve(const Frame& frame);
  void serve_command(const Frame& frame);
  void stop(std::string why);
  Slot& open_slot(const Frame& frame, std::optional<kvmi1::CommandKind> kind);
  void finish(Slot& slot, std::int32_t error, const kvmi1::ReplyBody& body = {});
  void finish(Slot& slot, ErrorCode error);
  void leave_in_order();
  void ask(Command command, Then then, std::vector<std::byte> bytes = {});
  void ask_and_finish(Slot& slot, Command command, std::vector<std::byte> bytes = {});
  void note_facts(const CommandReply& reply);
  [[nodiscard]] std::vector<std::byte> keep();
  [[nodiscard]] std::int32_t error_of(ErrorCode error) const;
  [[nodiscard]] bool is(kvmi1::DialectId dialect) const { return codec.dialect() == dialect; }
  [[nodiscard]] bool is_v6_or_v7() const { return is(kvmi1::DialectId::V6) || is(kvmi1::DialectId::V7); }
  [[nodiscard]] bool no_such_vcpu(VcpuId vcpu) const { return vcpu_count_ != 0 && vcpu.value >= vcpu_count_; }
  Vcpu& at(VcpuId vcpu);
  [[nodiscard]] const OpenEvent* open_at(VcpuId vcpu) const;

  // agent_rights.cpp: what is served, and what may be used
  enum class Served : std::uint8_t { Yes, NotPermitted, Never };
  [[nodiscard]] Served served(kvmi1::CommandKind kind) const;
  [[nodiscard]] bool gone_for(kvmi1::CommandKind kind) const;
  [[nodiscard]] bool may_see(EventKind kind) const;
  /// Why not.
  [[nodiscard]] ErrorCode cannot_see(EventKind kind) const;
  [[nodiscard]] bool needs_event_first(kvmi1::CommandKind kind) const;
  [[nodiscard]] Role role_for(EventKind kind) const;
  [[nodiscard]] bool can_singlestep() const;
  void run(Slot& slot, const kvmi1::GetVersion& command);
  void run(Slot& slot, const kvmi1::CheckCommand& command);
  void run(Slot& slot, const kvmi1::CheckEvent& command);
  void run(Slot& slot, const kvmi1::ControlCmdResponse& command);

  // agent_commands.cpp
  void run(Slot& slot, const kvmi1::GetGuestInfo& command);
  void run(Slot& slot, const kvmi1::GetVcpuInfo& command);
  void run(Slot& slot, const kvmi1::PauseVcpu& command);
  void run(Slot& slot, const kvmi1::ControlVmEvents& command);
  void run(Slot& slot, const kvmi1::ControlEvents& command);
  void run(Slot& slot, const kvmi1::ControlCr& command);
  void run(Slot& slot, const kvmi1::ControlMsr& command);
  void run(Slot& slot, const kvmi1::ControlCleanup& command);
  void run(Slot& slot, const kvmi1::InjectException& command);
  void run(Slot& slot, const kvmi1::TranslateGva& command);
  void run(Slot& slot, const kvmi1::ControlSinglestep& command);
  void run(Slot& slot, const kvmi1::GetEptView& command);
  void run(Slot& slot, const kvmi1::SwitchEptView& command);
  void subscribe(Slot& slot, VcpuId vcpu, EventKind kind, bool enable);
  void inject(Slot& slot, const InjectException& exception, std::shared_ptr<Step> step);
  void probe(Slot& slot);
  void probe_next(std::uint32_t ticket, std::vector<VcpuId> vcpus);
  void end_waits(ErrorCode error);
  [[nodiscard]] std::int32_t refusal_of_view(std::uint16_t view) const;
  /// Commands that KVMI 2 has nothing for: served() refuses them before.
  void run(Slot& slot, const auto&) { finish(slot, ErrorCode::NotSupported); }

  // agent_state.cpp: registers, XSAVE, MTRRs
  void run(Slot& slot, const kvmi1::GetRegisters& command);
  void run(Slot& slot, const kvmi1::SetRegisters& command);
  void run(Slot& slot, const kvmi1::GetCpuid& command);
  void run(Slot& slot, const kvmi1::GetXsave& command);
  void run(Slot& slot, const kvmi1::SetXsave& command);
  void run(Slot& slot, const kvmi1::GetXcr& command);
  void run(Slot& slot, const kvmi1::GetMtrrType& command);
  struct MsrByMsr;
  void next_msr(Slot& slot, std::shared_ptr<MsrByMsr> task);
  void read_msrs(VcpuId vcpu, const std::vector<std::uint32_t>& indices,
                 std::function<void(const CommandReply&, const WireArray<kvmi_x86_msr>&)> then);

  // agent_memory.cpp
  void run(Slot& slot, const kvmi1::ReadPhysical& command);
  void run(Slot& slot, const kvmi1::WritePhysical& command);
  void run(Slot& slot, const kvmi1::GetMaxGfn& command);
  void run(Slot& slot, const kvmi1::QueryPhysical& command);
  void run(Slot& slot, const kvmi1::GetNextAvailableGfn& command);
  void run(Slot& slot, const kvmi1::GetPageAccess& command);
  void run(Slot& slot, const kvmi1::SetPageAccess& command);
  void ask_read(Gpa gpa, std::uint32_t size, Then then);
  void ask_write(Gpa gpa, Bytes data, std::uint16_t flags, std::vector<std::byte> bytes, Then then);
  struct Unpatching;
  void next_unpatch(Slot& slot, std::shared_ptr<Unpatching> task);
  struct PageByPage;
  void next_page(Slot& slot, std::shared_ptr<PageByPage> task);
  struct AccessQuery;
  void next_access(Slot& slot, std::shared_ptr<AccessQuery> task);

  // agent_events.cpp
  void serve_event_reply(const Frame& frame);
  void answer_event(VcpuId vcpu, const kvmi1::EventReplyMessage& message);
  void tell(const Event& event, Seq core_seq);
  void stopped(VcpuId vcpu);
  bool swallow_trap(const Event& event);
  void forget_trap(VcpuId vcpu);
  static void forget_injection(Vcpu& vcpu);
  void answer_core(VcpuId vcpu, const OpenEvent& open, Action action);
  void continue_core(VcpuId vcpu, const OpenEvent& open, std::uint64_t value);
  void reply_to_core(VcpuId vcpu, Seq core_seq, EventKind kind, Action action, ReplacedValue value = {});
  Seq next_event_seq();

  // agent_2017.cpp
  void run(Slot& slot, const kvmi1::PauseGuest& command);
  void run(Slot& slot, const kvmi1::UnpauseGuest& command);
  void run(Slot& slot, const kvmi1::ShutdownGuest& command);
  void run(Slot& slot, const kvmi1::GetMtrrs& command);
  void run(Slot& slot, const kvmi1::GetXsaveInfo& command);
  void run(Slot& slot, const kvmi1::GetVcpuPageAccess& command);
  void run(Slot& slot, const kvmi1::SetVcpuPageAccess& command);
  void run(Slot& slot, const kvmi1::InjectPageFault& command);
  void run(Slot& slot, const kvmi1::InjectBreakpoint& command);
  void run(Slot& slot, const kvmi1::SetEvents& command);
  void run(Slot& slot, const kvmi1::ControlGuestCr& command);
  void run(Slot& slot, const kvmi1::ControlGuestMsr& command);
  bool keep_guest_pause(const Event& event, Seq seq);
  void answer_2017(VcpuId vcpu, const OpenEvent& open, const kvmi1::EventReplyMessage& message,
                   std::uint64_t new_value);
  [[nodiscard]] std::optional<VcpuId> vcpu_with(Seq event_seq) const;

  const Options options_;

  // frames
  std::deque<Kept> backlog_;
  std::size_t backlog_bytes_ = 0;
  std::vector<std::byte>* source_ = nullptr;  ///< the payload under way, where it is a kept one
  std::deque<Slot> slots_;                    ///< oldest first; pushing and popping leaves the others where they are
  std::size_t held_bytes_ = 0;
  unsigned steps_ = 0;
  ByteBuffer* wire_ = nullptr;  ///< of the call under way

  // the core
  std::unordered_map<std::uint32_t, Ask> asks_;
  std::size_t changes_open_ = 0;
  std::uint32_t last_ask_ = 0;
  std::uint32_t last_ticket_ = 0;
  std::deque<Command> chores_;    ///< what nobody waits for, until there is room
  std::uint32_t vcpu_count_ = 0;  ///< 0: not known yet
  bool off_ = false;

  // the tool
  bool replies_on_ = true;
  bool error_events_ = false;
  bool unhook_wanted_ = false;
  bool unhook_told_ = false;
  EventSet observed_;                ///< kinds that the tool may only observe since it was silent
  std::set<std::uint64_t> patches_;  ///< GPAs of the tool's own 0xCC bytes
  std::set<std::uint64_t> doubted_;  ///< those of them that may have been withdrawn: they are asked for again
  std::vector<Vcpu> vcpus_;
  std::map<std::uint32_t, VcpuId> ended_;  ///< events that the tool may still answer, without effect
  std::uint32_t last_event_ = 0;
  unsigned guest_pauses_ = 0;  ///< rfc2017: PAUSE_GUEST without UNPAUSE_GUEST
  std::uint32_t guest_pauses_asked_ = 0;  ///< of the core, in all
};

}  // namespace kvmid::bridge
