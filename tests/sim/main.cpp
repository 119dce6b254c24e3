// SPDX-License-Identifier: GPL-2.0-or-later
// sim: the pure core among simulated hypervisors and agents, one seed, one run.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <deque>
#include <random>
#include <sstream>

#include "tests/sim/world.h"
#ifdef KVMID_PLANTED_BUGS
#include "tests/sim/planted_search.h"
#endif

namespace kvmid::sim {
namespace {

constexpr std::size_t kLastLines = 50;
/// From here on a run has seen everything that it can see, or something is wrong with it.
constexpr std::uint64_t kCoverageSteps = 100'000;

constexpr std::string_view kAbout =
    "Runs the core of kvmid among simulated guests, hypervisors and agents: they wish, vote, stay silent, break the\n"
    "protocol, refuse, are unhooked, go and come back, and die, at any moment. After every step (one input of the "
    "core)\n"
    "the invariants of tests/sim/invariants.h must hold. The same seed gives the same run, on every machine.\n\n"
    "  sim --steps 100000                   one run, its seed is printed\n"
    "  sim --seed 7 --steps 5000 --trace    what happens in run 7, a line for each input and effect\n"
    "  sim --seed 1-20 --steps 25000        twenty runs of 25,000 steps\n"
    "  sim --runs 10 --steps 50000          ten runs, with seeds that nobody has seen before\n\n"
    "Exit code: 0 all held; 1 an invariant was violated (the last lines of the run are printed), or "
    "--require-coverage\n"
    "missed something; 2 the arguments are not understood.";

/// "7", "1-20", "3,9,12-14".
std::optional<std::vector<std::uint64_t>> seeds_of(const std::string& text) {
  std::vector<std::uint64_t> seeds;
  std::stringstream parts(text);
  std::string part;
  while (std::getline(parts, part, ',')) {
    unsigned long long first = 0;
    unsigned long long last = 0;
    int end = 0;
    if (std::sscanf(part.c_str(), "%llu-%llu%n", &first, &last, &end) != 2 || end != static_cast<int>(part.size())) {
      if (std::sscanf(part.c_str(), "%llu%n", &first, &end) != 1 || end != static_cast<int>(part.size()))
        return std::nullopt;
      last = first;
    }
    if (last < first || last - first > 1'000'000) return std::nullopt;
    for (unsigned long long seed = first; seed <= last; ++seed) seeds.push_back(seed);
  }
  return seeds.empty() ? std::nullopt : std::optional(seeds);
}

/// The run once more, up to where it broke: it is the same run, so nothing had to be kept the first time.
void print_last_lines(std::uint64_t seed, std::uint64_t steps, unsigned guest) {
  const std::string of_guest = " guest " + std::to_string(guest) + " ";  // the others have no part in it
  std::deque<std::string> lines;
  bool same = false;
  World world(seed);
  world.trace_to([&](const std::string& line) {
    if (line.find(of_guest) == std::string::npos) return;
    if (lines.size() == kLastLines) lines.pop_front();
    lines.push_back(line);
  });
  try {
    world.run(steps, [] { return false; });
  } catch (const Violation&) {
    same = true;
  }
  for (const std::string& line : lines) std::printf("%s\n", line.c_str());
  if (!same) std::printf("the run with this seed did not break again: it is not a function of its seed\n");
}

void print(const Counts& counts, double seconds, std::size_t runs) {
  for (std::size_t i = 0; i < kSeenNames.size(); ++i) {
    const auto count = counts.of(static_cast<Seen>(i));
    std::printf("%12llu  %s\n", static_cast<unsigned long long>(count), std::string(kSeenNames[i]).c_str());
  }
  const auto steps = static_cast<double>(counts.of(Seen::Steps));
  std::printf("%zu runs, %.0f steps in %.1f s, %.0f steps/s\n", runs, steps, seconds, steps / seconds);
}

}  // namespace

int main_of(int argc, char** argv) {
  CLI::App app{std::string(kAbout), "sim"};
  std::string seed_text;
  std::uint64_t steps = kCoverageSteps;
  unsigned runs = 1;
  double seconds = 0;
  bool trace = false;
  bool require_coverage = false;
  bool quiet = false;
  app.add_option("--seed,--seeds", seed_text, "seeds: 7, 1-20 or 3,9,12-14; without it they come from the OS");
  app.add_option("--steps", steps, "steps of each run")->capture_default_str();
  app.add_option("--runs", runs, "runs with seeds from the OS")->capture_default_str();
  app.add_option("--seconds", seconds, "end after so many seconds, between two steps; 0: never");
  app.add_option("--past", past_texts, "go on past violations with this text, where that is possible");
  app.add_flag("--trace", trace, "print a line for each input and effect");
  app.add_flag("--require-coverage", require_coverage,
               "fail if some kind of thing never happened (100,000 steps or more)");
  app.add_flag("--quiet", quiet, "print the last line of the summary only");
#ifdef KVMID_PLANTED_BUGS
  std::string plant;
  bool find_planted = false;
  app.add_option("--plant", plant, "put this mistake into the core: " + planted_names());
  app.add_flag(
      "--find-planted", find_planted,
      "for each mistake run the seeds until its own invariant is violated; fail if one is not, or if something is "
      "found where none is planted");
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    (void)app.exit(error);
    return 2;
  }

  std::vector<std::uint64_t> seeds;
  if (!seed_text.empty()) {
    const auto given = seeds_of(seed_text);
    if (!given) {
      std::fprintf(stderr, "sim: '%s' is no list of seeds, such as 7, 1-20 or 3,9,12-14\n", seed_text.c_str());
      return 2;
    }
    seeds = *given;
  } else {
    std::random_device device;
    for (unsigned i = 0; i < runs; ++i) seeds.push_back(device());
    std::string text;
    for (const auto seed : seeds) text += (text.empty() ? "" : ",") + std::to_string(seed);
    std::printf("seeds %s\n", text.c_str());
    std::fflush(stdout);
  }

#ifdef KVMID_PLANTED_BUGS
  if (find_planted) return find_planted_bugs(seeds, steps);
  if (!plant.empty()) {
    const auto bug = planted_of(plant);
    if (!bug) {
      std::fprintf(stderr, "sim: '%s' is no mistake that can be planted: %s\n", plant.c_str(), planted_names().c_str());
      return 2;
    }
    core::planted_bug = *bug;
  }
#endif

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto enough = [&] { return seconds > 0 && passed() > seconds; };
  Counts counts;
  std::size_t done = 0;
  for (const auto seed : seeds) {
    if (enough()) break;
    World world(seed);
    if (trace) world.trace_to([](const std::string& line) { std::printf("%s\n", line.c_str()); });
    try {
      world.run(steps, enough);
    } catch (const Violation& violation) {
      std::printf("\nVIOLATED %s\nseed %llu, step %llu, guest %u: %s\n", violation.name.c_str(),
                  static_cast<unsigned long long>(seed), static_cast<unsigned long long>(world.steps()), world.guest(),
                  violation.what());
      if (!trace) print_last_lines(seed, steps, world.guest());
      std::printf("replay: sim --seed %llu --steps %llu --trace\n", static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(steps));
      return 1;
    }
    counts.add(world.counts());
    ++done;
  }
  if (quiet) {
    const auto total = static_cast<double>(counts.of(Seen::Steps));
    std::printf("%zu runs, %.0f steps in %.1f s\n", done, total, passed());
  } else {
    print(counts, passed(), done);
  }
  if (!require_coverage || counts.of(Seen::Steps) < kCoverageSteps) return 0;
  bool all = true;
  for (std::size_t i = 0; i < kSeenNames.size(); ++i) {
    if (counts.of(static_cast<Seen>(i)) != 0) continue;
    std::printf("NOT COVERED %s: never happened\n", std::string(kSeenNames[i]).c_str());
    all = false;
  }
  return all ? 0 : 1;
}

}  // namespace kvmid::sim

int main(int argc, char** argv) { return kvmid::sim::main_of(argc, argv); }
