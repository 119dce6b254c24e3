// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// Descriptors and connecting: the little of POSIX that the client library needs.
///
/// Threads:  values; a descriptor belongs to one owner.
/// Errors:   ClientError, with the address in its text.

#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "client/client_error.h"
#include "protocol/result.h"

namespace kvmid::client {

/// An open file descriptor, closed with its owner.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

using SteadyClock = std::chrono::steady_clock;
using Millis = std::chrono::milliseconds;

/// A timeout that means "as long as the connection lives".
inline constexpr Millis kNoLimit{-1};

/// The point in time `timeout` from now; time_point::max() for a negative or overlong timeout.
SteadyClock::time_point deadline_after(Millis timeout);
/// What poll() takes: milliseconds left, rounded up, 0 when past, -1 for time_point::max().
int poll_timeout(SteadyClock::time_point until);

/// Connects a stream socket, non-blocking and close-on-exec.
/// `address`: a path ("/run/kvmid/agent.sock"), "@name" (abstract unix socket), or "cid:port" (vsock, two numbers).
Result<UniqueFd, ClientError> connect_stream(std::string_view address, SteadyClock::time_point until);

}  // namespace kvmid::client
