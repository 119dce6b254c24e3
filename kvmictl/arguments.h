// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// kvmictl's command line as a value.
///
/// Purpose:  parsing knows nothing of what the commands do, so it can be tested alone.
/// Errors:   a usage error is exit code 2 with the text to print.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace kvmid::ctl {

/// Documented in kvmictl --help and README.md; scripts depend on them.
enum ExitCode : int {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kUnreachable = 3,
  kNoGuest = 4,
  kRefused = 5,
  kNotSupported = 6,
  kTimeout = 7,
};

enum class Subcommand { Guests, Guest, Agents, Events, Regs, MemRead, Pause, Resume, Status };

struct Arguments {
  Subcommand subcommand{};
  std::string admin_socket;
  std::string agent_socket;
  bool json = false;
  std::string guest;
  std::optional<std::uint16_t> vcpu;  ///< none: all (regs: 0)
  std::string kinds = "all";
  std::uint64_t count = 0;  ///< 0: no end
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  bool raw = false;
  std::optional<double> hold_seconds;  ///< pause --for
};

/// Nothing to do but print: help, or what is wrong.
struct Answer {
  int exit_code = kOk;
  std::string out;    ///< for stdout
  std::string error;  ///< for stderr
};

/// Environment: KVMID_ADMIN_SOCKET and KVMID_AGENT_SOCKET are the defaults of the socket options.
std::variant<Arguments, Answer> parse(const std::vector<std::string>& words);

}  // namespace kvmid::ctl
