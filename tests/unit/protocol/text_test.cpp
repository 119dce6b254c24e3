// SPDX-License-Identifier: GPL-2.0-or-later
#include "protocol/text.h"

#include <catch2/catch.hpp>
#include <string>

using namespace kvmid;

TEST_CASE("well-formed UTF-8 is taken whole", "[text]") {
  for (const std::string text :
       {"", "plain", "größe", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"}) {
    CAPTURE(text);
    REQUIRE(valid_utf8_prefix(text) == text.size());
  }
}

TEST_CASE("the prefix ends before the first malformed byte", "[text]") {
  REQUIRE(valid_utf8_prefix("ab\xff") == 2);
  REQUIRE(valid_utf8_prefix("ab\xc3") == 2);              // cut
  REQUIRE(valid_utf8_prefix("\xc0\xaf") == 0);            // overlong
  REQUIRE(valid_utf8_prefix("\xe0\x9f\xbf") == 0);        // overlong
  REQUIRE(valid_utf8_prefix("\xed\xa0\x80") == 0);        // surrogate
  REQUIRE(valid_utf8_prefix("\xf4\x90\x80\x80") == 0);    // over U+10FFFF
  REQUIRE(valid_utf8_prefix("x\x80") == 1);               // continuation alone
}

TEST_CASE("a name has no control characters", "[text]") {
  REQUIRE(is_printable_name("web 1"));
  REQUIRE(is_printable_name("größe"));
  REQUIRE_FALSE(is_printable_name("a\nb"));
  REQUIRE_FALSE(is_printable_name("a\x7f"));
  REQUIRE_FALSE(is_printable_name("a\xc2\x9b"));
  REQUIRE_FALSE(is_printable_name("a\xff"));
}
