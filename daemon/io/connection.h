// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "daemon/core/account.h"
#include "daemon/io/outbox.h"
#include "daemon/io/unique_fd.h"
#include "protocol/frame_parser.h"

namespace kvmid::io {

/// One peer's socket: bytes to frames on the way in, an outbox on the way out.
///
/// Purpose:  all that sockets need and nothing that is decided: who owns it is told what arrived.
/// Shapes:   start(owner); then on_frame() for each frame and on_turn_end() after those of one wakeup. Queue messages in
///           outbox(), then flush(): it writes at once, and only what the socket does not take waits for it.
/// Units:    a turn handles at most kFramesPerTurn frames of one recv(), so one peer cannot keep the thread.
/// Errors:   on_lost() at most once, and never from inside flush(), which says false instead.
/// Threads:  everything on the io_context's only thread.
/// Lifetime: shared with the pending operations. After close() or finish() the owner is not called any more and may go;
///           it may do so from inside its own on_*() functions.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  class Owner {
   public:
    /// `frame` lives until this returns.
    virtual void on_frame(const Frame& frame) = 0;
    /// The stream cannot be read any further.
    virtual void on_frame_refused(const FrameError& error) = 0;
    virtual void on_turn_end() = 0;
    virtual void on_lost(std::string_view reason) = 0;

   protected:
    ~Owner() = default;
  };

  static constexpr unsigned kFramesPerTurn = 64;
  /// How long finish() waits for a peer that does not read.
  static constexpr std::chrono::seconds kLinger{2};

  Connection(boost::asio::io_context& context, UniqueFd fd, std::size_t payload_max, std::uint64_t queue_bytes_max);

  void start(Owner& owner);
  /// No further frame is delivered; what was queued can still be written.
  void stop_reading() { reading_ = false; }

  [[nodiscard]] Outbox& outbox() { return outbox_; }
  [[nodiscard]] std::uint64_t queued_bytes() const { return account_.held(); }
  /// A new quota; what is queued stays.
  void set_queue_bytes_max(std::uint64_t bytes) { account_.set_limit(bytes); }
  /// Writes what the socket takes; the rest follows when it is writable. False: the peer is gone.
  [[nodiscard]] bool flush();

  /// Closes at once.
  void close();
  /// Writes what is queued, for at most kLinger, then closes. The owner is forgotten now.
  void finish();

 private:
  void wait_readable();
  void on_readable();
  void turn();
  void wait_writable();
  void on_writable();

  boost::asio::io_context& context_;
  boost::asio::posix::stream_descriptor descriptor_;
  FrameParser parser_;
  core::Account account_;
  Outbox outbox_;
  Owner* owner_ = nullptr;
  bool reading_ = false;
  bool wait_write_ = false;
  std::unique_ptr<boost::asio::steady_timer> linger_;  ///< only made for a peer that does not read
};

}  // namespace kvmid::io
