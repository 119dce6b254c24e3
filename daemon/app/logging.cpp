// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/logging.h"

#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace kvmid::app {
namespace {

constexpr std::size_t kQueueLines = 8192;
constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%e%z %l %v";

}  // namespace

Logging::~Logging() {
  if (log) log->flush();
  log.reset();
  writer.reset();  // joins the thread, after the queue is empty
}

Result<Logging, std::string> open_log(const LogConfig& config) {
  std::shared_ptr<spdlog::sinks::sink> sink;
  try {
    if (config.file) {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(*config.file);
    } else {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    }
  } catch (const spdlog::spdlog_ex& error) {
    return "cannot open the log: " + std::string(error.what());
  }
  Logging logging;
  logging.writer = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
  logging.log = std::make_shared<spdlog::async_logger>("kvmid", std::move(sink), logging.writer,
                                                       spdlog::async_overflow_policy::overrun_oldest);
  logging.log->set_pattern(kPattern);
  set_level(*logging.log, config.level);
  logging.log->flush_on(spdlog::level::info);
  return logging;
}

void set_level(io::Log& log, const std::string& level) {
  log.set_level(spdlog::level::from_str(level == "warn" ? "warning" : level));
}

std::string level_of(const io::Log& log) {
  const auto name = spdlog::level::to_string_view(log.level());
  const std::string text(name.data(), name.size());
  return text == "warning" ? "warn" : text;
}

}  // namespace kvmid::app
