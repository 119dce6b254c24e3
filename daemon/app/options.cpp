// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/options.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "daemon/app/config.h"

namespace kvmid::app {

std::variant<Options, int> parse_options(int argc, const char* const* argv, const char* version) {
  Options options;
  std::string config;
  std::string check;
  std::string runtime_dir;
  std::string log_level;

  CLI::App app{
      "kvmid: a broker for KVM introspection.\n"
      "Hypervisors connect and bring guests; security agents connect and attach to them, and kvmid connects to tools "
      "of\n"
      "older dialects, which wait for it. kvmid holds each guest's channel and lets many agents share it safely: "
      "events\n"
      "are fanned out, replies merged, every wait has a deadline."};
  app.set_version_flag("--version,-V", std::string("kvmid ") + version);
  app.add_option("--config,-c", config,
                 "Configuration file (JSON). Without one: sockets in /run/kvmid, and only root and\n"
                 "the user kvmid runs as may connect")
      ->type_name("FILE");
  auto* checking =
      app.add_option("--check-config", check, "Check a configuration file, print `ok` or the mistake, and exit")
          ->type_name("FILE");
  app.add_option("--runtime-dir,-r", runtime_dir,
                 "Put hypervisor.sock, agent.sock and admin.sock there, whatever the configuration says;\n"
                 "the directory is made if it is missing")
      ->type_name("DIR");
  app.add_option("--log-level,-l", log_level, "trace, debug, info, warn, error, critical or off")
      ->type_name("LEVEL")
      ->check([](const std::string& name) {
        return is_log_level(name) ? std::string() : "there is no log level \"" + name + "\"";
      });
  checking->excludes("--config");
  app.footer(
      "Examples:\n"
      "  kvmid --runtime-dir /tmp/kvmid                  try it out as yourself\n"
      "  kvmid --config /etc/kvmid/kvmid.json            run it as the system does\n"
      "  kvmid --check-config /etc/kvmid/kvmid.json      before a restart\n"
      "  curl --unix-socket /run/kvmid/admin.sock http://kvmid/v1/guests\n"
      "\n"
      "Signals: SIGHUP reads the configuration again and reopens the audit log.\n"
      "         SIGTERM and SIGINT withdraw everything from the guests, then exit; a second one exits at once.\n"
      "Exit codes: 0 stopped as asked, or the configuration is ok; 1 could not start (a socket, the log);\n"
      "            2 a mistake in the configuration or on the command line; 128+N second signal N.\n"
      "More: docs/configuration.md, docs/admin-http.md, docs/field.md (patched KVM hosts and their tools).");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitBadUsage;
  }
  if (!check.empty()) {
    options.check_only = true;
    options.config_file = check;
  } else if (!config.empty()) {
    // Whoever reads of it at the admin side has another working directory.
    std::error_code gone;
    const auto absolute = std::filesystem::absolute(config, gone);
    options.config_file = gone ? config : absolute.string();
  }
  if (!runtime_dir.empty()) options.runtime_dir = runtime_dir;
  if (!log_level.empty()) options.log_level = log_level;
  return options;
}

}  // namespace kvmid::app
