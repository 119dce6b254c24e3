// SPDX-License-Identifier: GPL-2.0-or-later
// Page rights: what agents set, what the hypervisor is told of it, what it has confirmed.
//
// Everything here goes over runs of equal rights, never over pages: one entry of SET_PAGE_ACCESS can name all of a
// guest's memory, thousands of times in a message.
#include <algorithm>
#include <limits>

#include "arch/x86/page_access.h"
#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

namespace kvmid::core {

namespace {

constexpr std::size_t kPageEntriesMax = 2048;                                           // in one SET_PAGE_ACCESS
constexpr std::uint64_t kPagesPerEntryMax = std::numeric_limits<std::uint32_t>::max();  // what its field holds
constexpr PageRange kEveryPage{Gfn{0}, Gfn{std::uint64_t{1} << (64 - kPageShift)}};

constexpr PageRange range_of(const kvmi_page_access_entry& entry) {
  const std::uint64_t from = entry.gpa >> kPageShift;
  return {Gfn{from}, Gfn{from + entry.pages}};
}

/// The pages [gpa, gpa + pages) are whole and lie below max_gpa.
bool is_page_range(std::uint64_t gpa, std::uint64_t pages, std::uint64_t max_gpa) {
  return gpa % kPageSize == 0 && pages != 0 && gpa < max_gpa && pages <= (max_gpa - gpa) / kPageSize;
}

constexpr Refusal kOtherSpace{ErrorCode::NotSupported, "page rights exist in the normal address space only"};
constexpr Refusal kNotMemory{ErrorCode::Fault, "pages are not aligned or not guest memory"};

/// Appends [range) to the list; one entry goes on where the last one ended.
void append(std::vector<kvmi_page_access_entry>& entries, PageRange range, std::uint8_t access) {
  while (range.from < range.end) {
    kvmi_page_access_entry* last = entries.empty() ? nullptr : &entries.back();
    const bool extends =
        last != nullptr && last->access == access && last->pages != kPagesPerEntryMax && range_of(*last).end == range.from;
    if (!extends) last = &entries.emplace_back(kvmi_page_access_entry{gpa_of(range.from).value, 0, access, {}});
    const std::uint64_t pages = std::min(range.end.value - range.from.value, kPagesPerEntryMax - last->pages);
    last->pages += static_cast<std::uint32_t>(pages);
    range.from.value += pages;
  }
}

}  // namespace

// ---- what agents ask ----

std::optional<Refusal> GuestMachine::refusal_of_pages(const GetPageAccess& command) const {
  if (command.space != AddressSpace::Normal) return kOtherSpace;
  if (!is_page_range(command.gpa.value, command.pages, facts_.max_gpa)) return kNotMemory;
  return std::nullopt;
}

std::optional<Refusal> GuestMachine::refusal_of_pages(AgentSlot slot, const SetPageAccess& command) const {
  if (command.space != AddressSpace::Normal) return kOtherSpace;
  constexpr Refusal kOverQuota{ErrorCode::Busy, "quota of restricted pages (pages) is used up"};
  const std::uint64_t pages_max = agents_[slot].grant.quota.pages_max;
  std::uint64_t named = 0;  // to be restricted by this command: bounds the work that it can cause
  std::uint64_t restricted = pages_.pages_of(slot);
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const kvmi_page_access_entry entry = command.entries[i];
    if (!is_page_range(entry.gpa, entry.pages, facts_.max_gpa)) return kNotMemory;
    if (const auto error = x86::refuse_page_rights(entry.access, facts_.execute_only)) {
      const bool elsewhere = *error == x86::PageAccessError::ExecuteOnlyUnsupported;  // another processor has them
      return Refusal{elsewhere ? ErrorCode::NotSupported : ErrorCode::Invalid, x86::text_of(*error)};
    }
    if (entry.access == kRwx) continue;
    named += entry.pages;
    if (named > pages_max) return kOverQuota;
    const PageRange range = range_of(entry);
    restricted += entry.pages - pages_.restricted_in(slot, range.from, range.end);
    if (restricted > pages_max) return kOverQuota;
  }
  return std::nullopt;
}

/// The agent's own view, in runs of equal rights.
void GuestMachine::answer_page_access(AgentSlot slot, Seq seq, const GetPageAccess& command, Effects& out) {
  constexpr std::size_t kEntriesMax =
      (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_page_access_reply)) / sizeof(kvmi_page_access_entry);
  reply_entries_.clear();
  const Gfn first = gfn_of(command.gpa);
  const Gfn end{first.value + command.pages};
  for (Gfn gfn = first; gfn < end;) {
    const auto [access, run_end] = pages_.run(slot, gfn, end);
    if (reply_entries_.size() == kEntriesMax)
      return refuse(slot, seq, KVMI_MSG_GET_PAGE_ACCESS, ErrorCode::TooBig,
                    "the answer is larger than one message: ask for fewer pages", out);
    append(reply_entries_, {gfn, run_end}, access);
    gfn = run_end;
  }
  answer(
      slot, seq,
      {KVMI_MSG_GET_PAGE_ACCESS, {}, {}, GetPageAccessReply{std::span<const kvmi_page_access_entry>(reply_entries_)}},
      out);
}

// ---- the tables ----

void GuestMachine::apply_pages(AgentSlot slot, const std::vector<kvmi_page_access_entry>& entries) {
  for (const auto& entry : entries) {
    const PageRange range = range_of(entry);
    pages_.set(slot, range.from, range.end, entry.access, [&](PageRange changed, std::uint8_t before) {
      undo_.pages.push_back({changed, before});
      touched_pages_.push_back(changed);
    });
  }
}

void GuestMachine::undo_pages(AgentSlot slot) {
  // Backwards: a page that was named twice ends as it was before the first.
  for (auto undo = undo_.pages.rbegin(); undo != undo_.pages.rend(); ++undo)
    pages_.set(slot, undo->range.from, undo->range.end, undo->before,
               [&](PageRange changed, std::uint8_t) { touched_pages_.push_back(changed); });
}

/// The agent's view gives every right again.
void GuestMachine::withdraw_pages(AgentSlot slot) {
  pages_.remove(slot, [&](PageRange range) { touched_pages_.push_back(range); });
}

/// The hypervisor does not take these again: every agent gives up what it has there. Who lost something.
AgentSet GuestMachine::drop_pages(const SetPageAccess& command) {
  AgentSet losers;
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const PageRange range = range_of(command.entries[i]);
    present_.for_each([&](AgentSlot slot) {
      pages_.set(slot, range.from, range.end, kRwx, [&](PageRange changed, std::uint8_t) {
        touched_pages_.push_back(changed);
        losers.add(slot);
      });
    });
  }
  return losers;
}

// ---- what the hypervisor knows ----

void GuestMachine::touch_pages(const SetPageAccess& command) {
  for (std::size_t i = 0; i < command.entries.size(); ++i) touched_pages_.push_back(range_of(command.entries[i]));
}

void GuestMachine::touch_all_pages() { touched_pages_.assign(1, kEveryPage); }

void GuestMachine::note_pages_told(const SetPageAccess& command) {
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const kvmi_page_access_entry entry = command.entries[i];
    const PageRange range = range_of(entry);
    told_pages_.set(range.from, range.end, entry.access);
  }
}

/// Pages in runs of equal rights. Rights that are given back are told here, and cannot fail a change; those that are
/// taken are returned for tell_pages().
std::vector<kvmi_page_access_entry> GuestMachine::tell_pages_given_back() {
  if (touched_pages_.empty()) return {};
  std::sort(touched_pages_.begin(), touched_pages_.end());
  std::vector<kvmi_page_access_entry> given_back;
  std::vector<kvmi_page_access_entry> taken;
  PageAccess::Walk wanted(pages_);
  RightsMap::Cursor told(told_pages_);
  const bool nothing_wanted = withdrawing();
  Gfn at{0};
  for (const PageRange& range : touched_pages_) {
    at = std::max(at, range.from);  // they may overlap
    while (at < range.end) {
      const auto [want, want_end] = nothing_wanted ? std::pair{kRwx, range.end} : wanted.run(at, range.end);
      const auto [had, end] = told.run(at, want_end);
      if (want != had) append((had & ~want) == 0 ? given_back : taken, {at, end}, want);
      at = end;
    }
  }
  touched_pages_.clear();
  tell_pages(std::move(given_back), true);
  if (planted(Planted::RightsNotTold)) taken.clear();
  return taken;
}

void GuestMachine::tell_pages(std::vector<kvmi_page_access_entry> entries, bool given_back) {
  if (entries.empty()) return;
  const std::span<const kvmi_page_access_entry> all(batches_.emplace_back(std::move(entries)));
  for (std::size_t i = 0; i < all.size(); i += kPageEntriesMax)
    add_part(SetPageAccess{AddressSpace::Normal, all.subspan(i, std::min(kPageEntriesMax, all.size() - i))}, VcpuId{},
             given_back);
}

}  // namespace kvmid::core
