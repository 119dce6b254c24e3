// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <optional>
#include <string>
#include <variant>

namespace kvmid::app {

/// Exit codes of kvmid; they are part of its interface.
enum ExitCode : int {
  kExitOk = 0,        ///< stopped as asked, or --check-config found nothing wrong
  kExitFailure = 1,   ///< could not start: a socket, the log
  kExitBadUsage = 2,  ///< a mistake in the configuration or on the command line
};

/// What the command line says.
struct Options {
  std::optional<std::string> config_file;  ///< of --config: absolute
  std::optional<std::string> runtime_dir;
  std::optional<std::string> log_level;
  bool check_only = false;
};

/// The options, or the exit code: --help and --version are answered here, mistakes are explained on standard error.
std::variant<Options, int> parse_options(int argc, const char* const* argv, const char* version);

}  // namespace kvmid::app
