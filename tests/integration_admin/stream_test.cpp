// SPDX-License-Identifier: GPL-2.0-or-later
//
// The live stream of events: what it shows, and that no guest waits for who watches.

#include <poll.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <memory>

#include "tests/integration_admin/admin_client.h"
#include "tests/integration_wire/scripted_hypervisor.h"

namespace kvmid::test {
namespace {

bool is_type(const Json& line, const char* type) { return line.at("type") == type; }

/// Events that nobody decides, as fast as they go, until so many are through.
void flood(ScriptedHypervisor& hypervisor, unsigned count) {
  const std::size_t before = hypervisor.replies();
  for (unsigned i = 0; i < count; ++i) hypervisor.raise(make_event(EventKind::Hypercall));
  if (!wait_until([&] { return hypervisor.replies() >= before + count; })) throw TestError("kvmid does not keep up");
}

}  // namespace

TEST_CASE("an event and its outcome are two lines with the seq that agents know it by", "[integration][stream]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--action", "skip"});
  StreamClient stream(scene.admin());
  scene.guest.do_times(GuestMode::Cr4, 1);
  const Json event = stream.wait([](const Json& line) { return is_type(line, "event"); });
  CHECK(event.at("kind") == "cr");
  CHECK(event.at("cr") == 4);
  CHECK(event.at("guest") == scene.guest.uuid_text());
  CHECK(event.at("guest_name") == "web1");
  CHECK(event.at("vcpu") == 0);
  CHECK(event.at("seq") == agent.event_seqs().front());
  const Json outcome = stream.wait([](const Json& line) { return is_type(line, "outcome"); });
  CHECK(outcome.at("seq") == event.at("seq"));
  CHECK(outcome.at("action") == "skip");
  CHECK(outcome.at("decided_by") == agent.id());
  CHECK(outcome.at("held_us").is_number());
}

TEST_CASE("a stream shows just the guest and the kinds that it was asked for", "[integration][stream]") {
  AdminScene scene;
  Guest other(scene.folder, {.name = "db1", .uuid = uuid_of(2), .arguments = {}});
  other.wait_online();
  TestAgent watching(scene.daemon, scene.guest, {"--events", "cr,hypercall", "--cr", "4"});
  TestAgent watching_other(scene.daemon, other, {"--events", "cr,hypercall", "--cr", "4"});
  StreamClient by_name(scene.admin(), "?guest=db1&kinds=hypercall,msr");
  StreamClient by_uuid(scene.admin(), "?guest=" + scene.guest.uuid_text() + "&kinds=cr");
  for (const Guest* guest : {&scene.guest, &other}) {
    guest->do_times(GuestMode::Cr4, 2);
    guest->do_times(GuestMode::Vmcall, 2);
    to_idle(*guest);
  }
  for (int i = 0; i < 4; ++i) {
    const auto line = by_name.next();
    REQUIRE(line);
    CHECK(line->at("guest_name") == "db1");
    CHECK(line->at("kind") == "hypercall");
    const auto second = by_uuid.next();
    REQUIRE(second);
    CHECK(second->at("guest_name") == "web1");
    CHECK(second->at("kind") == "cr");
  }
}

TEST_CASE("comings and goings of guests are in the stream", "[integration][stream]") {
  AdminScene scene;
  StreamClient stream(scene.admin(), "?kinds=pause");
  {
    ScriptedHypervisor hypervisor(scene.daemon.hypervisor_socket(), {.uuid = uuid_of(9), .name = "brief"});
    CHECK(stream.wait([](const Json& line) { return is_type(line, "guest_on"); }).at("guest_name") == "brief");
  }
  const Json off = stream.wait([](const Json& line) { return is_type(line, "guest_off"); });
  CHECK(off.at("guest_name") == "brief");
  CHECK(off.at("reason") == "link_lost");
}

TEST_CASE("a watcher that does not read delays no guest, and is told what it missed", "[integration][stream]") {
  AdminScene scene;
  ScriptedHypervisor hypervisor(scene.daemon.hypervisor_socket(), {.uuid = uuid_of(9), .name = "busy"});
  REQUIRE(wait_until([&] { return is_online(scene.daemon.agent_socket(), uuid_of(9)); }));
  StreamClient stream(scene.admin(), "?guest=busy");
  while (scene.counter("stream_dropped") == 0) flood(hypervisor, 1000);
  const auto dropped = stream.wait([](const Json& line) { return is_type(line, "dropped"); });
  CHECK(dropped.at("count") >= 1);
  // From there on nothing is missing.
  flood(hypervisor, 10);
  const Json event = stream.wait([](const Json& line) { return is_type(line, "event"); });
  CHECK(stream.wait([](const Json& line) { return is_type(line, "outcome"); }).at("seq") == event.at("seq"));
}

TEST_CASE("a watcher that reads nothing for long is closed, and its place is free again", "[integration][stream]") {
  AdminScene scene;
  ScriptedHypervisor hypervisor(scene.daemon.hypervisor_socket(), {.uuid = uuid_of(9), .name = "busy"});
  REQUIRE(wait_until([&] { return is_online(scene.daemon.agent_socket(), uuid_of(9)); }));
  StreamClient stream(scene.admin());
  while (scene.counter("stream_dropped") == 0) flood(hypervisor, 1000);
  REQUIRE(wait_until([&] {
    pollfd polled{stream.socket().fd(), 0, 0};
    return ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
  }));
  flood(hypervisor, 10);
  const std::uint64_t before = scene.counter("stream_dropped");
  flood(hypervisor, 6000);
  CHECK(scene.counter("stream_dropped") == before);  // nobody watches any more
}

TEST_CASE("there are so many places for watchers, and who leaves frees one", "[integration][stream]") {
  AdminScene scene;
  std::vector<std::unique_ptr<StreamClient>> streams;
  for (int i = 0; i < 8; ++i) streams.push_back(std::make_unique<StreamClient>(scene.admin()));
  const HttpAnswer refused = http(scene.admin(), "GET", "/v1/events");
  REQUIRE(refused.status == 503);
  REQUIRE(refused.message().find("8 streams") != std::string::npos);
  streams.pop_back();
  REQUIRE(wait_until([&] {
    try {
      streams.push_back(std::make_unique<StreamClient>(scene.admin()));
      return true;
    } catch (const TestError&) {
      return false;
    }
  }));
}

TEST_CASE("a client of HTTP/1.0 gets the lines without chunks", "[integration][stream]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4"});
  WireSocket socket(scene.admin());
  send_text(socket, "GET /v1/events?kinds=cr HTTP/1.0\r\n\r\n");
  std::string text;
  const auto read_until = [&](std::string_view end) {
    while (!text.ends_with(end)) {
      const auto byte = socket.read_exact(1);
      REQUIRE(byte);
      text += static_cast<char>(byte->front());
    }
  };
  read_until("\r\n\r\n");
  REQUIRE(text.find("200 OK") != std::string::npos);
  REQUIRE(text.find("hunked") == std::string::npos);
  text.clear();
  scene.guest.set_mode(GuestMode::Cr4);
  read_until("\n");
  REQUIRE(Json::parse(text).at("kind") == "cr");
}

TEST_CASE("streams end when kvmid stops", "[integration][stream]") {
  AdminScene scene;
  StreamClient stream(scene.admin());
  scene.daemon.process().signal(SIGTERM);
  CHECK(stream.wait([](const Json& line) { return is_type(line, "guest_off"); }).at("reason") == "daemon_stopping");
  while (stream.next()) {
  }
  REQUIRE(scene.daemon.process().wait_exit() == Exit{0, 0});
}

}  // namespace kvmid::test
