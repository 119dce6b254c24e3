// SPDX-License-Identifier: GPL-2.0-or-later
// Page rights as runs, against the plainest thing that can say the same: an array with a byte for each page.
#include <array>
#include <catch2/catch.hpp>
#include <random>

#include "daemon/core/page_access.h"

namespace kvmid::core {

namespace {

constexpr std::uint8_t kR = KVMI_PAGE_ACCESS_R, kRw = kR | KVMI_PAGE_ACCESS_W, kRx = kR | KVMI_PAGE_ACCESS_X;
constexpr std::uint64_t kPages = 96;

struct Change {
  PageRange range;
  std::uint8_t before;
};

std::vector<Change> set(RightsMap& map, std::uint64_t from, std::uint64_t end, std::uint8_t access) {
  std::vector<Change> changes;
  map.set(Gfn{from}, Gfn{end}, access,
          [&](PageRange range, std::uint8_t before) { changes.push_back({range, before}); });
  return changes;
}

std::vector<PageRange> ranges(const RightsMap& map) {
  std::vector<PageRange> all;
  map.for_each([&](PageRange range, std::uint8_t) { all.push_back(range); });
  return all;
}

PageRange range(std::uint64_t from, std::uint64_t end) { return {Gfn{from}, Gfn{end}}; }

using Naive = std::array<std::uint8_t, kPages>;

Naive every_right() {
  Naive pages;
  pages.fill(kRwx);
  return pages;
}

/// Runs of pages that have less than every right.
std::size_t runs_of(const Naive& pages) {
  std::size_t runs = 0;
  for (std::size_t i = 0; i < kPages; ++i) runs += pages[i] != kRwx && (i == 0 || pages[i - 1] != pages[i]) ? 1U : 0U;
  return runs;
}

std::uint64_t restricted_in(const Naive& pages, std::uint64_t from, std::uint64_t end) {
  std::uint64_t count = 0;
  for (std::uint64_t i = from; i < end; ++i) count += pages[i] != kRwx ? 1U : 0U;
  return count;
}

void require_same(const RightsMap& map, const Naive& pages) {
  for (std::uint64_t i = 0; i < kPages; ++i) REQUIRE(map.at(Gfn{i}) == pages[i]);
  REQUIRE(map.at(Gfn{kPages}) == kRwx);
  REQUIRE(map.runs() == runs_of(pages));  // as few as there can be
  REQUIRE(map.empty() == (runs_of(pages) == 0));
  REQUIRE(map.restricted() == restricted_in(pages, 0, kPages));
  std::uint64_t behind = 0;
  map.for_each([&](PageRange run, std::uint8_t access) {
    REQUIRE(run.from.value >= behind);
    REQUIRE(run.from < run.end);
    REQUIRE(access == pages[run.from.value]);
    behind = run.end.value;
  });
}

}  // namespace

TEST_CASE("runs of equal rights that touch are one, others stay apart", "[pages][ranges]") {
  RightsMap map;
  set(map, 10, 20, kR);
  set(map, 30, 40, kR);
  REQUIRE(ranges(map) == std::vector{range(10, 20), range(30, 40)});
  SECTION("what lies between joins both") {
    set(map, 20, 30, kR);
    REQUIRE(ranges(map) == std::vector{range(10, 40)});
    REQUIRE(map.restricted() == 30);
  }
  SECTION("other rights between join none") {
    set(map, 20, 30, kRw);
    REQUIRE(ranges(map) == std::vector{range(10, 20), range(20, 30), range(30, 40)});
  }
  SECTION("a hole makes two of one") {
    set(map, 13, 15, kRwx);
    REQUIRE(ranges(map) == std::vector{range(10, 13), range(15, 20), range(30, 40)});
    REQUIRE(map.restricted() == 18);
    REQUIRE(map.restricted_in(Gfn{12}, Gfn{16}) == 2);
  }
  SECTION("one over all of them leaves one") {
    const auto changes = set(map, 0, 50, kRx);
    REQUIRE(ranges(map) == std::vector{range(0, 50)});
    REQUIRE(changes.size() == 5);
    REQUIRE(changes[1].range == range(10, 20));
    REQUIRE(changes[1].before == kR);
    REQUIRE(changes[2].before == kRwx);
  }
}

TEST_CASE("what is already so is no change", "[pages][ranges]") {
  RightsMap map;
  REQUIRE(set(map, 0, 1000, kRwx).empty());
  REQUIRE(map.empty());
  REQUIRE(set(map, 5, 9, kR).size() == 1);
  REQUIRE(set(map, 6, 8, kR).empty());
  const auto changes = set(map, 0, 7, kR);
  REQUIRE(changes.size() == 1);
  REQUIRE(changes[0].range == range(0, 5));
  REQUIRE(set(map, 3, 3, kRwx).empty());
  REQUIRE(ranges(map) == std::vector{range(0, 9)});
}

TEST_CASE("a million pages that are set, changed and cut in the middle are never more than three runs",
          "[pages][ranges]") {
  RightsMap map;
  set(map, 0, 1000000, kR);
  REQUIRE(map.runs() == 1);
  for (std::uint64_t i = 1; i < 5000; ++i) {
    set(map, i, i + 1, kRw);
    REQUIRE(map.runs() == 3);
    set(map, i, i + 1, kR);
    REQUIRE(map.runs() == 1);
  }
  REQUIRE(map.restricted() == 1000000);
}

TEST_CASE("whatever is set, runs say the same as a byte for each page", "[pages][ranges]") {
  constexpr std::uint8_t kRights[] = {0, kR, kRw, kRx, kRwx, kRwx};
  std::mt19937_64 random(0x7061676573);
  const auto pick = [&](std::uint64_t below) {
    return std::uniform_int_distribution<std::uint64_t>(0, below - 1)(random);
  };
  for (unsigned run = 0; run < 50; ++run) {
    RightsMap map;
    Naive pages = every_right();
    for (unsigned step = 0; step < 200; ++step) {
      const std::uint64_t from = pick(kPages);
      // Mostly short: long ones would leave nothing to split and to join.
      const std::uint64_t end = from + 1 + pick(pick(4) == 0 ? kPages - from : std::min<std::uint64_t>(6, kPages - from));
      const std::uint8_t access = kRights[pick(std::size(kRights))];
      CAPTURE(run, step, from, end, unsigned{access});

      Naive before = pages;
      std::array<bool, kPages> said{};
      for (const Change& change : set(map, from, end, access)) {
        for (std::uint64_t i = change.range.from.value; i < change.range.end.value; ++i) {
          REQUIRE(before[i] == change.before);
          said[i] = true;
        }
      }
      for (std::uint64_t i = from; i < end; ++i) pages[i] = access;
      for (std::uint64_t i = 0; i < kPages; ++i) REQUIRE(said[i] == (before[i] != pages[i]));
      require_same(map, pages);

      const std::uint64_t a = pick(kPages), b = a + pick(kPages - a + 1);
      REQUIRE(map.restricted_in(Gfn{a}, Gfn{b}) == restricted_in(pages, a, b));
      // A cursor that leaps sees what one that walks sees.
      RightsMap::Cursor cursor(map);
      for (std::uint64_t at = pick(8); at < kPages;) {
        const auto [rights, run_end] = cursor.run(Gfn{at}, Gfn{kPages});
        REQUIRE(run_end.value > at);
        for (std::uint64_t i = at; i < run_end.value; ++i) REQUIRE(pages[i] == rights);
        REQUIRE((run_end.value == kPages || pages[run_end.value] != rights));
        at = run_end.value + pick(20);
      }
    }
    map.clear();
    require_same(map, every_right());
  }
}

TEST_CASE("whatever agents set, views, effective rights and who forbids are those of a byte for each page",
          "[pages][ranges]") {
  constexpr AgentSlot kSlots[] = {0, 1, 7, 63};
  constexpr std::uint8_t kRights[] = {0, kR, kRw, kRx, kRwx};
  std::mt19937_64 random(0x76696577);
  const auto pick = [&](std::uint64_t below) {
    return std::uniform_int_distribution<std::uint64_t>(0, below - 1)(random);
  };
  PageAccess access;
  std::array<Naive, std::size(kSlots)> views;
  views.fill(every_right());
  for (unsigned step = 0; step < 3000; ++step) {
    CAPTURE(step);
    const std::size_t who = pick(std::size(kSlots));
    if (pick(40) == 0) {
      std::uint64_t pages = 0;
      access.remove(kSlots[who], [&](PageRange range) {
        for (std::uint64_t i = range.from.value; i < range.end.value; ++i) REQUIRE(views[who][i] != kRwx);
        pages += range.end.value - range.from.value;
      });
      REQUIRE(pages == restricted_in(views[who], 0, kPages));
      views[who] = every_right();
    } else {
      const std::uint64_t from = pick(kPages), end = from + 1 + pick(std::min<std::uint64_t>(12, kPages - from));
      const std::uint8_t rights = kRights[pick(std::size(kRights))];
      access.set(kSlots[who], Gfn{from}, Gfn{end}, rights, [](PageRange, std::uint8_t) {});
      for (std::uint64_t i = from; i < end; ++i) views[who][i] = rights;
    }

    AgentSet restricting;
    for (std::size_t agent = 0; agent < std::size(kSlots); ++agent) {
      REQUIRE(access.pages_of(kSlots[agent]) == restricted_in(views[agent], 0, kPages));
      if (access.pages_of(kSlots[agent]) != 0) restricting.add(kSlots[agent]);
    }
    REQUIRE(access.restricting() == restricting);
    PageAccess::Walk walk(access);
    for (std::uint64_t at = 0; at < kPages;) {
      const auto [rights, run_end] = walk.run(Gfn{at}, Gfn{kPages});
      REQUIRE(run_end.value > at);
      for (; at < run_end.value; ++at) {
        std::uint8_t together = kRwx;
        AgentSet forbidding;
        const auto wanted = static_cast<std::uint8_t>(1U << (at % 3));
        for (std::size_t agent = 0; agent < std::size(kSlots); ++agent) {
          const std::uint8_t view = views[agent][at];
          REQUIRE(access.view(kSlots[agent], Gfn{at}) == view);
          together = static_cast<std::uint8_t>(together & view);
          if ((view & wanted) == 0) forbidding.add(kSlots[agent]);
        }
        REQUIRE(rights == together);
        REQUIRE(access.effective(Gfn{at}) == together);
        REQUIRE(access.forbidding(Gfn{at}, wanted) == forbidding);
      }
    }
  }
}

}  // namespace kvmid::core
