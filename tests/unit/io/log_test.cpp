// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/log.h"

#include <catch2/catch.hpp>

#include "daemon/io/log_budget.h"

using kvmid::io::field;

TEST_CASE("one plain word stands as it is in a log line", "[log]") {
  REQUIRE(field("web1") == "web1");
  REQUIRE(field("6a1f7e36-0000") == "6a1f7e36-0000");
  REQUIRE(field("grün") == "grün");
}

TEST_CASE("a value cannot end its field, forge another or break the line", "[log]") {
  REQUIRE(field("") == "\"\"");
  REQUIRE(field("two words") == "\"two words\"");
  REQUIRE(field("a=b") == "\"a=b\"");
  REQUIRE(field("x\" uid=0") == "\"x\\\" uid=0\"");
  REQUIRE(field("back\\slash") == "\"back\\\\slash\"");
  REQUIRE(field("new\nline\x7f\x1b") == "\"new\\x0aline\\x7f\\x1b\"");
}

TEST_CASE("a peer causes a burst of log lines, then a few a second, and what is left out is counted", "[log]") {
  kvmid::io::LogBudget budget;
  const kvmid::io::LogBudget::TimePoint start{std::chrono::hours(1)};
  unsigned allowed = 0;
  for (unsigned i = 0; i < 100; ++i) allowed += budget.allow(start) ? 1 : 0;
  REQUIRE(allowed == kvmid::io::LogBudget::kBurst);

  REQUIRE_FALSE(budget.allow(start + std::chrono::milliseconds(499)));
  REQUIRE(budget.allow(start + std::chrono::milliseconds(500)));
  REQUIRE(budget.suppressed() == 100 - kvmid::io::LogBudget::kBurst + 1);
  REQUIRE_FALSE(budget.allow(start + std::chrono::milliseconds(500)));
  REQUIRE(budget.allow(start + std::chrono::hours(1)));
  REQUIRE(budget.suppressed() == 1);
}
