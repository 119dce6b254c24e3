// SPDX-License-Identifier: GPL-2.0-or-later
// How long a tool may take to close after UNHOOK: a session on a shard that the test runs, and a clock that it tells.
#include <spdlog/logger.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <future>

#include "client/socket.h"
#include "daemon/io/dialler.h"
#include "daemon/io/guest_session.h"
#include "daemon/io/listener.h"
#include "daemon/io/shard.h"
#include "tests/support/kvmi1_tool.h"
#include "tests/unit/io/older_hypervisor.h"

#include <sys/socket.h>

using namespace kvmid;
using namespace kvmid::io;
using namespace kvmid::test;
using namespace std::chrono_literals;

namespace {

struct World {
  RuntimeFolder folder;
  spdlog::logger log{"test"};
  IoCounters counters;
  FailureRing failures;
  Registry registry{1, 8};
  Services services{registry, counters, log, {}, failures};
  Shard shard{0, services};
  std::shared_ptr<GuestSession> session;
  std::unique_ptr<OlderHypervisor> hypervisor;
  Kvmi1Tool tool{folder.file("tool"), kvmi1::DialectId::V7};

  ~World() {
    session.reset();
    registry.clear();
  }
  void poll_until(const std::function<bool()>& condition) {
    REQUIRE(wait_until([&] {
      shard.context().restart();
      shard.context().poll();
      return condition();
    }));
  }
  [[nodiscard]] GuestSnapshot guest() const { return session->snapshot(); }

  void bring_guest() {
    auto listening = listen_unix(folder.file("hv"), 0600, "");
    REQUIRE(listening);
    HypervisorHello hello;
    hello.uuid.bytes.fill(1);
    hello.name = "older";
    hello.max_gpa = 0x1000000;
    auto coming = std::async(std::launch::async, [&] {
      return std::make_unique<OlderHypervisor>(folder.file("hv"), OlderHypervisor::Options{.uuid = hello.uuid});
    });
    HypervisorArrival arrival;
    REQUIRE(wait_until([&] {
      arrival.fd.reset(::accept4(listening->fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      return arrival.fd.valid();
    }));
    std::array<std::byte, 104> handshake;
    REQUIRE(wait_until([&] { return ::recv(arrival.fd.get(), handshake.data(), handshake.size(), 0) == 104; }));
    ByteBuffer answer;
    encode(HypervisorAnswer{}, answer);
    REQUIRE(::send(arrival.fd.get(), answer.data(), answer.size(), 0) == static_cast<ssize_t>(answer.size()));
    hypervisor = coming.get();
    arrival.hello = hello;
    auto claimed = registry.claim(hello.uuid, hello.name, [&](unsigned) {
      return std::make_shared<GuestSession>(shard, 0, hello, services);
    });
    REQUIRE(claimed);
    session = *claimed;
    session->link(std::move(arrival));
    poll_until([&] { return guest().info.online; });
  }

  void bring_tool() {
    auto connected = client::connect_stream(folder.file("tool"), client::deadline_after(kBound));
    REQUIRE(connected);
    const UniqueFd mine{connected->release()};
    const auto hello = qemu_handshake(kvmi1::DialectId::V7, session->uuid(), "older", {});
    REQUIRE(::send(mine.get(), hello.data(), hello.size(), 0) == static_cast<ssize_t>(hello.size()));
    tool.accept();
    std::array<std::byte, 24> answer;
    REQUIRE(wait_until([&] { return ::recv(mine.get(), answer.data(), answer.size(), 0) == 24; }));
    AgentArrival arrival;
    arrival.fd.reset(::dup(mine.get()));
    arrival.id = registry.next_agent_id();
    arrival.hello.name = "watcher";
    arrival.grant.commands.bits = ~std::uint64_t{0};
    arrival.grant.events = kEveryEvent;
    arrival.dialed.emplace(DialedArrival{kvmi1::DialectId::V7, "unix:tool", {}, {}, Ticket{}});
    session->attach(std::move(arrival));
  }
};

}  // namespace

TEST_CASE("after UNHOOK a tool has the 60 seconds that QEMU gives it", "[session][older]") {
  World world;
  world.bring_guest();
  world.bring_tool();
  const auto unhook = world.tool.codec().number_of(EventKind::Unhook).value_or(0);
  const Seq asked = world.tool.send(kvmi1::ControlVmEvents{unhook, true});
  std::optional<Kvmi1Message> message;
  world.poll_until([&] { return (message = world.tool.try_next(0ms)).has_value(); });
  REQUIRE(message->frame.seq == asked);

  const auto before = std::chrono::steady_clock::now();
  world.hypervisor->hang_up();
  world.poll_until([&] { return (message = world.tool.try_next(0ms)).has_value(); });
  const auto after = std::chrono::steady_clock::now();
  const auto* event = std::get_if<kvmi1::EventMessage>(&message->message);
  REQUIRE(event != nullptr);
  CHECK(event->event.kind() == EventKind::Unhook);

  const auto deadline = world.session->next_deadline();
  REQUIRE(deadline);
  CHECK(*deadline >= before + 60s);
  CHECK(*deadline <= after + 60s);
  world.session->on_time(*deadline - 1ns);
  CHECK(world.guest().agents.size() == 1);
  world.session->on_time(*deadline);
  CHECK(world.guest().agents.empty());
  CHECK_FALSE(world.session->next_deadline());
  CHECK(world.tool.wait_closed());
}

TEST_CASE("a tool is not attached to a guest that is away", "[session][older]") {
  World world;
  world.bring_guest();
  world.bring_tool();
  CHECK(world.guest().agents.size() == 1);
  world.hypervisor->hang_up();
  world.poll_until([&] { return world.guest().agents.empty(); });
  CHECK(world.tool.wait_closed());
  world.bring_tool();
  CHECK(world.guest().agents.empty());
  CHECK(world.tool.wait_closed());
  REQUIRE_FALSE(world.failures.list().empty());
  CHECK(world.failures.list().back().step == step::kGuest);
}
