// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "hypervisor/server/log.h"
#include "protocol/handshake.h"

namespace kvmid::hypervisor {

namespace {

std::string errno_text(const char* what) { return std::string(what) + ": " + std::strerror(errno); }
bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Link::Link(GuestBackend& backend, std::optional<Address> address, LinkOptions options)
    : backend_(backend), address_(std::move(address)), options_(options) {
  if (address_) next_dial_ = Clock::time_point::min();
}

Link::~Link() {
  if (fd_ >= 0) ::close(fd_);
}

Link::Wait Link::wait() const {
  switch (state_) {
    case State::Idle: return {-1, 0, next_dial_};
    case State::Connecting: return {fd_, POLLOUT, greeting_ends_};
    case State::Greeting: return {fd_, POLLIN, greeting_ends_};
    case State::Serving: {
      const int in = session_->wants_input() ? POLLIN : 0;
      const int out = session_->outbox().empty() ? 0 : POLLOUT;
      return {fd_, static_cast<short>(in | out), held_ ? std::optional(unhook_ends_) : std::nullopt};
    }
  }
  return {};
}

void Link::handle(short revents, Clock::time_point now) {
  switch (state_) {
    case State::Idle:
      if (next_dial_ && now >= *next_dial_) dial_now(now);
      return;
    case State::Connecting: {
      if (revents == 0) {
        if (now >= greeting_ends_) lose("connect: timed out", now);
        return;
      }
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return lose(std::string("connect: ") + std::strerror(error), now);
      return begin_greeting(now);
    }
    case State::Greeting:
      if (revents != 0) return read_answer(now);
      if (now >= greeting_ends_) lose("kvmid did not answer the handshake", now);
      return;
    case State::Serving:
      if ((revents & POLLOUT) != 0) flush(now);
      if (state_ == State::Serving && (revents & (POLLIN | POLLHUP | POLLERR)) != 0) read_frames(now);
      let_go_if_unhooked(now);
      return;
  }
}

void Link::dial_now(Clock::time_point now) {
  next_dial_.reset();
  const auto fd = dial(*address_);
  if (!fd) return lose(fd.error().text, now);
  fd_ = *fd;
  state_ = State::Connecting;
  greeting_ends_ = now + kGreetingTime;
}

void Link::adopt(int fd, Clock::time_point now) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  fd_ = fd;
  begin_greeting(now);
}

void Link::begin_greeting(Clock::time_point now) {
  state_ = State::Greeting;
  greeting_ends_ = now + kGreetingTime;
  greeting_in_.clear();
  if (!send_hello()) lose(errno_text("sending the handshake"), now);
}

namespace {

/// kvmid reads guest RAM, and hands it on to agents that read it: it gets no descriptor that could be written, nor one
/// that it would have to open again as a user who may not.
int read_only(int ram_fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(ram_fd);
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
}

}  // namespace

/// What QEMU sends for a kernel of that dialect: 104 bytes with max_gpa in v12, 96 in the others. v6 leaves what is behind
/// the UUID zero.
HypervisorHello Link::older_hello() const {
  const auto& facts = backend_.facts();
  HypervisorHello hello;
  hello.uuid = facts.uuid;
  if (options_.older != kvmi1::DialectId::V6) {
    hello.start_time = facts.start_time;
    hello.name = facts.name;
  }
  if (options_.older == kvmi1::DialectId::V12) hello.max_gpa = facts.max_gpa;
  return hello;
}

bool Link::send_hello() {
  if (options_.older) {
    ByteBuffer bytes;
    encode(older_hello(), bytes);
    return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  const auto& facts = backend_.facts();
  sockaddr_storage own{};
  socklen_t own_size = sizeof own;
  const bool is_unix =
      ::getsockname(fd_, reinterpret_cast<sockaddr*>(&own), &own_size) == 0 && own.ss_family == AF_UNIX;
  const int ram_fd = is_unix && facts.ram_fd >= 0 ? read_only(facts.ram_fd) : -1;
  const bool share = ram_fd >= 0;

  HypervisorHello hello;
  hello.uuid = facts.uuid;
  hello.start_time = facts.start_time;
  hello.name = facts.name;
  hello.max_gpa = facts.max_gpa;
  hello.kvmi2 = true;
  if (share) hello.flags |= KVMI_HANDSHAKE_RAM_SHARED;
  if (facts.write_in_mapping) hello.flags |= KVMI_HANDSHAKE_WRITE_IN_MAPPING;
  hello.ram_bytes = share ? facts.ram_bytes : 0;
  ByteBuffer bytes;
  encode(hello, bytes);

  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (share) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(head), &ram_fd, sizeof(int));
  }
  // A fresh socket takes so few bytes whole; if it does not, the peer is not one we can talk to.
  const bool sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  if (ram_fd >= 0) ::close(ram_fd);
  return sent;
}

void Link::read_answer(Clock::time_point now) {
  // Only what the answer still lacks is read: the frames behind it are the session's.
  for (;;) {
    const auto size = first_struct_size(greeting_in_);
    if (!size) return lose("handshake answer: " + describe(size.error()), now);
    const std::size_t need = *size ? **size : sizeof(std::uint32_t);
    if (*size && greeting_in_.size() >= need) break;
    const std::size_t have = greeting_in_.size();
    greeting_in_.resize(need);
    const ssize_t n = ::recv(fd_, greeting_in_.data() + have, need - have, 0);
    greeting_in_.resize(have + (n > 0 ? static_cast<std::size_t>(n) : 0));
    if (n == 0) return lose("kvmid closed the connection during the handshake", now);
    if (n < 0) {
      if (would_block()) return;
      return lose(errno_text("handshake answer"), now);
    }
  }
  if (const auto reason = refusal()) return lose(*reason, now);
  session_ = std::make_unique<Session>(backend_, options_.older);
  state_ = State::Serving;
  ++connections_;
  backoff_.reset();
  logged_error_.clear();
  log("connected", {{"guest", backend_.facts().name},
                    {"uuid", to_string(backend_.facts().uuid)},
                    {"socket", address_ ? to_string(*address_) : "given"},
                    {"dialect", std::string(options_.older ? kvmi1::name_of(*options_.older) : "kvmi2")}});
}

std::optional<std::string> Link::refusal() const {
  if (options_.older) {
    kvmi_handshake_answer answer;  // what a longer one has behind it is not looked at
    std::memcpy(&answer, greeting_in_.data(), sizeof answer);
    const auto& hash = answer.cookie_hash;
    unsigned difference = 0;  // found in the same time wherever it is
    for (std::size_t i = 0; options_.cookie && i < options_.cookie->size(); ++i) {
      difference |= static_cast<unsigned>((*options_.cookie)[i] ^ hash[i]);
    }
    if (difference == 0) return std::nullopt;
    return "the peer does not know the cookie: the hash in its handshake answer is another";
  }
  const auto answer = parse_hypervisor_answer(greeting_in_);
  if (!answer) return "handshake answer: " + describe(answer.error());
  if (!answer->kvmi2) return "the peer does not speak KVMI 2: its handshake answer lacks that part";
  if (answer->status == ErrorCode::None) return std::nullopt;
  return "kvmid refused the guest: " + std::string(name_of(answer->status)) + ": " + answer->text;
}

void Link::read_frames(Clock::time_point now) {
  const auto space = session_->writable();
  const ssize_t n = ::recv(fd_, space.data(), space.size(), 0);
  if (n == 0) return lose("kvmid closed the connection", now);
  if (n < 0) {
    if (would_block()) return;
    return lose(errno_text("receive"), now);
  }
  in_session_ = true;
  const auto error = session_->received(static_cast<std::size_t>(n));
  in_session_ = false;
  if (error) return lose("bad message: " + *error, now);
  flush(now);
}

void Link::flush(Clock::time_point now) {
  for (;;) {
    while (!session_->outbox().empty()) {
      const auto bytes = session_->outbox();
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n < 0) {
        if (!would_block()) return lose(errno_text("send"), now);
        if (session_->outbox().size() > kOutboxMax) lose("kvmid does not read what is sent to it", now);
        return;
      }
      session_->sent(static_cast<std::size_t>(n));
    }
    // Commands that were left while the outbox was full.
    in_session_ = true;
    const auto error = session_->resume();
    in_session_ = false;
    if (error) return lose("bad message: " + *error, now);
    if (session_->outbox().empty()) return;
  }
}

void Link::raise(const Event& event) {
  if (state_ != State::Serving) {  // nobody watches: the guest goes on
    EventReply reply;
    reply.vcpu = event.vcpu;
    reply.event = event.kind();
    backend_.answer(reply);
    return;
  }
  session_->raise(event);
  // An answer that raises the next event: whoever called the session sends it, and may lose the session only then.
  if (!in_session_) flush(Clock::now());
}

void Link::map_changing(const MemoryMapChanged& change) {
  if (state_ != State::Serving) return;  // kvmid asks for the map when it is there
  session_->map_changing(change);
  if (!in_session_) flush(Clock::now());
}

void Link::lose(const std::string& reason, Clock::time_point now) {
  last_error_ = reason;
  const bool served = state_ == State::Serving;
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  state_ = State::Idle;
  session_.reset();  // takes the patches off, before any vCPU goes on
  if (served) backend_.unhook();
  if (address_ && !held_) next_dial_ = now + backoff_.next();
  if (reason == logged_error_) return;
  logged_error_ = reason;
  log(held_    ? "unhooked"
      : served ? "connection lost, the guest runs on unhooked"
               : "no connection, the guest runs unhooked",
      {{"guest", backend_.facts().name}, {"reason", reason}});
}

void Link::unhook(OffReason reason, Clock::time_point now) {
  if (held_) return;
  held_ = true;
  unhook_reason_ = reason;
  unhook_ends_ = now + kUnhookTime;
  next_dial_.reset();
  if (state_ == State::Serving) {
    session_->unhook(reason);
    flush(now);
    return let_go_if_unhooked(now);
  }
  if (state_ != State::Idle) lose("the guest is let go: " + std::string(name_of(reason)), now);
}

void Link::let_go_if_unhooked(Clock::time_point now) {
  if (!held_ || state_ != State::Serving) return;
  const std::string reason(name_of(unhook_reason_));
  if (session_->unhooked()) lose("the guest is let go: " + reason, now);
  else if (now >= unhook_ends_) lose("kvmid did not let the guest go in time: " + reason, now);
}

void Link::resume(Clock::time_point now) {
  if (!held_) return;
  held_ = false;
  if (address_ && state_ == State::Idle) next_dial_ = now;
}

void Link::stop(const std::string& reason) {
  address_.reset();
  next_dial_.reset();
  if (state_ != State::Idle) {
    lose(reason, Clock::now());
    next_dial_.reset();
  }
}

}  // namespace kvmid::hypervisor
