// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The same commands, events and replies for two guests: one served in KVMI 2, one through both bridges.
///
/// Purpose:  finds where the bridges do not keep what docs/decisions/0008-older-dialects.md says: results, data,
/// memory,
///           rights, registers and what is watched are equal, but for what documented() and actions_of() name.
/// Shapes:   the guest of KVMI 2 is served at once, the other as chance has it; a command waits in pending_ until its
///           answer comes. What depends on order across kinds of commands, which nobody promises, is not asked for.
/// Errors:   throws std::runtime_error at the first difference.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/unit/bridge/pair/older_link.h"

namespace kvmid::bridge::test {

class PairWorld {
 public:
  PairWorld(kvmi1::DialectId dialect, std::uint64_t seed);

  void step();
  /// Everything is answered, both guests are compared, and the guest goes.
  void finish();
  /// What was done, so that a run that does nothing is no success.
  struct Counts {
    unsigned commands = 0, refusals = 0, events = 0, skips = 0, patches = 0, comparisons = 0, stale = 0;
  };
  [[nodiscard]] const Counts& counts() const { return counts_; }

 private:
  /// A command with the bytes that its views point into.
  struct Made {
    Command command;
    std::vector<std::byte> bytes{}, more{};
  };
  /// What the core knows of an event.
  struct Told {
    Event event;
    Seq seq;
  };

  // pair_world.cpp; what is documented is in pair_differences.cpp
  void begin();
  void send(Made made);
  void answered(const CommandReply& reply, Seq seq);
  void compare();
  [[nodiscard]] bool quiet() const { return pending_.empty(); }
  [[nodiscard]] ByteBuffer as_bytes(CommandReply reply);
  Kept2 expected_of(const Command& command, Seq seq);
  /// The differences that the documents name: what KVMI 2 would answer if it were as these hypervisors are.
  std::optional<CommandReply> documented(const Command& command);
  CommandReply serve(const Command& command, hypervisor::CommandServer& server);

  // pair_events.cpp
  void stop_somewhere();
  void stop(VcpuId vcpu, const EventData& data);
  void told(const Event& event, Seq seq);
  void answer_somewhere();
  void outcome(const Outcome& outcome);
  [[nodiscard]] ActionSet actions_of(EventKind kind) const;
  [[nodiscard]] std::optional<EventData> something_in(VcpuId vcpu);
  [[nodiscard]] bool may_stop(EventKind kind, VcpuId vcpu);

  // pair_commands.cpp
  [[nodiscard]] std::optional<Made> make();
  [[nodiscard]] std::optional<Made> make_read();
  [[nodiscard]] std::optional<Made> make_write();
  [[nodiscard]] std::optional<Made> make_wish();
  [[nodiscard]] std::optional<Made> make_pages();
  [[nodiscard]] std::optional<Made> make_state();
  [[nodiscard]] std::optional<Made> make_inject();
  [[nodiscard]] Gpa somewhere();
  [[nodiscard]] VcpuId any_vcpu(bool all);
  [[nodiscard]] std::vector<std::byte> random_bytes(std::size_t size);

  [[nodiscard]] bool is_2017() const { return dialect_ == kvmi1::DialectId::Rfc2017; }
  [[nodiscard]] bool is_v6_or_v7() const {
    return dialect_ == kvmi1::DialectId::V6 || dialect_ == kvmi1::DialectId::V7;
  }

  kvmi1::DialectId dialect_;
  sim::Rng rng_;
  SmallGuest plain_, older_;
  hypervisor::Patches patches_;
  std::vector<std::pair<std::uint64_t, std::size_t>> placed_;  ///< patches, some of them gone
  OlderLink link_;
  CommandSet offered_;
  std::map<std::uint32_t, Kept2> pending_;  ///< [seq] the answer that must come
  std::uint32_t wish_ = 0, page_wish_ = 0;  ///< seq: the core asks for these one after another
  std::uint32_t last_seq_ = 0;

  std::map<std::uint16_t, Event> raised_;                 ///< [vCPU] on their way up
  std::map<std::uint16_t, Told> open_;                    ///< [vCPU] the core has not answered
  std::map<std::uint16_t, std::vector<Outcome>> wanted_;  ///< [vCPU] answered, not yet arrived
  std::optional<VcpuId> measuring_;                       ///< the instruction that it skips is read from memory
  std::array<bool, SmallGuest::kVcpus> steps_{};
  std::optional<GetGuestInfoReply> info_;
  std::optional<Seq> unhook_;
  DialectKvmi2 kvmi2_;
  Kept2 kept_;  ///< what an expected answer points into
  Counts counts_;
};

}  // namespace kvmid::bridge::test
