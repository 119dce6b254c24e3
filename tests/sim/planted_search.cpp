// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/planted_search.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "tests/sim/world.h"

namespace kvmid::sim {

namespace {

using core::Planted;

struct Bug {
  Planted bug{};
  std::string_view name;
  std::string_view invariant;  ///< the beginning of the name of the one that it violates
};
constexpr std::array<Bug, 9> kBugs{{
    {Planted::DeadlineIgnored, "DeadlineIgnored", "I1"},
    {Planted::MsrNotTakenBack, "MsrNotTakenBack", "I2"},
    {Planted::RightsNotTold, "RightsNotTold", "I3"},
    {Planted::PatchesLeft, "PatchesLeft", "I4"},
    {Planted::HitsToEverybody, "HitsToEverybody", "I5"},
    {Planted::RequestNotReleased, "RequestNotReleased", "I6"},
    {Planted::OutcomeWrong, "OutcomeWrong", "I7"},
    {Planted::OthersNotHeld, "OthersNotHeld", "I8"},
    {Planted::CookieOffByOne, "CookieOffByOne", "I9"},
}};

struct Found {
  std::string invariant;
  std::string text;
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
};
std::optional<Found> run(std::uint64_t seed, std::uint64_t steps) {
  World world(seed);
  try {
    world.run(steps, [] { return false; });
  } catch (const Violation& violation) {
    return Found{violation.name, violation.what(), seed, world.steps()};
  }
  return std::nullopt;
}

void print(std::string_view bug, std::string_view invariant, const std::optional<Found>& found) {
  std::printf("%-19.*s %-10.*s ", static_cast<int>(bug.size()), bug.data(), static_cast<int>(invariant.size()),
              invariant.data());
  if (!found) {
    std::printf("not found\n");
    return;
  }
  std::printf("%6llu %7llu  %s: %s\n", static_cast<unsigned long long>(found->seed),
              static_cast<unsigned long long>(found->step), found->invariant.c_str(), found->text.c_str());
}

}  // namespace

std::optional<Planted> planted_of(std::string_view name) {
  for (const Bug& bug : kBugs)
    if (bug.name == name) return bug.bug;
  return std::nullopt;
}

std::string planted_names() {
  std::string text;
  for (const Bug& bug : kBugs) text += (text.empty() ? "" : ", ") + std::string(bug.name);
  return text;
}

int find_planted_bugs(const std::vector<std::uint64_t>& seeds, std::uint64_t steps) {
  bool good = true;
  std::size_t needed = 0;
  std::printf("%-19s %-10s %6s %7s  %s\n", "bug", "invariant", "seed", "step", "found as");
  for (const Bug& bug : kBugs) {
    core::planted_bug = bug.bug;
    std::optional<Found> found;
    std::size_t runs = 0;
    std::string others;
    // What goes wrong first differs from run to run: an MSR that is left is seen as soon as all is quiet, or at an
    // UNHOOK.
    while (runs < seeds.size()) {
      found = run(seeds[runs++], steps);
      if (found && found->invariant.starts_with(bug.invariant)) break;
      if (found) others += " " + found->invariant.substr(0, bug.invariant.size());
      found.reset();
    }
    needed = std::max(needed, runs);
    print(bug.name, bug.invariant, found);
    if (!others.empty()) std::printf("%-30s  runs before that one ended with%s\n", "", others.c_str());
    good = good && found;
  }
  core::planted_bug = Planted::None;
  for (std::size_t i = 0; i < needed; ++i)
    if (const auto found = run(seeds[i], steps)) {
      print("none", "none", found);
      good = false;
    }
  std::printf("%s, with %zu seeds of %llu steps\n",
              good ? "each was found, and nothing where none is planted" : "NOT as it should be", needed,
              static_cast<unsigned long long>(steps));
  return good ? 0 : 1;
}

}  // namespace kvmid::sim
