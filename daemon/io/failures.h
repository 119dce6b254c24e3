// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace kvmid::io {

/// Which connection did not come about, or ended because its peer broke its dialect.
enum class FailureSide : std::uint8_t {
  Hypervisor,  ///< connected to kvmid
  Agent,       ///< connected to kvmid
  Dial,        ///< a tool that kvmid connects to
};
[[nodiscard]] std::string_view name_of(FailureSide side);  ///< "hypervisor", "agent", "dial"

/// The step at which a connection failed: one word or two for people, always one of these.
namespace step {
inline constexpr std::string_view kConnect = "connect";        ///< dial: nobody listens, or it may not be reached
inline constexpr std::string_view kHandshake = "handshake";    ///< the first bytes of a newcomer
inline constexpr std::string_view kSent = "handshake sent";    ///< dial: the tool did not take it
inline constexpr std::string_view kAnswer = "answer";          ///< dial: the tool's answer is missing or wrong
inline constexpr std::string_view kCookie = "cookie";          ///< dial: the tool does not know the secret
inline constexpr std::string_view kPeer = "peer not allowed";  ///< neither by hypervisor peers nor by bound_to
inline constexpr std::string_view kPolicy = "policy";          ///< no rule, or a quota of one
inline constexpr std::string_view kGuest = "guest";            ///< there is none, or it has a hypervisor already
inline constexpr std::string_view kLimits = "limits";          ///< there is no room
inline constexpr std::string_view kStart = "start";            ///< a hypervisor went before its guest was known
inline constexpr std::string_view kDialect = "dialect";        ///< the peer said what its dialect does not have
}  // namespace step

struct ConnectionFailure {
  std::chrono::system_clock::time_point time{};  ///< of the last one
  FailureSide side{};
  std::string peer;   ///< "pid=10 uid=0 gid=0", "cid=3"; of a dial: name and address of the tool
  std::string guest;  ///< name or UUID; empty where it is not known
  std::string_view step;
  std::string text;
  std::uint64_t times = 1;  ///< in a row; only the last one's time is kept
};

/// The last failed connections, for the admin side.
///
/// Purpose:  what to look at when a hypervisor or a tool does not show up.
/// Bounds:   the last kMax, of one peer the last kMaxOfPeer; a failure that repeats the one before of the same peer and
///           guest only counts it.
/// Threads:  any; a mutex inside. Never used for events.
class FailureRing {
 public:
  static constexpr std::size_t kMax = 64;
  static constexpr std::size_t kMaxOfPeer = kMax / 2;

  void add(ConnectionFailure failure);
  /// Oldest first.
  [[nodiscard]] std::vector<ConnectionFailure> list() const;

 private:
  mutable std::mutex mutex_;
  std::deque<ConnectionFailure> ring_;
};

}  // namespace kvmid::io
