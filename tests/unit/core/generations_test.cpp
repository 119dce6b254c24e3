// SPDX-License-Identifier: GPL-2.0-or-later
// Generations: false conflicts are allowed, missed ones never.
#include "daemon/core/generations.h"

#include <catch2/catch.hpp>
#include <map>
#include <random>

namespace kvmid::core::testing {

TEST_CASE("a cookie is good until something of its range changes", "[generations]") {
  Generations memory;
  const std::uint64_t cookie = memory.current();
  REQUIRE(cookie != 0);
  REQUIRE(memory.is_unchanged(Gpa{0x1000}, 16, cookie));
  memory.change(Gpa{0x3000}, 1);
  REQUIRE(memory.is_unchanged(Gpa{0x1000}, 0x2000, cookie));
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 0x2001, cookie));
  REQUIRE_FALSE(memory.is_current(cookie));
  REQUIRE(memory.is_unchanged(Gpa{0x3000}, 1, memory.current()));
  memory.change(Gpa{0x4fff}, 2);  // two pages
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0x5000}, 1, cookie));
}

TEST_CASE("a change of the map makes every cookie stale, and new ones good", "[generations]") {
  Generations memory;
  const std::uint64_t cookie = memory.current();
  memory.change_map();
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 1, cookie));
  REQUIRE(memory.is_unchanged(Gpa{0x1000}, 1, memory.current()));
}

TEST_CASE("cookies that were never given are stale", "[generations][hostile]") {
  Generations memory;
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0}, 1, 0));
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0}, 1, memory.current() + 1));
  REQUIRE_FALSE(memory.is_unchanged(Gpa{0}, 1, ~std::uint64_t{0}));
}

TEST_CASE("cookies begin at the seed: those of a former life are stale, and none is 0", "[generations]") {
  Generations former(1000);
  REQUIRE(former.current() == 1000);
  const std::uint64_t first = former.current();
  for (int i = 0; i < 50; ++i) former.change(Gpa{0x1000}, 1);
  Generations memory(2000);
  for (int i = 0; i < 50; ++i) {
    REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 1, first));
    REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 1, former.current()));
    REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 1, 1999));
    memory.change(Gpa{0x2000}, 1);
  }
  REQUIRE(memory.is_unchanged(Gpa{0x1000}, 1, 2000));

  REQUIRE(Generations(0).current() == 1);
  REQUIRE(Generations().current() == 1);
}

TEST_CASE("whatever the seed, there is room for changes before a wrap", "[generations][hostile]") {
  for (const std::uint64_t seed : {~std::uint64_t{0}, std::uint64_t{1} << 63U, (std::uint64_t{1} << 63U) - 1}) {
    Generations memory(seed);
    const std::uint64_t cookie = memory.current();
    REQUIRE(cookie != 0);
    REQUIRE(cookie < std::uint64_t{1} << 63U);
    memory.change(Gpa{0x1000}, 1);
    REQUIRE(memory.current() > cookie);
    REQUIRE_FALSE(memory.is_unchanged(Gpa{0x1000}, 1, cookie));
  }
}

TEST_CASE("ranges at the end of the address space, and larger than the table", "[generations]") {
  Generations memory;
  const std::uint64_t cookie = memory.current();
  memory.change(Gpa{~std::uint64_t{0} - 1}, 2);
  REQUIRE_FALSE(memory.is_unchanged(Gpa{~std::uint64_t{0}}, 1, cookie));
  const std::uint64_t next = memory.current();
  memory.change(Gpa{0}, (Generations::kPlaces + 7) * kPageSize);
  for (const std::uint64_t gfn : {std::uint64_t{0}, std::uint64_t{Generations::kPlaces - 1}, std::uint64_t{6}})
    REQUIRE_FALSE(memory.is_unchanged(gpa_of(Gfn{gfn}), 1, next));
}

TEST_CASE("random changes and checks against a list of everything that happened: no conflict is missed",
          "[generations]") {
  std::mt19937_64 random(GENERATE(1U, 2U, 3U));
  const auto pick = [&](std::uint64_t below) { return random() % below; };
  Generations memory;
  std::map<std::uint64_t, std::uint64_t> last;  // by gfn: cookie of its last change
  std::uint64_t map_changed = 0;
  unsigned good = 0;
  unsigned false_conflicts = 0;
  for (unsigned i = 0; i < 200'000; ++i) {
    // Pages that share places, and some that do not.
    const Gpa gpa{(pick(64) + pick(3) * Generations::kPlaces) * kPageSize + pick(kPageSize)};
    const std::uint64_t size = 1 + pick(3 * kPageSize);
    if (pick(1000) == 0) {
      memory.change_map();
      map_changed = memory.current();
    } else if (pick(3) == 0) {
      memory.change(gpa, size);
      for (std::uint64_t gfn = gfn_of(gpa).value; gfn <= gfn_of(Gpa{gpa.value + size - 1}).value; ++gfn)
        last[gfn] = memory.current();
    } else {
      const std::uint64_t cookie = memory.current() - pick(std::min<std::uint64_t>(memory.current(), 100));
      bool changed = map_changed > cookie;
      for (std::uint64_t gfn = gfn_of(gpa).value; gfn <= gfn_of(Gpa{gpa.value + size - 1}).value; ++gfn)
        changed = changed || (last.count(gfn) != 0 && last[gfn] > cookie);
      const bool said = memory.is_unchanged(gpa, size, cookie);
      if (changed) REQUIRE_FALSE(said);
      good += said ? 1 : 0;
      false_conflicts += !changed && !said ? 1 : 0;
    }
  }
  REQUIRE(good > 1000);
  REQUIRE(false_conflicts > 100);  // pages that share a place: allowed, and met here
}

}  // namespace kvmid::core::testing
