// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The other end of an agent's connection: kvmid's side of the protocol on a socket pair, said line by line by a test.
///
/// Shapes:   say(...) writes a message, heard() reads the next one. What the peer says first lies in the socket until
///           the client looks, so most tests need no second thread; serve() answers commands from one.
/// Errors:   a failed REQUIRE.

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "client/agent_client.h"
#include "protocol/handshake.h"

namespace kvmid::client::test {

inline const Uuid kGuest{{0x6a, 0x1f, 0x7e, 0x36, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}};

inline kvmi_welcome good_welcome() {
  kvmi_welcome welcome{};
  welcome.struct_size = sizeof welcome;
  welcome.magic = KVMI_HELLO_MAGIC;
  welcome.version = KVMI_VERSION;
  welcome.agent = 7;
  welcome.max_payload = KVMI_MAX_PAYLOAD;
  welcome.requests_max = 16;
  welcome.queue_bytes_max = 1U << 20U;
  welcome.deadline_us = 100'000;
  welcome.priority = 5;
  welcome.commands = KVMI_COMMAND_BIT(KVMI_MSG_GET_VERSION);
  welcome.events = kEveryEvent.bits;
  welcome.vcpu_count = 2;
  std::memcpy(welcome.uuid, kGuest.bytes.data(), sizeof welcome.uuid);
  copy_text("web1", welcome.guest_name, sizeof welcome.guest_name);
  return welcome;
}

class ScriptedPeer {
 public:
  ScriptedPeer() {
    int pair[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fd_.reset(pair[0]);
    client_end_.reset(pair[1]);
  }
  ~ScriptedPeer() {
    // Serving ends when the client closes, or here.
    if (thread_.joinable()) {
      ::shutdown(fd_.get(), SHUT_RDWR);
      thread_.join();
    }
  }
  ScriptedPeer(const ScriptedPeer&) = delete;
  ScriptedPeer& operator=(const ScriptedPeer&) = delete;

  UniqueFd take_client_end() { return std::move(client_end_); }

  /// Welcomes, then gives the client that was welcomed; the hello has been read.
  AgentClient client(ConnectOptions options = attached()) {
    say_bytes(encoded(good_welcome()));
    auto made = AgentClient::adopt(take_client_end(), options);
    REQUIRE(made);
    const ByteBuffer hello = read(sizeof(kvmi_hello));
    auto parsed = parse_agent_hello(hello);
    REQUIRE(parsed);
    hello_ = *parsed;
    return std::move(*made);
  }
  static ConnectOptions attached() {
    ConnectOptions options;
    options.name = "tester";
    options.guest = kGuest;
    return options;
  }
  [[nodiscard]] const AgentHello& hello() const { return hello_; }

  static ByteBuffer encoded(const kvmi_welcome& welcome) {
    ByteBuffer bytes;
    encode(welcome, bytes);
    return bytes;
  }
  void say_bytes(Bytes bytes) {
    REQUIRE(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }
  void say(const Event& event, std::uint32_t seq) {
    say_encoded([&](ByteBuffer& o) { dialect_.encode(event, Seq{seq}, o); });
  }
  void say(const CommandReply& reply, Seq seq) {
    say_encoded([&](ByteBuffer& o) { dialect_.encode(reply, seq, o); });
  }
  void say(const Notice& notice) {
    say_encoded([&](ByteBuffer& o) { dialect_.encode(notice, o); });
  }
  void say(const GuestOn& on) {
    say_encoded([&](ByteBuffer& o) { dialect_.encode(on, o); });
  }
  void say(const GuestOff& off) {
    say_encoded([&](ByteBuffer& o) { dialect_.encode(off, o); });
  }
  /// A reply whose first byte carries descriptors.
  void say_with_fds(const CommandReply& reply, Seq seq, std::span<const int> fds) {
    ByteBuffer bytes;
    dialect_.encode(reply, seq, bytes);
    iovec vector{bytes.data(), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)] = {};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    REQUIRE(::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }
  void close() { fd_.reset(); }
  /// Reads bytes that are not looked at here.
  void skip(void* to, std::size_t size) { REQUIRE(read_some(to, size)); }

  struct Heard {
    Seq seq;
    ByteBuffer storage;
    Downward message;
    template <class T>
    const T& as() const {
      const auto* command = std::get_if<Command>(&message);
      REQUIRE(command != nullptr);
      REQUIRE(std::holds_alternative<T>(*command));
      return std::get<T>(*command);
    }
  };
  /// Blocks until the client has sent a message.
  Heard heard() {
    kvmi_msg_hdr header{};
    ByteBuffer head = read(sizeof header);
    std::memcpy(&header, head.data(), sizeof header);
    ByteBuffer payload = read(header.size);
    auto decoded = dialect_.decode_downward(Frame{header.id, Seq{header.seq}, payload});
    REQUIRE(decoded);
    return Heard{Seq{header.seq}, std::move(payload), *decoded};
  }

  /// Answers every command with what `answer` gives, from a thread of its own, until the connection ends.
  void serve(std::function<CommandReply(const Command&)> answer) {
    thread_ = std::thread([this, answer = std::move(answer)] {
      for (;;) {
        kvmi_msg_hdr header{};
        if (!read_some(&header, sizeof header)) return;
        ByteBuffer payload(header.size);
        if (!read_some(payload.data(), payload.size())) return;
        DialectKvmi2 dialect;
        auto decoded = dialect.decode_downward(Frame{header.id, Seq{header.seq}, payload});
        if (!decoded) return;
        const auto* command = std::get_if<Command>(&*decoded);
        if (command == nullptr) return;
        ByteBuffer out;
        dialect.encode(answer(*command), Seq{header.seq}, out);
        if (::send(fd_.get(), out.data(), out.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(out.size())) return;
      }
    });
  }

 private:
  template <class F>
  void say_encoded(F encode_into) {
    ByteBuffer bytes;
    encode_into(bytes);
    say_bytes(bytes);
  }
  bool read_some(void* to, std::size_t size) {
    return size == 0 || ::recv(fd_.get(), to, size, MSG_WAITALL) == static_cast<ssize_t>(size);
  }
  ByteBuffer read(std::size_t size) {
    ByteBuffer bytes(size);
    REQUIRE(read_some(bytes.data(), size));
    return bytes;
  }

  UniqueFd fd_;
  UniqueFd client_end_;
  DialectKvmi2 dialect_;
  AgentHello hello_;
  std::thread thread_;
};

inline Event cr_event(bool decide = true) {
  Event event;
  event.vcpu = VcpuId{1};
  event.actions =
      ActionSet{static_cast<std::uint8_t>(KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_SKIP))};
  event.decide = decide;
  event.deadline_us = decide ? 100'000 : 0;
  event.regs.rip = 0xffffffff81000000;
  event.data = CrData{4, 0x20, 0x0};
  return event;
}

inline CommandReply ok(std::uint16_t id, ReplyBody body = {}) { return CommandReply{id, ErrorCode::None, {}, body}; }

}  // namespace kvmid::client::test
