// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// kvmictl's command line as a value.
///
/// Purpose:  parsing knows nothing of what the commands do, so it can be tested alone.
/// Errors:   a usage error is exit code 2 with the text to print.

#include <cstddef>
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

enum class Subcommand {
  Guests,
  Guest,
  Agents,
  Agent,
  Status,
  Top,
  Events,
  Regs,
  MemRead,
  MemWrite,
  MemDump,
  MemSearch,
  MemWatch,
  MemTranslate,
  Disas,
  Pause,
  Resume,
  Crash,
  PolicyCheck,
  Reload,
  LogLevel,
  FilterCheck,
  Doctor,
};

/// Whom `policy check` asks about. Without any number: this process.
struct PolicyQuestion {
  std::optional<std::uint32_t> uid;
  std::vector<std::uint32_t> gids;
  std::optional<std::uint32_t> cid;
  std::string command;  ///< empty: not asked
  std::string event;    ///< empty: not asked
};

enum class DumpFormat { Raw, Elf };

// What one call of a subcommand of mem takes at most.
inline constexpr std::uint64_t kWholeMax = 64U << 20U;  ///< bytes that are kept before any is printed
inline constexpr std::uint64_t kStringMax = 4096;       ///< --string without LEN
inline constexpr std::uint64_t kWatchMax = 1U << 20U;
inline constexpr std::size_t kPatternMax = 4096;

/// Of mem, but for mem write.
struct MemoryArguments {
  bool is_virtual = false;
  unsigned integer_bytes = 0;  ///< read --int: 1, 2, 4, 8; 0: not given
  bool as_string = false;
  DumpFormat format{};
  bool resume = false;
  std::uint64_t rate = 0;  ///< bytes a second; 0: no limit
};

struct Arguments {
  Subcommand subcommand{};
  std::string admin_socket;
  std::string agent_socket;
  bool json = false;
  std::string guest;  ///< doctor: may be empty
  std::uint32_t agent = 0;
  std::optional<std::uint16_t> vcpu;  ///< none: all (regs, disas, crash: 0)
  std::string kinds = "all";
  std::uint64_t count = 0;               ///< events, mem search, mem watch: 0 is no end; disas: instructions
  std::optional<std::uint64_t> address;  ///< disas: none is RIP
  std::uint64_t length = 0;
  bool raw = false;
  std::optional<double> hold_seconds;  ///< pause --for
  bool yes = false;                    ///< do not ask
  bool force = false;                  ///< mem write: also over bytes that changed meanwhile
  std::vector<std::byte> data;         ///< mem write HEX; mem search: what for
  std::vector<std::byte> expected;     ///< mem write --expect; empty: not given
  std::optional<std::uint64_t> cookie; ///< mem write --cookie
  MemoryArguments memory;
  std::string file;                    ///< mem write --file; mem dump FILE; policy check and doctor --config
  bool physical = false;               ///< disas: the address is not translated
  bool once = false;
  double interval_seconds = 1;
  PolicyQuestion policy;
  std::string level;
  std::string filter;              ///< filter check: "EVENT: COMPARISONS"
  std::string hypervisor_socket;   ///< doctor; empty: beside the admin socket
  std::vector<std::string> needs;  ///< doctor: commands and events that a guest must have
};

/// Nothing to do but print: help, a completion script, or what is wrong.
struct Answer {
  int exit_code = kOk;
  std::string out;    ///< for stdout
  std::string error;  ///< for stderr
};

/// Environment: KVMID_ADMIN_SOCKET, KVMID_AGENT_SOCKET and KVMID_HYPERVISOR_SOCKET are the defaults of the socket
/// options.
std::variant<Arguments, Answer> parse(const std::vector<std::string>& words);

}  // namespace kvmid::ctl
