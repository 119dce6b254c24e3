// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "daemon/app/admin_json.h"
#include "daemon/app/admin_routes.h"
#include "daemon/app/audit_log.h"
#include "daemon/app/event_streams.h"
#include "daemon/app/reloader.h"
#include "daemon/io/broker.h"
#include "daemon/io/log.h"

namespace kvmid::app {

/// What the admin side says of the daemon besides what the broker knows.
struct AdminFacts {
  std::string version;
  std::string config_file;  ///< empty: defaults
};

/// What the admin side asks. All of it outlives the admin side.
struct AdminParts {
  io::Broker& broker;
  Reloader& reloader;
  AuditLog& audit;
  EventStreams& streams;
  io::Log& log;
};

/// An HTTP answer without HTTP.
struct Answer {
  unsigned status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::string allow;  ///< with 405
};
Answer error_answer(unsigned status, const std::string& message);
Answer answer_of(const RouteError& error);
Answer answer_of(const ReloadResult& result);

/// What is answered to a request that asks for something at once: all but Events and Reload.
///
/// Threads:  the admin side's; it asks shards and waits for a bounded time. set_stopping() from any.
class AdminResources {
 public:
  AdminResources(AdminFacts facts, const AdminParts& parts)
      : facts_(std::move(facts)), parts_(parts), started_(std::chrono::steady_clock::now()) {}

  Answer answer(const Route& route);
  [[nodiscard]] const AdminParts& parts() const { return parts_; }
  void set_stopping() { stopping_ = true; }
  [[nodiscard]] bool stopping() const { return stopping_; }

 private:
  [[nodiscard]] StatusFacts facts() const;
  [[nodiscard]] io::StatusSnapshot status() const;
  Answer guest(const Uuid& uuid);
  Answer health() const;

  const AdminFacts facts_;
  const AdminParts parts_;
  const std::chrono::steady_clock::time_point started_;
  std::atomic<bool> stopping_{false};
};

}  // namespace kvmid::app
