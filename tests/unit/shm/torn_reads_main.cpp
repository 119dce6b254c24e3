// SPDX-License-Identifier: GPL-2.0-or-later
// torn-reads: readers of shared guest RAM among writers, for as many reads as wanted.
#include <CLI/CLI.hpp>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <random>

#include "tests/unit/shm/torn_reads.h"

int main(int argc, char** argv) {
  using namespace kvmid::shm::testing;
  TornOptions options{.reads = 2'000'000};
  options.seed = std::random_device{}();
  const std::map<std::string, TornPlant> plants{{"none", TornPlant::None},
                                                {"no-recheck", TornPlant::NoRecheck},
                                                {"late-mark", TornPlant::LateMark},
                                                {"early-end", TornPlant::EarlyEnd}};
  CLI::App app(
      "Reads mapped guest RAM while it is changed, and looks at every read that was accepted.\n"
      "Exit code: 0 nothing was torn or stale (with --plant: the planted fault was found), 1 otherwise.");
  app.add_option("--reads", options.reads, "accepted reads in all")->check(CLI::PositiveNumber);
  app.add_option("--readers", options.readers, "reader threads")->check(CLI::Range(1, 256));
  app.add_option("--writers", options.writers, "writer threads")->check(CLI::Range(1, 256));
  app.add_option("--seed", options.seed, "of the choices; the threads' turns are not repeatable");
  app.add_option("--plant", options.plant, "break something on purpose: none, no-recheck, late-mark, early-end")
      ->transform(CLI::CheckedTransformer(plants, CLI::ignore_case));
  CLI11_PARSE(app, argc, argv);
  const TornResult result = run_torn_reads(options);
  const auto line = [](const char* name, std::uint64_t value) { std::printf("%-18s %14" PRIu64 "\n", name, value); };
  line("seed", options.seed);
  line("reads accepted", result.accepted);
  line("ranges in them", result.ranges);
  line("attempts refused", result.refused);
  line("met a patch", result.asked);
  line("saw a new value", result.fresh);
  line("changes", result.changes);
  line("overlapping", result.overlaps);
  line("patches", result.patches);
  line("map changes", result.map_changes);
  line("TORN", result.torn);
  line("STALE", result.stale);
  line("SPLIT", result.split);
  std::printf("%-18s %14.1f (%.2f million reads a second)\n", "seconds", result.seconds,
              static_cast<double>(result.accepted) / result.seconds / 1e6);
  const bool clean = result.torn + result.stale + result.split == 0;
  return clean == (options.plant == TornPlant::None) ? 0 : 1;
}
