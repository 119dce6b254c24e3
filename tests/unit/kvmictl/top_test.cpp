// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/top.h"

#include <catch2/catch.hpp>
#include <sstream>

using namespace kvmid::ctl;
using namespace std::chrono_literals;

namespace {

TopSample sample(std::chrono::milliseconds at, int events, int decided, int expired) {
  TopSample out;
  out.at = std::chrono::steady_clock::time_point(at);
  out.status = Json{{"version", "0.1.0"},
                    {"uptime_s", 61},
                    {"counters", {{"events", events + 5}, {"decided", decided}, {"expired", expired}}}};
  out.guests = Json{{"guests",
                     {{{"uuid", "u1"}, {"name", "quiet"}, {"state", "online"}, {"agents", 0}, {"events", 5}},
                      {{"uuid", "u2"}, {"name", "busy"}, {"state", "online"}, {"agents", 1}, {"events", events}}}}};
  out.agents = Json{{"agents",
                     {{{"id", 1},
                       {"name", "calm"},
                       {"guest", "u2"},
                       {"guest_name", "busy"},
                       {"role", "observer"},
                       {"queued_bytes", 0},
                       {"requests_open", 0},
                       {"strikes", 0},
                       {"expired", 0},
                       {"demoted", Json::array()}},
                      {{"id", 2},
                       {"name", "slow"},
                       {"guest", "u2"},
                       {"guest_name", "busy"},
                       {"role", "decider"},
                       {"queued_bytes", 20480},
                       {"requests_open", 3},
                       {"patches", 7},
                       {"filtered", events},
                       {"strikes", 2},
                       {"expired", expired},
                       {"demoted", {"cr"}}}}}};
  out.counters["u2"] = {{"decided", decided}, {"expired", expired}, {"filtered", 2 * events}};
  return out;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

}  // namespace

TEST_CASE("rates are the differences of two looks over the time between them", "[kvmictl]") {
  const auto picture = compare(sample(0ms, 100, 80, 1), sample(2000ms, 300, 180, 4));
  CHECK(picture.seconds == Approx(2));
  CHECK(picture.events == Approx(100));
  CHECK(picture.decided == Approx(50));
  CHECK(picture.expired == 3);
  REQUIRE(picture.guests.size() == 2);
  CHECK(picture.guests[0].name == "busy");  // the busiest is on top
  CHECK(picture.guests[0].events == Approx(100));
  CHECK(picture.guests[0].decided == Approx(50));
  CHECK(picture.guests[0].expired == 3);
  CHECK(picture.guests[0].expired_ever == 4);
  CHECK(picture.guests[1].events == Approx(0));
  REQUIRE(picture.agents.size() == 2);
  CHECK(picture.agents[0].name == "slow");  // the fullest queue is on top
  CHECK(picture.agents[0].expired == 3);
}

TEST_CASE("a daemon that was started anew does not count backwards", "[kvmictl]") {
  const auto picture = compare(sample(0ms, 1000, 800, 9), sample(1000ms, 10, 8, 0));
  CHECK(picture.guests[0].events == Approx(10));
  CHECK(picture.guests[0].expired == 0);
  CHECK(compare(sample(5ms, 1, 1, 0), sample(5ms, 2, 1, 0)).guests[0].events < 1e9);  // no time passed
}

TEST_CASE("counters in the list itself go before those that were asked for", "[kvmictl]") {
  auto before = sample(0ms, 0, 0, 0), now = sample(1000ms, 0, 0, 0);
  before.guests["guests"][1]["counters"] = {{"decided", 5}, {"expired", 0}};
  now.guests["guests"][1]["counters"] = {{"decided", 12}, {"expired", 0}};
  const auto picture = compare(before, now);
  for (const auto& guest : picture.guests) {
    if (guest.name == "busy") CHECK(guest.decided == Approx(7));
  }
}

TEST_CASE("the picture for a pipe shows everything", "[kvmictl]") {
  const auto now = sample(2000ms, 300, 180, 4);
  CHECK(render_top(compare(sample(0ms, 100, 80, 1), now), now, {}) ==
        "kvmid 0.1.0  up 1m 1s  2 guests  2 agents\n"
        "events 100/s  decided 50.0/s  expired 3\n"
        "\n"
        "GUEST  STATE   AGENTS  EVENTS/S  DECIDED/S  FILTERED/S  EXPIRED  EVER\n"
        "busy   online       1       100       50.0         200        3     4\n"
        "quiet  online       0         0          0           0        0     0\n"
        "\n"
        "ID  AGENT  ON    ROLE               QUEUE  REQUESTS  PATCHES  FILTERED/S  STRIKES  EXPIRED\n"
        " 2  slow   busy  decider (demoted)    20K         3        7         100        2        3\n"
        " 1  calm   busy  observer               0         0        0           0        0        0\n");
}

TEST_CASE("the picture for a terminal fits it, whatever its size", "[kvmictl]") {
  auto before = sample(0ms, 100, 80, 1), now = sample(2000ms, 300, 180, 4);
  for (int i = 0; i < 50; ++i) {
    Json guest = now.guests["guests"][0];
    guest["uuid"] = "v" + std::to_string(i);
    guest["name"] = "a-guest-with-a-rather-long-name-" + std::to_string(i);
    now.guests["guests"].push_back(guest);
    now.agents["agents"].push_back(now.agents["agents"][0]);
  }
  const auto picture = compare(before, now);
  for (std::size_t columns = 20; columns < 130; columns += 5) {
    for (std::size_t rows = 4; rows < 60; rows += 3) {
      INFO(columns << "x" << rows);
      const auto lines = lines_of(render_top(picture, now, {columns, rows}));
      CHECK(lines.size() <= rows);
      for (const auto& line : lines) CHECK(characters(line) <= columns);
    }
  }
  const auto text = render_top(picture, now, {100, 24});
  CHECK(text.find("... ") != std::string::npos);   // it says that there are more
  CHECK(text.find("AGENT") != std::string::npos);  // and guests leave room for agents
}

TEST_CASE("only the busiest guests are asked for their counters", "[kvmictl]") {
  const auto before = sample(0ms, 100, 0, 0), now = sample(1000ms, 300, 0, 0);
  CHECK(busiest(before, now.guests, 1) == std::vector<std::string>{"u2"});
  CHECK(busiest(before, now.guests, 10).size() == 2);
  CHECK(busiest({}, Json::parse(R"({"guests":7})"), 10).empty());
}

TEST_CASE("the picture as JSON, and a picture of nothing", "[kvmictl]") {
  const auto json = top_json(compare(sample(0ms, 100, 80, 1), sample(2000ms, 300, 180, 4)));
  CHECK(json["schema"] == 1);
  CHECK(json["guests"][0]["events_per_s"] == Approx(100));
  CHECK(json["guests"][0]["filtered_per_s"] == Approx(200));
  CHECK(json["agents"][0]["queued_bytes"] == 20480);
  CHECK(json["agents"][0]["patches"] == 7);
  CHECK(json["agents"][0]["filtered_per_s"] == Approx(100));
  const TopSample nothing;
  CHECK(compare(nothing, nothing).guests.empty());
  CHECK_FALSE(render_top(compare(nothing, nothing), nothing, {80, 24}).empty());
}
