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
/// Shapes:   a memfd of exactly bytes(), zeroed; data() is aligned to a page. fd() is read-only, and the file's mode
///           lets no other user open it for writing.
/// Owner:    with Owner::Told the first byte has a lock (OFD, for writing) as long as this object lives. The kernel
///           takes it off when this process ends, however it ends: F_OFD_GETLK of a reader says whether anybody writes.
///           Readers cannot forge it: it takes a descriptor that can write.
/// Errors:   the system call and its errno text. Needs Linux 5.1 (F_SEAL_FUTURE_WRITE).
/// Threads:  none of its own.
/// Lifetime: readers keep the memory alive by their mappings; data() ends with this object.
class SealedMemory {
 public:
  enum class Owner : bool { Silent, Told };
  /// `name` is what /proc/PID/maps shows. REQUIRES: bytes > 0.
  static Result<SealedMemory, Error> create(const char* name, std::size_t bytes, Owner owner = Owner::Silent);
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
  UniqueFd lock_;  ///< nobody else has this open file
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace kvmid::shm
