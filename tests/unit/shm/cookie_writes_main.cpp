// SPDX-License-Identifier: GPL-2.0-or-later
// cookie-writes: writes with cookies, compared with a model, for as many as wanted.
#include <CLI/CLI.hpp>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <random>

#include "tests/unit/shm/cookie_run.h"

int main(int argc, char** argv) {
  using namespace kvmid::shm::testing;
  CookieOptions options{.writes = 1'000'000};
  options.seed = std::random_device{}();
  const std::map<std::string, CookiePlant> plants{{"none", CookiePlant::None},
                                                  {"one-later", CookiePlant::OneLater},
                                                  {"one-shorter", CookiePlant::OneShorter}};
  CLI::App app(
      "Agents write a guest's memory with cookies; a model knows which writes are based on the latest state.\n"
      "Exit code: 0 no stale write was accepted (with --plant: the planted fault was found), 1 otherwise.");
  app.add_option("--writes", options.writes, "writes with a cookie")->check(CLI::PositiveNumber);
  app.add_option("--seed", options.seed, "one seed, one run");
  app.add_option("--plant", options.plant, "break something on purpose: none, one-later, one-shorter")
      ->transform(CLI::CheckedTransformer(plants, CLI::ignore_case));
  CLI11_PARSE(app, argc, argv);
  const CookieResult result = run_cookies(options);
  const auto line = [](const char* name, std::uint64_t value) { std::printf("%-22s %14" PRIu64 "\n", name, value); };
  line("seed", options.seed);
  line("writes with cookie", result.writes);
  line("accepted", result.accepted);
  line("  on a mapped read", result.mapped);
  line("  on a relayed read", result.relayed);
  line("refused", result.refused);
  line("  without need", result.cautious);
  line("writes without cookie", result.blind);
  line("map changes", result.map_changes);
  line("mapped reads refused", result.unstable);
  line("UNDETECTED STALE", result.undetected);
  line("WRONG MAPPED READS", result.wrong);
  const bool clean = result.undetected + result.wrong == 0;
  return clean == (options.plant == CookiePlant::None) ? 0 : 1;
}
