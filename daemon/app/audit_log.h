// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "daemon/app/config.h"
#include "daemon/io/audit.h"
#include "daemon/io/log.h"
#include "protocol/result.h"

namespace kvmid::app {

/// The audit log: one JSON object a line, appended to a file by a thread of its own.
///
/// Purpose:  who did what to which guest, for later. A full disk or a pipe that nobody reads costs lines, never anybody's
///           time: record() puts into a queue of bounded size and comes back.
/// Shapes:   open(), and again for another file or after the file was moved away (log rotation).
/// Units:    lines. At most queue_max wait; what comes on top is dropped, counted, and told in the file by a line of its
///           own once it can be written again.
/// Errors:   open() says what is wrong with the file and keeps the one before. A write that fails is logged once, tried
///           again every second, and loses nothing by itself.
/// Threads:  record() and the counts from any; open() from one at a time.
/// Lifetime: `log` outlives it. The destructor writes what waits, for at most kStopTimeout.
/// Source:   docs/admin-http.md, "Audit log".
class AuditLog final : public io::AuditSink {
 public:
  static constexpr std::chrono::seconds kStopTimeout{2};

  explicit AuditLog(io::Log& log);
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  /// Without a file the log is off, and lines that still wait are dropped.
  Result<void, std::string> open(const AuditConfig& config);

  [[nodiscard]] bool wanted() const override;
  void record(io::AuditRecord record) override;

  [[nodiscard]] std::uint64_t written() const;
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;  ///< also held by the thread, which may hang in the kernel for longer than we wait
  std::thread thread_;
};

}  // namespace kvmid::app
