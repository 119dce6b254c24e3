// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>

#include "daemon/app/config.h"
#include "daemon/io/log.h"

namespace kvmid::app {

/// Runs the daemon with this configuration until it is told to stop: builds the parts and hands each what it needs.
///
/// Shapes:   the exit code of the process (see ExitCode).
/// Errors:   what cannot be opened is logged and written to standard error.
/// Threads:  call on the main thread; signals and hellos are handled there.
/// Source:   `source` is where `config` came from, to be asked again at a reload.
int run_daemon(const Config& config, const ConfigSource& source, const char* version, io::Log& log);

/// SIGTERM, SIGINT and SIGHUP wait until run_daemon() serves them, on the main thread: threads that are made from here
/// on never get them.
void hold_signals();
/// Prepares the process: as many descriptors as it may have, no death by SIGPIPE.
void prepare_process(io::Log& log);

}  // namespace kvmid::app
