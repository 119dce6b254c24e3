// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <memory>
#include <string>

#include "daemon/io/broker.h"
#include "daemon/io/listener.h"
#include "daemon/io/log.h"

namespace kvmid::app {

/// What the admin side says of the daemon besides what the broker knows.
struct AdminFacts {
  std::string version;
  std::string config_file;  ///< empty: defaults
};

/// HTTP/1.1 with JSON on a unix socket, for kvmictl, curl and people.
///
/// Purpose:  tells what the daemon does; docs/admin-http.md has the resources.
/// Errors:   a request that cannot be served is answered {"error":{"code","message"}} with that HTTP status.
/// Threads:  one of its own, never a shard's; it asks shards and waits for a bounded time.
/// Lifetime: `broker` and `log` outlive it. stop() or the destructor ends the thread and removes the socket file.
class AdminServer {
 public:
  AdminServer(io::ListeningSocket socket, AdminFacts facts, io::Broker& broker, io::Log& log);
  ~AdminServer();
  AdminServer(const AdminServer&) = delete;
  AdminServer& operator=(const AdminServer&) = delete;
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmid::app
