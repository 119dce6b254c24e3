// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_pages.h"

#include <algorithm>
#include <array>

namespace kvmid::bridge {

namespace {
constexpr std::uint8_t kAllRights = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
}

void HypervisorPages::send(const SetPageAccess& command, Seq seq, ByteBuffer& wire) {
  const auto refuse = [&](ErrorCode error, std::string_view text) {
    link_.refuse(seq, CommandId::SetPageAccess, error, text);
  };
  if (command.space != AddressSpace::Normal)
    return refuse(ErrorCode::NotSupported, "this hypervisor has the normal address space only");
  if (command.entries.empty()) return refuse(ErrorCode::Invalid, "no entries");
  Job job{.seq = seq, .runs = {}};
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const kvmi_page_access_entry entry = command.entries[i];
    const std::uint64_t from = entry.gpa >> kPageShift;
    const std::string where = "entry " + std::to_string(i) + ": ";
    if (entry.pages == 0) return refuse(ErrorCode::Invalid, where + "0 pages");
    if (entry.gpa % kPageSize != 0)
      return refuse(ErrorCode::Invalid, where + "GPA " + hex_text(entry.gpa) + " is not the start of a page");
    if ((entry.access & ~kAllRights) != 0) return refuse(ErrorCode::Invalid, where + "unknown rights");
    if (from + entry.pages > (std::uint64_t{1} << (64 - kPageShift)))
      return refuse(ErrorCode::Fault, where + "pages behind the end of the address space");
    job.runs.push_back({from, from + entry.pages, entry.access});
  }
  const auto [id, added] = jobs_.add(std::move(job));
  static_cast<void>(added);
  pump(id, wire);
}

/// As much as may be unanswered at once; the answer to the core when there is no more.
void HypervisorPages::pump(std::uint32_t id, ByteBuffer& wire) {
  Job& job = jobs_.at(id);
  const auto failed = [&] { return job.failure.error != ErrorCode::None && !job.undoing; };
  while (job.open < kWindow && !all_sent(job) && !failed()) send_next(id, job, wire);
  if (job.open != 0) return;
  if (failed()) {
    undo(job);  // Telling --refused--> Undoing
    return pump(id, wire);
  }
  if (job.failure.error == ErrorCode::None) {
    for (const PageRun& run : job.runs) note(run);
    link_.answer(job.seq, CommandId::SetPageAccess);
  } else {
    link_.refuse(job.seq, CommandId::SetPageAccess, job.failure);
  }
  jobs_.remove(id);
}

void HypervisorPages::send_next(std::uint32_t id, Job& job, ByteBuffer& wire) {
  const auto next_page = [&] {
    const PageRun& run = job.runs[job.run];
    if (run.from + ++job.page < run.end) return;
    job.page = 0;
    ++job.run;
  };
  ++job.open;
  if (link_.dialect() == kvmi1::DialectId::Rfc2017) {
    const PageRun& run = job.runs[job.run];
    const Gpa gpa{(run.from + job.page) << kPageShift};
    link_.ask(kvmi1::SetVcpuPageAccess{VcpuId{job.vcpu}, gpa, run.access}, AskedBy::Pages, id, 0, wire);
    if (++job.vcpu < link_.facts.vcpus) return;
    job.vcpu = 0;
    return next_page();
  }
  std::array<kvmi1::PageAccessEntry, kEntriesMax> entries{};
  std::size_t count = 0;
  while (count < entries.size() && !all_sent(job)) {
    const PageRun& run = job.runs[job.run];
    entries[count].gpa = (run.from + job.page) << kPageShift;
    entries[count].access = run.access;
    ++count;
    next_page();
  }
  const std::span<const kvmi1::PageAccessEntry> filled(entries.data(), count);
  link_.ask(kvmi1::SetPageAccess{0, filled}, AskedBy::Pages, id, 0, wire);
}

Kept HypervisorPages::replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire) {
  Job& job = jobs_.at(asked.job);
  --job.open;
  if (reply.error != 0 && job.failure.error == ErrorCode::None) {
    job.failure = link_.failure_of(asked, reply.error);
    // All else was looked at before: to v12 this says that a page is not visible to the guest.
    if (job.failure.error == ErrorCode::Invalid && link_.dialect() == kvmi1::DialectId::V12)
      job.failure.error = ErrorCode::Fault;
  }
  pump(asked.job, wire);
  return {};
}

/// The job becomes one that gives all its pages the rights that they had.
void HypervisorPages::undo(Job& job) const {
  std::vector<PageRun> before;
  for (std::size_t i = 0; i <= job.run && i < job.runs.size(); ++i) {
    PageRun run = job.runs[i];
    // What was not sent needs no undoing. In rfc2017 some vCPUs may have been told of one page more.
    if (i == job.run) run.end = std::min(run.end, run.from + job.page + 1);
    std::uint64_t at = run.from;
    auto it = told_.upper_bound(at);
    if (it != told_.begin() && std::prev(it)->second.end > at) --it;
    for (; it != told_.end() && it->first < run.end; ++it) {
      const PageRun& had = it->second;
      if (at < had.from) before.push_back({at, had.from, kAllRights});
      before.push_back({std::max(at, had.from), std::min(run.end, had.end), had.access});
      at = before.back().end;
    }
    if (at < run.end) before.push_back({at, run.end, kAllRights});
  }
  job.runs = std::move(before);
  job.run = 0;
  job.page = 0;
  job.vcpu = 0;
  job.undoing = true;
}

void HypervisorPages::note(const PageRun& run) {
  auto it = told_.upper_bound(run.from);
  if (it != told_.begin() && std::prev(it)->second.end > run.from) --it;
  while (it != told_.end() && it->first < run.end) {
    const PageRun had = it->second;
    it = told_.erase(it);
    if (had.from < run.from) told_[had.from] = {had.from, run.from, had.access};
    if (had.end > run.end) told_[run.end] = {run.end, had.end, had.access};
  }
  if (run.access != kAllRights) told_[run.from] = run;
}

}  // namespace kvmid::bridge
