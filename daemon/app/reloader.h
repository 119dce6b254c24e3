// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "daemon/app/audit_log.h"
#include "daemon/app/config.h"
#include "daemon/io/broker.h"
#include "daemon/io/log.h"

namespace kvmid::app {

/// What became of a reload.
struct ReloadResult {
  std::optional<ConfigError> error;  ///< the old configuration stays, as a whole
  io::PolicyEffect effect;
  [[nodiscard]] std::string summary() const;  ///< one sentence
};

/// Takes a new configuration while the daemon runs: all of it, or nothing.
///
/// Shapes:   read and check the file; compare it with what cannot change; open the audit file anew; then, where nothing
///           was wrong, hand the rest to the log and the broker.
/// Errors:   ReloadResult::error, which is also logged, counted and audited.
/// Threads:  reload() from any; a thread of its own reads files, one reload after another. `done` is called there, or on
///           the front's thread.
/// Lifetime: `broker`, `audit` and `log` outlive it. The destructor waits for a reload that is reading.
class Reloader {
 public:
  using Done = std::function<void(const ReloadResult&)>;

  Reloader(ConfigSource source, Config running, io::Broker& broker, AuditLog& audit, io::Log& log);
  ~Reloader();
  Reloader(const Reloader&) = delete;
  Reloader& operator=(const Reloader&) = delete;

  /// `by`: who asked, for the log. `done` is not called any more once the broker stops.
  void reload(std::string by, Done done);

  [[nodiscard]] std::uint64_t reloads() const { return reloads_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  void run(const std::string& by, const Done& done);
  [[nodiscard]] std::optional<ConfigError> prepare(Config& next);
  void refuse(const std::string& by, const ConfigError& error, const Done& done);

  const ConfigSource source_;
  Config running_;  ///< the reloading thread's
  io::Broker& broker_;
  AuditLog& audit_;
  io::Log& log_;
  std::atomic<std::uint64_t> reloads_{0};
  std::atomic<std::uint64_t> refused_{0};
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace kvmid::app
