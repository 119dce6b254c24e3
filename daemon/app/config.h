// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "daemon/io/settings.h"
#include "protocol/result.h"

namespace kvmid::app {

struct LogConfig {
  std::string level = "info";       ///< a name that spdlog knows
  std::optional<std::string> file;  ///< standard error without one
};

struct AuditConfig {
  std::optional<std::string> file;  ///< no audit log without one
  std::size_t queue_max = 8192;     ///< lines that wait for the file
};

/// All of the configuration file, with defaults where it says nothing.
struct Config {
  io::Settings settings;
  io::ListenAt admin;  ///< unix only
  LogConfig log;
  AuditConfig audit;
};

/// What reading a configuration does with the files of secrets that it names.
enum class CookieFiles : std::uint8_t {
  Read,   ///< they are part of it
  Check,  ///< the same, for `--check-config`: root may check for the user that kvmid runs as
  Leave,  ///< they are not opened: whoever sent the text is not to learn of files
};

/// The first thing that is wrong, for people.
struct ConfigError {
  std::string path;  ///< JSON pointer, "/policy/0/deadline_ms"; empty: the file as a whole
  std::string text;
};
/// "/policy/0/deadline_ms: must be between 1 and 60000, is \"fast\""
std::string describe(const ConfigError& error);

/// The defaults: sockets in /run/kvmid, and only root and `own_uid` may do anything.
Config default_config(std::uint32_t own_uid, unsigned cores);
/// Puts the three sockets into `dir`.
void use_runtime_dir(Config& config, const std::string& dir);

/// Reads JSON. Unknown and duplicate keys are errors: a misspelt limit must not be no limit.
Result<Config, ConfigError> parse_config(std::string_view text, const Config& defaults,
                                         CookieFiles cookies = CookieFiles::Read);
/// parse_config of a file; an unreadable file is an error without a path.
Result<Config, ConfigError> load_config(const std::string& file, const Config& defaults,
                                        CookieFiles cookies = CookieFiles::Read);

/// Where a configuration comes from: the file, and what the command line says on top of it. The same at the start and at
/// every reload.
struct ConfigSource {
  std::string file;  ///< empty: defaults
  Config defaults;
  std::string runtime_dir;  ///< empty: as the file says
  std::string log_level;    ///< empty: as the file says
  CookieFiles cookies = CookieFiles::Read;
  [[nodiscard]] Result<Config, ConfigError> load() const;
};

/// The first thing in `next` that cannot take the place of what runs; nothing: all of it can.
std::optional<ConfigError> needs_restart(const Config& running, const Config& next);

/// The names that is_log_level() takes, for people.
std::string log_level_names();
/// True where spdlog has a level of this name.
bool is_log_level(std::string_view name);

}  // namespace kvmid::app
