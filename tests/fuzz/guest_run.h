// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One guest machine between peers that the fuzzer plays.
///
/// Purpose:  a run goes deep because effects are performed: commands are remembered until somebody answers them,
///           events until they are answered, agents know what they were told. Peers that behave are mixed with ones
///           that do not.
/// Shapes:   step() is one input; finish() lets everybody answer and go, after which nothing may be left.
/// Errors:   a broken invariant aborts with a line on stderr that names it.
/// Lifetime: everything that effects view is encoded, as the daemon would, before the next input; the bytes of an input
///           are gone after it, so that AddressSanitizer sees a view that was kept.

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "tests/fuzz/messages.h"

namespace kvmid::fuzz {

class GuestRun {
 public:
  explicit GuestRun(ByteSource& source);
  /// What the source decides happens next.
  void step();
  /// Every command is answered, time passes, agents go: all that is owed must be given.
  void finish();

 private:
  struct Told {  ///< an event that an agent may answer
    Seq seq;
    VcpuId vcpu;
    EventKind kind{};
  };
  struct Agent {
    std::map<std::uint32_t, unsigned> asked;  ///< commands without an answer yet, by seq
    std::vector<Told> told;                   ///< the last few
    std::uint32_t requests_max = 0;           ///< the most that any of its grants gave
    std::uint32_t pages_max = 0;
    bool closed = false;  ///< the machine closed it; it goes at the end of the step
  };
  /// What the hypervisor has, one vCPU or the guest.
  struct Vcpu {
    std::uint64_t events = 0;
    std::set<std::uint32_t> crs;
    std::set<std::uint32_t> msrs;
    bool singlestep = false;
    std::optional<Seq> stopped;  ///< by an event that is not answered yet
    ActionSet actions;
    bool pause_due = false;
    [[nodiscard]] bool untouched() const { return events == 0 && crs.empty() && msrs.empty() && !singlestep; }
  };

  // Inputs
  void attach();
  void agent_command();
  void agent_reply();
  void agent_noise();
  void agent_says(AgentId id, WireFrame frame);
  void lose_agent(AgentId id);
  void change_grant();
  void hypervisor_answers();
  void hypervisor_event();
  void hypervisor_noise();
  void hypervisor_says(WireFrame frame);
  void send_event(const Event& event, bool damaged);
  void answer(std::size_t index, ErrorCode error, bool damaged);
  void lose_hypervisor(OffReason reason);
  void connect();
  void pass(core::Duration time);
  void stop();

  // What comes out
  void perform();
  void check();
  Agent& present(AgentId id, const char* effect);
  WireFrame encoded(const auto& encode) {
    wire_.clear();
    encode(wire_);
    return frame_of(wire_);
  }
  void sent_to_agent(WireFrame frame);
  void sent_to_hypervisor(const core::SendEventReply& effect);
  void execute(const Command& command);
  template <class F>
  void each_vcpu(VcpuId vcpu, F&& f);
  void forget_hypervisor();

  [[nodiscard]] core::Grant some_grant();
  std::optional<AgentId> some_agent();
  [[noreturn]] static void fail(const char* what);

  ByteSource& source_;
  core::GuestMachine machine_;
  core::Effects effects_;
  core::TimePoint now_{std::chrono::hours(1)};
  DialectKvmi2 dialect_;
  ByteBuffer wire_;

  std::map<AgentId, Agent> agents_;
  std::uint32_t agents_made_ = 0;
  std::uint32_t seqs_made_ = 0;
  std::uint32_t events_made_ = 0;
  std::uint32_t steps_ = 0;

  bool linked_ = false;
  bool closing_ = false;  ///< the machine closed the hypervisor
  bool stopped_ = false;
  std::int64_t start_time_ = 1;
  std::vector<WireFrame> open_;  ///< commands to the hypervisor without an answer yet
  std::map<std::uint16_t, Vcpu> vcpus_;  ///< those that the guest has, and those it was made to seem to have
  std::optional<Seq> unhook_;
  std::map<std::uint64_t, std::uint8_t> pages_;
  std::map<std::uint64_t, std::size_t> patches_;
  /// The hypervisor refused something or said what is not so: what it has need not be what the machine thinks.
  bool lied_ = false;
};

}  // namespace kvmid::fuzz
