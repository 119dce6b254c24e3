// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <memory>
#include <string>

#include "daemon/app/config.h"
#include "daemon/io/log.h"
#include "protocol/result.h"

namespace spdlog::details {
class thread_pool;
}

namespace kvmid::app {

/// The daemon's log and the thread that writes it.
///
/// Purpose:  who logs never waits for the disk: lines go into a queue of bounded size, and where the writer cannot keep up
///           the oldest lines are lost.
/// Lifetime: everything that logs is gone before it; its destructor writes what is queued.
struct Logging {
  std::shared_ptr<spdlog::details::thread_pool> writer;
  std::shared_ptr<io::Log> log;

  Logging() = default;
  Logging(Logging&&) = default;
  Logging& operator=(Logging&&) = default;
  ~Logging();
};

/// The error says which file could not be opened.
Result<Logging, std::string> open_log(const LogConfig& config);

/// A name that is_log_level() takes. Any thread.
void set_level(io::Log& log, const std::string& level);
/// The name of the level that the log has now.
std::string level_of(const io::Log& log);

}  // namespace kvmid::app
