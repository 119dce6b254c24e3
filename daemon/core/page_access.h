// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "daemon/core/types.h"
#include "protocol/message.h"

namespace kvmid::core {

inline constexpr std::uint8_t kRwx = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

/// Pages [from, end).
struct PageRange {
  Gfn from;
  Gfn end;
  friend auto operator<=>(const PageRange&, const PageRange&) = default;
};

/// Rights of pages as runs of equal rights; a page in no run has every right.
///
/// Purpose:  a million pages with the same rights cost as much as one.
/// Shapes:   runs do not overlap, and runs that touch differ in their rights: there are as few as there can be.
/// Units:    pages. Costs are in runs, never in pages.
/// Threads:  none of its own.
class RightsMap {
 public:
  /// Walks ascending pages without looking each one up. Invalid after any change of the map.
  class Cursor {
   public:
    explicit Cursor(const RightsMap& map) : runs_(&map.runs_), next_(runs_->begin()) {}
    /// The rights at `from`, and where others begin (at most `end`). REQUIRES: `from` never goes back; from < end.
    [[nodiscard]] std::pair<std::uint8_t, Gfn> run(Gfn from, Gfn end);

   private:
    friend class RightsMap;
    struct Run {
      std::uint64_t end = 0;
      std::uint8_t access = kRwx;
    };
    using Runs = std::map<std::uint64_t, Run>;  ///< by first page

    const Runs* runs_;
    Runs::const_iterator next_;
  };

  /// Sets the rights of [from, end). Calls f(PageRange, access before) for each run of pages that this changes, before
  /// anything is changed; f leaves the map alone.
  template <class F>
  void set(Gfn from, Gfn end, std::uint8_t access, F&& f) {
    bool changes = false;
    Cursor cursor(*this);
    for (Gfn at = from; at < end;) {
      const auto [before, run_end] = cursor.run(at, end);
      if (before != access) {
        changes = true;
        f(PageRange{at, run_end}, before);
      }
      at = run_end;
    }
    if (changes) replace(from.value, end.value, access);
  }
  void set(Gfn from, Gfn end, std::uint8_t access) {
    set(from, end, access, [](PageRange, std::uint8_t) {});
  }
  void clear();

  [[nodiscard]] std::uint8_t at(Gfn gfn) const;
  [[nodiscard]] bool empty() const { return runs_.empty(); }
  [[nodiscard]] std::size_t runs() const { return runs_.size(); }
  /// Pages with less than every right.
  [[nodiscard]] std::uint64_t restricted() const { return restricted_; }
  [[nodiscard]] std::uint64_t restricted_in(Gfn from, Gfn end) const;
  /// Calls f(PageRange, access) for each run, ascending.
  template <class F>
  void for_each(F&& f) const {
    for (const auto& [from, run] : runs_) f(PageRange{Gfn{from}, Gfn{run.end}}, run.access);
  }

 private:
  using Run = Cursor::Run;
  using Runs = Cursor::Runs;
  static Runs::const_iterator first_ending_after(const Runs& runs, std::uint64_t gfn);
  void replace(std::uint64_t from, std::uint64_t end, std::uint8_t access);
  void split(std::uint64_t at);

  Runs runs_;
  std::uint64_t restricted_ = 0;
};

/// Each agent's view of the rights of each page; the effective rights of a page are the AND of all views.
///
/// Purpose:  answers who must see a fault, and which pages the hypervisor must be told of.
/// Units:    pages of the normal address space. A page in no run has every right. Costs are in runs.
/// Threads:  none of its own.
class PageAccess {
 public:
  /// Walks the effective rights over ascending pages; a step for each place where any view changes. Invalid after any
  /// change of a view.
  class Walk {
   public:
    explicit Walk(const PageAccess& pages);
    /// The effective rights at `from`, and where others may begin (at most `end`). REQUIRES: as RightsMap::Cursor.
    [[nodiscard]] std::pair<std::uint8_t, Gfn> run(Gfn from, Gfn end);

   private:
    std::vector<RightsMap::Cursor> cursors_;
  };

  /// Sets the agent's view of [from, end). Calls f(PageRange, access before) for each run of pages that this changes.
  template <class F>
  void set(AgentSlot slot, Gfn from, Gfn end, std::uint8_t access, F&& f) {
    if (access == kRwx && !restricting_.has(slot)) return;
    RightsMap& view = view_of(slot);
    view.set(from, end, access, f);
    if (view.empty()) {
      restricting_.remove(slot);
    } else {
      restricting_.add(slot);
    }
  }
  [[nodiscard]] std::uint8_t view(AgentSlot slot, Gfn gfn) const;
  /// The rights at `from` in the agent's view, and where a page with others begins (at most `end`).
  [[nodiscard]] std::pair<std::uint8_t, Gfn> run(AgentSlot slot, Gfn from, Gfn end) const;
  [[nodiscard]] std::uint8_t effective(Gfn gfn) const;
  /// Agents whose view forbids some right of `access` on that page.
  [[nodiscard]] AgentSet forbidding(Gfn gfn, std::uint8_t access) const;
  /// Pages that the agent's view restricts.
  [[nodiscard]] std::uint64_t pages_of(AgentSlot slot) const;
  /// Pages of [from, end) that the agent's view restricts.
  [[nodiscard]] std::uint64_t restricted_in(AgentSlot slot, Gfn from, Gfn end) const;
  /// The agent's view gives every right again. Calls f(PageRange) for each run that it restricted.
  template <class F>
  void remove(AgentSlot slot, F&& f) {
    if (!restricting_.has(slot)) return;
    views_[slot].for_each([&](PageRange range, std::uint8_t) { f(range); });
    views_[slot].clear();
    restricting_.remove(slot);
  }
  /// The agents with any restricted page.
  [[nodiscard]] AgentSet restricting() const { return restricting_; }

 private:
  RightsMap& view_of(AgentSlot slot);
  std::vector<RightsMap> views_;  ///< by slot
  AgentSet restricting_;          ///< those whose view has any run
};

}  // namespace kvmid::core
