// SPDX-License-Identifier: GPL-2.0-or-later
// Event round trip: hypervisor -> middle -> agents and back, where the middle is nothing, a bare relay, or kvmid.
// What is measured and how is in measure.h; this file is the command line.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/pairs.h"

namespace {

using namespace kvmid::bench;

constexpr const char* kHelp = R"(bench-roundtrip: event round trip through kvmid, a bare epoll relay, and nothing.

  bench-roundtrip [--json] [--rounds N] [--rows LIST] [--stalls N] [--kvmid PATH] [--unpinned] [--dialects]

  --rounds N   round trips of each lane in each row (default 5000)
  --rows LIST  rows to measure, with commas between: DECIDERS/OBSERVERS or "filter" (default: 1, 2, 4 and 8 deciders,
               each without and with 8 observers, and filter)
  --stalls N   events whose decider stays silent, to measure the release at the deadline (default 20)
  --kvmid PATH the daemon to measure (default: beside this program)
  --unpinned   let the scheduler place the processes; without it all of them share one CPU, for otherwise it is mostly
               its placement that is measured
  --dialects   instead: every dialect of a hypervisor with every dialect of an agent, one decider each
  --json       one JSON object; without it a table

The lanes of a row are measured in turn, 500 round trips at a time:
  direct    the hypervisor and one decider on a socket pair
  relay     one decider behind a process that moves bytes and knows nothing of them. It is what every row is compared
            with first, also the rows with many agents: without kvmid there is one agent alone
  fan-out   as many agents as kvmid has in that row, behind a process without logic that sends what comes to all of them
            and waits until each decider has said something: the least that several agents cost in any case. For one
            decider alone that is the bare relay
  kvmid     the daemon, with its default configuration
The row "filter" has one decider with a filter that never matches (SET_FILTER): kvmid answers by itself, so direct is
what to compare with. All times are those of the hypervisor, from sending the event to having its reply. A ratio is the
median of the ratios of batches that followed each other.
)";

struct Options {
  bool json = false;
  bool pinned = true;
  bool dialects = false;
  int rounds = 5000;
  int stalls = 20;
  std::vector<Row> rows = every_row();
  std::string kvmid;
};

int number(const std::string& text, const std::string& option, long max = 10'000'000) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0 || value > max)
    throw std::runtime_error(option + " takes a number from 0 to " + std::to_string(max) + ", is \"" + text + "\"");
  return static_cast<int>(value);
}

std::vector<Row> rows_of(const std::string& list) {
  constexpr long kAgentsMax = 32;  // two such numbers are as many agents as a guest can have
  std::vector<Row> rows;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t end = std::min(list.find(',', at), list.size());
    const std::string item = list.substr(at, end - at);
    at = end + 1;
    if (item == "filter") {
      rows.push_back({{1, 0}, true});
      continue;
    }
    const std::size_t slash = item.find('/');
    if (slash == std::string::npos)
      throw std::runtime_error("--rows takes DECIDERS/OBSERVERS or filter, is \"" + item + "\"");
    const Audience audience{number(item.substr(0, slash), "--rows", kAgentsMax),
                            number(item.substr(slash + 1), "--rows", kAgentsMax)};
    if (audience.deciders == 0) throw std::runtime_error("--rows: a row has one decider at least, is \"" + item + "\"");
    rows.push_back({audience});
  }
  return rows;
}

Options parse(int argc, char** argv) {
  Options options;
  options.kvmid = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kvmid";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--json") options.json = true;
    else if (argument == "--unpinned") options.pinned = false;
    else if (argument == "--dialects") options.dialects = true;
    else if (argument == "--rounds" && has_value) options.rounds = number(argv[++i], argument);
    else if (argument == "--rows" && has_value) options.rows = rows_of(argv[++i]);
    else if (argument == "--stalls" && has_value) options.stalls = number(argv[++i], argument, 100);
    else if (argument == "--kvmid" && has_value) options.kvmid = argv[++i];
    else if (argument == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    } else {
      throw std::runtime_error("do not understand \"" + argument + "\"; see --help");
    }
  }
  return options;
}

nlohmann::json measure(const Options& options) {
  if (options.dialects)
    return {{"schema", 2}, {"pinned", options.pinned}, {"pairs", measure_pairs(options.kvmid, options.rounds)}};
  Lane direct = direct_lane();
  Lane relayed = relay_lane();
  Daemon kvmid(options.kvmid);
  nlohmann::json result = {{"schema", 2}, {"pinned", options.pinned}, {"rows", nlohmann::json::array()}};
  for (const Row& row : options.rows)
    result["rows"].push_back(measure_row(kvmid, direct, relayed, row, options.rounds));
  if (options.stalls != 0) result["deadline"] = measure_deadline(kvmid, options.stalls);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (options.pinned) pin_to_one_cpu();
    const nlohmann::json result = measure(options);
    if (options.json) std::printf("%s\n", result.dump().c_str());
    else if (options.dialects) print_pairs(result["pairs"]);
    else print_table(result);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench-roundtrip: %s\n", error.what());
    return 1;
  }
}
