// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

namespace kvmid::shm::testing {

/// What is broken on purpose, to see that this run would find it.
enum class CookiePlant : std::uint8_t {
  None,
  OneLater,    ///< a cookie passes for the next one
  OneShorter,  ///< the last cell of a write is not looked at
};

struct CookieOptions {
  std::uint64_t writes = 0;  ///< with a cookie
  std::uint64_t seed = 1;
  CookiePlant plant = CookiePlant::None;
};

struct CookieResult {
  std::uint64_t writes = 0;     ///< with a cookie
  std::uint64_t accepted = 0;
  std::uint64_t refused = 0;
  std::uint64_t cautious = 0;   ///< refused, although what they are based on was the latest: pages share places
  std::uint64_t undetected = 0; ///< accepted, and based on something that had changed. There must be none
  std::uint64_t mapped = 0;     ///< accepted writes based on a read of the mapping
  std::uint64_t relayed = 0;    ///< accepted writes based on a read that the hypervisor answered
  std::uint64_t wrong = 0;      ///< mapped reads that held half a change. There must be none
  std::uint64_t unstable = 0;   ///< mapped reads that met a change under way
  std::uint64_t blind = 0;      ///< writes without a cookie
  std::uint64_t map_changes = 0;
};

/// Agents read and write a guest's memory, with cookies, in every way there is: through kvmid, and in the mapping; a
/// hypervisor does their writes later, in two halves; the memory map changes. Every write that core::Generations
/// accepts is compared with a model that knows which change each cell of memory comes from.
///
/// Threads: none. The same seed gives the same run.
CookieResult run_cookies(const CookieOptions& options);

}  // namespace kvmid::shm::testing
