// SPDX-License-Identifier: GPL-2.0-or-later
// Readers of shared RAM while it changes: nothing half done is ever accepted. `torn-reads` does more of it.
#include <catch2/catch.hpp>

#include "tests/unit/shm/torn_reads.h"

namespace kvmid::shm::testing {

TEST_CASE("of two million reads among writers none is torn, stale or of two moments", "[shm][threads]") {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr std::uint64_t kReads = 100'000;
#else
  constexpr std::uint64_t kReads = 2'000'000;
#endif
  const TornResult result = run_torn_reads({.reads = kReads});
  REQUIRE(result.accepted >= kReads);
  REQUIRE(result.torn == 0);
  REQUIRE(result.stale == 0);
  REQUIRE(result.split == 0);
  // There was something to tear.
  REQUIRE(result.changes > 100);
  REQUIRE(result.fresh > 100);
  REQUIRE(result.refused > 0);
}

TEST_CASE("a reader that does not look again, and writers that mark too late or too short, are found",
          "[shm][threads]") {
  const TornPlant plant = GENERATE(TornPlant::NoRecheck, TornPlant::LateMark, TornPlant::EarlyEnd);
  const TornResult result = run_torn_reads({.reads = 200'000'000, .seed = 3, .plant = plant});
  REQUIRE(result.torn + result.stale + result.split > 0);
}

}  // namespace kvmid::shm::testing
