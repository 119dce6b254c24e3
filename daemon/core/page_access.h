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

/// Each agent's view of the rights of each page; the effective rights of a page are the AND of all views.
///
/// Purpose:  answers who must see a fault, and which pages the hypervisor must be told of.
/// Units:    pages of the normal address space. A page without an entry has every right.
/// Threads:  none of its own.
class PageAccess {
 public:
  /// Sets the agent's view of one page. Returns what it was.
  std::uint8_t set(AgentSlot slot, Gfn gfn, std::uint8_t access);
  [[nodiscard]] std::uint8_t view(AgentSlot slot, Gfn gfn) const;
  /// The rights at `from` in the agent's view, and where a page with others begins (at most `end`).
  [[nodiscard]] std::pair<std::uint8_t, Gfn> run(AgentSlot slot, Gfn from, Gfn end) const;
  [[nodiscard]] std::uint8_t effective(Gfn gfn) const;
  /// Agents whose view forbids some right of `access` on that page.
  [[nodiscard]] AgentSet forbidding(Gfn gfn, std::uint8_t access) const;
  /// Pages that the agent's view restricts.
  [[nodiscard]] std::size_t pages_of(AgentSlot slot) const;
  /// The agent's view gives every right again. Calls f(Gfn) for each page that it restricted.
  template <class F>
  void remove(AgentSlot slot, F&& f) {
    for (const auto& [gfn, access] : view_of(slot)) f(Gfn{gfn});
    view_of(slot).clear();
    restricting_.remove(slot);
  }
  /// Pages of [from, end) that the agent's view restricts. Costs as many steps as there are.
  [[nodiscard]] std::size_t restricted_in(AgentSlot slot, Gfn from, Gfn end) const;
  /// The agent's view gives every right on [from, end). Calls f(Gfn, access before) for each page that it restricted:
  /// the length of the range costs nothing.
  template <class F>
  void allow_range(AgentSlot slot, Gfn from, Gfn end, F&& f) {
    if (!restricting_.has(slot)) return;
    View& view = views_[slot];
    auto next = view.lower_bound(from.value);
    while (next != view.end() && next->first < end.value) {
      f(Gfn{next->first}, next->second);
      next = view.erase(next);
    }
    if (view.empty()) restricting_.remove(slot);
  }
  /// The agents with any restricted page.
  [[nodiscard]] AgentSet restricting() const { return restricting_; }
  /// Calls f(Gfn) for each page that any view restricts (a page may come more than once).
  template <class F>
  void for_each_restricted(F&& f) const {
    restricting_.for_each([&](AgentSlot slot) {
      for (const auto& [gfn, access] : views_[slot]) f(Gfn{gfn});
    });
  }

 private:
  using View = std::map<std::uint64_t, std::uint8_t>;
  View& view_of(AgentSlot slot);
  std::vector<View> views_;  ///< by slot
  AgentSet restricting_;
};

}  // namespace kvmid::core
