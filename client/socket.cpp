// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>  // after sys/socket.h, which it needs

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <system_error>

namespace kvmid::client {
namespace {

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

std::string message_of(int os_error) { return std::generic_category().message(os_error); }

std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (errc != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<Address> vsock_address(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto cid = number(text.substr(0, colon));
  const auto port = number(text.substr(colon + 1));
  if (!cid || !port) return std::nullopt;
  sockaddr_vm vm{};
  vm.svm_family = AF_VSOCK;
  vm.svm_cid = *cid;
  vm.svm_port = *port;
  Address address;
  std::memcpy(&address.storage, &vm, sizeof vm);
  address.size = sizeof vm;
  return address;
}

std::optional<Address> unix_address(std::string_view text) {
  sockaddr_un un{};
  // An abstract name begins with a zero byte and has no closing one; a path needs room for its own.
  if (text.empty() || text.size() >= sizeof un.sun_path) return std::nullopt;
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, text.data(), text.size());
  std::size_t size = offsetof(sockaddr_un, sun_path) + text.size();
  if (text.front() == '@') {
    un.sun_path[0] = '\0';
  } else {
    ++size;
  }
  Address address;
  std::memcpy(&address.storage, &un, sizeof un);
  address.size = static_cast<socklen_t>(size);
  return address;
}

ClientError connect_error(std::string_view address, int os_error) {
  ClientError error{ClientErrc::System, ErrorCode::None, "cannot connect to " + std::string(address) + ": ", os_error};
  switch (os_error) {
    case ENOENT:
      error.kind = ClientErrc::Unreachable;
      error.text += "there is no such socket. Is kvmid running?";
      break;
    case ECONNREFUSED:
      error.kind = ClientErrc::Unreachable;
      error.text += "nobody listens there. Is kvmid running?";
      break;
    case EACCES:
    case EPERM:
      error.kind = ClientErrc::Denied;
      error.text += "permission denied. Is this user in the group that owns the socket?";
      break;
    case ETIMEDOUT:
      error.kind = ClientErrc::TimedOut;
      error.text += "no answer in time";
      break;
    default:
      if (os_error == ENODEV || os_error == ENETUNREACH || os_error == EHOSTUNREACH || os_error == ECONNRESET ||
          os_error == EAFNOSUPPORT || os_error == ENOTSOCK) {
        error.kind = ClientErrc::Unreachable;
      }
      error.text += message_of(os_error);
  }
  return error;
}

}  // namespace

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

SteadyClock::time_point deadline_after(Millis timeout) {
  const auto now = SteadyClock::now();
  if (timeout < Millis{0}) return SteadyClock::time_point::max();
  const auto room = std::chrono::duration_cast<Millis>(SteadyClock::time_point::max() - now);
  return timeout >= room ? SteadyClock::time_point::max() : now + timeout;
}

int poll_timeout(SteadyClock::time_point until) {
  if (until == SteadyClock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<Millis>(until - SteadyClock::now()).count();
  if (left <= 0) return 0;
  constexpr std::int64_t kLongest = 1'000'000'000;  // callers look at the time again after it
  return static_cast<int>(left < kLongest ? left : kLongest);
}

Result<UniqueFd, ClientError> connect_stream(std::string_view text, SteadyClock::time_point until) {
  auto address = vsock_address(text);
  const int family = address ? AF_VSOCK : AF_UNIX;
  if (!address) address = unix_address(text);
  if (!address) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::None,
                       "\"" + std::string(text) +
                           "\" is no socket address: a path of at most 107 bytes, \"@name\" or " +
                           "\"cid:port\" is needed"};
  }
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return connect_error(text, errno);

  sockaddr_storage storage = address->storage;
  for (;;) {
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&storage), address->size) == 0) return fd;
    if (errno == EISCONN) return fd;
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {  // a unix listener whose backlog is full; there is nothing to poll for
      const int left = poll_timeout(until);
      if (left == 0) return connect_error(text, ETIMEDOUT);
      ::poll(nullptr, 0, left > 0 && left < 10 ? left : 10);
      continue;
    }
    if (errno != EINPROGRESS && errno != EALREADY) return connect_error(text, errno);
    pollfd wait{fd.get(), POLLOUT, 0};
    const int ready = ::poll(&wait, 1, poll_timeout(until));
    if (ready < 0 && errno != EINTR) return connect_error(text, errno);
    if (ready == 0) return connect_error(text, ETIMEDOUT);
    int result = 0;
    socklen_t size = sizeof result;
    if (ready > 0 && ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &result, &size) == 0) {
      if (result != 0) return connect_error(text, result);
      return fd;
    }
  }
}

}  // namespace kvmid::client
