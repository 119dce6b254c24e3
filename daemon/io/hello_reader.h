// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/core/policy.h"
#include "daemon/io/ticket.h"
#include "daemon/io/unique_fd.h"
#include "protocol/dialect.h"

namespace kvmid::io {

/// A connection that has not said who it is yet: its socket, its credentials, its place, and what it said.
struct Greeted {
  UniqueFd fd;
  core::Peer peer;
  Ticket connection;
  ByteBuffer hello;     ///< the whole first struct
  UniqueFd descriptor;  ///< the first that came along with it; the others are closed
};

/// Why there is no hello.
enum class HelloFailure : std::uint8_t {
  TimedOut,
  Closed,     ///< by the peer, or the socket failed
  Malformed,  ///< its size field cannot be right
};

/// Reads the first struct of a fresh connection, exactly, so that nothing of the stream behind it is taken.
///
/// Purpose:  the same for hypervisors and agents: each begins with struct_size.
/// Errors:   HelloFailure with a text; the socket is in `Greeted`, so that a refusal can be sent before it closes.
/// Threads:  the io_context's only thread. `done` is called once, unless cancel() came first.
/// Lifetime: shared with its pending operations.
class HelloReader : public std::enable_shared_from_this<HelloReader> {
 public:
  using Done = std::function<void(HelloReader&, Greeted)>;
  using Failed = std::function<void(HelloReader&, Greeted, HelloFailure, std::string)>;

  HelloReader(boost::asio::io_context& context, Greeted fresh, std::chrono::milliseconds timeout);
  void start(Done done, Failed failed);
  /// Closes at once, without a call.
  void cancel();

 private:
  void wait();
  void on_readable();
  bool read_more();  ///< false: nothing further can be read now
  void fail(HelloFailure failure, std::string text);
  Greeted take();

  boost::asio::posix::stream_descriptor descriptor_;
  boost::asio::steady_timer timer_;
  std::chrono::milliseconds timeout_;
  Greeted greeted_;
  Done done_;
  Failed failed_;
  std::size_t wanted_ = sizeof(std::uint32_t);
  bool size_known_ = false;
  bool over_ = false;
};

}  // namespace kvmid::io
