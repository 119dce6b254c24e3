// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <deque>

#include "bridge/hypervisor_patches.h"

namespace kvmid::bridge {

/// READ_PHYSICAL and WRITE_PHYSICAL of KVMI 2, with all its flags, on a hypervisor that reads and writes within a page.
///
/// Purpose:  ranges become pieces, answers become one; patches, and writes that expect something, become a look at
///           memory and then a write.
/// Shapes:   reads, and writes that touch no patch, are sent at once, one behind the other. What needs a look first
///           is alone: what comes after it waits in its order.
/// Errors:   what the hypervisor says; memory that it does not have is Fault. A write of several pages that it refuses
/// in
///           the middle has been done before that.
/// Bounds:   as many jobs as the core has commands open. One can be thousands of pieces: what comes while kPiecesMax or
///           more are unanswered waits, in its order.
class HypervisorMemory {
 public:
  static constexpr std::size_t kPiecesMax = 16384;

  explicit HypervisorMemory(HypervisorLink& link) : link_(link) {}

  void send(const ReadPhysical& command, Seq seq, ByteBuffer& wire);
  void send(const WritePhysical& command, Seq seq, ByteBuffer& wire);
  Kept replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire);

  [[nodiscard]] const HypervisorPatches& patches() const { return patches_; }

 private:
  struct Piece {
    Gpa gpa;
    std::size_t at = 0;  ///< in the job's bytes
    std::size_t size = 0;
  };
  enum class Step : std::uint8_t { Read, Look, Write };
  struct Job {
    Seq seq;
    CommandId id{};
    Step step{};
    bool alone = false;
    unsigned open = 0;
    Failure failure{};
    std::vector<Piece> pieces{};
    std::vector<kvmi_read_range> ranges{};  ///< READ_PHYSICAL
    std::vector<std::byte> bytes{};         ///< what memory held
    // WRITE_PHYSICAL
    Gpa gpa{};
    std::uint16_t flags = 0;
    std::vector<std::byte> data{};
    std::vector<std::byte> expected{};
    [[nodiscard]] bool is(unsigned flag) const { return (flags & flag) != 0; }
  };

  [[nodiscard]] std::optional<Failure> refusal_of(const ReadPhysical& command) const;
  [[nodiscard]] std::optional<Failure> refusal_of(const WritePhysical& command) const;
  [[nodiscard]] bool may_start() const { return !alone_ && pieces_open_ < kPiecesMax; }
  [[nodiscard]] bool waits() const { return !may_start() || !queue_.empty(); }
  void start(Job job, ByteBuffer& wire);
  void start_queued(ByteBuffer& wire);
  void cut(Job& job, Gpa gpa, std::size_t at, std::size_t size) const;
  void read(std::uint32_t id, Job& job, ByteBuffer& wire);
  void write(std::uint32_t id, Job& job, const std::vector<Run>& runs, ByteBuffer& wire);
  Kept take(const Asked& asked, const kvmi1::Reply& reply, Job& job);
  void step_done(std::uint32_t id, Job& job, ByteBuffer& wire);
  void looked(std::uint32_t id, Job& job, ByteBuffer& wire);
  void finish(std::uint32_t id, Job& job);

  HypervisorLink& link_;
  HypervisorPatches patches_;
  Jobs<Job> jobs_;
  bool alone_ = false;  ///< a job that looks first is under way
  std::size_t pieces_open_ = 0;
  std::deque<Job> queue_;
};

}  // namespace kvmid::bridge
