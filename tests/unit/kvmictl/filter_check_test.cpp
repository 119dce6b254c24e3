// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/filter_check.h"

#include <catch2/catch.hpp>

using namespace kvmid;
using namespace kvmid::ctl;

namespace {

client::EventFilter filter(std::string_view text) {
  auto parsed = client::parse_event_filter(text);
  REQUIRE(parsed);
  return std::move(parsed).value();
}
std::string_view constant(std::string_view text) {
  const auto terms = client::parse_filter(text);
  REQUIRE(terms);
  return constant_term(terms->front());
}

}  // namespace

TEST_CASE("a filter is shown as it was understood", "[kvmictl][filter]") {
  CHECK(render_filter(filter("cr: cr==3 and new&255==1 or rip in 4096..8191"), 0) ==
        "event cr: the agent is asked when all terms of a group hold\n"
        "\n"
        "TERM  GROUP       COMPARISON\n"
        "   1      1       cr == 3\n"
        "   2      1  and  new & 0xff == 0x1\n"
        "   3      2  or   rip in 0x1000..0x1fff\n");
}

TEST_CASE("a filter as JSON", "[kvmictl][filter]") {
  const Json json = filter_json(filter("page_fault: access & w == w or vcpu == 1"));
  CHECK(json["schema"] == 1);
  CHECK(json["ok"] == true);
  CHECK(json["event"] == "page_fault");
  CHECK(json["text"] == "access & w == w or vcpu == 1");
  CHECK(json["terms"].size() == 2);
  CHECK(json["terms"][0] == Json{{"group", 1},
                                 {"field", "access"},
                                 {"compare", "mask_eq"},
                                 {"value", "0x2"},
                                 {"operand", "0x2"},
                                 {"text", "access & w == w"}});
  CHECK(json["terms"][1] ==
        Json{{"group", 2}, {"field", "vcpu"}, {"compare", "eq"}, {"value", "0x1"}, {"text", "vcpu == 1"}});
}

TEST_CASE("an error as JSON", "[kvmictl][filter]") {
  const auto parsed = client::parse_event_filter("cr: cr = 3");
  REQUIRE_FALSE(parsed);
  const Json json = filter_json(parsed.error());
  CHECK(json["ok"] == false);
  CHECK(json["column"] == 8);
  CHECK(json["error"].get<std::string>().find("not \"=\"") != std::string::npos);
}

TEST_CASE("a term that is the same for every event is noted", "[kvmictl][filter]") {
  CHECK(constant("rax < 0") == "never holds: nothing is below 0");
  CHECK(constant("rax < 1").empty());
  CHECK(constant("rax > 0xffffffffffffffff") == "never holds: nothing is larger");
  CHECK(constant("rax > 0").empty());
  CHECK(constant("rax >= 0") == "always holds: the range is all there is");
  CHECK(constant("rax >= 1").empty());
  CHECK(constant("rax & 0xf0 == 1") == "never holds: the value has bits that the mask has not");
  CHECK(constant("rax & 0xf0 != 1") == "always holds: the value has bits that the mask has not");
  CHECK(constant("rax & 0 == 0") == "always holds: the mask is 0");
  CHECK(constant("rax & 0 != 0") == "never holds: the mask is 0");
  CHECK(constant("rax & 0xf == 0").empty());
  CHECK(constant("rax == 0").empty());
  CHECK(filter_json(filter("cr: cr < 0"))["terms"][0]["note"] == "never holds: nothing is below 0");
  CHECK(render_filter(filter("cr: cr == 3 and cr < 0"), 0).ends_with(
      "\nnote: term 2 never holds: nothing is below 0\n"));
}
