// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "daemon/shm/error.h"
#include "daemon/shm/unique_fd.h"
#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::shm {

/// Guest RAM that a hypervisor shares, mapped read-only. Offset = GPA.
///
/// Purpose:  kvmid answers reads from it, and hands it on to agents, without trusting who gave it.
/// Shapes:   a memfd (or another file that knows seals) whose size is what the handshake announced.
/// Bounds:   at least one page, less than kRamBytesMax.
/// Errors:   map(): what is wrong with the file, or the system call and its errno text. read(): outside, or the mapping
///           has failed. A hypervisor that cuts its file short costs its own guest the mapping, nothing else.
/// Threads:  all calls may be made from any thread.
/// Lifetime: owns descriptor and mapping.
/// Note:     reading a page that the guest has never touched makes it resident, as in any mapping of shared memory.
class GuestRam {
 public:
  static constexpr std::uint64_t kRamBytesMax = std::uint64_t{1} << 46U;

  static Result<std::unique_ptr<GuestRam>, Error> map(UniqueFd fd, std::uint64_t ram_bytes);
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;
  ~GuestRam();

  /// The bytes as they are now; what else is going on is the caller's business.
  Result<void, Error> read(Gpa gpa, std::span<std::byte> to);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// The file cannot be cut short: reading it never faults, here or in an agent.
  [[nodiscard]] bool sealed() const { return sealed_; }
  /// A read has met a fault: the mapping is dead, and every read answers an error.
  [[nodiscard]] bool failed() const { return failed_.load(std::memory_order_relaxed); }

  /// A descriptor for an agent: it cannot be written or mapped writable. See writable_by(). One that came for reading
  /// and writing is opened again, by /proc, which the file's mode must let this process do: a hypervisor of another user
  /// sends one for reading.
  [[nodiscard]] Result<UniqueFd, Error> read_only_fd() const;
  /// Whether a process of that user that has a read-only descriptor could open it again, by /proc, for writing. A grant
  /// to it is refused then. Says yes when it cannot find out. A process with CAP_DAC_OVERRIDE and another uid is not seen.
  [[nodiscard]] bool writable_by(uid_t uid) const;

 private:
  GuestRam(UniqueFd fd, const std::byte* data, std::uint64_t bytes, bool sealed)
      : fd_(std::move(fd)), data_(data), bytes_(bytes), sealed_(sealed) {}

  UniqueFd fd_;
  const std::byte* data_;
  std::uint64_t bytes_;
  bool sealed_;
  std::atomic<bool> failed_{false};
};

}  // namespace kvmid::shm
