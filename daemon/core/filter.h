// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"
#include "protocol/result.h"

namespace kvmid::core {

/// Why a filter was refused.
struct FilterFault {
  /// Of `term` where it is not one term that is wrong.
  static constexpr std::size_t kWholeFilter = std::numeric_limits<std::size_t>::max();

  std::size_t term = kWholeFilter;       ///< counted from 0
  std::string_view text;                 ///< a constant
  ErrorCode error = ErrorCode::Invalid;  ///< what the command is answered
};
/// The sentence for people; terms are counted from 1 there: "term 3: this event has no GVA".
[[nodiscard]] std::string describe(const FilterFault& fault);

/// What one agent wants to be asked about in one kind of event, and what is answered for it to the rest.
///
/// Purpose:  lets kvmid answer events that an agent does not care for, without a hop to the agent.
/// Shapes:   terms joined by "and" into groups, groups joined by "or". Each term is kept as one test,
///           ((field & mask) - low <= span) != negate, which every comparison of the protocol can be written as.
/// Bounds:   1 to KVMI_FILTER_TERMS_MAX terms.
/// Errors:   FilterFault from make(); everything is checked there, whatever a dialect has checked before.
/// Threads:  constant once made: may be shared.
/// Source:   protocol/PROTOCOL.md, "29 SET_FILTER".
class Filter {
 public:
  /// `terms` is looked at in this call only. `action` is checked to be one; whether an event takes it, that event says.
  static Result<Filter, FilterFault> make(EventKind kind, Action action, const WireArray<kvmi_filter_term>& terms);

  /// The agent wants this event. A term whose field the event does not show (the GVA of a page fault that has none) is
  /// false, whatever its comparison. An event of another kind matches: what is not understood is not kept back.
  [[nodiscard]] bool matches(const Event& event) const noexcept;

  [[nodiscard]] EventKind kind() const { return kind_; }
  /// Answered to an event that does not match.
  [[nodiscard]] Action action() const { return action_; }
  [[nodiscard]] std::size_t terms() const { return terms_.size(); }

 private:
  struct Term {
    std::uint8_t field = 0;
    std::uint8_t reg = 0;
    bool new_group = false;
    bool negate = false;
    std::uint64_t mask = 0;
    std::uint64_t low = 0;
    std::uint64_t span = 0;
  };
  static Term to_term(const kvmi_filter_term& wire);

  Filter(EventKind kind, Action action) : kind_(kind), action_(action) {}
  [[nodiscard]] bool holds(const Term& term, const Event& event) const noexcept;

  EventKind kind_;
  Action action_;
  std::vector<Term> terms_;
};

/// The filters of a guest's agents.
///
/// Purpose:  finds the filter of an agent for an event, at no cost worth naming while nobody filters.
/// Shapes:   for each vCPU and event kind the set of agents that filter, and for each vCPU its filters, sorted.
///           A filter set for every vCPU is one object that all of them share, and counts once.
/// Errors:   none: callers check vCPUs against vcpu_count() and filters_kept() against the quota.
/// Threads:  none of its own. Lookups allocate nothing.
class FilterTable {
 public:
  explicit FilterTable(std::uint16_t vcpu_count);
  [[nodiscard]] std::uint16_t vcpu_count() const { return static_cast<std::uint16_t>(vcpus_.size()); }

  /// Puts the agent's filter for that kind of event, in the place of the one it had; null takes it away.
  /// REQUIRES: vcpu is below vcpu_count() or kAllVcpus; filter is null or of that kind.
  void set(VcpuId vcpu, AgentSlot slot, EventKind kind, const std::shared_ptr<const Filter>& filter);
  /// The agent filters nothing any more.
  void remove(AgentSlot slot);

  /// Filters the agent has.
  [[nodiscard]] std::size_t filters_of(AgentSlot slot) const;
  /// Of these, how many stay when it sets another one: what its quota is compared with beforehand.
  [[nodiscard]] std::size_t filters_kept(VcpuId vcpu, AgentSlot slot, EventKind kind) const;

  /// Agents that have a filter for that kind of event on that vCPU.
  [[nodiscard]] AgentSet filtering(VcpuId vcpu, EventKind kind) const {
    return vcpus_[vcpu.value].filtering[static_cast<std::size_t>(kind)];
  }
  /// The agent's filter, or null. It lives until the next set() or remove().
  [[nodiscard]] const Filter* find(VcpuId vcpu, EventKind kind, AgentSlot slot) const;

 private:
  struct Entry {
    std::uint16_t key = 0;
    std::shared_ptr<const Filter> filter;
  };
  struct Vcpu {
    std::array<AgentSet, kEventCount> filtering{};
    std::vector<Entry> entries;  // sorted by key
  };
  static constexpr std::uint16_t key_of(EventKind kind, AgentSlot slot) {
    return static_cast<std::uint16_t>(static_cast<unsigned>(kind) << 8U | slot);
  }
  static void set(Vcpu& vcpu, AgentSlot slot, EventKind kind, const std::shared_ptr<const Filter>& filter);
  template <class Counts>
  [[nodiscard]] std::size_t count_distinct(AgentSlot slot, Counts counts) const;

  std::vector<Vcpu> vcpus_;
};

}  // namespace kvmid::core
