// SPDX-License-Identifier: GPL-2.0-or-later
//
// KVMID_RANDOM_SEED is the first seed of a run (default 1), KVMID_RANDOM_STEPS how many steps each dialect makes.

#include <catch2/catch.hpp>

#include <cstdlib>
#include <string>

#include "tests/unit/bridge/pair/pair_world.h"

using namespace kvmid;
using namespace kvmid::bridge::test;

namespace {

constexpr std::uint64_t kStepsOfSeed = 2500;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

PairWorld::Counts run(kvmi1::DialectId dialect) {
  const std::uint64_t first = from_environment("KVMID_RANDOM_SEED", 1);
  const std::uint64_t steps = from_environment("KVMID_RANDOM_STEPS", 100000);
  PairWorld::Counts all;
  std::uint64_t done = 0;
  for (std::uint64_t seed = first; done < steps; ++seed) {
    std::uint64_t step = 0;
    try {
      PairWorld world(dialect, seed);
      for (; step < kStepsOfSeed && done < steps; ++step, ++done) world.step();
      world.finish();
      const auto& counts = world.counts();
      all.commands += counts.commands;
      all.refusals += counts.refusals;
      all.events += counts.events;
      all.skips += counts.skips;
      all.patches += counts.patches;
      all.comparisons += counts.comparisons;
      all.stale += counts.stale;
    } catch (const std::exception& error) {
      FAIL(kvmi1::name_of(dialect) << ", seed " << seed << ", step " << step << ": " << error.what());
    }
  }
  CHECK(all.commands > 100);
  CHECK(all.refusals > 10);
  CHECK(all.events > 100);
  CHECK(all.comparisons > 10);
  CHECK(all.stale > 3);
  return all;
}

}  // namespace

TEST_CASE("a guest behind both bridges is as one of KVMI 2: v6", "[pair]") {
  const auto counts = run(kvmi1::DialectId::V6);
  CHECK(counts.patches > 50);
}

TEST_CASE("a guest behind both bridges is as one of KVMI 2: v7", "[pair]") {
  const auto counts = run(kvmi1::DialectId::V7);
  CHECK(counts.patches > 50);
  CHECK(counts.skips > 10);
}

TEST_CASE("a guest behind both bridges is as one of KVMI 2: v12", "[pair]") {
  const auto counts = run(kvmi1::DialectId::V12);
  CHECK(counts.patches > 50);
  CHECK(counts.skips > 10);
}

TEST_CASE("a guest behind both bridges is as one of KVMI 2: rfc2017", "[pair]") { run(kvmi1::DialectId::Rfc2017); }
