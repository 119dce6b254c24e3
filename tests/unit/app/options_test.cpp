// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmid's command line.

#include "daemon/app/options.h"

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>

using namespace kvmid::app;

namespace {

Options parsed(const char* option, const char* value) {
  const std::array<const char*, 3> words{"kvmid", option, value};
  auto result = parse_options(static_cast<int>(words.size()), words.data(), "0");
  REQUIRE(std::holds_alternative<Options>(result));
  return std::get<Options>(result);
}

}  // namespace

TEST_CASE("the configuration file is named from the root, for others who are to look at it", "[app]") {
  CHECK(parsed("--config", "some/kvmid.json").config_file ==
        (std::filesystem::current_path() / "some/kvmid.json").string());
  CHECK(parsed("--config", "/etc/kvmid/kvmid.json").config_file == "/etc/kvmid/kvmid.json");
}

TEST_CASE("a file that is only checked keeps the name that it was given", "[app]") {
  const auto options = parsed("--check-config", "kvmid.json");
  CHECK(options.check_only);
  CHECK(options.config_file == "kvmid.json");
}
