// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "daemon/io/broker.h"
#include "daemon/io/listener.h"
#include "daemon/io/log.h"
#include "protocol/result.h"

namespace kvmid::app {

/// The listening sockets that the service manager opened and passed on.
struct PassedSockets {
  io::PassedSockets broker;
  std::vector<io::PassedSocket> admin;  ///< at most one
};

/// Takes the sockets that came with the process (LISTEN_FDS). None, where no service manager started it.
///
/// Shapes:   FileDescriptorName= says for whom a socket is: "hypervisor", "agent" or "admin".
/// Errors:   a sentence that names the descriptor, and what it is instead of a listening stream socket, for people.
/// Threads:  any, once: the descriptors are taken over. The environment is read and left as it is.
/// Lifetime: the sockets and their files stay the service manager's: they go on when kvmid does not.
/// Source:   sd_listen_fds_with_names(3), systemd.socket(5).
Result<PassedSockets, std::string> take_passed_sockets();

/// Tells the service manager how the daemon is doing, where there is one; else nothing happens.
///
/// Purpose:  READY=1 once every socket is served, RELOADING=1 and READY=1 round a reload, STOPPING=1, and with
///           WatchdogSec= a sign of life, which is given only after every shard has answered since the one before:
///           a shard that hangs ends the process, and the guests' hypervisors let go of it.
/// Cost:     without a watchdog no timer is set.
/// Threads:  the front's only thread.
/// Lifetime: `front`, `broker` and `log` outlive it; destroy it when `front` does not run. Call stopping() before
///           Broker::stop().
/// Source:   sd_notify(3), sd_watchdog_enabled(3).
class ServiceManager {
 public:
  ServiceManager(boost::asio::io_context& front, io::Broker& broker, io::Log& log);
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  /// The daemon serves; also the end of a reload, done or refused. `status` is one sentence for `systemctl status`.
  void ready(const std::string& status);
  /// A reload begins; ready() ends it.
  void reloading();
  void stopping();

 private:
  void tell(const std::string& state);
  void watch();

  io::Broker& broker_;
  io::Log& log_;
  boost::asio::steady_timer timer_;
  std::chrono::microseconds interval_{0};  ///< between signs of life; 0: nobody asked for them
  bool watched_ = false;                   ///< signs of life are being given
  bool asked_ = false;                     ///< the shards have not all answered yet
  bool warned_ = false;
  bool stopping_ = false;
};

}  // namespace kvmid::app
