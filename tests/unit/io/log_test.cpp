// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/log.h"

#include <catch2/catch.hpp>

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
