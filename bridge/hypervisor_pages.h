// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <map>

#include "bridge/hypervisor_link.h"

namespace kvmid::bridge {

/// SET_PAGE_ACCESS of KVMI 2: runs of pages become entries of one page each, many messages of them.
///
/// Purpose:  one command may name all of a guest's memory; it is done as a whole or not at all.
/// Shapes:   messages are made as the hypervisor answers, kWindow at once. What it refuses in the middle is undone: it
///           gets the rights that it had before for every page of the command.
/// Errors:   the hypervisor's first. A page that v12 does not know is Fault.
/// Bounds:   kWindow messages for each command that the core has open.
class HypervisorPages {
 public:
  static constexpr unsigned kWindow = 16;
  static constexpr std::size_t kEntriesMax = 511;  ///< in one message of v6, v7 and v12

  explicit HypervisorPages(HypervisorLink& link) : link_(link) {}

  void send(const SetPageAccess& command, Seq seq, ByteBuffer& wire);
  Kept replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire);

 private:
  struct PageRun {
    std::uint64_t from = 0;  ///< gfn
    std::uint64_t end = 0;   ///< behind the last
    std::uint8_t access = 0;
  };
  struct Job {
    Seq seq;
    std::vector<PageRun> runs;
    std::size_t run = 0;     ///< what is sent next: the run,
    std::uint64_t page = 0;  ///< the page in it,
    std::uint16_t vcpu = 0;  ///< rfc2017: and the vCPU
    unsigned open = 0;
    bool undoing = false;
    Failure failure{};
  };
  void pump(std::uint32_t id, ByteBuffer& wire);
  void send_next(std::uint32_t id, Job& job, ByteBuffer& wire);
  void undo(Job& job) const;
  void note(const PageRun& run);
  [[nodiscard]] bool all_sent(const Job& job) const { return job.run == job.runs.size(); }

  HypervisorLink& link_;
  Jobs<Job> jobs_;
  /// [gfn of the first page] of those that do not have all rights; they do not overlap.
  std::map<std::uint64_t, PageRun> told_;
};

}  // namespace kvmid::bridge
