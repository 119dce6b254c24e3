// SPDX-License-Identifier: GPL-2.0-or-later
// kvmid: from the command line to the running daemon.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

#include "daemon/app/config.h"
#include "daemon/app/daemon.h"
#include "daemon/app/logging.h"
#include "daemon/app/options.h"

int main(int argc, char** argv) {
  using namespace kvmid::app;
  const auto parsed = parse_options(argc, argv, KVMID_VERSION);
  if (const int* code = std::get_if<int>(&parsed)) return *code;
  const auto& options = std::get<Options>(parsed);

  ConfigSource source;
  source.defaults = default_config(::geteuid(), std::thread::hardware_concurrency());
  source.file = options.config_file.value_or("");
  source.runtime_dir = options.runtime_dir.value_or("");
  source.log_level = options.log_level.value_or("");
  if (options.check_only) source.cookies = CookieFiles::Check;
  const auto config = source.load();
  if (!config) {
    std::fprintf(stderr, "%s: %s\n", source.file.c_str(), describe(config.error()).c_str());
    return kExitBadUsage;
  }
  if (options.check_only) {
    std::puts("ok");
    return kExitOk;
  }
  if (options.runtime_dir && ::mkdir(options.runtime_dir->c_str(), 0755) != 0 && errno != EEXIST) {
    std::fprintf(stderr, "kvmid: cannot make %s: %s\n", options.runtime_dir->c_str(), std::strerror(errno));
    return kExitFailure;
  }

  hold_signals();  // before there is a second thread
  auto logging = open_log(config->log);
  if (!logging) {
    std::fprintf(stderr, "kvmid: %s\n", logging.error().c_str());
    return kExitFailure;
  }
  prepare_process(*logging->log);
  return run_daemon(*config, source, KVMID_VERSION, *logging->log);
}
