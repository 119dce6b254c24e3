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

  Config config = default_config(::geteuid(), std::thread::hardware_concurrency());
  if (options.config_file) {
    auto loaded = load_config(*options.config_file, config);
    if (!loaded) {
      std::fprintf(stderr, "%s: %s\n", options.config_file->c_str(), describe(loaded.error()).c_str());
      return kExitBadUsage;
    }
    config = std::move(*loaded);
  }
  if (options.check_only) {
    std::puts("ok");
    return kExitOk;
  }
  if (options.runtime_dir) {
    if (::mkdir(options.runtime_dir->c_str(), 0755) != 0 && errno != EEXIST) {
      std::fprintf(stderr, "kvmid: cannot make %s: %s\n", options.runtime_dir->c_str(), std::strerror(errno));
      return kExitFailure;
    }
    use_runtime_dir(config, *options.runtime_dir);
  }
  if (options.log_level) config.log.level = *options.log_level;

  auto logging = open_log(config.log);
  if (!logging) {
    std::fprintf(stderr, "kvmid: %s\n", logging.error().c_str());
    return kExitFailure;
  }
  prepare_process(*logging->log);
  return run_daemon(config, options.config_file.value_or(""), KVMID_VERSION, *logging->log);
}
