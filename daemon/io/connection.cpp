// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/connection.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <vector>

namespace kvmid::io {

using boost::system::error_code;
using Descriptor = boost::asio::posix::stream_descriptor;

Connection::Connection(boost::asio::io_context& context, UniqueFd fd, std::size_t payload_max,
                       std::uint64_t queue_bytes_max)
    : context_(context),
      descriptor_(context, fd.release()),
      parser_(payload_max),
      account_(queue_bytes_max),
      outbox_(account_) {}

void Connection::start(Owner& owner) {
  owner_ = &owner;
  reading_ = true;
  wait_readable();
}

void Connection::wait_readable() {
  descriptor_.async_wait(Descriptor::wait_read, [self = shared_from_this()](const error_code& error) {
    if (!error) self->on_readable();
  });
}

void Connection::on_readable() {
  if (owner_ == nullptr || !reading_) return;
  const auto space = parser_.writable();
  const auto n = ::recv(descriptor_.native_handle(), space.data(), space.size(), MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return wait_readable();
    return owner_->on_lost(std::strerror(errno));
  }
  if (n == 0) return owner_->on_lost("closed by the peer");
  parser_.commit(static_cast<std::size_t>(n));
  turn();
}

void Connection::turn() {
  if (owner_ == nullptr || !reading_) return;
  bool more = true;
  for (unsigned i = 0; i < kFramesPerTurn && reading_; ++i) {
    auto next = parser_.next();
    if (!next) {
      reading_ = false;
      owner_->on_frame_refused(next.error());
      break;
    }
    if (*next == nullptr) {
      more = false;
      break;
    }
    owner_->on_frame(**next);
    if (owner_ == nullptr) return;
  }
  if (owner_ == nullptr) return;
  owner_->on_turn_end();
  if (owner_ == nullptr || !reading_) return;
  if (!more) return wait_readable();
  boost::asio::post(context_, [self = shared_from_this()] { self->turn(); });  // others first
}

namespace {

/// send(), with descriptors where there are any.
ssize_t send_some(int socket, Bytes bytes, std::span<const UniqueFd> descriptors) {
  constexpr int kFlags = MSG_NOSIGNAL | MSG_DONTWAIT;
  if (descriptors.empty()) return ::send(socket, bytes.data(), bytes.size(), kFlags);
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
  for (std::size_t i = 0; i < descriptors.size(); ++i) {
    const int fd = descriptors[i].get();
    std::memcpy(CMSG_DATA(head) + i * sizeof(int), &fd, sizeof fd);
  }
  return ::sendmsg(socket, &message, kFlags);
}

}  // namespace

bool Connection::flush() {
  if (wait_write_ || !descriptor_.is_open()) return true;
  while (!outbox_.empty()) {
    const auto bytes = outbox_.pending();
    const auto n = send_some(descriptor_.native_handle(), bytes, outbox_.descriptors());
    if (n >= 0) {
      outbox_.consume(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      wait_writable();
      return true;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

void Connection::wait_writable() {
  wait_write_ = true;
  descriptor_.async_wait(Descriptor::wait_write, [self = shared_from_this()](const error_code& error) {
    self->wait_write_ = false;
    if (!error) self->on_writable();
  });
}

void Connection::on_writable() {
  const bool alive = flush();
  if (owner_ == nullptr) {  // finish() was called: nothing is left to do but this
    if (!alive || outbox_.empty()) close();
  } else if (!alive) {
    owner_->on_lost("closed by the peer");
  }
}

void Connection::close() {
  owner_ = nullptr;
  reading_ = false;
  if (linger_) linger_->cancel();
  error_code ignored;
  descriptor_.close(ignored);
}

void Connection::finish() {
  owner_ = nullptr;
  reading_ = false;
  if (!descriptor_.is_open()) return;
  if (!flush() || outbox_.empty()) return close();
  linger_ = std::make_unique<boost::asio::steady_timer>(context_, kLinger);
  linger_->async_wait([self = shared_from_this()](const error_code& error) {
    if (!error) self->close();
  });
}

}  // namespace kvmid::io
