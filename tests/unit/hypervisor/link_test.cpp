// SPDX-License-Identifier: GPL-2.0-or-later
//
// The link over socket pairs: the test is kvmid.

#include <catch2/catch.hpp>

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "hypervisor/server/link.h"
#include "hypervisor/server/log.h"
#include "protocol/handshake.h"
#include "tests/unit/hypervisor/recording_backend.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::hypervisor {

namespace {

/// kvmid's end of a link.
class Daemon {
 public:
  explicit Daemon(Link& link, Link::Clock::time_point now = Link::Clock::now()) : link_(link) {
    set_quiet(true);
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    fd_ = fds[0];
    link_.adopt(fds[1], now);
  }
  ~Daemon() { hang_up(); }
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  ByteBuffer receive(int* descriptor = nullptr) {
    ByteBuffer bytes(256 * 1024);
    iovec part{bytes.data(), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = ::recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
    bytes.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    if (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr && head->cmsg_type == SCM_RIGHTS) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(head), sizeof fd);
      if (descriptor != nullptr) *descriptor = fd;
      else ::close(fd);
    }
    return bytes;
  }
  void send(Bytes bytes) {
    REQUIRE(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
    link_.handle(POLLIN, Link::Clock::now());
  }
  /// Sends, and is gone before the link looks.
  void send_and_hang_up(Bytes bytes) {
    REQUIRE(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
    hang_up();
    link_.handle(POLLIN | POLLHUP, Link::Clock::now());
  }
  void accept() {
    receive();
    ByteBuffer answer;
    encode(HypervisorAnswer{true, ErrorCode::None, ""}, answer);
    send(answer);
    REQUIRE(link_.state() == Link::State::Serving);
  }
  template <class Message>
  void send(const Message& message, std::uint32_t seq) {
    ByteBuffer bytes;
    dialect_.encode(message, Seq{seq}, bytes);
    send(bytes);
  }

 private:
  Link& link_;
  int fd_ = -1;
  DialectKvmi2 dialect_;
};

}  // namespace

TEST_CASE("the handshake says what the guest is and brings its RAM", "[server][link]") {
  RecordingBackend backend;
  const int ram = ::memfd_create("ram", MFD_CLOEXEC);
  REQUIRE(ram >= 0);
  REQUIRE(::ftruncate(ram, 0x4000) == 0);
  backend.change_facts().ram_fd = ram;
  backend.change_facts().ram_bytes = 0x4000;
  Link link(backend, std::nullopt);
  Daemon daemon(link);

  int received = -1;
  const ByteBuffer hello = daemon.receive(&received);

  REQUIRE(hello.size() == sizeof(kvmi_handshake) + sizeof(kvmi_handshake_kvmi2));
  kvmi_handshake qemu;
  kvmi_handshake_kvmi2 own;
  std::memcpy(&qemu, hello.data(), sizeof qemu);
  std::memcpy(&own, hello.data() + sizeof qemu, sizeof own);
  CHECK(qemu.struct_size == hello.size());
  CHECK(qemu.uuid[0] == 7);
  CHECK(qemu.start_time == 1234);
  CHECK(std::string(qemu.name) == "recorded");
  CHECK(qemu.max_gpa == 0x4000);
  CHECK(own.magic == KVMI_HELLO_MAGIC);
  CHECK(own.version == 2);
  CHECK(own.flags == KVMI_HANDSHAKE_RAM_SHARED);
  CHECK(own.ram_bytes == 0x4000);
  struct stat sent {}, got {};
  REQUIRE(received >= 0);
  REQUIRE((::fstat(ram, &sent) == 0 && ::fstat(received, &got) == 0));
  CHECK(sent.st_ino == got.st_ino);
  ::close(received);
  ::close(ram);
}

TEST_CASE("kvmid's answer may come in pieces, with commands right behind it", "[server][link]") {
  RecordingBackend backend;
  Link link(backend, std::nullopt);
  Daemon daemon(link);
  daemon.receive();
  ByteBuffer bytes;
  encode(HypervisorAnswer{true, ErrorCode::None, ""}, bytes);
  DialectKvmi2 dialect;
  dialect.encode(Command{GetVersion{}}, Seq{3}, bytes);

  for (std::size_t i = 0; i < bytes.size(); i += 7) {
    daemon.send(Bytes(bytes).subspan(i, std::min<std::size_t>(7, bytes.size() - i)));
  }

  CHECK(link.state() == Link::State::Serving);
  CHECK(daemon.receive().size() == sizeof(kvmi_msg_hdr) + sizeof(kvmi_error) + sizeof(kvmi_get_version_reply));
}

TEST_CASE("a connection that cannot serve is given up with the reason", "[server][link]") {
  RecordingBackend backend;
  Link link(backend, std::nullopt);
  const auto now = Link::Clock::now();
  Daemon daemon(link, now);
  ByteBuffer answer;

  SECTION("kvmid refuses the guest") {
    encode(HypervisorAnswer{true, ErrorCode::NotPermitted, "no such guest in the policy"}, answer);
    daemon.send(answer);
    CHECK(link.last_error() == "kvmid refused the guest: EPERM: no such guest in the policy");
  }
  SECTION("an answer without the KVMI 2 part") {
    encode(HypervisorAnswer{false, ErrorCode::None, ""}, answer);
    daemon.send(answer);
    CHECK(link.last_error().find("does not speak KVMI 2") != std::string::npos);
  }
  SECTION("garbage for an answer") {
    answer.resize(64, std::byte{0xff});
    daemon.send(answer);
    CHECK(link.last_error().find("handshake answer") == 0);
  }
  SECTION("closed instead of answered") {
    daemon.receive();
    daemon.hang_up();
    link.handle(POLLIN, now);
    CHECK(link.last_error() == "kvmid closed the connection during the handshake");
  }
  SECTION("silence") {
    link.handle(0, now + Link::kGreetingTime - std::chrono::milliseconds(1));
    REQUIRE(link.state() == Link::State::Greeting);
    link.handle(0, now + Link::kGreetingTime);
    CHECK(link.last_error() == "kvmid did not answer the handshake");
  }
  CHECK(link.state() == Link::State::Idle);
  CHECK(link.connections() == 0);
}

TEST_CASE("garbage closes the connection and unhooks the guest", "[server][link]") {
  RecordingBackend backend;
  Link link(backend, std::nullopt);
  Daemon daemon(link);
  daemon.accept();
  daemon.send(Command{ControlEvents{kAllVcpus, Operation::Set, Role::Decider, EventSet{1u << KVMI_EVENT_CR}}}, 1);
  REQUIRE(backend.hooks().watches(VcpuId{0}, EventKind::Cr));
  daemon.receive();

  const ByteBuffer garbage(64, std::byte{0xff});
  daemon.send(garbage);

  CHECK(link.state() == Link::State::Idle);
  CHECK(link.last_error().find("bad message: ") == 0);
  CHECK(backend.unhooked == 1);
  CHECK_FALSE(backend.hooks().watches(VcpuId{0}, EventKind::Cr));
  CHECK(daemon.receive().empty());
}

TEST_CASE("every patch is off before the vCPUs go on, whatever ends the connection", "[server][link][patches]") {
  class WatchedBackend : public RecordingBackend {
   public:
    void unhook() override {
      at_unhook = memory[0x20];
      RecordingBackend::unhook();
    }
    std::byte at_unhook{0xcc};
  } backend;
  backend.memory[0x20] = std::byte{0x90};
  {
    Link link(backend, std::nullopt);
    Daemon daemon(link);
    daemon.accept();
    const std::byte int3{0xcc};
    WritePhysical patch;
    patch.gpa = Gpa{0x20};
    patch.flags = KVMI_WRITE_PATCH;
    patch.data = Bytes(&int3, 1);
    daemon.send(Command{patch}, 1);
    daemon.receive();
    REQUIRE(backend.memory[0x20] == int3);

    SECTION("kvmid is gone") {
      daemon.hang_up();
      link.handle(POLLIN | POLLHUP, Link::Clock::now());
    }
    SECTION("kvmid breaks the protocol") { daemon.send(ByteBuffer(64, std::byte{0xff})); }
    SECTION("the link is stopped") { link.stop("the test ends"); }
    SECTION("the guest is let go") {
      link.unhook(OffReason::Suspend, Link::Clock::now());
      CHECK(backend.memory[0x20] == int3);
      EventReply reply;
      reply.vcpu = kAllVcpus;
      reply.event = EventKind::Unhook;
      daemon.send(reply, 1);
    }
    SECTION("kvmid does not let the guest go in time") {
      const auto now = Link::Clock::now();
      link.unhook(OffReason::Suspend, now);
      link.handle(0, now + Link::kUnhookTime);
    }
    CHECK(backend.unhooked == 1);
    CHECK(backend.at_unhook == std::byte{0x90});
  }
  CHECK(backend.memory[0x20] == std::byte{0x90});
}

TEST_CASE("a patch does not outlive a link that is dropped", "[server][link][patches]") {
  RecordingBackend backend;
  std::optional<Link> link(std::in_place, backend, std::nullopt);
  Daemon daemon(*link);
  daemon.accept();
  const std::byte int3{0xcc};
  WritePhysical patch;
  patch.gpa = Gpa{0x20};
  patch.flags = KVMI_WRITE_PATCH;
  patch.data = Bytes(&int3, 1);
  daemon.send(Command{patch}, 1);
  REQUIRE(backend.memory[0x20] == int3);
  link.reset();
  CHECK(backend.memory[0x20] == std::byte{0});
}

TEST_CASE("a connection that is lost while a reply raises the next event is lost behind it", "[server][link]") {
  class ChattyBackend : public RecordingBackend {
   public:
    void answer(const EventReply& reply) override {
      RecordingBackend::answer(reply);
      if (link == nullptr) return;
      Event event;
      event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)};
      event.data = HypercallData{};
      std::exchange(link, nullptr)->raise(event);
      unhooked_within = unhooked;
    }
    Link* link = nullptr;
    unsigned unhooked_within = 0;
  } backend;
  Link link(backend, std::nullopt);
  Daemon daemon(link);
  daemon.accept();
  Event event;
  event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)};
  event.data = HypercallData{};
  link.raise(event);
  daemon.receive();
  backend.link = &link;
  EventReply reply;
  reply.event = EventKind::Hypercall;
  ByteBuffer bytes;
  DialectKvmi2{}.encode(reply, Seq{1}, bytes);

  daemon.send_and_hang_up(bytes);

  CHECK(backend.answers.size() == 1);
  CHECK(backend.unhooked_within == 0);
  CHECK(backend.unhooked == 1);
  CHECK(link.state() == Link::State::Idle);
}

TEST_CASE("a link that has an address dials again, later and later", "[server][link]") {
  set_quiet(true);
  RecordingBackend backend;
  Link link(backend, unix_address("/nonexistent/kvmid.sock").value());
  auto now = Link::Clock::now();
  REQUIRE(link.wait().until.has_value());
  for (const int wait_ms : {100, 200, 400}) {
    link.handle(0, now);
    CHECK(link.last_error() == "connect: No such file or directory");
    REQUIRE(link.wait().until == now + std::chrono::milliseconds(wait_ms));
    now = *link.wait().until;
  }
  link.stop("the test ends");
  CHECK_FALSE(link.wait().until.has_value());
}

TEST_CASE("an event that nobody watches any more is allowed at once", "[server][link]") {
  RecordingBackend backend;
  Link link(backend, std::nullopt);
  Event event;
  event.data = PauseData{};
  link.raise(event);
  REQUIRE(backend.answers.size() == 1);
  CHECK(backend.answers[0].action == Action::Allow);
  CHECK(backend.answers[0].event == EventKind::Pause);
}

TEST_CASE("an emulated guest whose kvmid dies in the middle of an event runs on", "[server][link]") {
  using namespace emulated;
  ScriptedGuest guest;
  Link link(guest.machine(), std::nullopt);
  guest.machine().set_sink(&link);
  Daemon daemon(link);
  daemon.accept();
  const EventSet hypercalls{1u << KVMI_EVENT_HYPERCALL};
  daemon.send(Command{ControlEvents{kAllVcpus, Operation::Set, Role::Decider, hypercalls}}, 1);
  daemon.receive();
  guest.set_mode(GuestMode::Vmcall);
  REQUIRE(guest.run_until([&] { return guest.machine().vcpu(VcpuId{0}).activity == Activity::Waiting; }));
  CHECK(daemon.receive().size() == sizeof(kvmi_msg_hdr) + sizeof(kvmi_event));
  const std::uint64_t done = guest.mailbox().done[KVMID_MODE_VMCALL];

  daemon.hang_up();
  link.handle(POLLIN, Link::Clock::now());

  REQUIRE(guest.run_until([&] { return guest.mailbox().done[KVMID_MODE_VMCALL] >= done + 3; }));
  CHECK(guest.mailbox().hypercall_result == kHypercallUnknown);

  // And it can be watched again.
  Daemon next(link);
  next.accept();
  next.send(Command{PauseVcpu{VcpuId{0}}}, 1);
  REQUIRE(guest.run_until([&] { return guest.machine().vcpu(VcpuId{0}).activity == Activity::Waiting; }));
  CHECK(link.connections() == 2);
  guest.machine().set_sink(nullptr);
}

}  // namespace kvmid::hypervisor
