// SPDX-License-Identifier: GPL-2.0-or-later
//
// KVMID_RANDOM_SEED is the first seed of a run (default 1), KVMID_RANDOM_STEPS how many steps each dialect makes.

#include <catch2/catch.hpp>

#include <cstdlib>
#include <string>

#include "tests/unit/bridge/pair/tool_world.h"

using namespace kvmid;
using namespace kvmid::bridge::test;

namespace {

constexpr std::uint64_t kStepsOfSeed = 2000;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

void run(bool polite) {
  const auto dialect =
      GENERATE(kvmi1::DialectId::V6, kvmi1::DialectId::V7, kvmi1::DialectId::V12, kvmi1::DialectId::Rfc2017);
  const std::uint64_t first = from_environment("KVMID_RANDOM_SEED", 1);
  const std::uint64_t steps = from_environment("KVMID_RANDOM_STEPS", 100000);
  std::uint64_t done = 0, commands = 0, replies = 0, events = 0, event_replies = 0, errors = 0, closed = 0;
  for (std::uint64_t seed = first; done < steps; ++seed) {
    std::uint64_t step = 0;
    try {
      ToolWorld world(dialect, seed, polite);
      for (; step < kStepsOfSeed && done < steps; ++step, ++done) world.step();
      world.finish();
      commands += world.counts().commands;
      replies += world.counts().replies;
      events += world.counts().events;
      event_replies += world.counts().event_replies;
      errors += world.counts().errors;
      closed += world.counts().closed;
    } catch (const std::exception& error) {
      FAIL(kvmi1::name_of(dialect) << ", seed " << seed << ", step " << step << ": " << error.what());
    }
  }
  CHECK(commands > 1000);
  CHECK(replies > 500);
  CHECK(errors > 100);
  CHECK(events > 200);
  CHECK(event_replies > 200);
  CHECK((closed != 0) == !polite);
}

}  // namespace

TEST_CASE("a tool that keeps to its dialect has what it asked for, whatever the core does", "[tool]") { run(true); }

TEST_CASE("a tool that sends anything has no more than it asked for", "[tool]") { run(false); }
