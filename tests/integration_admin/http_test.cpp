// SPDX-License-Identifier: GPL-2.0-or-later
//
// Requests to the admin side, good and bad. Whatever comes, it is answered in JSON and the daemon is unmoved.

#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <memory>

#include "tests/integration_admin/admin_client.h"

namespace kvmid::test {
namespace {

/// Sends exactly these bytes and reads one answer.
HttpAnswer raw(const AdminScene& scene, std::string_view bytes) {
  WireSocket socket(scene.admin());
  send_text(socket, bytes);
  const auto answer = read_answer(socket);
  if (!answer) throw TestError("not answered");
  return *answer;
}

}  // namespace

TEST_CASE("health, log level, status and metrics are answered", "[integration][http]") {
  AdminScene scene;
  const Json health = http(scene.admin(), "GET", "/v1/health").json();
  CHECK(health.at("status") == "ok");
  CHECK(health.at("uptime_s").is_number());

  CHECK(http(scene.admin(), "PUT", "/v1/log-level", R"({"level":"error"})").json().at("level") == "error");
  CHECK(http(scene.admin(), "GET", "/v1/log-level").json().at("level") == "error");
  CHECK(http(scene.admin(), "PUT", "/v1/log-level", R"({"level":"debug"})").status == 200);
  scene.wait_log({"log level set", "level=debug"});

  const HttpAnswer metrics = http(scene.admin(), "GET", "/metrics");
  CHECK(metrics.status == 200);
  CHECK(metrics.headers.at("content-type").find("text/plain; version=0.0.4") == 0);
  CHECK(metrics.body.find("kvmid_guests 1\n") != std::string::npos);
  CHECK(metrics.body.find("kvmid_audit_dropped_total 0\n") != std::string::npos);
  CHECK(metrics.body.find(",name=\"web1\"} ") != std::string::npos);
}

TEST_CASE("an agent's entry has the events that wait for it, with their age", "[integration][http]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  scene.guest.set_mode(GuestMode::Cr4);
  const auto seq = agent.wait_owed().at("seq");
  const Json guest = http(scene.admin(), "GET", "/v1/guests/" + scene.guest.uuid_text()).json();
  CHECK(guest.at("vcpu").at(0).at("state") == "waiting");
  CHECK(guest.at("vcpu").at(0).at("waits_for") == Json::array({agent.id()}));
  bool found = false;
  const Json agents = http(scene.admin(), "GET", "/v1/agents").json();
  for (const auto& entry : agents.at("agents")) {
    if (entry.at("id") != agent.id()) continue;
    found = true;
    REQUIRE(entry.at("pending").size() == 1);
    CHECK(entry["pending"][0].at("event") == "cr");
    CHECK(entry["pending"][0].at("vcpu") == 0);
    CHECK(entry["pending"][0].at("event_seq") == seq);
    CHECK(entry["pending"][0].at("age_ms").is_number());
  }
  CHECK(found);
}

TEST_CASE("an agent's patches and filters are shown, and what its filters kept from it", "[integration][http]") {
  AdminScene scene;
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  const std::array<std::byte, 2> bytes{std::byte{0x0f}, std::byte{0x0b}};
  client::WriteOptions patch;
  patch.flags = KVMI_WRITE_PATCH;
  for (const std::uint64_t gpa : {0x600000U, 0x601000U}) check(agent.write_physical(Gpa{gpa}, bytes, patch));
  kvmi_filter_term never{};
  never.field = KVMI_FILTER_VCPU;
  never.value = 1000;
  check(agent.set_filter(kAllVcpus, EventKind::Cr, Action::Allow, std::span(&never, 1)));
  check(agent.control_cr(kAllVcpus, 4, true));
  EventSet cr;
  cr.add(EventKind::Cr);
  check(agent.subscribe(cr, Role::Decider));
  scene.guest.set_mode(GuestMode::Cr4);
  Json entry;
  REQUIRE(wait_until([&] {
    entry = http(scene.admin(), "GET", "/v1/agents").json().at("agents").at(0);
    return entry.at("filtered") > 2;
  }));
  scene.guest.set_mode(GuestMode::Idle);
  CHECK(entry.at("patches") == 2);
  CHECK(entry.at("filters") == 1);
  const Json guest = http(scene.admin(), "GET", "/v1/guests/" + scene.guest.uuid_text()).json();
  CHECK(guest.at("counters").at("filtered") > 2);
  CHECK(guest.at("counters").at("stepped_over") == 0);
  const std::string metrics = http(scene.admin(), "GET", "/metrics").body;
  CHECK(metrics.find("kvmid_guest_agent_patches{guest=\"" + scene.guest.uuid_text() + "\",name=\"web1\"} 2\n") !=
        std::string::npos);
  CHECK_FALSE(check(agent.wait_event(Millis(0))));  // it heard of none of them
}

TEST_CASE("each mistake is answered with its status and a sentence", "[integration][http]") {
  AdminScene scene;
  struct Mistake {
    const char* method;
    const char* target;
    const char* body;
    unsigned status;
    const char* message;
  };
  const std::vector<Mistake> mistakes{
      {"GET", "/v1/nothing", "", 404, "no such resource"},
      {"GET", "/v1/guests/web1", "", 400, "not a UUID"},
      {"GET", "/v1/guests/00000000-0000-0000-0000-0000000000ff", "", 404, "no such guest"},
      {"DELETE", "/v1/guests", "", 405, "\"DELETE\" is not served here, but GET"},
      {"GET", "/v1/reload", "", 405, "\"GET\" is not served here, but POST"},
      {"BREW", "/v1/status", "", 405, "\"BREW\" is not served here"},
      {"POST", "/v1/reload", "now", 400, "this request takes no body"},
      {"PUT", "/v1/log-level", "debug", 400, "the body is not JSON"},
      {"PUT", "/v1/log-level", R"({"level":"loud"})", 400, "there is no log level \"loud\"; there are: trace"},
      {"GET", "/v1/events?kinds=CR", "", 400, "there is no event kind \"CR\""},
      {"GET", "/v1/events?gust=web1", "", 400, "there is no parameter \"gust\""},
  };
  for (const auto& mistake : mistakes) {
    INFO(mistake.method << " " << mistake.target);
    const HttpAnswer answer = http(scene.admin(), mistake.method, mistake.target, mistake.body);
    CHECK(answer.status == mistake.status);
    CHECK(answer.message().find(mistake.message) == 0);
    CHECK((answer.headers.count("allow") == 1) == (mistake.status == 405));
  }
  CHECK(http(scene.admin(), "DELETE", "/v1/log-level").headers.at("allow") == "GET, PUT");
}

TEST_CASE("what is not HTTP, or too large, is answered and closed", "[integration][http]") {
  AdminScene scene;
  for (const char* bytes : {"hello\r\n\r\n", "GET /v1/status\r\n\r\n", "GET /v1/status HTTP/9.9\r\n\r\n",
                            "GET /v1/status HTTP/1.1\r\nno header\r\n\r\n",
                            "POST /v1/reload HTTP/1.1\r\nContent-Length: many\r\n\r\n", "\x16\x03\x01\x02\r\n\r\n"}) {
    INFO(bytes);
    CHECK(raw(scene, bytes).status == 400);
  }
  const std::string long_header = "GET /v1/status HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n";
  CHECK(raw(scene, long_header).status == 413);
  CHECK(raw(scene, "GET /" + std::string(20000, 'x') + " HTTP/1.1\r\n\r\n").status == 413);
  CHECK(raw(scene, "PUT /v1/log-level HTTP/1.1\r\nContent-Length: 70000\r\n\r\n").status == 413);
  CHECK(raw(scene, "PUT /v1/log-level HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n").status == 413);
  CHECK(http(scene.admin(), "PUT", "/v1/log-level", std::string(70000, ' ')).message().find("too large") !=
        std::string::npos);
  WireSocket socket(scene.admin());
  send_text(socket, "hello\r\n\r\n");
  REQUIRE(read_answer(socket));
  CHECK(socket.wait_closed());
}

TEST_CASE("a connection is kept for the next request, also where several come at once", "[integration][http]") {
  AdminScene scene;
  WireSocket socket(scene.admin());
  for (int i = 0; i < 5; ++i) {
    send_text(socket, http_request("GET", "/v1/health"));
    REQUIRE(read_answer(socket)->status == 200);
    send_text(socket, http_request("GET", "/v1/nothing"));
    REQUIRE(read_answer(socket)->status == 404);
  }
  send_text(socket, http_request("GET", "/v1/health") + http_request("PUT", "/v1/log-level", R"({"level":"info"})") +
                        http_request("POST", "/v1/reload") + http_request("GET", "/v1/health", "", "Connection: close\r\n"));
  for (int i = 0; i < 4; ++i) REQUIRE(read_answer(socket)->status == 200);
  REQUIRE(socket.wait_closed());
}

TEST_CASE("a client that is one too many is told so", "[integration][http]") {
  AdminScene scene;
  std::vector<std::unique_ptr<WireSocket>> clients;
  for (int i = 0; i < 64; ++i) {
    auto& socket = clients.emplace_back(std::make_unique<WireSocket>(scene.admin()));
    send_text(*socket, http_request("GET", "/v1/health"));
    REQUIRE(read_answer(*socket)->status == 200);
  }
  WireSocket late(scene.admin());
  const auto answer = read_answer(late);
  REQUIRE(answer);
  REQUIRE(answer->status == 503);
  REQUIRE(answer->message().find("connections already") != std::string::npos);
  REQUIRE(late.wait_closed());
  clients.pop_back();
  REQUIRE(wait_until([&] {
    WireSocket next(scene.admin());
    send_text(next, http_request("GET", "/v1/health"));
    const auto served = read_answer(next);
    return served && served->status == 200;
  }));
}

TEST_CASE("a request that does not come to its end is answered 408, and guests and agents go on", "[integration][http]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4"});
  scene.guest.set_mode(GuestMode::Cr4);
  WireSocket slow(scene.admin());
  WireSocket silent(scene.admin());
  WireSocket body(scene.admin());
  send_text(slow, "GET /v1/hea");
  send_text(body, "PUT /v1/log-level HTTP/1.1\r\nContent-Length: 20\r\n\r\n{");
  scene.guest.wait_rounds(20);
  REQUIRE(read_answer(slow)->status == 408);
  REQUIRE(read_answer(body)->message().find("in time") != std::string::npos);
  REQUIRE(slow.wait_closed());
  REQUIRE_FALSE(read_answer(silent));  // it asked nothing
  scene.guest.wait_rounds(20);
  REQUIRE(agent.notices("expired").empty());
  REQUIRE(http(scene.admin(), "GET", "/v1/health").status == 200);
}

TEST_CASE("while kvmid stops its health says so, and nothing can be changed", "[integration][http]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4"});
  WireSocket socket(scene.admin());
  send_text(socket, http_request("GET", "/v1/health"));
  REQUIRE(read_answer(socket)->status == 200);
  scene.guest.process().stop();  // it does not confirm that it was let go
  scene.daemon.process().signal(SIGTERM);
  scene.wait_log({"stopping"});

  send_text(socket, http_request("GET", "/v1/health"));
  const auto health = read_answer(socket);
  REQUIRE(health);
  REQUIRE(health->status == 503);
  REQUIRE(health->message() == "kvmid is stopping");
  for (const auto& request : {http_request("POST", "/v1/reload"), http_request("PUT", "/v1/log-level", R"({"level":"info"})"),
                              http_request("GET", "/v1/events")}) {
    send_text(socket, request);
    REQUIRE(read_answer(socket)->status == 503);
  }
  REQUIRE(scene.daemon.process().wait_exit() == Exit{0, 0});
  REQUIRE(socket.wait_closed());
  scene.guest.process().cont();
}

}  // namespace kvmid::test
