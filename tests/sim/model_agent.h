// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A security program as kvmid must expect one: busy, useful, slow, wrong, greedy or broken.
///
/// Shapes:   act() is a moment in which it does something of its own; deliver() gives it a frame. Both append what it
///           sends, with the time that it thinks before.

#include <array>
#include <vector>

#include "protocol/dialect_kvmi2.h"
#include "tests/sim/model_hypervisor.h"
#include "tests/sim/rng.h"

namespace kvmid::sim {

struct AgentNature {
  unsigned silent_percent = 0;  ///< of the events that it should decide
  unsigned late_percent = 0;    ///< thinks for longer than its deadline
  unsigned wrong_percent = 0;
  unsigned garbage_percent = 0;  ///< of its own moments
  unsigned greedy_percent = 0;   ///< of its own moments it asks for everything at once
  microseconds pace{2000};       ///< between two moments
};

class ModelAgent {
 public:
  ModelAgent(Rng& rng, const AgentNature& nature, unsigned vcpu_count)
      : rng_(rng), nature_(nature), vcpu_count_(vcpu_count) {}

  void act(Sends& out);
  void deliver(const Frame& frame, Sends& out);
  [[nodiscard]] const AgentNature& nature() const { return nature_; }

 private:
  void ask(Sends& out);
  void wish(Sends& out);
  void set_pages(Sends& out);
  void patch(Sends& out);
  void set_filter(Sends& out);
  void read_something(Sends& out);
  void garbage(Sends& out);
  void vote(const Event& event, Seq seq, Sends& out);
  void send(const Command& command, Sends& out);
  void remember(std::uint64_t cookie);
  void add_cookie(WritePhysical& write);
  AddressSpace some_space();
  VcpuId some_vcpu(bool or_all);

  Rng& rng_;
  DialectKvmi2 dialect_;
  AgentNature nature_;
  unsigned vcpu_count_;
  std::uint32_t last_seq_ = 0;
  std::array<std::uint64_t, 4> cookies_{};  ///< the last ones that it was given, of any address space
  std::size_t cookie_at_ = 0;
};

}  // namespace kvmid::sim
