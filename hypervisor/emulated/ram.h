// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::emulated {

/// Guest RAM: one range from GPA 0, in a memfd that others can map too.
///
/// Purpose:  the memory that Unicorn executes in and that kvmid may map: offset = GPA for every slot of the normal
///           address space. What is no slot reads as zeros there.
/// Shapes:   the memfd has mode 0600, and its size is sealed.
/// Errors:   create() says which system call failed; addresses outside are answered by null or false.
/// Threads:  none of its own. Other processes may write at any time: what is read twice may differ.
/// Lifetime: unmapped and closed with the object.
class GuestRam {
 public:
  struct Error {
    std::string text;
  };
  /// `bytes`: a multiple of kPageSize.
  static Result<GuestRam, Error> create(std::uint64_t bytes);
  GuestRam(GuestRam&& other) noexcept;
  GuestRam& operator=(GuestRam&&) = delete;
  ~GuestRam();

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] int fd() const { return fd_; }
  /// Host address of `size` bytes at `gpa`, or null if they are not all RAM.
  [[nodiscard]] std::byte* at(Gpa gpa, std::uint64_t size) const {
    return size <= bytes_ && gpa.value <= bytes_ - size ? base_ + gpa.value : nullptr;
  }
  [[nodiscard]] bool read(Gpa gpa, void* out, std::size_t size) const;
  [[nodiscard]] bool write(Gpa gpa, const void* data, std::size_t size);

 private:
  GuestRam(int fd, std::byte* base, std::uint64_t bytes) : fd_(fd), base_(base), bytes_(bytes) {}
  int fd_;
  std::byte* base_;
  std::uint64_t bytes_;
};

}  // namespace kvmid::emulated
