// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/support/kvmi1_tool.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
// <sys/socket.h> comes first: the next one needs sa_family_t.
#include <linux/vm_sockets.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

namespace kvmid::test {
namespace {

using client::deadline_after;
using client::poll_timeout;
using client::SteadyClock;

[[noreturn]] void fail(const std::string& what) { throw TestError("tool: " + what); }
[[noreturn]] void fail_errno(const std::string& what) { fail(what + ": " + std::strerror(errno)); }

/// Whether the descriptor is ready (or its peer has closed) before the time is over.
bool wait_for(int fd, short events, SteadyClock::time_point until) {
  for (;;) {
    pollfd item{fd, events, 0};
    const int left = poll_timeout(until);
    const int ready = ::poll(&item, 1, left);
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) fail_errno("poll");
    if (ready == 0 && left == 0) return false;
  }
}

constexpr std::string_view kVsock = "vsock:";

client::UniqueFd listen_on_vsock(const std::string& port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = static_cast<unsigned>(std::stoul(port));
  client::UniqueFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), 16) != 0)
    fail_errno("cannot listen on vsock port " + port);
  return fd;
}

client::UniqueFd listen_on(const std::string& path) {
  if (path.starts_with(kVsock)) return listen_on_vsock(path.substr(kVsock.size()));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) fail("the path is too long: " + path);
  std::memcpy(address.sun_path, path.data(), path.size());
  ::unlink(path.c_str());
  client::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), 16) != 0)
    fail_errno("cannot listen on " + path);
  return fd;
}

}  // namespace

Kvmi1Tool::Kvmi1Tool(std::string path, kvmi1::DialectId dialect)
    : path_(std::move(path)), codec_(kvmi1::codec(dialect)), listener_(listen_on(path_)) {}

Kvmi1Tool::~Kvmi1Tool() {
  if (!path_.starts_with(kVsock)) ::unlink(path_.c_str());
}

void Kvmi1Tool::hang_up() {
  connection_.reset();
  kept_.clear();
  parser_.reset();
}

const HypervisorHello& Kvmi1Tool::accept(Millis bound) {
  hang_up();
  const auto until = deadline_after(bound);
  if (!wait_for(listener_.get(), POLLIN, until)) fail("nobody connects to " + path_);
  connection_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection_) fail_errno("accept");

  hello_bytes_.clear();
  read_exactly(hello_bytes_, sizeof(std::uint32_t), until);
  const auto size = first_struct_size(hello_bytes_);
  if (!size) fail("handshake: " + describe(size.error()));
  read_exactly(hello_bytes_, size->value_or(0), until);
  const auto hello = parse_hypervisor_hello(hello_bytes_);
  if (!hello) fail("handshake: " + describe(hello.error()));
  hello_ = *hello;

  ByteBuffer answer(sizeof(std::uint32_t) + cookie_.size());
  const auto answer_size = static_cast<std::uint32_t>(answer.size());
  std::memcpy(answer.data(), &answer_size, sizeof answer_size);
  std::memcpy(answer.data() + sizeof answer_size, cookie_.data(), cookie_.size());
  send_bytes(answer);
  parser_ = std::make_unique<FrameParser>(codec_.payload_max());
  return hello_;
}

/// Until `out` has `size` bytes, and not one more: what follows belongs to the parser.
void Kvmi1Tool::read_exactly(ByteBuffer& out, std::size_t size, SteadyClock::time_point until) {
  while (out.size() < size) {
    if (!wait_for(connection_.get(), POLLIN, until)) fail("the handshake does not come whole");
    const std::size_t have = out.size();
    out.resize(size);
    const ssize_t got = ::recv(connection_.get(), out.data() + have, size - have, 0);
    out.resize(have + static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    if (got == 0) fail("closed during the handshake");
    if (got < 0 && errno != EAGAIN && errno != EINTR) fail_errno("handshake");
  }
}

void Kvmi1Tool::send_bytes(Bytes bytes) {
  const auto until = deadline_after(kBound);
  while (!bytes.empty()) {
    const ssize_t sent = ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      fail_errno("send");
    } else if (!wait_for(connection_.get(), POLLOUT, until)) {
      fail("what is sent is not read");
    }
  }
}

Seq Kvmi1Tool::send(const kvmi1::Command& command) {
  const Seq seq = next_seq();
  out_.clear();
  codec_.encode(command, seq, out_);
  send_bytes(out_);
  return seq;
}

std::optional<Kvmi1Message> Kvmi1Tool::parsed() {
  const auto next = parser_->next();
  if (!next) fail("a frame announces " + std::to_string(next.error().size) + " bytes, more than the dialect has");
  if (*next == nullptr) return std::nullopt;
  // Its own bytes, as the message is kept.
  const Frame& found = **next;
  kvmi_msg_hdr header{};
  header.id = found.id;
  header.size = static_cast<decltype(header.size)>(found.payload.size());
  header.seq = found.seq.value;
  auto bytes = std::make_shared<ByteBuffer>(sizeof header + found.payload.size());
  std::memcpy(bytes->data(), &header, sizeof header);
  std::copy(found.payload.begin(), found.payload.end(), bytes->begin() + sizeof header);
  Kvmi1Message message{bytes, Frame{found.id, found.seq, Bytes(*bytes).subspan(sizeof header)}, {}};
  const auto decoded = codec_.decode_upward(message.frame);
  if (!decoded) fail("message " + std::to_string(found.id) + ": " + kvmi1::describe(codec_, decoded.error()));
  message.message = *decoded;
  return message;
}

std::optional<Kvmi1Message> Kvmi1Tool::receive(SteadyClock::time_point until) {
  if (!connection_) fail("not connected");
  for (;;) {
    if (auto message = parsed()) return message;
    const auto space = parser_->writable();
    const ssize_t got = ::recv(connection_.get(), space.data(), space.size(), 0);
    if (got > 0) {
      parser_->commit(static_cast<std::size_t>(got));
    } else if (got == 0 || errno == ECONNRESET) {
      fail("the connection was closed");
    } else if (errno != EAGAIN && errno != EINTR) {
      fail_errno("receive");
    } else if (!wait_for(connection_.get(), POLLIN, until)) {
      return std::nullopt;
    }
  }
}

std::optional<Kvmi1Message> Kvmi1Tool::try_next(Millis bound) {
  if (!kept_.empty()) {
    auto message = std::move(kept_.front());
    kept_.pop_front();
    return message;
  }
  return receive(deadline_after(bound));
}

Kvmi1Message Kvmi1Tool::next(Millis bound) {
  auto message = try_next(bound);
  if (!message) fail("no message comes");
  return std::move(*message);
}

Kvmi1Reply Kvmi1Tool::call(const kvmi1::Command& command, Millis bound) { return reply_to(send(command), bound); }

Kvmi1Reply Kvmi1Tool::reply_to(Seq seq, Millis bound) {
  const auto is_it = [&](const Kvmi1Message& message) {
    return message.frame.seq == seq && std::holds_alternative<kvmi1::Reply>(message.message);
  };
  const auto as_reply = [](const Kvmi1Message& message) {
    return Kvmi1Reply{message.bytes, std::get<kvmi1::Reply>(message.message)};
  };
  if (const auto found = std::find_if(kept_.begin(), kept_.end(), is_it); found != kept_.end()) {
    const auto reply = as_reply(*found);
    kept_.erase(found);
    return reply;
  }
  const auto until = deadline_after(bound);
  while (auto message = receive(until)) {
    if (is_it(*message)) return as_reply(*message);
    kept_.push_back(std::move(*message));
  }
  fail("no reply to seq " + std::to_string(seq.value));
}

Kvmi1Event Kvmi1Tool::next_event(Millis bound) {
  const Kvmi1Message message = next(bound);
  if (const auto* event = std::get_if<kvmi1::EventMessage>(&message.message))
    return Kvmi1Event{message.bytes, message.frame.seq, event->view, event->event};
  fail("message " + std::to_string(message.frame.id) + " seq " + std::to_string(message.frame.seq.value) +
       " came where an event was waited for");
}

bool Kvmi1Tool::wait_closed(Millis bound) {
  const auto until = deadline_after(bound);
  std::array<std::byte, 4096> dropped;
  kept_.clear();
  while (wait_for(connection_.get(), POLLIN, until)) {
    const ssize_t got = ::recv(connection_.get(), dropped.data(), dropped.size(), 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return true;
  }
  return false;
}

void Kvmi1Tool::reply(const Kvmi1Event& event, std::uint32_t action, Bytes data) {
  kvmi1::EventReplyMessage message;
  message.vcpu = event.event.vcpu;
  message.action = action;
  if (codec_.dialect() == kvmi1::DialectId::Rfc2017) {
    message.vcpu = VcpuId{};
    message.regs = event.event.regs;
  } else {
    message.event = static_cast<std::uint8_t>(codec_.number_of(event.event.kind()).value_or(0));
  }
  message.data = data;
  out_.clear();
  codec_.encode(message, event.seq, out_);
  send_bytes(out_);
}

void Kvmi1Tool::reply_value(const Kvmi1Event& event, std::uint32_t action, std::uint64_t value) {
  reply(event, action, std::as_bytes(std::span(&value, 1)));
}

void Kvmi1Tool::go_on(const Kvmi1Event& event) {
  const std::uint32_t action = codec_.dialect() == kvmi1::DialectId::Rfc2017 ? kvmi1::kAllow2017 : kvmi1::kContinue;
  if (const auto* cr = std::get_if<CrData>(&event.event.data)) return reply_value(event, action, cr->new_value);
  if (const auto* msr = std::get_if<MsrData>(&event.event.data)) return reply_value(event, action, msr->new_value);
  reply(event, action);
}

}  // namespace kvmid::test
