// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_wire/wire_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <stdexcept>
#include <vector>

namespace kvmid::test {
namespace {

using Clock = std::chrono::steady_clock;

/// False: the time is over.
bool wait_readable(int fd, Clock::time_point until) {
  for (;;) {
    pollfd entry{fd, POLLIN, 0};
    const int n = ::poll(&entry, 1, client::poll_timeout(until));
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) throw std::runtime_error(std::string("poll: ") + std::strerror(errno));
  }
}

}  // namespace

WireSocket::WireSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error("path too long: " + path);
  std::memcpy(address.sun_path, path.data(), path.size());
  fd_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd_ || ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    throw std::runtime_error("connect to " + path + ": " + std::strerror(errno));
  // A daemon that takes nothing must not hold the test for ever.
  const timeval patience{kPatience.count(), 0};
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

bool WireSocket::send(Bytes bytes) {
  while (!bytes.empty()) {
    const auto n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return false;
    } else if (errno != EINTR) {
      throw std::runtime_error(std::string("send: ") + std::strerror(errno));
    }
  }
  return true;
}

void WireSocket::send_with_descriptors(Bytes bytes, std::size_t count) {
  const client::UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  send_with_descriptors(bytes, std::span<const int>(std::vector<int>(count, null.get())));
}

void WireSocket::send_with_descriptors(Bytes bytes, std::span<const int> descriptors) {
  std::vector<char> control(CMSG_SPACE(descriptors.size_bytes()));
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(head), descriptors.data(), descriptors.size_bytes());
  if (::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size()))
    throw std::runtime_error(std::string("sendmsg: ") + std::strerror(errno));
}

void WireSocket::end_of_stream() { ::shutdown(fd_.get(), SHUT_WR); }

std::optional<ByteBuffer> WireSocket::read_exact(std::size_t n) {
  ByteBuffer out(n);
  std::size_t have = 0;
  const auto until = Clock::now() + kPatience;
  while (have < n) {
    if (!wait_readable(fd_.get(), until)) throw std::runtime_error("the peer said nothing more");
    const auto got = ::recv(fd_.get(), out.data() + have, n - have, 0);
    if (got > 0)
      have += static_cast<std::size_t>(got);
    else if (got == 0 || errno == ECONNRESET)
      return std::nullopt;
    else if (errno != EINTR)
      throw std::runtime_error(std::string("recv: ") + std::strerror(errno));
  }
  return out;
}

std::optional<OwnedFrame> WireSocket::next_frame() {
  const auto head = read_exact(sizeof(kvmi_msg_hdr));
  if (!head) return std::nullopt;
  kvmi_msg_hdr hdr{};
  std::memcpy(&hdr, head->data(), sizeof hdr);
  auto payload = read_exact(hdr.size);
  if (!payload) return std::nullopt;
  return OwnedFrame{hdr.id, Seq{hdr.seq}, std::move(*payload)};
}

bool WireSocket::wait_closed() {
  const auto until = Clock::now() + kPatience;
  std::array<std::byte, 65536> dropped;
  while (wait_readable(fd_.get(), until)) {
    const auto got = ::recv(fd_.get(), dropped.data(), dropped.size(), 0);
    if (got == 0 || (got < 0 && errno != EINTR)) return true;
  }
  return false;
}

std::size_t WireSocket::readable_bytes() const {
  int bytes = 0;
  if (::ioctl(fd_.get(), FIONREAD, &bytes) != 0)
    throw std::runtime_error(std::string("FIONREAD: ") + std::strerror(errno));
  return static_cast<std::size_t>(bytes);
}

ByteBuffer frame_of(std::uint16_t id, std::uint32_t seq, Bytes payload, std::optional<std::uint16_t> size) {
  const kvmi_msg_hdr hdr{id, size.value_or(static_cast<std::uint16_t>(payload.size())), seq};
  ByteBuffer out(sizeof hdr + payload.size());
  std::memcpy(out.data(), &hdr, sizeof hdr);
  std::copy(payload.begin(), payload.end(), out.begin() + sizeof hdr);
  return out;
}

kvmi_hello good_hello(const Uuid& guest, std::string_view name) {
  kvmi_hello hello{};
  hello.struct_size = sizeof hello;
  hello.magic = KVMI_HELLO_MAGIC;
  hello.version = KVMI_VERSION;
  std::copy(guest.bytes.begin(), guest.bytes.end(), hello.uuid);
  copy_text(name, hello.name, sizeof hello.name);
  return hello;
}

std::optional<kvmi_welcome> say_hello(WireSocket& socket, Bytes hello) {
  socket.send(hello);
  const auto bytes = socket.read_exact(sizeof(kvmi_welcome));
  if (!bytes) return std::nullopt;
  const auto welcome = parse_welcome(*bytes);
  if (!welcome) throw std::runtime_error("what came is no welcome: " + describe(welcome.error()));
  return *welcome;
}

WireSocket raw_agent(const std::string& socket_path, const Uuid& guest, std::string_view name) {
  WireSocket socket(socket_path);
  const auto welcome = say_hello(socket, bytes_of(good_hello(guest, name)));
  if (!welcome || welcome->status != 0) throw std::runtime_error("the raw agent was not let in");
  return socket;
}

namespace {
template <class Message>
ByteBuffer encode_one(const Message& message, Seq seq) {
  ByteBuffer out;
  DialectKvmi2 dialect;
  dialect.encode(message, seq, out);
  return out;
}
}  // namespace
ByteBuffer encoded(const Command& command, Seq seq) { return encode_one(command, seq); }
ByteBuffer encoded(const EventReply& reply, Seq seq) { return encode_one(reply, seq); }
ByteBuffer encoded(const Event& event, Seq seq) { return encode_one(event, seq); }
ByteBuffer encoded(const CommandReply& reply, Seq seq) { return encode_one(reply, seq); }

}  // namespace kvmid::test
