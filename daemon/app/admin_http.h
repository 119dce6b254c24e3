// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <memory>

#include "daemon/app/admin_resources.h"
#include "daemon/io/listener.h"

namespace kvmid::app {

/// HTTP/1.1 with JSON on a unix socket, for kvmictl, curl and people.
///
/// Purpose:  tells what the daemon does; docs/admin-http.md has the resources.
/// Errors:   a request that cannot be served is answered {"error":{"code","message"}} with that HTTP status.
/// Threads:  one of its own, never a shard's; it asks shards and waits for a bounded time.
/// Lifetime: what `parts` names outlives it. stop() or the destructor ends the thread and removes the socket file.
class AdminServer {
 public:
  AdminServer(io::ListeningSocket socket, AdminFacts facts, const AdminParts& parts);
  ~AdminServer();
  AdminServer(const AdminServer&) = delete;
  AdminServer& operator=(const AdminServer&) = delete;
  /// From now on /v1/health says so, and nothing can be changed any more. Any thread.
  void set_stopping();
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmid::app
