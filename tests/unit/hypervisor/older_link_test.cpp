// SPDX-License-Identifier: GPL-2.0-or-later
//
// The link in the older dialects, over socket pairs: the test is the tool that QEMU connects to.

#include <catch2/catch.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "hypervisor/server/link.h"
#include "hypervisor/server/log.h"
#include "protocol/kvmi1_codec.h"
#include "tests/unit/hypervisor/recording_backend.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::hypervisor {

namespace {

using kvmi1::DialectId;

class Tool {
 public:
  Tool(Link& link, DialectId dialect) : link_(link), codec_(kvmi1::codec(dialect)) {
    set_quiet(true);
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    fd_ = fds[0];
    link_.adopt(fds[1], Link::Clock::now());
  }
  ~Tool() { close(); }
  Tool(const Tool&) = delete;
  Tool& operator=(const Tool&) = delete;
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void hang_up() {
    close();
    link_.handle(POLLIN | POLLHUP, Link::Clock::now());
  }
  ByteBuffer receive() {
    ByteBuffer bytes(64 * 1024);
    const ssize_t n = ::recv(fd_, bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return bytes;
  }
  void send(Bytes bytes) {
    REQUIRE(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
    link_.handle(POLLIN, Link::Clock::now());
  }
  void send(const kvmi1::Command& command, std::uint32_t seq) {
    ByteBuffer bytes;
    codec_.encode(command, Seq{seq}, bytes);
    send(bytes);
  }
  static ByteBuffer answer(std::uint8_t hash = 0, std::uint32_t size = sizeof(kvmi_handshake_answer)) {
    ByteBuffer bytes(size);
    std::memcpy(bytes.data(), &size, sizeof size);
    std::memset(bytes.data() + sizeof size, hash, sizeof kvmi_handshake_answer::cookie_hash);
    return bytes;
  }
  void accept() {
    receive();
    send(answer());
    REQUIRE(link_.state() == Link::State::Serving);
  }
  [[nodiscard]] std::uint16_t number_of(EventKind kind) const { return codec_.number_of(kind).value(); }

 private:
  Link& link_;
  const kvmi1::Codec& codec_;
  int fd_ = -1;
};

Link link_to(GuestBackend& backend, DialectId dialect) {
  LinkOptions options;
  options.older = dialect;
  return Link(backend, std::nullopt, options);
}

}  // namespace

TEST_CASE("the handshake of an older dialect is QEMU's, and no more", "[server][older][link]") {
  for (const DialectId dialect : {DialectId::Rfc2017, DialectId::V6, DialectId::V7, DialectId::V12}) {
    INFO(kvmi1::name_of(dialect));
    RecordingBackend backend;
    backend.change_facts().ram_fd = 0;  // RAM there is; it is not shared
    backend.change_facts().ram_bytes = 0x4000;
    Link link = link_to(backend, dialect);
    Tool tool(link, dialect);

    const ByteBuffer hello = tool.receive();

    REQUIRE(hello.size() == (dialect == DialectId::V12 ? 104 : 96));
    kvmi_handshake qemu{};
    std::memcpy(&qemu, hello.data(), hello.size());
    CHECK(qemu.struct_size == hello.size());
    CHECK(qemu.uuid[0] == 7);
    CHECK(qemu.padding == 0);
    CHECK(qemu.start_time == (dialect == DialectId::V6 ? 0 : 1234));
    CHECK(std::string(qemu.name) == (dialect == DialectId::V6 ? "" : "recorded"));
    CHECK(qemu.max_gpa == (dialect == DialectId::V12 ? 0x4000 : 0));
  }
}

TEST_CASE("an answer of 24 bytes or more is enough, in pieces and with a command right behind", "[server][older][link]") {
  const std::uint32_t size = GENERATE(24U, 40U);
  RecordingBackend backend;
  Link link = link_to(backend, DialectId::V7);
  Tool tool(link, DialectId::V7);
  tool.receive();
  ByteBuffer bytes = Tool::answer(0xab, size);
  kvmi1::encode_get_version(Seq{1}, bytes);

  for (std::size_t i = 0; i < bytes.size(); i += 5) {
    tool.send(Bytes(bytes).subspan(i, std::min<std::size_t>(5, bytes.size() - i)));
  }

  CHECK(link.state() == Link::State::Serving);
  CHECK(tool.receive().size() == sizeof(kvmi_msg_hdr) + 24);
}

TEST_CASE("who does not know the cookie gets nothing of the guest", "[server][older][link]") {
  RecordingBackend backend;
  LinkOptions options;
  options.older = DialectId::V12;
  options.cookie.emplace().fill(0x5a);
  Link link(backend, std::nullopt, options);
  SECTION("its hash") {
    Tool tool(link, DialectId::V12);
    tool.send(Tool::answer(0x5a));
    CHECK(link.state() == Link::State::Serving);
  }
  SECTION("another") {
    const auto hash = GENERATE(std::uint8_t{0}, std::uint8_t{0x5b});
    Tool tool(link, DialectId::V12);
    tool.send(Tool::answer(hash));
    CHECK(link.state() == Link::State::Idle);
    CHECK(link.last_error().find("does not know the cookie") != std::string::npos);
    CHECK(link.connections() == 0);
  }
  SECTION("too few bytes") {
    Tool tool(link, DialectId::V12);
    const std::uint32_t size = 23;
    tool.send(std::as_bytes(std::span(&size, 1)));
    CHECK(link.state() == Link::State::Idle);
    CHECK(link.last_error().find("struct_size 23") != std::string::npos);
  }
}

TEST_CASE("the guest goes as soon as the tool has closed, or at once where it has no UNHOOK", "[server][older][link]") {
  RecordingBackend backend;
  Link link = link_to(backend, DialectId::V7);
  Tool tool(link, DialectId::V7);
  tool.accept();
  const auto now = Link::Clock::now();
  SECTION("told") {
    tool.send(kvmi1::ControlVmEvents{tool.number_of(EventKind::Unhook), true}, 1);
    tool.receive();
    link.unhook(OffReason::Suspend, now);
    REQUIRE(link.state() == Link::State::Serving);
    CHECK(tool.receive().size() == sizeof(kvmi_msg_hdr) + 544);
    tool.send(kvmi1::GetGuestInfo{}, 2);
    CHECK(tool.receive().size() == sizeof(kvmi_msg_hdr) + 24);
    tool.hang_up();
  }
  SECTION("told, and it does not close") {
    tool.send(kvmi1::ControlVmEvents{tool.number_of(EventKind::Unhook), true}, 1);
    link.unhook(OffReason::Suspend, now);
    REQUIRE(link.state() == Link::State::Serving);
    link.handle(0, now + Link::kUnhookTime);
  }
  SECTION("not told") {
    link.unhook(OffReason::Suspend, now);
    CHECK(tool.receive().empty());
  }
  CHECK(link.state() == Link::State::Idle);
  CHECK(backend.unhooked == 1);
}

TEST_CASE("an emulated guest of an older dialect stops for its tool, and runs on when that dies", "[server][older][link]") {
  using namespace emulated;
  const DialectId dialect = GENERATE(DialectId::V6, DialectId::V7, DialectId::V12);
  INFO(kvmi1::name_of(dialect));
  ScriptedGuest guest;
  Link link = link_to(guest.machine(), dialect);
  guest.machine().set_sink(&link);
  Tool tool(link, dialect);
  tool.accept();
  tool.send(kvmi1::ControlEvents{VcpuId{0}, tool.number_of(EventKind::Hypercall), true}, 1);
  CHECK(tool.receive().size() == sizeof(kvmi_msg_hdr) + 8);
  guest.set_mode(GuestMode::Vmcall);
  REQUIRE(guest.run_until([&] { return guest.machine().vcpu(VcpuId{0}).activity == Activity::Waiting; }));
  CHECK_FALSE(tool.receive().empty());
  const std::uint64_t done = guest.mailbox().done[KVMID_MODE_VMCALL];

  tool.hang_up();

  REQUIRE(guest.run_until([&] { return guest.mailbox().done[KVMID_MODE_VMCALL] >= done + 3; }));
  CHECK(guest.mailbox().hypercall_result == kHypercallUnknown);
  guest.machine().set_sink(nullptr);
}

}  // namespace kvmid::hypervisor
