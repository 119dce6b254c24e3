// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/reloader.h"

#include <pthread.h>
#include <spdlog/logger.h>

#include <boost/asio/post.hpp>

#include "daemon/app/logging.h"

namespace kvmid::app {

std::string ReloadResult::summary() const {
  if (error) return "the old configuration stays: " + describe(*error);
  return "reloaded; " + std::to_string(effect.agents) + " agents looked at, " + std::to_string(effect.closed) +
         " of them closed";
}

Reloader::Reloader(ConfigSource source, Config running, io::Broker& broker, AuditLog& audit, io::Log& log)
    : source_(std::move(source)),
      running_(std::move(running)),
      broker_(broker),
      audit_(audit),
      log_(log),
      work_(boost::asio::make_work_guard(context_)) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "reload");
    context_.run();
  });
}

Reloader::~Reloader() {
  context_.stop();
  thread_.join();
}

void Reloader::reload(std::string by, Done done) {
  boost::asio::post(context_, [this, who = std::move(by), then = std::move(done)] { run(who, then); });
}

/// Everything that can fail; the audit file is the last of it, because it cannot be taken back.
std::optional<ConfigError> Reloader::prepare(Config& next) {
  if (source_.file.empty()) return ConfigError{"", "kvmid runs on its defaults: there is no file to read"};
  auto loaded = source_.load();
  if (!loaded) return loaded.error();
  next = std::move(*loaded);
  if (auto error = needs_restart(running_, next)) return error;
  if (auto opened = audit_.open(next.audit); !opened) return ConfigError{"/audit/file", opened.error()};
  return std::nullopt;
}

void Reloader::run(const std::string& by, const Done& done) {
  Config next;
  if (const auto error = prepare(next)) {
    // A log file that was moved away must not wait for somebody to mend the configuration.
    if (error->path != "/audit/file") (void)audit_.open(running_.audit).has_value();
    return refuse(by, *error, done);
  }
  running_ = next;
  set_level(log_, next.log.level);
  broker_.reload(next.settings, [this, by, done](io::PolicyEffect effect) {
    reloads_.fetch_add(1, std::memory_order_relaxed);
    log_.info("configuration reloaded by={} file={} agents={} closed={}", by, io::field(source_.file), effect.agents,
              effect.closed);
    io::AuditRecord record;
    record.kind = io::AuditKind::ConfigReloaded;
    record.agents = effect.agents;
    record.agents_closed = effect.closed;
    if (audit_.wanted()) audit_.record(std::move(record));
    done(ReloadResult{{}, effect});
  });
}

void Reloader::refuse(const std::string& by, const ConfigError& error, const Done& done) {
  refused_.fetch_add(1, std::memory_order_relaxed);
  log_.error("configuration not reloaded, the old one stays by={} file={} path={} reason={}", by,
             io::field(source_.file), io::field(error.path), io::field(error.text));
  io::AuditRecord record;
  record.kind = io::AuditKind::ConfigRefused;
  record.path = error.path;
  record.reason = error.text;
  if (audit_.wanted()) audit_.record(std::move(record));
  done(ReloadResult{error, {}});
}

}  // namespace kvmid::app
