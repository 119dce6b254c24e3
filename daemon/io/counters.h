// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <cstdint>

namespace kvmid::io {

/// What happened at the sockets since the start. Counts only grow.
///
/// Threads:  any thread adds and reads; the numbers are statistics and order nothing.
struct IoCounters {
  using Count = std::atomic<std::uint64_t>;
  Count connections_accepted{0};
  Count connections_refused{0};  ///< over connections_max, or refused after their hello
  Count hello_timeouts{0};       ///< connected and did not say hello in time
  Count hello_refused{0};        ///< what they said was no hello
  Count frames_refused{0};       ///< streams that could not be cut into frames
  Count slow_readers{0};         ///< closed because they did not read what was sent
  Count malformed_closed{0};     ///< agents closed for too many malformed messages in a row
  Count accept_paused{0};        ///< no descriptor was left to accept with
  Count agents_revoked{0};       ///< closed because a new policy knows them no more
};
inline void add_one(IoCounters::Count& count) { count.fetch_add(1, std::memory_order_relaxed); }

}  // namespace kvmid::io
