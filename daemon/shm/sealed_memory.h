// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>

#include "daemon/shm/error.h"
#include "daemon/shm/unique_fd.h"
#include "protocol/result.h"

namespace kvmid::shm {

/// Memory that this process writes and others can only read.
///
/// Purpose:  whoever gets the descriptor can map it and read it: no write, no writable mapping, no truncation, no seal
///           of his own. The only writable mapping was made before the seals.
/// Shapes:   a memfd of exactly bytes(), zeroed; data() is aligned to a page.
/// Errors:   the system call and its errno text. Needs Linux 5.1 (F_SEAL_FUTURE_WRITE).
/// Threads:  none of its own.
/// Lifetime: readers keep the memory alive by their mappings; data() ends with this object.
class SealedMemory {
 public:
  /// `name` is what /proc/PID/maps shows. REQUIRES: bytes > 0.
  static Result<SealedMemory, Error> create(const char* name, std::size_t bytes);
  SealedMemory(SealedMemory&& other) noexcept;
  SealedMemory& operator=(SealedMemory&& other) noexcept;
  ~SealedMemory();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  /// To hand out; stays owned here.
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  SealedMemory(UniqueFd fd, std::byte* data, std::size_t bytes) : fd_(std::move(fd)), data_(data), bytes_(bytes) {}
  void unmap();

  UniqueFd fd_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace kvmid::shm
