// SPDX-License-Identifier: GPL-2.0-or-later
//
// A guest leaves kvmid in good order. The test is kvmid, at the other end of a socket pair.

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "hypervisor/emulated/departure.h"
#include "hypervisor/server/log.h"
#include "protocol/handshake.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

using hypervisor::Link;

/// A guest with a link, and kvmid's end of it. Time is the test's.
class Scene {
 public:
  Scene() : link(guest.machine(), std::nullopt), departure(guest.machine(), link) {
    hypervisor::set_quiet(true);
    guest.machine().set_sink(&link);
  }
  ~Scene() { hang_up(); }

  void connect() {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    fd_ = fds[0];
    link.adopt(fds[1], now);
    (void)received();
    ByteBuffer answer;
    encode(HypervisorAnswer{true, ErrorCode::None, ""}, answer);
    send(answer);
    REQUIRE(link.state() == Link::State::Serving);
  }
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  template <class Message>
  void send(const Message& message, std::uint32_t seq) {
    ByteBuffer bytes;
    dialect_.encode(message, Seq{seq}, bytes);
    send(bytes);
  }
  void send(const ByteBuffer& bytes) {
    REQUIRE(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
    link.handle(POLLIN, now);
  }
  void answer_unhook(std::uint32_t seq) {
    EventReply reply;
    reply.vcpu = kAllVcpus;
    reply.event = EventKind::Unhook;
    send(reply, seq);
  }
  /// Headers of the messages that came, with the reason of an UNHOOK behind each (255: it is none).
  struct Heard {
    std::uint16_t id;
    std::uint32_t seq;
    std::uint8_t unhook_reason;
  };
  std::vector<Heard> heard() {
    std::vector<Heard> all;
    const ByteBuffer bytes = received();
    for (std::size_t at = 0; at < bytes.size();) {
      kvmi_msg_hdr hdr;
      std::memcpy(&hdr, bytes.data() + at, sizeof hdr);
      std::uint8_t reason = 255;
      constexpr std::size_t kEventKindAt = sizeof hdr + 2, kReasonAt = sizeof hdr + 568;
      if (hdr.id == KVMI_MSG_EVENT && bytes[at + kEventKindAt] == std::byte{KVMI_EVENT_UNHOOK}) {
        reason = std::to_integer<std::uint8_t>(bytes[at + kReasonAt]);
      }
      all.push_back({hdr.id, hdr.seq, reason});
      at += sizeof hdr + hdr.size;
    }
    return all;
  }
  [[nodiscard]] bool closed() {
    char byte = 0;
    return ::recv(fd_, &byte, 1, 0) == 0;
  }

  ScriptedGuest guest;
  Link link;
  Departure departure;
  Link::Clock::time_point now = Link::Clock::now();

 private:
  ByteBuffer received() {
    ByteBuffer bytes(256 * 1024);
    const ssize_t n = ::recv(fd_, bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return bytes;
  }
  int fd_ = -1;
  DialectKvmi2 dialect_;
};

}  // namespace

TEST_CASE("a shutdown: reply, UNHOOK, its answer, and the guest is gone", "[emulated][departure]") {
  Scene scene;
  scene.connect();
  scene.send(Command{ShutdownGuest{}}, 77);
  auto heard = scene.heard();
  REQUIRE(heard.size() == 1);
  CHECK((heard[0].id == KVMI_MSG_SHUTDOWN_GUEST && heard[0].seq == 77));

  scene.departure.step(scene.now);
  heard = scene.heard();
  REQUIRE(heard.size() == 1);
  CHECK(heard[0].unhook_reason == KVMI_OFF_SHUTDOWN);
  CHECK(scene.departure.guest_runs());  // until kvmid has taken everything back
  scene.departure.step(scene.now);
  CHECK_FALSE(scene.guest.machine().stopped());

  scene.answer_unhook(heard[0].seq);
  CHECK(scene.link.state() == Link::State::Idle);
  CHECK(scene.closed());
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Gone);
  CHECK(scene.guest.machine().stop_cause() == StopCause::Shutdown);
}

TEST_CASE("a guest that is let go for a while is held, and connects again", "[emulated][departure]") {
  const OffReason reason = GENERATE(OffReason::Suspend, OffReason::Migration, OffReason::Snapshot);
  Scene scene;
  scene.connect();
  scene.guest.watch(EventKind::Hypercall);
  scene.departure.leave_for(reason, std::chrono::milliseconds(50), scene.now);
  auto heard = scene.heard();
  REQUIRE(heard.size() == 1);
  CHECK(heard[0].unhook_reason == static_cast<std::uint8_t>(reason));
  scene.departure.leave_for(OffReason::Suspend, std::chrono::milliseconds(1), scene.now);  // once is enough
  CHECK(scene.heard().empty());

  scene.answer_unhook(heard[0].seq);
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Held);
  CHECK_FALSE(scene.departure.guest_runs());
  CHECK_FALSE(scene.guest.hooks().watches(VcpuId{0}, EventKind::Hypercall));
  REQUIRE(scene.departure.until());
  CHECK(*scene.departure.until() == scene.now + std::chrono::milliseconds(50));
  scene.now += std::chrono::milliseconds(49);
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Held);
  scene.now += std::chrono::milliseconds(1);
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Staying);
  CHECK(scene.departure.guest_runs());

  scene.hang_up();
  scene.connect();
  CHECK(scene.link.connections() == 2);
  scene.departure.leave_for(reason, std::chrono::milliseconds(50), scene.now);
  CHECK(scene.heard().size() == 1);
}

TEST_CASE("a kvmid that does not let go in time is left", "[emulated][departure]") {
  Scene scene;
  scene.connect();
  (void)scene.guest.machine().shutdown();
  scene.departure.step(scene.now);
  REQUIRE(scene.link.wait().until);
  scene.now = *scene.link.wait().until - std::chrono::milliseconds(1);
  scene.link.handle(0, scene.now);
  CHECK(scene.link.state() == Link::State::Serving);
  scene.now += std::chrono::milliseconds(1);
  scene.link.handle(0, scene.now);
  CHECK(scene.link.state() == Link::State::Idle);
  CHECK(scene.link.last_error().find("in time: shutdown") != std::string::npos);
  scene.departure.step(scene.now);
  CHECK(scene.guest.machine().stopped());
}

TEST_CASE("a kvmid that goes away meanwhile lets go too", "[emulated][departure]") {
  Scene scene;
  scene.connect();
  scene.departure.leave_for(OffReason::Suspend, std::chrono::milliseconds(5), scene.now);
  scene.hang_up();
  scene.link.handle(POLLIN | POLLHUP, scene.now);
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Held);
  CHECK_FALSE(scene.link.wait().until);  // nothing is dialled before the guest goes on
}

TEST_CASE("without a connection a guest leaves at once", "[emulated][departure]") {
  Scene scene;
  (void)scene.guest.machine().shutdown();
  scene.departure.step(scene.now);
  CHECK(scene.departure.state() == Departure::State::Gone);
  CHECK(scene.guest.machine().stopped());
}

TEST_CASE("a link that is let go dials again only when it is told to", "[emulated][departure]") {
  ScriptedGuest guest;
  hypervisor::set_quiet(true);
  Link link(guest.machine(), hypervisor::UnixAddress{"/nonexistent/kvmid-departure-test"});
  const auto now = Link::Clock::now();
  link.unhook(OffReason::Snapshot, now);
  CHECK_FALSE(link.wait().until);
  link.handle(0, now);
  REQUIRE(link.last_error().empty());
  link.resume(now);
  REQUIRE(link.wait().until);
  CHECK(*link.wait().until == now);
  link.handle(0, now);
  CHECK_FALSE(link.last_error().empty());
}

}  // namespace kvmid::emulated
