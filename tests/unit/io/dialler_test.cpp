// SPDX-License-Identifier: GPL-2.0-or-later
// What tools do with the handshake, and the order in which they are greeted.
#include "daemon/io/dialler.h"

#include <spdlog/logger.h>
#include <sys/socket.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <optional>

#include "daemon/io/guest_session.h"
#include "daemon/io/listener.h"
#include "daemon/io/shard.h"
#include "tests/support/process.h"

using namespace kvmid;
using namespace kvmid::io;
using namespace std::chrono_literals;

namespace {

Uuid uuid_of(std::uint8_t number) {
  Uuid uuid;
  uuid.bytes.fill(number);
  return uuid;
}

/// A dialler that nothing runs but the test, guests that are online, and a listening socket that a tool would have.
struct World {
  test::RuntimeFolder folder;
  spdlog::logger log{"test"};
  boost::asio::io_context context;
  IoCounters counters;
  FailureRing failures;
  Registry registry{1, 8};
  Services services{registry, counters, log, {}, failures};
  Shard shard{0, services};
  Settings settings;
  ListeningSocket listening;
  std::vector<AgentArrival> attached;
  bool full = false;
  std::optional<Dialler> dialler;

  explicit World(std::chrono::milliseconds answer_timeout = Dialler::kAnswerTimeout) {
    settings.policy.rules.emplace_back().any_peer = true;
    DialedAgent& agent = settings.dialed_agents.emplace_back();
    agent.name = "tool";
    agent.unix_path = folder.file("tool");
    agent.guests = {"*"};
    agent.redial = 1ms;
    auto socket = listen_unix(agent.unix_path, 0600, "");
    REQUIRE(socket);
    listening = std::move(*socket);
    Dialler::Host host{[this](Ticket&) { return !full; },
                       [this](std::shared_ptr<GuestSession>, AgentArrival arrival) {
                         attached.push_back(std::move(arrival));
                       },
                       [](const AgentArrival&, std::string_view, ErrorCode, const std::string&) {}};
    dialler.emplace(context, settings, services, std::move(host), answer_timeout);
  }
  ~World() {
    attached.clear();
    dialler.reset();
    context.poll();
    registry.clear();
  }

  void online(std::uint8_t number) {
    HypervisorHello hello;
    hello.uuid = uuid_of(number);
    hello.name = "guest" + std::to_string(number);
    REQUIRE(registry.claim(hello.uuid, hello.name,
                           [&](unsigned) { return std::make_shared<GuestSession>(shard, 0, hello, services); }));
    registry.set_ready(hello.uuid, {.vcpu_count = 1});
    dialler->guest_changed({.on = true, .uuid = hello.uuid, .name = hello.name, .facts = {}, .reason = {}, .text = {}});
  }
  void run_until(const std::function<bool()>& condition) {
    REQUIRE(test::wait_until([&] {
      context.restart();
      context.poll();
      return condition();
    }));
  }
  /// The next connection that the tool gets; not valid: there is none now.
  [[nodiscard]] UniqueFd next() const {
    return UniqueFd{::accept4(listening.fd.get(), nullptr, nullptr, SOCK_CLOEXEC)};
  }
  [[nodiscard]] UniqueFd wait_next() {
    UniqueFd fd;
    run_until([&] {
      fd = next();
      return fd.valid();
    });
    return fd;
  }
  void answer(const UniqueFd& fd, std::uint32_t size) const {
    std::vector<std::byte> bytes(size);
    std::memcpy(bytes.data(), &size, sizeof size);
    REQUIRE(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(size));
  }
  [[nodiscard]] bool failed(std::string_view step, std::string_view text) const {
    for (const auto& failure : failures.list())
      if (failure.step == step && failure.text.find(text) != std::string::npos) return true;
    return false;
  }
};

std::uint8_t guest_of(const UniqueFd& fd) {
  kvmi_handshake hello{};
  REQUIRE(::recv(fd.get(), &hello, offsetof(kvmi_handshake, max_gpa), MSG_WAITALL) ==
          static_cast<ssize_t>(offsetof(kvmi_handshake, max_gpa)));
  return hello.uuid[0];
}

}  // namespace

TEST_CASE("handshakes are QEMU's, byte for byte", "[dialler]") {
  const GuestFacts facts{.vcpu_count = 1, .start_time = 0x0102030405060708, .max_gpa = 0x1122334455667788};
  const auto v7 = qemu_handshake(kvmi1::DialectId::V7, uuid_of(9), "web", facts);
  REQUIRE(v7.size() == 96);
  CHECK(v7[0] == std::byte{96});
  CHECK(v7[4] == std::byte{9});
  CHECK(v7[20] == std::byte{0});
  CHECK(v7[24] == std::byte{8});
  CHECK(v7[32] == std::byte{'w'});
  const auto v12 = qemu_handshake(kvmi1::DialectId::V12, uuid_of(9), "web", facts);
  REQUIRE(v12.size() == 104);
  CHECK(v12[0] == std::byte{104});
  CHECK(v12[96] == std::byte{0x88});
  const auto v6 = qemu_handshake(kvmi1::DialectId::V6, uuid_of(9), "web", facts);
  REQUIRE(v6.size() == 96);
  CHECK(std::all_of(v6.begin() + 20, v6.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("a tool that answers is attached, whatever the size of its answer", "[dialler]") {
  World world;
  world.online(1);
  const auto size = GENERATE(24U, 25U, 4096U);
  const auto fd = world.wait_next();
  CHECK(guest_of(fd) == 1);
  world.answer(fd, size);
  world.run_until([&] { return world.attached.size() == 1; });
  CHECK(world.attached[0].hello.name == "tool");
  CHECK(world.attached[0].hello.uuid == uuid_of(1));
  REQUIRE(world.attached[0].dialed);
  CHECK(world.attached[0].dialed->dialect == kvmi1::DialectId::V7);
  CHECK(world.failures.list().empty());
}

TEST_CASE("an answer that QEMU would not take is refused, and the tool tried again", "[dialler]") {
  World world(50ms);
  world.online(1);
  auto fd = world.wait_next();
  std::string text;
  SECTION("too short") {
    world.answer(fd, 23);
    text = "struct_size 23";
  }
  SECTION("too long") {
    world.answer(fd, 4097);
    text = "struct_size 4097";
  }
  SECTION("none") { text = "no answer within 50 ms"; }
  SECTION("it closes") {
    fd.reset();
    text = "closed the connection";
  }
  world.run_until([&] { return world.failed(step::kAnswer, text); });
  CHECK(world.attached.empty());
  const auto again = world.wait_next();
  world.answer(again, 24);
  world.run_until([&] { return world.attached.size() == 1; });
}

TEST_CASE("one handshake at a time for an address", "[dialler]") {
  World world;
  world.online(1);
  world.online(2);
  const auto first = world.wait_next();
  CHECK(guest_of(first) == 1);
  world.context.restart();
  world.context.poll();
  CHECK_FALSE(world.next().valid());
  world.answer(first, 24);
  const auto second = world.wait_next();
  CHECK(guest_of(second) == 2);
  world.answer(second, 24);
  world.run_until([&] { return world.attached.size() == 2; });
}

TEST_CASE("a turn is passed on by whoever does not need it any more", "[dialler]") {
  World world;
  world.online(1);
  world.online(2);
  world.online(3);
  const auto first = world.wait_next();
  world.dialler->guest_changed({.on = false, .uuid = uuid_of(2), .name = {}, .facts = {}, .reason = {}, .text = {}});
  world.dialler->guest_changed({.on = false, .uuid = uuid_of(1), .name = {}, .facts = {}, .reason = {}, .text = {}});
  const auto second = world.wait_next();
  CHECK(guest_of(second) == 3);
}

TEST_CASE("what fails before a tool is reached is named", "[dialler]") {
  World world;
  SECTION("nobody listens") {
    world.listening.fd.reset();
    world.online(1);
    world.run_until([&] { return world.failed(step::kConnect, "refused"); });
  }
  SECTION("no room for another connection") {
    world.full = true;
    world.online(1);
    CHECK(world.failed(step::kLimits, "connections_max"));
  }
  SECTION("the guest is gone when the tool answers") {
    world.online(1);
    const auto fd = world.wait_next();
    world.registry.set_away(uuid_of(1), OffReason::LinkLost, "");
    REQUIRE(world.registry.erase_if_away(uuid_of(1), {}));
    world.answer(fd, 24);
    world.run_until([&] { return world.failed(step::kGuest, "gone"); });
  }
  CHECK(world.attached.empty());
  // Repeated, it is one line.
  world.run_until([&] { return world.failures.list().front().times >= 1; });
  CHECK(world.failures.list().size() == 1);
}

TEST_CASE("secrets are compared as a whole", "[dialler]") {
  CookieHash a{};
  CookieHash b{};
  CHECK(same_secret(a, b));
  b[0] = 1;
  CHECK_FALSE(same_secret(a, b));
  a[0] = 1;
  a[19] = 0x80;
  CHECK_FALSE(same_secret(a, b));
}
