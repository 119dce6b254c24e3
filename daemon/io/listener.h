// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/io/counters.h"
#include "daemon/io/log.h"
#include "daemon/io/unique_fd.h"
#include "protocol/result.h"

namespace kvmid::io {

/// A listening socket, and the file that goes with it.
struct ListeningSocket {
  UniqueFd fd;
  std::string path;  ///< empty: vsock, or the file is not ours
  dev_t device = 0;  ///< of the file, to remove only our own
  ino_t inode = 0;
};

/// A socket that somebody else opened and listens on. Its file stays when it is closed.
struct PassedSocket {
  ListeningSocket socket;  ///< without a path
  std::string address;     ///< for people
  bool vsock = false;
};
/// Those take the place of the configured ones of the same kind (unix, vsock) on the same side.
struct PassedSockets {
  std::vector<PassedSocket> hypervisors;
  std::vector<PassedSocket> agents;
};

/// Why there is no listening socket: a sentence that names the address, for people.
struct ListenError {
  std::string text;
};

/// A unix socket at `path`. A file left by a daemon that died is replaced; one that somebody listens on is not.
/// `mode` and `group` (empty: the daemon's) are those of the file from the moment it can be seen.
Result<ListeningSocket, ListenError> listen_unix(const std::string& path, mode_t mode, const std::string& group);
/// A vsock port, on every CID of this host.
Result<ListeningSocket, ListenError> listen_vsock(std::uint32_t port);

/// Accepts connections.
///
/// Purpose:  a listener that survives everything: without a descriptor left it turns the newcomer away by the spare one
///           it keeps, pauses, and goes on.
/// Threads:  the io_context's only thread.
/// Lifetime: `context`, `counters` and `log` outlive it. stop() or the destructor closes, and removes the socket file.
class Listener {
 public:
  using Accepted = std::function<void(UniqueFd)>;

  Listener(boost::asio::io_context& context, ListeningSocket socket, std::string_view what, IoCounters& counters,
           Log& log, Accepted accepted);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  void start() { wait(); }
  void stop();

 private:
  void wait();
  void accept_some();
  void out_of_descriptors();

  boost::asio::posix::stream_descriptor descriptor_;
  boost::asio::steady_timer pause_;
  ListeningSocket socket_;  ///< its descriptor is in descriptor_
  std::string what_;
  IoCounters& counters_;
  Log& log_;
  Accepted accepted_;
  UniqueFd spare_;
  bool paused_ = false;
  /// A handler that was queued before stop() finds here that the listener is gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmid::io
