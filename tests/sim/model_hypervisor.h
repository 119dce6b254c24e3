// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A hypervisor with one guest, as far as kvmid can tell one from a real one.
///
/// Purpose:  executes commands, makes events as its state allows, keeps patches over the guest's own bytes (decision
/// 6). Shapes:   deliver() takes a frame from kvmid, run() lets a vCPU come to its next event; both append what is
/// sent. Errors:   Violation where kvmid does to it what it must not (an INT3 of a patch given to the guest, and so
/// on).

#include <optional>
#include <vector>

#include "protocol/dialect_kvmi2.h"
#include "tests/sim/counts.h"
#include "tests/sim/rng.h"
#include "tests/sim/shapes.h"

namespace kvmid::sim {

/// A frame and how long its sender takes to send it.
struct Sent {
  ByteBuffer frame;
  Duration delay{};
};
using Sends = std::vector<Sent>;

/// How often what goes wrong: drawn for each guest at its start.
struct HypervisorNature {
  unsigned refuses_permille = 0;          ///< commands that ask for more
  unsigned refuses_to_take_permille = 0;  ///< commands that give back
  unsigned slow_permille = 0;
  bool deaf_once = false;  ///< leaves one command without an answer
};

class ModelHypervisor {
 public:
  ModelHypervisor(Rng& rng, Counts& counts) : rng_(rng), counts_(counts) { start_guest(1); }

  void start_guest(unsigned vcpu_count);
  /// A new link: nothing is known of what was told before.
  void connect(const GetVersionReply& version, const HypervisorNature& nature);
  void disconnect();
  void deliver(const Frame& frame, TimePoint now, Sends& out);
  void run(unsigned index, TimePoint now, Sends& out);
  void unhook(OffReason reason, Sends& out);
  /// Its memory map is another one. False: kvmid does not know who this is yet.
  bool change_map(Sends& out);
  /// Something that no hypervisor may send. Its name, for the trace.
  std::string_view garbage(Sends& out);

  /// kvmid has decided that the vCPU, which waits in a hit of a patch, shall execute what is under it.
  void promise_step(unsigned index, Seq event) { vcpus_[index].promised = event; }
  /// kvmid, and no agent, has the vCPU execute an INT3 of the guest's own once more: for so long it may not know
  /// better.
  void retried_by_kvmid(unsigned index, TimePoint now, Duration longest);
  /// The patch that was to be stepped over is nobody's any more: what is met there next is another one.
  void forgive_step(unsigned index) { vcpus_[index].must_step = false, vcpus_[index].promised.reset(); }
  [[nodiscard]] std::optional<std::uint64_t> must_step_at(unsigned index) const {
    if (!vcpus_[index].must_step && !vcpus_[index].promised) return std::nullopt;
    return vcpus_[index].address;
  }
  /// When it ran last, the vCPU executed the guest's own bytes there, and no patch was met; it was not to step over
  /// one.
  [[nodiscard]] std::optional<std::uint64_t> executed_bare(unsigned index) const {
    return index < vcpus_.size() ? vcpus_[index].executed_bare : std::nullopt;
  }
  [[nodiscard]] const Wishes& told() const { return told_; }
  [[nodiscard]] unsigned vcpu_count() const { return static_cast<unsigned>(vcpus_.size()); }
  [[nodiscard]] bool crashed() const { return crashed_; }
  [[nodiscard]] bool unhook_answered() const { return unhook_answered_; }
  /// The vCPU's event was a hit of a patch.
  [[nodiscard]] bool hit_patch(VcpuId vcpu, Seq seq) const {
    return vcpu.value < vcpus_.size() && vcpus_[vcpu.value].seq == seq && vcpus_[vcpu.value].through_patch;
  }
  /// The vCPU waits in a CREATE_VCPU event.
  [[nodiscard]] bool begins_anew(unsigned index) const {
    return vcpus_[index].waiting && vcpus_[index].kind == EventKind::CreateVcpu;
  }
  [[nodiscard]] bool refused_to_take() const { return refused_to_take_; }
  [[nodiscard]] std::uint64_t refusals() const { return refusals_; }
  [[nodiscard]] const GetVersionReply& version() const { return version_; }

 private:
  enum class Doing : std::uint8_t { Nothing, Execute, Access };
  struct Vcpu {
    bool waiting = false;
    Seq seq;
    EventKind kind{};
    ActionSet actions;
    bool through_patch = false;
    unsigned pauses = 0;
    bool step_due = false;
    Doing doing = Doing::Nothing;  ///< what is tried again
    std::uint64_t address = 0;     ///< of it
    std::uint8_t access = 0;
    bool passes_once = false;  ///< a page fault was allowed
    bool traps_access = false;
    std::optional<Seq> promised;
    bool must_step = false;
    TimePoint must_step_since{};
    TimePoint halted_until{};
    std::optional<std::uint64_t> executed_bare;
    unsigned retried_in_vain = 0;  ///< by kvmid, in a row, at an INT3 of the guest's own
    TimePoint retried_since{};
    std::uint64_t rax = 0;
  };

  void raise(unsigned index, const EventData& data, ActionSet actions, Sends& out, bool through_patch = false);
  void execute(unsigned index, TimePoint now, Sends& out);
  void access_memory(unsigned index, Sends& out);
  void something_else(unsigned index, Sends& out);
  void executed(unsigned index);
  void event_reply(Seq seq, const EventReply& reply, TimePoint now, Sends& out);
  void command(Seq seq, const Command& command, Sends& out);
  [[nodiscard]] ErrorCode carry_out(const Command& command, ReplyBody& body);
  [[nodiscard]] ErrorCode write(const WritePhysical& command);
  [[nodiscard]] ErrorCode read(const ReadPhysical& command, ReplyBody& body);
  [[nodiscard]] bool enabled(unsigned index, EventKind kind) const {
    return (told_.vcpus[index].events & bit(kind)) != 0;
  }
  [[nodiscard]] const Patch* covering(std::uint64_t address) const;
  void reply(Seq seq, const CommandReply& reply, Sends& out);
  Duration reply_delay();

  Rng& rng_;
  Counts& counts_;
  DialectKvmi2 dialect_;
  HypervisorNature nature_;
  GetVersionReply version_;
  std::vector<Vcpu> vcpus_;
  std::vector<std::uint8_t> memory_ = std::vector<std::uint8_t>(kMemoryBytes);
  Wishes told_;
  bool linked_ = false;
  bool heard_ = false;  ///< kvmid knows who this is: events may be sent
  bool crashed_ = false;
  bool refused_to_take_ = false;
  std::uint64_t refusals_ = 0;
  bool unhook_answered_ = false;
  std::optional<Seq> unhook_;
  std::uint32_t last_seq_ = 0;
  std::vector<std::byte> scratch_;
  std::vector<kvmi_x86_msr> msrs_;
  kvmi_memory_slot slot_{};
};

}  // namespace kvmid::sim
