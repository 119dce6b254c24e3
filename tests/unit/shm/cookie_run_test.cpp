// SPDX-License-Identifier: GPL-2.0-or-later
// A million writes with cookies against a model. `cookie-writes` does more of it.
#include "tests/unit/shm/cookie_run.h"

#include <catch2/catch.hpp>

namespace kvmid::shm::testing {

TEST_CASE("of a million writes with a cookie each accepted one is based on the latest state", "[shm][cookie]") {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr std::uint64_t kWrites = 50'000;
#else
  constexpr std::uint64_t kWrites = 1'000'000;
#endif
  const CookieResult result = run_cookies({.writes = kWrites, .seed = 7});
  REQUIRE(result.writes == kWrites);
  REQUIRE(result.undetected == 0);
  REQUIRE(result.wrong == 0);
  // Each way of reading led to accepted writes, and there was something to refuse.
  REQUIRE(result.mapped > kWrites / 100);
  REQUIRE(result.relayed > kWrites / 100);
  REQUIRE(result.refused > kWrites / 10);
  REQUIRE(result.map_changes > kWrites / 10'000);
}

TEST_CASE("a cookie that passes for the next one, and a byte too few that is looked at, are found", "[shm][cookie]") {
  const CookiePlant plant = GENERATE(CookiePlant::OneLater, CookiePlant::OneShorter);
  REQUIRE(run_cookies({.writes = 100'000, .seed = 7, .plant = plant}).undetected > 0);
}

}  // namespace kvmid::shm::testing
