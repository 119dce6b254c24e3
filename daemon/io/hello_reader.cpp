// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/hello_reader.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "protocol/handshake.h"

namespace kvmid::io {
namespace {

constexpr std::size_t kDescriptorsMax = 16;

/// recv() that keeps the first descriptor sent along and closes the others: they would fill the daemon's table.
ssize_t receive(int fd, std::span<std::byte> space, UniqueFd& kept) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kDescriptorsMax * sizeof(int))> control{};
  iovec vector{space.data(), space.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const auto n = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return n;
  for (auto* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof received);
      UniqueFd owned{received};
      if (!kept.valid()) kept = std::move(owned);
    }
  }
  return n;
}

}  // namespace

HelloReader::HelloReader(boost::asio::io_context& context, Greeted fresh, std::chrono::milliseconds timeout)
    : descriptor_(context, fresh.fd.release()), timer_(context), timeout_(timeout), greeted_(std::move(fresh)) {}

void HelloReader::start(Done done, Failed failed) {
  done_ = std::move(done);
  failed_ = std::move(failed);
  timer_.expires_after(timeout_);
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error && !self->over_)
      self->fail(HelloFailure::TimedOut, "no hello within " + std::to_string(self->timeout_.count()) + " ms");
  });
  wait();
}

void HelloReader::cancel() {
  over_ = true;
  timer_.cancel();
  boost::system::error_code ignored;
  descriptor_.close(ignored);
}

void HelloReader::wait() {
  descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           if (!error && !self->over_) self->on_readable();
                         });
}

void HelloReader::on_readable() {
  while (!over_) {
    if (!read_more()) {
      if (!over_) wait();
      return;
    }
    if (greeted_.hello.size() < wanted_) continue;
    if (!size_known_) {
      const auto size = first_struct_size(greeted_.hello);
      if (!size) return fail(HelloFailure::Malformed, describe(size.error()));
      if (!*size) continue;
      size_known_ = true;
      wanted_ = **size;
      if (greeted_.hello.size() < wanted_) continue;
    }
    const auto done = done_;
    return done(*this, take());
  }
}

bool HelloReader::read_more() {
  const std::size_t have = greeted_.hello.size();
  greeted_.hello.resize(wanted_);
  const auto n = receive(descriptor_.native_handle(), std::span(greeted_.hello).subspan(have), greeted_.descriptor);
  greeted_.hello.resize(have + (n > 0 ? static_cast<std::size_t>(n) : 0));
  if (n > 0) return true;
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  fail(HelloFailure::Closed, n == 0 ? "closed before its hello was complete" : std::strerror(errno));
  return false;
}

void HelloReader::fail(HelloFailure failure, std::string text) {
  const auto failed = failed_;
  failed(*this, take(), failure, std::move(text));
}

Greeted HelloReader::take() {
  over_ = true;
  timer_.cancel();
  greeted_.fd.reset(descriptor_.release());
  return std::move(greeted_);
}

}  // namespace kvmid::io
